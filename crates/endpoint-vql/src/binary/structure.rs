//! Structures of a file as values: fields are read when a query asks for them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use talon_vql::{CallError, Dict, Key, List, Object, Scope, ScopeHandle, Text, Time, Value, ops, to_text};

use super::profile::{Form, Number, Profile, Scalar, Structure, Type, parse_type};
use super::source::Source;

/// How deep fields may depend on and lie in each other.
const MAX_DEPTH: u32 = 100;
/// How many values one call may show: rings of structures end here.
const MAX_SHOWN: u64 = 1_000_000;
/// How long text without a length may be.
const DEFAULT_TEXT: i64 = 1024;
/// How many elements an array may have unless the profile says otherwise.
const DEFAULT_COUNT: i64 = 1000;
/// How many elements an array may have whatever the profile says.
const MAX_COUNT: i64 = 10_000_000;

/// What the structures of one call share.
pub(super) struct Session {
    scope: ScopeHandle,
    profile: Arc<Profile>,
    source: Arc<Source>,
    env: Dict,
    depth: AtomicU32,
    shown: AtomicU64,
}

/// Where a type is read: the place, and the structure that has the field.
#[derive(Clone, Copy)]
struct Place<'a> {
    scope: &'a Scope,
    offset: u64,
    this: Option<&'a Arc<Instance>>,
}

impl Session {
    pub(super) fn new(scope: &Scope, profile: Arc<Profile>, source: Arc<Source>, env: Option<Arc<Dict>>) -> Arc<Self> {
        Arc::new(Self {
            scope: scope.handle(),
            profile,
            source,
            env: env.map(|env| Dict::clone(&env)).unwrap_or_default(),
            depth: AtomicU32::new(0),
            shown: AtomicU64::new(0),
        })
    }

    /// The structure or type `name` at `offset`.
    pub(super) fn read(self: &Arc<Self>, scope: &Scope, name: &str, offset: u64) -> Result<Value, CallError> {
        let kind = parse_type(name, None, 0)?;
        if let Type::Named(name) = &kind
            && self.profile.structure(name).is_none()
        {
            return Err(CallError::failed(format!("the profile has no structure {name}")));
        }
        Ok(self.value(&kind, Place { scope, offset, this: None }))
    }

    /// Runs `work` one level deeper, unless that is too deep.
    fn deeper<T>(&self, scope: &Scope, work: impl FnOnce() -> T) -> Option<T> {
        if self.depth.fetch_add(1, Ordering::Relaxed) >= MAX_DEPTH {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            scope.log_once(format!("parse_binary: fields depend on each other more than {MAX_DEPTH} levels deep"));
            return None;
        }
        let done = work();
        self.depth.fetch_sub(1, Ordering::Relaxed);
        Some(done)
    }

    fn call(&self, scope: &Scope, lambda: &Text, argument: Value) -> Value {
        let Some(lambda) = scope.lambda(lambda) else { return Value::Null };
        let call = |scope: &Scope| self.deeper(scope, || lambda.call(scope, std::slice::from_ref(&argument))).unwrap_or_default();
        if self.env.is_empty() { call(scope) } else { scope.child(self.env.clone()).map_or(Value::Null, |scope| call(&scope)) }
    }

    fn number(&self, number: &Number, place: Place<'_>) -> Option<i64> {
        match number {
            Number::Missing => None,
            Number::Given(number) => Some(*number),
            Number::Lambda(lambda) => {
                let this = place.this.map_or(Value::Null, |this| Value::Object(this.clone()));
                match self.call(place.scope, lambda, this) {
                    Value::Float(number) => Some(number as i64),
                    value => value.as_int(),
                }
            }
        }
    }

    fn bytes(&self, place: Place<'_>, length: u64) -> Vec<u8> {
        self.source.read(place.scope, place.offset, length)
    }

