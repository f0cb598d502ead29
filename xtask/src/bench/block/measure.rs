//! The measuring process: boots a guest with a disk on each program.

use std::ffi::OsString;
use std::path::Path;

use xtask::{Error, Result};

use crate::bench::guest;
use crate::bench::load::MeasureArgs;
use crate::bench::requests::Program;

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// Nothing can be measured here.
pub fn measure(args: &MeasureArgs) -> Result<u8> {
    let image = args.image.as_deref();
    let image = image.ok_or_else(|| Error::Other("there is no --image".into()))?;
    let mut failed = false;
    for _ in 0..args.runs {
        for program in Program::ALL {
            let mut hear = |line: &str| eprintln!("{program}: {line}");
            if let Err(error) = guest::run(program, &command_line(program, args, image), "", &mut hear) {
                eprintln!("{program}: {error}");
                failed = true;
            }
        }
    }
    Ok(failed.into())
}

fn command_line(program: Program, args: &MeasureArgs, image: &Path) -> Vec<OsString> {
    let image = image.display();
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
