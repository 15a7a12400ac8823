//! What the journal records about an instance. Its file is the business of `materialise::journal`.

use serde::{Deserialize, Serialize};

/// A GPU instance of ours that should be or is on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Number of this creation. Never reused, unlike UUIDs and instance ids.
    pub generation: u64,
    /// UUID of the GPU.
    pub gpu: String,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Number of memory slices.
    pub size: u8,
    /// NVML GPU instance id, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// NVML compute instance id, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance: Option<u32>,
    /// The container that has it or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<ContainerRef>,
}

/// A container to which an instance was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    /// UID of the pod.
    pub uid: String,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
}
