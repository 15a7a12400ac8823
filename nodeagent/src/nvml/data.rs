//! What NVML reports, as plain data.

use domain::{gpu::Model, slices::Slices};

/// A GPU as NVML reports it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedGpu {
    /// NVML index.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Minor number of `/dev/nvidia<minor>`.
    pub minor: u32,
    /// NUMA node, where the kernel or NVML knows it.
    pub numa: Option<u32>,
    /// Its product name, memory, and the profiles that it offers.
    pub model: Model,
    /// MIG mode; `None` where the GPU does not support MIG.
    pub mig: Option<MigMode>,
    /// What the driver reports about its condition.
    pub health: Health,
    /// Its GPU instances.
    pub instances: Vec<LiveInstance>,
}

/// A GPU that NVML counts, also one that the settings exclude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGpu {
    /// NVML index.
    pub index: u32,
    /// `GPU-…`; `None`: it was not asked, or did not answer.
    pub uuid: Option<String>,
    /// Where its size comes from.
    pub memory: MemorySource,
}

/// Where the memory size of a GPU comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemorySource {
    /// NVML reports it.
    #[default]
    Nvml,
    /// NVML cannot report it (unified memory); the settings have it.
    Settings,
    /// Nowhere: the GPU can only be given whole.
    Unknown,
}

/// `nvmlDeviceGetMigMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigMode {
    /// In force.
    pub current: bool,
    /// In force after the next GPU reset.
    pub pending: bool,
}

/// A GPU instance as NVML reports it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveInstance {
    /// NVML GPU instance id.
    pub id: u32,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Number of memory slices.
    pub size: u8,
    /// Its compute instances.
    pub compute: Vec<ComputeInstance>,
}

/// A compute instance of a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeInstance {
    /// NVML compute instance id.
    pub id: u32,
    /// `MIG-…`.
    pub uuid: String,
}

impl LiveInstance {
    /// The memory slices that it occupies.
    pub fn slices(&self) -> Slices {
        Slices::span(self.start, self.size)
    }
}

/// What the driver reports about the condition of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The recovery that the driver requests, where it can (field `GET_GPU_RECOVERY_ACTION`, R565 and later).
    pub recovery: Option<Recovery>,
    /// A row of memory could not be remapped: the GPU has to be replaced (`nvmlDeviceGetRemappedRows`).
    pub row_remapping_failed: bool,
}

/// The recovery that the driver requests for a GPU (`nvmlDeviceGpuRecoveryAction_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing.
    None,
    /// A reset of the GPU.
    Reset,
    /// A reboot of the node.
    Reboot,
    /// No more traffic between GPUs; MIG instances have none.
    DrainP2p,
    /// A reset, once the pods on the GPU have ended.
    DrainAndReset,
    /// A value that this agent does not know.
    Other(u32),
}

/// A fault that NVML reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// UUID of the GPU; `None`: NVML did not name it.
    pub gpu: Option<String>,
    /// GPU instance id, where the fault is of one instance alone.
    pub instance: Option<u32>,
    /// What it is.
    pub kind: FaultKind,
}

/// The kinds of faults that NVML reports as events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An error of the driver's list (`nvmlEventTypeXidCriticalError`).
    Xid(u64),
    /// An uncorrectable memory error (`nvmlEventTypeDoubleBitEccError`).
    DoubleBitEcc,
}

/// A process that has a GPU open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Process id.
    pub pid: u32,
    /// Its command, where NVML knows it.
    pub name: String,
}
