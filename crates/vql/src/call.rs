//! A call of a built-in, as its body sees it: arguments checked and converted, permissions granted.

use std::borrow::Cow;
use std::sync::Arc;

use crate::dict::{Dict, Key};
use crate::lambda::Lambda;
use crate::path::OsPath;
use crate::rows::StoredQuery;
use crate::scope::Scope;
use crate::signature::{Arg, Kind};
use crate::time::Time;
use crate::value::{Text, Value};

/// What the body of a built-in gets.
pub struct Call {
    pub(crate) scope: Scope,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) declared: &'static [Arg],
    /// Beside `declared`; `None` where the argument was left out.
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) extras: Vec<(Key, Value)>,
    /// The place of the call in the text, by its address.
    pub(crate) site: usize,
    /// The variable that the argument `item` names, if it is no more than a name.
    pub(crate) variable: Option<Arc<str>>,
}

impl Call {
    /// The scope of the caller.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The name of the built-in.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Plugin or function.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes `<name>: <text>` to the log; a level before the text (`ERROR:…`) moves to the front.
    pub fn log(&self, text: impl AsRef<str>) {
        let text = text.as_ref();
        match crate::environment::Level::split(text) {
            (crate::environment::Level::Default, _) => self.scope.log(format!("{}: {text}", self.name)),
            (level, rest) => self.scope.log(format!("{}:{}: {rest}", level.name(), self.name)),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let at = self.declared.iter().position(|arg| arg.name == name)?;
        self.values.get(at)?.as_ref()
    }

    /// Whether the argument was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The argument, NULL if left out.
    #[must_use]
    pub fn value(&self, name: &str) -> Value {
        self.get(name).cloned().unwrap_or_default()
    }

    /// A `String` argument, if given.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<Text> {
        match self.get(name) {
            Some(Value::Str(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// A `String` argument, bad bytes replaced; empty if left out.
    #[must_use]
    pub fn string(&self, name: &str) -> String {
        self.opt_string(name).unwrap_or_default()
    }

    /// A `String` argument, bad bytes replaced, if given.
    #[must_use]
    pub fn opt_string(&self, name: &str) -> Option<String> {
        self.text(name).map(|text| text.to_str().into_owned())
    }

    /// A `String` argument as bytes; empty if left out.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Arc<[u8]> {
        self.text(name).map_or_else(|| Arc::from(&[][..]), Text::into_bytes)
    }

    /// A `Strings` argument; empty if left out.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<Text> {
        match self.get(name) {
            Some(Value::List(items)) => items
                .iter()
                .filter_map(|item| match item {
                    Value::Str(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A `Strings` argument, bad bytes replaced; empty if left out.
    #[must_use]
    pub fn strings(&self, name: &str) -> Vec<String> {
        self.texts(name).iter().map(Text::to_str).map(Cow::into_owned).collect()
    }

    /// An `Int` argument, if given.
    #[must_use]
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_int)
    }

    /// An `Int` argument; 0 if left out.
    #[must_use]
    pub fn int(&self, name: &str) -> i64 {
        self.opt_int(name).unwrap_or(0)
    }

    /// A `UInt` argument, if given.
    #[must_use]
    pub fn opt_uint(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::UInt(number)) => Some(*number),
            Some(value) => value.as_int().and_then(|number| u64::try_from(number).ok()),
            None => None,
        }
    }

    /// A `UInt` argument; 0 if left out.
    #[must_use]
    pub fn uint(&self, name: &str) -> u64 {
        self.opt_uint(name).unwrap_or(0)
    }

    /// A `Float` argument, if given.
    #[must_use]
    pub fn opt_float(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Value::as_float)
    }

    /// A `Bool` argument; false if left out.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Bool(true)))
    }

    /// A `Dict` argument, if given.
    #[must_use]
    pub fn dict(&self, name: &str) -> Option<Arc<Dict>> {
        self.get(name).and_then(|value| value.as_dict().cloned())
    }

    /// The elements of a list argument; empty if left out.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<Value> {
        match self.get(name) {
            Some(Value::List(items)) => items.to_vec(),
            _ => Vec::new(),
        }
    }

    /// A `Query` argument, if given.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<StoredQuery> {
        match self.get(name) {
            Some(Value::Query(query)) => Some(query.clone()),
            _ => None,
        }
    }

    /// A `Time` argument, if given.
    #[must_use]
    pub fn time(&self, name: &str) -> Option<Time> {
        match self.get(name) {
            Some(Value::Time(time)) => Some(*time),
            _ => None,
        }
    }

    /// A `Lambda` argument, if given.
    #[must_use]
    pub fn lambda(&self, name: &str) -> Option<Arc<Lambda>> {
        match self.get(name) {
            Some(Value::Lambda(lambda)) => Some(lambda.clone()),
            _ => None,
        }
    }

    /// A `Path` argument, if given.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<Arc<OsPath>> {
        match self.get(name) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    /// A `Paths` argument; empty if left out.
    #[must_use]
    pub fn paths(&self, name: &str) -> Vec<Arc<OsPath>> {
        match self.get(name) {
            Some(Value::List(items)) => items
                .iter()
                .filter_map(|item| match item {
                    Value::Path(path) => Some(path.clone()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A `Lazy` argument, evaluated now; queries stay unread.
    #[must_use]
    pub fn lazy(&self, name: &str) -> Value {
        self.value(name).reduced()
    }

    /// Arguments beside the declared ones, in the order in which they were written. Lazy in functions that say so.
    #[must_use]
    pub fn extras(&self) -> &[(Key, Value)] {
        &self.extras
    }

    /// Changes the state that an aggregate keeps for this place of call and group. It starts as NULL.
    pub fn state<T>(&self, update: impl FnOnce(&mut Value) -> T) -> T {
        self.scope.aggregates().update(self.site, update)
    }
}
