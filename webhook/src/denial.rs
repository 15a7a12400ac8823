//! Which pods are denied, and in which words.

use domain::{keys, request::DemandError};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;

/// Why a pod is denied: one sentence for its author, with the way to write it right.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denial {
    /// Else a pod could claim GPUs by itself.
    #[error("annotation {0} is reserved for Tessera; remove it")]
    ReservedAnnotation(String),
    /// The resources or annotations ask for something that does not exist.
    #[error(transparent)]
    Demand(#[from] DemandError),
    /// kubelet would admit the pod without a claim.
    #[error(
        "spec.nodeName {0:?} bypasses the scheduler, so the pod would get no GPU; \
         use nodeSelector kubernetes.io/hostname: {0} instead"
    )]
    NodeName(String),
}

/// Denies a pod whose author wrote an annotation of Tessera.
pub(crate) fn check_annotations(pod: &Pod) -> Result<(), Denial> {
    let mut keys = pod.annotations().keys();
    match keys.find(|key| key.starts_with(keys::TESSERA_PREFIX)) {
        Some(key) => Err(Denial::ReservedAnnotation(key.clone())),
        None => Ok(()),
    }
}

/// Denies a GPU pod that bypasses the scheduler. Privileged containers are refused by the policy `tessera-devices`,
/// which knows the namespace's labels.
pub(crate) fn check_node_name(spec: &PodSpec) -> Result<(), Denial> {
    match spec.node_name.as_deref() {
        None | Some("") => Ok(()),
        Some(node) => Err(Denial::NodeName(node.to_owned())),
    }
}
