//! The keyboard controller, an 8042 at ports 0x60 and 0x64, with nothing plugged into it.
//!
//! # What a kernel's probe costs
//!
//! With ACPI, Linux never touches it when the tables say that it is absent (no PNP0303 in the DSDT, bit 1 of the FADT's boot
//! flags clear). Without (`acpi=off`) it probes the ports, and there three answers are possible (drivers/input/serio/i8042.c):
//!
//! - *Silence.* A command that expects a byte and gets none spins for half a second (`i8042_wait_read`, 10,000 times 50 us).
//!   That is what a controller that only knows the reset command costs.
//! - *An output buffer that never empties.* The driver gives up in a millisecond (`i8042_flush`), but so reads port 0x60 every kernel
//!   that empties the buffer before it goes on, for ever.
//! - *A whole controller.* Every command is answered at once. This is what happens here.
//!
//! The mouse port is absent: its interface test fails and the loop test is answered on the keyboard's side, upon which the driver drops it.
//! The keyboard port exists, as it must, so `atkbd` asks whoever may be there to identify itself, and waits 200 ms for each
//! answer, twice. A real controller notices that nothing clocks the byte out, and says so: 0xfe with the time-out bit in the
//! status register, and interrupt 1. So do we, immediately, and the driver lets go after two such bytes.
//!
//! Commands and bits are those of IBM's PS/2 hardware reference; see also QEMU hw/input/pckbd.c.

#![forbid(unsafe_code)]

use vmm_sys_util::eventfd::EventFd;

use super::{FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// The two ports, as offsets from 0x60.
mod port {
    pub const DATA: u16 = 0;
    pub const COMMAND: u16 = 4;
}

/// Status register, port 0x64.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    /// The last write was a command.
    pub const COMMAND: u8 = 1 << 3;
    /// The keylock is open.
    pub const UNLOCKED: u8 = 1 << 4;
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Command byte of the controller.
mod config {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub const MOUSE_DISABLED: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
    /// As a PC's firmware leaves it.
    pub const DEFAULT: u8 = KEYBOARD_INTERRUPT | SYSTEM | MOUSE_DISABLED | TRANSLATE;
}

/// Output port of the controller.
mod output {
    /// Low resets the machine.
    pub const NOT_RESET: u8 = 1 << 0;
    /// Kept for the guest to read back: address line 20 is never masked.
    pub const A20: u8 = 1 << 1;
    /// As QEMU's reads: `KBD_OUT_ONES`.
    pub const ONES: u8 = 0xcc;
    pub const DEFAULT: u8 = ONES | A20 | NOT_RESET;
}

/// Answers of the controller.
mod answer {
    pub const SELF_TEST_PASSED: u8 = 0x55;
    pub const INTERFACE_GOOD: u8 = 0x00;
    /// The clock line of the port is stuck low.
    pub const CLOCK_STUCK: u8 = 0x01;
    /// Nothing is locked, nothing is pressed (QEMU pckbd.c, `KBD_CCMD_READ_INPORT`).
    pub const INPUT_PORT: u8 = 0x80;
    /// "Send again", which with the time-out bit means that nobody took the byte.
    pub const RESEND: u8 = 0xfe;
}

/// Commands, port 0x64.
mod command {
    pub const READ_CONFIG: u8 = 0x20;
    pub const WRITE_CONFIG: u8 = 0x60;
    pub const DISABLE_MOUSE: u8 = 0xa7;
    pub const ENABLE_MOUSE: u8 = 0xa8;
    pub const TEST_MOUSE: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const LOOP_KEYBOARD: u8 = 0xd2;
    pub const LOOP_MOUSE: u8 = 0xd3;
    pub const SEND_TO_MOUSE: u8 = 0xd4;
    pub const DISABLE_A20: u8 = 0xdd;
    pub const ENABLE_A20: u8 = 0xdf;
    /// From here on the low four bits name the lines of the output port to pulse low, a clear bit pulses.
    pub const PULSE: u8 = 0xf0;
}

/// What the next byte on the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Expects {
    /// A byte for the keyboard.
    #[default]
    Keyboard,
    /// The argument of a command.
    Config,
    OutputPort,
    Loop,
    Mouse,
}

