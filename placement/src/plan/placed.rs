//! The devices that a planning has found so far.

use std::collections::BTreeMap;

use domain::{
    claim::{ClaimedDevice, Slot},
    slices::Slices,
};

/// One device to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    /// Index of the container in the demand.
    pub(super) container: usize,
    /// Number of the device in the container.
    pub(super) device: usize,
}

/// Devices by the need that they serve.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed(BTreeMap<Need, ClaimedDevice>);

impl Placed {
    pub(super) fn insert(&mut self, need: Need, device: ClaimedDevice) {
        self.0.insert(need, device);
    }

    pub(super) fn remove(&mut self, need: Need) {
        self.0.remove(&need);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Need, &ClaimedDevice)> {
        self.0.iter().map(|(need, device)| (*need, device))
    }

    /// The devices of a container.
    pub(super) fn of_container(&self, container: usize) -> impl Iterator<Item = &ClaimedDevice> {
        let first = |container| Need {
            container,
            device: 0,
        };
        let range = self.0.range(first(container)..first(container + 1));
        range.map(|(_, device)| device)
    }

    /// Whether a container has a device on a GPU.
    pub(super) fn is_on(&self, container: usize, gpu: &str) -> bool {
        self.of_container(container)
            .any(|device| device.gpu() == gpu)
    }

    /// How many slices of a device the pod does not hold yet.
    pub(super) fn new_slices(&self, device: &ClaimedDevice) -> u32 {
        let Some(slot) = device.slot() else { return 0 };
        let slots = self.0.values().filter_map(ClaimedDevice::slot);
        let held: Slices = slots
            .filter(|held| held.gpu == slot.gpu)
            .map(Slot::slices)
            .collect();
        slot.slices().minus(held).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(gpu: &str, start: u8, size: u8) -> ClaimedDevice {
        ClaimedDevice::Mig(Slot {
            gpu: gpu.to_owned(),
            profile: String::new(),
            start,
            size,
            mem: 1,
        })
    }

    #[test]
    fn devices_are_found_by_container_and_slices_are_counted_once() {
        let mut placed = Placed::default();
        let need = |container, device| Need { container, device };
        placed.insert(need(0, 0), slot("a", 0, 2));
        placed.insert(need(0, 1), slot("b", 0, 2));
        placed.insert(need(1, 0), slot("a", 2, 1));
        assert_eq!(placed.of_container(0).count(), 2);
        assert!(placed.is_on(1, "a") && !placed.is_on(1, "b"));
        assert_eq!(placed.new_slices(&slot("a", 0, 4)), 1);
        placed.remove(need(0, 0));
        assert_eq!(placed.new_slices(&slot("a", 0, 4)), 3);
    }
}
