//! Verification by its violations: the wrong authority, name, purpose, time, key.

#![allow(clippy::unwrap_used, reason = "a failure ends the run")]

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use talon_crypto::SystemRng;
use talon_pki::{
    Authority, Certificate, CertificateDer, Identity, LeafProfile, PkiError, Purpose, TrustBundle, UnixTime, verify_server_pem,
};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const SERVER: &str = "VelociraptorServer";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn deployment() -> (Authority, Identity) {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let frontend = authority.issue(&LeafProfile::frontend(SERVER), &SystemRng, at(NOW)).unwrap();
    (authority, frontend)
}

fn verify(pem: &str, trust: &TrustBundle, name: &str, now: u64) -> Result<String, PkiError> {
    verify_server_pem(pem.as_bytes(), trust, name, at(now)).map(|server| server.name().to_owned())
}

/// A certificate that the authority itself signed, with whatever is wrong in `params`.
fn signed(authority: &Authority, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
    let signer = KeyPair::from_pem(&pkcs8(authority)).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.certificate().der(), signer).unwrap();
    params.signed_by(key, &issuer).unwrap().into()
}

fn pkcs8(authority: &Authority) -> String {
    let key = talon_crypto::RsaPrivateKey::from_pem(&authority.private_key_pem().unwrap()).unwrap();
    let body = data_encoding::BASE64.encode(&key.to_pkcs8_der().unwrap());
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec![SERVER.to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, SERVER);
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn pem(der: CertificateDer<'static>) -> String {
    Certificate::from_der(der).unwrap().pem()
}

#[test]
fn the_servers_certificate_is_accepted() {
    let (authority, frontend) = deployment();
    let server = verify_server_pem(frontend.certificate().pem().as_bytes(), &authority.trust_bundle(), SERVER, at(NOW)).unwrap();
    assert_eq!(server.name(), SERVER);
    assert_eq!(server.public_key().unwrap().modulus(), frontend.key().public().modulus());
}

#[test]
fn another_authority_is_refused() {
    let (authority, _) = deployment();
    let (_, impostor) = deployment();
    let result = verify(&impostor.certificate().pem(), &authority.trust_bundle(), SERVER, NOW);
    assert!(matches!(result, Err(PkiError::Untrusted { .. })), "{result:?}");
}

#[test]
fn another_name_is_refused() {
    let (authority, _) = deployment();
    let api = authority.issue(&LeafProfile::api_client("mallory"), &SystemRng, at(NOW)).unwrap();
    let error = verify(&api.certificate().pem(), &authority.trust_bundle(), SERVER, NOW).unwrap_err();
    assert!(matches!(error, PkiError::WrongName { .. }), "{error:?}");
    assert_eq!(error.to_string(), "Invalid server certificate common name mallory!");
    let lower = authority.issue(&LeafProfile::api_client("velociraptorserver"), &SystemRng, at(NOW)).unwrap();
    assert!(verify(&lower.certificate().pem(), &authority.trust_bundle(), SERVER, NOW).is_err());
}

#[test]
fn an_expired_certificate_is_refused() {
    let (authority, frontend) = deployment();
    let end = frontend.certificate().not_after().as_secs();
    assert!(verify(&frontend.certificate().pem(), &authority.trust_bundle(), SERVER, end).is_ok());
    let result = verify(&frontend.certificate().pem(), &authority.trust_bundle(), SERVER, end + 1);
    assert!(matches!(result, Err(PkiError::Expired { not_after, .. }) if not_after == end), "{result:?}");
}

#[test]
fn a_certificate_of_the_future_is_refused_but_a_slow_clock_is_not() {
    let (authority, frontend) = deployment();
    assert!(verify(&frontend.certificate().pem(), &authority.trust_bundle(), SERVER, NOW - DAY + 1).is_ok());
    let result = verify(&frontend.certificate().pem(), &authority.trust_bundle(), SERVER, NOW - DAY - 1);
    assert!(matches!(result, Err(PkiError::NotYetValid { .. })), "{result:?}");
}

#[test]
fn the_authority_is_no_server() {
    let (authority, _) = deployment();
    let name = authority.certificate().subject_name();
    let result = verify(&authority.certificate().pem(), &authority.trust_bundle(), name, NOW);
    assert!(matches!(result, Err(PkiError::WrongPurpose { .. })), "{result:?}");
}

#[test]
fn a_leaf_that_claims_to_be_an_authority_is_refused() {
    let (authority, _) = deployment();
    let mut params = leaf_params();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let result = verify(&pem(signed(&authority, &params, &key)), &authority.trust_bundle(), SERVER, NOW);
    assert!(matches!(result, Err(PkiError::WrongPurpose { .. })), "{result:?}");
}

#[test]
fn a_key_that_is_not_rsa_is_refused() {
    let (authority, _) = deployment();
    let key = KeyPair::generate().unwrap();
    let result = verify(&pem(signed(&authority, &leaf_params(), &key)), &authority.trust_bundle(), SERVER, NOW);
    assert!(matches!(result, Err(PkiError::NotRsa)), "{result:?}");
}

#[test]
fn two_common_names_are_refused() {
    let (authority, _) = deployment();
    let mut params = leaf_params();
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "mallory");
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let der = signed(&authority, &params, &key);
    assert!(matches!(Certificate::from_der(der), Err(PkiError::Malformed(_))));
}

