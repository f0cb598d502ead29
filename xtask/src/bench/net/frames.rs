//! Datagrams in Ethernet frames over a stream, each frame with its length in front: the far end of a card whose network is a
//! socket. It is as cheap as it can be, so that what is measured is the card.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;

use xtask::load::datagrams::{Datagrams, PORT};

/// Bytes of the length in front of a frame, big end first.
const PREFIX: usize = 4;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const HEADERS: usize = ETHERNET + IPV4 + UDP;
/// Where the protocol is, and UDP's number.
const PROTOCOL: usize = ETHERNET + 9;
const IS_UDP: u8 = 17;

/// Bytes that are read, or written, at once.
const CHUNK: usize = 64 << 10;

/// The two ends of the wire.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The guest's card and its address.
    pub guest: ([u8; 6], Ipv4Addr),
    /// Ours.
    pub peer: ([u8; 6], Ipv4Addr),
}

/// Our end of the stream.
pub struct FrameStream<S> {
    stream: S,
    /// The headers of a frame to the guest, but for the lengths and the checksum.
    headers: [u8; HEADERS],
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// How far `incoming` has been looked at.
    at: usize,
}

impl<S: Read + Write> FrameStream<S> {
    /// Ours of a stream whose other end is the guest's card.
    pub fn new(stream: S, ends: Ends) -> Self {
        Self {
            stream,
            headers: headers(ends),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            at: 0,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }

    /// The next frame that is held, if all of it is.
    fn next_frame(&mut self) -> Option<&[u8]> {
        let (prefix, rest) = self.incoming.get(self.at..)?.split_first_chunk::<PREFIX>()?;
        let frame = rest.get(..u32::from_be_bytes(*prefix) as usize)?;
        self.at += PREFIX + frame.len();
        Some(frame)
    }

    fn read_more(&mut self) -> io::Result<()> {
        self.incoming.drain(..self.at);
        self.at = 0;
        let held = self.incoming.len();
        self.incoming.resize(held + CHUNK, 0);
        let read = self.stream.read(&mut self.incoming[held..])?;
        self.incoming.truncate(held + read);
        match read {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl<S: Read + Write> Datagrams for FrameStream<S> {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut headers = self.headers;
        let (ip, udp) = headers[ETHERNET..].split_at_mut(IPV4);
        ip[2..4].copy_from_slice(&length(IPV4 + UDP + datagram.len()));
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        udp[4..6].copy_from_slice(&length(UDP + datagram.len()));
        let frame = (HEADERS + datagram.len()) as u32;
        self.outgoing.extend(frame.to_be_bytes());
        self.outgoing.extend(headers);
        self.outgoing.extend(datagram);
        match self.outgoing.len() {
            CHUNK.. => self.flush(),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, datagram: &mut [u8]) -> io::Result<usize> {
        loop {
            while let Some(frame) = self.next_frame() {
                // What else a guest says is none of our business.
                if frame.get(PROTOCOL) == Some(&IS_UDP)
                    && let Some(from) = frame.get(HEADERS..)
                    && let Some(to) = datagram.get_mut(..from.len())
                {
                    to.copy_from_slice(from);
                    return Ok(from.len());
                }
            }
            self.flush()?;
            self.read_more()?;
        }
    }
}

/// Lengths and the checksum of the IPv4 header are zero; that of UDP may stay so (RFC 768).
fn headers(ends: Ends) -> [u8; HEADERS] {
    let mut bytes = [0; HEADERS];
    let (ethernet, rest) = bytes.split_at_mut(ETHERNET);
    let (ip, udp) = rest.split_at_mut(IPV4);
    ethernet[..6].copy_from_slice(&ends.guest.0);
    ethernet[6..12].copy_from_slice(&ends.peer.0);
    ethernet[12..].copy_from_slice(&[8, 0]);
    // Version 4 with five words; may not be fragmented; 64 hops.
    ip[0] = 0x45;
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = IS_UDP;
    ip[12..16].copy_from_slice(&ends.peer.1.octets());
    ip[16..20].copy_from_slice(&ends.guest.1.octets());
    for port in udp[..4].chunks_exact_mut(2) {
        port.copy_from_slice(&PORT.to_be_bytes());
    }
    bytes
}

fn length(bytes: usize) -> [u8; 2] {
    (bytes as u16).to_be_bytes()
}

/// The Internet checksum (RFC 1071) of a header whose own is zero.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixStream;

    use super::*;

    const ENDS: Ends = Ends {
        guest: ([2, 0, 0, 0, 0, 2], Ipv4Addr::new(198, 18, 0, 2)),
        peer: ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(198, 18, 0, 1)),
    };

    #[test]
    fn frames_carry_datagrams_whose_header_adds_up() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut stream = FrameStream::new(ours, ENDS);
        stream.send(b"some words").unwrap();
        stream.flush().unwrap();
        let mut bytes = [0; PREFIX + HEADERS + 10];
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..PREFIX], (HEADERS as u32 + 10).to_be_bytes());
        assert_eq!(&bytes[PREFIX + HEADERS..], b"some words");
        let ip = &bytes[PREFIX + ETHERNET..][..IPV4];
        assert_eq!((ip[2], ip[3], checksum(ip)), (0, 38, 0));
    }

    #[test]
    fn frames_that_carry_something_else_are_left_out() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut stream = FrameStream::new(ours, ENDS);
        stream.send(b"words").unwrap();
        let frame = std::mem::take(&mut stream.outgoing);
        let mut other = frame.clone();
        other[PREFIX + PROTOCOL] = 1;
        guest.write_all(&other).unwrap();
        guest.write_all(&frame[..20]).unwrap();
        guest.write_all(&frame[20..]).unwrap();
        let mut datagram = [0; 100];
        assert_eq!(stream.receive(&mut datagram).unwrap(), 5);
        drop(guest);
        let end = stream.receive(&mut datagram).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
