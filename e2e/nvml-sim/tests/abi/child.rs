//! What the tests run in processes of their own, by name.

use std::{path::Path, ptr};

use nvml_sim::{
    built_library,
    event::{Event, XID},
    store::Store,
};
use nvml_wrapper::{
    Nvml, bitmasks::event::EventTypes, enums::device::SampleValue, error::NvmlError,
    structs::device::FieldId,
};
use nvml_wrapper_sys::bindings::{field_id, nvmlDevice_t};

use crate::raw::{
    GPU_IS_LOST, Gpu, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, ONE_SLICE, SUCCESS,
    TIMEOUT, UNINITIALIZED,
};

/// What the tests run in a process of its own; nothing without `ABI_CHILD`.
#[test]
fn child_process() {
    let Ok(what) = std::env::var("ABI_CHILD") else {
        return;
    };
    match what.as_str() {
        "life" => life(),
        "held" => held(),
        "make" => {
            let gpu = Gpu::open();
            let gi = gpu.create(ONE_SLICE, 2, 1).unwrap();
            gpu.create_compute(gi);
        }
        "make-in-use" => assert_eq!(Gpu::open().create(ONE_SLICE, 2, 1), Err(IN_USE)),
        "make-refused" => make_refused(),
        "enable-busy" => enable_busy(),
        "enabled" => assert_eq!(Gpu::open().mig(), (1, 1)),
        "events" => events(&own_dir()),
        "health" => health(&own_dir()),
        "lost" => lost(&own_dir()),
        "enable-later" => enable_later(),
        "session" => session(&own_dir()),
        "hold" => hold(false),
        "hold-gpu" => hold(true),
        other => panic!("no child {other}"),
    }
}

fn held() {
    let gpu = Gpu::open();
    // SAFETY: as in `Gpu::create`.
    let (mut gi, mut ci) = (ptr::null_mut(), ptr::null_mut());
    let code = unsafe {
        let id = own_dir().snapshot().unwrap().gpus[0].instances[0].id;
        let code = gpu
            .lib
            .nvmlDeviceGetGpuInstanceById(gpu.device, id, &raw mut gi);
        assert_eq!(code, SUCCESS);
        gpu.lib
            .nvmlGpuInstanceGetComputeInstanceById(gi, 0, &raw mut ci)
    };
    assert_eq!(code, SUCCESS);
    assert_eq!(gpu.destroy_compute(ci), IN_USE);
    assert_eq!(gpu.destroy(gi), IN_USE);
}

fn make_refused() {
    let gpu = Gpu::open();
    assert!(gpu.create(ONE_SLICE, 0, 1).is_ok());
    assert_eq!(gpu.create(ONE_SLICE, 1, 1), Err(INSUFFICIENT_RESOURCES));
    assert!(gpu.create(ONE_SLICE, 1, 1).is_ok(), "the fault is over");
}

fn enable_busy() {
    let gpu = Gpu::open();
    assert_eq!(gpu.mig(), (0, 0));
    assert_eq!(
        gpu.set_mig(1),
        (SUCCESS, IN_USE),
        "two results, the second says no"
    );
    assert_eq!(gpu.mig(), (0, 1));
}

fn enable_later() {
    let gpu = Gpu::open();
    assert_eq!(gpu.set_mig(1), (SUCCESS, IN_USE), "the status refuses");
    assert_eq!(gpu.mig(), (0, 1));
    assert_eq!(gpu.set_mig(1), (SUCCESS, SUCCESS), "the fault is over");
    assert_eq!(gpu.mig(), (1, 1));
}

/// The directory of a child.
fn own_dir() -> Store {
    Store::new(Path::new(&std::env::var_os("NVML_SIM_DIR").unwrap()))
}

fn xid(data: u64, instance: Option<(u32, u32)>) -> Event {
    Event {
        kind: XID,
        data,
        gi: instance.map(|(gi, _)| gi),
        ci: instance.map(|(_, ci)| ci),
        ..Event::default()
    }
}

const UNATTRIBUTED: u32 = u32::MAX;

