//! Who a packet is from: ids derived from keys, and the proof that a key was used.

use talon_crypto::{RsaPublicKey, Sha256};
use talon_ids::{ClientId, OrgId};

/// The id of the agent that holds `key`: a digest over the modulus alone, as stock peers compute it.
#[must_use]
pub fn client_id(key: &RsaPublicKey) -> ClientId {
    id_of_modulus(&key.modulus())
}

/// The modulus is hashed as OpenSSH's `mpint`: its length plus one in four bytes, a zero byte, the minimal big-endian number.
fn id_of_modulus(modulus: &[u8]) -> ClientId {
    let length = u32::try_from(modulus.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut digest = Sha256::new();
    digest.update(&length.to_be_bytes());
    digest.update(&[0]);
    digest.update(modulus);
    ClientId::from_modulus_digest(&digest.finish())
}

/// A client that proved possession of the key registered for its id in this organisation. Only an opened packet yields one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthenticatedClient {
    org: OrgId,
    client: ClientId,
}

impl AuthenticatedClient {
    pub(crate) fn new(org: OrgId, client: ClientId) -> Self {
        Self { org, client }
    }

    /// The client's id.
    #[must_use]
    pub fn client_id(&self) -> &ClientId {
        &self.client
    }

    /// The organisation in which it is enrolled.
    #[must_use]
    pub fn org(&self) -> &OrgId {
        &self.org
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_match_the_stock_vectors() {
        assert_eq!(id_of_modulus(&[0xff; 256]).as_str(), "C.9ec73ee0e319cb44");
        let mut modulus = [0; 256];
        modulus[0] = 0x80;
        assert_eq!(id_of_modulus(&modulus).as_str(), "C.63d34a19ee02dbaf");
    }
}
