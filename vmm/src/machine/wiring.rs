//! Ties PCI functions to KVM, so that the data path does not pass through a CPU's thread: a kick is an ioeventfd at the address where
//! the doorbell's BAR is decoded, a message is an irqfd on a GSI that is routed to the message's address and data.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::virtio::interrupt::MsixSender;
use devices::virtio::report::Reporter;
use devices::virtio::transport::Doorbell;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use pci::capability::msix::MAX_VECTORS;
use pci::{Address, Bus, Change, Region, Space};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Gsi, MsiMessage, MsiRoutes, RouteError};

/// What makes doorbells and messages work outside the board; without it every kick is an access to the function.
pub trait Wiring: Send + Sync {
    /// The way out for the messages of the function that is about to be built for `address`.
    fn sender(&self, address: Address) -> Arc<dyn MsixSender>;

    /// Ties the kicks of the function at `address` from now on.
    fn tie(&self, address: Address, doorbells: Vec<Doorbell>);

    /// Gives back all that there is for the function at `address`, which has left the bus or never came.
    fn untie(&self, address: Address);

    /// A function's decode or its MSI-X table changed.
    fn changed(&self, bus: &Bus, address: Address, change: Change);

    /// Messages sent so far.
    fn messages(&self) -> u64;
}

/// The wiring of a machine on KVM.
pub struct KvmWiring {
    vm: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
    functions: Mutex<BTreeMap<Address, Tied>>,
    messages: Arc<AtomicU64>,
    /// A guest can bring about as many failures as it likes.
    reporter: Arc<Reporter>,
}

/// A function and what of it is tied.
struct Tied {
    doorbells: Vec<Doorbell>,
    /// Which doorbells ring where now.
    bound: BTreeMap<usize, Bound>,
    vectors: Arc<Vectors>,
}

/// Where a doorbell rings.
#[derive(Clone, Copy)]
struct Bound {
    bar: u8,
    space: Space,
    address: u64,
}

impl KvmWiring {
    /// Nothing is tied yet.
    ///
    /// # Errors
    /// KVM refused the table of interrupt routes.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, RouteError> {
        let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm))?);
        Ok(Self {
            vm,
            routes,
            functions: Mutex::default(),
            messages: Arc::default(),
            reporter: Arc::default(),
        })
    }

    fn functions(&self) -> MutexGuard<'_, BTreeMap<Address, Tied>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, tied: &mut Tied, region: Region) {
        for (index, doorbell) in tied
            .doorbells
            .iter()
            .enumerate()
            .filter(|(_, bell)| bell.bar == region.bar)
        {
            let Some(address) = region.base.checked_add(doorbell.offset) else {
                continue;
            };
            match self.set(doorbell, region.space, address, true) {
                Ok(()) => {
                    let (bar, space) = (region.bar, region.space);
                    tied.bound.insert(index, Bound { bar, space, address });
                }
                // The kick then takes the slow way, through the CPU's thread, and works all the same.
                Err(error) => self.reporter.warn(format_args!(
                    "ioeventfd for queue {} at {address:#x}: {error}",
                    doorbell.queue
                )),
            }
        }
    }

    fn unbind(&self, tied: &mut Tied, region: Region) {
        let (gone, kept) = std::mem::take(&mut tied.bound)
            .into_iter()
            .partition(|(_, bound)| bound.bar == region.bar);
        tied.bound = kept;
        self.release(&tied.doorbells, gone);
    }

    /// Takes the ioeventfds of `bound` away.
    fn release(&self, doorbells: &[Doorbell], bound: BTreeMap<usize, Bound>) {
        for (index, Bound { space, address, .. }) in bound {
            let Some(doorbell) = doorbells.get(index) else { continue };
            if let Err(error) = self.set(doorbell, space, address, false) {
                self.reporter.warn(format_args!(
                    "ioeventfd for queue {} at {address:#x} cannot be removed: {error}",
                    doorbell.queue
                ));
            }
        }
    }

    fn set(&self, doorbell: &Doorbell, space: Space, address: u64, on: bool) -> Result<(), kvm_ioctls::Error> {
        let (vm, event) = (&self.vm, &*doorbell.event);
        let address = match space {
            Space::Io => IoEventAddress::Pio(address),
            Space::Memory => IoEventAddress::Mmio(address),
        };
        match (doorbell.data, on) {
            (Some(data), true) => vm.register_ioevent(event, &address, data),
            (Some(data), false) => vm.unregister_ioevent(event, &address, data),
            (None, true) => vm.register_ioevent(event, &address, NoDatamatch),
            (None, false) => vm.unregister_ioevent(event, &address, NoDatamatch),
        }
    }
}

impl Wiring for KvmWiring {
    fn sender(&self, address: Address) -> Arc<dyn MsixSender> {
        let vectors = Arc::new(Vectors {
            vm: Arc::clone(&self.vm),
            routes: Arc::clone(&self.routes),
            lines: Mutex::default(),
            events: Events::default(),
            messages: Arc::clone(&self.messages),
            reporter: Arc::clone(&self.reporter),
        });
        let tied = Tied {
            doorbells: Vec::new(),
            bound: BTreeMap::new(),
            vectors: Arc::clone(&vectors),
        };
        self.functions().insert(address, tied);
        vectors
    }

