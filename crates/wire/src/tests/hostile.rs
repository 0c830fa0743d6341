//! Peers that lie: every rule is tested by its violation.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use talon_crypto::SystemRng;
use talon_proto::ClientCommunication;

use super::*;
use crate::session::{Outbound, Received};
use crate::{
    AgentCodec, Blobs, BudgetLimits, Compression, Limits, MessageList, Opened, Reason, Reply, ServerCodec, SessionOptions, WireError,
};

/// A server, an enrolled agent's key, and a hand on what the agent sends.
struct Scene {
    server_key: RsaPrivateKey,
    agent_key: RsaPrivateKey,
    deployment: Deployment,
    server: ServerCodec,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let (server_key, agent_key) = (key(), key());
        let deployment = Deployment::new();
        deployment.enrol("root", agent_key.public());
        let server = ServerCodec::new(server_key.clone(), SERVER, limits, SystemRng);
        Self { server_key, agent_key, deployment, server }
    }

    /// A session that claims `source` and is signed by `key`.
    fn session(&self, source: &str, key: &RsaPrivateKey) -> Outbound {
        Outbound::create(&SystemRng, key, source, self.server_key.public(), SessionOptions::default()).unwrap()
    }

    fn honest(&self) -> Outbound {
        self.session(client_id(self.agent_key.public()).as_str(), &self.agent_key)
    }

    fn open(&self, body: impl Into<Bytes>) -> Result<Opened, WireError> {
        self.server.open(body.into(), HERE, NOW, &self.deployment)
    }
}

fn seal(session: &Outbound, nonce: &str) -> Bytes {
    session.seal(&SystemRng, NOW, nonce, &Blobs::plain([MessageList::from(&message("F.1"))])).unwrap()
}

