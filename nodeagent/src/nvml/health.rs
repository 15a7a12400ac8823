//! What a card says of its own condition, and who has it open.

use std::ptr;

use nvml_wrapper::{
    enums::device::SampleValue, struct_wrappers::device::FieldValueSample, structs::device::FieldId,
};
use nvml_wrapper_sys::bindings::{self as sys, field_id};

use super::{Cards, Code, NvmlError, call};

/// What a card says of its own condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What the driver wants done, where it can say so (field `GET_GPU_RECOVERY_ACTION`, R565 and later).
    pub recovery: Option<Recovery>,
    /// A row of memory could not be remapped: the card is to be replaced (`nvmlDeviceGetRemappedRows`).
    pub row_failed: bool,
}

/// What the driver wants done with a card (`nvmlDeviceGpuRecoveryAction_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing.
    None,
    /// A reset of the card.
    Reset,
    /// A reboot of the node.
    Reboot,
    /// No more traffic between cards; MIG instances have none.
    DrainP2p,
    /// The pods on it are to end, then a reset.
    DrainAndReset,
    /// Something that this agent does not know.
    Other(u32),
}

impl Recovery {
    fn of(action: u32) -> Self {
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

/// A process that has a card open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its id.
    pub pid: u32,
    /// Its command, where NVML tells.
    pub name: String,
}

impl Cards {
    /// What a card says of its own condition; what the driver cannot say is left out.
    pub(super) fn standing(&self, device: sys::nvmlDevice_t) -> Standing {
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
        Standing {
            recovery: self.recovery(device),
            row_failed: rows.is_ok() && failed != 0,
        }
    }

    fn recovery(&self, device: sys::nvmlDevice_t) -> Option<Recovery> {
        // SAFETY: the handle is of this session.
        let device = unsafe { nvml_wrapper::Device::new(device, &self.nvml) };
        let action = FieldId(field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
        let values = device.field_values_for(&[action]).ok()?;
        let FieldValueSample { value, .. } = values.into_iter().next()?.ok()?;
        match value.ok()? {
            SampleValue::U32(action) => Some(Recovery::of(action)),
            SampleValue::U64(action) => u32::try_from(action).ok().map(Recovery::of),
            _ => None,
        }
    }

    /// The processes that have a card or one of its instances open, but for this one.
    pub fn clients(&self, uuid: &str) -> Result<Vec<Client>, NvmlError> {
        let pids = self.processes_on(self.device(uuid)?)?;
        let others = pids.into_iter().filter(|pid| *pid != std::process::id());
        let named = others.map(|pid| Client {
            pid,
            name: self.nvml.sys_process_name(pid, 128).unwrap_or_default(),
        });
        Ok(named.collect())
    }

    /// Ids of the processes on a card or MIG device (`nvmlDeviceGet…RunningProcesses_v3`).
    pub(super) fn processes_on(&self, device: sys::nvmlDevice_t) -> Result<Vec<u32>, NvmlError> {
        let compute = listed(|count, infos| {
            call!(
                self,
                nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos)
            )
        })?;
        // Not on every card or MIG device.
        let graphics = listed(|count, infos| {
            call!(
                self,
                nvmlDeviceGetGraphicsRunningProcesses_v3(device, count, infos)
            )
        });
        let mut pids = compute;
        pids.extend(graphics.unwrap_or_default());
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

fn listed(
    ask: impl Fn(*mut u32, *mut sys::nvmlProcessInfo_t) -> Result<(), NvmlError>,
) -> Result<Vec<u32>, NvmlError> {
    let mut count = 0;
    match ask(&raw mut count, ptr::null_mut()) {
        Err(error) if error.code() == Some(Code::INSUFFICIENT_SIZE) => {}
        Ok(()) if count == 0 => return Ok(vec![]),
        other => other?,
    }
    // Room for those that start meanwhile.
    count += 8;
    // SAFETY: a plain C struct, for which zeros are a value.
    let blank: sys::nvmlProcessInfo_t = unsafe { std::mem::zeroed() };
    let mut infos = vec![blank; count as usize];
    ask(&raw mut count, infos.as_mut_ptr())?;
    let infos = infos.iter().take(count as usize);
    Ok(infos.map(|info| info.pid).collect())
}
