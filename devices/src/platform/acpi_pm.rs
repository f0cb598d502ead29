//! ACPI fixed hardware: the PM1 registers and timer of PIIX4, the GPE0 block, and the SMI command port that switches ACPI on.
//!
//! Three port blocks share one state and one interrupt, the SCI: it is asserted while any event is both pending and enabled
//! (ACPI 6.5, section 4.8; QEMU hw/acpi/core.c, `acpi_update_sci`). [`AcpiPm`] makes the others.
//!
//! The PM timer sets its status bit when it overflows but raises no SCI by itself: no driver of ours enables that event, and the
//! status is found at the next access.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pci::InterruptLine;

use super::{Clock, FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// Counts of the PM timer a second (ACPI 6.5, section 4.8.2.1).
const TIMER_HZ: u128 = 3_579_545;
/// The timer is 24 bits wide (QEMU `acpi_pm_tmr_get`; its FADT does not set TMR_VAL_EXT).
const TIMER_MASK: u32 = 0x00ff_ffff;
/// The timer's status is set whenever its most significant bit changes.
const TIMER_TOP_BIT: u32 = 23;

/// PM1 status and enable bits (ACPI 6.5, tables 4.13 and 4.14).
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL_LOCK: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    /// The events that raise the SCI (QEMU `ACPI_BITMASK_PM1_COMMON_ENABLED`).
    pub const SCI_EVENTS: u16 = TIMER | GLOBAL_LOCK | POWER_BUTTON | RTC;
}

/// PM1 control bits (ACPI 6.5, table 4.15).
mod control {
    pub const SCI_ENABLE: u16 = 1 << 0;
    pub const SLEEP_TYPE_SHIFT: u16 = 10;
    pub const SLEEP_TYPE_MASK: u16 = 7;
    /// Write-only: reads as zero.
    pub const SLEEP_ENABLE: u16 = 1 << 13;
}

/// The sleep type of S5, as the DSDT's `_S5` must say (QEMU hw/acpi/core.c).
const SLEEP_TYPE_SOFT_OFF: u16 = 0;

/// Values of the SMI command port (QEMU hw/acpi/piix4.c; the FADT names them).
const ACPI_ENABLE: u8 = 0xf1;
const ACPI_DISABLE: u8 = 0xf0;

/// The registers of the PM1 block: first byte, and what it is. The rest of the 64 bytes floats.
#[derive(Clone, Copy)]
enum Register {
    Status,
    Enable,
    Control,
    Timer,
}

/// (first byte, bytes, register), as the FADT describes them relative to the block's base.
const REGISTERS: [(u16, u16, Register); 4] = [
    (0x00, 2, Register::Status),
    (0x02, 2, Register::Enable),
    (0x04, 2, Register::Control),
    (0x08, 4, Register::Timer),
];

/// The register at a byte of the block, and which of its bytes that is.
fn register_at(offset: u16) -> Option<(Register, usize)> {
    REGISTERS.iter().find_map(|(first, size, register)| {
        let byte = offset.checked_sub(*first)?;
        (byte < *size).then_some((*register, usize::from(byte)))
    })
}

/// Bytes of GPE status, followed by as many of enables.
const GPE_BYTES: usize = 2;

#[derive(Default)]
struct Registers {
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    /// The timer's half-periods at the last look, to tell whether its top bit has changed since.
    timer_halves_seen: u128,
    gpe_status: [u8; GPE_BYTES],
    gpe_enable: [u8; GPE_BYTES],
    apm_command: u8,
    apm_status: u8,
}

struct Shared {
    registers: Registers,
    clock: Clock,
    sci: Arc<dyn InterruptLine>,
}

impl Shared {
    /// Timer counts since the machine was made, not cut to 24 bits.
    fn timer(&self) -> u128 {
        (self.clock)().as_nanos().saturating_mul(TIMER_HZ) / 1_000_000_000
    }

