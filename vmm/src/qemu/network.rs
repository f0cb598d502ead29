//! Networks: QEMU's `-netdev` and `-nic`, made into the options of our virtio-net-pci.

use devices::virtio::options::{ConfigError, Pairs};

use super::backends::Named;
use super::keyval::{Reader, Settled, canonical, settled};
use super::vhost_user;

/// Options of tap interfaces that are as things are here.
const TAP: &[Settled] = &[
    settled(
        "script",
        &["off", ""],
        "no programs are run; set the interface up first",
    ),
    settled("downscript", &["off", ""], "no programs are run"),
    settled("vnet_hdr", &["on"], "frames carry a virtio_net_hdr"),
    settled("sndbuf", &["0"], "there is no limit"),
    settled("poll-us", &["0"], "vhost does not poll"),
    settled("vhostforce", &["off"], "say vhost=on"),
];

/// The kinds of networks.
pub(super) const KINDS: &str = "user|tap|socket|stream|dgram|hubport|vhost-user";

/// The options of a `-netdev` without `id`, as our card takes them. It may refer to one of `chardevs`.
pub(super) fn netdev(subject: &str, pairs: Pairs, chardevs: &Named) -> Result<Pairs, ConfigError> {
    let mut reader = Reader::new(subject, pairs);
    let kind = reader.required("type", KINDS)?;
    match kind.as_str() {
        "none" => {
            reader.finish()?;
            Ok([("none", "on")].into_iter().collect())
        }
        "user" => user(reader),
        "tap" => tap(reader),
        "socket" => socket(reader),
        "stream" => stream(reader),
        "dgram" => dgram(reader),
        "hubport" => {
            let hub = reader.required("hubid", "the number of the hub")?;
            let mut options = Pairs::default();
            options.push("hub", hub);
            // Nothing comes of queues of a hub in QEMU either.
            reader.settle(&[settled("queues", &["1"], "a hub has one queue pair")])?;
            reader.finish()?;
            Ok(options)
        }
        "vhost-user" => vhost_user(reader, chardevs),
        "bridge" | "l2tpv3" | "vde" | "netmap" | "vhost-vdpa" | "af-xdp" | "passt" => Err(reader.invalid(
            "type",
            &kind,
            &format!("{KINDS}; a tap interface can be a bridge's port"),
        )),
        _ => Err(reader.invalid("type", &kind, KINDS)),
    }
}

/// Options of user-mode networking that are as things are here.
const USER: &[Settled] = &[
    settled("ipv4", &["on"], "passt has it"),
    settled("ipv6", &["on"], "passt has it"),
    settled("restrict", &["off"], "passt lets the guest reach what the host reaches"),
];

/// Options of QEMU's user-mode networking that describe the network behind the card, which is another one here.
const OTHER_NETWORK: &[&str] = &[
    "net",
    "host",
    "dhcpstart",
    "dns",
    "dnssearch",
    "domainname",
    "hostname",
    "ipv6-net",
    "ipv6-prefix",
    "ipv6-prefixlen",
    "ipv6-host",
    "ipv6-dns",
];

/// User-mode networking. The addresses are passt's, which are the host's own.
fn user(mut reader: Reader) -> Result<Pairs, ConfigError> {
    reader.settle(USER)?;
    if let Some(key) = OTHER_NETWORK.iter().find(|key| reader.text(key).is_some()) {
        let remedy = "leave it out: the guest has the addresses of the host, by passt";
        return Err(reader.refused(&format!("there is no {key}="), remedy));
    }
    let mut options = Pairs::default();
    options.push("user", "on");
    for rule in reader.texts("hostfwd") {
        options.push("hostfwd", rule);
    }
    reader.finish()?;
    Ok(options)
}

fn tap(mut reader: Reader) -> Result<Pairs, ConfigError> {
    for (key, remedy) in [
        (
            "br",
            "add the interface to the bridge with ip link set NAME master BRIDGE",
        ),
        (
            "helper",
            "make the interface with ip tuntap add, and name it with ifname=",
        ),
        ("vhostfd", "leave it out: vhost=on opens /dev/vhost-net"),
        ("vhostfds", "leave it out: vhost=on opens /dev/vhost-net"),
    ] {
        if reader.text(key).is_some() {
            return Err(reader.refused(&format!("there is no {key}="), remedy));
        }
    }
    // Without a word QEMU runs /etc/qemu-ifup; here the interface is taken as it is.
    reader.settle(TAP)?;
    let mut options = Pairs::default();
    let fds = reader.text("fd");
    match reader.text("fds").or(fds) {
        Some(fds) => options.push("tap-fd", fds),
        None => options.push("tap", reader.text("ifname").unwrap_or_else(|| "tap%d".to_owned())),
    }
    for key in ["queues", "vhost"] {
        if let Some(value) = reader.text(key) {
            options.push(key, canonical(&value));
        }
    }
    reader.finish()?;
    Ok(options)
}

