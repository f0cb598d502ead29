//! MSI-X: a table of messages that the function can send, one a vector, and an array of bits for those that wait
//! because they are masked (PCI Local Bus 3.0, section 6.8.2).
//!
//! Message control lies in configuration space, table and pending bits in a BAR. As in QEMU (hw/pci/msix.c) an access
//! of the guest takes effect on each aligned dword that it covers completely; the pending bits are read-only.

use serde::{Deserialize, Serialize};

use super::Capability;
use crate::function::Change;

/// Capability id of MSI-X.
pub const ID: u8 = 0x11;

/// Offset of message control in the capability, 2 bytes.
pub const MESSAGE_CONTROL: u16 = 2;

/// MSI-X Enable of message control.
pub const ENABLE: u16 = 1 << 15;

/// Function Mask of message control.
pub const FUNCTION_MASK: u16 = 1 << 14;

/// Vectors that a table can have at most.
pub const MAX_VECTORS: u16 = 2048;

/// Bytes of a table entry: address (8), data (4), vector control (4).
const ENTRY_SIZE: u64 = 16;

/// Mask bit of vector control.
const VECTOR_MASKED: u32 = 1;

/// An entry after reset: all zero but masked.
const ENTRY_DEFAULT: Entry = [0, 0, 0, VECTOR_MASKED];

/// Address low, address high, data, vector control.
type Entry = [u32; 4];

/// Where the parts of MSI-X lie; fixed when the function is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixLayout {
    /// Offset of the capability in configuration space.
    pub offset: u8,
    /// The BAR that holds table and pending bits.
    pub bar: u8,
    /// Vectors, 1 to [`MAX_VECTORS`].
    pub vectors: u16,
    /// Offset of the table in the BAR, a multiple of 8.
    pub table: u32,
    /// Offset of the pending bits in the BAR, a multiple of 8.
    pub pending: u32,
}

impl MsixLayout {
    /// Table and pending bits in a BAR of their own, laid out as by QEMU's `msix_init_exclusive_bar`: the table at 0,
    /// the pending bits at 0x800, or behind the table if that is longer.
    pub const fn exclusive(offset: u8, bar: u8, vectors: u16) -> Self {
        let table_bytes = vectors as u32 * ENTRY_SIZE as u32;
        let pending = if table_bytes > 0x800 { table_bytes } else { 0x800 };
        Self {
            offset,
            bar,
            vectors,
            table: 0,
            pending,
        }
    }

    /// The size in bytes of a BAR that holds nothing else, at least 4 KiB.
    pub const fn bar_size(&self) -> u64 {
        let end = self.pending as u64 + self.pending_bytes();
        let end = if end > 0x1000 { end } else { 0x1000 };
        end.next_power_of_two()
    }

    const fn table_bytes(&self) -> u64 {
        self.vectors as u64 * ENTRY_SIZE
    }

    /// Pending bits come in qwords.
    const fn pending_bytes(&self) -> u64 {
        self.vectors.div_ceil(64) as u64 * 8
    }

    /// Whether the parts are where the specification lets them be, in a BAR of `bar_size` bytes.
    pub fn fits(&self, bar_size: u64) -> bool {
        let (table, pending) = (u64::from(self.table), u64::from(self.pending));
        let (table_end, pending_end) = (table + self.table_bytes(), pending + self.pending_bytes());
        (1..=MAX_VECTORS).contains(&self.vectors)
            && self.bar < 6
            && (self.table | self.pending).is_multiple_of(8)
            && table_end.max(pending_end) <= bar_size
            && (table_end <= pending || pending_end <= table)
    }

    /// The capability that tells the guest.
    pub fn capability(&self) -> Capability {
        let bir = u32::from(self.bar);
        let mut body = self.vectors.wrapping_sub(1).to_le_bytes().to_vec();
        body.extend((self.table | bir).to_le_bytes());
        body.extend((self.pending | bir).to_le_bytes());
        let writable = (ENABLE | FUNCTION_MASK).to_le_bytes().to_vec();
        Capability {
            offset: self.offset,
            id: ID,
            body,
            writable,
        }
    }
}

