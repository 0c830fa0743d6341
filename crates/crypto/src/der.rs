//! As much DER as it takes to move an RSA key between PKCS#1 and PKCS#8.

/// The DER tags that occur in a PKCS#8 envelope.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;

/// The AlgorithmIdentifier of `rsaEncryption` with NULL parameters.
const RSA_ALGORITHM: [u8; 15] = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// The PKCS#1 key inside a PKCS#8 envelope, or `None` when `der` is no such envelope.
pub(crate) fn pkcs1_of_pkcs8(der: &[u8]) -> Option<&[u8]> {
    let (content, rest) = element(SEQUENCE, der)?;
    if !rest.is_empty() {
        return None;
    }
    let (version, content) = element(INTEGER, content)?;
    let content = content.strip_prefix(&RSA_ALGORITHM)?;
    let (key, _attributes) = element(OCTET_STRING, content)?;
    (version == [0]).then_some(key)
}

/// The content of the element with `tag` at the start of `der`, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_envelopes_yield_nothing() {
        assert_eq!(pkcs1_of_pkcs8(&[]), None);
        assert_eq!(pkcs1_of_pkcs8(&[0x30]), None);
        assert_eq!(pkcs1_of_pkcs8(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        let mut good = vec![0x30, 3 + 15 + 3, 2, 1, 0];
        good.extend(RSA_ALGORITHM);
        good.extend([4, 1, 0x55]);
        assert_eq!(pkcs1_of_pkcs8(&good), Some(&[0x55][..]));
        for cut in 0..good.len() {
            assert_eq!(pkcs1_of_pkcs8(&good[..cut]), None, "cut at {cut}");
        }
        good.push(0);
        assert_eq!(pkcs1_of_pkcs8(&good), None, "trailing byte");
    }
}
