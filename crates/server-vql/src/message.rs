//! Protobuf messages as rows (`spec/04` §9.4): proto names, declaration order, enums by name, every field with its default.

use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Value as Field};
use talon_server::reflect;
use talon_vql::{CallError, Dict, Value};

/// The row of a message of type `name`, such as `ApiClient`.
///
/// # Errors
/// There is no such type, or the message is of another.
pub fn to_dict(name: &str, message: &impl Message) -> Result<Dict, CallError> {
    Ok(row(&reflect::dynamic(name, message).map_err(CallError::failed)?))
}

fn row(message: &DynamicMessage) -> Dict {
    let fields = reflect::fields(message).into_iter();
    fields.map(|(field, held)| (field.name().to_owned(), held.map_or(Value::Null, |held| value(&field, &held)))).collect()
}

fn value(field: &FieldDescriptor, held: &Field) -> Value {
    match held {
        Field::Bool(flag) => Value::Bool(*flag),
        Field::I32(number) => Value::Int(i64::from(*number)),
        Field::I64(number) => Value::Int(*number),
        Field::U32(number) => Value::UInt(u64::from(*number)),
        Field::U64(number) => Value::UInt(*number),
        Field::F32(number) => Value::Float(f64::from(*number)),
        Field::F64(number) => Value::Float(*number),
        Field::String(text) => Value::str(text.as_str()),
        Field::Bytes(bytes) => Value::Bytes(bytes.to_vec().into()),
        Field::EnumNumber(number) => reflect::enum_name(field, *number).map_or_else(|| Value::Int(i64::from(*number)), Value::str),
        Field::Message(message) => Value::Dict(row(message).into()),
        Field::List(items) => Value::list(items.iter().map(|item| value(field, item))),
        Field::Map(members) => {
            let of_values = reflect::map_value_field(field);
            let mut sorted: Vec<(String, Value)> =
                members.iter().map(|(key, held)| (reflect::map_key(key), value(&of_values, held))).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Dict(sorted.into_iter().collect::<Dict>().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use talon_proto::{ApiClient, ArtifactCollectorContext, Uname};
    use talon_vql::json;

    use super::*;

    #[test]
    fn rows_and_json_say_the_same() {
        let client = ApiClient {
            client_id: "C.1".into(),
            os_info: Some(Uname { mac_addresses: vec!["a".into()], ..Uname::default() }),
            last_seen_at: u64::MAX,
            in_flight_flows: [("F.2".to_owned(), 2), ("F.1".to_owned(), 1)].into(),
            ..ApiClient::default()
        };
        let dict = to_dict("ApiClient", &client).unwrap();
        assert_eq!(json::encode(&dict.into()), reflect::to_json("ApiClient", &client).unwrap());
        let mut flow = ArtifactCollectorContext::default();
        flow.set_state(talon_proto::artifact_collector_context::State::InProgress);
        let dict = to_dict("ArtifactCollectorContext", &flow).unwrap();
        assert_eq!(dict.get("state").and_then(Value::as_str), Some("IN_PROGRESS"));
        assert!(dict.get("request").is_some_and(Value::is_null));
    }

    #[test]
    fn an_unknown_type_is_an_error() {
        assert!(to_dict("NoSuchMessage", &ApiClient::default()).is_err());
    }
}
