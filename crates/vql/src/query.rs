//! Running statements in a scope.

use std::sync::Arc;

use crate::ast::{Let, LetBody, Statement, StatementKind};
use crate::cancel::StopReason;
use crate::dict::{Dict, Key};
use crate::eval;
use crate::member::row_to_dict;
use crate::rows::Rows;
use crate::scope::{Binding, Scope};
use crate::select;
use crate::stack::enter;
use crate::value::Value;

/// A statement that runs in a scope: an iterator over its rows. `LET` runs when the query is made and has no rows.
pub struct Query {
    scope: Scope,
    rows: Option<Rows>,
    columns: Option<Vec<Key>>,
    is_let: bool,
}

impl Query {
    /// Starts `statement` in `scope`. Statements of one text share one scope and run in order.
    #[must_use]
    pub fn new(scope: &Scope, statement: &Statement) -> Self {
        enter(|| match &statement.kind {
            StatementKind::Let(definition) => {
                define(definition, scope);
                Self { scope: scope.clone(), rows: None, columns: None, is_let: true }
            }
            StatementKind::Select(query) => {
                Self { scope: scope.clone(), rows: Some(select::open(query, scope)), columns: None, is_let: false }
            }
        })
    }

    /// Whether the statement is a `LET`, which never has rows and is not answered with any.
    #[must_use]
    pub fn is_let(&self) -> bool {
        self.is_let
    }

    /// The names of the columns of the first row; empty before there was one.
    #[must_use]
    pub fn columns(&self) -> &[Key] {
        self.columns.as_deref().unwrap_or_default()
    }

    /// Why the query stopped early, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<StopReason> {
        self.scope.cancel_token().reason()
    }

    fn end(&mut self) {
        if self.rows.take().is_none() {
            return;
        }
        match self.stopped() {
            Some(StopReason::Rows(limit)) => self.scope.log_once(format!("ERROR:Query stopped: it read more than {limit} rows")),
            Some(StopReason::Bytes(limit)) => {
                self.scope.log_once(format!("ERROR:Query stopped: it held more than {limit} bytes in memory"));
            }
            Some(StopReason::TimedOut(limit)) if self.scope.meter().budget().time == Some(limit) => {
                self.scope.log_once(format!("ERROR:Query stopped: it ran for longer than {} seconds", limit.as_secs_f64()));
            }
            _ => {}
        }
    }
}

impl Iterator for Query {
    type Item = Arc<Dict>;

    fn next(&mut self) -> Option<Arc<Dict>> {
        let rows = self.rows.as_mut()?;
        match enter(|| rows.next()) {
            Some(Ok(row)) => {
                let row = row_to_dict(&row);
                self.columns.get_or_insert_with(|| row.keys().cloned().collect());
                Some(row)
            }
            Some(Err(error)) => {
                self.scope.log(error.to_string());
                self.end();
                None
            }
            None => {
                self.end();
                None
            }
        }
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs statements one after another in `scope`: the rows of all of them, for hosts that do not care which gave what.
#[must_use]
pub fn run(scope: &Scope, statements: Vec<Statement>) -> Rows {
    let scope = scope.clone();
    let mut statements = statements.into_iter();
    let mut current: Option<Query> = None;
    Rows::from_fn(move || {
        loop {
            if let Some(row) = current.as_mut().and_then(Iterator::next) {
                return Some(Ok(Value::Dict(row)));
            }
            if scope.stopped() {
                return None;
            }
            current = Some(Query::new(&scope, &statements.next()?));
        }
    })
}

fn define(definition: &Arc<Let>, scope: &Scope) {
    let _until_bound = scope.defer();
    bind_definition(definition, scope);
}

fn bind_definition(definition: &Arc<Let>, scope: &Scope) {
    let name = &definition.name.name;
    if scope.registry().find_function(name).is_some() {
        scope.log_once(format!("WARN:LET expression is masking a built in function {name}"));
    }
    if !definition.materialized {
        scope.bind(Key::from(name), Binding::Let(definition.clone()));
        return;
    }
    if definition.params.is_some() {
        scope.log_once(format!("WARN:Expression {name} takes parameters but is materialized! Did you mean to use '='? "));
    }
    let rows = match &definition.body {
        LetBody::Select(query) => select::open(query, scope),
        LetBody::Expr(expr) => match eval::expression(expr, scope).reduced() {
            Value::Query(query) => query.open(scope),
            value => {
                let value = value.materialized(scope);
                if scope.keep(value.weight()) {
                    scope.bind(Key::from(name), Binding::Value(value));
                }
                return;
            }
        },
    };
    match crate::spill::keep(name, rows, scope) {
        Ok(value) => {
            if scope.keep(value.weight()) {
                scope.bind(Key::from(name), Binding::Value(value));
            }
        }
        Err(error) => scope.log(format!("ERROR:LET {name} cannot use the disk: {error}")),
    }
}
