//! The verified server: its certificate is fetched and checked, a session is started, and both are replaced when the server's key changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use talon_crypto::RsaPublicKey;
use talon_pki::{TrustBundle, UnixTime, VerifiedCertificate, verify_server_pem};
use talon_transport::{ServerLink, ServerUrl};
use talon_vql::{Clock, Random};
use talon_wire::{AgentCodec, AgentSession};

use crate::schedule::{Intervals, Servers};
use crate::{ClientError, Writeback};

/// What it takes to find and verify a server.
pub(crate) struct Connector {
    pub(crate) link: Arc<dyn ServerLink>,
    pub(crate) codec: AgentCodec,
    pub(crate) trust: TrustBundle,
    pub(crate) server_name: String,
    pub(crate) intervals: Intervals,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) writeback: Arc<Mutex<Writeback>>,
    state: tokio::sync::Mutex<State>,
}

struct State {
    servers: Servers,
    connected: Option<Arc<Connected>>,
    generation: u64,
}

/// A session with a verified server.
pub(crate) struct Connected {
    pub(crate) session: AgentSession,
    pub(crate) url: ServerUrl,
    key: RsaPublicKey,
    generation: u64,
}

/// Everything of a [`Connector`] but its state.
pub(crate) struct ConnectorParts {
    pub(crate) link: Arc<dyn ServerLink>,
    pub(crate) codec: AgentCodec,
    pub(crate) trust: TrustBundle,
    pub(crate) server_name: String,
    pub(crate) intervals: Intervals,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) writeback: Arc<Mutex<Writeback>>,
}

impl Connector {
    pub(crate) fn new(parts: ConnectorParts, servers: Servers) -> Self {
        let ConnectorParts { link, codec, trust, server_name, intervals, clock, random, writeback } = parts;
        let state = tokio::sync::Mutex::new(State { servers, connected: None, generation: 0 });
        Self { link, codec, trust, server_name, intervals, clock, random, writeback, state }
    }

    /// The session to use. Without one, servers are tried in turn until one shows an acceptable certificate; everybody else waits meanwhile.
    pub(crate) async fn connected(&self) -> Result<Arc<Connected>, ClientError> {
        let mut state = self.state.lock().await;
        loop {
            if let Some(connected) = &state.connected {
                return Ok(Arc::clone(connected));
            }
            let Some(url) = state.servers.current().cloned() else {
                return Err(ClientError::Configuration("Client.server_urls is empty".to_owned()));
            };
            match self.verify(&url).await {
                Some(certificate) => {
                    if let Err(error) = self.connect(&mut state, url.clone(), &certificate).await {
                        tracing::warn!(%error, %url, "no session with the server");
                    } else {
                        continue;
                    }
                }
                None => tracing::debug!(%url, "this server is not acceptable at the moment"),
            }
            if state.servers.advance() {
                tokio::time::sleep(self.intervals.back_off(self.fraction())).await;
            }
        }
    }

    /// The server answered well.
    pub(crate) async fn good(&self, connected: &Connected) {
        let mut state = self.state.lock().await;
        if state.generation == connected.generation {
            state.servers.good();
        }
    }

    /// Gives the session up and turns to the next server. Returns whether it is time for a pause: all servers have been tried. The session may have been
    /// given up by another loop already.
    pub(crate) async fn advance(&self, connected: &Connected) -> bool {
        let mut state = self.state.lock().await;
        if state.generation != connected.generation {
            return true;
        }
        state.connected = None;
        state.generation = state.generation.saturating_add(1);
        state.servers.advance()
    }

    /// After a refusal: whether the server has another key than the session was made for. Then there is a new session, and no reason to wait.
    pub(crate) async fn key_changed(&self, connected: &Connected) -> bool {
        let mut state = self.state.lock().await;
        if state.generation != connected.generation {
            return state.connected.is_some();
        }
        let Some(certificate) = self.verify(&connected.url).await else { return false };
        match certificate.public_key() {
            Ok(key) if key != connected.key => self.connect(&mut state, connected.url.clone(), &certificate).await.is_ok(),
            _ => false,
        }
    }

    async fn connect(&self, state: &mut State, url: ServerUrl, certificate: &VerifiedCertificate) -> Result<(), ClientError> {
        let key = certificate.public_key().map_err(|error| ClientError::Configuration(error.to_string()))?;
        let session = self.codec.session(certificate.name(), &key)?;
        state.generation = state.generation.saturating_add(1);
        tracing::info!(%url, server = certificate.name(), "started a session with the server");
        state.connected = Some(Arc::new(Connected { session, url, key, generation: state.generation }));
        let (writeback, pem) = (Arc::clone(&self.writeback), certificate.certificate().pem());
        let stored =
            tokio::task::spawn_blocking(move || writeback.lock().unwrap_or_else(PoisonError::into_inner).set_server_pem(&pem)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "the server's certificate cannot be stored");
        }
        Ok(())
    }

    /// Fetches and verifies `server.pem` (spec 01 §5.4).
    async fn verify(&self, url: &ServerUrl) -> Option<VerifiedCertificate> {
        let pem = match self.link.fetch_pem(url).await {
            Ok(pem) => pem,
            Err(error) => {
                tracing::warn!(error = error.with_causes(), %url, "the server's certificate cannot be fetched");
                return None;
            }
        };
        let nanos = u64::try_from(self.clock.now().unix_nanos()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_nanos(nanos));
        match verify_server_pem(&pem, &self.trust, &self.server_name, now) {
            Ok(certificate) => Some(certificate),
            Err(error) => {
                tracing::warn!(%error, %url, "the server's certificate is not acceptable");
                None
            }
        }
    }

    /// A number between 0 and 1.
    pub(crate) fn fraction(&self) -> f64 {
        fraction(&*self.random)
    }
}

/// A number between 0 and 1, with the precision that jitter needs.
pub(crate) fn fraction(random: &dyn Random) -> f64 {
    f64::from(u32::try_from(random.next() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
