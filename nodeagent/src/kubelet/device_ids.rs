//! The device ids that kubelet is offered, and which of them are healthy. Pure.
//!
//! Ids stand for a count: kubelet takes any of them for any GPU, and the pod's claim names the GPU. But kubelet
//! publishes the health of a pod's ids in its status, and after a reboot it fails a pod unless all of its ids are there
//! and healthy. So the unhealthy ids are those of the pods on unhealthy GPUs. If these pods hold fewer ids than their
//! GPUs had, free ids make up the rest.

use std::collections::BTreeMap;

use crate::{
    gpus::{inventory::Inventory, state::GpuState},
    kubelet::{
        api::device_plugin::{Device, NumaNode, TopologyInfo},
        id_holders::IdHolder,
    },
};

/// What an id is used for. Ids are healthy in this order, until there are enough of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// By a container whose GPUs are all healthy.
    OnHealthyGpu,
    /// By a container that is not known yet.
    Unknown,
    /// Free, and named after a healthy GPU.
    Free,
    /// Free, and named after an unhealthy GPU.
    FreeOfUnhealthyGpu,
    /// By a container on a GPU that is unhealthy or gone.
    OnUnhealthyGpu,
}

/// An id by its use, and the NUMA node of the GPU that it is named after.
type Ids = BTreeMap<String, (Use, Option<u32>)>;

/// The ids of all GPUs, `ids_per_gpu` for each and never fewer than the instances that it takes. As many are healthy as
/// the healthy GPUs have, and all that pods on healthy GPUs hold, even if the GPU that an id is named after is gone.
///
/// `holders` are those of kubelet's checkpoint.
pub(crate) fn offered(
    inventory: &Inventory,
    ids_per_gpu: u32,
    holders: &[IdHolder],
) -> Vec<Device> {
    let mut ids = free_ids(inventory, ids_per_gpu);
    let of_healthy_gpus = ids.values().filter(|(free, _)| *free == Use::Free).count();
    for (id, used) in held_ids(inventory, holders) {
        ids.entry(id.to_owned()).or_insert((used, None)).0 = used;
    }
    let mut ids: Vec<_> = ids.into_iter().collect();
    // A stable sort: ids of the same use stay in order, so the same ones are unhealthy each time.
    ids.sort_by_key(|(_, (used, _))| *used);
    let in_use = ids
        .iter()
        .filter(|(_, (used, _))| *used == Use::OnHealthyGpu)
        .count();
    let healthy = of_healthy_gpus.max(in_use);
    let mut devices: Vec<Device> = ids
        .into_iter()
        .enumerate()
        .map(|(position, (id, (used, numa)))| {
            device(id, position < healthy && used != Use::OnUnhealthyGpu, numa)
        })
        .collect();
    // kubelet is sent changed lists only: the order must not change with the health of other ids.
    devices.sort_by(|a, b| a.id.cmp(&b.id));
    devices
}

/// The ids that are named after the GPUs, all of them free.
fn free_ids(inventory: &Inventory, ids_per_gpu: u32) -> Ids {
    let mut ids = Ids::new();
    for (gpu, state) in &inventory.state.gpus {
        let free = if is_healthy(inventory, gpu) {
            Use::Free
        } else {
            Use::FreeOfUnhealthyGpu
        };
        let numbers = 0..id_count(state, ids_per_gpu);
        ids.extend(numbers.map(|n| (format!("{gpu}-{n}"), (free, state.surveyed.numa))));
    }
    ids
}

/// The ids that containers hold. An init container's ids are given again to the pod's other containers: its first use
/// in the order of [`Use`] counts.
fn held_ids<'a>(inventory: &Inventory, holders: &'a [IdHolder]) -> BTreeMap<&'a str, Use> {
    let mut held = BTreeMap::new();
    for holder in holders {
        let Some(used) = use_by(inventory, holder) else {
            continue;
        };
        for id in &holder.ids {
            let known = held.entry(id.as_str()).or_insert(used);
            *known = used.min(*known);
        }
    }
    held
}

/// What a container uses its ids for; `None`: it is over.
fn use_by(inventory: &Inventory, holder: &IdHolder) -> Option<Use> {
    let Some(pods) = &inventory.state.pods else {
        return Some(Use::Unknown);
    };
    let pod = pods.values().find(|pod| holder.pod.refers_to(pod))?;
    let claim = pod.container(&holder.container)?;
    let mut devices = claim.devices.iter();
    let all_healthy = devices.all(|device| is_healthy(inventory, device.gpu()));
    Some(if all_healthy {
        Use::OnHealthyGpu
    } else {
        Use::OnUnhealthyGpu
    })
}

fn is_healthy(inventory: &Inventory, gpu: &str) -> bool {
    inventory.state.gpus.contains_key(gpu) && inventory.unhealthy_reason(gpu).is_none()
}

/// Number of ids that are named after a GPU: never fewer than the instances that it takes.
fn id_count(state: &GpuState, ids_per_gpu: u32) -> u32 {
    let offers = state.surveyed.model.offers.iter();
    let most = offers.map(|offer| offer.max_count).max();
    ids_per_gpu.max(u32::from(most.unwrap_or(0)))
}

