//! The status of a `GpuNode` object: what a node agent publishes about its node.

use serde::{Deserialize, Serialize};

use crate::{
    gpu::{Gpu, InstanceState, Model},
    mode::{NodeMode, VgpuMode},
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
    /// The GPUs and their instances in one line for `kubectl get`: `0: 1g.10gb@6=default/a | 1: -`.
    #[serde(default)]
    pub layout: String,
    /// Instances in use, for `kubectl get`.
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

    /// Fills [`layout`](Self::layout) and [`in_use`](Self::in_use) from the GPUs.
    #[must_use]
    pub fn with_summary(mut self) -> Self {
        self.in_use = 0;
        let mut gpus = Vec::with_capacity(self.gpus.len());
        for gpu in &self.gpus {
            let mut instances: Vec<_> = gpu.instances.iter().collect();
            instances.sort_by_key(|instance| (instance.start, instance.gpu_instance_id));
            let mut line = Vec::with_capacity(instances.len());
            for instance in instances {
                self.in_use += u32::from(instance.state == InstanceState::InUse);
                let who = match (instance.state, &instance.pod) {
                    (InstanceState::InUse | InstanceState::Creating, Some(pod)) => pod.clone(),
                    (InstanceState::Creating, None) => "creating".to_owned(),
                    (InstanceState::InUse, None) => "in-use".to_owned(),
                    (InstanceState::Idle, _) => "idle".to_owned(),
                    (InstanceState::Foreign, _) => "foreign".to_owned(),
                    (InstanceState::Quarantined, _) => "quarantined".to_owned(),
                };
                line.push(format!("{}@{}={who}", instance.profile, instance.start));
            }
            let line = match (gpu.mode, line.is_empty()) {
                (VgpuMode::HamiCore, _) => "hami-core".to_owned(),
                (VgpuMode::Mig, true) => "-".to_owned(),
                (VgpuMode::Mig, false) => line.join(" "),
            };
            let unhealthy = gpu.unhealthy.as_ref().map_or("", |_| " (unhealthy)");
            let to = gpu.changing_to.map(|mode| format!(" (to {mode})"));
            let to = to.unwrap_or_default();
            gpus.push(format!("{}: {line}{unhealthy}{to}", gpu.index));
        }
        self.layout = gpus.join(" | ");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures, gpu::Instance};

    #[test]
    fn the_layout_names_the_pods() {
        let mut status = fixtures::node("n", &fixtures::a100_80gb(), 2, VgpuMode::Mig);
        status.gpus[0].instances.push(Instance {
            profile: "1g.10gb".into(),
            start: 6,
            size: 1,
            gpu_instance_id: 13,
            uuid: Some("MIG-1".into()),
            memory_mib: 9_728,
            state: InstanceState::InUse,
            pod: Some("default/a".into()),
            pod_uid: Some("u".into()),
            container: Some("main".into()),
            reason: None,
        });
        status.gpus[1].unhealthy = Some("XID 79".into());
        status.gpus[1].changing_to = Some(VgpuMode::HamiCore);
        let status = status.with_summary();
        assert_eq!(
            status.layout,
            "0: 1g.10gb@6=default/a | 1: - (unhealthy) (to hami-core)"
        );
        assert_eq!(status.in_use, 1);
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(
            serde_json::from_str::<GpuNodeStatus>(&json).unwrap(),
            status
        );
    }
}
