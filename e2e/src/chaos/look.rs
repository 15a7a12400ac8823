//! What one look at the cluster saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use domain::claim::Slot;

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) node: String,
    /// UUID of the GPU.
    pub(super) gpu: String,
    /// First memory slice.
    pub(super) start: u8,
    /// Memory slices.
    pub(super) size: u8,
}

/// An instance as it is behind NVML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    /// GPU instance id and serial number: no two that ever were have the same.
    pub(super) identity: (u32, u32),
    /// Name of its profile.
    pub(super) profile: String,
    /// UUIDs of its compute instances.
    pub(super) compute: Vec<String>,
}

/// A pod with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) node: String,
    /// The instances that it claims.
    pub(super) slots: Vec<Slot>,
    /// Its containers, when all run and did so before and after the look at the GPUs.
    pub(super) running: Option<Vec<Container>>,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// Id, another after each restart.
    pub(super) id: String,
    /// UUIDs of the devices that it was created with, where that can be seen.
    pub(super) devices: Option<BTreeSet<String>>,
}

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// When, since the start.
    pub(super) at: Duration,
    pub(super) pods: Vec<Pod>,
    /// What was claimed just before the look at the GPUs; `pods` is what came after it.
    pub(super) claimed: BTreeSet<Place>,
    pub(super) instances: BTreeMap<Place, Instance>,
    /// What the nodes publish whose agents could do so.
    pub(super) published: BTreeMap<String, BTreeSet<Place>>,
}

impl Pod {
    /// Where its instances should be.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.slots.iter().map(|slot| Place::of(&self.node, slot))
    }
}

impl Place {
    pub(super) fn of(node: &str, slot: &Slot) -> Self {
        Self {
            node: node.to_owned(),
            gpu: slot.gpu.clone(),
            start: slot.start,
            size: slot.size,
        }
    }

    /// Its GPU: node and UUID.
    pub(super) fn gpu_key(&self) -> (String, String) {
        (self.node.clone(), self.gpu.clone())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            gpu,
            start,
            size,
        } = self;
        write!(f, "slices {start}+{size} of {gpu} on {node}")
    }
}
