//! The instances of this node's cards and who has them: the state, and what to do next. Pure.

use std::collections::BTreeMap;

use domain::{InstanceState, Model, Slices, Slot, VgpuMode};

use crate::{
    claims::ClaimedPod,
    journal::Entry,
    nvml::{LiveInstance, MigMode, SurveyedCard},
};

/// Milliseconds on the agent's own monotonic clock.
pub type Millis = u64;

/// A card with its instances.
#[derive(Clone, Debug)]
pub struct CardState {
    /// As surveyed last.
    pub card: SurveyedCard,
    /// GPU instances.
    pub instances: Vec<Held>,
    /// Why the card must not be used.
    pub unhealthy: Option<String>,
    /// Why the last change of mode failed, and when to try again.
    pub mode_failure: Option<(String, Millis)>,
}

/// A GPU instance and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What NVML says.
    pub live: LiveInstance,
    /// The journal's generation; `None`: not of our making.
    pub generation: Option<u64>,
    /// Who has it.
    pub tenure: Tenure,
}

/// Who has an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// A pod's claim.
    Pod {
        /// UID of the pod.
        uid: String,
        /// `namespace/name`.
        pod: String,
        /// The container, the application's where it is shared.
        container: String,
    },
    /// The pod is over, but processes still run on the instance.
    Lingering {
        /// Its last pod, `namespace/name`.
        pod: String,
        /// When to look again.
        look_at: Millis,
    },
    /// Nobody, since then.
    Idle {
        /// Since when.
        since: Millis,
    },
    /// It should be gone; destroying it failed.
    Stuck {
        /// How often.
        failures: u32,
        /// When to try again.
        retry_at: Millis,
        /// NVML's words.
        reason: String,
    },
    /// Somebody else made it.
    Foreign,
}

/// The next thing to do with NVML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an instance for a claim.
    Create {
        /// The pod.
        uid: String,
        /// `namespace/name`.
        pod: String,
        /// The container.
        container: String,
        /// Where and what.
        slot: Slot,
    },
    /// Destroy an instance of ours that nobody has.
    Destroy {
        /// UUID of the card.
        gpu: String,
        /// GPU instance id.
        id: u32,
    },
    /// Look whether processes still run on an instance without pod.
    Look {
        /// UUID of the card.
        gpu: String,
        /// GPU instance id.
        id: u32,
    },
    /// Change a card's mode.
    SetMode {
        /// UUID of the card.
        gpu: String,
        /// To what.
        mode: VgpuMode,
    },
}

/// Failures after which an instance that cannot be destroyed is called quarantined.
pub const QUARANTINE_AFTER: u32 = 6;

/// What must hold of time.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long an idle instance is kept as warm stock, milliseconds.
    pub idle_ttl: Millis,
    /// How long between looks at a lingering instance, milliseconds.
    pub look_every: Millis,
}

/// All cards and claims of the node.
#[derive(Clone, Debug, Default)]
pub struct Instances {
    /// By UUID.
    pub cards: BTreeMap<String, CardState>,
    /// Pods with a claim, by UID. `None` until the first list of pods is in: nothing is destroyed before.
    pub pods: Option<BTreeMap<String, ClaimedPod>>,
    /// The mode that the admin wants; `None`: leave the cards as they are.
    pub wanted_mode: Option<VgpuMode>,
    /// Creations that failed: NVML's words and when to try again, by pod UID and slot.
    pub create_failures: BTreeMap<(String, Slot), (String, Millis)>,
}

impl CardState {
    /// How the card works now.
    pub fn mode(&self) -> VgpuMode {
        match self.card.mig {
            Some(MigMode { current: true, .. }) => VgpuMode::Mig,
            _ => VgpuMode::HamiCore,
        }
    }
}

impl Held {
    /// The state to publish.
    pub fn state(&self) -> InstanceState {
        match &self.tenure {
            Tenure::Pod { .. } if self.live.compute.is_empty() => InstanceState::Creating,
            Tenure::Pod { .. } | Tenure::Lingering { .. } => InstanceState::InUse,
            Tenure::Idle { .. } => InstanceState::Idle,
            Tenure::Stuck { failures, .. } if *failures < QUARANTINE_AFTER => InstanceState::InUse,
            Tenure::Stuck { .. } => InstanceState::Quarantined,
            Tenure::Foreign => InstanceState::Foreign,
        }
    }

