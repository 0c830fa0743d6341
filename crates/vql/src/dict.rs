//! The ordered dict: the shape of every row and of every `dict()`.
//!
//! Order is the order of insertion. [`Dict::set`] on a present key moves it to the end, as stock dicts do; [`Dict::update`] keeps its place.
//! A dict knows how deep it nests, and refuses to nest deeper than [`crate::MAX_DEPTH`]: what walks a value can recurse without a limit of its own.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use crate::shape::Shape;
use crate::value::Value;

/// A map that keeps the order of insertion, hashed fast.
pub(crate) type Map<K, V> = IndexMap<K, V, RandomState>;

/// How many entries a dict holds before it gets a hash index.
pub(crate) const SMALL: usize = 16;

/// A key: cheap to clone, free to make from a literal.
#[derive(Clone)]
pub struct Key(KeyText);

#[derive(Clone)]
enum KeyText {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Key {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            KeyText::Static(text) => text,
            KeyText::Shared(text) => text,
        }
    }
}

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let (left, right) = (self.as_str(), other.as_str());
        std::ptr::eq(left, right) || left == right
    }
}

impl Eq for Key {}

impl PartialEq<str> for Key {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Key {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl From<&'static str> for Key {
    fn from(text: &'static str) -> Self {
        Self(KeyText::Static(text))
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(KeyText::Shared(text.into()))
    }
}

impl From<Arc<str>> for Key {
    fn from(text: Arc<str>) -> Self {
        Self(KeyText::Shared(text))
    }
}

impl From<&Arc<str>> for Key {
    fn from(text: &Arc<str>) -> Self {
        Self(KeyText::Shared(text.clone()))
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), out)
    }
}

/// An ordered map from names to values.
#[derive(Clone, Default)]
pub struct Dict {
    entries: Entries,
    default: Option<Box<Value>>,
    fold_case: bool,
    depth: u16,
    weight: u64,
    unread: bool,
}

#[derive(Clone)]
enum Entries {
    Small(Vec<(Key, Value)>),
    Large(Box<Map<Key, Value>>),
    /// Values beside the names of a shape, as many as it has.
    Shaped(Arc<Shape>, Vec<Value>),
}

impl Default for Entries {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Dict {
    /// An empty dict.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty dict with room for `capacity` entries.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Entries::Small(Vec::with_capacity(capacity.min(SMALL))), ..Self::default() }
    }

    /// A row of a known shape: `values` beside its names. What is missing is NULL, what is too much is dropped.
    #[must_use]
    pub fn of_shape(shape: &Arc<Shape>, mut values: Vec<Value>) -> Self {
        let (mut depth, mut unread, mut weight) = (0, false, shape.weight());
        values.resize(shape.len(), Value::Null);
        for value in &mut values {
            let of_value = value.depth().saturating_add(1);
            if of_value > crate::MAX_DEPTH {
                *value = Value::Null;
                continue;
            }
            depth = depth.max(of_value);
            unread |= value.is_unread();
            weight = weight.saturating_add(value.weight());
        }
        Self { entries: Entries::Shaped(shape.clone(), values), default: None, fold_case: false, depth, weight, unread }
    }

    /// The shape of a row that shares its names with others.
    pub(crate) fn shape(&self) -> Option<&Arc<Shape>> {
        match &self.entries {
            Entries::Shaped(shape, _) => Some(shape),
            _ => None,
        }
    }

    /// Whether lookups are plain: no default, no folding of case.
    pub(crate) fn is_plain(&self) -> bool {
        self.default.is_none() && !self.fold_case
    }

    pub(crate) fn folds_case(&self) -> bool {
        self.fold_case
    }

    pub(crate) fn default_value(&self) -> Option<&Value> {
        self.default.as_deref()
    }

    /// Entries of its own, before they change.
    fn unshape(&mut self) {
        if let Entries::Shaped(shape, values) = &mut self.entries {
            let entries = shape.keys().iter().cloned().zip(std::mem::take(values));
            self.entries =
                if shape.len() <= SMALL { Entries::Small(entries.collect()) } else { Entries::Large(Box::new(entries.collect())) };
        }
    }

    /// Lookups that miss give `default` in queries ([`Dict::member`]).
    #[must_use]
    pub fn with_default(mut self, default: Value) -> Self {
        self.default = Some(Box::new(default));
        self
    }

