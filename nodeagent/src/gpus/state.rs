//! All that is known about the GPUs of this node and the claims on them.

use std::{collections::BTreeMap, sync::Arc};

use domain::{claim::Slot, mode::VgpuMode};

use crate::{
    gpus::{
        backoff::{CreationBackoff, CreationFailure},
        claims::ClaimedPods,
        clock::Millis,
        health,
        instance::TrackedInstance,
        modes::WantedModes,
    },
    nvml::data::{MigMode, Recovery, SurveyedGpu},
};

/// How long the driver may take to publish the recovery action after a fault, in milliseconds.
const RECOVERY_ACTION_DELAY_MS: Millis = 15_000;

/// All GPUs and claims of the node.
///
/// A copy for the inventory shares the GPUs and pods with the original; a change copies the one GPU that it changes.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    /// By UUID.
    pub gpus: BTreeMap<String, Arc<GpuState>>,
    /// The pods with a claim. `None` until the first list of pods is complete: nothing is destroyed before.
    pub pods: Option<Arc<ClaimedPods>>,
    /// The modes that the admin wants.
    pub wanted_modes: WantedModes,
    /// Whether unhealthy GPUs may be reset.
    pub may_reset: bool,
    /// Creations that failed, by pod UID and slot.
    pub creation_failures: BTreeMap<(String, Slot), CreationFailure>,
}

/// A GPU with its instances.
#[derive(Clone, Debug)]
pub struct GpuState {
    /// As surveyed last.
    pub surveyed: SurveyedGpu,
    /// Its GPU instances.
    pub instances: Vec<TrackedInstance>,
    /// Why it did not answer the last survey.
    pub lost: Option<String>,
    /// A fault of the whole GPU that NVML reported.
    pub fault: Option<GpuFault>,
    /// Instances cannot be created on it.
    pub creation_backoff: Option<CreationBackoff>,
    /// The last change of mode, if it failed.
    pub failed_mode_change: Option<Attempt>,
    /// The last reset because it was unhealthy, whether it failed or did not help.
    pub last_reset: Option<Attempt>,
}

/// A fault of a whole GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFault {
    /// The fault in words.
    pub reason: String,
    /// When NVML reported it.
    pub since: Millis,
}

/// An attempt that did not have the result that was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What became of it, in words.
    pub outcome: String,
    /// When to try again.
    pub retry_at: Millis,
}

impl NodeState {
    /// An instance by its GPU's UUID and its id.
    pub(crate) fn instance(&self, gpu: &str, id: u32) -> Option<&TrackedInstance> {
        let state = self.gpus.get(gpu)?;
        state.instances.iter().find(|i| i.live.id == id)
    }

    /// The same, to change it.
    pub(crate) fn instance_mut(&mut self, gpu: &str, id: u32) -> Option<&mut TrackedInstance> {
        let state = self.gpu_mut(gpu)?;
        state.instances.iter_mut().find(|i| i.live.id == id)
    }

    /// A GPU, to change it. The inventory that was published last keeps it as it was.
    pub(crate) fn gpu_mut(&mut self, gpu: &str) -> Option<&mut GpuState> {
        self.gpus.get_mut(gpu).map(Arc::make_mut)
    }
}

impl GpuState {
    pub(crate) fn new(surveyed: SurveyedGpu) -> Self {
        Self {
            surveyed,
            instances: vec![],
            lost: None,
            fault: None,
            creation_backoff: None,
            failed_mode_change: None,
            last_reset: None,
        }
    }

    /// The mode in which it works now.
    pub fn mode(&self) -> VgpuMode {
        match self.surveyed.mig {
            Some(MigMode { current: true, .. }) => VgpuMode::Mig,
            _ => VgpuMode::HamiCore,
        }
    }

    /// Why it must not be used for new pods; `None`: it is healthy.
    pub fn unhealthy_reason(&self) -> Option<String> {
        let lost = self.lost.clone();
        lost.or_else(|| self.fault_reason()).or_else(|| {
            let backoff = self.creation_backoff.as_ref();
            let active = backoff.filter(|backoff| !backoff.is_over);
            active.map(|backoff| backoff.reason.clone())
        })
    }

