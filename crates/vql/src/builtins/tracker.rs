//! The process tracker: which processes there are and were, fed by queries, asked by id. It holds what processes left behind when they ended, and
//! gives an id that was used again to its newest holder.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;

use super::later::beside;
use crate::args;
use crate::arguments::moment;
use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::lambda::Lambda;
use crate::member::{column, row_to_dict};
use crate::registry::Registry;
use crate::rows::{Rows, StoredQuery};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::time::Time;
use crate::value::{Text, Value};

/// Processes that are remembered unless the call says otherwise.
const MAX_SIZE: usize = 10_000;
/// The most that a call may ask for.
const MAX_ALLOWED: usize = 1_000_000;
/// Milliseconds between two full looks unless the call says otherwise.
const SYNC_PERIOD: i64 = 5000;
/// How many generations and children are given unless the call says otherwise.
const MAX_ITEMS: usize = 1000;
/// Updates that wait for a slow listener; what comes on top is dropped.
const WAITING: usize = 10_000;
/// The most listeners.
const MAX_LISTENERS: usize = 100;

/// The process tracker of this host, for all its queries: an extension of the environment. Without it a tracker serves its own query only.
#[derive(Default)]
pub struct ProcessTracker(Mutex<Option<Arc<Tracker>>>);

/// A running tracker.
struct Tracker {
    known: Mutex<Known>,
    enrichments: Vec<Arc<Lambda>>,
    max_size: usize,
    max_expiry: Option<Duration>,
}

#[derive(Default)]
struct Known {
    /// By id, in the order in which they were seen first.
    processes: IndexMap<String, Process>,
    listeners: Vec<SyncSender<Value>>,
}

/// One process.
#[derive(Clone)]
struct Process {
    parent: String,
    start: Time,
    synced: Time,
    end: Time,
    data: Value,
    enriched: bool,
}

