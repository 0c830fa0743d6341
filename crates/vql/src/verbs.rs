//! `format()`: C-like verbs with the rules and the complaints of Go.

use crate::text::{display, float};
use crate::value::{Text, Value};

/// The largest width and precision.
const MAX_WIDTH: usize = 1_000_000;

#[derive(Default, Clone)]
struct Spec {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Writes `args` as `template` says. The result is cut at `limit` bytes.
#[must_use]
pub fn format(template: &[u8], args: &[Value], limit: usize) -> Text {
    let mut out = Vec::new();
    let mut next = args.iter();
    let mut rest = template;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        out.extend_from_slice(rest.get(..at).unwrap_or_default());
        rest = rest.get(at.saturating_add(1)..).unwrap_or_default();
        let (spec, tail) = read_spec(rest);
        rest = tail;
        let Some((verb, width)) = first_char(rest) else {
            out.extend_from_slice(b"%!(NOVERB)");
            break;
        };
        rest = rest.get(width..).unwrap_or_default();
        match spec {
            _ if verb == '%' => out.push(b'%'),
            Err(complaint) => out.extend_from_slice(complaint.as_bytes()),
            Ok(spec) => match next.next() {
                Some(value) => one(&mut out, &spec, verb, value),
                None => out.extend_from_slice(format!("%!{verb}(MISSING)").as_bytes()),
            },
        }
        if out.len() > limit {
            out.truncate(limit);
            return out.into();
        }
    }
    out.extend_from_slice(rest);
    let extra: Vec<String> = next.map(complain).collect();
    if !extra.is_empty() {
        out.extend_from_slice(format!("%!(EXTRA {})", extra.join(", ")).as_bytes());
    }
    out.truncate(limit);
    out.into()
}

fn first_char(rest: &[u8]) -> Option<(char, usize)> {
    let head = rest.get(..rest.len().min(4))?;
    let valid = head.utf8_chunks().next()?.valid();
    match valid.chars().next() {
        Some(c) => Some((c, c.len_utf8())),
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

fn read_number(rest: &[u8]) -> (Option<usize>, &[u8]) {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = rest.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    (number, rest.get(digits..).unwrap_or_default())
}

fn read_spec(mut rest: &[u8]) -> (Result<Spec, &'static str>, &[u8]) {
    let mut spec = Spec::default();
    while let Some(byte) = rest.first() {
        match byte {
            b'+' => spec.plus = true,
            b'-' => spec.minus = true,
            b'#' => spec.sharp = true,
            b' ' => spec.space = true,
            b'0' => spec.zero = true,
            _ => break,
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    let (width, tail) = read_number(rest);
    spec.width = width;
    rest = tail;
    if rest.first() == Some(&b'.') {
        let (precision, tail) = read_number(rest.get(1..).unwrap_or_default());
        spec.precision = Some(precision.unwrap_or(0));
        rest = tail;
    }
    if spec.minus {
        spec.zero = false;
    }
    let outcome = if spec.width.is_some_and(|width| width > MAX_WIDTH) {
        Err("%!(BADWIDTH)")
    } else if spec.precision.is_some_and(|precision| precision > MAX_WIDTH) {
        Err("%!(BADPREC)")
    } else {
        Ok(spec)
    };
    (outcome, rest)
}

/// `string=x`, as complaints have it.
fn complain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        other => format!("{}={}", go_name(other), display(other)),
    }
}

fn go_name(value: &Value) -> &'static str {
    match value {
        Value::Path(_) => "*accessors.OSPath",
        other => other.type_name(),
    }
}

fn pad(out: &mut Vec<u8>, spec: &Spec, text: &[u8]) {
    let shown = String::from_utf8_lossy(text).chars().count();
    let missing = spec.width.unwrap_or(0).saturating_sub(shown);
    if spec.minus {
        out.extend_from_slice(text);
        out.resize(out.len().saturating_add(missing), b' ');
    } else {
        out.resize(out.len().saturating_add(missing), if spec.zero { b'0' } else { b' ' });
        out.extend_from_slice(text);
    }
}

fn one(out: &mut Vec<u8>, spec: &Spec, verb: char, value: &Value) {
    match verb {
        'T' => return pad(out, spec, value.type_name().as_bytes()),
        'v' if !matches!(value, Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Str(_) | Value::List(_)) => {
            return pad(out, spec, display(value).as_bytes());
        }
        _ => {}
    }
    match value {
        Value::Int(number) => integer(out, spec, verb, number.unsigned_abs(), *number < 0, value),
        Value::UInt(number) => integer(out, spec, verb, *number, false, value),
        Value::Float(number) => floating(out, spec, verb, *number, value),
        Value::Bool(truth) if verb == 't' => pad(out, spec, truth.to_string().as_bytes()),
        Value::Str(_) | Value::Bytes(_) => string(out, spec, verb, value.as_bytes().unwrap_or_default(), value),
        Value::Path(path) => string(out, spec, verb, &path.to_text(), value),
        Value::Dict(_) | Value::Null | Value::Time(_) => string(out, spec, verb, display(value).as_bytes(), value),
        Value::List(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b' ');
                }
                one(out, spec, verb, item);
            }
            out.push(b']');
        }
        other => bad(out, verb, other),
    }
}

