//! What a machine costs its host, by the kernel's own counters: exits by KVM's, system calls and kicks by tracing.

use std::fs;
use std::ops::Sub;
use std::path::{Path, PathBuf};

use xtask::error::During;
use xtask::{Error, Result};

use super::trace;

/// KVM's own counters of one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// All exits.
    pub all: u64,
    /// Those for ports.
    pub port: u64,
    /// Those for memory-mapped registers.
    pub mmio: u64,
    /// Interrupts injected.
    pub injections: u64,
}

impl Exits {
    /// Of the machine that the process has. Zero where KVM counts nothing.
    ///
    /// # Errors
    /// The process has no machine.
    pub fn of(process: u32) -> Result<Self> {
        let root = Path::new("/sys/kernel/debug/kvm");
        let prefix = format!("{process}-");
        let folder = fs::read_dir(root)
            .during(|| format!("listing {}", root.display()))?
            .filter_map(std::result::Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .ok_or_else(|| Error::Other(format!("{} has no machine of process {process}", root.display())))?
            .path();
        let counter = |name: &str| {
            fs::read_to_string(folder.join(name))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        Ok(Self {
            all: counter("exits"),
            port: counter("io_exits"),
            mmio: counter("mmio_exits"),
            injections: counter("irq_injections"),
        })
    }
}

/// What a program and its guest have done since tracing began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Exits from the guest.
    pub exits: u64,
    /// Writes of the guest to registers of devices: once set up, a driver writes nothing but kicks.
    pub kicks: u64,
    /// System calls of the program, all threads.
    pub calls: u64,
    /// Those of them that say what becomes of memory, such as that it goes back to the host.
    pub advice: u64,
    /// Nanoseconds of CPU time, system calls included, that did not go into running the guest: threads of the program that run no
    /// CPU, and those that the kernel has for it (vhost). Where each of them has a CPU, nothing is faster than they are.
    pub time: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(before.exits),
            kicks: self.kicks.saturating_sub(before.kicks),
            calls: self.calls.saturating_sub(before.calls),
            advice: self.advice.saturating_sub(before.advice),
            time: self.time.saturating_sub(before.time),
        }
    }
}

/// Counts by histograms of the kernel's tracing, which cost the counted nothing but an increment.
#[derive(Debug)]
pub struct Counter {
    folder: PathBuf,
}

const CALLS: &str = "events/raw_syscalls/sys_enter";
const ADVICE: [&str; 2] = [
    "events/syscalls/sys_enter_madvise",
    "events/syscalls/sys_enter_process_madvise",
];
const WRITES: &str = "events/kvm/kvm_mmio";
const PORTS: &str = "events/kvm/kvm_pio";

/// What is counted, and by what. Local APICs and IOAPICs are no devices of ours; ports below 0xc000 belong to the chipset.
const HISTOGRAMS: [(&str, &str); 5] = [
    (CALLS, "hist:keys=common_pid:size=4096"),
    (ADVICE[0], "hist:keys=common_pid"),
    (ADVICE[1], "hist:keys=common_pid"),
    (
        WRITES,
        "hist:keys=common_pid if type == 2 && (gpa < 0xfec00000 || gpa > 0xfeefffff)",
    ),
    (PORTS, "hist:keys=common_pid if rw == 1 && port >= 0xc000"),
];

impl Counter {
    /// Counts from now on.
    ///
    /// # Errors
    /// This kernel has no such tracing, or not for this user.
    pub fn new() -> Result<Self> {
        let folder = trace::instances()?.join(format!("innkeeper-counter-{}", std::process::id()));
        fs::create_dir(&folder).during(|| format!("making {}", folder.display()))?;
        let counter = Self { folder };
        for (event, histogram) in HISTOGRAMS {
            let path = counter.folder.join(event).join("trigger");
            fs::write(&path, histogram).during(|| format!("writing '{histogram}' to {}", path.display()))?;
        }
        Ok(counter)
    }

    /// What the process has done so far. Threads that have ended are left out.
    ///
    /// # Errors
    /// It is gone, or its machine.
    pub fn read(&self, process: u32) -> Result<Counts> {
        let path = format!("/proc/{process}/task");
        let threads: Vec<String> = fs::read_dir(&path)
            .during(|| format!("listing {path}"))?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let sum = |event: &str| -> Result<u64> {
            let path = self.folder.join(event).join("hist");
            let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
            Ok(text
                .lines()
                .filter_map(bucket)
                .filter(|(thread, _)| threads.iter().any(|known| known == thread))
                .map(|(_, hits)| hits)
                .sum())
        };
        Ok(Counts {
            exits: Exits::of(process)?.all,
            kicks: sum(WRITES)? + sum(PORTS)?,
            calls: sum(CALLS)?,
            advice: sum(ADVICE[0])? + sum(ADVICE[1])?,
            time: own_time(process, &threads)?,
        })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        for (event, histogram) in HISTOGRAMS {
            // What stays costs a little until the next boot.
            let _ = fs::write(self.folder.join(event).join("trigger"), format!("!{histogram}"));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The CPU time of the program's `threads` that run no CPU, and of the kernel's for it, in nanoseconds.
fn own_time(process: u32, threads: &[String]) -> Result<u64> {
    let name = |task: &str| fs::read_to_string(format!("{task}/comm")).unwrap_or_default();
    let own = threads.iter().map(|thread| format!("/proc/{process}/task/{thread}"));
    let own = own.filter(|task| !runs_a_cpu(&name(task)));
    // Linux, drivers/vhost/vhost.c, names its worker so.
    let workers = format!("vhost-{process}");
    let tasks = fs::read_dir("/proc").during(|| "listing /proc")?;
    let of_kernel = tasks
        .filter_map(std::result::Result::ok)
        .map(|task| task.path().to_string_lossy().into_owned())
        .filter(|task| name(task).trim_end() == workers);
    // A thread that is gone has done nothing since.
    let times = own.chain(of_kernel).filter_map(|task| {
        let text = fs::read_to_string(format!("{task}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(times.sum())
}

/// Whether a thread of this name runs a CPU of a guest, in QEMU (`debug-threads=on`) or here.
fn runs_a_cpu(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("cpu") || name.starts_with("vcpu")
}

/// A line of a histogram: `{ common_pid:        123 } hitcount:         45`.
fn bucket(line: &str) -> Option<(&str, u64)> {
    let (key, hits) = line.strip_prefix("{ common_pid:")?.split_once('}')?;
    let hits = hits.trim().strip_prefix("hitcount:")?;
    Some((key.trim(), hits.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hits_of_a_thread_are_read() {
        assert_eq!(
            bucket("{ common_pid:        123 } hitcount:         45"),
            Some(("123", 45))
        );
        assert_eq!(bucket("    Hits: 4502"), None);
    }

    #[test]
    fn threads_that_run_cpus_are_told_from_others() {
        assert!(runs_a_cpu("CPU 0/KVM") && runs_a_cpu("cpu0"));
        assert!(!runs_a_cpu("io0") && !runs_a_cpu("innkeeper"));
    }

    #[test]
    fn what_was_done_before_is_taken_away() {
        let counts = |exits, kicks, calls, advice, time| Counts {
            exits,
            kicks,
            calls,
            advice,
            time,
        };
        assert_eq!(counts(9, 8, 7, 6, 5) - counts(1, 2, 3, 4, 5), counts(8, 6, 4, 2, 0));
    }
}