    /// Lookups ignore the case of ASCII letters.
    #[must_use]
    pub fn ignoring_case(mut self) -> Self {
        self.fold_case = true;
        self
    }

    /// [`Dict::set`] in a chain: `Dict::new().with("A", 1)`.
    #[must_use]
    pub fn with(mut self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Small(entries) => entries.len(),
            Entries::Large(entries) => entries.len(),
            Entries::Shaped(_, values) => values.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How deep values nest below this dict: 1 for a flat one.
    #[must_use]
    pub(crate) fn depth(&self) -> u16 {
        self.depth.max(1)
    }

    fn position(&self, key: &str) -> Option<usize> {
        let exact = match &self.entries {
            Entries::Small(entries) => entries.iter().position(|(name, _)| name.as_str() == key),
            Entries::Large(entries) => entries.get_index_of(key),
            Entries::Shaped(shape, _) => shape.position(key),
        };
        if exact.is_some() || !self.fold_case {
            return exact;
        }
        self.iter().position(|(name, _)| name.eq_ignore_ascii_case(key))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        match &self.entries {
            Entries::Small(entries) if !self.fold_case => entries.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value),
            Entries::Shaped(shape, values) if !self.fold_case => shape.position(key).and_then(|at| values.get(at)),
            _ => self.position(key).and_then(|at| self.get_index(at)).map(|(_, value)| value),
        }
    }

    /// The value of `key`, else the default of the dict.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Value> {
        self.get(key).or(self.default.as_deref())
    }

    /// The entry at a position.
    #[must_use]
    pub fn get_index(&self, at: usize) -> Option<(&Key, &Value)> {
        match &self.entries {
            Entries::Small(entries) => entries.get(at).map(|(key, value)| (key, value)),
            Entries::Large(entries) => entries.get_index(at),
            Entries::Shaped(shape, values) => shape.keys().get(at).zip(values.get(at)),
        }
    }

    /// Whether `key` is present.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    fn admit(&mut self, value: Value) -> Value {
        let depth = value.depth().saturating_add(1);
        if depth > crate::MAX_DEPTH {
            return Value::Null;
        }
        self.depth = self.depth.max(depth);
        self.unread |= value.is_unread();
        value
    }

    /// Whether a query or a lazy expression may be inside.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread
    }

    fn weigh(key: &Key, value: &Value) -> u64 {
        value.weight().saturating_add(key.len() as u64).saturating_add(16)
    }

    /// About how many bytes the entries hold, shared parts counted each time.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Sets `key`. A present key moves to the end.
    pub fn set(&mut self, key: impl Into<Key>, value: impl Into<Value>) {
        self.unshape();
        let key = key.into();
        let value = self.admit(value.into());
        if let Some(at) = self.position(&key) {
            self.remove_index(at);
        }
        self.push(key, value);
    }

    /// Sets `key`. A present key keeps its place.
    pub fn update(&mut self, key: impl Into<Key>, value: impl Into<Value>) {
        let key = key.into();
        let value = self.admit(value.into());
        match self.position(&key) {
            Some(at) => {
                let added = Self::weigh(&key, &value);
                let removed = self.get_index(at).map_or(0, |(key, value)| Self::weigh(key, value));
                self.weight = self.weight.saturating_sub(removed).saturating_add(added);
                let slot = match &mut self.entries {
                    Entries::Small(entries) => entries.get_mut(at).map(|(_, slot)| slot),
                    Entries::Large(entries) => entries.get_index_mut(at).map(|(_, slot)| slot),
                    Entries::Shaped(_, values) => values.get_mut(at),
                };
                if let Some(slot) = slot {
                    *slot = value;
                }
            }
            None => self.push(key, value),
        }
    }

    fn push(&mut self, key: Key, value: Value) {
        self.unshape();
        self.weight = self.weight.saturating_add(Self::weigh(&key, &value));
        match &mut self.entries {
            Entries::Small(entries) if entries.len() < SMALL => entries.push((key, value)),
            Entries::Small(entries) => {
                let mut large: Map<Key, Value> = std::mem::take(entries).into_iter().collect();
                large.insert(key, value);
                self.entries = Entries::Large(Box::new(large));
            }
            Entries::Large(entries) => {
                entries.insert(key, value);
            }
            Entries::Shaped(..) => {}
        }
    }

    fn remove_index(&mut self, at: usize) -> Option<Value> {
        self.unshape();
        let (key, value) = match &mut self.entries {
            Entries::Small(entries) => (at < entries.len()).then(|| entries.remove(at))?,
            Entries::Large(entries) => entries.shift_remove_index(at)?,
            Entries::Shaped(..) => return None,
        };
        self.weight = self.weight.saturating_sub(Self::weigh(&key, &value));
        Some(value)
    }

    /// Removes `key` and gives its value. The others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.position(key)?;
        self.remove_index(at)
    }

    /// The entries in order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(match &self.entries {
            Entries::Small(entries) => IterKind::Small(entries.iter()),
            Entries::Large(entries) => IterKind::Large(entries.iter()),
            Entries::Shaped(shape, values) => IterKind::Shaped(shape.keys().iter(), values.iter()),
        })
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.iter().map(|(key, _)| key)
    }

    /// The values in order.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.iter().map(|(_, value)| value)
    }
}

