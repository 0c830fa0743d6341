//! What it costs to open a packet, without a server around it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_proto::{VeloMessage, VqlResponse};
use talon_wire::{AgentCodec, Blobs, Directory, Limits as WireLimits, LookupError, MessageList, Opened, ServerCodec, UnixMicros};

use super::machine::{Limits, rate};
use super::table::Table;

/// Knows one agent.
struct OneAgent(RsaPublicKey);

impl Directory for OneAgent {
    fn org_of_nonce(&self, _: &str) -> Result<Option<OrgId>, LookupError> {
        Ok(Some(OrgId::root()))
    }
    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some("nonce".into()))
    }
    fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(Some(self.0.clone()))
    }
}

pub(super) fn measure(limits: &Limits, short: bool, table: &mut Table) -> Result<()> {
    let time = Duration::from_millis(if short { 300 } else { 2000 });
    let (server_key, agent_key) = (RsaPrivateKey::generate()?, RsaPrivateKey::generate()?);
    let from: IpAddr = [192, 0, 2, 1].into();
    let now = UnixMicros(1_700_000_000_000_000);
    let directory = OneAgent(agent_key.public().clone());
    let server = ServerCodec::new(server_key.clone(), "VelociraptorServer", WireLimits::default(), SystemRng);
    let agent = AgentCodec::new(agent_key, "nonce", WireLimits::default(), SystemRng);
    let session = agent.session("VelociraptorServer", server_key.public())?;
    let jsonl_response: String = (0..9).map(crate::load::row).collect();
    let response = VqlResponse { jsonl_response, total_rows: 9, ..VqlResponse::default() };
    let message = VeloMessage { session_id: "F.CL9V2001081G8".into(), vql_response: Some(response), ..VeloMessage::default() };
    let list = MessageList::from(&message);
    let size = list.len();
    let open = |body: &bytes::Bytes| -> Result<()> {
        let opened = server.open(body.clone(), from, now, &directory)?;
        let Opened::Authenticated(packet) = opened else { anyhow::bail!("the packet is of nobody") };
        ensure!(packet.messages()?.count() == 1, "the packet has other messages");
        Ok(())
    };
    let zlib = session.seal(now, &Blobs::compressed([list])?)?;
    let known = rate(time, || open(&zlib))?;
    table.add("open a packet of a known session", 1e6 / known, "µs").at_most(6.0).note(format!("{size} bytes, zlib"));
    let body = session.seal(now, &Blobs::default())?;
    let fresh = rate(time, || {
        let server = ServerCodec::new(server_key.clone(), "VelociraptorServer", WireLimits::default(), SystemRng);
        let opened = server.open(body.clone(), from, now, &directory)?;
        ensure!(matches!(opened, Opened::Authenticated(_)), "the packet is of nobody");
        Ok(())
    })?;
    let share = 100.0 * fresh / limits.decryptions;
    table.add("open the first packet of a session", share, "% of RSA").at_least(85.0).note(format!("{fresh:.0}/s on one core"));
    Ok(())
}
