//! The ordinary life of agent and server: enrolment, sessions that are resent, replaced and forgotten, answers.

use bytes::Bytes;
use talon_crypto::SystemRng;
use talon_proto::Certificate;

use super::*;
use crate::{
    AgentCodec, AgentSession, Blobs, BudgetLimits, Limits, MessageList, Opened, PAD, Packet, Reason, Reply, ServerCodec, Unauthenticated,
    WireError,
};

fn server(key: &RsaPrivateKey, limits: Limits) -> ServerCodec {
    ServerCodec::new(key.clone(), SERVER, limits, SystemRng)
}

fn session(server: &RsaPrivateKey, agent: &RsaPrivateKey, nonce: &str) -> AgentSession {
    AgentCodec::new(agent.clone(), nonce, Limits::default(), SystemRng).session(SERVER, server.public()).unwrap()
}

fn packet(session: &AgentSession, id: &str) -> Bytes {
    session.seal(NOW, &Blobs::compressed([MessageList::from(&message(id))]).unwrap()).unwrap()
}

fn known(opened: Result<Opened, WireError>) -> Packet {
    match opened.unwrap() {
        Opened::Authenticated(packet) => packet,
        other => panic!("{other:?}"),
    }
}

fn unknown(opened: Result<Opened, WireError>) -> Unauthenticated {
    match opened.unwrap() {
        Opened::Unauthenticated(packet) => packet,
        other => panic!("{other:?}"),
    }
}

/// A budget for exactly `sessions` RSA operations.
fn operations(sessions: u32) -> Limits {
    let budget = BudgetLimits { per_second: 0, burst: sessions, source_per_second: 0, source_burst: sessions, ..BudgetLimits::default() };
    Limits { budget, ..Limits::default() }
}

#[test]
fn a_session_is_unwrapped_once_and_authenticates_after_enrolment() {
    let (server_key, agent_key) = (key(), key());
    let deployment = Deployment::new();
    let server = server(&server_key, operations(1));
    let session = session(&server_key, &agent_key, ROOT_NONCE);
    for _ in 0..3 {
        let stranger = unknown(server.open(packet(&session, "F.1"), HERE, NOW, &deployment));
        assert!(stranger.is_from(agent_key.public()) && !stranger.is_from(server_key.public()));
        assert!(stranger.org().is_root() && stranger.csrs().is_empty());
    }
    deployment.enrol("root", agent_key.public());
    for _ in 0..3 {
        let packet = known(server.open(packet(&session, "F.1"), HERE, NOW, &deployment));
        assert_eq!(packet.client().client_id(), &client_id(agent_key.public()));
        assert_eq!(packet.timestamp(), NOW);
    }
}

