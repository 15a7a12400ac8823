//! A node with one A100 for the tests of this folder.

use std::{collections::BTreeMap, sync::Arc};

use domain::{
    claim::{Claim, ClaimedDevice, ContainerClaim, Slot},
    demand::ContainerKind,
    fixtures,
    pod::PodName,
};

use crate::{
    gpus::{
        action::Action,
        claims::ClaimedPod,
        clock::Millis,
        next_action::IdleLimits,
        record::{ContainerRef, JournalEntry},
        state::NodeState,
    },
    nvml::data::{ComputeInstance, Health, LiveInstance, MigMode, SurveyedGpu},
};

pub(crate) const GPU: &str = "GPU-1";
pub(crate) const LIMITS: IdleLimits = IdleLimits {
    ttl: 1_000,
    count: 8,
};

pub(crate) fn slot(profile: &str, start: u8) -> Slot {
    let model = fixtures::a100_80gb();
    let offer = model.offer(profile).unwrap();
    Slot {
        gpu: GPU.into(),
        profile: profile.into(),
        start,
        size: offer.size,
        mem: offer.memory_mib,
    }
}

pub(crate) fn pod(uid: &str, containers: &[(&str, ContainerKind, Slot)]) -> ClaimedPod {
    let containers = containers.iter().map(|(name, kind, slot)| ContainerClaim {
        name: (*name).into(),
        kind: *kind,
        devices: vec![ClaimedDevice::Mig(slot.clone())],
    });
    claimed_pod(uid, containers.collect())
}

/// A pod that claims so, of which no container's status is known.
pub(crate) fn claimed_pod(uid: &str, containers: Vec<ContainerClaim>) -> ClaimedPod {
    ClaimedPod {
        uid: uid.into(),
        name: PodName::new("n", uid),
        claim: Claim { containers },
        containers: BTreeMap::new(),
    }
}

/// A pod with one application container `c`.
pub(crate) fn app(uid: &str, profile: &str, start: u8) -> ClaimedPod {
    pod(uid, &[("c", ContainerKind::App, slot(profile, start))])
}

/// The container of [`app`].
pub(crate) fn container(uid: &str) -> ContainerRef {
    ContainerRef {
        uid: uid.into(),
        pod: format!("n/{uid}"),
        container: "c".into(),
    }
}

pub(crate) fn live(id: u32, slot: &Slot) -> LiveInstance {
    let model = fixtures::a100_80gb();
    LiveInstance {
        id,
        profile_id: model.offer(&slot.profile).unwrap().profile_id,
        start: slot.start,
        size: slot.size,
        compute: vec![ComputeInstance {
            id: 0,
            uuid: format!("MIG-{id}"),
        }],
    }
}

pub(crate) fn gpu(mig: bool, instances: &[LiveInstance]) -> SurveyedGpu {
    SurveyedGpu {
        index: 0,
        uuid: GPU.into(),
        minor: 0,
        numa: None,
        model: fixtures::a100_80gb(),
        mig: Some(MigMode {
            current: mig,
            pending: mig,
        }),
        health: Health::default(),
        instances: instances.to_vec(),
    }
}

/// The journal's entry of an instance; an open intent unless `created`.
pub(crate) fn entry(instance: &LiveInstance, generation: u64, created: bool) -> JournalEntry {
    JournalEntry {
        generation,
        gpu: GPU.into(),
        profile_id: instance.profile_id,
        start: instance.start,
        size: instance.size,
        gpu_instance: created.then_some(instance.id),
        compute_instance: None,
        bound: None,
    }
}

pub(crate) fn survey(
    state: &mut NodeState,
    gpu: SurveyedGpu,
    journal: &[JournalEntry],
    now: Millis,
) {
    let vanished = state.apply_survey(vec![gpu], &[], journal, now);
    assert_eq!(vanished, []);
}

pub(crate) fn set_pods(state: &mut NodeState, pods: &[ClaimedPod], now: Millis) {
    let pods = pods.iter().map(|pod| (pod.uid.clone(), pod.clone()));
    state.apply_pods(Arc::new(pods.collect()), now);
}

/// A node with one GPU whose instances are all ours.
pub(crate) fn node(instances: &[LiveInstance], pods: &[ClaimedPod]) -> NodeState {
    let mut state = NodeState::default();
    let journal: Vec<_> = (1..)
        .zip(instances)
        .map(|(generation, instance)| entry(instance, generation, true))
        .collect();
    survey(&mut state, gpu(true, instances), &journal, 0);
    set_pods(&mut state, pods, 0);
    state
}

pub(crate) fn destroys(id: u32) -> Action {
    Action::Destroy {
        gpu: GPU.into(),
        id,
    }
}
