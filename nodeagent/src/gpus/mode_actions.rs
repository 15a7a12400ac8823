//! When a GPU changes its mode.

use domain::{
    claim::ClaimedDevice,
    mode::{NodeMode, VgpuMode},
};

use crate::gpus::{
    action::Action,
    clock::{Millis, Wakeup},
    state::{GpuState, NodeState},
};

impl NodeState {
    /// The mode to which a GPU should change and has not yet.
    pub fn changing_to(&self, gpu: &str) -> Option<VgpuMode> {
        let state = self.gpus.get(gpu)?;
        state.surveyed.mig?;
        self.wanted_mode(state)
            .filter(|wanted| *wanted != state.mode())
    }

    /// Whether a GPU changes its mode for the pods that are bound to it.
    pub fn has_automatic_mode(&self, state: &GpuState) -> bool {
        state.surveyed.mig.is_some()
            && self.wanted_modes.for_gpu(&state.surveyed) == Some(NodeMode::Auto)
    }

    /// Changes the mode of a GPU, once nothing of its old mode is in use.
    pub(crate) fn mode_action(
        &self,
        gpu: &str,
        state: &GpuState,
        now: Millis,
        wakeup: &mut Wakeup,
    ) -> Option<Action> {
        let mode = self.changing_to(gpu)?;
        if self.is_claimed(gpu, |device| device.mode() == state.mode())? {
            return None;
        }
        let change = Action::SetMode {
            gpu: gpu.to_owned(),
            mode,
        };
        state.once_idle(gpu, now, state.failed_mode_change.as_ref(), change, wakeup)
    }

    /// Whether a pod claims such a device of a GPU; `None` before the pods are known.
    pub(crate) fn is_claimed(
        &self,
        gpu: &str,
        such: impl Fn(&ClaimedDevice) -> bool,
    ) -> Option<bool> {
        let pods = self.pods.as_ref()?.values();
        let mut devices = pods.flat_map(|pod| pod.claim.devices());
        Some(devices.any(|device| device.gpu() == gpu && such(device)))
    }

    /// The mode in which a GPU should work; `None`: in its current one.
    fn wanted_mode(&self, state: &GpuState) -> Option<VgpuMode> {
        let wanted = self.wanted_modes.for_gpu(&state.surveyed)?;
        if wanted != NodeMode::Auto {
            return wanted.fixed();
        }
        // The claims on the GPU decide. While one of them needs the current mode, it does not change.
        let pods = self.pods.iter().flat_map(|pods| pods.values());
        let devices = pods.flat_map(|pod| pod.claim.devices());
        let mut modes = devices
            .filter(|device| device.gpu() == state.surveyed.uuid)
            .map(ClaimedDevice::mode)
            .peekable();
        let first = modes.peek().copied()?;
        let stays = modes.any(|mode| mode == state.mode());
        (!stays).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use domain::{claim::Share, config::DeviceMode};

    use super::*;
    use crate::{
        gpus::{
            instance::Ownership,
            modes::WantedModes,
            testing::{GPU, LIMITS, app, destroys, gpu, live, node, set_pods, slot, survey},
        },
        nvml::data::SurveyedGpu,
    };

    #[test]
    fn a_gpu_changes_its_mode_when_it_is_idle() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.wanted_modes.node = Some(NodeMode::HamiCore);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::HamiCore));
        assert_eq!(state.next_action(0, LIMITS).0, None, "a pod has it");
        set_pods(&mut state, &[], 0);
        state.instance_mut(GPU, 7).unwrap().ownership = Ownership::Idle { since: 0 };
        assert_eq!(
            state.next_action(0, LIMITS).0,
            Some(destroys(7)),
            "no warm stock"
        );
        state.gpu_mut(GPU).unwrap().instances.clear();
        assert!(matches!(
            state.next_action(0, LIMITS).0,
            Some(Action::SetMode { .. })
        ));
        survey(&mut state, gpu(false, &[]), &[], 0);
        assert_eq!(
            (state.changing_to(GPU), state.next_action(0, LIMITS).0),
            (None, None)
        );
    }

    #[test]
    fn a_gpu_may_work_in_another_mode_than_its_node() {
        let mut state = NodeState {
            wanted_modes: WantedModes {
                node: Some(NodeMode::Mig),
                devices: vec![DeviceMode {
                    uuid: None,
                    index: Some(1),
                    operatingmode: NodeMode::HamiCore,
                }],
            },
            ..NodeState::default()
        };
        let other = SurveyedGpu {
            index: 1,
            uuid: "GPU-2".into(),
            ..gpu(false, &[])
        };
        state.apply_survey(vec![gpu(false, &[]), other], &[], &[], 0);
        set_pods(&mut state, &[], 0);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::Mig));
        assert_eq!(state.changing_to("GPU-2"), None);
    }

    #[test]
    fn in_mode_auto_the_claims_on_an_idle_gpu_change_its_mode() {
        let mut state = NodeState {
            wanted_modes: WantedModes {
                node: Some(NodeMode::Auto),
                devices: vec![],
            },
            ..NodeState::default()
        };
        survey(&mut state, gpu(false, &[]), &[], 0);
        set_pods(&mut state, &[], 0);
        assert!(state.has_automatic_mode(&state.gpus[GPU]));
        assert_eq!(state.next_action(0, LIMITS), (None, None), "as it is");
        let mut share = app("s", "1g.10gb", 6);
        share.claim.containers[0].devices = vec![ClaimedDevice::HamiCore(Share {
            gpu: GPU.into(),
            mem: 1,
            cores: 0,
        })];
        let mig = app("a", "1g.10gb", 6);
        set_pods(&mut state, &[share.clone(), mig.clone()], 0);
        assert_eq!(state.changing_to(GPU), None, "a share is on it");
        set_pods(&mut state, std::slice::from_ref(&mig), 0);
        let to_mig = Action::SetMode {
            gpu: GPU.into(),
            mode: VgpuMode::Mig,
        };
        assert_eq!(state.next_action(0, LIMITS).0, Some(to_mig));
        survey(&mut state, gpu(true, &[]), &[], 1);
        let (action, _) = state.next_action(1, LIMITS);
        assert!(matches!(action, Some(Action::Create { .. })));
        // And back, for a share.
        set_pods(&mut state, &[share], 2);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::HamiCore));
    }
}
