//! The agent's own Node object: its label names the mode that the admin wants.

use daemon::watches::{self, Change};
use domain::{config::NodeConfig, keys, mode::NodeMode};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt, runtime::watcher};
use tokio::sync::watch;

use crate::{driver_pause, gpus::modes::WantedModes, materialise::thread::NvmlThread};

/// Watches the node. Hands the wanted modes to the NVML thread and the node to `share`, forever.
pub(crate) async fn watch(
    client: Client,
    node_name: String,
    config: NodeConfig,
    nvml: NvmlThread,
    share: watch::Sender<Option<Node>>,
) {
    let only = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    watches::watch(Api::<Node>::all(client), only, None, |change| {
        let node = match change {
            Change::Apply(node) => node,
            Change::Complete { names, .. } if names.contains(&node_name) => return,
            // It comes back when kubelet registers it again; its modes stay until then.
            Change::Delete(_) | Change::Complete { .. } => {
                share.send_replace(None);
                return;
            }
        };
        nvml.set_pause(driver_pause::reason(&node));
        nvml.set_wanted_modes(WantedModes {
            node: labelled_mode(&node).or(config.operatingmode),
            devices: config.devicemodes.clone(),
        });
        share.send_replace(Some(*node));
    })
    .await;
}

/// The mode in the node's label; a label that names none is logged and ignored.
fn labelled_mode(node: &Node) -> Option<NodeMode> {
    let label = node.labels().get(keys::VGPU_MODE)?;
    label
        .parse()
        .inspect_err(|error| {
            tracing::warn!(%error, label = keys::VGPU_MODE, "Ignored a bad node label");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_names_no_mode_is_ignored() {
        for (value, mode) in [("mig", Some(NodeMode::Mig)), ("fast", None)] {
            let labels =
                serde_json::json!({ "metadata": { "labels": { keys::VGPU_MODE: value } } });
            let node: Node = serde_json::from_value(labels).unwrap();
            assert_eq!(labelled_mode(&node), mode, "{value}");
        }
        assert_eq!(labelled_mode(&Node::default()), None);
    }
}
