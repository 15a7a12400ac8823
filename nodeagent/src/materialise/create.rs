//! How an instance is created, and what happens when it cannot be.

use std::time::{Duration, Instant};

use domain::claim::Slot;

use super::{
    error::{ActionError, CreateError},
    worker::{Worker, millis},
};
use crate::{
    gpus::{
        backoff::{CreationBackoff, CreationFailure},
        event::AgentEvent,
        instance::{Ownership, TrackedInstance},
        record::ContainerRef,
    },
    nvml::{
        data::{ComputeInstance, LiveInstance},
        error::NvmlError,
        session::Session,
    },
};

impl Worker {
    pub(super) fn create(
        &mut self,
        session: &Session,
        container: ContainerRef,
        slot: Slot,
    ) -> Result<(), ActionError> {
        let started = Instant::now();
        let result = self.create_instance(session, &slot, &container);
        self.metrics
            .observe_creation(started.elapsed(), result.is_ok());
        match result {
            Ok(instance) => {
                self.created(&container, slot, instance, started.elapsed());
                Ok(())
            }
            Err(cause) => {
                let error = ActionError::Create {
                    slot: Box::new(slot.clone()),
                    cause: Box::new(cause),
                };
                self.creation_failed(container, slot, error.to_string(), true);
                self.survey(session);
                Err(error)
            }
        }
    }

    fn created(
        &mut self,
        container: &ContainerRef,
        slot: Slot,
        instance: TrackedInstance,
        duration: Duration,
    ) {
        tracing::info!(
            pod = container.pod,
            container = container.container,
            gpu = slot.gpu,
            profile = slot.profile,
            start = slot.start,
            id = instance.live.id,
            ms = millis(duration),
            "Created an instance"
        );
        let message = format!(
            "Created {} with {} MiB at slice {} of {} for container {}",
            slot.profile, slot.mem, slot.start, slot.gpu, container.container
        );
        let pod = Some(container.uid.clone());
        self.report(AgentEvent::note(pod, "InstanceCreated", message));
        if let Some(state) = self.state.gpu_mut(&slot.gpu) {
            state.creation_backoff = None;
            state.instances.push(instance);
        }
        let key = (container.uid.clone(), slot);
        self.state.creation_failures.remove(&key);
    }

    /// Records that an instance could not be created. A pod that has waited too long is given up, and with
    /// `back_off` its GPU is not offered for a while.
    pub(super) fn creation_failed(
        &mut self,
        container: ContainerRef,
        slot: Slot,
        reason: String,
        back_off: bool,
    ) {
        tracing::warn!(
            pod = container.pod,
            container = container.container,
            reason,
            "Cannot create an instance"
        );
        let now = self.now();
        let gpu = slot.gpu.clone();
        let key = (container.uid.clone(), slot);
        let failure = CreationFailure::after(self.state.creation_failures.get(&key), now);
        let is_hopeless = failure.is_hopeless(now);
        self.state.creation_failures.insert(key, failure);
        if is_hopeless
            && back_off
            && let Some(state) = self.state.gpu_mut(&gpu)
        {
            let before = state.creation_backoff.take();
            state.creation_backoff = Some(CreationBackoff::after(before, &reason, now));
        }
        self.report(AgentEvent {
            fails_pod: is_hopeless.then_some(gpu),
            ..AgentEvent::warning(Some(container.uid), "InstanceCreationFailed", reason)
        });
    }

    /// Creates an instance, recording each step in the journal before the next one.
    fn create_instance(
        &mut self,
        session: &Session,
        slot: &Slot,
        container: &ContainerRef,
    ) -> Result<TrackedInstance, CreateError> {
        let state = self.state.gpus.get(&slot.gpu);
        let state = state.ok_or(CreateError::UnknownGpu)?;
        let offer = state.surveyed.model.offer(&slot.profile);
        let offer = offer.ok_or_else(|| NvmlError::NoSuchProfile(slot.profile.clone()))?;
        let profile_id = offer.profile_id;
        let intent = self
            .journal
            .record_intent(&slot.gpu, profile_id, slot.start, slot.size);
        self.note_journal(&intent);
        let generation = intent?;
        let created = session.create_gpu_instance(&slot.gpu, profile_id, slot.start, slot.size);
        let id = created.inspect_err(|_| self.release(generation))?;
        let mut live = LiveInstance {
            id,
            profile_id,
            start: slot.start,
            size: slot.size,
            compute: vec![],
        };
        match self.create_compute_instance(session, slot, generation, id) {
            Ok(compute) => {
                // The next survey finds both without these two records, so the instance is good even if they fail.
                let complete = self.journal.record_compute_instance(generation, compute.id);
                self.note_journal(&complete);
                let bound = self.journal.record_owner(generation, container.clone());
                self.note_journal(&bound);
                live.compute.push(compute);
                Ok(TrackedInstance {
                    live,
                    generation: Some(generation),
                    ownership: Ownership::Claimed(container.clone()),
                    fault: None,
                })
            }
            Err(error) => {
                // Half an instance is of no use. If it stays, the next survey finds it through the journal.
                if session.destroy(&slot.gpu, &live).is_ok() {
                    self.release(generation);
                }
                Err(error)
            }
        }
    }

    fn create_compute_instance(
        &mut self,
        session: &Session,
        slot: &Slot,
        generation: u64,
        id: u32,
    ) -> Result<ComputeInstance, CreateError> {
        self.journal.record_gpu_instance(generation, id)?;
        Ok(session.create_compute_instance(&slot.gpu, id)?)
    }
}
