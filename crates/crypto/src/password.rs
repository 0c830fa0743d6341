//! Passwords at rest: Argon2id in the PHC string format, and the stock servers' salted SHA-256 wrapped in it until the password is next seen.

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64_NOPAD;

use crate::{CryptoError, Rng, Sha256, constant_time_eq, random_array};

/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes of salt in new hashes.
const SALT: usize = 16;
/// The most memory, in KiB, that a stored hash may ask for.
const MAX_MEMORY: u32 = 1 << 20;
/// The most passes that a stored hash may ask for.
const MAX_PASSES: u32 = 64;
/// The longest password, in bytes.
pub const MAX_PASSWORD: usize = 1024;

/// What computing one hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PasswordCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl PasswordCost {
    /// The least that is ever used: 19 MiB and two passes, the first of the OWASP recommendations.
    pub const FLOOR: Self = Self { memory_kib: 19 * 1024, passes: 2 };
    /// The most that tuning comes to: 64 MiB and three passes, the second of the RFC 9106 recommendations with one lane.
    pub const CEILING: Self = Self { memory_kib: 64 * 1024, passes: 3 };

    /// The steps of tuning from [`PasswordCost::FLOOR`] to [`PasswordCost::CEILING`].
    pub const STEPS: &'static [Self] = &[
        Self::FLOOR,
        Self { memory_kib: 32 * 1024, passes: 2 },
        Self { memory_kib: 46 * 1024, passes: 2 },
        Self { memory_kib: 64 * 1024, passes: 2 },
        Self::CEILING,
    ];
}

/// A password hash as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    cost: PasswordCost,
    salt: Vec<u8>,
    hash: Vec<u8>,
    /// The salt of the stock SHA-256 inside; empty when Argon2id is over the password itself.
    wrapped: Vec<u8>,
}

impl PasswordHash {
    /// Hashes a password.
    ///
    /// # Errors
    /// [`CryptoError::Length`] for a password above [`MAX_PASSWORD`] bytes, [`CryptoError::Library`] when memory runs out.
    pub fn of(password: &str, cost: PasswordCost, rng: &dyn Rng) -> Result<Self, CryptoError> {
        let salt: [u8; SALT] = random_array(rng);
        let hash = argon2id(bounded(password)?, &salt, cost)?;
        Ok(Self { cost, salt: salt.to_vec(), hash: hash.to_vec(), wrapped: Vec::new() })
    }

    /// Wraps what stock servers store: one round of SHA-256 over salt and password.
    ///
    /// # Errors
    /// [`CryptoError::Length`] when it is no SHA-256 or has no salt, [`CryptoError::Library`].
    pub fn wrapping(sha256: &[u8], stock_salt: &[u8], cost: PasswordCost, rng: &dyn Rng) -> Result<Self, CryptoError> {
        if sha256.len() != HASH || !(1..=64).contains(&stock_salt.len()) {
            return Err(CryptoError::Length);
        }
        let salt: [u8; SALT] = random_array(rng);
        let hash = argon2id(sha256, &salt, cost)?;
        Ok(Self { cost, salt: salt.to_vec(), hash: hash.to_vec(), wrapped: stock_salt.to_vec() })
    }

    /// A hash that no password fits, to compare with where there is none: it costs the same.
    #[must_use]
    pub fn decoy(cost: PasswordCost) -> Self {
        Self { cost, salt: vec![0; SALT], hash: vec![0; HASH], wrapped: Vec::new() }
    }

