//! An inventory for tests.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::irq::{Gsi, GsiSink, Lines};
use vm_memory::GuestAddress;

struct NoPins;

impl GsiSink for NoPins {
    fn set_gsi(&self, _: Gsi, _: bool) {}
}

/// The inventory of a machine with nothing in it, and without a CPU.
pub fn inventory() -> Inventory {
    let bus = pci::Bus::new();
    host::add_to(&bus, 1 << 20).unwrap();
    let board = Board::new(Lines::new(Arc::new(NoPins)), bus, None);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    Inventory::new(Arc::new(board), Arc::new(memory))
}
