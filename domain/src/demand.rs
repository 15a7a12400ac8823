//! What a pod asks for, container by container.

use crate::mode::VgpuMode;

/// When a container of a pod runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerKind {
    /// Before the application containers, alone, to its end.
    Init,
    /// An init container with `restartPolicy: Always`: from its turn to the pod's end (KEP-753).
    Sidecar,
    /// With all other application containers.
    #[default]
    App,
}

/// Memory of each device of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// All of the GPU.
    Whole,
    /// At least so many MiB.
    Mib(u64),
    /// At least so many percent of the GPU's memory, 1 to 100.
    Percent(u32),
}

/// What one container asks for; containers without GPU have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDemand {
    /// The container's name.
    pub name: String,
    /// When it runs.
    pub kind: ContainerKind,
    /// How many devices.
    pub count: u32,
    /// Memory of each device.
    pub memory: Memory,
    /// Percent of the GPU's compute that each device must have at least, 0 to 100.
    pub cores: u32,
}

/// Whether to fill what is in use or to use what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The fullest first.
    Binpack,
    /// The emptiest first.
    Spread,
}

/// What a pod asks for; by default nothing, of no preference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The mode that the user insists on.
    pub mode: Option<VgpuMode>,
    /// Containers with GPU, in the order in which they start.
    pub containers: Vec<ContainerDemand>,
    /// Which GPUs the pod accepts.
    pub gpus: GpuSelector,
    /// Preference for nodes; without one the least loss of capacity decides.
    pub node_policy: Option<Policy>,
    /// Preference for GPUs on a node.
    pub gpu_policy: Option<Policy>,
    /// The node that the webhook hinted at.
    pub hint: Option<String>,
    /// Whether a device may have a larger memory size than the smallest sufficient one when that is full.
    pub allow_larger: bool,
}

/// Which GPUs a pod accepts, by the annotations `use-gputype`, `nouse-gputype`, `use-gpuuuid` and `nouse-gpuuuid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuSelector {
    /// Parts of model names, lower case; empty: any.
    pub types: Vec<String>,
    /// Parts of model names that are refused, lower case.
    pub not_types: Vec<String>,
    /// UUIDs; empty: any.
    pub uuids: Vec<String>,
    /// UUIDs that are refused.
    pub not_uuids: Vec<String>,
}

impl Memory {
    /// The MiB that are asked for of a GPU that has so many.
    pub fn mib_of(self, gpu_mib: u64) -> u64 {
        match self {
            Self::Whole => gpu_mib,
            Self::Mib(mib) => mib,
            Self::Percent(percent) => (gpu_mib * u64::from(percent)).div_ceil(100),
        }
    }
}

impl GpuSelector {
    /// Whether the pod accepts a GPU.
    pub fn accepts(&self, model: &str, uuid: &str) -> bool {
        let model = model.to_lowercase();
        let has = |list: &[String]| list.iter().any(|part| model.contains(part));
        (self.types.is_empty() || has(&self.types))
            && !has(&self.not_types)
            && (self.uuids.is_empty() || self.uuids.iter().any(|item| item == uuid))
            && !self.not_uuids.iter().any(|item| item == uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_percent_is_rounded_up() {
        assert_eq!(Memory::Whole.mib_of(24_576), 24_576);
        assert_eq!(Memory::Mib(8_000).mib_of(24_576), 8_000);
        assert_eq!(Memory::Percent(33).mib_of(24_576), 8_111);
    }

    #[test]
    fn gpus_are_selected_as_in_hami() {
        let list = |text: &str| vec![text.to_owned()];
        let selector = GpuSelector {
            types: vec!["a100".to_owned(), "h100".to_owned()],
            not_uuids: list("GPU-2"),
            ..GpuSelector::default()
        };
        assert!(selector.accepts("NVIDIA A100-SXM4-80GB", "GPU-1"));
        assert!(!selector.accepts("NVIDIA A100-SXM4-80GB", "GPU-2"));
        assert!(!selector.accepts("NVIDIA A30", "GPU-1"));
    }
}
