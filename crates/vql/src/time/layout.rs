//! Layouts that spell the reference time `Mon Jan 2 15:04:05 MST 2006`, for writing and reading times.

use jiff::tz::TimeZone;

use super::{Time, civil_date_time, offset_text};

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The longest layout that is read.
const MAX_LAYOUT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    Literal(&'a str),
    LongMonth,
    ShortMonth,
    Month,
    ZeroMonth,
    LongDay,
    ShortDay,
    Day,
    SpaceDay,
    ZeroDay,
    YearDay,
    Hour24,
    Hour12,
    ZeroHour12,
    Minute,
    ZeroMinute,
    Second,
    ZeroSecond,
    LongYear,
    ShortYear,
    Pm(bool),
    Zone,
    Offset { colon: bool, zulu: bool, hours_only: bool },
    Fraction { digits: usize, trim: bool },
}

/// In the order in which they are tried: longer before shorter.
const PARTS: &[(&str, Part<'static>)] = &[
    ("January", Part::LongMonth),
    ("Jan", Part::ShortMonth),
    ("Monday", Part::LongDay),
    ("Mon", Part::ShortDay),
    ("MST", Part::Zone),
    ("2006", Part::LongYear),
    ("002", Part::YearDay),
    ("01", Part::ZeroMonth),
    ("02", Part::ZeroDay),
    ("03", Part::ZeroHour12),
    ("04", Part::ZeroMinute),
    ("05", Part::ZeroSecond),
    ("06", Part::ShortYear),
    ("15", Part::Hour24),
    ("_2", Part::SpaceDay),
    ("PM", Part::Pm(true)),
    ("pm", Part::Pm(false)),
    ("Z07:00", Part::Offset { colon: true, zulu: true, hours_only: false }),
    ("Z0700", Part::Offset { colon: false, zulu: true, hours_only: false }),
    ("Z07", Part::Offset { colon: false, zulu: true, hours_only: true }),
    ("-07:00", Part::Offset { colon: true, zulu: false, hours_only: false }),
    ("-0700", Part::Offset { colon: false, zulu: false, hours_only: false }),
    ("-07", Part::Offset { colon: false, zulu: false, hours_only: true }),
    ("1", Part::Month),
    ("2", Part::Day),
    ("3", Part::Hour12),
    ("4", Part::Minute),
    ("5", Part::Second),
];

fn fraction(rest: &str) -> Option<(Part<'static>, usize)> {
    let mut bytes = rest.bytes();
    if !matches!(bytes.next(), Some(b'.' | b',')) {
        return None;
    }
    let mark = bytes.next().filter(|byte| matches!(byte, b'0' | b'9'))?;
    let digits = rest.bytes().skip(1).take_while(|byte| *byte == mark).count();
    let followed = rest.as_bytes().get(digits + 1).is_some_and(u8::is_ascii_digit);
    (!followed).then_some((Part::Fraction { digits: digits.min(9), trim: mark == b'9' }, digits + 1))
}

fn parts(layout: &str) -> Vec<Part<'_>> {
    let layout = named(layout).unwrap_or(layout);
    let mut parts = Vec::new();
    let (mut rest, mut literal_from) = (layout, layout);
    while !rest.is_empty() {
        let found =
            fraction(rest).or_else(|| PARTS.iter().find(|(text, _)| rest.starts_with(text)).map(|(text, part)| (*part, text.len())));
        match found {
            Some((part, length)) => {
                push_literal(&mut parts, literal_from, rest);
                parts.push(part);
                rest = rest.get(length..).unwrap_or_default();
                literal_from = rest;
            }
            None => {
                let width = rest.chars().next().map_or(1, char::len_utf8);
                rest = rest.get(width..).unwrap_or_default();
            }
        }
    }
    push_literal(&mut parts, literal_from, rest);
    parts
}

fn push_literal<'a>(parts: &mut Vec<Part<'a>>, from: &'a str, rest: &str) {
    let length = from.len().saturating_sub(rest.len());
    if length > 0 {
        parts.push(Part::Literal(from.get(..length).unwrap_or_default()));
    }
}

