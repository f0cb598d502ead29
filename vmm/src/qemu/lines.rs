//! Character devices: QEMU's `-chardev`, and the short forms that `-serial`, `-monitor` and `-qmp` take, made into
//! the options of our far ends ([`devices::chardev`]).

use devices::virtio::options::{ConfigError, Pairs};

use super::keyval::{Reader, Settled, canonical, settled};

/// Options of character devices that are as things are here.
const SETTLED: &[Settled] = &[
    settled("logappend", &[], ""),
    settled("signal", &[], ""),
    settled("nodelay", &[], "bytes are sent at once"),
    settled("ipv4", &[], "the host's name says it"),
    settled("ipv6", &[], "the host's name says it"),
    settled("tight", &[], ""),
    settled("abstract", &["off"], "name a path"),
    settled("telnet", &["off"], "the bytes go as they are"),
    settled("websocket", &["off"], "the bytes go as they are"),
    settled("tn3270", &["off"], "the bytes go as they are"),
];

/// What the options of each kind are.
const KINDS: &[(&str, &[&str])] = &[
    ("null", &[]),
    ("stdio", &[]),
    ("pty", &[]),
    ("file", &["path", "append"]),
    ("pipe", &["path"]),
    ("fd", &["fd"]),
    ("socket", &["path", "host", "port", "fd", "server", "wait", "reconnect"]),
    ("ringbuf", &["size"]),
];

/// The kinds that there are.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(kind, _)| *kind)
}

/// The options of a `-chardev` without `id`, as our far ends take them.
pub(super) fn chardev(subject: &str, pairs: Pairs) -> Result<Pairs, ConfigError> {
    let mut reader = Reader::new(subject, pairs);
    let backend = reader.required("backend", "which kind it is to be")?;
    let backend = if backend == "memory" {
        "ringbuf"
    } else {
        backend.as_str()
    };
    let Some((_, keys)) = KINDS.iter().find(|(kind, _)| *kind == backend) else {
        return Err(reader.invalid("backend", backend, &kinds().collect::<Vec<_>>().join("|")));
    };
    reader.settle(SETTLED)?;
    if reader.text("logfile").is_some() {
        return Err(reader.refused("there is no logfile=", "use the kind 'file', or tee(1) on a socket"));
    }
    let mux = reader.flag("mux")?.unwrap_or(false);
    let mut options = Pairs::default();
    options.push("backend", backend);
    // The spelling before QEMU 6.0.
    if reader.text("nowait").is_some() {
        options.push("wait", "off");
    }
    for key in *keys {
        if let Some(value) = reader.text(key) {
            options.push(*key, canonical(&value));
        }
    }
    if mux && backend == "stdio" {
        options.push("escapes", "on");
    }
    reader.finish()?;
    // QEMU's clients do not wait, and to say so is no mistake.
    if options.get("server") != Some("on") {
        options.take("wait");
    }
    Ok(options)
}

/// Where `-serial` and its like lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// The port is not there, or nobody is asked.
    None,
    /// A `-chardev` by its id.
    Chardev(String),
    /// A far end of its own.
    Own(Pairs),
}

