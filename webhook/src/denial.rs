//! Which pods are denied, and in which words.

use domain::{keys, request::DemandError};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
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
    /// No device list restricts a privileged container.
    #[error(
        "container {0:?} is privileged and would see every GPU of its node; \
         remove securityContext.privileged or the pod's GPU resources"
    )]
    Privileged(String),
}

/// Denies a pod whose author wrote an annotation of Tessera.
pub(crate) fn check_annotations(pod: &Pod) -> Result<(), Denial> {
    let mut keys = pod.annotations().keys();
    match keys.find(|key| key.starts_with(keys::TESSERA_PREFIX)) {
        Some(key) => Err(Denial::ReservedAnnotation(key.clone())),
        None => Ok(()),
    }
}

/// Denies a GPU pod that bypasses the scheduler or the limits of its devices.
pub(crate) fn check_bypasses(spec: &PodSpec) -> Result<(), Denial> {
    if let Some(node) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Err(Denial::NodeName(node.to_owned()));
    }
    let privileged = |container: &&Container| {
        let context = container.security_context.as_ref();
        context.and_then(|context| context.privileged) == Some(true)
    };
    let inits = spec.init_containers.iter().flatten();
    match inits.chain(&spec.containers).find(privileged) {
        Some(container) => Err(Denial::Privileged(container.name.clone())),
        None => Ok(()),
    }
}
