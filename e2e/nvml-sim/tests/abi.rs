//! The C ABI as an agent meets it: the cdylib, loaded by nvml-wrapper, in processes of their own.
//!
//! Each test starts this program again as [`child_process`] with a state directory in its
//! environment, because the library reads it there, as programs that are not ours do.
#![allow(unsafe_code, reason = "raw calls of the ABI")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test and its child process"
)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    ptr,
};

use nvml_sim::{
    GpuSpec, built_library,
    event::{Event, XID},
    provision,
    store::{Action, Control, Rule, Store},
};
use nvml_wrapper::{
    Nvml, bitmasks::event::EventTypes, enums::device::SampleValue, error::NvmlError,
    structs::device::FieldId,
};
use nvml_wrapper_sys::bindings::{
    NvmlLib, field_id, nvmlComputeInstance_t, nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t,
    nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
};

const SUCCESS: u32 = 0;
const UNINITIALIZED: u32 = 1;
const INVALID_ARGUMENT: u32 = 2;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;
const IN_USE: u32 = 19;
const INSUFFICIENT_RESOURCES: u32 = 23;
/// `info.id` of 1g.10gb on an A100.
const ONE_SLICE: u32 = 19;

fn child(dir: &Path, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_process", "--nocapture"])
        .env("NVML_SIM_DIR", dir)
        .env("ABI_CHILD", what);
    command
}

fn run(dir: &Path, what: &str) {
    let output = child(dir, what).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {text}");
}

/// A process on the first MIG device, or on the whole card.
struct Holder(Child);

impl Holder {
    fn start(dir: &Path, what: &str) -> Self {
        let mut child = child(dir, what).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines
            .map_while(Result::ok)
            .any(|line| line.contains("held"));
        assert!(held, "{what}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(model: &str, mig: bool) -> tempfile::TempDir {
    cards(model, mig, 1)
}

fn cards(model: &str, mig: bool, count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec = GpuSpec {
        model: model.into(),
        mig,
        mirrored: false,
    };
    provision(dir.path(), "abi", &vec![spec; count]).unwrap();
    dir
}

fn order(dir: &Path, call: &str, nth: Option<u64>, action: Action) {
    let rule = Rule {
        call: call.into(),
        gpu: None,
        nth,
        times: Some(1),
        action,
    };
    let control = Control {
        rules: vec![rule],
        ..Control::default()
    };
    Store::new(dir).control(Some(&control)).unwrap();
}

/// The first card, by raw calls.
struct Card {
    lib: NvmlLib,
    device: nvmlDevice_t,
}

impl Card {
    fn open() -> Self {
        // SAFETY: the library is ours and its functions take what the bindings say; handles are plain values.
        unsafe {
            let lib = NvmlLib::new(built_library().unwrap()).unwrap();
            assert_eq!(lib.nvmlInit_v2(), SUCCESS);
            let mut device = ptr::null_mut();
            assert_eq!(
                lib.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device),
                SUCCESS
            );
            Self { lib, device }
        }
    }

    fn create(&self, profile: u32, start: u32, size: u32) -> Result<nvmlGpuInstance_t, u32> {
        let at = nvmlGpuInstancePlacement_t { start, size };
        let mut gi = ptr::null_mut();
        // SAFETY: as in `open`; the pointers are to locals.
        let code = unsafe {
            self.lib.nvmlDeviceCreateGpuInstanceWithPlacement(
                self.device,
                profile,
                &raw const at,
                &raw mut gi,
            )
        };
        if code == SUCCESS { Ok(gi) } else { Err(code) }
    }

    fn create_compute(&self, gi: nvmlGpuInstance_t) -> nvmlComputeInstance_t {
        let mut ci = ptr::null_mut();
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlGpuInstanceCreateComputeInstance(gi, 0, &raw mut ci)
        };
        assert_eq!(code, SUCCESS);
        ci
    }

    fn destroy(&self, gi: nvmlGpuInstance_t) -> u32 {
        // SAFETY: as in `create`; a stale handle is an error of the library.
        unsafe { self.lib.nvmlGpuInstanceDestroy(gi) }
    }

