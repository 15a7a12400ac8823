//! The condition of a GPU as the driver reports it.

use nvml_wrapper::{
    enums::device::SampleValue, struct_wrappers::device::FieldValueSample, structs::device::FieldId,
};
use nvml_wrapper_sys::bindings::{self as sys, field_id};

use super::{
    data::{Health, Recovery},
    error::call,
    session::Session,
};

impl Recovery {
    fn from_nvml(action: u32) -> Self {
        match action {
            sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NONE => Self::None,
            sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_GPU_RESET => Self::Reset,
            sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NODE_REBOOT => Self::Reboot,
            sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_P2P => Self::DrainP2p,
            sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET => {
                Self::DrainAndReset
            }
            other => Self::Other(other),
        }
    }
}

impl Session {
    /// The condition of a GPU; what the driver cannot report is left out.
    pub(super) fn health(&self, device: sys::nvmlDevice_t) -> Health {
        let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
        let rows = call!(
            self,
            nvmlDeviceGetRemappedRows(
                device,
                &raw mut corrected,
                &raw mut uncorrected,
                &raw mut pending,
                &raw mut failed
            )
        );
        Health {
            recovery: self.recovery(device),
            row_remapping_failed: rows.is_ok() && failed != 0,
        }
    }

    fn recovery(&self, device: sys::nvmlDevice_t) -> Option<Recovery> {
        // SAFETY: the handle is of this session.
        let device = unsafe { nvml_wrapper::Device::new(device, &self.nvml) };
        let action = FieldId(field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
        let values = device.field_values_for(&[action]).ok()?;
        let FieldValueSample { value, .. } = values.into_iter().next()?.ok()?;
        match value.ok()? {
            SampleValue::U32(action) => Some(Recovery::from_nvml(action)),
            SampleValue::U64(action) => u32::try_from(action).ok().map(Recovery::from_nvml),
            _ => None,
        }
    }
}
