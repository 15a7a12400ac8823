//! The scheduler extender protocol, v1 (`k8s.io/kube-scheduler/extender/v1`): Go structs without JSON tags, hence `PascalCase`.

use std::collections::BTreeMap;

use k8s_openapi::{
    List,
    api::core::v1::{Node, Pod},
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// The request of `filter` and `prioritize`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderArgs {
    /// The pod to schedule.
    pub(crate) pod: Pod,
    /// Candidates as objects, where the scheduler is not `nodeCacheCapable`.
    #[serde(default)]
    pub(crate) nodes: Option<List<Node>>,
    /// Candidates by name.
    #[serde(default)]
    pub(crate) node_names: Option<Vec<String>>,
}

impl ExtenderArgs {
    /// The names of the candidates.
    pub(crate) fn names(&self) -> Vec<String> {
        match (&self.node_names, &self.nodes) {
            (Some(names), _) => names.clone(),
            (None, Some(nodes)) => nodes.items.iter().map(ResourceExt::name_any).collect(),
            (None, None) => vec![],
        }
    }
}

/// The answer of `filter`, with nodes in the form of the request.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct FilterResult {
    /// Nodes that can take the pod, as objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<List<Node>>,
    /// Nodes that can take the pod, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_names: Option<Vec<String>>,
    /// Nodes that preemption may help, with the reason they were refused.
    pub(crate) failed_nodes: BTreeMap<String, String>,
    /// Nodes that preemption cannot help, with the reason they were refused.
    pub(crate) failed_and_unresolvable_nodes: BTreeMap<String, String>,
    /// Why the pod cannot be scheduled anywhere; else empty.
    pub(crate) error: String,
}

impl FilterResult {
    /// Whether no node can take the pod.
    pub(crate) fn is_empty(&self) -> bool {
        self.node_names.as_ref().is_none_or(Vec::is_empty)
            && self
                .nodes
                .as_ref()
                .is_none_or(|nodes| nodes.items.is_empty())
    }
}

/// The request of `preempt`: per node, the pods that kube-scheduler would evict.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderPreemptionArgs {
    /// The pod that found no node.
    pub(crate) pod: Pod,
    /// Victims per node by UID, where the scheduler is `nodeCacheCapable`.
    #[serde(default)]
    pub(crate) node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims>>,
    /// Victims per node as objects, where it is not.
    #[serde(default)]
    pub(crate) node_name_to_victims: Option<BTreeMap<String, Victims>>,
}

/// Victims on one node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Victims {
    /// The pods to evict.
    pub(crate) pods: Vec<Pod>,
    /// How many of them a `PodDisruptionBudget` protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub(crate) violations: i64,
}

/// Victims on one node, by UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MetaVictims {
    /// The pods to evict.
    pub(crate) pods: Vec<MetaPod>,
    /// How many of them a `PodDisruptionBudget` protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub(crate) violations: i64,
}

/// A pod by its UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MetaPod {
    /// UID of the pod.
    #[serde(rename = "UID")]
    pub(crate) uid: String,
}

/// The answer of `preempt`: the nodes where evicting these pods makes the pod fit.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderPreemptionResult {
    /// Victims per node, by UID.
    pub(crate) node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}

/// The score of a node; `prioritize` answers a list of them.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostPriority {
    /// The node.
    pub(crate) host: String,
    /// 0 to 10 (`MaxExtenderPriority`).
    pub(crate) score: i64,
}

/// The request of `bind`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderBindingArgs {
    /// Name of the pod.
    pub(crate) pod_name: String,
    /// Namespace of the pod.
    pub(crate) pod_namespace: String,
    /// UID of the pod.
    #[serde(rename = "PodUID")]
    pub(crate) pod_uid: String,
    /// The node to bind to.
    pub(crate) node: String,
}

/// The answer of `bind`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderBindingResult {
    /// Why the pod was not bound; empty where it was.
    pub(crate) error: String,
}