#[test]
fn purposes_are_told_apart() {
    let (authority, frontend) = deployment();
    let trust = authority.trust_bundle();
    let shared = authority.issue(&LeafProfile::shared_client("agents"), &SystemRng, at(NOW)).unwrap();
    assert!(trust.verify(shared.certificate().der(), Purpose::Client, at(NOW)).is_ok());
    let result = trust.verify(shared.certificate().der(), Purpose::Server, at(NOW));
    assert!(matches!(result, Err(PkiError::WrongPurpose { usage: "server", .. })), "{result:?}");
    assert!(trust.verify(frontend.certificate().der(), Purpose::Client, at(NOW)).is_ok());
}

#[test]
fn a_bundle_trusts_each_of_its_authorities() {
    let (old, old_frontend) = deployment();
    let (new, new_frontend) = deployment();
    let text = format!("{}\n# the next one\n{}", old.certificate().pem(), new.certificate().pem());
    let trust = TrustBundle::from_pem(text.as_bytes()).unwrap();
    assert_eq!(trust.trust_anchors().len(), 2);
    for frontend in [&old_frontend, &new_frontend] {
        assert!(verify(&frontend.certificate().pem(), &trust, SERVER, NOW).is_ok());
    }
    assert_eq!(old.trust_bundle().union(&new.trust_bundle()).certificates().len(), 2);
}

#[test]
fn a_tampered_certificate_is_refused() {
    let (authority, frontend) = deployment();
    let der = frontend.certificate().der().to_vec();
    let trust = authority.trust_bundle();
    for position in (0..der.len()).step_by(7) {
        let mut tampered = der.clone();
        tampered[position] ^= 1;
        let result = trust.verify(&CertificateDer::from(tampered), Purpose::Server, at(NOW));
        assert!(result.is_err(), "byte {position} changed and nobody noticed");
    }
}

#[test]
fn junk_is_no_certificate() {
    let (authority, frontend) = deployment();
    let trust = authority.trust_bundle();
    let key = frontend.private_key_pem().unwrap();
    assert!(matches!(verify("", &trust, SERVER, NOW), Err(PkiError::NoPemBlock(_))));
    assert!(matches!(verify(&key, &trust, SERVER, NOW), Err(PkiError::NoPemBlock(_))));
    let cut = frontend.certificate().pem().replace("-----END CERTIFICATE-----\n", "");
    assert!(verify(&cut, &trust, SERVER, NOW).is_err());
    let mut longer = frontend.certificate().der().to_vec();
    longer.push(0);
    assert!(matches!(Certificate::from_der(longer.into()), Err(PkiError::Malformed(_))));
    assert!(matches!(TrustBundle::from_pem(b"nothing"), Err(PkiError::NoPemBlock(_))));
}

#[test]
fn stock_certificates_are_read_and_verified() {
    let Ok(vectors) = std::env::var("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let read = |name: &str| std::fs::read_to_string(format!("{vectors}/keys/{name}")).unwrap();
    let authority = Authority::from_pem(read("ca.cert.pem").as_bytes(), &read("ca.key.pem")).unwrap();
    let frontend = Identity::from_pem(read("server.cert.pem").as_bytes(), &read("server.key.pem")).unwrap();
    let now = frontend.certificate().not_before().as_secs() + 10;
    assert_eq!(frontend.certificate().subject_name(), SERVER);
    assert_eq!(verify(&read("server.cert.pem"), &authority.trust_bundle(), SERVER, now).unwrap(), SERVER);
    assert!(verify(&read("ca.cert.pem"), &authority.trust_bundle(), SERVER, now).is_err());
    // A stock authority goes on issuing here: same issuer name, same key id.
    let leaf = authority.issue(&LeafProfile::gateway("GRPC_GW"), &SystemRng, at(now)).unwrap();
    assert_eq!(verify(&leaf.certificate().pem(), &authority.trust_bundle(), "GRPC_GW", now).unwrap(), "GRPC_GW");
    assert_eq!(leaf.certificate().not_before(), authority.certificate().not_before());
}
