//! A CA, the serving certificate that it signed, and when they are due for renewal; no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    pem::{Pem, parse_x509_pem},
};

/// How long a CA is valid.
const CA_LIFETIME: Duration = Duration::days(3650);
/// How long a serving certificate is valid.
const LEAF_LIFETIME: Duration = Duration::days(90);
/// How far certificates are dated back: clocks of a cluster differ.
const CLOCK_SKEW: Duration = Duration::minutes(10);

/// Why a pair cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The Secret lacks a part.
    #[error("the Secret has no key {0}")]
    Missing(&'static str),
    /// A part does not parse.
    #[error("cannot parse {what}: {why}")]
    Unreadable {
        /// The Secret's key.
        what: &'static str,
        /// The parser's words.
        why: String,
    },
    /// The private key is another certificate's.
    #[error("tls.key does not belong to tls.crt")]
    Mismatch,
    /// Signing failed.
    #[error("cannot create a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// The contents of the Secret, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// `ca.crt`: what the API server trusts.
    pub(crate) ca_certificate: String,
    /// `ca.key`.
    pub(crate) ca_key: String,
    /// `tls.crt`: what the webhook serves.
    pub(crate) certificate: String,
    /// `tls.key`.
    pub(crate) key: String,
}

impl Pair {
    /// Creates a CA for ten years and a serving certificate for the names (DNS or IP).
    pub(crate) fn generate(
        names: &[String],
        now: OffsetDateTime,
    ) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "Tessera webhook CA");
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + CA_LIFETIME);
        let ca_key = KeyPair::generate()?;
        let ca_certificate = params.self_signed(&ca_key)?.pem();
        let ca_key = ca_key.serialize_pem();
        let (certificate, key) = leaf(&ca_certificate, &ca_key, names, now)?;
        Ok(Self {
            ca_certificate,
            ca_key,
            certificate,
            key,
        })
    }

    /// Creates a serving certificate for 90 days with the same CA, or a whole new pair where the CA itself is due.
    pub(crate) fn renew(
        &self,
        names: &[String],
        now: OffsetDateTime,
    ) -> Result<Self, CertificateError> {
        if with_certificate("ca.crt", &self.ca_certificate, |ca| {
            is_past_two_thirds(ca, now)
        })? {
            return Self::generate(names, now);
        }
        let (certificate, key) = leaf(&self.ca_certificate, &self.ca_key, names, now)?;
        Ok(Self {
            certificate,
            key,
            ..self.clone()
        })
    }

    /// Whether to renew: two thirds of a lifetime have passed, or a name is missing.
    pub(crate) fn is_due(
        &self,
        names: &[String],
        now: OffsetDateTime,
    ) -> Result<bool, CertificateError> {
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let leaf_is_due = with_certificate("tls.crt", &self.certificate, |leaf| {
            let names = names_of(leaf);
            is_past_two_thirds(leaf, now) || wanted.iter().any(|name| !names.contains(*name))
        })?;
        Ok(leaf_is_due
            || with_certificate("ca.crt", &self.ca_certificate, |ca| {
                is_past_two_thirds(ca, now)
            })?)
    }

    /// Reads the data of a Secret; parts that do not belong together are an error.
    pub(crate) fn from_secret_data(
        data: &BTreeMap<String, ByteString>,
    ) -> Result<Self, CertificateError> {
        let part = |what: &'static str| {
            let bytes = data.get(what).ok_or(CertificateError::Missing(what))?;
            String::from_utf8(bytes.0.clone()).map_err(|error| unreadable(what, &error))
        };
        let pair = Self {
            ca_certificate: part("ca.crt")?,
            ca_key: part("ca.key")?,
            certificate: part("tls.crt")?,
            key: part("tls.key")?,
        };
        let key = KeyPair::from_pem(&pair.key).map_err(|error| unreadable("tls.key", &error))?;
        issuer(&pair.ca_certificate, &pair.ca_key)?;
        let belongs = with_certificate("tls.crt", &pair.certificate, |leaf| {
            leaf.public_key().raw == key.subject_public_key_info()
        })?;
        if belongs {
            Ok(pair)
        } else {
            Err(CertificateError::Mismatch)
        }
    }

    /// The data of the Secret: that of type `kubernetes.io/tls`, and the CA.
    pub(crate) fn to_secret_data(&self) -> BTreeMap<String, ByteString> {
        [
            ("ca.crt", &self.ca_certificate),
            ("ca.key", &self.ca_key),
            ("tls.crt", &self.certificate),
            ("tls.key", &self.key),
        ]
        .map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
    }
}

