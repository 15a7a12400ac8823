//! The exported C symbols: each finds its card and instance, and leaves the rules to `card`.
#![allow(unsafe_code, reason = "a C ABI")]
#![allow(non_snake_case, unreachable_pub, reason = "names of NVML")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each symbol is NVML's header: valid pointers or null"
)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use nvml_wrapper_sys::bindings::{
    field_id::{NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED},
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstanceProfileInfo_t,
    nvmlDevice_t, nvmlDeviceAttributes_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t,
    nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
    nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t, nvmlMemory_t, nvmlMemory_v2_t,
    nvmlPciInfo_t, nvmlProcessInfo_t, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
};

use crate::{
    card::{
        ARGUMENT_VERSION_MISMATCH, Card, Code, Compute, GI_PROFILES, GPU_IS_LOST, IN_USE,
        INSUFFICIENT_SIZE, INVALID_ARGUMENT, Instance, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED,
        SUCCESS, TIMEOUT, UNINITIALIZED, UNKNOWN,
    },
    event::{EventSet, KINDS},
    store::{Action, Holder, State, Store, ci_minor, gi_minor},
};

const DRIVER_NOT_LOADED: Code = 9;
/// `NVML_STRUCT_VERSION(Memory, 2)`.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the size of a struct of 40 bytes"
)]
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | 2 << 24;

/// What an opaque handle stands for, packed into its 64 bits: kind, card, GI id, CI id, serial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle {
    kind: u8,
    gpu: u8,
    gi: u8,
    ci: u8,
    serial: u32,
}

const GPU: u8 = 1;
const MIG: u8 = 2;
const GI: u8 = 3;
const CI: u8 = 4;

impl Handle {
    fn new(kind: u8, gpu: usize, gi: u32, ci: u32, serial: u32) -> Self {
        let narrow = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            kind,
            gpu: u8::try_from(gpu).unwrap_or(u8::MAX),
            gi: narrow(gi),
            ci: narrow(ci),
            serial,
        }
    }

    fn pack<T>(self) -> *mut T {
        let [a, b, c, d] = [self.kind, self.gpu, self.gi, self.ci].map(u64::from);
        let bits = a << 56 | b << 48 | c << 40 | d << 32 | u64::from(self.serial);
        ptr::without_provenance_mut(usize::try_from(bits).unwrap_or_default())
    }

    fn unpack<T>(pointer: *mut T, kinds: &[u8]) -> Result<Self, Code> {
        let bits = (pointer.addr() as u64).to_be_bytes();
        let [kind, gpu, gi, ci, s0, s1, s2, s3] = bits;
        let handle = Self {
            kind,
            gpu,
            gi,
            ci,
            serial: u32::from_be_bytes([s0, s1, s2, s3]),
        };
        if kinds.contains(&kind) {
            Ok(handle)
        } else {
            Err(INVALID_ARGUMENT)
        }
    }

    fn index(self) -> usize {
        usize::from(self.gpu)
    }

    fn card(self, state: &State) -> Result<&Card, Code> {
        let card = state.cards.get(self.index()).ok_or(INVALID_ARGUMENT)?;
        if card.lost {
            Err(GPU_IS_LOST)
        } else {
            Ok(card)
        }
    }

    fn card_mut(self, state: &mut State) -> Result<&mut Card, Code> {
        self.card(state)?;
        state.cards.get_mut(self.index()).ok_or(INVALID_ARGUMENT)
    }

    /// The instance; a handle dies with the very instance that it was given for, a MIG device's does not.
    fn instance(self, state: &State) -> Result<&Instance, Code> {
        let instance = self
            .card(state)?
            .instance(self.gi.into())
            .ok_or(INVALID_ARGUMENT)?;
        if self.kind == MIG || instance.serial == self.serial {
            Ok(instance)
        } else {
            Err(INVALID_ARGUMENT)
        }
    }

    fn compute(self, state: &State) -> Result<(&Instance, &Compute), Code> {
        let instance = self.instance(state)?;
        let compute = instance.compute.iter().find(|c| c.id == u32::from(self.ci));
        compute
            .map(|compute| (instance, compute))
            .ok_or(INVALID_ARGUMENT)
    }
}

