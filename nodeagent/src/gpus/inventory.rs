//! What the NVML thread publishes about the GPUs of this node.

use crate::{gpus::state::NodeState, nvml::data::FoundGpu};

/// The state of all GPUs, and what keeps the agent from working on them.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The state after the last action. Unchanged GPUs are shared with the inventory before.
    pub state: NodeState,
    /// All GPUs that NVML counts, also those that the settings exclude.
    pub found: Vec<FoundGpu>,
    /// Why NVML or a GPU did not answer the last survey; `None`: every GPU did, or is published as unhealthy.
    pub nvml_failure: Option<String>,
    /// The call of NVML that has not returned for so long that NVML counts as hanging.
    pub nvml_hang: Option<String>,
    /// Why the driver is left alone: nothing is offered then.
    pub pause: Option<String>,
    /// Why the journal cannot be written: no instance can be created then.
    pub journal_failure: Option<String>,
}

impl Inventory {
    /// The inventory before the first survey.
    pub fn unsurveyed() -> Self {
        Self {
            state: NodeState::default(),
            found: vec![],
            nvml_failure: Some("the first survey is not done yet".to_owned()),
            nvml_hang: None,
            pause: None,
            journal_failure: None,
        }
    }

    /// Whether the GPUs have been surveyed. One that does not answer is no reason to wait for it.
    pub fn is_surveyed(&self) -> bool {
        self.nvml_failure.is_none() || !self.state.gpus.is_empty()
    }

    /// Why a GPU must not be used for new pods; `None`: it is healthy.
    pub fn unhealthy_reason(&self, gpu: &str) -> Option<String> {
        let state = self.state.gpus.get(gpu)?;
        let all = self.pause.as_ref().or(self.nvml_hang.as_ref());
        all.cloned().or_else(|| state.unhealthy_reason())
    }
}

/// A MIG device of a container that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveDevice {
    /// UUID of the GPU.
    pub gpu: String,
    /// Minor number of the GPU.
    pub minor: u32,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// MIG UUID.
    pub uuid: String,
    /// Name of the profile.
    pub profile: String,
    /// Memory in MiB.
    pub memory_mib: u64,
}
