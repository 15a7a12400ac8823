//! How a GPU is reset.

use std::process::Command;

use super::{
    error::{ActionError, InUse, ResetError},
    proc,
    worker::Worker,
};
use crate::{
    gpus::{clock::Millis, event::AgentEvent, state::Attempt},
    nvml::session::Session,
};

/// Pause after a reset that failed or did not help, in milliseconds.
const RESET_RETRY_INTERVAL_MS: Millis = 600_000;

impl Worker {
    /// Resets a GPU because it is unhealthy.
    pub(super) fn reset_unhealthy(
        &mut self,
        session: &Session,
        gpu: &str,
    ) -> Result<(), ActionError> {
        let result = self.reset(session, gpu);
        self.survey(session);
        let retry_at = self.now() + RESET_RETRY_INTERVAL_MS;
        if let Some(state) = self.state.gpu_mut(gpu) {
            let failure = result.as_ref().err().map(ToString::to_string);
            state.last_reset = Some(Attempt {
                outcome: failure.unwrap_or_else(|| "was reset".to_owned()),
                retry_at,
            });
            if result.is_ok() {
                state.fault = None;
            }
        }
        self.report(match &result {
            Ok(()) => {
                let message = format!("GPU {gpu} was reset because it was unhealthy");
                AgentEvent::note(None, "GpuReset", message)
            }
            Err(error) => {
                tracing::warn!(gpu, %error, "Cannot reset a GPU");
                let message = format!("GPU {gpu} cannot be reset: {error}");
                AgentEvent::warning(None, "GpuResetFailed", message)
            }
        });
        Ok(result?)
    }

    /// Runs the reset command of the settings, while this process has no session open.
    pub(super) fn reset(&mut self, session: &Session, gpu: &str) -> Result<(), ResetError> {
        self.check_no_clients(session, gpu)?;
        self.stop_fault_watch();
        let template = self.settings.reset_command.iter();
        let words: Vec<String> = template.map(|word| word.replace("{uuid}", gpu)).collect();
        let (program, arguments) = words.split_first().ok_or(ResetError::NoCommand)?;
        let command = words.join(" ");
        tracing::info!(gpu, command, "Resetting a GPU");
        self.channels.current_call.set(Some(command.clone()));
        let run = || Command::new(program).args(arguments).output();
        let output = self
            .reopen_session_around(session, run)
            .ok_or(ResetError::Reopen)?
            .map_err(|error| ResetError::Start {
                program: program.clone(),
                error,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let output = [output.stdout, output.stderr].concat();
        let output = String::from_utf8_lossy(&output).trim().to_owned();
        Err(ResetError::Command { command, output })
    }

    /// Fails with the names of the processes that have a GPU open.
    pub(super) fn check_no_clients(&self, session: &Session, gpu: &str) -> Result<(), InUse> {
        // Where NVML cannot list them, the action itself fails.
        let clients = session.clients(gpu).unwrap_or_default();
        if clients.is_empty() {
            return Ok(());
        }
        let names = clients.iter().map(|client| {
            let command = proc::command(&self.settings.proc, client.pid);
            let name = if command.is_empty() {
                &client.name
            } else {
                &command
            };
            format!("{name} (process {})", client.pid)
        });
        Err(InUse(names.collect::<Vec<_>>().join(", ")))
    }
}