fn events(store: &Store) {
    let gpu = Gpu::open();
    store.raise(xid(13, None)).unwrap();
    let set = gpu.register(gpu.device, XID).unwrap();
    assert_eq!(gpu.wait(set, 0), Err(TIMEOUT), "13 was before");
    store.double_bit_error(0).unwrap();
    store.raise(xid(94, Some((9, 0)))).unwrap();
    store.raise(xid(79, None)).unwrap();
    assert_eq!(
        gpu.wait(set, 0),
        Ok((94, 9, 0)),
        "no ECC event, not asked for"
    );
    assert_eq!(gpu.wait(set, 0), Ok((79, UNATTRIBUTED, UNATTRIBUTED)));
    assert_eq!(gpu.wait(set, 1), Err(TIMEOUT), "each arrives once");
    std::thread::scope(|scope| {
        scope.spawn(|| store.raise(xid(48, None)).unwrap());
        let minute = 60_000;
        assert_eq!(gpu.wait(set, minute), Ok((48, UNATTRIBUTED, UNATTRIBUTED)));
    });
    // SAFETY: as in `Gpu::create`; a stale handle is an error of the library.
    let free = || unsafe { gpu.lib.nvmlEventSetFree(set) };
    assert_eq!((free(), free()), (SUCCESS, INVALID_ARGUMENT));
    assert_eq!(gpu.wait(set, 0), Err(INVALID_ARGUMENT));
    let gi = gpu.create(ONE_SLICE, 0, 1).unwrap();
    gpu.create_compute(gi);
    let mut mig = ptr::null_mut();
    // SAFETY: as in `Gpu::create`.
    let code = unsafe {
        gpu.lib
            .nvmlDeviceGetMigDeviceHandleByIndex(gpu.device, 0, &raw mut mig)
    };
    assert_eq!(code, SUCCESS);
    assert_eq!(
        gpu.register(mig, XID),
        Err(INVALID_ARGUMENT),
        "events are of GPUs"
    );
}

/// What an agent reads of an unhealthy GPU, by nvml-wrapper where it wraps it.
fn health(store: &Store) {
    let nvml = Nvml::builder()
        .lib_path(built_library().unwrap().as_ref())
        .init()
        .unwrap();
    let device = nvml.device_by_index(0).unwrap();
    let kinds = device.supported_event_types().unwrap();
    assert!(kinds.contains(EventTypes::DOUBLE_BIT_ECC_ERROR | EventTypes::CRITICAL_XID_ERROR));
    let set = nvml.create_event_set().unwrap();
    let set = device.register_events(kinds, set).unwrap();
    store.double_bit_error(0).unwrap();
    let event = set.wait(0).unwrap();
    assert_eq!(event.event_type, EventTypes::DOUBLE_BIT_ECC_ERROR);
    let rows = || {
        let mut rows = [9; 4];
        let [correctable, uncorrectable, pending, failed] = rows.each_mut();
        // SAFETY: the handle is this library's; the pointers are to locals.
        let code = unsafe {
            nvml.lib().nvmlDeviceGetRemappedRows(
                device.handle(),
                correctable,
                uncorrectable,
                pending,
                failed,
            )
        };
        assert_eq!(code, SUCCESS);
        rows
    };
    let action = || {
        let fields = [
            field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
            field_id::NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED,
            field_id::NVML_FI_DEV_ECC_CURRENT,
        ];
        let values = device.field_values_for(&fields.map(FieldId)).unwrap();
        let [action, resetless, other] = values.try_into().unwrap();
        assert_eq!(
            resetless.unwrap().value.unwrap(),
            SampleValue::U32(0),
            "Ampere"
        );
        assert!(matches!(other.unwrap().value, Err(NvmlError::NotSupported)));
        action.unwrap().value.unwrap()
    };
    assert_eq!((rows(), action()), ([0, 1, 1, 0], SampleValue::U32(1)));
    store.with(|state| state.gpus[0].reset()).unwrap();
    assert_eq!((rows(), action()), ([0, 1, 0, 0], SampleValue::U32(0)));
    let name = nvml.sys_process_name(std::process::id(), 4096).unwrap();
    assert_eq!(Some(name), std::env::args().next());
}

