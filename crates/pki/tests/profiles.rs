//! What issued certificates say: the profiles that stock verifiers accept, field by field.

#![allow(clippy::unwrap_used, reason = "a failure ends the run")]

use std::time::Duration;

use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_pki::{Authority, Certificate, Identity, LeafProfile, PkiError, UnixTime};
use x509_parser::prelude::*;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn parse(certificate: &Certificate) -> X509Certificate<'_> {
    let (rest, parsed) = X509Certificate::from_der(certificate.der()).unwrap();
    assert!(rest.is_empty());
    parsed
}

/// OID, criticality and value of each extension, in order.
fn extensions(certificate: &Certificate) -> Vec<(String, bool, Vec<u8>)> {
    parse(certificate).extensions().iter().map(|ext| (ext.oid.to_id_string(), ext.critical, ext.value.to_vec())).collect()
}

fn value(certificate: &Certificate, oid: &str) -> Option<(bool, Vec<u8>)> {
    extensions(certificate).into_iter().find(|ext| ext.0 == oid).map(|ext| (ext.1, ext.2))
}

const KEY_USAGE: &str = "2.5.29.15";
const EXT_KEY_USAGE: &str = "2.5.29.37";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const SUBJECT_KEY_ID: &str = "2.5.29.14";
const AUTHORITY_KEY_ID: &str = "2.5.29.35";
const ALTERNATIVE_NAME: &str = "2.5.29.17";
const SERVER_AND_CLIENT: &[u8] = &[0x30, 20, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
const CLIENT_ONLY: &[u8] = &[0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];

#[test]
fn the_authority_has_the_stock_profile() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let certificate = authority.certificate();
    let parsed = parse(certificate);
    assert_eq!(parsed.version(), X509Version::V3);
    assert_eq!(parsed.subject().to_string(), "O=Velociraptor CA");
    assert_eq!(parsed.issuer().to_string(), "O=Velociraptor CA");
    assert_eq!(parsed.signature_algorithm.algorithm.to_id_string(), "1.2.840.113549.1.1.11");
    assert_eq!(certificate.not_before(), at(NOW - DAY));
    assert_eq!(certificate.not_after(), at(NOW + 3650 * DAY));
    assert_eq!(value(certificate, KEY_USAGE), Some((true, vec![3, 2, 2, 0xa4])));
    assert_eq!(value(certificate, EXT_KEY_USAGE), Some((false, SERVER_AND_CLIENT.to_vec())));
    assert_eq!(value(certificate, BASIC_CONSTRAINTS), Some((true, vec![0x30, 3, 1, 1, 0xff])));
    assert_eq!(value(certificate, SUBJECT_KEY_ID).map(|(critical, id)| (critical, id.len())), Some((false, 22)));
    assert_eq!(value(certificate, AUTHORITY_KEY_ID), None);
    let (_, name) = value(certificate, ALTERNATIVE_NAME).unwrap();
    assert!(name.ends_with(b"Velociraptor_ca.velocidex.com"));
    assert_eq!(extensions(certificate).len(), 5);
    assert_eq!(certificate.subject_name(), "Velociraptor_ca.velocidex.com");
}

#[test]
fn leaves_have_the_stock_profile() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let leaf = authority.issue(&LeafProfile::gateway("GRPC_GW"), &SystemRng, at(NOW + DAY)).unwrap();
    let certificate = leaf.certificate();
    let parsed = parse(certificate);
    assert_eq!(parsed.subject().to_string(), "O=Velociraptor, CN=GRPC_GW");
    assert_eq!(parsed.issuer(), parse(authority.certificate()).subject());
    assert_eq!(certificate.not_before(), at(NOW));
    assert_eq!(certificate.not_after(), at(NOW + 366 * DAY));
    assert_eq!(value(certificate, KEY_USAGE), Some((true, vec![3, 2, 5, 0xa0])));
    assert_eq!(value(certificate, EXT_KEY_USAGE), Some((false, SERVER_AND_CLIENT.to_vec())));
    assert_eq!(value(certificate, BASIC_CONSTRAINTS), Some((true, vec![0x30, 0])));
    assert_eq!(value(certificate, SUBJECT_KEY_ID), None);
    let (_, authority_id) = value(certificate, AUTHORITY_KEY_ID).unwrap();
    let (_, subject_id) = value(authority.certificate(), SUBJECT_KEY_ID).unwrap();
    assert_eq!(authority_id.last_chunk::<20>(), subject_id.last_chunk::<20>());
    assert_eq!(value(certificate, ALTERNATIVE_NAME), Some((false, b"\x30\x09\x82\x07GRPC_GW".to_vec())));
    assert!(leaf.private_key_pem().unwrap().starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
    assert_eq!(leaf.certificate_chain(), [certificate.der().clone()]);
}

