//! The verb `preempt`: completes the victims that kube-scheduler selected for CPU and memory.

use std::collections::{BTreeMap, BTreeSet};

use domain::{config::Config, demand::Demand};
use kube::ResourceExt;
use placement::{cluster::Cluster, preemption::victims};

use super::select::displaceable_pods;
use crate::protocol::{ExtenderPreemptionArgs, ExtenderPreemptionResult, MetaPod, MetaVictims};

/// Adds the victims that free enough GPU slices; drops the nodes where none do.
pub(crate) fn preempt(
    args: ExtenderPreemptionArgs,
    cluster: &Cluster,
    config: &Config,
) -> ExtenderPreemptionResult {
    let by_uid = args.node_name_to_meta_victims.unwrap_or_default();
    let as_objects = args.node_name_to_victims.unwrap_or_default();
    let as_objects = as_objects.into_iter().map(|(node, victims)| {
        let pods = victims.pods.iter().filter_map(ResourceExt::uid);
        let pods = pods.map(|uid| MetaPod { uid }).collect();
        let violations = victims.violations;
        (node, MetaVictims { pods, violations })
    });
    let asked: BTreeMap<String, MetaVictims> = by_uid.into_iter().chain(as_objects).collect();
    let demand = Demand::read(&daemon::pods::request(&args.pod), config);
    let Ok(Some(demand)) = demand else {
        return ExtenderPreemptionResult {
            node_name_to_meta_victims: asked,
        };
    };
    let priority = args.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    let complete = |(node, mut selected): (String, MetaVictims)| {
        let already: BTreeSet<&str> = selected.pods.iter().map(|pod| pod.uid.as_str()).collect();
        let candidates = displaceable_pods(cluster, &node, priority, &BTreeSet::new());
        let more = victims(cluster, &node, &demand, config, &candidates, &already)?;
        let more = more.into_iter().map(|uid| MetaPod { uid });
        selected.pods.extend(more);
        Some((node, selected))
    };
    ExtenderPreemptionResult {
        node_name_to_meta_victims: asked.into_iter().filter_map(complete).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preemption::select::tests::{cluster, pod};
    use serde_json::json;

    fn asked(mib: &str, priority: i32, victims: &[&str]) -> BTreeMap<String, Vec<String>> {
        // As Go writes it.
        let victims: Vec<_> = victims.iter().map(|uid| json!({ "UID": uid })).collect();
        let args = json!({ "Pod": pod(mib, priority), "NodeNameToVictims": null,
            "NodeNameToMetaVictims": { "n": { "Pods": victims, "NumPDBViolations": 0 } } });
        let args = serde_json::from_value(args).unwrap();
        let result = preempt(args, &cluster(), &Config::default());
        let text = serde_json::to_value(&result).unwrap();
        assert!(text["NodeNameToMetaVictims"].is_object(), "{text}");
        let nodes = result.node_name_to_meta_victims.into_iter();
        let uids = |victims: MetaVictims| victims.pods.into_iter().map(|pod| pod.uid).collect();
        nodes.map(|(node, victims)| (node, uids(victims))).collect()
    }

    #[test]
    fn victims_are_completed_by_those_that_hold_slices() {
        let one = |uids: &[&str]| {
            let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
            BTreeMap::from([("n".to_owned(), uids)])
        };
        assert_eq!(
            asked("40000", 9, &["cpu"]),
            one(&["cpu", "a"]),
            "the lower one"
        );
        assert_eq!(asked("40000", 9, &["b"]), one(&["b"]), "that is enough");
        assert_eq!(asked("80000", 9, &["cpu"]), one(&["cpu", "a", "b"]));
        assert_eq!(
            asked("80000", 5, &["cpu"]),
            BTreeMap::new(),
            "b is as important"
        );
    }
}
