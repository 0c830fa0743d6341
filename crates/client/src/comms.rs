//! The two loops that talk to the server: the reader polls for requests, the sender delivers results. What they do about an answer is decided in
//! [`crate::schedule`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use talon_pki::create_csr;
use talon_proto::{Certificate, ForemanCheckin, VeloMessage};
use talon_transport::{Handler, Post};
use talon_vql::Dict;
use talon_wire::{Blobs, Compression, MessageList, Packer, Reply, UnixMicros};

use crate::connection::{Connected, Connector};
use crate::flow::{micros, monitoring_row};
use crate::outbox::Lease;
use crate::schedule::{AtMostEvery, Attempts, Decision, Outcome, Pace, Payload};
use crate::{ClientError, Executor, Outbox};

/// One certificate request in this time (spec 01 §6.1).
const REQUEST_PERIOD: Duration = Duration::from_secs(60);

pub(crate) struct Comms {
    pub(crate) connector: Connector,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) compression: Compression,
    /// What the agent reports of itself, and how often.
    pub(crate) host_facts: Box<dyn Fn() -> Option<Dict> + Send + Sync>,
    pub(crate) facts_period: Option<Duration>,
    pub(crate) requests: Mutex<AtMostEvery>,
}

impl Comms {
    pub(crate) fn request_limit() -> Mutex<AtMostEvery> {
        Mutex::new(AtMostEvery::new(REQUEST_PERIOD))
    }

    /// Polls for requests, for ever.
    pub(crate) async fn read(&self) -> Result<(), ClientError> {
        let (mut attempts, mut pace) = (Attempts::default(), Pace::default());
        let mut facts_due = self.facts_period.map(AtMostEvery::new);
        let mut facts = None;
        loop {
            let connected = self.connector.connected().await?;
            let now = self.connector.clock.elapsed();
            if facts_due.as_mut().is_some_and(|due| due.is_due(now)) {
                facts = (self.host_facts)();
            }
            let blobs = self.poll(facts.as_ref())?;
            let body = connected.session.seal(self.now(), &blobs)?;
            let (outcome, messages) = self.exchange(&connected, Handler::Reader, false, body).await;
            let mut decision = attempts.decide(outcome, &self.connector.intervals, self.connector.fraction());
            if decision.payload != Payload::Keep {
                facts = None;
                let took = self.connector.clock.elapsed().saturating_sub(now);
                decision.wait = pace.pause(took, !messages.is_empty(), &self.connector.intervals);
            }
            self.dispatch(messages).await;
            self.follow(&connected, outcome, decision).await;
        }
    }

    /// The content of a poll (spec 01 §9).
    fn poll(&self, facts: Option<&Dict>) -> Result<Blobs, ClientError> {
        let checkin = ForemanCheckin { last_event_table_version: self.executor.event_table_version(), ..ForemanCheckin::default() };
        let mut list = MessageList::from(&VeloMessage {
            session_id: "E.Foreman".to_owned(),
            foreman_checkin: Some(checkin),
            ..VeloMessage::default()
        });
        if let Some(facts) = facts {
            let query_id = self.connector.random.next() >> 1;
            list.push(&monitoring_row("Server.Internal.ClientInfo", query_id, facts, micros(&*self.connector.clock)));
        }
        self.packed(&list)
    }

    fn packed(&self, list: &MessageList) -> Result<Blobs, ClientError> {
        let mut packer = Packer::new(self.compression, 0);
        packer.push(list.as_bytes())?;
        Ok(packer.finish())
    }

    async fn dispatch(&self, messages: Vec<VeloMessage>) {
        let executor = Arc::clone(&self.executor);
        if !messages.is_empty() {
            // Answers to questions may have to wait for room in the outbox.
            drop(tokio::task::spawn_blocking(move || messages.into_iter().for_each(|message| executor.handle(message))));
        }
    }

    /// Delivers what the outbox holds, for ever.
    pub(crate) async fn send(&self) -> Result<(), ClientError> {
        loop {
            let outbox = Arc::clone(&self.outbox);
            let lease = tokio::task::spawn_blocking(move || outbox.lease()).await;
            let lease = lease.map_err(|error| ClientError::System(Arc::new(std::io::Error::other(error))))??;
            let Some(lease) = lease else {
                self.outbox.ready().await;
                continue;
            };
            let lease = self.deliver(lease).await?;
            let (outbox, urgent) = (Arc::clone(&self.outbox), lease.is_urgent());
            drop(tokio::task::spawn_blocking(move || outbox.delivered(&lease)).await);
            if !urgent && !self.outbox.is_pressing() {
                tokio::time::sleep(self.connector.intervals.min_poll).await;
            }
        }
    }

