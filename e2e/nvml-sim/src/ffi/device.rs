//! Device queries: handles, identity, memory, architecture.

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t};

use super::{
    access::{device_nodes, sees_gpu, sees_mig},
    call::call,
    declare::device,
    handle::{GPU, Handle, MIG},
    out::{put, put_text},
};
use crate::{
    code::{ARGUMENT_VERSION_MISMATCH, Code, INVALID_ARGUMENT, NOT_FOUND, UNKNOWN},
    state::State,
};

/// `NVML_STRUCT_VERSION(Memory, 2)`.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the size of a struct of 40 bytes"
)]
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | 2 << 24;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    call("nvmlDeviceGetCount_v2", None, |_, state| {
        let dev = device_nodes();
        let seen = state
            .gpus
            .iter()
            .filter(|gpu| sees_gpu(dev.as_deref(), gpu))
            .count();
        put(count, c_uint::try_from(seen).unwrap_or_default())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut nvmlDevice_t) -> Code {
    call(
        "nvmlDeviceGetHandleByIndex_v2",
        Some(index as usize),
        |_, state| {
            let dev = device_nodes();
            let mut seen = state
                .gpus
                .iter()
                .enumerate()
                .filter(|(_, gpu)| sees_gpu(dev.as_deref(), gpu));
            let (at, _) = seen.nth(index as usize).ok_or(INVALID_ARGUMENT)?;
            let handle = Handle::new(GPU, at, 0, 0, 0);
            handle.gpu(state)?;
            put(out, handle.pack())
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut nvmlDevice_t) -> Code {
    call("nvmlDeviceGetHandleByUUID", None, |_, state| {
        if uuid.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null; the caller gives a C string.
        let text = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
        let dev = device_nodes();
        for (at, gpu) in state
            .gpus
            .iter()
            .enumerate()
            .filter(|(_, gpu)| sees_gpu(dev.as_deref(), gpu))
        {
            let own = gpu.uuid();
            let found = |handle: Handle| {
                handle.gpu(state)?;
                put(out, handle.pack())
            };
            if own == text {
                return found(Handle::new(GPU, at, 0, 0, 0));
            }
            for (instance, compute) in gpu.mig_devices() {
                let old = format!("MIG-{own}/{}/{}", instance.id, compute.id);
                if (gpu.mig_uuid(instance, compute) == text || old == text)
                    && sees_mig(dev.as_deref(), gpu, instance.id, compute.id)
                {
                    return found(Handle::new(MIG, at, instance.id, compute.id, 0));
                }
            }
        }
        Err(NOT_FOUND)
    })
}

device!(nvmlDeviceGetName, &[GPU, MIG], (out: *mut c_char, length: c_uint), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    let mut name = gpu.model().name.clone();
    if handle.kind == MIG {
        let (instance, _) = handle.compute(state)?;
        let profile = gpu.model().by_id(instance.profile_id).map_or("", |profile| &profile.name);
        name = format!("{name} MIG {profile}");
    }
    put_text(out, length, &name)
});

device!(nvmlDeviceGetUUID, &[GPU, MIG], (out: *mut c_char, length: c_uint), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    let uuid = if handle.kind == MIG {
        let (instance, compute) = handle.compute(state)?;
        gpu.mig_uuid(instance, compute)
    } else {
        gpu.uuid()
    };
    put_text(out, length, &uuid)
});

device!(nvmlDeviceGetMinorNumber, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    put(out, handle.gpu(state)?.minor)
});

device!(nvmlDeviceGetIndex, &[GPU, MIG], (out: *mut c_uint), |handle, _store, state| {
    if handle.kind == GPU {
        return put(out, handle.gpu.into());
    }
    let own = (u32::from(handle.gi), u32::from(handle.ci));
    let at = handle.gpu(state)?.mig_devices().position(|(i, c)| (i.id, c.id) == own);
    put(out, at.and_then(|at| c_uint::try_from(at).ok()).ok_or(NOT_FOUND)?)
});

device!(nvmlDeviceGetPciInfo_v3, &[GPU], (out: *mut nvmlPciInfo_t), |handle, _store, state| {
    // SAFETY: a plain C struct, for which zeros are a value.
    let mut pci: nvmlPciInfo_t = unsafe { std::mem::zeroed() };
    pci.bus = u32::from(handle.gpu) + 1;
    pci.pciDeviceId = handle.gpu(state)?.model().pci_device_id;
    for (to, from) in pci.busId.iter_mut().zip(format!("00000000:{:02X}:00.0", pci.bus).bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    put(out, pci)
});

/// Memory of a GPU or a MIG device, in bytes.
fn memory(handle: Handle, state: &State) -> Result<u64, Code> {
    let model = handle.gpu(state)?.model();
    let mib = if handle.kind == MIG {
        let (instance, _) = handle.compute(state)?;
        model
            .by_id(instance.profile_id)
            .map_or(0, |profile| profile.memory_mib)
    } else {
        model.memory_mib
    };
    Ok(mib << 20)
}

device!(nvmlDeviceGetMemoryInfo, &[GPU, MIG], (out: *mut nvmlMemory_t), |handle, _store, state| {
    let total = memory(handle, state)?;
    put(out, nvmlMemory_t { total, free: total, used: 0 })
});

device!(nvmlDeviceGetMemoryInfo_v2, &[GPU, MIG], (out: *mut nvmlMemory_v2_t), |handle, _store, state| {
    handle.gpu(state)?;
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null; the caller gives a struct whose first word is its version.
    if unsafe { (*out).version } != MEMORY_V2 {
        return Err(ARGUMENT_VERSION_MISMATCH);
    }
    let total = memory(handle, state)?;
    put(out, nvmlMemory_v2_t { version: MEMORY_V2, total, reserved: 0, free: total, used: 0 })
});

device!(nvmlDeviceGetCudaComputeCapability, &[GPU, MIG], (major: *mut i32, minor: *mut i32), |handle, _store, state| {
    let text = &handle.gpu(state)?.model().compute_capability;
    let (first, second) = text.split_once('.').ok_or(UNKNOWN)?;
    put(major, first.parse().unwrap_or(0))?;
    put(minor, second.parse().unwrap_or(0))
});

device!(nvmlDeviceGetArchitecture, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    put(out, match handle.gpu(state)?.model().architecture.as_str() {
        "Ampere" => 7,
        "Hopper" => 9,
        _ => 10,
    })
});
