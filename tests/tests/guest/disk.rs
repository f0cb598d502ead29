//! A disk under Debian's kernels: found, named and sized as under QEMU, by the modern and the legacy driver, and its data is right.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tests::checksum::md5;
use tests::report::Report;
use tests::resources::Extras;
use tests::{guest, qemu};
use vmm::config::MachineConfig;
use vmm::machine::Outcome;

use crate::boot::run;

const MIB: u64 = 1 << 20;

/// Where the guest writes its pattern, and how long it is (resources/init.sh).
const PATTERN: (u64, usize) = (MIB, 4 << 20);

/// An image of its own for each test, with an end that is no multiple of anything but sectors.
fn image(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("{name}.img"));
    File::create(&path).unwrap().set_len(64 * MIB + 512).unwrap();
    path
}

fn with_disk(kernel: &str, image: &str, force_legacy: bool, words: &str, options: &str) -> (MachineConfig, PathBuf) {
    let path = self::image(image);
    let config = guest::reporting_with(kernel, Extras::Virtio { force_legacy }, words).unwrap();
    let disk = format!("path={},format=raw,serial=SERIAL0{options}", path.display());
    (config.device("virtio-blk-pci", disk), path)
}

/// The pattern that the guest wrote is in the file.
fn assert_written(report: &Report, image: &PathBuf) {
    let io = report.section("io");
    assert!(
        io.iter().any(|line| line == "written") && io.iter().any(|line| line == "same"),
        "{io:?}"
    );
    let mut data = vec![0; PATTERN.1];
    File::open(image).unwrap().read_exact_at(&mut data, PATTERN.0).unwrap();
    let theirs = io.last().and_then(|line| line.split_whitespace().next()).unwrap();
    assert_eq!(md5(&data).unwrap(), theirs);
}

fn run_and_write(kernel: &str, image: &str, force_legacy: bool, words: &str, options: &str) -> Report {
    let (config, path) = with_disk(kernel, image, force_legacy, &format!("io=write {words}"), options);
    let ended = run(config);
    assert_eq!(ended.outcome, Outcome::PowerOff);
    assert_written(&ended.report, &path);
    ended.report
}

/// Feature bit 32 as sysfs prints it, lowest bit first.
fn is_modern(report: &Report) -> bool {
    let features = report
        .section("virtio")
        .iter()
        .find_map(|line| line.strip_prefix("features "))
        .unwrap();
    features.as_bytes()[32] == b'1'
}

/// QEMU's guest and ours, line by line.
fn assert_as_under_qemu(kernel: &str, name: &str, force_legacy: bool, words: &str, option: &str) {
    let options = if option.is_empty() {
        String::new()
    } else {
        format!(",{option}")
    };
    let (config, path) = with_disk(kernel, name, force_legacy, words, &options);
    let drive = format!("if=none,id=d0,format=raw,file={}", path.display());
    let device = format!("virtio-blk-pci,drive=d0,serial=SERIAL0{options}");
    let theirs = qemu::run(&config, &["-drive", &drive, "-device", &device]).unwrap();
    let ours = run(config).report;
    assert!(
        !ours.section("virtio").is_empty(),
        "no virtio device: {:?}",
        ours.section("pci")
    );
    for section in ["virtio", "block vda"] {
        assert_eq!(ours.section(section), theirs.section(section), "{section}");
    }
    assert_eq!(ours.lasting_config("00:02.0"), theirs.lasting_config("00:02.0"));
}

each_kernel! {
    modern_driver_reads_back_what_it_wrote(kernel) {
        assert!(is_modern(&run_and_write(kernel, &format!("{kernel}-modern"), false, "", "")));
    }

    legacy_driver_reads_back_what_it_wrote(kernel) {
        assert!(!is_modern(&run_and_write(kernel, &format!("{kernel}-legacy"), true, "", "")));
    }

    interrupt_line_serves_both_drivers(kernel) {
        for legacy in [false, true] {
            let report = run_and_write(kernel, &format!("{kernel}-line-{legacy}"), legacy, "pci=nomsi", "");
            assert!(report.interrupts("virtio0") > 0, "{:?}", report.section("interrupts"));
        }
    }

    works_without_acpi(kernel) {
        let name = format!("{kernel}-noacpi");
        let (config, path) = with_disk(kernel, &name, false, "io=write acpi=off end=reboot", "");
        assert_written(&run(config.end_at_reset()).report, &path);
    }

    four_queues_on_four_cpus(kernel) {
        let (config, path) = with_disk(kernel, &format!("{kernel}-mq"), false, "io=write", ",queues=4");
        let report = run(config.cpus(4)).report;
        assert_written(&report, &path);
        assert_eq!(report.section("interrupts").iter().filter(|line| line.contains("virtio0-req")).count(), 4);
    }

    looks_as_under_qemu(kernel) {
        assert_as_under_qemu(kernel, &format!("{kernel}-same"), false, "", "");
    }

    looks_as_under_qemu_to_the_legacy_driver(kernel) {
        assert_as_under_qemu(kernel, &format!("{kernel}-same-legacy"), true, "", "");
    }

    looks_as_under_qemu_without_the_legacy_face(kernel) {
        assert_as_under_qemu(kernel, &format!("{kernel}-same-modern"), false, "", "disable-legacy=on");
    }

    looks_as_under_qemu_without_the_modern_face(kernel) {
        assert_as_under_qemu(kernel, &format!("{kernel}-same-old"), false, "", "disable-modern=on");
    }

    works_when_the_kernel_places_its_resources(kernel) {
        let (mut config, path) = with_disk(kernel, &format!("{kernel}-guest"), false, "io=write", "");
        config.pci_resources = vmm::config::PciResources::Guest;
        assert_written(&run(config).report, &path);
    }
}
