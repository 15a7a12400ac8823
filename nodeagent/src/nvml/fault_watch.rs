//! Faults that GPUs report by themselves: XIDs, double bit ECC errors, a GPU that is lost.
//!
//! A thread of its own waits for them, in a session of its own: NVML keeps only the last of several XIDs that came
//! between two waits, so the waiting thread must do nothing else (NVML manual, `nvmlEventSetWait_v2`).

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings as sys;

use super::{
    data::{Fault, FaultKind},
    error::{Code, NvmlError, call},
    session::Session,
};

/// How long one wait lasts, in milliseconds: how late a stop is noticed.
const WAIT_TIMEOUT_MS: u32 = 1_000;
/// Pause after NVML could not be waited on at all.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long a stop waits for the thread.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// `NVML_ERROR_TIMEOUT`.
const TIMEOUT: Code = Code(10);
/// What NVML writes where an event is not of an instance.
const NO_INSTANCE: u32 = u32::MAX;

/// What the thread reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WatchEvent {
    /// A GPU reported a fault.
    Fault(Fault),
    /// The GPUs have to be surveyed: one does not answer, or the wait begins and earlier faults were not seen.
    SurveyNeeded,
}

/// The thread that waits for faults.
#[derive(Debug)]
pub(crate) struct FaultWatch {
    gpus: BTreeSet<String>,
    stop: Arc<AtomicBool>,
    ended: mpsc::Receiver<()>,
}

impl FaultWatch {
    /// Waits for faults of these GPUs from now on, and hands each to `report`.
    pub(crate) fn start(
        library: Option<OsString>,
        gpus: BTreeSet<String>,
        report: impl Fn(WatchEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel();
        let (watched, stopped) = (gpus.clone(), stop.clone());
        std::thread::Builder::new()
            .name("nvml-events".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    if let Err(error) = watch(library.as_deref(), &watched, &report, &stopped) {
                        tracing::warn!(%error, "Cannot wait for GPU faults, retrying");
                        report(WatchEvent::SurveyNeeded);
                        let retry_at = Instant::now() + RETRY_INTERVAL;
                        while Instant::now() < retry_at && !stopped.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(200));
                        }
                    }
                }
                let _ = end.send(());
            })?;
        Ok(Self { gpus, stop, ended })
    }

    /// Whether it watches all of these GPUs.
    pub(crate) fn covers(&self, gpus: &BTreeSet<String>) -> bool {
        gpus.is_subset(&self.gpus)
    }

    /// Ends the thread and its session. A thread that hangs in NVML is abandoned.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.ended.recv_timeout(STOP_TIMEOUT);
    }
}

fn watch(
    library: Option<&OsStr>,
    gpus: &BTreeSet<String>,
    report: &impl Fn(WatchEvent),
    stopped: &AtomicBool,
) -> Result<(), NvmlError> {
    let session = Session::open(library)?;
    let mut set = ptr::null_mut();
    call!(session, nvmlEventSetCreate(&raw mut set))?;
    register(&session, set, gpus, report);
    report(WatchEvent::SurveyNeeded);
    let result = wait(&session, set, report, stopped);
    let _ = call!(session, nvmlEventSetFree(set));
    result
}

/// Registers for the faults of all GPUs. One that is lost or reports no faults must not keep the others from being
/// watched.
fn register(
    session: &Session,
    set: sys::nvmlEventSet_t,
    gpus: &BTreeSet<String>,
    report: &impl Fn(WatchEvent),
) {
    let wanted = u64::from(sys::nvmlEventTypeXidCriticalError)
        | u64::from(sys::nvmlEventTypeDoubleBitEccError);
    for gpu in gpus {
        let registered = session.device(gpu).and_then(|device| {
            let mut supported = 0;
            call!(
                session,
                nvmlDeviceGetSupportedEventTypes(device, &raw mut supported)
            )?;
            call!(
                session,
                nvmlDeviceRegisterEvents(device, wanted & supported, set)
            )
        });
        if let Err(error) = registered {
            tracing::warn!(gpu, %error, "Cannot watch a GPU for faults");
            if error.code() == Some(Code::GPU_IS_LOST) {
                report(WatchEvent::SurveyNeeded);
            }
        }
    }
}

/// Reports faults until it is stopped or NVML fails.
fn wait(
    session: &Session,
    set: sys::nvmlEventSet_t,
    report: &impl Fn(WatchEvent),
    stopped: &AtomicBool,
) -> Result<(), NvmlError> {
    while !stopped.load(Ordering::Relaxed) {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut data: sys::nvmlEventData_t = unsafe { std::mem::zeroed() };
        match call!(
            session,
            nvmlEventSetWait_v2(set, &raw mut data, WAIT_TIMEOUT_MS)
        ) {
            Ok(()) => {
                if let Some(kind) = kind(&data) {
                    report(WatchEvent::Fault(Fault {
                        gpu: session.uuid_of_known(data.device),
                        instance: (data.gpuInstanceId != NO_INSTANCE).then_some(data.gpuInstanceId),
                        kind,
                    }));
                }
            }
            Err(error) if error.code() == Some(TIMEOUT) => {}
            Err(error) if error.code() == Some(Code::GPU_IS_LOST) => {
                report(WatchEvent::SurveyNeeded);
                // The call returns at once as long as the GPU is lost.
                std::thread::sleep(Duration::from_millis(WAIT_TIMEOUT_MS.into()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn kind(data: &sys::nvmlEventData_t) -> Option<FaultKind> {
    let is = |kind: u32| data.eventType & u64::from(kind) != 0;
    if is(sys::nvmlEventTypeXidCriticalError) {
        Some(FaultKind::Xid(data.eventData))
    } else if is(sys::nvmlEventTypeDoubleBitEccError) {
        Some(FaultKind::DoubleBitEcc)
    } else {
        None
    }
}

impl Session {
    /// UUID of the GPU of a handle. A lost GPU does not report it any more, but its handle is the same as before.
    fn uuid_of_known(&self, device: sys::nvmlDevice_t) -> Option<String> {
        self.uuid(device).ok().or_else(|| {
            let handles = self.handles.borrow();
            let known = handles.iter().find(|(_, known)| **known == device);
            known.map(|(uuid, _)| uuid.clone())
        })
    }
}
