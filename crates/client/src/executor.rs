//! What the server asks for: collections run, are cancelled and reported on; event tables are handed on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{FlowRequest, FlowStats, VeloMessage, VeloStatus};
use talon_vql::{CancelToken, Clock, spawn_query_thread};

use crate::events::EventQueries;
use crate::flow::{ActionLimits, Flow, FlowDefaults, FlowSettings, error_message, micros, stats_message};
use crate::query::{Action, Engine, Sink};
use crate::upload::ActionSink;
use crate::{ClientError, Outbox};

/// Finished flows whose statistics are remembered (spec 01 §16).
const REMEMBERED: usize = 20;
/// Flows that run or wait; a server keeps far fewer in flight.
const MAX_FLOWS: usize = 200;
/// Longest wait for a slot.
const SLOT_PATIENCE: Duration = Duration::from_secs(3600);
/// How often a flow looks at the clock.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 200 });

/// Runs what the server asks for.
pub struct Executor(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    defaults: FlowDefaults,
    slots: Slots,
    flows: Mutex<Flows>,
    events: EventQueries,
    killed: AtomicBool,
    running: AtomicUsize,
}

#[derive(Default)]
struct Flows {
    running: BTreeMap<String, Arc<Flow>>,
    finished: VecDeque<(String, FlowStats)>,
}

impl Executor {
    /// An executor for `concurrency` flows at a time. `events` run beside them.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        outbox: Arc<Outbox>,
        clock: Arc<dyn Clock>,
        defaults: FlowDefaults,
        concurrency: usize,
        events: EventQueries,
    ) -> Self {
        Self(Arc::new(Inner {
            engine,
            outbox,
            clock,
            defaults,
            slots: Slots::new(concurrency.max(1)),
            flows: Mutex::default(),
            events,
            killed: AtomicBool::new(false),
            running: AtomicUsize::new(0),
        }))
    }

    /// Does what one message of the verified server says (spec 01 §10.4). Returns at once, except that answers wait while the outbox is full.
    pub fn handle(&self, message: VeloMessage) {
        let inner = &self.0;
        let session = message.session_id;
        if let Some(request) = message.flow_request {
            inner.start(&session, request, message.urgent);
        } else if message.cancel.is_some() {
            inner.cancel(&session);
        } else if let Some(table) = message.update_event_table {
            inner.events.update(table);
        } else if let Some(request) = message.flow_stats_request {
            request.flow_id.iter().for_each(|flow| inner.report(flow));
        } else if message.kill_kill_kill.is_some() {
            tracing::warn!("the server asked this agent to restart");
            inner.killed.store(true, Ordering::Release);
        } else if message.vql_client_action.is_none() && message.update_foreman.is_none() {
            // Stock servers send legacy copies of each action, and agents of this age pass them over.
            let what = if message.resume_transactions.is_some() { "ResumeTransactions" } else { "unknown" };
            inner.outbox.push(&error_message(&session, &format!("Unsupported payload for message: {what}"), micros(&*inner.clock)));
        }
    }

    /// The version of the event table that runs.
    #[must_use]
    pub fn event_table_version(&self) -> u64 {
        self.0.events.version()
    }

    /// Whether the server asked the agent to end itself.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.0.killed.load(Ordering::Acquire)
    }

    /// Threads of flows that still run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Stops everything without a word to the server: it will ask, and be told that the flows are not known.
    pub fn stop(&self) {
        self.0.events.stop();
        lock(&self.0.flows).running.values().for_each(|flow| flow.cancel.cancel("the agent shuts down"));
    }
}

impl Inner {
    fn start(self: &Arc<Self>, session: &str, request: FlowRequest, urgent: bool) {
        let settings = FlowSettings::of_request(session, &request, &self.defaults);
        let actions = request.vql_client_actions;
        let limits: Vec<_> = actions.iter().map(|args| ActionLimits::of(args, &self.defaults)).collect();
        let (outbox, clock) = (Arc::clone(&self.outbox), Arc::clone(&self.clock));
        let flow = Arc::new(Flow::new(settings, &limits, outbox, clock, Arc::new(AtomicI64::new(0)), CancelToken::new()));
        {
            let mut flows = lock(&self.flows);
            let known = flows.running.contains_key(session) || flows.finished.iter().any(|(finished, _)| finished == session);
            if known || flows.running.len() >= MAX_FLOWS {
                tracing::warn!(session, known, "a collection was not started: it is known already, or too many run");
                return;
            }
            flows.running.insert(session.to_owned(), Arc::clone(&flow));
        }
        let inner = Arc::clone(self);
        self.running.fetch_add(1, Ordering::AcqRel);
        let started = thread::Builder::new().name("flow".to_owned()).spawn({
            let flow = Arc::clone(&flow);
            move || {
                inner.supervise(&flow, actions, urgent);
                inner.running.fetch_sub(1, Ordering::AcqRel);
            }
        });
        if let Err(error) = started {
            self.running.fetch_sub(1, Ordering::AcqRel);
            self.end(&flow, Some(&ClientError::System(Arc::new(error)).to_string()), limits.len());
        }
    }

