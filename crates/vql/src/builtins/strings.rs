//! Text and numbers.

use std::collections::HashMap;

use crate::args;
use crate::arguments::text;
use crate::call::Call;
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::{display, float};
use crate::value::{Text, Value};
use crate::verbs;

pub(super) fn register(registry: &mut Registry) {
    const STRING: Arg = Arg::required("string", ArgType::String, "The text.");
    registry.function(
        Signature::function("format", "Writes values into a text.")
            .args(args![
                Arg::required("format", ArgType::String, "The text with verbs such as %v, %s, %d, %x."),
                Arg::optional("args", ArgType::Any, "The values: a list, or one."),
            ])
            .false_on_error(),
        |call| {
            let limit = usize::try_from(call.scope().meter().budget().string).unwrap_or(usize::MAX);
            Ok(Value::Str(verbs::format(&call.bytes("format"), &super::log::verbs_args(&call), limit)))
        },
    );
    registry.function(
        Signature::function("split", "Cuts a text into pieces.").args(args![
            STRING,
            Arg::optional("sep", ArgType::String, "A pattern of what separates; case counts."),
            Arg::optional("sep_string", ArgType::String, "What separates, as it is."),
        ]),
        split,
    );
    registry.function(
        Signature::function("join", "Puts pieces together.")
            .args(args![
                Arg::required("array", ArgType::Strings, "The pieces."),
                Arg::optional("sep", ArgType::String, "What goes between."),
            ])
            .false_on_error(),
        |call| {
            let (pieces, sep) = (call.texts("array"), call.bytes("sep"));
            let total = pieces.iter().map(|piece| piece.len().saturating_add(sep.len()) as u64).sum();
            within_limits(&call, total)?;
            Ok(Value::str(pieces.iter().map(Text::as_bytes).collect::<Vec<_>>().join(&sep[..])))
        },
    );
    registry.function(
        Signature::function("strip", "Takes a prefix and a suffix away; white space unless given.")
            .args(args![
                STRING,
                Arg::optional("prefix", ArgType::String, "What to take away at the start."),
                Arg::optional("suffix", ArgType::String, "What to take away at the end."),
            ])
            .version(2)
            .false_on_error(),
        |call| {
            let text = call.bytes("string");
            let (prefix, suffix) = (call.bytes("prefix"), call.bytes("suffix"));
            if prefix.is_empty() && suffix.is_empty() {
                return Ok(Value::str(text.trim_ascii()));
            }
            let rest = text.strip_prefix(&prefix[..]).unwrap_or(&text);
            Ok(Value::str(rest.strip_suffix(&suffix[..]).unwrap_or(rest)))
        },
    );
    registry.function(
        Signature::function("substr", "Gives a part of a text, by characters.").args(args![
            Arg::required("str", ArgType::String, "The text."),
            Arg::optional("start", ArgType::Int, "The first character."),
            Arg::optional("end", ArgType::Int, "The character past the last; the end unless given."),
        ]),
        |call| {
            let text = call.string("str");
            let start = usize::try_from(call.int("start")).unwrap_or(0);
            let end = call.opt_int("end").filter(|end| *end > 0).and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX);
            Ok(Value::from(text.chars().skip(start).take(end.saturating_sub(start)).collect::<String>()))
        },
    );
    registry.function(Signature::function("lowcase", "Writes a text in small letters.").args(args![STRING]), |call| {
        Ok(Value::from(call.string("string").to_lowercase()))
    });
    registry.function(Signature::function("upcase", "Writes a text in capitals.").args(args![STRING]), |call| {
        Ok(Value::from(call.string("string").to_uppercase()))
    });
    registry.function(
        Signature::function("str", "Gives the text of a value.")
            .args(args![Arg::required("str", ArgType::Any, "The value.")])
            .false_on_error(),
        |call| Ok(Value::Str(text(call.value("str"), call.scope()))),
    );
    registry.function(
        Signature::function("int", "Makes an integer of text, a float or a bool.")
            .args(args![Arg::optional("int", ArgType::Any, "The value.")])
            .false_on_error(),
        |call| Ok(Value::Int(integer(&call.value("int")))),
    );
    registry.function(
        Signature::function("atoi", "Makes an integer of text.").args(args![Arg::required("string", ArgType::Any, "The text.")]),
        |call| Ok(Value::Int(integer(&call.value("string")))),
    );
    registry.function(
        Signature::function("parse_float", "Makes a float of text.").args(args![Arg::required("string", ArgType::Any, "The text.")]),
        |call| {
            let value = call.value("string");
            Ok(Value::Float(match value.as_float() {
                Some(number) => number,
                None => display(&value).trim().parse().unwrap_or(0.0),
            }))
        },
    );
    registry.function(
        Signature::function("regex_replace", "Replaces what a pattern matches.")
            .args(args![
                Arg::required("source", ArgType::String, "The text."),
                Arg::optional("replace", ArgType::String, "What to put in: $1 and ${name} are groups."),
                Arg::optional("replace_lambda", ArgType::String, "A lambda that gives what to put in."),
                Arg::required("re", ArgType::String, "The pattern; case does not count."),
            ])
            .version(2),
        regex_replace,
    );
    registry.function(
        Signature::function("regex_transform", "Replaces what each of several patterns matches, one after another.").args(args![
            Arg::required("source", ArgType::String, "The text."),
            Arg::required("map", ArgType::Dict, "Patterns and what to put in."),
            Arg::optional("key", ArgType::String, "Not used: all patterns are cached."),
        ]),
        |call| {
            let mut source = call.bytes("source").to_vec();
            for (pattern, replacement) in call.dict("map").iter().flat_map(|map| map.iter()) {
                let Some(regex) = call.scope().regex(&Text::from(pattern.as_str())) else { continue };
                let template = display(replacement);
                source = regex.replace_all(&source, |groups, out| regex.expand(template.as_bytes(), &source, groups, out));
                within_limits(&call, source.len() as u64)?;
            }
            Ok(Value::str(source))
        },
    );
    registry.function(
        Signature::function("parse_string_with_regex", "Gives the groups of patterns in a text.")
            .args(args![STRING, Arg::required("regex", ArgType::Strings, "The patterns; case does not count."),]),
        |call| {
            let hay = call.bytes("string");
            let mut groups = Dict::new();
            for pattern in call.texts("regex") {
                if let Some(regex) = call.scope().regex(&pattern) {
                    named_groups(&regex, &hay, &mut groups);
                }
            }
            Ok(groups.into())
        },
    );
    registry.function(
        Signature::function("humanize", "Writes a number or a time for people.")
            .args(args![
                Arg::optional("bytes", ArgType::Int, "A size, in powers of 1000."),
                Arg::optional("ibytes", ArgType::Int, "A size, in powers of 1024."),
                Arg::optional("time", ArgType::Time, "A time, relative to now."),
                Arg::optional("comma", ArgType::Int, "A number, with commas."),
            ])
            .version(2),
        humanize,
    );
    registry.function(
        Signature::function("rand", "Gives a random number.").args(args![Arg::optional(
            "range",
            ArgType::Int,
            "The number before which it lies."
        )]),
        |call| {
            let range = u64::try_from(call.int("range")).ok().filter(|range| *range > 0).unwrap_or(i64::MAX as u64);
            Ok(Value::Int(i64::try_from(call.scope().random() % range).unwrap_or(0)))
        },
    );
    registry.function(
        Signature::function("commandline_split", "Cuts a command line into its arguments.").args(args![
            Arg::required("command", ArgType::String, "The command line."),
            Arg::optional("bash_style", ArgType::Bool, "By the rules of a shell instead of those of Windows."),
        ]),
        |call| {
            let command = call.string("command");
            Ok(Value::list(if call.bool("bash_style") { split_shell(&command) } else { split_windows(&command) }))
        },
    );
}