/// The layouts that have names.
fn named(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_uppercase().as_str() {
        "ANSIC" => "Mon Jan _2 15:04:05 2006",
        "UNIXDATE" => "Mon Jan _2 15:04:05 MST 2006",
        "RUBYDATE" => "Mon Jan 02 15:04:05 -0700 2006",
        "RFC822" => "02 Jan 06 15:04 MST",
        "RFC822Z" => "02 Jan 06 15:04 -0700",
        "RFC850" => "Monday, 02-Jan-06 15:04:05 MST",
        "RFC1123" => "Mon, 02 Jan 2006 15:04:05 MST",
        "RFC1123Z" => "Mon, 02 Jan 2006 15:04:05 -0700",
        "RFC3339" => "2006-01-02T15:04:05Z07:00",
        "RFC3339NANO" => "2006-01-02T15:04:05.999999999Z07:00",
        "KITCHEN" => "3:04PM",
        "STAMP" => "Jan _2 15:04:05",
        "STAMPMILLI" => "Jan _2 15:04:05.000",
        "STAMPMICRO" => "Jan _2 15:04:05.000000",
        "STAMPNANO" => "Jan _2 15:04:05.000000000",
        "DATETIME" => "2006-01-02 15:04:05",
        "DATEONLY" => "2006-01-02",
        "TIMEONLY" => "15:04:05",
        _ => return None,
    })
}

fn pick<'a>(names: &'a [&'a str], at: usize) -> &'a str {
    names.get(at).copied().unwrap_or_default()
}

/// Writes `time` as `layout` says: the reference time's parts in place, or the name of a layout. `None` outside the calendar.
#[must_use]
pub fn format_layout(time: Time, layout: &str, zone: &TimeZone) -> Option<String> {
    let layout = layout.get(..MAX_LAYOUT).unwrap_or(layout);
    let civil = time.civil(zone)?;
    let date = civil.date_time;
    let month = usize::try_from(date.month()).unwrap_or(1).saturating_sub(1);
    let weekday = usize::try_from(date.weekday().to_sunday_zero_offset()).unwrap_or(0);
    let hour12 = match date.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    let mut out = String::new();
    for part in parts(layout) {
        let text = match part {
            Part::Literal(text) => text.to_owned(),
            Part::LongMonth => pick(&MONTHS, month).to_owned(),
            Part::ShortMonth => pick(&MONTHS, month).chars().take(3).collect(),
            Part::Month => date.month().to_string(),
            Part::ZeroMonth => format!("{:02}", date.month()),
            Part::LongDay => pick(&DAYS, weekday).to_owned(),
            Part::ShortDay => pick(&DAYS, weekday).chars().take(3).collect(),
            Part::Day => date.day().to_string(),
            Part::SpaceDay => format!("{:>2}", date.day()),
            Part::ZeroDay => format!("{:02}", date.day()),
            Part::YearDay => format!("{:03}", date.date().day_of_year()),
            Part::Hour24 => format!("{:02}", date.hour()),
            Part::Hour12 => hour12.to_string(),
            Part::ZeroHour12 => format!("{hour12:02}"),
            Part::Minute => date.minute().to_string(),
            Part::ZeroMinute => format!("{:02}", date.minute()),
            Part::Second => date.second().to_string(),
            Part::ZeroSecond => format!("{:02}", date.second()),
            Part::LongYear => format!("{:04}", date.year()),
            Part::ShortYear => format!("{:02}", date.year().rem_euclid(100)),
            Part::Pm(upper) => match (date.hour() >= 12, upper) {
                (true, true) => "PM",
                (true, false) => "pm",
                (false, true) => "AM",
                (false, false) => "am",
            }
            .to_owned(),
            Part::Zone => civil.abbreviation.clone(),
            Part::Offset { colon, zulu, hours_only } => {
                let text = offset_text(civil.offset, colon, zulu);
                if hours_only && text.len() > 3 { text.chars().take(3).collect() } else { text }
            }
            Part::Fraction { digits, trim } => {
                let all = format!("{:09}", time.subsecond_nanos());
                let cut = all.get(..digits).unwrap_or(&all);
                let cut = if trim { cut.trim_end_matches('0') } else { cut };
                if cut.is_empty() { String::new() } else { format!(".{cut}") }
            }
        };
        out.push_str(&text);
    }
    Some(out)
}

#[derive(Default)]
struct Fields {
    year: Option<i32>,
    month: Option<i32>,
    day: Option<i32>,
    hour: i32,
    minute: i32,
    second: i32,
    nanos: u32,
    pm: Option<bool>,
    offset: Option<i32>,
}

/// Reads `text` as `layout` says; without a zone in the text, in `zone`. `None` when it does not fit.
#[must_use]
pub fn parse_layout(text: &str, layout: &str, zone: &TimeZone) -> Option<Time> {
    let layout = layout.get(..MAX_LAYOUT).unwrap_or(layout);
    let mut fields = Fields::default();
    let mut rest = text;
    for part in parts(layout) {
        rest = parse_part(part, rest, &mut fields)?;
        let after_seconds = matches!(part, Part::ZeroSecond | Part::Second);
        if after_seconds
            && rest.starts_with('.')
            && rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit)
            && !layout.contains(".0")
            && !layout.contains(".9")
        {
            rest = parse_fraction(rest, &mut fields)?;
        }
    }
    if !rest.is_empty() {
        return None;
    }
    let hour = match fields.pm {
        Some(true) if fields.hour < 12 => fields.hour + 12,
        Some(false) if fields.hour == 12 => 0,
        _ => fields.hour,
    };
    let date =
        civil_date_time(fields.year.unwrap_or(0), fields.month.unwrap_or(1), fields.day.unwrap_or(1), hour, fields.minute, fields.second)?;
    let base = match fields.offset {
        Some(offset) => {
            let time = Time::from_civil(date, &TimeZone::UTC)?;
            Time::from_unix(time.unix().checked_sub(i64::from(offset))?)
        }
        None => Time::from_civil(date, zone)?,
    };
    Some(Time::from_unix_nanos(base.unix_nanos().checked_add(i128::from(fields.nanos))?))
}

