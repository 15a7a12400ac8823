//! The owner thread's loop: commands in, surveys, steps, inventory out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use domain::claim::{ClaimedDevice, Slot};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Busy, Command, Happening, Inventory, LiveDevice, Settings};
use crate::{
    gpus::health::{self, Scope},
    gpus::instances::{Blocked, Instances, Millis, Patience},
    materialise::journal::{Journal, JournalError},
    metrics::Metrics,
    nvml::{Cards, Code, Event, Fault, Watch},
};

/// How long a container's call waits here for what passes by itself, before kubelet is asked to come again.
const WAIT: Duration = Duration::from_secs(20);
/// How often the cards are surveyed without a reason: for what others do to them, and for their standing.
const SURVEY_EVERY: Duration = Duration::from_secs(30);
/// How soon after one that failed, doubled up to [`SURVEY_EVERY`].
const SURVEY_AGAIN: Duration = Duration::from_secs(1);
/// How soon after a fault: when the driver has made up its mind.
const SURVEY_AFTER_FAULT: Duration = Duration::from_secs(16);

type Reply = oneshot::Sender<Result<Vec<LiveDevice>, Blocked>>;

pub(super) struct Thread {
    pub(super) settings: Settings,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// To let the faults in; does not keep the thread alive.
    own: mpsc::WeakUnboundedSender<Command>,
    publish: watch::Sender<Arc<Inventory>>,
    busy: Busy,
    pub(super) metrics: Metrics,
    tell: mpsc::Sender<Happening>,
    pub(super) journal: Journal,
    /// Why it cannot be written.
    journal_failure: Option<String>,
    pub(super) state: Instances,
    /// Containers that wait for something that passes: another pod's end, a retry.
    waiting: Vec<(String, String, Reply, Instant)>,
    epoch: Instant,
    /// What the last survey said.
    nvml: Result<(), String>,
    survey_at: Instant,
    /// While surveys fail: how soon after the last one the next is.
    failing: Option<Duration>,
    /// Once more then, because the driver needs a while to say what it wants after a fault.
    look_again: Option<Instant>,
    watch: Option<(BTreeSet<String>, Watch)>,
    /// The cards that were told to be ill, and why.
    ill: BTreeMap<String, String>,
    /// Nothing can be done any more but to start anew.
    ends: bool,
}

impl Thread {
    #[allow(clippy::too_many_arguments, reason = "what it is made of, once")]
    pub(super) fn new(
        settings: Settings,
        inbox: mpsc::UnboundedReceiver<Command>,
        own: mpsc::WeakUnboundedSender<Command>,
        publish: watch::Sender<Arc<Inventory>>,
        busy: Busy,
        metrics: Metrics,
        tell: mpsc::Sender<Happening>,
        journal: Journal,
    ) -> Self {
        Self {
            state: Instances {
                may_reset: !settings.reset.is_empty(),
                ..Instances::default()
            },
            settings,
            inbox,
            own,
            publish,
            busy,
            metrics,
            tell,
            journal,
            journal_failure: None,
            waiting: vec![],
            epoch: Instant::now(),
            nvml: Err("the first survey is not done yet".to_owned()),
            survey_at: Instant::now(),
            failing: None,
            look_again: None,
            watch: None,
            ill: BTreeMap::new(),
            ends: false,
        }
    }

