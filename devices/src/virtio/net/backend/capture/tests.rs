#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::fs;
use std::process::Command;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};

use super::super::testing::{host, opened, receive, send};
use super::*;
use crate::virtio::net::options::OPTIONS;

/// Ethernet, of the type for local experiments, to everybody.
fn frame(payload: &[u8]) -> Vec<u8> {
    let head = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 0, 1], &[0x88, 0xb5]];
    [&head.concat(), payload].concat()
}

/// A backend with a header that gives back what it was sent, one frame at a time.
struct Echo(VecDeque<Vec<u8>>);

impl Backend for Echo {
    fn describe(&self) -> String {
        String::new()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vnet_header: true,
            ..Capabilities::default()
        }
    }
}

impl Endpoint for Echo {
    fn sources(&self, _wanted: Wanted) -> Vec<Source> {
        Vec::new()
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        let frame = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        Ok(buffers.copy_from(&frame))
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        if !self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut copy = vec![0; frame.bytes()];
        frame.copy_to(&mut copy);
        self.0.push_back(copy);
        Ok(())
    }

    fn send_bytes(&mut self, _frame: &[u8]) {}
}

fn captured(path: &Path) -> Opened {
    let options = Options::parse("net", &format!("capture={}", path.display()), &[OPTIONS]).unwrap();
    wrap(Opened::one(Echo(VecDeque::new()), Echo(VecDeque::new())), &options).unwrap()
}

/// A file of its own for a test, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("innkeeper-capture-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Sends and receives a frame behind headers of both lengths, and sends one without; returns what
/// the file has to hold.
fn exchange(opened: &mut Opened) -> Vec<(Direction, Vec<u8>)> {
    let mut expected = Vec::new();
    let endpoint = &mut *opened.endpoints[0];
    for header_len in [10, 12] {
        opened.backend.set_header_len(header_len).unwrap();
        // The longest that there is, and an odd one.
        for payload in [vec![0xa5; 65521], vec![7; 47]] {
            let with_header = [&vec![0xee; header_len], &frame(&payload)[..]].concat();
            send(endpoint, &with_header).unwrap();
            assert!(
                send(endpoint, &with_header).is_err(),
                "one that is not taken is not captured"
            );
            assert_eq!(receive(endpoint).unwrap(), with_header);
            assert!(receive(endpoint).is_err());
            expected.extend([Direction::Sent, Direction::Received].map(|way| (way, frame(&payload))));
        }
    }
    endpoint.send_bytes(&frame(b"announce"));
    expected.push((Direction::Sent, frame(b"announce")));
    expected
}

/// Whether a time is that of the last minutes.
fn is_now(time: std::time::Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.abs_diff(time).as_secs() < 3600
}

#[test]
fn what_was_exchanged_is_in_the_pcap_file_while_the_card_runs() {
    let file = Scratch::new("running.pcap");
    let mut opened = captured(&file.0);
    let expected = exchange(&mut opened);
    let mut reader = PcapReader::new(File::open(&file.0).unwrap()).unwrap();
    assert_eq!(reader.header().datalink, DataLink::ETHERNET);
    for (_, frame) in &expected {
        let packet = reader.next_packet().unwrap().unwrap();
        assert_eq!((&packet.data[..], packet.orig_len as usize), (&frame[..], frame.len()));
        assert!(is_now(packet.timestamp));
    }
    assert!(reader.next_packet().is_none());
}

#[test]
fn a_pcapng_file_tells_the_directions_apart() {
    let file = Scratch::new("running.pcapng");
    let mut opened = captured(&file.0);
    let expected = exchange(&mut opened);
    let mut reader = PcapNgReader::new(File::open(&file.0).unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.unwrap() else {
            continue;
        };
        let way = match packet.options[..] {
            [EnhancedPacketOption::Flags(1)] => Direction::Received,
            [EnhancedPacketOption::Flags(2)] => Direction::Sent,
            _ => panic!("{:?}", packet.options),
        };
        found.push((way, packet.data.into_owned()));
    }
    assert!(found == expected, "{} frames are not as they were", found.len());
}

#[test]
fn tshark_reads_both_formats() {
    if let Err(error) = Command::new("tshark").arg("--version").output() {
        println!("skipped: tshark (Debian package tshark) is needed: {error}");
        return;
    }
    for name in ["tshark.pcap", "tshark.pcapng"] {
        let file = Scratch::new(name);
        let mut opened = captured(&file.0);
        let expected = exchange(&mut opened);
        let output = Command::new("tshark")
            .args([
                "-T",
                "fields",
                "-e",
                "frame.len",
                "-e",
                "eth.src",
                "-e",
                "frame.time_epoch",
                "-r",
            ])
            .arg(&file.0)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(lines.len(), expected.len(), "{name}");
        for (line, (_, frame)) in lines.iter().zip(&expected) {
            assert_eq!(line[..2], [&frame.len().to_string(), "52:54:00:00:00:01"], "{name}");
            let seconds: f64 = line[2].parse().unwrap();
            assert!(is_now(std::time::Duration::from_secs_f64(seconds)), "{name}: {seconds}");
        }
    }
}

#[test]
fn a_capture_stands_before_any_backend_that_the_user_names() {
    let file = Scratch::new("none.pcap");
    let mut opened = opened(&format!("none=on,capture={}", file.0.display())).unwrap();
    assert!(!opened.link);
    send(&mut *opened.endpoints[0], &frame(b"lost")).unwrap();
    let mut reader = PcapReader::new(File::open(&file.0).unwrap()).unwrap();
    assert_eq!(reader.next_packet().unwrap().unwrap().data, frame(b"lost"));
}

#[test]
fn a_file_that_cannot_be_written_is_refused_at_once_and_forgotten_later() {
    let options = |path| Options::parse("net", &format!("none=on,capture={path}"), &[OPTIONS]).unwrap();
    let complaint = |path| {
        let opened = super::super::open(&options(path), &host());
        opened.map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        complaint("/no/where.pcap"),
        "net: capture=/no/where.pcap: No such file or directory (os error 2); give a file that can be written"
    );
    assert!(complaint("/dev/full").contains("No space left"));

    let file = Scratch::new("full.pcap");
    let capture = Capture::create(&file.0).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    capture.sink.lock().unwrap().as_mut().unwrap().file = full;
    capture.write(Direction::Sent, &frame(b"full"));
    assert!(capture.sink.lock().unwrap().is_none());
    capture.write(Direction::Sent, &frame(b"nothing happens"));
}
