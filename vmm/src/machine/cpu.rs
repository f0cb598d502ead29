//! The thread of one virtual CPU: enters the guest and answers what it comes out for.

use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use super::control::{Control, Gate, Pass};
use super::stats::{ExitCounters, ExitKind};
use super::{Outcome, Shared};
use crate::kvm::KvmError;
use crate::kvm::probe::finish_io;
use crate::kvm::vcpu::{Kick, Vcpu};

/// How a CPU came out of the guest.
enum Pause {
    /// It may go in again.
    None,
    /// It must look at the gate first.
    AtGate,
}

/// Runs `vcpu` until the machine is over. Returns it, so that kicks stay valid until the thread was joined.
pub(super) fn run(mut vcpu: Vcpu, shared: &Arc<Shared>, counters: &ExitCounters) -> Vcpu {
    let control = &shared.remote.control;
    let _guard = EndOnPanic(control);
    // SAFETY: the CPU is returned to whoever joins this thread, and the control forgets its kicks before.
    let kick = unsafe { Kick::for_this_thread(&mut vcpu) };
    // SAFETY: as above.
    control.add_kick(unsafe { Kick::for_this_thread(&mut vcpu) });
    let mut last = Pass::default();
    while let Gate::Run(pass) = control.gate() {
        kick.clear();
        if let Err(error) = catch_up(&mut vcpu, shared, std::mem::replace(&mut last, pass), pass) {
            control.end(Outcome::Failed(error.to_string()));
            continue;
        }
        shared.first_run.get_or_init(std::time::Instant::now);
        while let Pause::None = enter(&mut vcpu, shared, counters) {}
    }
    vcpu
}

/// Does what became necessary since the last pass through the gate.
fn catch_up(vcpu: &mut Vcpu, shared: &Shared, last: Pass, now: Pass) -> Result<(), KvmError> {
    if now.epoch != last.epoch {
        start_over(vcpu, shared)?;
    } else if now.pauses != last.pauses {
        vcpu.tell_of_pause();
    }
    if now.nmis != last.nmis {
        vcpu.inject_nmi()?;
    }
    Ok(())
}

fn start_over(vcpu: &mut Vcpu, shared: &Shared) -> Result<(), KvmError> {
    finish_io(vcpu.fd());
    let entry = shared.entry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vcpu.reset(entry.as_ref().filter(|_| vcpu.index() == 0))
}

/// Enters the guest once.
fn enter(vcpu: &mut Vcpu, shared: &Shared, counters: &ExitCounters) -> Pause {
    let board = shared.board();
    let failed = |reason: String| {
        shared.remote.control.end(Outcome::Failed(reason));
        Pause::AtGate
    };
    let index = vcpu.index();
    let kind = match vcpu.fd().run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            board.read_port(port, data);
            ExitKind::PortRead
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            counters.count(ExitKind::PortWrite);
            return match board.write_port(port, data) {
                None => Pause::None,
                Some(request) => {
                    shared.remote.request(request);
                    Pause::AtGate
                }
            };
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            board.read_memory(address, data);
            ExitKind::MmioRead
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            board.write_memory(address, data);
            ExitKind::MmioWrite
        }
        Ok(VcpuExit::Shutdown) => {
            shared.remote.triple_fault();
            return Pause::AtGate;
        }
        Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => ExitKind::Other,
        Ok(VcpuExit::FailEntry(reason, _)) => {
            return failed(format!(
                "CPU {index}: the processor refused to enter the guest (hardware reason {reason:#x})"
            ));
        }
        Ok(VcpuExit::InternalError) => return failed(internal_error(vcpu)),
        Ok(other) => return failed(format!("CPU {index}: unexpected exit from the guest: {other:?}")),
        Err(error) => match error.errno() {
            libc::EINTR => {
                counters.count(ExitKind::Interrupted);
                return Pause::AtGate;
            }
            libc::EAGAIN => ExitKind::Other,
            _ => return failed(format!("CPU {index}: KVM_RUN: {error}")),
        },
    };
    counters.count(kind);
    Pause::None
}

/// KVM_EXIT_INTERNAL_ERROR: most often an instruction that KVM cannot emulate.
fn internal_error(vcpu: &mut Vcpu) -> String {
    let index = vcpu.index();
    let fd = vcpu.fd();
    // SAFETY: after this exit the kernel has filled in the `internal` member of the union.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let rip = fd.get_regs().map_or(0, |regs| regs.rip);
    format!("CPU {index}: KVM gave up at {rip:#x} (internal error {suberror}); the host's KVM cannot run this guest")
}

/// A panic of a CPU thread must not leave a machine that seems to run.
struct EndOnPanic<'a>(&'a Control);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Outcome::Failed(
                "a CPU thread of Innkeeper panicked; this is a defect in Innkeeper".into(),
            ));
            self.0.lose_cpu();
        }
    }
}