    pub(super) fn run(&mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "Cannot wait for commands"),
        };
        let Some(cards) = self.open() else { return };
        tracing::info!(driver = cards.driver_version(), "NVML is open");
        self.survey(&cards);
        while !self.ends {
            while let Ok(command) = self.inbox.try_recv() {
                self.take(command);
            }
            self.serve_waiting(&cards);
            if self.survey_at <= Instant::now() {
                self.survey(&cards);
            }
            let patience = Patience {
                idle_ttl: millis(self.settings.idle_ttl),
                idle_limit: self.settings.idle_limit,
            };
            let (step, wake) = self.state.next_step(self.now(), patience);
            if let Some(step) = step {
                let _ = self.carry_out(&cards, step);
                self.announce();
                continue;
            }
            // Steps close the session that listens, and it takes a while to end: it is opened when all are done.
            self.rewatch();
            self.announce();
            let now = self.now();
            let mut pause = wake.map_or(SURVEY_EVERY, |at| {
                Duration::from_millis(at.saturating_sub(now).max(10))
            });
            if !self.waiting.is_empty() {
                pause = pause.min(Duration::from_millis(100));
            }
            let pause = pause.min(self.survey_at.saturating_duration_since(Instant::now()));
            self.at(None);
            match runtime.block_on(async { tokio::time::timeout(pause, self.inbox.recv()).await }) {
                Ok(None) => break,
                Ok(Some(command)) => self.take(command),
                Err(_) => {}
            }
        }
        self.unwatch();
    }

    /// Opens the library, as soon as it can be; nothing when nobody is left who wants it.
    fn open(&mut self) -> Option<Cards> {
        loop {
            match Cards::open(self.settings.library.as_deref()) {
                Ok(cards) => return Some(cards),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "NVML is not usable, trying again"
                    );
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    self.nvml = Err(format!("{error}: {}", source.unwrap_or_default()));
                    self.announce();
                    // Commands that came meanwhile stay in the inbox.
                    if self.inbox.is_closed() {
                        return None;
                    }
                    std::thread::sleep(Duration::from_secs(2));
                }
            }
        }
    }

    /// Notes what the thread is at now, for those who watch that it does not hang.
    pub(super) fn at(&self, what: Option<String>) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        *busy = what.map(|what| (Instant::now(), what));
    }

    pub(super) fn now(&self) -> Millis {
        millis(self.epoch.elapsed())
    }

    pub(super) fn survey(&mut self, cards: &Cards) {
        self.at(Some("a look at all GPUs".to_owned()));
        let result = cards.survey(&self.settings.filter);
        let now = self.now();
        match result {
            Ok((found, failed)) => {
                let failed: Vec<(u32, String)> = failed
                    .into_iter()
                    .map(|(index, error)| (index, error.to_string()))
                    .collect();
                let vanished = self
                    .state
                    .surveyed(found, &failed, self.journal.entries(), now);
                for (gpu, held) in vanished {
                    let Some(bound) = held.bound() else { continue };
                    let message = format!(
                        "GPU instance {} at slices {} of {gpu}, which container {} had, is not there any more; Tessera did not remove it",
                        held.live.id,
                        held.live.slices(),
                        bound.container
                    );
                    let pod = Some(bound.uid.clone());
                    self.happen(Happening::warning(pod, "InstanceVanished", message));
                }
                self.drop_stale_entries();
                self.record_bindings();
                let words: Vec<_> = failed
                    .iter()
                    .map(|(index, words)| format!("GPU {index}: {words}"))
                    .collect();
                self.nvml = if words.is_empty() {
                    Ok(())
                } else {
                    Err(words.join("; "))
                };
            }
            Err(error) => {
                tracing::warn!(%error, "Survey failed, opening NVML again");
                self.nvml = Err(error.to_string());
                self.unwatch();
                self.reopen(cards, || ());
            }
        }
        self.failing = self.nvml.is_err().then(|| {
            let before = self.failing.map(|pause| pause * 2);
            before.map_or(SURVEY_AGAIN, |pause| pause.min(SURVEY_EVERY))
        });
        let now = Instant::now();
        self.look_again = self.look_again.filter(|at| *at > now);
        let next = now + self.failing.unwrap_or(SURVEY_EVERY);
        self.survey_at = self.look_again.map_or(next, |at| at.min(next));
    }

    /// Does something while no card is open. A library that does not fit the driver any more cannot be helped here.
    pub(super) fn reopen<T>(&mut self, cards: &Cards, work: impl FnOnce() -> T) -> Option<T> {
        match cards.without_session(work) {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::warn!(%error, "Cannot open NVML again");
                self.ends = error.code() == Some(Code::LIB_RM_VERSION_MISMATCH);
                self.nvml = Err(error.to_string());
                None
            }
        }
    }

    /// Listens to the faults of the cards that are there now.
    fn rewatch(&mut self) {
        if self.settings.ignored.is_all() {
            return;
        }
        let there = self.state.cards.iter();
        let there: BTreeSet<String> = there
            .filter(|(_, state)| state.lost.is_none())
            .map(|(uuid, _)| uuid.clone())
            .collect();
        let is_new = |known: &BTreeSet<String>| there.iter().any(|uuid| !known.contains(uuid));
        if self.watch.as_ref().is_some_and(|(known, _)| !is_new(known)) {
            return;
        }
        self.unwatch();
        let own = self.own.clone();
        let tell = move |fault| {
            if let Some(own) = own.upgrade() {
                let _ = own.send(Command::Fault(fault));
            }
        };
        let cards = there.iter().cloned().collect();
        match Watch::start(self.settings.library.clone(), cards, tell) {
            Ok(watch) => self.watch = Some((there, watch)),
            Err(error) => tracing::error!(%error, "Cannot watch for faults of the GPUs"),
        }
    }

    /// Ends the session that listens to faults; another begins when there is nothing else to do.
    pub(super) fn unwatch(&mut self) {
        if let Some((_, watch)) = self.watch.take() {
            watch.stop();
        }
    }

    /// Entries whose instance is gone (a reboot, a reset, another tool) are released; what an open intent became is
    /// recorded.
    fn drop_stale_entries(&mut self) {
        let held = self.state.cards.values().flat_map(|s| &s.instances);
        let live: BTreeMap<u64, (u32, Option<u32>)> = held
            .filter_map(|held| {
                let compute = held.live.compute.first().map(|compute| compute.id);
                Some((held.generation?, (held.live.id, compute)))
            })
            .collect();
        for entry in self.journal.entries().to_vec() {
            let generation = entry.generation;
            let result = match live.get(&generation) {
                None => {
                    let state = self.state.cards.get(&entry.gpu);
                    // A card that does not answer may still have it.
                    if state.is_none_or(|state| state.lost.is_some()) {
                        continue;
                    }
                    self.journal.released(generation)
                }
                Some((id, _)) if entry.gpu_instance.is_none() => self.journal.made(generation, *id),
                Some((_, Some(compute))) if entry.compute_instance.is_none() => {
                    self.journal.complete(generation, *compute)
                }
                Some(_) => Ok(()),
            };
            self.note(result);
        }
    }

    /// Writes down who has which instance, where that is new.
    pub(super) fn record_bindings(&mut self) {
        let held = self.state.cards.values().flat_map(|s| &s.instances);
        let bound: Vec<_> = held
            .filter_map(|held| Some((held.generation?, held.bound()?.clone())))
            .collect();
        for (generation, to) in bound {
            let entries = self.journal.entries();
            let entry = entries.iter().find(|entry| entry.generation == generation);
            if entry.is_some_and(|entry| entry.bound.as_ref() != Some(&to)) {
                let result = self.journal.bound(generation, to);
                self.note(result);
            }
        }
    }

    pub(super) fn release(&mut self, generation: u64) {
        let result = self.journal.released(generation);
        self.note(result);
    }

    /// Notes whether the journal can be written.
    pub(super) fn note(&mut self, result: Result<(), JournalError>) {
        let failure = result.err().map(|error| error.to_string());
        if let Some(words) = &failure {
            tracing::error!(words, "Cannot write the journal");
        }
        self.journal_failure = failure;
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Pods(pods) => {
                let now = self.now();
                self.state.claimed(pods, now);
                self.record_bindings();
            }
            Command::Wanted(wanted) => self.state.wanted = wanted,
            Command::Fault(fault) => self.fault(&fault),
            Command::Ensure {
                uid,
                container,
                reply,
            } => self.waiting.push((uid, container, reply, Instant::now())),
        }
    }

    /// Takes a fault that a card told: whose it is, who is told, what must not be used any more.
    fn fault(&mut self, fault: &Fault) {
        // Many come at a time: one survey for all of them.
        if fault.event == Event::Look {
            self.survey_at = Instant::now();
            return;
        }
        let (scope, words) = health::judge(fault.event, &self.settings.ignored);
        tracing::warn!(
            gpu = fault.gpu,
            instance = fault.instance,
            ?scope,
            words,
            "A GPU told a fault"
        );
        if let (Event::Xid(xid), Some(gpu)) = (fault.event, &fault.gpu) {
            self.metrics.xid(gpu, xid);
        }
        let now = self.now();
        let known = fault
            .gpu
            .as_ref()
            .filter(|gpu| self.state.cards.contains_key(*gpu));
        if let Some(gpu) = known {
            let of_instance = fault.instance.and_then(|id| self.state.held(gpu, id));
            let consequence = match (scope, of_instance) {
                (Scope::Note, _) => None,
                (Scope::Application, _) => Some("the application's fault; the GPU is well"),
                (Scope::Instance | Scope::Card, Some(held)) => {
                    held.fault = Some(words.clone());
                    Some("its instance is given to nobody else")
                }
                (Scope::Instance, None) => Some("one application was hit; the GPU works on"),
                (Scope::Card, None) => {
                    if let Some(state) = self.state.cards.get_mut(gpu) {
                        state.fault = Some((words.clone(), now));
                    }
                    Some("the GPU takes no more pods until it has recovered")
                }
            };
            if let Some(consequence) = consequence {
                let whom = match fault.instance {
                    Some(id) => self.has_instance(gpu, id),
                    None => self.pods_on(gpu),
                };
                // Of several applications it is not known whose fault it is.
                let is_clear = scope != Scope::Application || whom.len() == 1;
                for uid in whom.into_iter().filter(|_| is_clear) {
                    let message = format!("{words} on GPU {gpu}: {consequence}");
                    self.happen(Happening::warning(Some(uid), "GpuFault", message));
                }
            }
        }
        if scope != Scope::Application {
            self.survey_at = Instant::now();
            self.look_again = Some(self.survey_at + SURVEY_AFTER_FAULT);
        }
    }

    fn has_instance(&mut self, gpu: &str, id: u32) -> Vec<String> {
        let held = self.state.held(gpu, id);
        let bound = held.and_then(|held| held.bound());
        bound.map(|bound| bound.uid.clone()).into_iter().collect()
    }

    /// The pods that claim something of a card.
    fn pods_on(&self, gpu: &str) -> Vec<String> {
        let on = |device: &ClaimedDevice| device.gpu() == gpu;
        let pods = self.state.pods.iter().flatten();
        pods.filter(|(_, pod)| pod.claim.devices().any(on))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// Tries again for every container that waits; answers those that are served, refused for good or late.
    fn serve_waiting(&mut self, cards: &Cards) {
        for (uid, container, reply, since) in std::mem::take(&mut self.waiting) {
            if reply.is_closed() {
                continue;
            }
            let result = self.ensure(cards, &uid, &container);
            let passes = matches!(result, Err(Blocked::Held { .. } | Blocked::NoCard(_)));
            if passes && since.elapsed() < WAIT {
                self.waiting.push((uid, container, reply, since));
                continue;
            }
            // Nobody waits any more: kubelet asks again.
            let _ = reply.send(result);
            self.announce();
        }
    }

    fn ensure(
        &mut self,
        cards: &Cards,
        uid: &str,
        container: &str,
    ) -> Result<Vec<LiveDevice>, Blocked> {
        let pod = self
            .state
            .pods
            .as_ref()
            .and_then(|pods| pods.get(uid))
            .cloned()
            .ok_or_else(|| Blocked::NoCard(format!("pod {uid}, which is not known yet,")))?;
        let slots: Vec<Slot> = pod
            .container(container)
            .into_iter()
            .flat_map(|c| c.devices.iter().filter_map(|device| device.slot()).cloned())
            .collect();
        for slot in &slots {
            for step in self.state.steps_for(&pod, container, slot, true)? {
                self.carry_out(cards, step).map_err(Blocked::Failed)?;
            }
        }
        slots
            .iter()
            .map(|slot| {
                self.live(slot).ok_or_else(|| {
                    Blocked::Failed(format!("{} at {} was not made", slot.profile, slot.start))
                })
            })
            .collect()
    }

    fn live(&self, slot: &Slot) -> Option<LiveDevice> {
        let state = self.state.cards.get(&slot.gpu)?;
        let held = state
            .instances
            .iter()
            .find(|held| held.is(slot, &state.card.model))?;
        let compute = held.live.compute.first()?;
        Some(LiveDevice {
            gpu: slot.gpu.clone(),
            minor: state.card.minor,
            gpu_instance: held.live.id,
            compute_instance: compute.id,
            uuid: compute.uuid.clone(),
            profile: slot.profile.clone(),
            memory_mib: slot.mem,
        })
    }

    pub(super) fn happen(&self, happening: Happening) {
        // A full queue means a storm; the log has them all.
        let _ = self.tell.try_send(happening);
    }

    /// Tells of the cards that became ill or well.
    fn tell_health(&mut self) {
        let cards = self.state.cards.iter();
        let ill: BTreeMap<String, String> = cards
            .filter_map(|(gpu, state)| Some((gpu.clone(), state.ailment()?)))
            .collect();
        let before = std::mem::replace(&mut self.ill, ill);
        for (gpu, words) in &self.ill {
            if before.get(gpu) != Some(words) {
                tracing::warn!(gpu, words, "The GPU must not be used");
                let message = format!("GPU {gpu} takes no more pods: {words}");
                self.happen(Happening::warning(None, "GpuUnhealthy", message.clone()));
                // A fault that the card told was told to its pods as well; what a look at the card has shown was not.
                let state = self.state.cards.get(gpu);
                if !before.contains_key(gpu) && state.is_some_and(|state| state.fault.is_none()) {
                    for uid in self.pods_on(gpu) {
                        let message = message.clone();
                        self.happen(Happening::warning(Some(uid), "GpuUnhealthy", message));
                    }
                }
            }
        }
        for gpu in before.keys().filter(|gpu| !self.ill.contains_key(*gpu)) {
            tracing::info!(gpu, "The GPU can be used again");
            let message = format!("GPU {gpu} can be used again");
            self.happen(Happening::note(None, "GpuHealthy", message));
        }
    }

    pub(super) fn announce(&mut self) {
        self.tell_health();
        self.publish.send_replace(Arc::new(Inventory {
            instances: self.state.clone(),
            nvml: self.nvml.clone(),
            hangs: None,
            journal: self.journal_failure.clone(),
        }));
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
