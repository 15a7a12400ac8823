//! Why pods are pending, and whose restart would help.

use std::collections::BTreeMap;

use domain::{config::Config, demand::Demand};
use placement::{cluster::Cluster, relocation::find_relocation};

/// Of this many nodes at most a reason names the pods that are in the way.
const MAX_NODES_WITH_BLOCKERS: usize = 3;
/// Pods that a proposal restarts at most.
const MAX_RESTARTS: usize = 3;

/// The refusals of all nodes in one sentence, as in the pod's event.
pub(super) fn reason(cluster: &Cluster, demand: &Demand, config: &Config) -> String {
    let names: Vec<&str> = cluster.nodes().map(|(name, _)| name).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        if let Err(refusal) = cluster.plan(name, demand, config) {
            let words = if names.len() > MAX_NODES_WITH_BLOCKERS {
                refusal.to_string()
            } else {
                format!("{refusal:#}")
            };
            *counts.entry(words).or_default() += 1;
        }
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(words, count)| format!("{count} {words}"))
        .collect();
    format!("0/{} nodes: {}", names.len(), parts.join("; "))
}

/// The pods whose restart would make room for a demand, `namespace/name` or the name in the simulation.
pub(super) fn restart(cluster: &Cluster, demand: &Demand, config: &Config) -> Vec<String> {
    let found = find_relocation(cluster, demand, config, MAX_RESTARTS, |_| true, |_| true);
    let moves = found.into_iter().flat_map(|relocation| relocation.moves);
    moves.map(|(uid, _)| pod_name(cluster, uid)).collect()
}

/// The name of a pod that ran before the simulation, by its UID; those of the simulation have their name as UID.
fn pod_name(cluster: &Cluster, uid: String) -> String {
    let gpus = cluster.nodes().flat_map(|(_, status)| &status.gpus);
    let mut instances = gpus.flat_map(|gpu| &gpu.instances);
    let known = instances.find(|instance| instance.pod_uid.as_deref() == Some(&uid));
    let name = known.and_then(|instance| instance.pod.clone());
    name.unwrap_or(uid)
}