    /// Whether it is what a slot asks for.
    pub fn is(&self, slot: &Slot, model: &Model) -> bool {
        (self.live.start, self.live.size) == (slot.start, slot.size)
            && model
                .offer(&slot.profile)
                .is_some_and(|offer| offer.profile_id == self.live.profile_id)
    }

    fn overlaps(&self, slices: Slices) -> bool {
        self.live.slices().overlaps(slices)
    }
}

/// Why a container's slot cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The card is gone or not in MIG mode.
    #[error("GPU {0} is not here in MIG mode")]
    NoCard(String),
    /// Another pod's or a foreign instance is there.
    #[error("slices {slices} of GPU {gpu} are held by {by}")]
    Held {
        /// UUID of the card.
        gpu: String,
        /// The slices asked for.
        slices: Slices,
        /// Who, in words.
        by: String,
    },
    /// NVML refused.
    #[error("{0}")]
    Failed(String),
}

impl Instances {
    /// Takes over a survey: what is known keeps its tenure, what is ours by the journal is idle
    /// (to be claimed or removed), the rest is foreign.
    pub fn surveyed(&mut self, cards: Vec<SurveyedCard>, journal: &[Entry], now: Millis) {
        let mut known = std::mem::take(&mut self.cards);
        for card in cards {
            let before = known.remove(&card.uuid);
            let instances = card
                .instances
                .iter()
                .map(|live| {
                    let same = before.as_ref().and_then(|state| {
                        state.instances.iter().find(|held| {
                            (held.live.id, held.live.profile_id, held.live.start)
                                == (live.id, live.profile_id, live.start)
                        })
                    });
                    let generation = ours(journal, &card.uuid, live);
                    let tenure = match same {
                        Some(held) if held.generation == generation => held.tenure.clone(),
                        _ if generation.is_some() => Tenure::Idle { since: now },
                        _ => Tenure::Foreign,
                    };
                    Held {
                        live: live.clone(),
                        generation,
                        tenure,
                    }
                })
                .collect();
            self.cards.insert(
                card.uuid.clone(),
                CardState {
                    instances,
                    unhealthy: None,
                    mode_failure: before.and_then(|state| state.mode_failure),
                    card,
                },
            );
        }
        // A card that does not answer any more keeps its place: its slices are not free.
        for (uuid, mut lost) in known {
            lost.unhealthy = Some("the card does not answer to NVML".to_owned());
            self.cards.insert(uuid, lost);
        }
        self.settle(now);
    }

    /// Takes over the pods of the node.
    pub fn claimed(&mut self, pods: BTreeMap<String, ClaimedPod>, now: Millis) {
        self.create_failures
            .retain(|(uid, _), _| pods.contains_key(uid));
        self.pods = Some(pods);
        self.settle(now);
    }

    /// Gives every instance of ours to the pod that claims it, and takes it from pods that are over.
    fn settle(&mut self, now: Millis) {
        let Some(pods) = &self.pods else { return };
        for (uuid, state) in &mut self.cards {
            for held in &mut state.instances {
                let claimant = pods.values().find_map(|pod| {
                    let containers = || {
                        pod.claim.containers.iter().rev().filter(|container| {
                            container
                                .devices
                                .iter()
                                .filter_map(|device| device.slot())
                                .any(|slot| slot.gpu == *uuid && held.is(slot, &state.card.model))
                        })
                    };
                    containers().next().map(|container| (pod, container))
                });
                match (&held.tenure, claimant) {
                    (Tenure::Pod { uid, .. }, Some((pod, _))) if *uid == pod.uid => {}
                    (Tenure::Pod { uid, pod: last, .. }, _) if !pods.contains_key(uid) => {
                        held.tenure = Tenure::Lingering {
                            pod: last.clone(),
                            look_at: now,
                        };
                    }
                    (Tenure::Idle { .. } | Tenure::Pod { .. }, Some((pod, container))) => {
                        held.tenure = Tenure::Pod {
                            uid: pod.uid.clone(),
                            pod: pod.key(),
                            container: container.name.clone(),
                        };
                    }
                    // Nobody asks for it, it is not ours, or processes of the last pod are still there.
                    _ => {}
                }
            }
        }
    }

