//! Encodings: JSON, base64, hex, CSV, YAML.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::strings::fixed;
use crate::args;
use crate::arguments::text;
use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::json;
use crate::member::{elements, row_to_dict};
use crate::registry::Registry;
use crate::rows::{Rows, as_row};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::{display, plain};
use crate::value::Value;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);
const UNPADDED: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_encode_padding(false));
const PADDED: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new());

pub(super) fn register(registry: &mut Registry) {
    const STRING: Arg = Arg::required("string", ArgType::String, "The text.");
    const DATA: Arg = Arg::required("data", ArgType::String, "The text.");
    const SCHEMA: Arg = Arg::optional("schema", ArgType::Strings, "Schemas that the value must satisfy; not supported.");
    registry.function(
        Signature::function("serialize", "Writes a value as text.").args(args![
            Arg::required("item", ArgType::Any, "The value."),
            Arg::optional("format", ArgType::String, "json (unless given), jsonl, yaml, hex, base64, csv or string."),
        ]),
        |call| encoded(&call, call.value("item"), &call.string("format")),
    );
    registry.function(
        Signature::function("encode", "Writes a value as text.")
            .args(args![
                Arg::required("string", ArgType::Any, "The value."),
                Arg::required("type", ArgType::String, "json, jsonl, yaml, hex, base64, csv or string."),
            ])
            .version(3),
        |call| encoded(&call, call.value("string"), &call.string("type")),
    );
    registry.function(Signature::function("base64encode", "Writes bytes as base64.").args(args![STRING]), |call| {
        Ok(Value::from(PADDED.encode(call.bytes("string"))))
    });
    registry.function(Signature::function("utf16", "Reads UTF-16, little end first.").args(args![STRING]), |call| {
        let bytes = call.bytes("string");
        let units: Vec<u16> = bytes.chunks_exact(2).filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?))).collect();
        Ok(Value::from(String::from_utf16_lossy(&units)))
    });
    registry.function(Signature::function("utf16_encode", "Writes UTF-16, little end first.").args(args![STRING]), |call| {
        Ok(Value::str(call.string("string").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()))
    });
    registry.function(Signature::function("base64decode", "Reads base64.").args(args![STRING]), |call| {
        let text: Vec<u8> = call.bytes("string").iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = LENIENT.decode(&text).or_else(|_| URL_SAFE.decode(&text)).map_err(|_| CallError::from("not base64"))?;
        Ok(Value::str(bytes))
    });
    registry.function(
        Signature::function("unhex", "Reads pairs of hex digits.").args(args![Arg::optional("string", ArgType::String, "The digits.")]),
        |call| {
            let text = call.bytes("string");
            let digits = text.strip_prefix(b"0x").unwrap_or(&text);
            let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let bytes: Option<Vec<u8>> = digits
                .chunks(2)
                .map(|pair| match pair {
                    [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                    _ => None,
                })
                .collect();
            bytes.map(Value::str).ok_or_else(|| "not hex digits".into())
        },
    );
    registry.function(Signature::function("parse_json", "Reads a JSON object.").args(args![DATA, SCHEMA]).version(2), |call| {
        no_schema(&call)?;
        json::decode(&call.bytes("data")).map_err(CallError::failed)
    });
    registry.function(Signature::function("parse_json_array", "Reads a JSON array.").args(args![DATA, SCHEMA]).version(2), |call| {
        no_schema(&call)?;
        match json::decode(&call.bytes("data")).map_err(CallError::failed)? {
            list @ Value::List(_) => Ok(list),
            other => Ok(Value::list([other])),
        }
    });
    registry.plugin(
        Signature::plugin("parse_json_array", "Gives a row for each element of a JSON array.").args(args![DATA, SCHEMA]).version(2),
        |call| {
            no_schema(&call)?;
            match json::decode(&call.bytes("data")).map_err(CallError::failed)? {
                Value::List(items) => Ok(Rows::of(items.iter().cloned().map(as_row).collect::<Vec<_>>())),
                other => Ok(Rows::one(as_row(other))),
            }
        },
    );
    registry.function(
        Signature::function("xor", "Combines each byte with a repeated key.")
            .args(args![STRING, Arg::required("key", ArgType::String, "The key."),]),
        |call| {
            let key = call.bytes("key");
            if key.is_empty() {
                return Err("key must not be empty".into());
            }
            Ok(Value::str(call.bytes("string").iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect::<Vec<u8>>()))
        },
    );
    registry.function(
        Signature::function("rot13", "Moves each letter by thirteen places.").args(args![Arg::optional(
            "string",
            ArgType::String,
            "The text."
        )]),
        |call| {
            let turned = |byte: &u8| match byte {
                b'a'..=b'm' | b'A'..=b'M' => byte.wrapping_add(13),
                b'n'..=b'z' | b'N'..=b'Z' => byte.wrapping_sub(13),
                other => *other,
            };
            Ok(Value::str(call.bytes("string").iter().map(turned).collect::<Vec<u8>>()))
        },
    );
    registry.function(Signature::function("entropy", "The entropy of a text in bits per byte.").args(args![STRING]), |call| {
        let text = call.bytes("string");
        let mut counts = [0_u64; 256];
        for byte in text.iter() {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count = count.saturating_add(1);
            }
        }
        let total = text.len() as f64;
        let bits: f64 = counts
            .iter()
            .filter(|count| **count > 0)
            .map(|count| {
                let share = *count as f64 / total;
                -share * share.log2()
            })
            .sum();
        Ok(Value::Float((bits * 100.0).floor() / 100.0))
    });
}