    /// Sends one payload until the server has taken or rejected it.
    async fn deliver(&self, lease: Lease) -> Result<Lease, ClientError> {
        let mut attempts = Attempts::default();
        loop {
            let connected = self.connector.connected().await?;
            let body = connected.session.seal(self.now(), lease.blobs())?;
            let (outcome, messages) = self.exchange(&connected, Handler::Control, lease.is_urgent(), body).await;
            let decision = attempts.decide(outcome, &self.connector.intervals, self.connector.fraction());
            self.dispatch(messages).await;
            if decision.payload == Payload::Reject {
                tracing::warn!(bytes = lease.blobs().size(), "the server rejected results of this agent; they are dropped");
            }
            if decision.payload != Payload::Keep {
                if outcome == Outcome::Delivered {
                    self.connector.good(&connected).await;
                }
                return Ok(lease);
            }
            self.follow(&connected, outcome, decision).await;
        }
    }

    /// Does what a decision says besides the payload's fate.
    async fn follow(&self, connected: &Connected, outcome: Outcome, decision: Decision) {
        if outcome == Outcome::Delivered {
            self.connector.good(connected).await;
        }
        if decision.enrol {
            self.enrol(connected).await;
        }
        let mut wait = decision.wait;
        if decision.advance {
            let rekeyed = outcome == Outcome::Status(403) && self.connector.key_changed(connected).await;
            if rekeyed || !self.connector.advance(connected).await {
                wait = self.connector.intervals.min_poll;
            }
        }
        tokio::time::sleep(wait).await;
    }

    /// Asks for enrolment, at most once a minute.
    async fn enrol(&self, connected: &Connected) {
        let due = self.requests.lock().unwrap_or_else(PoisonError::into_inner).is_due(self.connector.clock.elapsed());
        if !due {
            return;
        }
        tracing::info!(client = %self.connector.codec.client_id(), "the server does not know this agent: asking for enrolment");
        let outcome = match self.certificate_request(connected) {
            Ok(body) => self.exchange(connected, Handler::Control, true, body).await.0,
            Err(error) => {
                tracing::error!(%error, "the certificate request cannot be made");
                return;
            }
        };
        // 406 is how a server says that it took the request.
        if !matches!(outcome, Outcome::Delivered | Outcome::Status(406)) {
            tracing::warn!(?outcome, "the server did not take the certificate request");
        }
    }

    fn certificate_request(&self, connected: &Connected) -> Result<Bytes, ClientError> {
        let pem = create_csr(self.connector.codec.key()).map_err(|error| ClientError::Configuration(error.to_string()))?;
        let request = VeloMessage {
            session_id: "E:Enrol".to_owned(),
            urgent: true,
            csr: Some(Certificate { pem: pem.into_bytes().into(), ..Certificate::default() }),
            ..VeloMessage::default()
        };
        Ok(connected.session.seal(self.now(), &self.packed(&MessageList::from(&request))?)?)
    }

    async fn exchange(&self, connected: &Connected, handler: Handler, urgent: bool, body: Bytes) -> (Outcome, Vec<VeloMessage>) {
        let reply = match self.connector.link.post(&connected.url, Post { handler, urgent, body }).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(error = error.with_causes(), url = %connected.url, ?handler, "no answer");
                return (Outcome::NoAnswer, Vec::new());
            }
        };
        if reply.status != 200 {
            tracing::debug!(status = reply.status, ?handler, "the server did not accept a packet");
            return (Outcome::Status(reply.status), Vec::new());
        }
        match connected.session.open(reply.body) {
            Ok(Reply::Empty) => (Outcome::Delivered, Vec::new()),
            Ok(Reply::Verified(packet)) => {
                let mut messages = Vec::new();
                for message in packet.messages() {
                    match message {
                        Ok(message) => messages.push(message),
                        Err(error) => tracing::warn!(?error, "a part of the server's packet is not understood"),
                    }
                }
                (Outcome::Delivered, messages)
            }
            Ok(Reply::Repeated) => {
                tracing::warn!(?handler, "a packet of the server came a second time; it is passed over");
                (Outcome::Delivered, Vec::new())
            }
            Ok(_) => {
                tracing::warn!(?handler, "a packet is not signed by the server");
                (Outcome::Unauthentic, Vec::new())
            }
            Err(error) => {
                tracing::warn!(?error, ?handler, "an answer cannot be opened");
                (Outcome::Unreadable, Vec::new())
            }
        }
    }

    fn now(&self) -> UnixMicros {
        UnixMicros(micros(&*self.connector.clock))
    }
}
