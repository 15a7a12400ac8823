//! The next action for a GPU itself: its mode, a reset, instances that nobody has.

use crate::gpus::{
    action::Action,
    clock::{Millis, Wakeup},
    instance::{Ownership, TrackedInstance},
    next_action::IdleLimits,
    state::{Attempt, GpuState, NodeState},
};

impl NodeState {
    /// The next action for the GPUs themselves.
    pub(crate) fn gpu_action(
        &self,
        now: Millis,
        limits: IdleLimits,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        let mut answering = self.gpus.iter().filter(|(_, state)| state.lost.is_none());
        answering
            .find_map(|(gpu, state)| {
                self.mode_action(gpu, state, now, wakeup)
                    .or_else(|| self.reset_action(gpu, state, now, wakeup))
                    .or_else(|| end_backoff(gpu, state, now, wakeup))
                    .or_else(|| self.instance_action(gpu, state, now, limits, wakeup))
            })
            .or_else(|| self.destroy_surplus(limits))
    }

    /// Resets an unhealthy GPU, once nobody uses it.
    fn reset_action(
        &self,
        gpu: &str,
        state: &GpuState,
        now: Millis,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        if !self.may_reset || !state.needs_reset() || self.is_claimed(gpu, |_| true)? {
            return None;
        }
        let reset = Action::Reset {
            gpu: gpu.to_owned(),
        };
        state.once_idle(gpu, now, state.last_reset.as_ref(), reset, wakeup)
    }

    /// Checks or destroys an instance that nobody has.
    fn instance_action(
        &self,
        gpu: &str,
        state: &GpuState,
        now: Millis,
        limits: IdleLimits,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        // Nothing is checked or destroyed before the pods are known.
        self.pods.as_ref()?;
        state.instances.iter().find_map(|instance| {
            let due = match instance.ownership {
                Ownership::Lingering { check_at, .. } => check_at,
                Ownership::Idle { .. } if instance.fault.is_some() => now,
                Ownership::Idle { since } => since + limits.ttl,
                Ownership::Stuck { retry_at, .. } => retry_at,
                Ownership::Claimed(_) | Ownership::Foreign => return None,
            };
            if due > now {
                wakeup.request(due);
                return None;
            }
            Some(match instance.ownership {
                Ownership::Lingering { .. } => instance.check_processes(gpu),
                _ => instance.destroy(gpu),
            })
        })
    }

    /// Destroys the oldest idle instance when there are more than are kept.
    fn destroy_surplus(&self, limits: IdleLimits) -> Option<Action> {
        self.pods.as_ref()?;
        let answering = self.gpus.iter().filter(|(_, state)| state.lost.is_none());
        let all = answering.flat_map(|(gpu, state)| state.instances.iter().map(move |i| (gpu, i)));
        let idle: Vec<_> = all
            .filter_map(|(gpu, instance)| match instance.ownership {
                Ownership::Idle { since } => Some((since, gpu, instance)),
                _ => None,
            })
            .collect();
        if idle.len() <= limits.count {
            return None;
        }
        let oldest = idle
            .into_iter()
            .min_by_key(|(since, gpu, instance)| (*since, *gpu, instance.live.id));
        oldest.map(|(_, gpu, instance)| instance.destroy(gpu))
    }
}

impl GpuState {
    /// An action that wants an idle GPU, or what must come before it; nothing while it has to wait.
    pub(crate) fn once_idle(
        &self,
        gpu: &str,
        now: Millis,
        last_attempt: Option<&Attempt>,
        action: Action,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        let in_use = |i: &&TrackedInstance| !matches!(i.ownership, Ownership::Idle { .. });
        if let Some(instance) = self.instances.iter().find(in_use) {
            return match instance.ownership {
                Ownership::Lingering { check_at, .. } if check_at <= now => {
                    Some(instance.check_processes(gpu))
                }
                _ => None,
            };
        }
        if let Some(instance) = self.instances.first() {
            return Some(instance.destroy(gpu));
        }
        if let Some(attempt) = last_attempt
            && attempt.retry_at > now
        {
            wakeup.request(attempt.retry_at);
            return None;
        }
        Some(action)
    }
}

