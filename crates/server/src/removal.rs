//! What a flow owns, and the removal of flows and events.

use talon_acl::{DeleteResults, Permit};
use talon_audit::{Details, Receipt};
use talon_ids::{FlowId, QueryName, Target};
use talon_store::{Scan, Space};

use crate::ServerError;
use crate::client_admin::{Belonging, event_path};
use crate::clock;
use crate::layout::{event_rows, flow_key, flow_objects};
use crate::org::Org;
use crate::rows;
use crate::session::Session;
use crate::tasks;
use crate::transaction::Pending;

/// Rows that are rewritten in one piece when a part of a day is deleted.
const REWRITE: usize = 10_000;

impl Session {
    /// Deletes a flow with everything that it collected; with `really` false, only tells what that would be.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn delete_flow(&self, target: &Target, flow: &FlowId, really: bool) -> Result<Vec<Belonging>, ServerError> {
        let permit = self.authority().permit::<DeleteResults>()?;
        let belongings = self.org().flow_belongings(target, flow)?;
        if really && let Some(context) = self.org().flow(target, flow)? {
            let artifacts = context.request.map(|request| request.artifacts).unwrap_or_default();
            let details = Details::new()
                .text("client_id", target.as_str())
                .text("flow_id", flow.as_str())
                .list("artifacts", &artifacts)
                .number("create_time", context.create_time);
            let receipt = self.record("delete_flow", details)?;
            self.org().delete_flow(&permit, receipt, target, flow)?.wait()?;
        }
        Ok(belongings)
    }

    /// Deletes the stored events of a queue from `start` to before `end`, in seconds; with `really` false, only tells which days that touches.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn delete_events(
        &self,
        target: &Target,
        queue: &QueryName,
        (start, end): (u64, u64),
        really: bool,
    ) -> Result<Vec<Belonging>, ServerError> {
        let permit = self.authority().permit::<DeleteResults>()?;
        let (first, last) = (clock::day(start), clock::day(end.saturating_sub(1)));
        let mut days = self.org().event_days(target, queue, false)?;
        days.retain(|day| *day >= first && *day <= last);
        let named = days.iter().map(|day| Belonging { kind: "EventData", vfs_path: event_path(&event_rows(target, queue, day)) }).collect();
        if really {
            let details = Details::new()
                .text("client_id", target.as_str())
                .text("artifact", &queue.to_string())
                .text("start_time", &clock::rfc3339(start))
                .text("end_time", &clock::rfc3339(end));
            let receipt = self.record("delete_events", details)?;
            self.org().delete_events(&permit, receipt, target, queue, &days, (start, end))?;
        }
        Ok(named)
    }
}

impl Org {
    /// What a flow owns.
    ///
    /// # Errors
    /// When storage fails.
    pub fn flow_belongings(&self, target: &Target, flow: &FlowId) -> Result<Vec<Belonging>, ServerError> {
        let mut found = Vec::new();
        for name in self.reader().objects(self.id(), &flow_objects(target, flow))? {
            let rest = name.components().get(3..).unwrap_or_default();
            let Some((kind, parts)) = rest.split_first() else { continue };
            let base = format!("/clients/{target}/collections/{flow}");
            let (kind, vfs_path) = match (kind.as_str(), parts) {
                ("rows", [artifact]) => ("Result", format!("/clients/{target}/artifacts/{artifact}/{flow}.json")),
                ("rows", [artifact, source]) => ("Result", format!("/clients/{target}/artifacts/{artifact}/{flow}/{source}.json")),
                ("logs", _) => ("Log", format!("{base}/logs.json")),
                ("uploads", _) => ("UploadMetadata", format!("{base}/uploads.json")),
                ("upload_transactions", _) => ("UploadTransactions", format!("{base}/upload_transactions.json")),
                ("files", parts) => ("Upload", format!("{base}/uploads/{}", parts.join("/"))),
                _ => continue,
            };
            found.push(Belonging { kind, vfs_path });
        }
        if self.flow(target, flow)?.is_some() {
            found.push(Belonging { kind: "CollectionContext", vfs_path: format!("/clients/{target}/collections/{flow}") });
        }
        Ok(found)
    }

    /// Deletes a flow with everything that it collected.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for a permit of another organisation.
    pub fn delete_flow(
        &self,
        permit: &Permit<DeleteResults>,
        receipt: Receipt,
        target: &Target,
        flow: &FlowId,
    ) -> Result<Pending<()>, ServerError> {
        self.own(permit)?;
        drop(receipt);
        Ok(self.remove_flow(target, flow))
    }

    pub(crate) fn remove_flow(&self, target: &Target, flow: &FlowId) -> Pending<()> {
        let (org, target, flow) = (self.clone(), target.clone(), flow.clone());
        self.submit(move |txn| {
            let id = org.id();
            let key = flow_key(&target, &flow);
            txn.delete(id, Space::Flows, &key);
            txn.delete(id, Space::FlowStats, &key);
            let beside = [key.as_slice(), &[0]].concat();
            for (key, _) in txn.scan(id, Space::FlowStats, &Scan { prefix: beside, ..Scan::default() })? {
                txn.delete(id, Space::FlowStats, &key);
            }
            if let Target::Client(client) = &target {
                tasks::forget_session(txn, id, client, flow.as_str())?;
                org.forget_gate(client, &flow);
            }
            for object in txn.objects(id, &flow_objects(&target, &flow))? {
                txn.delete_object(id, &object)?;
            }
            Ok(())
        })
    }

    /// Days that lie wholly between the moments go as they are; of others, the rows outside are written again.
    fn delete_events(
        &self,
        permit: &Permit<DeleteResults>,
        receipt: Receipt,
        target: &Target,
        queue: &QueryName,
        days: &[String],
        (start, end): (u64, u64),
    ) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        for day in days {
            let table = event_rows(target, queue, day);
            let mut kept = Vec::new();
            for line in self.rows(&table, 0)? {
                let line = line?;
                let at = rows::number_member(&line, "_ts").unwrap_or(0);
                if at < start || at >= end {
                    kept.push(line);
                }
            }
            let org = self.clone();
            self.submit(move |txn| {
                txn.delete_object(org.id(), &table)?;
                for piece in kept.chunks(REWRITE) {
                    txn.append_rows(org.id(), &table, None, rows::block(piece))?;
                }
                Ok(())
            })
            .wait()?;
        }
        Ok(())
    }
}
