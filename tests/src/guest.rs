//! Boots a guest in this process, through the library, collects what it says, and answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vmm::config::MachineConfig;
use vmm::machine::console::Console;
use vmm::machine::remote::Remote;
use vmm::machine::{Machine, Outcome, Running, Stats};

use crate::Error;
use crate::report::Report;
use crate::resources::{self, Extras};

/// A guest that has not said anything for so long hangs. Generous: the emulated lab shares two cores.
const SILENCE: Duration = Duration::from_secs(180);

/// Set by a person who wants to see the consoles as they come.
const ECHO: &str = "INNKEEPER_ECHO";

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

/// The same with 512 MiB and all tools, whose job is `job` and words (`resources/jobs`).
///
/// # Errors
/// A part of it is missing.
pub fn with_job(kernel: &str, force_legacy: bool, job: &str) -> Result<MachineConfig, Error> {
    let extras = Extras::Tools { force_legacy };
    Ok(reporting_with(kernel, extras, &format!("quiet job={job}"))?.memory(512 << 20))
}

/// Runs a guest to its end.
///
/// # Errors
/// It could not be started, or fell silent.
pub fn run(config: MachineConfig) -> Result<Ended, Error> {
    Conversation::start(config)?.end()
}

/// The far end of a guest's serial line: what a person at its terminal would see and type.
pub struct Line {
    stream: BufReader<UnixStream>,
    said: String,
}

impl Line {
    /// The line that ends in `stream`.
    ///
    /// # Errors
    /// The stream takes no time limit.
    pub fn new(stream: UnixStream) -> Result<Self, Error> {
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
            said: String::new(),
        })
    }

    /// Everything that came over it.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Waits for the next line that begins with `start` and returns the rest of it.
    ///
    /// # Errors
    /// The guest fell silent or ended first.
    pub fn hear(&mut self, start: &str) -> Result<String, Error> {
        while let Some(line) = self.next()? {
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(rest.trim().to_owned());
            }
        }
        Err(format!(
            "the guest ended without '{start}'; its last words:\n{}",
            tail(&self.said)
        )
        .into())
    }

    /// The next line, without what ends it; `None` when the guest has hung up.
    ///
    /// # Errors
    /// The guest fell silent.
    #[allow(clippy::should_implement_trait, reason = "it can fail")]
    pub fn next(&mut self) -> Result<Option<String>, Error> {
        let mut bytes = Vec::new();
        if self.stream.read_until(b'\n', &mut bytes).is_err() {
            self.said.push_str(&String::from_utf8_lossy(&bytes));
            return Err(format!("the guest fell silent; its last words:\n{}", tail(&self.said)).into());
        }
        if std::env::var_os(ECHO).is_some() {
            std::io::stderr().write_all(&bytes)?;
        }
        let line = String::from_utf8_lossy(&bytes);
        self.said.push_str(&line);
        Ok((!bytes.is_empty()).then(|| line.trim_end().to_owned()))
    }

    /// Types a line.
    ///
    /// # Errors
    /// The guest has hung up.
    pub fn say(&mut self, line: &str) -> Result<(), Error> {
        Ok(self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    /// Has a guest whose job is `shell` do `command`, and returns the lines that it says meanwhile.
    ///
    /// # Errors
    /// The guest fell silent or ended, or the command failed.
    pub fn ask(&mut self, command: &str) -> Result<Vec<String>, Error> {
        self.say(command)?;
        let mut answer = Vec::new();
        while let Some(line) = self.next()? {
            match line.strip_prefix("status ") {
                Some("0") => return Ok(answer),
                Some(status) => return Err(format!("'{command}' ended with {status}: {answer:#?}").into()),
                None => answer.push(line),
            }
        }
        Err(format!("the guest ended at '{command}'; its last words:\n{}", tail(&self.said)).into())
    }
}

/// A running guest that the test listens and talks to over the serial line.
pub struct Conversation {
    guest: Option<Running>,
    line: Line,
}

impl Conversation {
    /// Starts a guest.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(config: MachineConfig) -> Result<Self, Error> {
        Self::prepared(config, |_| Ok(()))
    }

    /// Builds a machine, lets `prepare` do something with it or the host, then starts it.
    ///
    /// # Errors
    /// It could not be built or started, or `prepare` failed.
    pub fn prepared(config: MachineConfig, prepare: impl FnOnce(&Machine) -> Result<(), Error>) -> Result<Self, Error> {
        let (serial, stream) = Console::stream()?;
        let line = Line::new(stream)?;
        let machine = Machine::new(config, serial)?;
        prepare(&machine)?;
        Ok(Self {
            guest: Some(machine.start()?),
            line,
        })
    }

    /// What other threads may do with the machine.
    pub fn remote(&self) -> Arc<Remote> {
        let guest = self.guest.as_ref().map(|guest| guest.remote().clone());
        guest.unwrap_or_else(|| unreachable!("the guest goes when the conversation ends"))
    }

    /// [`Line::hear`].
    ///
    /// # Errors
    /// Those of it.
    pub fn hear(&mut self, start: &str) -> Result<String, Error> {
        self.line.hear(start)
    }

    /// [`Line::next`].
    ///
    /// # Errors
    /// Those of it.
    pub fn next_line(&mut self) -> Result<Option<String>, Error> {
        self.line.next()
    }

    /// [`Line::say`].
    ///
    /// # Errors
    /// Those of it.
    pub fn say(&mut self, line: &str) -> Result<(), Error> {
        self.line.say(line)
    }

    /// [`Line::ask`].
    ///
    /// # Errors
    /// Those of it.
    pub fn ask(&mut self, command: &str) -> Result<Vec<String>, Error> {
        self.line.ask(command)
    }

    /// Listens until the guest ends.
    ///
    /// # Errors
    /// It fell silent.
    pub fn end(mut self) -> Result<Ended, Error> {
        while self.next_line()?.is_some() {}
        let guest = self.guest.take();
        let (outcome, stats) = guest.map_or_else(|| unreachable!("taken here only"), Running::wait);
        let console = std::mem::take(&mut self.line.said);
        Ok(Ended {
            outcome,
            report: Report::parse(&console),
            console,
            stats,
        })
    }
}

impl Drop for Conversation {
    /// A test that failed leaves no guest behind.
    fn drop(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.stop();
            let _ = guest.wait();
        }
    }
}

/// The last lines of a console.
pub fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