/// Refuses to make a text that is longer than the budget allows.
fn within_limits(call: &Call, length: u64) -> Result<(), CallError> {
    if length > call.scope().meter().budget().string || !call.scope().has_room_for(length) {
        return Err("the result would exceed the memory limits".into());
    }
    Ok(())
}

fn split(call: Call) -> Result<Value, CallError> {
    let text = call.bytes("string");
    if let Some(separator) = call.text("sep_string").filter(|text| !text.is_empty()) {
        let (text, separator) = (String::from_utf8_lossy(&text).into_owned(), separator.to_str().into_owned());
        return Ok(Value::list(text.split(&separator)));
    }
    let Some(pattern) = call.text("sep") else { return Err("either sep or sep_string is needed".into()) };
    #[derive(Default)]
    struct Separators(std::sync::Mutex<HashMap<Text, std::sync::Arc<crate::regex::Regex>>>);
    let cache = call.scope().shared::<Separators>();
    let mut cache = cache.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let regex = match cache.get(&pattern) {
        Some(regex) => regex.clone(),
        None => {
            let regex = std::sync::Arc::new(crate::regex::Regex::exact(&pattern).map_err(CallError::failed)?);
            if cache.len() > 100 {
                cache.clear();
            }
            cache.insert(pattern, regex.clone());
            regex
        }
    };
    drop(cache);
    Ok(Value::list(regex.split(&text)))
}

/// An integer of anything: text with an optional base prefix, a float cut, bad text 0.
fn integer(value: &Value) -> i64 {
    match value {
        Value::Float(number) => *number as i64,
        Value::UInt(number) => *number as i64,
        Value::Str(text) => parse_integer(text.to_str().trim()),
        other => other.as_int().unwrap_or(0),
    }
}

fn parse_integer(text: &str) -> i64 {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.get(1..).unwrap_or_default())
    } else {
        (10, lower.as_str())
    };
    let size = i128::from(u64::from_str_radix(digits, base).unwrap_or(0));
    let number = if negative { size.saturating_neg() } else { size };
    if number >= i128::from(i64::MIN) && number <= i128::from(u64::MAX) { number as i64 } else { 0 }
}

