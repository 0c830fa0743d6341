//! The way of a client program to the API: an API key file's content becomes a connected client.

use talon_proto::api_client::ApiClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::ApiError;

/// The largest answer that a client takes, in bytes, unless its key file says otherwise.
pub const MAX_ANSWER: usize = 64 << 20;

/// What an API key file says, `api.config.yaml`.
pub struct ApiKey<'a> {
    /// `ca_certificate`: the authority of the deployment, in PEM.
    pub ca_certificate: &'a str,
    /// `client_cert`: the caller's certificate, in PEM.
    pub client_cert: &'a str,
    /// `client_private_key`: its key, in PEM.
    pub client_private_key: &'a str,
    /// `api_connection_string`: host and port.
    pub api_connection_string: &'a str,
    /// `pinned_server_name`, by default `VelociraptorServer`.
    pub pinned_server_name: &'a str,
    /// `max_grpc_recv_size`; 0 for [`MAX_ANSWER`].
    pub max_answer: usize,
}

/// Connects. The server must have a certificate of the deployment's authority with the pinned name, wherever it is.
///
/// # Errors
/// [`ApiError::Configuration`] for a key file that makes no sense, [`ApiError::Connect`].
pub async fn connect(key: &ApiKey<'_>) -> Result<ApiClient<Channel>, ApiError> {
    let address = key.api_connection_string;
    if address.is_empty() || address.contains("://") {
        return Err(ApiError::Configuration(format!("api_connection_string {address:?} is not host:port")));
    }
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(key.ca_certificate))
        .identity(Identity::from_pem(key.client_cert, key.client_private_key))
        .domain_name(key.pinned_server_name);
    let channel = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|source| ApiError::Connect { address: address.to_owned(), source })?
        .connect()
        .await
        .map_err(|source| ApiError::Connect { address: address.to_owned(), source })?;
    let limit = if key.max_answer == 0 { MAX_ANSWER } else { key.max_answer };
    Ok(ApiClient::new(channel).max_decoding_message_size(limit))
}
