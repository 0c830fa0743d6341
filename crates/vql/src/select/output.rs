//! The row that a query makes: columns are evaluated when asked for, at most once; where a row has a known shape, its columns are known by place.

use std::cell::OnceCell;
use std::sync::{Arc, OnceLock};

use crate::ast::{ColumnKind, Expr, ExprKind, Select, Symbol};
use crate::at::At;
use crate::dict::{Dict, Key};
use crate::eval;
use crate::member;
use crate::ops::truth;
use crate::rows::Rows;
use crate::scope::{Aggregates, Frame, Scope};
use crate::shape::Shape;
use crate::value::Value;

/// A row on its way out. One is used for row after row, unless something keeps it.
pub(crate) struct OutputRow {
    query: Arc<Select>,
    base: Scope,
    row: Value,
    aggregates: Arc<Aggregates>,
    /// The scope of the row, once something needed one.
    scope: OnceLock<Scope>,
    cells: Vec<OnceLock<Value>>,
}

impl OutputRow {
    /// No row yet.
    pub(super) fn idle(query: &Arc<Select>, base: &Scope) -> Arc<Self> {
        Arc::new(Self {
            query: query.clone(),
            base: base.clone(),
            row: Value::Null,
            aggregates: base.aggregates().clone(),
            scope: OnceLock::new(),
            cells: query.columns.iter().map(|_| OnceLock::new()).collect(),
        })
    }

    /// Takes up `row`.
    pub(super) fn start(this: &mut Arc<Self>, row: Value, aggregates: &Arc<Aggregates>) {
        if let Some(output) = Arc::get_mut(this) {
            if output.scope.get_mut().is_some_and(|scope| !scope.renew(Frame::Row(row.clone()), aggregates)) {
                output.scope.take();
            }
            output.row = row;
            if !Arc::ptr_eq(&output.aggregates, aggregates) {
                output.aggregates = aggregates.clone();
            }
            return;
        }
        let mut fresh = Self::idle(&this.query, &this.base);
        if let Some(output) = Arc::get_mut(&mut fresh) {
            output.row = row;
            output.aggregates = aggregates.clone();
        }
        *this = fresh;
    }

    /// Goes on with the same row and other aggregates. Cells that may hold aggregates of the old ones are forgotten.
    pub(super) fn regroup(this: &mut Arc<Self>, aggregates: &Arc<Aggregates>, may_aggregate: &[bool]) {
        if let Some(output) = Arc::get_mut(this) {
            if output.scope.get_mut().is_some_and(|scope| !scope.renew(Frame::Row(output.row.clone()), aggregates)) {
                output.scope.take();
            }
            output.aggregates = aggregates.clone();
            for (cell, _) in output.cells.iter_mut().zip(may_aggregate).filter(|(_, may_aggregate)| **may_aggregate) {
                cell.take();
            }
            return;
        }
        let row = this.row.clone();
        let kept: Vec<Option<Value>> = this.cells.iter().map(|cell| cell.get().cloned()).collect();
        Self::start(this, row, aggregates);
        if let Some(output) = Arc::get_mut(this) {
            for ((cell, value), may_aggregate) in output.cells.iter_mut().zip(kept).zip(may_aggregate) {
                cell.take();
                if let (Some(value), false) = (value, may_aggregate) {
                    let _ = cell.set(value);
                }
            }
        }
    }

    /// Lets go of the row: what waits for its end runs now, unless something keeps the row.
    pub(super) fn finish(this: &mut Arc<Self>) {
        match Arc::get_mut(this) {
            Some(output) => {
                if output.scope.get_mut().is_some_and(|scope| !scope.end_row()) {
                    output.scope.take();
                }
                output.row = Value::Null;
                for cell in &mut output.cells {
                    cell.take();
                }
            }
            None => *this = Self::idle(&this.query, &this.base),
        }
    }

    pub(crate) fn row(&self) -> &Value {
        &self.row
    }

    pub(crate) fn base(&self) -> &Scope {
        &self.base
    }

    /// The scope in which the columns of the source row are visible.
    pub(crate) fn scope(&self) -> &Scope {
        self.scope.get_or_init(|| self.base.promoted_with(Frame::Row(self.row.clone()), self.aggregates.clone()))
    }

    pub(crate) fn source_column(&self, name: &str) -> Option<Value> {
        member::column(&self.row, name)
    }

