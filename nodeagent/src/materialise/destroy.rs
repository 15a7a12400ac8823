//! How an instance is destroyed, and what happens when it cannot be.

use std::time::{Duration, Instant};

use super::{
    error::ActionError,
    worker::{Worker, millis},
};
use crate::{
    gpus::{
        event::AgentEvent,
        instance::{Ownership, QUARANTINE_AFTER},
        retry::destroy_interval,
    },
    nvml::{data::LiveInstance, error::Code, error::NvmlError, session::Session},
};

impl Worker {
    pub(super) fn destroy(
        &mut self,
        session: &Session,
        gpu: &str,
        id: u32,
    ) -> Result<(), ActionError> {
        let started = Instant::now();
        let Some(instance) = self.state.instance(gpu, id) else {
            return Ok(());
        };
        let Some(generation) = instance.generation else {
            return Err(ActionError::Foreign);
        };
        let live = instance.live.clone();
        let failures = match &instance.ownership {
            Ownership::Stuck { failures, .. } => *failures,
            _ => 0,
        };
        let result = session.destroy(gpu, &live);
        self.metrics
            .observe_destruction(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => {
                self.destroyed(gpu, &live, failures, started.elapsed());
                self.release(generation);
                Ok(())
            }
            Err(error) => {
                self.destroy_failed(gpu, id, failures + 1, &error);
                if error.code() != Some(Code::IN_USE) {
                    self.survey(session);
                }
                Err(error.into())
            }
        }
    }

    fn destroyed(&mut self, gpu: &str, live: &LiveInstance, failures: u32, duration: Duration) {
        let id = live.id;
        tracing::info!(
            gpu,
            id,
            start = live.start,
            ms = millis(duration),
            "Destroyed an instance"
        );
        if let Some(state) = self.state.gpu_mut(gpu) {
            state.instances.retain(|instance| instance.live.id != id);
        }
        if failures >= QUARANTINE_AFTER {
            let message = format!(
                "GPU instance {id} of {gpu} was destroyed after {failures} failures; its slices are offered again"
            );
            self.report(AgentEvent::note(None, "InstanceReleased", message));
        }
    }

    fn destroy_failed(&mut self, gpu: &str, id: u32, failures: u32, error: &NvmlError) {
        tracing::warn!(gpu, id, failures, %error, "Cannot destroy an instance");
        let retry_at = self.now() + destroy_interval(failures);
        if let Some(instance) = self.state.instance_mut(gpu, id) {
            instance.ownership = Ownership::Stuck {
                failures,
                retry_at,
                reason: error.to_string(),
            };
        }
        if failures == QUARANTINE_AFTER {
            let message = format!(
                "GPU instance {id} of {gpu} cannot be destroyed ({error}); its slices are not offered until it is"
            );
            self.report(AgentEvent::warning(None, "InstanceQuarantined", message));
        }
    }
}