/// What one vector is set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VectorState {
    /// Where the message is written.
    pub address: u64,
    /// What is written there.
    pub data: u32,
    /// Whether no message may be sent now: the vector or the whole function is masked, or MSI-X is off.
    pub masked: bool,
}

/// Table and pending bits in a form to save. Message control is saved with the configuration space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MsixState {
    table: Vec<Entry>,
    pending: Vec<u64>,
}

/// The saved MSI-X state has another number of vectors than the function
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the saved MSI-X table has {found} vectors, the function {expected}")]
pub struct MsixStateError {
    found: usize,
    expected: usize,
}

/// MSI-X of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    layout: MsixLayout,
    enabled: bool,
    function_masked: bool,
    state: MsixState,
}

impl Msix {
    /// MSI-X as after reset: off, each vector masked.
    pub fn new(layout: MsixLayout) -> Self {
        let table = vec![ENTRY_DEFAULT; usize::from(layout.vectors)];
        let pending = vec![0; usize::from(layout.vectors.div_ceil(64))];
        let state = MsixState { table, pending };
        Self {
            layout,
            enabled: false,
            function_masked: false,
            state,
        }
    }

    /// Where the parts lie.
    pub fn layout(&self) -> &MsixLayout {
        &self.layout
    }

    /// Whether MSI-X is on; the function then uses no INTx#.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.layout.vectors
    }

    /// What vector `vector` is set to, or `None` past the table.
    pub fn vector(&self, vector: u16) -> Option<VectorState> {
        let [low, high, data, control] = *self.state.table.get(usize::from(vector))?;
        Some(VectorState {
            address: u64::from(high) << 32 | u64::from(low),
            data,
            masked: !self.enabled || self.function_masked || control & VECTOR_MASKED != 0,
        })
    }

    /// Notes that a message waits. Vectors past the table are ignored.
    pub fn set_pending(&mut self, vector: u16) {
        if let Some((word, bit)) = self.pending_bit(vector) {
            *word |= bit;
        }
    }

    /// Notes that no message waits. Vectors past the table are ignored.
    pub fn clear_pending(&mut self, vector: u16) {
        if let Some((word, bit)) = self.pending_bit(vector) {
            *word &= !bit;
        }
    }

    /// Whether a message waits.
    pub fn is_pending(&self, vector: u16) -> bool {
        let word = self.state.pending.get(usize::from(vector / 64)).copied().unwrap_or(0);
        word >> (vector % 64) & 1 != 0
    }

    /// Takes over message control from configuration space; says so if it changed.
    pub fn set_control(&mut self, control: u16) -> Option<Change> {
        let (enabled, masked) = (control & ENABLE != 0, control & FUNCTION_MASK != 0);
        if (enabled, masked) == (self.enabled, self.function_masked) {
            return None;
        }
        (self.enabled, self.function_masked) = (enabled, masked);
        Some(Change::MsixControl { enabled, masked })
    }

    /// Reads `data.len()` bytes at `offset` of the BAR. What is neither table nor pending bits reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(offset.saturating_add(at as u64));
        }
    }

    /// Writes at `offset` of the BAR; says which vectors changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Change> {
        let skipped = usize::try_from(offset.wrapping_neg() % 4).unwrap_or(0);
        let aligned = data.get(skipped..).unwrap_or_default();
        let mut changes = Vec::new();
        for (index, dword) in aligned.as_chunks().0.iter().enumerate() {
            let at = offset.saturating_add((skipped + 4 * index) as u64);
            let changed = self.write_dword(at, u32::from_le_bytes(*dword)).map(Change::MsixVector);
            if let Some(change) = changed.filter(|change| changes.last() != Some(change)) {
                changes.push(change);
            }
        }
        changes
    }

    /// Back to the state after reset, except message control, which follows configuration space.
    pub fn reset(&mut self) {
        self.state.table.fill(ENTRY_DEFAULT);
        self.state.pending.fill(0);
    }

    /// Table and pending bits as they are now.
    pub fn state(&self) -> MsixState {
        self.state.clone()
    }

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// The state has another number of vectors.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), MsixStateError> {
        let (found, expected) = (state.table.len(), self.state.table.len());
        if found != expected || state.pending.len() != self.state.pending.len() {
            return Err(MsixStateError { found, expected });
        }
        self.state = state.clone();
        Ok(())
    }

    fn pending_bit(&mut self, vector: u16) -> Option<(&mut u64, u64)> {
        if vector >= self.layout.vectors {
            return None;
        }
        let word = self.state.pending.get_mut(usize::from(vector / 64))?;
        Some((word, 1 << (vector % 64)))
    }

    /// The byte at `offset` of the BAR.
    fn byte(&self, offset: u64) -> u8 {
        if let Some((entry, field)) = self.table_position(offset) {
            let dword = self.state.table.get(entry).and_then(|entry| entry.get(field));
            return dword.map_or(0, |dword| dword.to_le_bytes()[(offset % 4) as usize]);
        }
        let at = offset.checked_sub(u64::from(self.layout.pending));
        let word = at.and_then(|at| usize::try_from(at / 8).ok());
        let word = word.and_then(|word| self.state.pending.get(word));
        word.map_or(0, |word| word.to_le_bytes()[(offset % 8) as usize])
    }

    /// Writes the aligned dword at `offset` of the BAR; gives the vector if its setting changed.
    fn write_dword(&mut self, offset: u64, value: u32) -> Option<u16> {
        let (entry, field) = self.table_position(offset)?;
        let dword = self.state.table.get_mut(entry)?.get_mut(field)?;
        let changed = *dword != value;
        *dword = value;
        changed.then_some(entry as u16)
    }

    /// The entry and its dword that `offset` of the BAR lies in.
    fn table_position(&self, offset: u64) -> Option<(usize, usize)> {
        let at = offset.checked_sub(u64::from(self.layout.table))?;
        if at >= self.layout.table_bytes() {
            return None;
        }
        Some(((at / ENTRY_SIZE) as usize, (at % ENTRY_SIZE / 4) as usize))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn four_vectors() -> Msix {
        let mut msix = Msix::new(MsixLayout::exclusive(0x98, 1, 4));
        msix.set_control(ENABLE);
        msix
    }

    fn dword(msix: &Msix, offset: u64) -> u32 {
        let mut data = [0; 4];
        msix.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets up vector 2 as Linux does: address and data while masked, then vector control.
    fn set_up_vector_2(msix: &mut Msix) {
        msix.write(0x20, &0xfee0_1000u32.to_le_bytes());
        msix.write(0x24, &1u32.to_le_bytes());
        msix.write(0x28, &0x4022u32.to_le_bytes());
        msix.write(0x2c, &0u32.to_le_bytes());
    }

    #[test]
    fn capability_reads_as_qemus() {
        let capability = MsixLayout::exclusive(0x98, 1, 4).capability();
        assert_eq!(capability.body, [3, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
        assert_eq!(capability.writable, [0, 0xc0]);
    }

    #[test]
    fn exclusive_bar_grows_with_the_table() {
        let layouts = [
            (2, 0x800, 0x1000),
            (128, 0x800, 0x1000),
            (129, 0x810, 0x1000),
            (2048, 0x8000, 0x1_0000),
        ];
        for (vectors, pending, size) in layouts {
            let layout = MsixLayout::exclusive(0x98, 1, vectors);
            assert_eq!((layout.pending, layout.bar_size()), (pending, size), "{vectors}");
            assert!(layout.fits(layout.bar_size()), "{vectors}");
        }
        assert!(!MsixLayout::exclusive(0x98, 1, 0).fits(0x1000));
        assert!(!MsixLayout::exclusive(0x98, 1, 2049).fits(0x10_0000));
        assert!(
            !MsixLayout {
                pending: 8,
                ..MsixLayout::exclusive(0x98, 1, 4)
            }
            .fits(0x1000)
        );
    }

    #[test]
    fn vectors_are_masked_after_reset() {
        let mut msix = four_vectors();
        set_up_vector_2(&mut msix);
        msix.set_pending(2);
        msix.reset();
        assert_eq!(
            msix.vector(2),
            Some(VectorState {
                address: 0,
                data: 0,
                masked: true
            })
        );
        assert!(!msix.is_pending(2));
        assert_eq!(msix.vector(4), None);
    }

    #[test]
    fn a_vector_is_what_the_guest_wrote_and_each_change_is_said_once() {
        let mut msix = four_vectors();
        set_up_vector_2(&mut msix);
        let expected = VectorState {
            address: 0x1_fee0_1000,
            data: 0x4022,
            masked: false,
        };
        assert_eq!(msix.vector(2), Some(expected));
        assert_eq!(msix.write(0x2c, &1u32.to_le_bytes()), [Change::MsixVector(2)]);
        assert_eq!(msix.write(0x2c, &1u32.to_le_bytes()), []);
    }

    #[test]
    fn qword_write_is_two_dwords_and_one_change() {
        let mut msix = four_vectors();
        let qword = 0x5555_0000_fee0_0000u64;
        assert_eq!(msix.write(0x10, &qword.to_le_bytes()), [Change::MsixVector(1)]);
        assert_eq!(msix.vector(1).unwrap().address, qword);
        let across = msix.write(0x1c, &0x1234_5678_0000_0000u64.to_le_bytes());
        assert_eq!(across, [Change::MsixVector(1), Change::MsixVector(2)]);
    }

    #[test]
    fn narrow_and_unaligned_writes_reach_only_whole_dwords() {
        let mut msix = four_vectors();
        assert_eq!(msix.write(0x10, &[0xff]), []);
        assert_eq!(msix.write(0x10, &[0xff; 2]), []);
        assert_eq!(msix.write(0x12, &[0xff; 4]), []);
        assert_eq!(dword(&msix, 0x10), 0);
        assert_eq!(msix.write(0x12, &[0xff; 8]), [Change::MsixVector(1)]);
        assert_eq!(
            [0x10, 0x14, 0x18].map(|offset| dword(&msix, offset)),
            [0, 0xffff_ffff, 0]
        );
    }

    #[test]
    fn pending_bits_are_read_only_to_the_guest() {
        let mut msix = four_vectors();
        msix.set_pending(3);
        msix.set_pending(4);
        assert_eq!(msix.write(0x800, &[0; 8]), []);
        assert_eq!(dword(&msix, 0x800), 8);
        msix.clear_pending(3);
        assert_eq!(dword(&msix, 0x800), 0);
    }

    #[test]
    fn function_mask_and_enable_mask_every_vector() {
        let mut msix = four_vectors();
        set_up_vector_2(&mut msix);
        let masked = Change::MsixControl {
            enabled: true,
            masked: true,
        };
        assert_eq!(msix.set_control(ENABLE | FUNCTION_MASK), Some(masked));
        assert!(msix.vector(2).unwrap().masked);
        assert_eq!(msix.set_control(ENABLE | FUNCTION_MASK), None);
        msix.set_control(0);
        assert!(msix.vector(2).unwrap().masked && !msix.enabled());
    }

    #[test]
    fn state_comes_back_and_another_size_is_refused() {
        let mut msix = four_vectors();
        set_up_vector_2(&mut msix);
        let mut other = four_vectors();
        other.restore(&msix.state()).unwrap();
        assert_eq!(other.vector(2), msix.vector(2));
        let mut small = Msix::new(MsixLayout::exclusive(0x98, 1, 2));
        assert_eq!(
            small.restore(&msix.state()),
            Err(MsixStateError { found: 4, expected: 2 })
        );
    }

    proptest! {
        #[test]
        fn no_access_reaches_the_pending_bits_or_panics(
            accesses in prop::collection::vec((any::<u64>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..17)), 0..60),
        ) {
            let mut msix = four_vectors();
            msix.set_pending(1);
            for (offset, near, data) in accesses {
                let offset = if near { offset % 0x1010 } else { offset };
                for change in msix.write(offset, &data) {
                    let in_table = matches!(change, Change::MsixVector(vector) if vector < 4);
                    prop_assert!(in_table);
                }
                msix.read(offset, &mut data.clone());
            }
            prop_assert_eq!(dword(&msix, 0x800), 2);
        }
    }
}
