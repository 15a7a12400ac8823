//! The next action for a pod that waits for its instances.

use domain::claim::Slot;

use crate::gpus::{
    action::Action,
    blocked::Blocked,
    claims::ClaimedPod,
    clock::{Millis, Wakeup},
    state::NodeState,
};

impl NodeState {
    /// The next action for a claim.
    pub(crate) fn claim_action(&self, now: Millis, wakeup: &mut Wakeup) -> Option<Action> {
        let mut pods = self.pods.iter().flat_map(|pods| pods.values());
        pods.find_map(|pod| {
            let mut slots = slots_of_next_containers(pod).into_iter();
            slots.find_map(|(container, slot)| self.action_for(pod, container, slot, now, wakeup))
        })
    }

    fn action_for(
        &self,
        pod: &ClaimedPod,
        container: &str,
        slot: &Slot,
        now: Millis,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        let key = (pod.uid.clone(), slot.clone());
        if let Some(failure) = self.creation_failures.get(&key)
            && failure.retry_at > now
        {
            wakeup.request(failure.retry_at);
            return None;
        }
        match self.actions_for_slot(pod, container, slot, false) {
            Ok(actions) => actions.into_iter().next(),
            // A pod that runs already is left alone.
            Err(blocked @ (Blocked::Unhealthy { .. } | Blocked::UnknownGpu(_)))
                if !self.has_instance(pod, slot) =>
            {
                Some(Action::RejectClaim {
                    container: pod.container_ref(container),
                    slot: slot.clone(),
                    reason: blocked.to_string(),
                })
            }
            Err(_) => None,
        }
    }

    /// Whether a pod has the instance of a slot, as far as is known.
    fn has_instance(&self, pod: &ClaimedPod, slot: &Slot) -> bool {
        let state = self.gpus.get(&slot.gpu);
        state.is_some_and(|state| {
            state.instances.iter().any(|instance| {
                instance.matches_slot(slot, &state.surveyed.model)
                    && instance.claimed_by().is_some_and(|by| by.uid == pod.uid)
            })
        })
    }
}

/// The slots of a pod that can be filled now, with their containers.
///
/// A slot that overlaps an earlier container's has to wait for that container's end.
fn slots_of_next_containers(pod: &ClaimedPod) -> Vec<(&str, &Slot)> {
    let mut slots: Vec<(&str, &Slot)> = Vec::new();
    for container in &pod.claim.containers {
        let progress = pod.containers.get(&container.name);
        if progress.is_some_and(|progress| progress.completed) {
            continue;
        }
        for slot in container.devices.iter().filter_map(|device| device.slot()) {
            let overlaps = |(_, earlier): &(&str, &Slot)| {
                earlier.gpu == slot.gpu && earlier.slices().overlaps(slot.slices())
            };
            if !slots.iter().any(overlaps) {
                slots.push((&container.name, slot));
            }
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::{
        instance::{Ownership, QUARANTINE_AFTER},
        testing::{GPU, LIMITS, app, destroys, live, node, set_pods, slot},
    };

    #[test]
    fn a_claim_is_made_once() {
        let a = app("a", "1g.10gb", 6);
        let state = node(&[], std::slice::from_ref(&a));
        let (action, _) = state.next_action(0, LIMITS);
        assert!(matches!(action, Some(Action::Create { slot, .. }) if slot.start == 6));
        let state = node(&[live(7, &slot("1g.10gb", 6))], &[a]);
        assert_eq!(state.next_action(0, LIMITS), (None, None));
    }

    /// Peer lesson: one stuck instance, one bad record, one lost GPU hold up nobody else.
    #[test]
    fn one_stuck_instance_holds_up_nobody_else() {
        let instances = [live(7, &slot("1g.10gb", 6)), live(8, &slot("1g.10gb", 5))];
        let mut state = node(&instances, &[app("b", "1g.10gb", 4)]);
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Stuck {
            failures: QUARANTINE_AFTER,
            retry_at: 30_000,
            reason: "in use".into(),
        };
        state.instance_mut(GPU, 8).unwrap().ownership = Ownership::Idle { since: 0 };
        let (action, _) = state.next_action(0, LIMITS);
        assert!(matches!(action, Some(Action::Create { container, .. }) if container.uid == "b"));
        set_pods(&mut state, &[], 0);
        assert_eq!(state.next_action(2_000, LIMITS).0, Some(destroys(8)));
    }
}
