//! `cargo xtask qos`: QEMU's own device tests, run against Innkeeper.
//!
//! The test programs come from Debian's source package of QEMU and are built in the cache, beside the lab's emulator. They
//! start `innkeeper` under QEMU's name and drive its devices from outside, without a guest.

mod case;
mod suite;
mod table;
mod variant;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use xtask::error::During;
use xtask::lab::CuredQemu;
use xtask::{Error, Result, cache};

use crate::cargo;
use suite::{SUITES, Test};
use table::Table;
use variant::Variant;

/// How long a test may take. The longest takes four seconds; what waits in vain for an interrupt gives up after thirty.
const LIMIT: Duration = Duration::from_secs(90);

/// QEMU's own device tests, run against Innkeeper.
#[derive(Args, Default, Debug)]
pub struct QosArgs {
    /// As what the devices appear.
    #[arg(long, value_enum, default_value_t)]
    variant: Choice,
    /// Also run what is known not to work.
    #[arg(long)]
    known: bool,
    /// Print the whole output of tests that fail.
    #[arg(long)]
    verbose: bool,
    /// Another program to test: QEMU itself, for a comparison.
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// Only tests with this in their path.
    filter: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum, Default, Debug)]
enum Choice {
    Transitional,
    Legacy,
    Modern,
    #[default]
    All,
}

impl Choice {
    fn variants(self) -> &'static [Variant] {
        match self {
            Self::Transitional => &[Variant::Transitional],
            Self::Legacy => &[Variant::Legacy],
            Self::Modern => &[Variant::Modern],
            Self::All => &Variant::ALL,
        }
    }
}

pub use variant::stand_in;

/// Runs it and returns the exit status for the process: 1 when a test fails that is not known to.
///
/// # Errors
/// When QEMU's test programs or Innkeeper cannot be built or started.
pub fn qos(args: &QosArgs) -> Result<u8> {
    let program = match &args.program {
        Some(program) => program
            .canonicalize()
            .during(|| format!("finding {}", program.display()))?,
        None => cargo::build(&["build", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?,
    };
    let qemu = CuredQemu::ensure()?;
    let programs = qemu.test_programs(&SUITES.map(|suite| suite.program))?;
    let scratch = Scratch::new()?;
    let stage = variant::Stage::new(&scratch.0, &program, qemu.storage_daemon()?)?;
    let mut table = Table::default();
    for suite in &SUITES {
        let tests = suite.list(&programs, &stage)?;
        let chosen = |test: &&Test| {
            args.filter
                .as_ref()
                .is_none_or(|filter| test.path.contains(filter.as_str()))
        };
        for test in tests.iter().filter(chosen) {
            for variant in args
                .variant
                .variants()
                .iter()
                .filter(|variant| suite.runs_on(**variant))
            {
                let verdict = match test.gap(*variant) {
                    Some(reason) if !args.known => case::Verdict::Known(reason),
                    _ => case::run(&programs.join(suite.program), test, &stage, *variant, LIMIT)?,
                };
                table.add(test, *variant, verdict, args.verbose);
            }
        }
    }
    print!("{table}");
    match table.is_empty() {
        true => Err(Error::Other(
            "no test has this in its path; leave the filter out to see them all".into(),
        )),
        false => Ok(table.failed().into()),
    }
}

/// A folder that goes when this does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("innkeeper-qos-{}", std::process::id()));
        cache::remove(&path)?;
        std::fs::create_dir_all(&path).during(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder left behind in /tmp is no reason to fail.
        let _ = cache::remove(Path::new(&self.0));
    }
}
