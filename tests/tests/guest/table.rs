//! The whole table of devices in one guest: each stands on the PCI and the virtio bus, and before its driver, as under QEMU.

use std::fs::File;
use std::path::PathBuf;

use tests::report::Report;
use tests::resources::Extras;
use tests::{guest, qemu};

use crate::boot::run;

/// The slots of the five devices, in the order of the table.
const DEVICES: [&str; 5] = ["00:02.0", "00:03.0", "00:04.0", "00:05.0", "00:06.0"];

/// What is to be the same, line by line.
const SECTIONS: [&str; 8] = [
    "cpus",
    "virtio",
    "buses",
    "block vda",
    "net eth0",
    "ethtool eth0",
    "hwrng",
    "ports",
];

/// QEMU's `pc` always has an IDE controller; ours has no use for one.
const IDE: &str = "00:01.1";

fn image(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("table-{name}.img"));
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    path
}

/// Ours and QEMU's with one device of each row.
fn both(kernel: &str, words: &str, force_legacy: bool, cpus: u32, variant: &str) -> (Report, Report) {
    let config = guest::reporting_with(kernel, Extras::Tools { force_legacy }, &format!("quiet {words}"))
        .unwrap()
        .memory(512 << 20)
        .cpus(cpus)
        .end_at_reset();
    // A comma would end the name in an option.
    let name = format!("{kernel}-{force_legacy}-{cpus}-{words}{variant}").replace([',', ' '], "-");
    let path = image(&name);
    let path = path.display();
    let theirs = qemu::run(
        &config,
        &[
            ["-drive", &format!("if=none,id=d0,format=raw,file={path}")],
            ["-device", &format!("virtio-blk-pci,drive=d0,num-queues=1{variant}")],
            ["-netdev", "hubport,hubid=0,id=n0"],
            ["-device", &format!("virtio-net-pci,netdev=n0,romfile={variant}")],
            ["-device", &format!("virtio-serial-pci,id=serial0{variant}")],
            ["-device", &format!("virtio-balloon-pci{variant}")],
            ["-device", &format!("virtio-rng-pci{variant}")],
            ["-device", "virtconsole,bus=serial0.0"],
            ["-device", "virtserialport,bus=serial0.0,name=org.example.agent"],
        ]
        .concat(),
    )
    .unwrap();
    let ours = run(config
        .device("virtio-blk-pci", format!("path={path},format=raw{variant}"))
        .device("virtio-net-pci", format!("hub=0{variant}"))
        .device("virtio-serial-pci", format!("id=serial0{variant}"))
        .device("virtio-balloon-pci", variant.trim_start_matches(','))
        .device("virtio-rng-pci", variant.trim_start_matches(','))
        .device("virtconsole", "bus=serial0.0")
        .device("virtserialport", "bus=serial0.0,name=org.example.agent"));
    (ours.report, theirs)
}

fn assert_as_under_qemu(kernel: &str, words: &str, force_legacy: bool, cpus: u32, variant: &str) {
    let (ours, theirs) = both(kernel, words, force_legacy, cpus, variant);
    let drivers = ours
        .section("virtio")
        .iter()
        .filter(|line| line.contains("driver=virtio_"));
    assert_eq!(drivers.count(), DEVICES.len(), "{:?}", ours.section("virtio"));
    for section in SECTIONS {
        assert_eq!(ours.section(section), theirs.section(section), "{section}");
    }
    let lspci = |report: &Report| {
        let lines = report.section("lspci").iter();
        lines.filter(|line| !line.starts_with(IDE)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(lspci(&ours), lspci(&theirs));
    for device in DEVICES {
        assert!(!ours.config(device).is_empty(), "{device}");
        assert_eq!(ours.lasting_config(device), theirs.lasting_config(device), "{device}");
    }
}

each_kernel! {
    stands_as_under_qemu(kernel) {
        assert_as_under_qemu(kernel, "", false, 1, "");
    }
}

#[cfg(feature = "long")]
#[test]
fn stands_as_under_qemu_to_legacy_drivers() {
    for kernel in ["cloud", "generic"] {
        assert_as_under_qemu(kernel, "", true, 4, "");
    }
}

#[cfg(feature = "long")]
#[test]
fn stands_as_under_qemu_without_the_legacy_faces() {
    assert_as_under_qemu("cloud", "", false, 4, ",disable-legacy=on");
}

#[cfg(feature = "long")]
#[test]
fn stands_as_under_qemu_without_the_modern_faces() {
    assert_as_under_qemu("cloud", "", false, 1, ",disable-modern=on");
}

/// On one CPU: SeaBIOS puts one of each package into its MP table, we all.
#[cfg(feature = "long")]
#[test]
fn stands_as_under_qemu_without_acpi() {
    for force_legacy in [false, true] {
        assert_as_under_qemu("generic", "acpi=off end=reboot", force_legacy, 1, "");
    }
}