fn bad(out: &mut Vec<u8>, verb: char, value: &Value) {
    out.extend_from_slice(format!("%!{verb}({})", complain(value)).as_bytes());
}

fn integer(out: &mut Vec<u8>, spec: &Spec, verb: char, size: u64, negative: bool, value: &Value) {
    let (digits, prefix) = match verb {
        'd' | 'v' => (size.to_string(), ""),
        'x' => (format!("{size:x}"), "0x"),
        'X' => (format!("{size:X}"), "0X"),
        'o' => (format!("{size:o}"), "0"),
        'O' => (format!("0o{size:o}"), ""),
        'b' => (format!("{size:b}"), "0b"),
        'c' | 'q' | 'U' => {
            let code = u32::try_from(size).ok().filter(|_| !negative);
            let c = code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
            let text = match verb {
                'c' => c.to_string(),
                'q' => format!("'{c}'"),
                _ => format!("U+{size:04X}"),
            };
            return pad(out, spec, text.as_bytes());
        }
        _ => return bad(out, verb, value),
    };
    let prefix = if spec.sharp { prefix } else { "" };
    let sign = match (negative, spec.plus, spec.space) {
        (true, _, _) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    let mut digits = digits;
    if let Some(precision) = spec.precision {
        digits = zero_padded(&digits, precision);
    } else if spec.zero
        && let Some(width) = spec.width
    {
        let width = width.saturating_sub(sign.len());
        digits = zero_padded(&digits, width);
    }
    let text = format!("{sign}{prefix}{digits}");
    pad(out, &Spec { zero: false, ..spec.clone() }, text.as_bytes());
}

/// `digits` with zeros before it. (The width of `format!` is no number of our own choosing: it panics above 65535.)
fn zero_padded(digits: &str, width: usize) -> String {
    let missing = width.saturating_sub(digits.len());
    "0".repeat(missing) + digits
}

/// No float has more digits than these after the point.
const MAX_DIGITS: usize = 1100;

fn fixed_point(number: f64, precision: usize) -> String {
    let shown = precision.min(MAX_DIGITS);
    format!("{number:.shown$}") + &"0".repeat(precision.saturating_sub(shown))
}

fn exponent(number: f64, precision: Option<usize>, upper: bool) -> String {
    let text = match precision {
        Some(precision) => {
            let precision = precision.min(MAX_DIGITS);
            format!("{number:.precision$e}")
        }
        None => format!("{number:e}"),
    };
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}{}{sign}{digits:0>2}", if upper { 'E' } else { 'e' })
}

fn floating(out: &mut Vec<u8>, spec: &Spec, verb: char, number: f64, value: &Value) {
    let text = if !number.is_finite() && matches!(verb, 'v' | 'g' | 'G' | 'f' | 'F' | 'e' | 'E') {
        float(number)
    } else {
        match verb {
            'f' | 'F' => fixed_point(number, spec.precision.unwrap_or(6)),
            'e' | 'E' => exponent(number, Some(spec.precision.unwrap_or(6)), verb == 'E'),
            'v' | 'g' | 'G' => match spec.precision {
                None => float(number),
                Some(precision) => general(number, precision.max(1)),
            },
            _ => return bad(out, verb, value),
        }
    };
    let text = if spec.plus && number >= 0.0 && !text.starts_with('+') { format!("+{text}") } else { text };
    if spec.zero
        && let Some(digits) = text.strip_prefix(['-', '+'])
    {
        out.push(if text.starts_with('-') { b'-' } else { b'+' });
        return pad(out, &Spec { width: spec.width.map(|width| width.saturating_sub(1)), ..spec.clone() }, digits.as_bytes());
    }
    pad(out, spec, text.as_bytes());
}

