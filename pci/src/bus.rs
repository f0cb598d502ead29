//! Bus 0: who is in which slot, and who answers at an address.
//!
//! A [`Bus`] is shared by reference between the threads of the guest's processors. It never holds its own lock while
//! it calls a function; a function may be locked while the bus's tables change, never the other way round.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::address::Address;
use crate::capability::msix::VectorState;
use crate::decode::Decode;
use crate::function::{Change, Changes, Function, Region, Space};

/// Slots of a bus.
pub const SLOTS: u8 = 32;

/// A function that a bus and others hold.
pub type SharedFunction = Arc<Mutex<dyn Function>>;

/// Changes of several functions.
pub type BusChanges = Vec<(Address, Change)>;

/// Why a function can't be put on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BusError {
    /// There is a function at this address already
    #[error("there is a function at {0} already; choose another slot with addr=")]
    Taken(Address),
    /// The address is on another bus; there is only bus 0
    #[error("{0}: there is only bus 00")]
    NoSuchBus(Address),
}

/// Who answers at an address.
#[derive(Clone)]
pub struct Target {
    /// The function.
    pub function: SharedFunction,
    /// Where the function is.
    pub address: Address,
    /// The BAR that decodes the address.
    pub bar: u8,
    /// The address as an offset into the BAR.
    pub offset: u64,
    /// How many of the bytes asked for the function answers: fewer when the access runs past the end of its BAR, or
    /// into that of a function that takes precedence.
    pub len: usize,
}

/// Bus 0 with its functions.
///
/// Where BARs overlap the function with the lowest address answers, and of one function the lowest BAR.
#[derive(Default)]
pub struct Bus {
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    functions: BTreeMap<Address, SharedFunction>,
    decode: Decode,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function on the bus.
    ///
    /// # Errors
    /// The place is taken or not on bus 0.
    pub fn add(&self, address: Address, function: SharedFunction) -> Result<(), BusError> {
        if address.bus() != 0 {
            return Err(BusError::NoSuchBus(address));
        }
        let held = function.clone();
        let held = lock(&held);
        let mapped: Vec<_> = held.regions().into_iter().map(Change::Mapped).collect();
        let mut tables = self.write_tables();
        if tables.functions.contains_key(&address) {
            return Err(BusError::Taken(address));
        }
        tables.functions.insert(address, function);
        tables.decode.apply(address, &mapped);
        Ok(())
    }

