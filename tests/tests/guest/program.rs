//! The `innkeeper` command: its exit statuses, its one-line errors, and the terminal that it gives back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tests::resources::{self, Extras};

/// A guest that runs longer hangs. Generous: the emulated lab shares two cores.
const HANGS: Duration = Duration::from_secs(180);

/// `innkeeper run` with a guest on `kernel` that reports and ends as `words` say.
fn innkeeper_on(kernel: &str, words: &str) -> Command {
    let mut command = Command::new(resources::program().unwrap());
    command.arg("run").arg(resources::kernel(kernel).unwrap());
    command
        .arg("--initrd")
        .arg(resources::initrd(&std::env::temp_dir(), kernel, Extras::None).unwrap());
    command
        .args(["--memory", "256M", "--append", words])
        .stdin(Stdio::null());
    command
}

fn innkeeper(words: &str) -> Command {
    innkeeper_on("cloud", words)
}

/// The exit status and what was said on standard error. A program that hangs is ended by SIGTERM, so its status is another one.
fn status(command: &mut Command) -> (Option<i32>, String) {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id() as libc::pid_t;
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(HANGS) == Err(mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: kill has no memory preconditions; the child is not reaped before `done` is dropped.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn power_off_is_success_and_stats_tell_what_it_cost() {
    let (status, errors) = status(innkeeper("quiet").arg("--stats"));
    assert_eq!(status, Some(0), "{errors}");
    for line in [
        "exits: ",
        "port writes: ",
        "serial port at 0x3f8: ",
        "first console byte: ",
        "interrupt lines raised: ",
    ] {
        assert!(errors.contains(line), "{line} in {errors}");
    }
}

#[test]
fn a_reset_with_no_reboot_is_status_3() {
    assert_eq!(status(innkeeper("quiet end=reboot").arg("--no-reboot")).0, Some(3));
}

#[test]
fn a_triple_fault_is_status_4() {
    let (status, errors) = status(&mut innkeeper("quiet end=reboot reboot=t"));
    assert_eq!(
        (status, errors.as_str()),
        (Some(4), "innkeeper: the guest ended in a triple fault\n")
    );
}

#[test]
fn debug_exit_doubles_the_value_and_adds_one() {
    // The cloud kernel has no /dev/port.
    assert_eq!(
        status(innkeeper_on("generic", "quiet end=debug-exit").arg("--debug-exit")).0,
        Some(5 << 1 | 1)
    );
}

#[test]
fn serial_file_takes_the_console() {
    let path = std::env::temp_dir().join("console.txt");
    let (code, errors) = status(innkeeper("").arg("--serial").arg(format!("file={}", path.display())));
    assert_eq!(code, Some(0), "{errors}");
    assert!(std::fs::read_to_string(path).unwrap().contains("Linux version"));
}

#[test]
fn errors_are_one_line_with_status_2() {
    let kernel = resources::kernel("cloud").unwrap();
    let text = std::env::temp_dir().join("not-a-kernel");
    std::fs::write(&text, "This is no kernel.").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["/no/such/kernel"], "/no/such/kernel"),
        (&[text.to_str().unwrap()], "not a Linux kernel"),
        (
            &[kernel.to_str().unwrap(), "--initrd", "/no/such/file"],
            "/no/such/file",
        ),
        (&[kernel.to_str().unwrap(), "--memory", "32M"], "memory"),
        (&[kernel.to_str().unwrap(), "--cpus", "0"], "CPUs"),
    ];
    for (args, expected) in cases {
        let (code, errors) = status(Command::new(resources::program().unwrap()).arg("run").args(args));
        assert_eq!((code, errors.lines().count()), (Some(2), 1), "{errors}");
        assert!(errors.contains(expected), "{errors}");
    }
}

/// Starts a program that waits for somebody at `socket`, ends it by SIGTERM, and returns its exit status.
fn ended_while_it_waits(command: &mut Command, socket: &Path) -> Option<i32> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < HANGS, "it does not wait at {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: kill has no memory preconditions; the child is not reaped yet.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    child.wait().unwrap().code()
}

#[test]
fn sigterm_ends_a_start_that_waits_for_somebody() {
    let folder = std::env::temp_dir();
    let (backend, monitor, pid_file) = (folder.join("wait-vu"), folder.join("wait-qmp"), folder.join("wait-pid"));
    let mut run = innkeeper("");
    run.arg("--net").arg(format!("vhost-user=listen:{}", backend.display()));
    assert_eq!(ended_while_it_waits(&mut run, &backend), Some(128 + libc::SIGTERM));
    let mut qemu = Command::new(resources::program().unwrap());
    qemu.args(["qemu", "--", "-accel", "qtest", "-display", "none", "-pidfile"])
        .arg(&pid_file);
    qemu.arg("-qmp").arg(format!("unix:{},server=on", monitor.display()));
    assert_eq!(ended_while_it_waits(&mut qemu, &monitor), Some(128 + libc::SIGTERM));
    assert!(!pid_file.exists());
}

/// A pseudo-terminal: the end that a person would sit at, and the end that a program runs on.
pub fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (0, 0);
    // SAFETY: the first two pointers take a descriptor each; the others may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut person,
            &raw mut program,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both descriptors were just made and are nobody else's.
    unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}

fn settings(terminal: &OwnedFd) -> (libc::tcflag_t, libc::tcflag_t, libc::tcflag_t) {
    // SAFETY: termios is plain data, and tcgetattr fills it in.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is a terminal's and the pointer is valid.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut termios) }, 0);
    (termios.c_iflag, termios.c_oflag, termios.c_lflag)
}

/// Runs a guest that waits on a terminal, does `what` when it is up, and returns the exit status. The terminal must be as before.
fn on_a_terminal(what: impl FnOnce(&mut File, u32)) -> Option<i32> {
    let (mut person, program) = terminal();
    let before = settings(&program);
    let mut command = innkeeper("quiet end=wait");
    command
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains("=== end") {
        let count = person.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    assert_ne!(settings(&program), before, "the terminal is raw while the guest runs");
    what(&mut person, child.id());
    let status = child.wait().unwrap();
    assert_eq!(settings(&program), before, "the terminal is as before");
    status.code()
}

#[test]
fn ctrl_a_x_ends_the_guest_and_restores_the_terminal() {
    assert_eq!(on_a_terminal(|person, _| person.write_all(b"\x01x").unwrap()), Some(0));
}

#[test]
fn sigterm_ends_the_guest_and_restores_the_terminal() {
    let status = on_a_terminal(|_, pid| {
        // SAFETY: kill has no memory preconditions.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) }, 0);
    });
    assert_eq!(status, Some(128 + libc::SIGTERM));
}