    /// The life of a flow: wait for a slot, run its actions side by side, look at the clock, report the end.
    fn supervise(&self, flow: &Arc<Flow>, actions: Vec<talon_proto::VqlCollectorArgs>, urgent: bool) {
        let count = actions.len();
        let slot = if urgent { Ok(None) } else { self.slots.take(&flow.cancel, SLOT_PATIENCE).map(Some) };
        let _slot = match slot {
            Ok(slot) => slot,
            Err(Waited::Cancelled) => return self.end(flow, None, count),
            Err(Waited::TooLong) => return self.end(flow, Some("The collection waited too long for other collections to end"), count),
        };
        let (ended, ends) = mpsc::channel();
        let mut threads = Vec::with_capacity(count);
        for (at, args) in actions.into_iter().enumerate() {
            flow.start(at);
            let action = Action { session: flow.settings.session.clone(), args, cancel: flow.action_cancel(at) };
            let (engine, flow_of_action, clock) = (Arc::clone(&self.engine), Arc::clone(flow), Arc::clone(&self.clock));
            let ended = ended.clone();
            let work = move || {
                run_action(&*engine, &flow_of_action, at, &action, &*clock);
                // The supervisor may be gone already, which is all the same to this thread.
                let _ = ended.send(());
            };
            match spawn_query_thread("query", work) {
                Ok(thread) => threads.push(thread),
                Err(error) => flow.finish(at, Some(&ClientError::System(Arc::new(error)).to_string())),
            }
        }
        let mut left = threads.len();
        // A stopped flow is reported at once; its threads notice in their own time, and the slot is theirs until then.
        while left > 0 && !flow.cancel.is_cancelled() {
            match ends.recv_timeout(TICK) {
                Ok(()) => left = left.saturating_sub(1),
                Err(_) => flow.tick(),
            }
        }
        self.end(flow, None, count);
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn end(&self, flow: &Flow, failure: Option<&str>, actions: usize) {
        if let Some(text) = failure {
            (0..actions).for_each(|at| flow.finish(at, Some(text)));
        }
        let stats = flow.complete();
        let mut flows = lock(&self.flows);
        flows.running.remove(&flow.settings.session);
        while flows.finished.len() >= REMEMBERED {
            flows.finished.pop_front();
        }
        flows.finished.push_back((flow.settings.session.clone(), stats));
    }

    fn cancel(&self, session: &str) {
        if session == "F.Monitoring" {
            return;
        }
        self.outbox.cancel(session);
        let flow = lock(&self.flows).running.get(session).cloned();
        if let Some(flow) = flow {
            flow.cancel();
        }
    }

    /// Answers what became of a flow (spec 01 §10.3).
    fn report(&self, session: &str) {
        let flows = lock(&self.flows);
        let finished = || flows.finished.iter().rev().find(|(id, _)| id == session).map(|(_, stats)| stats.clone());
        let stats = flows.running.get(session).map(|flow| flow.stats()).or_else(finished);
        drop(flows);
        self.outbox.push(&stats_message(session, stats.unwrap_or_else(unknown_flow)));
    }
}

fn unknown_flow() -> FlowStats {
    let status = VeloStatus {
        status: ReturnedStatus::UnknownFlow.into(),
        error_message: "Flow not known - maybe the client crashed?".to_owned(),
        ..VeloStatus::default()
    };
    FlowStats { query_status: vec![status], flow_complete: true, ..FlowStats::default() }
}

/// Runs one action to its end; also what it panics about becomes the action's error.
fn run_action(engine: &dyn Engine, flow: &Arc<Flow>, at: usize, action: &Action, clock: &dyn Clock) {
    let expiry = action.args.expiry;
    let failure = if expiry > 0 && expiry < micros(clock) / 1_000_000 {
        Some("Query expired.".to_owned())
    } else if action.args.query.is_empty() {
        Some("Query should be specified.".to_owned())
    } else {
        let sink: Arc<dyn Sink> = Arc::new(ActionSink { flow: Arc::clone(flow), action: at });
        run_guarded(engine, action, &sink)
    };
    flow.finish(at, failure.as_deref());
}

/// Runs an action; a panic in a query is a failure of that query and of nothing else.
pub(crate) fn run_guarded(engine: &dyn Engine, action: &Action, sink: &Arc<dyn Sink>) -> Option<String> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.run(action, sink)));
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(text),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
            Some(format!("The query ended by an internal error: {}", text.unwrap_or_default()))
        }
    }
}

/// Bounds how many flows run at a time.
struct Slots {
    free: Mutex<usize>,
    changed: Condvar,
}

/// Why there is no slot.
enum Waited {
    Cancelled,
    TooLong,
}

impl Slots {
    fn new(free: usize) -> Self {
        Self { free: Mutex::new(free), changed: Condvar::new() }
    }

    fn take(&self, cancel: &CancelToken, patience: Duration) -> Result<Slot<'_>, Waited> {
        let mut free = lock(&self.free);
        let mut waited = Duration::ZERO;
        loop {
            if cancel.is_cancelled() {
                return Err(Waited::Cancelled);
            }
            if let Some(left) = free.checked_sub(1) {
                *free = left;
                return Ok(Slot(self));
            }
            if waited >= patience {
                return Err(Waited::TooLong);
            }
            free = self.changed.wait_timeout(free, TICK).unwrap_or_else(PoisonError::into_inner).0;
            waited = waited.saturating_add(TICK);
        }
    }
}

struct Slot<'a>(&'a Slots);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut free = lock(&self.0.free);
        *free = free.saturating_add(1);
        self.0.changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
