#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::super::testing::{opened, receive, receive_until, run, send};
use super::*;
use crate::sys::testing::own_network;

/// Gives this thread a network of its own. `false`, with the reason printed, where it may not have
/// one.
fn network() -> bool {
    let there_is = own_network().and_then(|()| fs::metadata(DEVICE).map(drop));
    if let Err(error) = &there_is {
        println!("skipped: a network of our own and {DEVICE} are needed: {error}");
    }
    there_is.is_ok()
}

fn complaint(options: &str) -> String {
    opened(options).map(drop).unwrap_err().to_string()
}

/// The addresses of the two ends, the kernel's and ours.
const HOST: &str = "10.9.8.1";
const GUEST: &str = "10.9.8.2:7";
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Gives the kernel's end of the interface an address, and lets it know ours.
fn configure(name: &str) {
    run(&format!("ip address add {HOST}/24 dev {name}"));
    run(&format!("ip link set {name} up"));
    run(&format!(
        "ip neighbour add 10.9.8.2 lladdr 52:54:00:12:34:56 dev {name} nud permanent"
    ));
}

/// The frame, header and all, in which `payload` comes.
fn carrying(endpoint: &mut dyn Endpoint, payload: &[u8]) -> Vec<u8> {
    receive_until(endpoint, |frame| frame.ends_with(payload).then(|| frame.to_vec())).unwrap()
}

/// Flags of a `virtio_net_hdr` that leaves the checksum to the receiver.
const NEEDS_CSUM: u8 = 1;

#[test]
fn frames_go_both_ways_behind_a_header_of_the_length_that_was_set() {
    if !network() {
        return;
    }
    let Opened {
        backend, mut endpoints, ..
    } = opened("tap=").unwrap();
    let name = backend.describe().rsplit(' ').next().unwrap().to_owned();
    configure(&name);
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for len in [10, 12] {
        backend.set_header_len(len).unwrap();
        socket.send_to(b"to the guest", GUEST).unwrap();
        let mut frame = carrying(&mut *endpoints[0], b"to the guest");
        assert_eq!(frame[len..len + 6], GUEST_MAC);
        assert_eq!(frame[..len], [0; 12][..len], "nothing was left to the guest");

        // Sent back with the ends changed: the checksums stay right.
        let (head, tail) = frame[len..].split_at_mut(6);
        head.swap_with_slice(&mut tail[..6]);
        let ip = len + 14;
        for (a, b, bytes) in [(ip + 12, ip + 16, 4), (ip + 20, ip + 22, 2)] {
            (0..bytes).for_each(|i| frame.swap(a + i, b + i));
        }
        send(&mut *endpoints[0], &frame).unwrap();
        let mut received = [0; 64];
        assert_eq!(socket.recv_from(&mut received).unwrap(), (12, GUEST.parse().unwrap()));
        // A frame of our own gets its header here.
        endpoints[0].send_bytes(&frame[len..]);
        assert_eq!(socket.recv(&mut received).unwrap(), 12);
    }
}

#[test]
fn the_host_leaves_to_the_guest_what_it_was_told() {
    if !network() {
        return;
    }
    let Opened {
        backend, mut endpoints, ..
    } = opened("tap=tap0").unwrap();
    configure("tap0");
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    for csum in [false, true, false] {
        let offloads = Offloads {
            csum,
            ..Offloads::default()
        };
        backend.set_offloads(offloads).unwrap();
        socket.send_to(b"checksum", GUEST).unwrap();
        let frame = carrying(&mut *endpoints[0], b"checksum");
        assert_eq!(frame[0] & NEEDS_CSUM != 0, csum);
    }
}

#[test]
fn any_set_of_offloads_that_a_driver_may_ask_for_is_taken() {
    if !network() {
        return;
    }
    let Opened { backend, .. } = opened("tap=tap0").unwrap();
    let can = backend.capabilities();
    assert!(can.vnet_header);
    for bits in 0..64u8 {
        let bit = |index: u8| bits & 1 << index != 0;
        let offloads = Offloads {
            csum: bit(0),
            tso4: bit(1),
            tso6: bit(2),
            ecn: bit(3),
            ufo: bit(4) && can.ufo,
            uso: bit(5) && can.uso,
        };
        backend
            .set_offloads(offloads)
            .unwrap_or_else(|error| panic!("{offloads:?}: {error}"));
    }
}

