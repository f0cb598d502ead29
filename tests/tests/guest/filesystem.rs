//! A disk in use: file systems made, filled, checked and trimmed, drivers unbound and machines reset while it works, and nothing lost.
//!
//! What the guests do is in resources/jobs/filesystem.sh.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::checksum::md5_of_file;
use tests::guest::Ended;
use tests::resources::{self, Extras};
use tests::{guest, qemu};
use vmm::machine::Outcome;

use crate::boot::run;

const MIB: u64 = 1 << 20;

/// What the guests write into their files (resources/jobs/filesystem.sh).
const FILES: u64 = 200 * MIB;

/// An image that ends with the test.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("filesystem-{name}.img"));
        File::create(&path).unwrap().set_len(512 * MIB).unwrap();
        Self(path)
    }

    /// How much of it takes space on the host, in bytes.
    fn allocated(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().blocks() * 512
    }

    fn md5(&self) -> String {
        md5_of_file(&self.0).unwrap()
    }

    fn option(&self, more: &str) -> String {
        format!("path={},format=raw{more}", self.0.display())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run_job(kernel: &str, force_legacy: bool, job: &str, image: &Image, options: &str) -> Ended {
    run(guest::with_job(kernel, force_legacy, job)
        .unwrap()
        .device("virtio-blk-pci", image.option(options)))
}

fn fill_and_trim(kernel: &str, force_legacy: bool) {
    let image = Image::new(&format!("{kernel}-{force_legacy}"));
    let filled = run_job(kernel, force_legacy, "fill", &image, ",discard=unmap");
    filled.report.assert_said(&[
        "mke2fs 0",
        "mounted",
        "written 50",
        "mounted again",
        "remounted same",
        "e2fsck 0",
    ]);
    let full = image.allocated();
    assert!(full > FILES, "{full}");
    let trimmed = run_job(kernel, force_legacy, "trim", &image, ",discard=unmap");
    trimmed
        .report
        .assert_said(&["mounted", "rebooted same", "fstrim 0", "e2fsck 0"]);
    let left = image.allocated();
    assert!(left + FILES < full, "{full} before fstrim, {left} after");
}

each_kernel! {
    file_system_keeps_its_files_and_gives_space_back(kernel) {
        fill_and_trim(kernel, false);
    }

    file_system_keeps_its_files_and_gives_space_back_by_the_legacy_driver(kernel) {
        fill_and_trim(kernel, true);
    }
}

#[test]
fn a_read_only_disk_is_read_and_never_written() {
    let image = Image::new("readonly");
    let file = File::options().write(true).open(&image.0).unwrap();
    file.set_len(16 * MIB).unwrap();
    for sector in 0..16 * MIB / 512 {
        file.write_all_at(&sector.to_le_bytes(), sector * 512).unwrap();
    }
    let sum = image.md5();
    for force_legacy in [false, true] {
        let ended = run_job("cloud", force_legacy, "readonly", &image, ",readonly=on");
        let read = format!("{sum}  -");
        ended
            .report
            .assert_said(&["sysfs 1", "blockdev 1", &read, "dd 1", "dd after setrw 1"]);
        assert_eq!(image.md5(), sum);
    }
}

#[test]
fn the_driver_leaves_a_busy_disk_and_comes_back_100_times() {
    for force_legacy in [false, true] {
        let image = Image::new(&format!("unbind-{force_legacy}"));
        let report = run_job("cloud", force_legacy, "unbind", &image, "").report;
        report.assert_said(&["bound 100", "same"]);
        let complaint = report
            .section("job")
            .iter()
            .find(|line| line.contains("after") || line.contains("failed"));
        assert_eq!(complaint, None);
    }
}

#[test]
fn the_machine_is_reset_while_the_disk_is_busy() {
    for force_legacy in [false, true] {
        let image = Image::new(&format!("reboot-{force_legacy}"));
        let ended = run_job("cloud", force_legacy, "reboot", &image, "");
        assert_eq!(ended.outcome, Outcome::PowerOff);
        assert_eq!(ended.console.matches("resetting under load").count(), 1);
        ended.report.assert_said(&["second boot", "dd 0"]);
    }
}

fn qemu_img(arguments: &[&str]) -> String {
    let program = resources::variable(resources::QEMU_IMG).unwrap();
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {words}");
    words
}

/// Each sector holds its number, eight bytes wide, again and again.
fn numbered(image: &Image) {
    let sectors = (0..64 * MIB / 512).flat_map(|sector: u64| sector.to_le_bytes().repeat(64));
    std::fs::write(&image.0, sectors.collect::<Vec<u8>>()).unwrap();
}

#[test]
fn a_qcow2_image_goes_to_a_guest_and_comes_back_sound() {
    for force_legacy in [false, true] {
        let (raw, qcow2) = (Image::new("qcow2-source"), Image::new("qcow2-itself"));
        numbered(&raw);
        let (source, image) = (raw.0.to_str().unwrap(), qcow2.0.to_str().unwrap());
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", source, image]);
        let config = guest::with_job("cloud", force_legacy, "qcow2").unwrap();
        let disk = format!("path={image},format=qcow2,discard=unmap");
        let ended = run(config.device("virtio-blk-pci", disk));
        let read = format!("{}  -", raw.md5());
        ended.report.assert_said(&[&read, "dd 0", "blkdiscard 0"]);

        let words = qemu_img(&["check", "-f", "qcow2", image]);
        assert!(words.contains("No errors were found"), "{words}");
        let expected: Vec<u8> = b"block 7\n".repeat(512 << 10);
        let file = File::options().write(true).open(&raw.0).unwrap();
        file.write_all_at(&expected, MIB).unwrap();
        file.write_all_at(&[0; MIB as usize], 5 * MIB).unwrap();
        let back = Image::new("qcow2-back");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, back.0.to_str().unwrap()]);
        assert_eq!(back.md5(), raw.md5());
    }
}

