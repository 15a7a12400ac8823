//! What the agent can do with NVML.

use std::fmt;

use domain::{claim::Slot, mode::VgpuMode};

use crate::gpus::record::ContainerRef;

/// One thing to do with NVML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Create an instance for a claim.
    Create {
        /// The container that gets it.
        container: ContainerRef,
        /// Where, and of which profile.
        slot: Slot,
    },
    /// Record that an instance cannot be created for a claim because its GPU is unhealthy.
    RejectClaim {
        /// The container that would get it.
        container: ContainerRef,
        /// Where, and of which profile.
        slot: Slot,
        /// Why the GPU is unhealthy.
        reason: String,
    },
    /// Destroy an instance of ours that nobody has.
    Destroy {
        /// UUID of the GPU.
        gpu: String,
        /// GPU instance id.
        id: u32,
    },
    /// Check whether processes still run on an instance without a pod.
    CheckProcesses {
        /// UUID of the GPU.
        gpu: String,
        /// GPU instance id.
        id: u32,
    },
    /// Change the mode of a GPU.
    SetMode {
        /// UUID of the GPU.
        gpu: String,
        /// The new mode.
        mode: VgpuMode,
    },
    /// Reset an idle GPU because it is unhealthy.
    Reset {
        /// UUID of the GPU.
        gpu: String,
    },
    /// Offer a GPU again after its creation back-off.
    EndBackoff {
        /// UUID of the GPU.
        gpu: String,
    },
}

/// What the agent is doing, for logs and the report of a call that hangs.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { container, slot } => write!(
                f,
                "creating {} at slice {} of GPU {} for container {} of pod {}",
                slot.profile, slot.start, slot.gpu, container.container, container.pod
            ),
            Self::RejectClaim {
                container, slot, ..
            } => {
                write!(
                    f,
                    "rejecting a claim of pod {} on GPU {}",
                    container.pod, slot.gpu
                )
            }
            Self::Destroy { gpu, id } => write!(f, "destroying GPU instance {id} of GPU {gpu}"),
            Self::CheckProcesses { gpu, id } => {
                write!(f, "checking GPU instance {id} of GPU {gpu} for processes")
            }
            Self::SetMode { gpu, mode } => write!(f, "changing GPU {gpu} to mode {mode}"),
            Self::Reset { gpu } => write!(f, "resetting GPU {gpu}"),
            Self::EndBackoff { gpu } => write!(f, "offering GPU {gpu} again"),
        }
    }
}
