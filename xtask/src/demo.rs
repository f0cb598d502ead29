//! `cargo xtask demo`: Debian's own kernel boots with a device of each kind, draws its buses and powers off.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use xtask::initramfs::{Initramfs, LOAD_MODULES};
use xtask::kernel::{DebianKernel, Flavour};
use xtask::lab::{self, Failure, Job, Lab, process, scratch};
use xtask::modules::ModuleTree;
use xtask::{Error, Result, resources};

use crate::cargo;
use crate::lab_command::{exit_status, quoted, to_standard_output};
use crate::way::{self, Way};

/// A boot takes seconds; one that takes minutes has hung.
const LIMIT: Duration = Duration::from_secs(150);

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
echo 1 > /proc/sys/kernel/printk
LOAD_MODULES
echo
echo "This is Linux $(uname -r), started by Innkeeper. CPUs: $(nproc), memory: $(($(sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024)) MiB."
echo
echo "/sys/bus/pci                                                                  /sys/bus/virtio"
for path in /sys/bus/pci/devices/*; do
	function=${path##*:00:}
	row="  $(lspci -nn -s $function 2>/dev/null | sed 's/Red Hat, Inc. //; s/Intel Corporation //; s/ (rev .*//')"
	for device in $path/virtio*; do
		[ -e $device ] || continue
		driver=$(basename $(readlink -f $device/driver))
		row="$(printf '%-74.74s ── %s, driver %s' "$row" ${device##*/} $driver)"
	done
	echo "$row"
done
echo
echo "What the drivers made of them:"
cd /sys/class
for file in block/vda/size net/eth0/address misc/hw_random/rng_current virtio-ports/*/name; do
	[ -e $file ] && echo "  /sys/class/$file: $(cat $file)"
done
echo
echo "Powering off."
poweroff -f
"#;

/// One device of each kind that needs nothing of the host.
const DEVICES: [&str; 10] = [
    "--disk",
    "null-co://,size=64M",
    "--net",
    "hub=0",
    "--port",
    "name=org.example.agent,null=on",
    "--balloon",
    "--rng",
    "--memory",
    "512M",
];

/// Boots Debian's own, unmodified kernel with a device of each kind; it draws its buses and powers off.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Use the lab even where this host's KVM could run the guest.
    #[arg(long)]
    lab: bool,
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built or fetched.
pub fn demo(args: &DemoArgs) -> Result<u8> {
    let started = Instant::now();
    println!("building innkeeper");
    let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
    let kernel = DebianKernel::fetch(Flavour::Cloud)?;
    let guest = guest(&kernel)?;
    let way = way::decide(&innkeeper, args.lab)?;
    println!("booting Debian's kernel {} ({way})\n", kernel.release);
    let prepared = started.elapsed();
    let status = match way {
        Way::Host => on_host(&innkeeper, &kernel.image, &guest)?,
        Way::Lab(_) => in_lab(&innkeeper, &kernel.image, &guest)?,
    };
    let seconds = |duration: Duration| duration.as_secs_f32();
    let (build, guest) = (seconds(prepared), seconds(started.elapsed().saturating_sub(prepared)));
    if status == 0 {
        println!("\nThe guest powered off. Building and fetching took {build:.1} s, the guest {guest:.1} s.");
    } else {
        println!("\nThe guest failed with status {status} after {guest:.1} s.");
    }
    Ok(status)
}

/// busybox, lspci, the drivers, and a script that uses them.
fn guest(kernel: &DebianKernel) -> Result<Initramfs> {
    let tree = ModuleTree::open(&kernel.modules)?;
    let drivers: Vec<&str> = resources::VIRTIO_DRIVERS
        .into_iter()
        .filter(|name| tree.has(name))
        .collect();
    let mut contents = Initramfs::new();
    contents.copy(&resources::tools()?, "/")?.busybox(&lab::busybox()?)?;
    contents.modules(&tree, &drivers)?;
    contents.script("/init", &INIT.replace("LOAD_MODULES", LOAD_MODULES));
    Ok(contents)
}

fn on_host(innkeeper: &Path, kernel: &Path, guest: &Initramfs) -> Result<u8> {
    let archive: File = scratch::unlinked_file("demo")?;
    guest.write_to(&mut &archive)?;
    let mut command = Command::new(innkeeper);
    command
        .arg("run")
        .arg(kernel)
        .args(["--initrd", &scratch::inherited_path(&archive)])
        .args(DEVICES);
    match process::watch(&mut command, &[&archive], LIMIT, &mut to_standard_output)? {
        process::Ended::TimedOut => Err(timed_out()),
        process::Ended::Exited(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
    }
}

fn in_lab(innkeeper: &Path, kernel: &Path, guest: &Initramfs) -> Result<u8> {
    let mut lab = Lab::new()?;
    lab.limit = LIMIT;
    lab.contents
        .program(innkeeper, "/bin/innkeeper")?
        .copy(kernel, "/vmlinuz")?
        .bytes("/demo.cpio", guest.to_bytes()?);
    let job = [Job {
        name: "demo".into(),
        script: DEVICES
            .iter()
            .fold("innkeeper run /vmlinuz --initrd /demo.cpio".to_owned(), |line, word| {
                line + " " + &quoted(word)
            }),
    }];
    let mut outcome = lab.run(&job, &mut to_standard_output)?;
    if !lab.emulator.cured && matches!(outcome.failure, Some(Failure::TimedOut(_))) {
        println!(
            "\nThe guest hung, as guests in this QEMU now and then do (a known fault of its emulated SVM). Once more.\n"
        );
        outcome = lab.run(&job, &mut to_standard_output)?;
    }
    match outcome.failure {
        Some(Failure::TimedOut(_)) => Err(timed_out()),
        Some(Failure::Died(words)) => Err(Error::Lab(words)),
        None => Ok(exit_status(&outcome)),
    }
}

fn timed_out() -> Error {
    Error::Other(format!("the guest did not end within {} s", LIMIT.as_secs()))
}