pub(super) fn register(registry: &mut Registry) {
    const ID: Arg = Arg::required("id", ArgType::String, "The id of the process.");
    const ITEMS: Arg = Arg::optional("max_items", ArgType::Int, "At most so many; 1000 unless given.");
    registry.function(
        Signature::function("process_tracker", "Starts the process tracker, which the other functions ask from then on.")
            .args(args![
                Arg::optional(
                    "sync_query",
                    ArgType::Query,
                    "All processes, with the columns id, parent_id, start_time, end_time and data."
                ),
                Arg::optional("sync_period", ArgType::Int, "Milliseconds between two runs of it; 5000 unless given."),
                Arg::optional("update_query", ArgType::Query, "Events, with the further column update_type: start or exit."),
                Arg::optional("max_size", ArgType::UInt, "How many processes are remembered; 10000 unless given."),
                Arg::optional(
                    "max_expiry",
                    ArgType::UInt,
                    "Seconds for which a process is remembered after its end; for ever unless given."
                ),
                Arg::optional("enrichments", ArgType::Strings, "Lambdas of a process that give dicts; these are merged into its data."),
                Arg::optional("cache", ArgType::String, "Not used: the tracker is in memory."),
            ])
            .version(2),
        start,
    );
    registry.function(Signature::function("process_tracker_all", "All processes of the tracker."), |call| {
        let tracker = Source::of(call.scope());
        Ok(Value::list(tracker.ids(call.scope()).into_iter().filter_map(|id| tracker.shown(&id, call.scope()))))
    });
    registry.function(Signature::function("process_tracker_get", "A process of the tracker.").args(args![ID, ITEMS]).version(2), |call| {
        Ok(Source::of(call.scope()).shown(&call.string("id"), call.scope()).unwrap_or_default())
    });
    registry.function(
        Signature::function("process_tracker_callchain", "A process after all those that led to it, the first one first.")
            .args(args![ID, ITEMS])
            .version(2),
        |call| {
            let source = Source::of(call.scope());
            let chain = source.chain(&call.string("id"), items(&call), call.scope());
            Ok(Value::list(chain.into_iter().rev().filter_map(|id| source.shown(&id, call.scope()))))
        },
    );
    registry.function(
        Signature::function("process_tracker_children", "The processes that a process started.").args(args![ID, ITEMS]).version(2),
        |call| {
            let source = Source::of(call.scope());
            let children = source.children(&call.string("id"), call.scope());
            Ok(Value::list(children.into_iter().take(items(&call)).filter_map(|id| source.shown(&id, call.scope()))))
        },
    );
    registry.function(
        Signature::function("process_tracker_tree", "A process with all that came of it, as a tree of name, id, data and children.")
            .args(args![
                Arg::optional("id", ArgType::String, "The root; all processes that have no known parent unless given."),
                Arg::optional("data_callback", ArgType::Lambda, "Makes what stands as data, out of the process."),
                ITEMS,
            ])
            .version(2),
        tree,
    );
    registry.plugin(Signature::plugin("process_tracker_pslist", "All processes of the tracker, with the columns of pslist()."), |call| {
        let scope = call.scope().clone();
        let source = Source::of(&scope);
        let Source::Tracker(tracker) = source else { return Ok(live(None, &scope)) };
        let ids = Source::Tracker(tracker.clone()).ids(&scope);
        Ok(Rows::of(ids.into_iter().filter_map(move |id| tracker.pslist_row(&id, &scope))))
    });
    registry.plugin(
        Signature::plugin("process_tracker_updates", "What the tracker learns, as it learns it: update_type is start or exit."),
        updates,
    );
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn items(call: &Call) -> usize {
    call.opt_int("max_items").and_then(|items| usize::try_from(items).ok()).filter(|items| *items > 0).unwrap_or(MAX_ITEMS)
}

/// Where the tracker of this scope is kept.
fn place(scope: &Scope) -> Arc<ProcessTracker> {
    scope.extension::<ProcessTracker>().unwrap_or_else(|| scope.shared::<ProcessTracker>())
}

fn start(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let mut enrichments = Vec::new();
    for text in call.texts("enrichments") {
        enrichments.push(scope.lambda(&text).ok_or("enrichments must be lambdas of one parameter")?);
    }
    let tracker = Arc::new(Tracker {
        known: Mutex::default(),
        enrichments,
        max_size: call
            .opt_uint("max_size")
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| *size > 0)
            .unwrap_or(MAX_SIZE)
            .min(MAX_ALLOWED),
        max_expiry: call.opt_uint("max_expiry").filter(|seconds| *seconds > 0).map(Duration::from_secs),
    });
    let period = call.opt_int("sync_period").filter(|millis| *millis > 0).unwrap_or(SYNC_PERIOD).unsigned_abs().max(100);
    if let Some(query) = call.query("sync_query") {
        tracker.sync(&query, scope);
        let tracker = tracker.clone();
        beside(scope, "vql tracker sync", move |scope| {
            while !scope.sleep(Duration::from_millis(period)) {
                tracker.sync(&query, scope);
                if !scope.environment().clock.waits() {
                    return;
                }
            }
        })?;
    }
    if let Some(query) = call.query("update_query") {
        let tracker = tracker.clone();
        beside(scope, "vql tracker updates", move |scope| {
            for row in query.open(scope) {
                let Ok(row) = row else { return };
                tracker.update(&row.materialized(scope), scope);
            }
        })?;
    }
    let place = place(scope);
    *locked(&place.0) = Some(tracker.clone());
    let weak = Arc::downgrade(&place);
    // A tracker that nobody feeds any more would answer with the past.
    scope.on_query_close(move || {
        if let Some(place) = weak.upgrade() {
            let mut current = locked(&place.0);
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &tracker)) {
                *current = None;
            }
        }
    });
    Ok(Value::opaque())
}

fn field(row: &Value, names: &[&str]) -> Option<Value> {
    names.iter().find_map(|name| column(row, name)).filter(|value| !value.is_null())
}

fn id_of(row: &Value) -> Option<String> {
    field(row, &["id", "Pid"]).map(|id| display(&id)).filter(|id| !id.is_empty())
}

