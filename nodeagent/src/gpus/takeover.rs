//! How a survey of the GPUs and the list of pods change what is known.

use std::sync::Arc;

use crate::{
    gpus::{
        claims::{ClaimedPod, ClaimedPods},
        clock::Millis,
        instance::{Ownership, TrackedInstance},
        record::{ContainerRef, JournalEntry},
        state::{GpuState, NodeState},
    },
    nvml::data::{LiveInstance, SurveyedGpu},
};

impl NodeState {
    /// Takes over a survey: a known instance keeps its owner; for one that the journal knows the owner is found out;
    /// the rest is foreign.
    ///
    /// `failed` has the errors of the GPUs that did not answer, by index. Returns the instances of pods that are gone,
    /// with the UUIDs of their GPUs.
    pub fn apply_survey(
        &mut self,
        surveyed: Vec<SurveyedGpu>,
        failed: &[(u32, String)],
        journal: &[JournalEntry],
        now: Millis,
    ) -> Vec<(String, TrackedInstance)> {
        let mut vanished = Vec::new();
        let mut known = std::mem::take(&mut self.gpus);
        for gpu in surveyed {
            let uuid = gpu.uuid.clone();
            let mut shared = known
                .remove(&uuid)
                .unwrap_or_else(|| Arc::new(GpuState::new(gpu.clone())));
            let state = Arc::make_mut(&mut shared);
            let gone = state.take_over_instances(&gpu, journal, now);
            let gone = gone.into_iter().filter(|i| i.claimed_by().is_some());
            vanished.extend(gone.map(|instance| (uuid.clone(), instance)));
            state.surveyed = gpu;
            state.lost = None;
            state.forget_recovered_fault(now);
            self.gpus.insert(uuid, shared);
        }
        // A GPU that does not answer any more is kept: its slices are not free.
        for (uuid, mut lost) in known {
            let error = failed
                .iter()
                .find(|(index, _)| *index == lost.surveyed.index);
            let reason = error.map_or("the GPU is gone", |(_, reason)| reason);
            Arc::make_mut(&mut lost).lost = Some(reason.to_owned());
            self.gpus.insert(uuid, lost);
        }
        self.assign_instances(now);
        vanished
    }

    /// Adds a GPU of which a call failed, if it is not known yet: it is published as unhealthy.
    pub(crate) fn add_unreadable(&mut self, gpu: SurveyedGpu, reason: String) {
        let uuid = gpu.uuid.clone();
        self.gpus.entry(uuid).or_insert_with(|| {
            let mut state = GpuState::new(gpu);
            state.lost = Some(reason);
            Arc::new(state)
        });
    }

    /// Takes over the pods of the node.
    pub fn apply_pods(&mut self, pods: Arc<ClaimedPods>, now: Millis) {
        self.creation_failures
            .retain(|(uid, _), _| pods.contains_key(uid));
        self.pods = Some(pods);
        self.assign_instances(now);
    }

    /// Gives every instance of ours to the pod that claims it, and takes it from pods that are gone.
    pub(crate) fn assign_instances(&mut self, now: Millis) {
        let Some(pods) = &self.pods else { return };
        for (uuid, state) in &mut self.gpus {
            for index in 0..state.instances.len() {
                // A GPU on which nothing changes stays shared with the published inventory.
                if let Some(ownership) = new_ownership(pods, uuid, state, index, now) {
                    Arc::make_mut(state).instances[index].ownership = ownership;
                }
            }
        }
    }
}

