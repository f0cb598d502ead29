#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;

use super::*;

/// A user without any rights: nobody.
const NOBODY: u32 = 65534;

/// Whether passt is there; the reason is printed where it is not.
fn is_there() -> bool {
    let found = Command::new(PROGRAM).arg("--version").output();
    if let Err(error) = &found {
        println!("skipped: passt (Debian package passt) is needed: {error}");
    }
    found.is_ok()
}

fn start(arguments: &[&str]) -> Result<(Passt, UnixStream), StartError> {
    Passt::start(&arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
}

fn pid(passt: &Passt) -> u32 {
    passt.child.lock().unwrap().as_ref().unwrap().id()
}

/// Whether the process is gone, and not only dead.
fn is_reaped(pid: u32) -> bool {
    !std::fs::exists(format!("/proc/{pid}")).unwrap()
}

/// The Internet checksum over `bytes`, an even number of them.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A DHCPDISCOVER as a whole frame (RFC 2131).
fn discover() -> Vec<u8> {
    let mut dhcp = vec![0; 236];
    dhcp[..4].copy_from_slice(&[1, 1, 6, 0]);
    dhcp[4..8].copy_from_slice(b"ours");
    dhcp[28..34].copy_from_slice(&MAC);
    dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    dhcp.resize(300, 0);
    let mut udp = vec![0, 68, 0, 67];
    udp.extend((dhcp.len() as u16 + 8).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(dhcp);
    let mut ip = vec![0x45, 0];
    ip.extend((udp.len() as u16 + 20).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    [&[0xff; 6][..], &MAC, &[8, 0], &ip, &udp].concat()
}

/// Reads frames until one is the answer to [`discover`]; returns the address that it offers.
fn offer(socket: &mut UnixStream) -> Ipv4Addr {
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    loop {
        let mut len = [0; 4];
        socket.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        socket.read_exact(&mut frame).unwrap();
        // Behind Ethernet, IP and UDP: a reply with our number.
        if let Some(dhcp) = frame.get(42..)
            && frame[23] == 17
            && dhcp.starts_with(&[2])
            && dhcp[4..8] == *b"ours"
        {
            let is_offer = dhcp[240..].windows(3).any(|option| option == [53, 1, 2]);
            assert!(is_offer, "it is a DHCPOFFER");
            return <[u8; 4]>::try_from(&dhcp[16..20]).unwrap().into();
        }
    }
}

fn gets_an_address(mut socket: UnixStream) {
    let frame = discover();
    socket.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    socket.write_all(&frame).unwrap();
    assert!(!offer(&mut socket).is_unspecified());
}

#[test]
fn a_guest_gets_an_address_and_nothing_is_left_behind() {
    if !is_there() {
        return;
    }
    let (passt, socket) = start(&[]).unwrap();
    let pid = pid(&passt);
    gets_an_address(socket.try_clone().unwrap());
    drop(passt);
    assert!(is_reaped(pid));
}

#[test]
fn it_works_for_a_user_without_any_rights() {
    if !is_there() {
        return;
    }
    let mut command = Command::new(PROGRAM);
    // The groups go with the user, if we may change it at all; else we have no rights to lose.
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let (_passt, socket) = Passt::start_as(command, &[]).unwrap();
    gets_an_address(socket);
}

#[test]
fn ports_are_open_when_it_has_started_and_closed_when_it_has_ended() {
    if !is_there() {
        return;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("127.0.0.1/{port}:80");
    let arguments = ["--tcp-ports", &forward, "--udp-ports", &forward];
    let (passt, _socket) = start(&arguments).unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    UdpSocket::bind(("127.0.0.1", port)).unwrap_err();
    drop(passt);
    UdpSocket::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_port_that_is_taken_keeps_it_from_starting_and_it_says_so() {
    if !is_there() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1/{}:80", taken.local_addr().unwrap().port());
    let error = start(&["--tcp-ports", &forward]).unwrap_err();
    assert!(
        matches!(&error, StartError::Ended(words) if words.contains(&forward)),
        "{error}"
    );
}

#[test]
fn it_ends_when_the_socket_is_closed_and_is_reaped_then() {
    if !is_there() {
        return;
    }
    // All that the kernel does for a process that was killed, as far as passt sees.
    let (passt, socket) = start(&[]).unwrap();
    let pid = pid(&passt);
    drop(socket);
    let ended = (0..2000).any(|_| {
        thread::sleep(Duration::from_millis(5));
        is_reaped(pid)
    });
    assert!(ended);
    drop(passt);
}

#[test]
fn a_program_that_is_not_installed_is_named() {
    let error = Passt::start_as(Command::new("no-such-passt"), &[]).unwrap_err();
    assert_eq!(error.to_string(), "passt is not installed");
}

#[test]
fn one_that_ends_at_once_is_not_taken_for_one_that_is_ready() {
    // It reads its socket, or does not, and is gone.
    for script in ["echo one >&2; echo two >&2; exit 3", "read -r line <&$4; echo two >&2"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "passt"]);
        match Passt::start_as(shell, &[]) {
            Err(error) => assert_eq!(error.to_string(), "passt does not start: two"),
            // It has read all that it was to read.
            Ok(_) => assert!(script.starts_with("read")),
        }
    }
}

#[test]
fn its_last_words_are_what_it_said_last_of_itself() {
    let text = "Failed to send 40 bytes to syslog\nNo interface\n\nFailed to send 12 bytes to syslog\n";
    assert_eq!(last_line(text).as_deref(), Some("No interface"));
    assert_eq!(last_line("Failed to send 40 bytes to syslog\n"), None);
}
