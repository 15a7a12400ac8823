//! The status of a `GpuNode` object: what a node agent publishes about its node.

use serde::{Deserialize, Serialize};

use crate::{
    gpu::{Gpu, Model},
    mode::NodeMode,
};

/// Status of the cluster-scoped object `GpuNode` (`tessera.dev/v1alpha1`), one per node, with the name of the node.
///
/// Written by the node's agent; the scheduler plugin and the webhook place pods by it. Where the agent is gone the plugin
/// changes the conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// How the admin wants the node's GPUs to work: the node label `nvidia.com/vgpu-mode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<NodeMode>,
    /// The models of GPU on the node.
    #[serde(default)]
    pub models: Vec<Model>,
    /// The GPUs, by NVML index.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// How many GPUs are full, partly used and free, for `kubectl get`: `1 full, 1 part, 6 free`.
    #[serde(default)]
    pub summary: String,
    /// The GPUs with their instances and shares in one line for `kubectl get -o wide`: `0: 1g.10gb@6=default/a | 1: -`.
    #[serde(default)]
    pub layout: String,
    /// Instances and shares in use, for `kubectl get`.
    #[serde(default)]
    pub in_use: u32,
    /// State of the agent and of the node's GPUs; one condition per type.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// Type of the condition that the agent is registered with kubelet; kubelet fails pods that start while it is not.
pub const REGISTERED: &str = "Registered";

/// Reason of the conditions by which the plugin reports that a node's agent is gone: the agent itself cannot.
pub const AGENT_GONE: &str = "AgentGone";

/// A condition as in `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// CamelCase name, `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase reason.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
    /// RFC 3339 time of the last change of `status`.
    pub last_transition_time: String,
}

impl GpuNodeStatus {
    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }

    /// Whether kubelet can start pods with GPUs here, as far as the agent has reported.
    pub fn is_registered(&self) -> bool {
        let mut conditions = self.conditions.iter();
        !conditions.any(|known| known.kind == REGISTERED && known.status == "False")
    }
}
