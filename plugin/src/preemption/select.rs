//! Which pods to evict for a pod that found no node. Pure.

use std::collections::BTreeSet;

use domain::config::Config;
use placement::{
    cluster::{Cluster, PodUid},
    preemption::{Victim, victims},
};

use crate::unschedulable::UnschedulablePod;

/// The pods on a node that a pod of this priority may displace, but for those in `spared`.
pub(super) fn displaceable_pods(
    cluster: &Cluster,
    node: &str,
    priority: i32,
    spared: &BTreeSet<PodUid>,
) -> Vec<Victim> {
    let pods = cluster.pods_on(node).filter(|uid| !spared.contains(*uid));
    // Nothing is known of a pod whose claim is only assumed.
    let known = pods.filter_map(|uid| Some((uid, cluster.pod_info(uid)?)));
    known
        .filter(|(_, info)| info.priority < priority)
        .map(|(uid, info)| Victim {
            uid: uid.to_owned(),
            priority: info.priority,
            // The Eviction API judges that.
            violates: false,
        })
        .collect()
}

/// The pods on a node whose claims can be planned over for the pod `own`: those that are ending, were
/// evicted, or whose instances are being released, and what is reserved for the pod itself.
pub(super) fn departing_pods<'c>(
    cluster: &'c Cluster,
    node: &str,
    own: &'c str,
    evicted: &BTreeSet<PodUid>,
) -> BTreeSet<&'c str> {
    let ending = |uid: &str| cluster.pod_info(uid).is_some_and(|info| info.ending);
    cluster
        .pods_on(node)
        .filter(|uid| evicted.contains(*uid) || ending(uid))
        .chain(cluster.releasing(node))
        .chain([own])
        .collect()
}

/// Whether pods on a node are departing, or could be made to for a pod of this priority.
pub(crate) fn may_free(cluster: &Cluster, node: &str, priority: Option<i32>) -> bool {
    let priority = priority.unwrap_or(i32::MIN);
    let mut known = cluster
        .pods_on(node)
        .filter_map(|uid| cluster.pod_info(uid));
    known.any(|info| info.ending || info.movable || info.priority < priority)
        || cluster.releasing(node).next().is_some()
}

/// The node and the pods on it to evict; no pods where the departing ones free enough.
pub(super) fn select_victims(
    cluster: &Cluster,
    own: &str,
    pod: &UnschedulablePod,
    config: &Config,
    evicted: &BTreeSet<PodUid>,
    spared: &BTreeSet<PodUid>,
) -> Option<(String, Vec<PodUid>)> {
    // A pod that may displace nobody still waits for those that are departing.
    let priority = pod.priority.unwrap_or(i32::MIN);
    let mut best = None;
    for node in &pod.usable {
        let departing = departing_pods(cluster, node, own, evicted);
        let candidates = displaceable_pods(cluster, node, priority, spared);
        let Some(set) = victims(cluster, node, &pod.demand, config, &candidates, &departing) else {
            continue;
        };
        if set.is_empty() {
            return Some((node.clone(), set));
        }
        let priority_of = |uid: &PodUid| cluster.pod_info(uid).map_or(0, |info| info.priority);
        let highest = set.iter().map(priority_of).max().unwrap_or(0);
        let sum: i64 = set.iter().map(|uid| i64::from(priority_of(uid))).sum();
        let cost = (highest, sum, set.len());
        if best.as_ref().is_none_or(|(known, _)| cost < *known) {
            best = Some((cost, (node.clone(), set)));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use domain::{demand::Demand, fixtures, mode::VgpuMode, pod::PodName};
    use k8s_openapi::api::core::v1::Pod;
    use placement::cluster::PodInfo;
    use serde_json::json;

    /// A pod that asks for one device of that memory.
    pub(in crate::preemption) fn pod(mib: &str, priority: i32) -> serde_json::Value {
        json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "priority": priority,
            "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": "1", "nvidia.com/gpumem": mib } } }] } })
    }

    /// A GPU whose halves are held by `a` of priority 1 and `b` of priority 5.
    pub(in crate::preemption) fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        for (uid, priority) in [("a", 1), ("b", 5)] {
            let plan = cluster
                .plan("n", &demand("40000"), &Config::default())
                .unwrap();
            cluster.apply_pod(uid, "n", plan.claim);
            let info = PodInfo {
                name: PodName::new("default", uid),
                priority,
                ending: false,
                movable: false,
                is_pinned: false,
                controller: None,
            };
            cluster.set_pod_info(uid, info);
        }
        cluster
    }

    fn demand(mib: &str) -> Demand {
        let pod: Pod = serde_json::from_value(pod(mib, 0)).unwrap();
        let demand = Demand::read(&daemon::pods::request(&pod), &Config::default());
        demand.unwrap().unwrap()
    }

    #[test]
    fn nothing_more_is_evicted_while_departing_pods_free_enough() {
        let unschedulable = |priority| {
            let name = PodName::new("default", "p");
            let usable = BTreeSet::from(["n".to_owned()]);
            UnschedulablePod::new(
                name,
                demand("40000"),
                priority,
                Some(BTreeSet::new()),
                usable,
            )
        };
        let (none, config) = (BTreeSet::new(), Config::default());
        let mut cluster = cluster();
        let select = |cluster: &Cluster, priority, evicted, spared| {
            select_victims(
                cluster,
                "u",
                &unschedulable(priority),
                &config,
                evicted,
                spared,
            )
        };
        let a = BTreeSet::from(["a".to_owned()]);
        let victim = |uid: &str| Some(("n".to_owned(), vec![uid.to_owned()]));
        assert_eq!(select(&cluster, Some(9), &none, &none), victim("a"));
        assert_eq!(select(&cluster, Some(9), &none, &a), victim("b"));
        let waits = Some(("n".to_owned(), vec![]));
        assert_eq!(select(&cluster, Some(9), &a, &none), waits, "a was evicted");
        assert_eq!(select(&cluster, Some(1), &none, &none), None);
        assert_eq!(select(&cluster, None, &none, &none), None);
        let info = PodInfo {
            ending: true,
            ..cluster.pod_info("b").unwrap().clone()
        };
        cluster.set_pod_info("b", info);
        assert_eq!(select(&cluster, Some(9), &none, &none), waits);
    }

    /// Issue 12: a node that kube-scheduler's own filters refused is of no use.
    #[test]
    fn nobody_is_evicted_on_a_node_that_was_not_offered_for_the_pod() {
        let (cluster, none) = (cluster(), BTreeSet::new());
        let select = |usable: &str| {
            let name = PodName::new("default", "p");
            let usable = BTreeSet::from([usable.to_owned()]);
            let pod = UnschedulablePod::new(name, demand("40000"), Some(9), None, usable);
            select_victims(&cluster, "u", &pod, &Config::default(), &none, &none)
        };
        assert!(select("n").is_some());
        assert_eq!(select("m"), None);
    }

    #[test]
    fn a_node_where_nothing_can_be_freed_is_not_remembered() {
        let cluster = cluster();
        assert!(may_free(&cluster, "n", Some(2)), "a has a lower priority");
        assert!(!may_free(&cluster, "n", Some(1)));
        assert!(!may_free(&cluster, "n", None));
        assert!(!may_free(&cluster, "m", Some(9)));
    }
}
