//! The inside of the lab: what its Linux finds when it starts, and how it reports.
//!
//! Jobs write to a virtio-serial port, which unlike the serial line is no terminal and carries nothing but their output.
//! Results go to a raw disk: the first block holds text, one line per finished job and a last line when all is written;
//! a tar archive of `/out` follows it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::Job;
use crate::error::{During, Result};
use crate::initramfs::Initramfs;
use crate::modules::ModuleTree;
use crate::tool;

/// The size of the report at the start of the results, and of the blocks in which they are written.
const BLOCK: usize = 4096;

/// The size of the disk for results, in bytes. It is sparse: only what is written takes room.
pub(super) const RESULTS_SIZE: u64 = 2 << 30;

/// The first line on the port begins so.
pub(super) const GREETING: &[u8] = b"innkeeper-lab ";

/// What the lab itself and most jobs need: KVM, virtio, a network interface of its own, the kernel's side of virtio.
const MODULES: [&str; 10] = [
    "kvm-amd",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "tun",
    "tap",
    "vhost_net",
    "vhost_vsock",
    "vsock",
    "brd",
];

const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TMPDIR=/tmp
# The kernel's first root cannot be pivoted away from, which programs that lock themselves in do: go on in a mount of it.
if [ "$1" != again ]; then mount --bind / /root && cd /root && mount --move . / && exec chroot . /init again; fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts pts /dev/pts
mount -t debugfs debug /sys/kernel/debug
for folder in /dev/shm /out /run /tmp; do mount -t tmpfs -o size=80% tmpfs $folder; done
ln -s /proc/self/fd /dev/fd
# A guest may be given more memory than it will touch.
echo 1 > /proc/sys/vm/overcommit_memory
ip link set lo up
for module in $(cat /lib/modules/order); do
  case $module in brd) with="rd_nr=1 rd_size=65536";; *) with=;; esac
  insmod /lib/modules/$module.ko $with
done
# As on a host with udev.
chmod 666 /dev/kvm
tries=0
until [ -c /dev/vport0p1 ] || [ $tries -gt 500 ]; do usleep 10000; tries=$((tries + 1)); done
exec </dev/null >/dev/vport0p1 2>&1
echo "innkeeper-lab $(cut -d' ' -f1 /proc/uptime)"
report() { echo "$1" >> /run/report; dd if=/run/report of=/dev/vda bs=4096 count=1 conv=notrunc,sync,fsync 2>/run/dd; }
cd /
for job in $(cat /jobs/order); do
  sh /jobs/$job
  report "job $job $?"
done
tar -c -f - -C /out . | dd of=/dev/vda bs=4096 seek=1 conv=notrunc 2>/run/dd && sync && report finished
poweroff -f
"#;

/// Packs what the lab's Linux needs, and the jobs, into `contents`.
pub(super) fn furnish(
    contents: &mut Initramfs,
    busybox: &Path,
    modules: &ModuleTree,
    extra: &[String],
    jobs: &[Job],
) -> Result<()> {
    contents.busybox(busybox)?;
    let names: Vec<&str> = MODULES
        .into_iter()
        .filter(|name| modules.has(name))
        .chain(extra.iter().map(String::as_str))
        .collect();
    contents.modules(modules, &names)?;
    contents.directory("/out").directory("/var/run").script("/init", INIT);
    let mut order = String::new();
    for (number, job) in jobs.iter().enumerate() {
        contents.script(&format!("/jobs/{number}"), &job.script);
        order.push_str(&format!("{number}\n"));
    }
    contents.bytes("/jobs/order", order);
    Ok(())
}

/// What the lab's Linux wrote to its disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// The exit status of each job that ended.
    pub(super) statuses: Vec<Option<i32>>,
    /// Whether everything was written.
    pub(super) finished: bool,
}

impl Report {
    /// Reads it from the disk after the emulator has ended.
    pub(super) fn read(results: &mut File, jobs: usize) -> Result<Self> {
        let mut block = [0; BLOCK];
        let read = results.rewind().and_then(|()| results.read_exact(&mut block));
        read.during(|| "reading the lab's results")?;
        let text = block.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self::parse(&String::from_utf8_lossy(text), jobs))
    }

    fn parse(text: &str, jobs: usize) -> Self {
        let mut report = Self {
            statuses: vec![None; jobs],
            finished: false,
        };
        for line in text.lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("finished"), None, None) => report.finished = true,
                (Some("job"), Some(number), Some(status)) => {
                    if let (Ok(number), Ok(status)) = (number.parse::<usize>(), status.parse())
                        && let Some(slot) = report.statuses.get_mut(number)
                    {
                        *slot = Some(status);
                    }
                }
                _ => {}
            }
        }
        report
    }
}

/// Unpacks what the jobs left in `/out` into a folder, made when it is missing.
pub(super) fn unpack_results(results: &File, folder: &Path) -> Result<()> {
    let mut results = results.try_clone().during(|| "reading the lab's results")?;
    results
        .seek(SeekFrom::Start(BLOCK as u64))
        .during(|| "reading the lab's results")?;
    fs::create_dir_all(folder).during(|| format!("making {}", folder.display()))?;
    let mut tar = tool::command("tar");
    tar.args(["-x", "--no-same-owner", "-f", "-", "-C"])
        .arg(folder)
        .stdin(results);
    tool::output(&mut tar).map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_names_the_jobs_that_ended_and_leaves_out_the_one_that_did_not() {
        let report = Report::parse("job 0 0\njob 2 130\nnonsense\njob 9 1\n", 3);
        assert_eq!(
            report,
            Report {
                statuses: vec![Some(0), None, Some(130)],
                finished: false
            }
        );
        assert!(Report::parse("job 0 0\nfinished\n", 1).finished);
    }

    #[test]
    fn an_untouched_disk_reports_nothing() {
        let mut results = super::super::scratch::unlinked_file("report").unwrap();
        results.set_len(1 << 20).unwrap();
        assert_eq!(
            Report::read(&mut results, 1).unwrap(),
            Report {
                statuses: vec![None],
                finished: false
            }
        );
    }
}