fn time_of(row: &Value, names: &[&str], scope: &Scope) -> Option<Time> {
    moment(&field(row, names)?, scope).filter(|time| !time.is_zero())
}

fn data_of(row: &Value) -> Value {
    field(row, &["data"]).unwrap_or_else(|| Value::Dict(row_to_dict(row)))
}

impl Tracker {
    /// Takes a full look: what is there, and what is no longer there.
    fn sync(&self, query: &StoredQuery, scope: &Scope) {
        let now = scope.now();
        let mut seen = std::collections::HashSet::new();
        let first = locked(&self.known).processes.is_empty();
        for row in query.open(scope) {
            let Ok(row) = row else { break };
            let row = row.materialized(scope);
            let Some(id) = id_of(&row) else { continue };
            self.started(&id, &row, now, !first, scope);
            if seen.len() < self.max_size {
                seen.insert(id);
            }
        }
        if scope.stopped() {
            return;
        }
        let gone: Vec<String> = {
            let known = locked(&self.known);
            known
                .processes
                .iter()
                .filter(|(id, process)| process.end.is_zero() && process.synced < now && !seen.contains(*id))
                .map(|(id, _)| id.clone())
                .collect()
        };
        gone.iter().for_each(|id| self.ended(id, now));
        self.forget(now);
    }

    /// Takes an event.
    fn update(&self, row: &Value, scope: &Scope) {
        let Some(id) = id_of(row) else { return };
        match field(row, &["update_type"]).map(|kind| display(&kind)).as_deref() {
            Some("exit" | "end") => self.ended(&id, time_of(row, &["end_time"], scope).unwrap_or_else(|| scope.now())),
            _ => self.started(&id, row, scope.now(), true, scope),
        }
        self.forget(scope.now());
    }

    fn started(&self, id: &str, row: &Value, now: Time, announce: bool, scope: &Scope) {
        let parent = field(row, &["parent_id", "Ppid"]).map(|id| display(&id)).unwrap_or_default();
        let start = time_of(row, &["start_time", "CreateTime"], scope).unwrap_or(Time::ZERO);
        let end = time_of(row, &["end_time"], scope).unwrap_or(Time::ZERO);
        let data = data_of(row);
        if !scope.has_room_for(data.weight()) {
            return;
        }
        let mut known = locked(&self.known);
        if let Some(holder) = known.processes.get_mut(id) {
            let same = holder.start == start || start.is_zero() || holder.start.is_zero();
            if same && holder.end.is_zero() {
                holder.synced = now;
                if !end.is_zero() {
                    holder.end = end;
                }
                return;
            }
            if same && !end.is_zero() {
                return;
            }
            known.rename(id);
        }
        let process = Process { parent, start, synced: now, end, data, enriched: false };
        if announce {
            known.announce("start", id, &process);
        }
        known.processes.insert(id.to_owned(), process);
    }

    fn ended(&self, id: &str, at: Time) {
        let mut known = locked(&self.known);
        let Some(process) = known.processes.get_mut(id).filter(|process| process.end.is_zero()) else { return };
        process.end = at;
        let process = process.clone();
        known.announce("exit", id, &process);
    }

    /// Drops what is too old and what is too much, ended processes first.
    fn forget(&self, now: Time) {
        let mut known = locked(&self.known);
        if let Some(expiry) = self.max_expiry {
            let expiry = i128::try_from(expiry.as_nanos()).unwrap_or(i128::MAX);
            known
                .processes
                .retain(|_, process| process.end.is_zero() || now.unix_nanos().saturating_sub(process.end.unix_nanos()) < expiry);
        }
        let mut surplus = known.processes.len().saturating_sub(self.max_size);
        known.processes.retain(|_, process| {
            let goes = surplus > 0 && !process.end.is_zero();
            surplus = surplus.saturating_sub(usize::from(goes));
            !goes
        });
        while known.processes.len() > self.max_size {
            known.processes.shift_remove_index(0);
        }
    }

