//! Whose end or restart would make room for a pod that fits nowhere. Nothing here ends anything.

use std::collections::BTreeSet;

use crate::cluster::{Choice, Cluster, PodUid};
use domain::{
    claim::Claim,
    config::Config,
    demand::{ContainerDemand, Demand, Memory},
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

/// Sets of pods that are planned without before giving up.
const TRIES: usize = 4_000;
/// Largest set that is looked for by trying all.
const SMALL: usize = 3;

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
    for size in 1..=SMALL.min(candidates.len()) {
        let mut best: Option<((usize, i64), Vec<&Victim>)> = None;
        subsets(&candidates, size, &mut |set| {
            tries += 1;
            if tries <= TRIES && fits(set) {
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

/// Pods whose restart makes room, and where everything is then.
#[derive(Clone, Debug)]
pub struct Room {
    /// Where the waiting pod goes.
    pub choice: Choice,
    /// The pods that restart, and where each goes.
    pub moves: Vec<(PodUid, Choice)>,
}

/// The smallest set of pods of one node whose restart makes a demand fit that fits nowhere now, every one of them
/// finding a place again; at most so many pods, and never more than three.
pub fn room(
    cluster: &Cluster,
    demand: &Demand,
    config: &Config,
    most: usize,
    movable: impl Fn(&str) -> bool,
) -> Option<Room> {
    let nodes: Vec<String> = cluster.nodes().map(|(name, _)| name.to_owned()).collect();
    let mut tries = 0;
    for size in 1..=most.min(SMALL) {
        let mut best: Option<(f64, Room)> = None;
        for node in &nodes {
            let pods: Vec<&str> = cluster.pods_on(node).filter(|uid| movable(uid)).collect();
            subsets(&pods, size, &mut |set| {
                tries += 1;
                if tries > TRIES {
                    return;
                }
                let gone: BTreeSet<&str> = set.iter().copied().collect();
                let Ok(plan) = cluster.plan_without(node, demand, config, &gone) else {
                    return;
                };
                let choice = Choice {
                    node: node.clone(),
                    plan,
                };
                if let Some((loss, moves)) = moved(cluster, &choice, set, config)
                    && best.as_ref().is_none_or(|(known, _)| loss < *known)
                {
                    best = Some((loss, Room { choice, moves }));
                }
            });
        }
        if let Some((_, room)) = best {
            return Some(room);
        }
    }
    None
}

/// Where the pods of a set go once the demand stands at its place, and the capacity that costs.
fn moved(
    cluster: &Cluster,
    choice: &Choice,
    set: &[&str],
    config: &Config,
) -> Option<(f64, Vec<(PodUid, Choice)>)> {
    let mut after = cluster.clone();
    let claims: Vec<Claim> = set
        .iter()
        .filter_map(|uid| Some(cluster.claim(uid)?.1.clone()))
        .collect();
    for uid in set {
        after.end(uid);
    }
    after.apply_pod("", &choice.node, choice.plan.claim.clone());
    let mut loss = choice.plan.loss;
    let mut moves = Vec::new();
    for (uid, claim) in set.iter().zip(&claims) {
        let names: Vec<String> = after.nodes().map(|(name, _)| name.to_owned()).collect();
        let names = names.iter().map(String::as_str);
        let to = after
            .rank(names, &again(claim), config)
            .into_iter()
            .next()?;
        loss += to.plan.loss;
        after.apply_pod(uid, &to.node, to.plan.claim.clone());
        moves.push(((*uid).to_owned(), to));
    }
    Some((loss, moves))
}

/// The demand that a claim served: what a restarted pod asks for again.
fn again(claim: &Claim) -> Demand {
    let containers = claim
        .containers
        .iter()
        .map(|container| {
            let mib = container.devices.iter().map(|device| match device {
                domain::claim::ClaimedDevice::Mig(slot) => slot.mem,
                domain::claim::ClaimedDevice::HamiCore(share) => share.mem,
            });
            let cores = container.devices.iter().filter_map(|device| device.share());
            ContainerDemand {
                name: container.name.clone(),
                kind: container.kind,
                count: u32::try_from(container.devices.len()).unwrap_or(u32::MAX),
                memory: Memory::Mib(mib.max().unwrap_or(1)),
                cores: cores.map(|share| share.cores).max().unwrap_or(0),
            }
        })
        .collect();
    Demand {
        mode: claim.mode(),
        containers,
        cards: domain::demand::CardSelector::default(),
        node_policy: None,
        gpu_policy: None,
        hint: None,
        allow_larger: false,
    }
}

/// Calls `one` with every subset of that size, in order.
fn subsets<T: Copy>(items: &[T], size: usize, one: &mut impl FnMut(&[T])) {
    fn go<T: Copy>(rest: &[T], size: usize, set: &mut Vec<T>, one: &mut impl FnMut(&[T])) {
        if size == 0 {
            one(set);
            return;
        }
        for at in 0..rest.len().saturating_sub(size - 1) {
            set.push(rest[at]);
            go(&rest[at + 1..], size - 1, set, one);
            set.pop();
        }
    }
    go(items, size, &mut Vec::new(), one);
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode};

    fn one(mib: u64) -> Demand {
        Demand {
            mode: Some(VgpuMode::Mig),
            ..fixtures::demand(mib)
        }
    }

    fn at(profile: &str, gpu: &str, start: u8) -> Claim {
        let model = fixtures::a100_80gb();
        let offer = model.offer(profile).unwrap();
        serde_json::from_value(serde_json::json!({ "v": 1, "containers": [{ "name": "c", "devices": [{
            "mode": "mig", "gpu": gpu, "profile": profile, "start": start, "size": offer.size, "mem": offer.memory_mib }] }] }))
        .unwrap()
    }

    fn cluster(claims: &[(&str, &str, u32, u8)], cards: u32) -> Cluster {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), cards, VgpuMode::Mig);
        cluster.apply_node("n", node);
        for (uid, profile, card, start) in claims {
            cluster.apply_pod(uid, "n", at(profile, &format!("GPU-n-{card}"), *start));
        }
        cluster
    }

    #[test]
    fn the_one_pod_that_stands_in_the_way_restarts_elsewhere() {
        // Singles on both halves of card 0, a half of card 1 free.
        let cluster = cluster(
            &[
                ("a", "1g.10gb", 0, 0),
                ("b", "1g.10gb", 0, 4),
                ("c", "4g.40gb", 1, 0),
                ("d", "1g.10gb", 1, 6),
            ],
            2,
        );
        let config = Config::default();
        assert!(cluster.plan("n", &one(40_000), &config).is_err());
        let room = room(&cluster, &one(40_000), &config, 3, |_| true).unwrap();
        assert_eq!(room.moves.len(), 1);
        let mut after = cluster.clone();
        for (uid, choice) in &room.moves {
            after.apply_pod(uid, &choice.node, choice.plan.claim.clone());
        }
        after.apply_pod("new", "n", room.choice.plan.claim.clone());
        let slots: Vec<_> = ["a", "b", "c", "d", "new"]
            .iter()
            .flat_map(|uid| {
                after
                    .claim(uid)
                    .unwrap()
                    .1
                    .slots()
                    .cloned()
                    .collect::<Vec<_>>()
            })
            .collect();
        for (index, slot) in slots.iter().enumerate() {
            let collides = |other: &domain::claim::Slot| {
                other.gpu == slot.gpu && other.slices().overlaps(slot.slices())
            };
            assert!(!slots[..index].iter().any(collides), "{slots:?}");
        }
        assert!(super::room(&cluster, &one(40_000), &config, 3, |_| false).is_none());
    }

    #[test]
    fn no_room_where_slices_are_missing() {
        let full = cluster(&[("a", "7g.80gb", 0, 0)], 1);
        assert!(room(&full, &one(8_000), &Config::default(), 3, |_| true).is_none());
    }

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

    #[test]
    fn a_whole_card_is_made_free_by_the_small_pod_on_it() {
        let cluster = cluster(&[("half", "3g.40gb", 0, 4), ("small", "1g.10gb", 1, 4)], 2);
        let config = Config::default();
        let room = room(&cluster, &one(80_000), &config, 1, |uid| uid == "small").unwrap();
        assert_eq!(room.moves[0].0, "small");
    }
}