/// The entries of a dict in order.
pub struct Iter<'a>(IterKind<'a>);

enum IterKind<'a> {
    Small(std::slice::Iter<'a, (Key, Value)>),
    Large(indexmap::map::Iter<'a, Key, Value>),
    Shaped(std::slice::Iter<'a, Key>, std::slice::Iter<'a, Value>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Key, &'a Value);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            IterKind::Small(entries) => entries.next().map(|(key, value)| (key, value)),
            IterKind::Large(entries) => entries.next(),
            IterKind::Shaped(keys, values) => keys.next().zip(values.next()),
        }
    }
}

impl<'a> IntoIterator for &'a Dict {
    type Item = (&'a Key, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Dict {
    type Item = (Key, Value);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        let mut whole = self;
        whole.unshape();
        IntoIter(match whole.entries {
            Entries::Small(entries) => IntoIterKind::Small(entries.into_iter()),
            Entries::Large(entries) => IntoIterKind::Large(entries.into_iter()),
            Entries::Shaped(..) => IntoIterKind::Small(Vec::new().into_iter()),
        })
    }
}

/// The entries of a dict, taken out in order.
pub struct IntoIter(IntoIterKind);

enum IntoIterKind {
    Small(std::vec::IntoIter<(Key, Value)>),
    Large(indexmap::map::IntoIter<Key, Value>),
}

impl Iterator for IntoIter {
    type Item = (Key, Value);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            IntoIterKind::Small(entries) => entries.next(),
            IntoIterKind::Large(entries) => entries.next(),
        }
    }
}

impl<K: Into<Key>, V: Into<Value>> FromIterator<(K, V)> for Dict {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut dict = Self::new();
        dict.extend(entries);
        dict
    }
}

impl<K: Into<Key>, V: Into<Value>> Extend<(K, V)> for Dict {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.set(key, value);
        }
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dict: &Dict) -> String {
        dict.keys().map(Key::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn set_moves_a_present_key_and_update_does_not() {
        let mut dict = Dict::new().with("a", 1).with("b", 2).with("c", 3);
        dict.update("a", 9);
        assert_eq!(names(&dict), "a b c");
        dict.set("a", 9);
        assert_eq!(names(&dict), "b c a");
        assert_eq!(dict.remove("c").and_then(|value| value.as_int()), Some(3));
        assert_eq!(names(&dict), "b a");
    }

    #[test]
    fn order_and_lookup_survive_growth() {
        let mut dict = Dict::new();
        for at in 0..100_i64 {
            dict.set(format!("k{at}"), at);
        }
        assert_eq!(dict.len(), 100);
        assert_eq!(dict.get("k73").and_then(Value::as_int), Some(73));
        dict.set("k0", -1);
        assert_eq!(dict.keys().last().map(Key::as_str), Some("k0"));
        assert!(dict.keys().take(3).map(Key::as_str).eq(["k1", "k2", "k3"]));
    }

    #[test]
    fn lookups_may_ignore_case_and_have_a_default() {
        let dict = Dict::new().with("Pid", 5).ignoring_case().with_default(Value::Null);
        assert_eq!(dict.get("PID").and_then(Value::as_int), Some(5));
        assert!(dict.get("nope").is_none());
        assert!(matches!(dict.member("nope"), Some(Value::Null)));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut value = Value::Int(1);
        for _ in 0..2000 {
            value = Value::from(Dict::new().with("x", value));
        }
        assert!(value.depth() <= crate::MAX_DEPTH);
    }
}