    /// What is in the way of a slot for a pod's container: the steps that clear and make it, in order.
    ///
    /// Empty: the slot's instance is there, complete, and the pod's. `for_container` may displace
    /// instances of its own pod that overlap (an init container's, which has ended).
    pub fn steps_for(
        &self,
        pod: &ClaimedPod,
        container: &str,
        slot: &Slot,
        displace_own: bool,
    ) -> Result<Vec<Step>, Blocked> {
        let state = self
            .cards
            .get(&slot.gpu)
            .filter(|state| state.mode() == VgpuMode::Mig && state.unhealthy.is_none())
            .ok_or_else(|| Blocked::NoCard(slot.gpu.clone()))?;
        let mut steps = Vec::new();
        for held in state
            .instances
            .iter()
            .filter(|held| held.overlaps(slot.slices()))
        {
            let same = held.is(slot, &state.card.model);
            let by = match &held.tenure {
                Tenure::Pod { uid, .. }
                    if *uid == pod.uid && same && !held.live.compute.is_empty() =>
                {
                    return Ok(vec![]);
                }
                // A GPU instance without compute instance is of no use: made again as a whole.
                Tenure::Pod { uid, .. } if *uid == pod.uid && (displace_own || same) => {
                    steps.push(destroy(&slot.gpu, held));
                    continue;
                }
                Tenure::Idle { .. } => {
                    steps.push(destroy(&slot.gpu, held));
                    continue;
                }
                Tenure::Pod { pod, .. } => format!("pod {pod}"),
                Tenure::Lingering { pod, .. } => format!("processes of pod {pod}, which is over"),
                Tenure::Stuck { reason, .. } => {
                    format!("an instance that cannot be destroyed ({reason})")
                }
                Tenure::Foreign => "an instance that Tessera did not make".to_owned(),
            };
            return Err(Blocked::Held {
                gpu: slot.gpu.clone(),
                slices: slot.slices(),
                by,
            });
        }
        steps.push(Step::Create {
            uid: pod.uid.clone(),
            pod: pod.key(),
            container: container.to_owned(),
            slot: slot.clone(),
        });
        Ok(steps)
    }

    /// The next thing to do of its own accord, and when to ask again if there is nothing now.
    pub fn next_step(&self, now: Millis, patience: Patience) -> (Option<Step>, Option<Millis>) {
        let mut wake: Option<Millis> = None;
        let mut later = |at: Millis| wake = Some(wake.map_or(at, |known| known.min(at)));
        // Claims first: a pod waits for them.
        for pod in self.pods.iter().flat_map(BTreeMap::values) {
            let mut early: Vec<&Slot> = Vec::new();
            for container in &pod.claim.containers {
                for slot in container.devices.iter().filter_map(|device| device.slot()) {
                    // What overlaps an earlier container's slot has to wait for that container's end.
                    let waits = early.iter().any(|known| {
                        known.gpu == slot.gpu && known.slices().overlaps(slot.slices())
                    });
                    let over = pod
                        .containers
                        .get(&container.name)
                        .is_some_and(|p| p.completed);
                    if waits || over {
                        continue;
                    }
                    early.push(slot);
                    if let Some((_, retry_at)) =
                        self.create_failures.get(&(pod.uid.clone(), slot.clone()))
                        && *retry_at > now
                    {
                        later(*retry_at);
                        continue;
                    }
                    if let Ok(steps) = self.steps_for(pod, &container.name, slot, false)
                        && let Some(step) = steps.into_iter().next()
                    {
                        return (Some(step), None);
                    }
                }
            }
        }
        for (gpu, state) in &self.cards {
            if state.unhealthy.is_some() {
                continue;
            }
            if self.changing_to(gpu).is_some()
                && let Some(step) = self.mode_step(gpu, state, now, &mut later)
            {
                return (Some(step), None);
            }
            for held in &state.instances {
                let due = match held.tenure {
                    _ if self.pods.is_none() => continue,
                    Tenure::Lingering { look_at, .. } => look_at,
                    Tenure::Idle { since } => since + patience.idle_ttl,
                    Tenure::Stuck { retry_at, .. } => retry_at,
                    Tenure::Pod { .. } | Tenure::Foreign => continue,
                };
                if due > now {
                    later(due);
                    continue;
                }
                let step = match held.tenure {
                    Tenure::Lingering { .. } => Step::Look {
                        gpu: gpu.clone(),
                        id: held.live.id,
                    },
                    _ => destroy(gpu, held),
                };
                return (Some(step), None);
            }
        }
        (None, wake)
    }