fn directory() -> PathBuf {
    std::env::var_os("NVML_SIM_DIR").map_or_else(|| "/var/lib/nvml-sim".into(), PathBuf::from)
}

/// Where device nodes restrict what is seen, as in a container; `None`: all is seen.
fn device_nodes() -> Option<PathBuf> {
    std::env::var_os("NVML_SIM_DEV").map(PathBuf::from)
}

fn sees_card(dev: Option<&Path>, card: &Card) -> bool {
    dev.is_none_or(|dev| dev.join(format!("nvidia{}", card.minor)).exists())
}

fn sees_mig(dev: Option<&Path>, card: &Card, gi: u32, ci: u32) -> bool {
    let cap = |minor: u32| {
        dev.is_none_or(|dev| dev.join(format!("nvidia-caps/nvidia-cap{minor}")).exists())
    };
    dev.is_none() || cap(2) || (cap(gi_minor(card.minor, gi)) && cap(ci_minor(card.minor, gi, ci)))
}

/// Changes need root and the whole machine's view, as the driver wants `CAP_SYS_ADMIN`.
fn privileged() -> Result<(), Code> {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if root && device_nodes().is_none() {
        Ok(())
    } else {
        Err(NO_PERMISSION)
    }
}

fn kill_self() {
    // SAFETY: signals only this process, which is what the fault asks for.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Work on the locked state.
fn locked<T>(store: &Store, work: impl FnOnce(&mut State) -> Result<T, Code>) -> Result<T, Code> {
    store.with(work).unwrap_or(Err(DRIVER_NOT_LOADED))
}

/// Most calls: work on the locked state.
fn call(
    name: &str,
    gpu: Option<usize>,
    work: impl FnOnce(&Store, &mut State) -> Result<(), Code>,
) -> Code {
    faulty(name, gpu, |store, _| {
        locked(store, |state| work(store, state))
    })
}

/// Every call goes through here: faults first, then the work, which knows the fault.
fn faulty(
    name: &str,
    gpu: Option<usize>,
    work: impl FnOnce(&Store, Option<Action>) -> Result<(), Code>,
) -> Code {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let store = Store::new(&directory());
        let action = store.fault(name, gpu).unwrap_or_default();
        match action {
            Some(Action::Code(code)) => return code,
            Some(Action::DelayMs(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            Some(Action::Hang) => loop {
                std::thread::sleep(Duration::from_hours(1));
            },
            Some(Action::KillBefore) => kill_self(),
            Some(Action::KillAfter | Action::Activation(_)) | None => {}
        }
        let result = work(&store, action).map_or_else(|code| code, |()| SUCCESS);
        if action == Some(Action::KillAfter) {
            kill_self();
        }
        result
    }));
    done.unwrap_or(UNKNOWN)
}

/// The time that the hardware takes for a change, spent outside of the lock.
fn latency() {
    let ms = Store::new(&directory())
        .snapshot()
        .map_or(0, |state| state.latency_ms);
    std::thread::sleep(Duration::from_millis(ms));
}

fn put<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller of the ABI gives a valid pointer to a T.
    unsafe { out.write(value) };
    Ok(())
}

fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller gives `length` bytes, and text and NUL fit.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// NVML's way to return a list: `count` is the room, and then the number.
fn put_list<T: Copy>(
    out: *mut T,
    count: *mut c_uint,
    items: &[T],
    query: bool,
) -> Result<(), Code> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let number = c_uint::try_from(items.len()).unwrap_or(c_uint::MAX);
    // SAFETY: not null, valid by the ABI's contract.
    let room = unsafe { count.replace(number) };
    if out.is_null() {
        return if query || items.is_empty() {
            Ok(())
        } else {
            Err(INSUFFICIENT_SIZE)
        };
    }
    if (room as usize) < items.len() && !query {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller gives room for the items, as NVML demands.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), out, items.len()) };
    Ok(())
}

