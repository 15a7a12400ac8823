//! GPU instances: profiles, placements, creation and destruction.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
    nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t,
};

use super::{
    access::privileged,
    call::{call, latency},
    declare::{device, gpu_instance},
    handle::{GI, GPU, Handle},
    out::{put, put_list},
};
use crate::{
    code::{ARGUMENT_VERSION_MISMATCH, Code, IN_USE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED},
    gpu::{Gpu, gpu_instances::GI_PROFILES},
    process::DeviceProcess,
    state::State,
};

fn profile_info(
    handle: Handle,
    state: &State,
    constant: c_uint,
) -> Result<nvmlGpuInstanceProfileInfo_t, Code> {
    if constant >= GI_PROFILES {
        return Err(INVALID_ARGUMENT);
    }
    let profile = handle
        .gpu(state)?
        .model()
        .by_constant(constant)
        .ok_or(NOT_SUPPORTED)?;
    let [copy, decoder, encoder, jpeg, ofa] = profile.engines;
    Ok(nvmlGpuInstanceProfileInfo_t {
        id: profile.id,
        isP2pSupported: 0,
        sliceCount: profile.compute_slices.into(),
        instanceCount: profile.max_count.into(),
        multiprocessorCount: profile.sm,
        copyEngineCount: copy,
        decoderCount: decoder,
        encoderCount: encoder,
        jpegCount: jpeg,
        ofaCount: ofa,
        memorySizeMB: profile.memory_mib,
    })
}

device!(nvmlDeviceGetGpuInstanceProfileInfo, &[GPU], (constant: c_uint, out: *mut nvmlGpuInstanceProfileInfo_t), |handle, _store, state| {
    put(out, profile_info(handle, state, constant)?)
});

device!(nvmlDeviceGetGpuInstanceProfileInfoV, &[GPU], (constant: c_uint, out: *mut nvmlGpuInstanceProfileInfo_v2_t), |handle, _store, state| {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null; the caller gives a struct whose first word is its version.
    let version = unsafe { (*out).version };
    let size = u32::try_from(size_of::<nvmlGpuInstanceProfileInfo_v2_t>()).unwrap_or_default();
    if version != size | 2 << 24 {
        return Err(ARGUMENT_VERSION_MISMATCH);
    }
    let info = profile_info(handle, state, constant)?;
    let name = &handle.gpu(state)?.model().by_constant(constant).ok_or(NOT_SUPPORTED)?.name;
    let mut text = [0; 96];
    for (to, from) in text.iter_mut().zip(format!("MIG {name}").bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    put(out, nvmlGpuInstanceProfileInfo_v2_t {
        version,
        id: info.id,
        isP2pSupported: info.isP2pSupported,
        sliceCount: info.sliceCount,
        instanceCount: info.instanceCount,
        multiprocessorCount: info.multiprocessorCount,
        copyEngineCount: info.copyEngineCount,
        decoderCount: info.decoderCount,
        encoderCount: info.encoderCount,
        jpegCount: info.jpegCount,
        ofaCount: info.ofaCount,
        memorySizeMB: info.memorySizeMB,
        name: text,
    })
});

device!(nvmlDeviceGetGpuInstancePossiblePlacements_v2, &[GPU], (id: c_uint, out: *mut nvmlGpuInstancePlacement_t, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let profile = handle.gpu(state)?.model().by_id(id).ok_or(INVALID_ARGUMENT)?;
    let all: Vec<_> = profile
        .starts
        .iter()
        .map(|start| nvmlGpuInstancePlacement_t { start: u32::from(*start), size: profile.size.into() })
        .collect();
    put_list(out, count, &all, true)
});

device!(nvmlDeviceGetGpuInstanceRemainingCapacity, &[GPU], (id: c_uint, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let gpu = handle.gpu(state)?;
    if !gpu.mig {
        return Err(NOT_SUPPORTED);
    }
    put(count, gpu.remaining(gpu.model().by_id(id).ok_or(INVALID_ARGUMENT)?))
});

device!(nvmlDeviceGetGpuInstances, &[GPU], (id: c_uint, out: *mut nvmlGpuInstance_t, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let gpu = handle.gpu(state)?;
    if !gpu.mig {
        return Err(NOT_SUPPORTED);
    }
    gpu.model().by_id(id).ok_or(INVALID_ARGUMENT)?;
    let all: Vec<nvmlGpuInstance_t> = gpu
        .instances
        .iter()
        .filter(|instance| instance.profile_id == id)
        .map(|instance| Handle::new(GI, handle.index(), instance.id, 0, instance.serial).pack())
        .collect();
    put_list(out, count, &all, true)
});

device!(nvmlDeviceGetGpuInstanceById, &[GPU], (id: c_uint, out: *mut nvmlGpuInstance_t), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    if !gpu.mig {
        return Err(NOT_SUPPORTED);
    }
    let instance = gpu.instance(id).ok_or(NOT_FOUND)?;
    put(out, Handle::new(GI, handle.index(), id, 0, instance.serial).pack())
});

