//! The pods that found no node, as kube-scheduler's queue of unschedulable pods has them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{config::Config, demand::Demand, pod::PodName};
use placement::cluster::{Cluster, PodUid};

use crate::protocol::FilterResult;

/// Number of nodes that are remembered per pod; a pod that more nodes refused is taken to wait for any node, and has
/// room made for it on this many.
const MAX_NODES_PER_POD: usize = 128;
/// How long a refusal says which nodes suit the pod: kube-scheduler tries a pod again after five minutes at the latest
/// and then asks again, unless its own filters leave no node.
const REFUSAL_LIFETIME: Duration = Duration::from_mins(6);

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
    /// The nodes that refused it; `None`: it may fit on any node.
    nodes: Option<BTreeSet<String>>,
    /// Nodes that refused it, where room can be made for it: kube-scheduler's own filters accept them.
    pub(crate) usable: BTreeSet<String>,
    /// When it was refused.
    refused_at: Instant,
}

impl UnschedulablePod {
    /// A pod that was refused just now.
    pub(crate) fn new(
        name: PodName,
        demand: Demand,
        priority: Option<i32>,
        nodes: Option<BTreeSet<String>>,
        usable: BTreeSet<String>,
    ) -> Self {
        Self {
            name,
            demand,
            priority,
            nodes,
            usable,
            refused_at: Instant::now(),
        }
    }

    /// The same, from what kube-scheduler was answered.
    pub(crate) fn refused(
        name: PodName,
        demand: Demand,
        priority: Option<i32>,
        result: &FilterResult,
        may_free: impl Fn(&str) -> bool,
    ) -> Self {
        let failed = &result.failed_nodes;
        let (failed, count) = (failed.keys(), failed.len());
        let count_all = count + result.failed_and_unresolvable_nodes.len();
        let all = failed
            .clone()
            .chain(result.failed_and_unresolvable_nodes.keys());
        let nodes = (count_all <= MAX_NODES_PER_POD).then(|| all.cloned().collect());
        let usable = failed.filter(|node| may_free(node)).take(MAX_NODES_PER_POD);
        Self::new(name, demand, priority, nodes, usable.cloned().collect())
    }

    fn waits_for(&self, node: &str) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
    }
}

impl UnschedulablePods {
    /// Remembers a pod that found no node.
    pub(crate) fn insert(&self, uid: &str, pod: UnschedulablePod) {
        self.lock().insert(uid.to_owned(), pod);
    }

    /// The pod of that UID, while it waits and kube-scheduler tries it.
    pub(crate) fn tried_lately(&self, uid: &str) -> Option<UnschedulablePod> {
        let pods = self.lock();
        let pod = pods.get(uid)?;
        (pod.refused_at.elapsed() < REFUSAL_LIFETIME).then(|| pod.clone())
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

    fn refused(failed: &[String], unresolvable: &[String]) -> UnschedulablePod {
        let reasons = |nodes: &[String]| nodes.iter().map(|n| (n.clone(), String::new())).collect();
        let result = FilterResult {
            failed_nodes: reasons(failed),
            failed_and_unresolvable_nodes: reasons(unresolvable),
            ..FilterResult::default()
        };
        let name = PodName::new("default", "p");
        UnschedulablePod::refused(name, demand(), None, &result, |node| node != "empty")
    }

    fn refused_by(nodes: &[String]) -> UnschedulablePod {
        refused(nodes, &[])
    }

    /// Issue 12: room is made only on nodes that kube-scheduler offered and that only Tessera refused.
    #[test]
    fn usable_nodes_were_offered_and_can_be_made_to_fit() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let pod = refused(&names(&["a", "empty"]), &names(&["other-model"]));
        assert_eq!(pod.usable, BTreeSet::from(["a".to_owned()]));
        assert!(pod.waits_for("other-model") && !pod.waits_for("not-offered"));
        let many: Vec<String> = (0..1_000).map(|number| format!("n{number}")).collect();
        let pod = refused(&many, &[]);
        assert!(pod.waits_for("any"));
        assert_eq!(pod.usable.len(), MAX_NODES_PER_POD);
        assert!(pod.usable.iter().all(|node| many.contains(node)));
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
        pods.insert("u", refused_by(&["b".to_owned()]));
        pods.remove("u");
        assert!(!pods.remove_fitting("b", &cluster, &config));
    }
}
