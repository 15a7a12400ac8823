//! The status of the node's `GpuNode` object. Pure.

use std::collections::BTreeMap;

use domain::{
    config::NodeConfig,
    status::{Condition, GpuNodeStatus},
};
use k8s_openapi::api::core::v1::Node;

use crate::{
    gpus::inventory::Inventory,
    kubelet::registration::Registration,
    publish::{conditions, gpus, setting_mistakes},
};

/// The whole status. Conditions keep the time of their last change from those published `before`.
pub(crate) fn status(
    inventory: &Inventory,
    node: Option<&Node>,
    settings: &NodeConfig,
    max_shares: u32,
    registration: Registration,
    before: &[Condition],
) -> GpuNodeStatus {
    let gpus = gpus::published(inventory, max_shares);
    let mut models = BTreeMap::new();
    for state in inventory.state.gpus.values() {
        let model = &state.surveyed.model;
        models.entry(&model.name).or_insert(model);
    }
    let now = jiff::Timestamp::now();
    let mut conditions = conditions::current(inventory, node, registration, &gpus);
    conditions.push(setting_mistakes::condition(inventory, node, settings));
    let conditions = conditions.into_iter();
    GpuNodeStatus {
        mode: inventory.state.wanted_modes.node,
        models: models.into_values().cloned().collect(),
        gpus,
        conditions: conditions.map(|known| known.since(before, &now)).collect(),
        ..GpuNodeStatus::default()
    }
    .with_summary()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods that would come too early or too late are not scheduled to the node.
    #[test]
    fn the_scheduler_learns_whether_kubelet_knows_the_devices() {
        for (registration, reason) in [
            (Registration::Missing, "NotRegistered"),
            (Registration::Ending, "AgentEnds"),
            (Registration::Registered, "Registered"),
        ] {
            let status = status(
                &Inventory::unsurveyed(),
                None,
                &NodeConfig::default(),
                10,
                registration,
                &[],
            );
            let is_registered = registration == Registration::Registered;
            assert_eq!(status.is_registered(), is_registered, "{registration:?}");
            let mut conditions = status.conditions.iter();
            assert!(conditions.any(|known| known.kind == "Registered" && known.reason == reason));
        }
    }
}
