//! Debian's kernels boot on every path that a kernel has through a PC's firmware tables.

use tests::guest::{self, Ended};
use tests::report::Report;
use vmm::config::{MachineConfig, PciResources};
use vmm::machine::Outcome;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The chipset: address, then vendor, device, class and revision as sysfs prints them.
const CHIPSET: [(&str, &str); 3] = [
    ("0000:00:00.0", "0x8086 0x1237 0x060000 0x02"),
    ("0000:00:01.0", "0x8086 0x7000 0x060100 0x00"),
    ("0000:00:01.3", "0x8086 0x7113 0x068000 0x03"),
];

pub fn run(config: MachineConfig) -> Ended {
    let ended = guest::run(config).unwrap();
    assert!(
        ended.report.is_complete(),
        "the guest did not report; its last words:\n{}",
        guest::tail(&ended.console)
    );
    ended
}

pub fn boot(kernel: &str, cpus: u32, words: &str) -> Ended {
    run(guest::reporting(kernel, words).unwrap().cpus(cpus))
}

/// What must be so on every machine, whatever the kernel was told.
pub fn assert_machine(report: &Report, cpus: u32) {
    let functions = report.section("pci");
    for (address, ids) in CHIPSET {
        assert!(
            functions
                .iter()
                .any(|line| line.starts_with(&format!("{address} {ids}"))),
            "{address} {ids}: {functions:?}"
        );
    }
    assert_eq!(functions.len(), CHIPSET.len(), "{functions:?}");
    let expected = if cpus == 1 {
        "0".to_owned()
    } else {
        format!("0-{}", cpus - 1)
    };
    assert_eq!(report.line("cpus"), expected);
    assert!(report.interrupts("ttyS0") > 0, "{:?}", report.section("interrupts"));
    assert!(
        report.uptime() > 1.0,
        "the clock stands still: {:?}",
        report.section("uptime")
    );
    let ticks = report.interrupts("timer") + report.interrupts("LOC:");
    assert!(ticks > 10, "{:?}", report.section("interrupts"));
}

/// How many of `cpus` a kernel finds by the MP table. Debian's cloud kernel is built without CONFIG_X86_MPPARSE and finds itself alone.
fn cpus_by_mp_table(kernel: &str, cpus: u32) -> u32 {
    if kernel == "cloud" { 1 } else { cpus }
}

fn ram(report: &Report) -> u64 {
    report
        .ranges("iomem", "System RAM")
        .iter()
        .map(|(first, last)| last - first + 1)
        .sum()
}

each_kernel! {
    boots_and_powers_off_with_one_cpu(kernel) {
        let ended = boot(kernel, 1, "");
        assert_eq!(ended.outcome, Outcome::PowerOff);
        assert_machine(&ended.report, 1);
        assert!(ended.stats.total_exits() > 0);
    }

    boots_with_four_cpus(kernel) {
        let ended = boot(kernel, 4, "");
        assert_eq!(ended.outcome, Outcome::PowerOff);
        assert_machine(&ended.report, 4);
    }

    boots_without_acpi_and_scans_the_bus_itself(kernel) {
        for cpus in [1, 4] {
            // Without ACPI a kernel cannot switch the machine off.
            let config = guest::reporting(kernel, "acpi=off end=reboot").unwrap().cpus(cpus).end_at_reset();
            let ended = run(config);
            assert_machine(&ended.report, cpus_by_mp_table(kernel, cpus));
            assert!(ended.report.kernel_log.contains("PCI: Probing PCI hardware"), "{}", ended.report.kernel_log);
        }
    }

    boots_with_pci_noacpi(kernel) {
        for cpus in [1, 4] {
            let ended = boot(kernel, cpus, "pci=noacpi");
            assert_machine(&ended.report, cpus_by_mp_table(kernel, cpus));
            assert!(ended.report.kernel_log.contains("PCI: Probing PCI hardware"), "{}", ended.report.kernel_log);
        }
    }

    boots_without_the_ioapic(kernel) {
        for cpus in [1, 4] {
            let ended = boot(kernel, cpus, "noapic");
            assert_machine(&ended.report, cpus);
            assert!(ended.report.section("interrupts").iter().any(|line| line.contains("XT-PIC")));
        }
    }

    boots_with_configuration_mechanism_one_forced(kernel) {
        for cpus in [1, 4] {
            assert_machine(&boot(kernel, cpus, "pci=conf1").report, cpus);
        }
    }

    boots_with_nosmp(kernel) {
        assert_machine(&boot(kernel, 1, "nosmp").report, 1);
        assert_machine(&boot(kernel, 4, "nosmp").report, 1);
    }

    sees_little_and_much_memory(kernel) {
        for size in [128 * MIB, 6 * GIB] {
            let ended = run(guest::reporting(kernel, "").unwrap().memory(size));
            let ram = ram(&ended.report);
            // Below the first MiB and for the tables a little is not RAM.
            assert!(ram <= size && ram > size - 2 * MIB, "{ram:#x} of {size:#x}");
            let high = ended.report.ranges("iomem", "System RAM").iter().any(|(first, _)| *first == 4 * GIB);
            assert_eq!(high, size > 4 * GIB);
        }
    }

    finds_the_functions_when_it_places_resources_itself(kernel) {
        let mut config = guest::reporting(kernel, "").unwrap();
        config.pci_resources = PciResources::Guest;
        assert_machine(&run(config).report, 1);
    }
}
