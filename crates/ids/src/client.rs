//! Endpoints: the id that an agent derives from its key, and what a collection is aimed at.

use std::str::FromStr;

use crate::{InvalidId, textual};

/// An agent's identity, `C.` and 16 hexadecimal digits: the bare form, without the suffix that stock servers add for organisations.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(String);

impl ClientId {
    /// The id of the agent whose RSA modulus hashes to `digest`: its first eight bytes in hexadecimal.
    #[must_use]
    pub fn from_modulus_digest(digest: &[u8; 32]) -> Self {
        let hex = data_encoding::HEXLOWER.encode(digest.first_chunk::<8>().unwrap_or(&[0; 8]));
        Self(format!("C.{hex}"))
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

textual!(ClientId);

impl FromStr for ClientId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let body = text.strip_prefix("C.").unwrap_or_default();
        let valid = (1..=64).contains(&body.len()) && body.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::new("a client id", text)) }
    }
}

/// What a collection runs on: an endpoint, or the server itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The pseudo client `server`.
    Server,
    /// An endpoint.
    Client(ClientId),
}

impl Target {
    /// The text form: `server` or the client id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Server => "server",
            Self::Client(id) => id.as_str(),
        }
    }

    /// The endpoint, unless this is the server.
    #[must_use]
    pub fn client(&self) -> Option<&ClientId> {
        match self {
            Self::Server => None,
            Self::Client(id) => Some(id),
        }
    }
}

textual!(Target);

impl FromStr for Target {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text == "server" { Ok(Self::Server) } else { text.parse().map(Self::Client) }
    }
}

impl From<ClientId> for Target {
    fn from(id: ClientId) -> Self {
        Self::Client(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_lower_case_and_carry_no_path() {
        assert!("C.9ec73ee0e319cb44".parse::<ClientId>().is_ok());
        for bad in ["", "C.", "server", "C.9EC7", "C.a/b", "C..", "C.a.b", "F.a", "C.a-Oabcd", " C.a"] {
            assert!(bad.parse::<ClientId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_server_is_a_target_but_no_client() {
        assert_eq!("server".parse::<Target>(), Ok(Target::Server));
        assert_eq!(Target::Server.client(), None);
    }
}