fn create_gpu_instance(
    name: &str,
    device: nvmlDevice_t,
    out: *mut nvmlGpuInstance_t,
    make: impl FnOnce(&mut Gpu) -> Result<u32, Code>,
) -> Code {
    latency();
    let handle = match Handle::unpack(device, &[GPU]) {
        Ok(handle) => handle,
        Err(code) => return code,
    };
    call(name, Some(handle.index()), |store, state| {
        privileged()?;
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let gpu = handle.gpu_mut(state)?;
        // The first instance switches partitioning on, which a client of the whole GPU forbids.
        let whole =
            |process: &DeviceProcess| process.gpu == handle.index() && process.instance.is_none();
        if gpu.instances.is_empty() && gpu.mig && store.device_processes().iter().any(whole) {
            return Err(IN_USE);
        }
        let id = make(gpu)?;
        let serial = gpu.serial;
        put(out, Handle::new(GI, handle.index(), id, 0, serial).pack())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceCreateGpuInstance(
    device: nvmlDevice_t,
    id: c_uint,
    out: *mut nvmlGpuInstance_t,
) -> Code {
    create_gpu_instance("nvmlDeviceCreateGpuInstance", device, out, |gpu| {
        gpu.create(id)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceCreateGpuInstanceWithPlacement(
    device: nvmlDevice_t,
    id: c_uint,
    placement: *const nvmlGpuInstancePlacement_t,
    out: *mut nvmlGpuInstance_t,
) -> Code {
    if placement.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null; the caller gives a placement.
    let at = unsafe { *placement };
    create_gpu_instance(
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        device,
        out,
        |gpu| {
            let narrow = |number: c_uint| u8::try_from(number).map_err(|_| INVALID_ARGUMENT);
            gpu.create_at(id, narrow(at.start)?, narrow(at.size)?)
        },
    )
}

gpu_instance!(nvmlGpuInstanceGetInfo, (out: *mut nvmlGpuInstanceInfo_t), |handle, _store, state| {
    let instance = handle.instance(state)?;
    put(out, nvmlGpuInstanceInfo_t {
        device: Handle::new(GPU, handle.index(), 0, 0, 0).pack(),
        id: instance.id,
        profileId: instance.profile_id,
        placement: nvmlGpuInstancePlacement_t { start: instance.start.into(), size: instance.size.into() },
    })
});

gpu_instance!(nvmlGpuInstanceDestroy, (), |handle, store, state| {
    privileged()?;
    let serial = handle.instance(state)?.serial;
    let busy = store.device_processes().iter().any(|process| {
        process.gpu == handle.index()
            && process
                .instance
                .is_some_and(|(gi, s, _)| (gi, s) == (handle.gi.into(), serial))
    });
    if busy {
        return Err(IN_USE);
    }
    handle.gpu_mut(state)?.destroy(handle.gi.into())
});
