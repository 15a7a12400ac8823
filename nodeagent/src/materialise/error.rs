//! Why an action failed.

use domain::claim::Slot;

use super::journal::JournalError;
use crate::nvml::error::NvmlError;

/// Why an action failed. It is recorded in the state and reported already.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    /// An instance cannot be created.
    #[error("cannot create {} at slice {} of GPU {}: {cause}", slot.profile, slot.start, slot.gpu)]
    Create {
        slot: Box<Slot>,
        cause: Box<CreateError>,
    },
    /// A claim is on an unhealthy GPU.
    #[error("{0}")]
    Rejected(String),
    /// Somebody else created the instance.
    #[error("the instance was not created by Tessera and is not destroyed")]
    Foreign,
    /// An instance cannot be destroyed.
    #[error(transparent)]
    Destroy(#[from] NvmlError),
    /// The mode cannot be changed.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// The GPU cannot be reset.
    #[error(transparent)]
    Reset(#[from] ResetError),
}

/// Why an instance cannot be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// The GPU is not known any more.
    #[error("the GPU is gone")]
    UnknownGpu,
    /// NVML refused.
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    /// The journal cannot be written, so nothing is created.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a mode cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModeError {
    /// Processes have the GPU open.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// NVML refused.
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    /// The mode is pending until a reset, which failed.
    #[error("{cause}; {reset}")]
    Reset {
        cause: NvmlError,
        reset: Box<ResetError>,
    },
    /// The mode is pending although the GPU was reset.
    #[error("{0}; a reset did not help")]
    StillPending(NvmlError),
}

/// Why a GPU cannot be reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResetError {
    /// Processes have the GPU open.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// The settings have no command for it.
    #[error("no reset command is configured")]
    NoCommand,
    /// The command did not start.
    #[error("cannot run {program}: {error}")]
    Start {
        program: String,
        error: std::io::Error,
    },
    /// The command failed.
    #[error("{command}: {output}")]
    Command { command: String, output: String },
    /// NVML cannot be opened after the reset.
    #[error("cannot open NVML again")]
    Reopen,
}

/// Processes have a GPU open.
#[derive(Debug, thiserror::Error)]
#[error("in use by {0}")]
pub(super) struct InUse(pub(super) String);
