//! `parse_auditd()`: the log of the audit daemon as events. Records that share a number are one event.

use std::io::{BufRead, BufReader, Read};

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Rows, Signature, Time, Value};

use crate::accessor;

/// A line with more is cut.
const MAX_LINE: u64 = 1 << 20;
/// An event has no more records than this.
const MAX_RECORDS: usize = 1000;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("parse_auditd", "The events in logs of the audit daemon.").args(
            const {
                &[
                    Arg::required("filename", ArgType::Paths, "The files."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                    Arg::optional("buffer_size", ArgType::Int, "Not used."),
                ]
            },
        ),
        parse_auditd,
    );
}

fn parse_auditd(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let mut paths = call.paths("filename").into_iter();
    let mut open: Option<BufReader<Box<dyn accessor::FileReader>>> = None;
    let mut events = Events::default();
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let Some(reader) = &mut open else {
                match accessor.open(&scope, &paths.next()?) {
                    Ok(reader) => open = Some(BufReader::new(reader)),
                    Err(error) => call.log(error.to_string()),
                }
                continue;
            };
            let mut line = Vec::new();
            let event = match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => {
                    open = None;
                    events.finish()
                }
                Ok(_) => events.add(&String::from_utf8_lossy(&line)),
                Err(error) => {
                    call.log(error.to_string());
                    open = None;
                    events.finish()
                }
            };
            if let Some(event) = event {
                return Some(Ok(event.into()));
            }
        }
    }))
}

/// The event whose records are being gathered.
#[derive(Default)]
pub(crate) struct Events {
    stamp: String,
    records: Vec<Record>,
}

/// One line.
struct Record {
    kind: String,
    fields: Vec<(String, String)>,
}

impl Events {
    /// Takes a line in. The event that it ends, if it does: that of the number before, or its own when the line says so.
    pub(crate) fn add(&mut self, line: &str) -> Option<Dict> {
        let (kind, stamp, body) = split(line)?;
        let mut done = None;
        if stamp != self.stamp || self.records.len() >= MAX_RECORDS {
            done = self.finish();
            stamp.clone_into(&mut self.stamp);
        }
        if kind == "EOE" {
            return done.or_else(|| self.finish());
        }
        self.records.push(Record { kind: kind.to_owned(), fields: fields(body) });
        done
    }

    /// The event that was being gathered.
    pub(crate) fn finish(&mut self) -> Option<Dict> {
        let records = std::mem::take(&mut self.records);
        let stamp = std::mem::take(&mut self.stamp);
        let first = records.first()?;
        let (time, sequence) = stamp.split_once(':')?;
        let find =
            |name: &str| records.iter().flat_map(|record| &record.fields).find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let result = match find("success").or_else(|| find("res")).as_deref() {
            Some("yes" | "success" | "1") => Value::from("success"),
            Some("no" | "failed" | "0") => Value::from("fail"),
            _ => Value::Null,
        };
        let list: Vec<Value> = records
            .iter()
            .map(|record| {
                let mut row = Dict::new().with("Type", &record.kind);
                for (name, value) in &record.fields {
                    row.update(Key::from(name.clone()), value);
                }
                row.into()
            })
            .collect();
        let number = |name: &str| find(name).and_then(|text| text.parse::<i64>().ok());
        Some(
            Dict::new()
                .with("Timestamp", moment(time))
                .with("Sequence", sequence.parse::<i64>().ok())
                .with("Type", &first.kind)
                .with("Result", result)
                .with("Pid", number("pid"))
                .with("Ppid", number("ppid"))
                .with("Uid", number("uid"))
                .with("Auid", number("auid"))
                .with("Exe", find("exe"))
                .with("Comm", find("comm"))
                .with("Key", find("key"))
                .with("Records", list),
        )
    }
}

fn moment(text: &str) -> Value {
    let (seconds, millis) = text.split_once('.').unwrap_or((text, "0"));
    let (Ok(seconds), Ok(millis)) = (seconds.parse::<i64>(), millis.parse::<i64>()) else { return Value::Null };
    let nanos = i128::from(seconds).saturating_mul(1_000_000_000).saturating_add(i128::from(millis).saturating_mul(1_000_000));
    Value::Time(Time::from_unix_nanos(nanos))
}