    fn process(&self, id: &str, scope: &Scope) -> Option<Process> {
        let process = locked(&self.known).processes.get(id).cloned()?;
        if process.enriched || self.enrichments.is_empty() {
            return Some(process);
        }
        // Enrichments are queries: they may ask the tracker, so that it is not locked meanwhile.
        let mut process = Process { enriched: true, ..process };
        if let Some(known) = locked(&self.known).processes.get_mut(id) {
            known.enriched = true;
        }
        for enrichment in &self.enrichments {
            if let Value::Dict(more) = enrichment.call(scope, &[shown(id, &process)]).materialized(scope) {
                let mut data = Dict::clone(&row_to_dict(&process.data));
                more.iter().for_each(|(name, value)| data.update(name.clone(), value.clone()));
                process.data = data.into();
            }
        }
        if let Some(known) = locked(&self.known).processes.get_mut(id) {
            known.data = process.data.clone();
        }
        Some(process)
    }

    fn pslist_row(&self, id: &str, scope: &Scope) -> Option<Value> {
        let process = self.process(id, scope)?;
        let number = |text: &str| text.parse::<i64>().map_or_else(|_| Value::from(text.to_owned()), Value::from);
        let mut row = Dict::new().ignoring_case().with("Pid", number(id)).with("Ppid", number(&process.parent));
        for (name, value) in row_to_dict(&process.data).iter() {
            if !row.contains_key(name.as_str()) {
                row.set(name.clone(), value.clone());
            }
        }
        row.update("StartTime", process.start);
        row.update("EndTime", process.end);
        row.update("CreateTime", process.start);
        Some(row.into())
    }
}

impl Known {
    /// Moves the process that had `id` before out of the way: its id was given to another.
    fn rename(&mut self, id: &str) {
        let Some(old) = self.processes.get(id).cloned() else { return };
        let name = format!("{id}-{}", old.start.unix());
        for process in self.processes.values_mut().filter(|process| process.parent == id) {
            process.parent.clone_from(&name);
        }
        self.processes.shift_remove(id);
        self.processes.insert(name, old);
    }

    fn announce(&mut self, kind: &str, id: &str, process: &Process) {
        if self.listeners.is_empty() {
            return;
        }
        let event: Value = Dict::new()
            .with("id", id)
            .with("parent_id", process.parent.as_str())
            .with("update_type", kind)
            .with("start_time", process.start)
            .with("end_time", process.end)
            .with("data", process.data.clone())
            .into();
        self.listeners.retain(|listener| !matches!(listener.try_send(event.clone()), Err(TrySendError::Disconnected(_))));
    }
}

fn shown(id: &str, process: &Process) -> Value {
    Dict::new()
        .ignoring_case()
        .with("Id", id)
        .with("ParentId", process.parent.as_str())
        .with("StartTime", process.start)
        .with("LastSyncTime", process.synced)
        .with("EndTime", process.end)
        .with("Data", process.data.clone())
        .into()
}

/// Where answers come from: the tracker, or the processes of this moment when none runs.
enum Source {
    Tracker(Arc<Tracker>),
    Live(IndexMap<String, Process>),
}

/// The rows of `pslist()` as any query gets them; permissions are checked there.
fn live(pid: Option<i64>, scope: &Scope) -> Rows {
    let text = match pid {
        Some(pid) => format!("SELECT * FROM pslist(pid={pid})"),
        None => "SELECT * FROM pslist()".to_owned(),
    };
    match crate::parse_statement(&text) {
        Ok(statement) if scope.registry().find_plugin("pslist").is_some() => crate::query::run(scope, vec![statement]),
        _ => Rows::none(),
    }
}

impl Source {
    fn of(scope: &Scope) -> Self {
        if let Some(tracker) = locked(&place(scope).0).clone() {
            return Self::Tracker(tracker);
        }
        let now = scope.now();
        let mut processes = IndexMap::new();
        for row in live(None, scope).filter_map(Result::ok) {
            let Some(id) = id_of(&row) else { continue };
            let process = Process {
                parent: field(&row, &["Ppid"]).map(|id| display(&id)).unwrap_or_default(),
                start: time_of(&row, &["CreateTime"], scope).unwrap_or(Time::ZERO),
                synced: now,
                end: Time::ZERO,
                data: data_of(&row),
                enriched: true,
            };
            processes.insert(id, process);
        }
        Self::Live(processes)
    }