/// Offers a GPU again after its creation back-off.
fn end_backoff(gpu: &str, state: &GpuState, now: Millis, wakeup: &mut Wakeup) -> Option<Action> {
    let backoff = state.creation_backoff.as_ref()?;
    if backoff.is_over {
        return None;
    }
    if backoff.until > now {
        wakeup.request(backoff.until);
        return None;
    }
    Some(Action::EndBackoff {
        gpu: gpu.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use domain::gpu::InstanceState;

    use super::*;
    use crate::{
        gpus::{
            instance::QUARANTINE_AFTER,
            testing::{GPU, LIMITS, app, destroys, live, node, set_pods, slot},
        },
        nvml::data::Recovery,
    };

    #[test]
    fn an_instance_outlives_its_pod_until_its_processes_end_and_then_for_the_ttl() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        set_pods(&mut state, &[], 10);
        assert_eq!(state.gpus[GPU].instances[0].state(), InstanceState::InUse);
        let check = Action::CheckProcesses {
            gpu: GPU.into(),
            id: 7,
        };
        assert_eq!(state.next_action(10, LIMITS).0, Some(check));
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Idle { since: 20 };
        assert_eq!(state.next_action(20, LIMITS), (None, Some(1_020)));
        assert_eq!(state.next_action(1_020, LIMITS).0, Some(destroys(7)));
        // A new claim of its shape has it at once; one of another shape clears it.
        let mut same = state.clone();
        set_pods(&mut same, &[app("b", "1g.10gb", 6)], 30);
        assert_eq!(same.next_action(5_000, LIMITS), (None, None));
        set_pods(&mut state, &[app("b", "1g.20gb", 6)], 30);
        assert_eq!(state.next_action(30, LIMITS).0, Some(destroys(7)));
    }

    #[test]
    fn a_stuck_instance_is_tried_again_and_then_quarantined() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[]);
        let stuck = |failures| Ownership::Stuck {
            failures,
            retry_at: 50,
            reason: "in use".into(),
        };
        state.instance_mut(GPU, 7).unwrap().ownership = stuck(1);
        assert_eq!(state.next_action(0, LIMITS), (None, Some(50)));
        assert_eq!(state.next_action(50, LIMITS).0, Some(destroys(7)));
        assert_eq!(state.gpus[GPU].instances[0].state(), InstanceState::InUse);
        state.instance_mut(GPU, 7).unwrap().ownership = stuck(QUARANTINE_AFTER);
        assert_eq!(
            state.gpus[GPU].instances[0].state(),
            InstanceState::Quarantined
        );
    }

    #[test]
    fn only_so_many_idle_instances_are_kept_and_the_oldest_goes() {
        let places = [("1g.10gb", 6), ("1g.10gb", 5), ("1g.10gb", 4)];
        let instances: Vec<_> = (7..)
            .zip(places)
            .map(|(id, (profile, start))| live(id, &slot(profile, start)))
            .collect();
        let mut state = node(&instances, &[]);
        for (id, since) in [(7, 30), (8, 10), (9, 20)] {
            state.instance_mut(GPU, id).unwrap().ownership = Ownership::Idle { since };
        }
        let limits = |count| IdleLimits { count, ..LIMITS };
        assert_eq!(state.next_action(40, limits(2)).0, Some(destroys(8)));
        assert_eq!(state.next_action(40, limits(3)), (None, Some(1_010)));
    }

    #[test]
    fn an_unhealthy_gpu_is_reset_when_nobody_is_on_it() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.may_reset = true;
        state.gpu_mut(GPU).unwrap().surveyed.health.recovery = Some(Recovery::Reset);
        assert_eq!(state.next_action(0, LIMITS).0, None, "a pod has it");
        set_pods(&mut state, &[], 0);
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Idle { since: 0 };
        assert_eq!(state.next_action(0, LIMITS).0, Some(destroys(7)));
        state.gpu_mut(GPU).unwrap().instances.clear();
        let reset = Action::Reset { gpu: GPU.into() };
        assert_eq!(state.next_action(0, LIMITS).0, Some(reset));
        let failure = Some(Attempt {
            outcome: "in use".to_owned(),
            retry_at: 600_000,
        });
        state.gpu_mut(GPU).unwrap().last_reset = failure;
        assert_eq!(state.next_action(0, LIMITS), (None, Some(600_000)));
        state.gpu_mut(GPU).unwrap().surveyed.health.recovery = Some(Recovery::Reboot);
        assert_eq!(state.next_action(0, LIMITS), (None, None), "no reset helps");
    }
}
