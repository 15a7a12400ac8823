//! Preemption: whose end makes a demand fit on a node. Nothing here ends anything.

use std::collections::BTreeSet;

use domain::{config::Config, demand::Demand};

use crate::{
    cluster::{Cluster, PodUid},
    subsets::{MAX_PLANS, MAX_SET_SIZE, subsets},
};

/// A pod that a more important one may displace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its UID.
    pub uid: PodUid,
    /// Its priority.
    pub priority: i32,
    /// Whether its end would violate a `PodDisruptionBudget`.
    pub violates: bool,
}

/// The cheapest set of victims on a node that makes the demand fit there by placement; empty where it fits anyway.
///
/// In the order of kube-scheduler's preemption: fewest violations, then the lowest highest priority,
/// then the fewest pods with the lowest priorities. Those in `already` go anyway.
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
    // Many are needed: spare whom we can, the most important first.
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

    #[test]
    fn the_cheapest_victims_by_placement() {
        let cluster = cluster(
            &[
                ("a", "1g.10gb", 0, 0),
                ("b", "1g.10gb", 0, 1),
                ("c", "3g.40gb", 0, 4),
                ("d", "1g.10gb", 1, 0),
                ("e", "3g.40gb", 1, 4),
                ("f", "1g.10gb", 1, 3),
            ],
            2,
        );
        let config = Config::default();
        let pods = |list: &[(&str, i32, bool)]| -> Vec<Victim> {
            let all = list.iter();
            all.map(|(uid, priority, violates)| Victim {
                uid: (*uid).to_owned(),
                priority: *priority,
                violates: *violates,
            })
            .collect()
        };
        let choose = |list: &[(&str, i32, bool)]| {
            victims(
                &cluster,
                "n",
                &one(40_000),
                &config,
                &pods(list),
                &BTreeSet::new(),
            )
        };
        let all = [
            ("a", 1, false),
            ("b", 1, false),
            ("c", 1, false),
            ("d", 1, false),
            ("e", 2, false),
            ("f", 1, false),
        ];
        assert_eq!(
            choose(&all),
            Some(vec!["c".to_owned()]),
            "one instead of two"
        );
        let dear = [
            ("a", 1, false),
            ("b", 1, false),
            ("c", 9, false),
            ("e", 9, false),
        ];
        assert_eq!(
            choose(&dear),
            Some(vec!["a".to_owned(), "b".to_owned()]),
            "the lower priority"
        );
        let guarded = [
            ("c", 0, true),
            ("d", 1, false),
            ("e", 5, false),
            ("f", 1, false),
        ];
        assert_eq!(
            choose(&guarded),
            Some(vec!["d".to_owned(), "f".to_owned()]),
            "no violation"
        );
        assert_eq!(choose(&[("a", 1, false)]), None);
        assert_eq!(
            victims(
                &cluster,
                "n",
                &one(15_000),
                &config,
                &pods(&all),
                &BTreeSet::new()
            ),
            Some(vec![]),
            "it fits anyway"
        );
    }
}
