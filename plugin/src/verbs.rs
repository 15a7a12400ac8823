//! Filter and Score of the scheduler framework, over the view of the cluster. Pure.

use std::collections::BTreeSet;

use domain::{config::Config, demand::Demand};
use kube::ResourceExt;
use placement::{cluster::Cluster, ranking::NodeChoice};

use crate::protocol::{ExtenderArgs, FilterResult, HostPriority};

/// `MaxExtenderPriority`.
const BEST: i64 = 10;
/// Number of candidates up to which a refusal names the pods that hold the slices.
const MAX_NODES_WITH_POD_NAMES: usize = 3;

/// Keeps the nodes on which the pod can be planned now, and reports what is scarce on the others.
pub(crate) fn filter(args: ExtenderArgs, cluster: &Cluster, config: &Config) -> FilterResult {
    let mut result = FilterResult::default();
    let names = args.names();
    let keep: BTreeSet<String> = match Demand::read(&daemon::pods::request(&args.pod), config) {
        Err(error) => {
            result.error = error.to_string();
            BTreeSet::new()
        }
        Ok(None) => names.iter().cloned().collect(),
        Ok(Some(demand)) => {
            let uid = args.pod.uid();
            plan_each(
                &names,
                uid.as_deref(),
                &demand,
                cluster,
                config,
                &mut result,
            )
        }
    };
    match args.nodes {
        Some(mut nodes) if args.node_names.is_none() => {
            nodes.items.retain(|node| keep.contains(&node.name_any()));
            result.nodes = Some(nodes);
        }
        _ => {
            let kept = names.into_iter().filter(|name| keep.contains(name));
            result.node_names = Some(kept.collect());
        }
    }
    result
}

/// The nodes on which the demand can be planned; writes why the others refuse it into `result`.
fn plan_each(
    names: &[String],
    uid: Option<&str>,
    demand: &Demand,
    cluster: &Cluster,
    config: &Config,
    result: &mut FilterResult,
) -> BTreeSet<String> {
    // What is reserved for the pod is its own.
    let own: BTreeSet<&str> = uid.into_iter().collect();
    let mut keep = BTreeSet::new();
    for name in names {
        let Err(refusal) = cluster.plan_without(name, demand, config, &own) else {
            keep.insert(name.clone());
            continue;
        };
        let failed = if refusal.is_unresolvable() {
            &mut result.failed_and_unresolvable_nodes
        } else {
            &mut result.failed_nodes
        };
        // kube-scheduler counts equal sentences: with the names of pods, no two nodes would have the same.
        let message = if names.len() <= MAX_NODES_WITH_POD_NAMES {
            format!("{refusal:#}")
        } else {
            refusal.to_string()
        };
        failed.insert(name.clone(), message);
    }
    keep
}