#[test]
fn an_address_becomes_an_address_name() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let leaf = authority.issue(&LeafProfile::api_client("10.1.2.3"), &SystemRng, at(NOW)).unwrap();
    assert_eq!(value(leaf.certificate(), ALTERNATIVE_NAME), Some((false, vec![0x30, 6, 0x87, 4, 10, 1, 2, 3])));
}

#[test]
fn a_shared_client_certificate_cannot_pose_as_a_server() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let leaf = authority.issue(&LeafProfile::shared_client("agents"), &SystemRng, at(NOW)).unwrap();
    assert_eq!(value(leaf.certificate(), EXT_KEY_USAGE), Some((false, CLIENT_ONLY.to_vec())));
}

#[test]
fn nothing_outlives_its_authority() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let profile = LeafProfile::frontend("VelociraptorServer").valid_for(Duration::from_secs(20 * 365 * DAY));
    let leaf = authority.issue(&profile, &SystemRng, at(NOW + DAY)).unwrap();
    assert_eq!(leaf.certificate().not_after(), authority.certificate().not_after());
    let forever = LeafProfile::frontend("VelociraptorServer").valid_for(Duration::MAX);
    let leaf = authority.issue(&forever, &SystemRng, at(NOW)).unwrap();
    assert_eq!(leaf.certificate().not_after(), authority.certificate().not_after());
}

#[test]
fn an_expired_authority_issues_nothing() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let result = authority.issue(&LeafProfile::api_client("admin"), &SystemRng, at(NOW + 3650 * DAY + 1));
    assert!(matches!(result, Err(PkiError::Expired { .. })), "{result:?}");
}

#[test]
fn names_that_certificates_cannot_carry_are_refused() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let long = "a".repeat(65);
    for name in ["", "jos\u{e9}", "a\nb", "a\0b", long.as_str()] {
        let result = authority.issue(&LeafProfile::api_client(name), &SystemRng, at(NOW));
        assert!(matches!(result, Err(PkiError::Name(_))), "{name:?}: {result:?}");
    }
    for name in ["alice", "alice@example.com", "a b", "#1"] {
        let leaf = authority.issue(&LeafProfile::api_client(name), &SystemRng, at(NOW)).unwrap();
        assert_eq!(leaf.certificate().subject_name(), name);
    }
}

#[test]
fn serial_numbers_differ() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let key = RsaPrivateKey::generate().unwrap();
    let serial = || authority.certify(key.public(), &LeafProfile::api_client("a"), &SystemRng, at(NOW)).unwrap().serial();
    assert_ne!(serial(), serial());
}

#[test]
fn an_authority_survives_the_configuration_file() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let key = authority.private_key_pem().unwrap();
    let again = Authority::from_pem(authority.certificate().pem().as_bytes(), &key).unwrap();
    assert_eq!(again.certificate(), authority.certificate());
    let leaf = again.issue(&LeafProfile::api_client("admin"), &SystemRng, at(NOW)).unwrap();
    let identity = Identity::from_pem(leaf.certificate().pem().as_bytes(), &leaf.private_key_pem().unwrap()).unwrap();
    assert_eq!(identity.certificate().subject_name(), "admin");
}

#[test]
fn keys_and_certificates_of_different_origin_do_not_mix() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let leaf = authority.issue(&LeafProfile::api_client("admin"), &SystemRng, at(NOW)).unwrap();
    let certificate = leaf.certificate().pem();
    let foreign = RsaPrivateKey::generate().unwrap().to_pkcs1_pem().unwrap();
    assert!(matches!(Identity::from_pem(certificate.as_bytes(), &foreign), Err(PkiError::KeyMismatch { .. })));
    assert!(matches!(Identity::from_pem(certificate.as_bytes(), "no key"), Err(PkiError::Malformed(_))));
    assert!(matches!(Identity::from_pem(b"no certificate", &foreign), Err(PkiError::NoPemBlock("CERTIFICATE"))));
    let key = leaf.private_key_pem().unwrap();
    assert!(matches!(Authority::from_pem(certificate.as_bytes(), &key), Err(PkiError::NotAnAuthority { .. })));
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let leaf = authority.issue(&LeafProfile::api_client("admin"), &SystemRng, at(NOW)).unwrap();
    let shown = format!("{authority:?} {leaf:?}");
    assert!(shown.contains("admin") && shown.len() < 400, "{shown}");
}

#[test]
fn renewal_is_due_after_two_thirds_of_the_life() {
    let authority = Authority::generate(&SystemRng, at(NOW)).unwrap();
    let profile = LeafProfile::api_client("admin").valid_for(Duration::from_secs(29 * DAY));
    let leaf = authority.issue(&profile, &SystemRng, at(NOW + DAY)).unwrap();
    assert_eq!(leaf.certificate().renew_at(), at(NOW + 20 * DAY));
}
