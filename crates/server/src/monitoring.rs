//! Client event monitoring: the table of event queries that every client runs, kept in step with what each agent says that it runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use talon_acl::{CollectClient, Permit};
use talon_audit::Receipt;
use talon_crypto::{Rng, random_array};
use talon_ids::{ClientId, OrgId, QueryName, Target};
use talon_proto::{ArtifactCollectorArgs, ClientEventTable, ClientInfo, VeloMessage, VqlCollectorArgs, VqlEventTable};
use talon_store::{Space, Txn};

use crate::ServerError;
use crate::catalog::ArtifactType;
use crate::clients::has_label;
use crate::layout::{get, put, target_prefix};
use crate::org::{Org, read, write};
use crate::transaction::Pending;

/// The record of the table among the settings.
const KEY: &[u8] = b"client_monitoring";
/// The record of the queries that left the table.
const RETIRED_KEY: &[u8] = b"client_monitoring_retired";
/// Rows of a query that left the table are taken so long, since agents may be offline: 30 days, in seconds.
const RETIRED_FOR_S: u64 = 30 * 86_400;
/// More queries than any table loses in that time.
const MAX_RETIRED: usize = 4096;
/// Event queries are held back so long for more rows unless configured.
const DEFAULT_WAIT: Duration = Duration::from_secs(120);

/// The compiled table of one organisation.
#[derive(Default)]
pub(crate) struct EventTable {
    stored: ClientEventTable,
    groups: Vec<Group>,
    retired: Vec<Retired>,
}

/// A query that was in the table until lately: agents may hold rows of it that they have not sent yet.
#[derive(Clone, PartialEq, Message)]
struct Retired {
    #[prost(string, tag = "1")]
    label: String,
    #[prost(string, tag = "2")]
    query: String,
    /// Rows are taken until then, in seconds.
    #[prost(uint64, tag = "3")]
    until: u64,
}

/// All of them, as stored.
#[derive(Clone, PartialEq, Message)]
struct RetiredQueries {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Retired>,
}

/// What clients with one label run.
struct Group {
    label: String,
    compiled: Vec<VqlCollectorArgs>,
    queries: BTreeSet<QueryName>,
}

impl EventTable {
    /// The version that a client must run at least: that of the table, or of its labels if they decide.
    fn needed(&self, info: &ClientInfo) -> u64 {
        let by_label = self.groups.iter().any(|group| !group.label.eq_ignore_ascii_case("all"));
        self.stored.version.max(if by_label { info.labels_timestamp } else { 0 })
    }

    /// Whether the client's table has this query, or had it until lately. Says nothing about what the agent claims to run.
    pub(crate) fn has(&self, info: &ClientInfo, query: &QueryName, now_s: u64) -> bool {
        let late = |retired: &Retired| retired.until > now_s && has_label(info, &retired.label) && retired.query == query.to_string();
        self.groups.iter().any(|group| has_label(info, &group.label) && group.queries.contains(query)) || self.retired.iter().any(late)
    }

    /// Makes this the table that follows `old`: what is gone from it is retired.
    fn follow(&mut self, old: &Self, now_s: u64) {
        let kept = |label: &str, query: &QueryName| self.groups.iter().any(|group| group.label == label && group.queries.contains(query));
        let mut retired: Vec<Retired> = old.retired.iter().filter(|retired| retired.until > now_s).cloned().collect();
        for group in &old.groups {
            for query in group.queries.iter().filter(|query| !kept(&group.label, query)) {
                let (label, query, until) = (group.label.clone(), query.to_string(), now_s.saturating_add(RETIRED_FOR_S));
                retired.retain(|other| other.label != label || other.query != query);
                retired.push(Retired { label, query, until });
            }
        }
        let surplus = retired.len().saturating_sub(MAX_RETIRED);
        self.retired = retired.split_off(surplus);
    }

    fn message(&self, info: &ClientInfo, version: u64, names: &dyn Fn(&str) -> String, wait: &dyn Fn() -> u64) -> VeloMessage {
        let mut event = Vec::new();
        for group in self.groups.iter().filter(|group| has_label(info, &group.label)) {
            for args in &group.compiled {
                let mut args = args.clone();
                for query in &mut args.query {
                    query.name = names(&query.name);
                }
                if args.max_wait == 0 {
                    args.max_wait = wait();
                }
                event.push(args);
            }
        }
        let table = VqlEventTable { event, version };
        VeloMessage { session_id: "F.Monitoring".into(), update_event_table: Some(table), ..VeloMessage::default() }
    }
}