/// Reads the argument of `-serial`, `-monitor`, `-qmp`, ...
pub(super) fn short(subject: &str, text: &str) -> Result<Line, ConfigError> {
    if let Some(rest) = text.strip_prefix("mon:") {
        return Ok(match short(subject, rest)? {
            Line::Own(mut options) if options.get("backend") == Some("stdio") => {
                options.push("escapes", "on");
                Line::Own(options)
            }
            other => other,
        });
    }
    if let Some(id) = text.strip_prefix("chardev:") {
        return Ok(Line::Chardev(id.to_owned()));
    }
    let long = |backend: &str, key: &str, rest: &str| {
        let mut pairs = Pairs::parse(rest, Some(key));
        pairs.push("backend", backend);
        chardev(subject, pairs).map(Line::Own)
    };
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "none" if rest.is_empty() => Ok(Line::None),
        "null" | "stdio" | "pty" if rest.is_empty() => {
            chardev(subject, Pairs::parse(kind, Some("backend"))).map(Line::Own)
        }
        "file" | "pipe" => long(kind, "path", rest),
        "fd" => long(kind, "fd", rest),
        "unix" => long("socket", "path", rest),
        "tcp" => {
            let (address, options) = rest.split_once(',').unwrap_or((rest, ""));
            let (host, port) = address.rsplit_once(':').ok_or_else(|| {
                ConfigError::refused(
                    format_args!("{subject} {text}"),
                    "there is no port",
                    "write tcp:HOST:PORT",
                )
            })?;
            let mut pairs = Pairs::parse(options, None);
            // An address of IPv6 is written in brackets.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if !host.is_empty() {
                pairs.push("host", host);
            }
            pairs.push("port", port);
            pairs.push("backend", "socket");
            chardev(subject, pairs).map(Line::Own)
        }
        _ => {
            let remedy = match subject {
                "-serial" => "use none, null, stdio, pty, file:PATH, unix:PATH or chardev:ID",
                _ => "use none, null, stdio, pty, file:PATH, pipe:PATH, unix:PATH, tcp:HOST:PORT or chardev:ID",
            };
            let line = format_args!("{subject} {text}");
            Err(ConfigError::refused(line, "there is no such line", remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn long(text: &str) -> Result<String, String> {
        let options = chardev("-chardev", Pairs::parse(text, Some("backend")));
        options
            .map(|options| options.to_string())
            .map_err(|error| error.to_string())
    }

    fn line(text: &str) -> String {
        match short("-serial", text) {
            Ok(Line::Own(options)) => options.to_string(),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn chardevs_become_far_ends() {
        for (text, expected) in [
            (
                "socket,path=/run/q,server=on,wait=off",
                "backend=socket,path=/run/q,server=on,wait=off",
            ),
            (
                "socket,path=/run/q,server,nowait",
                "backend=socket,wait=off,path=/run/q,server=on",
            ),
            ("socket,path=/run/q,wait=off", "backend=socket,path=/run/q"),
            (
                "socket,host=localhost,port=4444,nodelay=on,server=yes",
                "backend=socket,host=localhost,port=4444,server=on",
            ),
            ("stdio,mux=on,signal=off", "backend=stdio,escapes=on"),
            (
                "file,path=/proc/self/fd/2,append=on",
                "backend=file,path=/proc/self/fd/2,append=on",
            ),
            ("memory,size=4K", "backend=ringbuf,size=4K"),
        ] {
            assert_eq!(long(text), Ok(expected.to_owned()), "{text}");
        }
        for (text, complaint) in [
            ("udp,port=1", "backend=udp: expected null|stdio"),
            ("path=/x", "backend= is missing"),
            ("stdio,path=/x", "there is no option 'path'"),
            ("file,path=/x,logfile=y", "there is no logfile="),
            ("socket,path=/x,telnet=on", "the bytes go as they are"),
        ] {
            let error = long(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn short_forms_say_the_same() {
        for (text, expected) in [
            ("stdio", "backend=stdio"),
            ("mon:stdio", "backend=stdio,escapes=on"),
            ("none", "None"),
            ("null", "backend=null"),
            ("pty", "backend=pty"),
            ("chardev:c0", "Chardev(\"c0\")"),
            ("file:/tmp/a,,b.log", "backend=file,path=/tmp/a,,b.log"),
            (
                "unix:/run/q,server=on,wait=off",
                "backend=socket,path=/run/q,server=on,wait=off",
            ),
            (
                "unix:/run/q,server,nowait",
                "backend=socket,wait=off,path=/run/q,server=on",
            ),
            ("tcp::4444,server=on", "backend=socket,port=4444,server=on"),
            ("tcp:[::1]:4444", "backend=socket,host=::1,port=4444"),
            ("tcp:4444", "-serial tcp:4444: there is no port; write tcp:HOST:PORT"),
        ] {
            assert_eq!(line(text), expected, "{text}");
        }
        for text in ["vc", "telnet::1", "/dev/ttyS0", "", "stdio:x", "mon:vc"] {
            assert!(line(text).contains("there is no such line"), "{text}");
        }
    }
}