/// Scores the candidates by what the cluster can still offer afterwards: the best gets 10, and nodes
/// that are as good as each other get the same, but for the one that the webhook hinted at.
pub(crate) fn prioritize(
    args: &ExtenderArgs,
    cluster: &Cluster,
    config: &Config,
) -> Vec<HostPriority> {
    let names = args.names();
    let score = |host: String, score| HostPriority { host, score };
    let Ok(Some(demand)) = Demand::read(&daemon::pods::request(&args.pod), config) else {
        return names.into_iter().map(|name| score(name, 0)).collect();
    };
    let uid = args.pod.uid();
    let own: BTreeSet<&str> = uid.as_deref().into_iter().collect();
    let ranked = cluster.rank_without(names.iter().map(String::as_str), &demand, config, &own);
    let preference = |choice: &NodeChoice| choice.plan.preference(&choice.node, &demand);
    let mut scores = Vec::with_capacity(names.len());
    let mut current = BEST;
    for (at, choice) in ranked.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| &ranked[at]);
        if before.is_some_and(|before| preference(before) != preference(choice)) && current > 1 {
            current -= 1;
        }
        scores.push(score(choice.node.clone(), current));
    }
    for name in names {
        if !scores.iter().any(|known| known.host == name) {
            scores.push(score(name, 0));
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode};
    use serde_json::json;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        cluster.apply_node(
            "mig",
            fixtures::node("mig", &fixtures::a100_80gb(), 1, VgpuMode::Mig),
        );
        cluster.apply_node(
            "soft",
            fixtures::node("soft", &fixtures::a100_80gb(), 1, VgpuMode::HamiCore),
        );
        cluster
    }

    fn args(limits: &serde_json::Value, annotations: &serde_json::Value) -> ExtenderArgs {
        // As Go writes it: quantities in their canonical form, absent maps as null.
        serde_json::from_value(json!({
            "Pod": { "metadata": { "name": "p", "uid": "u", "annotations": annotations },
                "spec": { "containers": [{ "name": "c", "resources": { "limits": limits } }] } },
            "Nodes": null, "NodeNames": ["mig", "soft", "cpu"]
        }))
        .unwrap()
    }

    #[test]
    fn a_refused_node_names_what_is_scarce() {
        let asked = args(
            &json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": "8k" }),
            &json!(null),
        );
        let result = filter(asked, &cluster(), &Config::default());
        assert_eq!(result.node_names.unwrap(), ["mig", "soft"]);
        assert!(result.failed_and_unresolvable_nodes["cpu"].contains("no GPUs managed by Tessera"));
        let asked = args(
            &json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": "200k" }),
            &json!(null),
        );
        let result = filter(asked, &cluster(), &Config::default());
        assert_eq!(result.node_names.unwrap(), Vec::<String>::new());
        assert_eq!(
            result.failed_and_unresolvable_nodes["mig"],
            "no GPU has 200000 MiB for one device, the largest has 80640 MiB"
        );
    }

    #[test]
    fn a_full_node_can_be_preempted_and_names_what_would_fit() {
        let mut cluster = cluster();
        let asked = || {
            args(
                &json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": "40k" }),
                &json!({ "nvidia.com/vgpu-mode": "mig" }),
            )
        };
        let demand = Demand::read(&daemon::pods::request(&asked().pod), &Config::default())
            .unwrap()
            .unwrap();
        for uid in ["a", "b"] {
            let plan = cluster.plan("mig", &demand, &Config::default()).unwrap();
            cluster.assume(uid, "mig", plan.claim);
        }
        let result = filter(asked(), &cluster, &Config::default());
        assert_eq!(
            result.failed_nodes["mig"],
            "no free GPU memory for 3g.40gb or 4g.40gb (GPUs are full)"
        );
        cluster.forget("a");
        assert_eq!(
            filter(asked(), &cluster, &Config::default())
                .node_names
                .unwrap(),
            ["mig"]
        );
    }

    #[test]
    fn an_unreadable_demand_is_an_error_and_no_demand_passes() {
        let bad = args(&json!({ "nvidia.com/gpumem": "8Gi" }), &json!(null));
        assert!(
            filter(bad, &cluster(), &Config::default())
                .error
                .contains("write 8192")
        );
        let none = args(&json!({ "cpu": "1" }), &json!(null));
        assert_eq!(
            filter(none, &cluster(), &Config::default())
                .node_names
                .unwrap()
                .len(),
            3
        );
    }

    #[test]
    fn a_close_instance_is_best_and_a_wasteful_one_is_not() {
        let scores = |mib: &str| {
            let asked = args(
                &json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": mib }),
                &json!(null),
            );
            prioritize(&asked, &cluster(), &Config::default())
        };
        let host = |host: &str, score| HostPriority {
            host: host.into(),
            score,
        };
        assert_eq!(
            scores("8k"),
            [host("mig", 10), host("soft", 9), host("cpu", 0)]
        );
        assert_eq!(
            scores("1k"),
            [host("soft", 10), host("mig", 9), host("cpu", 0)]
        );
    }

    #[test]
    fn a_node_that_must_change_its_mode_is_worse_than_one_that_need_not() {
        let mut cluster = Cluster::default();
        for (name, mode) in [("soft", VgpuMode::HamiCore), ("mig", VgpuMode::Mig)] {
            let mut node = fixtures::node(name, &fixtures::a100_80gb(), 1, mode);
            node.gpus[0].auto_mode = true;
            cluster.apply_node(name, node);
        }
        let asked = args(
            &json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": "40k" }),
            &json!({ "nvidia.com/vgpu-mode": "mig" }),
        );
        let scores = prioritize(&asked, &cluster, &Config::default());
        let scores: Vec<_> = scores
            .iter()
            .map(|score| (score.host.as_str(), score.score))
            .collect();
        assert_eq!(scores, [("mig", 10), ("soft", 9), ("cpu", 0)]);
    }
}
