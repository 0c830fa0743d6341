//! `parse_yaml()`: YAML as values, keys in their order.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, List, Registry, Signature, Value, text};

/// A text with more is refused.
const MAX_TEXT: usize = 32 << 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("parse_yaml", "The value that a YAML file holds.")
            .args(
                const {
                    &[
                        Arg::required("filename", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("schema", ArgType::Strings, "Schemas that the value must satisfy; not supported."),
                    ]
                },
            )
            .version(2),
        parse_yaml,
    );
}

fn parse_yaml(call: Call) -> Result<Value, CallError> {
    if call.has("schema") {
        return Err("schemas are not supported".into());
    }
    let content = crate::files::content_of(&call, "filename")?;
    if content.len() > MAX_TEXT {
        return Err(CallError::failed(format!("the file is larger than {MAX_TEXT} bytes")));
    }
    parse(&String::from_utf8_lossy(&content)).map_err(CallError::failed)
}

/// The first document of `text`.
fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        budget: serde_saphyr::budget! {
            max_depth: 100,
            max_nodes: 4_000_000,
            max_events: 10_000_000,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_documents: 1_000,
            max_total_scalar_bytes: 2 * MAX_TEXT,
        },
    };
    let documents: Vec<Node> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.without_snippet().to_string())?;
    Ok(documents.into_iter().next().map(|node| node.0).unwrap_or_default())
}

/// A node of YAML, or of whatever else has a deserializer, as a value.
pub(crate) struct Node(Value);

impl Node {
    pub(crate) fn into_value(self) -> Value {
        self.0
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor).map(Self)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("any YAML")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::UInt(value), Value::Int))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Float(value as f64))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Float(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::str(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = List::new();
        while let Some(item) = items.next_element::<Node>()? {
            list.push(item.0);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut dict = Dict::new();
        while let Some((key, value)) = entries.next_entry::<Node, Node>()? {
            let key = match &key.0 {
                Value::Null => "null".to_owned(),
                other => text::display(other),
            };
            dict.set(Key::from(key), value.0);
        }
        Ok(dict.into())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use talon_vql::json;

    use super::*;

    fn parsed(text: &str) -> String {
        parse(text).map_or_else(|error| format!("error: {error}"), |value| json::encode(&value))
    }

    #[test]
    fn scalars_have_types() {
        let text = "b: true\na: [1, -2, 1.5, 0x10, ~, null, yes, 'quoted', \"1\"]\nt: 2020-01-02\n1: one\ns: |\n  line\n  two\n";
        expect![[r#"{"b":true,"a":[1,-2,1.5,16,null,null,"yes","quoted","1"],"t":"2020-01-02","1":"one","s":"line\ntwo\n"}"#]]
            .assert_eq(&parsed(text));
    }

    #[test]
    fn anchors_and_merge_keys_are_resolved() {
        expect![[r#"{"base":{"x":1,"y":2},"use":{"x":9,"y":2},"again":{"x":1,"y":2}}"#]]
            .assert_eq(&parsed("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  x: 9\nagain: *b\n"));
    }

    #[test]
    fn the_first_of_several_documents_counts() {
        assert_eq!(parsed("a: 1\n---\nb: 2\n"), r#"{"a":1}"#);
        assert_eq!(parsed(""), "null");
        assert!(parsed("a: [1").starts_with("error: "));
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(parsed(&bomb).starts_with("error: "));
        assert!(parsed(&"[".repeat(100_000)).starts_with("error: "));
    }
}
