//! Time.

use std::time::Duration;

use crate::args;
use crate::arguments::{moment, parse_zone};
use crate::call::Call;
use crate::error::CallError;
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Signature};
use crate::time::{Time, format_layout, parse_layout, zone};
use crate::value::Value;

/// Seconds from 1601 to the epoch.
const WINDOWS_EPOCH: i128 = 11_644_473_600;
/// Seconds from the epoch to 2001.
const COCOA_EPOCH: i64 = 978_307_200;
/// Seconds from 1904 to the epoch.
const MAC_EPOCH: i64 = 2_082_844_800;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("now", "Gives the seconds since the epoch.")
            .args(args![Arg::optional("ns", ArgType::Bool, "Nanoseconds instead.")])
            .version(2),
        |call| {
            let now = call.scope().now();
            Ok(Value::Int(if call.bool("ns") { i64::try_from(now.unix_nanos()).unwrap_or(i64::MAX) } else { now.unix() }))
        },
    );
    registry.function(
        Signature::function("timestamp", "Makes a time of a number or a text.")
            .args(args![
                Arg::optional("epoch", ArgType::Any, "Seconds, milliseconds, microseconds or nanoseconds since 1970, by size."),
                Arg::optional("cocoatime", ArgType::Int, "Seconds since 2001."),
                Arg::optional("mactime", ArgType::Int, "Seconds since 1904."),
                Arg::optional("winfiletime", ArgType::Int, "Tenths of microseconds since 1601."),
                Arg::optional("string", ArgType::String, "A text of any usual form."),
                Arg::optional("format", ArgType::String, "The layout of the text."),
            ])
            .version(2),
        timestamp,
    );
    registry.function(
        Signature::function("timestamp_format", "Writes a time as text.")
            .args(args![
                Arg::required("time", ArgType::Any, "The time."),
                Arg::optional("format", ArgType::String, "A layout or the name of one; RFC3339 unless given."),
            ])
            .version(1),
        |call| {
            let Some(time) = moment(&call.value("time"), call.scope()) else { return Ok(Value::Null) };
            let layout = call.opt_string("format").unwrap_or_else(|| "RFC3339".to_owned());
            let shown = match call.scope().variable("TZ") {
                Some(Value::Str(name)) => zone(&name.to_str()).unwrap_or(jiff::tz::TimeZone::UTC),
                _ => jiff::tz::TimeZone::UTC,
            };
            Ok(Value::from(format_layout(time, &layout, &shown)))
        },
    );
    registry.function(
        Signature::function("sleep", "Waits.")
            .args(args![Arg::optional("time", ArgType::Int, "Seconds."), Arg::optional("ms", ArgType::Int, "Milliseconds."),]),
        |call| {
            let seconds = Duration::from_secs(u64::try_from(call.int("time")).unwrap_or(0));
            let millis = Duration::from_millis(u64::try_from(call.int("ms")).unwrap_or(0));
            let stopped = call.scope().sleep(seconds.saturating_add(millis));
            Ok(Value::Bool(!stopped))
        },
    );
}

fn timestamp(call: Call) -> Result<Value, CallError> {
    let time = if call.has("cocoatime") {
        Some(Time::from_unix(call.int("cocoatime").saturating_add(COCOA_EPOCH)))
    } else if call.has("mactime") {
        Some(Time::from_unix(call.int("mactime").saturating_sub(MAC_EPOCH)))
    } else if call.has("winfiletime") {
        let ticks = i128::from(call.int("winfiletime"));
        Some(Time::from_unix_nanos(ticks.saturating_mul(100).saturating_sub(WINDOWS_EPOCH.saturating_mul(1_000_000_000))))
    } else if let Some(layout) = call.opt_string("format") {
        let text = call.opt_string("string").unwrap_or_else(|| crate::text::display(&call.value("epoch")));
        parse_layout(&text, &layout, &parse_zone(call.scope()))
    } else if call.has("string") {
        moment(&call.value("string"), call.scope())
    } else {
        moment(&call.value("epoch"), call.scope())
    };
    Ok(Value::from(time))
}