    /// The value of the column at a place, evaluated at most once.
    pub(super) fn cell(this: &Arc<Self>, at: usize) -> Value {
        let (Some(cell), Some(column)) = (this.cells.get(at), this.query.columns.get(at)) else { return Value::Null };
        if let Some(value) = cell.get() {
            return value.clone();
        }
        if let Some(value) = plain_name(&column.kind).and_then(|name| this.source_column(name)).filter(|value| !value.is_unread()) {
            return value;
        }
        let value = evaluate(&column.kind, At::Row(this));
        let _ = cell.set(value.clone());
        value
    }

    pub(super) fn known_cell(&self, at: usize) -> Option<&Value> {
        self.cells.get(at)?.get()
    }

    pub(super) fn set_cell(&self, at: usize, value: Value) {
        if let Some(cell) = self.cells.get(at) {
            let _ = cell.set(value);
        }
    }

    pub(crate) fn column(self: &Arc<Self>, name: &str) -> Option<Value> {
        let at = self.query.columns.iter().rposition(|column| !matches!(column.kind, ColumnKind::Star) && &*column.name == name)?;
        Some(Self::cell(self, at))
    }

    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.query.columns.iter().any(|column| !matches!(column.kind, ColumnKind::Star) && &*column.name == name)
    }

    pub(crate) fn column_names(&self) -> Vec<Key> {
        self.query.columns.iter().filter(|column| !matches!(column.kind, ColumnKind::Star)).map(|column| Key::from(&column.name)).collect()
    }

    /// Whether `WHERE` keeps the row.
    pub(super) fn admitted(this: &Arc<Self>) -> bool {
        let Some(filter) = &this.query.filter else { return true };
        let scope = OnceCell::new();
        let at = At::Output(this, &scope);
        let value = eval::evaluate(filter, at);
        truth(&value, at.scope_for(&value))
    }

    /// What a column gives in results: without queries that are not yet read.
    fn shown(this: &Arc<Self>, at: usize) -> Value {
        let value = match this.known_cell(at) {
            Some(value) => value.clone(),
            None => this.query.columns.get(at).map(|column| evaluate(&column.kind, At::Row(this))).unwrap_or_default(),
        };
        if value.is_unread() { value.materialized(this.scope()) } else { value }
    }
}

/// The name, of a column that is no more than one. It costs less to look it up again than to keep it.
fn plain_name(column: &ColumnKind) -> Option<&str> {
    match column {
        ColumnKind::Expr(Expr { kind: ExprKind::Symbol(Symbol { negated: false, path, args: None }), .. }) => match path.as_slice() {
            [name] => Some(&name.name),
            _ => None,
        },
        _ => None,
    }
}

fn evaluate(column: &ColumnKind, at: At<'_>) -> Value {
    match column {
        ColumnKind::Star => Value::Null,
        ColumnKind::Expr(expr) => eval::evaluate(expr, at).reduced(),
        ColumnKind::Select(query) => {
            let scope = at.scope();
            match scope.deeper() {
                Some(inner) => unwrap_rows(eval::collect_rows(super::open(query, &inner), scope)),
                None => Value::Null,
            }
        }
    }
}

/// A sub-select as a column: single columns stand for themselves, and so does a single row.
fn unwrap_rows(rows: Vec<Value>) -> Value {
    let mut values = rows.into_iter().map(|row| match &row {
        Value::Dict(dict) if dict.len() == 1 => dict.values().next().cloned().unwrap_or_default(),
        _ => row,
    });
    match (values.next(), values.next()) {
        (None, _) => Value::Null,
        (Some(only), None) => only,
        (Some(first), Some(second)) => Value::list([first, second].into_iter().chain(values)),
    }
}

/// Where a value of the result comes from.
#[derive(Clone, Copy)]
enum Pick {
    /// A column of the source row.
    Source(usize),
    /// A column of the query.
    Column(usize),
    /// A column of the query that a later one of the same name replaces: evaluated, not shown.
    Hidden(usize),
}

/// The shape of results and where their values come from; known once for all rows of a source of one shape.
pub(super) struct Layout {
    query: Arc<Select>,
    stars: bool,
    only_star: bool,
    known: Option<Known>,
    /// How often it was made. A source whose rows keep changing shape is not worth it.
    made: u32,
}

struct Known {
    source: Option<Arc<Shape>>,
    shape: Arc<Shape>,
    picks: Vec<Pick>,
}

impl Layout {
    pub(super) fn new(query: &Arc<Select>) -> Self {
        let stars = query.columns.iter().any(|column| matches!(column.kind, ColumnKind::Star));
        Self { query: query.clone(), stars, only_star: stars && query.columns.len() == 1, known: None, made: 0 }
    }

