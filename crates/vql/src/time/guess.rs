//! Reading times of any usual shape.

use jiff::tz::TimeZone;

use super::{Time, parse_layout};

/// The longest text that is looked at.
const MAX_TEXT: usize = 128;

const LAYOUTS: &[&str] = &[
    "2006-01-02T15:04:05Z07:00",
    "2006-01-02T15:04:05-0700",
    "2006-01-02T15:04:05",
    "2006-01-02T15:04",
    "2006-01-02 15:04:05 -0700 MST",
    "2006-01-02 15:04:05 -0700",
    "2006-01-02 15:04:05Z07:00",
    "2006-01-02 15:04:05 MST",
    "2006-01-02 15:04:05 PM",
    "2006-01-02 15:04:05",
    "2006-01-02 15:04",
    "2006-01-02",
    "2006-1-2 15:04:05",
    "2006-1-2",
    "2006/01/02 15:04:05",
    "2006/01/02 15:04",
    "2006/01/02",
    "2006/1/2 15:04:05",
    "2006/1/2",
    "20060102150405",
    "20060102T150405Z",
    "20060102",
    "Mon, 2 Jan 2006 15:04:05 -0700",
    "Mon, 2 Jan 2006 15:04:05 MST",
    "Mon, 2 Jan 2006 15:04:05",
    "Monday, 2-Jan-06 15:04:05 MST",
    "Mon Jan _2 15:04:05 2006",
    "Mon Jan _2 15:04:05 MST 2006",
    "Mon Jan _2 15:04:05 -0700 2006",
    "January 2, 2006 15:04:05",
    "January 2, 2006, 3:04PM",
    "January 2, 2006 3:04PM",
    "January 2, 2006",
    "January 2 2006 15:04:05",
    "January 2 2006",
    "Jan 2, 2006 15:04:05",
    "Jan 2, 2006, 3:04:05 PM",
    "Jan 2, 2006 3:04PM",
    "Jan 2, 2006",
    "Jan 2 2006 15:04:05",
    "Jan 2 2006",
    "2 January 2006 15:04:05",
    "2 January 2006",
    "2 Jan 2006 15:04:05 -0700",
    "2 Jan 2006 15:04:05 MST",
    "2 Jan 2006 15:04:05",
    "2 Jan 2006 15:04",
    "2 Jan 2006",
    "2-Jan-2006 15:04:05",
    "2-Jan-2006",
    "2/Jan/2006:15:04:05 -0700",
    "2/Jan/2006:15:04:05",
    "2/Jan/2006 15:04:05",
    "1/2/2006 3:04:05 PM",
    "1/2/2006 3:04 PM",
    "1/2/2006 3:04PM",
    "1/2/2006 3PM",
    "1/2/2006 15:04:05",
    "1/2/2006 15:04",
    "1/2/2006",
    "1/2/06 15:04:05",
    "1/2/06",
    "Jan _2 15:04:05",
];

/// The moment that `text` means, in `zone` unless it says otherwise. `None` when it is no usual form of a time.
#[must_use]
pub fn parse_flexibly(text: &str, zone: &TimeZone) -> Option<Time> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_TEXT {
        return None;
    }
    Time::parse_rfc3339(text).or_else(|| LAYOUTS.iter().find_map(|layout| parse_layout(text, layout, zone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_forms_are_read() {
        for (text, expected) in [
            ("March 3 2019", "2019-03-03T00:00:00Z"),
            ("2019-03-03", "2019-03-03T00:00:00Z"),
            ("2019-03-03 04:05:06.789", "2019-03-03T04:05:06.789Z"),
            ("2019-03-03T04:05:06+02:00", "2019-03-03T02:05:06Z"),
            ("Sun, 03 Mar 2019 04:05:06 GMT", "2019-03-03T04:05:06Z"),
            ("07/25/2019 5pm", "2019-07-25T17:00:00Z"),
            ("10/Oct/2000:13:55:36 -0700", "2000-10-10T20:55:36Z"),
        ] {
            assert_eq!(parse_flexibly(text, &TimeZone::UTC).map(|time| time.to_string()).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(parse_flexibly("yesterday", &TimeZone::UTC), None);
    }
}
