//! Relocation: whose restart elsewhere makes room for a pod that fits nowhere. Nothing here restarts anything.

use std::collections::BTreeSet;

use domain::{
    claim::{Claim, ClaimedDevice},
    config::Config,
    demand::{ContainerDemand, Demand, Memory},
};

use crate::{
    cluster::{Cluster, PodUid},
    ranking::NodeChoice,
    subsets::{MAX_PLANS, MAX_SET_SIZE, subsets},
};

/// Pods whose restart makes room, and where everything is afterwards.
#[derive(Clone, Debug)]
pub struct Relocation {
    /// Where the pod goes that fits nowhere now.
    pub choice: NodeChoice,
    /// The pods that restart, and where each goes.
    pub moves: Vec<(PodUid, NodeChoice)>,
}

/// The smallest set of pods on one node whose restart makes room for a demand that fits nowhere now, such that each
/// of them finds another place; at most `most` pods, and never more than three. `usable`: the nodes
/// that the demand can use.
pub fn find_relocation(
    cluster: &Cluster,
    demand: &Demand,
    config: &Config,
    most: usize,
    usable: impl Fn(&str) -> bool,
    movable: impl Fn(&str) -> bool,
) -> Option<Relocation> {
    let nodes = cluster.nodes().map(|(name, _)| name.to_owned());
    let nodes: Vec<String> = nodes.filter(|name| usable(name)).collect();
    let mut tries = 0;
    for size in 1..=most.min(MAX_SET_SIZE) {
        let mut best: Option<(f64, Relocation)> = None;
        for node in &nodes {
            let pods: Vec<&str> = cluster.pods_on(node).filter(|uid| movable(uid)).collect();
            subsets(&pods, size, &mut |set| {
                tries += 1;
                if tries > MAX_PLANS {
                    return;
                }
                let gone: BTreeSet<&str> = set.iter().copied().collect();
                let Ok(plan) = cluster.plan_without(node, demand, config, &gone) else {
                    return;
                };
                let choice = NodeChoice {
                    node: node.clone(),
                    plan,
                };
                if let Some((loss, moves)) = moved(cluster, &choice, set, config)
                    && best.as_ref().is_none_or(|(known, _)| loss < *known)
                {
                    best = Some((loss, Relocation { choice, moves }));
                }
            });
        }
        if let Some((_, relocation)) = best {
            return Some(relocation);
        }
    }
    None
}

/// Where the pods of a set go once the demand is placed, and the capacity that it all costs.
fn moved(
    cluster: &Cluster,
    choice: &NodeChoice,
    set: &[&str],
    config: &Config,
) -> Option<(f64, Vec<(PodUid, NodeChoice)>)> {
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
        let is_pinned = cluster.pod_info(uid).is_some_and(|info| info.is_pinned);
        let names = after.nodes().map(|(name, _)| name.to_owned());
        // What it moves from is on the node that the demand goes to.
        let names: Vec<String> = names
            .filter(|name| !is_pinned || *name == choice.node)
            .collect();
        let names = names.iter().map(String::as_str);
        let to = after
            .rank(names, &demand_of(claim), config)
            .into_iter()
            .next()?;
        loss += to.plan.loss;
        after.apply_pod(uid, &to.node, to.plan.claim.clone());
        moves.push(((*uid).to_owned(), to));
    }
    Some((loss, moves))
}

/// The demand that a claim served: what a restarted pod will ask for.
fn demand_of(claim: &Claim) -> Demand {
    let containers = claim
        .containers
        .iter()
        .map(|container| {
            let mib = container.devices.iter().map(ClaimedDevice::memory_mib);
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
        ..Demand::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PodInfo;
    use crate::testing::{cluster, one};
    use domain::{claim::Slot, fixtures, mode::VgpuMode, pod::PodName};

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
        let relocation =
            find_relocation(&cluster, &one(40_000), &config, 3, |_| true, |_| true).unwrap();
        assert_eq!(relocation.moves.len(), 1);
        let mut after = cluster.clone();
        for (uid, choice) in &relocation.moves {
            after.apply_pod(uid, &choice.node, choice.plan.claim.clone());
        }
        after.apply_pod("new", "n", relocation.choice.plan.claim.clone());
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
            let collides =
                |other: &Slot| other.gpu == slot.gpu && other.slices().overlaps(slot.slices());
            assert!(!slots[..index].iter().any(collides), "{slots:?}");
        }
        assert!(find_relocation(&cluster, &one(40_000), &config, 3, |_| true, |_| false).is_none());
    }

    #[test]
    fn no_room_where_slices_are_missing() {
        let full = cluster(&[("a", "7g.80gb", 0, 0)], 1);
        assert!(
            find_relocation(
                &full,
                &one(8_000),
                &Config::default(),
                3,
                |_| true,
                |_| true
            )
            .is_none()
        );
    }

    #[test]
    fn a_whole_card_is_made_free_by_the_small_pod_on_it() {
        let cluster = cluster(&[("half", "3g.40gb", 0, 4), ("small", "1g.10gb", 1, 4)], 2);
        let config = Config::default();
        let relocation = find_relocation(
            &cluster,
            &one(80_000),
            &config,
            1,
            |_| true,
            |uid| uid == "small",
        )
        .unwrap();
        assert_eq!(relocation.moves[0].0, "small");
    }

    /// Issue 12: nobody moves for a place that is of no use, nor to where it may not be.
    #[test]
    fn a_pod_moves_only_for_a_usable_place_and_to_a_node_that_suits_it() {
        let mut cluster = cluster(&[("small", "1g.10gb", 0, 4)], 1);
        let other = fixtures::node("other", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.apply_node("other", other);
        let config = Config::default();
        let found = |cluster: &Cluster, usable: &str| {
            let usable = |node: &str| node == usable;
            find_relocation(cluster, &one(80_000), &config, 1, usable, |_| true)
                .map(|relocation| relocation.moves[0].1.node.clone())
        };
        assert_eq!(found(&cluster, "n").as_deref(), Some("other"));
        assert_eq!(found(&cluster, "other"), None);
        let info = PodInfo {
            name: PodName::new("default", "small"),
            priority: 0,
            ending: false,
            movable: true,
            is_pinned: true,
            controller: None,
        };
        cluster.set_pod_info("small", info);
        assert_eq!(found(&cluster, "n"), None);
    }
}
