//! Collections: scheduling, state, results, cancellation.

use talon_acl::{CollectClient, CollectServer, Permit};
use talon_audit::{Details, Receipt};
use talon_ids::{ClientId, FlowId, QueryName, Target, UserName};
use talon_proto::artifact_collector_context::State;
use talon_proto::flow_request::Compression;
use talon_proto::{ArtifactCollectorArgs, ArtifactCollectorContext, FlowRequest, VeloMessage, VqlCollectorArgs};
use talon_store::{ObjectName, Scan, Space, Txn};

use crate::ServerError;
use crate::bus::Event;
use crate::events;
use crate::layout::{decode, flow_key, flow_logs, flow_rows, flow_uploads, get, put, target_prefix};
use crate::org::Org;
use crate::progress::{Progress, derive};
use crate::session::Session;
use crate::tasks;
use crate::transaction::Pending;

/// Stands for the value of a parameter that is not to be seen again.
const REDACTED: &str = "XXXXX";
/// Marks such a parameter in the compiled request.
const REDACTED_COMMENT: &str = "redacted";
/// What a log line must contain to count as an error, unless the configuration says otherwise (`spec/01` §11.4).
pub(crate) const ERROR_PATTERN: &str = "(?i)(Error:|Symbol.+?not found|Expecting a path arg type, not|Field.+?is required|Unexpected arg)";

/// A collection that was checked and compiled, and is not yet scheduled.
#[derive(Debug)]
pub struct Plan {
    client: ClientId,
    flow: FlowId,
    request: ArtifactCollectorArgs,
}

impl Plan {
    /// The id that the flow will have.
    #[must_use]
    pub fn flow_id(&self) -> &FlowId {
        &self.flow
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    /// The request, completed by the limits of its artifacts, without compiled queries and without values that are not to be seen again.
    #[must_use]
    pub fn request(&self) -> ArtifactCollectorArgs {
        let mut request = redacted(&self.request);
        request.compiled_collector_args.clear();
        request
    }
}

impl Session {
    /// Schedules a collection: checks that the caller may collect each artifact, compiles, puts it on record, and only then queues it.
    ///
    /// # Errors
    /// [`ServerError::CollectDenied`], [`ServerError::NotFound`], [`ServerError::Artifact`] and what storage and the audit log fail with.
    pub fn collect(&self, request: ArtifactCollectorArgs) -> Result<(FlowId, ArtifactCollectorArgs), ServerError> {
        if request.client_id == Target::Server.as_str() {
            let (permit, plan) = self.unless_denied("ScheduleFlow", self.plan_on_server(request))?;
            let request = plan.request();
            let receipt = self.schedule_receipt(&Target::Server, plan.flow_id(), &request)?;
            return Ok((self.org().run_on_server(&permit, receipt, plan)?, request));
        }
        let (permit, plan) = self.unless_denied("ScheduleFlow", self.plan(request))?;
        let request = plan.request();
        let receipt = self.schedule_receipt(&plan.client().clone().into(), plan.flow_id(), &request)?;
        let flow = self.org().schedule(permit, receipt, plan)?.wait()?;
        Ok((flow, request))
    }

    /// Puts a refusal on record before it is passed on.
    pub(crate) fn unless_denied<T>(&self, operation: &str, outcome: Result<T, ServerError>) -> Result<T, ServerError> {
        if let Err(error) = &outcome
            && error.is_denied()
        {
            let details = Details::new().text("error", &error.to_string());
            self.org().record_denial(self.principal().as_str(), operation, details)?;
        }
        outcome
    }

    fn schedule_receipt(&self, target: &Target, flow: &FlowId, request: &ArtifactCollectorArgs) -> Result<Receipt, ServerError> {
        let shown = crate::reflect::to_json("ArtifactCollectorArgs", request)?;
        let details = Details::new()
            .text("client", target.as_str())
            .text("flow_id", flow.as_str())
            .json("details", serde_json::from_str(&shown).unwrap_or_default());
        self.record("ScheduleFlow", details)
    }

