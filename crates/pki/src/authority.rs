//! The certificate authority: making one, and issuing the certificates of a deployment.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::UnixTime;
use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey, Zeroizing, random_array};

use crate::{Certificate, Identity, PkiError, TrustBundle};

/// How long a certificate is valid unless `security.certificate_validity_days` says otherwise.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(365 * DAY);

const DAY: u64 = 24 * 60 * 60;
/// The authority's life: 3650 days, as stock deployments have it.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(3650 * DAY);
/// Certificates start this much in the past, for peers whose clocks are slow.
const BACK_DATED: Duration = Duration::from_secs(DAY);
/// Year 9999, where the time forms of X.509 end.
const END_OF_TIME: u64 = 253_402_300_799;
const AUTHORITY_ORGANISATION: &str = "Velociraptor CA";
const AUTHORITY_DNS_NAME: &str = "Velociraptor_ca.velocidex.com";
const LEAF_ORGANISATION: &str = "Velociraptor";

/// What a certificate is issued for: its name, its uses, its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafProfile {
    name: String,
    server: bool,
    validity: Duration,
}

impl LeafProfile {
    /// The frontend: `/server.pem`, TLS, message signatures.
    #[must_use]
    pub fn frontend(name: &str) -> Self {
        Self { name: name.to_owned(), server: true, validity: DEFAULT_VALIDITY }
    }

    /// The gateway between the web pages and the API.
    #[must_use]
    pub fn gateway(name: &str) -> Self {
        Self::frontend(name)
    }

    /// A caller of the API. Stock servers verify it for the server usage too, so that it has both.
    #[must_use]
    pub fn api_client(user: &str) -> Self {
        Self::frontend(user)
    }

    /// The certificate that agents share for mutual TLS. It has no server usage, so that whoever steals it from an endpoint cannot pose as a
    /// server; it is therefore no API certificate for stock servers.
    #[must_use]
    pub fn shared_client(name: &str) -> Self {
        Self { server: false, ..Self::frontend(name) }
    }

    /// The same profile with another life. Nothing outlives the authority, whatever is asked for.
    #[must_use]
    pub fn valid_for(self, validity: Duration) -> Self {
        Self { validity, ..self }
    }
}

/// A certificate authority: the certificate that everybody trusts, and its private key.
pub struct Authority {
    identity: Identity,
    trust: TrustBundle,
}

impl Authority {
    /// A new authority, valid for ten years from `now`.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] or [`PkiError::Issue`].
    pub fn generate(rng: &dyn Rng, now: UnixTime) -> Result<Self, PkiError> {
        let key = RsaPrivateKey::generate()?;
        let mut params = params(rng, AUTHORITY_ORGANISATION, None)?;
        let start = now.as_secs().saturating_sub(BACK_DATED.as_secs());
        set_validity(&mut params, start, now.as_secs().saturating_add(AUTHORITY_VALIDITY.as_secs()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::DnsName(AUTHORITY_DNS_NAME.try_into()?)];
        let signed = params.self_signed(&Signer::new(&key))?;
        Self::from_identity(Identity::from_parts(Certificate::from_der(signed.into())?, key)?)
    }

    /// The authority of an existing deployment: the first certificate of `certificate_pem` and its private key.
    ///
    /// # Errors
    /// When one of them cannot be parsed, they do not belong together, or the certificate is no authority.
    pub fn from_pem(certificate_pem: &[u8], private_key_pem: &str) -> Result<Self, PkiError> {
        Self::from_identity(Identity::from_pem(certificate_pem, private_key_pem)?)
    }

    fn from_identity(identity: Identity) -> Result<Self, PkiError> {
        if !identity.certificate().is_authority() {
            return Err(PkiError::NotAnAuthority { subject: identity.certificate().subject_name().to_owned() });
        }
        let trust = TrustBundle::of(identity.certificate())?;
        Ok(Self { identity, trust })
    }

    /// The certificate that peers trust.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        self.identity.certificate()
    }

