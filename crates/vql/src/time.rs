//! Moments: UTC, to the nanosecond.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

mod guess;
mod layout;

pub use guess::parse_flexibly;
pub use layout::{format_layout, parse_layout};

const NANOS: i128 = 1_000_000_000;

/// A moment. The zero of stock engines is the first of January of the year 1, which is not the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

impl Time {
    /// `0001-01-01T00:00:00Z`: what an absent time is.
    pub const ZERO: Self = Self { seconds: -62_135_596_800, nanos: 0 };
    /// `1970-01-01T00:00:00Z`
    pub const EPOCH: Self = Self { seconds: 0, nanos: 0 };

    /// The moment `nanos` nanoseconds after the epoch, cut to what 64 bits of seconds hold.
    #[must_use]
    pub fn from_unix_nanos(nanos: i128) -> Self {
        let seconds = nanos.div_euclid(NANOS);
        let rest = u32::try_from(nanos.rem_euclid(NANOS)).unwrap_or(0);
        match i64::try_from(seconds) {
            Ok(seconds) => Self { seconds, nanos: rest },
            Err(_) if seconds < 0 => Self { seconds: i64::MIN, nanos: 0 },
            Err(_) => Self { seconds: i64::MAX, nanos: 0 },
        }
    }

    /// The moment `seconds` seconds after the epoch.
    #[must_use]
    pub const fn from_unix(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }

    /// The moment a fractional number of seconds after the epoch; NaN is the epoch.
    #[must_use]
    pub fn from_unix_float(seconds: f64) -> Self {
        let whole = seconds.floor();
        let nanos = ((seconds - whole) * 1e9).round();
        Self::from_unix_nanos((whole as i128).saturating_mul(NANOS).saturating_add(nanos as i128))
    }

    /// Whole seconds after the epoch.
    #[must_use]
    pub const fn unix(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds within the second.
    #[must_use]
    pub const fn subsecond_nanos(self) -> u32 {
        self.nanos
    }

    /// Nanoseconds after the epoch.
    #[must_use]
    pub fn unix_nanos(self) -> i128 {
        i128::from(self.seconds).saturating_mul(NANOS).saturating_add(i128::from(self.nanos))
    }

    /// Whether this is [`Time::ZERO`].
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Date and time of day in `zone`, and the zone's offset and name then. `None` outside the years −9999 to 9999.
    #[must_use]
    pub fn civil(self, zone: &TimeZone) -> Option<Civil> {
        let stamp = Timestamp::from_nanosecond(self.unix_nanos()).ok()?;
        let info = zone.to_offset_info(stamp);
        Some(Civil {
            date_time: info.offset().to_datetime(stamp),
            offset: info.offset().seconds(),
            abbreviation: info.abbreviation().to_owned(),
            dst: info.dst().is_dst(),
        })
    }

    /// RFC 3339 with as many digits of the second as are needed; `None` for years that four digits cannot hold.
    #[must_use]
    pub fn rfc3339(self, zone: &TimeZone) -> Option<String> {
        let civil = self.civil(zone)?;
        let date = civil.date_time;
        if date.year() < 0 {
            return None;
        }
        let mut text = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            date.year(),
            date.month(),
            date.day(),
            date.hour(),
            date.minute(),
            date.second()
        );
        if self.nanos != 0 {
            let digits = format!("{:09}", self.nanos);
            text.push('.');
            text.push_str(digits.trim_end_matches('0'));
        }
        text.push_str(&offset_text(civil.offset, true, true));
        Some(text)
    }