    /// Checks and compiles a collection.
    ///
    /// # Errors
    /// As [`Session::collect`].
    pub fn plan(&self, mut request: ArtifactCollectorArgs) -> Result<(Permit<CollectClient>, Plan), ServerError> {
        let org = self.org();
        let client = org.parse_client(&request.client_id)?;
        if request.artifacts.is_empty() {
            return Err(ServerError::invalid("No artifacts to collect."));
        }
        // Compiled queries come from artifacts only, and a flow is new.
        request.compiled_collector_args.clear();
        request.flow_id.clear();
        request.creator = self.principal().to_string();
        request.client_id = client.to_string();
        let permit = org.catalog().permit_collection(self.authority(), &request)?;
        if org.client(&client)?.is_none() {
            return Err(ServerError::not_found("Client", client));
        }
        let request = org.complete(request)?;
        Ok((permit, Plan { client, flow: org.new_flow_id(), request }))
    }

    /// Cancels a collection. One that runs on the server and is not known any more is none to cancel, which is no error.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn cancel(&self, target: &Target, flow: &FlowId, reason: &str) -> Result<(), ServerError> {
        let details = Details::new().text("client", target.as_str()).text("flow_id", flow.as_str());
        let Target::Client(client) = target else {
            let permit = self.authority().permit::<CollectServer>()?;
            let receipt = self.record("CancelFlow", details)?;
            return self.org().cancel_on_server(&permit, receipt, flow, reason);
        };
        let permit = self.authority().permit::<CollectClient>()?;
        if self.org().flow(target, flow)?.is_none() {
            return Err(ServerError::not_found("Flow", flow));
        }
        let receipt = self.record("CancelFlow", details)?;
        self.org().cancel(&permit, receipt, client, flow, reason)?.wait().map(drop)
    }
}

impl Org {
    /// Queues a planned collection. The permit proves that it is allowed, the receipt that it is on record.
    ///
    /// Neither can be made up:
    /// ```compile_fail
    /// # use talon_server::{Org, Plan};
    /// # use talon_acl::{CollectClient, Permit};
    /// fn unrecorded(org: &Org, permit: Permit<CollectClient>, plan: Plan) {
    ///     let _ = org.schedule(permit, plan);
    /// }
    /// ```
    /// ```compile_fail
    /// # use talon_server::{Org, Plan};
    /// # use talon_audit::Receipt;
    /// fn not_allowed(org: &Org, receipt: Receipt, plan: Plan) {
    ///     let _ = org.schedule(talon_acl::Permit::granted_to("alice".parse().unwrap(), org.id().clone()), receipt, plan);
    /// }
    /// ```
    /// ```compile_fail
    /// # use talon_server::{Org, Plan};
    /// # use talon_acl::{Permit, ReadResults};
    /// # use talon_audit::Receipt;
    /// fn allowed_something_else(org: &Org, permit: Permit<ReadResults>, receipt: Receipt, plan: Plan) {
    ///     let _ = org.schedule(permit, receipt, plan);
    /// }
    /// ```
    /// With both it compiles:
    /// ```
    /// # use talon_server::{Org, Plan};
    /// # use talon_acl::{CollectClient, Permit};
    /// # use talon_audit::Receipt;
    /// fn allowed_and_recorded(org: &Org, permit: Permit<CollectClient>, receipt: Receipt, plan: Plan) {
    ///     let _ = org.schedule(permit, receipt, plan);
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for a permit of another organisation; the pending change fails when the client is gone.
    pub fn schedule(&self, permit: Permit<CollectClient>, receipt: Receipt, plan: Plan) -> Result<Pending<FlowId>, ServerError> {
        self.own(&permit)?;
        drop((permit, receipt));
        let (org, woken, client) = (self.clone(), self.clone(), plan.client.clone());
        let pending = self.submit(move |txn| {
            let Plan { client, flow, request } = plan;
            if tasks::client(&*txn, org.id(), &client)?.is_none() {
                return Err(ServerError::not_found("Client", client));
            }
            org.write_flow(txn, &client, &flow, &request);
            Ok(flow)
        });
        Ok(pending.then(move |_| woken.state().readers.wake(&client)))
    }

