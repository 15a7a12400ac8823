//! Fails a pod that cannot start on this node.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};

/// Fails a pod that has not started, so that its controller creates another, elsewhere if this node still cannot.
///
/// kubelet ends a pod whose phase is terminal (`pkg/kubelet/pod_workers.go`, `UpdatePod`). A pod that has started
/// meanwhile, or another one of the same name, stays as it is: the patch tests for both.
pub(crate) async fn fail(client: &Client, pod: &ObjectReference, reason: &str, message: &str) {
    let (Some(namespace), Some(name)) = (&pod.namespace, &pod.name) else {
        return;
    };
    let patch = serde_json::json!([
        { "op": "test", "path": "/metadata/uid", "value": pod.uid },
        { "op": "test", "path": "/status/phase", "value": "Pending" },
        { "op": "add", "path": "/status/phase", "value": "Failed" },
        { "op": "add", "path": "/status/reason", "value": reason },
        { "op": "add", "path": "/status/message", "value": message },
    ]);
    let patch: Patch<()> = match serde_json::from_value(patch) {
        Ok(patch) => Patch::Json(patch),
        Err(error) => return tracing::error!(%error, "Cannot build the patch that fails a pod"),
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let result = pods
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    let pod = format!("{namespace}/{name}");
    match result {
        Ok(_) => tracing::warn!(pod, reason = message, "Failed a pod that cannot start here"),
        Err(error) => tracing::info!(pod, %error, "Did not fail a pod that cannot start here"),
    }
}
