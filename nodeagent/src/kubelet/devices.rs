//! The device ids that kubelet is offered, and which of them are healthy. Pure.
//!
//! Ids stand for a count: kubelet takes any of them, and the card is in the pod's claim. After a reboot kubelet fails a
//! pod whose ids are not all there and healthy, and in a pod's status it names the health of its ids. So the unhealthy
//! ones are those of the pods that are on the ill cards, and free ones for the rest of what these cards had.

use std::collections::BTreeMap;

use crate::{
    gpus::inventory::Inventory,
    gpus::state::GpuState,
    kubelet::api::device_plugin::{Device, NumaNode, TopologyInfo},
    kubelet::device_ids::Holding,
};

/// What an id is used for, in the order in which ids are healthy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// By a container whose cards are all well.
    OnWell,
    /// By a container that is not known yet.
    Unknown,
    /// By nobody, and named after a card that is well.
    Free,
    /// By nobody, and named after a card that is ill.
    FreeOfIll,
    /// By a container on a card that is ill or gone.
    OnIll,
}

/// The ids of all cards, `shares` a card and never fewer than the instances that it takes. As many are healthy as the
/// well cards have, and all that pods on well cards hold, even where the card that an id is named after is gone.
///
/// `holdings` are those of kubelet's checkpoint.
pub fn devices(inventory: &Inventory, shares: u32, holdings: &[Holding]) -> Vec<Device> {
    let cards = &inventory.state.gpus;
    let is_well = |gpu: &str| cards.contains_key(gpu) && inventory.unhealthy_reason(gpu).is_none();
    let mut ids = BTreeMap::new();
    for (gpu, state) in cards {
        let free = if is_well(gpu) {
            Use::Free
        } else {
            Use::FreeOfIll
        };
        let use_and_numa = (free, state.surveyed.numa);
        ids.extend((0..count(state, shares)).map(|n| (format!("{gpu}-{n}"), use_and_numa)));
    }
    let well = ids.values().filter(|(free, _)| *free == Use::Free).count();
    // An init container's ids are given again to the pod's other containers: the best use counts.
    let mut held = BTreeMap::<&String, Use>::new();
    for holding in holdings {
        let used = match &inventory.state.pods {
            None => Use::Unknown,
            Some(pods) => {
                let pod = pods.values().find(|pod| holding.pod.is(pod));
                let Some(container) = pod.and_then(|pod| pod.container(&holding.container)) else {
                    continue;
                };
                let mut devices = container.devices.iter();
                let well = devices.all(|device| is_well(device.gpu()));
                if well { Use::OnWell } else { Use::OnIll }
            }
        };
        for id in &holding.ids {
            let known = held.entry(id).or_insert(used);
            *known = used.min(*known);
        }
    }
    for (id, used) in held {
        ids.entry(id.clone()).or_insert((used, None)).0 = used;
    }
    let mut ids: Vec<_> = ids.into_iter().collect();
    ids.sort_by_key(|(_, (used, _))| *used);
    let on_well = |(_, (used, _)): &&(String, (Use, _))| *used == Use::OnWell;
    let healthy = ids.iter().filter(on_well).count().max(well);
    let mut devices: Vec<Device> = ids
        .into_iter()
        .enumerate()
        .map(|(place, (id, (used, numa)))| {
            let is_healthy = place < healthy && used != Use::OnIll;
            let health = if is_healthy { "Healthy" } else { "Unhealthy" };
            Device {
                id,
                health: health.to_owned(),
                topology: numa.map(|id| TopologyInfo {
                    nodes: vec![NumaNode { id: id.into() }],
                }),
            }
        })
        .collect();
    // The same list while no health changes: kubelet is told of changes alone.
    devices.sort_by(|a, b| a.id.cmp(&b.id));
    devices
}

