//! `parse_xml()`: XML as dicts. Elements are keys, attributes are keys with `Attr` before their name, repeated elements are lists.

use std::collections::HashMap;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Scope, Signature, Value};

/// How deep elements may nest.
const MAX_NESTING: usize = 90;
/// The key of the text of an element that has attributes or elements too.
const TEXT: &str = "#text";

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("parse_xml", "The elements of an XML file as dicts.")
            .args(
                const {
                    &[
                        Arg::required("file", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    ]
                },
            )
            .version(2),
        parse_xml,
    );
}

fn parse_xml(call: Call) -> Result<Value, CallError> {
    let content = crate::files::content_of(&call, "file")?;
    if !call.scope().has_room_for((content.len() as u64).saturating_mul(4)) {
        return Err(CallError::failed("the file is larger than the memory that this query may use"));
    }
    parse(&decode(&content), call.scope()).map(Value::from).map_err(CallError::failed)
}

/// The text as UTF-8: files of Windows are often UTF-16 with a mark at their start.
fn decode(content: &[u8]) -> String {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok()).map(unit).collect();
        String::from_utf16_lossy(&units)
    };
    match content {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [b'<', 0, ..] => wide(content, u16::from_le_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(content).into_owned(),
    }
}

/// An element that is not closed yet.
#[derive(Default)]
struct Element {
    name: String,
    /// Attributes and elements in the order in which their names came up.
    content: Vec<(String, Vec<Value>)>,
    places: HashMap<String, usize>,
    text: String,
}

impl Element {
    fn open(start: &BytesStart<'_>) -> Result<Self, String> {
        let mut element = Self { name: local(start.name().as_ref()), ..Self::default() };
        for attribute in start.attributes().with_checks(false) {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let name = format!("Attr{}", local(attribute.key.as_ref()));
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| error.to_string())?;
            element.add(name, value.into_owned().into());
        }
        Ok(element)
    }

    fn into_dict(self) -> Dict {
        let value = |mut values: Vec<Value>| if values.len() == 1 { values.pop().unwrap_or_default() } else { Value::list(values) };
        self.content.into_iter().map(|(name, values)| (Key::from(name), value(values))).collect()
    }

    fn into_value(self) -> Value {
        let text = self.text.trim().to_owned();
        if self.content.is_empty() {
            return text.into();
        }
        let mut content = self.into_dict();
        if !text.is_empty() {
            content.set(TEXT, text);
        }
        content.into()
    }

    fn add(&mut self, name: String, value: Value) {
        match self.places.get(&name).and_then(|at| self.content.get_mut(*at)) {
            Some((_, values)) => values.push(value),
            None => {
                self.places.insert(name.clone(), self.content.len());
                self.content.push((name, vec![value]));
            }
        }
    }
}

/// The name without a namespace prefix.
fn local(name: &str) -> String {
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_owned()
}

fn parse(text: &str, scope: &Scope) -> Result<Dict, String> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = false;
    let mut open = vec![Element::default()];
    loop {
        if scope.stopped() {
            return Err("stopped".to_owned());
        }
        let event = reader.read_event().map_err(|error| format!("at byte {}: {error}", reader.buffer_position()))?;
        match event {
            Event::Start(start) => {
                if open.len() > MAX_NESTING {
                    return Err(format!("elements nest deeper than {MAX_NESTING}"));
                }
                open.push(Element::open(&start)?);
            }
            Event::Empty(start) => {
                let element = Element::open(&start)?;
                if let Some(parent) = open.last_mut() {
                    parent.add(element.name.clone(), element.into_value());
                }
            }
            Event::End(_) => {
                if open.len() > 1
                    && let Some(element) = open.pop()
                    && let Some(parent) = open.last_mut()
                {
                    parent.add(element.name.clone(), element.into_value());
                }
            }
            Event::Text(text) => append(&mut open, &text.xml_content(XmlVersion::Implicit1_0)),
            Event::CData(text) => append(&mut open, &text.xml_content(XmlVersion::Implicit1_0)),
            Event::GeneralRef(reference) => {
                let name = reference.xml_content(XmlVersion::Implicit1_0);
                match reference.resolve_char_ref() {
                    Ok(Some(character)) => append(&mut open, character.encode_utf8(&mut [0; 4])),
                    _ => match quick_xml::escape::resolve_predefined_entity(&name) {
                        Some(known) => append(&mut open, known),
                        None => append(&mut open, &format!("&{name};")),
                    },
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    while open.len() > 1 {
        if let Some(element) = open.pop()
            && let Some(parent) = open.last_mut()
        {
            parent.add(element.name.clone(), element.into_value());
        }
    }
    Ok(open.pop().map(Element::into_dict).unwrap_or_default())
}

fn append(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, json};

    use super::*;

    fn parsed(text: &str) -> String {
        let scope = Environment::new(Arc::new(Registry::core())).open();
        parse(&decode(text.as_bytes()), &scope).map_or_else(|error| format!("error: {error}"), |dict| json::encode(&dict.into()))
    }

    #[test]
    fn elements_attributes_and_text_are_keys() {
        for (text, expected) in [
            ("<a/>", r#"{"a":""}"#),
            ("<?xml version='1.0'?><a>x</a>", r#"{"a":"x"}"#),
            ("<a><b>1</b><c> two </c></a>", r#"{"a":{"b":"1","c":"two"}}"#),
            ("<a><b>1</b><c/><b>2</b><b>3</b></a>", r#"{"a":{"b":["1","2","3"],"c":""}}"#),
            ("<a k='v' x:n=\"1 &amp; 2\">t</a>", r##"{"a":{"Attrk":"v","Attrn":"1 \u0026 2","#text":"t"}}"##),
            ("<s:a xmlns:s='u'><s:b/></s:a>", r#"{"a":{"Attrs":"u","b":""}}"#),
            ("<a>&lt;x&gt; &#65;<![CDATA[<raw>]]></a>", r#"{"a":"\u003cx\u003e A\u003craw\u003e"}"#),
            ("<a>&custom;</a>", r#"{"a":"\u0026custom;"}"#),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn utf16_is_read() {
        let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain("<a>é</a>".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        assert_eq!(decode(&wide), "<a>é</a>");
    }

    #[test]
    fn hostile_files_are_refused() {
        assert!(parsed(&"<a>".repeat(100_000)).starts_with("error: elements nest deeper"));
        let bomb = "<!DOCTYPE l [<!ENTITY a \"xxxxxxxx\"><!ENTITY b \"&a;&a;&a;\">]><l>&b;</l>";
        assert_eq!(parsed(bomb), r#"{"l":"\u0026b;"}"#);
    }
}
