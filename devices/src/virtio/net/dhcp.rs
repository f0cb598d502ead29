//! DHCP clients that read frames as they are, before the guest's kernel completes a checksum that
//! the host left out, take them for broken. QEMU completes the checksum of answers of DHCP servers
//! for them (hw/net/virtio-net.c, `work_around_broken_dhclient`), and so do we.

#![forbid(unsafe_code)]

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::receive::ReceiveBuffers;

/// Ethernet, IPv4 without options and UDP: the shortest frame that is looked at.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const SHORTEST: usize = ETHERNET + IPV4 + UDP;
/// Frames of this length or more are none of DHCP.
const LONGEST: usize = 1500;

/// Room for such a frame with its header.
const ROOM: usize = LONGEST + 12;

/// Completes the checksum of the frame of `len` bytes, of which the first `header` are its
/// `virtio_net_hdr`, if it is an answer of a DHCP server without one.
pub(super) fn complete_checksum(buffers: &mut ReceiveBuffers<'_>, header: usize, len: usize) {
    let size = len.saturating_sub(header);
    if !(SHORTEST..LONGEST).contains(&size) {
        return;
    }
    let mut start = [0; 12 + SHORTEST];
    let known = buffers.copy_to(start.get_mut(..header + SHORTEST).unwrap_or_default());
    if !is_answer(start.get(..known).unwrap_or_default(), header) {
        return;
    }
    let mut bytes = [0; ROOM];
    let Some(frame) = bytes.get_mut(..len) else { return };
    buffers.copy_to(frame);
    if let [flags, ..] = frame {
        *flags &= !(VIRTIO_NET_HDR_F_NEEDS_CSUM as u8);
    }
    if let Some(packet) = frame.get_mut(header + ETHERNET..)
        && write_checksum(packet).is_some()
    {
        buffers.copy_from(frame);
    }
}

/// From the port of DHCP servers, by UDP over IPv4, with its checksum left out.
fn is_answer(start: &[u8], header: usize) -> bool {
    let at = |offset: usize| start.get(header + offset).copied().unwrap_or(0);
    let flags = start.first().copied().unwrap_or(0);
    u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
        && (at(12), at(13)) == (0x08, 0x00)
        && at(23) == 17
        && (at(34), at(35)) == (0, 67)
}

/// Writes the checksum of the UDP datagram in the IPv4 packet `packet`.
fn write_checksum(packet: &mut [u8]) -> Option<()> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let addresses: [u8; 8] = packet.get(12..20)?.try_into().ok()?;
    let datagram = packet.get_mut(header.max(IPV4)..total)?;
    datagram.get_mut(6..8)?.fill(0);
    let len = u16::try_from(datagram.len()).ok()?;
    let pseudo = [&addresses[..], &[0, 17], &len.to_be_bytes()].concat();
    let sum = fold(words(&pseudo) + words(datagram));
    // A checksum of 0 is written as its other form: 0 means that there is none (RFC 768).
    let checksum = if sum == u16::MAX { sum } else { !sum };
    datagram.get_mut(6..8)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

fn words(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    pairs.sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::virtio::virtq::GuestIoVec;

    /// A datagram of `payload` bytes from `port`, with 12 bytes of header in front and a wrong
    /// checksum.
    fn frame(port: u16, payload: usize) -> Vec<u8> {
        let udp = (8 + payload) as u16;
        let mut frame = vec![0; 12 + 14];
        (frame[0], frame[12 + 12]) = (1, 8);
        frame.extend([0x45, 0]);
        frame.extend((20 + udp).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 68]);
        frame.extend(udp.to_be_bytes());
        frame.extend([0xba, 0xd0]);
        frame.extend((0..payload).map(|byte| byte as u8));
        frame
    }

    fn completed(mut frame: Vec<u8>) -> Vec<u8> {
        let (mut none, mut spill) = (GuestIoVec::new(), vec![0; crate::virtio::net::backend::MAX_FRAME]);
        let mut buffers = ReceiveBuffers::new(&mut none, &mut spill);
        buffers.copy_from(&frame);
        complete_checksum(&mut buffers, 12, frame.len());
        buffers.copy_to(&mut frame);
        frame
    }

    #[test]
    fn an_answer_gets_its_checksum_and_says_so() {
        for payload in [20, 21, 300] {
            let done = completed(frame(67, payload));
            assert_eq!(done[0], 0);
            let packet = &done[26..];
            let pseudo = [&packet[12..20], &[0, 17], &(8 + payload as u16).to_be_bytes()].concat();
            assert_eq!(fold(words(&pseudo) + words(&packet[20..])), 0xffff);
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        let other_port = frame(53, 20);
        let mut complete = frame(67, 20);
        complete[0] = 2;
        let large = frame(67, 1500);
        let mut lying = frame(67, 20);
        lying[12 + 14 + 2] = 0xff;
        for frame in [other_port, complete, large, lying] {
            assert_eq!(completed(frame.clone()), frame);
        }
    }
}