fn digits(text: &str, least: usize, most: usize) -> Option<(i32, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if count < least {
        return None;
    }
    Some((text.get(..count)?.parse().ok()?, text.get(count..)?))
}

fn name<'a>(text: &'a str, names: &[&str], short: bool) -> Option<(i32, &'a str)> {
    names.iter().enumerate().find_map(|(at, name)| {
        let name = if short { name.get(..3)? } else { name };
        let head = text.get(..name.len())?;
        head.eq_ignore_ascii_case(name).then(|| Some((i32::try_from(at).ok()?, text.get(name.len()..)?)))?
    })
}

fn parse_fraction<'a>(text: &'a str, fields: &mut Fields) -> Option<&'a str> {
    let tail = text.get(1..)?;
    let count = tail.bytes().take_while(u8::is_ascii_digit).count();
    let padded = format!("{:0<9}", tail.get(..count.min(9))?);
    fields.nanos = padded.parse().ok()?;
    tail.get(count..)
}

fn parse_part<'a>(part: Part<'_>, text: &'a str, fields: &mut Fields) -> Option<&'a str> {
    let number = |least: usize, most: usize| digits(text, least, most);
    let (slot, (value, rest)) = match part {
        Part::Literal(literal) => return text.strip_prefix(literal),
        Part::LongMonth | Part::ShortMonth => {
            let (at, rest) = name(text, &MONTHS, part == Part::ShortMonth)?;
            fields.month = Some(at + 1);
            return Some(rest);
        }
        Part::LongDay | Part::ShortDay => return name(text, &DAYS, part == Part::ShortDay).map(|(_, rest)| rest),
        Part::Pm(_) => {
            let head = text.get(..2)?;
            fields.pm = Some(match head.to_ascii_uppercase().as_str() {
                "PM" => true,
                "AM" => false,
                _ => return None,
            });
            return text.get(2..);
        }
        Part::Zone => {
            let length = text.bytes().take(5).take_while(u8::is_ascii_uppercase).count();
            if length < 3 {
                return None;
            }
            if matches!(text.get(..length), Some("UTC" | "GMT")) {
                fields.offset = Some(0);
            }
            return text.get(length..);
        }
        Part::Offset { zulu, .. } => {
            if zulu && let Some(rest) = text.strip_prefix('Z') {
                fields.offset = Some(0);
                return Some(rest);
            }
            let sign = match text.bytes().next()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, rest) = digits(text.get(1..)?, 2, 2)?;
            let rest_digits = rest.strip_prefix(':').unwrap_or(rest);
            let (minutes, rest) = digits(rest_digits, 2, 2).unwrap_or((0, rest));
            fields.offset = Some(sign * (hours * 3600 + minutes * 60));
            return Some(rest);
        }
        Part::Fraction { .. } => {
            return if text.starts_with(['.', ',']) { parse_fraction(text, fields) } else { Some(text) };
        }
        Part::LongYear => {
            let (year, rest) = number(4, 4)?;
            fields.year = Some(year);
            return Some(rest);
        }
        Part::ShortYear => {
            let (year, rest) = number(2, 2)?;
            fields.year = Some(if year >= 69 { 1900 + year } else { 2000 + year });
            return Some(rest);
        }
        Part::YearDay => {
            let (day, rest) = number(3, 3)?;
            (fields.month, fields.day) = (Some(1), Some(day));
            return Some(rest);
        }
        Part::Month => (fields.month.insert(0), number(1, 2)?),
        Part::ZeroMonth => (fields.month.insert(0), number(2, 2)?),
        Part::Day => (fields.day.insert(0), number(1, 2)?),
        Part::SpaceDay => (fields.day.insert(0), digits(text.trim_start_matches(' '), 1, 2)?),
        Part::ZeroDay => (fields.day.insert(0), number(2, 2)?),
        Part::Hour24 | Part::ZeroHour12 => (&mut fields.hour, number(2, 2)?),
        Part::Hour12 => (&mut fields.hour, number(1, 2)?),
        Part::Minute => (&mut fields.minute, number(1, 2)?),
        Part::ZeroMinute => (&mut fields.minute, number(2, 2)?),
        Part::Second => (&mut fields.second, number(1, 2)?),
        Part::ZeroSecond => (&mut fields.second, number(2, 2)?),
    };
    *slot = value;
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_write() {
        let time = Time::from_unix_nanos(1_590_936_485_120_000_000);
        for (layout, text) in [
            ("2006-01-02T15:04:05Z07:00", "2020-05-31T14:48:05Z"),
            ("RFC3339Nano", "2020-05-31T14:48:05.12Z"),
            ("Mon Jan _2 3:04PM 06", "Sun May 31 2:48PM 20"),
            ("Monday, January 2 15h .000 -0700 MST", "Sunday, May 31 14h .120 +0000 UTC"),
            ("DateOnly", "2020-05-31"),
        ] {
            assert_eq!(format_layout(time, layout, &TimeZone::UTC).as_deref(), Some(text), "{layout}");
        }
    }

    #[test]
    fn layouts_read() {
        for (text, layout, expected) in [
            ("2020-05-31 14:48:05", "2006-01-02 15:04:05", "2020-05-31T14:48:05Z"),
            ("2020-05-31 14:48:05.25", "2006-01-02 15:04:05", "2020-05-31T14:48:05.25Z"),
            ("31/May/2020:14:48:05 +1000", "02/Jan/2006:15:04:05 -0700", "2020-05-31T04:48:05Z"),
            ("2:48PM 1/2/20", "3:04PM 1/2/06", "2020-01-02T14:48:00Z"),
        ] {
            assert_eq!(parse_layout(text, layout, &TimeZone::UTC).map(|time| time.to_string()).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(parse_layout("31/05", "2006-01-02", &TimeZone::UTC), None);
        assert_eq!(parse_layout("2020-05-31 x", "2006-01-02", &TimeZone::UTC), None);
    }
}
