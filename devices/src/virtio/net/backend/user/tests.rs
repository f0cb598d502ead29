#![allow(clippy::unwrap_used)]

use super::super::testing::{opened, receive_until, send};

#[test]
fn a_forward_that_is_none_says_how_they_are_spelled() {
    let error = opened("user=on,hostfwd=tcp::80-80").map(drop).unwrap_err();
    let expected = "net: hostfwd=tcp::80-80: expected tcp|udp:[HOSTADDR:]HOSTPORT-:GUESTPORT, such as \
                    tcp:8080-:80 or tcp:127.0.0.1:8080-:80";
    assert_eq!(error.to_string(), expected);
}

/// The request of ARP for the address of 192.0.2.`last`.
fn who_has(last: u8) -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let (from, to) = ([192, 0, 2, 250], [192, 0, 2, last]);
    let arp = [&request[..], &mac, &from, &[0; 6], &to].concat();
    [&[0xff; 6][..], &mac, &[8, 6], &arp, &[0; 18]].concat()
}

#[test]
fn frames_go_to_passt_and_come_back() {
    let mut opened = match opened("user=on") {
        Ok(opened) => opened,
        Err(error) => {
            assert!(error.to_string().contains("apt-get install passt"), "{error}");
            println!("skipped: {error}");
            return;
        }
    };
    assert_eq!(opened.backend.describe(), "user-mode network (passt)");
    assert!(opened.link && !opened.backend.capabilities().vnet_header);
    let endpoint = &mut *opened.endpoints[0];
    // passt answers for all addresses but the guest's own, so for one of these two.
    for last in [251, 252] {
        send(endpoint, &who_has(last)).unwrap();
    }
    let answer = receive_until(endpoint, |frame| {
        let arp = frame.get(12..)?.strip_prefix(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2])?;
        Some(arp[6..10].to_vec())
    });
    assert!([Some(vec![192, 0, 2, 251]), Some(vec![192, 0, 2, 252])].contains(&answer));
}