    fn destroy_compute(&self, ci: nvmlComputeInstance_t) -> u32 {
        // SAFETY: as in `destroy`.
        unsafe { self.lib.nvmlComputeInstanceDestroy(ci) }
    }

    fn id(&self, gi: nvmlGpuInstance_t) -> Result<u32, u32> {
        // SAFETY: a plain C struct, for which zeros are a value; then as in `destroy`.
        unsafe {
            let mut info: nvmlGpuInstanceInfo_t = std::mem::zeroed();
            match self.lib.nvmlGpuInstanceGetInfo(gi, &raw mut info) {
                SUCCESS => Ok(info.id),
                code => Err(code),
            }
        }
    }

    /// UUID and MiB of the first MIG device, as nvml-wrapper shows them.
    fn first() -> (String, u64) {
        let nvml = Nvml::builder()
            .lib_path(built_library().unwrap().as_ref())
            .init()
            .unwrap();
        let card = nvml.device_by_index(0).unwrap();
        let mig =
            (0..card.mig_device_count().unwrap()).find_map(|at| card.mig_device_by_index(at).ok());
        let mig = mig.unwrap();
        (mig.uuid().unwrap(), mig.memory_info().unwrap().total >> 20)
    }

    fn set_mig(&self, on: u32) -> (u32, u32) {
        let mut status = 0;
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlDeviceSetMigMode(self.device, on, &raw mut status)
        };
        (code, status)
    }

    fn mig(&self) -> (u32, u32) {
        let (mut current, mut pending) = (9, 9);
        // SAFETY: as in `create`.
        let code = unsafe {
            self.lib
                .nvmlDeviceGetMigMode(self.device, &raw mut current, &raw mut pending)
        };
        assert_eq!(code, SUCCESS);
        (current, pending)
    }

    /// A set that is registered for a device's events.
    fn register(&self, device: nvmlDevice_t, kinds: u64) -> Result<nvmlEventSet_t, u32> {
        let mut set = ptr::null_mut();
        // SAFETY: as in `create`.
        let code = unsafe {
            assert_eq!(self.lib.nvmlEventSetCreate(&raw mut set), SUCCESS);
            self.lib.nvmlDeviceRegisterEvents(device, kinds, set)
        };
        if code == SUCCESS { Ok(set) } else { Err(code) }
    }

    /// The next event: data, GPU instance and compute instance.
    fn wait(&self, set: nvmlEventSet_t, timeout_ms: u32) -> Result<(u64, u32, u32), u32> {
        // SAFETY: a plain C struct, for which zeros are a value; then as in `create`.
        unsafe {
            let mut event: nvmlEventData_t = std::mem::zeroed();
            match self
                .lib
                .nvmlEventSetWait_v2(set, &raw mut event, timeout_ms)
            {
                SUCCESS => {
                    assert_eq!((event.device, event.eventType), (self.device, XID));
                    Ok((
                        event.eventData,
                        event.gpuInstanceId,
                        event.computeInstanceId,
                    ))
                }
                code => Err(code),
            }
        }
    }

    fn shutdown(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { self.lib.nvmlShutdown() }
    }
}

