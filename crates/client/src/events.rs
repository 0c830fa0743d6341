//! Event queries: they run from the agent's start, over its restarts, until the server sends another table.

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use talon_proto::{VqlCollectorArgs, VqlEventTable};
use talon_vql::{CancelToken, Clock, Random, spawn_query_thread};

use crate::executor::run_guarded;
use crate::flow::{ActionLimits, Flow, FlowDefaults, FlowSettings};
use crate::query::{Action, Engine, Sink};
use crate::upload::ActionSink;
use crate::{Outbox, Writeback};

/// An event query runs this long before it is started anew (spec 01 §13), a tenth more or less.
const REFRESH: Duration = Duration::from_secs(12 * 3600);
/// How often an event query looks at the clock.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });

/// What event queries need to run.
#[derive(Clone)]
pub struct EventResources {
    /// Evaluates them.
    pub engine: Arc<dyn Engine>,
    /// Takes their rows.
    pub outbox: Arc<Outbox>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Spreads their restarts.
    pub random: Arc<dyn Random>,
    /// Defaults for what the server leaves open.
    pub defaults: FlowDefaults,
}

/// The table of event queries and its running queries.
pub struct EventQueries {
    resources: EventResources,
    writeback: Arc<Mutex<Writeback>>,
    running: Mutex<CancelToken>,
    upload_ids: Arc<AtomicI64>,
}

impl EventQueries {
    /// Starts the queries of the stored table.
    #[must_use]
    pub fn start(resources: EventResources, writeback: Arc<Mutex<Writeback>>) -> Self {
        let events = Self { resources, writeback, running: Mutex::new(CancelToken::new()), upload_ids: Arc::default() };
        let table = lock(&events.writeback).event_table().clone();
        events.run(&table);
        events
    }

    /// The version of the table.
    #[must_use]
    pub fn version(&self) -> u64 {
        lock(&self.writeback).event_table().version
    }

    /// Takes a table from the server. An older one is passed over; one with the same queries only changes the version.
    pub fn update(&self, table: VqlEventTable) {
        let mut writeback = lock(&self.writeback);
        if table.version <= writeback.event_table().version {
            return;
        }
        let changed = table.event != writeback.event_table().event;
        // A disk that refuses must not keep the agent from monitoring; after a restart the old table would run until the next change.
        if let Err(error) = writeback.set_event_table(table.clone()) {
            tracing::error!(%error, "the event table cannot be stored");
        }
        drop(writeback);
        if changed {
            self.run(&table);
        }
    }

    /// Stops all event queries.
    pub fn stop(&self) {
        lock(&self.running).cancel("the agent shuts down");
    }

    fn run(&self, table: &VqlEventTable) {
        let cancel = CancelToken::new();
        std::mem::replace(&mut *lock(&self.running), cancel.clone()).cancel("another event table came");
        for args in &table.event {
            let Some(name) = args.query.iter().map(|query| &query.name).find(|name| !name.is_empty()) else { continue };
            let (resources, args, cancel) = (self.resources.clone(), args.clone(), cancel.clone());
            let flow = Arc::new(Flow::new(
                FlowSettings::of_event(name, &resources.defaults),
                &[ActionLimits { timeout: Duration::MAX, ..ActionLimits::of(&args, &resources.defaults) }],
                Arc::clone(&resources.outbox),
                Arc::clone(&resources.clock),
                Arc::clone(&self.upload_ids),
                cancel,
            ));
            let spawned = thread::Builder::new().name("event".to_owned()).spawn(move || supervise(&resources, &flow, &args));
            if let Err(error) = spawned {
                tracing::error!(%error, name, "an event query cannot be started");
            }
        }
    }
}

/// Runs one event query again and again, until another table comes. The numbers of its rows go on.
fn supervise(resources: &EventResources, flow: &Arc<Flow>, args: &VqlCollectorArgs) {
    while !flow.cancel.is_cancelled() {
        let period = if args.timeout > 0 { Duration::from_secs(args.timeout) } else { REFRESH };
        let jitter = u32::try_from(resources.random.next() % 200).unwrap_or_default();
        let deadline = resources.clock.elapsed().saturating_add(period.saturating_mul(900_u32.saturating_add(jitter)) / 1000);
        let action = Action { session: flow.settings.session.clone(), args: args.clone(), cancel: flow.cancel.child() };
        let cancel = action.cancel.clone();
        flow.start(0);
        let thread = spawn_query_thread("query", {
            let (engine, flow) = (Arc::clone(&resources.engine), Arc::clone(flow));
            move || {
                let sink: Arc<dyn Sink> = Arc::new(ActionSink { flow: Arc::clone(&flow), action: 0 });
                if let Some(text) = run_guarded(&*engine, &action, &sink) {
                    flow.log(0, &format!("ERROR:{text}"));
                }
            }
        });
        // A query that ends early starts again with the others: an event query that fails must not become a busy loop.
        while !flow.cancel.is_cancelled() && resources.clock.elapsed() < deadline {
            let _ = flow.cancel.wait(TICK);
            flow.tick();
        }
        cancel.cancel("the event query is started anew");
        match thread {
            Ok(thread) => drop(thread.join()),
            Err(error) => tracing::error!(%error, "an event query cannot be started"),
        }
    }
    flow.complete();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
