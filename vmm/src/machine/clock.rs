//! What counts time for a guest, and stands still while its machine does.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

/// Something that counts time for the guest.
pub trait Clockwork: Send + Sync {
    /// Stops it.
    fn stop(&self);
    /// Lets it go on from where it was.
    fn go_on(&self);
}

/// KVM's paravirtual clock (kvmclock), stopped as QEMU does (hw/i386/kvm/clock.c).
pub struct KvmClock {
    vm: Arc<VmFd>,
    stopped_at: Mutex<Option<u64>>,
}

impl KvmClock {
    /// The clock of `vm`, which runs.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let stopped_at = Mutex::default();
        Self { vm, stopped_at }
    }
}

impl Clockwork for KvmClock {
    fn stop(&self) {
        let now = self.vm.get_clock().inspect_err(|error| {
            tracing::warn!("the guest's clock cannot be read and goes on: {error}");
        });
        *self.stopped_at.lock().unwrap_or_else(PoisonError::into_inner) = now.ok().map(|now| now.clock);
    }

    fn go_on(&self) {
        let stopped_at = self.stopped_at.lock().unwrap_or_else(PoisonError::into_inner).take();
        // No flags: the time alone counts, not when it was read.
        let set = stopped_at.map(|clock| {
            self.vm.set_clock(&kvm_clock_data {
                clock,
                ..Default::default()
            })
        });
        if let Some(Err(error)) = set {
            tracing::warn!("the guest's clock cannot be set back: {error}");
        }
    }
}
