//! Tests of the serial port.
#![allow(clippy::unwrap_used)]

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::testing::{accesses, event, inb, inl, inw, outb, outw, perform, signals};
use super::*;

const DATA: u16 = register::DATA as u16;
const IER: u16 = register::INTERRUPT_ENABLE as u16;
const IIR: u16 = register::IDENTIFICATION as u16;
const FCR: u16 = IIR;
const LCR: u16 = register::LINE_CONTROL as u16;
const MCR: u16 = register::MODEM_CONTROL as u16;
const LSR: u16 = register::LINE_STATUS as u16;
const MSR: u16 = 6;
const SCR: u16 = 7;

const DATA_READY: u8 = 1 << 0;
const NO_CAUSE: u8 = 0xc1;
const THRE: u8 = 0xc2;
const RDA: u8 = 0xc4;
const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that says when it is written to, and then waits for the test.
struct Gate {
    entered: mpsc::Sender<()>,
    permit: mpsc::Receiver<()>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.entered.send(()).ok();
        match self.permit.recv() {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A port whose output is behind a gate; when it gets there; and what opens it.
fn gated() -> (Serial, EventFd, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (interrupt, kept) = event();
    let (entered, arrival) = mpsc::channel();
    let (opener, permit) = mpsc::channel();
    let serial = Serial::new(interrupt, Box::new(Gate { entered, permit })).unwrap();
    (serial, kept, arrival, opener)
}

/// A port as it is after a reset.
fn bare() -> (Serial, EventFd, Screen) {
    let (interrupt, kept) = event();
    let screen = Screen::default();
    let serial = Serial::new(interrupt, Box::new(screen.clone())).unwrap();
    (serial, kept, screen)
}

/// A port whose driver has enabled the FIFOs.
fn port() -> (Serial, EventFd, Screen) {
    let (mut serial, interrupt, screen) = bare();
    outb(&mut serial, FCR, 0x07);
    (serial, interrupt, screen)
}

#[test]
fn bytes_written_reach_the_output_and_the_first_is_timed() {
    let (mut serial, _, screen) = bare();
    assert_eq!(serial.stats().first_byte, None);
    for byte in b"Linux" {
        assert_eq!(inb(&mut serial, LSR), 0x60);
        outb(&mut serial, DATA, *byte);
    }
    assert!(serial.drain(LONG));
    assert_eq!(screen.text(), b"Linux");
    let stats = serial.stats();
    assert!(stats.first_byte.is_some());
    assert_eq!((stats.transmitted, stats.lost), (5, 0));
}

#[test]
fn fifo_enable_shows_in_identification_so_that_linux_says_16550a() {
    let (mut serial, _, _) = bare();
    assert_eq!(inb(&mut serial, IIR), 0x01);
    outb(&mut serial, FCR, 0x01);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    // autoconfig_16550a: not zero with the latch open (16650), no bit 5 with FIFOs of 64 bytes asked for (16750).
    outb(&mut serial, LCR, 0x80);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    outb(&mut serial, LCR, 0x00);
    outb(&mut serial, FCR, 0x21);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    outb(&mut serial, FCR, 0x00);
    assert_eq!(inb(&mut serial, IIR), 0x01);
}

/// Linux's size_fifo: 256 bytes in loop-back, then count what came back.
#[test]
fn fifo_holds_sixteen_bytes_in_loop_back_and_none_reaches_the_output() {
    let (mut serial, _, screen) = port();
    outb(&mut serial, MCR, LOOP_BACK);
    for byte in 0..=255 {
        outb(&mut serial, DATA, byte);
    }
    let mut count = 0;
    while inb(&mut serial, LSR) & DATA_READY != 0 {
        assert_eq!(inb(&mut serial, DATA), count);
        count += 1;
    }
    assert_eq!(count, 16);
    assert!(serial.drain(LONG));
    assert_eq!(screen.text(), b"");
}

/// Linux's serial8250 autoconfig: bits 0 to 3 of MCR come back in MSR's upper half.
#[test]
fn loop_back_turns_modem_control_into_modem_status() {
    let (mut serial, _, _) = port();
    assert_eq!(inb(&mut serial, MSR) & 0xf0, 0xb0);
    outb(&mut serial, MCR, LOOP_BACK | 0x0a);
    assert_eq!(inb(&mut serial, MSR) & 0xf0, 0x90);
    outb(&mut serial, MCR, 0xff);
    assert_eq!(inb(&mut serial, MCR), 0x1f);
}

#[test]
fn interrupt_enable_has_four_bits_and_scratch_eight() {
    let (mut serial, _, _) = port();
    outb(&mut serial, IER, 0xff);
    assert_eq!(inb(&mut serial, IER), 0x0f);
    outb(&mut serial, SCR, 0xa5);
    assert_eq!(inb(&mut serial, SCR), 0xa5);
}

#[test]
fn open_latch_hides_data_and_enables() {
    let (mut serial, interrupt, screen) = port();
    outb(&mut serial, IER, enable::RECEIVED);
    outb(&mut serial, LCR, 0x83);
    outw(&mut serial, DATA, 0x0201);
    assert_eq!(inw(&mut serial, DATA), 0x0201);
    // The enables work on behind the latch.
    serial.enqueue(b"x");
    assert_eq!(signals(&interrupt), 1);
    outb(&mut serial, LCR, 0x03);
    assert_eq!(inb(&mut serial, IER), enable::RECEIVED);
    assert_eq!(inb(&mut serial, DATA), b'x');
    assert!(serial.drain(LONG));
    assert_eq!(screen.text(), b"");
}

#[test]
fn received_data_is_a_cause_until_it_has_been_read() {
    let (mut serial, interrupt, _) = port();
    outb(&mut serial, IER, enable::RECEIVED);
    assert_eq!(serial.enqueue(b"ab"), 2);
    assert_eq!(signals(&interrupt), 1);
    assert_eq!(inb(&mut serial, IIR), RDA);
    assert_eq!(inb(&mut serial, IIR), RDA);
    assert_eq!(inb(&mut serial, DATA), b'a');
    assert_eq!(inb(&mut serial, IIR), RDA);
    assert_eq!(inb(&mut serial, LSR), 0x61);
    assert_eq!(inb(&mut serial, DATA), b'b');
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    assert_eq!(inb(&mut serial, LSR), 0x60);
    assert_eq!(signals(&interrupt), 0);
    serial.enqueue(b"c");
    assert_eq!(signals(&interrupt), 1);
}

#[test]
fn data_that_came_while_disabled_interrupts_when_enabled() {
    let (mut serial, interrupt, _) = port();
    serial.enqueue(b"a");
    assert_eq!(signals(&interrupt), 0);
    outb(&mut serial, IER, enable::RECEIVED);
    assert_eq!(signals(&interrupt), 1);
    // The 8250 console masks and restores the enables around each message.
    outb(&mut serial, IER, 0);
    outb(&mut serial, IER, enable::RECEIVED);
    assert_eq!(signals(&interrupt), 1);
}

/// Linux's serial8250_do_startup looks for transmitters that do not interrupt a second time (UART_BUG_THRE) or at all (BUG_TXEN).
#[test]
fn enabling_the_transmitter_interrupt_raises_it_every_time() {
    let (mut serial, interrupt, _) = port();
    for _ in 0..2 {
        outb(&mut serial, IER, enable::TRANSMITTER_EMPTY);
        assert_eq!(signals(&interrupt), 1);
        assert_eq!(inb(&mut serial, IIR), THRE);
        assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
        outb(&mut serial, IER, 0);
    }
}

#[test]
fn every_byte_written_raises_the_transmitter_interrupt() {
    let (mut serial, interrupt, _) = port();
    outb(&mut serial, IER, enable::TRANSMITTER_EMPTY);
    signals(&interrupt);
    // Whether the driver reads IIR or not.
    for _ in 0..3 {
        outb(&mut serial, DATA, b'.');
        assert_eq!(signals(&interrupt), 1);
    }
    assert_eq!(inb(&mut serial, IIR), THRE);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
}

#[test]
fn two_causes_are_named_one_after_the_other_and_none_is_lost() {
    let (mut serial, interrupt, _) = port();
    outb(&mut serial, IER, enable::RECEIVED | enable::TRANSMITTER_EMPTY);
    serial.enqueue(b"a");
    assert_eq!(signals(&interrupt), 1);
    assert_eq!(inb(&mut serial, IIR), RDA);
    inb(&mut serial, DATA);
    assert_eq!(inb(&mut serial, IIR), THRE);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
}

#[test]
fn receiver_takes_sixteen_bytes_and_tells_when_it_is_empty_again() {
    let (mut serial, _, _) = port();
    let (room, told) = event();
    serial.set_room_event(room);
    assert_eq!(serial.room(), 16);
    assert_eq!(serial.enqueue(&[7; 10]), 10);
    assert_eq!(serial.room(), 6);
    assert_eq!(serial.enqueue(&[7; 10]), 6);
    assert_eq!(serial.enqueue(&[7]), 0);
    for _ in 0..15 {
        inb(&mut serial, DATA);
        assert_eq!(signals(&told), 0);
    }
    inb(&mut serial, DATA);
    assert_eq!(signals(&told), 1);
    // Input that fits asks for nothing.
    serial.enqueue(&[7; 16]);
    (0..16).for_each(|_| assert_eq!(inb(&mut serial, DATA), 7));
    assert_eq!(signals(&told), 0);
    assert_eq!(serial.stats().received, 32);
}

#[test]
fn receiver_without_fifo_takes_one_byte() {
    let (mut serial, _, _) = bare();
    assert_eq!(serial.enqueue(b"ab"), 1);
    assert_eq!(serial.room(), 0);
    assert_eq!(inb(&mut serial, DATA), b'a');
    assert_eq!(serial.room(), 1);
}

#[test]
fn fifo_control_clears_the_receiver_and_offers_the_room() {
    let (mut serial, interrupt, _) = port();
    let (room, told) = event();
    serial.set_room_event(room);
    outb(&mut serial, IER, enable::RECEIVED);
    serial.enqueue(&[7; 17]);
    assert_eq!(signals(&interrupt), 1);
    outb(&mut serial, FCR, 0x03);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    assert_eq!(inb(&mut serial, LSR), 0x60);
    assert_eq!(signals(&told), 1);
    // Switching the FIFOs off clears as well.
    serial.enqueue(&[7; 2]);
    outb(&mut serial, FCR, 0x00);
    assert_eq!(inb(&mut serial, LSR), 0x60);
}

/// Linux's autoconfig writes FCR with the latch open.
#[test]
fn fifo_control_clears_the_receiver_behind_an_open_latch() {
    let (mut serial, _, _) = port();
    serial.enqueue(b"abc");
    outb(&mut serial, LCR, 0xbf);
    outb(&mut serial, FCR, 0x00);
    assert_eq!(inb(&mut serial, LCR), 0xbf);
    assert_eq!(inb(&mut serial, LSR), 0x60);
}

#[test]
fn input_is_refused_in_loop_back_and_offered_room_after_it() {
    let (mut serial, _, _) = port();
    let (room, told) = event();
    serial.set_room_event(room);
    outb(&mut serial, MCR, LOOP_BACK);
    assert_eq!(serial.enqueue(b"a"), 0);
    assert_eq!(signals(&told), 0);
    outb(&mut serial, MCR, 0);
    assert_eq!(signals(&told), 1);
    assert_eq!(serial.enqueue(b"a"), 1);
}

#[test]
fn blocked_output_shows_a_busy_transmitter_and_interrupts_when_it_goes_on() {
    let (mut serial, interrupt, arrival, opener) = gated();
    outb(&mut serial, FCR, 0x01);
    outb(&mut serial, IER, enable::TRANSMITTER_EMPTY);
    outb(&mut serial, DATA, b'.');
    arrival.recv().unwrap();
    let mut written = 1_u64;
    while inb(&mut serial, LSR) & TRANSMITTER_EMPTY != 0 {
        outb(&mut serial, DATA, b'.');
        written += 1;
    }
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    assert_eq!(serial.stats().lost, 0);
    // A driver that does not look loses the byte, and nothing else.
    outb(&mut serial, DATA, b'!');
    assert_eq!(serial.stats().lost, 1);
    assert_eq!(inb(&mut serial, IIR), NO_CAUSE);
    signals(&interrupt);
    drop(opener);
    assert!(serial.drain(LONG));
    // The thread's signal, before the driver has looked at anything.
    assert_eq!(signals(&interrupt), 1);
    assert_eq!(inb(&mut serial, IIR), THRE);
    assert_eq!(inb(&mut serial, LSR), 0x60);
    // The gate was taken away: all was lost, and the port lives on.
    assert_eq!(serial.stats().lost, written + 1);
}

#[test]
fn closed_output_is_counted_and_does_not_stop_the_guest() {
    let (mut serial, _, _, opener) = gated();
    drop(opener);
    for _ in 0..100 {
        outb(&mut serial, DATA, b'.');
        assert!(serial.drain(LONG));
        assert_eq!(inb(&mut serial, LSR), 0x60);
    }
    assert_eq!(serial.stats().lost, 100);
}

#[test]
fn wide_accesses_are_bytes_at_following_ports() {
    let (mut serial, _, _) = port();
    assert_eq!(serial.write(3, &[0x03, 0x0b]), None);
    assert_eq!(inw(&mut serial, LCR), 0x0b03);
    assert_eq!(inl(&mut serial, MCR), 0x00b0_600b);
    outb(&mut serial, SCR, 0x5a);
    assert_eq!(inl(&mut serial, SCR), 0xffff_ff5a);
    assert_eq!(inl(&mut serial, 0x103), 0xffff_ffff);
    outw(&mut serial, 0x103, 0);
    assert_eq!(inb(&mut serial, LCR), 0x03);
}

#[test]
fn reset_restores_the_registers_and_keeps_statistics() {
    let (mut serial, interrupt, screen) = port();
    outb(&mut serial, DATA, b'.');
    outb(&mut serial, IER, 0x0f);
    outb(&mut serial, LCR, 0x83);
    outb(&mut serial, MCR, LOOP_BACK);
    serial.enqueue(b"a");
    serial.reset();
    signals(&interrupt);
    assert_eq!(inw(&mut serial, IER), 0x0100);
    assert_eq!(inb(&mut serial, LCR), 0x03);
    assert_eq!(inb(&mut serial, LSR), 0x60);
    outb(&mut serial, DATA, b'!');
    assert!(serial.drain(LONG));
    assert_eq!(screen.text(), b".!");
    assert_eq!(serial.stats().transmitted, 2);
    assert_eq!(signals(&interrupt), 0);
}

proptest! {
    #[test]
    fn random_accesses_are_survived_and_the_receiver_stays_within_its_depth(
        accesses in accesses(Serial::PORTS), input in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (mut serial, _, _) = bare();
        for access in &accesses {
            perform(&mut serial, std::slice::from_ref(access));
            let room = serial.room();
            prop_assert!(room <= FIFO_BYTES);
            prop_assert_eq!(serial.enqueue(&input), room.min(input.len()));
        }
    }

    /// The line is an edge per rise: whenever a cause stands that was not there before, there has been a signal.
    #[test]
    fn no_cause_appears_without_a_signal(accesses in accesses(Serial::PORTS)) {
        let (mut serial, interrupt, _) = bare();
        let mut stood = false;
        for access in &accesses {
            perform(&mut serial, std::slice::from_ref(access));
            serial.enqueue(b"a");
            let stands = serial.cause() != identification::NONE;
            let signalled = signals(&interrupt) > 0;
            prop_assert!(!stands || stood || signalled);
            stood = stands;
        }
    }
}

#[test]
fn closing_writes_the_rest_and_lets_go_of_the_output() {
    let (mut theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let (interrupt, _kept) = event();
    let mut serial = Serial::new(interrupt, Box::new(ours)).unwrap();
    outb(&mut serial, 0, b'x');
    assert!(serial.close_output(LONG));
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut theirs, &mut all).unwrap();
    assert_eq!(all, b"x");
}