fn no_schema(call: &Call) -> Result<(), CallError> {
    if call.has("schema") { Err("schemas are not supported".into()) } else { Ok(()) }
}

fn encoded(call: &Call, value: Value, format: &str) -> Result<Value, CallError> {
    let scope = call.scope();
    let value = value.materialized(scope);
    if !scope.has_room_for(value.weight().saturating_mul(2)) {
        return Err("the result would exceed the memory limits".into());
    }
    let bytes = plain(&value);
    Ok(match format {
        "" | "json" => Value::from(json::encode_pretty(&value)),
        "jsonl" => {
            let mut out = Vec::new();
            for row in elements(&value, scope) {
                json::Encoder::default().line(&mut out, &row_to_dict(&as_row(row)));
            }
            Value::str(out)
        }
        "yaml" => {
            let mut out = String::new();
            yaml(&mut out, &value, 0);
            Value::from(out)
        }
        "hex" => Value::from(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        "base64" => Value::from(UNPADDED.encode(&bytes[..])),
        "csv" => Value::from(csv(&value, scope)),
        "string" => Value::Str(text(value, scope)),
        other => return Err(CallError::Argument(format!("Unknown encoding {other}"))),
    })
}

/// Block style; scalars as JSON, which YAML reads alike.
fn yaml(out: &mut String, value: &Value, indent: usize) {
    let margin = " ".repeat(indent);
    match value {
        Value::Dict(dict) if !dict.is_empty() => {
            for (key, value) in dict.iter() {
                out.push_str(&margin);
                out.push_str(&yaml_text(key));
                out.push(':');
                yaml_nested(out, value, indent);
            }
        }
        Value::List(items) if !items.is_empty() => {
            for value in items.iter() {
                out.push_str(&margin);
                out.push('-');
                yaml_nested(out, value, indent);
            }
        }
        Value::Str(text) => {
            out.push_str(&margin);
            out.push_str(&yaml_text(&text.to_str()));
            out.push('\n');
        }
        other => {
            out.push_str(&margin);
            out.push_str(&json::encode(other));
            out.push('\n');
        }
    }
}

fn yaml_nested(out: &mut String, value: &Value, indent: usize) {
    let nested = match value {
        Value::Dict(dict) => !dict.is_empty(),
        Value::List(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        yaml(out, value, indent.saturating_add(2));
    } else {
        out.push(' ');
        yaml(out, value, 0);
    }
}

fn yaml_text(text: &str) -> String {
    let plain = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'))
        && !matches!(text.to_ascii_lowercase().as_str(), "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n");
    if plain { text.to_owned() } else { json::encode(&Value::from(text)) }
}

fn csv(value: &Value, scope: &Scope) -> String {
    let rows: Vec<_> = elements(value, scope).into_iter().map(|row| row_to_dict(&as_row(row))).collect();
    let mut out = String::new();
    let Some(first) = rows.first() else { return out };
    let header: Vec<String> = first.keys().map(|key| csv_quoted(key)).collect();
    out.push_str(&header.join(","));
    out.push('\n');
    for row in &rows {
        out.push_str(&csv_line(first, row));
    }
    out
}

/// A line with the columns of `header`.
fn csv_line(header: &Dict, row: &Dict) -> String {
    let cells: Vec<String> = header.keys().map(|key| csv_quoted(&csv_cell(row.get(key).unwrap_or(&Value::Null)))).collect();
    format!("{}\n", cells.join(","))
}

/// A value as a cell: texts that would be read back as something else get a leading space.
pub(crate) fn csv_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Float(number) => fixed(*number),
        Value::Bytes(bytes) => format!("base64:{}", PADDED.encode(bytes)),
        Value::Str(text) => {
            let text = text.to_str();
            let lower = text.to_ascii_lowercase();
            let ambiguous = text.trim().parse::<f64>().is_ok()
                || [" ", "{", "[", "true", "false", "inf", "base64:"].iter().any(|start| lower.starts_with(start));
            if ambiguous { format!(" {text}") } else { text.into_owned() }
        }
        Value::Dict(_) | Value::List(_) => json::encode(value),
        Value::Time(time) => time.to_string(),
        other => display(other),
    }
}

pub(crate) fn csv_quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) || text.starts_with(' ') {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
