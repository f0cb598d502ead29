//! The real-time clock and CMOS memory, an MC146818 at ports 0x70 and 0x71, with the memory sizes that a PC's firmware leaves
//! there (Motorola MC146818 datasheet; QEMU hw/rtc/mc146818rtc.c and `pc_cmos_init`).
//!
//! The guest's clock is the host's UTC plus an offset, which the guest changes when it sets the time; nothing ticks. Flags are worked
//! out from the time that has passed when they are looked at. Only while the guest has an interrupt enabled is a timer armed,
//! for the moment of the next one: the caller waits for [`Cmos::timer_fd`] and calls [`Cmos::timer_expired`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::calendar::{self, DateTime};
use super::{Clock, FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// Bytes of the memory. The index register's bit 7 masks NMIs and is not part of the address.
const MEMORY_BYTES: usize = 128;
const INDEX_MASK: u8 = 0x7f;

/// Addresses in the memory.
mod address {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const DAY_OF_WEEK: u8 = 0x06;
    pub const DAY_OF_MONTH: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const STATUS_A: u8 = 0x0a;
    pub const STATUS_B: u8 = 0x0b;
    pub const STATUS_C: u8 = 0x0c;
    pub const STATUS_D: u8 = 0x0d;
    /// What the machine has, as firmware found it.
    pub const EQUIPMENT: u8 = 0x14;
    /// Memory below 640 KiB in KiB, two bytes.
    pub const BASE_MEMORY: u8 = 0x15;
    /// Memory above 1 MiB in KiB, at most 65535, two bytes.
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// The same, as firmware measured it.
    pub const EXTENDED_MEMORY_ACTUAL: u8 = 0x30;
    pub const CENTURY: u8 = 0x32;
    /// Memory from 16 MiB to 4 GiB in 64 KiB units, two bytes.
    pub const HIGH_MEMORY: u8 = 0x34;
    /// Where PS/2 machines keep the century; the same byte as [`CENTURY`].
    pub const CENTURY_PS2: u8 = 0x37;
    /// Memory above 4 GiB in 64 KiB units, three bytes.
    pub const ABOVE_4G_MEMORY: u8 = 0x5b;
}

/// The registers that hold the time, in the order of a [`TimeRegisters`].
const TIME_ADDRESSES: [u8; 8] = [
    address::SECONDS,
    address::MINUTES,
    address::HOURS,
    address::DAY_OF_WEEK,
    address::DAY_OF_MONTH,
    address::MONTH,
    address::YEAR,
    address::CENTURY,
];
type TimeRegisters = [u8; TIME_ADDRESSES.len()];

/// Status register A.
mod status_a {
    pub const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    pub const DIVIDER_MASK: u8 = 7 << 4;
    /// From this divider setting on, the divider chain is held in reset and the clock stands.
    pub const DIVIDER_RESET: u8 = 6 << 4;
    pub const RATE_MASK: u8 = 0x0f;
    /// A 32.768 kHz crystal and a periodic rate of 1024 Hz, as a PC's firmware leaves it.
    pub const DEFAULT: u8 = 2 << 4 | 6;
}

/// Status register B.
mod status_b {
    pub const SET: u8 = 1 << 7;
    pub const BINARY: u8 = 1 << 2;
    pub const HOURS_24: u8 = 1 << 1;
    pub const SQUARE_WAVE: u8 = 1 << 3;
}

/// Flags of status register C; the first three stand at the same bits as their enables in B.
mod flag {
    pub const PERIODIC: u8 = 1 << 6;
    pub const ALARM: u8 = 1 << 5;
    pub const UPDATE_ENDED: u8 = 1 << 4;
    pub const SOURCES: u8 = PERIODIC | ALARM | UPDATE_ENDED;
    pub const INTERRUPT: u8 = 1 << 7;
}

/// Status register D: the battery is good.
const VALID_TIME: u8 = 1 << 7;
/// Equipment byte: a floating-point unit, and neither display, floppy drive nor mouse.
const EQUIPMENT_FPU: u8 = 1 << 1;
/// Afternoon, in the hours of a 12-hour clock.
const PM: u8 = 1 << 7;
/// An alarm register with both top bits set matches every value.
const ALARM_ANY: u8 = 0xc0;

const NANOSECONDS: i128 = 1_000_000_000;
/// How long before an update the chip announces it: 8 periods of its crystal.
const UPDATE_ANNOUNCEMENT: i128 = 8 * NANOSECONDS / CRYSTAL_HZ;
const CRYSTAL_HZ: i128 = 32_768;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How much memory the guest has, in bytes, on either side of the hole below 4 GiB.
#[derive(Clone, Copy, Debug)]
pub struct MemorySize {
    /// Below the hole.
    pub below_4g: u64,
    /// From 4 GiB on.
    pub above_4g: u64,
}

/// The real-time clock and CMOS memory, two ports at 0x70.
pub struct Cmos {
    index: u8,
    memory: [u8; MEMORY_BYTES],
    clock: Clock,
    /// The guest's time minus the host's, in nanoseconds.
    offset: i128,
    /// What the guest has written over the time while the clock stands.
    stopped: Option<TimeRegisters>,
    /// Flags raised and not yet read.
    flags: u8,
    /// Up to which guest time events are accounted for in `flags`.
    observed: i128,
    interrupt: EventFd,
    timer: TimerFd,
    armed: bool,
}

impl Cmos {
    /// The device's size in ports.
    pub const PORTS: u16 = 2;

    /// Makes a clock that starts at the host's UTC. `interrupt` is signalled for IRQ 8, an edge each.
    pub fn new(memory: MemorySize, interrupt: EventFd) -> io::Result<Self> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::with_clock(memory, interrupt, Box::new(now))
    }

    /// Makes a clock over `clock`, which counts from the start of 1970.
    pub fn with_clock(memory: MemorySize, interrupt: EventFd, clock: Clock) -> io::Result<Self> {
        let mut cmos = Self {
            index: 0,
            memory: [0; MEMORY_BYTES],
            clock,
            offset: 0,
            stopped: None,
            flags: 0,
            observed: 0,
            interrupt,
            timer: TimerFd::new().map_err(io::Error::from)?,
            armed: false,
        };
        cmos.observed = cmos.now();
        cmos.put(address::STATUS_A, status_a::DEFAULT);
        cmos.put(address::STATUS_B, status_b::HOURS_24);
        cmos.put(address::STATUS_D, VALID_TIME);
        cmos.put(address::EQUIPMENT, EQUIPMENT_FPU);
        cmos.put_memory_sizes(memory);
        Ok(cmos)
    }

    /// Becomes readable when an interrupt that the guest has enabled is due. The descriptor lives as long as the device.
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Raises what is due and waits for the next. For the caller to call when the timer's descriptor is readable.
    pub fn timer_expired(&mut self) {
        self.observe();
        // Setting the timer anew also makes its descriptor unreadable, without a read that another thread could have got ahead of.
        self.arm_timer();
    }

    /// How long until an interrupt that the guest has enabled; none while none is or one is still unread.
    pub fn next_interrupt(&self) -> Option<Duration> {
        let enabled = self.get(address::STATUS_B) & flag::SOURCES;
        if enabled == 0 || self.flags & flag::INTERRUPT != 0 {
            return None;
        }
        let now = self.now();
        let due = self
            .events_after(now)
            .into_iter()
            .filter(|(source, _)| enabled & source != 0)
            .filter_map(|(_, due)| due)
            .min()?;
        u64::try_from(due.saturating_sub(now)).ok().map(Duration::from_nanos)
    }

    fn get(&self, address: u8) -> u8 {
        self.memory[usize::from(address & INDEX_MASK)]
    }

    fn put(&mut self, address: u8, value: u8) {
        self.memory[usize::from(address & INDEX_MASK)] = value;
    }

    fn put_memory_sizes(&mut self, memory: MemorySize) {
        let above = |start: u64| memory.below_4g.saturating_sub(start);
        let base = memory.below_4g.min(640 * KIB) / KIB;
        let extended = (above(MIB) / KIB).min(u16::MAX.into());
        let high = (above(16 * MIB) / (64 * KIB)).min(u16::MAX.into());
        let above_4g = memory.above_4g / (64 * KIB);
        for (first, bytes, value) in [
            (address::BASE_MEMORY, 2, base),
            (address::EXTENDED_MEMORY, 2, extended),
            (address::EXTENDED_MEMORY_ACTUAL, 2, extended),
            (address::HIGH_MEMORY, 2, high),
            (address::ABOVE_4G_MEMORY, 3, above_4g),
        ] {
            for (address, byte) in (first..).zip(value.to_le_bytes()).take(bytes) {
                self.put(address, byte);
            }
        }
    }

    /// The guest's time in nanoseconds since 1970.
    fn now(&self) -> i128 {
        self.host_now().saturating_add(self.offset)
    }

    fn host_now(&self) -> i128 {
        i128::try_from((self.clock)().as_nanos()).unwrap_or(i128::MAX)
    }

    /// Whether the guest lets the clock run.
    fn runs(&self) -> bool {
        self.get(address::STATUS_B) & status_b::SET == 0 && !self.divider_is_reset()
    }

    fn divider_is_reset(&self) -> bool {
        self.get(address::STATUS_A) & status_a::DIVIDER_MASK >= status_a::DIVIDER_RESET
    }

    fn read_memory(&mut self, address: u8) -> u8 {
        if let Some(register) = TIME_ADDRESSES.iter().position(|time| *time == address) {
            return self.time_registers()[register];
        }
        match address {
            address::STATUS_A => self.get(address) | self.update_in_progress(),
            address::STATUS_C => {
                self.observe();
                let flags = std::mem::take(&mut self.flags);
                self.arm_timer();
                flags
            }
            _ => self.get(address),
        }
    }

    fn write_memory(&mut self, address: u8, value: u8) {
        // Events up to now belong to the old settings.
        self.observe();
        if let Some(register) = TIME_ADDRESSES.iter().position(|time| *time == address) {
            let mut registers = self.time_registers();
            registers[register] = value;
            match &mut self.stopped {
                Some(stopped) => *stopped = registers,
                None => self.set_time(registers, None),
            }
            return;
        }
        match address {
            // The first update follows half a second after the divider chain is let go.
            address::STATUS_A => self.change_running(NANOSECONDS / 2, |cmos| {
                cmos.put(address, value & !status_a::UPDATE_IN_PROGRESS);
            }),
            address::STATUS_B => self.change_running(0, |cmos| cmos.put(address, value)),
            address::STATUS_C | address::STATUS_D => {}
            _ => self.put(address, value),
        }
        self.raise(0);
        self.arm_timer();
    }

    /// Makes a change of the status registers, and stops the clock, or starts it `phase` into its second, when it says so.
    fn change_running(&mut self, phase: i128, change: impl FnOnce(&mut Self)) {
        let registers = self.time_registers();
        change(self);
        match (self.runs(), self.stopped) {
            (false, None) => self.stopped = Some(registers),
            (true, Some(registers)) => self.set_time(registers, Some(phase)),
            _ => {}
        }
    }

    /// The time as the registers show it.
    fn time_registers(&self) -> TimeRegisters {
        if let Some(stopped) = self.stopped {
            return stopped;
        }
        let seconds = self.now().div_euclid(NANOSECONDS);
        let time = calendar::from_unix(i64::try_from(seconds).unwrap_or(0));
        let century = time.year.div_euclid(100);
        [
            self.encode(time.second),
            self.encode(time.minute),
            self.encode_hour(time.hour),
            self.encode(time.weekday),
            self.encode(time.day),
            self.encode(time.month),
            self.encode(time.year.rem_euclid(100)),
            self.encode(century.rem_euclid(100)),
        ]
    }

    /// Lets the clock run on from what `registers` say, `phase` into that second; without one, as far into it as it is now.
    fn set_time(&mut self, registers: TimeRegisters, phase: Option<i128>) {
        let [second, minute, hour, _, day, month, year, century] = registers;
        let moment = DateTime {
            year: self.decode(century) * 100 + self.decode(year),
            month: self.decode(month),
            day: self.decode(day),
            weekday: 0,
            hour: self.decode_hour(hour),
            minute: self.decode(minute),
            second: self.decode(second),
        };
        let phase = phase.unwrap_or(self.now().rem_euclid(NANOSECONDS));
        let set = i128::from(calendar::to_unix(&moment)) * NANOSECONDS + phase;
        self.stopped = None;
        self.offset = set.saturating_sub(self.host_now());
        self.observed = set;
    }

    /// A number as the time registers hold it, in the form that status register B chooses.
    fn encode(&self, value: i64) -> u8 {
        let value = u8::try_from(value.clamp(0, 99)).unwrap_or(0);
        if self.get(address::STATUS_B) & status_b::BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, register: u8) -> i64 {
        if self.get(address::STATUS_B) & status_b::BINARY != 0 {
            register.into()
        } else {
            i64::from(register >> 4) * 10 + i64::from(register & 0x0f)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.get(address::STATUS_B) & status_b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, register: u8) -> i64 {
        if self.get(address::STATUS_B) & status_b::HOURS_24 != 0 {
            return self.decode(register);
        }
        let afternoon = if register & PM != 0 { 12 } else { 0 };
        self.decode(register & !PM) % 12 + afternoon
    }

    fn update_in_progress(&self) -> u8 {
        let to_update = NANOSECONDS - self.now().rem_euclid(NANOSECONDS);
        if self.runs() && to_update <= UPDATE_ANNOUNCEMENT {
            status_a::UPDATE_IN_PROGRESS
        } else {
            0
        }
    }

    /// When each source of interrupts next has an event after `moment`.
    fn events_after(&self, moment: i128) -> [(u8, Option<i128>); 3] {
        let update = (moment.div_euclid(NANOSECONDS) + 1) * NANOSECONDS;
        [
            (flag::UPDATE_ENDED, self.runs().then_some(update)),
            (flag::ALARM, self.next_alarm(moment)),
            (flag::PERIODIC, self.next_period(moment)),
        ]
    }

    fn next_period(&self, moment: i128) -> Option<i128> {
        // Rates 1 and 2 are those of 8 and 9 (datasheet, table 5).
        let rate = match self.get(address::STATUS_A) & status_a::RATE_MASK {
            0 => return None,
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        if self.divider_is_reset() {
            return None;
        }
        // In periods of the crystal, rounded so that the result is after `moment`.
        let period = 1_i128 << (rate - 1);
        let ticks = (moment + 1).saturating_mul(CRYSTAL_HZ).div_euclid(NANOSECONDS);
        let due = (ticks.div_euclid(period) + 1) * period;
        Some((due * NANOSECONDS).div_euclid(CRYSTAL_HZ))
    }

    fn next_alarm(&self, moment: i128) -> Option<i128> {
        if !self.runs() {
            return None;
        }
        let wanted = |address, decode: fn(&Self, u8) -> i64| {
            let register = self.get(address);
            (register & ALARM_ANY != ALARM_ANY).then(|| decode(self, register))
        };
        let hour = wanted(address::HOURS_ALARM, Self::decode_hour);
        let minute = wanted(address::MINUTES_ALARM, Self::decode);
        let second = wanted(address::SECONDS_ALARM, Self::decode);
        let beyond = |wanted: Option<i64>, range| wanted.is_some_and(|wanted| wanted >= range);
        if beyond(hour, 24) || beyond(minute, 60) || beyond(second, 60) {
            return None;
        }
        let differs = |wanted: Option<i64>, is: i64| wanted.is_some_and(|wanted| wanted != is);

        let start = i64::try_from(moment.div_euclid(NANOSECONDS)).ok()? + 1;
        let mut candidate = start;
        // Some second of the next day matches, and every step but the last 60 skips an hour or a minute.
        while candidate - start <= 86_400 {
            let time = calendar::from_unix(candidate);
            if differs(hour, time.hour) {
                candidate += 3_600 - time.minute * 60 - time.second;
            } else if differs(minute, time.minute) {
                candidate += 60 - time.second;
            } else if differs(second, time.second) {
                candidate += 1;
            } else {
                return Some(i128::from(candidate) * NANOSECONDS);
            }
        }
        None
    }

    /// Raises the flags of what has happened since the last look.
    fn observe(&mut self) {
        let now = self.now();
        let mut raised = 0;
        for (source, due) in self.events_after(self.observed) {
            if due.is_some_and(|due| due <= now) {
                raised |= source;
            }
        }
        self.observed = now;
        self.raise(raised);
    }

    /// Adds flags, and raises the interrupt when an enabled one is the first to be up.
    fn raise(&mut self, raised: u8) {
        self.flags |= raised;
        let enabled = self.flags & self.get(address::STATUS_B) & flag::SOURCES;
        if enabled != 0 && self.flags & flag::INTERRUPT == 0 {
            self.flags |= flag::INTERRUPT;
            if let Err(error) = self.interrupt.write(1) {
                tracing::warn!("real-time clock: raising its interrupt failed: {error}");
            }
        }
    }

    /// Arms the timer for the next enabled interrupt, or disarms it.
    fn arm_timer(&mut self) {
        let next = self.next_interrupt();
        let result = match next {
            // A timer of zero would never expire.
            Some(wait) => self.timer.reset(wait.max(Duration::from_nanos(1)), None),
            None if self.armed => self.timer.clear(),
            None => Ok(()),
        };
        self.armed = next.is_some();
        if let Err(error) = result {
            tracing::warn!("real-time clock: setting its timer failed: {error}");
        }
    }
}

impl PortDevice for Cmos {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        read_bytes(offset, data, |port| match port {
            // The index register is write-only.
            1 => self.read_memory(self.index),
            _ => FLOATING,
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        write_bytes(offset, data, |port, value| {
            match port {
                0 => {
                    self.index = match value & INDEX_MASK {
                        address::CENTURY_PS2 => address::CENTURY,
                        index => index,
                    }
                }
                1 => self.write_memory(self.index, value),
                _ => {}
            }
            None
        })
    }

    /// A battery keeps time and memory through a reset; interrupts are off after it.
    fn reset(&mut self) {
        self.index = 0;
        let kept = self.get(address::STATUS_B) & !(flag::SOURCES | status_b::SQUARE_WAVE);
        self.put(address::STATUS_B, kept);
        self.flags = 0;
        self.observed = self.now();
        self.arm_timer();
    }
}

#[cfg(test)]
#[path = "cmos_tests.rs"]
mod tests;
