//! One virtual CPU: its state at power-on, at entry to the kernel, and the handle that makes it leave the guest.

use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{KvmError, Vm, cpuid};

/// Local APIC register: local vector table entry of pin LINT0 (Intel SDM volume 3, table 11-1).
const LVT_LINT0: usize = 0x350;
/// Local vector table entry of pin LINT1.
const LVT_LINT1: usize = 0x360;
/// Delivery mode ExtINT: the PIC's interrupts come in through the boot CPU's LINT0.
const DELIVER_EXTINT: u32 = 0x700;
/// Delivery mode NMI.
const DELIVER_NMI: u32 = 0x400;
/// The bits of the delivery mode.
const DELIVERY_MODE: u32 = 0x700;
/// Nothing is delivered.
const LVT_MASKED: u32 = 1 << 16;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Variable ranges (eight pairs), fixed ranges of 64, 16 and 4 KiB, and the default type (Intel SDM volume 3, section 12.11).
const MTRRS: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    MSR_MTRR_DEF_TYPE..=MSR_MTRR_DEF_TYPE,
];
/// MTRRs on, everything write-back where no range says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
const MSR_IA32_TSC: u32 = 0x10;

/// The registers of one CPU that a reset must bring back.
struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
}

/// The registers with which the boot CPU enters the kernel.
#[derive(Clone, Debug)]
pub struct EntryState {
    /// General registers.
    pub regs: kvm_regs,
    /// Segment, control and descriptor table registers.
    pub sregs: kvm_sregs,
}

/// A virtual CPU. Owned by the thread that runs it.
pub struct Vcpu {
    fd: VcpuFd,
    index: u32,
    power_on: PowerOn,
}

impl Vcpu {
    /// Creates CPU number `index` of `cpus`, with what KVM supports of CPUID, and records its state as that of power-on. `msr_list` are the
    /// MSRs that a reset restores.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn new(vm: &Vm, index: u32, supported: &CpuId, cpus: u32, msr_list: &[u32]) -> Result<Self, KvmError> {
        let fd = vm
            .fd()
            .create_vcpu(u64::from(index))
            .map_err(KvmError::at("create a virtual CPU"))?;
        let tsc_khz = fd.get_tsc_khz().ok().filter(|khz| *khz > 0);
        let cpuid = cpuid::for_cpu(supported, index, cpus, tsc_khz)
            .map_err(|_| KvmError::at("take so many CPUID leaves")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        fd.set_cpuid2(&cpuid).map_err(KvmError::at("set CPUID"))?;
        let power_on = PowerOn::read(&fd, index, msr_list)?;
        Ok(Self { fd, index, power_on })
    }

    /// Number of the CPU, which is its APIC id.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The system registers at power-on, from which the entry state is made.
    pub fn power_on_sregs(&self) -> kvm_sregs {
        self.power_on.sregs
    }

    /// The file descriptor, to run the CPU.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Puts the CPU into its state at the start of the machine: the boot CPU (which has an `entry`) about to enter the kernel, the others
    /// waiting for INIT and SIPI.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn reset(&self, entry: Option<&EntryState>) -> Result<(), KvmError> {
        let state = &self.power_on;
        let (regs, sregs, mp_state) = match entry {
            Some(entry) => (&entry.regs, &entry.sregs, KVM_MP_STATE_RUNNABLE),
            None => (&state.regs, &state.sregs, KVM_MP_STATE_UNINITIALIZED),
        };
        self.fd
            .set_mp_state(kvm_mp_state { mp_state })
            .map_err(KvmError::at("set the run state"))?;
        self.fd.set_sregs(sregs).map_err(KvmError::at("set system registers"))?;
        self.fd
            .set_xcrs(&state.xcrs)
            .map_err(KvmError::at("set extended control registers"))?;
        self.fd
            .set_fpu(&state.fpu)
            .map_err(KvmError::at("set floating point registers"))?;
        self.fd
            .set_debug_regs(&state.debug)
            .map_err(KvmError::at("set debug registers"))?;
        self.write_msrs()?;
        self.fd
            .set_lapic(&state.lapic)
            .map_err(KvmError::at("set the local APIC"))?;
        self.fd
            .set_vcpu_events(&state.events)
            .map_err(KvmError::at("clear pending events"))?;
        self.fd.set_regs(regs).map_err(KvmError::at("set registers"))
    }

    /// Tells the guest that it stood still, so that its watchdogs do not take that for a hang. Guests without kvmclock cannot be told.
    pub fn tell_of_pause(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Pulls the local APIC's pin LINT1, where a PC has its non-maskable interrupts. The guest gets one if it has the pin set up so.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn inject_nmi(&self) -> Result<(), KvmError> {
        let lapic = self.fd.get_lapic().map_err(KvmError::at("read the local APIC"))?;
        if apic_register(&lapic, LVT_LINT1) & (LVT_MASKED | DELIVERY_MODE) == DELIVER_NMI {
            self.fd.nmi().map_err(KvmError::at("inject a non-maskable interrupt"))?;
        }
        Ok(())
    }

    /// Writes the MSRs of power-on. KVM stops at the first MSR that it does not let userspace write; that one is passed over, since a guest
    /// could not have changed it either.
    fn write_msrs(&self) -> Result<(), KvmError> {
        let mut rest = self.power_on.msrs.as_slice();
        while !rest.is_empty() {
            let batch = rest.get(..rest.len().min(MSR_BATCH)).unwrap_or(rest);
            let Ok(msrs) = Msrs::from_entries(batch) else {
                return Ok(());
            };
            let written = self
                .fd
                .set_msrs(&msrs)
                .map_err(KvmError::at("set model specific registers"))?;
            let done = if written < batch.len() { written + 1 } else { written };
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }
}