/// Stays on a device until it is killed.
fn hold(whole: bool) {
    let nvml = Nvml::builder()
        .lib_path(built_library().unwrap().as_ref())
        .init()
        .unwrap();
    let card = nvml.device_by_index(0).unwrap();
    let mig =
        (0..card.mig_device_count().unwrap_or(0)).find_map(|at| card.mig_device_by_index(at).ok());
    // SAFETY: the handle is this library's; the symbol is its own and takes a handle.
    let code = unsafe {
        let device = if whole {
            card.handle()
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

/// What the tests run in a process of its own; nothing without `ABI_CHILD`.
#[test]
fn child_process() {
    let Ok(what) = std::env::var("ABI_CHILD") else {
        return;
    };
    match what.as_str() {
        "life" => life(),
        "held" => {
            let card = Card::open();
            // SAFETY: as in `Card::create`.
            let (mut gi, mut ci) = (ptr::null_mut(), ptr::null_mut());
            let code = unsafe {
                let id = own_dir().snapshot().unwrap().cards[0].instances[0].id;
                let code = card
                    .lib
                    .nvmlDeviceGetGpuInstanceById(card.device, id, &raw mut gi);
                assert_eq!(code, SUCCESS);
                card.lib
                    .nvmlGpuInstanceGetComputeInstanceById(gi, 0, &raw mut ci)
            };
            assert_eq!(code, SUCCESS);
            assert_eq!(card.destroy_compute(ci), IN_USE);
            assert_eq!(card.destroy(gi), IN_USE);
        }
        "make" => {
            let card = Card::open();
            let gi = card.create(ONE_SLICE, 2, 1).unwrap();
            card.create_compute(gi);
        }
        "make-in-use" => assert_eq!(Card::open().create(ONE_SLICE, 2, 1), Err(IN_USE)),
        "make-refused" => {
            let card = Card::open();
            assert!(card.create(ONE_SLICE, 0, 1).is_ok());
            assert_eq!(card.create(ONE_SLICE, 1, 1), Err(INSUFFICIENT_RESOURCES));
            assert!(card.create(ONE_SLICE, 1, 1).is_ok(), "the fault is over");
        }
        "enable-busy" => {
            let card = Card::open();
            assert_eq!(card.mig(), (0, 0));
            assert_eq!(
                card.set_mig(1),
                (SUCCESS, IN_USE),
                "two results, the second says no"
            );
            assert_eq!(card.mig(), (0, 1));
        }
        "enabled" => assert_eq!(Card::open().mig(), (1, 1)),
        "events" => events(&own_dir()),
        "health" => health(&own_dir()),
        "lost" => lost(&own_dir()),
        "enable-later" => {
            let card = Card::open();
            assert_eq!(card.set_mig(1), (SUCCESS, IN_USE), "the status says no");
            assert_eq!(card.mig(), (0, 1));
            assert_eq!(card.set_mig(1), (SUCCESS, SUCCESS), "the fault is over");
            assert_eq!(card.mig(), (1, 1));
        }
        "session" => session(&own_dir()),
        "hold" => hold(false),
        "hold-card" => hold(true),
        other => panic!("no child {other}"),
    }
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
    let card = Card::open();
    store.raise(xid(13, None)).unwrap();
    let set = card.register(card.device, XID).unwrap();
    assert_eq!(card.wait(set, 0), Err(TIMEOUT), "13 was before");
    store.double_bit_error(0).unwrap();
    store.raise(xid(94, Some((9, 0)))).unwrap();
    store.raise(xid(79, None)).unwrap();
    assert_eq!(
        card.wait(set, 0),
        Ok((94, 9, 0)),
        "no ECC event, not asked for"
    );
    assert_eq!(card.wait(set, 0), Ok((79, UNATTRIBUTED, UNATTRIBUTED)));
    assert_eq!(card.wait(set, 1), Err(TIMEOUT), "each arrives once");
    std::thread::scope(|scope| {
        scope.spawn(|| store.raise(xid(48, None)).unwrap());
        let minute = 60_000;
        assert_eq!(card.wait(set, minute), Ok((48, UNATTRIBUTED, UNATTRIBUTED)));
    });
    // SAFETY: as in `Card::create`; a stale handle is an error of the library.
    let free = || unsafe { card.lib.nvmlEventSetFree(set) };
    assert_eq!((free(), free()), (SUCCESS, INVALID_ARGUMENT));
    assert_eq!(card.wait(set, 0), Err(INVALID_ARGUMENT));
    let gi = card.create(ONE_SLICE, 0, 1).unwrap();
    card.create_compute(gi);
    let mut mig = ptr::null_mut();
    // SAFETY: as in `Card::create`.
    let code = unsafe {
        card.lib
            .nvmlDeviceGetMigDeviceHandleByIndex(card.device, 0, &raw mut mig)
    };
    assert_eq!(code, SUCCESS);
    assert_eq!(
        card.register(mig, XID),
        Err(INVALID_ARGUMENT),
        "events are of cards"
    );
}

/// What an agent reads of an ailing card, by nvml-wrapper where it wraps it.
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
    store.with(|state| state.cards[0].reset()).unwrap();
    assert_eq!((rows(), action()), ([0, 1, 0, 0], SampleValue::U32(0)));
    let name = nvml.sys_process_name(std::process::id(), 4096).unwrap();
    assert_eq!(Some(name), std::env::args().next());
}

fn lost(store: &Store) {
    let card = Card::open();
    let gi = card.create(ONE_SLICE, 0, 1).unwrap();
    let id = card.id(gi);
    let set = card.register(card.device, XID).unwrap();
    let lose = |lost| store.with(|state| state.cards[0].lost = lost).unwrap();
    lose(true);
    store.raise(xid(79, None)).unwrap();
    assert_eq!(card.wait(set, 0), Ok((79, UNATTRIBUTED, UNATTRIBUTED)));
    assert_eq!(card.wait(set, 0), Err(GPU_IS_LOST), "after all events");
    assert_eq!(card.wait(set, 0), Err(TIMEOUT), "and once");
    assert_eq!(card.id(gi), Err(GPU_IS_LOST));
    assert_eq!(card.create(ONE_SLICE, 1, 1), Err(GPU_IS_LOST));
    let uuid = store.snapshot().unwrap().cards[0].uuid();
    let uuid = std::ffi::CString::new(uuid).unwrap();
    let (mut device, mut index) = (ptr::null_mut(), 0);
    // SAFETY: as in `Card::create`.
    unsafe {
        let lib = &card.lib;
        let code = lib.nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &raw mut device);
        assert_eq!(code, GPU_IS_LOST);
        let by_index = |at, device| lib.nvmlDeviceGetHandleByIndex_v2(at, device);
        assert_eq!(by_index(0, &raw mut device), GPU_IS_LOST);
        assert_eq!(by_index(1, &raw mut device), SUCCESS);
        assert_eq!(lib.nvmlDeviceGetIndex(device, &raw mut index), SUCCESS);
    }
    assert_eq!(index, 1, "the others stay where they are");
    lose(false);
    assert_eq!(card.wait(set, 0), Err(TIMEOUT));
    assert_eq!(card.id(gi), id, "nothing of it was lost");
    lose(true);
    assert_eq!(card.wait(set, 0), Err(GPU_IS_LOST), "another loss");
}

fn session(store: &Store) {
    let (first, second) = (Card::open(), Card::open());
    assert_eq!(store.sessions(), 1, "one a process");
    assert_eq!(first.shutdown(), SUCCESS);
    assert_eq!(store.sessions(), 1, "opened twice");
    assert_eq!((second.shutdown(), store.sessions()), (SUCCESS, 0));
    assert_eq!(second.shutdown(), UNINITIALIZED);
}

fn life() {
    let card = Card::open();
    // Placements: legal, taken, illegal, of no profile.
    let gi = card.create(ONE_SLICE, 3, 1).unwrap();
    assert_eq!(card.create(ONE_SLICE, 3, 1), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(
        card.create(9, 0, 4),
        Err(INSUFFICIENT_RESOURCES),
        "3g.40gb overlaps"
    );
    assert_eq!(card.create(ONE_SLICE, 7, 1), Err(INVALID_ARGUMENT));
    assert_eq!(card.create(99, 0, 1), Err(INVALID_ARGUMENT));
    assert_ne!(card.id(gi), Ok(3), "an id is no start");
    // A compute instance holds its GPU instance; the MIG device is both.
    let ci = card.create_compute(gi);
    let (uuid, mib) = Card::first();
    assert!(uuid.starts_with("MIG-") && mib == 9_728, "{uuid} {mib}");
    assert_eq!(card.destroy(gi), IN_USE);
    assert_eq!(card.destroy_compute(ci), SUCCESS);
    assert_eq!(card.destroy(gi), SUCCESS);
    // A stale handle, and the same UUID for the same place.
    assert_eq!(
        (card.destroy(gi), card.id(gi)),
        (INVALID_ARGUMENT, Err(INVALID_ARGUMENT))
    );
    let again = card.create(ONE_SLICE, 3, 1).unwrap();
    card.create_compute(again);
    assert_eq!(Card::first().0, uuid);
    assert_eq!(
        card.id(gi),
        Err(INVALID_ARGUMENT),
        "an old handle is not the new instance"
    );
}

#[test]
fn an_instance_is_made_seen_and_removed() {
    run(node("a100-80gb", true).path(), "life");
}

#[test]
fn a_process_on_a_device_keeps_it() {
    let dir = node("a100-80gb", true);
    run(dir.path(), "make");
    let holder = Holder::start(dir.path(), "hold");
    run(dir.path(), "held");
    drop(holder);
    assert!(Store::new(dir.path()).holders().is_empty());
    assert_eq!(
        Store::new(dir.path()).snapshot().unwrap().cards[0]
            .instances
            .len(),
        1
    );
}

#[test]
fn a_client_of_the_whole_card_forbids_the_first_instance() {
    let dir = node("h100-80gb", true);
    let holder = Holder::start(dir.path(), "hold-card");
    run(dir.path(), "make-in-use");
    drop(holder);
    run(dir.path(), "make");
}

#[test]
fn ampere_takes_a_new_mode_at_the_reset() {
    let dir = node("a100-80gb", false);
    let holder = Holder::start(dir.path(), "hold-card");
    run(dir.path(), "enable-busy");
    drop(holder);
    let store = Store::new(dir.path());
    store.with(|state| state.cards[0].reset()).unwrap();
    run(dir.path(), "enabled");
}

#[test]
fn an_xid_arrives_once_with_its_instance_and_none_from_before() {
    run(node("a100-80gb", true).path(), "events");
}

#[test]
fn an_ailing_card_says_what_it_needs() {
    run(node("a100-80gb", true).path(), "health");
}

#[test]
fn a_lost_card_is_lost_to_every_call_and_the_others_stay() {
    run(cards("h100-80gb", true, 2).path(), "lost");
}

#[test]
fn a_mode_that_is_not_activated_stays_pending() {
    let dir = node("h100-80gb", false);
    order(
        dir.path(),
        "nvmlDeviceSetMigMode",
        None,
        Action::Activation(IN_USE),
    );
    run(dir.path(), "enable-later");
}

#[test]
fn a_reset_waits_until_nobody_has_the_card_open() {
    let dir = node("a100-80gb", true);
    run(dir.path(), "session");
    run(dir.path(), "make");
    let store = Store::new(dir.path());
    let uuid = store.snapshot().unwrap().cards[0].uuid();
    let reset = || {
        let output = Command::new(env!("CARGO_BIN_EXE_nvml-sim"))
            .args(["nvidia-smi", "--gpu-reset", "-i", &uuid])
            .env("NVML_SIM_DIR", dir.path())
            .output()
            .unwrap();
        // A backtrace may follow.
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or_default().to_owned();
        let instances = store.snapshot().unwrap().cards[0].instances.len();
        (output.status.success(), words, instances)
    };
    let holder = Holder::start(dir.path(), "hold-card");
    let refusal = "Error: GPU 0 is in use by another client: 1 NVML session, 1 process";
    assert_eq!(reset(), (false, refusal.to_owned(), 1));
    drop(holder);
    assert_eq!(reset(), (true, String::new(), 0));
}

#[test]
fn the_second_call_fails_as_ordered() {
    let dir = node("a100-80gb", true);
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    order(
        dir.path(),
        call,
        Some(2),
        Action::Code(INSUFFICIENT_RESOURCES),
    );
    run(dir.path(), "make-refused");
}

#[test]
fn a_caller_dies_before_or_after_its_call() {
    let call = "nvmlDeviceCreateGpuInstanceWithPlacement";
    for (action, instances) in [(Action::KillBefore, 0), (Action::KillAfter, 1)] {
        let dir = node("a100-80gb", true);
        order(dir.path(), call, None, action);
        let status = child(dir.path(), "make").output().unwrap().status;
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        let cards = Store::new(dir.path()).snapshot().unwrap().cards;
        assert_eq!(cards[0].instances.len(), instances);
        assert!(
            cards[0]
                .instances
                .iter()
                .all(|instance| instance.compute.is_empty())
        );
    }
}
