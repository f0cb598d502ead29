//! `cargo xtask test`: everything that must be green before a change is good.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use xtask::kernel::Flavour;
use xtask::lab::{Emulator, Failure, Job, Lab, ensure_cured, process};
use xtask::{Error, Result, packages, resources, tool};

use crate::cargo;
use crate::lab_command::{exit_status, quoted, to_standard_output};
use crate::qos::QosArgs;
use crate::way::{self, Way};

/// The wall-clock limit for all guest tests together. A boot takes ten seconds in the lab, more where others use the CPUs.
const LIMIT: Duration = Duration::from_secs(3300);

/// L1 must hold guests with more than 4 GiB, of which they touch little.
const LAB_MEMORY_MIB: u32 = 6144;

/// What unit tests of networks work with. Without them, those tests say why they do nothing.
const NETWORK_PACKAGES: [&str; 3] = ["iproute2", "passt", "tshark"];

/// What a host has that guests reach a network through: a card, VLANs.
const LAB_MODULES: [&str; 2] = ["dummy", "8021q"];

/// The users of the lab: passt becomes nobody when root starts it.
const PEOPLE: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";

/// Set by a person who wants to see the guests' consoles.
const ECHO: &str = "INNKEEPER_ECHO";

/// Formatting, lints, unit and documentation tests, QEMU's own device tests, and tests with real guests.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// Only the tests with real guests.
    #[arg(long)]
    guest: bool,
    /// Also the guest tests that take minutes each: file systems filled and trimmed, drivers unbound a hundred times.
    #[arg(long)]
    long: bool,
    /// Use the lab even where this host's KVM could run the guests.
    #[arg(long)]
    lab: bool,
    /// For the guest tests' own program: names to select, options like --nocapture or --skip=NAME.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Runs it and returns the exit status for the process. The last lines are those of the guest tests' own program.
///
/// # Errors
/// When a stage fails.
pub fn test(args: &TestArgs) -> Result<u8> {
    if !args.guest {
        stage("format", &["fmt", "--all", "--check"])?;
        stage(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ],
        )?;
        if tool::is_root() {
            packages::install(&NETWORK_PACKAGES, "test networks")?;
        }
        stage("unit tests", &["test", "--workspace"])?;
        device_tests()?;
    }
    guest_tests(args)
}

fn stage(name: &str, arguments: &[&str]) -> Result<()> {
    println!("== {name}: cargo {}", arguments.join(" "));
    let started = Instant::now();
    tool::run(&mut cargo::command(arguments))?;
    println!("== {name}: passed in {:.0} s\n", started.elapsed().as_secs_f32());
    Ok(())
}

/// QEMU's own device tests.
fn device_tests() -> Result<()> {
    println!("== device tests: cargo xtask qos");
    let started = Instant::now();
    match crate::qos::qos(&QosArgs::default())? {
        0 => println!("== device tests: passed in {:.0} s\n", started.elapsed().as_secs_f32()),
        _ => return Err(Error::Other("device tests of QEMU failed; see the table above".into())),
    }
    Ok(())
}

