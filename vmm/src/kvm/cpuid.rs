//! What the CPUID instruction tells the guest: what KVM supports, with the topology of this machine.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::KvmError;

/// The leaf under which hypervisors tell the TSC and bus frequencies in kHz (Linux arch/x86/kernel/cpu/vmware.c, QEMU `vmware-cpuid-freq`).
const TIMING_LEAF: u32 = 0x4000_0010;
/// The signature leaf of KVM's paravirtual leaves.
const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
/// The frequency of KVM's local APIC timer bus in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The leaves that every virtual CPU starts from: all that KVM supports on this host.
///
/// # Errors
/// What KVM refused.
pub fn supported(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::at("tell the supported CPUID"))
}

/// Fills in what differs from CPU to CPU and what this machine decides: APIC ids, one package of `cpus` cores, the timing leaf when
/// `tsc_khz` is known.
pub fn for_cpu(
    supported: &CpuId,
    index: u32,
    cpus: u32,
    tsc_khz: Option<u32>,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries = supported.as_slice().to_vec();
    let topology = Topology { index, cpus };
    for entry in &mut entries {
        topology.apply(entry);
    }
    if let Some(khz) = tsc_khz {
        add_timing_leaf(&mut entries, khz);
    }
    CpuId::from_entries(&entries)
}

fn add_timing_leaf(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(signature) = entries.iter_mut().find(|entry| entry.function == KVM_SIGNATURE_LEAF) else {
        return;
    };
    signature.eax = signature.eax.max(TIMING_LEAF);
    entries.retain(|entry| entry.function != TIMING_LEAF);
    entries.push(kvm_cpuid_entry2 {
        function: TIMING_LEAF,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

/// One package of `cpus` cores with one thread each; the APIC id is the index.
struct Topology {
    index: u32,
    cpus: u32,
}

impl Topology {
    /// Bits of the APIC id that number the cores of the package.
    fn core_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => self.basic(entry),
            0x4 => self.cache(entry),
            0xb | 0x1f => self.extended(entry),
            0x8000_0008 => self.amd_sizes(entry),
            0x8000_001e => self.amd_topology(entry),
            _ => {}
        }
    }

    /// Leaf 1: initial APIC id and logical processor count in EBX, HTT when there is more than one, and the hypervisor bit.
    fn basic(&self, entry: &mut kvm_cpuid_entry2) {
        const HTT: u32 = 1 << 28;
        const HYPERVISOR: u32 = 1 << 31;
        let logical = self.cpus.next_power_of_two().min(255);
        entry.ebx = entry.ebx & 0xffff | logical << 16 | (self.index & 0xff) << 24;
        entry.edx = if self.cpus > 1 {
            entry.edx | HTT
        } else {
            entry.edx & !HTT
        };
        entry.ecx |= HYPERVISOR;
    }

    /// Leaf 4 (Intel caches): first and second level belong to one core, the third to the package.
    fn cache(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 7;
        let cores = self.cpus.next_power_of_two().min(64) - 1;
        let sharing = if level >= 3 {
            self.cpus.next_power_of_two().min(4096) - 1
        } else {
            0
        };
        entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
    }

    /// Leaves 0xb and 0x1f: a thread level of one, then a core level of all.
    fn extended(&self, entry: &mut kvm_cpuid_entry2) {
        const SMT: u32 = 1;
        const CORE: u32 = 2;
        (entry.eax, entry.ebx, entry.ecx) = match entry.index {
            0 => (0, 1, SMT << 8),
            1 => (self.core_bits(), self.cpus, CORE << 8 | 1),
            level => (0, 0, level & 0xff),
        };
        entry.edx = self.index;
    }

    /// Leaf 0x80000008 ECX (AMD): cores of the package minus one, and the bits of the APIC id that number them.
    fn amd_sizes(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ecx = if self.cpus > 1 {
            self.core_bits() << 12 | (self.cpus - 1).min(255)
        } else {
            0
        };
    }

    /// Leaf 0x8000001e (AMD): extended APIC id, compute unit of one thread, node 0.
    fn amd_topology(&self, entry: &mut kvm_cpuid_entry2) {
        (entry.eax, entry.ebx, entry.ecx) = (self.index, self.index & 0xff, 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    fn filled(index: u32, cpus: u32, tsc_khz: Option<u32>) -> Vec<kvm_cpuid_entry2> {
        let entries = [
            leaf(1, 0),
            leaf(4, 0),
            leaf(0xb, 0),
            leaf(0xb, 1),
            leaf(0xb, 2),
            leaf(KVM_SIGNATURE_LEAF, 0),
        ];
        for_cpu(&CpuId::from_entries(&entries).unwrap(), index, cpus, tsc_khz)
            .unwrap()
            .as_slice()
            .to_vec()
    }

    #[test]
    fn every_cpu_has_its_own_apic_id_in_one_package() {
        for index in 0..6 {
            let leaves = filled(index, 6, None);
            assert_eq!(leaves[0].ebx >> 24, index);
            assert_eq!(
                leaves[0].ebx >> 16 & 0xff,
                8,
                "logical processors are rounded up to the APIC id space"
            );
            assert_eq!((leaves[2].edx, leaves[3].edx), (index, index));
            assert_eq!((leaves[3].eax, leaves[3].ebx), (3, 6));
            assert_eq!(leaves[4].ecx, 2, "the level after the last is invalid");
        }
    }

    #[test]
    fn a_single_cpu_announces_no_hyper_threading() {
        assert_eq!(filled(0, 1, None)[0].edx & 1 << 28, 0);
        assert_ne!(filled(0, 2, None)[0].edx & 1 << 28, 0);
    }

    #[test]
    fn the_timing_leaf_is_there_only_when_the_frequency_is_known() {
        assert!(filled(0, 1, None).iter().all(|entry| entry.function != TIMING_LEAF));
        let leaves = filled(0, 1, Some(2_500_000));
        let timing = leaves.iter().find(|entry| entry.function == TIMING_LEAF).unwrap();
        assert_eq!((timing.eax, timing.ebx), (2_500_000, APIC_BUS_KHZ));
        assert_eq!(leaves[5].eax, TIMING_LEAF);
    }
}
