//! What the three daemons of Tessera share: flags, logging, shutdown, readiness, admin port, TLS, HTTP, watches.

pub mod admin;
pub mod args;
pub mod gpu_node;
pub mod metrics;
pub mod node_affinity;
pub mod pods;
pub mod ready;
pub mod serve;
pub mod shutdown;
pub mod tasks;
pub mod tls;
pub mod watches;

use anyhow::Context;

/// Installs ring as the TLS provider of the process. Call it first in `main`.
pub fn install_crypto() {
    // It fails where a provider is installed already: by an earlier call, so it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client with the pod's service account, or with `KUBECONFIG` outside of a cluster.
pub async fn client() -> anyhow::Result<kube::Client> {
    kube::Client::try_default().await.context(
        "cannot configure the API server client: not in a pod, and KUBECONFIG names no usable file",
    )
}
