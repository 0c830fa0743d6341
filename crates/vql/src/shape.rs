//! The shape of rows: names that many rows share, so that a row is no more than its values.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::dict::{Key, SMALL};

/// Names in order, each once. Rows of one source share it: see [`crate::Dict::of_shape`].
#[derive(Debug)]
pub struct Shape {
    keys: Box<[Key]>,
    /// The names as JSON writes them before a value: `"name":`.
    written: Box<[Box<[u8]>]>,
    places: Option<HashMap<Key, usize, RandomState>>,
    weight: u64,
}

impl Shape {
    /// The shape of rows with these columns. A name that comes again counts where it stands first.
    #[must_use]
    pub fn new<K: Into<Key>>(names: impl IntoIterator<Item = K>) -> Arc<Self> {
        let mut keys: Vec<Key> = Vec::new();
        let mut places: HashMap<Key, usize, RandomState> = HashMap::default();
        for name in names {
            let key = name.into();
            if let std::collections::hash_map::Entry::Vacant(vacant) = places.entry(key.clone()) {
                vacant.insert(keys.len());
                keys.push(key);
            }
        }
        let written = keys.iter().map(|key| crate::json::member_name(key).into()).collect();
        let weight = keys.iter().map(|key| (key.len() as u64).saturating_add(16)).fold(0, u64::saturating_add);
        let places = (keys.len() > SMALL).then_some(places);
        Arc::new(Self { keys: keys.into(), written, places, weight })
    }

    /// The names in order.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn written(&self) -> &[Box<[u8]>] {
        &self.written
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// Where a name stands.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(name).copied(),
            None => self.keys.iter().position(|key| key.as_str() == name),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Dict, Shape, Value, json};

    #[test]
    fn rows_of_a_shape_are_dicts_like_others() {
        for width in [1_i64, 3, 40] {
            let names: Vec<String> = (0..width).map(|at| format!("k{at}")).collect();
            let shape = Shape::new(names.iter().cloned());
            let row = Dict::of_shape(&shape, (0..width).map(Value::from).collect());
            let mut same: Dict = names.iter().cloned().zip(0..width).collect();
            assert_eq!((row.len(), row.weight()), (same.len(), same.weight()));
            assert_eq!(json::encode(&row.clone().into()), json::encode(&same.clone().into()));
            let mut changed = row.clone();
            for dict in [&mut changed, &mut same] {
                dict.set("k0", "x");
                dict.update("more", true);
                dict.remove("k2");
            }
            assert_eq!(json::encode(&changed.into()), json::encode(&same.into()));
            assert_eq!(row.get("k0").and_then(Value::as_int), Some(0));
            assert!(row.into_iter().map(|(key, _)| key.to_string()).eq(names));
        }
    }

    #[test]
    fn missing_values_are_null_and_names_count_once() {
        let shape = Shape::new(["a", "b", "a"]);
        assert_eq!(json::encode(&Dict::of_shape(&shape, vec![Value::Int(1)]).into()), r#"{"a":1,"b":null}"#);
        assert_eq!(Dict::of_shape(&shape, vec![Value::Null; 9]).len(), 2);
    }
}
