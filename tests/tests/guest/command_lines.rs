//! Command lines of other programs (resources/qemu-command-lines.txt), run as they stand by a shell that finds us under QEMU's name: only
//! the initial RAM disk is ours, and the kernel's command line says what the guest is to report.

use std::path::Path;
use std::process::Command;

use tests::network;
use tests::process::{self, Name, Process};
use tests::report::Report;
use tests::resources::{self, Extras};

const LINES: &str = include_str!("../../../resources/qemu-command-lines.txt");

/// Those that are booted, and whether each has a disk and a card. Not bpf-selftests, which takes cache=none: files in the lab have no
/// direct I/O.
const BOOTED: &[(&str, bool, bool)] = &[
    ("kunit", false, false),
    ("kernelcraft", true, false),
    #[cfg(feature = "long")]
    ("buildroot", true, true),
    #[cfg(feature = "long")]
    ("lava-pc", true, true),
    #[cfg(feature = "long")]
    ("nomad-with-kernel", true, true),
    #[cfg(feature = "long")]
    ("initramfs", false, false),
];

/// Kernels and images by the names that the command lines have for them.
const KERNELS: [&str; 3] = ["bzImage", "arch/x86/boot/bzImage", "output/images/bzImage"];
const IMAGES: [&str; 4] = ["output/images/rootfs.ext2", "rootfs.ext2", "rootfs.ext4", "linux.img"];

fn words(name: &str) -> String {
    let start = format!("\n= {name}\n");
    let (_, rest) = LINES.split_once(&start).unwrap();
    let block = rest.split("\n= ").next().unwrap();
    let lines = block.lines().filter(|line| !line.starts_with('#'));
    lines.collect::<Vec<_>>().join(" ")
}

/// Puts what the command lines name into `folder`.
fn furnish(folder: &Path, kernel: &Path) {
    for name in KERNELS {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(kernel, path).unwrap();
    }
    for name in IMAGES {
        std::fs::File::create(folder.join(name))
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
    }
}

#[test]
fn command_lines_of_other_programs_boot_as_they_stand() {
    network::apart(|| {
        network::way_out().unwrap();
        boot_them_all();
    })
    .unwrap();
}

fn boot_them_all() {
    let kernel = resources::kernel("cloud").unwrap();
    let extras = Extras::Virtio { force_legacy: false };
    let initrd = resources::initrd(&std::env::temp_dir(), "cloud", extras).unwrap();
    for (name, has_disk, has_card) in BOOTED {
        let folder = std::env::temp_dir().join(format!("command-line-{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        furnish(&folder, &kernel);
        let io = if *has_disk { "io=write" } else { "" };
        let own = format!("-initrd {} -append 'console=ttyS0 quiet {io}'", initrd.display());
        let program = process::program(Name::Qemu).unwrap();
        let mut shell = Command::new("sh");
        shell.current_dir(&folder).arg("-c");
        shell.arg(format!(
            "exec {} {} {own}",
            program.get_program().display(),
            words(name)
        ));
        let (status, said) = Process::start(shell).unwrap().end().unwrap();
        let report = Report::parse(&said);
        assert!(report.is_complete(), "{name}: {}", tests::guest::tail(&said));
        assert_eq!(status.code(), Some(0), "{name}");
        let io = report.section("io").iter().any(|line| line == "same");
        assert_eq!(io, *has_disk, "{name}: {:?}", report.section("io"));
        let carrier = report.section("net eth0").iter().any(|line| line == "carrier 1");
        assert_eq!(carrier, *has_card, "{name}: {:?}", report.section("net eth0"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
