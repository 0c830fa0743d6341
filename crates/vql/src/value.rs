//! The closed set of values that a query can hold. All are cheap to clone, immutable and may cross threads.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::dict::{Dict, Key};
use crate::lambda::Lambda;
use crate::lazy::Lazy;
use crate::path::OsPath;
use crate::rows::{Rows, StoredQuery};
use crate::scope::Scope;
use crate::time::Time;

/// How deep dicts and lists may nest. What would be deeper becomes NULL at the moment it is put in.
pub const MAX_DEPTH: u16 = 200;

/// A value.
#[derive(Clone, Default)]
pub enum Value {
    /// `NULL`
    #[default]
    Null,
    /// `TRUE`, `FALSE`
    Bool(bool),
    /// A signed integer: what literals and arithmetic give.
    Int(i64),
    /// An unsigned integer: what JSON and some parsers give.
    UInt(u64),
    /// A floating point number.
    Float(f64),
    /// A string: any bytes, mostly UTF-8.
    Str(Text),
    /// Binary data, shown as base64.
    Bytes(Arc<[u8]>),
    /// A moment.
    Time(Time),
    /// An ordered dict.
    Dict(Arc<Dict>),
    /// A list.
    List(Arc<List>),
    /// A path of some file system.
    Path(Arc<OsPath>),
    /// Rows that are not yet read.
    Query(StoredQuery),
    /// An expression that is not yet evaluated.
    Lazy(Lazy),
    /// A compiled `x=>expr`.
    Lambda(Arc<Lambda>),
    /// Something of the host program.
    Object(Arc<dyn Object>),
}

/// Something of the host program that queries can hold and ask for members.
pub trait Object: Send + Sync + 'static {
    /// What `typeof()` and error messages say.
    fn type_name(&self) -> &'static str;

    /// The member `name`, if there is one.
    fn member(&self, name: &str) -> Option<Value> {
        let _ = name;
        None
    }

    /// The columns when the object stands for a row.
    fn member_names(&self) -> Vec<Key> {
        Vec::new()
    }

    /// The column `name` when the object stands for a row: a member that is one of [`Object::member_names`], unless said otherwise.
    fn column(&self, name: &str) -> Option<Value> {
        self.member_names().iter().any(|known| known == name).then(|| self.member(name)).flatten()
    }

    /// What results show. NULL unless said otherwise: objects must not leak.
    fn to_value(&self) -> Value {
        Value::Null
    }

    /// How the object compares with `other`; `None` when it does not.
    fn compare(&self, other: &Value) -> Option<std::cmp::Ordering> {
        let _ = other;
        None
    }

    /// The rows of an object that stands for some: what `FROM` it gives.
    fn rows(&self, scope: &Scope) -> Option<Rows> {
        let _ = scope;
        None
    }

    /// Sets the member `name`, for objects that keep what they are told. False where that is not possible.
    fn set_member(&self, name: Key, value: Value) -> bool {
        let _ = (name, value);
        false
    }

    /// Whether the object counts as true.
    fn is_true(&self) -> bool {
        false
    }

    /// For the host program to get its own type back.
    fn as_any(&self) -> &dyn Any;
}

/// A placeholder for internals whose names stock scopes show (`$acl`, `$root` …): it has no members and shows as NULL.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opaque;

impl Object for Opaque {
    fn type_name(&self) -> &'static str {
        "opaque"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A string of a query: bytes, which need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Arc<[u8]>);

impl Text {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, bad bytes replaced.
    #[must_use]
    pub fn to_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The bytes, shared.
    #[must_use]
    pub fn into_bytes(self) -> Arc<[u8]> {
        self.0
    }
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Arc<[u8]>> for Text {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_str(), out)
    }
}

/// A list, which knows how deep it nests.
#[derive(Clone, Default)]
pub struct List {
    items: Vec<Value>,
    depth: u16,
    weight: u64,
    unread: bool,
}

