//! What goes to the NVML thread and comes back from it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::oneshot;

use crate::{
    gpus::{blocked::Blocked, claims::ClaimedPods, inventory::LiveDevice, modes::WantedModes},
    nvml::fault_watch::WatchEvent,
};

pub(super) enum Command {
    Pods(Arc<ClaimedPods>),
    WantedModes(WantedModes),
    /// Why the driver must be left alone; `None`: it may be used.
    Pause(Option<String>),
    Watch(WatchEvent),
    EnsureDevices(Request),
}

/// A container that waits for its devices.
pub(super) struct Request {
    pub(super) pod_uid: String,
    pub(super) container: String,
    pub(super) reply: oneshot::Sender<Result<Vec<LiveDevice>, Blocked>>,
    pub(super) since: Instant,
}

/// The call in which the thread is, and since when; empty while it waits for work.
#[derive(Clone, Default)]
pub(super) struct CurrentCall(Arc<Mutex<Option<(Instant, String)>>>);

impl CurrentCall {
    pub(super) fn set(&self, call: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            call.map(|call| (Instant::now(), call));
    }

    pub(super) fn get(&self) -> Option<(Instant, String)> {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        call.clone()
    }
}
