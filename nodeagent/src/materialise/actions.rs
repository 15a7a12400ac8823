//! How an action is carried out.

use super::{error::ActionError, proc, worker::Worker};
use crate::{
    gpus::{action::Action, instance::Ownership, retry::check_interval},
    nvml::{
        error::{Code, NvmlError},
        session::Session,
    },
};

impl Worker {
    /// Carries out one action. A failure is recorded in the state and reported already.
    pub(super) fn perform(&mut self, session: &Session, action: Action) -> Result<(), ActionError> {
        tracing::debug!(%action, "Next action");
        self.channels.current_call.set(Some(action.to_string()));
        match action {
            Action::Create { container, slot } => self.create(session, container, slot)?,
            Action::RejectClaim {
                container,
                slot,
                reason,
            } => {
                self.creation_failed(container, slot, reason.clone(), false);
                return Err(ActionError::Rejected(reason));
            }
            Action::Destroy { gpu, id } => self.destroy(session, &gpu, id)?,
            Action::CheckProcesses { gpu, id } => self.check_processes(session, &gpu, id),
            Action::SetMode { gpu, mode } => self.set_mode(session, &gpu, mode)?,
            Action::Reset { gpu } => self.reset_unhealthy(session, &gpu)?,
            Action::EndBackoff { gpu } => {
                let state = self.state.gpu_mut(&gpu);
                if let Some(backoff) = state.and_then(|state| state.creation_backoff.as_mut()) {
                    backoff.is_over = true;
                }
            }
        }
        Ok(())
    }

    /// Checks whether processes still run on an instance without a pod, or of its last pod anywhere on the node.
    fn check_processes(&mut self, session: &Session, gpu: &str, id: u32) {
        let now = self.now();
        let Some(instance) = self.state.instance_mut(gpu, id) else {
            return;
        };
        let Ownership::Lingering {
            last,
            check_at,
            checks,
        } = &mut instance.ownership
        else {
            return;
        };
        *check_at = now + check_interval(*checks);
        *checks += 1;
        let (live, last) = (instance.live.clone(), last.clone());
        let runs = match session.processes(gpu, &live) {
            Ok(pids) if !pids.is_empty() => true,
            // A process of the pod that has not opened the device yet still could.
            Ok(_) => last.is_some_and(|last| proc::has_processes(&self.settings.proc, &last.uid)),
            Err(error) => {
                tracing::warn!(gpu, id, %error, "Cannot check an instance for processes");
                if is_stale(&error) {
                    self.survey(session);
                }
                true
            }
        };
        if !runs
            && let Some(instance) = self.state.instance_mut(gpu, id)
            && instance.live == live
        {
            instance.ownership = Ownership::Idle { since: now };
            self.state.assign_instances(now);
            self.record_owners();
        }
    }
}

/// Whether an instance is not there, or not as it was: the last survey is out of date.
fn is_stale(error: &NvmlError) -> bool {
    matches!(
        error.code(),
        Some(Code::NOT_FOUND | Code::INVALID_ARGUMENT | Code::NOT_SUPPORTED)
    )
}
