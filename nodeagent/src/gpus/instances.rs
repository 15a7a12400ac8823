//! The instances of this node's cards and who has them: the state, and what to do next. Pure.

use std::collections::BTreeMap;

use domain::{
    claim::{ClaimedDevice, Slot},
    config::DeviceMode,
    gpu::{InstanceState, Model},
    mode::{NodeMode, VgpuMode},
    slices::Slices,
};

use crate::{
    gpus::claims::ClaimedPod,
    gpus::health,
    materialise::journal::{Bound, Entry},
    nvml::{LiveInstance, MigMode, Recovery, SurveyedCard},
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
    /// What NVML said when the card did not answer to the last survey.
    pub lost: Option<String>,
    /// A fault that the card told, and when.
    pub fault: Option<(String, Millis)>,
    /// Why instances cannot be made here.
    pub trouble: Option<Trouble>,
    /// Why the last change of mode failed, and when to try again.
    pub mode_failure: Option<(String, Millis)>,
    /// What became of the last attempt to reset the card because it is ill, and when to try again.
    pub reset_failure: Option<(String, Millis)>,
}

/// Instances cannot be made on a card: it rests for a while, and is offered again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// NVML's words.
    pub words: String,
    /// How often a pod had to be given up since an instance was made last.
    pub times: u32,
    /// Until when it rests.
    pub until: Millis,
    /// Whether it is offered again already.
    pub offered: bool,
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
    /// A fault that was of this instance alone: nobody else gets it.
    pub fault: Option<String>,
}

/// Who has an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// A pod's container, the application's where it is shared.
    Pod(Bound),
    /// No pod claims it, but processes may still run on it.
    Lingering {
        /// Who had it last, where the journal knows.
        last: Option<Bound>,
        /// When to look again.
        look_at: Millis,
        /// How often it was looked at.
        looks: u32,
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
        /// Whose it will be.
        of: Bound,
        /// Where and what.
        slot: Slot,
    },
    /// Note that an instance cannot be made for a claim.
    Fail {
        /// Whose it would be.
        of: Bound,
        /// Where and what.
        slot: Slot,
        /// Why.
        words: String,
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
    /// Reset an idle card because it is ill.
    Reset {
        /// UUID of the card.
        gpu: String,
    },
    /// Offer a card again on which instances could not be made.
    Offer {
        /// UUID of the card.
        gpu: String,
    },
}

/// Failures after which an instance that cannot be destroyed is called quarantined.
pub const QUARANTINE_AFTER: u32 = 6;
/// Failures after which a pod is given up for which an instance cannot be made ...
const GIVE_UP_AFTER: u32 = 5;
/// ... and how long that has to go on, milliseconds.
const GIVE_UP_TIME: Millis = 30_000;
/// How long the driver may take to say what it wants after a fault, milliseconds.
const STANDING_AFTER: Millis = 15_000;

/// What must hold of time and number.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long an idle instance is kept as warm stock, milliseconds.
    pub idle_ttl: Millis,
    /// How many idle instances are kept on the node.
    pub idle_limit: usize,
}

/// How the admin wants the cards to work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The node's label, or the settings where it has none; `None`: leave the cards as they are.
    pub node: Option<NodeMode>,
    /// Cards of which the settings say otherwise.
    pub devices: Vec<DeviceMode>,
}

impl Wanted {
    fn of(&self, card: &SurveyedCard) -> Option<NodeMode> {
        let named = self
            .devices
            .iter()
            .find(|device| device.applies_to(card.index, &card.uuid));
        named.map(|device| device.operatingmode).or(self.node)
    }
}

/// An instance could not be made for a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When first.
    pub since: Millis,
    /// How often.
    pub times: u32,
    /// When to try again.
    pub retry_at: Millis,
}

impl Failure {
    /// The failure, once more.
    pub fn again(before: Option<&Self>, now: Millis) -> Self {
        let times = before.map_or(0, |failure| failure.times) + 1;
        Self {
            since: before.map_or(now, |failure| failure.since),
            times,
            retry_at: now + (1_000 << times.min(5)).min(30_000),
        }
    }

    /// Whether the pod is better made anew elsewhere.
    pub fn is_hopeless(&self, now: Millis) -> bool {
        self.times >= GIVE_UP_AFTER && now >= self.since + GIVE_UP_TIME
    }
}

