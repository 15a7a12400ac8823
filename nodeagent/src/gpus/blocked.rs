//! Why a container's slot is not available now.

use domain::slices::Slices;

/// Why a container's slot is not available now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The agent's watch has not delivered the pod yet.
    #[error("pod {0} is not known to the agent yet")]
    UnknownPod(String),
    /// The GPU is about to change to MIG mode.
    #[error("GPU {0} is not in MIG mode yet")]
    NotInMigMode(String),
    /// The GPU must not be used.
    #[error("GPU {gpu} is unhealthy: {reason}")]
    Unhealthy {
        /// UUID of the GPU.
        gpu: String,
        /// Why.
        reason: String,
    },
    /// The GPU is not one of this node, or the settings exclude it.
    #[error("GPU {0} is not on this node")]
    UnknownGpu(String),
    /// Another pod's or a foreign instance is there.
    #[error("slices {slices} of GPU {gpu} are occupied by {by}")]
    Occupied {
        /// UUID of the GPU.
        gpu: String,
        /// The slices of the slot.
        slices: Slices,
        /// Who has them.
        by: String,
    },
    /// The instance could not be created or its place not be cleared.
    #[error("{0}")]
    Failed(String),
    /// The driver must be left alone.
    #[error("{0}")]
    Paused(String),
    /// NVML took longer than the caller can wait.
    #[error("the instances were not ready after {0} s; NVML may be slow")]
    TimedOut(u64),
    /// The agent is about to end.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

impl Blocked {
    /// Whether it is likely to pass while the caller waits.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Occupied { .. } | Self::UnknownPod(_) | Self::NotInMigMode(_)
        )
    }
}
