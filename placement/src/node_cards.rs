//! The cards of a node with all that is held of them: by claims, and by instances that are not idle.

use std::collections::BTreeSet;

use domain::{
    claim::Claim,
    gpu::{Gpu, InstanceState, Model},
    status::GpuNodeStatus,
};

use crate::{card::Card, potential::Potential, weights::Weights};

/// The cards of a node as if the pods in `gone` were gone, and their instances with them; `claims` are those of
/// the other pods on it.
///
/// A slot is free only when no claim holds it *and* no instance in use, foreign or quarantined
/// stands on it: a deleted pod's instance holds its slices until the agent reports it as idle.
pub(crate) fn cards<'a>(
    status: &'a GpuNodeStatus,
    weights: &'a Weights,
    claims: impl Iterator<Item = &'a Claim>,
    gone: &BTreeSet<&str>,
) -> Vec<Card<'a>> {
    let models: Vec<(&Model, Option<&Potential>)> = status
        .models
        .iter()
        .map(|model| (model, weights.potential(model)))
        .collect();
    let mut cards: Vec<Card<'a>> = status
        .gpus
        .iter()
        .filter_map(|gpu| {
            let (model, potential) = *models.iter().find(|(m, _)| m.name == gpu.model)?;
            Some(with_instances(gpu, model, potential, gone))
        })
        .collect();
    for claim in claims {
        hold(&mut cards, claim);
    }
    cards
}

fn with_instances<'a>(
    gpu: &'a Gpu,
    model: &'a Model,
    potential: Option<&'a Potential>,
    gone: &BTreeSet<&str>,
) -> Card<'a> {
    let mut card = Card::new(gpu, model, potential);
    for instance in &gpu.instances {
        let pod = instance.pod_uid.as_deref();
        let goes = pod.is_some_and(|uid| gone.contains(uid));
        if instance.state != InstanceState::Idle && !goes {
            card.hold(instance.slices(), &instance.profile);
        }
    }
    card
}

fn hold<'a>(cards: &mut [Card<'a>], claim: &'a Claim) {
    for slot in claim.slots() {
        if let Some(card) = cards.iter_mut().find(|card| card.gpu.uuid == slot.gpu) {
            card.hold(slot.slices(), &slot.profile);
        }
    }
    if claim.devices().any(|device| device.share().is_some()) {
        for card in cards {
            let share = claim.share_use(&card.gpu.uuid);
            card.used_shares = card.used_shares.plus(share);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::Cluster;
    use domain::{
        config::Config,
        demand::Memory,
        fixtures::{self, demand as one},
        gpu::{Instance, InstanceState, Model},
        mode::VgpuMode,
    };

    /// Issue 12: a GPU whose memory nobody knows (published as 0 MiB and one share) goes to one pod as a whole.
    #[test]
    fn a_gpu_of_unknown_memory_is_given_whole_to_one_pod() {
        let model = Model {
            memory_mib: 0,
            offers: vec![],
            ..fixtures::a30()
        };
        let mut node = fixtures::node("n", &model, 1, VgpuMode::HamiCore);
        node.gpus[0].max_shares = 1;
        let mut cluster = Cluster::default();
        cluster.apply_node("n", node);
        let fits = |cluster: &Cluster, memory| {
            let mut demand = one(0);
            demand.containers[0].memory = memory;
            cluster.plan("n", &demand, &Config::default())
        };
        assert!(fits(&cluster, Memory::Mib(1_000)).is_err());
        let plan = fits(&cluster, Memory::Whole).unwrap();
        cluster.apply_pod("a", "n", plan.claim);
        for memory in [Memory::Whole, Memory::Percent(10)] {
            assert!(fits(&cluster, memory).is_err(), "{memory:?}");
        }
    }

    #[test]
    fn the_slices_of_an_instance_are_free_only_when_it_is_idle() {
        let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        node.gpus[0].instances.push(Instance {
            profile: "4g.24gb".into(),
            start: 0,
            size: 4,
            gpu_instance_id: 0,
            uuid: None,
            memory_mib: 24_000,
            state: InstanceState::Idle,
            pod: None,
            pod_uid: None,
            container: None,
            reason: None,
        });
        for state in InstanceState::ALL {
            node.gpus[0].instances[0].state = state;
            let mut cluster = Cluster::default();
            cluster.apply_node("n", node.clone());
            let plan = cluster.plan("n", &one(1_000), &Config::default());
            assert_eq!(plan.is_ok(), state == InstanceState::Idle, "{state:?}");
        }
    }
}