    fn get(&self, id: &str, scope: &Scope) -> Option<Process> {
        match self {
            Self::Tracker(tracker) => tracker.process(id, scope),
            Self::Live(processes) => processes.get(id).cloned(),
        }
    }

    fn shown(&self, id: &str, scope: &Scope) -> Option<Value> {
        self.get(id, scope).map(|process| shown(id, &process))
    }

    fn parents(&self) -> Vec<(String, String)> {
        let pairs =
            |processes: &IndexMap<String, Process>| processes.iter().map(|(id, process)| (id.clone(), process.parent.clone())).collect();
        match self {
            Self::Tracker(tracker) => pairs(&locked(&tracker.known).processes),
            Self::Live(processes) => pairs(processes),
        }
    }

    fn ids(&self, _: &Scope) -> Vec<String> {
        self.parents().into_iter().map(|(id, _)| id).collect()
    }

    fn children(&self, id: &str, _: &Scope) -> Vec<String> {
        self.parents().into_iter().filter(|(child, parent)| parent == id && child != id).map(|(child, _)| child).collect()
    }

    /// The process, its parent and so on, as far as they are known. Ends where it would go round.
    fn chain(&self, id: &str, most: usize, _: &Scope) -> Vec<String> {
        let parents: HashMap<String, String> = self.parents().into_iter().collect();
        let mut chain: Vec<String> = Vec::new();
        let mut current = Some(id.to_owned());
        while let Some(id) = current.filter(|id| chain.len() < most && parents.contains_key(id) && !chain.contains(id)) {
            current = parents.get(&id).cloned();
            chain.push(id);
        }
        chain
    }
}

fn tree(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let source = Source::of(scope);
    let parents = source.parents();
    let known: std::collections::HashSet<&String> = parents.iter().map(|(id, _)| id).collect();
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut roots = Vec::new();
    for (id, parent) in &parents {
        if known.contains(parent) && parent != id {
            children.entry(parent).or_default().push(id);
        } else {
            roots.push(id.as_str());
        }
    }
    let mut left = items(&call);
    let lambda = call.lambda("data_callback");
    let mut grower = Grower { source: &source, children: &children, lambda, scope };
    if let Some(id) = call.opt_string("id").filter(|id| !id.is_empty()) {
        return Ok(grower.node(&id, 0, &mut left).unwrap_or_default());
    }
    if let [only] = roots.as_slice() {
        return Ok(grower.node(only, 0, &mut left).unwrap_or_default());
    }
    let nodes: Vec<Value> = roots.iter().filter_map(|id| grower.node(id, 1, &mut left)).collect();
    Ok(Dict::new().with("name", "Root").with("id", "0").with("data", Dict::new()).with("children", Value::list(nodes)).into())
}

struct Grower<'a> {
    source: &'a Source,
    children: &'a HashMap<&'a str, Vec<&'a str>>,
    lambda: Option<Arc<Lambda>>,
    scope: &'a Scope,
}

impl Grower<'_> {
    fn node(&mut self, id: &str, depth: u32, left: &mut usize) -> Option<Value> {
        /// As deep as results may nest.
        const DEEPEST: u32 = 30;
        if *left == 0 || depth > DEEPEST || self.scope.stopped() {
            return None;
        }
        let process = self.source.get(id, self.scope)?;
        *left = left.saturating_sub(1);
        let below: Vec<&str> = self.children.get(id).cloned().unwrap_or_default();
        let children: Vec<Value> = below.into_iter().filter_map(|child| self.node(child, depth.saturating_add(1), left)).collect();
        let name = field(&process.data, &["Name", "name"])
            .map_or_else(|| Value::from(id.to_owned()), |name| Value::Str(Text::from(display(&name))));
        let data = match &self.lambda {
            Some(lambda) => lambda.call(self.scope, &[shown(id, &process)]).materialized(self.scope),
            None => process.data.clone(),
        };
        Some(
            Dict::new()
                .with("name", name)
                .with("id", id)
                .with("start_time", process.start)
                .with("end_time", process.end)
                .with("data", data)
                .with("children", Value::list(children))
                .into(),
        )
    }
}

