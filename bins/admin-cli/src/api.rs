//! The connection to a server's API: mutual TLS with the server's name pinned, and queries over it.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{self, Poll};

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use talon_config::{API_CONFIG_VARIABLE, ApiAddress, ApiClientConfig, ApiConnection, ServerConfig};
use talon_pki::Identity;
use talon_proto::api_client::ApiClient;
use talon_proto::{VqlCollectorArgs, VqlResponse};
use tokio::runtime::Runtime;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

use crate::arguments::Globals;

/// A connection to the API.
pub(crate) struct Api {
    client: ApiClient<Channel>,
    runtime: Runtime,
}

/// The API client's configuration that the command line or the environment names, if one does.
pub(crate) fn configured(globals: &Globals) -> Result<Option<ApiConnection>> {
    let from_environment = || std::env::var_os(API_CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(path) = globals.api_config.clone().or_else(from_environment) else { return Ok(None) };
    let config = ApiClientConfig::from_file(&path)?;
    Ok(Some(ApiConnection::new(&config, &path.display().to_string())?))
}

/// The connection of the server's administrator: with the frontend's own certificate, which is the superuser's.
pub(crate) fn as_superuser(server: &ServerConfig) -> Result<ApiConnection> {
    let frontend = server.frontend();
    let config = ApiClientConfig {
        ca_certificate: server.client().ca_certificate.clone(),
        client_cert: frontend.certificate.clone(),
        client_private_key: frontend.private_key.clone(),
        api_connection_string: server.api_connection_string(),
        pinned_server_name: server.server_name().to_owned(),
        ..ApiClientConfig::default()
    };
    Ok(ApiConnection::new(&config, &server.configuration().origin)?)
}

impl Api {
    /// Connects. Whatever host is dialled, the server must show the certificate with the pinned name, signed by the deployment's authority.
    pub(crate) fn connect(connection: &ApiConnection) -> Result<Self> {
        // A provider that is installed already is the same one.
        drop(talon_transport::install_crypto_provider());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tls = ClientTlsConfig::new()
            .domain_name(connection.server_name.clone())
            .ca_certificates(authorities(connection)?)
            .identity(identity(&connection.identity)?);
        let channel = match &connection.address {
            ApiAddress::Tcp(address) => {
                let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
                runtime.block_on(endpoint.connect()).with_context(|| format!("cannot reach the API at {address}: does the server run?"))?
            }
            ApiAddress::Unix(path) => {
                let endpoint = Endpoint::from_static("https://socket").tls_config(tls)?;
                let connector = SocketConnector(path.clone());
                runtime
                    .block_on(endpoint.connect_with_connector(connector))
                    .with_context(|| format!("cannot reach the API at {}: does the server run?", path.display()))?
            }
        };
        Ok(Self { client: ApiClient::new(channel).max_decoding_message_size(connection.max_receive), runtime })
    }

    /// Runs queries and hands each message of the answer to `receive`.
    pub(crate) fn query(&mut self, request: VqlCollectorArgs, mut receive: impl FnMut(VqlResponse) -> Result<()>) -> Result<()> {
        let Self { client, runtime } = self;
        runtime.block_on(async {
            let mut answers = client.query(request).await.map_err(refusal)?.into_inner();
            while let Some(answer) = answers.message().await.map_err(refusal)? {
                receive(answer)?;
            }
            Ok(())
        })
    }
}

/// What the server said, or what went wrong on the way.
fn refusal(status: tonic::Status) -> anyhow::Error {
    match std::error::Error::source(&status) {
        None => anyhow!("{}", status.message()),
        Some(_) => anyhow::Error::new(status),
    }
}

fn authorities(connection: &ApiConnection) -> Result<Vec<Certificate>> {
    let certificates = connection.trust.certificates().iter();
    certificates.map(|der| Ok(Certificate::from_pem(talon_pki::Certificate::from_der(der.clone())?.pem()))).collect()
}

fn identity(identity: &Identity) -> Result<tonic::transport::Identity> {
    Ok(tonic::transport::Identity::from_pem(identity.certificate().pem(), identity.private_key_pem()?.as_bytes()))
}

/// Dials a unix socket, whatever the URI says.
#[derive(Clone)]
struct SocketConnector(PathBuf);

impl tower_service::Service<Uri> for SocketConnector {
    type Response = TokioIo<tokio::net::UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) })
    }
}
