//! A CA, the serving certificate that it signed, and when the latter is due; no I/O.

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

const CA_LIFE: Duration = Duration::days(3650);
const LEAF_LIFE: Duration = Duration::days(90);
/// Clocks of a cluster differ.
const SKEW: Duration = Duration::minutes(10);

/// Why a pair cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The Secret lacks a part.
    #[error("the Secret has no key {0}")]
    Missing(&'static str),
    /// A part is not what its name says.
    #[error("{what} cannot be read: {why}")]
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
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What the Secret holds, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// `ca.crt`: what the API server is told to trust.
    pub ca_certificate: String,
    /// `ca.key`.
    pub ca_key: String,
    /// `tls.crt`: what the webhook serves.
    pub certificate: String,
    /// `tls.key`.
    pub key: String,
}

impl Pair {
    /// A new CA of ten years and its first serving certificate for the names (DNS or IP).
    pub fn make(names: &[String], now: OffsetDateTime) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "Tessera webhook CA");
        (params.not_before, params.not_after) = (now - SKEW, now + CA_LIFE);
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

    /// A new serving certificate of 90 days by the same CA, or a whole new pair where the CA itself is due.
    pub fn renew(&self, names: &[String], now: OffsetDateTime) -> Result<Self, CertificateError> {
        if with_certificate("ca.crt", &self.ca_certificate, |ca| is_old(ca, now))? {
            return Self::make(names, now);
        }
        let (certificate, key) = leaf(&self.ca_certificate, &self.ca_key, names, now)?;
        Ok(Self {
            certificate,
            key,
            ..self.clone()
        })
    }

    /// Whether it is time: two thirds of a life are over, or the names are others.
    pub fn is_due(&self, names: &[String], now: OffsetDateTime) -> Result<bool, CertificateError> {
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let leaf = with_certificate("tls.crt", &self.certificate, |leaf| {
            let has = names_of(leaf);
            is_old(leaf, now) || wanted.iter().any(|name| !has.contains(*name))
        })?;
        Ok(leaf || with_certificate("ca.crt", &self.ca_certificate, |ca| is_old(ca, now))?)
    }

    /// Reads a Secret's data; parts that do not fit together are an error.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, CertificateError> {
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
        let fits = with_certificate("tls.crt", &pair.certificate, |leaf| {
            leaf.public_key().raw == key.subject_public_key_info()
        })?;
        if fits {
            Ok(pair)
        } else {
            Err(CertificateError::Mismatch)
        }
    }

    /// The Secret's data (`kubernetes.io/tls` with the CA beside).
    pub fn data(&self) -> BTreeMap<String, ByteString> {
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
    (params.not_before, params.not_after) = (now - SKEW, now + LEAF_LIFE);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer(ca, ca_key)?)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn with_certificate<T>(
    what: &'static str,
    pem: &str,
    look: impl FnOnce(&X509Certificate<'_>) -> T,
) -> Result<T, CertificateError> {
    let (_, pem): (_, Pem) =
        parse_x509_pem(pem.as_bytes()).map_err(|error| unreadable(what, &error))?;
    let certificate = pem.parse_x509().map_err(|error| unreadable(what, &error))?;
    Ok(look(&certificate))
}

fn is_old(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> bool {
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
        let pair = Pair::make(&names(), OffsetDateTime::now_utc()).unwrap();
        assert!(accepts(&pair, "tessera-webhook.tessera-system.svc"));
        assert!(accepts(&pair, "127.0.0.1"));
        assert!(!accepts(&pair, "other.tessera-system.svc"));
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life_and_renewed_by_the_same_ca() {
        let now = OffsetDateTime::now_utc();
        let pair = Pair::make(&names(), now).unwrap();
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
        let pair = Pair::make(&names(), now).unwrap();
        let more = [names(), vec!["localhost".to_owned()]].concat();
        assert!(pair.is_due(&more, now).unwrap());
        assert!(!pair.renew(&more, now).unwrap().is_due(&more, now).unwrap());
    }

    #[test]
    fn an_old_ca_is_replaced_with_its_certificates() {
        let now = OffsetDateTime::now_utc();
        let pair = Pair::make(&names(), now - Duration::days(2500)).unwrap();
        let renewed = pair.renew(&names(), now).unwrap();
        assert_ne!(renewed.ca_certificate, pair.ca_certificate);
    }

    #[test]
    fn the_secret_gives_back_what_was_written_and_damage_is_named() {
        let pair = Pair::make(&names(), OffsetDateTime::now_utc()).unwrap();
        let data = pair.data();
        assert_eq!(Pair::read(&data).unwrap(), pair);
        let mut less = data.clone();
        less.remove("ca.key");
        let error = Pair::read(&less).unwrap_err().to_string();
        assert_eq!(error, "the Secret has no key ca.key");
        let mut other = data.clone();
        let another = Pair::make(&names(), OffsetDateTime::now_utc()).unwrap();
        other.extend([("tls.key".to_owned(), another.data()["tls.key"].clone())]);
        let error = Pair::read(&other).unwrap_err().to_string();
        assert_eq!(error, "tls.key does not belong to tls.crt");
    }
}
