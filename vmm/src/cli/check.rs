//! `innkeeper check`: what this host can do, a line each, with what to do about a "no".

use std::fs::{self, OpenOptions};
use std::io;
use std::process::ExitCode;

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::kvm::probe::{self, Ring0};
use crate::kvm::{self, KvmError, Vm};

/// One thing that was looked at.
struct Finding {
    /// For programs.
    key: &'static str,
    /// For programs.
    value: String,
    /// Guests run without it?
    verdict: Verdict,
    /// For people: what was found, and what to do if it is a "no".
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    /// Something is slower or missing, but guests run.
    Limited,
    No,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Limited => "limited",
            Self::No => "no",
        }
    }
}

/// Prints the findings. The exit status is success when guests run here.
pub fn check(machine_readable: bool) -> ExitCode {
    let mut findings = kvm_findings();
    findings.extend([tun(), vhost_net(), io_uring(), huge_pages(), memory()]);
    for finding in &findings {
        if machine_readable {
            println!("{}={}", finding.key, finding.value);
        } else {
            println!("{:<8} {}", finding.verdict.word(), finding.text);
        }
    }
    let runs = findings.iter().all(|finding| finding.verdict != Verdict::No);
    if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn kvm_findings() -> Vec<Finding> {
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            return vec![
                Finding {
                    key: "kvm",
                    value: "no".into(),
                    verdict: Verdict::No,
                    text: error.to_string(),
                },
                Finding {
                    key: "kvm.ring0",
                    value: "none".into(),
                    verdict: Verdict::No,
                    text: "guest kernel code: cannot run without KVM".into(),
                },
            ];
        }
    };
    let names: Vec<_> = kvm::REQUIRED.iter().map(|(_, name)| *name).collect();
    let text = format!(
        "/dev/kvm: API version {}, up to {} CPUs; {}",
        kvm.get_api_version(),
        kvm.get_max_vcpus(),
        names.join(", ")
    );
    let mut findings = vec![Finding {
        key: "kvm",
        value: "yes".into(),
        verdict: Verdict::Yes,
        text,
    }];
    findings.push(match measure_ring0(&kvm) {
        Ok(ring0) => ring0_finding(ring0),
        Err(error) => Finding {
            key: "kvm.ring0",
            value: "none".into(),
            verdict: Verdict::No,
            text: format!("guest kernel code: {error}"),
        },
    });
    findings
}

/// Measures with a machine of its own, which goes away again.
fn measure_ring0(kvm: &Kvm) -> Result<Ring0, KvmError> {
    let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 21)]) else {
        return Ok(Ring0::Broken);
    };
    let vm = Vm::new(kvm)?;
    vm.map(&memory)?;
    let mut vcpu = vm.fd().create_vcpu(0).map_err(KvmError::at("create a virtual CPU"))?;
    probe::ring0(&mut vcpu, &memory)
}

fn ring0_finding(ring0: Ring0) -> Finding {
    let (value, verdict) = match ring0 {
        Ring0::Hardware { .. } => ("hardware", Verdict::Yes),
        Ring0::Interpreted { .. } => ("interpreted", Verdict::No),
        Ring0::Broken => ("broken", Verdict::No),
    };
    Finding {
        key: "kvm.ring0",
        value: value.into(),
        verdict,
        text: ring0.to_string(),
    }
}

/// Can `path` be opened for reading and writing? `advice` goes with a "no".
fn device(key: &'static str, path: &str, what: &str, advice: &str) -> Finding {
    let (value, verdict, text) = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ("yes", Verdict::Yes, format!("{path}: {what}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
            "no",
            Verdict::Limited,
            format!("{path}: permission denied; ask for access to it, or run as root"),
        ),
        Err(error) => ("no", Verdict::Limited, format!("{path}: {error}; {advice}")),
    };
    Finding {
        key,
        value: value.into(),
        verdict,
        text,
    }
}

fn tun() -> Finding {
    device(
        "tun",
        "/dev/net/tun",
        "network devices can be tap interfaces",
        "modprobe tun, for networks by tap interface",
    )
}

fn vhost_net() -> Finding {
    device(
        "vhost-net",
        "/dev/vhost-net",
        "the host kernel can move packets itself",
        "modprobe vhost_net, for the fastest networks; without it packets go through this program",
    )
}

fn io_uring() -> Finding {
    // struct io_uring_params is 120 bytes; all zeroes asks for the defaults.
    let mut params = [0u8; 120];
    // SAFETY: the kernel reads and writes 120 bytes at the pointer, and returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let (value, verdict, text) = if fd >= 0 {
        // SAFETY: the descriptor was just made and nobody else has it.
        unsafe { libc::close(fd as libc::c_int) };
        ("yes", Verdict::Yes, "io_uring: disks can use it".into())
    } else {
        let error = io::Error::last_os_error();
        let advice = "disks use threads; sysctl kernel.io_uring_disabled=0 or a Linux from 5.10 on offers it";
        ("no", Verdict::Limited, format!("io_uring: {error}; {advice}"))
    };
    Finding {
        key: "io_uring",
        value: value.into(),
        verdict,
        text,
    }
}

fn huge_pages() -> Finding {
    let setting = |name: &str| {
        let text = fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).unwrap_or_default();
        let chosen = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(word, _)| word.to_owned());
        chosen.unwrap_or_else(|| "never".into())
    };
    let (anonymous, shared) = (setting("enabled"), setting("shmem_enabled"));
    let (verdict, advice) = if anonymous == "never" {
        (
            Verdict::Limited,
            "; echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes guests faster",
        )
    } else {
        (Verdict::Yes, "")
    };
    let text = format!("huge pages: transparent {anonymous}, for shared memory {shared}{advice}");
    Finding {
        key: "hugepages",
        value: format!("{anonymous},{shared}"),
        verdict,
        text,
    }
}

fn memory() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        / 1024;
    let (verdict, advice) = if available < 512 {
        (
            Verdict::Limited,
            "; a guest of the default size (512 MiB) may not fit, see --memory",
        )
    } else {
        (Verdict::Yes, "")
    };
    let text = format!("memory: {available} MiB available{advice}");
    Finding {
        key: "memory.available_mib",
        value: available.to_string(),
        verdict,
        text,
    }
}
