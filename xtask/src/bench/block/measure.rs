//! The measuring process: boots a guest with a disk on each program.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use xtask::Result;

use crate::bench::guest;
use crate::bench::machines::Files;
use crate::bench::requests::Program;

/// Measures; started by `bench block`.
#[derive(Args, Debug, Clone)]
pub struct MeasureBlockArgs {
    #[command(flatten)]
    files: Files,
    /// The disk's image: raw.
    #[arg(long)]
    image: PathBuf,
    /// How often each figure is taken.
    #[arg(long)]
    runs: u32,
}

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// Nothing can be measured here.
pub fn measure(args: &MeasureBlockArgs) -> Result<u8> {
    let mut failed = false;
    for _ in 0..args.runs {
        for program in Program::ALL {
            let mut hear = |line: &str| eprintln!("{program}: {line}");
            if let Err(error) = guest::run(program, &command_line(program, args), "", &mut hear) {
                eprintln!("{program}: {error}");
                failed = true;
            }
        }
    }
    Ok(failed.into())
}

fn command_line(program: Program, args: &MeasureBlockArgs) -> Vec<OsString> {
    let image = args.image.display();
    let mut words = guest::command_line(program, &args.files, guest::MEMORY_MIB, "");
    let devices = match program {
        Program::Innkeeper => vec!["--disk".to_owned(), format!("path={image},format=raw,aio=io_uring")],
        Program::Qemu => vec![
            "-object".to_owned(),
            "iothread,id=io0".to_owned(),
            "-drive".to_owned(),
            format!("file={image},if=none,id=d0,format=raw,cache=writeback,aio=io_uring"),
            "-device".to_owned(),
            "virtio-blk-pci,drive=d0,iothread=io0".to_owned(),
        ],
    };
    words.extend(devices.into_iter().map(OsString::from));
    words
}
