//! Consoles and ports on virtio before Debian's drivers: a login, streams that stall on either side, many ports at once, ports that come
//! and go while they are open, and QEMU's guest agent.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tests::checksum::md5;
use tests::guest::{self, Conversation};
use tests::qemu;
use tests::report::Report;
use tests::resources::{self, Extras};
use vmm::config::{DeviceConfig, MachineConfig};
use vmm::machine::Outcome;

use crate::program::terminal;

const MIB: usize = 1 << 20;
/// Nothing on a port takes longer in the emulated lab, if it comes at all.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a reader that stalls reads nothing.
const STALL: Duration = Duration::from_secs(3);
/// What sockets, pipes and rings may hold together of a stream whose reader does not read.
const IN_BETWEEN: usize = 2 * MIB;
/// Ports besides the console's.
const PORTS: usize = 32;
/// What goes through each of them, both ways.
const EACH: usize = MIB / 2;
/// How often a port comes and goes.
const ROUNDS: usize = 10;

/// Where a port of this name leads to.
fn socket(test: &str, port: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{test}-{port}.sock"))
}

/// The options of a port that leads to [`socket`].
fn leading_to_socket(test: &str, port: &str) -> String {
    let path = socket(test, port);
    format!("name={port},backend=socket,server=on,wait=off,path={}", path.display())
}

fn connect(test: &str, port: &str) -> UnixStream {
    let stream = UnixStream::connect(socket(test, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Bytes that are like no others: a stream of a linear congruential generator (Knuth's MMIX) from `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let next = |state: &u64| {
        Some(
            state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407),
        )
    };
    let words = std::iter::successors(Some(seed), next).flat_map(|state| ((state >> 32) as u32).to_le_bytes());
    words.skip(4).take(len).collect()
}

/// A guest that does what it is told, with a console to nowhere and ports of these names.
fn with_ports(test: &str, kernel: &str, force_legacy: bool, words: &str, ports: &[String]) -> Conversation {
    let extras = Extras::Tools { force_legacy };
    let config = guest::reporting_with(kernel, extras, &format!("job=shell {words}")).unwrap();
    let config = config
        .memory(512 << 20)
        .end_at_reset()
        .device("virtio-serial-pci", format!("id=serial0,max_ports={}", PORTS + 3))
        .device("virtconsole", "backend=null");
    let add = |config: MachineConfig, port: &String| config.device("virtserialport", leading_to_socket(test, port));
    let mut guest = Conversation::start(ports.iter().fold(config, add)).unwrap();
    guest.hear("ready").unwrap();
    guest
}

/// Lets the guest end by itself.
fn end(mut guest: Conversation) {
    guest.say("break").unwrap();
    let ended = guest.end().unwrap();
    assert!(ended.report.is_complete(), "{}", guest::tail(&ended.console));
    assert!(
        matches!(ended.outcome, Outcome::PowerOff | Outcome::Reset),
        "{:?}",
        ended.outcome
    );
}

/// Sends `len` bytes through port `name` and has them sent back, with a reader on each side that rests after the first MiB.
fn stream_both_ways(guest: &mut Conversation, test: &str, name: &str, len: usize) {
    let mut stream = connect(test, name);
    let sent = noise(1, len);
    let accepted = AtomicUsize::new(0);
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let (sent, accepted) = (&sent, &accepted);
        scope.spawn(move || {
            for piece in sent.chunks(MIB / 16) {
                writer.write_all(piece).unwrap();
                accepted.fetch_add(piece.len(), Ordering::Relaxed);
            }
        });
        guest.say(&format!("receive {name} {}", len / MIB)).unwrap();
        guest.hear("resting").unwrap();
        thread::sleep(STALL / 2);
        let accepted = accepted.load(Ordering::Relaxed);
        assert!(
            accepted <= MIB + IN_BETWEEN,
            "{accepted} bytes on their way to a guest that does not read"
        );
        assert_eq!(guest.hear("").unwrap(), format!("{}  -", md5(sent).unwrap()));
        guest.hear("status 0").unwrap();
    });

    guest.ask(&format!("send {name}")).unwrap();
    let mut received = vec![0; len];
    stream.read_exact(&mut received[..MIB]).unwrap();
    thread::sleep(STALL);
    guest.ask("kill -0 $sender").unwrap();
    stream.read_exact(&mut received[MIB..]).unwrap();
    assert!(received == sent, "what came back differs");
    guest.ask("wait $sender").unwrap();
}

/// All `names` at once: each sends something of its own and gets it back.
fn echo(guest: &mut Conversation, test: &str, names: &[String]) {
    let streams: Vec<_> = names.iter().map(|name| connect(test, name)).collect();
    guest.ask(&format!("echo_ports {}", names.join(" "))).unwrap();
    thread::scope(|scope| {
        for (seed, stream) in (2..).zip(&streams) {
            scope.spawn(move || {
                let sent = noise(seed, EACH);
                let (mut writer, mut reader) = (stream, stream);
                thread::scope(|scope| {
                    scope.spawn(|| writer.write_all(&sent).unwrap());
                    let mut received = vec![0; EACH];
                    reader.read_exact(&mut received).unwrap();
                    assert!(received == sent, "port {seed}: what came back differs");
                });
            });
        }
    });
    drop(streams);
    guest.ask("wait").unwrap();
}

