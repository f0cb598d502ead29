//! Tests of the real-time clock.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::super::testing::{TestClock, accesses, event, inb, inw, outb, outw, perform, signals};
use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday, and 100 ms.
const LEAP_DAY: u64 = 1_709_251_198_100_000_000;

fn cmos_at(nanoseconds: u64) -> (Cmos, TestClock, EventFd) {
    let memory = MemorySize {
        below_4g: 512 * MIB,
        above_4g: 0,
    };
    let (interrupt, kept) = event();
    let clock = TestClock::at(nanoseconds);
    let cmos = Cmos::with_clock(memory, interrupt, clock.clock()).unwrap();
    (cmos, clock, kept)
}

fn get(cmos: &mut Cmos, address: u8) -> u8 {
    outb(cmos, 0, address);
    inb(cmos, 1)
}

fn set(cmos: &mut Cmos, address: u8, value: u8) {
    outb(cmos, 0, address);
    outb(cmos, 1, value);
}

fn time(cmos: &mut Cmos) -> TimeRegisters {
    TIME_ADDRESSES.map(|address| get(cmos, address))
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn time_is_utc_in_bcd_of_24_hours() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    assert_eq!(time(&mut cmos), [0x58, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]);
    clock.advance(milliseconds(2_000));
    assert_eq!(time(&mut cmos), [0, 0, 0, 6, 0x01, 0x03, 0x24, 0x20]);
    assert_eq!(get(&mut cmos, address::CENTURY_PS2), 0x20);
}

#[test]
fn binary_and_12_hour_forms_follow_status_b() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::BINARY | status_b::HOURS_24);
    assert_eq!(time(&mut cmos), [58, 59, 23, 5, 29, 2, 24, 20]);
    set(&mut cmos, address::STATUS_B, status_b::BINARY);
    assert_eq!(get(&mut cmos, address::HOURS), 11 | PM);
    set(&mut cmos, address::STATUS_B, 0);
    assert_eq!(get(&mut cmos, address::HOURS), 0x11 | PM);
    clock.advance(milliseconds(2_000));
    assert_eq!(get(&mut cmos, address::HOURS), 0x12);
    clock.advance(Duration::from_secs(12 * 3_600));
    assert_eq!(get(&mut cmos, address::HOURS), 0x12 | PM);
}

#[test]
fn every_hour_of_12_hour_form_is_read_as_it_was_written() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, 0);
    for hour in 0..24 {
        let register = cmos.encode_hour(hour);
        assert_eq!(cmos.decode_hour(register), hour);
    }
}

#[test]
fn status_registers_read_as_after_a_firmware() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    assert_eq!(get(&mut cmos, address::STATUS_A), 0x26);
    assert_eq!(get(&mut cmos, address::STATUS_B), 0x02);
    assert_eq!(get(&mut cmos, address::STATUS_C), 0x00);
    assert_eq!(get(&mut cmos, address::STATUS_D), 0x80);
    set(&mut cmos, address::STATUS_C, 0xff);
    set(&mut cmos, address::STATUS_D, 0x00);
    assert_eq!(get(&mut cmos, address::STATUS_C), 0x00);
    assert_eq!(get(&mut cmos, address::STATUS_D), 0x80);
}

#[test]
fn update_is_announced_244_microseconds_ahead_and_never_longer() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    let uip = |cmos: &mut Cmos| get(cmos, address::STATUS_A) & status_a::UPDATE_IN_PROGRESS;
    clock.advance(Duration::from_micros(899_755));
    assert_eq!(uip(&mut cmos), 0);
    clock.advance(Duration::from_micros(2));
    assert_ne!(uip(&mut cmos), 0);
    clock.advance(Duration::from_micros(243));
    assert_eq!(uip(&mut cmos), 0);
}

/// The order of Linux's mc146818_set_time: stop, reset the divider, write, go on.
#[test]
fn time_set_as_linux_sets_it_runs_on_after_half_a_second() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | status_b::SET);
    set(&mut cmos, address::STATUS_A, 0x76);
    clock.advance(milliseconds(5_000));
    let written = [0x30, 0x45, 0x12, 3, 0x31, 0x12, 0x99, 0x19];
    for (address, value) in TIME_ADDRESSES.into_iter().zip(written) {
        set(&mut cmos, address, value);
    }
    assert_eq!(time(&mut cmos), written);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24);
    clock.advance(milliseconds(5_000));
    assert_eq!(time(&mut cmos), written);
    set(&mut cmos, address::STATUS_A, 0x26);
    clock.advance(milliseconds(499));
    // The weekday is the date's own: 31 December 1999 was a Friday.
    assert_eq!(time(&mut cmos), [0x30, 0x45, 0x12, 6, 0x31, 0x12, 0x99, 0x19]);
    clock.advance(milliseconds(1));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x31);
    clock.advance(Duration::from_secs(12 * 3_600));
    assert_eq!(time(&mut cmos), [0x31, 0x45, 0x00, 7, 0x01, 0x01, 0x00, 0x20]);
}