    fn tie(&self, address: Address, doorbells: Vec<Doorbell>) {
        if let Some(tied) = self.functions().get_mut(&address) {
            tied.doorbells = doorbells;
        }
    }

    fn untie(&self, address: Address) {
        let tied = self.functions().remove(&address);
        if let Some(tied) = tied {
            self.release(&tied.doorbells, tied.bound);
            tied.vectors.release();
        }
    }

    fn changed(&self, bus: &Bus, address: Address, change: Change) {
        let mut functions = self.functions();
        let Some(tied) = functions.get_mut(&address) else {
            return;
        };
        match change {
            Change::Mapped(region) => self.bind(tied, region),
            Change::Unmapped(region) => self.unbind(tied, region),
            Change::MsixVector(vector) => tied.vectors.follow(bus, address, vector..=vector),
            Change::MsixControl { enabled: true, .. } => tied.vectors.follow(bus, address, 0..=u16::MAX),
            _ => {}
        }
    }

    fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }
}

/// Vectors of a function whose events are made room for at once: few functions have more.
const BLOCK: usize = 16;

/// The events of a function's vectors, found without a lock. There is room for those that are used.
struct Events([OnceLock<Box<[OnceLock<EventFd>; BLOCK]>>; MAX_VECTORS as usize / BLOCK]);

impl Default for Events {
    fn default() -> Self {
        Self([const { OnceLock::new() }; MAX_VECTORS as usize / BLOCK])
    }
}

impl Events {
    fn get(&self, vector: u16) -> Option<&EventFd> {
        let vector = usize::from(vector);
        self.0.get(vector / BLOCK)?.get()?.get(vector % BLOCK)?.get()
    }

    /// Where the event of a vector is put; `None` for a vector that no function has.
    fn slot(&self, vector: u16) -> Option<&OnceLock<EventFd>> {
        let vector = usize::from(vector);
        let block = self.0.get(vector / BLOCK)?;
        block
            .get_or_init(|| Box::new([const { OnceLock::new() }; BLOCK]))
            .get(vector % BLOCK)
    }
}

/// The messages of one function. A vector gets its GSI and its event when its message is first set.
pub struct Vectors {
    vm: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
    lines: Mutex<BTreeMap<u16, Gsi>>,
    events: Events,
    messages: Arc<AtomicU64>,
    reporter: Arc<Reporter>,
}

impl Vectors {
    /// Brings routes in step with the MSI-X table of the function at `address`.
    fn follow(&self, bus: &Bus, address: Address, vectors: std::ops::RangeInclusive<u16>) {
        let states = bus.msix_vectors(address, vectors);
        for (vector, state) in states.into_iter().filter(|(_, state)| state.address != 0) {
            let message = MsiMessage {
                address: state.address,
                data: state.data,
            };
            if let Err(error) = self.route(vector, message) {
                self.reporter.warn(format_args!(
                    "{address}: MSI-X vector {vector} cannot be routed: {error}"
                ));
            }
        }
    }

    fn route(&self, vector: u16, message: MsiMessage) -> Result<(), RouteError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gsi) = lines.get(&vector) {
            return self.routes.set(*gsi, Some(message));
        }
        let Some(slot) = self.events.slot(vector) else {
            return Err(RouteError::Full);
        };
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(RouteError::Event)?;
        let gsi = self.routes.reserve()?;
        let set = self.routes.set(gsi, Some(message));
        let tied = set.and_then(|()| self.vm.register_irqfd(&event, gsi).map_err(RouteError::Kvm));
        if let Err(error) = tied {
            self.routes.release([gsi])?;
            return Err(error);
        }
        lines.insert(vector, gsi);
        // Under the lock, and only for a vector without a line: it is not set yet.
        let _ = slot.set(event);
        Ok(())
    }
}

impl Vectors {
    /// Gives back every GSI. Messages that are still sent go nowhere.
    fn release(&self) {
        let lines = std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        for (vector, gsi) in &lines {
            let event = self.events.get(*vector);
            if let Some(Err(error)) = event.map(|event| self.vm.unregister_irqfd(event, *gsi)) {
                tracing::warn!("irqfd of GSI {gsi} cannot be removed: {error}");
            }
        }
        if let Err(error) = self.routes.release(lines.into_values()) {
            tracing::warn!("interrupt routes cannot be given back: {error}");
        }
    }
}

impl MsixSender for Vectors {
    fn send(&self, vector: u16) {
        if let Some(event) = self.events.get(vector) {
            self.messages.fetch_add(1, Ordering::Relaxed);
            // The counter cannot be full: KVM takes it at once.
            let _ = event.write(1);
        }
    }

    fn event(&self, vector: u16) -> Option<&EventFd> {
        self.events.get(vector)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_vector_that_a_function_can_have_has_room_for_its_event() {
        let events = Events::default();
        for vector in [0, 15, 16, 255, 256, MAX_VECTORS - 1] {
            assert!(events.get(vector).is_none());
            events.slot(vector).unwrap().set(EventFd::new(0).unwrap()).unwrap();
            assert!(events.get(vector).is_some());
        }
        assert!(events.get(1).is_none());
        assert!(events.slot(MAX_VECTORS).is_none() && events.get(MAX_VECTORS).is_none());
    }
}
