//! The same guest on QEMU's `pc`, on the same KVM: what a driver reads must be the same.

use tests::report::Report;
use tests::{guest, qemu};

use crate::boot::run;

/// Bytes of configuration space that may differ: function, first offset, length, why.
const ALLOWED: [(&str, usize, usize, &str); 2] = [
    (
        "00:00.0",
        0x59,
        7,
        "SeaBIOS shadows its ROMs area by area; here all of it is RAM from the start",
    ),
    (
        "00:01.0",
        0x60,
        4,
        "QEMU's tables have link devices, which Linux switches off (bit 7) while no device uses them; ours route without",
    ),
];

fn allowed(function: &str, offset: usize) -> bool {
    ALLOWED
        .iter()
        .any(|(known, first, len, _)| *known == function && (*first..first + len).contains(&offset))
}

fn assert_same_config(ours: &Report, theirs: &Report) {
    for function in ["00:00.0", "00:01.0", "00:01.3"] {
        let (ours, theirs) = (ours.config(function), theirs.config(function));
        assert_eq!((ours.len(), theirs.len()), (256, 256), "{function}");
        let differences: Vec<_> = (0..256)
            .filter(|offset| ours[*offset] != theirs[*offset] && !allowed(function, *offset))
            .map(|offset| {
                format!(
                    "{offset:#04x}: ours {:02x}, QEMU's {:02x}",
                    ours[offset], theirs[offset]
                )
            })
            .collect();
        assert!(differences.is_empty(), "{function}: {differences:#?}");
    }
}

each_kernel! {
    the_chipset_reads_as_under_qemu(kernel) {
        let config = guest::reporting(kernel, "").unwrap();
        let theirs = qemu::run(&config, &[]).unwrap();
        let ours = run(config).report;
        assert_same_config(&ours, &theirs);
        for name in ["PCI Bus 0000:00", "System RAM", "IOAPIC 0", "Local APIC"] {
            println!("{name}: ours {:x?}, QEMU's {:x?}", ours.ranges("iomem", name), theirs.ranges("iomem", name));
        }
        // Ports of the chipset, as the kernel claims them.
        for name in ["0000:00:01.3", "ACPI PM1a_EVT_BLK", "ACPI PM1a_CNT_BLK", "ACPI PM_TMR", "ACPI GPE0_BLK", "serial",
                     "keyboard", "PCI conf1", "timer0", "pic1", "pic2"] {
            let indented = |report: &Report| -> Vec<String> {
                report.section("ioports").iter().filter(|line| line.ends_with(&format!(" : {name}"))).cloned().collect()
            };
            assert_eq!(indented(&ours), indented(&theirs), "{name}");
        }
    }
}
