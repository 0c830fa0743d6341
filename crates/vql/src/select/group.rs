//! `GROUP BY`: each group keeps its aggregates and its last row. What does not fit into memory waits on disk for its turn.

use std::borrow::Borrow;
use std::cell::OnceCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::output::{Layout, OutputRow};
use crate::ast::{ArgValue, ColumnKind, Expr, ExprKind, LetBody, Select};
use crate::at::At;
use crate::dict::Map;
use crate::error::CallError;
use crate::eval;
use crate::rows::Rows;
use crate::scope::{Aggregates, Binding, Scope};
use crate::signature::Kind;
use crate::spill::{Reader, Writer};
use crate::value::Value;

/// What a group costs beside its row and its key.
const OVERHEAD: u64 = 320;

struct Group {
    aggregates: Arc<Aggregates>,
    row: Value,
    /// The columns that were evaluated for the last row; the others are evaluated when it is shown.
    cells: Vec<Option<Value>>,
}

/// What is known of the columns before the first row.
struct Columns {
    /// May call an aggregate: a value of one group must not be taken for another's.
    aggregates: Vec<bool>,
    /// Calls something: must be evaluated for every row. Others are for the last row of a group only.
    calls: Vec<bool>,
}

pub(super) fn grouped(query: &Arc<Select>, source: Rows, scope: &Scope) -> Rows {
    let (query, scope) = (query.clone(), scope.clone());
    let columns = Columns {
        aggregates: query.columns.iter().map(|column| matches!(&column.kind, ColumnKind::Expr(expr) if aggregates(expr, &scope))).collect(),
        calls: query
            .columns
            .iter()
            .map(|column| match &column.kind {
                ColumnKind::Star => false,
                ColumnKind::Select(_) => true,
                ColumnKind::Expr(expr) => calls(expr, &scope),
            })
            .collect(),
    };
    let mut layout = Layout::new(&query);
    let mut output = OutputRow::idle(&query, &scope);
    let mut pending = Some(Input::Source(source));
    let mut groups = Groups::default().into_values();
    Rows::from_fn(move || {
        loop {
            if scope.cancelled() {
                return None;
            }
            let Some(group) = groups.next() else {
                // None are left here: those that wait on disk have their turn.
                match collect(&query, &columns, pending.take()?, &scope) {
                    Ok((collected, rest)) => {
                        groups = collected.into_values();
                        pending = rest.map(Input::Spilled);
                    }
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            OutputRow::start(&mut output, group.row, &group.aggregates);
            for (at, cell) in group.cells.into_iter().enumerate() {
                if let Some(value) = cell {
                    output.set_cell(at, value);
                }
            }
            let row = layout.emit(&output);
            OutputRow::finish(&mut output);
            if scope.explains() {
                scope.log(format!("DEBUG: SELECT: emitting row: {}", super::explain_row(&row)));
            }
            return Some(Ok(Value::Dict(row)));
        }
    })
}

/// Where the rows to be grouped come from.
enum Input {
    Source(Rows),
    /// Rows that found no room before: `WHERE` has let them through, and their keys are known.
    Spilled(Reader),
}

type Groups = Map<GroupKey, Group>;

/// The bytes of a key; short ones, which most are, without an allocation of their own.
#[derive(Clone)]
enum GroupKey {
    Short(u8, [u8; GroupKey::SHORT]),
    Long(Box<[u8]>),
}

impl GroupKey {
    const SHORT: usize = 22;

    fn new(bytes: &[u8]) -> Self {
        let mut short = [0; Self::SHORT];
        match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(bytes);
                Self::Short(length, short)
            }
            _ => Self::Long(bytes.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for GroupKey {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for GroupKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for GroupKey {}

impl Hash for GroupKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

fn on_disk(error: &std::io::Error) -> CallError {
    CallError::Failed(format!("ERROR:GROUP BY cannot use the disk: {error}"))
}

fn collect(query: &Arc<Select>, columns: &Columns, mut input: Input, scope: &Scope) -> Result<(Groups, Option<Reader>), CallError> {
    let mut held = scope.hold();
    let mut groups = Groups::default();
    let mut overflow: Option<Writer> = None;
    let mut output = OutputRow::idle(query, scope);
    let own = scope.aggregates().clone();
    let mut key = Vec::new();
    let spill_at = scope.spill_at();
    loop {
        key.clear();
        match &mut input {
            Input::Source(source) => {
                let Some(row) = source.next() else { break };
                if scope.is_deepest() {
                    scope.log_overflow(query);
                    break;
                }
                OutputRow::start(&mut output, row?, &own);
                if !OutputRow::admitted(&output) {
                    OutputRow::finish(&mut output);
                    continue;
                }
                group_key(query, &output, &mut key);
            }
            Input::Spilled(reader) => {
                let Some(record) = reader.next().map_err(|error| on_disk(&error))? else { break };
                let mut record = record.into_iter();
                key.extend_from_slice(record.next().unwrap_or_default().as_bytes().unwrap_or_default());
                OutputRow::start(&mut output, record.next().unwrap_or_default(), &own);
                let known: Vec<i64> =
                    record.next().and_then(|list| Some(list.as_list()?.iter().filter_map(Value::as_int).collect())).unwrap_or_default();
                for (at, value) in known.into_iter().zip(record) {
                    output.set_cell(usize::try_from(at).unwrap_or(usize::MAX), value);
                }
            }
        }
        if scope.stopped() {
            break;
        }
        let mut at = groups.get_index_of(key.as_slice());
        if at.is_none() {
            let weight = output.row().weight().saturating_add(key.len() as u64).saturating_add(OVERHEAD);
            if held.bytes().saturating_add(weight) > spill_at
                && !groups.is_empty()
                && let Some(spill) = scope.spill()
            {
                let writer = match &mut overflow {
                    Some(writer) => writer,
                    None => {
                        scope.log_once(format!("GROUP BY: {} bins exceeded, Switching to slower file based operation", groups.len()));
                        overflow.insert(Writer::create(spill.as_ref()).map_err(|error| on_disk(&error))?)
                    }
                };
                put_aside(writer, &key, &output, columns).map_err(|error| on_disk(&error))?;
                OutputRow::finish(&mut output);
                continue;
            }
            if !held.add(weight) {
                break;
            }
            at = Some(groups.len());
            groups.insert(GroupKey::new(&key), Group { aggregates: Arc::default(), row: Value::Null, cells: Vec::new() });
        }
        let Some((_, group)) = at.and_then(|at| groups.get_index_mut(at)) else { continue };
        OutputRow::regroup(&mut output, &group.aggregates, &columns.aggregates);
        group.cells.clear();
        for (at, calls) in columns.calls.iter().enumerate() {
            let value = if *calls { Some(OutputRow::cell(&output, at)) } else { output.known_cell(at).cloned() };
            group.cells.push(value);
        }
        group.row = output.row().clone();
        OutputRow::finish(&mut output);
    }
    let rest = overflow.map(|writer| writer.finish().map(|run| run.read())).transpose().map_err(|error| on_disk(&error))?;
    Ok((groups, rest))
}

/// Writes a row with its key, and with what `WHERE` and the key have evaluated of it.
fn put_aside(writer: &mut Writer, key: &[u8], output: &Arc<OutputRow>, columns: &Columns) -> std::io::Result<()> {
    let cells: Vec<(usize, Value)> = columns
        .aggregates
        .iter()
        .enumerate()
        .filter(|(_, aggregates)| !**aggregates)
        .filter_map(|(at, _)| Some((at, output.known_cell(at)?.clone())))
        .collect();
    let places = Value::list(cells.iter().map(|(at, _)| Value::from(*at)));
    let row = output.row().clone();
    let row = if row.is_unread() { row.materialized(output.scope()) } else { row };
    writer.push([&Value::Bytes(key.into()), &row, &places].into_iter().chain(cells.iter().map(|(_, value)| value)))
}

fn group_key(query: &Arc<Select>, output: &Arc<OutputRow>, key: &mut Vec<u8>) {
    let Some(by) = &query.group_by else { return };
    let scope = OnceCell::new();
    let at = At::Output(output, &scope);
    let value = eval::evaluate(by, at);
    let value = if value.is_unread() { value.materialized(at.scope()) } else { value };
    structural(&value, key);
}

/// A key that is equal for equal values only.
fn structural(value: &Value, key: &mut Vec<u8>) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        key.push(tag);
        key.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        key.extend_from_slice(bytes);
    };
    match value {
        Value::Int(number) => integer(*number, key),
        Value::UInt(number) => match i64::try_from(*number) {
            Ok(number) => integer(number, key),
            Err(_) => tagged(b'u', &number.to_be_bytes()),
        },
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e18 => integer(*number as i64, key),
        Value::Null => tagged(b'n', &[]),
        Value::Str(_) | Value::Bytes(_) => tagged(b's', value.as_bytes().unwrap_or_default()),
        Value::List(items) => {
            tagged(b'l', &(items.len() as u64).to_be_bytes());
            for item in items.iter() {
                structural(item, key);
            }
        }
        Value::Time(time) => tagged(b't', &time.unix_nanos().to_be_bytes()),
        other => tagged(b'j', crate::json::encode(other).as_bytes()),
    }
}

/// Numbers that are equal have one key, whatever their kinds.
fn integer(number: i64, key: &mut Vec<u8>) {
    key.push(b'i');
    key.extend_from_slice(&number.to_be_bytes());
}

/// Whether an expression may call an aggregate in the caller's context. Unsure is yes.
fn aggregates(expr: &Expr, scope: &Scope) -> bool {
    any_symbol(expr, &mut |name, called| {
        if called {
            scope.registry().signature(Kind::Function, name).is_some_and(|signature| signature.aggregate)
        } else {
            is_stored_expression(name, scope)
        }
    })
}

/// Whether evaluating an expression may do anything but look at values.
fn calls(expr: &Expr, scope: &Scope) -> bool {
    any_symbol(expr, &mut |name, called| called || is_stored_expression(name, scope))
}

fn is_stored_expression(name: &str, scope: &Scope) -> bool {
    matches!(scope.lookup(name), Some(Binding::Let(definition)) if matches!(definition.body, LetBody::Expr(_)))
}

/// Whether `wanted` holds for any symbol, told its first name and whether it is called. Queries inside are not looked at.
fn any_symbol(expr: &Expr, wanted: &mut impl FnMut(&str, bool) -> bool) -> bool {
    match &expr.kind {
        ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => false,
        ExprKind::Symbol(symbol) => {
            let name = match symbol.path.as_slice() {
                [name] => &*name.name,
                [name, ..] if symbol.args.is_none() => &*name.name,
                _ => "",
            };
            wanted(name, symbol.args.is_some())
                || symbol.args.iter().flatten().any(|arg| match &arg.value {
                    ArgValue::Expr(expr) => any_symbol(expr, wanted),
                    ArgValue::Array { items, .. } => items.iter().any(|item| any_symbol(item, wanted)),
                    ArgValue::Select(_) => false,
                })
        }
        ExprKind::Tuple { items, .. } => items.iter().any(|item| any_symbol(item, wanted)),
        ExprKind::Paren(inner) | ExprKind::Not(inner) | ExprKind::Member { object: inner, .. } => any_symbol(inner, wanted),
        ExprKind::Index { object, index } => any_symbol(object, wanted) || any_symbol(index, wanted),
        ExprKind::Slice { object, from, to } => any_symbol(object, wanted) || from.iter().chain(to).any(|bound| any_symbol(bound, wanted)),
        ExprKind::Binary { left, right, .. } => any_symbol(left, wanted) || any_symbol(right, wanted),
        ExprKind::And { first, rest } | ExprKind::Or { first, rest } => {
            any_symbol(first, wanted) || rest.iter().any(|(_, operand)| any_symbol(operand, wanted))
        }
    }
}
