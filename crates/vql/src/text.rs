//! Values as text, as Go's `%v` writes them: what `str()`, string arguments and messages show.

use jiff::tz::TimeZone;

use crate::time::format_layout;
use crate::value::{Text, Value};

/// Lists that weigh more are not written out.
const MAX_WALK: u64 = 256 << 20;

/// The text of any value.
#[must_use]
pub fn plain(value: &Value) -> Text {
    match value {
        Value::Str(text) => text.clone(),
        Value::Bytes(bytes) => Text::from(bytes.clone()),
        Value::Path(path) => path.to_text(),
        other => Text::from(display(other)),
    }
}

/// The text of any value, bad bytes replaced.
#[must_use]
pub fn display(value: &Value) -> String {
    match value {
        Value::Null => "Null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => float(*number),
        Value::Str(text) => text.to_str().into_owned(),
        Value::Bytes(bytes) => format!("[{}]", bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" ")),
        Value::Time(time) => {
            format_layout(*time, "2006-01-02 15:04:05.999999999 -0700 MST", &TimeZone::UTC).unwrap_or_else(|| time.to_string())
        }
        Value::Dict(_) => crate::json::encode(value),
        Value::List(_) if value.weight() > MAX_WALK => "[…]".to_owned(),
        Value::List(items) => format!("[{}]", items.iter().map(display).collect::<Vec<_>>().join(" ")),
        Value::Path(path) => path.to_string(),
        Value::Query(_) => "StoredQuery".to_owned(),
        Value::Lazy(lazy) => display(&lazy.reduce().reduced()),
        Value::Lambda(_) => "Lambda".to_owned(),
        Value::Object(object) => match object.to_value() {
            Value::Object(_) | Value::Null => object.type_name().to_owned(),
            other => display(&other),
        },
    }
}

/// A float as `%v` has it: shortest, with an exponent below −4 and from 21 on.
#[must_use]
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..21).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    format!("{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_go_writes_them() {
        for (number, text) in
            [(1.0, "1"), (0.1, "0.1"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (1.5e-7, "1.5e-07"), (-0.0001, "-0.0001")]
        {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn containers_and_times() {
        let value = Value::list([Value::from(1), Value::from("a"), Value::Null]);
        assert_eq!(display(&value), "[1 a Null]");
        assert_eq!(display(&Value::from(crate::Time::from_unix(1))), "1970-01-01 00:00:01 +0000 UTC");
    }
}
