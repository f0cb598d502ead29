//! Whole conversations.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use devices::virtio::options::Pairs;

use super::*;
use crate::config::{DeviceConfig, MachineConfig};
use crate::qmp::target::Board;

const MEMORY: u64 = 32 << 20;

/// A test on the other end of a machine's connection.
struct Test {
    lines: BufReader<UnixStream>,
    machine: Arc<QtestMachine>,
    session: Option<JoinHandle<()>>,
    /// Changes of interrupt lines.
    told: Vec<String>,
}

impl Test {
    fn new(board: Board, devices: &[&str]) -> Self {
        let mut config = MachineConfig::new("none").memory(MEMORY);
        for device in devices {
            let (name, options) = device.split_once(',').unwrap_or((device, ""));
            config
                .devices
                .push(DeviceConfig::new(name, Pairs::parse(options, None)));
        }
        let machine = Arc::new(QtestMachine::new(board, &config).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection {
            input: Box::new(theirs.try_clone().unwrap()),
            output: Output::new(Box::new(theirs), None),
        };
        let session = {
            let machine = Arc::clone(&machine);
            std::thread::spawn(move || serve(&machine, connection).unwrap())
        };
        Self {
            lines: BufReader::new(ours),
            machine,
            session: Some(session),
            told: Vec::new(),
        }
    }

    fn send(&mut self, request: &str) {
        self.lines
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    /// The answer. What is told of interrupts before it is kept.
    fn ask(&mut self, request: &str) -> String {
        self.send(request);
        loop {
            let line = self.line();
            if !line.starts_with("IRQ ") {
                return line;
            }
            self.told.push(line);
        }
    }

    /// Sends requests that are answered without a value.
    fn tell(&mut self, requests: &[&str]) {
        for request in requests {
            assert_eq!(self.ask(request), "OK", "{request}");
        }
    }

    /// The number in the answer.
    fn value(&mut self, request: &str) -> u64 {
        let answer = self.ask(request);
        let digits = answer
            .strip_prefix("OK 0x")
            .unwrap_or_else(|| panic!("{request}: {answer}"));
        u64::from_str_radix(digits, 16).unwrap()
    }

    /// Asks until the answer is `expected`, as libqos does: it moves the clock meanwhile.
    fn wait(&mut self, request: &str, expected: u64) {
        while self.value(request) != expected {
            assert!(self.ask("clock_step 100").starts_with("OK "));
        }
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        self.lines.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
        let result = self.session.take().unwrap().join();
        assert!(std::thread::panicking() || result.is_ok());
    }
}

#[test]
fn a_machine_is_found_as_libqos_looks_for_it() {
    let mut test = Test::new(Board::Pc, &["virtio-rng-pci,addr=04.0"]);
    assert_eq!(test.ask("endianness"), "OK little");
    test.tell(&["outw 0x510 0x3"]);
    let size: Vec<_> = (0..8).map(|_| test.value("inb 0x511") as u8).collect();
    assert_eq!(size, MEMORY.to_le_bytes());
    test.tell(&["outl 0xcf8 0x80002002"]);
    assert_eq!(test.ask("inw 0xcfc"), "OK 0x1005");
    test.tell(&["outl 0xcf8 0x80002804"]);
    assert_eq!(test.ask("inl 0xcfc"), "OK 0xffffffff");
    assert_eq!(test.ask("clock_step 100"), "OK 100");
    assert_eq!(test.ask("clock_set 50"), "OK 100");
    assert_eq!(test.ask("frob"), "FAIL Unknown command 'frob'");
}

#[test]
fn memory_is_written_and_read_in_every_way() {
    let mut test = Test::new(Board::None, &[]);
    test.tell(&["write 0x100000 0x4 0x0102", "writeq 0x100008 0x1122334455667788"]);
    assert_eq!(test.ask("read 0x100000 0x4"), "OK 0x01020000");
    assert_eq!(test.ask("readw 0x100008"), "OK 0x0000000000007788");
    test.tell(&["memset 0x100000 0x3 0xab"]);
    assert_eq!(test.ask("b64read 0x100000 0x4"), "OK q6urAA==");
    let beyond = format!("read {:#x} 0x4", MEMORY - 2);
    assert_eq!(test.ask(&beyond), "OK 0x0000ffff");
}

/// Programs the function in slot 4 as libqos does, with its BARs where libqos puts them.
fn place_bars(test: &mut Test) {
    test.tell(&[
        "outl 0xcf8 0x80002010",
        "outl 0xcfc 0xc000",
        "outl 0xcf8 0x80002014",
        "outl 0xcfc 0xe0010000",
        "outl 0xcf8 0x80002020",
        "outl 0xcfc 0xe0000000",
        "outl 0xcf8 0x80002004",
        "outw 0xcfc 0x7",
    ]);
}

/// Has the device fill 16 bytes at 0x103000, through its modern face and a queue at 0x100000, with MSI-X vector 1 for it.
fn ask_for_randomness(test: &mut Test) {
    test.tell(&[
        // Status, then VERSION_1 among the features.
        "write 0xe0000014 0x1 0x03",
        "write 0xe0000008 0x4 0x01000000",
        "write 0xe000000c 0x4 0x01000000",
        "write 0xe0000014 0x1 0x0b",
        // The queue: its vector, its rings.
        "write 0xe000001a 0x2 0x0100",
        "write 0xe0000020 0x8 0x0000100000000000",
        "write 0xe0000028 0x8 0x0010100000000000",
        "write 0xe0000030 0x8 0x0020100000000000",
        "write 0xe000001c 0x2 0x0100",
        "write 0xe0000014 0x1 0x0f",
        // A descriptor that the device writes to, and the available ring with it.
        "writeq 0x100000 0x103000",
        "writel 0x100008 0x10",
        "writew 0x10000c 0x2",
        "writew 0x101004 0",
        "writew 0x101002 1",
        "write 0xe0003000 0x2 0x0000",
    ]);
}

#[test]
fn a_message_goes_to_memory_when_its_address_is_there() {
    let mut test = Test::new(Board::Pc, &["virtio-rng-pci,addr=04.0"]);
    place_bars(&mut test);
    test.tell(&[
        // Vector 1: address 0x200000, data 0x12345678, not masked; then MSI-X on.
        "write 0xe0010010 0x4 0x00002000",
        "write 0xe0010018 0x4 0x78563412",
        "write 0xe001001c 0x4 0x00000000",
        "outl 0xcf8 0x80002098",
        "outl 0xcfc 0x80010000",
    ]);
    ask_for_randomness(&mut test);
    test.wait("readl 0x200000", 0x1234_5678);
    assert_eq!(test.value("readw 0x102002"), 1, "the used index");
}

#[test]
fn changes_of_interrupt_lines_are_told_to_a_test_that_asks() {
    let mut test = Test::new(Board::Pc, &["virtio-rng-pci,addr=04.0"]);
    place_bars(&mut test);
    // PIIX3 routes PIRQ D, where INTA of slot 4 is, to interrupt 11.
    test.tell(&[
        "outl 0xcf8 0x80000860",
        "outl 0xcfc 0x0b0b0b0b",
        "irq_intercept_in /machine/unattached/ioapic",
    ]);
    assert_eq!(test.ask("irq_intercept_in nowhere"), "FAIL Unknown device");
    // Without a vector the line is used.
    ask_for_randomness(&mut test);
    while test.told.is_empty() {
        test.ask("clock_step 100");
    }
    assert_eq!(test.ask("read 0xe0001000 0x1"), "OK 0x01");
    assert_eq!(test.told, ["IRQ raise 11", "IRQ lower 11"]);
}

#[test]
fn a_reset_takes_bars_away_and_leaves_memory() {
    let mut test = Test::new(Board::Pc, &["virtio-rng-pci,addr=04.0"]);
    place_bars(&mut test);
    test.tell(&["writel 0x100000 0x1", "write 0xe0000014 0x1 0x03"]);
    assert_eq!(test.value("read 0xe0000014 0x1"), 3);
    test.machine.remote().reset();
    test.machine.attend();
    assert_eq!(test.value("read 0xe0000014 0x1"), 0xff);
    assert_eq!(test.value("readl 0x100000"), 1);
    place_bars(&mut test);
    assert_eq!(test.value("read 0xe0000014 0x1"), 0);
}

#[test]
fn a_line_without_end_ends_the_session() {
    let mut test = Test::new(Board::None, &[]);
    test.lines.get_mut().write_all(b"endianness").unwrap();
}
