//! Messages of MSI-X on a machine without interrupt controllers: each is the write to memory that it is on the bus.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::memory::GuestMemory;
use devices::virtio::interrupt::MsixSender;
use devices::virtio::transport::Doorbell;
use pci::{Address, Bus, Change};
use vm_memory::{Bytes, GuestAddress};

use crate::irq::MsiMessage;
use crate::machine::wiring::Wiring;

/// Writes messages to guest memory. Where there is no memory, at the local APICs above all, they are lost. Kicks reach the
/// functions through the board.
pub struct DmaWiring {
    memory: Arc<GuestMemory>,
    functions: Mutex<BTreeMap<Address, Arc<Messages>>>,
    sent: Arc<AtomicU64>,
}

impl DmaWiring {
    /// For functions that write to `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            memory,
            functions: Mutex::default(),
            sent: Arc::default(),
        }
    }

    fn functions(&self) -> MutexGuard<'_, BTreeMap<Address, Arc<Messages>>> {
        lock(&self.functions)
    }
}

impl Wiring for DmaWiring {
    fn sender(&self, address: Address) -> Arc<dyn MsixSender> {
        let messages = Arc::new(Messages {
            table: Mutex::default(),
            memory: Arc::clone(&self.memory),
            sent: Arc::clone(&self.sent),
        });
        self.functions().insert(address, Arc::clone(&messages));
        messages
    }

    fn tie(&self, _address: Address, _doorbells: Vec<Doorbell>) {}

    fn untie(&self, address: Address) {
        self.functions().remove(&address);
    }

    fn changed(&self, bus: &Bus, address: Address, change: Change) {
        let Some(messages) = self.functions().get(&address).cloned() else {
            return;
        };
        match change {
            Change::MsixVector(vector) => messages.follow(bus, address, vector..=vector),
            Change::MsixControl { enabled: true, .. } => messages.follow(bus, address, 0..=u16::MAX),
            _ => {}
        }
    }

    fn messages(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// The messages of one function. A copy of its table, since I/O threads send while the function may be locked and wait for them.
struct Messages {
    table: Mutex<BTreeMap<u16, MsiMessage>>,
    memory: Arc<GuestMemory>,
    sent: Arc<AtomicU64>,
}

impl Messages {
    fn follow(&self, bus: &Bus, address: Address, vectors: RangeInclusive<u16>) {
        let states = bus.msix_vectors(address, vectors).into_iter();
        let messages = states.map(|(vector, state)| {
            let (address, data) = (state.address, state.data);
            (vector, MsiMessage { address, data })
        });
        lock(&self.table).extend(messages);
    }
}

impl MsixSender for Messages {
    fn send(&self, vector: u16) {
        let message = lock(&self.table).get(&vector).copied();
        let Some(MsiMessage { address, data }) = message else {
            return;
        };
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.memory.write_obj(data.to_le(), GuestAddress(address)) {
            tracing::debug!("message of vector {vector} to {address:#x} is lost: {error}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
