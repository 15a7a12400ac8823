//! The processes on GPUs and instances.

use std::ptr;

use nvml_wrapper_sys::bindings as sys;

use super::{
    data::{Client, LiveInstance},
    error::{Code, NvmlError, call},
    session::Session,
};

impl Session {
    /// The processes that have a GPU or one of its instances open, except this one.
    pub(crate) fn clients(&self, uuid: &str) -> Result<Vec<Client>, NvmlError> {
        let pids = self.processes_on(self.device(uuid)?)?;
        let others = pids.into_iter().filter(|pid| *pid != std::process::id());
        let named = others.map(|pid| Client {
            pid,
            name: self.nvml.sys_process_name(pid, 128).unwrap_or_default(),
        });
        Ok(named.collect())
    }

    /// Ids of the processes on an instance.
    pub(crate) fn processes(
        &self,
        uuid: &str,
        instance: &LiveInstance,
    ) -> Result<Vec<u32>, NvmlError> {
        let gi = self.gpu_instance(uuid, instance.id)?;
        let mut pids = Vec::new();
        for compute in &instance.compute {
            let mut ci = ptr::null_mut();
            call!(
                self,
                nvmlGpuInstanceGetComputeInstanceById(gi, compute.id, &raw mut ci)
            )?;
            // SAFETY: a plain C struct, for which zeros are a value.
            let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
            call!(self, nvmlComputeInstanceGetInfo_v2(ci, &raw mut info))?;
            pids.extend(self.processes_on(info.device)?);
        }
        Ok(pids)
    }

    /// Ids of the processes on a GPU or MIG device (`nvmlDeviceGet…RunningProcesses_v3`).
    pub(super) fn processes_on(&self, device: sys::nvmlDevice_t) -> Result<Vec<u32>, NvmlError> {
        let compute = listed(|count, infos| {
            call!(
                self,
                nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos)
            )
        })?;
        // Not every GPU and MIG device supports this.
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

/// Calls a function that lists processes: once for their number, once for the list.
fn listed(
    call: impl Fn(*mut u32, *mut sys::nvmlProcessInfo_t) -> Result<(), NvmlError>,
) -> Result<Vec<u32>, NvmlError> {
    let mut count = 0;
    match call(&raw mut count, ptr::null_mut()) {
        Err(error) if error.code() == Some(Code::INSUFFICIENT_SIZE) => {}
        Ok(()) if count == 0 => return Ok(vec![]),
        other => other?,
    }
    // Processes may start between the two calls.
    count += 8;
    // SAFETY: a plain C struct, for which zeros are a value.
    let blank: sys::nvmlProcessInfo_t = unsafe { std::mem::zeroed() };
    let mut infos = vec![blank; count as usize];
    call(&raw mut count, infos.as_mut_ptr())?;
    let infos = infos.iter().take(count as usize);
    Ok(infos.map(|info| info.pid).collect())
}