fn socket(mut reader: Reader) -> Result<Pairs, ConfigError> {
    let mut options = Pairs::default();
    for (key, ours) in [("fd", "fd="), ("listen", "listen:"), ("connect", "connect:")] {
        if let Some(value) = reader.text(key) {
            options.push("socket", format!("{ours}{value}"));
        }
    }
    for key in ["mcast", "udp", "localaddr"] {
        if reader.text(key).is_some() {
            return Err(reader.refused(
                &format!("there is no {key}="),
                "use -netdev dgram with UNIX sockets or UDP",
            ));
        }
    }
    if options.iter().count() != 1 {
        return Err(reader.refused("a socket has one end here", "give one of fd=, listen= and connect="));
    }
    reader.finish()?;
    Ok(options)
}

/// `addr.type=unix,addr.path=..`, `addr.type=inet,addr.host=..,addr.port=..` or `addr.type=fd,addr.str=..`, with
/// `prefix` in place of `addr`; as one word.
fn address(reader: &mut Reader, prefix: &str) -> Result<Option<String>, ConfigError> {
    let key = |name: &str| format!("{prefix}.{name}");
    let Some(kind) = reader.text(&key("type")) else {
        return Ok(None);
    };
    for flag in ["ipv4", "ipv6", "keep-alive", "mptcp", "numeric", "abstract", "tight"] {
        if let Some(value) = reader
            .text(&key(flag))
            .filter(|value| flag == "abstract" && canonical(value) == "on")
        {
            return Err(reader.invalid(&key(flag), &value, "off: name a path"));
        }
    }
    match kind.as_str() {
        "unix" => reader.required(&key("path"), "the socket's path").map(Some),
        "fd" => {
            let fd = reader.required(&key("str"), "the descriptor's number")?;
            Ok(Some(format!("fd={fd}")))
        }
        "inet" => {
            let host = reader.required(&key("host"), "the host")?;
            let port = reader.required(&key("port"), "the port")?;
            Ok(Some(format!("{host}:{port}")))
        }
        other => Err(reader.invalid(&key("type"), other, "unix|inet|fd")),
    }
}

fn stream(mut reader: Reader) -> Result<Pairs, ConfigError> {
    let server = reader.flag("server")?.unwrap_or(false);
    let address = address(&mut reader, "addr")?.ok_or_else(|| {
        reader.refused(
            "there is no address",
            "give addr.type=unix,addr.path=PATH, or inet, or fd",
        )
    })?;
    let mut options = Pairs::default();
    options.push(
        "socket",
        match server {
            _ if address.starts_with("fd=") => address,
            true => format!("listen:{address}"),
            false => format!("connect:{address}"),
        },
    );
    reader.settle(&[settled("reconnect", &["0"], "a connection that is lost stays so")])?;
    reader.finish()?;
    Ok(options)
}

fn dgram(mut reader: Reader) -> Result<Pairs, ConfigError> {
    let local = address(&mut reader, "local")?;
    let remote = address(&mut reader, "remote")?;
    let mut options = Pairs::default();
    match (local, remote) {
        (Some(local), None) if !local.starts_with("fd=") => {
            return Err(reader.refused("there is nobody to send to", "give remote.type="));
        }
        (Some(local), remote) => {
            options.push("dgram", local);
            if let Some(remote) = remote {
                options.push("remote", remote);
            }
        }
        (None, _) => {
            return Err(reader.refused(
                "there is no multicast",
                "give local.type= and remote.type=, or local.type=fd",
            ));
        }
    }
    reader.finish()?;
    Ok(options)
}

/// A network of another process.
fn vhost_user(mut reader: Reader, chardevs: &Named) -> Result<Pairs, ConfigError> {
    let chardev = reader.required("chardev", "the id of a -chardev socket")?;
    let mut options = vhost_user::place(reader.subject(), &chardev, chardevs)?;
    if let Some(queues) = reader.text("queues") {
        options.push("queues", queues);
    }
    reader.settle(&[settled(
        "vhostforce",
        &[],
        "the other process has the queues in any case",
    )])?;
    reader.finish()?;
    Ok(options)
}

/// The models of `-nic` that are our card.
const MODELS: [&str; 3] = ["virtio", "virtio-net-pci", "virtio-net"];