/// `%.Ng`: N significant digits, an exponent where it is shorter.
fn general(number: f64, precision: usize) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let precision = precision.min(MAX_DIGITS);
    let scientific = format!("{number:.*e}", precision.saturating_sub(1));
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    let most = i32::try_from(precision).unwrap_or(i32::MAX);
    if power < -4 || power >= most {
        let text = exponent(number, Some(precision.saturating_sub(1)), false);
        return text.split_once('e').map_or_else(|| text.clone(), |(mantissa, power)| format!("{}e{power}", trim(mantissa)));
    }
    let decimals = usize::try_from(most.saturating_sub(1).saturating_sub(power)).unwrap_or(0);
    trim(&fixed_point(number, decimals))
}

fn string(out: &mut Vec<u8>, spec: &Spec, verb: char, bytes: &[u8], value: &Value) {
    let cut = match spec.precision {
        Some(precision) if matches!(verb, 's' | 'v' | 'q') => {
            let text = String::from_utf8_lossy(bytes);
            text.chars().take(precision).collect::<String>().into_bytes()
        }
        Some(precision) => bytes.get(..precision).unwrap_or(bytes).to_vec(),
        None => bytes.to_vec(),
    };
    match verb {
        's' | 'v' => pad(out, spec, &cut),
        'q' => pad(out, spec, quoted(&cut).as_bytes()),
        'x' | 'X' => {
            let separator = if spec.space { " " } else { "" };
            let digits: Vec<String> =
                cut.iter().map(|byte| if verb == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") }).collect();
            let prefix = if spec.sharp { "0x" } else { "" };
            pad(out, spec, format!("{prefix}{}", digits.join(separator)).as_bytes());
        }
        _ => bad(out, verb, value),
    }
}

fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dict;

    #[test]
    fn verbs_as_go_has_them() {
        let text = |text: &str| Value::from(text);
        for (template, args, expected) in [
            ("plain", vec![], "plain"),
            ("%v %s %d", vec![Value::Int(1), text("a"), Value::Int(-3)], "1 a -3"),
            ("%x %X %02x %04x %08x %#x", [255, 255, 10, 10, 10, 255].map(Value::Int).to_vec(), "ff FF 0a 000a 0000000a 0xff"),
            ("% x|%x", vec![text("ab"), text("ab")], "61 62|6162"),
            ("%c%c", vec![Value::Int(65), Value::Int(0xe9)], "Aé"),
            ("%q", vec![text("a\"\n")], "\"a\\\"\\n\""),
            (
                "%f %.2f %6.1f|%g",
                vec![Value::Float(1.5), Value::Float(2.0), Value::Float(2.75), Value::Float(1e21)],
                "1.500000 2.00    2.8|1e+21",
            ),
            ("%T %T %T", vec![text(""), Value::Int(1), Value::from(Dict::new())], "string int64 *ordereddict.Dict"),
            ("%5d|%-5d|%05d|%+d", [42, 42, -42, 42].map(Value::Int).to_vec(), "   42|42   |-0042|+42"),
            ("%5s|%-5s|%.2s", vec![text("ab"), text("ab"), text("abc")], "   ab|ab   |ab"),
            ("%d", vec![text("x")], "%!d(string=x)"),
            ("%s", vec![Value::Int(1)], "%!s(int64=1)"),
            ("%d", vec![Value::Float(1.5)], "%!d(float64=1.5)"),
            ("%v", vec![], "%!v(MISSING)"),
            ("a", vec![text("x"), Value::Int(2)], "a%!(EXTRA string=x, int64=2)"),
            ("100%%", vec![], "100%"),
            ("%", vec![], "%!(NOVERB)"),
            ("%v", vec![Value::list([1, 2])], "[1 2]"),
            ("%v", vec![Value::from(Dict::new().with("a", 1))], "{\"a\":1}"),
            ("%v %v", vec![Value::Null, Value::Bool(true)], "Null true"),
            ("%t", vec![Value::Bool(false)], "false"),
            ("%99999999d", vec![Value::Int(1)], "%!(BADWIDTH)%!(EXTRA int64=1)"),
        ] {
            assert_eq!(format(template.as_bytes(), &args, 1000).to_str(), expected, "{template}");
        }
    }

    #[test]
    fn the_result_is_bounded() {
        assert_eq!(format(b"%0999999d", &[Value::Int(1)], 100).len(), 100);
        assert_eq!(format(b"%.999999f%.99999e%.99999g%999999s", &[1.5, 1.5, 1.5, 1.5].map(Value::Float), 1 << 30).len(), 1_001_126);
    }
}