    /// The fault of a GPU that answers: no instance is created on it.
    pub(crate) fn fault_reason(&self) -> Option<String> {
        let fault = self.fault.as_ref().map(|fault| fault.reason.clone());
        fault.or_else(|| health::unhealthy_reason(&self.surveyed.health))
    }

    /// Forgets a fault when the driver, asked long enough after it, requests no recovery. Where the driver cannot be
    /// asked, the GPU stays unhealthy until a reset.
    pub(crate) fn forget_recovered_fault(&mut self, now: Millis) {
        if let Some(fault) = &self.fault
            && now >= fault.since + RECOVERY_ACTION_DELAY_MS
            && self.surveyed.health.recovery == Some(Recovery::None)
        {
            self.fault = None;
        }
    }

    /// Whether a reset would make it healthy again.
    pub(crate) fn needs_reset(&self) -> bool {
        match self.surveyed.health.recovery {
            Some(Recovery::Reset | Recovery::DrainAndReset) => true,
            Some(_) => false,
            None => self.fault.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpus::{
            action::Action,
            instance::Ownership,
            testing::{GPU, LIMITS, app, destroys, entry, gpu, live, node, set_pods, slot, survey},
        },
        nvml::data::Health,
    };

    #[test]
    fn an_instance_with_a_fault_is_given_to_nobody_else_and_its_gpu_stays_in_use() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.instance_mut(GPU, 7).unwrap().fault = Some("XID 94".into());
        assert_eq!(state.next_action(0, LIMITS), (None, None), "its pod has it");
        let b = app("b", "1g.10gb", 5);
        set_pods(&mut state, &[app("a", "1g.10gb", 6), b], 0);
        let (action, _) = state.next_action(0, LIMITS);
        assert!(matches!(action, Some(Action::Create { container, .. }) if container.uid == "b"));
        set_pods(&mut state, &[], 1);
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Idle { since: 1 };
        assert_eq!(
            state.next_action(1, LIMITS).0,
            Some(destroys(7)),
            "no warm stock"
        );
        set_pods(&mut state, &[app("c", "1g.10gb", 6)], 1);
        assert_eq!(
            state.next_action(1, LIMITS).0,
            Some(destroys(7)),
            "recreated"
        );
    }

    #[test]
    fn a_gpu_with_a_fault_keeps_its_pods_and_takes_no_new_one_until_the_driver_reports_that_it_is_healthy()
     {
        let (a, b) = (app("a", "1g.10gb", 6), app("b", "1g.10gb", 5));
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[a.clone(), b.clone()]);
        state.gpu_mut(GPU).unwrap().fault = Some(GpuFault {
            reason: "XID 48".into(),
            since: 1_000,
        });
        assert_eq!(
            state.gpus[GPU].unhealthy_reason().as_deref(),
            Some("XID 48")
        );
        assert_eq!(
            state.actions_for_slot(&a, "c", &slot("1g.10gb", 6), true),
            Ok(vec![])
        );
        let (action, _) = state.next_action(1_000, LIMITS);
        assert!(
            matches!(action, Some(Action::RejectClaim { container, .. }) if container.uid == "b")
        );
        let with = |recovery| SurveyedGpu {
            health: Health {
                recovery,
                row_remapping_failed: false,
            },
            ..gpu(true, &[live(7, &slot("1g.10gb", 6))])
        };
        let journal = [entry(&live(7, &slot("1g.10gb", 6)), 1, true)];
        let mut at = |recovery, now| {
            survey(&mut state, with(recovery), &journal, now);
            state.gpus[GPU].unhealthy_reason()
        };
        assert!(at(None, 1_000_000).is_some(), "the driver cannot report it");
        assert!(
            at(Some(Recovery::None), 2_000).is_some(),
            "too early to know"
        );
        assert!(at(Some(Recovery::Reset), 60_000).is_some());
        assert_eq!(at(Some(Recovery::None), 90_000), None);
    }
}
