//! Whether NVIDIA's GPU operator wants every client of the driver to leave. Pure.
//!
//! Its driver manager changes the node labels `nvidia.com/gpu.deploy.*` from `true` to `paused-for-driver-upgrade` before
//! it unloads the driver, and its MIG manager to `paused-for-mig-change`; both change them back when they have finished.
//! Since 26.7 there is a label for clients that are not the operator's own, `nvidia.com/gpu.deploy.client`: where it is
//! present, it alone counts, and any value but `true` means "leave". Before, the pause of any of the operator's own
//! clients means the same. `false` on those is an admin's wish for that client only.

use domain::keys;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

/// The beginning of the values by which the operator pauses a client.
const PAUSED: &str = "paused-for-";

/// Why the agent should leave the driver alone, in words; `None`: it may work.
pub(crate) fn reason(node: &Node) -> Option<String> {
    let labels = node.labels();
    let (key, value) = match labels.get_key_value(keys::GPU_CLIENT) {
        Some((key, value)) => (value != "true").then_some((key, value)),
        None => labels.iter().find(|(key, value)| {
            key.starts_with(keys::GPU_DEPLOY_PREFIX) && value.starts_with(PAUSED)
        }),
    }?;
    Some(format!(
        "the node has the label {key}={value}: no pods are scheduled to this node until the driver may be used again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 12: the agent leaves and returns with the labels of the GPU operator.
    #[test]
    fn the_agent_leaves_while_the_operator_pauses_its_clients() {
        for (labels, leaves) in [
            (&[][..], false),
            (&[("client", "true")], false),
            (&[("client", "paused-for-driver-upgrade")], true),
            (&[("client", "paused-for-mig-change")], true),
            (&[("client", "false")], true),
            // An operator that does not know the label of other clients.
            (
                &[
                    ("driver", "true"),
                    ("dcgm-exporter", "paused-for-driver-upgrade"),
                ],
                true,
            ),
            // The admin wants no device plugin of NVIDIA.
            (&[("device-plugin", "false")], false),
            // The label for other clients counts alone.
            (
                &[("client", "true"), ("dcgm", "paused-for-driver-upgrade")],
                false,
            ),
        ] {
            let labels: serde_json::Map<_, _> = labels
                .iter()
                .map(|(name, value)| {
                    let key = format!("nvidia.com/gpu.deploy.{name}");
                    (key, serde_json::Value::from(*value))
                })
                .collect();
            let node = serde_json::json!({ "metadata": { "labels": labels } });
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(reason(&node).is_some(), leaves, "{labels:?}");
        }
    }
}
