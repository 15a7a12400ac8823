//! What a container's slot needs before its instance is there.

use domain::{claim::Slot, mode::VgpuMode};

use crate::gpus::{
    action::Action,
    blocked::Blocked,
    claims::ClaimedPod,
    instance::{Ownership, TrackedInstance},
    state::NodeState,
};

/// What to do with an instance that overlaps a slot.
enum Obstacle {
    /// It is the instance that the slot asks for: nothing has to be done.
    Fulfils,
    /// It can be destroyed.
    Removable,
    /// Somebody has it.
    Occupied(String),
}

impl NodeState {
    /// The actions that clear a slot for a pod's container and create its instance, in order.
    ///
    /// Empty: the slot's instance is there, complete, and the pod's. `displace_own` allows to destroy
    /// overlapping instances of the same pod (an init container's, which has ended).
    pub(crate) fn actions_for_slot(
        &self,
        pod: &ClaimedPod,
        container: &str,
        slot: &Slot,
        displace_own: bool,
    ) -> Result<Vec<Action>, Blocked> {
        let unhealthy = |reason: String| Blocked::Unhealthy {
            gpu: slot.gpu.clone(),
            reason,
        };
        let state = self
            .gpus
            .get(&slot.gpu)
            .ok_or_else(|| Blocked::UnknownGpu(slot.gpu.clone()))?;
        if let Some(reason) = &state.lost {
            return Err(unhealthy(reason.clone()));
        }
        if state.mode() != VgpuMode::Mig {
            return Err(Blocked::NotInMigMode(slot.gpu.clone()));
        }
        let mut actions = Vec::new();
        let overlapping = state.instances.iter();
        for instance in overlapping.filter(|i| i.overlaps(slot.slices())) {
            let matches = instance.matches_slot(slot, &state.surveyed.model);
            match obstacle(instance, pod, matches, displace_own) {
                Obstacle::Fulfils => return Ok(vec![]),
                Obstacle::Removable => actions.push(instance.destroy(&slot.gpu)),
                Obstacle::Occupied(by) => {
                    return Err(Blocked::Occupied {
                        gpu: slot.gpu.clone(),
                        slices: slot.slices(),
                        by,
                    });
                }
            }
        }
        // Only now: a container that has its instance may start again on a GPU with a fault.
        if let Some(reason) = state.fault_reason() {
            return Err(unhealthy(reason));
        }
        actions.push(Action::Create {
            container: pod.container_ref(container),
            slot: slot.clone(),
        });
        Ok(actions)
    }
}

fn obstacle(
    instance: &TrackedInstance,
    pod: &ClaimedPod,
    matches: bool,
    displace_own: bool,
) -> Obstacle {
    Obstacle::Occupied(match &instance.ownership {
        Ownership::Claimed(by)
            if by.uid == pod.uid && matches && !instance.live.compute.is_empty() =>
        {
            return Obstacle::Fulfils;
        }
        // A GPU instance without compute instance cannot be used: it is recreated as a whole.
        Ownership::Claimed(by) if by.uid == pod.uid && (displace_own || matches) => {
            return Obstacle::Removable;
        }
        Ownership::Idle { .. } => return Obstacle::Removable,
        Ownership::Claimed(by) => format!("pod {}", by.pod),
        Ownership::Lingering {
            last: Some(last), ..
        } => format!("processes of pod {}, which is gone", last.pod),
        Ownership::Lingering { .. } => "an instance that is being checked for processes".to_owned(),
        Ownership::Stuck { reason, .. } => {
            format!("an instance that cannot be destroyed ({reason})")
        }
        Ownership::Foreign => "an instance that Tessera did not create".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use domain::{demand::ContainerKind, gpu::InstanceState};

    use super::*;
    use crate::gpus::{
        claims::Progress,
        record::JournalEntry,
        testing::{
            GPU, LIMITS, app, destroys, entry, gpu, live, node, pod, set_pods, slot, survey,
        },
    };

    #[test]
    fn what_we_did_not_make_is_never_touched() {
        let theirs = live(7, &slot("1g.10gb", 6));
        let mut state = NodeState::default();
        survey(&mut state, gpu(true, &[theirs]), &[], 0);
        let a = app("a", "2g.20gb", 4);
        let b = app("b", "1g.20gb", 6);
        set_pods(&mut state, &[a, b.clone()], 0);
        assert!(
            matches!(state.next_action(0, LIMITS).0, Some(Action::Create { container, .. }) if container.uid == "a")
        );
        let blocked = state
            .actions_for_slot(&b, "c", &slot("1g.20gb", 6), true)
            .unwrap_err();
        assert_eq!(
            blocked.to_string(),
            "slices 6-7 of GPU GPU-1 are occupied by an instance that Tessera did not create"
        );
        // As journalled as it may check: another id is another making.
        let other = JournalEntry {
            gpu_instance: Some(8),
            ..entry(&live(7, &slot("1g.10gb", 6)), 1, true)
        };
        survey(
            &mut state,
            gpu(true, &[live(7, &slot("1g.10gb", 6))]),
            &[other],
            0,
        );
        assert_eq!(state.gpus[GPU].instances[0].state(), InstanceState::Foreign);
    }

    #[test]
    fn an_init_containers_instance_is_replaced_by_the_applications_after_its_end() {
        let init = ("i", ContainerKind::Init, slot("1g.20gb", 6));
        let main = ("m", ContainerKind::App, slot("1g.10gb", 6));
        let mut both = pod("a", &[init, main]);
        let mut state = node(&[live(5, &slot("1g.20gb", 6))], std::slice::from_ref(&both));
        assert_eq!(
            state.next_action(0, LIMITS),
            (None, None),
            "the application waits"
        );
        let ended = Progress {
            completed: true,
            ..Progress::default()
        };
        both.containers.insert("i".into(), ended);
        set_pods(&mut state, std::slice::from_ref(&both), 1);
        let actions = state
            .actions_for_slot(&both, "m", &slot("1g.10gb", 6), true)
            .unwrap();
        assert_eq!(actions[0], destroys(5));
        assert!(matches!(&actions[1], Action::Create { slot, .. } if slot.profile == "1g.10gb"));
    }
}