fn guest_tests(args: &TestArgs) -> Result<u8> {
    let innkeeper = cargo::build(&["build", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
    let arguments = [
        "test",
        "-p",
        "tests",
        "--features",
        if args.long { "long" } else { "guests" },
        "--test",
        "guest",
        "--no-run",
    ];
    let program = cargo::build(&arguments, "guest")?;
    let way = way::decide(&innkeeper, args.lab)?;
    let resources = resources::gather()?;
    let emulator = ensure_cured()?;
    let places = Places {
        resources,
        innkeeper,
        qemu: emulator.program.clone(),
        // Images are checked by another program than ours.
        qemu_img: packages::program("qemu-img", "qemu-utils", "check images that guests wrote")?,
        passt: packages::program("passt", "passt", "give guests a network without privilege")?,
    };
    println!("== guest tests, {way}");
    match way {
        Way::Host => on_host(&program, &places, &args.arguments),
        Way::Lab(_) => in_labs(&program, &places, &emulator, &args.arguments),
    }
}

/// Where the tests find what they need, on the host or in the lab.
struct Places {
    resources: PathBuf,
    innkeeper: PathBuf,
    qemu: PathBuf,
    qemu_img: PathBuf,
    passt: PathBuf,
}

impl Places {
    /// What the tests find in their environment.
    fn environment(&self) -> [(&'static str, String); 5] {
        let resources = self.resources.display();
        let kernels: Vec<String> = Flavour::ALL
            .map(Flavour::name)
            .map(|name| format!("{name}:{resources}/kernels/{name}"))
            .into();
        [
            ("INNKEEPER_RESOURCES", resources.to_string()),
            ("INNKEEPER_KERNELS", kernels.join(",")),
            ("INNKEEPER_BINARY", self.innkeeper.display().to_string()),
            ("INNKEEPER_QEMU", self.qemu.display().to_string()),
            ("INNKEEPER_QEMU_IMG", self.qemu_img.display().to_string()),
        ]
    }
}

fn on_host(program: &Path, places: &Places, arguments: &[String]) -> Result<u8> {
    let mut command = Command::new(program);
    command.args(arguments).envs(places.environment());
    match process::watch(&mut command, &[], LIMIT, &mut to_standard_output)? {
        process::Ended::TimedOut => Err(timed_out()),
        process::Ended::Exited(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
    }
}

/// Runs the tests in several labs side by side, each with its share of them: a lab uses one of this host's CPUs.
fn in_labs(program: &Path, places: &Places, emulator: &Emulator, arguments: &[String]) -> Result<u8> {
    let names = selected(program, arguments)?;
    if names.is_empty() {
        return Err(Error::Other(format!(
            "no guest test is named like {}",
            arguments.join(" ")
        )));
    }
    let shares = share_out(&names, thread::available_parallelism().map_or(1, usize::from));
    if shares.len() > 1 {
        println!(
            "== {} tests in {} labs; the lines of each begin with its number",
            names.len(),
            shares.len()
        );
    }
    let labs = shares.len();
    thread::scope(|scope| {
        let running: Vec<_> = (1..)
            .zip(shares)
            .map(|(number, share)| {
                scope.spawn(move || {
                    let mut print = |line: &[u8]| match labs {
                        1 => to_standard_output(line),
                        _ => to_standard_output(&[format!("{number}| ").as_bytes(), line].concat()),
                    };
                    in_lab(
                        program,
                        places,
                        emulator.clone(),
                        &with_options(share, arguments),
                        &mut print,
                    )
                })
            })
            .collect();
        let mut worst = 0;
        for lab in running {
            let status = lab
                .join()
                .map_err(|_| Error::Other("a lab's thread panicked".into()))??;
            worst = worst.max(status);
        }
        Ok(worst)
    })
}

/// The names of the tests that the arguments select, in the order in which they would run.
fn selected(program: &Path, arguments: &[String]) -> Result<Vec<String>> {
    let mut list = Command::new(program);
    list.args(arguments).args(["--list", "--format", "terse"]);
    let listed = tool::text(&mut list)?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Deals the tests out in turn: neighbours in the list, which take about the same time, go to different labs.
fn share_out(names: &[String], labs: usize) -> Vec<Vec<String>> {
    let labs = labs.min(names.len());
    let share = |first| names.iter().skip(first).step_by(labs).cloned().collect();
    (0..labs).map(share).collect()
}

/// A share of the tests by their exact names, and the options that still mean something then.
fn with_options(share: Vec<String>, arguments: &[String]) -> Vec<String> {
    let options = arguments
        .iter()
        .filter(|argument| argument.starts_with('-') && !argument.starts_with("--skip") && *argument != "--exact");
    options.cloned().chain(["--exact".to_owned()]).chain(share).collect()
}

fn in_lab(
    program: &Path,
    places: &Places,
    emulator: Emulator,
    arguments: &[String],
    print: &mut dyn FnMut(&[u8]),
) -> Result<u8> {
    let inside = Places {
        resources: "/resources".into(),
        innkeeper: "/bin/innkeeper".into(),
        qemu: "/bin/qemu-system-x86_64".into(),
        qemu_img: "/bin/qemu-img".into(),
        passt: "/bin/passt".into(),
    };
    let mut lab = Lab::with(emulator);
    lab.limit = LIMIT;
    lab.memory_mib = LAB_MEMORY_MIB;
    lab.modules = LAB_MODULES.map(str::to_owned).into();
    lab.contents
        .program(program, "/bin/guest-tests")?
        .program(&places.innkeeper, "/bin/innkeeper")?
        .program(&places.qemu, "/bin/qemu-system-x86_64")?
        .program(&places.qemu_img, "/bin/qemu-img")?
        .program(&places.passt, "/bin/passt")?
        .bytes("/etc/passwd", PEOPLE)
        .copy(&places.resources, "/resources")?;
    let mut script = String::new();
    for (name, value) in inside.environment() {
        script.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    if std::env::var_os(ECHO).is_some() {
        script.push_str(&format!("export {ECHO}=1\n"));
    }
    script.push_str("exec guest-tests");
    script.extend(arguments.iter().map(|argument| format!(" {}", quoted(argument))));
    let job = Job {
        name: "guest tests".into(),
        script,
    };
    let outcome = lab.run(&[job], print)?;
    match outcome.failure {
        Some(Failure::TimedOut(_)) => Err(timed_out()),
        Some(Failure::Died(words)) => Err(Error::Lab(words)),
        None => Ok(exit_status(&outcome)),
    }
}

fn timed_out() -> Error {
    Error::Other(format!("the guest tests did not end within {} s", LIMIT.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_in_one_share_and_no_share_is_empty() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        assert_eq!(share_out(&names, 2), [vec!["a", "c", "e"], vec!["b", "d"]]);
        assert_eq!(share_out(&names[..1], 2), [["a"]]);
    }

    #[test]
    fn a_share_is_named_exactly_whatever_selected_it() {
        let arguments = ["boot", "--skip=cloud", "--nocapture"].map(str::to_owned);
        let share = with_options(vec!["boot::generic::x".into()], &arguments);
        assert_eq!(share, ["--nocapture", "--exact", "boot::generic::x"]);
    }

    #[test]
    fn the_tests_are_told_where_each_kernel_is() {
        let places = Places {
            resources: "/r".into(),
            innkeeper: "/i".into(),
            qemu: "/q".into(),
            qemu_img: "/qi".into(),
            passt: "/p".into(),
        };
        let [_, (name, value), ..] = places.environment();
        assert_eq!(name, "INNKEEPER_KERNELS");
        assert_eq!(value, "cloud:/r/kernels/cloud,generic:/r/kernels/generic");
    }
}