/// The registers.
#[derive(Debug)]
struct State {
    config: u8,
    output_port: u8,
    /// What the last write was, of [`status::COMMAND`]; and the time-out of the byte in the buffer.
    status: u8,
    /// The output buffer: the byte that was read last stays in it.
    buffer: u8,
    full: bool,
    expects: Expects,
}

impl Default for State {
    fn default() -> Self {
        Self {
            config: config::DEFAULT,
            output_port: output::DEFAULT,
            status: status::COMMAND,
            buffer: 0,
            full: false,
            expects: Expects::Keyboard,
        }
    }
}

/// The keyboard controller: five ports from 0x60, of which it drives the first and the last. The ones between belong to others.
#[derive(Debug)]
pub struct I8042 {
    state: State,
    interrupt: EventFd,
}

impl I8042 {
    /// Ports from the first to the last.
    pub const PORTS: u16 = 5;

    /// Makes the controller. `interrupt` is signalled for IRQ 1, an edge each.
    pub fn new(interrupt: EventFd) -> Self {
        Self {
            state: State::default(),
            interrupt,
        }
    }

    fn read_status(&self) -> u8 {
        let state = &self.state;
        let full = if state.full { status::OUTPUT_FULL } else { 0 };
        let system = if state.config & config::SYSTEM != 0 {
            status::SYSTEM
        } else {
            0
        };
        state.status | full | system | status::UNLOCKED
    }

    fn read_data(&mut self) -> u8 {
        self.state.full = false;
        self.state.status &= !status::TIMEOUT;
        self.state.buffer
    }

    /// Puts a byte of the controller's own into the output buffer.
    fn answer(&mut self, byte: u8) {
        self.state.buffer = byte;
        self.state.full = true;
        self.state.status &= !status::TIMEOUT;
    }

    /// Puts a byte from the keyboard's side into the output buffer, which interrupts. `errors` are the status bits that go with it.
    fn answer_as_keyboard(&mut self, byte: u8, errors: u8) {
        self.answer(byte);
        self.state.status |= errors;
        if self.state.config & config::KEYBOARD_INTERRUPT != 0
            && let Err(error) = self.interrupt.write(1)
        {
            tracing::warn!("keyboard controller: raising its interrupt failed: {error}");
        }
    }

    /// Nobody took the byte that was sent.
    fn time_out(&mut self) {
        self.answer_as_keyboard(answer::RESEND, status::TIMEOUT);
    }

    fn write_command(&mut self, value: u8) -> Option<MachineRequest> {
        let state = &mut self.state;
        state.status |= status::COMMAND;
        state.expects = Expects::Keyboard;
        match value {
            command::READ_CONFIG => self.answer(self.state.config),
            command::WRITE_CONFIG => state.expects = Expects::Config,
            command::DISABLE_MOUSE => state.config |= config::MOUSE_DISABLED,
            command::ENABLE_MOUSE => state.config &= !config::MOUSE_DISABLED,
            command::TEST_MOUSE => self.answer(answer::CLOCK_STUCK),
            command::SELF_TEST => {
                state.config |= config::SYSTEM;
                self.answer(answer::SELF_TEST_PASSED);
            }
            command::TEST_KEYBOARD => self.answer(answer::INTERFACE_GOOD),
            command::DISABLE_KEYBOARD => state.config |= config::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => state.config &= !config::KEYBOARD_DISABLED,
            command::READ_INPUT_PORT => self.answer(answer::INPUT_PORT),
            command::READ_OUTPUT_PORT => self.answer(self.state.output_port),
            command::WRITE_OUTPUT_PORT => state.expects = Expects::OutputPort,
            command::LOOP_KEYBOARD | command::LOOP_MOUSE => state.expects = Expects::Loop,
            command::SEND_TO_MOUSE => state.expects = Expects::Mouse,
            command::DISABLE_A20 => state.output_port &= !output::A20,
            command::ENABLE_A20 => state.output_port |= output::A20,
            command::PULSE.. if value & output::NOT_RESET == 0 => {
                return Some(MachineRequest::Reset);
            }
            _ => {}
        }
        None
    }

