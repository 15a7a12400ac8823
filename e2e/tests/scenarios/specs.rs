//! Pods that scenarios create, and what their annotations say.

use anyhow::ensure;
use daemon::pods;
use e2e::image::IMAGE;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

/// A pod on a node, or anywhere, with one container that asks for this.
pub(crate) fn pod(name: &str, node: Option<&str>, limits: &Value) -> Value {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 1,
            "containers": [container("main", limits)] },
    });
    if let Some(node) = node {
        pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    }
    pod
}

/// A container that stays and asks for this.
pub(crate) fn container(name: &str, limits: &Value) -> Value {
    json!({ "name": name, "image": IMAGE, "command": ["sleep", "86400"],
        "resources": { "limits": limits } })
}

/// Limits: count, and MiB per device.
pub(crate) fn gpus(count: u32, mib: u64) -> Value {
    json!({ "nvidia.com/gpu": count.to_string(), "nvidia.com/gpumem": mib.to_string() })
}

/// That the pod's annotations name a mode, and the node on which it is.
pub(crate) fn annotated(pod: &Pod) -> anyhow::Result<(String, String)> {
    let annotation = |key: &str| pod.annotations().get(key).cloned().unwrap_or_default();
    let (mode, node) = (
        annotation(domain::keys::VGPU_MODE),
        annotation(domain::keys::NODE),
    );
    ensure!(mode == "mig" || mode == "hami-core", "mode is {mode:?}");
    ensure!(Some(node.as_str()) == pods::node(pod), "node is {node:?}");
    Ok((mode, node))
}
