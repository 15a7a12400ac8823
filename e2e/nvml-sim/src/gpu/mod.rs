//! A simulated GPU: its state, and by chapter the rules of MIG and the codes for breaking them. No I/O.

mod compute_instances;
pub(crate) mod gpu_instances;
mod mode;
mod uuid;

use serde::{Deserialize, Serialize};

use crate::model::{Model, model};

/// `NVML_GPU_RECOVERY_ACTION_NONE`.
pub const RECOVER_NOTHING: u32 = 0;
/// `NVML_GPU_RECOVERY_ACTION_GPU_RESET`.
pub const RECOVER_BY_RESET: u32 = 1;
/// `NVML_GPU_RECOVERY_ACTION_NODE_REBOOT`.
pub const RECOVER_BY_REBOOT: u32 = 2;

/// A simulated GPU.
#[allow(clippy::struct_excessive_bools, reason = "facts that are independent")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Key of its model.
    pub model: String,
    /// Chip and serial data that the UUIDs are made of.
    pub chip: u16,
    /// Per-device identifier, likewise.
    pub pdi: u64,
    /// Minor number.
    pub minor: u32,
    /// Whether physical positions are the logical ones with the halves swapped.
    pub mirrored: bool,
    /// MIG mode in force.
    pub mig: bool,
    /// MIG mode after the next reset.
    pub pending: bool,
    /// GPU instances.
    pub instances: Vec<Instance>,
    /// Number of instances that were ever made; a handle is valid for one of them only.
    pub serial: u32,
    /// Whether it has fallen off the bus: every call on it is `GPU_IS_LOST`.
    #[serde(default)]
    pub lost: bool,
    /// `nvmlDeviceGpuRecoveryAction_t`.
    #[serde(default)]
    pub recovery_action: u32,
    /// Rows of its memory that were remapped.
    #[serde(default)]
    pub remapped: Remapped,
}

/// Rows of memory that were replaced by spare ones after errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remapped {
    /// Rows remapped after correctable errors.
    pub correctable: u32,
    /// Rows remapped after uncorrectable errors.
    pub uncorrectable: u32,
    /// Whether one takes effect only at the next reset.
    pub pending: bool,
    /// Whether one failed: no spare row was left.
    pub failed: bool,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Physical id.
    pub id: u32,
    /// NVML profile id.
    pub profile_id: u32,
    /// First memory slice.
    pub start: u8,
    /// Memory slices.
    pub size: u8,
    /// Which one it is of all that were ever made.
    pub serial: u32,
    /// Compute instances.
    pub compute: Vec<Compute>,
}

/// A compute instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// Id in its GPU instance.
    pub id: u32,
    /// Constant and id of its profile.
    pub profile: u32,
    /// Compute slices.
    pub slices: u8,
    /// First compute slice in the GPU instance.
    pub start: u8,
    /// Multiprocessors.
    pub sm: u32,
}

impl Gpu {
    /// The GPU's model.
    pub fn model(&self) -> &'static Model {
        model(&self.model).expect("GPUs are made of known models only")
    }

    /// The instance of that id.
    pub fn instance(&self, id: u32) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    /// All MIG devices in the order of their indices: by GPU instance id, then compute instance id.
    pub fn mig_devices(&self) -> impl Iterator<Item = (&Instance, &Compute)> {
        self.instances
            .iter()
            .flat_map(|i| i.compute.iter().map(move |c| (i, c)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Gpu, RECOVER_NOTHING, Remapped};

    /// A GPU of that model in MIG mode, without instances.
    pub(crate) fn gpu(key: &str) -> Gpu {
        Gpu {
            model: key.to_owned(),
            chip: 0x170,
            pdi: 0x0123_4567_89ab_cdef,
            minor: 0,
            mirrored: false,
            mig: true,
            pending: true,
            instances: vec![],
            serial: 0,
            lost: false,
            recovery_action: RECOVER_NOTHING,
            remapped: Remapped::default(),
        }
    }
}
