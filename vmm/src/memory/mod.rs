//! Guest memory: where it lies in the guest's physical address space, and the host memory behind it.

mod layout;
mod ram;

pub use layout::{E820Entry, E820Type, Layout, LayoutError, address};
pub use ram::{Backing, Ram, RamError, clear};

/// Guest RAM as devices and the loader see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