    /// The private key as PKCS#1 PEM, for the configuration file.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn private_key_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        self.identity.private_key_pem()
    }

    /// Trust in this authority alone.
    #[must_use]
    pub fn trust_bundle(&self) -> TrustBundle {
        self.trust.clone()
    }

    /// A new key and its certificate.
    ///
    /// # Errors
    /// [`PkiError::Name`], [`PkiError::Expired`] when the authority itself is, [`PkiError::Crypto`] or [`PkiError::Issue`].
    pub fn issue(&self, profile: &LeafProfile, rng: &dyn Rng, now: UnixTime) -> Result<Identity, PkiError> {
        let key = RsaPrivateKey::generate()?;
        let certificate = self.certify(key.public(), profile, rng, now)?;
        Identity::from_parts(certificate, key)
    }

    /// A certificate for an existing key.
    ///
    /// # Errors
    /// As [`Authority::issue`], and [`PkiError::KeySize`].
    pub fn certify(&self, key: &RsaPublicKey, profile: &LeafProfile, rng: &dyn Rng, now: UnixTime) -> Result<Certificate, PkiError> {
        let authority = self.certificate();
        authority.check_time(now)?;
        if !(crate::MIN_KEY_BITS..=crate::MAX_KEY_BITS).contains(&key.bits()) {
            return Err(PkiError::KeySize { bits: key.bits() });
        }
        let mut params = params(rng, LEAF_ORGANISATION, Some(&profile.name))?;
        let start = now.as_secs().saturating_sub(BACK_DATED.as_secs()).max(authority.not_before().as_secs());
        let end = now.as_secs().saturating_add(profile.validity.as_secs()).min(authority.not_after().as_secs());
        set_validity(&mut params, start, end);
        params.custom_extensions = vec![no_authority()];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if profile.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        params.use_authority_key_identifier_extension = authority.subject_key_id().is_some();
        params.subject_alt_names = vec![match profile.name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(profile.name.as_str().try_into()?),
        }];
        let issuer = Issuer::from_ca_cert_der(authority.der(), Signer::new(self.identity.key()))?;
        let signed = params.signed_by(&Subject { pkcs1: key.to_pkcs1_der() }, &issuer)?;
        Certificate::from_der(signed.into())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").field("certificate", self.certificate()).finish_non_exhaustive()
    }
}

/// Basic constraints CA:FALSE, written by hand: the library's own form adds a subject key id, which stock leaves do not have.
fn no_authority() -> CustomExtension {
    let empty_sequence = vec![0x30, 0x00];
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 19], empty_sequence);
    extension.set_criticality(true);
    extension
}

/// Serial number and subject: what all certificates have.
fn params(rng: &dyn Rng, organisation: &str, name: Option<&str>) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&random_array::<16>(rng)));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, directory_string(organisation));
    if let Some(name) = name {
        let printable = (1..=64).contains(&name.len()) && name.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if !printable {
            return Err(PkiError::Name(name.to_owned()));
        }
        params.distinguished_name.push(DnType::CommonName, directory_string(name));
    }
    Ok(params)
}

/// A PrintableString where the text allows it, as every X.509 library expects for plain names.
fn directory_string(text: &str) -> DnValue {
    match text.try_into() {
        Ok(printable) => DnValue::PrintableString(printable),
        Err(_) => DnValue::Utf8String(text.to_owned()),
    }
}

/// Sets the validity, both ends in unix time and at the latest at the end of the year 9999.
fn set_validity(params: &mut CertificateParams, not_before: u64, not_after: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.min(END_OF_TIME));
    params.not_after = epoch + Duration::from_secs(not_after.min(END_OF_TIME));
}

/// The authority's key in the form that signs certificates and requests.
pub(crate) struct Signer<'a> {
    key: &'a RsaPrivateKey,
    pkcs1: Vec<u8>,
}

impl<'a> Signer<'a> {
    pub(crate) fn new(key: &'a RsaPrivateKey) -> Self {
        Self { key, pkcs1: key.public().to_pkcs1_der() }
    }
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.pkcs1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign_pkcs1_sha256(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The key that a certificate is about.
struct Subject {
    pkcs1: Vec<u8>,
}

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.pkcs1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}