    /// Reads a stored hash: the PHC string, and the stock salt if it wraps a stock hash.
    ///
    /// # Errors
    /// [`CryptoError::Length`] for anything else.
    pub fn parse(phc: &str, stock_salt: &[u8]) -> Result<Self, CryptoError> {
        let bad = || CryptoError::Length;
        let mut parts = phc.split('$');
        if (parts.next(), parts.next(), parts.next()) != (Some(""), Some("argon2id"), Some("v=19")) {
            return Err(bad());
        }
        let (mut memory_kib, mut passes, mut lanes) = (0, 0, 0);
        for parameter in parts.next().ok_or_else(bad)?.split(',') {
            let (name, value) = parameter.split_once('=').ok_or_else(bad)?;
            let value: u32 = value.parse().map_err(|_| bad())?;
            match name {
                "m" => memory_kib = value,
                "t" => passes = value,
                "p" => lanes = value,
                _ => return Err(bad()),
            }
        }
        let decode = |text: Option<&str>| text.and_then(|text| BASE64_NOPAD.decode(text.as_bytes()).ok()).ok_or_else(bad);
        let (salt, hash) = (decode(parts.next())?, decode(parts.next())?);
        let sound = (8..=MAX_MEMORY).contains(&memory_kib) && (1..=MAX_PASSES).contains(&passes) && lanes == 1;
        if !sound || hash.len() != HASH || !(8..=64).contains(&salt.len()) || stock_salt.len() > 64 || parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { cost: PasswordCost { memory_kib, passes }, salt, hash, wrapped: stock_salt.to_vec() })
    }

    /// The PHC string.
    #[must_use]
    pub fn phc(&self) -> String {
        let PasswordCost { memory_kib, passes } = self.cost;
        format!("$argon2id$v=19$m={memory_kib},t={passes},p=1${}${}", BASE64_NOPAD.encode(&self.salt), BASE64_NOPAD.encode(&self.hash))
    }

    /// The salt of the stock hash inside; empty when there is none.
    #[must_use]
    pub fn stock_salt(&self) -> &[u8] {
        &self.wrapped
    }

    /// Whether the password is this one.
    #[must_use]
    pub fn fits(&self, password: &str) -> bool {
        let Ok(password) = bounded(password) else { return false };
        let computed = if self.wrapped.is_empty() {
            argon2id(password, &self.salt, self.cost)
        } else {
            let mut inner = Sha256::new();
            inner.update(&self.wrapped);
            inner.update(password);
            argon2id(&inner.finish(), &self.salt, self.cost)
        };
        computed.is_ok_and(|computed| constant_time_eq(&computed, &self.hash))
    }

    /// Whether the password should be hashed anew when it is next seen: a stock hash is inside, or it costs less than `cost`.
    #[must_use]
    pub fn is_outdated(&self, cost: PasswordCost) -> bool {
        !self.wrapped.is_empty() || self.cost < cost
    }
}

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PasswordHash").field("cost", &self.cost).field("wrapped", &!self.wrapped.is_empty()).finish_non_exhaustive()
    }
}

fn bounded(password: &str) -> Result<&[u8], CryptoError> {
    if password.len() > MAX_PASSWORD { Err(CryptoError::Length) } else { Ok(password.as_bytes()) }
}

fn argon2id(secret: &[u8], salt: &[u8], cost: PasswordCost) -> Result<[u8; HASH], CryptoError> {
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(HASH)).map_err(|_| CryptoError::Length)?;
    let mut hash = [0; HASH];
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    hasher.hash_password_into(secret, salt, &mut hash).map_err(|_| CryptoError::Library)?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRng;

    const CHEAP: PasswordCost = PasswordCost { memory_kib: 8, passes: 1 };

    fn stock(password: &str, salt: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(salt);
        hash.update(password.as_bytes());
        hash.finish()
    }

    #[test]
    fn the_hash_is_the_argon2id_of_others() {
        // From the test vectors of the reference implementation: "password", "somesalt", 2 passes, 64 MiB, 1 lane.
        let phc = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let hash = PasswordHash::parse(phc, &[]).unwrap();
        assert!(hash.fits("password"));
        assert!(!hash.fits("Password"));
        assert_eq!(hash.phc(), phc);
    }

    #[test]
    fn a_password_fits_its_own_hash_only() {
        let hash = PasswordHash::of("correct horse", CHEAP, &SystemRng).unwrap();
        let stored = PasswordHash::parse(&hash.phc(), &[]).unwrap();
        assert!(stored.fits("correct horse"));
        assert!(!stored.fits("correct horse ") && !stored.fits(""));
        assert_ne!(hash.phc(), PasswordHash::of("correct horse", CHEAP, &SystemRng).unwrap().phc(), "salts differ");
        assert!(!hash.is_outdated(CHEAP) && hash.is_outdated(PasswordCost::FLOOR));
    }

    #[test]
    fn a_stock_hash_is_wrapped_and_known_to_be_outdated() {
        let salt = [7; 32];
        let wrapped = PasswordHash::wrapping(&stock("hunter2", &salt), &salt, CHEAP, &SystemRng).unwrap();
        let stored = PasswordHash::parse(&wrapped.phc(), wrapped.stock_salt()).unwrap();
        assert!(stored.fits("hunter2") && !stored.fits("hunter3"));
        assert!(stored.is_outdated(CHEAP));
        assert!(!PasswordHash::parse(&wrapped.phc(), &[]).unwrap().fits("hunter2"), "the stock salt is part of it");
        assert!(PasswordHash::wrapping(&[0; 31], &salt, CHEAP, &SystemRng).is_err());
    }

    #[test]
    fn what_is_stored_cannot_ask_for_the_moon() {
        for bad in [
            "",
            "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=19$m=8,t=1000,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=19$m=8,t=1,p=9$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFh",
            "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc$",
        ] {
            assert!(PasswordHash::parse(bad, &[]).is_err(), "{bad}");
        }
        assert!(PasswordHash::of(&"x".repeat(MAX_PASSWORD + 1), CHEAP, &SystemRng).is_err());
    }
}
