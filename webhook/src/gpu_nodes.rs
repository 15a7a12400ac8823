//! The cluster's GPU nodes, and who supplies the GPUs of a pod that asks for nothing but a number of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use daemon::{
    node_affinity::admits,
    ready::Latch,
    watches::{self, Change},
};
use domain::keys;
use k8s_openapi::api::core::v1::{Node, PodSpec};
use kube::{Api, Client, ResourceExt, runtime::watcher};

/// The nodes that have ever offered the count resource, and those labelled for Tessera.
#[derive(Debug, Default)]
pub(crate) struct GpuNodes(BTreeMap<String, GpuNodeFacts>);

#[derive(Debug)]
struct GpuNodeFacts {
    labels: BTreeMap<String, String>,
    /// Whether some device plugin offers GPUs there now.
    offers: bool,
}

/// Who supplies the GPUs of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supplier {
    /// Tessera.
    Tessera,
    /// Another device plugin: the pod may not run on Tessera's nodes.
    Other,
    /// Another device plugin, if the pod is kept away from Tessera's nodes, which it does not exclude itself.
    OtherIfFenced,
}

impl GpuNodes {
    fn apply(&mut self, node: Node, resource: &str) {
        let capacity = node.status.as_ref().and_then(|s| s.capacity.as_ref());
        let quantity = capacity.and_then(|capacity| capacity.get(resource));
        let offers = quantity.is_some_and(|quantity| quantity.0 != "0");
        let known = quantity.is_some() || node.labels().contains_key(keys::VGPU_MODE);
        let name = node.name_any();
        if known {
            let labels = node.metadata.labels.unwrap_or_default();
            self.0.insert(name, GpuNodeFacts { labels, offers });
        } else {
            self.0.remove(&name);
        }
    }

    fn retain(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
    }

    /// Who supplies the GPUs of a pod that would be at home on any GPU node. A node is Tessera's if it is labelled so, or
    /// `has_gpu_node` (an agent published it).
    pub(crate) fn supplier(&self, spec: &PodSpec, has_gpu_node: impl Fn(&str) -> bool) -> Supplier {
        let (mut ours, mut unlabelled, mut others) = (false, false, false);
        for (name, node) in &self.0 {
            let labelled = node.labels.contains_key(keys::VGPU_MODE);
            let is_ours = labelled || has_gpu_node(name);
            if !(is_ours || node.offers) || !admits(spec, name, &node.labels) {
                continue;
            }
            ours |= is_ours;
            unlabelled |= is_ours && !labelled;
            others |= !is_ours;
        }
        match (others, ours) {
            (false, _) => Supplier::Tessera,
            (true, false) => Supplier::Other,
            // The fence is the label, so it would not hold.
            (true, true) if unlabelled => Supplier::Tessera,
            (true, true) => Supplier::OtherIfFenced,
        }
    }
}

/// [`GpuNodes`] that the watch writes and reviews read; hold its lock never over an `await`.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedGpuNodes(Arc<RwLock<GpuNodes>>);

impl SharedGpuNodes {
    /// Locks the nodes for reading.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, GpuNodes> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, GpuNodes> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the cluster's nodes, for ever.
pub(crate) async fn watch(client: Client, nodes: SharedGpuNodes, resource: String, latch: Latch) {
    watches::watch(
        Api::<Node>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(node) => nodes.write().apply(*node, &resource),
            Change::Delete(node) => drop(nodes.write().0.remove(&node.name_any())),
            Change::Complete { names, .. } => nodes.write().retain(&names),
        },
    )
    .await;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Nodes by name, labels and the amount of `nvidia.com/gpu`, which may be missing.
    pub(crate) fn nodes(nodes: &[(&str, Value, Option<&str>)]) -> GpuNodes {
        let mut all = GpuNodes::default();
        for (name, labels, gpus) in nodes {
            let capacity = gpus.map_or(json!({}), |gpus| json!({ "nvidia.com/gpu": gpus }));
            let node = json!({ "metadata": { "name": name, "labels": labels }, "status": { "capacity": capacity } });
            all.apply(serde_json::from_value(node).unwrap(), "nvidia.com/gpu");
        }
        all
    }

    /// Issue 12, A11: one row per cluster and pod.
    #[test]
    fn pods_of_gpus_alone_belong_to_tessera_unless_other_gpu_nodes_will_do() {
        let ours = (
            "ours",
            json!({ "nvidia.com/vgpu-mode": "mig", "gpu": "a100" }),
            Some("20"),
        );
        let unlabelled = ("unlabelled", json!({ "gpu": "a100" }), Some("20"));
        let fresh = ("fresh", json!({ "nvidia.com/vgpu-mode": "auto" }), None);
        let other = ("other", json!({ "gpu": "l4" }), Some("8"));
        let gone = ("gone", json!({ "gpu": "l4" }), Some("0"));
        let plain = ("plain", json!({ "gpu": "l4" }), None);
        let anywhere = json!({});
        let on_l4 = json!({ "nodeSelector": { "gpu": "l4" } });
        let on_a100 = json!({ "nodeSelector": { "gpu": "a100" } });
        let by_name = json!({ "nodeName": "other" });
        let nowhere = json!({ "nodeSelector": { "gpu": "t4" } });
        for (cluster, pod, supplier) in [
            (vec![], &anywhere, Supplier::Tessera),
            (vec![&ours, &plain], &anywhere, Supplier::Tessera),
            (vec![&ours, &plain], &on_l4, Supplier::Tessera),
            (vec![&ours, &gone], &anywhere, Supplier::Tessera),
            (vec![&other], &anywhere, Supplier::Other),
            (vec![&ours, &other], &on_l4, Supplier::Other),
            (vec![&ours, &other], &by_name, Supplier::Other),
            (vec![&ours, &other], &on_a100, Supplier::Tessera),
            (vec![&ours, &other], &nowhere, Supplier::Tessera),
            (vec![&ours, &other], &anywhere, Supplier::OtherIfFenced),
            (vec![&fresh, &other], &anywhere, Supplier::OtherIfFenced),
            (
                vec![&ours, &unlabelled, &other],
                &anywhere,
                Supplier::Tessera,
            ),
            (vec![&unlabelled, &other], &on_l4, Supplier::Other),
        ] {
            let cluster: Vec<_> = cluster.into_iter().cloned().collect();
            let mut spec = json!({ "containers": [] });
            json_patch::merge(&mut spec, pod);
            let spec = serde_json::from_value(spec).unwrap();
            let has_gpu_node = |name: &str| ["ours", "unlabelled"].contains(&name);
            let found = nodes(&cluster).supplier(&spec, has_gpu_node);
            assert_eq!(found, supplier, "{cluster:?} {pod}");
        }
    }

    #[test]
    fn a_node_that_offers_no_gpu_any_more_is_forgotten_with_its_node_only() {
        let mut nodes = nodes(&[("a", json!({}), Some("0")), ("b", json!({}), Some("1"))]);
        assert_eq!(nodes.0.len(), 2);
        nodes.retain(&BTreeSet::from(["b".to_owned()]));
        assert_eq!(nodes.0.keys().collect::<Vec<_>>(), ["b"]);
    }
}