    fn unsigned(&self, scalar: Scalar, place: Place<'_>) -> Option<u64> {
        let bytes = self.bytes(place, scalar.size.into());
        if bytes.len() != usize::from(scalar.size) {
            return None;
        }
        let shift = |number: u64, byte: &u8| (number << 8) | u64::from(*byte);
        Some(if scalar.big_endian { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) })
    }

    fn scalar(&self, scalar: Scalar, place: Place<'_>) -> Value {
        let Some(bits) = self.unsigned(scalar, place) else { return Value::Null };
        match (scalar.form, scalar.size) {
            (Form::Unsigned, 8) => Value::UInt(bits),
            (Form::Unsigned, _) => Value::Int(i64::try_from(bits).unwrap_or(i64::MAX)),
            (Form::Signed, 1) => Value::Int(i64::from(bits as u8 as i8)),
            (Form::Signed, 2) => Value::Int(i64::from(bits as u16 as i16)),
            (Form::Signed, 4) => Value::Int(i64::from(bits as u32 as i32)),
            (Form::Signed, _) => Value::Int(bits as i64),
            (Form::Float, 4) => Value::Float(f64::from(f32::from_bits(bits as u32))),
            (Form::Float, _) => Value::Float(f64::from_bits(bits)),
        }
    }

    /// The number, and how many bytes it has.
    fn leb128(&self, signed: bool, place: Place<'_>) -> Option<(Value, u64)> {
        let bytes = self.bytes(place, 10);
        let mut number = 0_u64;
        let mut shift = 0_u32;
        for (at, byte) in bytes.iter().enumerate() {
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            shift = shift.saturating_add(7);
            if byte & 0x80 == 0 {
                let size = at.saturating_add(1) as u64;
                if signed && byte & 0x40 != 0 && shift < 64 {
                    number |= u64::MAX.checked_shl(shift).unwrap_or(0);
                }
                return Some((if signed { Value::Int(number as i64) } else { Value::from(number) }, size));
            }
        }
        None
    }

    /// The text, and how many bytes it takes up.
    fn text(&self, length: &Number, max_length: &Number, term: &[u8], utf16: bool, place: Place<'_>) -> (Vec<u8>, u64) {
        let most = self.number(max_length, place).unwrap_or(DEFAULT_TEXT);
        let given = self.number(length, place);
        let length = if *length == Number::Missing { most } else { given.unwrap_or(0) };
        let length = if *max_length == Number::Missing { length } else { length.min(most) };
        let bytes = self.bytes(place, u64::try_from(length).unwrap_or(0));
        let end = if term.is_empty() {
            None
        } else if utf16 {
            let wide: Vec<u8> = if term.len() == 1 { vec![term.first().copied().unwrap_or(0), 0] } else { term.to_vec() };
            bytes.chunks(2).position(|pair| wide.starts_with(pair) && pair.len() == 2).map(|at| at.saturating_mul(2)).map(|at| (at, 2))
        } else {
            bytes.windows(term.len()).position(|window| window == term).map(|at| (at, term.len()))
        };
        let taken = match (given, end) {
            (Some(given), _) => u64::try_from(given).unwrap_or(0),
            (None, Some((at, term))) => at.saturating_add(term) as u64,
            (None, None) => bytes.len() as u64,
        };
        let content = end.map_or(&bytes[..], |(at, _)| bytes.get(..at).unwrap_or(&bytes));
        if !utf16 {
            return (content.to_vec(), taken);
        }
        let units: Vec<u16> =
            content.chunks_exact(2).map(|pair| pair.iter().rev().fold(0, |unit, byte| (unit << 8) | u16::from(*byte))).collect();
        (String::from_utf16_lossy(&units).into_bytes(), taken)
    }

    /// Calls `each` with the place of every element and its value until it says stop; gives the end of the last one.
    fn walk(self: &Arc<Self>, array: &Type, place: Place<'_>, mut each: impl FnMut(Value) -> bool) -> u64 {
        let Type::Array { item, count, max_count, sentinel } = array else { return place.offset };
        let most = self.number(max_count, place).unwrap_or(DEFAULT_COUNT).min(MAX_COUNT);
        let count = match count {
            Number::Missing if sentinel.is_some() => most,
            number => self.number(number, place).unwrap_or(0).min(most),
        };
        let mut offset = place.offset;
        let mut still = 0_u32;
        for _ in 0..count {
            const MAX_STILL: u32 = 1000;
            let here = Place { offset, ..place };
            if place.scope.stopped() || still > MAX_STILL {
                break;
            }
            // Behind the end of the file there are no elements, however many the profile wants.
            if !matches!(**item, Type::Value(_) | Type::Profile { .. }) && self.bytes(here, 1).is_empty() {
                break;
            }
            let value = self.value(item, here);
            if let Some(sentinel) = sentinel
                && ops::truth(&self.call(place.scope, sentinel, value.clone()), place.scope)
            {
                break;
            }
            let size = self.size(item, here);
            if !each(value) {
                break;
            }
            still = if size == 0 { still.saturating_add(1) } else { 0 };
            let Some(next) = offset.checked_add(size) else { break };
            offset = next;
        }
        offset
    }

    /// The number that other types interpret.
    fn integer(self: &Arc<Self>, kind: &Type, place: Place<'_>) -> Option<i64> {
        match self.value(kind, place) {
            Value::UInt(number) => Some(number as i64),
            value => value.as_int(),
        }
    }

    /// What lies at `place`.
    fn value(self: &Arc<Self>, kind: &Type, place: Place<'_>) -> Value {
        self.deeper(place.scope, || self.value_here(kind, place)).unwrap_or_default()
    }

    fn value_here(self: &Arc<Self>, kind: &Type, place: Place<'_>) -> Value {
        match kind {
            Type::Scalar(scalar) => self.scalar(*scalar, place),
            Type::Leb128 { signed } => self.leb128(*signed, place).map_or(Value::Null, |(value, _)| value),
            Type::String { length, max_length, term, utf16 } => Value::str(self.text(length, max_length, term, *utf16, place).0),
            Type::Array { .. } => {
                let mut items = List::new();
                let mut held = 0_u64;
                self.walk(kind, place, |value| {
                    held = held.saturating_add(value.weight()).saturating_add(128);
                    items.push(value);
                    held < 1 << 20 || !held.is_multiple_of(64) || place.scope.has_room_for(held)
                });
                items.into()
            }
            Type::Enumeration { item, names } => match self.integer(item, place) {
                Some(number) => names.get(&number).map_or_else(|| Value::from(format!("{number:#x}")), Value::from),
                None => Value::Null,
            },
            Type::Flags { item, bits } => match self.integer(item, place) {
                Some(number) => Value::list(bits.iter().filter(|(_, bit)| (number >> bit) & 1 == 1).map(|(name, _)| name)),
                None => Value::Null,
            },
            Type::BitField { item, start, end } => {
                let (start, end) = (self.number(start, place).unwrap_or(0), self.number(end, place).unwrap_or(64));
                let bits = |number: i64| u32::try_from(number.clamp(0, 64)).unwrap_or(0);
                let (start, end) = (bits(start), bits(end));
                let Some(number) = self.integer(item, place) else { return Value::Null };
                let number = (number as u64).checked_shr(start).unwrap_or(0);
                let mask = 1_u64.checked_shl(end.saturating_sub(start)).map_or(u64::MAX, |above| above.wrapping_sub(1));
                let number = number & mask;
                i64::try_from(number).map_or(Value::UInt(number), Value::Int)
            }
            Type::Union { selector, choices } => self.choice(selector, choices, place).map_or(Value::Null, |kind| self.value(kind, place)),
            Type::Value(value) => match value {
                Value::Str(text) if text.windows(2).any(|pair| pair == b"=>") => {
                    let this = place.this.map_or(Value::Null, |this| Value::Object(this.clone()));
                    self.call(place.scope, text, this)
                }
                given => given.clone(),
            },
            Type::Profile { item, offset } => match self.number(offset, place).map(u64::try_from) {
                Some(Ok(offset)) => self.value(item, Place { offset, ..place }),
                _ => Value::Null,
            },
            Type::Pointer { address, item } => match self.unsigned(*address, place) {
                Some(offset) if offset != 0 => self.value(item, Place { offset, ..place }),
                _ => Value::Null,
            },
            Type::WindowsTime { item, factor } => match self.integer(item, place) {
                Some(ticks) => {
                    const TO_1970: i128 = 116_444_736_000_000_000;
                    let ticks = if *factor == 1.0 { i128::from(ticks) } else { (ticks as f64 / factor) as i128 };
                    Value::Time(Time::from_unix_nanos(ticks.saturating_sub(TO_1970).saturating_mul(100)))
                }
                None => Value::Null,
            },
            Type::UnixTime { item, factor } => match self.value(item, place) {
                Value::Float(seconds) => Value::Time(Time::from_unix_float(seconds / factor)),
                value => match value.as_int() {
                    Some(seconds) if *factor == 1.0 => Value::Time(Time::from_unix(seconds)),
                    Some(number) => Value::Time(Time::from_unix_float(number as f64 / factor)),
                    None => Value::Null,
                },
            },
            Type::FatTime => self.fat_time(place),
            Type::Named(name) => match self.profile.structure(name) {
                Some(structure) => Value::Object(Instance::new(self.clone(), structure.clone(), place.offset, place.this.cloned())),
                None => {
                    place.scope.log_once(format!("parse_binary: the profile has no type {name}"));
                    Value::Null
                }
            },
        }
    }

    fn choice<'a>(&self, selector: &Text, choices: &'a HashMap<String, Type>, place: Place<'_>) -> Option<&'a Type> {
        let this = place.this.map_or(Value::Null, |this| Value::Object(this.clone()));
        let selected = to_text(self.call(place.scope, selector, this), place.scope);
        choices.get(&*selected.to_str()).or_else(|| choices.get("default"))
    }

    fn fat_time(&self, place: Place<'_>) -> Value {
        let word = Scalar { size: 2, form: Form::Unsigned, big_endian: false };
        let second = Place { offset: place.offset.saturating_add(2), ..place };
        let (Some(date), Some(time)) = (self.unsigned(word, place), self.unsigned(word, second)) else { return Value::Null };
        let (year, month, day) = ((date >> 9).saturating_add(1980), (date >> 5) & 15, date & 31);
        let (hour, minute, second) = (time >> 11, (time >> 5) & 63, (time & 31).saturating_mul(2));
        let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
        Time::parse_rfc3339(&text).map_or(Value::Null, Value::Time)
    }

    /// How many bytes the type takes up at `place`.
    fn size(self: &Arc<Self>, kind: &Type, place: Place<'_>) -> u64 {
        self.deeper(place.scope, || match kind {
            Type::Scalar(scalar) | Type::Pointer { address: scalar, .. } => scalar.size.into(),
            Type::Leb128 { signed } => self.leb128(*signed, place).map_or(0, |(_, size)| size),
            Type::String { length, max_length, term, utf16 } => self.text(length, max_length, term, *utf16, place).1,
            Type::Array { .. } => self.walk(kind, place, |_| true).saturating_sub(place.offset),
            Type::Enumeration { item, .. }
            | Type::Flags { item, .. }
            | Type::BitField { item, .. }
            | Type::WindowsTime { item, .. }
            | Type::UnixTime { item, .. } => self.size(item, place),
            Type::Union { selector, choices } => self.choice(selector, choices, place).map_or(0, |kind| self.size(kind, place)),
            Type::Value(_) | Type::Profile { .. } => 0,
            Type::FatTime => 4,
            Type::Named(name) => self
                .profile
                .structure(name)
                .map_or(0, |structure| Instance::new(self.clone(), structure.clone(), place.offset, place.this.cloned()).size(place.scope)),
        })
        .unwrap_or(0)
    }
}