#[test]
fn time_written_while_running_takes_effect_at_once_and_keeps_its_phase() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::HOURS, 0x05);
    assert_eq!(time(&mut cmos), [0x58, 0x59, 0x05, 5, 0x29, 0x02, 0x24, 0x20]);
    clock.advance(milliseconds(899));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x58);
    clock.advance(milliseconds(1));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x59);
}

#[test]
fn clock_stopped_by_set_alone_goes_on_at_the_start_of_its_second() {
    let (mut cmos, clock, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | status_b::SET);
    clock.advance(milliseconds(5_450));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x58);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24);
    clock.advance(milliseconds(999));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x58);
    clock.advance(milliseconds(1));
    assert_eq!(get(&mut cmos, address::SECONDS), 0x59);
}

#[test]
fn reset_keeps_the_time_and_disables_interrupts() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::YEAR, 0x30);
    set(&mut cmos, 0x40, 0xa5);
    set(&mut cmos, address::STATUS_B, 0x7a);
    assert!(cmos.next_interrupt().is_some());
    cmos.reset();
    assert_eq!(cmos.next_interrupt(), None);
    assert_eq!(get(&mut cmos, address::STATUS_B), 0x02);
    assert_eq!(get(&mut cmos, address::YEAR), 0x30);
    assert_eq!(get(&mut cmos, 0x40), 0xa5);
}

#[test]
fn memory_sizes_stand_where_firmware_leaves_them() {
    let sizes = |below_4g, above_4g| {
        let (interrupt, _) = event();
        let memory = MemorySize { below_4g, above_4g };
        let mut cmos = Cmos::with_clock(memory, interrupt, TestClock::default().clock()).unwrap();
        [0x15, 0x17, 0x30, 0x34, 0x5b]
            .map(|first| u16::from_le_bytes([get(&mut cmos, first), get(&mut cmos, first + 1)]))
    };
    assert_eq!(sizes(512 * MIB, 0), [640, 65535, 65535, 496 * 16, 0]);
    assert_eq!(sizes(32 * MIB, 0), [640, 31744, 31744, 256, 0]);
    assert_eq!(sizes(3072 * MIB, 3072 * MIB), [640, 65535, 65535, 3056 * 16, 3072 * 16]);
    assert_eq!(sizes(0, 0), [0; 5]);
    let (mut cmos, _, _) = cmos_at(0);
    assert_eq!(get(&mut cmos, address::EQUIPMENT), 0x02);
}

#[test]
fn terabytes_above_4g_need_the_third_byte() {
    let (interrupt, _) = event();
    let memory = MemorySize {
        below_4g: 3072 * MIB,
        above_4g: 0x12_3456 * 64 * KIB,
    };
    let mut cmos = Cmos::with_clock(memory, interrupt, TestClock::default().clock()).unwrap();
    let bytes = [0x5b, 0x5c, 0x5d].map(|address| get(&mut cmos, address));
    assert_eq!(bytes, [0x56, 0x34, 0x12]);
}

#[test]
fn nmi_mask_is_not_part_of_the_index_and_the_index_is_write_only() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    outb(&mut cmos, 0, 0x80 | address::STATUS_D);
    assert_eq!(inb(&mut cmos, 1), 0x80);
    assert_eq!(inb(&mut cmos, 0), 0xff);
    assert_eq!(inw(&mut cmos, 0), 0x80ff);
    // A word write is an index and its data.
    outw(&mut cmos, 0, 0x5a40);
    assert_eq!(get(&mut cmos, 0x40), 0x5a);
    assert_eq!(inw(&mut cmos, 2), 0xffff);
}

#[test]
fn update_interrupt_comes_every_second_once_c_is_read() {
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::UPDATE_ENDED);
    assert_eq!(cmos.next_interrupt(), Some(milliseconds(900)));
    cmos.timer_expired();
    assert_eq!(signals(&interrupt), 0);
    clock.advance(milliseconds(900));
    cmos.timer_expired();
    assert_eq!(signals(&interrupt), 1);
    assert_eq!(cmos.next_interrupt(), None);
    clock.advance(milliseconds(1_000));
    cmos.timer_expired();
    assert_eq!(signals(&interrupt), 0);
    // Midnight has passed, for which the alarm registers stand while nobody has set them.
    let expected = flag::INTERRUPT | flag::UPDATE_ENDED | flag::PERIODIC | flag::ALARM;
    assert_eq!(get(&mut cmos, address::STATUS_C), expected);
    assert_eq!(get(&mut cmos, address::STATUS_C), 0);
    assert_eq!(cmos.next_interrupt(), Some(milliseconds(1_000)));
}

#[test]
fn flags_rise_without_interrupts_for_those_who_poll() {
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY);
    assert_eq!(get(&mut cmos, address::STATUS_C), 0);
    clock.advance(milliseconds(900));
    assert_eq!(get(&mut cmos, address::STATUS_C), flag::UPDATE_ENDED | flag::PERIODIC);
    assert_eq!(signals(&interrupt), 0);
}

