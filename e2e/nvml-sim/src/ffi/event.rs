//! Event sets.

use std::{
    collections::BTreeMap,
    ffi::{c_uint, c_ulonglong},
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{nvmlEventData_t, nvmlEventSet_t};

use super::{
    call::{call, faulty, locked},
    declare::device,
    handle::{GPU, Handle, MIG},
    out::put,
};
use crate::{
    code::{Code, INVALID_ARGUMENT, TIMEOUT, UNKNOWN},
    event::KINDS,
    event_set::EventSet,
};

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