    /// Writes a new flow and its task.
    pub(crate) fn write_flow(&self, txn: &mut dyn Txn, client: &ClientId, flow: &FlowId, request: &ArtifactCollectorArgs) {
        let target = Target::Client(client.clone());
        let task_id = self.shared().task_ids.next(self.now_ns());
        let mut context = ArtifactCollectorContext {
            session_id: flow.to_string(),
            client_id: client.to_string(),
            create_time: self.now_us(),
            request: Some(redacted(request)),
            total_requests: i64::try_from(request.compiled_collector_args.len()).unwrap_or(i64::MAX),
            ..ArtifactCollectorContext::default()
        };
        context.set_state(State::Running);
        put(txn, self.id(), Space::Flows, &flow_key(&target, flow), &context);
        put(txn, self.id(), Space::FlowStats, &flow_key(&target, flow), &Progress { task_id, ..Progress::default() });
        tasks::queue(txn, self.id(), client, task_id, self.flow_message(flow, request));
    }

    /// The requests of a server event table, with the values that the server's metadata has for their parameters.
    pub(crate) fn compile_server_events(&self, request: &ArtifactCollectorArgs) -> Result<Vec<VqlCollectorArgs>, ServerError> {
        let metadata = self.metadata(&Target::Server)?;
        self.catalog().compile_events(request, &metadata, &|tool| self.tool_environment(tool))
    }

    /// Compiles a request and completes it by the limits of its artifacts.
    pub(crate) fn complete(&self, request: ArtifactCollectorArgs) -> Result<ArtifactCollectorArgs, ServerError> {
        let metadata = self.metadata(&Target::Server)?;
        self.catalog().compile(request, &self.shared().settings, &metadata, &|tool| self.tool_environment(tool))
    }

    fn flow_message(&self, flow: &FlowId, request: &ArtifactCollectorArgs) -> VeloMessage {
        let settings = &self.shared().settings;
        let hidden = |args: &VqlCollectorArgs| {
            let mut args = args.clone();
            for query in &mut args.query {
                query.name = self.shared().wire_name(&query.name);
            }
            args
        };
        let log_batch = if request.log_batch_time > 0 {
            request.log_batch_time.saturating_mul(1000)
        } else {
            u64::try_from(settings.log_batch.as_millis()).unwrap_or(u64::MAX)
        };
        let mut flow_request = FlowRequest {
            vql_client_actions: request.compiled_collector_args.iter().map(hidden).collect(),
            // Agents read milliseconds here (`spec/01` §11.2).
            log_batch_time: log_batch,
            max_rows: request.max_rows,
            max_logs: request.max_logs,
            max_upload_bytes: request.max_upload_bytes,
            log_error_regex: settings.log_error_regex.clone(),
            ..FlowRequest::default()
        };
        flow_request.set_compression(if settings.compress { Compression::Zlib } else { Compression::None });
        VeloMessage {
            session_id: flow.to_string(),
            request_id: 1,
            urgent: request.urgent,
            flow_request: Some(flow_request),
            ..VeloMessage::default()
        }
    }

