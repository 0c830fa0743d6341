//! Statuses, bodies and certificates that were tried on a stock agent: ours makes the same requests in the same order.

use std::pin::Pin;

use bytes::Bytes;
use talon_crypto::SystemRng;
use talon_pki::{Authority, Identity, LeafProfile, UnixTime};
use talon_transport::{Handler, Post, Reply, ServerLink, ServerUrl, TransportError};

use super::conversation::settings_for;
use super::*;
use crate::Agent;

/// What a stock agent did first against a server that always answers the same: its requests, without repeats of the certificate's.
const CASES: &[(&str, &str)] = &[
    ("pads", "pem reader reader reader reader"),
    ("empty", "pem reader reader reader reader"),
    ("html200", "pem reader reader reader reader"),
    ("st400", "pem reader reader reader reader"),
    ("st403", "pem reader pem reader pem"),
    ("st406", "pem reader control! reader reader"),
    ("st408", "pem reader reader reader pem"),
    ("st409", "pem reader pem reader pem"),
    ("st500", "pem reader pem reader pem"),
    ("st503", "pem reader reader reader pem"),
    ("redirect", "pem reader pem reader pem"),
    ("pem404", "pem"),
    ("pem-portal", "pem"),
    ("pem-empty", "pem"),
    ("pem-wrong-ca", "pem"),
    ("pem-wrong-cn", "pem"),
    ("pem-expired", "pem"),
    ("pem-not-yet-valid", "pem"),
    ("pem-ec-key", "pem"),
    ("pem-client-auth-only", "pem"),
    ("pem-two", "pem"),
];

/// How many requests of a case are looked at.
const LOOKED_AT: usize = 5;

/// Always gives the same answers, and notes what was asked for.
struct Stubborn {
    pem: Result<Bytes, u16>,
    reply: Reply,
    asked: Mutex<Vec<&'static str>>,
    bodies: Mutex<Vec<usize>>,
}

struct Link(Arc<Stubborn>);

impl ServerLink for Link {
    fn fetch_pem<'a>(&'a self, _: &'a ServerUrl) -> Pin<Box<dyn Future<Output = Result<Bytes, TransportError>> + Send + 'a>> {
        self.0.asked.lock().unwrap().push("pem");
        Box::pin(async { self.0.pem.clone().map_err(TransportError::Status) })
    }

    fn post<'a>(&'a self, _: &'a ServerUrl, post: Post) -> Pin<Box<dyn Future<Output = Result<Reply, TransportError>> + Send + 'a>> {
        let what = match (post.handler, post.urgent) {
            (Handler::Reader, _) => "reader",
            (Handler::Control, true) => "control!",
            (Handler::Control, false) => "control",
        };
        self.0.asked.lock().unwrap().push(what);
        if post.handler == Handler::Reader {
            self.0.bodies.lock().unwrap().push(post.body.len());
        }
        Box::pin(async { Ok(self.0.reply.clone()) })
    }
}

impl Stubborn {
    /// The first requests; repeats of the certificate's count once.
    fn asked(&self) -> Vec<&'static str> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup_by(|next, before| *next == "pem" && before == next);
        asked.truncate(LOOKED_AT);
        asked
    }
}

fn days(count: i64) -> UnixTime {
    let shift = Duration::from_secs(count.unsigned_abs() * 86_400);
    let now = Duration::from_secs(UnixTime::now().as_secs());
    UnixTime::since_unix_epoch(if count < 0 { now - shift } else { now + shift })
}

