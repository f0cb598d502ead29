//! The measuring process: boots a guest with a port and a console on each program, and is their far ends.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use xtask::Result;
use xtask::load::stream;

use crate::bench::guest;
use crate::bench::load::MeasureArgs;
use crate::bench::requests::Program;

/// Guest memory, in MiB.
const MEMORY_MIB: u32 = 512;
/// Time from one attempt to connect to the next.
const AGAIN: Duration = Duration::from_millis(20);

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// None but those that are reported.
pub fn measure(args: &MeasureArgs) -> Result<u8> {
    let mut failed = false;
    for run in 0..args.runs {
        for program in Program::ALL {
            let sockets = ["port", "console"].map(|end| {
                let name = format!("innkeeper-bench-{}-{program}-{run}-{end}.sock", std::process::id());
                std::env::temp_dir().join(name)
            });
            for socket in &sockets {
                let socket = socket.clone();
                thread::spawn(move || serve(&socket));
            }
            let mut hear = |line: &str| eprintln!("{program}: {line}");
            if let Err(error) = guest::run(program, &command_line(program, args, &sockets), "", &mut hear) {
                eprintln!("{program}: {error}");
                failed = true;
            }
            for socket in sockets {
                // It is of no use to anybody else.
                let _ = std::fs::remove_file(socket);
            }
        }
    }
    Ok(failed.into())
}

/// Is the far end that the program opens at `socket`, until it goes.
fn serve(socket: &Path) {
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(AGAIN),
        }
    };
    // It ends when the program does.
    let _ = stream::serve(&mut stream);
}

fn command_line(program: Program, args: &MeasureArgs, sockets: &[PathBuf; 2]) -> Vec<OsString> {
    let mut words = guest::command_line(program, &args.files, MEMORY_MIB, "");
    let [port, console] = sockets.each_ref().map(|socket| socket.display());
    let devices = match program {
        Program::Innkeeper => vec![
            "--console".to_owned(),
            format!("socket={console}"),
            "--port".to_owned(),
            format!("name=bench,socket={port}"),
        ],
        Program::Qemu => vec![
            "-device".to_owned(),
            "virtio-serial-pci".to_owned(),
            "-chardev".to_owned(),
            format!("socket,id=console,path={console},server=on,wait=off"),
            "-device".to_owned(),
            "virtconsole,chardev=console".to_owned(),
            "-chardev".to_owned(),
            format!("socket,id=port,path={port},server=on,wait=off"),
            "-device".to_owned(),
            "virtserialport,chardev=port,name=bench".to_owned(),
        ],
    };
    words.extend(devices.into_iter().map(OsString::from));
    words
}
