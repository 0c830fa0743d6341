//! Who calls: the name that the verified certificate of the connection gives, and what the gateway says of its user.

use std::net::IpAddr;

use talon_ids::OrgId;
use talon_pki::{CertificateDer, Purpose, TrustBundle, UnixTime};
use tonic::metadata::MetadataMap;

/// The peer of a connection, as the TLS handshake proved it. Every request on the connection carries it.
#[derive(Debug, Clone)]
pub struct Peer {
    name: Option<String>,
    remote: Option<IpAddr>,
}

impl Peer {
    /// Reads the peer off its certificate, which the handshake has verified for a client. The deployment's certificates are also valid for
    /// servers; one that is not gives no name.
    #[must_use]
    pub fn of_certificate(leaf: &CertificateDer<'_>, authorities: &TrustBundle, now: UnixTime, remote: Option<IpAddr>) -> Self {
        let verified = authorities.verify(leaf, Purpose::Client, now).and_then(|_| authorities.verify(leaf, Purpose::Server, now));
        let name = verified.ok().map(|certificate| certificate.name().to_owned()).filter(|name| !name.is_empty());
        Self { name, remote }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn remote(&self) -> Option<IpAddr> {
        self.remote
    }
}

/// On whose behalf a request comes, before anybody looked whether there is such a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) org: OrgId,
    /// Whether the gateway vouches for the name. It cannot vouch for the server itself.
    pub(crate) by_gateway: bool,
}

/// The caller of a request. The gateway names its user in the metadata `user` and the organisation in `orgid`; nobody else is listened to.
pub(crate) fn caller(name: &str, gateway: Option<&str>, metadata: &MetadataMap) -> Caller {
    let own = || Caller { name: name.to_owned(), org: OrgId::root(), by_gateway: false };
    if gateway != Some(name) {
        return own();
    }
    let mut users = metadata.get_all("user").iter();
    let (Some(user), None) = (users.next(), users.next()) else { return own() };
    let name = user.to_str().ok().and_then(quoted_user).unwrap_or_default();
    let org = metadata.get("orgid").and_then(|org| org.to_str().ok()).map_or(Ok(OrgId::root()), str::parse).unwrap_or_default();
    Caller { name, org, by_gateway: true }
}

/// The name in a quoted JSON object.
fn quoted_user(quoted: &str) -> Option<String> {
    let object: String = serde_json::from_str(quoted).ok()?;
    let object: serde_json::Value = serde_json::from_str(&object).ok()?;
    object.get("name")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in pairs {
            metadata.append(*key, value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn only_the_gateway_speaks_for_others() {
        let user = metadata(&[("user", r#""{\"name\":\"alice\"}""#), ("orgid", "O123")]);
        let mallory = caller("mallory", Some("GRPC_GW"), &user);
        assert_eq!((mallory.name.as_str(), mallory.org.is_root(), mallory.by_gateway), ("mallory", true, false));
        let alice = caller("GRPC_GW", Some("GRPC_GW"), &user);
        assert_eq!((alice.name.as_str(), alice.org.as_str(), alice.by_gateway), ("alice", "O123", true));
        assert_eq!(caller("GRPC_GW", None, &user).name, "GRPC_GW");
    }

    #[test]
    fn what_the_gateway_says_must_be_unambiguous() {
        for bad in ["alice", r#"{"name":"alice"}"#, r#""{\"name\":7}""#, r#""{}""#] {
            assert_eq!(caller("GRPC_GW", Some("GRPC_GW"), &metadata(&[("user", bad)])).name, "", "{bad}");
        }
        let twice = metadata(&[("user", r#""{\"name\":\"a\"}""#), ("user", r#""{\"name\":\"b\"}""#)]);
        assert_eq!(caller("GRPC_GW", Some("GRPC_GW"), &twice).name, "GRPC_GW");
        assert_eq!(caller("GRPC_GW", Some("GRPC_GW"), &metadata(&[])).name, "GRPC_GW");
    }
}
