//! The pods that found no node, as kube-scheduler's queue of unschedulable pods has them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use domain::{config::Config, demand::Demand, pod::PodName};
use placement::cluster::{Cluster, PodUid};

/// Number of nodes that are remembered per pod; a pod that more nodes refused is taken to wait for any node.
const MAX_NODES_PER_POD: usize = 128;

/// The pods that every node they were asked for refused; a clone shares the same pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnschedulablePods(Arc<Mutex<HashMap<PodUid, UnschedulablePod>>>);

/// A pod that found no node.
#[derive(Clone, Debug)]
pub(crate) struct UnschedulablePod {
    /// Its name, for logs and events.
    pub(crate) name: PodName,
    /// What it asks for.
    pub(crate) demand: Demand,
    /// Its priority; `None` where its preemption policy is `Never`.
    pub(crate) priority: Option<i32>,
    /// The nodes that refused it; empty: it may fit on any node.
    pub(crate) nodes: BTreeSet<String>,
}

impl UnschedulablePod {
    /// A pod that was refused by these nodes.
    pub(crate) fn new<'n>(
        name: PodName,
        demand: Demand,
        priority: Option<i32>,
        refused_by: impl ExactSizeIterator<Item = &'n String>,
    ) -> Self {
        let nodes = if refused_by.len() > MAX_NODES_PER_POD {
            BTreeSet::new()
        } else {
            refused_by.cloned().collect()
        };
        Self {
            name,
            demand,
            priority,
            nodes,
        }
    }

    fn waits_for(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.contains(node)
    }
}

impl UnschedulablePods {
    /// Remembers a pod that found no node.
    pub(crate) fn insert(&self, uid: &str, pod: UnschedulablePod) {
        self.lock().insert(uid.to_owned(), pod);
    }

    /// The pod of that UID, while it waits.
    pub(crate) fn get(&self, uid: &str) -> Option<UnschedulablePod> {
        self.lock().get(uid).cloned()
    }

    /// Forgets a pod that is bound, has ended or is gone.
    pub(crate) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// At most `count` of the pods, those of the highest priority first.
    pub(crate) fn most_important(&self, count: usize) -> Vec<PodUid> {
        let pods = self.lock();
        let mut all: Vec<_> = pods.iter().map(|(uid, pod)| (pod.priority, uid)).collect();
        all.sort_by_key(|(priority, _)| Reverse(*priority));
        let first = all.into_iter().take(count);
        first.map(|(_, uid)| uid.clone()).collect()
    }

    /// Forgets the pods that now fit on a node, and returns whether there were any.
    pub(crate) fn remove_fitting(&self, node: &str, cluster: &Cluster, config: &Config) -> bool {
        let mut pods = self.lock();
        let before = pods.len();
        pods.retain(|uid, pod| {
            let own = BTreeSet::from([uid.as_str()]);
            let fits = || {
                let plan = cluster.plan_without(node, &pod.demand, config, &own);
                plan.is_ok()
            };
            !(pod.waits_for(node) && fits())
        });
        pods.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, UnschedulablePod>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode, request::PodRequest};

    fn demand() -> Demand {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } }))
        .unwrap();
        let request: PodRequest = daemon::pods::request(&pod);
        Demand::read(&request, &Config::default()).unwrap().unwrap()
    }

    fn refused_by(nodes: &[String]) -> UnschedulablePod {
        UnschedulablePod::new(PodName::new("default", "p"), demand(), None, nodes.iter())
    }

    #[test]
    fn a_pod_is_requeued_once_and_only_for_a_node_that_refused_it_and_now_fits() {
        let (pods, config) = (UnschedulablePods::default(), Config::default());
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node = fixtures::node(name, &fixtures::a30(), 1, VgpuMode::Mig);
            cluster.apply_node(name, node);
        }
        let plan = cluster.plan("a", &demand(), &config).unwrap();
        cluster.apply_pod("holder", "a", plan.claim);
        pods.insert("u", refused_by(&["a".to_owned()]));
        assert!(!pods.remove_fitting("a", &cluster, &config), "it is full");
        assert!(
            !pods.remove_fitting("b", &cluster, &config),
            "not refused there"
        );
        cluster.remove_pod("holder");
        assert!(pods.remove_fitting("a", &cluster, &config));
        assert!(
            !pods.remove_fitting("a", &cluster, &config),
            "requeued already"
        );
        pods.insert("u", refused_by(&[]));
        pods.remove("u");
        assert!(!pods.remove_fitting("b", &cluster, &config));
    }
}