#[test]
fn each_queue_pair_has_a_queue_and_those_in_use_take_part() {
    if !network() {
        return;
    }
    let Opened {
        backend, mut endpoints, ..
    } = opened("tap=tap0,queues=4").unwrap();
    assert_eq!(endpoints.len(), 4);
    configure("tap0");
    // One that does not take part is idle, not broken.
    let idle = receive(&mut *endpoints[3]).unwrap_err();
    assert_eq!(idle.kind(), io::ErrorKind::WouldBlock);
    for pairs in [4, 2, 2, 1, 4] {
        backend.set_active_pairs(pairs).unwrap();
        backend.set_offloads(Offloads::default()).unwrap();
    }
    // The kernel answers on the queue on which it has seen a flow.
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.send_to(b"anywhere", GUEST).unwrap();
    let found = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        endpoints
            .iter_mut()
            .any(|endpoint| receive(&mut **endpoint).is_ok_and(|frame| frame.ends_with(b"anywhere")))
    });
    assert!(found);
}

#[test]
fn an_interface_that_is_there_is_used_and_stays() {
    if !network() {
        return;
    }
    for (kind, options) in [
        ("", "tap=own"),
        ("multi_queue", "tap=own"),
        ("multi_queue", "tap=own,queues=2"),
    ] {
        run(&format!("ip tuntap add own mode tap {kind}"));
        drop(opened(options).unwrap());
        drop(opened(options).unwrap());
        run("ip link delete own");
    }
    drop(opened("tap=made").unwrap());
    let gone = std::process::Command::new("ip")
        .args(["link", "show", "made"])
        .output()
        .unwrap();
    assert!(!gone.status.success(), "one that we made goes with us");
}

#[test]
fn an_interface_that_cannot_be_used_says_what_to_do() {
    if !network() {
        return;
    }
    run("ip tuntap add single mode tap");
    assert_eq!(
        complaint("tap=single,queues=2"),
        "net: tap=single: it takes one queue pair, or is no tap interface; delete it and make it with \
         'sudo ip tuntap add single mode tap user $USER multi_queue'"
    );
    let _taken = opened("tap=single").unwrap();
    assert_eq!(
        complaint("tap=single"),
        "net: tap=single: it is in use; end who uses it, or take another"
    );
    assert!(complaint("tap=a-name-of-16-byte").contains("a name has at most 15 letters"));
}

#[test]
fn descriptors_that_were_inherited_are_queues_like_any_other() {
    if !network() {
        return;
    }
    let files = open_queues("tap0", 2).unwrap();
    let numbers: Vec<String> = files.iter().map(|file| file.as_raw_fd().to_string()).collect();
    let mut opened = opened(&format!("tap-fd={},queues=2", numbers.join(","))).unwrap();
    assert_eq!(opened.endpoints.len(), 2);
    configure("tap0");
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.send_to(b"inherited", GUEST).unwrap();
    carrying(&mut *opened.endpoints[0], b"inherited");
}

#[test]
fn what_is_no_descriptor_of_a_tap_is_refused() {
    assert_eq!(
        complaint("tap-fd=x"),
        "net: tap-fd=x: expected descriptors such as 3 or 3,4"
    );
    assert_eq!(
        complaint("tap-fd=3,4,queues=3"),
        "net: tap-fd=3,4 and queues=3 are not the same number; give a descriptor for each queue pair, or leave out queues="
    );
    let file = File::open("/dev/null").unwrap();
    let number = file.as_raw_fd();
    assert_eq!(
        complaint(&format!("tap-fd={number}")),
        format!(
            "net: tap-fd={number}: is no tap interface; give one that TUNSETIFF has made a queue of a tap interface"
        )
    );
    assert!(complaint("tap-fd=987654").starts_with("net: tap-fd=987654: Bad file descriptor (os error 9); open it"));
    if !network() {
        return;
    }
    let plain = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
    tun::attach(&plain, "plain", libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
    assert!(complaint(&format!("tap-fd={}", plain.as_raw_fd())).ends_with("with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"));
}
