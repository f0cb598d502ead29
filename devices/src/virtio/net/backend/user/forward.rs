//! Ports of the host that lead to the guest, as QEMU's `hostfwd=` spells them.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

/// The address that QEMU's own user-mode network gives to a guest, so that it stands for the guest
/// in a `hostfwd=` that was written for QEMU.
const QEMU_GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

/// What is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// The address of the host at which the port is; all if there is none.
    pub address: Option<IpAddr>,
    /// The port there.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl Forward {
    /// How it is spelled.
    pub const SPELLING: &str = "tcp|udp:[HOSTADDR:]HOSTPORT-:GUESTPORT, such as tcp:8080-:80 or tcp:127.0.0.1:8080-:80";

    /// Reads one; `None` for what is not spelled like one.
    pub fn parse(text: &str) -> Option<Self> {
        let (protocol, rest) = text.split_once(':')?;
        let (host, guest) = rest.split_once('-')?;
        let (address, host_port) = end(host.rsplit_once(':').unwrap_or(("", host)))?;
        let (guest_address, guest_port) = end(guest.rsplit_once(':')?)?;
        let protocol = match protocol {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let is_the_guest = guest_address.is_none_or(|address| address == QEMU_GUEST);
        is_the_guest.then_some(Self {
            protocol,
            address,
            host_port,
            guest_port,
        })
    }

    /// As passt's command line has it.
    pub fn arguments(&self) -> [String; 2] {
        let option = match self.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let address = self.address.map_or(String::new(), |address| format!("{address}/"));
        let ports = format!("{address}{}:{}", self.host_port, self.guest_port);
        [option.to_owned(), ports]
    }
}

/// An address, or nothing, and a port; an address of IPv6 stands in brackets.
fn end((address, port): (&str, &str)) -> Option<(Option<IpAddr>, u16)> {
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let address = match address {
        "" => None,
        _ => {
            let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            Some(bare.unwrap_or(address).parse().ok()?)
        }
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arguments(text: &str) -> String {
        Forward::parse(text).unwrap().arguments().join(" ")
    }

    #[test]
    fn forwards_are_passed_on_as_passt_spells_them() {
        assert_eq!(arguments("tcp::8080-:80"), "--tcp-ports 8080:80");
        assert_eq!(arguments("tcp:8080-:80"), "--tcp-ports 8080:80");
        assert_eq!(arguments("udp:53-10.0.2.15:5353"), "--udp-ports 53:5353");
        assert_eq!(arguments("::2222-:22"), "--tcp-ports 2222:22");
        assert_eq!(
            arguments("udp:127.0.0.1:53-10.0.2.15:5353"),
            "--udp-ports 127.0.0.1/53:5353"
        );
        assert_eq!(arguments("tcp:[::1]:8080-:80"), "--tcp-ports ::1/8080:80");
    }

    #[test]
    fn what_is_no_forward_is_refused() {
        for text in [
            "",
            "tcp",
            "tcp:8080",
            "tcp:8080-80",
            "tcp::8080-80",
            "tcp:[::1]-:80",
            "tcp::0-:80",
            "tcp::80-:0",
            "tcp::65536-:80",
            "icmp::1-:1",
            "tcp:host:1-:1",
            "tcp::1-192.0.2.1:1",
            "tcp:--log-file:1-:1",
        ] {
            assert_eq!(Forward::parse(text), None, "{text}");
        }
    }
}
