//! Enrolment: a certificate request becomes a client with a key, a record and an interrogation, in one transaction.
//!
//! A client id is 64 bits of a digest over the key. Should somebody find another key with the same id, the enrolled key stays and the attempt is announced:
//! keys are never replaced by the one who asks.

use prost::Message;
use serde_json::json;
use talon_crypto::RsaPublicKey;
use talon_ids::ClientId;
use talon_pki::VerifiedRequest;
use talon_proto::{ArtifactCollectorArgs, ClientInfo, PublicKey};
use talon_store::Space;

use crate::ServerError;
use crate::bus::Event;
use crate::clients::{INTERROGATIONS, index};
use crate::events;
use crate::layout::{client_key, decode, get, put};
use crate::org::{Org, lock};
use crate::transaction::Pending;

/// How an enrolment ended.
#[derive(Debug)]
pub(crate) struct Enrolled {
    events: Vec<Event>,
    /// Another key is enrolled under this id.
    pub(crate) conflict: bool,
}

impl Org {
    /// Enrols the holder of a verified request. Doing it again changes nothing.
    pub(crate) fn enrol(&self, request: &VerifiedRequest, remote: &str) -> Pending<Enrolled> {
        let (org, client, remote) = (self.clone(), request.client_id().clone(), remote.to_owned());
        let pem = request.public_key().to_pkcs1_pem();
        let published = self.clone();
        let pending = self.submit(move |txn| {
            let now_s = org.now_us() / 1_000_000;
            let key = client_key(&client);
            if let Some(stored) = get::<PublicKey>(&*txn, org.id(), Space::ClientKeys, &key)? {
                let same =
                    RsaPublicKey::from_pkcs1_pem(&String::from_utf8_lossy(&stored.pem)).is_ok_and(|stored| stored.to_pkcs1_pem() == pem);
                if !same {
                    let row =
                        [("ClientId", json!(client.as_str())), ("RemoteAddr", json!(remote)), ("Reason", json!("another key is enrolled"))];
                    let event = events::internal("Server.Internal.ClientConflict", &row, now_s);
                    return Ok(Enrolled { events: vec![event], conflict: true });
                }
            } else {
                let record = PublicKey { pem: pem.into_bytes().into(), enroll_time: now_s };
                txn.put(org.id(), Space::ClientKeys, &key, record.encode_to_vec());
            }
            let row = [("ClientId", json!(client.as_str()))];
            let events = vec![events::internal("Server.Internal.Enrollment", &row, now_s)];
            org.make_record(txn, &client)?;
            Ok(Enrolled { events, conflict: false })
        });
        let back = request.client_id().clone();
        pending.then(move |enrolled| {
            if !enrolled.conflict {
                lock(&published.state().removed).remove(&back);
            }
            published.publish_all(&enrolled.events);
        })
    }

    /// Makes the record of a client that has none, and schedules its interrogation.
    ///
    /// The interrogation is the server's own doing: nobody decides it, so it is announced and not put into the audit log.
    pub(crate) fn make_record(&self, txn: &mut dyn talon_store::Txn, client: &ClientId) -> Result<(), ServerError> {
        let mut info = get::<ClientInfo>(&*txn, self.id(), Space::Clients, &client_key(client))?.unwrap_or_default();
        info.client_id = client.to_string();
        if info.first_seen_at == 0 {
            info.first_seen_at = self.now_us() / 1_000_000;
        }
        if info.last_interrogate_flow_id.is_empty() && self.shared().settings.interrogate {
            let catalog = self.catalog();
            let artifact = INTERROGATIONS.into_iter().find(|name| name.parse().is_ok_and(|name| catalog.kind(&name).is_some()));
            if let Some(artifact) = artifact {
                let request = ArtifactCollectorArgs {
                    creator: "InterrogationService".into(),
                    client_id: client.to_string(),
                    artifacts: vec![artifact.to_owned()],
                    ..ArtifactCollectorArgs::default()
                };
                match self.complete(request) {
                    Ok(request) => {
                        let flow = self.new_flow_id();
                        self.write_flow(txn, client, &flow, &request);
                        info.last_interrogate_flow_id = flow.to_string();
                        info.last_interrogate_artifact_name = artifact.to_owned();
                    }
                    // An administrator's own artifact may be broken; its clients must enrol nevertheless.
                    Err(error) => tracing::error!(org = %self.id(), artifact, %error, "the interrogation artifact does not compile"),
                }
            }
        }
        index(txn, self.id(), &info);
        put(txn, self.id(), Space::Clients, &client_key(client), &info);
        Ok(())
    }

    /// The key that a client enrolled with.
    ///
    /// # Errors
    /// When storage fails.
    pub fn enrolled_key(&self, client: &ClientId) -> Result<Option<RsaPublicKey>, ServerError> {
        let key = client_key(client);
        let Some(bytes) = self.reader().get(self.id(), Space::ClientKeys, &key)? else { return Ok(None) };
        let stored: PublicKey = decode(Space::ClientKeys, &key, &bytes)?;
        Ok(RsaPublicKey::from_pkcs1_pem(&String::from_utf8_lossy(&stored.pem)).ok())
    }
}
