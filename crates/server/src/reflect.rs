//! Messages as JSON rows: proto names, declaration order, enums by name, every field with its default, 64-bit integers as numbers (`spec/04` §9.4).

use std::fmt::Write;
use std::sync::LazyLock;

use data_encoding::BASE64;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use crate::ServerError;

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(talon_proto::DESCRIPTORS).ok());

/// A message of type `name`, such as `ApiClient`, in the form that can be looked into.
///
/// # Errors
/// [`ServerError::Invalid`] when there is no such type or the message is of another.
pub fn dynamic(name: &str, message: &impl Message) -> Result<DynamicMessage, ServerError> {
    let wrong = || ServerError::invalid(format!("{name} is no message type"));
    let descriptor = POOL.as_ref().and_then(|pool| pool.get_message_by_name(&format!("proto.{name}"))).ok_or_else(wrong)?;
    DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|_| wrong())
}

/// The row of a message of type `name` as JSON text.
///
/// # Errors
/// As [`dynamic`].
pub fn to_json(name: &str, message: &impl Message) -> Result<String, ServerError> {
    let mut out = String::new();
    write_message(&mut out, &dynamic(name, message)?);
    Ok(out)
}

/// The fields of a message in the order of their declaration, `None` for a message field that is not set.
pub fn fields(message: &DynamicMessage) -> Vec<(FieldDescriptor, Option<Value>)> {
    let descriptor = message.descriptor();
    let declared = descriptor.descriptor_proto().field.iter();
    let found = declared.filter_map(|field| descriptor.get_field_by_name(field.name()));
    found
        .map(|field| {
            let absent = field.supports_presence() && !message.has_field(&field);
            let value = (!absent).then(|| message.get_field(&field).into_owned());
            (field, value)
        })
        .collect()
}

/// The name of an enum's value, if it has one.
#[must_use]
pub fn enum_name(field: &FieldDescriptor, number: i32) -> Option<String> {
    match field.kind() {
        Kind::Enum(kind) => kind.get_value(number).map(|value| value.name().to_owned()),
        _ => None,
    }
}

/// The field that a map's values are of.
#[must_use]
pub fn map_value_field(field: &FieldDescriptor) -> FieldDescriptor {
    match field.kind() {
        Kind::Message(entry) => entry.map_entry_value_field(),
        _ => field.clone(),
    }
}

/// A map's key as text.
#[must_use]
pub fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(flag) => flag.to_string(),
        MapKey::I32(number) => number.to_string(),
        MapKey::I64(number) => number.to_string(),
        MapKey::U32(number) => number.to_string(),
        MapKey::U64(number) => number.to_string(),
        MapKey::String(text) => text.clone(),
    }
}

fn write_message(out: &mut String, message: &DynamicMessage) {
    out.push('{');
    for (at, (field, value)) in fields(message).into_iter().enumerate() {
        out.push_str(if at == 0 { "" } else { "," });
        write_text(out, field.name());
        out.push(':');
        match value {
            Some(value) => write_value(out, &field, &value),
            None => out.push_str("null"),
        }
    }
    out.push('}');
}

fn write_value(out: &mut String, field: &FieldDescriptor, value: &Value) {
    match value {
        Value::Bool(flag) => push(out, flag),
        Value::I32(number) => push(out, number),
        Value::I64(number) => push(out, number),
        Value::U32(number) => push(out, number),
        Value::U64(number) => push(out, number),
        Value::F32(number) if number.is_finite() => push(out, number),
        Value::F64(number) if number.is_finite() => push(out, number),
        Value::F32(_) | Value::F64(_) => out.push_str("null"),
        Value::String(text) => write_text(out, text),
        Value::Bytes(bytes) => write_text(out, &BASE64.encode(bytes)),
        Value::EnumNumber(number) => match enum_name(field, *number) {
            Some(name) => write_text(out, &name),
            None => push(out, number),
        },
        Value::Message(message) => write_message(out, message),
        Value::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                write_value(out, field, item);
            }
            out.push(']');
        }
        Value::Map(members) => {
            let of_values = map_value_field(field);
            let mut sorted: Vec<_> = members.iter().map(|(key, value)| (map_key(key), value)).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            out.push('{');
            for (at, (key, value)) in sorted.into_iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                write_text(out, &key);
                out.push(':');
                write_value(out, &of_values, value);
            }
            out.push('}');
        }
    }
}

fn push(out: &mut String, value: &impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{value}");
}

fn write_text(out: &mut String, text: &str) {
    push(out, &serde_json::Value::from(text));
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use talon_proto::{ApiClient, ArtifactCollectorContext, Uname};

    use super::*;

    #[test]
    fn a_record_shows_all_its_fields() {
        let client = ApiClient {
            client_id: "C.1".into(),
            os_info: Some(Uname { system: "linux".into(), mac_addresses: vec!["a".into()], ..Uname::default() }),
            last_seen_at: u64::MAX,
            in_flight_flows: [("F.2".to_owned(), 2), ("F.1".to_owned(), 1)].into(),
            ..ApiClient::default()
        };
        expect![[r#"{"client_id":"C.1","agent_information":null,"os_info":{"system":"linux","hostname":"","release":"","machine":"","fqdn":"","mac_addresses":["a"]},"first_seen_at":0,"last_seen_at":18446744073709551615,"last_ip":"","labels":[],"last_interrogate_flow_id":"","last_interrogate_artifact_name":"","last_hunt_timestamp":0,"last_event_table_version":0,"last_label_timestamp":0,"in_flight_flows":{"F.1":1,"F.2":2}}"#]].assert_eq(&to_json("ApiClient", &client).unwrap());
    }

    #[test]
    fn enums_have_names() {
        let mut flow = ArtifactCollectorContext::default();
        flow.set_state(talon_proto::artifact_collector_context::State::InProgress);
        let row = to_json("ArtifactCollectorContext", &flow).unwrap();
        assert!(row.contains(r#""state":"IN_PROGRESS""#) && row.contains(r#""request":null"#), "{row}");
    }
}