#[test]
fn enabling_a_source_whose_flag_is_up_interrupts_at_once() {
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY);
    clock.advance(milliseconds(900));
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::UPDATE_ENDED);
    assert_eq!(signals(&interrupt), 1);
}

#[test]
fn alarm_comes_at_its_time_of_day() {
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::HOURS_ALARM, 0x07);
    set(&mut cmos, address::MINUTES_ALARM, 0x30);
    set(&mut cmos, address::SECONDS_ALARM, 0x15);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::ALARM);
    let wait = milliseconds(1_900) + Duration::from_secs(7 * 3_600 + 30 * 60 + 15);
    assert_eq!(cmos.next_interrupt(), Some(wait));
    clock.advance(wait);
    cmos.timer_expired();
    assert_eq!(signals(&interrupt), 1);
    assert_ne!(get(&mut cmos, address::STATUS_C) & flag::ALARM, 0);
    assert_eq!(cmos.next_interrupt(), Some(Duration::from_secs(86_400)));
}

#[test]
fn alarm_fields_that_do_not_care_match_everything() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::ALARM);
    set(&mut cmos, address::HOURS_ALARM, 0xff);
    set(&mut cmos, address::MINUTES_ALARM, 0xc0);
    set(&mut cmos, address::SECONDS_ALARM, 0x10);
    assert_eq!(cmos.next_interrupt(), Some(milliseconds(11_900)));
    set(&mut cmos, address::SECONDS_ALARM, 0xff);
    assert_eq!(cmos.next_interrupt(), Some(milliseconds(900)));
}

#[test]
fn alarm_that_is_no_time_never_comes() {
    let (mut cmos, _, _) = cmos_at(LEAP_DAY);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::ALARM);
    for (address, value) in [
        (address::SECONDS_ALARM, 0x99),
        (address::MINUTES_ALARM, 0x60),
        (address::HOURS_ALARM, 0x24),
    ] {
        set(&mut cmos, address, value);
        assert_eq!(cmos.next_interrupt(), None);
        set(&mut cmos, address, 0);
    }
}

#[test]
fn periodic_interrupt_keeps_its_rate() {
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY);
    // 2 Hz.
    set(&mut cmos, address::STATUS_A, 0x2f);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::PERIODIC);
    for _ in 0..10 {
        let wait = cmos.next_interrupt().unwrap();
        clock.advance(wait);
        cmos.timer_expired();
        get(&mut cmos, address::STATUS_C);
    }
    assert_eq!(signals(&interrupt), 10);
    // Ten half seconds from 58.1 end at 63.0.
    assert_eq!(get(&mut cmos, address::SECONDS), 0x03);
    // Rate 0 is off.
    set(&mut cmos, address::STATUS_A, 0x20);
    assert_eq!(cmos.next_interrupt(), None);
}

#[test]
fn timer_descriptor_becomes_readable_when_the_interrupt_is_due() {
    // The test's clock stands 1 ns before an update; the timer's own does not stand.
    let (mut cmos, clock, interrupt) = cmos_at(LEAP_DAY + 899_999_999);
    set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | flag::UPDATE_ENDED);
    // Returns when it has expired.
    assert_eq!(cmos.timer.wait().unwrap(), 1);
    clock.advance(Duration::from_nanos(1));
    cmos.timer_expired();
    assert_eq!(signals(&interrupt), 1);
    assert!(!cmos.timer.is_armed().unwrap());
}

proptest! {
    #[test]
    fn random_accesses_are_survived(
        start in any::<u64>(), step in 0..10_000_000_000_u64, accesses in accesses(Cmos::PORTS),
    ) {
        let (mut cmos, clock, _) = cmos_at(start >> 1);
        for access in &accesses {
            perform(&mut cmos, std::slice::from_ref(access));
            clock.advance(Duration::from_nanos(step));
            cmos.next_interrupt();
        }
        cmos.timer_expired();
    }

    #[test]
    fn any_time_set_reads_back(seconds in -62_167_219_200..=253_402_300_799_i64) {
        let (mut cmos, _, _) = cmos_at(LEAP_DAY);
        let wanted = calendar::from_unix(seconds);
        set(&mut cmos, address::STATUS_B, status_b::HOURS_24 | status_b::SET);
        let registers = [
            wanted.second, wanted.minute, wanted.hour, wanted.weekday, wanted.day, wanted.month,
            wanted.year % 100, wanted.year / 100,
        ]
        .map(|value| cmos.encode(value));
        for (address, value) in TIME_ADDRESSES.into_iter().zip(registers) {
            set(&mut cmos, address, value);
        }
        set(&mut cmos, address::STATUS_B, status_b::HOURS_24);
        prop_assert_eq!(time(&mut cmos), registers);
    }
}