    /// The mode that a card should change to and has not yet.
    pub fn changing_to(&self, gpu: &str) -> Option<VgpuMode> {
        let state = self.cards.get(gpu)?;
        state.card.mig?;
        self.wanted_mode.filter(|wanted| *wanted != state.mode())
    }

    /// The step towards another mode, once nothing of the old mode is in use.
    fn mode_step(
        &self,
        gpu: &str,
        state: &CardState,
        now: Millis,
        later: &mut impl FnMut(Millis),
    ) -> Option<Step> {
        let mode = self.changing_to(gpu)?;
        let claimed = self
            .pods
            .as_ref()?
            .values()
            .any(|pod| pod.claim.devices().any(|device| device.gpu() == gpu));
        if claimed {
            return None;
        }
        if let Some(held) = state
            .instances
            .iter()
            .find(|held| !matches!(held.tenure, Tenure::Idle { .. }))
        {
            if let Tenure::Lingering { look_at, .. } = held.tenure
                && look_at <= now
            {
                return Some(Step::Look {
                    gpu: gpu.to_owned(),
                    id: held.live.id,
                });
            }
            return None;
        }
        if let Some(held) = state.instances.first() {
            return Some(destroy(gpu, held));
        }
        if let Some((_, retry_at)) = &state.mode_failure
            && *retry_at > now
        {
            later(*retry_at);
            return None;
        }
        Some(Step::SetMode {
            gpu: gpu.to_owned(),
            mode,
        })
    }

    /// The instance of that id.
    pub fn held(&mut self, gpu: &str, id: u32) -> Option<&mut Held> {
        self.cards
            .get_mut(gpu)?
            .instances
            .iter_mut()
            .find(|held| held.live.id == id)
    }
}

fn destroy(gpu: &str, held: &Held) -> Step {
    Step::Destroy {
        gpu: gpu.to_owned(),
        id: held.live.id,
    }
}

