//! A TLS certificate that can be replaced while it is in use.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// A certificate chain and key that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM.
    #[error("the certificate or key is not PEM")]
    Pem(#[from] pem::Error),
    /// The key is another certificate's.
    #[error("the key does not belong to the certificate")]
    Pair(#[source] rustls::Error),
    /// The provider refuses its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The certificate in use; until there is one, every handshake fails.
#[derive(Debug, Default)]
pub struct Certificate(ArcSwapOption<CertifiedKey>);

impl Certificate {
    /// No certificate yet.
    pub fn empty() -> Arc<Self> {
        Arc::default()
    }

    /// Uses this pair from the next handshake on, and returns whether it is new; on error the old pair stays.
    pub fn set_pem(&self, chain: &[u8], key: &[u8]) -> Result<bool, TlsError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .map_err(TlsError::Pair)?;
        let changed = self
            .0
            .load()
            .as_ref()
            .is_none_or(|old| old.cert != pair.cert);
        if changed {
            self.0.store(Some(Arc::new(pair)));
        }
        Ok(changed)
    }

    /// Settings of a server that serves this certificate, HTTP/2 and HTTP/1.1.
    pub fn server_config(self: Arc<Self>) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_bad_pair_leaves_the_old_one() {
        let certificate = Certificate::default();
        let (chain, key) = pair();
        assert!(
            certificate
                .set_pem(chain.as_bytes(), key.as_bytes())
                .unwrap()
        );
        assert!(
            !certificate
                .set_pem(chain.as_bytes(), key.as_bytes())
                .unwrap()
        );
        assert!(certificate.set_pem(chain.as_bytes(), b"junk").is_err());
        assert!(
            certificate
                .set_pem(chain.as_bytes(), pair().1.as_bytes())
                .is_err()
        );
        assert!(certificate.0.load().is_some());
    }

    #[tokio::test]
    async fn requests_are_answered_over_tls_and_the_server_drains() {
        use http_body_util::BodyExt;
        use hyper_util::rt::TokioIo;
        let (chain, key) = pair();
        let certificate = Certificate::empty();
        certificate
            .set_pem(chain.as_bytes(), key.as_bytes())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = crate::shutdown::CancellationToken::new();
        let server = tokio::spawn(serve::tls(
            listener,
            certificate.server_config().unwrap(),
            token.clone(),
            |request| async move {
                match serve::body(request, 4).await {
                    Ok(body) => serve::typed(hyper::StatusCode::OK, "text/plain", body),
                    Err(answer) => *answer,
                }
            },
        ));
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap())
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(client))
            .connect("localhost".try_into().unwrap(), tcp)
            .await
            .unwrap();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        for (sent, status) in [("four", 200), ("fiver", 413)] {
            let request = hyper::Request::post("/").header("host", "localhost");
            let answer = send
                .send_request(request.body(serve::Body::from(sent)).unwrap())
                .await
                .unwrap();
            assert_eq!(answer.status(), status);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(status != 200 || body == sent);
        }
        token.cancel();
        tokio::time::timeout(std::time::Duration::from_secs(2), server)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
