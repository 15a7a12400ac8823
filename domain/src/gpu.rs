//! What a GPU offers and which instances it has: the inventory that a node agent publishes.

use serde::{Deserialize, Serialize};

use crate::{demand::ContainerKind, mode::VgpuMode, slices::Slices};

/// A GPU instance profile as NVML offers it on one model of GPU.
///
/// Read from `nvmlDeviceGetGpuInstanceProfileInfo` and
/// `nvmlDeviceGetGpuInstancePossiblePlacements_v2`; never from a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// The profile's name, `1g.10gb`; unique on a GPU.
    pub profile: String,
    /// NVML's id of the profile on this GPU (`info.id`; not the `NVML_GPU_INSTANCE_PROFILE_*` constant).
    pub profile_id: u32,
    /// Memory of an instance, MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors of an instance.
    pub multiprocessors: u32,
    /// Compute slices of an instance.
    pub compute_slices: u8,
    /// Memory slices of an instance: the `size` of its placements.
    pub size: u8,
    /// Memory slices at which an instance may start.
    pub starts: Vec<u8>,
    /// How many instances fit on an empty GPU.
    pub max_count: u8,
}

impl Offer {
    /// Whether the profile is a plain share of memory and compute, without attribute (`+me`, `+gfx`, `-me`).
    ///
    /// An attribute asks for engines that only one or few instances per GPU can have, so such a
    /// profile is never chosen for a pod that did not name it.
    pub fn is_plain(&self) -> bool {
        !self.profile.contains(['+', '-'])
    }

    /// The size in the profile's name in MiB: `1g.10gb` is sold as 10 GiB, whatever the GPU gives.
    pub fn nominal_mib(&self) -> Option<u64> {
        let (_, gb) = self.profile.split_once('.')?;
        let digits = gb
            .find(|c: char| !c.is_ascii_digit())
            .map_or(gb, |end| &gb[..end]);
        digits.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The legal placements, as sets of slices.
    pub fn windows(&self) -> impl Iterator<Item = Slices> + '_ {
        self.starts
            .iter()
            .map(|&start| Slices::span(start, self.size))
    }
}

/// One model of GPU and all that it offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// NVML's name of the model, `NVIDIA A100-SXM4-80GB`.
    pub name: String,
    /// Memory of the whole GPU, MiB.
    pub memory_mib: u64,
    /// Memory slices of the GPU; 0 where it cannot do MIG.
    pub memory_slices: u8,
    /// Compute slices of the GPU; 0 where it cannot do MIG.
    pub compute_slices: u8,
    /// GPU instance profiles; empty where the GPU cannot do MIG.
    #[serde(default)]
    pub offers: Vec<Offer>,
}

impl Model {
    /// The offer of that name.
    pub fn offer(&self, profile: &str) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.profile == profile)
    }

    /// The plain offer that takes the whole GPU.
    pub fn whole(&self) -> Option<&Offer> {
        self.offers
            .iter()
            .filter(|offer| offer.is_plain())
            .max_by_key(|offer| (offer.size, offer.compute_slices, offer.memory_mib))
    }

    /// The share of the GPU's multiprocessors that an instance has, in percent, rounded up as `HAMi` does.
    pub fn cores_percent(&self, offer: &Offer) -> u32 {
        let all = self
            .offers
            .iter()
            .map(|o| o.multiprocessors)
            .max()
            .unwrap_or(0);
        (100 * offer.multiprocessors)
            .checked_div(all)
            .map_or(0, |floor| {
                floor + u32::from(floor * all < 100 * offer.multiprocessors)
            })
    }
}

/// Who uses an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstanceState {
    /// The agent is creating it for a claim.
    Creating,
    /// A container uses it, or its claim waits for the container.
    InUse,
    /// Nobody uses it; its slices are free.
    Idle,
    /// Tessera did not create it; its slices are not available.
    Foreign,
    /// It should be gone but cannot be destroyed; its slices are not available.
    Quarantined,
}

impl InstanceState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Creating,
        Self::InUse,
        Self::Idle,
        Self::Foreign,
        Self::Quarantined,
    ];
}

/// A GPU instance that exists (NVML: GI, with its one compute instance).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Name of its profile.
    pub profile: String,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// NVML's GPU instance id: a key, not a position.
    pub gpu_instance_id: u32,
    /// MIG UUID of its compute instance; absent while that does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Who uses it.
    pub state: InstanceState,
    /// `namespace/name` of the pod that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// UID of that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The container that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Why it is foreign or quarantined, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Instance {
    /// The memory slices that it takes.
    pub fn slices(&self) -> Slices {
        Slices::span(self.start, self.size)
    }
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// NVML index; shifts when GPUs are added or lost.
    pub index: u32,
    /// NVML UUID, `GPU-…`: the GPU's identity.
    pub uuid: String,
    /// Name of its [`Model`].
    pub model: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The mode that the GPU works in now.
    pub mode: VgpuMode,
    /// The mode that the GPU changes to when it is idle; until then it takes no new pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing_to: Option<VgpuMode>,
    /// Whether the GPU, when idle, changes its mode for a pod that fits nowhere else (node mode `auto`).
    #[serde(
        rename = "byDemand",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub auto_mode: bool,
    /// Why the GPU must not be used; absent when it is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
    /// How many software shares the GPU takes at most (`deviceSplitCount`).
    #[serde(rename = "shares")]
    pub max_shares: u32,
    /// NUMA node, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// The GPU instances on it.
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// The software shares of it that pods have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_shares: Vec<UsedShare>,
}

/// A software share of a GPU that a container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsedShare {
    /// `namespace/name` of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// The container.
    pub container: String,
    /// When it runs: what an ordinary init container has is not in addition to the others' shares.
    #[serde(default, skip_serializing_if = "is_app")]
    pub kind: ContainerKind,
    /// Memory limit, MiB.
    pub memory_mib: u64,
    /// Compute limit, percent; 0 is no limit.
    pub cores: u32,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde calls"
)]
fn is_app(kind: &ContainerKind) -> bool {
    *kind == ContainerKind::App
}

#[cfg(test)]
mod tests {
    use crate::fixtures::{a30, a100_80gb};

    #[test]
    fn the_nominal_size_is_in_the_name() {
        let model = a100_80gb();
        assert_eq!(model.offer("1g.10gb").unwrap().nominal_mib(), Some(10_240));
        assert_eq!(
            model.offer("1g.10gb+me").unwrap().nominal_mib(),
            Some(10_240)
        );
        assert!(!model.offer("1g.10gb+me").unwrap().is_plain());
    }

    #[test]
    fn cores_are_the_share_of_multiprocessors_rounded_up() {
        let model = a100_80gb();
        let percent = |profile| model.cores_percent(model.offer(profile).unwrap());
        assert_eq!(
            ["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"].map(percent),
            [15, 29, 43, 58, 100]
        );
    }

    #[test]
    fn the_whole_gpu_is_the_largest_plain_offer() {
        assert_eq!(a100_80gb().whole().unwrap().profile, "7g.80gb");
        assert_eq!(a30().whole().unwrap().profile, "4g.24gb");
    }
}