/// A structure at a place.
pub(super) struct Instance {
    session: Arc<Session>,
    structure: Arc<Structure>,
    offset: u64,
    parent: Option<Arc<Instance>>,
    this: Weak<Instance>,
    known: Mutex<Known>,
}

/// What was worked out before, by the position of the field: without it chains of fields that lean on each other take exponential time.
#[derive(Default)]
struct Known {
    offsets: HashMap<usize, Option<u64>>,
    values: HashMap<usize, Value>,
    size: Option<u64>,
    /// The fields whose offset is being worked out.
    busy: HashSet<usize>,
}

impl Instance {
    fn new(session: Arc<Session>, structure: Arc<Structure>, offset: u64, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { session, structure, offset, parent, this: this.clone(), known: Mutex::default() })
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the field at position `at` begins.
    fn place(&self, scope: &Scope, at: usize) -> Option<u64> {
        if let Some(known) = self.known(|known| known.offsets.get(&at).copied()) {
            return known;
        }
        let field = self.structure.fields.get(at)?;
        if !self.known(|known| known.busy.insert(at)) {
            scope.log_once(format!("parse_binary: the offset of {}.{} depends on itself", self.structure.name, field.name.as_str()));
            return None;
        }
        let this = self.this.upgrade();
        let number = self.session.number(&field.offset, Place { scope, offset: self.offset, this: this.as_ref() });
        let relative = if field.offset == Number::Missing { Some(0) } else { number };
        let found = relative.and_then(|relative| self.offset.checked_add_signed(relative));
        self.known(|known| {
            known.busy.remove(&at);
            known.offsets.insert(at, found);
        });
        found
    }

