//! The vendor-specific capability, id 9: its third byte is its length, the rest is the vendor's (PCI Local Bus 3.0,
//! appendix H).

use super::Capability;

/// Capability id of a vendor-specific capability.
pub const ID: u8 = 0x09;

/// Bytes before the vendor's own: id, pointer, length.
pub const PREFIX: u8 = 3;

/// A vendor-specific capability at `offset` with the vendor's bytes `content`, of which the guest may write the bits of
/// `writable`. Offsets in `content` and `writable` count from the fourth byte of the capability.
///
/// `None` when it would not fit into configuration space.
pub fn capability(offset: u8, content: &[u8], writable: &[u8]) -> Option<Capability> {
    let length = u8::try_from(content.len()).ok()?.checked_add(PREFIX)?;
    let prefixed = |first: u8, rest: &[u8]| [&[first], rest].concat();
    Some(Capability {
        offset,
        id: ID,
        body: prefixed(length, content),
        writable: prefixed(0, writable),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config_space::{ConfigSpace, Header};

    #[test]
    fn length_counts_the_whole_capability_and_masks_count_from_the_content() {
        let window = capability(0x84, &[5, 0, 0, 0, 0], &[0, 0xff]).unwrap();
        let mut space = ConfigSpace::type0(&Header::default())
            .with_capabilities(&[window])
            .unwrap();
        space.write(0x84, &[0xff; 8]);
        assert_eq!(space.read_u32(0x84), 0x0508_0009);
        assert_eq!(space.read_u32(0x88), 0x0000_00ff);
    }

    #[test]
    fn content_of_more_than_252_bytes_is_refused() {
        assert!(capability(0x40, &[0; 252], &[]).is_some());
        assert!(capability(0x40, &[0; 253], &[]).is_none());
    }
}
