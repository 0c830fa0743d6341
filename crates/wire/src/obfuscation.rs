//! Names of queries as agents see them: encrypted, so that an endpoint does not learn which artifact it runs.

use talon_crypto::Zeroizing;
use talon_crypto::{CryptoError, aes256_cbc, sha256};

/// Longest name that is obfuscated or revealed, in bytes.
const MAX_NAME: usize = 4096;

/// Turns query names into `$` and hexadecimal digits and back. Deterministic per nonce, as in a stock server, so that answers to requests sent before a
/// migration are still understood.
pub struct Obfuscator {
    key: Zeroizing<[u8; 32]>,
    iv: [u8; 16],
}

impl Obfuscator {
    /// The codec for the configured `obfuscation_nonce`.
    #[must_use]
    pub fn new(nonce: &str) -> Self {
        let key = Zeroizing::new(sha256(nonce.as_bytes()));
        let iv = key.first_chunk().copied().unwrap_or_default();
        Self { key, iv }
    }

    /// The form of `name` that agents see. An empty name stays empty.
    ///
    /// # Errors
    /// [`CryptoError::Length`] for a name above 4096 bytes.
    pub fn obfuscate(&self, name: &str) -> Result<String, CryptoError> {
        if name.is_empty() {
            return Ok(String::new());
        }
        if name.len() > MAX_NAME {
            return Err(CryptoError::Length);
        }
        let sealed = aes256_cbc::encrypt(&self.key, &self.iv, name.as_bytes())?;
        Ok(format!("${}", hex::encode(sealed)))
    }

    /// The name behind an obfuscated one, or `None` when `text` was not made with this nonce.
    #[must_use]
    pub fn reveal(&self, text: &str) -> Option<String> {
        let digits = text.strip_prefix('$')?;
        if digits.is_empty() || digits.len() > MAX_NAME.saturating_mul(2).saturating_add(32) {
            return None;
        }
        let sealed = hex::decode(digits).ok()?;
        let name = aes256_cbc::decrypt(&self.key, &self.iv, &sealed).ok()?;
        String::from_utf8(name).ok()
    }

    /// `text` with each obfuscated name replaced by the name behind it: log lines mention queries by the name that the agent knows.
    #[must_use]
    pub fn reveal_all(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let digits = from.bytes().skip(1).take_while(u8::is_ascii_hexdigit).count();
            let (token, after) = from.split_at(digits.saturating_add(1));
            match self.reveal(token) {
                Some(name) => out.push_str(&name),
                None => out.push_str(token),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "Generic.Client.Info/BasicInformation";
    const STOCK: &str = "$3d090a3f9307255cdca7bcc0dac1cffe3487b87ea5fe19b1d968891ed0d5c7e18a439bf14b2cb238f4870a8f3cb71bee";

    #[test]
    fn names_match_the_stock_vector() {
        let codec = Obfuscator::new("nonce");
        assert_eq!(codec.obfuscate(NAME).unwrap(), STOCK);
        assert_eq!(codec.reveal(STOCK).as_deref(), Some(NAME));
        assert_eq!(Obfuscator::new("other").reveal(STOCK), None);
        assert_eq!(codec.reveal(NAME), None);
        assert_eq!(codec.reveal("$"), None);
        assert_eq!(codec.obfuscate("").unwrap(), "");
    }

    #[test]
    fn names_in_text_are_revealed_and_other_dollars_kept() {
        let codec = Obfuscator::new("nonce");
        let text = format!("cost $5, $ and {STOCK}: done {STOCK}$");
        assert_eq!(codec.reveal_all(&text), format!("cost $5, $ and {NAME}: done {NAME}$"));
    }

    proptest! {
        #[test]
        fn any_name_survives(name in ".{1,200}", nonce: String) {
            let codec = Obfuscator::new(&nonce);
            let hidden = codec.obfuscate(&name).unwrap();
            prop_assert_eq!(codec.reveal(&hidden), Some(name));
        }

        #[test]
        fn any_text_is_safe(text: String) {
            let codec = Obfuscator::new("nonce");
            let _ = codec.reveal(&text);
            let _ = codec.reveal_all(&text);
        }
    }
}