    /// Puts a function that nobody else holds on the bus.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_function(&self, address: Address, function: impl Function + 'static) -> Result<(), BusError> {
        self.add(address, Arc::new(Mutex::new(function)))
    }

    /// Takes a function off the bus; returns it with the regions that are no longer decoded.
    pub fn remove(&self, address: Address) -> Option<(SharedFunction, Vec<Region>)> {
        let function = {
            let mut tables = self.write_tables();
            let function = tables.functions.remove(&address)?;
            tables.decode.remove(address);
            function
        };
        let regions = lock(&function).regions();
        Some((function, regions))
    }

    /// The function at `address`.
    pub fn get(&self, address: Address) -> Option<SharedFunction> {
        self.read_tables().functions.get(&address).cloned()
    }

    /// What those of `vectors` are set to that the function at `address` has.
    pub fn msix_vectors(&self, address: Address, vectors: RangeInclusive<u16>) -> Vec<(u16, VectorState)> {
        let Some(function) = self.get(address) else {
            return Vec::new();
        };
        let function = lock(&function);
        vectors
            .map_while(|vector| Some((vector, function.msix_vector(vector)?)))
            .collect()
    }

    /// Where there are functions, in ascending order.
    pub fn addresses(&self) -> Vec<Address> {
        self.read_tables().functions.keys().copied().collect()
    }

    /// The lowest slot, not below `from`, in which there is no function.
    pub fn first_free_slot(&self, from: u8) -> Option<u8> {
        let tables = self.read_tables();
        (from..SLOTS).find(|slot| tables.functions.keys().all(|taken| taken.device() != *slot))
    }

    /// Reads configuration space. Where there is no function everything reads as ones.
    pub fn read_config(&self, address: Address, offset: u16, data: &mut [u8]) {
        match self.get(address) {
            Some(function) => lock(&function).read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space; says what changed outside. What the bus decodes has followed already.
    pub fn write_config(&self, address: Address, offset: u16, data: &[u8]) -> Changes {
        let Some(function) = self.get(address) else {
            return Changes::new();
        };
        let mut function = lock(&function);
        let changes = function.write_config(offset, data);
        self.update(address, &changes);
        changes
    }

    /// Lets decode follow changes that a function returned to somebody else than the bus: those of an access to its
    /// BAR.
    pub fn update(&self, address: Address, changes: &[Change]) {
        let concerns_decode = |change: &Change| matches!(change, Change::Mapped(_) | Change::Unmapped(_));
        if changes.iter().any(concerns_decode) {
            let mut tables = self.write_tables();
            if tables.functions.contains_key(&address) {
                tables.decode.apply(address, changes);
            }
        }
    }

    /// Who answers an access of `len` bytes at `addr`, at least its first byte.
    pub fn find(&self, space: Space, addr: u64, len: usize) -> Option<Target> {
        let tables = self.read_tables();
        let segment = tables.decode.find(space, addr)?;
        let left = usize::try_from(segment.last - addr)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        Some(Target {
            function: tables.functions.get(&segment.owner)?.clone(),
            address: segment.owner,
            bar: segment.region.bar,
            offset: addr - segment.region.base,
            len: len.min(left),
        })
    }

    /// Reads from BARs. Bytes for which nobody answers read as ones; `None` when that is so for all.
    pub fn read(&self, space: Space, addr: u64, data: &mut [u8]) -> Option<BusChanges> {
        data.fill(0xff);
        self.access(space, addr, data.len(), |target, at| {
            let bytes = data.get_mut(at..at + target.len).unwrap_or_default();
            lock(&target.function).read_bar(target.bar, target.offset, bytes)
        })
    }

    /// Writes to BARs. `None` when nobody answers.
    pub fn write(&self, space: Space, addr: u64, data: &[u8]) -> Option<BusChanges> {
        self.access(space, addr, data.len(), |target, at| {
            let bytes = data.get(at..at + target.len).unwrap_or_default();
            lock(&target.function).write_bar(target.bar, target.offset, bytes)
        })
    }

    /// Resets every function; says what changed outside.
    pub fn reset(&self) -> BusChanges {
        let functions = self.read_tables().functions.clone();
        let mut all = BusChanges::new();
        for (address, function) in functions {
            let mut function = lock(&function);
            let changes = function.reset();
            self.update(address, &changes);
            all.extend(changes.into_iter().map(|change| (address, change)));
        }
        all
    }

    /// Calls `part` for each part of an access that one function answers, with the part's place in the access.
    fn access(
        &self,
        space: Space,
        addr: u64,
        len: usize,
        mut part: impl FnMut(&Target, usize) -> Changes,
    ) -> Option<BusChanges> {
        let mut all = None;
        let mut at = 0;
        while at < len {
            let target = addr
                .checked_add(at as u64)
                .and_then(|addr| self.find(space, addr, len - at));
            let Some(target) = target else {
                at += 1;
                continue;
            };
            let changes = part(&target, at);
            self.update(target.address, &changes);
            let changes = changes.into_iter().map(|change| (target.address, change));
            all.get_or_insert_with(BusChanges::new).extend(changes);
            at += target.len.max(1);
        }
        all
    }

    fn read_tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_tables(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a function, also one whose last user panicked: its registers are still what the guest sees.
pub fn lock<'a>(function: &'a Mutex<dyn Function + 'static>) -> MutexGuard<'a, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::testing::{Scratch, address};

    fn bus_with(slots: &[u8]) -> Bus {
        let bus = Bus::new();
        for slot in slots {
            bus.add_function(address(*slot), Scratch::new(*slot)).unwrap();
        }
        bus
    }

    /// Places the I/O BAR of the function in `slot` and switches it on.
    fn place(bus: &Bus, slot: u8, port: u32) -> Changes {
        bus.write_config(address(slot), 0x04, &[0]);
        bus.write_config(address(slot), 0x10, &port.to_le_bytes());
        bus.write_config(address(slot), 0x04, &[3])
    }

    fn owner(bus: &Bus, port: u64) -> Option<u8> {
        bus.find(Space::Io, port, 1).map(|target| target.address.device())
    }

    #[test]
    fn absent_functions_read_ones_and_take_no_writes() {
        let bus = bus_with(&[2]);
        for absent in [
            address(3),
            Address::new(0, 2, 1).unwrap(),
            Address::new(1, 2, 0).unwrap(),
        ] {
            let mut data = [0; 4];
            assert_eq!(bus.write_config(absent, 4, &[0xff; 4]), []);
            bus.read_config(absent, 0, &mut data);
            assert_eq!(data, [0xff; 4], "{absent}");
        }
    }

    #[test]
    fn places_are_taken_once_and_only_on_bus_0() {
        let bus = bus_with(&[2]);
        let add = |address| bus.add_function(address, Scratch::new(9));
        assert_eq!(add(address(2)), Err(BusError::Taken(address(2))));
        let elsewhere = Address::new(1, 0, 0).unwrap();
        assert_eq!(add(elsewhere), Err(BusError::NoSuchBus(elsewhere)));
        assert_eq!(bus.addresses(), [address(2)]);
    }

    #[test]
    fn lowest_free_slot_is_found() {
        let bus = bus_with(&[0, 2, 3, 5]);
        assert_eq!(bus.first_free_slot(2), Some(4));
        assert_eq!(bus.first_free_slot(5), Some(6));
        assert_eq!(bus.first_free_slot(32), None);
        assert_eq!(bus_with(&(0..32).collect::<Vec<_>>()).first_free_slot(0), None);
    }

    #[test]
    fn decode_follows_configuration_writes() {
        let bus = bus_with(&[2]);
        let region = Region {
            bar: 0,
            space: Space::Io,
            base: 0xc000,
            size: 0x20,
        };
        assert_eq!(place(&bus, 2, 0xc000), [Change::Mapped(region)]);
        let target = bus.find(Space::Io, 0xc01c, 8).unwrap();
        assert_eq!(
            (target.address, target.bar, target.offset, target.len),
            (address(2), 0, 0x1c, 4)
        );
        place(&bus, 2, 0xd000);
        assert_eq!((owner(&bus, 0xc000), owner(&bus, 0xd01f)), (None, Some(2)));
        assert_eq!(bus.reset().len(), 1);
        assert_eq!(owner(&bus, 0xd000), None);
    }

    #[test]
    fn overlap_goes_to_the_lower_slot_and_back_when_it_leaves() {
        let bus = bus_with(&[2, 3]);
        place(&bus, 3, 0xc000);
        place(&bus, 2, 0xc000);
        assert_eq!(owner(&bus, 0xc000), Some(2));
        let (_, regions) = bus.remove(address(2)).unwrap();
        assert_eq!(regions.len(), 1);
        assert_eq!(owner(&bus, 0xc000), Some(3));
        assert!(bus.remove(address(2)).is_none());
    }

    #[test]
    fn access_across_two_bars_is_split() {
        let bus = bus_with(&[2, 3]);
        place(&bus, 2, 0xc000);
        place(&bus, 3, 0xc020);
        assert_eq!(bus.write(Space::Io, 0xc01e, &[1, 2, 3, 4]), Some(vec![]));
        let mut data = [0; 4];
        bus.read(Space::Io, 0xc01e, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        bus.read(Space::Io, 0xc03e, &mut data).unwrap();
        assert_eq!(data, [0, 0, 0xff, 0xff], "nobody answers behind the second");
        assert_eq!(bus.read(Space::Io, 0xc040, &mut data), None);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.write(Space::Memory, u64::MAX, &[0; 8]), None);
    }

    #[test]
    fn function_that_is_already_mapped_is_found_once_added() {
        let first = bus_with(&[2]);
        place(&first, 2, 0xc000);
        let (function, _) = first.remove(address(2)).unwrap();
        let second = Bus::new();
        second.add(address(7), function).unwrap();
        assert_eq!(owner(&second, 0xc000), Some(7));
    }

    #[test]
    fn function_whose_user_panicked_still_answers() {
        let bus = bus_with(&[2]);
        let function = bus.get(address(2)).unwrap();
        let user = std::thread::spawn(move || {
            let _held = function.lock();
            std::panic::resume_unwind(Box::new("poisons the lock"));
        });
        assert!(user.join().is_err());
        let mut data = [0; 2];
        bus.read_config(address(2), 0, &mut data);
        assert_eq!(data, [0xf4, 0x1a]);
    }
}