    /// Cancels a flow: it counts as failed from now on, and the agent is told to stop.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for a permit of another organisation; the pending change fails when there is no such flow.
    pub fn cancel(
        &self,
        permit: &Permit<CollectClient>,
        receipt: Receipt,
        client: &ClientId,
        flow: &FlowId,
        reason: &str,
    ) -> Result<Pending<Vec<Event>>, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, client, flow, reason) = (self.clone(), client.clone(), flow.clone(), reason.to_owned());
        let (woken, of) = (self.clone(), client.clone());
        let pending = self.submit(move |txn| {
            let (id, target) = (org.id(), Target::Client(client.clone()));
            let key = flow_key(&target, &flow);
            let Some(mut context) = get::<ArtifactCollectorContext>(&*txn, id, Space::Flows, &key)? else {
                return Err(ServerError::not_found("Flow", flow));
            };
            let mut progress: Progress = get(&*txn, id, Space::FlowStats, &key)?.unwrap_or_default();
            let mut now = context.clone();
            derive(&mut now, &progress, org.now_us());
            if matches!(now.state(), State::Finished | State::Error) {
                return Ok(Vec::new());
            }
            context.status = if now.status.is_empty() { reason } else { format!("{reason}: {}", now.status) };
            context.set_state(State::Error);
            context.active_time = org.now_us();
            put(txn, id, Space::Flows, &key, &context);
            tasks::forget_session(txn, id, &client, flow.as_str())?;
            progress.task_id = 0;
            let mut events = Vec::new();
            if progress.delivered_at == 0 {
                // The agent never heard of it, so nothing of it will ever come.
                progress.complete = true;
                crate::hunts::flow_ended(txn, id, &client, &flow, &context, org.now_us())?;
                events.push(events::flow_ended(txn, id, &target, &flow, context, org.now_us() / 1_000_000)?);
            } else {
                tasks::queue(txn, id, &client, org.shared().task_ids.next(org.now_ns()), tasks::cancel_message(&flow));
            }
            put(txn, id, Space::FlowStats, &key, &progress);
            if let Some(mut info) = tasks::client(&*txn, id, &client)?
                && info.in_flight_flows.remove(flow.as_str()).is_some()
            {
                put(txn, id, Space::Clients, client.as_str().as_bytes(), &info);
            }
            Ok(events)
        });
        Ok(pending.then(move |events| {
            woken.publish_all(events);
            woken.state().readers.wake(&of);
        }))
    }

    /// One flow with its state as of now.
    ///
    /// # Errors
    /// When storage fails.
    pub fn flow(&self, target: &Target, flow: &FlowId) -> Result<Option<ArtifactCollectorContext>, ServerError> {
        let key = flow_key(target, flow);
        let Some(context) = get(self.reader(), self.id(), Space::Flows, &key)? else { return Ok(None) };
        self.derived(context, &key).map(Some)
    }

    /// The flows of one target, newest first.
    ///
    /// # Errors
    /// When storage fails.
    pub fn flows(&self, target: &Target) -> Result<Vec<ArtifactCollectorContext>, ServerError> {
        let scan = Scan { prefix: target_prefix(target), reverse: true, ..Scan::default() };
        let mut flows = Vec::new();
        for (key, value) in self.reader().scan(self.id(), Space::Flows, &scan)? {
            flows.push(self.derived(decode(Space::Flows, &key, &value)?, &key)?);
        }
        Ok(flows)
    }

    fn derived(&self, mut context: ArtifactCollectorContext, key: &[u8]) -> Result<ArtifactCollectorContext, ServerError> {
        let progress: Progress = get(self.reader(), self.id(), Space::FlowStats, key)?.unwrap_or_default();
        derive(&mut context, &progress, self.now_us());
        Ok(context)
    }

    /// The tables that a flow has: those of its queries with rows.
    ///
    /// # Errors
    /// When storage fails.
    pub fn flow_queries(&self, target: &Target, flow: &FlowId) -> Result<Vec<QueryName>, ServerError> {
        let Some(context) = self.flow(target, flow)? else { return Ok(Vec::new()) };
        let request = context.request.unwrap_or_default();
        let names = request.compiled_collector_args.iter().flat_map(|args| &args.query).filter_map(|query| query.name.parse().ok());
        let mut queries: Vec<QueryName> = Vec::new();
        for query in names {
            if !queries.contains(&query) && self.reader().table(self.id(), &flow_rows(target, flow, &query))?.rows > 0 {
                queries.push(query);
            }
        }
        Ok(queries)
    }

    /// The rows of a table from `start` on, as JSON text, one by one.
    ///
    /// # Errors
    /// When storage fails; each row can fail too.
    pub fn rows(&self, table: &ObjectName, start: u64) -> Result<Lines, ServerError> {
        Ok(Lines { blocks: self.reader().rows(self.id(), table, start)?, block: bytes::Bytes::new(), next: 0, start })
    }

    /// The name of a flow's table of rows.
    #[must_use]
    pub fn rows_table(target: &Target, flow: &FlowId, query: &QueryName) -> ObjectName {
        flow_rows(target, flow, query)
    }

    /// The name of a flow's table of log lines.
    #[must_use]
    pub fn logs_table(target: &Target, flow: &FlowId) -> ObjectName {
        flow_logs(target, flow)
    }

    /// The name of a flow's table of uploads.
    #[must_use]
    pub fn uploads_table(target: &Target, flow: &FlowId) -> ObjectName {
        flow_uploads(target, flow)
    }
}

