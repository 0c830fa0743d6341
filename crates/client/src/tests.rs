//! Collections and event queries behind a scripted engine; the agent against a scripted server.

mod collections;
mod conversation;
mod replayed;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use talon_endpoint_vql::SystemClock;
use talon_proto::prost::Message as _;
use talon_proto::{FlowRequest, FlowStats, MessageList, VeloMessage, VqlCollectorArgs, VqlRequest, VqlResponse};
use talon_vql::{Counter, Dict};
use talon_wire::Compression;

use crate::buffer::{Buffer, BufferSettings};
use crate::events::{EventQueries, EventResources};
use crate::query::{Action, Engine, Sink};
use crate::{Executor, FlowDefaults, Outbox, OutboxSettings, Writeback};

/// What a scripted action does.
type Script = Box<dyn Fn(&Action, &Arc<dyn Sink>) -> Result<(), String> + Send + Sync>;

/// An engine that follows a script.
struct Scripted(Script);

impl Scripted {
    fn new(script: impl Fn(&Action, &Arc<dyn Sink>) -> Result<(), String> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self(Box::new(script)))
    }
}

impl Engine for Scripted {
    fn run(&self, action: &Action, sink: &Arc<dyn Sink>) -> Result<(), String> {
        (self.0)(action, sink)
    }
}

/// An executor, and the messages that came out of it.
struct Scene {
    executor: Executor,
    outbox: Arc<Outbox>,
    writeback: Arc<Mutex<Writeback>>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(engine: Arc<dyn Engine>) -> Self {
        Self::in_folder(engine, tempfile::tempdir().unwrap())
    }

    fn in_folder(engine: Arc<dyn Engine>, folder: tempfile::TempDir) -> Self {
        let level1 = folder.path().join("writeback.yaml");
        let writeback = Writeback::open(talon_config::WritebackPaths { level1, level2: None }, 1).unwrap();
        let writeback = Arc::new(Mutex::new(writeback));
        let settings = OutboxSettings { packet: 1 << 20, compression: Compression::None, urgent: 1 << 20 };
        let (buffer, _) = Buffer::open(BufferSettings { file: None, disk_size: 0, memory_size: 100 << 20 }).unwrap();
        let outbox = Outbox::new(settings, buffer);
        let clock = Arc::new(SystemClock::new());
        let resources = EventResources {
            engine: engine.clone(),
            outbox: outbox.clone(),
            clock: clock.clone(),
            random: Arc::new(Counter::default()),
            defaults: FlowDefaults::default(),
        };
        let events = EventQueries::start(resources, writeback.clone());
        let executor = Executor::new(engine, outbox.clone(), clock, FlowDefaults::default(), 2, events);
        Self { executor, outbox, writeback, _folder: folder }
    }

    /// Everything sent until `enough` says so.
    fn sent_until(&self, enough: impl Fn(&[VeloMessage]) -> bool) -> Vec<VeloMessage> {
        let (start, mut sent) = (Instant::now(), Vec::new());
        while !enough(&sent) {
            assert!(start.elapsed() < Duration::from_secs(30), "in vain: {sent:?}");
            match self.outbox.lease().unwrap() {
                Some(lease) => {
                    for blob in lease.blobs().iter() {
                        sent.extend(MessageList::decode(blob.clone()).unwrap().job);
                    }
                    self.outbox.delivered(&lease);
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        sent
    }

    /// Everything that `request` gave, its end included.
    fn collect(&self, session: &str, request: FlowRequest) -> Vec<VeloMessage> {
        self.executor.handle(flow(session, request));
        self.sent_until(|sent| sent.iter().any(is_end))
    }
}

fn flow(session: &str, request: FlowRequest) -> VeloMessage {
    VeloMessage { session_id: session.into(), flow_request: Some(request), ..VeloMessage::default() }
}

fn args(names: &[&str]) -> VqlCollectorArgs {
    let query = |name: &&str| VqlRequest { name: (*name).into(), vql: format!("SELECT * FROM {name}") };
    VqlCollectorArgs { query: names.iter().map(query).collect(), ..VqlCollectorArgs::default() }
}

fn request(actions: &[&[&str]]) -> FlowRequest {
    FlowRequest { vql_client_actions: actions.iter().map(|names| args(names)).collect(), ..FlowRequest::default() }
}

fn is_end(message: &VeloMessage) -> bool {
    message.flow_stats.as_ref().is_some_and(|stats| stats.flow_complete)
}

fn end(sent: &[VeloMessage]) -> FlowStats {
    sent.iter().rev().find(|message| is_end(message)).unwrap().flow_stats.clone().unwrap()
}

fn responses(sent: &[VeloMessage]) -> Vec<&VqlResponse> {
    sent.iter().filter_map(|message| message.vql_response.as_ref()).collect()
}

/// The texts of all log lines, with their levels.
fn log(sent: &[VeloMessage]) -> Vec<String> {
    let lines = sent.iter().filter_map(|message| message.log_message.as_ref()).flat_map(|log| log.jsonl.lines());
    lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{}:{}", line["level"].as_str().unwrap(), line["message"].as_str().unwrap())
        })
        .collect()
}

fn row(number: usize) -> Dict {
    Dict::new().with("N", number as u64).with("Text", "a <b>")
}

/// Gives `count` rows for each statement.
fn rows(count: usize) -> impl Fn(&Action, &Arc<dyn Sink>) -> Result<(), String> {
    move |action, sink| {
        for (at, request) in action.args.query.iter().enumerate() {
            (0..count).all(|number| sink.row(at, request, &row(number)));
        }
        Ok(())
    }
}