    /// Reads RFC 3339.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() < 20 || bytes.len() > 64 || bytes.get(10) != Some(&b'T') || !text.is_ascii() {
            return None;
        }
        let field = |from: usize, to: usize| {
            let digits = bytes.get(from..to)?;
            digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0_i32, |sum, digit| sum * 10 + i32::from(digit - b'0')))
        };
        let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
        if marks.iter().any(|(at, mark)| bytes.get(*at) != Some(mark)) {
            return None;
        }
        let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
        let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
        let mut at = 19_usize;
        let mut nanos = 0_u32;
        if matches!(bytes.get(at), Some(b'.' | b',')) {
            at += 1;
            let digits = bytes.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            for place in 0..9 {
                let digit = if place < digits { u32::from(bytes.get(at + place)?.wrapping_sub(b'0')) } else { 0 };
                nanos = nanos * 10 + digit;
            }
            at += digits;
        }
        let offset = match bytes.get(at)? {
            b'Z' if bytes.len() == at + 1 => 0,
            sign @ (b'+' | b'-') if bytes.len() == at + 6 && bytes.get(at + 3) == Some(&b':') => {
                let (hours, minutes) = (field(at + 1, at + 3)?, field(at + 4, at + 6)?);
                if hours > 24 || minutes > 59 {
                    return None;
                }
                let seconds = hours * 3600 + minutes * 60;
                if *sign == b'-' { -seconds } else { seconds }
            }
            _ => return None,
        };
        let date = civil_date_time(year, month, day, hour, minute, second)?;
        let base = jiff::tz::Offset::UTC.to_timestamp(date).ok()?.as_second();
        Some(Self { seconds: base.checked_sub(i64::from(offset))?, nanos })
    }

    /// The moment of a civil date and time in `zone`.
    #[must_use]
    pub fn from_civil(date: DateTime, zone: &TimeZone) -> Option<Self> {
        let stamp = zone.to_ambiguous_timestamp(date).compatible().ok()?;
        Some(Self::from_unix_nanos(stamp.as_nanosecond()))
    }
}

pub(crate) fn civil_date_time(year: i32, month: i32, day: i32, hour: i32, minute: i32, second: i32) -> Option<DateTime> {
    DateTime::new(
        i16::try_from(year).ok()?,
        i8::try_from(month).ok()?,
        i8::try_from(day).ok()?,
        i8::try_from(hour).ok()?,
        i8::try_from(minute).ok()?,
        i8::try_from(second).ok()?,
        0,
    )
    .ok()
}

/// A moment in some zone.
#[derive(Debug, Clone)]
pub struct Civil {
    /// Date and time of day.
    pub date_time: DateTime,
    /// Seconds east of UTC.
    pub offset: i32,
    /// `UTC`, `CET` …
    pub abbreviation: String,
    /// Summer time.
    pub dst: bool,
}

/// `+01:00`, `+0100`; `Z` for UTC if `zulu`.
pub(crate) fn offset_text(offset: i32, colon: bool, zulu: bool) -> String {
    if offset == 0 && zulu {
        return "Z".to_owned();
    }
    let minutes = offset.abs() / 60;
    let sign = if offset < 0 { '-' } else { '+' };
    let colon = if colon { ":" } else { "" };
    format!("{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60)
}

/// The zone called `name`. `Local` and `local` are the host's; `None` when there is no such zone.
#[must_use]
pub fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        "local" | "Local" => Some(TimeZone::system()),
        name => TimeZone::get(name).ok(),
    }
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rfc3339(&TimeZone::UTC) {
            Some(text) => out.write_str(&text),
            None => write!(out, "{}", self.unix_nanos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_both_ways() {
        for (text, canonical) in [
            ("2020-05-31T14:48:05Z", "2020-05-31T14:48:05Z"),
            ("2020-05-31T14:48:05.000000010Z", "2020-05-31T14:48:05.00000001Z"),
            ("2020-05-31T14:48:05.5+10:00", "2020-05-31T04:48:05.5Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(Time::parse_rfc3339(text).map(|time| time.to_string()).as_deref(), Some(canonical), "{text}");
        }
        for bad in
            ["2020-05-31 14:48:05Z", "2020-13-31T14:48:05Z", "2020-05-31T14:48:05", "2020-05-31T14:48:05.Z", "", "2020-05-31T14:48:05+1:00"]
        {
            assert_eq!(Time::parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn zones_shift_what_is_shown() {
        let time = Time::from_unix(1_590_936_485);
        let brisbane = zone("Australia/Brisbane").unwrap();
        assert_eq!(time.rfc3339(&brisbane).as_deref(), Some("2020-06-01T00:48:05+10:00"));
        assert!(zone("Nowhere/None").is_none());
    }

    #[test]
    fn fractions_before_the_epoch() {
        assert_eq!(Time::from_unix_float(-0.5).unix_nanos(), -500_000_000);
        assert_eq!(Time::from_unix_float(f64::NAN), Time::EPOCH);
        assert_eq!(Time::from_unix_nanos(i128::MAX).unix(), i64::MAX);
        assert!(Time::from_unix_nanos(i128::MAX).rfc3339(&TimeZone::UTC).is_none());
    }
}