fn unreadable(what: &'static str, why: &dyn std::error::Error) -> CertificateError {
    CertificateError::Unreadable {
        what,
        why: why.to_string(),
    }
}

fn issuer(certificate: &str, key: &str) -> Result<Issuer<'static, KeyPair>, CertificateError> {
    let key = KeyPair::from_pem(key).map_err(|error| unreadable("ca.key", &error))?;
    Issuer::from_ca_cert_pem(certificate, key).map_err(|error| unreadable("ca.crt", &error))
}

fn leaf(
    ca: &str,
    ca_key: &str,
    names: &[String],
    now: OffsetDateTime,
) -> Result<(String, String), CertificateError> {
    let mut params = CertificateParams::new(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
        .distinguished_name
        .push(DnType::CommonName, "Tessera webhook");
    (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + LEAF_LIFETIME);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer(ca, ca_key)?)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn with_certificate<T>(
    what: &'static str,
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>) -> T,
) -> Result<T, CertificateError> {
    let (_, pem): (_, Pem) =
        parse_x509_pem(pem.as_bytes()).map_err(|error| unreadable(what, &error))?;
    let certificate = pem.parse_x509().map_err(|error| unreadable(what, &error))?;
    Ok(read(&certificate))
}

fn is_past_two_thirds(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> bool {
    let from = certificate.validity().not_before.to_datetime();
    let to = certificate.validity().not_after.to_datetime();
    now >= from + (to - from) * 2 / 3
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                address.ok().map(|address| address.to_string())
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use super::*;

    fn names() -> Vec<String> {
        ["tessera-webhook.tessera-system.svc", "127.0.0.1"]
            .map(str::to_owned)
            .into()
    }

    fn accepts(pair: &Pair, name: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(der(&pair.ca_certificate)).unwrap();
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .unwrap()
            .verify_server_cert(
                &der(&pair.certificate),
                &[],
                &ServerName::try_from(name).unwrap(),
                &[],
                UnixTime::now(),
            )
            .is_ok()
    }

    #[test]
    fn a_client_that_trusts_the_ca_accepts_the_names_and_no_others() {
        let pair = Pair::generate(&names(), OffsetDateTime::now_utc()).unwrap();
        assert!(accepts(&pair, "tessera-webhook.tessera-system.svc"));
        assert!(accepts(&pair, "127.0.0.1"));
        assert!(!accepts(&pair, "other.tessera-system.svc"));
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life_and_renewed_by_the_same_ca() {
        let now = OffsetDateTime::now_utc();
        let pair = Pair::generate(&names(), now).unwrap();
        assert!(!pair.is_due(&names(), now + Duration::days(59)).unwrap());
        let later = now + Duration::days(61);
        assert!(pair.is_due(&names(), later).unwrap());
        let renewed = pair.renew(&names(), later).unwrap();
        assert_eq!(renewed.ca_certificate, pair.ca_certificate);
        assert!(!renewed.is_due(&names(), later).unwrap());
    }

    #[test]
    fn a_new_name_is_a_reason_to_renew() {
        let now = OffsetDateTime::now_utc();
        let pair = Pair::generate(&names(), now).unwrap();
        let more = [names(), vec!["localhost".to_owned()]].concat();
        assert!(pair.is_due(&more, now).unwrap());
        assert!(!pair.renew(&more, now).unwrap().is_due(&more, now).unwrap());
    }

    #[test]
    fn an_old_ca_is_replaced_with_its_certificates() {
        let now = OffsetDateTime::now_utc();
        let pair = Pair::generate(&names(), now - Duration::days(2500)).unwrap();
        let renewed = pair.renew(&names(), now).unwrap();
        assert_ne!(renewed.ca_certificate, pair.ca_certificate);
    }

    #[test]
    fn the_secret_gives_back_what_was_written_and_damage_is_named() {
        let pair = Pair::generate(&names(), OffsetDateTime::now_utc()).unwrap();
        let data = pair.to_secret_data();
        assert_eq!(Pair::from_secret_data(&data).unwrap(), pair);
        let mut less = data.clone();
        less.remove("ca.key");
        let error = Pair::from_secret_data(&less).unwrap_err().to_string();
        assert_eq!(error, "the Secret has no key ca.key");
        let mut other = data.clone();
        let another = Pair::generate(&names(), OffsetDateTime::now_utc()).unwrap();
        other.extend([(
            "tls.key".to_owned(),
            another.to_secret_data()["tls.key"].clone(),
        )]);
        let error = Pair::from_secret_data(&other).unwrap_err().to_string();
        assert_eq!(error, "tls.key does not belong to tls.crt");
    }
}
