//! Profiles: structures and their fields, read from JSON.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::{CallError, Dict, Key, Text, Value, json};

/// How many profiles a query keeps.
const MAX_PROFILES: usize = 100;

/// How deep types may nest in one field.
const MAX_NESTING: usize = 20;

/// The structures of one profile.
#[derive(Debug, Default)]
pub(super) struct Profile {
    structures: HashMap<String, Arc<Structure>>,
}

/// A structure.
#[derive(Debug)]
pub(super) struct Structure {
    pub(super) name: String,
    pub(super) size: Number,
    pub(super) fields: Vec<Field>,
}

/// A field of a structure.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: Key,
    pub(super) offset: Number,
    pub(super) kind: Type,
}

/// A number of a profile: given, or worked out from the structure that has the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Number {
    Missing,
    Given(i64),
    Lambda(Text),
}

/// How a number lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) size: u8,
    pub(super) form: Form,
    pub(super) big_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Unsigned,
    Signed,
    Float,
}

/// A type.
#[derive(Debug)]
pub(super) enum Type {
    Scalar(Scalar),
    /// Seven bits in each byte.
    Leb128 {
        signed: bool,
    },
    String {
        length: Number,
        max_length: Number,
        term: Vec<u8>,
        utf16: bool,
    },
    Array {
        item: Box<Type>,
        count: Number,
        max_count: Number,
        sentinel: Option<Text>,
    },
    Enumeration {
        item: Box<Type>,
        names: HashMap<i64, String>,
    },
    Flags {
        item: Box<Type>,
        bits: Vec<(String, u32)>,
    },
    BitField {
        item: Box<Type>,
        start: Number,
        end: Number,
    },
    Union {
        selector: Text,
        choices: HashMap<String, Type>,
    },
    /// A value that is worked out, not read.
    Value(Value),
    /// Another type at a place of its own.
    Profile {
        item: Box<Type>,
        offset: Number,
    },
    /// Another type where this number says.
    Pointer {
        address: Scalar,
        item: Box<Type>,
    },
    /// 100 ns since 1601.
    WindowsTime {
        item: Box<Type>,
        factor: f64,
    },
    /// Seconds since 1970, times a factor.
    UnixTime {
        item: Box<Type>,
        factor: f64,
    },
    /// Two 16 bit words, date and time.
    FatTime,
    /// A structure by name.
    Named(String),
}

/// The profiles that a query has used.
#[derive(Default)]
pub(super) struct Profiles(Mutex<HashMap<Arc<[u8]>, Arc<Profile>>>);

impl Profiles {
    /// The profile with this text.
    pub(super) fn get(&self, text: &Arc<[u8]>) -> Result<Arc<Profile>, CallError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(profile) = known.get(text) {
            return Ok(profile.clone());
        }
        let profile = Arc::new(Profile::parse(text).map_err(|why| CallError::failed(format!("profile: {why}")))?);
        if known.len() >= MAX_PROFILES {
            known.clear();
        }
        known.insert(text.clone(), profile.clone());
        Ok(profile)
    }
}

impl Profile {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let mut profile = Self::default();
        if text.trim_ascii().is_empty() {
            return Ok(profile);
        }
        let value = json::decode(text.trim_ascii()).map_err(|error| error.to_string())?;
        let list = value.as_list().ok_or("expected a list of structures: [[name, size, [fields]], …]")?;
        for item in list {
            let parts = item.as_list().unwrap_or_default();
            let name = parts.first().and_then(Value::as_str).ok_or("a structure needs a name as its first element")?;
            let within = |why: String| format!("{name}: {why}");
            let size = number(parts.get(1)).map_err(within)?;
            let fields =
                parts.get(2).and_then(Value::as_list).ok_or_else(|| within("expected a list of fields as third element".into()))?;
            let fields = fields.iter().map(field).collect::<Result<Vec<_>, _>>().map_err(within)?;
            profile.structures.insert(name.to_owned(), Arc::new(Structure { name: name.to_owned(), size, fields }));
        }
        Ok(profile)
    }

    pub(super) fn structure(&self, name: &str) -> Option<&Arc<Structure>> {
        self.structures.get(name)
    }
}