    /// Brings the timer's status up to date.
    fn observe_timer(&mut self) {
        let halves = self.timer() >> TIMER_TOP_BIT;
        if halves != self.registers.timer_halves_seen {
            self.registers.timer_halves_seen = halves;
            self.registers.pm1_status |= pm1::TIMER;
        }
    }

    fn update_sci(&self) {
        let registers = &self.registers;
        let fixed = registers.pm1_status & registers.pm1_enable & pm1::SCI_EVENTS != 0;
        let general = registers
            .gpe_status
            .iter()
            .zip(registers.gpe_enable)
            .any(|(status, enable)| status & enable != 0);
        self.sci.set_level(fixed || general);
    }

    fn write_pm1(&mut self, register: Register, byte: usize, value: u8) -> Option<MachineRequest> {
        // The timer alone has bytes that do not fit, and it is read-only.
        let in_place = |byte_value: u8| (u32::from(byte_value) << (8 * byte)) as u16;
        let bits = in_place(value);
        let kept = !in_place(0xff);
        let registers = &mut self.registers;
        match register {
            Register::Timer => {}
            Register::Status => registers.pm1_status &= !bits,
            Register::Enable => registers.pm1_enable = registers.pm1_enable & kept | bits,
            Register::Control => {
                registers.pm1_control = (registers.pm1_control & kept | bits) & !control::SLEEP_ENABLE;
                let sleep_type = (bits >> control::SLEEP_TYPE_SHIFT) & control::SLEEP_TYPE_MASK;
                // The other types are suspend states, which the DSDT does not offer.
                if bits & control::SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_SOFT_OFF {
                    return Some(MachineRequest::PowerOff);
                }
            }
        }
        None
    }

    fn reset(&mut self) {
        self.registers = Registers {
            timer_halves_seen: self.timer() >> TIMER_TOP_BIT,
            ..Registers::default()
        };
        self.update_sci();
    }
}

/// A handle on the state that the port blocks share.
#[derive(Clone)]
struct Handle(Arc<Mutex<Shared>>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The PM1 event and control registers and the PM timer: 64 ports, at 0x600 unless the guest moves them.
pub struct AcpiPm(Handle);

impl AcpiPm {
    /// The block's size in ports.
    pub const PORTS: u16 = 64;

    /// Makes the block. `sci` is the SCI's input, level-triggered.
    pub fn new(sci: Arc<dyn InterruptLine>) -> Self {
        let start = Instant::now();
        Self::with_clock(sci, Box::new(move || start.elapsed()))
    }

    /// Makes the block over a clock that counts from the machine's start.
    pub fn with_clock(sci: Arc<dyn InterruptLine>, clock: Clock) -> Self {
        let shared = Shared {
            registers: Registers::default(),
            clock,
            sci,
        };
        Self(Handle(Arc::new(Mutex::new(shared))))
    }

    /// The GPE0 block that belongs to this one.
    pub fn gpe(&self) -> Gpe {
        Gpe(self.0.clone())
    }

    /// The SMI command port that belongs to this block.
    pub fn apm_control(&self) -> ApmControl {
        ApmControl(self.0.clone())
    }

    /// A handle through which other threads raise events.
    pub fn events(&self) -> PmEvents {
        PmEvents(self.0.clone())
    }
}

impl PortDevice for AcpiPm {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        let mut shared = self.0.lock();
        shared.observe_timer();
        // Once an access, so that a dword read of the timer is of one moment.
        let timer = (shared.timer() & u128::from(TIMER_MASK)) as u32;
        let registers = &shared.registers;
        read_bytes(offset, data, |port| {
            let Some((register, byte)) = register_at(port) else {
                return FLOATING;
            };
            let value = match register {
                Register::Status => registers.pm1_status.into(),
                Register::Enable => registers.pm1_enable.into(),
                Register::Control => registers.pm1_control.into(),
                Register::Timer => timer,
            };
            value.to_le_bytes()[byte]
        });
        shared.update_sci();
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        let mut shared = self.0.lock();
        shared.observe_timer();
        let request = write_bytes(offset, data, |port, value| {
            let (register, byte) = register_at(port)?;
            shared.write_pm1(register, byte, value)
        });
        shared.update_sci();
        request
    }

    /// Resets the state of all three blocks. The timer counts on, as in hardware.
    fn reset(&mut self) {
        self.0.lock().reset();
    }
}

