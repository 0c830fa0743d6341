//! Both roles against each other, against hostile peers, and against packets of stock peers.

mod agent_behaviour;
mod hostile;
mod roles;
mod vectors;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey};
use talon_ids::{ClientId, OrgId};
use talon_proto::VeloMessage;

use crate::{Directory, LookupError, UnixMicros, client_id};

const SERVER: &str = "VelociraptorServer";
const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const ROOT_NONCE: &str = "root nonce";
const OTHER_NONCE: &str = "other nonce";

/// A deployment with two organisations whose clients are enrolled by hand.
#[derive(Default)]
struct Deployment {
    nonces: Vec<(String, OrgId)>,
    keys: Mutex<BTreeMap<(OrgId, ClientId), RsaPublicKey>>,
}

impl Deployment {
    fn new() -> Self {
        let nonces = vec![(ROOT_NONCE.into(), OrgId::root()), (OTHER_NONCE.into(), "O1".parse().unwrap())];
        Self { nonces, keys: Mutex::default() }
    }

    fn enrol(&self, org: &str, key: &RsaPublicKey) {
        self.keys.lock().unwrap().insert((org.parse().unwrap(), client_id(key)), key.clone());
    }
}

impl Directory for Deployment {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok(self.nonces.iter().find(|(known, _)| known == nonce).map(|(_, org)| org.clone()))
    }

    fn nonce_of_org(&self, org: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(self.nonces.iter().find(|(_, known)| known == org).map(|(nonce, _)| nonce.clone()))
    }

    fn client_key(&self, org: &OrgId, client: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(self.keys.lock().unwrap().get(&(org.clone(), client.clone())).cloned())
    }
}

/// Gives out recorded bytes, in order.
struct Replay(Mutex<Vec<u8>>);

impl Rng for Replay {
    fn fill(&self, out: &mut [u8]) {
        let mut rest = self.0.lock().unwrap();
        out.copy_from_slice(&rest.drain(..out.len()).collect::<Vec<_>>());
    }
}

fn key() -> RsaPrivateKey {
    RsaPrivateKey::generate().unwrap()
}

fn message(session: &str) -> VeloMessage {
    VeloMessage { session_id: session.into(), ..VeloMessage::default() }
}