/// How often this process has initialized NVML, and its session.
static SESSION: Mutex<Option<(u32, File)>> = Mutex::new(None);

fn initialize(name: &str) -> Code {
    call(name, None, |store, _| {
        let mut session = SESSION.lock().map_err(|_| UNKNOWN)?;
        match session.as_mut() {
            Some((times, _)) => *times += 1,
            None => *session = Some((1, store.session().map_err(|_| DRIVER_NOT_LOADED)?)),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    initialize("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    initialize("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    let Ok(mut session) = SESSION.lock() else {
        return UNKNOWN;
    };
    match session.take() {
        None => return UNINITIALIZED,
        Some((1, file)) => {
            // Not only closed: a child that is being started may have the file, too.
            let _ = file.unlock();
        }
        Some((times, file)) => *session = Some((times - 1, file)),
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    let text: &CStr = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        19 => c"In use by another client",
        23 => c"Insufficient Resources",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetDriverVersion", None, |_, _| {
        put_text(out, length, "580.95.05")
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetNVMLVersion", None, |_, _| {
        put_text(out, length, "13.580.95.05")
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetProcessName(pid: c_uint, out: *mut c_char, length: c_uint) -> Code {
    call("nvmlSystemGetProcessName", None, |_, _| {
        let Some(room) = (length as usize).checked_sub(1) else {
            return Err(INVALID_ARGUMENT);
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| NOT_FOUND)?;
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() {
            return Err(NOT_FOUND);
        }
        // NVML crops.
        let name = String::from_utf8_lossy(name);
        put_text(out, length, &name[..name.floor_char_boundary(room)])
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    call("nvmlDeviceGetCount_v2", None, |_, state| {
        let dev = device_nodes();
        let seen = state
            .cards
            .iter()
            .filter(|card| sees_card(dev.as_deref(), card))
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
                .cards
                .iter()
                .enumerate()
                .filter(|(_, card)| sees_card(dev.as_deref(), card));
            let (at, _) = seen.nth(index as usize).ok_or(INVALID_ARGUMENT)?;
            let handle = Handle::new(GPU, at, 0, 0, 0);
            handle.card(state)?;
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
        for (at, card) in state
            .cards
            .iter()
            .enumerate()
            .filter(|(_, card)| sees_card(dev.as_deref(), card))
        {
            let own = card.uuid();
            let found = |handle: Handle| {
                handle.card(state)?;
                put(out, handle.pack())
            };
            if own == text {
                return found(Handle::new(GPU, at, 0, 0, 0));
            }
            for (instance, compute) in card.mig_devices() {
                let old = format!("MIG-{own}/{}/{}", instance.id, compute.id);
                if (card.mig_uuid(instance, compute) == text || old == text)
                    && sees_mig(dev.as_deref(), card, instance.id, compute.id)
                {
                    return found(Handle::new(MIG, at, instance.id, compute.id, 0));
                }
            }
        }
        Err(NOT_FOUND)
    })
}

/// Declares a call on a device handle of the kinds named: `device(name, kinds, args, |handle, state| …)`.
macro_rules! device {
    ($name:ident, $kinds:expr, ($($argument:ident: $type:ty),*), |$handle:ident, $store:ident, $state:ident| $work:expr) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(device: nvmlDevice_t, $($argument: $type),*) -> Code {
            let $handle = match Handle::unpack(device, $kinds) {
                Ok(handle) => handle,
                Err(code) => return if Handle::unpack(device, &[GPU, MIG]).is_ok() { NOT_SUPPORTED } else { code },
            };
            call(stringify!($name), Some($handle.index()), |$store, $state| {
                let _ = ($handle.card($state)?, &$store);
                if $handle.kind == MIG { $handle.compute($state)?; }
                $work
            })
        }
    };
}

device!(nvmlDeviceGetName, &[GPU, MIG], (out: *mut c_char, length: c_uint), |handle, _store, state| {
    let card = handle.card(state)?;
    let mut name = card.model().name.clone();
    if handle.kind == MIG {
        let (instance, _) = handle.compute(state)?;
        let profile = card.model().by_id(instance.profile_id).map_or("", |profile| &profile.name);
        name = format!("{name} MIG {profile}");
    }
    put_text(out, length, &name)
});
device!(nvmlDeviceGetUUID, &[GPU, MIG], (out: *mut c_char, length: c_uint), |handle, _store, state| {
    let card = handle.card(state)?;
    let uuid = if handle.kind == MIG {
        let (instance, compute) = handle.compute(state)?;
        card.mig_uuid(instance, compute)
    } else {
        card.uuid()
    };
    put_text(out, length, &uuid)
});
device!(nvmlDeviceGetMinorNumber, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    put(out, handle.card(state)?.minor)
});
device!(nvmlDeviceGetIndex, &[GPU, MIG], (out: *mut c_uint), |handle, _store, state| {
    if handle.kind == GPU {
        return put(out, handle.gpu.into());
    }
    let own = (u32::from(handle.gi), u32::from(handle.ci));
    let at = handle.card(state)?.mig_devices().position(|(i, c)| (i.id, c.id) == own);
    put(out, at.and_then(|at| c_uint::try_from(at).ok()).ok_or(NOT_FOUND)?)
});
device!(nvmlDeviceGetPciInfo_v3, &[GPU], (out: *mut nvmlPciInfo_t), |handle, _store, state| {
    // SAFETY: a plain C struct, for which zeros are a value.
    let mut pci: nvmlPciInfo_t = unsafe { std::mem::zeroed() };
    pci.bus = u32::from(handle.gpu) + 1;
    pci.pciDeviceId = handle.card(state)?.model().pci_device_id;
    for (to, from) in pci.busId.iter_mut().zip(format!("00000000:{:02X}:00.0", pci.bus).bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    put(out, pci)
});
device!(nvmlDeviceGetMemoryInfo, &[GPU, MIG], (out: *mut nvmlMemory_t), |handle, _store, state| {
    let card = handle.card(state)?;
    let mib = if handle.kind == MIG {
        let (instance, _) = handle.compute(state)?;
        card.model().by_id(instance.profile_id).map_or(0, |profile| profile.memory_mib)
    } else {
        card.model().memory_mib
    };
    let total = mib << 20;
    put(out, nvmlMemory_t { total, free: total, used: 0 })
});
device!(nvmlDeviceGetMemoryInfo_v2, &[GPU, MIG], (out: *mut nvmlMemory_v2_t), |handle, _store, state| {
    let card = handle.card(state)?;
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null; the caller gives a struct whose first word is its version.
    if unsafe { (*out).version } != MEMORY_V2 {
        return Err(ARGUMENT_VERSION_MISMATCH);
    }
    let mib = if handle.kind == MIG {
        let (instance, _) = handle.compute(state)?;
        card.model().by_id(instance.profile_id).map_or(0, |profile| profile.memory_mib)
    } else {
        card.model().memory_mib
    };
    let total = mib << 20;
    put(out, nvmlMemory_v2_t { version: MEMORY_V2, total, reserved: 0, free: total, used: 0 })
});
device!(nvmlDeviceGetCudaComputeCapability, &[GPU, MIG], (major: *mut i32, minor: *mut i32), |handle, _store, state| {
    let text = &handle.card(state)?.model().compute_capability;
    let (first, second) = text.split_once('.').ok_or(UNKNOWN)?;
    put(major, first.parse().unwrap_or(0))?;
    put(minor, second.parse().unwrap_or(0))
});
device!(nvmlDeviceGetArchitecture, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    put(out, match handle.card(state)?.model().architecture.as_str() {
        "Ampere" => 7,
        "Hopper" => 9,
        _ => 10,
    })
});
device!(nvmlDeviceGetMigMode, &[GPU], (current: *mut c_uint, pending: *mut c_uint), |handle, _store, state| {
    let card = handle.card(state)?;
    put(current, card.mig.into())?;
    put(pending, card.pending.into())
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
    let gpu = handle.index();
    faulty("nvmlDeviceSetMigMode", Some(gpu), |store, fault| {
        locked(store, |state| {
            let card = handle.card_mut(state)?;
            if handle.kind == MIG {
                return Err(NOT_SUPPORTED);
            }
            privileged()?;
            if mode > 1 || activation.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            if let Some(Action::Activation(code)) = fault {
                card.pending = mode == 1;
                return put(activation, code);
            }
            let held = store.holders().iter().any(|holder| holder.gpu == gpu);
            put(activation, card.set_mig(mode == 1, held)?)
        })
    })
}

device!(nvmlDeviceGetMaxMigDeviceCount, &[GPU], (out: *mut c_uint), |handle, _store, state| {
    let card = handle.card(state)?;
    put(out, if card.mig { card.model().compute_slices.into() } else { 0 })
});
device!(nvmlDeviceGetMigDeviceHandleByIndex, &[GPU], (index: c_uint, out: *mut nvmlDevice_t), |handle, _store, state| {
    let card = handle.card(state)?;
    let dev = device_nodes();
    let mut seen = card.mig_devices().filter(|(i, c)| sees_mig(dev.as_deref(), card, i.id, c.id));
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
    let profile = handle.card(state)?.model().by_id(instance.profile_id).ok_or(UNKNOWN)?;
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
device!(nvmlDeviceGetComputeRunningProcesses_v3, &[GPU, MIG], (count: *mut c_uint, out: *mut nvmlProcessInfo_t), |handle, store, state| {
    let card = handle.card(state)?;
    let of_device: Vec<Holder> = store
        .holders()
        .into_iter()
        .filter(|holder| holder.gpu == handle.index())
        .filter(|holder| match holder.instance {
            Some((gi, serial, ci)) if handle.kind == MIG => {
                (gi, ci) == (handle.gi.into(), handle.ci.into())
                    && card.instance(gi).is_some_and(|instance| instance.serial == serial)
            }
            _ => handle.kind == GPU,
        })
        .collect();
    // SAFETY: a plain C struct, for which zeros are a value.
    let blank: nvmlProcessInfo_t = unsafe { std::mem::zeroed() };
    let infos: Vec<_> = of_device.iter().map(|holder| nvmlProcessInfo_t { pid: holder.pid, ..blank }).collect();
    put_list(out, count, &infos, false)
});
device!(nvmlDeviceGetGraphicsRunningProcesses_v3, &[GPU, MIG], (count: *mut c_uint, out: *mut nvmlProcessInfo_t), |_handle, _store, _state| {
    put_list(out, count, &[], false)
});
device!(nvmlDeviceGetRemappedRows, &[GPU], (correctable: *mut c_uint, uncorrectable: *mut c_uint, pending: *mut c_uint, failed: *mut c_uint), |handle, _store, state| {
    let rows = handle.card(state)?.remapped;
    put(correctable, rows.correctable)?;
    put(uncorrectable, rows.uncorrectable)?;
    put(pending, rows.pending.into())?;
    put(failed, rows.failed.into())
});
device!(nvmlDeviceGetFieldValues, &[GPU], (count: c_int, fields: *mut nvmlFieldValue_t), |handle, _store, state| {
    let card = handle.card(state)?;
    let count = usize::try_from(count).unwrap_or_default();
    if count == 0 || fields.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros());
    // SAFETY: not null; the caller gives `count` of them.
    for field in unsafe { std::slice::from_raw_parts_mut(fields, count) } {
        let value = match field.fieldId {
            NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => Some(card.recovery_action),
            NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED => Some((!card.model().is_ampere()).into()),
            _ => None,
        };
        field.timestamp = i64::try_from(now).unwrap_or_default();
        field.latencyUsec = 0;
        field.nvmlReturn = if value.is_some() { SUCCESS } else { NOT_SUPPORTED };
        field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
        field.value.uiVal = value.unwrap_or_default();
    }
    Ok(())
});
device!(nvmlDeviceGetSupportedEventTypes, &[GPU], (out: *mut c_ulonglong), |_handle, _store, _state| put(out, KINDS));
device!(nvmlDeviceRegisterEvents, &[GPU, MIG], (types: c_ulonglong, set: nvmlEventSet_t), |handle, _store, state| {
    if handle.kind == MIG {
        return Err(INVALID_ARGUMENT);
    }
    in_set(set, |set| set.register(handle.index(), types, state))
});

/// Event sets of this process, by the number that is the handle.
static SETS: Mutex<BTreeMap<usize, EventSet>> = Mutex::new(BTreeMap::new());

fn in_set<T>(
    set: nvmlEventSet_t,
    work: impl FnOnce(&mut EventSet) -> Result<T, Code>,
) -> Result<T, Code> {
    let mut sets = SETS.lock().map_err(|_| UNKNOWN)?;
    work(sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetCreate(out: *mut nvmlEventSet_t) -> Code {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    call("nvmlEventSetCreate", None, |_, _| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        put(out, ptr::without_provenance_mut(number))?;
        let mut sets = SETS.lock().map_err(|_| UNKNOWN)?;
        sets.insert(number, EventSet::default());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> Code {
    call("nvmlEventSetFree", None, |_, _| {
        let mut sets = SETS.lock().map_err(|_| UNKNOWN)?;
        sets.remove(&set.addr()).map(|_| ()).ok_or(INVALID_ARGUMENT)
    })
}

/// Time between two looks whether the state is new, which the waiting process does not lock meanwhile.
const POLL: Duration = Duration::from_millis(20);

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    out: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> Code {
    faulty("nvmlEventSetWait_v2", None, |store, _| {
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let end = Instant::now() + Duration::from_millis(timeout_ms.into());
        loop {
            let version = store.version();
            if let Some(event) = locked(store, |state| in_set(set, |set| set.next(state)))? {
                return put(
                    out,
                    nvmlEventData_t {
                        device: Handle::new(GPU, event.gpu, 0, 0, 0).pack(),
                        eventType: event.kind,
                        eventData: event.data,
                        gpuInstanceId: event.gi.unwrap_or(u32::MAX),
                        computeInstanceId: event.ci.unwrap_or(u32::MAX),
                    },
                );
            }
            loop {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(TIMEOUT);
                }
                std::thread::sleep(left.min(POLL));
                if store.version() != version {
                    break;
                }
            }
        }
    })
}

fn profile_info(
    handle: Handle,
    state: &State,
    constant: c_uint,
) -> Result<nvmlGpuInstanceProfileInfo_t, Code> {
    if constant >= GI_PROFILES {
        return Err(INVALID_ARGUMENT);
    }
    let profile = handle
        .card(state)?
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
    let name = &handle.card(state)?.model().by_constant(constant).ok_or(NOT_SUPPORTED)?.name;
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
    let profile = handle.card(state)?.model().by_id(id).ok_or(INVALID_ARGUMENT)?;
    let all: Vec<_> = profile
        .starts
        .iter()
        .map(|start| nvmlGpuInstancePlacement_t { start: u32::from(*start), size: profile.size.into() })
        .collect();
    put_list(out, count, &all, true)
});
device!(nvmlDeviceGetGpuInstanceRemainingCapacity, &[GPU], (id: c_uint, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let card = handle.card(state)?;
    if !card.mig {
        return Err(NOT_SUPPORTED);
    }
    put(count, card.remaining(card.model().by_id(id).ok_or(INVALID_ARGUMENT)?))
});
device!(nvmlDeviceGetGpuInstances, &[GPU], (id: c_uint, out: *mut nvmlGpuInstance_t, count: *mut c_uint), |handle, _store, state| {
    privileged()?;
    let card = handle.card(state)?;
    if !card.mig {
        return Err(NOT_SUPPORTED);
    }
    card.model().by_id(id).ok_or(INVALID_ARGUMENT)?;
    let all: Vec<nvmlGpuInstance_t> = card
        .instances
        .iter()
        .filter(|instance| instance.profile_id == id)
        .map(|instance| Handle::new(GI, handle.index(), instance.id, 0, instance.serial).pack())
        .collect();
    put_list(out, count, &all, true)
});
device!(nvmlDeviceGetGpuInstanceById, &[GPU], (id: c_uint, out: *mut nvmlGpuInstance_t), |handle, _store, state| {
    let card = handle.card(state)?;
    if !card.mig {
        return Err(NOT_SUPPORTED);
    }
    let instance = card.instance(id).ok_or(NOT_FOUND)?;
    put(out, Handle::new(GI, handle.index(), id, 0, instance.serial).pack())
});

fn create_gpu_instance(
    name: &str,
    device: nvmlDevice_t,
    out: *mut nvmlGpuInstance_t,
    make: impl FnOnce(&mut Card) -> Result<u32, Code>,
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
        let card = handle.card_mut(state)?;
        // The first instance switches partitioning on, which a client of the whole card forbids.
        let whole = |holder: &Holder| holder.gpu == handle.index() && holder.instance.is_none();
        if card.instances.is_empty() && card.mig && store.holders().iter().any(whole) {
            return Err(IN_USE);
        }
        let id = make(card)?;
        let serial = card.serial;
        put(out, Handle::new(GI, handle.index(), id, 0, serial).pack())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceCreateGpuInstance(
    device: nvmlDevice_t,
    id: c_uint,
    out: *mut nvmlGpuInstance_t,
) -> Code {
    create_gpu_instance("nvmlDeviceCreateGpuInstance", device, out, |card| {
        card.create(id)
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
        |card| {
            let narrow = |number: c_uint| u8::try_from(number).map_err(|_| INVALID_ARGUMENT);
            card.create_at(id, narrow(at.start)?, narrow(at.size)?)
        },
    )
}

/// Declares a call on a GPU instance handle.
macro_rules! gpu_instance {
    ($name:ident, ($($argument:ident: $type:ty),*), |$handle:ident, $store:ident, $state:ident| $work:expr) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(gi: nvmlGpuInstance_t, $($argument: $type),*) -> Code {
            let $handle = match Handle::unpack(gi, &[GI]) {
                Ok(handle) => handle,
                Err(code) => return code,
            };
            call(stringify!($name), Some($handle.index()), |$store, $state| {
                let _ = ($handle.instance($state)?, &$store);
                $work
            })
        }
    };
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
    let busy = store.holders().iter().any(|holder| {
        holder.gpu == handle.index()
            && holder
                .instance
                .is_some_and(|(gi, s, _)| (gi, s) == (handle.gi.into(), serial))
    });
    if busy {
        return Err(IN_USE);
    }
    handle.card_mut(state)?.destroy(handle.gi.into())
});
gpu_instance!(nvmlGpuInstanceGetComputeInstanceProfileInfo, (constant: c_uint, engines: c_uint, out: *mut nvmlComputeInstanceProfileInfo_t), |handle, _store, state| {
    if engines != 0 {
        return Err(INVALID_ARGUMENT);
    }
    let instance = handle.instance(state)?;
    let card = handle.card(state)?;
    let profile = card.compute_profile(instance, constant)?;
    let [copy, decoder, encoder, jpeg, ofa] = card.model().by_id(instance.profile_id).ok_or(UNKNOWN)?.engines;
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
                .card_mut(state)?
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
            let busy =
                |holder: &Holder| holder.gpu == handle.index() && holder.instance == Some(own);
            if store.holders().iter().any(busy) {
                return Err(IN_USE);
            }
            handle
                .card_mut(state)?
                .destroy_compute(handle.gi.into(), handle.ci.into())
        },
    )
}

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
    let holder = Holder {
        pid: std::process::id(),
        gpu: handle.index(),
        instance,
    };
    let file = store.hold(&holder).map_err(|_| UNKNOWN)?;
    HELD.lock().map_err(|_| UNKNOWN)?.push(file);
    Ok(())
});