/// What was sent to a client last.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Sent {
    /// The version that the agent got.
    #[prost(uint64, tag = "1")]
    pub(crate) version: u64,
    /// The version of the table and labels that it was made of.
    #[prost(uint64, tag = "2")]
    pub(crate) made_of: u64,
}

/// What is to be sent to an agent that reports a table of version `reported` and must run what was made of `needed`, if anything.
///
/// The agent's own word counts: one that lost the table gets it again, one that comes from another server or from before a restore gets a newer version
/// than its own, since agents ignore older ones.
pub(crate) fn to_send(reported: u64, sent: Sent, needed: u64, now_ns: u64) -> Option<Sent> {
    if sent.made_of < needed || reported > sent.version {
        let newest = reported.max(sent.version);
        return Some(Sent { version: now_ns.max(needed).max(newest.saturating_add(1)), made_of: needed });
    }
    (reported < sent.version).then_some(sent)
}

/// Where [`Sent`] is kept.
fn sent_key(client: &ClientId) -> Vec<u8> {
    let mut key = target_prefix(&Target::Client(client.clone()));
    key.extend_from_slice(b"F.Monitoring");
    key
}

/// Notes what is sent to a client.
pub(crate) fn note_sent(txn: &mut dyn Txn, org: &OrgId, client: &ClientId, sent: Sent) {
    put(txn, org, Space::FlowStats, &sent_key(client), &sent);
}

impl Org {
    /// The table as stored, without compiled queries.
    #[must_use]
    pub fn monitoring_table(&self) -> ClientEventTable {
        read(&self.state().table).stored.clone()
    }

    /// Replaces the table.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] when an artifact is unknown or no client event artifact.
    pub fn set_monitoring_table(
        &self,
        permit: &Permit<CollectClient>,
        receipt: Receipt,
        table: ClientEventTable,
    ) -> Result<Pending<()>, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let stored = ClientEventTable { version: self.now_ns(), client_message: None, ..table };
        let mut table = compile(stored, self, true)?;
        table.follow(&self.event_table(), self.now_us() / 1_000_000);
        Ok(self.replace_table(table))
    }

    fn replace_table(&self, table: EventTable) -> Pending<()> {
        let (org, id) = (self.clone(), self.id().clone());
        let (stored, retired) = (table.stored.clone(), RetiredQueries { queries: table.retired.clone() });
        let pending = self.submit(move |txn| {
            put(txn, &id, Space::Settings, KEY, &stored);
            put(txn, &id, Space::Settings, RETIRED_KEY, &retired);
            Ok(())
        });
        pending.then(move |()| {
            write(&org.state().table, Arc::new(table));
            org.state().readers.wake_all();
        })
    }

    /// Loads the stored table, or makes the default one.
    pub(crate) fn load_event_table(&self) -> Result<(), ServerError> {
        let stored: Option<ClientEventTable> = get(self.reader(), self.id(), Space::Settings, KEY)?;
        let table = match stored {
            Some(table) => table,
            None => {
                let catalog = self.catalog();
                let known = |name: &&String| name.parse().is_ok_and(|name| catalog.kind(&name) == Some(ArtifactType::ClientEvent));
                let artifacts: Vec<String> = self.shared().settings.default_monitoring.iter().filter(known).cloned().collect();
                if artifacts.is_empty() {
                    return Ok(());
                }
                let table = ClientEventTable {
                    version: self.now_ns(),
                    artifacts: Some(ArtifactCollectorArgs { artifacts, ..ArtifactCollectorArgs::default() }),
                    ..ClientEventTable::default()
                };
                let (org, stored) = (self.id().clone(), table.clone());
                self.submit(move |txn| {
                    put(txn, &org, Space::Settings, KEY, &stored);
                    Ok(())
                })
                .wait()?;
                table
            }
        };
        let retired: Option<RetiredQueries> = get(self.reader(), self.id(), Space::Settings, RETIRED_KEY)?;
        let table = EventTable { retired: retired.unwrap_or_default().queries, ..compile(table, self, false)? };
        write(&self.state().table, Arc::new(table));
        Ok(())
    }

    /// Compiles the table again after artifacts changed. Clients hear of it when their queries are others now.
    pub(crate) fn recompile_event_table(&self) -> Result<(), ServerError> {
        let old = self.event_table();
        let mut new = compile(old.stored.clone(), self, false)?;
        let queries =
            |table: &EventTable| -> Vec<Vec<VqlCollectorArgs>> { table.groups.iter().map(|group| group.compiled.clone()).collect() };
        if queries(&old) == queries(&new) {
            return Ok(());
        }
        new.stored.version = self.now_ns();
        new.follow(&old, self.now_us() / 1_000_000);
        self.replace_table(new).wait()
    }

    pub(crate) fn event_table(&self) -> Arc<EventTable> {
        read(&self.state().table)
    }

    /// The message that brings the agent's event table up to date, if there is need of one.
    pub(crate) fn event_table_update(&self, info: &ClientInfo, reported: u64) -> Result<Option<(Sent, VeloMessage)>, ServerError> {
        let table = self.event_table();
        let sent: Option<Sent> = get(self.reader(), self.id(), Space::FlowStats, &sent_key(&info.client_id.parse()?))?;
        let Some(sent) = to_send(reported, sent.unwrap_or_default(), table.needed(info), self.now_ns()) else { return Ok(None) };
        let settings = &self.shared().settings;
        let base = if settings.event_wait.is_zero() { DEFAULT_WAIT } else { settings.event_wait };
        let wait = || base.as_secs().saturating_add(jitter(self.rng(), settings.event_wait_jitter));
        Ok(Some((sent, table.message(info, sent.version, &|name| self.shared().wire_name(name), &wait))))
    }
}

