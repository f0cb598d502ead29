//! The header in front of each frame on the guest's side. Virtio 1.3, 5.1.6.

#![forbid(unsafe_code)]

use std::mem::{offset_of, size_of};

use virtio_bindings::virtio_net::{virtio_net_hdr, virtio_net_hdr_mrg_rxbuf};

/// Bytes of the header of a legacy driver that cannot merge buffers.
pub const SHORT: usize = size_of::<virtio_net_hdr>();
/// Bytes of every other header; it ends with the number of buffers.
pub const LONG: usize = size_of::<virtio_net_hdr_mrg_rxbuf>();

/// Where the number of buffers is.
const NUM_BUFFERS: usize = offset_of!(virtio_net_hdr_mrg_rxbuf, num_buffers);

/// How frames are laid out for a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    long: bool,
    /// A frame may go on in further chains.
    mergeable: bool,
    /// The host's frames carry the same header.
    from_host: bool,
}

impl Header {
    /// For a driver that is `modern`, or merges buffers, or both; with a host whose frames carry a
    /// header or not.
    pub fn new(modern: bool, mergeable: bool, from_host: bool) -> Self {
        Self {
            long: modern || mergeable,
            mergeable,
            from_host,
        }
    }

    /// Bytes of the header.
    pub fn len(self) -> usize {
        if self.long { LONG } else { SHORT }
    }

    /// Whether a frame may go on in further chains.
    pub fn is_mergeable(self) -> bool {
        self.mergeable
    }

    /// Bytes of the header that are not in the host's frames: all of it or none.
    pub fn added(self) -> usize {
        if self.from_host { 0 } else { self.len() }
    }

    /// What is to be written into the header of a frame that lies in `buffers` chains, and where:
    /// everything, or what the host does not know.
    pub fn finish(self, buffers: u16) -> (usize, [u8; LONG], usize) {
        let mut bytes = [0; LONG];
        let end = self.len();
        let start = if self.from_host { NUM_BUFFERS.min(end) } else { 0 };
        if let Some(count) = bytes.get_mut(NUM_BUFFERS..end).filter(|_| self.long) {
            count.copy_from_slice(&buffers.to_le_bytes());
        }
        (start, bytes, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_legacy_driver_that_cannot_merge_has_the_short_header() {
        assert_eq!(Header::new(false, false, false).len(), 10);
        assert_eq!(Header::new(false, true, false).len(), 12);
        assert_eq!(Header::new(true, false, false).len(), 12);
        assert_eq!(Header::new(true, true, true).len(), 12);
    }

    #[test]
    fn the_number_of_buffers_is_at_the_end_of_the_long_header() {
        let (start, bytes, end) = Header::new(true, true, false).finish(0x0102);
        assert_eq!((start, &bytes[..end]), (0, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1][..]));
        let (start, bytes, end) = Header::new(true, true, true).finish(0x0102);
        assert_eq!(bytes[start..end], [2, 1]);
    }

    #[test]
    fn of_the_short_header_nothing_is_added_to_what_the_host_says() {
        let (start, _, end) = Header::new(false, false, true).finish(1);
        assert_eq!(start, end);
        let (start, bytes, end) = Header::new(false, false, false).finish(1);
        assert_eq!(bytes[start..end], [0; 10]);
    }
}