/// The rows of a table as JSON text.
pub struct Lines {
    blocks: talon_store::RowBlocks,
    block: bytes::Bytes,
    next: u64,
    start: u64,
}

impl Iterator for Lines {
    type Item = Result<String, ServerError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while !self.block.is_empty() {
                let end = self.block.iter().position(|&byte| byte == b'\n').unwrap_or(self.block.len());
                let line = self.block.split_to(end);
                let _ = self.block.split_to(1.min(self.block.len()));
                let index = self.next;
                self.next = self.next.saturating_add(1);
                if index >= self.start {
                    return Some(Ok(String::from_utf8_lossy(&line).into_owned()));
                }
            }
            match self.blocks.next()? {
                Ok((first, block)) => (self.next, self.block) = (first, block),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

/// The request without values that are not to be seen again.
pub(crate) fn redacted(request: &ArtifactCollectorArgs) -> ArtifactCollectorArgs {
    let mut request = request.clone();
    let mut hidden = std::collections::BTreeSet::new();
    for variable in request.compiled_collector_args.iter_mut().flat_map(|args| &mut args.env) {
        if variable.comment == REDACTED_COMMENT {
            REDACTED.clone_into(&mut variable.value);
            hidden.insert(variable.key.clone());
        }
    }
    let parameters = request.specs.iter_mut().filter_map(|spec| spec.parameters.as_mut()).flat_map(|parameters| &mut parameters.env);
    for variable in parameters.filter(|variable| hidden.contains(&variable.key)) {
        REDACTED.clone_into(&mut variable.value);
    }
    request
}

/// What a flow that was cancelled says.
#[must_use]
pub fn cancelled_by(user: &UserName) -> String {
    format!("Cancelled by {user}")
}

#[cfg(test)]
mod tests {
    use talon_proto::{ArtifactParameters, ArtifactSpec, VqlEnv};

    use super::*;

    #[test]
    fn a_redacted_parameter_is_kept_nowhere() {
        let variable = |key: &str, comment: &str| VqlEnv { key: key.into(), value: "hunter2".into(), comment: comment.into() };
        let request = ArtifactCollectorArgs {
            compiled_collector_args: vec![VqlCollectorArgs {
                env: vec![variable("Password", REDACTED_COMMENT), variable("Path", "")],
                ..VqlCollectorArgs::default()
            }],
            specs: vec![ArtifactSpec {
                parameters: Some(ArtifactParameters { env: vec![variable("Password", ""), variable("Path", "")] }),
                ..ArtifactSpec::default()
            }],
            ..ArtifactCollectorArgs::default()
        };
        let kept = redacted(&request);
        let values: Vec<&str> = kept.compiled_collector_args[0].env.iter().map(|variable| variable.value.as_str()).collect();
        assert_eq!(values, [REDACTED, "hunter2"]);
        assert_eq!(kept.specs[0].parameters.as_ref().unwrap().env[0].value, REDACTED);
    }
}
