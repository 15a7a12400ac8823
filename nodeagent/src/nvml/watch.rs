//! Faults that cards tell by themselves: XIDs, double bit ECC errors, a card that is lost.
//!
//! A thread of its own waits for them, in a session of its own: NVML keeps only the last XID of several that came
//! between two waits, so nobody may be late (NVML manual, `nvmlEventSetWait_v2`).

use std::{
    ffi::OsString,
    io, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings as sys;

use super::{Cards, Code, NvmlError, call};

/// How long one wait lasts, milliseconds: how late a stop is noticed.
const WAIT_MS: u32 = 1_000;
/// How long after NVML could not be waited on at all.
const AGAIN: Duration = Duration::from_secs(10);
/// `NVML_ERROR_TIMEOUT`.
const TIMEOUT: Code = Code(10);
/// What NVML writes where an event is of no instance.
const NO_INSTANCE: u32 = u32::MAX;

/// A fault that a card told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// UUID of the card; `None`: NVML did not say which.
    pub gpu: Option<String>,
    /// GPU instance id, where the fault is of one instance alone.
    pub instance: Option<u32>,
    /// What it is.
    pub event: Event,
}

/// What a card told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An error of the driver's list (`nvmlEventTypeXidCriticalError`).
    Xid(u64),
    /// An uncorrectable memory error (`nvmlEventTypeDoubleBitEccError`).
    DoubleBitEcc,
    /// All cards are to be looked at: one does not answer, or the wait begins and what happened before is not told.
    Look,
}

/// All cards are to be looked at.
const LOOK: Fault = Fault {
    gpu: None,
    instance: None,
    event: Event::Look,
};

/// The thread that waits for faults.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    ended: mpsc::Receiver<()>,
}

impl Watch {
    /// Waits for faults of these cards, from now on, and hands each to `tell`.
    pub fn start(
        library: Option<OsString>,
        cards: Vec<String>,
        tell: impl Fn(Fault) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel();
        let stopped = stop.clone();
        std::thread::Builder::new()
            .name("nvml-events".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    if let Err(error) = watch(library.as_deref(), &cards, &tell, &stopped) {
                        tracing::warn!(%error, "Cannot wait for faults of the cards, trying again");
                        tell(LOOK);
                        let again = Instant::now() + AGAIN;
                        while Instant::now() < again && !stopped.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(200));
                        }
                    }
                }
                let _ = end.send(());
            })?;
        Ok(Self { stop, ended })
    }

    /// Ends the thread and its session; one that hangs in NVML is left behind.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.ended.recv_timeout(Duration::from_secs(5));
    }
}

fn watch(
    library: Option<&std::ffi::OsStr>,
    uuids: &[String],
    tell: &impl Fn(Fault),
    stopped: &AtomicBool,
) -> Result<(), NvmlError> {
    let cards = Cards::open(library)?;
    let mut set = ptr::null_mut();
    call!(cards, nvmlEventSetCreate(&raw mut set))?;
    let result = wait(&cards, set, uuids, tell, stopped);
    let _ = call!(cards, nvmlEventSetFree(set));
    result
}

fn wait(
    cards: &Cards,
    set: sys::nvmlEventSet_t,
    uuids: &[String],
    tell: &impl Fn(Fault),
    stopped: &AtomicBool,
) -> Result<(), NvmlError> {
    let kinds = [
        sys::nvmlEventTypeXidCriticalError,
        sys::nvmlEventTypeDoubleBitEccError,
    ];
    for uuid in uuids {
        // One card that is lost or tells no faults is no reason not to hear the others.
        let registered = cards.device(uuid).and_then(|device| {
            let mut told = 0;
            call!(
                cards,
                nvmlDeviceGetSupportedEventTypes(device, &raw mut told)
            )?;
            let wanted = kinds.iter().fold(0, |all, kind| all | u64::from(*kind)) & told;
            call!(cards, nvmlDeviceRegisterEvents(device, wanted, set))
        });
        if let Err(error) = registered {
            tracing::warn!(gpu = uuid, %error, "The card's faults cannot be watched");
            if error.code() == Some(Code::GPU_IS_LOST) {
                tell(LOOK);
            }
        }
    }
    tell(LOOK);
    while !stopped.load(Ordering::Relaxed) {
        // SAFETY: a plain C struct, for which zeros are a value.
        let mut data: sys::nvmlEventData_t = unsafe { std::mem::zeroed() };
        match call!(cards, nvmlEventSetWait_v2(set, &raw mut data, WAIT_MS)) {
            Ok(()) => {
                let of_kind = |kind: u32| data.eventType & u64::from(kind) != 0;
                let event = if of_kind(sys::nvmlEventTypeXidCriticalError) {
                    Event::Xid(data.eventData)
                } else if of_kind(sys::nvmlEventTypeDoubleBitEccError) {
                    Event::DoubleBitEcc
                } else {
                    continue;
                };
                tell(Fault {
                    gpu: cards.whose(data.device),
                    instance: (data.gpuInstanceId != NO_INSTANCE).then_some(data.gpuInstanceId),
                    event,
                });
            }
            Err(error) if error.code() == Some(TIMEOUT) => {}
            Err(error) if error.code() == Some(Code::GPU_IS_LOST) => {
                tell(LOOK);
                std::thread::sleep(Duration::from_millis(WAIT_MS.into()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Cards {
    /// UUID of the card of a handle: one that is lost does not tell it any more, but its handle is the same.
    fn whose(&self, device: sys::nvmlDevice_t) -> Option<String> {
        self.uuid(device).ok().or_else(|| {
            let handles = self.handles.borrow();
            let known = handles.iter().find(|(_, known)| **known == device);
            known.map(|(uuid, _)| uuid.clone())
        })
    }
}
