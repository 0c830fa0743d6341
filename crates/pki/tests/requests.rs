//! Requests of agents by their violations: a bad signature, a short key, another name, another algorithm.

#![allow(clippy::unwrap_used, reason = "a failure ends the run")]

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use talon_crypto::{RsaPrivateKey, RsaPublicKey};
use talon_pki::{PkiError, client_id, create_csr, verify_csr};

/// Made once with `openssl req -new -newkey rsa:1024 -nodes -subj /CN=C.0123456789abcdef`; the key was thrown away.
const SHORT_KEY: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBXDCBxgIBADAdMRswGQYDVQQDDBJDLjAxMjM0NTY3ODlhYmNkZWYwgZ8wDQYJ
KoZIhvcNAQEBBQADgY0AMIGJAoGBAOq2PyIvc56fsfLDhzgPCfSBEmSi14kazBfA
s6RWcWQbYKE9jucZIRkEcs/xnHxOpn+X/wlnpb78p/3F7y2aVlHCDNYbn2cFp4Sg
4vkta5DkNF2SYMrxoW3jVYk1K6Zjdkmm2b1QP0wSFPtz2ksnUSBl1h0wVe8cVPht
27YrYOQhAgMBAAGgADANBgkqhkiG9w0BAQsFAAOBgQCUP6uNp7jWbHNEH5sAC6SH
vISQveJ4wqnzmwZIP31nQRrXSzgL6nCF2EalQs7jpI5OSprx2RIxjsuDLrWEBp1b
6+JCtXYwy/JcOJP/N8z6a7FzFhNU8Z28HGUH7+jO80lkqywlx2BP/Jp16Gtl+ewf
VDSWLIorHFvx5FvO5FIjfQ==
-----END CERTIFICATE REQUEST-----
";

fn body(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", data_encoding::BASE64.encode(der))
}

fn request(names: &[&str], key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (index, name) in names.iter().enumerate() {
        let kind = if index == 0 { DnType::CommonName } else { DnType::CustomDnType(vec![2, 5, 4, 3]) };
        params.distinguished_name.push(kind, *name);
    }
    pem(params.serialize_request(key).unwrap().der())
}

#[test]
fn an_agents_request_proves_its_key() {
    let key = RsaPrivateKey::generate().unwrap();
    let csr = create_csr(&key).unwrap();
    assert!(csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
    let verified = verify_csr(csr.as_bytes()).unwrap();
    assert_eq!(verified.client_id(), &client_id(key.public()));
    assert_eq!(verified.public_key().modulus(), key.public().modulus());
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let csr = create_csr(&RsaPrivateKey::generate().unwrap()).unwrap();
    let mut der = body(&csr);
    *der.last_mut().unwrap() ^= 1;
    assert!(matches!(verify_csr(pem(&der).as_bytes()), Err(PkiError::RequestSignature)));
}

#[test]
fn someone_elses_key_cannot_be_enrolled() {
    let (own, other) = (RsaPrivateKey::generate().unwrap(), RsaPrivateKey::generate().unwrap());
    let (own_der, other_der) = (body(&create_csr(&own).unwrap()), body(&create_csr(&other).unwrap()));
    // The other agent's request with a signature by our key over it: what a thief of a public key can make.
    let signed_part = 4 + usize::from(u16::from_be_bytes([other_der[6], other_der[7]])) + 4;
    let info = &other_der[4..signed_part];
    let signature = own.sign_pkcs1_sha256(info).unwrap();
    let mut forged = other_der[..other_der.len() - signature.len()].to_vec();
    forged.extend_from_slice(&signature);
    assert_eq!(forged.len(), other_der.len());
    assert_ne!(own_der, forged);
    assert!(matches!(verify_csr(pem(&forged).as_bytes()), Err(PkiError::RequestSignature)));
}

#[test]
fn a_short_key_is_refused() {
    assert!(matches!(verify_csr(SHORT_KEY.as_bytes()), Err(PkiError::KeySize { bits: 1024 })));
}

#[test]
fn a_key_that_is_not_rsa_is_refused() {
    let csr = request(&["C.0123456789abcdef"], &KeyPair::generate().unwrap());
    assert!(matches!(verify_csr(csr.as_bytes()), Err(PkiError::NotRsa)));
}

#[test]
fn a_request_for_another_name_is_refused() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let id = client_id(&RsaPublicKey::from_pkcs1_der(key.public_key_raw()).unwrap());
    assert!(verify_csr(request(&[id.as_str()], &key).as_bytes()).is_ok());
    for names in [&["C.0123456789abcdef"][..], &[], &["VelociraptorServer"], &[id.as_str(), "C.0123456789abcdef"], &["", id.as_str()]] {
        let result = verify_csr(request(names, &key).as_bytes());
        assert!(matches!(result, Err(PkiError::RequestName)), "{names:?}: {result:?}");
    }
}

#[test]
fn junk_is_no_request() {
    let csr = create_csr(&RsaPrivateKey::generate().unwrap()).unwrap();
    let longer = [body(&csr), vec![0]].concat();
    let huge = csr.replace('\n', &"\n".repeat(4096));
    assert!(matches!(verify_csr(b""), Err(PkiError::NoPemBlock(_))));
    assert!(matches!(verify_csr(csr.replace("CERTIFICATE REQUEST", "CERTIFICATE").as_bytes()), Err(PkiError::NoPemBlock(_))));
    for junk in [pem(&longer), pem(b"\x30\x03\x02\x01\x00"), huge, "-----BEGIN CERTIFICATE REQUEST-----\n!".to_owned()] {
        assert!(verify_csr(junk.as_bytes()).is_err());
    }
}

#[test]
fn stock_agents_have_the_ids_that_they_claim() {
    let Ok(vectors) = std::env::var("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    for (agent, id) in
        [("http", "C.159bbc76928cbe16"), ("ws", "C.3c50f985485f1b59"), ("org", "C.0c520d6f76c0d961"), ("probe", "C.b0c80ecf82a0d91e")]
    {
        let key = RsaPrivateKey::from_pem(&std::fs::read_to_string(format!("{vectors}/keys/agent-{agent}.key.pem")).unwrap()).unwrap();
        assert_eq!(client_id(key.public()).as_str(), id);
        assert_eq!(verify_csr(create_csr(&key).unwrap().as_bytes()).unwrap().client_id().as_str(), id);
    }
}
