//! The driver is left alone while it is upgraded: no session is open, and nothing is offered.

use std::time::Instant;

use tokio::runtime::Runtime;

use super::worker::Worker;
use crate::{gpus::blocked::Blocked, nvml::session::Session};

impl Worker {
    /// Closes NVML until the driver may be used again. Returns `false` when every handle was dropped in the meantime:
    /// then it stays closed.
    pub(super) fn leave_driver(&mut self, session: &Session, runtime: &Runtime) -> bool {
        self.stop_fault_watch();
        self.channels.current_call.set(None);
        session.close();
        if !self.wait_while_paused(runtime) {
            return false;
        }
        let reopened = session.reopen();
        self.take_reopened(reopened);
        // The instances of the old driver are gone.
        self.schedule.request(Instant::now());
        true
    }

    /// Waits until the driver may be used. Returns `false` when every handle was dropped in the meantime.
    pub(super) fn wait_while_paused(&mut self, runtime: &Runtime) -> bool {
        let Some(reason) = self.pause.clone() else {
            return true;
        };
        tracing::info!(reason, "Leaving the driver alone");
        while let Some(reason) = self.pause.clone() {
            for request in std::mem::take(&mut self.requests) {
                // kubelet asks again.
                let _ = request.reply.send(Err(Blocked::Paused(reason.clone())));
            }
            self.publish();
            match runtime.block_on(self.channels.inbox.recv()) {
                Some(command) => self.take_command(command),
                None => return false,
            }
        }
        tracing::info!("The driver may be used again");
        true
    }
}