/// A port comes while the guest runs, and goes while the guest has it open, reads it and writes to it.
fn come_and_go(guest: &mut Conversation, test: &str) {
    let inventory = guest.remote();
    let inventory = inventory.inventory();
    let options = format!("bus=serial0.0,id=late,{}", leading_to_socket(test, "late"));
    for round in 0..ROUNDS {
        inventory
            .hot_plug(&DeviceConfig::parse("virtserialport", &options, None))
            .unwrap();
        let mut stream = connect(test, "late");
        guest.ask("occupy late").unwrap();
        let mut some = [0; 4096];
        stream.read_exact(&mut some).unwrap();
        assert!(some.starts_with(b"y\ny\n"), "round {round}");
        stream.write_all(&some).unwrap();
        inventory.unplug("late").unwrap();
        let left = guest.ask("gone late").unwrap();
        assert_eq!(left.len(), PORTS + 2, "round {round}: {left:?}");
    }
}

/// A line of JSON to QEMU's guest agent, and what it returns.
fn call(agent: &mut BufReader<UnixStream>, name: &str, arguments: &Value) -> Value {
    let request = json!({ "execute": name, "arguments": arguments });
    agent.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    agent.read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: '{line}': {error}"));
    answer.get("return").unwrap_or_else(|| panic!("{name}: {line}")).clone()
}

const AGENT: &str = "org.qemu.guest_agent.0";

fn guest_agent(guest: &mut Conversation, test: &str) {
    let mut agent = BufReader::new(connect(test, AGENT));
    guest
        .ask(&format!(
            "qemu-ga -m virtio-serial -p $(connected {AGENT}) -t / > /agent.txt 2>&1 & agent=$!"
        ))
        .unwrap();
    assert_eq!(call(&mut agent, "guest-sync", &json!({ "id": 1234 })), 1234);
    assert_eq!(call(&mut agent, "guest-ping", &json!({})), json!({}));
    let info = call(&mut agent, "guest-info", &json!({}));
    assert!(info["version"].is_string(), "{info}");
    let commands = info["supported_commands"].as_array().unwrap();
    assert!(commands.iter().any(|command| command["name"] == "guest-exec"), "{info}");
    let echo = json!({ "path": "/bin/echo", "arg": ["through", "the", "port"], "capture-output": true });
    let pid = call(&mut agent, "guest-exec", &echo)["pid"].clone();
    let status = loop {
        let status = call(&mut agent, "guest-exec-status", &json!({ "pid": pid }));
        if status["exited"] == true {
            break status;
        }
        thread::sleep(Duration::from_millis(100));
    };
    // "through the port\n" in base 64.
    assert_eq!(
        (&status["exitcode"], &status["out-data"]),
        (&json!(0), &json!("dGhyb3VnaCB0aGUgcG9ydAo=")),
        "{status}"
    );
    guest.ask("kill $agent; wait $agent; true").unwrap();
}

fn everything(test: &str, kernel: &str, force_legacy: bool, words: &str) {
    let names: Vec<_> = (0..PORTS).map(|port| format!("org.example.{port}")).collect();
    let all = [&names[..], &[AGENT.to_owned()]].concat();
    let mut guest = with_ports(test, kernel, force_legacy, words, &all);
    guest_agent(&mut guest, test);
    echo(&mut guest, test, &names);
    stream_both_ways(&mut guest, test, &names[0], 64 * MIB);
    come_and_go(&mut guest, test);
    end(guest);
}

#[test]
fn ports_carry_everything() {
    everything("modern", "cloud", false, "");
}

#[test]
fn ports_carry_everything_of_the_legacy_driver_without_acpi() {
    everything("legacy", "generic", true, "acpi=off end=reboot");
}

#[cfg(feature = "long")]
#[test]
fn ports_carry_everything_in_the_other_ways() {
    everything("modern-noacpi", "generic", false, "acpi=off end=reboot");
    everything("legacy-acpi", "cloud", true, "");
}

