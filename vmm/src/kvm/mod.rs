//! KVM: opening it, creating a virtual machine with its in-kernel interrupt controllers, virtual CPUs.

pub mod cpuid;
pub mod probe;
pub mod vcpu;

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion};

use crate::memory::{GuestMemory, address};

/// The capabilities without which no guest runs here, with the word that `innkeeper check` prints.
pub const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "irqchip"),
    (Cap::Pit2, "pit2"),
    (Cap::PitState2, "pit-state2"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::IrqRouting, "irq-routing"),
    (Cap::UserMemory, "user-memory"),
    (Cap::SetTssAddr, "set-tss-addr"),
    (Cap::ExtCpuid, "ext-cpuid"),
    (Cap::MpState, "mp-state"),
    (Cap::Xsave, "xsave"),
    (Cap::Xcrs, "xcrs"),
    (Cap::VcpuEvents, "vcpu-events"),
    (Cap::ImmediateExit, "immediate-exit"),
];

/// Why KVM cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device node is missing
    #[error(
        "/dev/kvm: not there; load the kvm-intel or kvm-amd module, or switch virtualisation on in the firmware (or for this virtual machine)"
    )]
    Missing,
    /// The user may not open it
    #[error(
        "/dev/kvm: permission denied; add your user to the group '{group}' (usermod -aG {group} USER) and log in again"
    )]
    Permission {
        /// The group that owns the device node.
        group: String,
    },
    /// Opening failed for another reason
    #[error("/dev/kvm: {0}")]
    Open(#[source] io::Error),
    /// The version is not the one that every KVM since Linux 2.6.22 has
    #[error("/dev/kvm: API version {0} where {KVM_API_VERSION} is needed; this kernel's KVM is too old")]
    Version(i32),
    /// A capability is missing
    #[error("/dev/kvm: this kernel's KVM lacks {0}; Linux 5.4 or later on x86-64 has it")]
    Capability(&'static str),
}

/// Opens `/dev/kvm` and sees that it is one on which guests can run.
///
/// # Errors
/// [`OpenError`] says what is missing and what to do.
pub fn open() -> Result<Kvm, OpenError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => OpenError::Missing,
        libc::EACCES | libc::EPERM => OpenError::Permission {
            group: owning_group(Path::new("/dev/kvm")),
        },
        errno => OpenError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(OpenError::Version(version));
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(OpenError::Capability(name)),
        None => Ok(kvm),
    }
}

/// The name of the group that owns `path`; its number, or `kvm`, where no name is found.
fn owning_group(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(gid) = std::fs::metadata(path).map(|metadata| metadata.gid()) else {
        return "kvm".into();
    };
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse::<u32>().ok()?))
        })
        .find(|(_, id)| *id == gid)
        .map_or_else(|| gid.to_string(), |(name, _)| name.to_owned())
}

/// A step of creating a virtual machine that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {step}: {source}{hint}")]
pub struct KvmError {
    step: &'static str,
    source: kvm_ioctls::Error,
    hint: &'static str,
}

impl KvmError {
    /// For `map_err`: names the step that failed.
    pub(crate) fn at(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| {
            let hint = match source.errno() {
                libc::ENOMEM => "; the host is short of memory, close something or give the guest less",
                libc::EEXIST | libc::EBUSY => "; another hypervisor may hold the processor's virtualisation",
                _ => "",
            };
            Self { step, source, hint }
        }
    }
}

/// A virtual machine with in-kernel PIC, IOAPIC, local APICs and PIT.
pub struct Vm {
    fd: Arc<VmFd>,
    power_on: ChipState,
}

/// The interrupt controllers and the timer as they are after power-on, to be restored at every reset.
struct ChipState {
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl Vm {
    /// Creates the machine and its chips.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn new(kvm: &Kvm) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::at("create a virtual machine"))?;
        fd.set_identity_map_address(address::KVM_IDENTITY_MAP)
            .map_err(KvmError::at("place its identity map"))?;
        fd.set_tss_address(address::KVM_TSS as usize)
            .map_err(KvmError::at("place its task state segment"))?;
        fd.create_irq_chip()
            .map_err(KvmError::at("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).map_err(KvmError::at("create the interval timer"))?;
        let power_on = ChipState::read(&fd)?;
        Ok(Self {
            fd: Arc::new(fd),
            power_on,
        })
    }

    /// The file descriptor; irqfds, ioeventfds and interrupt lines are made on it.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Gives `memory` to the guest, one slot for each region.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn map(&self, memory: &GuestMemory) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping that `memory` owns, and the machine keeps `memory` as long as this VM.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(KvmError::at("map guest memory"))?;
        }
        Ok(())
    }

    /// Puts the chips into the state that they had after power-on, with the level-triggered interrupts of ELCR as `elcr` says.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn reset_chips(&self, elcr: u16) -> Result<(), KvmError> {
        for chip in &self.power_on.irqchips {
            let mut chip = *chip;
            match chip.chip_id {
                KVM_IRQCHIP_PIC_MASTER => chip.chip.pic.elcr = elcr as u8,
                KVM_IRQCHIP_PIC_SLAVE => chip.chip.pic.elcr = (elcr >> 8) as u8,
                _ => {}
            }
            self.fd
                .set_irqchip(&chip)
                .map_err(KvmError::at("reset the interrupt controllers"))?;
        }
        self.fd
            .set_pit2(&self.power_on.pit)
            .map_err(KvmError::at("reset the interval timer"))
    }
}

impl ChipState {
    fn read(fd: &VmFd) -> Result<Self, KvmError> {
        let mut irqchips =
            [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(|chip_id| kvm_irqchip {
                chip_id,
                ..Default::default()
            });
        for chip in &mut irqchips {
            fd.get_irqchip(chip)
                .map_err(KvmError::at("read the interrupt controllers"))?;
        }
        let pit = fd.get_pit2().map_err(KvmError::at("read the interval timer"))?;
        Ok(Self { irqchips, pit })
    }
}
