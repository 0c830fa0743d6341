//! Records as lines of text for other systems: the JSON line of the stock component log, and the syslog message of RFC 5424 around it.

use serde_json::{Map, Value, json};

use crate::log::Entry;

/// Facility 13 (log audit), severity 6 (informational).
const PRIORITY: u8 = 13 * 8 + 6;

/// The name of the component, by which stock installations filter.
pub const COMPONENT: &str = "VelociraptorAudit";

/// The record as the stock audit component writes it: a JSON object with sorted keys. Beside the stock's fields it has the record's number,
/// organisation, phase and where it came from, so that a reader can find it in the log.
#[must_use]
pub fn component_line(entry: &Entry) -> String {
    Value::Object(fields(entry, None)).to_string()
}

/// The record as a syslog message of at most `limit` bytes, and whether its details had to be left out for that.
#[must_use]
pub fn syslog_message(entry: &Entry, host: &str, limit: usize) -> (Vec<u8>, bool) {
    let head = format!(
        "<{PRIORITY}>1 {} {} {COMPONENT} - {} - ",
        time(entry.record.time_ns),
        printable(host, 255),
        printable(&entry.record.operation, 32),
    );
    let message = |fields: Map<String, Value>| [head.as_bytes(), Value::Object(fields).to_string().as_bytes()].concat();
    let whole = message(fields(entry, None));
    if whole.len() <= limit {
        return (whole, false);
    }
    let left_out =
        json!({"_left_out": format!("{} bytes do not fit a syslog message; see record {} of the audit log", whole.len(), entry.index)});
    let mut short = message(fields(entry, Some(left_out)));
    short.truncate(limit);
    (short, true)
}

fn fields(entry: &Entry, details: Option<Value>) -> Map<String, Value> {
    let record = &entry.record;
    let mut fields = Map::new();
    let details = details.unwrap_or_else(|| record.details.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect());
    fields.insert("details".to_owned(), details);
    fields.insert("index".to_owned(), entry.index.into());
    fields.insert("level".to_owned(), "info".into());
    fields.insert("msg".to_owned(), record.operation.as_str().into());
    fields.insert("operation".to_owned(), record.operation.as_str().into());
    fields.insert("org".to_owned(), record.org.as_str().into());
    fields.insert("phase".to_owned(), json!(record.phase));
    fields.insert("principal".to_owned(), record.principal.as_str().into());
    if let Some(remote) = record.remote {
        fields.insert("remote".to_owned(), remote.to_string().into());
    }
    fields.insert("time".to_owned(), time(record.time_ns).into());
    fields
}

/// RFC 3339 in UTC, to the microsecond, which is as fine as RFC 5424 allows.
fn time(time_ns: i64) -> String {
    let micros = time_ns.div_euclid(1000);
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| "-".to_owned(), |time| format!("{time:.6}"))
}

/// A header field: printable ASCII without spaces, never empty.
fn printable(text: &str, limit: usize) -> String {
    let field: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(limit).collect();
    if field.is_empty() { "-".to_owned() } else { field }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{Details, Phase, Record};

    fn entry() -> Entry {
        let mut record = Record::new(1_700_000_000_123_456_789, "root".parse().unwrap(), "alice", "user_create", Phase::Intended);
        record.details = Details::new().text("username", "bob\n<13>1 forged").text("password", "hunter2");
        record.remote = Some("192.0.2.7".parse().unwrap());
        Entry { index: 7, record, redacted: false }
    }

    #[test]
    fn the_line_of_the_component() {
        expect![[r#"{"details":{"password":"[redacted]","username":"bob\n<13>1 forged"},"index":7,"level":"info","msg":"user_create","operation":"user_create","org":"root","phase":"intended","principal":"alice","remote":"192.0.2.7","time":"2023-11-14T22:13:20.123456Z"}"#]].assert_eq(&component_line(&entry()));
    }

    #[test]
    fn the_syslog_message_is_one_line_whatever_the_record_says() {
        let mut entry = entry();
        let (message, cut) = syslog_message(&entry, "front end\n", 8192);
        expect![[r#"<110>1 2023-11-14T22:13:20.123456Z front_end_ VelociraptorAudit - user_create - {"details":{"password":"[redacted]","username":"bob\n<13>1 forged"},"index":7,"level":"info","msg":"user_create","operation":"user_create","org":"root","phase":"intended","principal":"alice","remote":"192.0.2.7","time":"2023-11-14T22:13:20.123456Z"}"#]].assert_eq(std::str::from_utf8(&message).unwrap());
        assert!(!cut);
        entry.record.operation = "Unknown username\r\n".to_owned();
        entry.record.details = Details::new().text("much", &"x".repeat(8_000));
        let (message, cut) = syslog_message(&entry, "", 2048);
        assert!(cut && message.len() <= 2048);
        let text = String::from_utf8(message).unwrap();
        assert!(text.starts_with("<110>1 2023-11-14T22:13:20.123456Z - VelociraptorAudit - Unknown_username__ - {"), "{text}");
        assert!(text.contains("see record 7 of the audit log") && !text.contains('\n'));
    }
}