/// A `-nic`: the options of its network, still as QEMU has them, and those of its card; `None` for `none`.
pub(super) fn nic(pairs: Pairs) -> Result<Option<(Pairs, Pairs)>, ConfigError> {
    let mut reader = Reader::new("-nic", pairs);
    let kind = reader.required("type", KINDS)?;
    if kind == "none" {
        reader.finish()?;
        return Ok(None);
    }
    let model = reader.text("model").unwrap_or_else(|| "e1000".to_owned());
    if !MODELS.contains(&model.as_str()) {
        return Err(reader.refused(
            &format!("the card would be an {model}, which is not here"),
            "add model=virtio-net-pci",
        ));
    }
    let mut card = Pairs::default();
    for (key, ours) in [
        ("mac", "mac"),
        ("addr", "addr"),
        ("macaddr", "mac"),
        ("vectors", "vectors"),
    ] {
        if let Some(value) = reader.text(key) {
            card.push(ours, value);
        }
    }
    let mut network = reader.rest();
    network.push("type", kind);
    Ok(Some((network, card)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let chardev = Pairs::parse("backend=socket,path=/run/b", None);
        let chardevs = [("c0".to_owned(), chardev)].into_iter().collect();
        let options = netdev("-netdev", Pairs::parse(text, Some("type")), &chardevs);
        options
            .map(|options| options.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn networks_become_options_of_our_card() {
        for (text, expected) in [
            (
                "user,hostfwd=tcp::2222-:22,hostfwd=udp::1-:2",
                "user=on,hostfwd=tcp::2222-:22,hostfwd=udp::1-:2",
            ),
            ("tap,ifname=tap0,script=no,downscript=no,vhost=on", "tap=tap0,vhost=on"),
            ("tap,fds=3:4,queues=2,vnet_hdr=on", "tap-fd=3:4,queues=2"),
            ("tap", "tap=tap%d"),
            ("socket,fd=5", "socket=fd=5"),
            ("socket,listen=:1234", "socket=listen::1234"),
            (
                "stream,server=on,addr.type=unix,addr.path=/run/x",
                "socket=listen:/run/x",
            ),
            (
                "stream,addr.type=inet,addr.host=::1,addr.port=9",
                "socket=connect:::1:9",
            ),
            (
                "dgram,local.type=unix,local.path=a,remote.type=unix,remote.path=b",
                "dgram=a,remote=b",
            ),
            ("hubport,hubid=0", "hub=0"),
            ("none", "none=on"),
            (
                "vhost-user,chardev=c0,vhostforce=on,queues=2",
                "vhost-user=connect:/run/b,queues=2",
            ),
        ] {
            assert_eq!(read(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_no_network_here_has_is_refused() {
        for (text, complaint) in [
            ("tap,script=/etc/up", "no programs are run"),
            ("tap,br=br0", "ip link set NAME master BRIDGE"),
            ("bridge,br=br0", "type=bridge: expected user|tap"),
            ("socket,fd=5,listen=:1", "give one of fd="),
            ("socket,mcast=1.2.3.4:5", "use -netdev dgram"),
            (
                "dgram,local.type=unix,local.path=a",
                "there is nobody to send to; give remote.type=",
            ),
            ("hubport", "hubid= is missing"),
            ("user,restrict=on", "passt lets the guest reach"),
            (
                "user,net=10.0.0.0/8",
                "there is no net=; leave it out: the guest has the addresses of the host",
            ),
            ("user,smb=/srv", "there is no option 'smb'"),
            (
                "dgram,remote.type=inet,remote.host=230.0.0.1,remote.port=1",
                "there is no multicast",
            ),
            ("stream,addr.type=vsock", "expected unix|inet|fd"),
            ("ifname=tap0", "type= is missing"),
            ("vhost-user,vhostforce=on", "chardev= is missing"),
            ("vhost-user,chardev=c1", "add -chardev socket,id=c1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn a_nic_is_a_network_and_a_card_of_virtio() {
        let parse = |text| nic(Pairs::parse(text, Some("type")));
        let (network, card) = parse("user,model=virtio,mac=52:54:00:00:00:01,hostfwd=tcp::1-:2")
            .unwrap()
            .unwrap();
        assert_eq!(network.to_string(), "hostfwd=tcp::1-:2,type=user");
        assert_eq!(card.to_string(), "mac=52:54:00:00:00:01");
        assert_eq!(parse("none"), Ok(None));
        assert!(
            parse("user")
                .unwrap_err()
                .to_string()
                .contains("an e1000, which is not here; add model=")
        );
    }
}