/// All cards and claims of the node.
#[derive(Clone, Debug, Default)]
pub struct Instances {
    /// By UUID.
    pub cards: BTreeMap<String, CardState>,
    /// Pods with a claim, by UID. `None` until the first list of pods is in: nothing is destroyed before.
    pub pods: Option<BTreeMap<String, ClaimedPod>>,
    /// The modes that the admin wants.
    pub wanted: Wanted,
    /// Whether cards that are ill may be reset.
    pub may_reset: bool,
    /// Creations that failed, by pod UID and slot.
    pub create_failures: BTreeMap<(String, Slot), Failure>,
}

impl CardState {
    fn new(card: SurveyedCard) -> Self {
        Self {
            card,
            instances: vec![],
            lost: None,
            fault: None,
            trouble: None,
            mode_failure: None,
            reset_failure: None,
        }
    }

    /// How the card works now.
    pub fn mode(&self) -> VgpuMode {
        match self.card.mig {
            Some(MigMode { current: true, .. }) => VgpuMode::Mig,
            _ => VgpuMode::HamiCore,
        }
    }

    /// Why the card must not be used for new pods.
    pub fn ailment(&self) -> Option<String> {
        let lost = self.lost.clone();
        lost.or_else(|| self.illness()).or_else(|| {
            let trouble = self.trouble.as_ref().filter(|trouble| !trouble.offered);
            trouble.map(|trouble| trouble.words.clone())
        })
    }

    /// What is wrong with a card that answers: no instance is made on it.
    fn illness(&self) -> Option<String> {
        let fault = self.fault.as_ref().map(|(words, _)| words.clone());
        fault.or_else(|| health::ailment(&self.card.standing))
    }

    /// A fault of the card is over when the driver, asked long enough after it, wants nothing. A driver that cannot be
    /// asked leaves it ill until a reset.
    fn recover(&mut self, now: Millis) {
        if let Some((_, since)) = &self.fault
            && now >= since + STANDING_AFTER
            && self.card.standing.recovery == Some(Recovery::None)
        {
            self.fault = None;
        }
    }

    /// Whether a reset would make the card good again.
    fn wants_reset(&self) -> bool {
        match self.card.standing.recovery {
            Some(Recovery::Reset | Recovery::DrainAndReset) => true,
            Some(_) => false,
            None => self.fault.is_some(),
        }
    }
}

