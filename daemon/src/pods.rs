//! What Tessera reads from a pod object.

use std::collections::BTreeMap;

use domain::{
    claim::{Claim, ClaimError},
    demand::ContainerKind,
    keys,
    pod::PodName,
    request::{ContainerRequest, PodRequest},
};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;

/// The part of a pod that a demand is read from.
pub fn request(pod: &Pod) -> PodRequest {
    let spec = pod.spec.as_ref();
    let inits = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    let apps = spec
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let init_kind = |container: &Container| match container.restart_policy.as_deref() {
        Some("Always") => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    };
    PodRequest {
        annotations: pod.annotations().clone(),
        containers: inits
            .iter()
            .map(|container| (init_kind(container), container))
            .chain(apps.iter().map(|container| (ContainerKind::App, container)))
            .map(|(kind, container)| ContainerRequest {
                name: container.name.clone(),
                kind,
                resources: resources(container),
            })
            .collect(),
    }
}

fn resources(container: &Container) -> BTreeMap<String, String> {
    let Some(resources) = &container.resources else {
        return BTreeMap::new();
    };
    let requests = resources.requests.iter().flatten();
    let limits = resources.limits.iter().flatten();
    requests
        .chain(limits)
        .map(|(name, quantity)| (name.clone(), quantity.0.clone()))
        .collect()
}

/// Whether the pod's containers have ended for good.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the pod may be restarted elsewhere: its author allows it, and a controller recreates it.
pub fn may_restart(pod: &Pod) -> bool {
    let allowed = pod.annotations().get(keys::ALLOW_RESTART);
    allowed.is_some_and(|value| value.trim() == "true") && controller(pod).is_some()
}

/// UID of the controller that recreates the pod.
pub fn controller(pod: &Pod) -> Option<&str> {
    let owners = pod.owner_references();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    controller.map(|owner| owner.uid.as_str())
}

/// Whether the pod asks for certain nodes: by selector, affinity or spread.
pub fn is_pinned(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.affinity.is_some()
            || spec.node_selector.as_ref().is_some_and(|s| !s.is_empty())
            || spec
                .topology_spread_constraints
                .as_ref()
                .is_some_and(|s| !s.is_empty())
    })
}

/// The claim that the binding wrote; `None` for a pod without GPU or not bound yet.
pub fn claim(pod: &Pod) -> Option<Result<Claim, ClaimError>> {
    pod.annotations()
        .get(keys::CLAIM)
        .map(|text| Claim::from_annotation(text))
}

/// The node that the pod is bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// Namespace and name.
pub fn name(pod: &Pod) -> PodName {
    PodName::new(pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_come_in_the_order_in_which_they_start() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p", "namespace": "n", "annotations": { "a": "b" } },
            "spec": {
                "initContainers": [
                    { "name": "i", "resources": { "limits": { "nvidia.com/gpu": "1" } } },
                    { "name": "s", "restartPolicy": "Always" }
                ],
                "containers": [{ "name": "a", "resources": {
                    "requests": { "nvidia.com/gpu": "1", "x": "1" }, "limits": { "nvidia.com/gpu": "2" } } }]
            }
        }))
        .unwrap();
        let request = request(&pod);
        let kinds: Vec<_> = request
            .containers
            .iter()
            .map(|c| (c.name.as_str(), c.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                ("i", ContainerKind::Init),
                ("s", ContainerKind::Sidecar),
                ("a", ContainerKind::App)
            ]
        );
        assert_eq!(request.containers[2].resources["nvidia.com/gpu"], "2");
        assert_eq!(request.containers[2].resources["x"], "1");
        assert_eq!(name(&pod).to_string(), "n/p");
        assert!(claim(&pod).is_none());
    }
}