fn field(value: &Value) -> Result<Field, String> {
    let parts = value.as_list().unwrap_or_default();
    let name = parts.first().and_then(Value::as_str).ok_or("a field needs a name as its first element")?;
    let within = |why: String| format!("{name}: {why}");
    let offset = number(parts.get(1)).map_err(within)?;
    let kind = parts.get(2).and_then(Value::as_str).ok_or_else(|| within("expected a type as third element".into()))?;
    let options = match parts.get(3) {
        Some(Value::Dict(options)) => Some(&**options),
        _ => None,
    };
    Ok(Field { name: Key::from(name.to_owned()), offset, kind: parse_type(kind, options, 0).map_err(within)? })
}

fn number(value: Option<&Value>) -> Result<Number, String> {
    match value {
        None | Some(Value::Null) => Ok(Number::Missing),
        Some(Value::Str(text)) => {
            let written = text.to_str();
            let written = written.trim();
            if written.contains("=>") {
                return Ok(Number::Lambda(text.clone()));
            }
            let parsed = match written.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16),
                None => written.parse(),
            };
            parsed.map(Number::Given).map_err(|_| format!("{written} is neither a number nor a lambda x=>…"))
        }
        Some(Value::Float(number)) => Ok(Number::Given(*number as i64)),
        Some(other) => other.as_int().map(Number::Given).ok_or_else(|| "expected a number or a lambda x=>…".to_owned()),
    }
}

/// The number that a type name stands for, if it is one.
pub(super) fn scalar(name: &str) -> Option<Scalar> {
    use Form::{Float, Signed, Unsigned};
    let plain = |size, form| Some(Scalar { size, form, big_endian: false });
    match name {
        "unsigned char" | "byte" => return plain(1, Unsigned),
        "char" | "signed char" => return plain(1, Signed),
        "unsigned short" | "unsigned short int" => return plain(2, Unsigned),
        "short" | "short int" => return plain(2, Signed),
        "unsigned" | "unsigned int" | "unsigned long" | "unsigned long int" => return plain(4, Unsigned),
        "int" | "long" | "long int" => return plain(4, Signed),
        "unsigned long long" | "unsigned long long int" => return plain(8, Unsigned),
        "long long" | "long long int" => return plain(8, Signed),
        "float" => return plain(4, Float),
        "double" => return plain(8, Float),
        _ => {}
    }
    let (form, rest) = if let Some(rest) = name.strip_prefix("uint") {
        (Unsigned, rest)
    } else if let Some(rest) = name.strip_prefix("int") {
        (Signed, rest)
    } else {
        (Float, name.strip_prefix("float")?)
    };
    let digits = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let big_endian = match rest.get(digits.len()..)? {
        "" | "l" | "le" => false,
        "b" | "be" => true,
        _ => return None,
    };
    let size = match digits {
        "8" if form != Float => 1,
        "16" if form != Float => 2,
        "32" => 4,
        "64" => 8,
        _ => return None,
    };
    Some(Scalar { size, form, big_endian })
}

