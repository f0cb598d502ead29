//! Dates of the proleptic Gregorian calendar in UTC, to and from seconds since 1970.

#![cfg_attr(not(test), forbid(unsafe_code))]

const SECONDS_PER_DAY: i64 = 86_400;
/// Days in 400 years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_EPOCH: i64 = 719_468;

/// A moment of UTC, to the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    /// 1 to 7, from Sunday.
    pub weekday: i64,
    /// 0 to 23.
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

/// The moment `seconds` after the start of 1970.
pub(super) fn from_unix(seconds: i64) -> DateTime {
    let days = seconds.div_euclid(SECONDS_PER_DAY);
    let time = seconds.rem_euclid(SECONDS_PER_DAY);
    // Years are counted from March here, so that the leap day is a year's last.
    let shifted = days + DAYS_TO_EPOCH;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = (month_from_march + 2) % 12 + 1;
    DateTime {
        year: era * 400 + year_of_era + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
        // 1 January 1970 was a Thursday.
        weekday: (days + 4).rem_euclid(7) + 1,
        hour: time / 3_600,
        minute: time / 60 % 60,
        second: time % 60,
    }
}

/// Seconds from the start of 1970. The weekday is not looked at; a month outside the year counts as its nearest, other fields
/// outside their range carry into the next greater one.
pub(super) fn to_unix(moment: &DateTime) -> i64 {
    let month = moment.month.clamp(1, 12);
    let year = moment.year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + moment.day - 1;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * DAYS_PER_ERA + day_of_era - DAYS_TO_EPOCH;
    days * SECONDS_PER_DAY + moment.hour * 3_600 + moment.minute * 60 + moment.second
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use super::*;
    use proptest::prelude::*;

    /// What the C library makes of the same moment.
    fn libc_gmtime(seconds: i64) -> DateTime {
        // SAFETY: all zeros is a valid `tm`.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals, and the result is the second of them.
        let result = unsafe { libc::gmtime_r(&seconds, &mut tm) };
        assert!(!result.is_null());
        DateTime {
            year: i64::from(tm.tm_year) + 1900,
            month: i64::from(tm.tm_mon) + 1,
            day: tm.tm_mday.into(),
            weekday: i64::from(tm.tm_wday) + 1,
            hour: tm.tm_hour.into(),
            minute: tm.tm_min.into(),
            second: tm.tm_sec.into(),
        }
    }

    /// The first second of the year 0 and the last of 9999: all that the clock's registers can hold.
    const RANGE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

    #[test]
    fn ends_of_the_registers_range_agree_with_libc() {
        for seconds in [*RANGE.start(), *RANGE.end(), 0, -1, 951_782_400, 4_107_542_399] {
            assert_eq!(from_unix(seconds), libc_gmtime(seconds));
            assert_eq!(to_unix(&from_unix(seconds)), seconds);
        }
        assert_eq!(
            (from_unix(*RANGE.start()).year, from_unix(*RANGE.end()).year),
            (0, 9999)
        );
    }

    #[test]
    fn every_day_of_a_century_agrees_with_libc() {
        for day in 0..36_525 {
            let noon = day * SECONDS_PER_DAY + SECONDS_PER_DAY / 2;
            assert_eq!(from_unix(noon), libc_gmtime(noon));
            assert_eq!(to_unix(&from_unix(noon)), noon);
        }
    }

    proptest! {
        #[test]
        fn random_moments_agree_with_libc(seconds in RANGE) {
            prop_assert_eq!(from_unix(seconds), libc_gmtime(seconds));
            prop_assert_eq!(to_unix(&from_unix(seconds)), seconds);
        }
    }
}