/// The general-purpose event block GPE0: two bytes of status, write 1 to clear, then two of enables. At 0xafe0.
pub struct Gpe(Handle);

impl Gpe {
    /// The block's size in ports.
    pub const PORTS: u16 = 2 * GPE_BYTES as u16;
}

impl PortDevice for Gpe {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        let shared = self.0.lock();
        let registers = &shared.registers;
        read_bytes(offset, data, |port| {
            let port = usize::from(port);
            let mut block = registers.gpe_status.iter().chain(&registers.gpe_enable);
            block.nth(port).copied().unwrap_or(FLOATING)
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        let mut shared = self.0.lock();
        write_bytes(offset, data, |port, value| {
            let port = usize::from(port);
            let registers = &mut shared.registers;
            if let Some(status) = registers.gpe_status.get_mut(port) {
                *status &= !value;
            } else if let Some(enable) = registers.gpe_enable.get_mut(port.saturating_sub(GPE_BYTES)) {
                *enable = value;
            }
            None
        });
        shared.update_sci();
        None
    }

    fn reset(&mut self) {
        let mut shared = self.0.lock();
        shared.registers.gpe_status = [0; GPE_BYTES];
        shared.registers.gpe_enable = [0; GPE_BYTES];
        shared.update_sci();
    }
}

/// Advanced power management control: the SMI command port 0xb2 and its status port 0xb3. There is no SMM: the commands that
/// switch ACPI on and off act at once, the others only read back.
pub struct ApmControl(Handle);

impl ApmControl {
    /// The device's size in ports.
    pub const PORTS: u16 = 2;
}

impl PortDevice for ApmControl {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        let shared = self.0.lock();
        read_bytes(offset, data, |port| match port {
            0 => shared.registers.apm_command,
            1 => shared.registers.apm_status,
            _ => FLOATING,
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        let mut shared = self.0.lock();
        let registers = &mut shared.registers;
        write_bytes(offset, data, |port, value| {
            match (port, value) {
                (0, ACPI_ENABLE) => registers.pm1_control |= control::SCI_ENABLE,
                (0, ACPI_DISABLE) => registers.pm1_control &= !control::SCI_ENABLE,
                _ => {}
            }
            match port {
                0 => registers.apm_command = value,
                1 => registers.apm_status = value,
                _ => {}
            }
            None
        })
    }

    fn reset(&mut self) {
        let registers = &mut self.0.lock().registers;
        registers.apm_command = 0;
        registers.apm_status = 0;
    }
}

/// Raises ACPI events from any thread.
#[derive(Clone)]
pub struct PmEvents(Handle);

impl PmEvents {
    /// Presses the power button. Returns whether the guest listens: false when it has not enabled the event.
    pub fn press_power_button(&self) -> bool {
        let mut shared = self.0.lock();
        shared.registers.pm1_status |= pm1::POWER_BUTTON;
        shared.update_sci();
        shared.registers.pm1_enable & pm1::POWER_BUTTON != 0
    }