impl Held {
    /// The state to publish.
    pub fn state(&self) -> InstanceState {
        match &self.tenure {
            Tenure::Pod(_) if self.live.compute.is_empty() => InstanceState::Creating,
            Tenure::Pod(_) | Tenure::Lingering { .. } => InstanceState::InUse,
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

    /// Whose it is.
    pub fn bound(&self) -> Option<&Bound> {
        match &self.tenure {
            Tenure::Pod(bound) => Some(bound),
            _ => None,
        }
    }

    /// Whether it is this MIG device and a pod had it last.
    pub fn was(&self, pod: &str, uuid: &str) -> bool {
        let last = match &self.tenure {
            Tenure::Lingering { last, .. } => last.as_ref(),
            _ => self.bound(),
        };
        last.is_some_and(|last| last.uid == pod) && self.live.compute.iter().any(|c| c.uuid == uuid)
    }

    fn overlaps(&self, slices: Slices) -> bool {
        self.live.slices().overlaps(slices)
    }
}

/// Why a container's slot cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The pod or its card is not there yet, or the card is about to change to MIG mode.
    #[error("{0} is not here in MIG mode yet")]
    NoCard(String),
    /// The card must not be used.
    #[error("GPU {gpu}: {words}")]
    Ill {
        /// UUID of the card.
        gpu: String,
        /// Why.
        words: String,
    },
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
    /// Takes over a survey: what is known keeps its tenure; of what is ours by the journal it is found out who has it;
    /// the rest is foreign. `failed` is what NVML said of the cards that did not answer, by index. The instances of
    /// pods that are not there any more come back.
    pub fn surveyed(
        &mut self,
        cards: Vec<SurveyedCard>,
        failed: &[(u32, String)],
        journal: &[Entry],
        now: Millis,
    ) -> Vec<(String, Held)> {
        let mut vanished = Vec::new();
        let mut known = std::mem::take(&mut self.cards);
        for card in cards {
            let before = known.remove(&card.uuid);
            let uuid = card.uuid.clone();
            let mut state = before.unwrap_or_else(|| CardState::new(card.clone()));
            let mut old = std::mem::take(&mut state.instances);
            for live in &card.instances {
                let same = old.iter().position(|held| {
                    (held.live.id, held.live.profile_id, held.live.start)
                        == (live.id, live.profile_id, live.start)
                });
                let same = same.map(|at| old.remove(at));
                let entry = ours(journal, &uuid, live);
                let generation = entry.map(|entry| entry.generation);
                let held = match same {
                    Some(held) if held.generation == generation => Held {
                        live: live.clone(),
                        ..held
                    },
                    _ => Held {
                        live: live.clone(),
                        generation,
                        tenure: entry.map_or(Tenure::Foreign, |entry| Tenure::Lingering {
                            last: entry.bound.clone(),
                            look_at: now,
                            looks: 0,
                        }),
                        fault: None,
                    },
                };
                state.instances.push(held);
            }
            let lost_pods = old.into_iter().filter(|held| held.bound().is_some());
            vanished.extend(lost_pods.map(|held| (uuid.clone(), held)));
            state.card = card;
            state.lost = None;
            state.recover(now);
            self.cards.insert(uuid, state);
        }
        // A card that does not answer any more keeps its place: its slices are not free.
        for (uuid, mut lost) in known {
            let said = failed.iter().find(|(index, _)| *index == lost.card.index);
            let words = said.map_or("the GPU is not there any more", |(_, words)| words);
            lost.lost = Some(words.to_owned());
            self.cards.insert(uuid, lost);
        }
        self.settle(now);
        vanished
    }

    /// Takes over the pods of the node.
    pub fn claimed(&mut self, pods: BTreeMap<String, ClaimedPod>, now: Millis) {
        self.create_failures
            .retain(|(uid, _), _| pods.contains_key(uid));
        self.pods = Some(pods);
        self.settle(now);
    }

    /// Gives every instance of ours to the pod that claims it, and takes it from pods that are over.
    pub fn settle(&mut self, now: Millis) {
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
                let takes = |pod: &ClaimedPod| match &held.tenure {
                    Tenure::Pod(_) => true,
                    // One with a fault is made anew.
                    Tenure::Idle { .. } => held.fault.is_none(),
                    // As before a restart of the agent, which may have forgotten whose it was.
                    Tenure::Lingering { last, .. } => {
                        last.as_ref().is_none_or(|last| last.uid == pod.uid)
                    }
                    // It is not ours, or not to be used any more.
                    Tenure::Stuck { .. } | Tenure::Foreign => false,
                };
                held.tenure = match (held.bound(), claimant) {
                    (Some(bound), Some((pod, _))) if bound.uid == pod.uid => continue,
                    (Some(last), _) if !pods.contains_key(&last.uid) => Tenure::Lingering {
                        last: Some(last.clone()),
                        look_at: now,
                        looks: 0,
                    },
                    (_, Some((pod, container))) if takes(pod) => {
                        Tenure::Pod(pod.bound(&container.name))
                    }
                    _ => continue,
                };
            }
        }
    }

    /// What is in the way of a slot for a pod's container: the steps that clear and make it, in order.
    ///
    /// Empty: the slot's instance is there, complete, and the pod's. `displace_own` may displace
    /// instances of its own pod that overlap (an init container's, which has ended).
    pub fn steps_for(
        &self,
        pod: &ClaimedPod,
        container: &str,
        slot: &Slot,
        displace_own: bool,
    ) -> Result<Vec<Step>, Blocked> {
        let ill = |words: String| Blocked::Ill {
            gpu: slot.gpu.clone(),
            words,
        };
        let state = self
            .cards
            .get(&slot.gpu)
            .ok_or_else(|| ill("it is not on this node".to_owned()))?;
        if let Some(words) = &state.lost {
            return Err(ill(words.clone()));
        }
        if state.mode() != VgpuMode::Mig {
            return Err(Blocked::NoCard(format!("GPU {}", slot.gpu)));
        }
        let mut steps = Vec::new();
        for held in state
            .instances
            .iter()
            .filter(|held| held.overlaps(slot.slices()))
        {
            let same = held.is(slot, &state.card.model);
            let by = match &held.tenure {
                Tenure::Pod(had) if had.uid == pod.uid && same && !held.live.compute.is_empty() => {
                    return Ok(vec![]);
                }
                // A GPU instance without compute instance is of no use: made again as a whole.
                Tenure::Pod(had) if had.uid == pod.uid && (displace_own || same) => {
                    steps.push(destroy(&slot.gpu, held));
                    continue;
                }
                Tenure::Idle { .. } => {
                    steps.push(destroy(&slot.gpu, held));
                    continue;
                }
                Tenure::Pod(had) => format!("pod {}", had.pod),
                Tenure::Lingering {
                    last: Some(last), ..
                } => format!("processes of pod {}, which is over", last.pod),
                Tenure::Lingering { .. } => "an instance whose processes are looked up".to_owned(),
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
        if let Some(words) = state.illness() {
            return Err(ill(words));
        }
        steps.push(Step::Create {
            of: pod.bound(container),
            slot: slot.clone(),
        });
        Ok(steps)
    }

    /// The next thing to do of its own accord, and when to ask again if there is nothing now.
    pub fn next_step(&self, now: Millis, patience: Patience) -> (Option<Step>, Option<Millis>) {
        let mut wake: Option<Millis> = None;
        let mut later = |at: Millis| wake = Some(wake.map_or(at, |known| known.min(at)));
        let step = self
            .claim_step(now, &mut later)
            .or_else(|| self.card_step(now, patience, &mut later));
        match step {
            Some(step) => (Some(step), None),
            None => (None, wake),
        }
    }

    /// A step for a pod that waits: claims come first.
    fn claim_step(&self, now: Millis, later: &mut impl FnMut(Millis)) -> Option<Step> {
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
                    let failure = self.create_failures.get(&(pod.uid.clone(), slot.clone()));
                    if let Some(failure) = failure
                        && failure.retry_at > now
                    {
                        later(failure.retry_at);
                        continue;
                    }
                    match self.steps_for(pod, &container.name, slot, false) {
                        Ok(steps) => {
                            if let Some(step) = steps.into_iter().next() {
                                return Some(step);
                            }
                        }
                        // What runs already is left alone.
                        Err(Blocked::Ill { words, gpu }) if !self.has(pod, slot) => {
                            return Some(Step::Fail {
                                of: pod.bound(&container.name),
                                slot: slot.clone(),
                                words: format!("GPU {gpu}: {words}"),
                            });
                        }
                        Err(_) => {}
                    }
                }
            }
        }
        None
    }

    /// Whether a pod has the instance of a slot, as far as is known.
    fn has(&self, pod: &ClaimedPod, slot: &Slot) -> bool {
        let state = self.cards.get(&slot.gpu);
        state.is_some_and(|state| {
            state.instances.iter().any(|held| {
                held.is(slot, &state.card.model)
                    && held.bound().is_some_and(|bound| bound.uid == pod.uid)
            })
        })
    }

    /// A step for the cards themselves: modes, resets, instances that nobody has.
    fn card_step(
        &self,
        now: Millis,
        patience: Patience,
        later: &mut impl FnMut(Millis),
    ) -> Option<Step> {
        for (gpu, state) in &self.cards {
            if state.lost.is_some() {
                continue;
            }
            if self.changing_to(gpu).is_some()
                && let Some(step) = self.mode_step(gpu, state, now, later)
            {
                return Some(step);
            }
            if self.may_reset
                && state.wants_reset()
                && let Some(step) = self.reset_step(gpu, state, now, later)
            {
                return Some(step);
            }
            if let Some(trouble) = state.trouble.as_ref().filter(|trouble| !trouble.offered) {
                if trouble.until <= now {
                    return Some(Step::Offer { gpu: gpu.clone() });
                }
                later(trouble.until);
            }
            // Nothing is looked at or destroyed before the pods are known.
            for held in state.instances.iter().filter(|_| self.pods.is_some()) {
                let due = match held.tenure {
                    Tenure::Lingering { look_at, .. } => look_at,
                    Tenure::Idle { .. } if held.fault.is_some() => now,
                    Tenure::Idle { since } => since + patience.idle_ttl,
                    Tenure::Stuck { retry_at, .. } => retry_at,
                    Tenure::Pod(_) | Tenure::Foreign => continue,
                };
                if due > now {
                    later(due);
                    continue;
                }
                return Some(match held.tenure {
                    Tenure::Lingering { .. } => look(gpu, held),
                    _ => destroy(gpu, held),
                });
            }
        }
        self.surplus(patience)
    }

    /// The oldest idle instance, where there are more than are kept.
    fn surplus(&self, patience: Patience) -> Option<Step> {
        let cards = self.cards.iter().filter(|(_, state)| state.lost.is_none());
        let all = cards.flat_map(|(gpu, state)| state.instances.iter().map(move |i| (gpu, i)));
        let mut idle: Vec<_> = all
            .filter_map(|(gpu, held)| match held.tenure {
                Tenure::Idle { since } => Some((since, gpu, held)),
                _ => None,
            })
            .collect();
        if idle.len() <= patience.idle_limit || self.pods.is_none() {
            return None;
        }
        idle.sort_by_key(|(since, gpu, held)| (*since, *gpu, held.live.id));
        let (_, gpu, held) = idle.first()?;
        Some(destroy(gpu, held))
    }

    /// The mode that a card should work in; `None`: as it does.
    fn wanted_mode(&self, state: &CardState) -> Option<VgpuMode> {
        let wanted = self.wanted.of(&state.card)?;
        if wanted != NodeMode::Auto {
            return wanted.fixed();
        }
        // By demand: the claims on the card say; while one needs it as it is, it stays so.
        let pods = self.pods.iter().flat_map(BTreeMap::values);
        let devices = pods.flat_map(|pod| pod.claim.devices());
        let mut modes = devices
            .filter(|device| device.gpu() == state.card.uuid)
            .map(mode_of)
            .peekable();
        let first = modes.peek().copied()?;
        let stays = modes.any(|mode| mode == state.mode());
        (!stays).then_some(first)
    }

    /// Whether a card changes its mode for the pods that are bound to it.
    pub fn is_by_demand(&self, state: &CardState) -> bool {
        state.card.mig.is_some() && self.wanted.of(&state.card) == Some(NodeMode::Auto)
    }

    /// The mode that a card should change to and has not yet.
    pub fn changing_to(&self, gpu: &str) -> Option<VgpuMode> {
        let state = self.cards.get(gpu)?;
        state.card.mig?;
        self.wanted_mode(state)
            .filter(|wanted| *wanted != state.mode())
    }

    /// The step towards another mode, once nothing of the old mode is in use.
    fn mode_step(
        &self,
        gpu: &str,
        state: &CardState,
        now: Millis,
        later: &mut impl FnMut(Millis),
    ) -> Option<Step> {
        let to = Step::SetMode {
            gpu: gpu.to_owned(),
            mode: self.changing_to(gpu)?,
        };
        let is_old = |device: &ClaimedDevice| mode_of(device) == state.mode();
        if self.claims(gpu, is_old)? {
            return None;
        }
        once_idle(gpu, state, now, state.mode_failure.as_ref(), to, later)
    }

    /// The step towards a reset, once nobody uses the card.
    fn reset_step(
        &self,
        gpu: &str,
        state: &CardState,
        now: Millis,
        later: &mut impl FnMut(Millis),
    ) -> Option<Step> {
        let to = Step::Reset {
            gpu: gpu.to_owned(),
        };
        if self.claims(gpu, |_| true)? {
            return None;
        }
        once_idle(gpu, state, now, state.reset_failure.as_ref(), to, later)
    }

    /// Whether a pod claims such a device of a card; nothing is known before the pods are.
    fn claims(&self, gpu: &str, such: impl Fn(&ClaimedDevice) -> bool) -> Option<bool> {
        let pods = self.pods.as_ref()?.values();
        let mut devices = pods.flat_map(|pod| pod.claim.devices());
        Some(devices.any(|device| device.gpu() == gpu && such(device)))
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

/// The step that wants an idle card, or what comes before it; nothing while it has to wait.
fn once_idle(
    gpu: &str,
    state: &CardState,
    now: Millis,
    failed: Option<&(String, Millis)>,
    step: Step,
    later: &mut impl FnMut(Millis),
) -> Option<Step> {
    let in_use = |held: &&Held| !matches!(held.tenure, Tenure::Idle { .. });
    if let Some(held) = state.instances.iter().find(in_use) {
        return match held.tenure {
            Tenure::Lingering { look_at, .. } if look_at <= now => Some(look(gpu, held)),
            _ => None,
        };
    }
    if let Some(held) = state.instances.first() {
        return Some(destroy(gpu, held));
    }
    if let Some((_, retry_at)) = failed
        && *retry_at > now
    {
        later(*retry_at);
        return None;
    }
    Some(step)
}

fn mode_of(device: &ClaimedDevice) -> VgpuMode {
    match device {
        ClaimedDevice::Mig(_) => VgpuMode::Mig,
        ClaimedDevice::HamiCore(_) => VgpuMode::HamiCore,
    }
}

fn destroy(gpu: &str, held: &Held) -> Step {
    Step::Destroy {
        gpu: gpu.to_owned(),
        id: held.live.id,
    }
}

fn look(gpu: &str, held: &Held) -> Step {
    Step::Look {
        gpu: gpu.to_owned(),
        id: held.live.id,
    }
}

/// The entry under which the journal knows an instance. An open intent at exactly its profile and
/// place is it too: the agent died between NVML's answer and the record.
fn ours<'j>(journal: &'j [Entry], gpu: &str, live: &LiveInstance) -> Option<&'j Entry> {
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
    use super::*;
    use crate::{
        gpus::claims::Progress,
        nvml::{ComputeInstance, Standing},
    };
    use domain::{
        claim::{Claim, ContainerClaim, Share},
        demand::ContainerKind,
        fixtures,
    };

    const GPU: &str = "GPU-1";
    const PATIENCE: Patience = Patience {
        idle_ttl: 1_000,
        idle_limit: 8,
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
            standing: Standing::default(),
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
            compute_instance: None,
            bound: None,
        }
    }

    fn survey(state: &mut Instances, card: SurveyedCard, journal: &[Entry], now: Millis) {
        let vanished = state.surveyed(vec![card], &[], journal, now);
        assert_eq!(vanished, []);
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
        survey(&mut state, card(true, instances), &journal, 0);
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
        survey(
            &mut state,
            card(true, std::slice::from_ref(&instance)),
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
        survey(
            &mut state,
            card(true, std::slice::from_ref(&half)),
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
        survey(&mut state, card(true, &[theirs]), &[], 0);
        let a = app("a", "2g.20gb", 4);
        let b = app("b", "1g.20gb", 6);
        claimed(&mut state, &[a, b.clone()], 0);
        assert!(
            matches!(state.next_step(0, PATIENCE).0, Some(Step::Create { of, .. }) if of.uid == "a")
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
        survey(
            &mut state,
            card(true, &[live(7, &slot("1g.10gb", 6))]),
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
        state.wanted.node = Some(NodeMode::HamiCore);
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
        survey(&mut state, card(false, &[]), &[], 0);
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
        let said = (0, "GPU is lost".to_owned());
        assert_eq!(state.surveyed(vec![], &[said], &[], 1), []);
        assert_eq!(state.cards[GPU].ailment().as_deref(), Some("GPU is lost"));
        assert_eq!(state.cards[GPU].instances.len(), 1);
        claimed(&mut state, &[], 2);
        assert_eq!(state.next_step(1_000_000, PATIENCE).0, None);
    }

    fn bound(uid: &str) -> Bound {
        Bound {
            uid: uid.into(),
            pod: format!("n/{uid}"),
            container: "c".into(),
        }
    }

    /// Peer lesson: a slot is free when its processes are gone, not when its pod is.
    #[test]
    fn after_a_restart_what_nobody_claims_is_in_use_until_it_was_looked_at() {
        let instance = live(7, &slot("1g.10gb", 6));
        let known = Entry {
            bound: Some(bound("gone")),
            ..entry(&instance, 1, true)
        };
        let mut state = Instances::default();
        survey(&mut state, card(true, &[instance]), &[known], 0);
        // Another pod's claim of the same shape does not get it before the look.
        claimed(&mut state, &[app("b", "1g.10gb", 6)], 0);
        assert_eq!(state.cards[GPU].instances[0].state(), InstanceState::InUse);
        let look = Step::Look {
            gpu: GPU.into(),
            id: 7,
        };
        assert_eq!(state.next_step(0, PATIENCE).0, Some(look));
        assert!(state.cards[GPU].instances[0].was("gone", "MIG-7"));
        state.held(GPU, 7).unwrap().tenure = Tenure::Idle { since: 0 };
        state.settle(0);
        assert_eq!(state.cards[GPU].instances[0].bound(), Some(&bound("b")));
        // Its own pod gets it back at once.
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[]);
        state.held(GPU, 7).unwrap().tenure = Tenure::Lingering {
            last: Some(bound("a")),
            look_at: 0,
            looks: 0,
        };
        claimed(&mut state, &[app("a", "1g.10gb", 6)], 0);
        assert_eq!(state.cards[GPU].instances[0].bound(), Some(&bound("a")));
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
            state.held(GPU, id).unwrap().tenure = Tenure::Idle { since };
        }
        let patience = |idle_limit| Patience {
            idle_limit,
            ..PATIENCE
        };
        assert_eq!(state.next_step(40, patience(2)).0, Some(destroys(8)));
        assert_eq!(state.next_step(40, patience(3)), (None, Some(1_010)));
    }

    #[test]
    fn an_instance_with_a_fault_is_given_to_nobody_else_and_its_card_works_on() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.held(GPU, 7).unwrap().fault = Some("XID 94".into());
        assert_eq!(state.next_step(0, PATIENCE), (None, None), "its pod has it");
        let b = app("b", "1g.10gb", 5);
        claimed(&mut state, &[app("a", "1g.10gb", 6), b], 0);
        let (step, _) = state.next_step(0, PATIENCE);
        assert!(matches!(step, Some(Step::Create { of, .. }) if of.uid == "b"));
        claimed(&mut state, &[], 1);
        state.held(GPU, 7).unwrap().tenure = Tenure::Idle { since: 1 };
        assert_eq!(
            state.next_step(1, PATIENCE).0,
            Some(destroys(7)),
            "no warm stock"
        );
        claimed(&mut state, &[app("c", "1g.10gb", 6)], 1);
        assert_eq!(
            state.next_step(1, PATIENCE).0,
            Some(destroys(7)),
            "made anew"
        );
    }

    #[test]
    fn a_card_with_a_fault_keeps_its_pods_takes_no_new_one_and_is_well_when_the_driver_says_so() {
        let (a, b) = (app("a", "1g.10gb", 6), app("b", "1g.10gb", 5));
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[a.clone(), b.clone()]);
        state.cards.get_mut(GPU).unwrap().fault = Some(("XID 48".into(), 1_000));
        assert_eq!(state.cards[GPU].ailment().as_deref(), Some("XID 48"));
        assert_eq!(
            state.steps_for(&a, "c", &slot("1g.10gb", 6), true),
            Ok(vec![])
        );
        let (step, _) = state.next_step(1_000, PATIENCE);
        assert!(matches!(step, Some(Step::Fail { of, .. }) if of.uid == "b"));
        let said = |recovery| SurveyedCard {
            standing: Standing {
                recovery,
                row_failed: false,
            },
            ..card(true, &[live(7, &slot("1g.10gb", 6))])
        };
        let journal = [entry(&live(7, &slot("1g.10gb", 6)), 1, true)];
        let mut at = |recovery, now| {
            survey(&mut state, said(recovery), &journal, now);
            state.cards[GPU].ailment()
        };
        assert!(at(None, 1_000_000).is_some(), "a driver that cannot say");
        assert!(
            at(Some(Recovery::None), 2_000).is_some(),
            "too early to tell"
        );
        assert!(at(Some(Recovery::Reset), 60_000).is_some());
        assert_eq!(at(Some(Recovery::None), 90_000), None);
    }

    #[test]
    fn an_ill_card_is_reset_when_nobody_is_on_it() {
        let mut state = node(&[live(7, &slot("1g.10gb", 6))], &[app("a", "1g.10gb", 6)]);
        state.may_reset = true;
        state.cards.get_mut(GPU).unwrap().card.standing.recovery = Some(Recovery::Reset);
        assert_eq!(state.next_step(0, PATIENCE).0, None, "a pod has it");
        claimed(&mut state, &[], 0);
        state.held(GPU, 7).unwrap().tenure = Tenure::Idle { since: 0 };
        assert_eq!(state.next_step(0, PATIENCE).0, Some(destroys(7)));
        state.cards.get_mut(GPU).unwrap().instances.clear();
        let reset = Step::Reset { gpu: GPU.into() };
        assert_eq!(state.next_step(0, PATIENCE).0, Some(reset));
        let failure = Some(("in use".to_owned(), 600_000));
        state.cards.get_mut(GPU).unwrap().reset_failure = failure;
        assert_eq!(state.next_step(0, PATIENCE), (None, Some(600_000)));
        state.cards.get_mut(GPU).unwrap().card.standing.recovery = Some(Recovery::Reboot);
        assert_eq!(state.next_step(0, PATIENCE), (None, None), "no reset helps");
    }

    #[test]
    fn a_card_may_work_in_another_mode_than_its_node() {
        let mut state = Instances {
            wanted: Wanted {
                node: Some(NodeMode::Mig),
                devices: vec![DeviceMode {
                    uuid: None,
                    index: Some(1),
                    operatingmode: NodeMode::HamiCore,
                }],
            },
            ..Instances::default()
        };
        let other = SurveyedCard {
            index: 1,
            uuid: "GPU-2".into(),
            ..card(false, &[])
        };
        state.surveyed(vec![card(false, &[]), other], &[], &[], 0);
        claimed(&mut state, &[], 0);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::Mig));
        assert_eq!(state.changing_to("GPU-2"), None);
    }

    #[test]
    fn by_demand_the_claims_of_an_idle_card_change_its_mode() {
        let mut state = Instances {
            wanted: Wanted {
                node: Some(NodeMode::Auto),
                devices: vec![],
            },
            ..Instances::default()
        };
        survey(&mut state, card(false, &[]), &[], 0);
        claimed(&mut state, &[], 0);
        assert!(state.is_by_demand(&state.cards[GPU]));
        assert_eq!(state.next_step(0, PATIENCE), (None, None), "as it is");
        let mut share = app("s", "1g.10gb", 6);
        share.claim.containers[0].devices = vec![ClaimedDevice::HamiCore(Share {
            gpu: GPU.into(),
            mem: 1,
            cores: 0,
        })];
        let mig = app("a", "1g.10gb", 6);
        claimed(&mut state, &[share.clone(), mig.clone()], 0);
        assert_eq!(state.changing_to(GPU), None, "a share is on it");
        claimed(&mut state, std::slice::from_ref(&mig), 0);
        let to_mig = Step::SetMode {
            gpu: GPU.into(),
            mode: VgpuMode::Mig,
        };
        assert_eq!(state.next_step(0, PATIENCE).0, Some(to_mig));
        survey(&mut state, card(true, &[]), &[], 1);
        let (step, _) = state.next_step(1, PATIENCE);
        assert!(matches!(step, Some(Step::Create { .. })));
        // And back, for a share.
        claimed(&mut state, &[share], 2);
        assert_eq!(state.changing_to(GPU), Some(VgpuMode::HamiCore));
    }

    #[test]
    fn a_pod_is_given_up_when_it_waits_long_for_what_cannot_be_made() {
        let mut failure = None;
        let mut now = 0;
        while !failure
            .as_ref()
            .is_some_and(|f: &Failure| f.is_hopeless(now))
        {
            failure = Some(Failure::again(failure.as_ref(), now));
            now = failure.as_ref().unwrap().retry_at;
        }
        let failure = failure.unwrap();
        assert_eq!((failure.times, now), (5, 60_000));
        assert!(!Failure::again(None, 0).is_hopeless(1_000_000));
        // The card rests, and is offered again.
        let mut state = node(&[], &[]);
        let trouble = Trouble {
            words: "no".into(),
            times: 1,
            until: 100,
            offered: false,
        };
        state.cards.get_mut(GPU).unwrap().trouble = Some(trouble);
        assert_eq!(state.cards[GPU].ailment().as_deref(), Some("no"));
        assert_eq!(state.next_step(0, PATIENCE), (None, Some(100)));
        let offer = Step::Offer { gpu: GPU.into() };
        assert_eq!(state.next_step(100, PATIENCE).0, Some(offer));
    }

    #[test]
    fn an_instance_that_somebody_else_removed_is_told_and_made_again() {
        let instance = live(7, &slot("1g.10gb", 6));
        let mut state = node(std::slice::from_ref(&instance), &[app("a", "1g.10gb", 6)]);
        let journal = [entry(&instance, 1, true)];
        let vanished = state.surveyed(vec![card(true, &[])], &[], &journal, 1);
        assert_eq!(vanished.len(), 1);
        assert_eq!(vanished[0].1.bound(), Some(&bound("a")));
        let (step, _) = state.next_step(1, PATIENCE);
        assert!(matches!(step, Some(Step::Create { .. })));
    }

    /// Peer lesson: one stuck instance, one bad record, one lost card hold up nobody else.
    #[test]
    fn one_stuck_instance_holds_up_nobody_else() {
        let instances = [live(7, &slot("1g.10gb", 6)), live(8, &slot("1g.10gb", 5))];
        let mut state = node(&instances, &[app("b", "1g.10gb", 4)]);
        state.held(GPU, 7).unwrap().tenure = Tenure::Stuck {
            failures: QUARANTINE_AFTER,
            retry_at: 30_000,
            reason: "in use".into(),
        };
        state.held(GPU, 8).unwrap().tenure = Tenure::Idle { since: 0 };
        let (step, _) = state.next_step(0, PATIENCE);
        assert!(matches!(step, Some(Step::Create { of, .. }) if of.uid == "b"));
        claimed(&mut state, &[], 0);
        assert_eq!(state.next_step(2_000, PATIENCE).0, Some(destroys(8)));
    }
}
