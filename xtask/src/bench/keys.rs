//! Keys for thousands of agents that only load a server: products of a few primes, since making each anew would take minutes. They protect nothing.

use anyhow::{Context, Result};
use num_bigint::BigUint;
use talon_crypto::RsaPrivateKey;

/// `count` different keys.
pub(super) fn many(count: usize) -> Result<Vec<RsaPrivateKey>> {
    let mut primes: Vec<BigUint> = Vec::new();
    while primes.len() * primes.len().saturating_sub(1) / 2 < count {
        let der = RsaPrivateKey::generate()?.to_pkcs1_der()?;
        let numbers = integers(&der).context("a private key of another form")?;
        primes.extend(numbers.into_iter().skip(4).take(2));
    }
    let pairs = primes.iter().enumerate().flat_map(|(at, one)| primes.iter().skip(at + 1).map(move |other| (one, other)));
    pairs.take(count).map(|(one, other)| key(one, other)).collect()
}

/// The key of two primes, in the form of PKCS#1.
fn key(one: &BigUint, other: &BigUint) -> Result<RsaPrivateKey> {
    let (p, q) = if one > other { (one, other) } else { (other, one) };
    let unit = BigUint::from(1_u8);
    let e = BigUint::from(65_537_u32);
    let (p1, q1) = (p - &unit, q - &unit);
    let d = e.modinv(&(&p1 * &q1)).context("the exponent has no inverse")?;
    let inverse = q.modinv(p).context("the primes are the same")?;
    let numbers = [BigUint::ZERO, p * q, e, d.clone(), p.clone(), q.clone(), &d % &p1, &d % &q1, inverse];
    let body: Vec<u8> = numbers.iter().flat_map(integer).collect();
    Ok(RsaPrivateKey::from_pkcs1_der(&tagged(0x30, &body))?)
}

fn integer(number: &BigUint) -> Vec<u8> {
    let mut bytes = number.to_bytes_be();
    if bytes.first().is_some_and(|first| *first > 0x7f) {
        bytes.insert(0, 0);
    }
    tagged(2, &bytes)
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![tag];
    match (length.as_slice(), u8::try_from(length.len())) {
        ([], _) => out.push(0),
        ([short], _) if *short < 0x80 => out.push(*short),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend_from_slice(&length);
        }
        _ => {}
    }
    out.extend_from_slice(content);
    out
}

/// The integers of a DER sequence.
fn integers(der: &[u8]) -> Option<Vec<BigUint>> {
    let (0x30, mut body, _) = element(der)? else { return None };
    let mut numbers = Vec::new();
    while !body.is_empty() {
        let (tag, content, rest) = element(body)?;
        if tag == 2 {
            numbers.push(BigUint::from_bytes_be(content));
        }
        body = rest;
    }
    Some(numbers)
}

fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match short {
        0..0x80 => (usize::from(short), rest),
        _ => {
            let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            (bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_keys_work_and_differ() {
        let keys = many(4).unwrap();
        for key in &keys {
            let sealed = key.public().oaep_sha1_encrypt(b"text").unwrap();
            assert_eq!(key.oaep_sha1_decrypt(&sealed).unwrap().as_slice(), b"text");
        }
        let moduli: std::collections::BTreeSet<_> = keys.iter().map(|key| key.public().modulus()).collect();
        assert_eq!(moduli.len(), 4);
    }
}