    /// The row that leaves the query.
    pub(super) fn emit(&mut self, output: &Arc<OutputRow>) -> Arc<Dict> {
        if let (true, Value::Dict(row)) = (self.only_star, &output.row)
            && row.is_plain()
            && !row.is_unread()
        {
            return row.clone();
        }
        let source = match &output.row {
            Value::Dict(row) if self.stars => row.shape(),
            _ => None,
        };
        if self.stars && source.is_none() {
            return Arc::new(self.emit_by_name(output));
        }
        let fits = self.known.as_ref().is_some_and(|known| match (&known.source, source) {
            (Some(known), Some(source)) => Arc::ptr_eq(known, source),
            (known, source) => known.is_none() && source.is_none(),
        });
        if !fits {
            const MOST: u32 = 32;
            if self.made >= MOST {
                return Arc::new(self.emit_by_name(output));
            }
            self.made = self.made.saturating_add(1);
            self.known = Some(self.lay_out(source));
        }
        let Some(known) = &self.known else { return Arc::default() };
        let mut values = Vec::with_capacity(known.shape.len());
        for pick in &known.picks {
            match pick {
                Pick::Column(at) => values.push(OutputRow::shown(output, *at)),
                Pick::Hidden(at) => drop(OutputRow::shown(output, *at)),
                Pick::Source(at) => {
                    let value = match &output.row {
                        Value::Dict(row) => row.get_index(*at).map(|(_, value)| value.clone()).unwrap_or_default(),
                        _ => Value::Null,
                    };
                    values.push(if value.is_unread() { value.materialized(output.scope()) } else { value });
                }
            }
        }
        Arc::new(Dict::of_shape(&known.shape, values))
    }

    fn lay_out(&self, source: Option<&Arc<Shape>>) -> Known {
        let mut shown: Vec<(Key, Pick)> = Vec::new();
        for (at, column) in self.query.columns.iter().enumerate() {
            if matches!(column.kind, ColumnKind::Star) {
                for (place, name) in source.iter().flat_map(|shape| shape.keys()).enumerate() {
                    if !shown.iter().any(|(known, pick)| known == name && !matches!(pick, Pick::Hidden(_))) {
                        shown.push((name.clone(), Pick::Source(place)));
                    }
                }
                continue;
            }
            let name = Key::from(&column.name);
            shown.retain_mut(|(known, pick)| match pick {
                Pick::Source(_) if *known == name => false,
                Pick::Column(at) if *known == name => {
                    *pick = Pick::Hidden(*at);
                    true
                }
                _ => true,
            });
            shown.push((name, Pick::Column(at)));
        }
        let names = shown.iter().filter(|(_, pick)| !matches!(pick, Pick::Hidden(_))).map(|(name, _)| name.clone());
        Known { source: source.cloned(), shape: Shape::new(names), picks: shown.iter().map(|(_, pick)| *pick).collect() }
    }

    fn emit_by_name(&self, output: &Arc<OutputRow>) -> Dict {
        let mut out = Dict::with_capacity(self.query.columns.len());
        for (at, column) in self.query.columns.iter().enumerate() {
            if matches!(column.kind, ColumnKind::Star) {
                for name in member::columns(&output.row) {
                    if !out.contains_key(&name) {
                        let value = member::column(&output.row, &name).unwrap_or_default();
                        out.set(name, if value.is_unread() { value.materialized(output.scope()) } else { value });
                    }
                }
            } else {
                out.set(Key::from(&column.name), OutputRow::shown(output, at));
            }
        }
        out
    }
}

/// The rows of a query without `GROUP BY`.
pub(super) fn plain(query: &Arc<Select>, mut source: Rows, scope: &Scope) -> Rows {
    let (query, scope) = (query.clone(), scope.clone());
    let mut layout = Layout::new(&query);
    let mut output = OutputRow::idle(&query, &scope);
    let aggregates = scope.aggregates().clone();
    Rows::from_fn(move || {
        loop {
            let row = match source.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            if scope.is_deepest() {
                scope.log_overflow(&query);
                return None;
            }
            OutputRow::start(&mut output, row, &aggregates);
            if !OutputRow::admitted(&output) {
                if scope.explains() && !scope.cancelled() {
                    let row = super::explain_row(&member::row_to_dict(output.row()));
                    scope.log(format!("DEBUG: SELECT: rejected row: {row}"));
                }
                OutputRow::finish(&mut output);
                if scope.cancelled() {
                    return None;
                }
                continue;
            }
            let row = layout.emit(&output);
            OutputRow::finish(&mut output);
            if scope.cancelled() {
                return None;
            }
            if scope.explains() {
                scope.log(format!("DEBUG: SELECT: emitting row: {}", super::explain_row(&row)));
            }
            return Some(Ok(Value::Dict(row)));
        }
    })
}