/// Reads from a terminal until it says `last`, and returns everything up to there. Each line may return the carriage as often as it
/// likes.
fn hear(person: &mut File, last: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(last.as_bytes()) {
        let patience = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut [PollFd::new(person, PollFlags::IN)], Some(&patience)).unwrap();
        let count = if ready > 0 {
            person.read(&mut byte).unwrap_or(0)
        } else {
            0
        };
        assert_ne!(count, 0, "no '{last}' in:\n{}", String::from_utf8_lossy(&said));
        said.extend(byte.iter().filter(|byte| **byte != b'\r'));
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

/// A person at a terminal, who starts a guest there and logs in. There is no serial port.
fn log_in(force_legacy: bool, words: &str) {
    let (mut person, program) = terminal();
    set_size(&person, 33, 101);
    // With a session of its own the program hears when the terminal changes its size.
    let mut command = Command::new("setsid");
    command.arg("-c").arg(resources::program().unwrap()).arg("run");
    let initrd = resources::initrd(&std::env::temp_dir(), "cloud", Extras::Tools { force_legacy });
    command
        .arg(resources::kernel("cloud").unwrap())
        .arg("--initrd")
        .arg(initrd.unwrap());
    let words = format!("terminal=hvc0 job=login {words}");
    command.args([
        "--memory",
        "256M",
        "--no-reboot",
        "--console",
        "stdio",
        "--append",
        &words,
    ]);
    command
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap());
    let mut child = Guard(command.stderr(program).spawn().unwrap());

    let boot = hear(&mut person, "login: ");
    assert!(boot.contains("=== job"), "{boot}");
    person.write_all(b"root\n").unwrap();
    hear(&mut person, "# ");
    person
        .write_all(b"tty; stty size; grep -c 03f8- /proc/ioports\n")
        .unwrap();
    hear(&mut person, "/dev/hvc0\n33 101\n0\n");
    set_size(&person, 50, 132);
    person
        .write_all(b"until [ \"$(stty size)\" = '50 132' ]; do usleep 50000; done; echo re''sized\n")
        .unwrap();
    hear(&mut person, "resized\n");
    // What a terminal is for: keys that mean something, and lines longer than one write.
    person.write_all(b"echo now; cat > /dev/null\n").unwrap();
    hear(&mut person, "now\n");
    person.write_all(b"\x03").unwrap();
    hear(&mut person, "# ");
    person
        .write_all(b"seq -s , 1 5000 | md5sum; seq -s , 1 5000\n")
        .unwrap();
    let numbers: Vec<_> = (1..=5000).map(|number| number.to_string()).collect();
    let numbers = numbers.join(",");
    hear(
        &mut person,
        &format!("{}  -\n{numbers}\n", md5(format!("{numbers}\n").as_bytes()).unwrap()),
    );
    person.write_all(b"exit\n").unwrap();
    let status = child.0.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 3)), "{status}");
}

/// What a kernel says, without the times and the numbers of input devices: QEMU's machine has a mouse.
fn comparable(log: &str) -> Vec<&str> {
    let words = log
        .lines()
        .map(|line| line.split_once("] ").map_or(line, |(_, words)| words));
    words
        .map(|words| words.trim_end_matches(|last: char| last.is_ascii_digit()))
        .collect()
}

/// Linux's driver takes the console into its list after the kernel has replayed its log there (drivers/char/virtio_console.c,
/// `init_port_console`), so what was said before the driver came is not seen on any host.
fn the_only_console_is_as_under_qemu(kernel: &str, force_legacy: bool, words: &str) {
    let extras = Extras::Tools { force_legacy };
    let mut config = guest::reporting_with(kernel, extras, words).unwrap();
    config.command_line = format!("console=hvc0 terminal=hvc0 {words}");
    let console = ["-chardev", "stdio,id=console", "-device", "virtio-serial-pci"];
    let console = [&console[..], &["-device", "virtconsole,chardev=console"]].concat();
    let theirs = qemu::report(&config, &console).unwrap();
    let mut ours = Command::new(resources::program().unwrap());
    ours.arg("run").arg(config.kernel.unwrap());
    ours.arg("--initrd").arg(config.initrd.unwrap());
    ours.args(["--memory", "256M", "--no-reboot", "--console", "stdio", "--append"]);
    let output = ours.arg(&config.command_line).stdin(Stdio::null()).output().unwrap();
    let ours = Report::parse(&String::from_utf8_lossy(&output.stdout));
    assert!(ours.is_complete(), "{output:?}");
    assert_eq!(comparable(&ours.kernel_log), comparable(&theirs.kernel_log));
    assert_eq!(ours.section("ports"), theirs.section("ports"));
    let ports = ours.section("ioports");
    assert!(ports.iter().all(|line| !line.contains("serial")), "{ports:?}");
}

#[test]
fn the_only_console_says_what_it_says_under_qemu() {
    the_only_console_is_as_under_qemu("cloud", false, "");
}

#[cfg(feature = "long")]
#[test]
fn the_only_console_says_what_it_says_under_qemu_to_the_legacy_driver_without_acpi() {
    the_only_console_is_as_under_qemu("generic", true, "acpi=off end=reboot");
}

/// A program that does not outlive a test that failed.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_person_logs_in_on_the_only_console() {
    log_in(false, "");
}

#[test]
fn a_person_logs_in_on_the_only_console_of_the_legacy_driver_without_acpi() {
    log_in(true, "acpi=off end=reboot");
}
