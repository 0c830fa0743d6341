//! Who gets in: certificates of the deployment, and nobody else.

use talon_crypto::SystemRng;
use talon_pki::{Authority, LeafProfile};
use talon_proto as proto;
use tonic::Code;

use crate::stage::{SUPERUSER, Stage, now};

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_deployment_gets_in_and_its_name_is_the_caller() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_reader").await;
    let found = client.list_clients(proto::SearchClientsRequest { query: "all".into(), ..Default::default() }).await.unwrap();
    assert_eq!(found.into_inner().total, 0);
    let mut other_case = stage.client("U_Reader").await;
    assert!(other_case.list_clients(proto::SearchClientsRequest::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_user() {
    let stage = Stage::open().await;
    let serving = stage.client("nobody at all").await.check(proto::HealthCheckRequest::default()).await.unwrap();
    assert_eq!(serving.into_inner().status(), proto::health_check_response::ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_no_users() {
    let stage = Stage::open().await;
    for name in ["u_unknown", "GRPC_GW", "C.c2292c45f0aa5605"] {
        let status = stage.client(name).await.list_clients(proto::SearchClientsRequest::default()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, format!("User not found: {name}").as_str()));
    }
    let status = stage.client("u_unknown").await.query(proto::VqlCollectorArgs::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "User not found: u_unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_gets_nobody_in() {
    let stage = Stage::open().await;
    let foreign = Authority::generate(&SystemRng, now()).unwrap();
    let identity = foreign.issue(&LeafProfile::api_client("u_administrator"), &SystemRng, now()).unwrap();
    match stage.client_with(&identity, SUPERUSER).await {
        Err(_) => {}
        Ok(mut client) => assert!(client.check(proto::HealthCheckRequest::default()).await.is_err()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_agents_share_names_no_user() {
    let stage = Stage::open().await;
    let identity = stage.authority.issue(&LeafProfile::shared_client("u_administrator"), &SystemRng, now()).unwrap();
    let mut client = stage.client_with(&identity, SUPERUSER).await.unwrap();
    let status = client.list_clients(proto::SearchClientsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "Must set a username"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_takes_no_other_server() {
    let stage = Stage::open().await;
    assert!(stage.client_with(&stage.identity("u_reader"), "OtherServer").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_speaks_for_users_but_not_for_the_server() {
    let stage = Stage::open().await;
    let mut gateway = stage.client("GRPC_GW").await;
    for (user, code) in [("u_reader", Code::Ok), ("u_norole", Code::PermissionDenied), (SUPERUSER, Code::NotFound)] {
        let mut request = tonic::Request::new(proto::SearchClientsRequest::default());
        request.metadata_mut().insert("user", format!(r#""{{\"name\":\"{user}\"}}""#).parse().unwrap());
        let code_of = |result: Result<_, tonic::Status>| result.map_or_else(|status| status.code(), |_: tonic::Response<_>| Code::Ok);
        assert_eq!(code_of(gateway.list_clients(request).await), code, "{user}");
    }
    let mut pretender = stage.client("u_norole").await;
    let mut request = tonic::Request::new(proto::SearchClientsRequest::default());
    request.metadata_mut().insert("user", r#""{\"name\":\"u_administrator\"}""#.parse().unwrap());
    assert_eq!(pretender.list_clients(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_refused_in_known_words() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_administrator").await;
    let query = proto::VqlRequest { vql: "-".repeat(5 << 20), ..Default::default() };
    let status = client.query(proto::VqlCollectorArgs { query: vec![query], ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("grpc: received message larger than max (52428"), "{}", status.message());
    assert!(status.message().ends_with(" vs. 4194304)"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_protocol_versions_and_nameless_peers_are_refused() {
    use std::sync::Arc;
    use tokio::io::AsyncReadExt as _;
    let stage = Stage::open().await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(stage.authority.certificate().der().clone()).unwrap();
    let connect = |versions: &'static [&'static rustls::SupportedProtocolVersion], identity: Option<talon_pki::Identity>| {
        let provider = Arc::new(talon_transport::crypto_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone());
        let config = match identity {
            Some(identity) => builder.with_client_auth_cert(identity.certificate_chain(), identity.private_key_der().unwrap()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let address = stage.address.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(SUPERUSER.try_into().unwrap(), stream).await?;
            let mut byte = [0];
            tls.read_exact(&mut byte).await
        }
    };
    static NEW: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    static OLD: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    let reader = || Some(stage.identity("u_reader"));
    assert!(connect(&NEW, reader()).await.is_ok());
    assert!(connect(&OLD, reader()).await.is_err());
    assert!(connect(&NEW, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself_to_whoever_may_connect() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let stage = Stage::open().await;
    let mut client = ServerReflectionClient::new(stage.channel("nobody at all").await);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let questions = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("proto.API.Query".into())),
    ]);
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    let services = match answers.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(services)) => {
            services.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }
        other => unreachable!("{other:?}"),
    };
    assert!(services.contains(&"proto.API".to_owned()), "{services:?}");
    let described = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(described, Some(MessageResponse::FileDescriptorResponse(_))), "{described:?}");
}
