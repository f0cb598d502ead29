//! Backends in other processes: the `-chardev socket` that a `-netdev vhost-user` or a vhost-user device names, made
//! into the options of our devices. The chardev only says where the backend is: no bytes go through it.

use devices::virtio::options::{ConfigError, Pairs};

use super::backends::Named;
use super::keyval::canonical;

/// Where the backend behind chardev `id` of `subject` is, as our devices take it.
///
/// # Errors
/// There is no such chardev, or no backend can be behind it.
pub(super) fn place(subject: &str, id: &str, chardevs: &Named) -> Result<Pairs, ConfigError> {
    let refused =
        |problem: &str, remedy: String| ConfigError::refused(subject, format_args!("chardev={id}: {problem}"), remedy);
    let chardev = chardevs.get(id).ok_or_else(|| {
        refused(
            "there is nothing of that name",
            format!("add -chardev socket,id={id},path=SOCKET"),
        )
    })?;
    let path = chardev.get("path").filter(|_| chardev.get("backend") == Some("socket"));
    let path = path.ok_or_else(|| {
        refused(
            "descriptors cannot be passed through it",
            format!("use -chardev socket,id={id},path=SOCKET"),
        )
    })?;
    let listens = chardev.get("server").map(canonical) == Some("on");
    let role = if listens { "listen" } else { "connect" };
    let mut options = Pairs::default();
    options.push("vhost-user", format!("{role}:{path}"));
    if let Some(seconds) = chardev.get("reconnect") {
        options.push("reconnect", seconds);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::backends::Backends;
    use super::*;

    #[test]
    fn a_socket_says_where_the_backend_is() {
        let mut backends = Backends::default();
        for chardev in [
            "backend=socket,id=c0,path=/run/a",
            "backend=socket,id=c1,path=/run/b,server=on,wait=off",
            "backend=socket,id=c2,path=c,reconnect=3",
            "backend=socket,id=c3,host=localhost,port=1",
            "backend=null,id=c4",
        ] {
            backends.add_chardev(Pairs::parse(chardev, None)).unwrap();
        }
        let place = |id| place("-netdev", id, &backends.chardevs);
        for (id, expected) in [
            ("c0", "vhost-user=connect:/run/a"),
            ("c1", "vhost-user=listen:/run/b"),
            ("c2", "vhost-user=connect:c,reconnect=3"),
        ] {
            assert_eq!(place(id).unwrap().to_string(), expected);
        }
        for (id, complaint) in [
            ("c3", "chardev=c3: descriptors cannot be passed through it"),
            ("c4", "use -chardev socket,id=c4,path=SOCKET"),
            ("c5", "add -chardev socket,id=c5,path=SOCKET"),
        ] {
            let error = place(id).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
