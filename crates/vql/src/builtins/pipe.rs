//! `pipe()`: the rows of a query as the content of a file, for the accessor `pipe`.

use std::any::Any;
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use crate::args;
use crate::call::Call;
use crate::error::CallError;
use crate::member::{column, columns};
use crate::registry::Registry;
use crate::rows::{Rows, StoredQuery};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::plain;
use crate::value::{Object, Value};

/// The most pipes with names in one query.
const MAX_PIPES: usize = 1000;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function(
            "pipe",
            "Makes a query readable as a file: the accessor pipe reads it by the name of the pipe, or of the variable that holds it.",
        )
        .args(args![
            Arg::optional("name", ArgType::String, "The name of the pipe."),
            Arg::optional("query", ArgType::Query, "The first column of each row is written into the pipe."),
            Arg::optional("sep", ArgType::String, "Written after each of them."),
        ]),
        pipe,
    );
}

/// A query as the content of a file.
#[derive(Clone)]
pub struct Pipe {
    query: StoredQuery,
    separator: Arc<[u8]>,
}

impl Pipe {
    /// Starts the query; what is read are its rows.
    #[must_use]
    pub fn open(&self, scope: &Scope) -> impl Read + Send + use<> {
        Reader { rows: self.query.open(scope), scope: scope.clone(), separator: self.separator.clone(), waiting: Vec::new(), at: 0 }
    }
}

impl Object for Pipe {
    fn type_name(&self) -> &'static str {
        "pipe"
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Reader {
    rows: Rows,
    scope: Scope,
    separator: Arc<[u8]>,
    waiting: Vec<u8>,
    at: usize,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.waiting.len() {
            self.waiting.clear();
            self.at = 0;
            if self.scope.stopped() {
                return Err(io::Error::other("the query was stopped"));
            }
            let Some(Ok(row)) = self.rows.next() else { return Ok(0) };
            let first = columns(&row).first().and_then(|name| column(&row, name.as_str())).unwrap_or_default().materialized(&self.scope);
            match &first {
                Value::Null => {}
                Value::Bytes(bytes) => self.waiting.extend_from_slice(bytes),
                other => self.waiting.extend_from_slice(plain(other).as_bytes()),
            }
            self.waiting.extend_from_slice(&self.separator);
        }
        let rest = self.waiting.get(self.at..).unwrap_or_default();
        let got = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..got), rest.get(..got)) {
            to.copy_from_slice(from);
        }
        self.at = self.at.saturating_add(got);
        Ok(got)
    }
}

/// The pipes of a query by name.
#[derive(Default)]
struct Pipes(Mutex<HashMap<String, Pipe>>);

fn pipe(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let name = call.string("name");
    let pipes = scope.shared::<Pipes>();
    let mut pipes = pipes.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(query) = call.query("query") else {
        let known = pipes.get(&name).cloned().ok_or_else(|| CallError::failed(format!("there is no pipe {name:?}; give it a query")))?;
        return Ok(Value::Object(Arc::new(known)));
    };
    let pipe = Pipe { query, separator: call.bytes("sep") };
    if !name.is_empty() {
        if pipes.len() >= MAX_PIPES && !pipes.contains_key(&name) {
            return Err("there are too many pipes".into());
        }
        pipes.insert(name, pipe.clone());
    }
    Ok(Value::Object(Arc::new(pipe)))
}

/// The pipe called `name` in this query, or the one that the variable `name` holds.
#[must_use]
pub fn named(scope: &Scope, name: &str) -> Option<Pipe> {
    let pipes = scope.shared::<Pipes>();
    let known = pipes.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
    known.or_else(|| match scope.variable(name)? {
        Value::Object(object) => object.as_any().downcast_ref::<Pipe>().cloned(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, Query};

    #[test]
    fn rows_are_read_as_bytes() {
        let scope = Environment::new(Arc::new(Registry::core())).open();
        for vql in [
            "LET P = pipe(query={ SELECT _value FROM range(end=3) }, sep='\n')",
            "LET _ <= pipe(name='n', query={ SELECT 'ab' FROM scope() })",
        ] {
            Query::new(&scope, &crate::parse_statement(vql).unwrap()).for_each(drop);
        }
        let content = |name: &str| {
            let mut text = String::new();
            named(&scope, name).unwrap().open(&scope).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!((content("P"), content("n"), content("P")), ("0\n1\n2\n".to_owned(), "ab".to_owned(), "0\n1\n2\n".to_owned()));
        assert!(named(&scope, "Q").is_none());
    }
}
