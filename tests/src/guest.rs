//! Boots a guest in this process, through the library, and collects what it says.

use std::io::{Read, Write};
use std::time::Duration;

use vmm::config::MachineConfig;
use vmm::machine::console::Console;
use vmm::machine::{Machine, Outcome, Stats};

use crate::Error;
use crate::report::Report;
use crate::resources::{self, Extras};

/// A guest that has not said anything for so long hangs. Generous: the emulated lab shares two cores.
const SILENCE: Duration = Duration::from_secs(90);

/// How a guest ended and what it said.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// All of the console.
    pub console: String,
    /// The console, taken apart.
    pub report: Report,
    /// What it cost.
    pub stats: Stats,
}

/// The configuration of a guest that reports about itself on `kernel` (see [`resources::kernel`]), with words added to the command line.
///
/// # Errors
/// A part of it is missing.
pub fn reporting(kernel: &str, words: &str) -> Result<MachineConfig, Error> {
    reporting_with(kernel, Extras::None, words)
}

/// The same with more in its initial RAM disk.
///
/// # Errors
/// A part of it is missing.
pub fn reporting_with(kernel: &str, extras: Extras, words: &str) -> Result<MachineConfig, Error> {
    let initrd = resources::initrd(&std::env::temp_dir(), kernel, extras)?;
    Ok(MachineConfig::new(resources::kernel(kernel)?)
        .initrd(initrd)
        .command_line(format!("console=ttyS0 {words}"))
        .memory(256 << 20))
}

/// Runs a guest to its end.
///
/// # Errors
/// It could not be started, or fell silent.
pub fn run(config: MachineConfig) -> Result<Ended, Error> {
    let (serial, mut stream) = Console::stream()?;
    stream.set_read_timeout(Some(SILENCE))?;
    let guest = Machine::new(config, serial)?.start()?;
    let mut bytes = Vec::new();
    let silent = listen(&mut stream, &mut bytes).is_err();
    let console = String::from_utf8_lossy(&bytes).into_owned();
    if silent {
        guest.stop();
        let _ = guest.wait();
        return Err(format!("the guest fell silent; its last words:\n{}", tail(&console)).into());
    }
    let (outcome, stats) = guest.wait();
    let report = Report::parse(&console);
    Ok(Ended {
        outcome,
        console,
        report,
        stats,
    })
}

/// Collects what the guest says until its console closes. With `INNKEEPER_ECHO` in the environment it is printed as it comes.
fn listen(stream: &mut impl Read, heard: &mut Vec<u8>) -> std::io::Result<()> {
    let echo = std::env::var_os("INNKEEPER_ECHO").is_some();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        heard.extend_from_slice(bytes);
        if echo {
            std::io::stderr().write_all(bytes)?;
        }
    }
}

/// The last lines of a console.
pub fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