impl List {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `value`.
    pub fn push(&mut self, value: impl Into<Value>) {
        let value = value.into();
        let depth = value.depth().saturating_add(1);
        let value = if depth > MAX_DEPTH { Value::Null } else { value };
        self.depth = self.depth.max(value.depth().saturating_add(1));
        self.weight = self.weight.saturating_add(value.weight());
        self.unread |= value.is_unread();
        self.items.push(value);
    }

    /// The elements.
    #[must_use]
    pub fn as_slice(&self) -> &[Value] {
        &self.items
    }
}

impl Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

impl<V: Into<Value>> FromIterator<V> for List {
    fn from_iter<I: IntoIterator<Item = V>>(items: I) -> Self {
        let mut list = Self::new();
        for item in items {
            list.push(item);
        }
        list
    }
}

impl<V: Into<Value>> Extend<V> for List {
    fn extend<I: IntoIterator<Item = V>>(&mut self, items: I) {
        for item in items {
            self.push(item);
        }
    }
}

impl Value {
    /// A string.
    #[must_use]
    pub fn str(text: impl Into<Text>) -> Self {
        Self::Str(text.into())
    }

    /// A list of `items`.
    #[must_use]
    pub fn list<V: Into<Value>>(items: impl IntoIterator<Item = V>) -> Self {
        Self::List(Arc::new(items.into_iter().collect()))
    }

    /// A placeholder that queries cannot use: see [`Opaque`].
    #[must_use]
    pub fn opaque() -> Self {
        Self::Object(Arc::new(Opaque))
    }

    /// Whether this is NULL.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The number, if this is an integer within `i64`, or a bool.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::UInt(number) => i64::try_from(*number).ok(),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// The number, if this is any number.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::UInt(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The bytes of a string or of binary data.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Str(text) => Some(text.as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a string, if it is UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        }
    }

    /// The dict, if this is one.
    #[must_use]
    pub fn as_dict(&self) -> Option<&Arc<Dict>> {
        match self {
            Self::Dict(dict) => Some(dict),
            _ => None,
        }
    }

    /// The elements, if this is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// How deep this value nests: 0 for what is no container.
    #[must_use]
    pub fn depth(&self) -> u16 {
        match self {
            Self::Dict(dict) => dict.depth(),
            Self::List(list) => list.depth.max(1),
            Self::Query(query) => query.depth(),
            _ => 0,
        }
    }

    /// About how many bytes the value holds, shared parts counted each time: what budgets count.
    #[must_use]
    pub fn weight(&self) -> u64 {
        const OVERHEAD: u64 = 24;
        let extra = match self {
            Self::Str(text) => text.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Dict(dict) => dict.weight(),
            Self::List(list) => list.weight,
            Self::Path(path) => path.weight(),
            _ => 0,
        };
        OVERHEAD.saturating_add(extra)
    }

    /// Whether this is one text, number or truth value: as a row it has no columns but `_value`.
    pub(crate) fn is_scalar(&self) -> bool {
        matches!(self, Self::Bool(_) | Self::Int(_) | Self::UInt(_) | Self::Float(_) | Self::Str(_) | Self::Bytes(_))
    }

    /// Whether a query or a lazy expression is here or inside.
    #[inline]
    pub(crate) fn is_unread(&self) -> bool {
        match self {
            Self::Query(_) | Self::Lazy(_) => true,
            Self::Dict(dict) => dict.is_unread(),
            Self::List(list) => list.unread,
            _ => false,
        }
    }

    /// The value with a lazy expression evaluated; queries stay unread.
    #[must_use]
    #[inline]
    pub fn reduced(self) -> Self {
        if matches!(self, Self::Lazy(_)) { self.forced() } else { self }
    }

    fn forced(self) -> Self {
        let mut value = self;
        while let Self::Lazy(lazy) = value {
            value = lazy.reduce();
        }
        value
    }

    /// The value with all queries and lazy expressions inside read.
    #[must_use]
    pub fn materialized(self, scope: &Scope) -> Self {
        if !self.is_unread() {
            return self;
        }
        match self.reduced() {
            Self::Query(query) => Self::list(query.collect(scope).into_iter().map(|row| row.materialized(scope))),
            Self::Dict(dict) if dict.is_unread() => {
                Self::from(dict.iter().map(|(key, value)| (key, value.clone().materialized(scope))).collect::<Dict>())
            }
            Self::List(list) if list.unread => Self::list(list.iter().map(|value| value.clone().materialized(scope))),
            other => other,
        }
    }

    /// The value without lazy expressions, which keep their scopes alive. Queries stay unread.
    pub(crate) fn detached(self, scope: &Scope) -> Self {
        match self {
            Self::Dict(_) | Self::List(_) if self.is_unread() => self.materialized(scope),
            other => other,
        }
    }

    /// The name of the type as stock messages have it (`%T` of `format()`).
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "types.Null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int64",
            Self::UInt(_) => "uint64",
            Self::Float(_) => "float64",
            Self::Str(_) => "string",
            Self::Bytes(_) => "[]uint8",
            Self::Time(_) => "time.Time",
            Self::Dict(_) => "*ordereddict.Dict",
            Self::List(_) => "[]interface {}",
            Self::Path(_) => "*accessors.OSPath",
            Self::Query(_) => "*vfilter.StoredQuery",
            Self::Lazy(_) => "*types.LazyExpr",
            Self::Lambda(_) => "*vfilter.Lambda",
            Self::Object(object) => object.type_name(),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("NULL"),
            Self::Bool(value) => fmt::Debug::fmt(value, out),
            Self::Int(number) => fmt::Debug::fmt(number, out),
            Self::UInt(number) => fmt::Debug::fmt(number, out),
            Self::Float(number) => fmt::Debug::fmt(number, out),
            Self::Str(text) => fmt::Debug::fmt(text, out),
            Self::Bytes(bytes) => write!(out, "bytes({})", bytes.len()),
            Self::Time(time) => write!(out, "{time}"),
            Self::Dict(dict) => fmt::Debug::fmt(dict, out),
            Self::List(list) => out.debug_list().entries(list.iter()).finish(),
            Self::Path(path) => write!(out, "path({path})"),
            Self::Query(_) => out.write_str("query"),
            Self::Lazy(_) => out.write_str("lazy"),
            Self::Lambda(_) => out.write_str("lambda"),
            Self::Object(object) => out.write_str(object.type_name()),
        }
    }
}

