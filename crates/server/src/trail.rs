//! The audit trail: a record is durable before the action that it describes starts, and becomes an event that users can watch.

use std::sync::Arc;

use serde_json::json;
use talon_audit::{Details, Log, Phase, Receipt, Record};
use talon_ids::Target;

use crate::ServerError;
use crate::bus::Event;
use crate::clock;
use crate::layout::event_rows;
use crate::org::Org;
use crate::rows;

/// The queue of audit records.
const QUEUE: &str = "Server.Audit.Logs";

impl Org {
    /// Puts on record that `principal` is about to do something. Blocks until the record is durable.
    ///
    /// # Errors
    /// [`ServerError::Audit`]: the action must not be done.
    pub fn record(&self, principal: &str, operation: &str, details: Details) -> Result<Receipt, ServerError> {
        self.append(principal, operation, Phase::Intended, details)
    }

    /// Puts on record that `principal` was not allowed to do something.
    ///
    /// # Errors
    /// [`ServerError::Audit`].
    pub fn record_denial(&self, principal: &str, operation: &str, details: Details) -> Result<(), ServerError> {
        self.append(principal, operation, Phase::Denied, details).map(drop)
    }

    fn append(&self, principal: &str, operation: &str, phase: Phase, details: Details) -> Result<Receipt, ServerError> {
        let now_ns = i64::try_from(self.now_ns()).unwrap_or(i64::MAX);
        let mut record = Record::new(now_ns, self.id().clone(), principal, operation, phase);
        record.details = details;
        let receipt = self.audit().append(&record).map_err(ServerError::Audit)?;
        self.show(&record);
        Ok(receipt)
    }

    /// The deployment's audit log.
    #[must_use]
    pub fn audit(&self) -> &Arc<Log> {
        &self.shared().audit
    }

    /// Shows a record to watchers and in the queue's table. The log itself is the proof, so nobody waits for this.
    fn show(&self, record: &Record) {
        let now_s = self.now_us() / 1_000_000;
        let details: serde_json::Map<String, serde_json::Value> =
            record.details.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let row = rows::object(&[
            ("operation", json!(record.operation)),
            ("principal", json!(record.principal)),
            ("details", details.into()),
            ("phase", json!(record.phase)),
            ("_ts", json!(now_s)),
            ("_Source", json!(record.principal)),
        ]);
        let event = Event { queue: QUEUE.into(), source: record.principal.as_str().into(), row: row.as_str().into() };
        let id = self.id().clone();
        let stored = self.submit(move |txn| {
            let table = event_rows(&Target::Server, &QUEUE.parse()?, &clock::day(now_s));
            txn.append_rows(&id, &table, None, rows::block(&[row]))?;
            Ok(())
        });
        drop(stored);
        self.publish_all(&[event]);
    }
}
