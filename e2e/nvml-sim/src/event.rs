//! Events of GPUs, as NVML reports them.

use serde::{Deserialize, Serialize};

/// `nvmlEventTypeSingleBitEccError`.
pub const SINGLE_BIT_ECC: u64 = 1;
/// `nvmlEventTypeDoubleBitEccError`.
pub const DOUBLE_BIT_ECC: u64 = 2;
/// `nvmlEventTypeXidCriticalError`.
pub const XID: u64 = 8;
/// The kinds that happen to a simulated GPU.
pub const KINDS: u64 = SINGLE_BIT_ECC | DOUBLE_BIT_ECC | XID;

/// Something that happened to a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which one it is of all that ever happened; [`crate::state::State::raise`] gives it.
    pub number: u64,
    /// Index of the GPU.
    pub gpu: usize,
    /// One of [`KINDS`].
    pub kind: u64,
    /// The XID of an [`XID`].
    pub data: u64,
    /// The GPU instance that it is attributed to.
    pub gi: Option<u32>,
    /// The compute instance that it is attributed to.
    pub ci: Option<u32>,
}
