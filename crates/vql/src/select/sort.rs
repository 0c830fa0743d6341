//! `ORDER BY`: stable, by the order of all values; with a `LIMIT` no more is kept than is asked for, and what does not fit into memory goes to disk.

use std::cmp::Ordering;

use crate::ast::OrderBy;
use crate::budget::Held;
use crate::error::CallError;
use crate::member;
use crate::ops::order;
use crate::rows::Rows;
use crate::scope::Scope;
use crate::spill::{Reader, Run, Writer};
use crate::value::Value;

/// A row before it: its key.
type Keyed = (Value, Value);
/// Runs on disk that are merged at one time.
const MAX_RUNS: usize = 64;
/// Below so many rows nothing is dropped early.
const MIN_KEPT: usize = 1024;

/// The rows of `source` in order; at most `limit` of them.
pub(super) fn sorted(by: OrderBy, limit: Option<usize>, source: Rows, scope: &Scope) -> Rows {
    let scope = scope.clone();
    let mut pending = Some((by, source));
    let mut ordered = Ordered::None;
    let mut held = scope.hold();
    Rows::from_fn(move || {
        if let Some((by, source)) = pending.take() {
            match collect(&by, limit, source, &scope, &mut held) {
                Ok(rows) => ordered = rows,
                Err(error) => return Some(Err(error)),
            }
        }
        if scope.cancelled() {
            return None;
        }
        match &mut ordered {
            Ordered::None => None,
            Ordered::Memory(rows) => rows.next().map(|(_, row)| Ok(row)),
            Ordered::Disk(merge) => match merge.next() {
                Ok(row) => row.map(|(_, row)| Ok(row)),
                Err(error) => Some(Err(on_disk(&error))),
            },
        }
    })
}

enum Ordered {
    None,
    Memory(std::vec::IntoIter<Keyed>),
    Disk(Merge),
}

fn on_disk(error: &std::io::Error) -> CallError {
    CallError::Failed(format!("ERROR:ORDER BY cannot use the disk: {error}"))
}

fn collect(by: &OrderBy, limit: Option<usize>, source: Rows, scope: &Scope, held: &mut Held) -> Result<Ordered, CallError> {
    let keep = limit.map(|limit| limit.saturating_mul(2).max(MIN_KEPT));
    let spill_at = scope.spill_at();
    let mut rows: Vec<Keyed> = Vec::new();
    let mut runs: Vec<Run> = Vec::new();
    for row in source {
        let row = row?;
        if !held.add(row.weight().saturating_add(24)) {
            break;
        }
        let key = member::column(&row, &by.column.name).unwrap_or_else(|| {
            scope.log_once(format!("Order by column {} not present in row", by.column.name));
            Value::Null
        });
        rows.push((key, row));
        if keep.is_some_and(|keep| rows.len() >= keep) {
            sort(&mut rows, by.descending);
            rows.truncate(limit.unwrap_or_default());
            held.reset(rows.iter().map(|(_, row)| row.weight().saturating_add(24)).fold(0, u64::saturating_add));
        }
        if held.bytes() > spill_at
            && let Some(spill) = scope.spill()
        {
            sort(&mut rows, by.descending);
            let mut write = || {
                let mut writer = Writer::create(spill.as_ref())?;
                for (key, row) in rows.drain(..) {
                    writer.push([&key, &row])?;
                }
                runs.push(writer.finish()?);
                if runs.len() >= MAX_RUNS {
                    let mut merge = Merge::new(&std::mem::take(&mut runs), by.descending)?;
                    let mut writer = Writer::create(spill.as_ref())?;
                    while let Some((key, row)) = merge.next()? {
                        if scope.stopped() {
                            break;
                        }
                        writer.push([&key, &row])?;
                    }
                    runs.push(writer.finish()?);
                }
                Ok(())
            };
            write().map_err(|error| on_disk(&error))?;
            held.reset(0);
        }
        if scope.stopped() {
            break;
        }
    }
    sort(&mut rows, by.descending);
    if runs.is_empty() {
        return Ok(Ordered::Memory(rows.into_iter()));
    }
    let mut merge = Merge::new(&runs, by.descending).map_err(|error| on_disk(&error))?;
    merge.add_memory(rows);
    Ok(Ordered::Disk(merge))
}

/// Sorts by keys, which are mostly all of one kind.
fn sort(rows: &mut [Keyed], descending: bool) {
    let directed = |ordering: Ordering| if descending { ordering.reverse() } else { ordering };
    if rows.iter().all(|(key, _)| matches!(key, Value::Int(_))) {
        let number = |row: &Keyed| match row.0 {
            Value::Int(number) => number,
            _ => 0,
        };
        rows.sort_by(|left, right| directed(number(left).cmp(&number(right))));
    } else if rows.iter().all(|(key, _)| matches!(key, Value::Str(_))) {
        rows.sort_by(|left, right| directed(left.0.as_bytes().cmp(&right.0.as_bytes())));
    } else {
        rows.sort_by(|left, right| directed(order(&left.0, &right.0)));
    }
}

/// Several sorted sequences as one. Of equal keys, those of an earlier sequence come first.
struct Merge {
    inputs: Vec<Input>,
    descending: bool,
}

struct Input {
    head: Option<Keyed>,
    rest: Source,
}

enum Source {
    Disk(Reader),
    Memory(std::vec::IntoIter<Keyed>),
}

impl Input {
    fn advance(&mut self) -> std::io::Result<Option<Keyed>> {
        let next = match &mut self.rest {
            Source::Memory(rows) => rows.next(),
            Source::Disk(reader) => reader.next()?.map(|record| {
                let mut values = record.into_iter();
                (values.next().unwrap_or_default(), values.next().unwrap_or_default())
            }),
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}

impl Merge {
    fn new(runs: &[Run], descending: bool) -> std::io::Result<Self> {
        let mut inputs: Vec<Input> = runs.iter().map(|run| Input { head: None, rest: Source::Disk(run.read()) }).collect();
        for input in &mut inputs {
            input.advance()?;
        }
        Ok(Self { inputs, descending })
    }

    fn add_memory(&mut self, rows: Vec<Keyed>) {
        let mut rest = rows.into_iter();
        self.inputs.push(Input { head: rest.next(), rest: Source::Memory(rest) });
    }

    fn next(&mut self) -> std::io::Result<Option<Keyed>> {
        let mut best: Option<(usize, &Value)> = None;
        for (at, input) in self.inputs.iter().enumerate() {
            let Some((key, _)) = &input.head else { continue };
            let better = best.is_none_or(|(_, known)| {
                let ordering = order(key, known);
                (if self.descending { ordering.reverse() } else { ordering }) == Ordering::Less
            });
            if better {
                best = Some((at, key));
            }
        }
        let Some(at) = best.map(|(at, _)| at) else { return Ok(None) };
        self.inputs.get_mut(at).map_or(Ok(None), Input::advance)
    }
}