    /// Raises general-purpose event `number`, 0 to 15; a greater number raises nothing.
    pub fn raise_general_event(&self, number: u8) {
        let mut shared = self.0.lock();
        let byte = usize::from(number / 8);
        if let Some(status) = shared.registers.gpe_status.get_mut(byte) {
            *status |= 1 << (number % 8);
        }
        shared.update_sci();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::testing::{TestClock, TestLine, accesses, inb, inl, inw, outb, outw, perform};
    use super::*;

    const STATUS: u16 = 0;
    const ENABLE: u16 = 2;
    const CONTROL: u16 = 4;
    const TIMER: u16 = 8;

    fn pm() -> (AcpiPm, Arc<TestLine>, TestClock) {
        let line = Arc::new(TestLine::default());
        let clock = TestClock::default();
        let pm = AcpiPm::with_clock(line.clone(), clock.clock());
        (pm, line, clock)
    }

    #[test]
    fn timer_counts_at_its_frequency_and_wraps_at_24_bits() {
        let (mut pm, _, clock) = pm();
        assert_eq!(inl(&mut pm, TIMER), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(inl(&mut pm, TIMER), 3_579_545);
        clock.advance(Duration::from_secs(4));
        assert_eq!(inl(&mut pm, TIMER), (5 * 3_579_545) & 0xff_ffff);
    }

    #[test]
    fn timer_can_be_read_in_pieces() {
        let (mut pm, _, clock) = pm();
        clock.advance(Duration::from_secs(3));
        let [b0, b1, b2, b3] = (3 * 3_579_545_u32).to_le_bytes();
        assert_eq!(inw(&mut pm, TIMER + 2), u16::from_le_bytes([b2, b3]));
        assert_eq!(inb(&mut pm, TIMER + 1), b1);
        assert_eq!(inb(&mut pm, TIMER), b0);
        pm.write(TIMER, &[0; 4]);
        outb(&mut pm, TIMER + 3, 0xff);
        assert_eq!(inb(&mut pm, TIMER), b0);
    }

    #[test]
    fn timer_status_is_set_when_the_top_bit_changes_and_can_be_cleared() {
        let (mut pm, line, clock) = pm();
        outw(&mut pm, ENABLE, pm1::TIMER);
        assert_eq!(inw(&mut pm, STATUS), 0);
        clock.advance(Duration::from_secs(3));
        assert_eq!(inw(&mut pm, STATUS), pm1::TIMER);
        assert!(line.level());
        outw(&mut pm, STATUS, pm1::TIMER);
        assert_eq!(inw(&mut pm, STATUS), 0);
        assert!(!line.level());
        clock.advance(Duration::from_secs(3));
        assert_eq!(inw(&mut pm, STATUS), pm1::TIMER);
    }

    #[test]
    fn soft_off_is_sleep_type_zero() {
        let (mut pm, _, _) = pm();
        assert_eq!(outw(&mut pm, CONTROL, 0x2001), Some(MachineRequest::PowerOff));
        assert_eq!(inw(&mut pm, CONTROL), 0x0001);
        // The high byte alone holds both type and enable.
        assert_eq!(outb(&mut pm, CONTROL + 1, 0x20), Some(MachineRequest::PowerOff));
        // An unaligned access reaches it as well.
        assert_eq!(pm.write(3, &[0, 0, 0x20, 0]), Some(MachineRequest::PowerOff));
    }

    #[test]
    fn sleep_type_without_enable_and_other_sleep_types_do_nothing() {
        let (mut pm, _, _) = pm();
        assert_eq!(outw(&mut pm, CONTROL, 0x0001), None);
        for sleep_type in 1..8 {
            assert_eq!(outw(&mut pm, CONTROL, 0x2001 | sleep_type << 10), None);
            assert_eq!(inw(&mut pm, CONTROL), 0x0001 | sleep_type << 10);
        }
    }

    #[test]
    fn power_button_raises_the_sci_only_when_enabled() {
        let (mut pm, line, _) = pm();
        let events = pm.events();
        assert!(!events.press_power_button());
        assert!(!line.level());
        assert_eq!(inw(&mut pm, STATUS), pm1::POWER_BUTTON);
        outw(&mut pm, STATUS, pm1::POWER_BUTTON);
        outw(&mut pm, ENABLE, pm1::POWER_BUTTON);
        assert!(!line.level());
        assert!(events.press_power_button());
        assert!(line.level());
        // Clearing another bit keeps it, clearing the right byte lowers it.
        outw(&mut pm, STATUS, !pm1::POWER_BUTTON);
        assert!(line.level());
        outb(&mut pm, STATUS + 1, 0x01);
        assert!(!line.level());
    }

    #[test]
    fn sci_follows_the_enable_register_too() {
        let (mut pm, line, _) = pm();
        pm.events().press_power_button();
        outb(&mut pm, ENABLE + 1, 0x01);
        assert!(line.level());
        outb(&mut pm, ENABLE + 1, 0x00);
        assert!(!line.level());
    }

    #[test]
    fn smi_command_port_switches_acpi_on_and_off() {
        let (mut pm, _, _) = pm();
        let mut apm = pm.apm_control();
        assert_eq!(inw(&mut pm, CONTROL), 0);
        outb(&mut apm, 0, ACPI_ENABLE);
        assert_eq!(inw(&mut pm, CONTROL), control::SCI_ENABLE);
        outb(&mut apm, 0, 0x55);
        assert_eq!(inw(&mut pm, CONTROL), control::SCI_ENABLE);
        outw(&mut apm, 0, 0xaaf0);
        assert_eq!(inw(&mut pm, CONTROL), 0);
        assert_eq!(inl(&mut apm, 0), 0xffff_aaf0);
        // The status port takes any value without acting on it.
        outb(&mut apm, 1, ACPI_ENABLE);
        assert_eq!(inw(&mut pm, CONTROL), 0);
    }

    #[test]
    fn general_events_are_enabled_and_cleared_by_bytes() {
        let (pm, line, _) = pm();
        let mut gpe = pm.gpe();
        let events = pm.events();
        events.raise_general_event(1);
        events.raise_general_event(9);
        events.raise_general_event(16);
        assert_eq!(inw(&mut gpe, 0), 0x0202);
        assert!(!line.level());
        outb(&mut gpe, 3, 0x02);
        assert!(line.level());
        outb(&mut gpe, 1, 0xff);
        assert!(!line.level());
        outw(&mut gpe, 2, 0x0002);
        assert!(line.level());
        assert_eq!(inl(&mut gpe, 0), 0x0002_0002);
        assert_eq!(inb(&mut gpe, 4), 0xff);
    }

    #[test]
    fn rest_of_the_block_floats() {
        let (mut pm, _, _) = pm();
        assert_eq!(inw(&mut pm, 6), 0xffff);
        assert_eq!(inl(&mut pm, 0x0c), 0xffff_ffff);
        assert_eq!(inl(&mut pm, 0x3e), 0xffff_ffff);
        assert_eq!(outw(&mut pm, u16::MAX, 0x2020), None);
    }

    #[test]
    fn reset_clears_registers_and_lowers_the_sci() {
        let (mut pm, line, clock) = pm();
        outw(&mut pm, ENABLE, 0xffff);
        outw(&mut pm, CONTROL, 0x0001);
        pm.events().press_power_button();
        clock.advance(Duration::from_secs(3));
        assert!(line.level());
        pm.reset();
        assert!(!line.level());
        assert_eq!(inl(&mut pm, 0), 0);
        assert_eq!(inw(&mut pm, CONTROL), 0);
        assert_ne!(inl(&mut pm, TIMER), 0);
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(
            first in accesses(AcpiPm::PORTS), second in accesses(Gpe::PORTS), third in accesses(ApmControl::PORTS),
        ) {
            let (mut pm, _, _) = pm();
            let (mut gpe, mut apm) = (pm.gpe(), pm.apm_control());
            perform(&mut pm, &first);
            perform(&mut gpe, &second);
            perform(&mut apm, &third);
            perform(&mut pm, &first);
        }
    }
}
