//! Rows on their way: pulled one by one, on the puller's thread.

use std::sync::Arc;

use crate::dict::Dict;
use crate::error::CallError;
use crate::scope::Scope;
use crate::value::Value;

/// Rows, pulled one by one. Mostly dicts; any other value is a row of its members. After an error there are no more rows.
pub struct Rows(Box<dyn Iterator<Item = Result<Value, CallError>> + Send>);

impl Rows {
    /// No rows.
    #[must_use]
    pub fn none() -> Self {
        Self(Box::new(std::iter::empty()))
    }

    /// One row.
    #[must_use]
    pub fn one(row: impl Into<Value>) -> Self {
        Self(Box::new(std::iter::once(Ok(row.into()))))
    }

    /// The rows of an iterator that cannot fail.
    pub fn of<I>(rows: I) -> Self
    where
        I: IntoIterator,
        I::IntoIter: Send + 'static,
        I::Item: Into<Value>,
    {
        Self(Box::new(rows.into_iter().map(|row| Ok(row.into()))))
    }

    /// The rows of an iterator that may fail: the error is logged as the plugin's, and the rows end.
    pub fn try_of<I, V>(rows: I) -> Self
    where
        I: IntoIterator<Item = Result<V, CallError>>,
        I::IntoIter: Send + 'static,
        V: Into<Value>,
    {
        Self(Box::new(rows.into_iter().map(|row| row.map(Into::into))))
    }

    /// A row for each call of `next` until it gives `None`.
    pub fn from_fn(next: impl FnMut() -> Option<Result<Value, CallError>> + Send + 'static) -> Self {
        Self(Box::new(std::iter::from_fn(next)))
    }
}

impl<V: Into<Value>> FromIterator<V> for Rows {
    /// Takes the rows out at once; [`Rows::of`] pulls them one by one.
    fn from_iter<I: IntoIterator<Item = V>>(rows: I) -> Self {
        Self::of(rows.into_iter().map(Into::into).collect::<Vec<Value>>())
    }
}

impl Iterator for Rows {
    type Item = Result<Value, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// Where rows can be had again and again: a stored query, a list seen as rows.
pub trait RowSource: Send + Sync {
    /// Starts over. Names inside resolve in `scope`: the language is dynamically scoped.
    fn open(&self, scope: &Scope) -> Rows;

    /// How deep the values nest that this source keeps.
    fn depth(&self) -> u16 {
        1
    }

    /// What is kept, if this is no more than rows in memory.
    fn materialized(&self) -> Option<&[Value]> {
        None
    }
}

/// A stored query: rows that are read when somebody pulls them.
#[derive(Clone)]
pub struct StoredQuery(Arc<dyn RowSource>);

impl StoredQuery {
    /// Wraps a source.
    pub fn new(source: impl RowSource + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// A query that gives each of `values`: what the conversion of lists and scalars makes.
    #[must_use]
    pub fn of_values(values: Vec<Value>) -> Self {
        Self::new(Fixed(values))
    }

    /// Starts the query in `scope`. Failures are logged there.
    #[must_use]
    pub fn open(&self, scope: &Scope) -> Rows {
        self.0.open(scope)
    }

    /// All rows, within the query's budget.
    #[must_use]
    pub fn collect(&self, scope: &Scope) -> Vec<Value> {
        match self.0.materialized() {
            Some(rows) => rows.to_vec(),
            None => crate::eval::collect_rows(self.open(scope), scope),
        }
    }

    pub(crate) fn materialized(&self) -> Option<&[Value]> {
        self.0.materialized()
    }

    pub(crate) fn depth(&self) -> u16 {
        self.0.depth()
    }
}

struct Fixed(Vec<Value>);

impl RowSource for Fixed {
    fn open(&self, _: &Scope) -> Rows {
        Rows::of(self.0.clone())
    }

    fn depth(&self) -> u16 {
        self.0.iter().map(Value::depth).max().unwrap_or(0).saturating_add(1)
    }

    fn materialized(&self) -> Option<&[Value]> {
        Some(&self.0)
    }
}

/// A value seen as one row: dicts as they are, anything else as `_value`.
#[must_use]
pub fn as_row(value: Value) -> Value {
    match value {
        Value::Dict(_) | Value::Object(_) => value,
        other => Dict::new().with("_value", other).into(),
    }
}