    fn write_data(&mut self, value: u8) -> Option<MachineRequest> {
        let state = &mut self.state;
        state.status &= !status::COMMAND;
        match std::mem::take(&mut state.expects) {
            Expects::Config => state.config = value,
            Expects::OutputPort => {
                state.output_port = value | output::NOT_RESET;
                return (value & output::NOT_RESET == 0).then_some(MachineRequest::Reset);
            }
            Expects::Loop => self.answer_as_keyboard(value, 0),
            Expects::Keyboard => {
                // Sending switches the port on.
                state.config &= !config::KEYBOARD_DISABLED;
                self.time_out();
            }
            Expects::Mouse => self.time_out(),
        }
        None
    }
}

impl PortDevice for I8042 {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        read_bytes(offset, data, |offset| match offset {
            port::DATA => self.read_data(),
            port::COMMAND => self.read_status(),
            _ => FLOATING,
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        write_bytes(offset, data, |offset, value| match offset {
            port::DATA => self.write_data(value),
            port::COMMAND => self.write_command(value),
            _ => None,
        })
    }

    fn reset(&mut self) {
        self.state = State::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use proptest::prelude::*;

    use super::super::testing::{accesses, event, inb, inl, outb, perform, signals};
    use super::*;

    fn controller() -> (I8042, EventFd) {
        let (interrupt, kept) = event();
        (I8042::new(interrupt), kept)
    }

    fn status(controller: &mut I8042) -> u8 {
        inb(controller, port::COMMAND)
    }

    /// A command that answers with a byte, as i8042_command: no waiting, so the buffer must be full at the first look.
    fn ask(controller: &mut I8042, value: u8) -> u8 {
        assert_eq!(outb(controller, port::COMMAND, value), None);
        assert_eq!(status(controller) & status::OUTPUT_FULL, 1);
        let answer = inb(controller, port::DATA);
        assert_eq!(status(controller) & status::OUTPUT_FULL, 0);
        answer
    }

    fn tell(controller: &mut I8042, value: u8, argument: u8) -> Option<MachineRequest> {
        assert_eq!(outb(controller, port::COMMAND, value), None);
        outb(controller, port::DATA, argument)
    }

    #[test]
    fn controller_answers_every_question_of_the_linux_probe_at_once() {
        let (mut controller, interrupt) = controller();
        assert_eq!(status(&mut controller) & status::OUTPUT_FULL, 0);
        assert_eq!(ask(&mut controller, command::SELF_TEST), 0x55);
        let config = ask(&mut controller, command::READ_CONFIG);
        assert_eq!(config, ask(&mut controller, command::READ_CONFIG));
        assert_ne!(config & config::TRANSLATE, 0);
        assert_ne!(status(&mut controller) & status::UNLOCKED, 0);
        tell(&mut controller, command::WRITE_CONFIG, 0x74);
        assert_eq!(ask(&mut controller, command::READ_CONFIG), 0x74);
        assert_eq!(ask(&mut controller, command::TEST_KEYBOARD), 0);
        // Interrupts were off in the configuration written.
        assert_eq!(signals(&interrupt), 0);
    }

    #[test]
    fn mouse_port_is_found_absent_without_a_wait() {
        let (mut controller, _) = controller();
        tell(&mut controller, command::LOOP_MOUSE, 0x5a);
        let aux_data = 1 << 5;
        assert_eq!(status(&mut controller) & (aux_data | status::OUTPUT_FULL), 1);
        assert_eq!(inb(&mut controller, port::DATA), 0x5a);
        // The driver takes 0x00, 0xfa and 0xff for a mouse port.
        assert_eq!(ask(&mut controller, command::TEST_MOUSE), 0x01);
    }

    #[test]
    fn keyboard_that_is_not_there_times_out_with_an_interrupt() {
        let (mut controller, interrupt) = controller();
        // atkbd: identify.
        outb(&mut controller, port::DATA, 0xf2);
        assert_eq!(signals(&interrupt), 1);
        let status_now = status(&mut controller);
        assert_eq!(status_now & 0xc1, status::TIMEOUT | status::OUTPUT_FULL);
        assert_eq!(inb(&mut controller, port::DATA), 0xfe);
        assert_eq!(status(&mut controller) & 0xc1, 0);
        tell(&mut controller, command::WRITE_CONFIG, 0x44);
        outb(&mut controller, port::DATA, 0xf2);
        assert_eq!(signals(&interrupt), 0);
    }

    #[test]
    fn byte_for_the_mouse_times_out_too() {
        let (mut controller, _) = controller();
        tell(&mut controller, command::SEND_TO_MOUSE, 0xff);
        assert_ne!(status(&mut controller) & status::TIMEOUT, 0);
        assert_eq!(inb(&mut controller, port::DATA), 0xfe);
    }

    #[test]
    fn keyboard_reset_pulse_resets_the_machine() {
        let (mut controller, _) = controller();
        // Linux's kb_wait: the input buffer is never full.
        assert_eq!(status(&mut controller) & 0x02, 0);
        assert_eq!(outb(&mut controller, port::COMMAND, 0xfe), Some(MachineRequest::Reset));
        assert_eq!(outb(&mut controller, port::COMMAND, 0xf0), Some(MachineRequest::Reset));
        // Linux pulses nothing after it has opened A20.
        assert_eq!(outb(&mut controller, port::COMMAND, 0xff), None);
    }

    #[test]
    fn output_port_resets_and_gates_a20() {
        let (mut controller, _) = controller();
        assert_eq!(ask(&mut controller, command::READ_OUTPUT_PORT), 0xcf);
        assert_eq!(tell(&mut controller, command::WRITE_OUTPUT_PORT, 0xdd), None);
        assert_eq!(ask(&mut controller, command::READ_OUTPUT_PORT), 0xdd);
        outb(&mut controller, port::COMMAND, command::ENABLE_A20);
        assert_eq!(ask(&mut controller, command::READ_OUTPUT_PORT), 0xdf);
        outb(&mut controller, port::COMMAND, command::DISABLE_A20);
        assert_eq!(ask(&mut controller, command::READ_OUTPUT_PORT), 0xdd);
        assert_eq!(
            tell(&mut controller, command::WRITE_OUTPUT_PORT, 0xde),
            Some(MachineRequest::Reset)
        );
    }

    #[test]
    fn ports_are_switched_on_and_off_in_the_configuration() {
        let (mut controller, _) = controller();
        let mut config_after = |value| {
            outb(&mut controller, port::COMMAND, value);
            ask(&mut controller, command::READ_CONFIG)
        };
        assert_eq!(config_after(command::DISABLE_KEYBOARD), 0x75);
        assert_eq!(config_after(command::ENABLE_MOUSE), 0x55);
        assert_eq!(config_after(command::DISABLE_MOUSE), 0x75);
        assert_eq!(config_after(command::ENABLE_KEYBOARD), 0x65);
    }

    #[test]
    fn emptying_the_buffer_ends() {
        let (mut controller, _) = controller();
        for value in 0..=0xff {
            outb(&mut controller, port::COMMAND, value);
            outb(&mut controller, port::DATA, value);
            inb(&mut controller, port::DATA);
            assert_eq!(status(&mut controller) & status::OUTPUT_FULL, 0);
        }
    }

    #[test]
    fn a_new_command_forgets_the_argument_of_the_last() {
        let (mut controller, _) = controller();
        outb(&mut controller, port::COMMAND, command::WRITE_OUTPUT_PORT);
        outb(&mut controller, port::COMMAND, command::SELF_TEST);
        assert_eq!(outb(&mut controller, port::DATA, 0x00), None);
    }

    #[test]
    fn ports_between_float() {
        let (mut controller, _) = controller();
        assert_eq!(inl(&mut controller, 1) & 0x00ff_ffff, 0x00ff_ffff);
        assert_eq!(outb(&mut controller, 1, 0xfe), None);
        assert_eq!(inb(&mut controller, 5), 0xff);
    }

    #[test]
    fn reset_restores_what_firmware_leaves() {
        let (mut controller, _) = controller();
        tell(&mut controller, command::WRITE_CONFIG, 0xff);
        outb(&mut controller, port::DATA, 0xf2);
        outb(&mut controller, port::COMMAND, command::WRITE_OUTPUT_PORT);
        controller.reset();
        assert_eq!(status(&mut controller), 0x1c);
        assert_eq!(ask(&mut controller, command::READ_CONFIG), config::DEFAULT);
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(I8042::PORTS)) {
            perform(&mut controller().0, &accesses);
        }
    }
}