/// MSRs in one call; KVM takes at most 255.
const MSR_BATCH: usize = 255;

impl PowerOn {
    fn read(fd: &VcpuFd, index: u32, msr_list: &[u32]) -> Result<Self, KvmError> {
        let mut lapic = fd.get_lapic().map_err(KvmError::at("read the local APIC"))?;
        if index == 0 {
            set_apic_register(&mut lapic, LVT_LINT0, DELIVER_EXTINT);
        }
        set_apic_register(&mut lapic, LVT_LINT1, DELIVER_NMI);
        Ok(Self {
            regs: fd.get_regs().map_err(KvmError::at("read registers"))?,
            sregs: fd.get_sregs().map_err(KvmError::at("read system registers"))?,
            fpu: fd.get_fpu().map_err(KvmError::at("read floating point registers"))?,
            xcrs: fd.get_xcrs().map_err(KvmError::at("read extended control registers"))?,
            debug: fd.get_debug_regs().map_err(KvmError::at("read debug registers"))?,
            events: fd.get_vcpu_events().map_err(KvmError::at("read pending events"))?,
            lapic,
            msrs: power_on_msrs(fd, msr_list)?,
        })
    }
}

/// The values of `list` now, with those that firmware sets put in.
fn power_on_msrs(fd: &VcpuFd, list: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut found: Vec<kvm_msr_entry> = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let batch: Vec<_> = rest
            .iter()
            .take(MSR_BATCH)
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let Ok(mut msrs) = Msrs::from_entries(&batch) else {
            break;
        };
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(KvmError::at("read model specific registers"))?;
        found.extend(msrs.as_slice().iter().take(read));
        let done = if read < batch.len() { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    for msr in &mut found {
        match msr.index {
            MSR_IA32_MISC_ENABLE => msr.data |= MISC_ENABLE_FAST_STRING,
            MSR_MTRR_DEF_TYPE => msr.data = MTRR_ENABLED_WRITE_BACK,
            _ => {}
        }
    }
    Ok(found)
}

/// The MSRs that a reset restores: all that KVM lists, but the time stamp counter, which goes on counting so that the CPUs stay in step,
/// and the memory type range registers, which KVM keeps without listing them.
///
/// # Errors
/// What KVM refused.
pub fn resettable_msrs(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(KvmError::at("list model specific registers"))?;
    let listed = list.as_slice().iter().copied().filter(|&msr| msr != MSR_IA32_TSC);
    Ok(listed.chain(MTRRS.into_iter().flatten()).collect())
}

/// Writes the 32-bit register at `offset` of the APIC page.
fn apic_register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = lapic.regs.iter().skip(offset).zip(0..4_u32);
    bytes.fold(0, |value, (byte, place)| value | u32::from(*byte as u8) << (8 * place))
}

fn set_apic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (byte, value) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *byte = value as _;
    }
}

/// Makes a CPU that runs in another thread leave the guest, or not enter it.
pub struct Kick {
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer is only used for atomic stores to one byte, and pthread_kill may be called from any thread.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// The handle for `vcpu`, which the calling thread is going to run.
    ///
    /// # Safety
    /// The handle must be gone before `vcpu` is dropped and before the calling thread is joined.
    pub unsafe fn for_this_thread(vcpu: &mut Vcpu) -> Self {
        let immediate_exit = (&raw mut vcpu.fd.get_kvm_run().immediate_exit).cast_const().cast();
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        Self { immediate_exit, thread }
    }

    /// Kicks: KVM_RUN that is under way, or the next one, returns EINTR.
    pub fn kick(&self) {
        // SAFETY: the constructor's contract keeps the mapping and the thread alive.
        unsafe {
            (*self.immediate_exit).store(1, Ordering::SeqCst);
            libc::pthread_kill(self.thread, kick_signal());
        }
    }

    /// Takes the kick back before the CPU runs on. Called by the CPU's own thread.
    pub fn clear(&self) {
        // SAFETY: as in `kick`.
        unsafe { (*self.immediate_exit).store(0, Ordering::SeqCst) }
    }
}

/// The signal that interrupts KVM_RUN and blocking system calls of a CPU's thread.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the handler for the kick signal: one that does nothing, so that system calls return EINTR. The same for every machine of the process.
///
/// # Errors
/// The kernel refused the handler.
pub fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing)
}
