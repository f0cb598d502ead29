//! Does KVM run a guest's kernel code in hardware here, or interpret it?
//!
//! Some hosts offer a `/dev/kvm` that emulates ring 0 at about a microsecond an instruction. A stock kernel does not come up there in any
//! useful time. A short loop tells the two apart.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::KvmError;
use crate::memory::GuestMemory;

/// Where the loop is put: the page at 4 KiB, before anything else lives there.
const CODE: GuestAddress = GuestAddress(0x1000);
/// The port whose write ends the loop.
const END_PORT: u8 = 0x80;
/// Turns of the loop, two instructions each.
const TURNS: u32 = 500;
/// The loop is run at most this often, and the fastest run counts: slow ones may only be the host's scheduler.
const ATTEMPTS: u32 = 20;
/// Before another attempt, so that they do not all fall into one busy moment of the host.
const PAUSE: Duration = Duration::from_millis(1);
/// What separates hardware (about 1 ns an instruction; up to 40 ns where the whole host is emulated) from interpretation (about 1000 ns).
const INTERPRETED: Duration = Duration::from_nanos(250);

/// `mov ecx, TURNS; again: dec ecx; jnz again; out END_PORT, al; hlt`.
fn code() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xe6, END_PORT, 0xf4]);
    code
}

/// How this host's KVM runs ring 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring0 {
    /// The processor runs it.
    Hardware {
        /// Time for one instruction of the loop.
        instruction: Duration,
    },
    /// KVM interprets it, instruction by instruction.
    Interpreted {
        /// Time for one instruction of the loop.
        instruction: Duration,
    },
    /// The loop did not end where it should.
    Broken,
}

/// What to tell the user.
impl fmt::Display for Ring0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ADVICE: &str = "use a host whose processor offers VT-x or AMD-V to this system";
        match self {
            Self::Hardware { instruction } => {
                write!(
                    f,
                    "guest kernel code: runs in hardware ({instruction:.1?} an instruction of a loop)"
                )
            }
            Self::Interpreted { instruction } => write!(
                f,
                "guest kernel code: this host's KVM interprets it ({instruction:.1?} an instruction) and cannot boot a stock kernel; {ADVICE}"
            ),
            Self::Broken => write!(
                f,
                "guest kernel code: a short loop did not run through, so this host's KVM cannot boot a kernel; {ADVICE}"
            ),
        }
    }
}

/// Runs the loop on `vcpu`, whose registers are changed, and overwrites a few bytes of `memory`: for a machine that has not started yet.
///
/// # Errors
/// What KVM refused.
pub fn ring0(vcpu: &mut VcpuFd, memory: &GuestMemory) -> Result<Ring0, KvmError> {
    if memory.write_slice(&code(), CODE).is_err() {
        return Ok(Ring0::Broken);
    }
    let sregs = flat_protected_mode(vcpu.get_sregs().map_err(KvmError::at("read system registers"))?);
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        vcpu.set_sregs(&sregs).map_err(KvmError::at("set system registers"))?;
        let regs = kvm_regs {
            rip: CODE.0,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(KvmError::at("set registers"))?;
        let start = Instant::now();
        if !matches!(vcpu.run(), Ok(VcpuExit::IoOut(port, _)) if port == u16::from(END_PORT)) {
            return Ok(Ring0::Broken);
        }
        fastest = fastest.min(start.elapsed() / (2 * TURNS));
        finish_io(vcpu);
        if fastest < INTERPRETED {
            return Ok(Ring0::Hardware { instruction: fastest });
        }
        thread::sleep(PAUSE);
    }
    Ok(Ring0::Interpreted { instruction: fastest })
}

/// Lets KVM complete the access that it left for, without running on: only then do register writes stick.
pub(crate) fn finish_io(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    // The call can only say EINTR.
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

/// 32-bit protected mode with flat segments and no paging: every KVM runs it in hardware, old ones real mode not.
fn flat_protected_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    let segment = |type_, selector| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0xb, 0x8);
    let data = segment(0x3, 0x10);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 |= 1;
    sregs
}