fn device(id: String, is_healthy: bool, numa: Option<u32>) -> Device {
    Device {
        id,
        health: if is_healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        topology: numa.map(|id| TopologyInfo {
            nodes: vec![NumaNode { id: id.into() }],
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use domain::{fixtures, pod::PodName};

    use super::*;
    use crate::{
        gpus::{claims::ClaimedPod, state::NodeState},
        kubelet::id_holders::PodRef,
        nvml::data::{Health, SurveyedGpu},
    };

    const IDS_PER_GPU: u32 = 10;

    fn gpu(index: u32, is_unhealthy: bool) -> SurveyedGpu {
        SurveyedGpu {
            index,
            uuid: format!("GPU-{index}"),
            minor: index,
            numa: Some(0),
            model: fixtures::a100_80gb(),
            mig: None,
            health: Health {
                row_remapping_failed: is_unhealthy,
                ..Health::default()
            },
            instances: vec![],
        }
    }

    fn inventory(gpus: Vec<SurveyedGpu>, pods: Option<&[(&str, u32)]>) -> Inventory {
        let mut state = NodeState::default();
        state.apply_survey(gpus, &[], &[], 0);
        if let Some(pods) = pods {
            let pods = pods.iter().map(|(uid, gpu)| pod(uid, *gpu));
            state.apply_pods(Arc::new(pods.collect()), 0);
        }
        Inventory {
            state,
            nvml_failure: None,
            ..Inventory::unsurveyed()
        }
    }

    /// A pod with a share of a GPU.
    fn pod(uid: &str, gpu: u32) -> (String, ClaimedPod) {
        let device = serde_json::json!({ "mode": "hami-core", "gpu": format!("GPU-{gpu}"), "mem": 1, "cores": 0 });
        let claim =
            serde_json::json!({ "v": 1, "containers": [{ "name": "c", "devices": [device] }] });
        let pod = ClaimedPod {
            uid: uid.into(),
            name: PodName::new("n", uid),
            claim: serde_json::from_value(claim).unwrap(),
            containers: BTreeMap::new(),
        };
        (uid.into(), pod)
    }

    fn holder(uid: &str, ids: &[&str]) -> IdHolder {
        IdHolder {
            pod: PodRef::Uid(uid.into()),
            container: "c".into(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn healthy(devices: &[Device]) -> BTreeSet<&str> {
        let healthy = devices.iter().filter(|device| device.health == "Healthy");
        healthy.map(|device| device.id.as_str()).collect()
    }

    #[test]
    fn all_ids_of_healthy_gpus_are_healthy() {
        let holders = [holder("a", &["GPU-0-1"]), holder("gone", &["GPU-7-1"])];
        let two = inventory(vec![gpu(0, false), gpu(1, false)], Some(&[("a", 1)]));
        let devices = offered(&two, IDS_PER_GPU, &holders);
        assert_eq!(devices.len(), 20);
        assert_eq!(healthy(&devices).len(), 20);
        assert_eq!(
            devices,
            offered(&two, IDS_PER_GPU, &[]),
            "no change for kubelet"
        );
        assert!(devices.iter().all(|device| device.topology.is_some()));
    }

    /// Issue 5: after a reboot a pod on a healthy GPU was failed because its ids were named after the unhealthy one.
    #[test]
    fn an_unhealthy_gpu_costs_its_own_pods_their_ids_and_no_others() {
        let holders = [
            holder("healthy", &["GPU-0-1", "GPU-1-1", "GPU-0-2"]),
            holder("unhealthy", &["GPU-1-2", "GPU-0-3"]),
            holder("over", &["GPU-1-3"]),
        ];
        let pods = [("healthy", 1), ("unhealthy", 0)];
        let one_unhealthy = inventory(vec![gpu(0, true), gpu(1, false)], Some(&pods));
        let devices = offered(&one_unhealthy, IDS_PER_GPU, &holders);
        let healthy = healthy(&devices);
        assert_eq!((devices.len(), healthy.len()), (20, 10));
        for id in ["GPU-0-1", "GPU-1-1", "GPU-0-2"] {
            assert!(healthy.contains(id), "{id} of the pod on the healthy GPU");
        }
        for id in ["GPU-1-2", "GPU-0-3"] {
            assert!(!healthy.contains(id), "{id} of the pod on the other GPU");
        }
    }

    #[test]
    fn held_ids_are_healthy_before_the_pods_are_known() {
        let holders = [holder("a", &["GPU-0-1", "GPU-1-1"])];
        let one_unhealthy = inventory(vec![gpu(0, true), gpu(1, false)], None);
        let devices = offered(&one_unhealthy, IDS_PER_GPU, &holders);
        let healthy = healthy(&devices);
        assert_eq!((devices.len(), healthy.len()), (20, 10));
        assert!(healthy.contains("GPU-0-1") && healthy.contains("GPU-1-1"));
    }

    #[test]
    fn ids_of_a_gpu_that_is_gone_stay_while_a_pod_on_another_holds_them() {
        let holders = [holder("a", &["GPU-0-1", "GPU-0-2"])];
        for pods in [Some(&[("a", 1)][..]), None] {
            let one_left = inventory(vec![gpu(1, false)], pods);
            let devices = offered(&one_left, IDS_PER_GPU, &holders);
            let healthy = healthy(&devices);
            assert_eq!((devices.len(), healthy.len()), (12, 10));
            assert!(healthy.contains("GPU-0-1") && healthy.contains("GPU-0-2"));
        }
        let no_pod = inventory(vec![gpu(1, false)], Some(&[]));
        assert_eq!(offered(&no_pod, IDS_PER_GPU, &holders).len(), 10);
    }

    #[test]
    fn while_nvml_hangs_no_id_is_healthy() {
        let mut hanging = inventory(vec![gpu(0, false)], Some(&[("a", 0)]));
        hanging.nvml_hang = Some("NVML has not answered for 30 s".into());
        let devices = offered(&hanging, IDS_PER_GPU, &[holder("a", &["GPU-0-1"])]);
        assert_eq!(healthy(&devices).len(), 0);
    }
}
