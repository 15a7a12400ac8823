//! Processes on devices.

use std::{ffi::c_uint, fs::File, sync::Mutex};

use nvml_wrapper_sys::bindings::nvmlProcessInfo_t;

use super::{
    declare::device,
    handle::{GPU, MIG},
    out::put_list,
};
use crate::{code::UNKNOWN, process::DeviceProcess};

device!(nvmlDeviceGetComputeRunningProcesses_v3, &[GPU, MIG], (count: *mut c_uint, out: *mut nvmlProcessInfo_t), |handle, store, state| {
    let gpu = handle.gpu(state)?;
    let of_device: Vec<DeviceProcess> = store
        .device_processes()
        .into_iter()
        .filter(|process| process.gpu == handle.index())
        .filter(|process| match process.instance {
            Some((gi, serial, ci)) if handle.kind == MIG => {
                (gi, ci) == (handle.gi.into(), handle.ci.into())
                    && gpu.instance(gi).is_some_and(|instance| instance.serial == serial)
            }
            _ => handle.kind == GPU,
        })
        .collect();
    // SAFETY: a plain C struct, for which zeros are a value.
    let blank: nvmlProcessInfo_t = unsafe { std::mem::zeroed() };
    let infos: Vec<_> = of_device.iter().map(|process| nvmlProcessInfo_t { pid: process.pid, ..blank }).collect();
    put_list(out, count, &infos, false)
});

device!(nvmlDeviceGetGraphicsRunningProcesses_v3, &[GPU, MIG], (count: *mut c_uint, out: *mut nvmlProcessInfo_t), |_handle, _store, _state| {
    put_list(out, count, &[], false)
});

/// Locks that this process holds for its life.
static HELD: Mutex<Vec<File>> = Mutex::new(vec![]);

// Not of NVML: what the first CUDA call of a process does. The process is on the device until it ends.
device!(nvmlSimHold, &[GPU, MIG], (), |handle, store, state| {
    let instance = if handle.kind == MIG {
        let (instance, compute) = handle.compute(state)?;
        Some((instance.id, instance.serial, compute.id))
    } else {
        None
    };
    let process = DeviceProcess {
        pid: std::process::id(),
        gpu: handle.index(),
        instance,
    };
    let file = store.hold(&process).map_err(|_| UNKNOWN)?;
    HELD.lock().map_err(|_| UNKNOWN)?.push(file);
    Ok(())
});
