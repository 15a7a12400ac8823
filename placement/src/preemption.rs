//! Preemption: which pods to evict so that a demand fits on a node. Nothing here evicts them.

use std::collections::BTreeSet;

use domain::{config::Config, demand::Demand};

use crate::{
    cluster::{Cluster, PodUid},
    subsets::{MAX_PLANS, MAX_SET_SIZE, subsets},
};

/// A pod that a pod of higher priority may preempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// UID of the pod.
    pub uid: PodUid,
    /// Priority of the pod.
    pub priority: i32,
    /// Whether evicting it would violate a `PodDisruptionBudget`.
    pub violates: bool,
}

/// The cheapest set of victims without which the demand fits on a node; empty where it fits anyway.
///
/// In the order of kube-scheduler's preemption: fewest violations, then the lowest highest priority,
/// then the fewest pods with the lowest priorities. Those in `already` leave anyway.
pub fn victims(
    cluster: &Cluster,
    node: &str,
    demand: &Demand,
    config: &Config,
    candidates: &[Victim],
    already: &BTreeSet<&str>,
) -> Option<Vec<PodUid>> {
    let holders: BTreeSet<&str> = cluster.pods_on(node).collect();
    let mut candidates: Vec<&Victim> = candidates
        .iter()
        .filter(|victim| holders.contains(victim.uid.as_str()))
        .filter(|victim| !already.contains(victim.uid.as_str()))
        .collect();
    candidates.sort_by_key(|victim| (victim.violates, victim.priority, victim.uid.clone()));
    let fits = |gone: &[&Victim]| {
        let gone = gone.iter().map(|victim| victim.uid.as_str());
        let gone = gone.chain(already.iter().copied()).collect();
        cluster.plan_without(node, demand, config, &gone).is_ok()
    };
    // The shortest prefix that would do holds the least violations and the lowest highest priority.
    let enough = (0..=candidates.len()).find(|&count| fits(&candidates[..count]))?;
    let last = match enough.checked_sub(1) {
        None => return Some(vec![]),
        Some(last) => candidates[last],
    };
    let level = |victim: &&Victim| (victim.violates, victim.priority);
    candidates.retain(|victim| level(victim) <= level(&last));
    let uids = |set: Vec<&Victim>| set.into_iter().map(|victim| victim.uid.clone()).collect();
    let mut tries = 0;
    for size in 1..=MAX_SET_SIZE.min(candidates.len()) {
        let mut best: Option<((usize, i64), Vec<&Victim>)> = None;
        subsets(&candidates, size, &mut |set| {
            tries += 1;
            if tries <= MAX_PLANS && fits(set) {
                let violations = set.iter().filter(|victim| victim.violates).count();
                let priorities: i64 = set.iter().map(|victim| i64::from(victim.priority)).sum();
                let cost = (violations, priorities);
                if best.as_ref().is_none_or(|(known, _)| cost < *known) {
                    best = Some((cost, set.to_vec()));
                }
            }
        });
        if let Some((_, set)) = best {
            return Some(uids(set));
        }
    }
    // Many are needed: spare those that need not go, the most important first.
    let mut set = candidates;
    for at in (0..set.len()).rev() {
        let victim = set.remove(at);
        if !fits(&set) {
            set.insert(at, victim);
        }
    }
    Some(uids(set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, one};

    /// Two GPUs whose low halves have singles and whose high halves are taken.
    fn two_gpus() -> Cluster {
        cluster(
            &[
                ("a", "1g.10gb", 0, 0),
                ("b", "1g.10gb", 0, 1),
                ("c", "3g.40gb", 0, 4),
                ("d", "1g.10gb", 1, 0),
                ("e", "3g.40gb", 1, 4),
                ("f", "1g.10gb", 1, 3),
            ],
            2,
        )
    }

    /// Checks the victims for a device, of candidates by UID, priority and whether a disruption budget protects them.
    #[track_caller]
    fn are_chosen(mib: u64, candidates: &[(&str, i32, bool)], expected: Option<&[&str]>) {
        let candidates: Vec<Victim> = candidates
            .iter()
            .map(|(uid, priority, violates)| Victim {
                uid: (*uid).to_owned(),
                priority: *priority,
                violates: *violates,
            })
            .collect();
        let (cluster, config) = (two_gpus(), Config::default());
        let none = BTreeSet::new();
        let found = victims(&cluster, "n", &one(mib), &config, &candidates, &none);
        let expected = expected.map(|uids| uids.iter().map(|uid| (*uid).to_owned()).collect());
        assert_eq!(found, expected);
    }

    #[test]
    fn one_victim_is_cheaper_than_two() {
        let all = ["a", "b", "c", "d", "f"].map(|uid| (uid, 1, false));
        let all = [&all[..], &[("e", 2, false)]].concat();
        are_chosen(40_000, &all, Some(&["c"]));
        // It fits without victims.
        are_chosen(15_000, &all, Some(&[]));
        are_chosen(40_000, &[("a", 1, false)], None);
    }

    #[test]
    fn two_of_low_priority_are_cheaper_than_one_of_high_priority() {
        let dear = [
            ("a", 1, false),
            ("b", 1, false),
            ("c", 9, false),
            ("e", 9, false),
        ];
        are_chosen(40_000, &dear, Some(&["a", "b"]));
    }

    #[test]
    fn a_disruption_budget_counts_more_than_priorities() {
        let guarded = [
            ("c", 0, true),
            ("d", 1, false),
            ("e", 5, false),
            ("f", 1, false),
        ];
        are_chosen(40_000, &guarded, Some(&["d", "f"]));
    }
}