impl GpuState {
    /// Replaces the instances by those of a survey. Returns those that are not there any more.
    fn take_over_instances(
        &mut self,
        surveyed: &SurveyedGpu,
        journal: &[JournalEntry],
        now: Millis,
    ) -> Vec<TrackedInstance> {
        let mut before = std::mem::take(&mut self.instances);
        for live in &surveyed.instances {
            let same = before.iter().position(|known| {
                (known.live.id, known.live.profile_id, known.live.start)
                    == (live.id, live.profile_id, live.start)
            });
            let same = same.map(|at| before.remove(at));
            let entry = find_entry(journal, &surveyed.uuid, live);
            let generation = entry.map(|entry| entry.generation);
            self.instances.push(match same {
                Some(known) if known.generation == generation => TrackedInstance {
                    live: live.clone(),
                    ..known
                },
                _ => TrackedInstance {
                    live: live.clone(),
                    generation,
                    ownership: entry.map_or(Ownership::Foreign, |entry| Ownership::Lingering {
                        last: entry.bound.clone(),
                        check_at: now,
                        checks: 0,
                    }),
                    fault: None,
                },
            });
        }
        before
    }
}

/// Who has an instance from now on; `None`: the same as before.
fn new_ownership(
    pods: &ClaimedPods,
    uuid: &str,
    state: &GpuState,
    index: usize,
    now: Millis,
) -> Option<Ownership> {
    let instance = &state.instances[index];
    match (
        instance.claimed_by(),
        find_claimant(pods, uuid, state, instance),
    ) {
        (Some(current), Some((pod, _))) if current.uid == pod.uid => None,
        (Some(last), _) if !pods.contains_key(&last.uid) => Some(Ownership::Lingering {
            last: Some(last.clone()),
            check_at: now,
            checks: 0,
        }),
        (_, Some((pod, container))) if can_be_given_to(instance, pod) => {
            Some(Ownership::Claimed(container))
        }
        _ => None,
    }
}

/// The pod and container that claim an instance. Of several containers the last one: an init container shares the
/// application container's instance.
fn find_claimant<'p>(
    pods: &'p ClaimedPods,
    uuid: &str,
    state: &GpuState,
    instance: &TrackedInstance,
) -> Option<(&'p ClaimedPod, ContainerRef)> {
    pods.values().find_map(|pod| {
        let mut containers = pod.claim.containers.iter().rev();
        let container = containers.find(|container| {
            let mut slots = container.devices.iter().filter_map(|device| device.slot());
            slots.any(|slot| slot.gpu == uuid && instance.matches_slot(slot, &state.surveyed.model))
        })?;
        Some((pod, pod.container_ref(&container.name)))
    })
}

/// Whether an instance can be given to a pod that claims its place.
fn can_be_given_to(instance: &TrackedInstance, pod: &ClaimedPod) -> bool {
    match &instance.ownership {
        Ownership::Claimed(_) => true,
        // One with a fault is recreated.
        Ownership::Idle { .. } => instance.fault.is_none(),
        // The agent may have forgotten in a restart whose it was: its own pod gets it back.
        Ownership::Lingering { last, .. } => last.as_ref().is_none_or(|last| last.uid == pod.uid),
        // It is not ours, or must not be used any more.
        Ownership::Stuck { .. } | Ownership::Foreign => false,
    }
}

/// The journal's entry of an instance. An open intent for exactly its profile and place counts too: the agent died
/// between NVML's answer and the record.
fn find_entry<'j>(
    journal: &'j [JournalEntry],
    gpu: &str,
    live: &LiveInstance,
) -> Option<&'j JournalEntry> {
    journal
        .iter()
        .filter(|entry| {
            entry.gpu == gpu
                && (entry.profile_id, entry.start, entry.size)
                    == (live.profile_id, live.start, live.size)
                && entry.gpu_instance.is_none_or(|id| id == live.id)
        })
        .max_by_key(|entry| entry.generation)
}

#[cfg(test)]
mod tests {
    use domain::gpu::InstanceState;

    use super::*;
    use crate::gpus::{
        action::Action,
        testing::{
            GPU, LIMITS, app, container, destroys, entry, gpu, live, node, set_pods, slot, survey,
        },
    };