/// `type=KIND msg=audit(STAMP): BODY`
fn split(line: &str) -> Option<(&str, &str, &str)> {
    let rest = line.trim().split_once("type=")?.1;
    let (kind, rest) = rest.split_once(' ')?;
    let rest = rest.trim_start().strip_prefix("msg=audit(")?;
    let (stamp, body) = rest.split_once(')')?;
    Some((kind, stamp, body.trim_start_matches(':').trim_start()))
}

/// `name=value` pairs; values may be quoted, or hexadecimal where the daemon writes what it does not trust.
fn fields(body: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    // What follows a group separator was added for readers by the daemon.
    let mut rest = body.split('\u{1d}').next().unwrap_or_default();
    while let Some((name, tail)) = rest.split_once('=') {
        let name = name.rsplit(' ').next().unwrap_or_default();
        let (value, after) = match tail.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let inner = tail.get(1..).unwrap_or_default();
                inner.split_once(quote).unwrap_or((inner, ""))
            }
            _ => tail.split_once(' ').unwrap_or((tail, "")),
        };
        let quoted = tail.starts_with(['"', '\'']);
        if tail.starts_with('\'') {
            // A message of a program: its pairs are part of the record.
            found.extend(fields(value).into_iter().take(100));
        } else if !name.is_empty() {
            let value = if !quoted && is_text(name) { unhex(value).unwrap_or_else(|| value.to_owned()) } else { value.to_owned() };
            found.push((name.to_owned(), value));
        }
        rest = after.trim_start();
    }
    found
}

/// Whether the daemon writes values of this name in hexadecimal when they have unusual characters.
fn is_text(name: &str) -> bool {
    matches!(name, "comm" | "exe" | "cwd" | "name" | "proctitle" | "key" | "cmd" | "acct" | "path" | "data" | "saddr_text")
        || (name.starts_with('a') && name.len() > 1 && name.bytes().skip(1).all(|byte| byte.is_ascii_digit()))
}

fn unhex(text: &str) -> Option<String> {
    if text.len() < 4 || !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'A'..=b'F')) {
        return None;
    }
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> = digits?.chunks_exact(2).map(|pair| pair.iter().fold(0_u8, |byte, digit| (byte << 4) | digit)).collect();
    // Arguments of a command line are separated by NUL.
    let text = String::from_utf8(bytes).ok()?.replace('\0', " ");
    (!text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_vql::{Environment, Query, json, parse_statement};

    const LOG: &str = "type=SYSCALL msg=audit(1590938885.123:42): arch=c000003e syscall=59 success=yes exit=0 ppid=10 pid=11 auid=1000 uid=0 comm=\"ls\" exe=\"/usr/bin/ls\" key=\"exec\"\n\
        type=PROCTITLE msg=audit(1590938885.123:42): proctitle=6C73002D6C\n\
        type=EOE msg=audit(1590938885.123:42): \n\
        nonsense\n\
        type=USER_AUTH msg=audit(1590938886.000:43): pid=12 uid=0 auid=4294967295 msg='op=PAM:authentication acct=\"root\" exe=\"/usr/sbin/sshd\" res=failed'\n";

    #[test]
    fn records_of_one_number_are_one_event() {
        let scope = Environment::new(Arc::new(crate::registry())).variable("L", LOG).open();
        let statement = parse_statement("SELECT * FROM parse_auditd(filename=L, accessor='data')").unwrap();
        let rows: Vec<String> = Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect();
        expect![[r#"
            {"Timestamp":"2020-05-31T15:28:05.123Z","Sequence":42,"Type":"SYSCALL","Result":"success","Pid":11,"Ppid":10,"Uid":0,"Auid":1000,"Exe":"/usr/bin/ls","Comm":"ls","Key":"exec","Records":[{"Type":"SYSCALL","arch":"c000003e","syscall":"59","success":"yes","exit":"0","ppid":"10","pid":"11","auid":"1000","uid":"0","comm":"ls","exe":"/usr/bin/ls","key":"exec"},{"Type":"PROCTITLE","proctitle":"ls -l"}]}
            {"Timestamp":"2020-05-31T15:28:06Z","Sequence":43,"Type":"USER_AUTH","Result":"fail","Pid":12,"Ppid":null,"Uid":0,"Auid":4294967295,"Exe":"/usr/sbin/sshd","Comm":null,"Key":null,"Records":[{"Type":"USER_AUTH","pid":"12","uid":"0","auid":"4294967295","op":"PAM:authentication","acct":"root","exe":"/usr/sbin/sshd","res":"failed"}]}"#]]
        .assert_eq(&rows.join("\n"));
    }
}
