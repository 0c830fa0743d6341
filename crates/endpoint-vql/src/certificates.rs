//! `parse_x509()`: certificates, in DER or PEM.

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Signature, Time, Value};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, Pem};
use x509_parser::public_key::PublicKey;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("parse_x509", "The certificates in DER or PEM data, as a list.")
            .args(const { &[Arg::required("data", ArgType::String, "The data.")] }),
        |call: Call| parse(&call.bytes("data")).map(Value::from).map_err(CallError::failed),
    );
}

/// How many certificates one call reads.
const MAX_CERTIFICATES: usize = 1000;

fn parse(data: &[u8]) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    if data.windows(11).any(|window| window == b"-----BEGIN ") {
        for pem in Pem::iter_from_buffer(data).take(MAX_CERTIFICATES) {
            let pem = pem.map_err(|error| error.to_string())?;
            if pem.label == "CERTIFICATE" {
                found.push(one(&pem.contents)?.0.into());
            }
        }
        return Ok(found);
    }
    let mut rest = data;
    while !rest.is_empty() && found.len() < MAX_CERTIFICATES {
        let (certificate, after) = one(rest)?;
        found.push(certificate.into());
        rest = after;
    }
    Ok(found)
}

fn one(der: &[u8]) -> Result<(Dict, &[u8]), String> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| format!("not a certificate: {error}"))?;
    let moment = |seconds: i64| Value::Time(Time::from_unix(seconds));
    let (algorithm, bits) = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => ("RSA", key.key_size()),
        Ok(PublicKey::EC(point)) => ("ECDSA", point.key_size()),
        Ok(PublicKey::DSA(_)) => ("DSA", 0),
        _ => ("Unknown", 0),
    };
    let row = Dict::new()
        .with("SerialNumber", hex(certificate.raw_serial()))
        .with("Subject", certificate.subject().to_string())
        .with("Issuer", certificate.issuer().to_string())
        .with("NotBefore", moment(certificate.validity().not_before.timestamp()))
        .with("NotAfter", moment(certificate.validity().not_after.timestamp()))
        .with("Version", i64::from(certificate.version().0).saturating_add(1))
        .with("SignatureAlgorithm", certificate.signature_algorithm.algorithm.to_id_string())
        .with("PublicKeyAlgorithm", algorithm)
        .with("PublicKeyBits", bits)
        .with("PublicKey", hex(certificate.public_key().raw))
        .with("IsCA", certificate.is_ca())
        .with("SubjectAlternativeName", names(&certificate))
        .with("Extensions", extensions(&certificate));
    Ok((row, rest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(four), _) => std::net::Ipv4Addr::from(four).to_string(),
                (_, Ok(sixteen)) => std::net::Ipv6Addr::from(sixteen).to_string(),
                _ => hex(bytes),
            },
            other => other.to_string(),
        })
        .collect()
}

fn extensions(certificate: &X509Certificate<'_>) -> Dict {
    let mut found = Dict::new();
    for extension in certificate.extensions() {
        let value = match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => ("SubjectKeyId", Value::from(hex(id.0))),
            ParsedExtension::AuthorityKeyIdentifier(id) => ("AuthorityKeyId", id.key_identifier.as_ref().map(|id| hex(id.0)).into()),
            ParsedExtension::KeyUsage(usage) => ("KeyUsage", usage.to_string().into()),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [
                    (usage.any, "Any"),
                    (usage.server_auth, "ServerAuth"),
                    (usage.client_auth, "ClientAuth"),
                    (usage.code_signing, "CodeSigning"),
                    (usage.email_protection, "EmailProtection"),
                    (usage.time_stamping, "TimeStamping"),
                    (usage.ocsp_signing, "OCSPSigning"),
                ];
                let known = known.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned());
                ("ExtendedKeyUsage", known.chain(usage.other.iter().map(|oid| oid.to_id_string())).collect::<Vec<_>>().into())
            }
            ParsedExtension::BasicConstraints(constraints) => (
                "BasicConstraints",
                Dict::new().with("IsCA", constraints.ca).with("MaxPathLen", constraints.path_len_constraint.map(i64::from)).into(),
            ),
            _ => {
                found.set(Key::from(extension.oid.to_id_string()), Value::Bytes(extension.value.into()));
                continue;
            }
        };
        found.set(value.0, value.1);
    }
    found
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use talon_vql::json;

    use super::*;

    /// A self-signed certificate that was made for this test: CN=talon.example, with two names and a P-256 key.
    const PEM: &str = include_str!("certificates.pem");

    #[test]
    fn certificates_are_read_from_both_forms() {
        let found = parse(PEM.as_bytes()).unwrap();
        let row = found.first().and_then(Value::as_dict).unwrap();
        let shown: Dict = [
            "Subject",
            "Issuer",
            "NotBefore",
            "NotAfter",
            "Version",
            "PublicKeyAlgorithm",
            "PublicKeyBits",
            "IsCA",
            "SubjectAlternativeName",
        ]
        .into_iter()
        .map(|name| (Key::from(name), row.get(name).cloned().unwrap()))
        .collect();
        expect![[r#"{"Subject":"CN=talon.example","Issuer":"CN=talon.example","NotBefore":"2026-11-25T01:33:48Z","NotAfter":"2036-11-22T01:33:48Z","Version":3,"PublicKeyAlgorithm":"ECDSA","PublicKeyBits":256,"IsCA":true,"SubjectAlternativeName":["talon.example","192.0.2.1"]}"#]]
            .assert_eq(&json::encode(&shown.into()));
        let der = Pem::iter_from_buffer(PEM.as_bytes()).next().unwrap().unwrap().contents;
        assert_eq!(
            json::encode(&parse(&[&der[..], &der[..]].concat()).unwrap().into()),
            json::encode(&vec![found[0].clone(), found[0].clone()].into())
        );
        assert!(parse(b"no certificate").is_err());
        assert!(parse(&der[..der.len() - 5]).is_err());
    }
}
