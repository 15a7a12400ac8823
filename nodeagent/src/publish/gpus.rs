//! The GPUs and their instances as published in the `GpuNode` object and the metrics. Pure.

use domain::gpu::{Gpu, Instance};

use crate::gpus::{
    instance::{Ownership, TrackedInstance},
    inventory::Inventory,
    state::GpuState,
};

/// All GPUs of the node, by NVML index. `max_shares` is the number of software shares that each takes at most.
pub(crate) fn published(inventory: &Inventory, max_shares: u32) -> Vec<Gpu> {
    let gpus = inventory.state.gpus.values();
    let mut gpus: Vec<Gpu> = gpus
        .map(|state| gpu(inventory, state, max_shares))
        .collect();
    gpus.sort_by_key(|gpu| gpu.index);
    gpus
}

fn gpu(inventory: &Inventory, state: &GpuState, max_shares: u32) -> Gpu {
    let surveyed = &state.surveyed;
    let instances = state.instances.iter();
    Gpu {
        index: surveyed.index,
        uuid: surveyed.uuid.clone(),
        model: surveyed.model.name.clone(),
        memory_mib: surveyed.model.memory_mib,
        mode: state.mode(),
        changing_to: inventory.state.changing_to(&surveyed.uuid),
        auto_mode: inventory.state.has_automatic_mode(state),
        unhealthy: inventory.unhealthy_reason(&surveyed.uuid),
        // Without its size nobody can tell what is left of it: it is given whole.
        max_shares: match surveyed.model.memory_mib {
            0 => max_shares.min(1),
            _ => max_shares,
        },
        numa: surveyed.numa,
        instances: instances.map(|known| instance(state, known)).collect(),
    }
}

fn instance(gpu: &GpuState, tracked: &TrackedInstance) -> Instance {
    let live = &tracked.live;
    let mut offers = gpu.surveyed.model.offers.iter();
    let offer = offers.find(|offer| offer.profile_id == live.profile_id);
    let claimed_by = tracked.claimed_by();
    let pod = match &tracked.ownership {
        Ownership::Lingering { last, .. } => last.as_ref(),
        _ => claimed_by,
    };
    Instance {
        profile: offer.map_or_else(
            || format!("profile-{}", live.profile_id),
            |offer| offer.profile.clone(),
        ),
        start: live.start,
        size: live.size,
        gpu_instance_id: live.id,
        uuid: live.compute.first().map(|compute| compute.uuid.clone()),
        memory_mib: offer.map_or(0, |offer| offer.memory_mib),
        state: tracked.state(),
        pod: pod.map(|container| container.pod.clone()),
        pod_uid: claimed_by.map(|container| container.uid.clone()),
        container: claimed_by.map(|container| container.container.clone()),
        reason: reason(tracked),
    }
}

/// Why an instance is not available, in words.
fn reason(tracked: &TrackedInstance) -> Option<String> {
    if tracked.fault.is_some() {
        return tracked.fault.clone();
    }
    match &tracked.ownership {
        Ownership::Claimed(_) | Ownership::Idle { .. } => None,
        Ownership::Lingering { .. } => {
            Some("no pod claims it; waiting until no process is left on it".to_owned())
        }
        Ownership::Stuck { reason, .. } => Some(reason.clone()),
        Ownership::Foreign => Some("not created by Tessera".to_owned()),
    }
}
