//! What the thread publishes and reports: the inventory, Events, the health of GPUs.

use std::{collections::BTreeMap, sync::Arc};

use super::worker::Worker;
use crate::gpus::{event::AgentEvent, inventory::Inventory};

impl Worker {
    pub(super) fn report(&self, event: AgentEvent) {
        // A full queue means a storm of events; the log has them all.
        let _ = self.channels.events.try_send(event);
    }

    /// Publishes the inventory, and reports which GPUs became healthy or unhealthy.
    pub(super) fn publish(&mut self) {
        self.report_health();
        self.channels.inventory.send_replace(Arc::new(Inventory {
            // Cheap: GPUs and pods are shared until they change.
            state: self.state.clone(),
            found: self.found.clone(),
            nvml_failure: self.nvml_failure.clone(),
            nvml_hang: None,
            pause: self.pause.clone(),
            journal_failure: self.journal_failure.clone(),
        }));
    }

    fn report_health(&mut self) {
        let gpus = self.state.gpus.iter();
        let unhealthy: BTreeMap<String, String> = gpus
            .filter_map(|(gpu, state)| Some((gpu.clone(), state.unhealthy_reason()?)))
            .collect();
        let before = std::mem::replace(&mut self.unhealthy, unhealthy);
        for (gpu, reason) in &self.unhealthy {
            if before.get(gpu) != Some(reason) {
                tracing::warn!(gpu, reason, "A GPU is unhealthy");
                self.report_unhealthy(gpu, reason, !before.contains_key(gpu));
            }
        }
        for gpu in before
            .keys()
            .filter(|gpu| !self.unhealthy.contains_key(*gpu))
        {
            tracing::info!(gpu, "A GPU is healthy again");
            let message = format!("GPU {gpu} is healthy again");
            self.report(AgentEvent::note(None, "GpuHealthy", message));
        }
    }

    fn report_unhealthy(&self, gpu: &str, reason: &str, is_new: bool) {
        let message = format!("GPU {gpu} takes no new pods: {reason}");
        let event = AgentEvent::warning(None, "GpuUnhealthy", message);
        // The pods know already of a fault that NVML reported, but not of what a survey found.
        let state = self.state.gpus.get(gpu);
        if is_new && state.is_some_and(|state| state.fault.is_none()) {
            for uid in self.pods_on(gpu) {
                self.report(AgentEvent {
                    pod_uid: Some(uid),
                    ..event.clone()
                });
            }
        }
        self.report(event);
    }
}
