//! The GPUs and their instances as published in the `GpuNode` object and the metrics. Pure.

use domain::gpu::{Gpu, Instance, UsedShare};

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
        used_shares: used_shares(inventory, &surveyed.uuid),
    }
}

/// The shares that the pods of the node claim of a GPU.
fn used_shares(inventory: &Inventory, gpu: &str) -> Vec<UsedShare> {
    let mut used = Vec::new();
    for pod in inventory.state.pods.iter().flat_map(|pods| pods.values()) {
        for container in &pod.claim.containers {
            let shares = container.devices.iter().filter_map(|device| device.share());
            used.extend(
                shares
                    .filter(|share| share.gpu == gpu)
                    .map(|share| UsedShare {
                        pod: pod.name.to_string(),
                        pod_uid: pod.uid.clone(),
                        container: container.name.clone(),
                        kind: container.kind,
                        memory_mib: share.mem,
                        cores: share.cores,
                    }),
            );
        }
    }
    used.sort_by(|a, b| (&a.pod, &a.container).cmp(&(&b.pod, &b.container)));
    used
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

#[cfg(test)]
mod tests {
    use domain::claim::{ClaimedDevice, Share};

    use super::*;
    use crate::gpus::testing::{GPU, app, node};

    /// Issue 12: who has a share of a GPU is published as it is for an instance.
    #[test]
    fn the_shares_of_a_gpu_are_published_with_their_pods() {
        let with_share = |uid: &str, gpu: &str| {
            let mut pod = app(uid, "1g.10gb", 0);
            let share = Share {
                gpu: gpu.into(),
                mem: 3_000,
                cores: 30,
            };
            pod.claim.containers[0].devices = vec![ClaimedDevice::HamiCore(share)];
            pod
        };
        let pods = [
            with_share("b", GPU),
            with_share("a", GPU),
            with_share("c", "GPU-2"),
        ];
        let inventory = Inventory {
            state: node(&[], &pods),
            ..Inventory::unsurveyed()
        };
        let gpus = published(&inventory, 10);
        let shares = gpus[0].used_shares.iter();
        let shares: Vec<_> = shares
            .map(|share| (share.pod.as_str(), share.memory_mib, share.cores))
            .collect();
        assert_eq!(shares, [("n/a", 3_000, 30), ("n/b", 3_000, 30)]);
    }
}