macro_rules! from {
    ($($source:ty => |$name:ident| $value:expr;)*) => {
        $(impl From<$source> for Value {
            fn from($name: $source) -> Self {
                $value
            }
        })*
    };
}

from! {
    bool => |value| Self::Bool(value);
    i64 => |number| Self::Int(number);
    i32 => |number| Self::Int(i64::from(number));
    u8 => |number| Self::Int(i64::from(number));
    u16 => |number| Self::Int(i64::from(number));
    u32 => |number| Self::Int(i64::from(number));
    u64 => |number| Self::UInt(number);
    usize => |number| i64::try_from(number).map_or(Self::UInt(number as u64), Self::Int);
    f64 => |number| Self::Float(number);
    &str => |text| Self::Str(text.into());
    String => |text| Self::Str(text.into());
    &String => |text| Self::Str(text.as_str().into());
    Cow<'_, str> => |text| Self::Str(text.into_owned().into());
    Arc<str> => |text| Self::Str(Text(text.into()));
    Key => |key| Self::Str(key.as_str().into());
    &Key => |key| Self::Str(key.as_str().into());
    Text => |text| Self::Str(text);
    Time => |time| Self::Time(time);
    Dict => |dict| Self::Dict(Arc::new(dict));
    Arc<Dict> => |dict| Self::Dict(dict);
    List => |list| Self::List(Arc::new(list));
    Arc<List> => |list| Self::List(list);
    Vec<Value> => |items| Self::list(items);
    Vec<String> => |items| Self::list(items);
    OsPath => |path| Self::Path(Arc::new(path));
    Arc<OsPath> => |path| Self::Path(path);
    StoredQuery => |query| Self::Query(query);
    Lazy => |lazy| Self::Lazy(lazy);
}

impl From<&Value> for Value {
    fn from(value: &Value) -> Self {
        value.clone()
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
