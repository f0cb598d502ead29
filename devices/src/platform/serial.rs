//! A 16550A serial port, COM1 at ports 0x3f8 to 0x3ff (National Semiconductor PC16550D datasheet).
//!
//! The registers that only hold values, the divisor latch and loop-back are vm-superio's. Three things that a driver can see are
//! done here, since vm-superio does them otherwise:
//!
//! - *Interrupts.* There, reading IIR clears every cause, and two causes at once read as a third. Here, as in the chip and in QEMU
//!   (hw/char/serial.c), received data stays a cause until it has been read, an empty transmitter until IIR has named it or
//!   a byte is written, and the line's rising edge is what interrupts.
//! - *FIFOs.* There, always on and 64 bytes deep, upon which Linux says "U6_16550A". Here, 16 bytes, on and cleared through FCR.
//! - *A slow output.* There, the byte is written out by the vCPU. Here, a queue takes it; while the queue is full, LSR shows a busy transmitter.
//!
//! Left out: modem status changes, line errors, and the receiver's trigger level: any byte received interrupts at once.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::serial_output::{OutputQueue, OutputWriter};
use super::{FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// Registers, by offset.
mod register {
    /// Receiver buffer and transmitter holding register.
    pub const DATA: u8 = 0;
    pub const INTERRUPT_ENABLE: u8 = 1;
    /// Interrupt identification when read, FIFO control when written.
    pub const IDENTIFICATION: u8 = 2;
    pub const LINE_CONTROL: u8 = 3;
    pub const MODEM_CONTROL: u8 = 4;
    pub const LINE_STATUS: u8 = 5;
}

/// Interrupt enable register.
mod enable {
    pub const RECEIVED: u8 = 1 << 0;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 1;
}

/// Interrupt identification register.
mod identification {
    pub const NONE: u8 = 0b0001;
    pub const TRANSMITTER_EMPTY: u8 = 0b0010;
    pub const RECEIVED: u8 = 0b0100;
    pub const FIFOS_ENABLED: u8 = 0b1100_0000;
}

/// FIFO control register.
mod fifo {
    pub const ENABLE: u8 = 1 << 0;
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
}

const DIVISOR_LATCH: u8 = 1 << 7;
const LOOP_BACK: u8 = 1 << 4;
/// The modem control register's upper three bits are always zero.
const MODEM_CONTROL_BITS: u8 = 0x1f;
/// Holding register empty and transmitter empty.
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Depth of a FIFO in bytes; one without FIFOs.
const FIFO_BYTES: usize = 16;
/// Depth of vm-superio's own buffer, which is never filled here.
const UART_BYTES: usize = 64;

/// Interrupts are decided here, so vm-superio's own lead nowhere.
#[derive(Debug)]
struct Nowhere;

impl Trigger for Nowhere {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What the guest last wrote to the registers that decide what others do. vm-superio shows its own only in a copy of all its state.
#[derive(Clone, Copy, Default, Debug)]
struct Selected {
    interrupts: u8,
    line_control: u8,
    modem_control: u8,
}

/// What a port has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SerialStats {
    /// When the guest wrote its first byte.
    pub first_byte: Option<Instant>,
    /// Bytes that the guest has written, except in loop-back.
    pub transmitted: u64,
    /// Of those, bytes that the output refused or that the guest wrote although the transmitter was busy.
    pub lost: u64,
    /// Bytes that the guest has been given.
    pub received: u64,
}

/// A serial port, eight ports.
///
/// Output goes through a thread that the port starts, so that a slow or closed output never stops the guest's CPU. Input is
/// pushed in by [`Serial::enqueue`]; what did not fit is the caller's to keep until the event of [`Serial::set_room_event`].
pub struct Serial {
    uart: Uart<Nowhere, NoEvents, OutputWriter>,
    output: OutputQueue,
    selected: Selected,
    fifos: bool,
    /// The transmitter has become empty, and nobody has been told.
    transmitter_event: bool,
    /// The output's queue was full when last looked at.
    transmitter_busy: bool,
    /// The interrupt line's level.
    line: bool,
    interrupt: EventFd,
    /// Some input did not fit.
    input_refused: bool,
    room: Option<EventFd>,
    stats: SerialStats,
}

impl Serial {
    /// The device's size in ports.
    pub const PORTS: u16 = 8;

    /// Makes a port that writes to `output`. `interrupt` is signalled for its interrupt (IRQ 4 for COM1), an edge each.
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> io::Result<Self> {
        let wake = interrupt.try_clone()?;
        let output = OutputQueue::start(output, move || signal(&wake))?;
        Ok(Self {
            uart: Uart::new(Nowhere, output.writer()),
            output,
            selected: Selected::default(),
            fifos: false,
            transmitter_event: false,
            transmitter_busy: false,
            line: false,
            interrupt,
            input_refused: false,
            room: None,
            stats: SerialStats::default(),
        })
    }

    /// Signals `room` when the guest has emptied the receiver after [`Serial::enqueue`] had to refuse bytes.
    pub fn set_room_event(&mut self, room: EventFd) {
        self.room = Some(room);
    }

    /// How many bytes the receiver has room for now: none in loop-back.
    pub fn room(&self) -> usize {
        let used = UART_BYTES.saturating_sub(self.uart.fifo_capacity());
        if self.loops_back() {
            0
        } else {
            self.depth().saturating_sub(used)
        }
    }

    /// Gives the guest input, as much as there is room for; returns how many bytes that was.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let fitting = input.get(..self.room()).unwrap_or(input);
        // There is room, so nothing can go wrong.
        let accepted = self.uart.enqueue_raw_bytes(fitting).unwrap_or(0);
        self.input_refused |= accepted < input.len();
        self.stats.received = self.stats.received.saturating_add(accepted as u64);
        self.update_line();
        accepted
    }

    /// Waits until the output has taken all that the guest wrote; false when that lasts longer than `patience`.
    pub fn drain(&self, patience: Duration) -> bool {
        self.output.drain(patience)
    }

    /// The machine has ended: waits until the output has taken all that the guest wrote, and lets go of it. False when that lasts
    /// longer than `patience`.
    pub fn close_output(&self, patience: Duration) -> bool {
        self.output.close(patience)
    }

    /// What the port has done so far.
    pub fn stats(&self) -> SerialStats {
        SerialStats {
            lost: self.output.lost(),
            ..self.stats
        }
    }

    fn register(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }

    fn set_register(&mut self, register: u8, value: u8) {
        // The trigger cannot fail, the queue never does, and the receiver is kept below its depth.
        if let Err(error) = self.uart.write(register, value) {
            tracing::warn!("serial port: {error}");
        }
    }

    fn depth(&self) -> usize {
        if self.fifos { FIFO_BYTES } else { 1 }
    }

    fn latch_is_open(&self) -> bool {
        self.selected.line_control & DIVISOR_LATCH != 0
    }

    fn loops_back(&self) -> bool {
        self.selected.modem_control & LOOP_BACK != 0
    }

    fn is_enabled(&self, source: u8) -> bool {
        self.selected.interrupts & source != 0
    }

    fn has_input(&self) -> bool {
        self.uart.fifo_capacity() < UART_BYTES
    }

    /// The cause of the interrupt that a driver is to deal with first.
    fn cause(&self) -> u8 {
        if self.has_input() && self.is_enabled(enable::RECEIVED) {
            identification::RECEIVED
        } else if self.transmitter_event && self.is_enabled(enable::TRANSMITTER_EMPTY) {
            identification::TRANSMITTER_EMPTY
        } else {
            identification::NONE
        }
    }

    /// Sets the interrupt line's level; its rise interrupts.
    fn update_line(&mut self) {
        let level = self.cause() != identification::NONE;
        if level && !self.line {
            signal(&self.interrupt);
        }
        self.line = level;
    }

    /// Lets the transmitter become empty when the output's queue has room again.
    fn look_at_output(&mut self) {
        if self.transmitter_busy && !self.output.is_full() {
            self.transmitter_busy = false;
            self.transmitter_event = true;
            self.update_line();
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.transmitter_event = false;
        self.update_line();
        if self.loops_back() {
            if UART_BYTES.saturating_sub(self.uart.fifo_capacity()) < self.depth() {
                self.set_register(register::DATA, byte);
            }
        } else {
            self.stats.first_byte.get_or_insert_with(Instant::now);
            self.stats.transmitted = self.stats.transmitted.saturating_add(1);
            self.set_register(register::DATA, byte);
            self.transmitter_busy = self.output.is_full();
        }
        self.transmitter_event = !self.transmitter_busy;
        self.update_line();
    }

    fn clear_receiver(&mut self) {
        // An open latch would be read in the receiver's place.
        let line_control = self.selected.line_control;
        self.set_register(register::LINE_CONTROL, line_control & !DIVISOR_LATCH);
        for _ in 0..UART_BYTES {
            self.register(register::DATA);
        }
        self.set_register(register::LINE_CONTROL, line_control);
    }

    fn control_fifos(&mut self, value: u8) {
        let fifos = value & fifo::ENABLE != 0;
        // Switching between the modes clears the FIFOs, asked or not.
        if value & fifo::CLEAR_RECEIVER != 0 || fifos != self.fifos {
            self.clear_receiver();
        }
        self.fifos = fifos;
        self.update_line();
        self.offer_room();
    }

    /// Tells the caller that refused input fits now.
    fn offer_room(&mut self) {
        if self.input_refused && !self.has_input() && !self.loops_back() {
            self.input_refused = false;
            if let Some(room) = &self.room {
                signal(room);
            }
        }
    }

    fn read_register(&mut self, register: u8) -> u8 {
        match register {
            register::IDENTIFICATION => {
                let cause = self.cause();
                if cause == identification::TRANSMITTER_EMPTY {
                    self.transmitter_event = false;
                    self.update_line();
                }
                let fifos = if self.fifos { identification::FIFOS_ENABLED } else { 0 };
                cause | fifos
            }
            register::DATA if !self.latch_is_open() => {
                let byte = self.register(register);
                self.update_line();
                self.offer_room();
                byte
            }
            register::LINE_STATUS => {
                let busy = if self.transmitter_busy { TRANSMITTER_EMPTY } else { 0 };
                self.register(register) & !busy
            }
            _ => self.register(register),
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        match register {
            register::DATA if !self.latch_is_open() => self.transmit(value),
            register::INTERRUPT_ENABLE if !self.latch_is_open() => {
                let was_enabled = self.is_enabled(enable::TRANSMITTER_EMPTY);
                self.set_register(register, value);
                self.selected.interrupts = value;
                // Enabling the interrupt of an empty transmitter raises it: drivers start sending that way.
                if !was_enabled && self.is_enabled(enable::TRANSMITTER_EMPTY) {
                    self.transmitter_event = !self.transmitter_busy;
                }
                self.update_line();
            }
            register::IDENTIFICATION => self.control_fifos(value),
            register::MODEM_CONTROL => {
                self.selected.modem_control = value & MODEM_CONTROL_BITS;
                self.set_register(register, self.selected.modem_control);
                self.offer_room();
            }
            register::LINE_CONTROL => {
                self.selected.line_control = value;
                self.set_register(register, value);
            }
            _ => self.set_register(register, value),
        }
    }
}

impl PortDevice for Serial {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        self.look_at_output();
        read_bytes(offset, data, |port| match u8::try_from(port) {
            Ok(register) if port < Self::PORTS => self.read_register(register),
            _ => FLOATING,
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        self.look_at_output();
        write_bytes(offset, data, |port, value| {
            if let Ok(register) = u8::try_from(port)
                && port < Self::PORTS
            {
                self.write_register(register, value);
            }
            None
        })
    }

    /// Statistics and what the output has not taken yet outlive a reset.
    fn reset(&mut self) {
        self.uart = Uart::new(Nowhere, self.output.writer());
        self.selected = Selected::default();
        self.fifos = false;
        self.transmitter_event = false;
        self.update_line();
        self.offer_room();
    }
}

/// Signals an event. The counter of an event that is looked after never gets near its limit, so it does not fail.
fn signal(event: &EventFd) {
    if let Err(error) = event.write(1) {
        tracing::warn!("serial port: signalling an event failed: {error}");
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