/// Reads a type with its options.
pub(super) fn parse_type(name: &str, options: Option<&Dict>, depth: usize) -> Result<Type, String> {
    if depth > MAX_NESTING {
        return Err(format!("types nest deeper than {MAX_NESTING}"));
    }
    if let Some(scalar) = scalar(name) {
        return Ok(Type::Scalar(scalar));
    }
    let option = |key: &str| options.and_then(|options| options.get(key));
    let text = |key: &str| option(key).and_then(Value::as_bytes).map(Text::from);
    let lambda = |key: &str| text(key).filter(|text| !text.is_empty());
    let inner = |otherwise: Option<&str>| {
        let name = option("type").and_then(Value::as_str).or(otherwise).ok_or_else(|| format!("{name} needs the option type"))?;
        let options = option("type_options").and_then(Value::as_dict);
        parse_type(name, options.map(|options| &**options), depth.saturating_add(1)).map(Box::new)
    };
    let factor = || option("factor").and_then(Value::as_float).filter(|factor| *factor != 0.0).unwrap_or(1.0);
    Ok(match name {
        "leb128" | "LEB128" | "uleb128" => Type::Leb128 { signed: false },
        "sleb128" => Type::Leb128 { signed: true },
        "String" | "string" | "UnicodeString" => Type::String {
            length: number(option("length"))?,
            max_length: number(option("max_length"))?,
            term: terminator(option("term"), option("term_hex"))?,
            utf16: name == "UnicodeString" || option("encoding").and_then(Value::as_str).is_some_and(|name| name.starts_with("utf16")),
        },
        "Array" => Type::Array {
            item: inner(None)?,
            count: number(option("count"))?,
            max_count: number(option("max_count"))?,
            sentinel: lambda("sentinel"),
        },
        "Enumeration" => Type::Enumeration { item: inner(None)?, names: enumeration(option("choices"), option("map"))? },
        "Flags" => Type::Flags { item: inner(None)?, bits: flags(option("bitmap"))? },
        "BitField" => Type::BitField { item: inner(Some("uint32"))?, start: number(option("start_bit"))?, end: number(option("end_bit"))? },
        "Union" => {
            let mut choices = HashMap::new();
            let named = option("choices").and_then(Value::as_dict).ok_or("Union needs the option choices")?;
            for (key, choice) in named.iter() {
                let name = choice.as_str().ok_or("choices of a Union are names of types")?;
                choices.insert(key.as_str().to_owned(), parse_type(name, None, depth.saturating_add(1))?);
            }
            Type::Union { selector: lambda("selector").ok_or("Union needs the option selector")?, choices }
        }
        "Value" => Type::Value(option("value").cloned().unwrap_or_default()),
        "Profile" => Type::Profile { item: inner(None)?, offset: number(option("offset"))? },
        "Pointer" | "Pointer64" | "pointer" => pointer(8, inner(None)?),
        "Pointer32" => pointer(4, inner(None)?),
        "Pointer16" => pointer(2, inner(None)?),
        "Pointer8" => pointer(1, inner(None)?),
        "WinFileTime" | "FileTime" => Type::WindowsTime { item: inner(Some("uint64"))?, factor: factor() },
        "Timestamp" | "Epoch" | "UnixTimestamp" => Type::UnixTime { item: inner(Some("uint32"))?, factor: factor() },
        "FatTimestamp" => Type::FatTime,
        other => Type::Named(other.to_owned()),
    })
}

fn pointer(size: u8, item: Box<Type>) -> Type {
    Type::Pointer { address: Scalar { size, form: Form::Unsigned, big_endian: false }, item }
}

fn terminator(term: Option<&Value>, hex: Option<&Value>) -> Result<Vec<u8>, String> {
    if let Some(hex) = hex.and_then(Value::as_str).filter(|hex| !hex.is_empty()) {
        let digit = |byte: &u8| (*byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let digits = hex.as_bytes().iter().map(digit).collect::<Option<Vec<u8>>>().filter(|digits| digits.len().is_multiple_of(2));
        let digits = digits.ok_or("term_hex must be hexadecimal")?;
        return Ok(digits.chunks_exact(2).map(|pair| pair.iter().fold(0_u8, |byte, digit| (byte << 4) | digit)).collect());
    }
    Ok(term.and_then(Value::as_bytes).unwrap_or(b"\0").to_vec())
}

fn enumeration(choices: Option<&Value>, map: Option<&Value>) -> Result<HashMap<i64, String>, String> {
    let mut names = HashMap::new();
    for (key, value) in choices.and_then(Value::as_dict).iter().flat_map(|choices| choices.iter()) {
        let number = match key.as_str().strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16),
            None => key.as_str().parse(),
        };
        let number = number.map_err(|_| format!("choices: {} is no number", key.as_str()))?;
        names.insert(number, value.as_str().unwrap_or_default().to_owned());
    }
    for (key, value) in map.and_then(Value::as_dict).iter().flat_map(|map| map.iter()) {
        let number = value.as_int().ok_or_else(|| format!("map: the value of {} is no number", key.as_str()))?;
        names.insert(number, key.as_str().to_owned());
    }
    Ok(names)
}

fn flags(bitmap: Option<&Value>) -> Result<Vec<(String, u32)>, String> {
    let mut bits = Vec::new();
    for (name, bit) in bitmap.and_then(Value::as_dict).ok_or("Flags needs the option bitmap")?.iter() {
        let bit = bit.as_int().and_then(|bit| u32::try_from(bit).ok()).filter(|bit| *bit < 64);
        bits.push((name.as_str().to_owned(), bit.ok_or("bits of a Flags are numbers from 0 to 63")?));
    }
    bits.sort();
    Ok(bits)
}