fn updates(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let tracker = locked(&place(&scope).0).clone().ok_or("no process tracker runs; start one with process_tracker()")?;
    let (sender, receiver) = sync_channel(WAITING);
    {
        let mut known = locked(&tracker.known);
        if known.listeners.len() >= MAX_LISTENERS {
            return Err("too many queries listen to the process tracker".into());
        }
        known.listeners.push(sender);
    }
    Ok(listen(receiver, scope))
}

/// What arrives, until nobody sends any more or the query must stop.
fn listen(receiver: Receiver<Value>, scope: Scope) -> Rows {
    const LOOK: Duration = Duration::from_millis(100);
    Rows::from_fn(move || {
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(row) => return Some(Ok(row)),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if scope.sleep(Duration::ZERO) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, Query, json};

    fn rows(scope: &Scope, vql: &str) -> Vec<String> {
        Query::new(scope, &crate::parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    fn tracked(update: &str) -> Scope {
        let scope = Environment::new(Arc::new(Registry::core())).variable("config", Value::Null).open();
        let sync = "SELECT * FROM parse_json_array(data='[{\"id\":1,\"start_time\":10,\"data\":{\"Name\":\"init\"}},{\"id\":2,\"parent_id\":1,\"start_time\":20,\"data\":{\"Name\":\"sh\"}},{\"id\":3,\"parent_id\":2,\"start_time\":30,\"data\":{\"Name\":\"ls\"}}]')";
        rows(
            &scope,
            &format!(
                "LET _ <= process_tracker(sync_query={{ {sync} }}, update_query={{ {update} }}, enrichments='x=>dict(Upper=upcase(string=x.Data.Name))')"
            ),
        );
        scope
    }

    #[test]
    fn chains_children_and_trees() {
        let scope = tracked("SELECT * FROM range(end=0)");
        assert_eq!(
            rows(
                &scope,
                "SELECT join(array=process_tracker_callchain(id=3).Data.Name, sep='/') AS C, process_tracker_children(id=1).Id AS K, process_tracker_get(id=2).Data.Upper AS U, process_tracker_get(id=9) AS N FROM scope()"
            ),
            [r#"{"C":"init/sh/ls","K":["2"],"U":"SH","N":null}"#]
        );
        assert_eq!(
            rows(&scope, "SELECT Pid, Ppid, Name FROM process_tracker_pslist() WHERE Pid = 3"),
            [r#"{"Pid":3,"Ppid":2,"Name":"ls"}"#]
        );
        assert_eq!(
            rows(&scope, "LET T <= process_tracker_tree(data_callback='x=>x.Data.Name')").len()
                + rows(&scope, "SELECT T.name, T.children[0].children[0].data AS Leaf FROM scope() WHERE Leaf = 'ls' AND T.name = 'init'")
                    .len(),
            1
        );
    }

    #[test]
    fn an_id_that_is_used_again_belongs_to_its_newest_holder() {
        let update = "SELECT * FROM parse_json_array(data='[{\"id\":3,\"update_type\":\"exit\",\"end_time\":35},{\"id\":2,\"parent_id\":1,\"update_type\":\"start\",\"start_time\":40,\"data\":{\"Name\":\"vi\"}}]')";
        let scope = tracked(update);
        let settled = || rows(&scope, "SELECT process_tracker_get(id=2).Data.Name AS N FROM scope()") == [r#"{"N":"vi"}"#];
        for _ in 0..500 {
            if settled() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(settled());
        assert_eq!(
            rows(&scope, "SELECT process_tracker_callchain(id=3).Id AS C, process_tracker_get(id=3).EndTime AS E FROM scope()"),
            [r#"{"C":["1","2-20","3"],"E":"1970-01-01T00:00:35Z"}"#]
        );
    }
}
