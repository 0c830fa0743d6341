//! TLS by its violations: whom the agent refuses, whom the frontend refuses.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, NamedGroup, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use talon_crypto::SystemRng;
use talon_pki::{Authority, LeafProfile};
use talon_transport::{HttpLink, LinkSettings, ServerLink, ServerTls, TransportError, VerificationMode, crypto_provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::fake::{Fake, Frontend, authority, ca_pem, leaf, limits, request, server_tls, start, stranger};

fn settings() -> LinkSettings {
    let mut settings = LinkSettings::new(ca_pem(authority()), "VelociraptorServer");
    settings.connection_timeout = Duration::from_secs(5);
    settings.proxy.ignore_environment = true;
    settings
}

async fn frontend_with(pair: &(String, String)) -> Frontend {
    start(Fake::default(), limits(), Some(ServerTls::from_pem(pair.0.as_bytes(), pair.1.as_bytes()).unwrap())).await
}

/// `accepted`, or what the innermost cause says.
async fn verdict(settings: &LinkSettings, frontend: &Frontend, host: &str) -> String {
    let server = format!("https://{host}:{}/", frontend.address.port()).parse().unwrap();
    match HttpLink::new(settings).unwrap().fetch_pem(&server).await {
        Ok(_) => "accepted".to_owned(),
        Err(TransportError::Tls { cure, source, .. }) if source.to_string().contains("UnknownIssuer") => {
            assert!(cure.contains("Client.Crypto.root_certs"), "{cure}");
            source.to_string()
        }
        Err(error @ TransportError::Tls { .. }) => std::error::Error::source(&error).unwrap().to_string(),
        Err(other) => format!("not TLS: {other:?}"),
    }
}

#[tokio::test]
async fn the_pinned_name_under_the_deployments_authority_is_accepted_for_any_host() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let mut pinned = settings();
    pinned.use_self_signed_ssl = true;
    for settings in [settings(), pinned] {
        for host in ["127.0.0.1", "localhost"] {
            assert_eq!(verdict(&settings, &frontend, host).await, "accepted");
        }
    }
}

#[tokio::test]
async fn another_name_under_the_deployments_authority_is_refused_even_for_its_own_host() {
    let frontend = frontend_with(&leaf(authority(), &LeafProfile::api_client("localhost"))).await;
    let verdict = verdict(&settings(), &frontend, "localhost").await;
    assert!(verdict.starts_with("invalid peer certificate"), "{verdict}");
    assert!(verdict.contains("localhost") && verdict.contains("VelociraptorServer"), "{verdict}");
}

#[tokio::test]
async fn another_authority_is_refused_whatever_the_name() {
    let frontend = frontend_with(&leaf(stranger(), &LeafProfile::frontend("VelociraptorServer"))).await;
    let mut pinned = settings();
    pinned.use_self_signed_ssl = true;
    for settings in [settings(), pinned] {
        assert_eq!(verdict(&settings, &frontend, "localhost").await, "invalid peer certificate: UnknownIssuer");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) - 2 * year);
    let old = Authority::generate(&SystemRng, then).unwrap();
    let identity = old.issue(&LeafProfile::frontend("VelociraptorServer"), &SystemRng, then).unwrap();
    let frontend = frontend_with(&(identity.certificate().pem(), identity.private_key_pem().unwrap().to_string())).await;
    let mut settings = settings();
    settings.ca_certificate = ca_pem(&old);
    let verdict = verdict(&settings, &frontend, "localhost").await;
    assert!(verdict.contains("xpired"), "{verdict}");
}

#[tokio::test]
async fn a_certificate_without_the_server_usage_is_refused() {
    let frontend = frontend_with(&leaf(authority(), &LeafProfile::shared_client("VelociraptorServer"))).await;
    let verdict = verdict(&settings(), &frontend, "localhost").await;
    assert!(verdict.contains("Purpose"), "{verdict}");
}