fn lost(store: &Store) {
    let gpu = Gpu::open();
    let gi = gpu.create(ONE_SLICE, 0, 1).unwrap();
    let id = gpu.id(gi);
    let set = gpu.register(gpu.device, XID).unwrap();
    let lose = |lost| store.with(|state| state.gpus[0].lost = lost).unwrap();
    lose(true);
    store.raise(xid(79, None)).unwrap();
    assert_eq!(gpu.wait(set, 0), Ok((79, UNATTRIBUTED, UNATTRIBUTED)));
    assert_eq!(gpu.wait(set, 0), Err(GPU_IS_LOST), "after all events");
    assert_eq!(gpu.wait(set, 0), Err(TIMEOUT), "and once");
    assert_eq!(gpu.id(gi), Err(GPU_IS_LOST));
    assert_eq!(gpu.create(ONE_SLICE, 1, 1), Err(GPU_IS_LOST));
    let uuid = store.snapshot().unwrap().gpus[0].uuid();
    let uuid = std::ffi::CString::new(uuid).unwrap();
    let (mut device, mut index) = (ptr::null_mut(), 0);
    // SAFETY: as in `Gpu::create`.
    unsafe {
        let lib = &gpu.lib;
        let code = lib.nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &raw mut device);
        assert_eq!(code, GPU_IS_LOST);
        let by_index = |at, device| lib.nvmlDeviceGetHandleByIndex_v2(at, device);
        assert_eq!(by_index(0, &raw mut device), GPU_IS_LOST);
        assert_eq!(by_index(1, &raw mut device), SUCCESS);
        assert_eq!(lib.nvmlDeviceGetIndex(device, &raw mut index), SUCCESS);
    }
    assert_eq!(index, 1, "the others stay where they are");
    lose(false);
    assert_eq!(gpu.wait(set, 0), Err(TIMEOUT));
    assert_eq!(gpu.id(gi), id, "nothing of it was lost");
    lose(true);
    assert_eq!(gpu.wait(set, 0), Err(GPU_IS_LOST), "another loss");
}

fn session(store: &Store) {
    let (first, second) = (Gpu::open(), Gpu::open());
    assert_eq!(store.sessions(), 1, "one a process");
    assert_eq!(first.shutdown(), SUCCESS);
    assert_eq!(store.sessions(), 1, "opened twice");
    assert_eq!((second.shutdown(), store.sessions()), (SUCCESS, 0));
    assert_eq!(second.shutdown(), UNINITIALIZED);
}

fn life() {
    let gpu = Gpu::open();
    // Placements: legal, taken, illegal, of no profile.
    let gi = gpu.create(ONE_SLICE, 3, 1).unwrap();
    assert_eq!(gpu.create(ONE_SLICE, 3, 1), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(
        gpu.create(9, 0, 4),
        Err(INSUFFICIENT_RESOURCES),
        "3g.40gb overlaps"
    );
    assert_eq!(gpu.create(ONE_SLICE, 7, 1), Err(INVALID_ARGUMENT));
    assert_eq!(gpu.create(99, 0, 1), Err(INVALID_ARGUMENT));
    assert_ne!(gpu.id(gi), Ok(3), "an id is no start");
    // A compute instance holds its GPU instance; the MIG device is both.
    let ci = gpu.create_compute(gi);
    let (uuid, mib) = Gpu::first();
    assert!(uuid.starts_with("MIG-") && mib == 9_728, "{uuid} {mib}");
    assert_eq!(gpu.destroy(gi), IN_USE);
    assert_eq!(gpu.destroy_compute(ci), SUCCESS);
    assert_eq!(gpu.destroy(gi), SUCCESS);
    // A stale handle, and the same UUID for the same place.
    assert_eq!(
        (gpu.destroy(gi), gpu.id(gi)),
        (INVALID_ARGUMENT, Err(INVALID_ARGUMENT))
    );
    let again = gpu.create(ONE_SLICE, 3, 1).unwrap();
    gpu.create_compute(again);
    assert_eq!(Gpu::first().0, uuid);
    assert_eq!(
        gpu.id(gi),
        Err(INVALID_ARGUMENT),
        "an old handle is not the new instance"
    );
}

/// Stays on a device until it is killed.
fn hold(whole: bool) {
    let nvml = Nvml::builder()
        .lib_path(built_library().unwrap().as_ref())
        .init()
        .unwrap();
    let gpu = nvml.device_by_index(0).unwrap();
    let mig =
        (0..gpu.mig_device_count().unwrap_or(0)).find_map(|at| gpu.mig_device_by_index(at).ok());
    // SAFETY: the handle is this library's; the symbol is its own and takes a handle.
    let code = unsafe {
        let device = if whole {
            gpu.handle()
        } else {
            mig.unwrap().handle()
        };
        let library = libloading::Library::new(built_library().unwrap()).unwrap();
        let hold = library
            .get::<unsafe extern "C" fn(nvmlDevice_t) -> u32>(b"nvmlSimHold\0")
            .unwrap();
        let code = hold(device);
        std::mem::forget(library);
        code
    };
    assert_eq!(code, SUCCESS);
    println!("held");
    loop {
        std::thread::park();
    }
}
