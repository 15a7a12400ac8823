//! Containers that wait for their devices.

use std::time::Duration;

use domain::claim::Slot;

use super::worker::Worker;
use crate::{
    gpus::{blocked::Blocked, inventory::LiveDevice},
    nvml::session::Session,
};

/// How long a request waits for what passes by itself. Then kubelet has to call again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

impl Worker {
    /// Tries again for every container that waits. Answers those that are served, refused for good, or late.
    pub(super) fn serve_requests(&mut self, session: &Session) {
        for request in std::mem::take(&mut self.requests) {
            if request.reply.is_closed() {
                continue;
            }
            let result = self.ensure_devices(session, &request.pod_uid, &request.container);
            let may_pass = result.as_ref().is_err_and(Blocked::may_pass);
            if may_pass && request.since.elapsed() < REQUEST_TIMEOUT {
                self.requests.push(request);
                continue;
            }
            // If nobody waits any more, kubelet asks again.
            let _ = request.reply.send(result);
            self.publish();
        }
    }

    fn ensure_devices(
        &mut self,
        session: &Session,
        pod_uid: &str,
        container: &str,
    ) -> Result<Vec<LiveDevice>, Blocked> {
        let pods = self.state.pods.clone();
        let pod = pods
            .as_ref()
            .and_then(|pods| pods.get(pod_uid))
            .ok_or_else(|| Blocked::UnknownPod(pod_uid.to_owned()))?;
        let devices = pod.container(container).into_iter();
        let slots: Vec<&Slot> = devices
            .flat_map(|container| &container.devices)
            .filter_map(|device| device.slot())
            .collect();
        for slot in &slots {
            for action in self.state.actions_for_slot(pod, container, slot, true)? {
                self.perform(session, action)
                    .map_err(|error| Blocked::Failed(error.to_string()))?;
            }
        }
        let live = slots.into_iter().map(|slot| {
            self.live_device(slot).ok_or_else(|| {
                Blocked::Failed(format!(
                    "{} at slice {} of GPU {} is missing although it was created",
                    slot.profile, slot.start, slot.gpu
                ))
            })
        });
        live.collect()
    }

    fn live_device(&self, slot: &Slot) -> Option<LiveDevice> {
        let state = self.state.gpus.get(&slot.gpu)?;
        let instance = state
            .instances
            .iter()
            .find(|instance| instance.matches_slot(slot, &state.surveyed.model))?;
        let compute = instance.live.compute.first()?;
        Some(LiveDevice {
            gpu: slot.gpu.clone(),
            minor: state.surveyed.minor,
            gpu_instance: instance.live.id,
            compute_instance: compute.id,
            uuid: compute.uuid.clone(),
            profile: slot.profile.clone(),
            memory_mib: slot.mem,
        })
    }
}