fn refusal(opened: Result<Opened, WireError>) -> Reason {
    match opened {
        Err(WireError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn is_known(opened: Result<Opened, WireError>) -> bool {
    matches!(opened.unwrap(), Opened::Authenticated(_))
}

/// A change to an envelope.
type Tamper = fn(&mut ClientCommunication);

fn flip(bytes: &mut Bytes, at: usize) {
    let mut changed = bytes.to_vec();
    changed[at] ^= 1;
    *bytes = changed.into();
}

#[test]
fn a_flipped_bit_in_any_field_is_refused() {
    let scene = Scene::new(Limits::default());
    let cases: [(&str, Tamper); 8] = [
        ("encrypted, first byte", |message| flip(&mut message.encrypted, 0)),
        ("encrypted, last byte", |message| {
            let last = message.encrypted.len() - 1;
            flip(&mut message.encrypted, last);
        }),
        ("encrypted_cipher", |message| flip(&mut message.encrypted_cipher, 100)),
        ("encrypted_cipher_metadata", |message| flip(&mut message.encrypted_cipher_metadata, 0)),
        ("packet_iv", |message| flip(&mut message.packet_iv, 15)),
        ("full_hmac", |message| flip(&mut message.full_hmac, 19)),
        ("api_version", |message| message.api_version ^= 1),
        ("encrypted_cipher_metadata dropped", |message| message.encrypted_cipher_metadata.clear()),
    ];
    for (what, tamper) in cases {
        for known in [false, true] {
            let session = scene.honest();
            if known {
                assert!(is_known(scene.open(seal(&session, ROOT_NONCE))));
            }
            let mut message = ClientCommunication::decode(seal(&session, ROOT_NONCE)).unwrap();
            tamper(&mut message);
            let reason = refusal(scene.open(message.encode_to_vec()));
            let expected = match what {
                "encrypted_cipher" => Reason::Cipher,
                "encrypted_cipher_metadata dropped" if !known => Reason::Length,
                _ => Reason::Mac,
            };
            assert_eq!(reason, expected, "{what}, known session: {known}");
            assert!(is_known(scene.open(seal(&session, ROOT_NONCE))), "{what} does not harm the session");
        }
    }
}

#[test]
fn nobody_speaks_for_somebody_else() {
    let scene = Scene::new(Limits::default());
    let stranger = key();
    let agent = client_id(scene.agent_key.public());
    for (source, key) in [
        (agent.as_str(), &stranger),
        (client_id(stranger.public()).as_str(), &scene.agent_key),
        (client_id(stranger.public()).as_str(), &stranger),
        (SERVER, &scene.agent_key),
        ("", &scene.agent_key),
        ("server", &scene.agent_key),
        (&format!("{agent}-O1"), &scene.agent_key),
        (&format!("{agent}-root"), &scene.agent_key),
        (&agent.as_str().to_uppercase(), &scene.agent_key),
    ] {
        let opened = scene.open(seal(&scene.session(source, key), ROOT_NONCE));
        assert!(matches!(opened.unwrap(), Opened::Unauthenticated(_)), "{source}");
    }
    assert!(is_known(scene.open(seal(&scene.honest(), ROOT_NONCE))));
}

#[test]
fn a_key_registered_under_an_id_that_is_not_its_own_authenticates_nobody() {
    let scene = Scene::new(Limits::default());
    let stranger = key();
    let victim = client_id(scene.agent_key.public());
    scene.deployment.keys.lock().unwrap().insert((OrgId::root(), victim.clone()), stranger.public().clone());
    let opened = scene.open(seal(&scene.session(victim.as_str(), &stranger), ROOT_NONCE));
    assert!(matches!(opened.unwrap(), Opened::Unauthenticated(_)));
}

#[test]
fn a_session_stays_in_its_organisation() {
    let scene = Scene::new(Limits::default());
    let session = scene.honest();
    assert!(is_known(scene.open(seal(&session, ROOT_NONCE))));
    assert_eq!(refusal(scene.open(seal(&session, OTHER_NONCE))), Reason::OtherOrg);
    for nonce in ["", "no such nonce"] {
        assert_eq!(refusal(scene.open(seal(&session, nonce))), Reason::Nonce);
        assert_eq!(refusal(scene.open(seal(&scene.honest(), nonce))), Reason::Nonce);
    }
    assert!(matches!(scene.open(seal(&scene.honest(), OTHER_NONCE)).unwrap(), Opened::Unauthenticated(_)));
    assert!(is_known(scene.open(seal(&session, ROOT_NONCE))));
}

#[test]
fn a_stranger_cannot_make_an_enrolled_agent_unknown() {
    let scene = Scene::new(Limits::default());
    let stranger = key();
    let source = client_id(scene.agent_key.public());
    for nonce in [ROOT_NONCE, OTHER_NONCE] {
        let opened = scene.open(seal(&scene.session(source.as_str(), &stranger), nonce));
        assert!(matches!(opened.unwrap(), Opened::Unauthenticated(_)));
        assert!(is_known(scene.open(seal(&scene.honest(), ROOT_NONCE))), "a new session right after");
    }
    let pending = scene.honest();
    assert!(matches!(scene.open(seal(&pending, OTHER_NONCE)).unwrap(), Opened::Unauthenticated(_)));
    assert!(is_known(scene.open(seal(&scene.honest(), ROOT_NONCE))), "the agent's own stray packet does no harm either");
}

#[test]
fn secrets_made_for_one_agent_do_not_speak_to_another() {
    let scene = Scene::new(Limits::default());
    let (first, second) = (AgentCodec::new(key(), ROOT_NONCE, Limits::default(), SystemRng), key());
    let to_first = |bind| {
        let options = SessionOptions { bind, ..SessionOptions::default() };
        Outbound::create(&SystemRng, &scene.server_key, SERVER, first.key().public(), options).unwrap()
    };
    let wrap_again = |mut session: Outbound| {
        // The first agent knows the secrets and the signature, so it can wrap them for the second one.
        let secrets = first.key().oaep_sha1_decrypt(session.cipher()).unwrap();
        session.replace_cipher(second.public().oaep_sha1_encrypt(&secrets).unwrap().into());
        seal(&session, ROOT_NONCE)
    };
    let victim =
        |limits| AgentCodec::new(second.clone(), ROOT_NONCE, limits, SystemRng).session(SERVER, scene.server_key.public()).unwrap();
    let strict = || Limits { session: SessionOptions { require_bound: true, ..SessionOptions::default() }, ..Limits::default() };

    assert!(matches!(victim(Limits::default()).open(wrap_again(to_first(true))), Err(WireError::Refused(Reason::Recipient))));
    assert!(matches!(victim(strict()).open(wrap_again(to_first(false))), Err(WireError::Refused(Reason::Recipient))));
    // This is what a stock server leaves open, and why servers of ours bind.
    assert!(matches!(victim(Limits::default()).open(wrap_again(to_first(false))).unwrap(), Reply::Verified(_)));
}

#[test]
fn junk_is_throttled_where_it_comes_from() {
    let budget = BudgetLimits { source_per_second: 1, source_burst: 5, ..BudgetLimits::default() };
    let scene = Scene::new(Limits { budget, ..Limits::default() });
    let junk = ClientCommunication {
        encrypted: vec![0; 32].into(),
        encrypted_cipher: vec![7; 256].into(),
        encrypted_cipher_metadata: vec![0; 32].into(),
        packet_iv: vec![0; 16].into(),
        full_hmac: vec![0; 20].into(),
        api_version: 4,
        ..ClientCommunication::default()
    }
    .encode_to_vec();
    for _ in 0..5 {
        assert_eq!(refusal(scene.open(junk.clone())), Reason::Cipher);
    }
    assert!(matches!(scene.open(junk), Err(WireError::Throttled { .. })));
    let elsewhere = [192, 0, 2, 2].into();
    for _ in 0..20 {
        let opened = scene.server.open(seal(&scene.honest(), ROOT_NONCE), elsewhere, NOW, &scene.deployment);
        assert!(is_known(opened), "honest agents behind one address");
    }
}

#[test]
fn wrong_content_is_a_matter_of_content() {
    let scene = Scene::new(Limits::default());
    let session = scene.honest();
    let content = |blobs: Blobs| {
        let body = session.seal(&SystemRng, NOW, ROOT_NONCE, &blobs).unwrap();
        let Opened::Authenticated(packet) = scene.open(body).unwrap() else { panic!() };
        packet.messages().unwrap().collect::<Result<Vec<_>, _>>()
    };
    let bomb = || {
        let mut list = MessageList::default();
        list.push_list(&vec![0; 101 << 20]);
        Blobs::compressed([list]).unwrap()
    };
    let raw = |compression, bytes: &'static [u8]| Blobs { compression, blobs: vec![Bytes::from_static(bytes)] };
    assert!(matches!(content(bomb()), Err(WireError::Content(Reason::Blob))));
    assert!(matches!(content(raw(Compression::Zlib, b"no zlib stream")), Err(WireError::Content(Reason::Blob))));
    assert!(matches!(content(raw(Compression::None, b"\x0a\x05no")), Err(WireError::Content(Reason::List))));
    assert_eq!(content(Blobs::default()).unwrap(), []);
}

#[test]
fn an_old_protocol_version_is_refused_after_authentication_and_a_newer_one_taken() {
    let scene = Scene::new(Limits::default());
    for (version, taken) in [(0, false), (3, false), (4, true), (5, true)] {
        let session = scene.honest();
        let body = session.seal_as(&SystemRng, NOW, ROOT_NONCE, &Blobs::default(), version).unwrap();
        let Opened::Authenticated(packet) = scene.open(body).unwrap() else { panic!("{version}") };
        assert_eq!(packet.messages().is_ok(), taken, "{version}");
    }
}

#[test]
fn the_text_of_an_error_does_not_tell_which_check_failed() {
    let texts: std::collections::BTreeSet<_> =
        [Reason::Mac, Reason::Cipher, Reason::Padding, Reason::Nonce, Reason::Envelope, Reason::OtherOrg]
            .into_iter()
            .map(|reason| WireError::Refused(reason).to_string())
            .collect();
    assert_eq!(texts.len(), 1);
}

#[test]
fn received_sessions_know_their_signer() {
    let scene = Scene::new(Limits::default());
    let body = seal(&scene.honest(), ROOT_NONCE);
    let envelope = crate::envelope::Envelope::parse(body, 1 << 20).unwrap().unwrap();
    let (session, _) = Received::open(&scene.server_key, &envelope, SessionOptions::default()).unwrap();
    assert!(session.is_signed_by(scene.agent_key.public()));
    assert!(!session.is_signed_by(scene.server_key.public()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_packets_never_pass_and_never_panic(at in 0..600_usize, value: u8, cut in 0..700_usize) {
        thread_local! {
            static SCENE: (Scene, Bytes) = {
                let scene = Scene::new(Limits::default());
                let body = seal(&scene.honest(), ROOT_NONCE);
                assert!(is_known(scene.open(body.clone())));
                (scene, body)
            };
        }
        SCENE.with(|(scene, body)| {
            let mut damaged = body.to_vec();
            let at = at % damaged.len();
            let changed = damaged[at] != value;
            damaged[at] = value;
            damaged.truncate(cut.max(at + 1));
            let whole = damaged.len() == body.len();
            let opened = scene.open(damaged);
            if changed || !whole {
                prop_assert!(!matches!(opened, Ok(Opened::Authenticated(_))) || parses_the_same(body, at, value));
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_are_safe_in_both_roles(junk: Vec<u8>) {
        thread_local! {
            static SCENE: (Scene, crate::AgentSession) = {
                let scene = Scene::new(Limits::default());
                let agent = AgentCodec::new(key(), ROOT_NONCE, Limits::default(), SystemRng);
                let session = agent.session(SERVER, scene.server_key.public()).unwrap();
                (scene, session)
            };
        }
        SCENE.with(|(scene, agent)| {
            let _ = scene.open(junk.clone());
            let _ = agent.open(junk.into());
        });
    }
}

/// A changed byte may leave the message as it was, for example by renaming a field that is empty anyway.
fn parses_the_same(body: &Bytes, at: usize, value: u8) -> bool {
    let mut changed = body.to_vec();
    changed[at] = value;
    ClientCommunication::decode(&*changed).ok() == ClientCommunication::decode(body.clone()).ok()
}