/// Certificate and answer of a case.
fn script(case: &str, authority: &Authority) -> (Result<Bytes, u16>, Reply) {
    let issue =
        |authority: &Authority, profile: &LeafProfile, at: UnixTime| -> Identity { authority.issue(profile, &SystemRng, at).unwrap() };
    let pem = |identity: Identity| Bytes::from(identity.certificate().pem());
    let frontend = LeafProfile::frontend("VelociraptorServer");
    let good = || pem(issue(authority, &frontend, UnixTime::now()));
    let stranger = || pem(issue(&Authority::generate(&SystemRng, UnixTime::now()).unwrap(), &frontend, UnixTime::now()));
    let status = |status: u16| Reply { status, location: None, body: Bytes::new() };
    let body = |text: &'static [u8]| Reply { body: Bytes::from_static(text), ..status(200) };
    let certificate = match case {
        "pem404" => Err(404),
        "pem-portal" => Ok("<html><body>Please log in</body></html>".into()),
        "pem-empty" => Ok(Bytes::new()),
        "pem-wrong-ca" => Ok(stranger()),
        "pem-wrong-cn" => Ok(pem(issue(authority, &LeafProfile::frontend("OtherServer"), UnixTime::now()))),
        "pem-expired" => {
            let short = LeafProfile::frontend("VelociraptorServer").valid_for(Duration::from_secs(86_400));
            Ok(pem(issue(authority, &short, days(-3))))
        }
        "pem-not-yet-valid" => Ok(pem(issue(authority, &frontend, days(5)))),
        "pem-ec-key" => Ok(elliptic(authority)),
        "pem-client-auth-only" => Ok(pem(issue(authority, &LeafProfile::shared_client("VelociraptorServer"), UnixTime::now()))),
        "pem-two" => Ok([stranger(), good()].concat().into()),
        _ => Ok(good()),
    };
    let reply = match case {
        "pads" => body(b"Z\x01\0Z\x01\0Z\x01\0"),
        "empty" => body(b""),
        "html200" => body(b"<html>nothing here</html>"),
        "redirect" => Reply { location: Some("http://127.0.0.1:1/elsewhere/".into()), ..status(301) },
        case => status(case.strip_prefix("st").and_then(|code| code.parse().ok()).unwrap_or(200)),
    };
    (certificate, reply)
}

/// A certificate with an elliptic key, and no other fault.
fn elliptic(authority: &Authority) -> Bytes {
    let key = talon_crypto::RsaPrivateKey::from_pem(&authority.private_key_pem().unwrap()).unwrap().to_pkcs8_der().unwrap();
    let signer = rcgen::KeyPair::try_from(&key[..]).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(authority.certificate().der(), signer).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["VelociraptorServer".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "VelociraptorServer");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
    leaf.pem().into()
}

#[tokio::test]
async fn the_agent_asks_what_a_stock_agent_asks() {
    let authority = Authority::generate(&SystemRng, days(-10)).unwrap();
    for (case, stock) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let (pem, reply) = script(case, &authority);
        let server = Arc::new(Stubborn { pem, reply, asked: Mutex::default(), bodies: Mutex::default() });
        let settings = settings_for(authority.trust_bundle(), folder.path());
        let facts = |install_time| Some(Dict::new().with("hostname", "host").with("install_time", install_time));
        let agent = Agent::with_engine(settings, Arc::new(Link(server.clone())), Scripted::new(rows(0)), facts).unwrap();
        let enough = async {
            let start = Instant::now();
            let wanted = if stock.contains(' ') { LOOKED_AT } else { usize::MAX };
            while server.asked().len() < wanted && start.elapsed() < Duration::from_secs(if wanted == LOOKED_AT { 20 } else { 1 }) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        agent.run(enough).await.unwrap();
        assert_eq!(server.asked().join(" "), *stock, "{case}");
        if !stock.contains(' ') {
            assert!(server.asked.lock().unwrap().len() > 2, "{case}: the agent asks again");
        }
        let bodies = server.bodies.lock().unwrap().clone();
        match *case {
            // The report on the host counts as delivered.
            "pads" | "empty" | "st400" => assert!(bodies[1] < bodies[0], "{case}: {bodies:?}"),
            // It is kept, also when the server does not know the agent yet.
            "html200" | "st403" | "st406" | "st408" | "st409" | "st500" | "st503" => assert_eq!(bodies[0], bodies[1], "{case}"),
            _ => {}
        }
    }
}

/// The requests of the recordings, told from the timeline.
#[test]
fn the_cases_are_those_that_were_recorded() {
    let Some(folder) = std::env::var_os("TALON_VECTORS").map(std::path::PathBuf::from) else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("agent-behaviour.json")).unwrap()).unwrap();
    let statuses = all["statuses"].as_array().unwrap();
    assert_eq!(statuses.len(), CASES.len());
    for (recorded, (case, stock)) in statuses.iter().zip(CASES) {
        assert_eq!(recorded["case"], *case);
        let mut asked = Vec::new();
        for request in recorded["timeline"].as_array().unwrap() {
            let request = request["request"].as_str().unwrap();
            let what = match request {
                request if request.contains("server.pem") => "pem",
                request if request.contains("reader") => "reader",
                request if request.ends_with("urgent") => "control!",
                _ => "control",
            };
            if what != "pem" || asked.last() != Some(&"pem") {
                asked.push(what);
            }
        }
        asked.truncate(LOOKED_AT);
        assert_eq!(asked.join(" "), *stock, "{case}");
    }
}
