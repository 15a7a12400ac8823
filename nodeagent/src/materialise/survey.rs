//! Surveys: the state and the journal brought in line with what is on the GPUs.

use std::{collections::BTreeMap, time::Instant};

use super::{journal::JournalError, worker::Worker};
use crate::{
    gpus::{event::AgentEvent, instance::TrackedInstance, record::ContainerRef},
    nvml::{
        error::{Code, NvmlError},
        session::Session,
        survey::{Survey, SurveyOptions},
    },
};

impl Worker {
    /// Reads everything about every GPU.
    pub(super) fn survey(&mut self, session: &Session) {
        let call = "surveying the GPUs".to_owned();
        self.channels.current_call.set(Some(call));
        let options = SurveyOptions {
            filter: &self.settings.filter,
            memory_mib: self.settings.memory_mib,
            sysfs: &self.settings.sysfs,
        };
        match session.survey(options) {
            Ok(survey) => self.take_survey(survey),
            Err(error) => {
                tracing::warn!(%error, "Cannot survey the GPUs, opening NVML again");
                self.nvml_failure = Some(error.to_string());
                self.stop_fault_watch();
                self.reopen_session_around(session, || ());
            }
        }
        let all_answered = self.state.gpus.values().all(|gpu| gpu.lost.is_none());
        self.schedule
            .surveyed(self.nvml_failure.is_none() && all_answered, Instant::now());
    }

    fn take_survey(&mut self, survey: Survey) {
        let failed: Vec<(u32, String)> = survey
            .failed
            .iter()
            .map(|gpu| (gpu.index, gpu.error.to_string()))
            .collect();
        let now = self.now();
        let vanished = self
            .state
            .apply_survey(survey.gpus, &failed, self.journal.entries(), now);
        for (gpu, instance) in vanished {
            self.report_vanished(&gpu, &instance);
        }
        self.reconcile_journal();
        self.record_owners();
        self.found = survey.found;
        let mut reasons = Vec::new();
        for gpu in survey.failed {
            match gpu.partly {
                // One that reports at least its UUID is published: unhealthy, with the reason.
                Some(partly) => self.state.add_unreadable(*partly, gpu.error.to_string()),
                None => reasons.push(format!("GPU {}: {}", gpu.index, gpu.error)),
            }
        }
        self.nvml_failure = (!reasons.is_empty()).then(|| reasons.join("; "));
    }

    fn report_vanished(&self, gpu: &str, instance: &TrackedInstance) {
        let Some(container) = instance.claimed_by() else {
            return;
        };
        let message = format!(
            "GPU instance {} at slices {} of {gpu}, which container {} used, is gone; Tessera did not destroy it",
            instance.live.id,
            instance.live.slices(),
            container.container
        );
        let pod = Some(container.uid.clone());
        self.report(AgentEvent::warning(pod, "InstanceVanished", message));
    }

    /// Does something while no GPU is open; `None`: NVML could not be opened again.
    pub(super) fn reopen_session_around<T>(
        &mut self,
        session: &Session,
        work: impl FnOnce() -> T,
    ) -> Option<T> {
        let result = session.without_session(work);
        self.take_reopened(result)
    }

    /// Notes whether NVML could be opened again.
    pub(super) fn take_reopened<T>(&mut self, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::warn!(%error, "Cannot open NVML again");
                // Only a new process can load the library of the new driver.
                self.must_restart = error.code() == Some(Code::LIB_RM_VERSION_MISMATCH);
                self.nvml_failure = Some(error.to_string());
                None
            }
        }
    }

    /// Releases entries whose instance is gone (a reboot, a reset, another tool), and completes open intents.
    fn reconcile_journal(&mut self) {
        let instances = self.state.gpus.values().flat_map(|gpu| &gpu.instances);
        let live: BTreeMap<u64, (u32, Option<u32>)> = instances
            .filter_map(|instance| {
                let compute = instance.live.compute.first().map(|compute| compute.id);
                Some((instance.generation?, (instance.live.id, compute)))
            })
            .collect();
        for entry in self.journal.entries().to_vec() {
            let generation = entry.generation;
            let result = match live.get(&generation) {
                None => {
                    let state = self.state.gpus.get(&entry.gpu);
                    // A GPU that does not answer may still have it.
                    if state.is_none_or(|state| state.lost.is_some()) {
                        continue;
                    }
                    self.journal.record_release(generation)
                }
                Some((id, _)) if entry.gpu_instance.is_none() => {
                    self.journal.record_gpu_instance(generation, *id)
                }
                Some((_, Some(compute))) if entry.compute_instance.is_none() => {
                    self.journal.record_compute_instance(generation, *compute)
                }
                Some(_) => Ok(()),
            };
            self.note_journal(&result);
        }
    }

    /// Records who has which instance, where the journal has another owner.
    pub(super) fn record_owners(&mut self) {
        let entries = self.journal.entries();
        let recorded: BTreeMap<u64, Option<&ContainerRef>> = entries
            .iter()
            .map(|entry| (entry.generation, entry.bound.as_ref()))
            .collect();
        let instances = self.state.gpus.values().flat_map(|gpu| &gpu.instances);
        let new: Vec<(u64, ContainerRef)> = instances
            .filter_map(|instance| {
                let (generation, owner) = (instance.generation?, instance.claimed_by()?);
                let recorded = *recorded.get(&generation)?;
                (recorded != Some(owner)).then(|| (generation, owner.clone()))
            })
            .collect();
        for (generation, owner) in new {
            let result = self.journal.record_owner(generation, owner);
            self.note_journal(&result);
        }
    }

    pub(super) fn release(&mut self, generation: u64) {
        let result = self.journal.record_release(generation);
        self.note_journal(&result);
    }

    /// Keeps whether the journal can be written.
    pub(super) fn note_journal<T>(&mut self, result: &Result<T, JournalError>) {
        let failure = result.as_ref().err();
        if let Some(error) = failure {
            tracing::error!(%error, "Cannot write the journal");
        }
        self.journal_failure = failure.map(ToString::to_string);
    }
}
