//! Watching a program from outside, by the kernel's own tracing: no system call of it is slowed by a debugger, and all times
//! come from one clock.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use xtask::error::During;
use xtask::{Error, Result, tool};

const FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The ioctl that enters a guest.
const KVM_RUN: &str = "0xae80";

/// What is recorded beside the exec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// Nothing.
    ExecOnly,
    /// Calls of KVM_RUN; recording ends with the first that is not the main thread's.
    Runs,
    /// As [`Self::Runs`], and every system call.
    Calls,
}

/// A trace of one program, with buffers of its own. They go when it is dropped.
#[derive(Debug)]
pub struct Trace {
    folder: PathBuf,
    record: Record,
}

impl Trace {
    /// Sets one up. The next program of [`Self::command`] is what it records.
    ///
    /// # Errors
    /// This kernel traces nothing, or not for this user.
    pub fn new(record: Record) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("innkeeper-{}-{number}", std::process::id());
        let folder = instances()?.join(name);
        fs::create_dir(&folder).during(|| format!("making {}", folder.display()))?;
        let trace = Self { folder, record };
        trace.set("trace_clock", "mono")?;
        trace.set("options/event-fork", "1")?;
        trace.set("events/sched/sched_process_exec/enable", "1")?;
        if record != Record::ExecOnly {
            trace.set("events/syscalls/sys_enter_ioctl/filter", &format!("cmd == {KVM_RUN}"))?;
            trace.set("events/syscalls/sys_enter_ioctl/enable", "1")?;
        }
        if record == Record::Calls {
            trace.set("events/raw_syscalls/sys_enter/enable", "1")?;
        }
        Ok(trace)
    }

    /// Whether this kernel can trace for this user.
    pub fn is_possible() -> bool {
        instances().is_ok()
    }

    /// A command that runs this command line under the trace. It dies with the thread that starts it.
    pub fn command(&self, command_line: &[OsString]) -> Command {
        // The shell becomes the program, so their process is one.
        let mut script = String::from("cd \"$0\" && echo $$ > set_event_pid && ");
        if self.record != Record::ExecOnly {
            script.push_str(&format!(
                "echo \"traceoff if cmd == {KVM_RUN} && common_pid != $$\" > events/syscalls/sys_enter_ioctl/trigger && "
            ));
        }
        script.push_str("cd / && exec \"$@\"");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script)
            .arg(&self.folder)
            .args(command_line)
            .stdin(Stdio::null());
        let die_with_parent = || {
            // SAFETY: prctl(PR_SET_PDEATHSIG) only sets an attribute of the calling process and is safe after fork.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes one system call; it allocates nothing and takes no lock between fork and exec.
        unsafe { command.pre_exec(die_with_parent) };
        command
    }

    /// Puts a mark of this moment into the trace.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn mark(&self) -> Result<()> {
        self.set("trace_marker", "here")
    }

    /// Whether recording has ended by itself.
    pub fn has_ended(&self) -> bool {
        fs::read_to_string(self.folder.join("tracing_on")).is_ok_and(|text| text.trim() == "0")
    }

    /// What was recorded from the program's exec on.
    ///
    /// # Errors
    /// It cannot be read, or the exec is not in it.
    pub fn read(&self) -> Result<Recorded> {
        let path = self.folder.join("trace");
        let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
        Recorded::parse(&text).ok_or_else(|| Error::Other(format!("no exec in the trace:\n{text}")))
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value).during(|| format!("writing '{value}' to {}", path.display()))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What stays costs a little memory until the next boot.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The folder where the kernel's tracing keeps separate instances.
///
/// # Errors
/// This kernel traces nothing, or not for this user.
pub fn instances() -> Result<PathBuf> {
    let found = || {
        FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join("instances"))
            .find(|path| path.is_dir())
    };
    if let Some(path) = found() {
        return Ok(path);
    }
    if tool::is_root() {
        // Fails where the kernel has none, which the second look finds out.
        let _ = tool::output(tool::command("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]));
    }
    found().ok_or_else(|| {
        Error::Other("the kernel's tracing (/sys/kernel/tracing) is not there or not permitted; run as root".into())
    })
}

/// Times in microseconds from the exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The first KVM_RUN of any thread.
    pub first_run: Option<u64>,
    /// The first KVM_RUN of a thread that is not the main one.
    pub first_entry: Option<u64>,
    /// System calls before [`Self::first_entry`].
    pub calls: u64,
    /// The mark.
    pub mark: Option<u64>,
}

impl Recorded {
    fn parse(text: &str) -> Option<Self> {
        let mut events = text
            .lines()
            .filter_map(Event::parse)
            .skip_while(|event| event.name != "sched_process_exec:");
        let exec = events.next()?;
        let mut recorded = Self::default();
        for event in events {
            let time = Some(event.time.saturating_sub(exec.time));
            match event.name {
                "sys_enter:" if recorded.first_entry.is_none() => recorded.calls += 1,
                "tracing_mark_write:" => recorded.mark = time,
                name if name.starts_with("sys_ioctl(") => {
                    recorded.first_run = recorded.first_run.or(time);
                    if event.thread != exec.thread {
                        recorded.first_entry = recorded.first_entry.or(time);
                    }
                }
                _ => {}
            }
        }
        Some(recorded)
    }
}

/// One line of a trace: `CPU 0/KVM-1234  [000] .....  12.345678: sys_enter: NR 16 (...)`.
struct Event<'a> {
    thread: u32,
    /// Microseconds.
    time: u64,
    name: &'a str,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (who, what) = line.split_once("] ")?;
        let (thread, _cpu) = who.rsplit_once('[')?;
        let mut words = what.split_whitespace().skip(1);
        let (seconds, fraction) = words.next()?.trim_end_matches(':').split_once('.')?;
        Some(Self {
            thread: thread.trim_end().rsplit_once('-')?.1.parse().ok()?,
            time: seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?,
            name: words.next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
              sh-70      [000] .....     9.999999: sys_enter: NR 59 (1, 2, 3, 4, 5, 6)
       innkeeper-70      [000] .....    10.000000: sched_process_exec: filename=/bin/innkeeper pid=70 old_pid=70
       innkeeper-70      [000] .....    10.000100: sys_enter: NR 12 (0, 0, 0, 0, 0, 0)
       innkeeper-70      [000] .....    10.001000: sys_enter: NR 16 (7, ae80, 0, 0, 0, 0)
       innkeeper-70      [000] .....    10.001001: sys_ioctl(fd: 7, cmd: ae80, arg: 0)
       CPU 0/KVM-72      [001] d..1.    10.002500: sys_enter: NR 16 (7, ae80, 0, 0, 0, 0)
       CPU 0/KVM-72      [001] d..1.    10.002501: sys_ioctl(fd: 7, cmd: ae80, arg: 0)
           xtask-60      [000] .....    11.000000: tracing_mark_write: here
";

    #[test]
    fn times_count_from_the_exec_and_the_probe_is_told_from_the_guest() {
        assert_eq!(
            Recorded::parse(TRACE),
            Some(Recorded {
                first_run: Some(1001),
                first_entry: Some(2501),
                calls: 3,
                mark: Some(1_000_000),
            })
        );
    }

    #[test]
    fn a_trace_without_the_exec_says_nothing() {
        assert_eq!(Recorded::parse("# tracer: nop\n"), None);
    }
}