#[tokio::test]
async fn further_authorities_count_for_the_hosts_name_and_not_in_self_signed_mode() {
    let frontend = frontend_with(&leaf(stranger(), &LeafProfile::frontend("localhost"))).await;
    let mut settings = settings();
    settings.root_certs = ca_pem(stranger());
    assert_eq!(verdict(&settings, &frontend, "localhost").await, "accepted");
    let other_host = verdict(&settings, &frontend, "127.0.0.1").await;
    assert!(other_host.contains("not valid for name"), "{other_host}");
    settings.use_self_signed_ssl = true;
    assert_eq!(verdict(&settings, &frontend, "localhost").await, "invalid peer certificate: UnknownIssuer");
}

#[tokio::test]
async fn thumbprints() {
    let known = leaf(stranger(), &LeafProfile::frontend("anything"));
    let thumbprint = talon_pki::Certificate::from_pem(known.0.as_bytes()).unwrap().thumbprint();
    let foreign = frontend_with(&known).await;
    let own = start(Fake::default(), limits(), Some(server_tls())).await;
    let unknown = "Server certificate had no known thumbprint";
    for (mode, with_foreign, with_own) in [
        (VerificationMode::Pki, "invalid peer certificate: UnknownIssuer", "accepted"),
        (VerificationMode::PkiOrThumbprint, "accepted", "accepted"),
        (VerificationMode::ThumbprintOnly, "accepted", unknown),
    ] {
        let mut settings = settings();
        settings.use_self_signed_ssl = true;
        settings.verification = mode;
        settings.thumbprints = vec![thumbprint.to_uppercase()];
        assert_eq!(verdict(&settings, &foreign, "localhost").await, with_foreign, "{mode:?}");
        let verdict = verdict(&settings, &own, "localhost").await;
        assert!(verdict.ends_with(with_own), "{mode:?}: {verdict}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let mut none = settings();
    none.verification = VerificationMode::ThumbprintOnly;
    let mut roots = settings();
    roots.root_certs = "nonsense".to_owned();
    let mut authority = settings();
    authority.ca_certificate = String::new();
    let mut proxy = settings();
    proxy.proxy.https = Some("socks5://localhost:1".to_owned());
    let mut key = settings();
    let pair = leaf(crate::fake::authority(), &LeafProfile::shared_client("Shared"));
    let other = leaf(crate::fake::authority(), &LeafProfile::shared_client("Shared"));
    key.client_certificate = Some((pair.0, other.1));
    for (what, settings) in
        [("thumbprint", none), ("root_certs", roots), ("ca_certificate", authority), ("proxy", proxy), ("client_certificate", key)]
    {
        let error = HttpLink::new(&settings).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(what), "{what}: {error}");
    }
    assert!("ANY".parse::<VerificationMode>().is_err());
    assert_eq!("pki_or_thumbprint".parse::<VerificationMode>().unwrap(), VerificationMode::PkiOrThumbprint);
}

#[tokio::test]
async fn a_key_that_does_not_fit_its_certificate_is_refused() {
    let one = leaf(authority(), &LeafProfile::frontend("VelociraptorServer"));
    let other = leaf(authority(), &LeafProfile::frontend("VelociraptorServer"));
    let tls = ServerTls::from_pem(one.0.as_bytes(), other.1.as_bytes()).unwrap();
    let settings = talon_transport::FrontendSettings {
        bind_address: "127.0.0.1".to_owned(),
        bind_port: 0,
        base_path: String::new(),
        tls: Some(tls),
        proxy_header: None,
        limits: limits(),
    };
    assert!(matches!(talon_transport::FrontendListener::bind(settings).await, Err(TransportError::Configuration(_))));
}

/// A TLS client with the deployment's authority and the given versions, groups, protocols and certificate.
fn client(
    versions: &[&'static rustls::SupportedProtocolVersion],
    groups: &[NamedGroup],
    alpn: &[&str],
    shown: Option<(String, String)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem(authority()).as_bytes()).unwrap()).unwrap();
    let mut provider = crypto_provider();
    if !groups.is_empty() {
        provider.kx_groups =
            rustls::crypto::aws_lc_rs::ALL_KX_GROUPS.iter().copied().filter(|group| groups.contains(&group.name())).collect();
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap().with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Shakes hands and asks for `path`; the group and the answer's status, or the error.
async fn ask(frontend: &Frontend, config: ClientConfig, path: &str) -> Result<(NamedGroup, String), String> {
    let stream = TcpStream::connect(frontend.address).await.unwrap();
    let name = ServerName::try_from("VelociraptorServer").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())?;
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    stream.write_all(request("GET", path, "", "").as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    Ok((group, answer.split(' ').nth(1).unwrap_or("nothing").to_owned()))
}

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

#[tokio::test]
async fn versions_groups_and_protocols() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    for (groups, expected) in [
        (&[][..], NamedGroup::X25519MLKEM768),
        (&[NamedGroup::X25519, NamedGroup::secp256r1][..], NamedGroup::X25519),
        (&[NamedGroup::secp256r1][..], NamedGroup::secp256r1),
        (&[NamedGroup::secp384r1][..], NamedGroup::secp384r1),
    ] {
        assert_eq!(ask(&frontend, client(TLS13, groups, &["http/1.1"], None), "/healthz").await, Ok((expected, "200".to_owned())));
    }
    let nist = start(Fake::default(), limits(), Some(server_tls().nist_curves_only(true))).await;
    assert_eq!(ask(&nist, client(TLS13, &[], &[], None), "/healthz").await, Ok((NamedGroup::secp256r1, "200".to_owned())));
    assert!(ask(&nist, client(TLS13, &[NamedGroup::X25519], &[], None), "/healthz").await.is_err());
    let no_alpn = ask(&frontend, client(TLS13, &[], &[], None), "/healthz").await.unwrap();
    assert_eq!(no_alpn.1, "200");
    let error = ask(&frontend, client(TLS13, &[], &["acme-tls/1"], None), "/healthz").await.unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    let error = ask(&frontend, client(TLS12, &[], &[], None), "/healthz").await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
    let weak = start(Fake::default(), limits(), Some(server_tls().allow_weak(true))).await;
    assert_eq!(ask(&weak, client(TLS12, &[], &[], None), "/healthz").await.unwrap().1, "200");
}

#[test]
fn the_provider_prefers_the_hybrid() {
    let groups: Vec<NamedGroup> = crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(groups, [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1]);
}

#[tokio::test]
async fn required_client_certificates_cover_every_route() {
    let tls = server_tls().require_client_certificates(ca_pem(authority()).as_bytes()).unwrap();
    let frontend = start(Fake::default(), limits(), Some(tls)).await;
    let own = leaf(authority(), &LeafProfile::shared_client("Anything"));
    let foreign = leaf(stranger(), &LeafProfile::shared_client("Anything"));
    for path in ["/healthz", "/server.pem", "/public/x", "/control"] {
        let missing = ask(&frontend, client(TLS13, &[], &[], None), path).await.unwrap_err();
        assert!(missing.contains("CertificateRequired"), "{path}: {missing}");
        assert!(ask(&frontend, client(TLS13, &[], &[], Some(foreign.clone())), path).await.is_err(), "{path}");
        assert!(ask(&frontend, client(TLS13, &[], &[], Some(own.clone())), path).await.is_ok(), "{path}");
    }
    assert_eq!(frontend.endpoint.calls(), 1, "only the right certificate came through");
    let mut settings = settings();
    assert_ne!(verdict(&settings, &frontend, "localhost").await, "accepted");
    settings.client_certificate = Some(own);
    assert_eq!(verdict(&settings, &frontend, "localhost").await, "accepted");
}

#[tokio::test]
async fn only_the_leaf_is_shown() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let stream = TcpStream::connect(frontend.address).await.unwrap();
    let name = ServerName::try_from("VelociraptorServer").unwrap();
    let stream = TlsConnector::from(Arc::new(client(TLS13, &[], &[], None))).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap().len(), 1);
}
