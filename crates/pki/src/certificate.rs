//! A parsed certificate: what it says, not whether it is true.

use std::net::IpAddr;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use talon_crypto::RsaPublicKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION;
use x509_parser::prelude::FromDer;

use crate::{MAX_KEY_BITS, MIN_KEY_BITS, PkiError};

/// A certificate that was parsed and not verified. What it claims is good for messages and for administration; decisions about peers need a
/// [`crate::VerifiedCertificate`].
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    subject_name: String,
    not_before: u64,
    not_after: u64,
    serial: Vec<u8>,
    subject_key_id: Option<Vec<u8>>,
    is_authority: bool,
}

impl Certificate {
    /// The first `CERTIFICATE` block of a PEM text.
    ///
    /// # Errors
    /// [`PkiError::NoPemBlock`] or [`PkiError::Malformed`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        match CertificateDer::pem_slice_iter(pem).next() {
            None => Err(PkiError::NoPemBlock("CERTIFICATE")),
            Some(Err(_)) => Err(PkiError::Malformed("the PEM text of the certificate")),
            Some(Ok(der)) => Self::from_der(der),
        }
    }

    /// A certificate from its DER form, with nothing after it.
    ///
    /// # Errors
    /// [`PkiError::Malformed`], also for a subject with several common names, which peers would read in different ways.
    pub fn from_der(der: CertificateDer<'_>) -> Result<Self, PkiError> {
        let malformed = PkiError::Malformed("the certificate");
        let Ok(([], parsed)) = X509Certificate::from_der(&der) else {
            return Err(malformed);
        };
        let subject_key_id = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let seconds = |time: i64| u64::try_from(time).unwrap_or_default();
        Ok(Self {
            subject_name: subject_name(&parsed)?,
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
            serial: parsed.raw_serial().to_vec(),
            subject_key_id,
            is_authority: parsed.is_ca(),
            der: der.into_owned(),
        })
    }

    /// The DER form.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The PEM form, with a newline at its end.
    #[must_use]
    pub fn pem(&self) -> String {
        encode_pem("CERTIFICATE", &self.der)
    }

    /// The common name; without one the first DNS name, else the first IP address, else nothing.
    #[must_use]
    pub fn subject_name(&self) -> &str {
        &self.subject_name
    }

    /// The first second of validity.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.not_before))
    }

    /// The last second of validity.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.not_after))
    }

    /// When it should be replaced: after two thirds of its life.
    #[must_use]
    pub fn renew_at(&self) -> UnixTime {
        let life = self.not_after.saturating_sub(self.not_before);
        let age = life.saturating_sub(life / 3);
        UnixTime::since_unix_epoch(Duration::from_secs(self.not_before.saturating_add(age)))
    }

    /// Whether `now` is inside of the validity, as an error that says which side it misses.
    ///
    /// # Errors
    /// [`PkiError::Expired`] or [`PkiError::NotYetValid`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), PkiError> {
        let subject = || self.subject_name.clone();
        if now.as_secs() < self.not_before {
            Err(PkiError::NotYetValid { subject: subject(), not_before: self.not_before })
        } else if now.as_secs() > self.not_after {
            Err(PkiError::Expired { subject: subject(), not_after: self.not_after })
        } else {
            Ok(())
        }
    }

    /// Whether it may sign certificates.
    #[must_use]
    pub fn is_authority(&self) -> bool {
        self.is_authority
    }

    /// The serial number in lower-case hexadecimal, without leading zeros.
    #[must_use]
    pub fn serial(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.serial).trim_start_matches('0').to_owned()
    }

    /// SHA-256 of the DER form in lower-case hexadecimal: the form of `certificate_thumbprints`.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        data_encoding::HEXLOWER.encode(&talon_crypto::sha256(&self.der))
    }

    pub(crate) fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// The RSA key that it certifies, if anybody vouches for that.
    pub(crate) fn claimed_key(&self) -> Result<RsaPublicKey, PkiError> {
        let (_, parsed) = X509Certificate::from_der(&self.der).map_err(|_| PkiError::Malformed("the certificate"))?;
        rsa_key(parsed.public_key())
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Certificate").field("subject_name", &self.subject_name).field("serial", &self.serial()).finish_non_exhaustive()
    }
}

/// The RSA key of a subjectPublicKeyInfo, within the accepted sizes.
pub(crate) fn rsa_key(info: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<RsaPublicKey, PkiError> {
    if info.algorithm.algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(PkiError::NotRsa);
    }
    // The size is read before the key goes to the library, which would call a short key malformed.
    let bits = match info.parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(key)) => modulus_bits(key.modulus),
        _ => return Err(PkiError::Malformed("the public key")),
    };
    if !(MIN_KEY_BITS..=MAX_KEY_BITS).contains(&bits) {
        return Err(PkiError::KeySize { bits });
    }
    RsaPublicKey::from_spki_der(info.raw).map_err(|_| PkiError::Malformed("the public key"))
}

fn modulus_bits(modulus: &[u8]) -> usize {
    let mut significant = modulus.iter().skip_while(|byte| **byte == 0);
    let Some(first) = significant.next() else { return 0 };
    let first_bits = u8::BITS.saturating_sub(first.leading_zeros()) as usize;
    significant.count().saturating_mul(8).saturating_add(first_bits)
}

fn subject_name(certificate: &X509Certificate<'_>) -> Result<String, PkiError> {
    let mut common_names = certificate.subject().iter_common_name();
    if let Some(first) = common_names.next() {
        if common_names.next().is_some() {
            return Err(PkiError::Malformed("the certificate's subject, which has several common names,"));
        }
        let name = first.as_str().map_err(|_| PkiError::Malformed("the certificate's common name"))?;
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
    }
    let names = certificate.subject_alternative_name().map_err(|_| PkiError::Malformed("the certificate's alternative name"))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let ip = || {
        names.iter().find_map(|name| match name {
            GeneralName::IPAddress(octets) => ip_address(octets).map(|ip| ip.to_string()),
            _ => None,
        })
    };
    Ok(dns.or_else(ip).unwrap_or_default())
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

/// One PEM block with lines of 64 characters.
pub(crate) fn encode_pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let lines = der.chunks(48).map(|line| data_encoding::BASE64.encode(line));
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
