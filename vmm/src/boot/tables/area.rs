//! Memory that is handed out from its beginning.

/// Bytes laid one behind the other from a guest physical address on.
pub(super) struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// An empty area at `base`, a multiple of 4096.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            bytes: Vec::new(),
        }
    }

    /// Goes on to a multiple of `alignment`, a power of two up to 4096; the address there.
    pub fn align(&mut self, alignment: usize) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        self.base + self.bytes.len() as u64
    }

    /// Lays `bytes` down at a multiple of `alignment`; their address.
    pub fn add(&mut self, alignment: usize, bytes: &[u8]) -> u64 {
        let address = self.align(alignment);
        self.bytes.extend_from_slice(bytes);
        address
    }

    /// Everything, from the base on.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