    fn field(&self, scope: &Scope, at: usize) -> Value {
        if let Some(value) = self.known(|known| known.values.get(&at).cloned()) {
            return value;
        }
        let Some(field) = self.structure.fields.get(at) else { return Value::Null };
        let Some(offset) = self.place(scope, at) else { return Value::Null };
        let this = self.this.upgrade();
        let value = self.session.value(&field.kind, Place { scope, offset, this: this.as_ref() });
        // Structures lead back to this one: keeping them would make a ring.
        let keeps = matches!(value, Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Time(_) | Value::Bool(_))
            || matches!(&value, Value::Str(text) if text.len() < 4096);
        if keeps {
            self.known(|known| known.values.insert(at, value.clone()));
        }
        value
    }

    /// The size: what the profile says, else up to the end of the last field.
    fn size(&self, scope: &Scope) -> u64 {
        if let Some(size) = self.known(|known| known.size) {
            return size;
        }
        let this = self.this.upgrade();
        let given = self.session.number(&self.structure.size, Place { scope, offset: self.offset, this: this.as_ref() });
        let size = given.and_then(|given| u64::try_from(given).ok()).filter(|size| *size > 0).unwrap_or_else(|| {
            let ends = self.structure.fields.iter().enumerate().filter_map(|(at, field)| {
                let offset = self.place(scope, at)?;
                let size = self.session.size(&field.kind, Place { scope, offset, this: this.as_ref() });
                (size > 0).then(|| offset.saturating_add(size))
            });
            ends.max().unwrap_or(self.offset).saturating_sub(self.offset)
        });
        self.known(|known| known.size = Some(size));
        size
    }
}