fn regex_replace(call: Call) -> Result<Value, CallError> {
    let source = call.bytes("source");
    let Some(regex) = call.text("re").and_then(|pattern| call.scope().regex(&pattern)) else { return Ok(Value::str(&source[..])) };
    let lambda = call.text("replace_lambda").and_then(|text| call.scope().lambda(&text));
    let template = call.bytes("replace");
    let scope = call.scope();
    let limit = usize::try_from(scope.meter().budget().string).unwrap_or(usize::MAX);
    let replaced = regex.replace_all(&source, |groups, out| {
        if out.len() > limit || scope.stopped() {
            return;
        }
        match &lambda {
            Some(lambda) => {
                let whole = groups.first().copied().flatten().and_then(|span| source.get(span.range())).unwrap_or_default();
                let value = lambda.call(scope, &[Value::str(whole)]);
                out.extend_from_slice(&text(value, scope));
            }
            None => regex.expand(&template, &source, groups, out),
        }
    });
    within_limits(&call, replaced.len() as u64)?;
    Ok(Value::str(replaced))
}

/// Sets the groups of all matches of `regex` in `into`: by name, or `g1`, `g2` …; later matches win, groups that took no part are empty.
pub(crate) fn named_groups(regex: &crate::regex::Regex, hay: &[u8], into: &mut Dict) {
    for groups in regex.matches(hay) {
        set_groups(regex, hay, &groups, into);
    }
}

/// Sets the groups of one match.
pub(crate) fn set_groups(regex: &crate::regex::Regex, hay: &[u8], groups: &[Option<regex_automata::Span>], into: &mut Dict) {
    for (at, (name, span)) in regex.group_names().iter().zip(groups).enumerate().skip(1) {
        let value = span.and_then(|span| hay.get(span.range())).unwrap_or_default();
        let key = name.as_ref().map_or_else(|| Key::from(format!("g{at}")), Key::from);
        into.update(key, Value::str(value));
    }
}

fn scaled(size: i64, base: f64, units: &[&str]) -> String {
    let mut amount = size as f64;
    if amount.abs() < 10.0 {
        return format!("{size} B");
    }
    let mut unit = 0_usize;
    while amount.abs() >= base && unit.saturating_add(1) < units.len() {
        amount /= base;
        unit = unit.saturating_add(1);
    }
    let name = units.get(unit).copied().unwrap_or("B");
    let rounded = (amount * 10.0 + 0.5).floor() / 10.0;
    if rounded < 10.0 { format!("{rounded:.1} {name}") } else { format!("{rounded:.0} {name}") }
}

fn with_commas(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && digits.len().saturating_sub(at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if number < 0 { format!("-{out}") } else { out }
}

fn humanize(call: Call) -> Result<Value, CallError> {
    if let Some(size) = call.opt_int("bytes") {
        return Ok(Value::from(scaled(size, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])));
    }
    if let Some(size) = call.opt_int("ibytes") {
        return Ok(Value::from(scaled(size, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])));
    }
    if let Some(number) = call.opt_int("comma") {
        return Ok(Value::from(with_commas(number)));
    }
    let Some(time) = call.time("time") else { return Ok(Value::Null) };
    let seconds = call.scope().now().unix().saturating_sub(time.unix());
    let side = if seconds < 0 { "from now" } else { "ago" };
    let size = seconds.unsigned_abs();
    let (count, unit) = match size {
        0 => return Ok(Value::from("now")),
        1..60 => (size, "second"),
        60..3600 => (size / 60, "minute"),
        3600..86_400 => (size / 3600, "hour"),
        86_400..604_800 => (size / 86_400, "day"),
        604_800..2_592_000 => (size / 604_800, "week"),
        2_592_000..31_536_000 => (size / 2_592_000, "month"),
        _ => (size / 31_536_000, "year"),
    };
    Ok(Value::from(format!("{count} {unit}{} {side}", if count == 1 { "" } else { "s" })))
}

fn split_shell(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '\'' => word.get_or_insert_default().extend(chars.by_ref().take_while(|c| *c != '\'')),
            '"' => {
                let current = word.get_or_insert_default();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => current.extend(chars.next()),
                        c => current.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn split_windows(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut slashes = 0_usize;
    for c in command.chars() {
        if c == '\\' {
            slashes = slashes.saturating_add(1);
            continue;
        }
        if c == '"' {
            let current = word.get_or_insert_default();
            current.push_str(&"\\".repeat(slashes / 2));
            if slashes.is_multiple_of(2) {
                quoted = !quoted
            } else {
                current.push('"')
            }
            slashes = 0;
            continue;
        }
        if slashes > 0 {
            word.get_or_insert_default().push_str(&"\\".repeat(slashes));
            slashes = 0;
        }
        if !quoted && matches!(c, ' ' | '\t') {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    if slashes > 0 {
        word.get_or_insert_default().push_str(&"\\".repeat(slashes));
    }
    words.extend(word);
    words
}

/// A float for text output, as CSV has it: never an exponent.
pub(super) fn fixed(number: f64) -> String {
    if number.is_finite() { format!("{number}") } else { float(number) }
}
