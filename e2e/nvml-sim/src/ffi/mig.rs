//! MIG mode, and MIG devices by index.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceAttributes_t};

use super::{
    access::{device_nodes, privileged, sees_mig},
    call::{faulty, locked},
    declare::device,
    handle::{GPU, Handle, MIG},
    out::put,
};
use crate::{
    code::{Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, UNKNOWN},
    fault::Action,
};

device!(nvmlDeviceGetMigMode, &[GPU], (current: *mut c_uint, pending: *mut c_uint), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    put(current, gpu.mig.into())?;
    put(pending, gpu.pending.into())
});

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceSetMigMode(
    device: nvmlDevice_t,
    mode: c_uint,
    activation: *mut Code,
) -> Code {
    let handle = match Handle::unpack(device, &[GPU, MIG]) {
        Ok(handle) => handle,
        Err(code) => return code,
    };
    let index = handle.index();
    faulty("nvmlDeviceSetMigMode", Some(index), |store, fault| {
        locked(store, |state| {
            let gpu = handle.gpu_mut(state)?;
            if handle.kind == MIG {
                return Err(NOT_SUPPORTED);
            }
            privileged()?;
            if mode > 1 || activation.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            if let Some(Action::Activation(code)) = fault {
                gpu.pending = mode == 1;
                return put(activation, code);
            }
            let held = store
                .device_processes()
                .iter()
                .any(|process| process.gpu == index);
            put(activation, gpu.set_mig(mode == 1, held)?)
        })
    })
}

device!(nvmlDeviceGetMaxMigDeviceCount, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    put(out, if gpu.mig { gpu.model().compute_slices.into() } else { 0 })
});

device!(nvmlDeviceGetMigDeviceHandleByIndex, &[GPU], (index: c_uint, out: *mut nvmlDevice_t), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    let dev = device_nodes();
    let mut seen = gpu.mig_devices().filter(|(i, c)| sees_mig(dev.as_deref(), gpu, i.id, c.id));
    let (instance, compute) = seen.nth(index as usize).ok_or(NOT_FOUND)?;
    put(out, Handle::new(MIG, handle.index(), instance.id, compute.id, 0).pack())
});

device!(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, &[MIG], (out: *mut nvmlDevice_t), |handle, _store, _state| {
    put(out, Handle::new(GPU, handle.index(), 0, 0, 0).pack())
});

device!(nvmlDeviceIsMigDeviceHandle, &[GPU, MIG], (out: *mut c_uint), |handle, _store, _state| {
    put(out, (handle.kind == MIG).into())
});

device!(nvmlDeviceGetGpuInstanceId, &[MIG], (out: *mut c_uint), |handle, _store, _state| put(out, handle.gi.into()));

device!(nvmlDeviceGetComputeInstanceId, &[MIG], (out: *mut c_uint), |handle, _store, _state| put(out, handle.ci.into()));

device!(nvmlDeviceGetAttributes_v2, &[MIG], (out: *mut nvmlDeviceAttributes_t), |handle, _store, state| {
    let (instance, compute) = handle.compute(state)?;
    let profile = handle.gpu(state)?.model().by_id(instance.profile_id).ok_or(UNKNOWN)?;
    let [copy, decoder, encoder, jpeg, ofa] = profile.engines;
    put(out, nvmlDeviceAttributes_t {
        multiprocessorCount: compute.sm,
        sharedCopyEngineCount: copy,
        sharedDecoderCount: decoder,
        sharedEncoderCount: encoder,
        sharedJpegCount: jpeg,
        sharedOfaCount: ofa,
        gpuInstanceSliceCount: profile.compute_slices.into(),
        computeInstanceSliceCount: compute.slices.into(),
        memorySizeMB: profile.memory_mib,
    })
});
