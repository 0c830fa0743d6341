//! Makes `fixtures/wire`: packets of both roles with throwaway keys, so that the wire format is tested where no recordings are at hand.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_proto::{
    Certificate, FlowRequest, FlowStats, ForemanCheckin, LogMessage, VeloMessage, VeloStatus, VqlCollectorArgs, VqlRequest, VqlResponse,
};
use talon_wire::{AgentCodec, Blobs, Directory, Limits, LookupError, MessageList, Opened, ServerCodec, UnixMicros};

use crate::workspace_root;

/// The nonce of the only organisation in the fixtures.
const NONCE: &str = "Zml4dHVyZXM=";
/// The flow that the packets speak of.
const FLOW: &str = "F.CL9V2001081G8";
/// When every packet was made, in microseconds.
const MADE_AT: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// Writes the fixtures. What is there already is kept unless `force` is set, since every run makes new keys.
pub(crate) fn run(force: bool) -> Result<()> {
    let folder = workspace_root().join("fixtures/wire");
    if folder.join("server.pem").exists() && !force {
        bail!("fixtures/wire exists; `cargo xtask fixtures --force` makes it anew, with new keys");
    }
    fs::create_dir_all(&folder)?;
    let (server, agent) = (RsaPrivateKey::generate()?, RsaPrivateKey::generate()?);
    fs::write(folder.join("server.pem"), server.to_pkcs1_pem()?.as_bytes())?;
    fs::write(folder.join("agent.pem"), agent.to_pkcs1_pem()?.as_bytes())?;
    to_server(&folder, &server, &agent)
}

/// What an agent sends: a check-in, a certificate request, rows with a log and final statistics.
fn to_server(folder: &Path, server: &RsaPrivateKey, agent: &RsaPrivateKey) -> Result<()> {
    let codec = AgentCodec::new(agent.clone(), NONCE, Limits::default(), SystemRng);
    let session = codec.session("VelociraptorServer", server.public()).context("starting the agent's session")?;
    let lists = [
        ("checkin", vec![check_in()], false),
        ("request", vec![certificate_request()], true),
        ("results", vec![rows(), log(), finished()], true),
    ];
    for (name, messages, compressed) in lists {
        let list = list(&messages);
        fs::write(folder.join(format!("{name}.messages")), list.as_bytes())?;
        let blobs = if compressed { Blobs::compressed([list])? } else { Blobs::plain([list]) };
        fs::write(folder.join(format!("{name}.packet")), session.seal(MADE_AT, &blobs)?)?;
    }
    to_agent(folder, server, agent)
}

/// What a server sends: one collection, sealed for the agent that it has just heard of.
fn to_agent(folder: &Path, server: &RsaPrivateKey, agent: &RsaPrivateKey) -> Result<()> {
    let codec = ServerCodec::new(server.clone(), "VelociraptorServer", Limits::default(), SystemRng);
    let directory = OneAgent(agent.public().clone());
    let packet = fs::read(folder.join("checkin.packet"))?;
    let Opened::Authenticated(packet) = codec.open(packet.into(), IpAddr::from([127, 0, 0, 1]), MADE_AT, &directory)? else {
        bail!("the check-in is not authentic");
    };
    let list = list(&[collection()]);
    fs::write(folder.join("task.messages"), list.as_bytes())?;
    fs::write(folder.join("task.packet"), codec.seal(MADE_AT, packet.client(), &directory, &list)?)?;
    Ok(())
}

/// A deployment with one organisation and one agent.
struct OneAgent(RsaPublicKey);

impl Directory for OneAgent {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok((nonce == NONCE).then(OrgId::root))
    }

    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some(NONCE.to_owned()))
    }

    fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(Some(self.0.clone()))
    }
}

fn list(messages: &[VeloMessage]) -> MessageList {
    let mut list = MessageList::default();
    for message in messages {
        list.push(message);
    }
    list
}

fn check_in() -> VeloMessage {
    let checkin = ForemanCheckin { last_event_table_version: 1_700_000_000_000_000_000, ..ForemanCheckin::default() };
    VeloMessage { session_id: "E.Foreman".to_owned(), foreman_checkin: Some(checkin), ..VeloMessage::default() }
}

fn certificate_request() -> VeloMessage {
    let request =
        Certificate { pem: "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n".into(), ..Certificate::default() };
    VeloMessage { session_id: "E:Enrol".to_owned(), urgent: true, csr: Some(request), ..VeloMessage::default() }
}

fn rows() -> VeloMessage {
    let response = VqlResponse {
        query: Some(VqlRequest { name: "Custom.Fixture".to_owned(), vql: "SELECT 1 AS One FROM scope()".to_owned() }),
        columns: vec!["One".to_owned()],
        jsonl_response: "{\"One\":1}\n{\"One\":2}\n".to_owned(),
        total_rows: 2,
        timestamp: MADE_AT.0,
        ..VqlResponse::default()
    };
    VeloMessage { session_id: FLOW.to_owned(), vql_response: Some(response), ..VeloMessage::default() }
}

fn log() -> VeloMessage {
    let line = "{\"client_time\":1700000000,\"level\":\"INFO\",\"message\":\"Collection Custom.Fixture is done\\n\"}\n";
    let log = LogMessage { number_of_rows: 1, jsonl: line.to_owned(), ..LogMessage::default() };
    VeloMessage { session_id: FLOW.to_owned(), request_id: 980, log_message: Some(log), ..VeloMessage::default() }
}

fn finished() -> VeloMessage {
    let status =
        VeloStatus { result_rows: 2, log_rows: 1, names_with_response: vec!["Custom.Fixture".to_owned()], ..VeloStatus::default() };
    let stats = FlowStats { flow_complete: true, query_status: vec![status], ..FlowStats::default() };
    VeloMessage { session_id: FLOW.to_owned(), request_id: 981, flow_stats: Some(stats), ..VeloMessage::default() }
}

fn collection() -> VeloMessage {
    let query = VqlRequest { name: "Custom.Fixture".to_owned(), vql: "SELECT 1 AS One FROM scope()".to_owned() };
    let action = VqlCollectorArgs { query: vec![query], query_id: 1, total_queries: 1, max_row: 1000, ..VqlCollectorArgs::default() };
    let request = FlowRequest { vql_client_actions: vec![action], log_batch_time: 2000, ..FlowRequest::default() };
    VeloMessage { session_id: FLOW.to_owned(), request_id: 1, flow_request: Some(request), ..VeloMessage::default() }
}