/// Whether results show the field.
fn is_shown(name: &Key) -> bool {
    !name.as_str().starts_with("__")
}

impl Object for Instance {
    fn type_name(&self) -> &'static str {
        "*vtypes.StructObject"
    }

    fn member(&self, name: &str) -> Option<Value> {
        let scope = self.session.scope.get()?;
        if let Some(at) = self.structure.fields.iter().position(|field| field.name.as_str() == name) {
            return Some(self.field(&scope, at));
        }
        Some(match name {
            "SizeOf" | "Size" => Value::from(self.size(&scope) as usize),
            "StartOf" | "Start" | "OffsetOf" => Value::from(self.offset as usize),
            "EndOf" | "End" => Value::from(self.offset.saturating_add(self.size(&scope)) as usize),
            "ParentOf" | "Parent" => self.parent.clone().map_or(Value::Null, |parent| Value::Object(parent)),
            _ => return None,
        })
    }

    /// Fields that results do not show can be asked for all the same.
    fn column(&self, name: &str) -> Option<Value> {
        self.member(name)
    }

    fn member_names(&self) -> Vec<Key> {
        self.structure.fields.iter().map(|field| field.name.clone()).filter(is_shown).collect()
    }

    fn to_value(&self) -> Value {
        let Some(scope) = self.session.scope.get() else { return Value::Null };
        let shown = self.session.deeper(&scope, || {
            let mut dict = Dict::new();
            for (at, field) in self.structure.fields.iter().enumerate().filter(|(_, field)| is_shown(&field.name)) {
                if scope.stopped() || self.session.shown.fetch_add(1, Ordering::Relaxed) > MAX_SHOWN {
                    break;
                }
                dict.set(&field.name, plain(self.field(&scope, at)));
            }
            dict
        });
        shown.map_or(Value::Null, Value::from)
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The value with structures inside written out.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(object) => object.to_value(),
        Value::List(items) if items.iter().any(|item| matches!(item, Value::Object(_) | Value::List(_))) => {
            Value::list(items.iter().cloned().map(plain))
        }
        other => other,
    }
}
