//! What every daemon of Tessera is made of: flags, logs, shutdown, readiness, admin port, TLS, HTTP, watches.

pub mod admin;
pub mod args;
pub mod follow;
pub mod gpu_node;
pub mod metrics;
pub mod pods;
pub mod ready;
pub mod serve;
pub mod shutdown;
pub mod tasks;
pub mod tls;

use anyhow::Context;

/// Makes ring the TLS provider of the process. Call it first in `main`.
pub fn install_crypto() {
    // A second call finds the provider that the first one installed, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client by the pod's service account, or by `KUBECONFIG` outside of a cluster.
pub async fn client() -> anyhow::Result<kube::Client> {
    kube::Client::try_default().await.context(
        "no way to reach the API server: not in a pod, and KUBECONFIG names no usable file",
    )
}