#[test]
fn an_unknown_sender_can_only_hand_in_certificate_requests() {
    let (server_key, agent_key) = (key(), key());
    let server = server(&server_key, Limits::default());
    let session = session(&server_key, &agent_key, OTHER_NONCE);
    let request = |r#type: i32, pem: &'static str| VeloMessage {
        csr: Some(Certificate { r#type, pem: pem.into(), ..Certificate::default() }),
        ..message("E:Enrol")
    };
    let list: MessageList =
        [message("F.1"), request(0, "one"), request(1, "a certificate"), request(0, ""), request(0, "two")].iter().collect();
    let body = session.seal(NOW, &Blobs::plain([list])).unwrap();
    let stranger = unknown(server.open(body, HERE, NOW, &Deployment::new()));
    assert_eq!(stranger.csrs(), ["one", "two"]);
    assert_eq!(stranger.org().as_str(), "O1");

    let many: MessageList = vec![request(0, "again"); 100].iter().collect();
    let body = session.seal(NOW, &Blobs::plain([many])).unwrap();
    assert_eq!(unknown(server.open(body, HERE, NOW, &Deployment::new())).csrs().len(), 4);
}

#[test]
fn answers_are_for_one_agent_of_one_organisation() {
    let (server_key, agent_key, other_key) = (key(), key(), key());
    let deployment = Deployment::new();
    deployment.enrol("O1", agent_key.public());
    let server = server(&server_key, Limits::default());
    let agent = session(&server_key, &agent_key, OTHER_NONCE);
    let client = known(server.open(packet(&agent, "F.1"), HERE, NOW, &deployment)).client().clone();
    let mut reply = PAD.to_vec();
    reply.extend(server.seal(NOW, &client, &deployment, &MessageList::from(&message("F.9"))).unwrap());
    reply.extend(PAD);
    let reply = Bytes::from(reply);

    let Reply::Verified(verified) = agent.open(reply.clone()).unwrap() else { panic!() };
    assert_eq!(verified.timestamp(), NOW);
    let messages: Vec<_> = verified.messages().collect::<Result<_, _>>().unwrap();
    assert_eq!((messages[0].session_id.as_str(), messages[0].source.as_str()), ("F.9", SERVER));
    assert!(matches!(agent.open(reply.clone()).unwrap(), Reply::Repeated));

    let refused = |session: AgentSession| match session.open(reply.clone()) {
        Err(WireError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(session(&server_key, &other_key, OTHER_NONCE)), Reason::Cipher);
    assert_eq!(refused(session(&server_key, &agent_key, ROOT_NONCE)), Reason::Nonce);
    let codec = AgentCodec::new(agent_key.clone(), OTHER_NONCE, Limits::default(), SystemRng);
    let renamed = codec.session("OtherServer", server_key.public()).unwrap();
    assert!(matches!(renamed.open(reply.clone()).unwrap(), Reply::Unauthenticated));
    let rekeyed = codec.session(SERVER, other_key.public()).unwrap();
    assert!(matches!(rekeyed.open(reply).unwrap(), Reply::Unauthenticated));
    assert!(matches!(agent.open(PAD.into()).unwrap(), Reply::Empty));
    assert!(matches!(agent.open(Bytes::new()).unwrap(), Reply::Empty));
}

#[test]
fn a_second_answer_reuses_the_session_and_deletion_drops_it() {
    let (server_key, agent_key) = (key(), key());
    let deployment = Deployment::new();
    deployment.enrol("root", agent_key.public());
    let server = server(&server_key, Limits::default());
    let agent = session(&server_key, &agent_key, ROOT_NONCE);
    let client = known(server.open(packet(&agent, "F.1"), HERE, NOW, &deployment)).client().clone();
    let cipher = |reply: &Bytes| crate::envelope::Envelope::parse(reply.clone(), 1 << 20).unwrap().unwrap().cipher;
    let replies: Vec<_> = (0..3).map(|_| server.seal(NOW, &client, &deployment, &MessageList::default()).unwrap()).collect();
    assert_eq!(cipher(&replies[0]), cipher(&replies[1]));
    assert_ne!(replies[0], replies[1]);
    server.forget(client.org(), client.client_id());
    deployment.keys.lock().unwrap().clear();
    assert!(matches!(server.seal(NOW, &client, &deployment, &MessageList::default()), Err(WireError::UnknownRecipient)));
    unknown(server.open(packet(&agent, "F.1"), HERE, NOW, &deployment));
}

#[test]
fn the_memory_of_sessions_is_bounded_and_the_longest_unheard_goes_first() {
    let server_key = key();
    let deployment = Deployment::new();
    let keys: Vec<_> = (0..3).map(|_| key()).collect();
    keys.iter().for_each(|key| deployment.enrol("root", key.public()));
    let sessions: Vec<_> = keys.iter().map(|key| session(&server_key, key, ROOT_NONCE)).collect();
    let server = server(&server_key, Limits { sessions: 2, ..operations(4) });
    let open = |at: usize| server.open(packet(&sessions[at], "F.1"), HERE, NOW, &deployment);
    known(open(0));
    known(open(1));
    known(open(0));
    known(open(2)); // evicts 1
    known(open(0));
    known(open(2));
    known(open(1)); // the fourth operation; evicts 0
    assert!(matches!(open(0), Err(WireError::Throttled { .. })));
}

#[test]
fn a_new_session_of_a_client_replaces_the_old_one() {
    let (server_key, agent_key) = (key(), key());
    let deployment = Deployment::new();
    deployment.enrol("root", agent_key.public());
    let server = server(&server_key, operations(2));
    let (old, new) = (session(&server_key, &agent_key, ROOT_NONCE), session(&server_key, &agent_key, ROOT_NONCE));
    known(server.open(packet(&old, "F.1"), HERE, NOW, &deployment));
    known(server.open(packet(&new, "F.1"), HERE, NOW, &deployment));
    known(server.open(packet(&new, "F.1"), HERE, NOW, &deployment));
    assert!(matches!(server.open(packet(&old, "F.1"), HERE, NOW, &deployment), Err(WireError::Throttled { .. })));
}

#[test]
fn repeated_packets_are_recognised_once_they_were_processed() {
    let (server_key, agent_key) = (key(), key());
    let deployment = Deployment::new();
    deployment.enrol("root", agent_key.public());
    let server = server(&server_key, Limits { remembered_packets: 2, ..Limits::default() });
    let agent = session(&server_key, &agent_key, ROOT_NONCE);
    let first = packet(&agent, "F.1");
    let opened = known(server.open(first.clone(), HERE, NOW, &deployment));
    let client = opened.client().clone();
    assert!(!server.was_processed(&client, opened.id()));
    server.remember(&client, opened.id());
    assert!(server.was_processed(&client, known(server.open(first, HERE, NOW, &deployment)).id()));
    for _ in 0..2 {
        let next = known(server.open(packet(&agent, "F.1"), HERE, NOW, &deployment));
        assert!(!server.was_processed(&client, next.id()), "the same content in a new packet is new");
        server.remember(&client, next.id());
    }
    assert!(!server.was_processed(&client, opened.id()), "the memory is bounded");
}

#[test]
fn a_lookup_that_fails_is_no_verdict() {
    struct Down;
    impl Directory for Down {
        fn org_of_nonce(&self, _: &str) -> Result<Option<OrgId>, LookupError> {
            Ok(Some(OrgId::root()))
        }
        fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
            Err("down".into())
        }
        fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
            Err("down".into())
        }
    }
    let (server_key, agent_key) = (key(), key());
    let server = server(&server_key, Limits::default());
    let body = packet(&session(&server_key, &agent_key, ROOT_NONCE), "F.1");
    assert!(matches!(server.open(body, HERE, NOW, &Down), Err(WireError::Lookup(_))));
}
