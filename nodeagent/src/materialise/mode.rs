//! How the mode of a GPU is changed.

use domain::mode::VgpuMode;

use super::{
    error::{ActionError, ModeError},
    worker::Worker,
};
use crate::{
    gpus::{clock::Millis, event::AgentEvent, state::Attempt},
    nvml::session::Session,
};

/// Pause after a change of mode that failed, in milliseconds.
const MODE_RETRY_INTERVAL_MS: Millis = 10_000;

impl Worker {
    pub(super) fn set_mode(
        &mut self,
        session: &Session,
        gpu: &str,
        mode: VgpuMode,
    ) -> Result<(), ActionError> {
        let result = self.change_mode(session, gpu, mode == VgpuMode::Mig);
        let retry_at = self.now() + MODE_RETRY_INTERVAL_MS;
        self.survey(session);
        if let Some(state) = self.state.gpu_mut(gpu) {
            state.failed_mode_change = result.as_ref().err().map(|error| Attempt {
                outcome: error.to_string(),
                retry_at,
            });
            if result.is_ok() {
                // A change of mode leaves no instances and no clients, and on Ampere comes with a reset: whatever
                // kept instances from being created is likely over.
                state.creation_backoff = None;
            }
        }
        self.report(match &result {
            Ok(()) => {
                tracing::info!(gpu, %mode, "Changed the mode of a GPU");
                let message = format!("GPU {gpu} now works in mode {mode}");
                AgentEvent::note(None, "ModeChanged", message)
            }
            Err(error) => {
                tracing::warn!(gpu, %mode, %error, "Cannot change the mode of a GPU");
                let message = format!("GPU {gpu} cannot change to mode {mode}: {error}");
                AgentEvent::warning(None, "ModeChangeFailed", message)
            }
        });
        Ok(result?)
    }

    fn change_mode(&mut self, session: &Session, gpu: &str, enable: bool) -> Result<(), ModeError> {
        self.check_no_clients(session, gpu)?;
        self.stop_fault_watch();
        let Err(error) = session.set_mig_mode(gpu, enable) else {
            return Ok(());
        };
        // On Ampere the mode is only pending, and in force after a reset.
        let mode = session.mode_of(gpu)?;
        let is_pending = mode.is_some_and(|mode| mode.pending == enable && mode.current != enable);
        if !is_pending || self.settings.reset_command.is_empty() {
            return Err(error.into());
        }
        if let Err(reset) = self.reset(session, gpu) {
            return Err(ModeError::Reset {
                cause: error,
                reset: Box::new(reset),
            });
        }
        match session.mode_of(gpu) {
            Ok(Some(mode)) if mode.current == enable => Ok(()),
            _ => Err(ModeError::StillPending(error)),
        }
    }
}
