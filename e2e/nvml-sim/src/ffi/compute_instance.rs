//! Compute instances of a GPU instance.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstanceProfileInfo_t,
    nvmlGpuInstance_t,
};

use super::{
    access::privileged,
    call::{call, latency},
    declare::gpu_instance,
    handle::{CI, GI, Handle, MIG},
    out::{put, put_list},
};
use crate::{
    code::{Code, IN_USE, INVALID_ARGUMENT, NOT_FOUND, UNKNOWN},
    process::DeviceProcess,
};

gpu_instance!(nvmlGpuInstanceGetComputeInstanceProfileInfo, (constant: c_uint, engines: c_uint, out: *mut nvmlComputeInstanceProfileInfo_t), |handle, _store, state| {
    if engines != 0 {
        return Err(INVALID_ARGUMENT);
    }
    let instance = handle.instance(state)?;
    let gpu = handle.gpu(state)?;
    let profile = gpu.compute_profile(instance, constant)?;
    let [copy, decoder, encoder, jpeg, ofa] = gpu.model().by_id(instance.profile_id).ok_or(UNKNOWN)?.engines;
    put(out, nvmlComputeInstanceProfileInfo_t {
        id: profile.constant,
        sliceCount: profile.slices.into(),
        instanceCount: profile.count,
        multiprocessorCount: profile.sm,
        sharedCopyEngineCount: copy,
        sharedDecoderCount: decoder,
        sharedEncoderCount: encoder,
        sharedJpegCount: jpeg,
        sharedOfaCount: ofa,
    })
});

gpu_instance!(nvmlGpuInstanceGetComputeInstances, (profile: c_uint, out: *mut nvmlComputeInstance_t, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let instance = handle.instance(state)?;
    let all: Vec<nvmlComputeInstance_t> = instance
        .compute
        .iter()
        .filter(|compute| compute.profile == profile)
        .map(|compute| Handle::new(CI, handle.index(), instance.id, compute.id, instance.serial).pack())
        .collect();
    put_list(out, count, &all, true)
});

gpu_instance!(nvmlGpuInstanceGetComputeInstanceById, (id: c_uint, out: *mut nvmlComputeInstance_t), |handle, _store, state| {
    let instance = handle.instance(state)?;
    instance.compute.iter().find(|compute| compute.id == id).ok_or(NOT_FOUND)?;
    put(out, Handle::new(CI, handle.index(), instance.id, id, instance.serial).pack())
});

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceCreateComputeInstance(
    gi: nvmlGpuInstance_t,
    profile: c_uint,
    out: *mut nvmlComputeInstance_t,
) -> Code {
    let handle = match Handle::unpack(gi, &[GI]) {
        Ok(handle) => handle,
        Err(code) => return code,
    };
    call(
        "nvmlGpuInstanceCreateComputeInstance",
        Some(handle.index()),
        |_, state| {
            privileged()?;
            let serial = handle.instance(state)?.serial;
            if out.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            let id = handle
                .gpu_mut(state)?
                .create_compute(handle.gi.into(), profile)?;
            put(
                out,
                Handle::new(CI, handle.index(), handle.gi.into(), id, serial).pack(),
            )
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceGetInfo_v2(
    ci: nvmlComputeInstance_t,
    out: *mut nvmlComputeInstanceInfo_t,
) -> Code {
    let handle = match Handle::unpack(ci, &[CI]) {
        Ok(handle) => handle,
        Err(code) => return code,
    };
    call(
        "nvmlComputeInstanceGetInfo_v2",
        Some(handle.index()),
        |_, state| {
            let (instance, compute) = handle.compute(state)?;
            // SAFETY: a plain C struct, for which zeros are a value.
            let mut info: nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
            // Documented as the parent, in practice the MIG device.
            info.device = Handle::new(MIG, handle.index(), instance.id, compute.id, 0).pack();
            info.gpuInstance =
                Handle::new(GI, handle.index(), instance.id, 0, instance.serial).pack();
            info.id = compute.id;
            info.profileId = compute.profile;
            info.placement.start = compute.start.into();
            info.placement.size = compute.slices.into();
            put(out, info)
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceDestroy(ci: nvmlComputeInstance_t) -> Code {
    latency();
    let handle = match Handle::unpack(ci, &[CI]) {
        Ok(handle) => handle,
        Err(code) => return code,
    };
    call(
        "nvmlComputeInstanceDestroy",
        Some(handle.index()),
        |store, state| {
            privileged()?;
            let (instance, compute) = handle.compute(state)?;
            let own = (instance.id, instance.serial, compute.id);
            let busy = |process: &DeviceProcess| {
                process.gpu == handle.index() && process.instance == Some(own)
            };
            if store.device_processes().iter().any(busy) {
                return Err(IN_USE);
            }
            handle
                .gpu_mut(state)?
                .destroy_compute(handle.gi.into(), handle.ci.into())
        },
    )
}
