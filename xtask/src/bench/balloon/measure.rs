//! The measuring process: boots a guest with a balloon on each program, and asks for memory when the guest is ready.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use xtask::error::During;
use xtask::{Error, Result};

use super::TAKEN_MIB;
use crate::bench::guest;
use crate::bench::load::MeasureArgs;
use crate::bench::requests::Program;

/// Guest memory, in MiB.
const MEMORY_MIB: u32 = 1536;

/// Words for the guest's kernel, and how its phases are called: one that fills pages with zeroes before anybody gets them, as
/// Debian's does by default, and one that does not. The former touches every page that it is about to give away, which costs more
/// than all the rest where pages are huge on the host and parts of them are gone already.
pub const GUESTS: [(&str, &str); 2] = [("", ""), ("init_on_alloc=0", "untouched-")];

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// None but those that are reported.
pub fn measure(args: &MeasureArgs) -> Result<u8> {
    let mut failed = false;
    let socket = std::env::temp_dir().join(format!("innkeeper-bench-{}.sock", std::process::id()));
    let rounds = (0..args.runs).flat_map(|_| GUESTS);
    for (words, prefix) in rounds {
        for program in Program::ALL {
            let mut monitor = None;
            let mut hear = |line: &str| {
                let kept = match line.trim_end() {
                    "now inflate" => u64::from(MEMORY_MIB) - TAKEN_MIB,
                    "now deflate" => u64::from(MEMORY_MIB),
                    "now nothing" => return,
                    _ => return eprintln!("{program}: {line}"),
                };
                if let Err(error) = ask(&mut monitor, &socket, kept) {
                    eprintln!("{program}: {error}");
                }
            };
            if let Err(error) = guest::run(program, &command_line(program, args, &socket, words), prefix, &mut hear) {
                eprintln!("{program}: {error}");
                failed = true;
            }
        }
    }
    // It is of no use to anybody else.
    let _ = std::fs::remove_file(socket);
    Ok(failed.into())
}

/// Asks a guest to keep so many MiB, by its monitor, which is connected to the first time.
fn ask(monitor: &mut Option<BufReader<UnixStream>>, socket: &Path, mib: u64) -> Result<()> {
    let monitor = match monitor {
        Some(monitor) => monitor,
        None => monitor.insert(connect(socket)?),
    };
    execute(
        monitor,
        &format!(r#"{{"execute":"balloon","arguments":{{"value":{}}}}}"#, mib << 20),
    )
}

fn connect(socket: &Path) -> Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket).during(|| format!("connecting to {}", socket.display()))?;
    let mut monitor = BufReader::new(stream);
    // The greeting.
    monitor
        .read_line(&mut String::new())
        .during(|| "reading from a monitor")?;
    execute(&mut monitor, r#"{"execute":"qmp_capabilities"}"#)?;
    Ok(monitor)
}

fn execute(monitor: &mut BufReader<UnixStream>, command: &str) -> Result<()> {
    writeln!(monitor.get_mut(), "{command}").during(|| "writing to a monitor")?;
    loop {
        let mut line = String::new();
        monitor.read_line(&mut line).during(|| "reading from a monitor")?;
        if line.contains(r#""return""#) {
            return Ok(());
        }
        if line.is_empty() || line.contains(r#""error""#) {
            return Err(Error::Other(format!("{command}: {line}")));
        }
    }
}

fn command_line(program: Program, args: &MeasureArgs, socket: &Path, words: &str) -> Vec<OsString> {
    let mut words = guest::command_line(program, &args.files, MEMORY_MIB, words);
    let socket = socket.display();
    let devices = match program {
        Program::Innkeeper => vec![
            "--device".to_owned(),
            "virtio-balloon-pci".to_owned(),
            "--qmp".to_owned(),
            format!("unix:{socket}"),
        ],
        Program::Qemu => vec![
            "-device".to_owned(),
            "virtio-balloon-pci".to_owned(),
            "-qmp".to_owned(),
            format!("unix:{socket},server=on,wait=off"),
        ],
    };
    words.extend(devices.into_iter().map(OsString::from));
    words
}