    #[test]
    fn nothing_is_destroyed_before_the_pods_are_known() {
        let instance = live(7, &slot("1g.10gb", 6));
        let mut state = NodeState::default();
        survey(
            &mut state,
            gpu(true, std::slice::from_ref(&instance)),
            &[entry(&instance, 1, true)],
            0,
        );
        assert_eq!(state.next_action(1_000_000, LIMITS), (None, None));
        set_pods(&mut state, &[app("a", "1g.10gb", 6)], 1_000_000);
        assert_eq!(
            state.next_action(2_000_000, LIMITS),
            (None, None),
            "it is adopted"
        );
        assert_eq!(state.gpus[GPU].instances[0].state(), InstanceState::InUse);
    }

    #[test]
    fn an_open_intent_is_adopted_and_half_an_instance_is_recreated() {
        let mut half = live(7, &slot("1g.10gb", 6));
        half.compute.clear();
        let mut state = NodeState::default();
        survey(
            &mut state,
            gpu(true, std::slice::from_ref(&half)),
            &[entry(&half, 1, false)],
            0,
        );
        set_pods(&mut state, &[app("a", "1g.10gb", 6)], 0);
        assert_eq!(
            state.gpus[GPU].instances[0].state(),
            InstanceState::Creating
        );
        assert_eq!(state.next_action(0, LIMITS).0, Some(destroys(7)));
    }

    /// Peer lesson: a slot is free when its processes are gone, not when its pod is.
    #[test]
    fn after_a_restart_what_nobody_claims_is_in_use_until_it_was_looked_at() {
        let instance = live(7, &slot("1g.10gb", 6));
        let known = JournalEntry {
            bound: Some(container("gone")),
            ..entry(&instance, 1, true)
        };
        let mut state = NodeState::default();
        survey(&mut state, gpu(true, &[instance]), &[known], 0);
        // Another pod's claim of the same shape does not get it before the check.
        set_pods(&mut state, &[app("b", "1g.10gb", 6)], 0);
        assert_eq!(state.gpus[GPU].instances[0].state(), InstanceState::InUse);
        let check = Action::CheckProcesses {
            gpu: GPU.into(),
            id: 7,
        };
        assert_eq!(state.next_action(0, LIMITS).0, Some(check));
        assert!(state.gpus[GPU].instances[0].was_device_of("gone", "MIG-7"));
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Idle { since: 0 };
        state.assign_instances(0);
        assert_eq!(
            state.gpus[GPU].instances[0].claimed_by(),
            Some(&container("b"))
        );
        // Its own pod gets it back at once.
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[]);
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Lingering {
            last: Some(container("a")),
            check_at: 0,
            checks: 0,
        };
        set_pods(&mut state, &[app("a", "1g.10gb", 6)], 0);
        assert_eq!(
            state.gpus[GPU].instances[0].claimed_by(),
            Some(&container("a"))
        );
    }

    #[test]
    fn an_instance_that_somebody_else_removed_is_reported_and_recreated() {
        let instance = live(7, &slot("1g.10gb", 6));
        let mut state = node(std::slice::from_ref(&instance), &[app("a", "1g.10gb", 6)]);
        let journal = [entry(&instance, 1, true)];
        let vanished = state.apply_survey(vec![gpu(true, &[])], &[], &journal, 1);
        assert_eq!(vanished.len(), 1);
        assert_eq!(vanished[0].1.claimed_by(), Some(&container("a")));
        let (action, _) = state.next_action(1, LIMITS);
        assert!(matches!(action, Some(Action::Create { .. })));
    }

    #[test]
    fn a_lost_gpu_keeps_its_instances_and_gets_no_actions() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        let error = (0, "GPU is lost".to_owned());
        assert_eq!(state.apply_survey(vec![], &[error], &[], 1), []);
        assert_eq!(
            state.gpus[GPU].unhealthy_reason().as_deref(),
            Some("GPU is lost")
        );
        assert_eq!(state.gpus[GPU].instances.len(), 1);
        set_pods(&mut state, &[], 2);
        assert_eq!(state.next_action(1_000_000, LIMITS).0, None);
    }
}