/// Never fewer ids than instances.
fn count(state: &GpuState, shares: u32) -> u32 {
    let offers = state.surveyed.model.offers.iter();
    let most = offers.map(|offer| offer.max_count).max();
    shares.max(u32::from(most.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        gpus::claims::ClaimedPod,
        gpus::state::NodeState,
        kubelet::device_ids::PodName,
        nvml::data::{Health, SurveyedGpu},
    };
    use domain::fixtures;

    const SHARES: u32 = 10;

    fn card(index: u32, failed: bool) -> SurveyedGpu {
        SurveyedGpu {
            index,
            uuid: format!("GPU-{index}"),
            minor: index,
            numa: Some(0),
            model: fixtures::a100_80gb(),
            mig: None,
            health: Health {
                row_remapping_failed: failed,
                ..Health::default()
            },
            instances: vec![],
        }
    }

    fn inventory(cards: Vec<SurveyedGpu>, pods: Option<&[(&str, u32)]>) -> Inventory {
        let mut instances = NodeState::default();
        instances.apply_survey(cards, &[], &[], 0);
        let pods = pods.map(|pods| pods.iter().map(|(uid, gpu)| pod(uid, *gpu)));
        if let Some(pods) = pods {
            instances.apply_pods(std::sync::Arc::new(pods.collect()), 0);
        }
        Inventory {
            state: instances,
            nvml_failure: None,
            nvml_hang: None,
            journal_failure: None,
        }
    }

    /// A pod with a share of a card.
    fn pod(uid: &str, gpu: u32) -> (String, ClaimedPod) {
        let device = serde_json::json!({ "mode": "hami-core", "gpu": format!("GPU-{gpu}"), "mem": 1, "cores": 0 });
        let claim =
            serde_json::json!({ "v": 1, "containers": [{ "name": "c", "devices": [device] }] });
        let pod = ClaimedPod {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            claim: serde_json::from_value(claim).unwrap(),
            containers: BTreeMap::new(),
        };
        (uid.into(), pod)
    }

    fn holding(uid: &str, ids: &[&str]) -> Holding {
        Holding {
            pod: PodName::Uid(uid.into()),
            container: "c".into(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn healthy(devices: &[Device]) -> BTreeSet<&str> {
        let healthy = devices.iter().filter(|device| device.health == "Healthy");
        healthy.map(|device| device.id.as_str()).collect()
    }

    #[test]
    fn all_ids_of_well_cards_are_healthy() {
        let holdings = [holding("a", &["GPU-0-1"]), holding("gone", &["GPU-7-1"])];
        let of_two = inventory(vec![card(0, false), card(1, false)], Some(&[("a", 1)]));
        let devices = devices(&of_two, SHARES, &holdings);
        assert_eq!(devices.len(), 20);
        assert_eq!(healthy(&devices).len(), 20);
        assert_eq!(
            devices,
            super::devices(&of_two, SHARES, &[]),
            "nothing new for kubelet"
        );
        assert!(devices.iter().all(|device| device.topology.is_some()));
    }

    /// Issue 5: after a reboot a pod on a well card was failed because its ids were named after the ill one.
    #[test]
    fn an_ill_card_costs_its_own_pods_their_ids_and_no_others() {
        let holdings = [
            holding("well", &["GPU-0-1", "GPU-1-1", "GPU-0-2"]),
            holding("ill", &["GPU-1-2", "GPU-0-3"]),
            holding("over", &["GPU-1-3"]),
        ];
        let pods = [("well", 1), ("ill", 0)];
        let ill = inventory(vec![card(0, true), card(1, false)], Some(&pods));
        let devices = devices(&ill, SHARES, &holdings);
        let healthy = healthy(&devices);
        assert_eq!((devices.len(), healthy.len()), (20, 10));
        for id in ["GPU-0-1", "GPU-1-1", "GPU-0-2"] {
            assert!(healthy.contains(id), "{id} of the pod on the well card");
        }
        for id in ["GPU-1-2", "GPU-0-3"] {
            assert!(!healthy.contains(id), "{id} of the pod on the ill card");
        }
    }

    #[test]
    fn what_is_held_is_healthy_before_the_pods_are_known() {
        let holdings = [holding("a", &["GPU-0-1", "GPU-1-1"])];
        let ill = inventory(vec![card(0, true), card(1, false)], None);
        let devices = devices(&ill, SHARES, &holdings);
        let healthy = healthy(&devices);
        assert_eq!((devices.len(), healthy.len()), (20, 10));
        assert!(healthy.contains("GPU-0-1") && healthy.contains("GPU-1-1"));
    }

    #[test]
    fn ids_of_a_card_that_is_gone_stay_while_a_pod_on_another_holds_them() {
        let holdings = [holding("a", &["GPU-0-1", "GPU-0-2"])];
        for pods in [Some(&[("a", 1)][..]), None] {
            let left = inventory(vec![card(1, false)], pods);
            let devices = devices(&left, SHARES, &holdings);
            let healthy = healthy(&devices);
            assert_eq!((devices.len(), healthy.len()), (12, 10));
            assert!(healthy.contains("GPU-0-1") && healthy.contains("GPU-0-2"));
        }
        let over = inventory(vec![card(1, false)], Some(&[]));
        assert_eq!(devices(&over, SHARES, &holdings).len(), 10);
    }

    #[test]
    fn while_nvml_hangs_no_id_is_healthy() {
        let pods = [("a", 0)];
        let mut hangs = inventory(vec![card(0, false)], Some(&pods));
        hangs.nvml_hang = Some("NVML has not answered for 30 s".into());
        let devices = devices(&hangs, SHARES, &[holding("a", &["GPU-0-1"])]);
        assert_eq!(healthy(&devices).len(), 0);
    }
}
