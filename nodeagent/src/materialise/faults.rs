//! Faults: which pods get an Event, and what must not be used any more.

use std::{collections::BTreeSet, time::Instant};

use super::{command::Command, worker::Worker};
use crate::{
    gpus::{
        event::AgentEvent,
        health::{self, Scope},
        state::GpuFault,
    },
    nvml::{
        data::{Fault, FaultKind},
        fault_watch::{FaultWatch, WatchEvent},
    },
};

impl Worker {
    /// Watches the GPUs that are there now.
    pub(super) fn update_fault_watch(&mut self) {
        if self.settings.ignored_faults.ignores_all() {
            return;
        }
        let answering = self.state.gpus.iter();
        let gpus: BTreeSet<String> = answering
            .filter(|(_, state)| state.lost.is_none())
            .map(|(uuid, _)| uuid.clone())
            .collect();
        let watch = self.fault_watch.as_ref();
        if watch.is_some_and(|watch| watch.covers(&gpus)) {
            return;
        }
        self.stop_fault_watch();
        let own = self.channels.own.clone();
        let report = move |event| {
            if let Some(own) = own.upgrade() {
                let _ = own.send(Command::Watch(event));
            }
        };
        let library = self.settings.library.clone();
        match FaultWatch::start(library, gpus, report) {
            Ok(watch) => self.fault_watch = Some(watch),
            Err(error) => tracing::error!(%error, "Cannot watch the GPUs for faults"),
        }
    }

    /// Ends the session that waits for faults: it would block a reset. Another begins when there is nothing else to do.
    pub(super) fn stop_fault_watch(&mut self) {
        if let Some(watch) = self.fault_watch.take() {
            watch.stop();
        }
    }

    pub(super) fn take_watch_event(&mut self, event: WatchEvent) {
        match event {
            // Many come at a time: one survey for all of them.
            WatchEvent::SurveyNeeded => self.schedule.request(Instant::now()),
            WatchEvent::Fault(fault) => self.take_fault(&fault),
        }
    }

    fn take_fault(&mut self, fault: &Fault) {
        let (scope, meaning) = health::classify(fault.kind, &self.settings.ignored_faults);
        tracing::warn!(
            gpu = fault.gpu,
            instance = fault.instance,
            ?scope,
            fault = meaning,
            "A GPU reported a fault"
        );
        if let (FaultKind::Xid(xid), Some(gpu)) = (fault.kind, &fault.gpu) {
            self.metrics.count_xid(gpu, xid);
        }
        if let Some(gpu) = &fault.gpu
            && self.state.gpus.contains_key(gpu)
            && let Some(consequence) = self.apply_fault(gpu, fault.instance, scope, &meaning)
        {
            let pods = match fault.instance {
                Some(id) => self.pod_of_instance(gpu, id).into_iter().collect(),
                None => self.pods_on(gpu),
            };
            // Of several applications nobody knows which one caused it.
            let is_clear = scope != Scope::Application || pods.len() == 1;
            for uid in pods.into_iter().filter(|_| is_clear) {
                let message = format!("{meaning} on GPU {gpu}: {consequence}");
                self.report(AgentEvent::warning(Some(uid), "GpuFault", message));
            }
        }
        if scope != Scope::Application {
            self.schedule.request_after_fault(Instant::now());
        }
    }

    /// Marks what must not be used any more. Returns the consequence in words; `None`: there is none.
    fn apply_fault(
        &mut self,
        gpu: &str,
        instance: Option<u32>,
        scope: Scope,
        meaning: &str,
    ) -> Option<&'static str> {
        let now = self.now();
        let instance = instance.and_then(|id| self.state.instance_mut(gpu, id));
        match (scope, instance) {
            (Scope::Note, _) => None,
            (Scope::Application, _) => Some("an application error; the GPU is healthy"),
            (Scope::Instance | Scope::Gpu, Some(instance)) => {
                instance.fault = Some(meaning.to_owned());
                Some("no other pod gets this instance")
            }
            (Scope::Instance, None) => Some("one application was affected; the GPU is healthy"),
            (Scope::Gpu, None) => {
                if let Some(state) = self.state.gpu_mut(gpu) {
                    state.fault = Some(GpuFault {
                        reason: meaning.to_owned(),
                        since: now,
                    });
                }
                Some("the GPU takes no new pods until it has recovered")
            }
        }
    }

    fn pod_of_instance(&self, gpu: &str, id: u32) -> Option<String> {
        let container = self.state.instance(gpu, id)?.claimed_by()?;
        Some(container.uid.clone())
    }

    /// The UIDs of the pods that claim something of a GPU.
    pub(super) fn pods_on(&self, gpu: &str) -> Vec<String> {
        let pods = self.state.pods.iter().flat_map(|pods| pods.values());
        pods.filter(|pod| pod.claim.devices().any(|device| device.gpu() == gpu))
            .map(|pod| pod.uid.clone())
            .collect()
    }
}