/// The blocks that a guest's console says are on the disk.
fn announced(console: &str) -> Vec<u64> {
    let number = |line: &str| line.trim_end().strip_prefix("synced ")?.parse().ok();
    console.lines().filter_map(number).collect()
}

/// Waits for the guest's announcement of block `until`, ends the program, and returns all of the console.
fn terminate_after(until: u64, image: &Path) -> String {
    let initrd = resources::initrd(&std::env::temp_dir(), "cloud", Extras::Tools { force_legacy: false });
    let mut command = Command::new(resources::program().unwrap());
    command
        .arg("run")
        .arg(resources::kernel("cloud").unwrap())
        .arg("--initrd")
        .arg(initrd.unwrap());
    command.args(["--memory", "512M", "--append", "quiet console=ttyS0 job=fsync"]);
    command
        .arg("--disk")
        .arg(format!("path={},format=raw", image.display()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut console = Vec::new();
    while !announced(&String::from_utf8_lossy(&console)).contains(&until) {
        assert_ne!(
            output.read_until(b'\n', &mut console).unwrap(),
            0,
            "{}",
            String::from_utf8_lossy(&console)
        );
    }
    // SAFETY: kill has no memory preconditions.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    output.read_to_end(&mut console).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    String::from_utf8_lossy(&console).into_owned()
}

#[test]
fn what_the_guest_synced_is_in_the_image_after_sigterm() {
    let image = Image::new("sigterm");
    let synced = announced(&terminate_after(5, &image.0));
    assert!(synced.len() >= 6, "{synced:?}");
    let file = File::open(&image.0).unwrap();
    for block in synced {
        let line = format!("block {block}\n").into_bytes();
        let mut data = vec![0; MIB as usize];
        file.read_exact_at(&mut data, block * MIB).unwrap();
        assert!(data.iter().eq(line.iter().cycle().take(data.len())), "block {block}");
    }
}

/// lspci's lines without what differs from run to run: command and latency timer, and where the BARs are. QEMU's ACPI tables
/// declare a hot-plug slot for each device, where lspci gets its "Physical Slot" from; ours declare none.
fn comparable(lspci: &[String]) -> Vec<String> {
    let bytes_aside = |row: &str, from: usize, to: usize, line: &str| {
        line.strip_prefix(row).filter(|rest| rest.starts_with(' ')).map(|rest| {
            let bytes = rest.split_whitespace().enumerate();
            let bytes = bytes.map(|(index, byte)| if (from..to).contains(&index) { "--" } else { byte });
            format!("{row} {}", bytes.collect::<Vec<_>>().join(" "))
        })
    };
    let comparable = |line: &String| {
        let text = line.trim_start();
        if ["Control:", "Latency:", "Physical Slot:"]
            .iter()
            .any(|name| text.starts_with(name))
        {
            return None;
        }
        if let Some((region, rest)) = text
            .split_once(" at ")
            .filter(|(region, _)| region.starts_with("Region"))
        {
            let (_, what) = rest.split_once(' ').unwrap_or_default();
            return Some(format!("{region} at somewhere {what}"));
        }
        // The command, then the latency timer; then the base addresses.
        bytes_aside("00:", 4, 6, line)
            .and_then(|line| bytes_aside("00:", 13, 14, &line))
            .or_else(|| bytes_aside("10:", 0, 16, line))
            .or_else(|| bytes_aside("20:", 0, 8, line))
            .or_else(|| Some(line.clone()))
    };
    lspci.iter().filter_map(comparable).collect()
}

#[test]
fn lspci_says_of_the_disk_what_it_says_under_qemu() {
    let image = Image::new("lspci");
    for (force_legacy, option) in [
        (false, ""),
        (true, ""),
        (false, ",disable-legacy=on"),
        (false, ",disable-modern=on"),
    ] {
        let config = guest::with_job("cloud", force_legacy, "lspci").unwrap();
        let drive = format!("if=none,id=d0,format=raw,file={}", image.0.display());
        let device = format!("virtio-blk-pci,drive=d0{option}");
        let theirs = qemu::run(&config, &["-drive", &drive, "-device", &device]).unwrap();
        let ours = run(config.device("virtio-blk-pci", image.option(option))).report;
        assert!(ours.section("job").len() > 16, "{:?}", ours.section("job"));
        assert_eq!(
            comparable(ours.section("job")),
            comparable(theirs.section("job")),
            "{option}"
        );
    }
}
