//! The scheduler extender protocol, v1 (`k8s.io/kube-scheduler/extender/v1`): Go structs without JSON tags, hence `PascalCase`.

use std::collections::BTreeMap;

use k8s_openapi::{
    List,
    api::core::v1::{Node, Pod},
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// What filter and prioritize are asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderArgs {
    /// The pod to place.
    pub pod: Pod,
    /// Candidates as objects, where the scheduler is not `nodeCacheCapable`.
    #[serde(default)]
    pub nodes: Option<List<Node>>,
    /// Candidates by name.
    #[serde(default)]
    pub node_names: Option<Vec<String>>,
}

/// What filter answers, in the form in which it was asked.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FilterResult {
    /// Nodes that can take the pod, as objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<List<Node>>,
    /// Nodes that can take the pod, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_names: Option<Vec<String>>,
    /// The others, with the reason.
    pub failed_nodes: BTreeMap<String, String>,
    /// Those that no preemption would help, with the reason.
    pub failed_and_unresolvable_nodes: BTreeMap<String, String>,
    /// The pod cannot be judged at all.
    pub error: String,
}

impl FilterResult {
    /// Whether no node can take the pod.
    pub fn is_empty(&self) -> bool {
        self.node_names.as_ref().is_none_or(Vec::is_empty)
            && self
                .nodes
                .as_ref()
                .is_none_or(|nodes| nodes.items.is_empty())
    }
}

/// What preempt is asked, where the scheduler is `nodeCacheCapable`: for each node the pods that kube-scheduler would end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderPreemptionArgs {
    /// The pod that needs room.
    pub pod: Pod,
    /// Victims by node, by UID.
    #[serde(default)]
    pub node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims>>,
    /// Victims by node, as objects, where it is not.
    #[serde(default)]
    pub node_name_to_victims: Option<BTreeMap<String, Victims>>,
}

/// Pods that would be ended on a node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Victims {
    /// The pods.
    pub pods: Vec<Pod>,
    /// How many of them a `PodDisruptionBudget` protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub violations: i64,
}

/// The same by UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MetaVictims {
    /// The pods.
    pub pods: Vec<MetaPod>,
    /// How many of them a `PodDisruptionBudget` protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub violations: i64,
}

/// A pod by its UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPod {
    /// The UID.
    #[serde(rename = "UID")]
    pub uid: String,
}

/// What preempt answers: the nodes where ending these pods makes room.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderPreemptionResult {
    /// Victims by node.
    pub node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}

/// Score of a node, 0 to 10.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority {
    /// The node.
    pub host: String,
    /// `MaxExtenderPriority` is 10.
    pub score: i64,
}

/// What bind is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderBindingArgs {
    /// Name.
    pub pod_name: String,
    /// Namespace.
    pub pod_namespace: String,
    /// UID.
    #[serde(rename = "PodUID")]
    pub pod_uid: String,
    /// The node to bind to.
    pub node: String,
}

/// What bind answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderBindingResult {
    /// Empty: bound.
    pub error: String,
}

impl ExtenderArgs {
    /// The names of the candidates.
    pub fn names(&self) -> Vec<String> {
        match (&self.node_names, &self.nodes) {
            (Some(names), _) => names.clone(),
            (None, Some(nodes)) => nodes.items.iter().map(ResourceExt::name_any).collect(),
            (None, None) => vec![],
        }
    }
}