/// The generation under which the journal knows an instance. An open intent at exactly its profile and
/// place is it too: the agent died between NVML's answer and the record.
fn ours(journal: &[Entry], gpu: &str, live: &LiveInstance) -> Option<u64> {
    journal
        .iter()
        .filter(|entry| {
            entry.gpu == gpu
                && (entry.profile_id, entry.start, entry.size)
                    == (live.profile_id, live.start, live.size)
                && entry.gpu_instance.is_none_or(|id| id == live.id)
        })
        .map(|entry| entry.generation)
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claims::Progress, nvml::ComputeInstance};
    use domain::{Claim, ClaimedDevice, ContainerClaim, ContainerKind, fixtures};

    const GPU: &str = "GPU-1";
    const PATIENCE: Patience = Patience {
        idle_ttl: 1_000,
        look_every: 100,
    };

    fn slot(profile: &str, start: u8) -> Slot {
        let model = fixtures::a100_80gb();
        let offer = model.offer(profile).unwrap();
        Slot {
            gpu: GPU.into(),
            profile: profile.into(),
            start,
            size: offer.size,
            mem: offer.memory_mib,
        }
    }

    fn pod(uid: &str, containers: &[(&str, ContainerKind, Slot)]) -> ClaimedPod {
        let containers = containers.iter().map(|(name, kind, slot)| ContainerClaim {
            name: (*name).into(),
            kind: *kind,
            devices: vec![ClaimedDevice::Mig(slot.clone())],
        });
        ClaimedPod {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            claim: Claim {
                containers: containers.collect(),
            },
            containers: BTreeMap::new(),
        }
    }

    fn app(uid: &str, profile: &str, start: u8) -> ClaimedPod {
        pod(uid, &[("c", ContainerKind::App, slot(profile, start))])
    }

    fn live(id: u32, slot: &Slot) -> LiveInstance {
        let model = fixtures::a100_80gb();
        LiveInstance {
            id,
            profile_id: model.offer(&slot.profile).unwrap().profile_id,
            start: slot.start,
            size: slot.size,
            compute: vec![ComputeInstance {
                id: 0,
                uuid: format!("MIG-{id}"),
            }],
        }
    }

    fn card(mig: bool, instances: &[LiveInstance]) -> SurveyedCard {
        SurveyedCard {
            index: 0,
            uuid: GPU.into(),
            minor: 0,
            numa: None,
            model: fixtures::a100_80gb(),
            mig: Some(MigMode {
                current: mig,
                pending: mig,
            }),
            instances: instances.to_vec(),
        }
    }

    /// The journal's entry of an instance; an open intent where `made` is false.
    fn entry(instance: &LiveInstance, generation: u64, made: bool) -> Entry {
        Entry {
            generation,
            gpu: GPU.into(),
            profile_id: instance.profile_id,
            start: instance.start,
            size: instance.size,
            gpu_instance: made.then_some(instance.id),
        }
    }

    fn claimed(state: &mut Instances, pods: &[ClaimedPod], now: Millis) {
        let pods = pods.iter().map(|pod| (pod.uid.clone(), pod.clone()));
        state.claimed(pods.collect(), now);
    }

    /// A node with one card whose instances are all ours.
    fn node(instances: &[LiveInstance], pods: &[ClaimedPod]) -> Instances {
        let mut state = Instances::default();
        let journal: Vec<_> = (1..)
            .zip(instances)
            .map(|(g, i)| entry(i, g, true))
            .collect();
        state.surveyed(vec![card(true, instances)], &journal, 0);
        claimed(&mut state, pods, 0);
        state
    }

    fn destroys(id: u32) -> Step {
        Step::Destroy {
            gpu: GPU.into(),
            id,
        }
    }

    #[test]
    fn nothing_is_destroyed_before_the_pods_are_known() {
        let instance = live(7, &slot("1g.10gb", 6));
        let mut state = Instances::default();
        state.surveyed(
            vec![card(true, std::slice::from_ref(&instance))],
            &[entry(&instance, 1, true)],
            0,
        );
        assert_eq!(state.next_step(1_000_000, PATIENCE), (None, None));
        claimed(&mut state, &[app("a", "1g.10gb", 6)], 1_000_000);
        assert_eq!(
            state.next_step(2_000_000, PATIENCE),
            (None, None),
            "it is adopted"
        );
        assert_eq!(state.cards[GPU].instances[0].state(), InstanceState::InUse);
    }

    #[test]
    fn a_claim_is_made_once() {
        let a = app("a", "1g.10gb", 6);
        let state = node(&[], std::slice::from_ref(&a));
        let (step, _) = state.next_step(0, PATIENCE);
        assert!(matches!(step, Some(Step::Create { slot, .. }) if slot.start == 6));
        let state = node(&[live(7, &slot("1g.10gb", 6))], &[a]);
        assert_eq!(state.next_step(0, PATIENCE), (None, None));
    }

    #[test]
    fn an_open_intent_is_adopted_and_half_an_instance_is_made_again() {
        let mut half = live(7, &slot("1g.10gb", 6));
        half.compute.clear();
        let mut state = Instances::default();
        state.surveyed(
            vec![card(true, std::slice::from_ref(&half))],
            &[entry(&half, 1, false)],
            0,
        );
        claimed(&mut state, &[app("a", "1g.10gb", 6)], 0);
        assert_eq!(
            state.cards[GPU].instances[0].state(),
            InstanceState::Creating
        );
        assert_eq!(state.next_step(0, PATIENCE).0, Some(destroys(7)));
    }

    #[test]
    fn what_we_did_not_make_is_never_touched() {
        let theirs = live(7, &slot("1g.10gb", 6));
        let mut state = Instances::default();
        state.surveyed(vec![card(true, &[theirs])], &[], 0);
        let a = app("a", "2g.20gb", 4);
        let b = app("b", "1g.20gb", 6);
        claimed(&mut state, &[a, b.clone()], 0);
        assert!(
            matches!(state.next_step(0, PATIENCE).0, Some(Step::Create { uid, .. }) if uid == "a")
        );
        let blocked = state
            .steps_for(&b, "c", &slot("1g.20gb", 6), true)
            .unwrap_err();
        assert_eq!(
            blocked.to_string(),
            "slices 6-7 of GPU GPU-1 are held by an instance that Tessera did not make"
        );
        // As journalled as it may look: another id is another making.
        let other = Entry {
            gpu_instance: Some(8),
            ..entry(&live(7, &slot("1g.10gb", 6)), 1, true)
        };
        state.surveyed(
            vec![card(true, &[live(7, &slot("1g.10gb", 6))])],
            &[other],
            0,
        );
        assert_eq!(
            state.cards[GPU].instances[0].state(),
            InstanceState::Foreign
        );
    }

    #[test]
    fn an_instance_outlives_its_pod_until_its_processes_end_and_then_for_the_ttl() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        claimed(&mut state, &[], 10);
        assert_eq!(state.cards[GPU].instances[0].state(), InstanceState::InUse);
        let look = Step::Look {
            gpu: GPU.into(),
            id: 7,
        };
        assert_eq!(state.next_step(10, PATIENCE).0, Some(look));
        state.held(GPU, 7).unwrap().tenure = Tenure::Idle { since: 20 };
        assert_eq!(state.next_step(20, PATIENCE), (None, Some(1_020)));
        assert_eq!(state.next_step(1_020, PATIENCE).0, Some(destroys(7)));
        // A new claim of its shape has it at once; one of another shape clears it.
        let mut same = state.clone();
        claimed(&mut same, &[app("b", "1g.10gb", 6)], 30);
        assert_eq!(same.next_step(5_000, PATIENCE), (None, None));
        claimed(&mut state, &[app("b", "1g.20gb", 6)], 30);
        assert_eq!(state.next_step(30, PATIENCE).0, Some(destroys(7)));
    }

    #[test]
    fn an_init_containers_slices_are_made_again_for_the_application_after_its_end() {
        let init = ("i", ContainerKind::Init, slot("1g.20gb", 6));
        let main = ("m", ContainerKind::App, slot("1g.10gb", 6));
        let mut both = pod("a", &[init, main]);
        let mut state = node(&[live(5, &slot("1g.20gb", 6))], std::slice::from_ref(&both));
        assert_eq!(
            state.next_step(0, PATIENCE),
            (None, None),
            "the application waits"
        );
        let ended = Progress {
            completed: true,
            ..Progress::default()
        };
        both.containers.insert("i".into(), ended);
        claimed(&mut state, std::slice::from_ref(&both), 1);
        let steps = state
            .steps_for(&both, "m", &slot("1g.10gb", 6), true)
            .unwrap();
        assert_eq!(steps[0], destroys(5));
        assert!(matches!(&steps[1], Step::Create { slot, .. } if slot.profile == "1g.10gb"));
    }

    #[test]
    fn a_card_changes_its_mode_when_it_is_idle() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.wanted_mode = Some(VgpuMode::HamiCore);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::HamiCore));
        assert_eq!(state.next_step(0, PATIENCE).0, None, "a pod has it");
        claimed(&mut state, &[], 0);
        state.held(GPU, 7).unwrap().tenure = Tenure::Idle { since: 0 };
        assert_eq!(
            state.next_step(0, PATIENCE).0,
            Some(destroys(7)),
            "no warm stock"
        );
        state.cards.get_mut(GPU).unwrap().instances.clear();
        assert!(matches!(
            state.next_step(0, PATIENCE).0,
            Some(Step::SetMode { .. })
        ));
        state.surveyed(vec![card(false, &[])], &[], 0);
        assert_eq!(
            (state.changing_to(GPU), state.next_step(0, PATIENCE).0),
            (None, None)
        );
    }

    #[test]
    fn a_stuck_instance_is_tried_again_and_then_quarantined() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[]);
        let stuck = |failures| Tenure::Stuck {
            failures,
            retry_at: 50,
            reason: "in use".into(),
        };
        state.held(GPU, 7).unwrap().tenure = stuck(1);
        assert_eq!(state.next_step(0, PATIENCE), (None, Some(50)));
        assert_eq!(state.next_step(50, PATIENCE).0, Some(destroys(7)));
        assert_eq!(state.cards[GPU].instances[0].state(), InstanceState::InUse);
        state.held(GPU, 7).unwrap().tenure = stuck(QUARANTINE_AFTER);
        assert_eq!(
            state.cards[GPU].instances[0].state(),
            InstanceState::Quarantined
        );
    }

    #[test]
    fn a_lost_card_keeps_its_instances_and_gets_no_steps() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.surveyed(vec![], &[], 1);
        assert!(state.cards[GPU].unhealthy.is_some());
        assert_eq!(state.cards[GPU].instances.len(), 1);
        claimed(&mut state, &[], 2);
        assert_eq!(state.next_step(1_000_000, PATIENCE).0, None);
    }
}