/// A random number of seconds below `bound`.
fn jitter(rng: &dyn Rng, bound: Duration) -> u64 {
    u64::from_be_bytes(random_array(rng)).checked_rem(bound.as_secs()).unwrap_or(0)
}

/// Compiles a table. A new one must name client event artifacts only; in a stored one, what is none any more is passed over.
fn compile(stored: ClientEventTable, org: &Org, strict: bool) -> Result<EventTable, ServerError> {
    let (catalog, metadata) = (org.catalog(), org.metadata(&Target::Server)?);
    let everybody = stored.artifacts.iter().map(|artifacts| ("all".to_owned(), artifacts));
    let labelled =
        stored.label_events.iter().filter_map(|group| group.artifacts.as_ref().map(|artifacts| (group.label.clone(), artifacts)));
    let mut groups = Vec::new();
    for (label, artifacts) in everybody.chain(labelled) {
        let mut artifacts = artifacts.clone();
        let is_event = |name: &String| name.parse().is_ok_and(|name| catalog.kind(&name) == Some(ArtifactType::ClientEvent));
        if !strict {
            artifacts.artifacts.retain(is_event);
        }
        for name in &artifacts.artifacts {
            match catalog.kind(&name.parse()?) {
                Some(ArtifactType::ClientEvent) => {}
                Some(_) => return Err(ServerError::invalid(format!("ClientEventTable: Artifact {name} is not a client event artifact"))),
                None => return Err(ServerError::invalid(format!("ClientEventTable: Artifact {name} not known"))),
            }
        }
        let compiled = catalog.compile_events(&artifacts, &metadata, &|tool| org.tool_environment(tool))?;
        let names = compiled.iter().flat_map(|args| &args.query).filter_map(|query| query.name.parse().ok());
        groups.push(Group { label, queries: names.collect(), compiled });
    }
    Ok(EventTable { stored, groups, retired: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_table_follows_its_own_report() {
        const NOW: u64 = 1_000;
        let sent = |version, made_of| Sent { version, made_of };
        for (reported, last, needed, wanted, why) in [
            (0, sent(0, 0), 0, None, "no table"),
            (0, sent(0, 0), 50, Some(sent(NOW, 50)), "never sent"),
            (0, sent(60, 50), 50, Some(sent(60, 50)), "lost, or just started: the same version again"),
            (60, sent(60, 50), 50, None, "in step"),
            (60, sent(60, 50), 70, Some(sent(NOW, 70)), "changed since"),
            (5_000, sent(60, 50), 50, Some(sent(5_001, 50)), "comes from another server"),
            (5_001, sent(5_001, 50), 50, None, "in step again"),
            (
                5_001,
                sent(5_001, 50),
                70,
                Some(sent(5_002, 70)),
                "changed since: newer than what it runs, though that lies ahead of the time",
            ),
            (5_000, sent(0, 0), 0, Some(sent(5_001, 0)), "comes from another server, and is to run nothing"),
            (u64::MAX, sent(0, 0), 0, Some(sent(u64::MAX, 0)), "lies"),
        ] {
            assert_eq!(to_send(reported, last, needed, NOW), wanted, "{why}");
        }
    }
}
