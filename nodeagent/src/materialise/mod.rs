//! The one thread that owns NVML: carries out the steps that `instances` decides, one at a time.
//!
//! Others talk to it by [`Owner`]: they hand in claims and wishes and read the published inventory.
//! A call of NVML that hangs holds up this thread and nobody else: every answer is waited for with a limit.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Slot, VgpuMode};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    claims::ClaimedPod,
    instances::{Blocked, Held, Instances, Millis, Patience, Step, Tenure},
    journal::Journal,
    metrics::Metrics,
    nvml::{Cards, Code, LiveInstance, NvmlError},
};

/// How the owner thread works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of `libnvidia-ml.so.1`; `None`: the loader finds it.
    pub library: Option<OsString>,
    /// File of the journal.
    pub journal: PathBuf,
    /// How long an idle instance is kept as warm stock.
    pub idle_ttl: Duration,
    /// Cards that are none of our business.
    pub filter: domain::FilterDevices,
}

/// What the owner thread publishes: the state of all cards.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The state after the last step.
    pub instances: Instances,
    /// Whether every card answered to the last survey; else what the library or the cards said.
    pub nvml: Result<(), String>,
}

/// A device of a container that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveDevice {
    /// UUID of the card.
    pub gpu: String,
    /// Minor number of the card.
    pub minor: u32,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// MIG UUID.
    pub uuid: String,
    /// Name of the profile.
    pub profile: String,
    /// MiB.
    pub memory_mib: u64,
}

/// Something that happened to a pod's or the node's instances, to be told as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// UID of the pod it is about; `None`: the node.
    pub pod_uid: Option<String>,
    /// Whether somebody should look.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

enum Command {
    Pods(BTreeMap<String, ClaimedPod>),
    WantedMode(Option<VgpuMode>),
    Ensure {
        uid: String,
        container: String,
        reply: oneshot::Sender<Result<Vec<LiveDevice>, Blocked>>,
    },
}

/// A handle to the owner thread.
#[derive(Clone)]
pub struct Owner {
    commands: mpsc::UnboundedSender<Command>,
    inventory: watch::Receiver<Arc<Inventory>>,
}

impl Owner {
    /// Starts the thread. It ends when the last handle is dropped.
    ///
    /// Happenings are sent to `tell`; they are dropped when nobody takes them fast enough.
    pub fn start(
        settings: Settings,
        metrics: Metrics,
        tell: mpsc::Sender<Happening>,
    ) -> anyhow::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (publish, inventory) = watch::channel(Arc::new(Inventory {
            nvml: Err("the first survey is not done yet".to_owned()),
            instances: Instances::default(),
        }));
        let (journal, bad) = Journal::open(&settings.journal)?;
        for bad in bad {
            tracing::warn!(
                line = bad.line,
                problem = bad.problem,
                "Skipped a bad journal record"
            );
        }
        std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || {
                Thread {
                    settings,
                    inbox,
                    publish,
                    metrics,
                    tell,
                    journal,
                    state: Instances::default(),
                    waiting: vec![],
                    epoch: Instant::now(),
                    nvml: Err("the first survey is not done yet".to_owned()),
                }
                .run();
            })?;
        Ok(Self {
            commands,
            inventory,
        })
    }

    /// The published state; changes with every step.
    pub fn inventory(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.clone()
    }

    /// The pods of this node that hold a claim: all of them, after every change.
    pub fn claimed(&self, pods: BTreeMap<String, ClaimedPod>) {
        self.send(Command::Pods(pods));
    }

    /// The mode that the admin wants.
    pub fn want_mode(&self, mode: Option<VgpuMode>) {
        self.send(Command::WantedMode(mode));
    }

    /// Makes the MIG devices of a pod's container exist, and waits for them at most `limit`.
    pub async fn ensure(
        &self,
        uid: &str,
        container: &str,
        limit: Duration,
    ) -> Result<Vec<LiveDevice>, Blocked> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ensure {
            uid: uid.to_owned(),
            container: container.to_owned(),
            reply,
        });
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Blocked::Failed("the agent is shutting down".to_owned())),
            Err(_) => Err(Blocked::Failed(format!(
                "the instances were not ready after {} s; NVML may be slow",
                limit.as_secs()
            ))),
        }
    }

    fn send(&self, command: Command) {
        // The thread ends only when all handles are gone, so somebody receives this.
        let _ = self.commands.send(command);
    }
}

type Reply = oneshot::Sender<Result<Vec<LiveDevice>, Blocked>>;

struct Thread {
    settings: Settings,
    inbox: mpsc::UnboundedReceiver<Command>,
    publish: watch::Sender<Arc<Inventory>>,
    metrics: Metrics,
    tell: mpsc::Sender<Happening>,
    journal: Journal,
    state: Instances,
    /// Containers that wait for something that passes: another pod's end, a retry.
    waiting: Vec<(String, String, Reply, Instant)>,
    epoch: Instant,
    /// What the last survey said.
    nvml: Result<(), String>,
}

/// How long a container's call waits here for what passes by itself, before kubelet is asked to come again.
const WAIT: Duration = Duration::from_secs(20);
/// How often the cards are surveyed without a reason: for what others do to them.
const SURVEY_EVERY: Duration = Duration::from_secs(30);

impl Thread {
    fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "Cannot wait for commands"),
        };
        let cards = loop {
            match Cards::open(self.settings.library.as_deref()) {
                Ok(cards) => break cards,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "NVML is not usable, trying again"
                    );
                    self.nvml = Err(format!("{error}: {}", source_text(&error)));
                    self.announce();
                    // Commands that came meanwhile stay in the inbox; ends when nobody is left.
                    if self.inbox.is_closed() {
                        return;
                    }
                    std::thread::sleep(Duration::from_secs(2));
                }
            }
        };
        tracing::info!(driver = cards.driver_version(), "NVML is open");
        self.survey(&cards);
        let mut surveyed = Instant::now();
        loop {
            while let Ok(command) = self.inbox.try_recv() {
                self.take(&cards, command);
            }
            self.serve_waiting(&cards);
            if surveyed.elapsed() >= SURVEY_EVERY {
                self.survey(&cards);
                surveyed = Instant::now();
            }
            let patience = Patience {
                idle_ttl: millis(self.settings.idle_ttl),
                look_every: 1_000,
            };
            let (step, wake) = self.state.next_step(self.now(), patience);
            if let Some(step) = step {
                let _ = self.carry_out(&cards, step);
                self.announce();
                continue;
            }
            self.announce();
            let now = self.now();
            let mut pause = wake.map_or(SURVEY_EVERY, |at| {
                Duration::from_millis(at.saturating_sub(now).max(10))
            });
            if !self.waiting.is_empty() {
                pause = pause.min(Duration::from_millis(100));
            }
            let pause = pause.min(SURVEY_EVERY.saturating_sub(surveyed.elapsed()));
            match runtime.block_on(async { tokio::time::timeout(pause, self.inbox.recv()).await }) {
                Ok(None) => return,
                Ok(Some(command)) => self.take(&cards, command),
                Err(_) => {}
            }
        }
    }

    fn now(&self) -> Millis {
        millis(self.epoch.elapsed())
    }

    fn survey(&mut self, cards: &Cards) {
        let result = cards.survey();
        let now = self.now();
        match result {
            Ok((mut found, failed)) => {
                let filter = &self.settings.filter;
                found.retain(|card| {
                    !filter.uuid.contains(&card.uuid) && !filter.index.contains(&card.index)
                });
                self.state.surveyed(found, self.journal.entries(), now);
                self.drop_stale_entries();
                let words: Vec<_> = failed
                    .iter()
                    .map(|(index, e)| format!("GPU {index}: {e}"))
                    .collect();
                self.nvml = if words.is_empty() {
                    Ok(())
                } else {
                    Err(words.join("; "))
                };
            }
            Err(error) => {
                tracing::warn!(%error, "Survey failed");
                self.nvml = Err(error.to_string());
            }
        }
    }

    /// Entries whose instance is gone (a reboot, a reset, another tool) are released; open intents too.
    fn drop_stale_entries(&mut self) {
        let live: Vec<u64> = self
            .state
            .cards
            .values()
            .flat_map(|state| &state.instances)
            .filter_map(|held| held.generation)
            .collect();
        let stale: Vec<u64> = self
            .journal
            .entries()
            .iter()
            .filter(|entry| {
                let answers = self
                    .state
                    .cards
                    .get(&entry.gpu)
                    .is_some_and(|s| s.unhealthy.is_none());
                answers && !live.contains(&entry.generation)
            })
            .map(|entry| entry.generation)
            .collect();
        for generation in stale {
            self.release(generation);
        }
        // What an open intent became is recorded now.
        for state in self.state.cards.values() {
            for held in &state.instances {
                let open = held.generation.filter(|generation| {
                    self.journal
                        .entries()
                        .iter()
                        .any(|e| e.generation == *generation && e.gpu_instance.is_none())
                });
                if let Some(generation) = open
                    && let Err(error) = self.journal.made(generation, held.live.id)
                {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "Cannot write the journal"
                    );
                }
            }
        }
    }

    fn release(&mut self, generation: u64) {
        if let Err(error) = self.journal.released(generation) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "Cannot write the journal"
            );
        }
    }

    fn take(&mut self, cards: &Cards, command: Command) {
        match command {
            Command::Pods(pods) => {
                let now = self.now();
                self.state.claimed(pods, now);
            }
            Command::WantedMode(mode) => self.state.wanted_mode = mode,
            Command::Ensure {
                uid,
                container,
                reply,
            } => {
                self.waiting.push((uid, container, reply, Instant::now()));
                self.serve_waiting(cards);
            }
        }
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
            .ok_or_else(|| Blocked::NoCard(format!("of pod {uid}, which is not known yet,")))?;
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

    /// Carries out one step; the error is in NVML's words and already recorded and told.
    fn carry_out(&mut self, cards: &Cards, step: Step) -> Result<(), String> {
        tracing::debug!(?step, "Step");
        let started = Instant::now();
        match step {
            Step::Create {
                uid,
                pod,
                container,
                slot,
            } => self.create(cards, uid, pod, container, slot),
            Step::Destroy { gpu, id } => self.destroy(cards, &gpu, id, started),
            Step::Look { gpu, id } => {
                let now = self.now();
                if let Some(held) = self.state.held(&gpu, id) {
                    let alive = held.live.compute.iter().any(|compute| {
                        cards
                            .processes(&compute.uuid)
                            .is_ok_and(|pids| !pids.is_empty())
                    });
                    if let Tenure::Lingering { pod, .. } = &held.tenure {
                        held.tenure = if alive {
                            Tenure::Lingering {
                                pod: pod.clone(),
                                look_at: now + 1_000,
                            }
                        } else {
                            Tenure::Idle { since: now }
                        };
                    }
                }
                let pods = self.state.pods.take();
                if let Some(pods) = pods {
                    self.state.claimed(pods, now);
                }
                Ok(())
            }
            Step::SetMode { gpu, mode } => self.set_mode(cards, &gpu, mode),
        }
    }

    fn create(
        &mut self,
        cards: &Cards,
        uid: String,
        pod: String,
        container: String,
        slot: Slot,
    ) -> Result<(), String> {
        let started = Instant::now();
        let result = self.make(cards, &slot);
        self.metrics.created(started.elapsed(), result.is_ok());
        match result {
            Ok((live, generation)) => {
                tracing::info!(
                    pod,
                    container,
                    gpu = slot.gpu,
                    profile = slot.profile,
                    start = slot.start,
                    id = live.id,
                    ms = millis(started.elapsed()),
                    "Made an instance"
                );
                self.happen(Happening {
                    pod_uid: Some(uid.clone()),
                    warning: false,
                    reason: "InstanceCreated",
                    message: format!(
                        "Made {} with {} MiB at slice {} of {} for container {container}",
                        slot.profile, slot.mem, slot.start, slot.gpu
                    ),
                });
                self.state
                    .create_failures
                    .remove(&(uid.clone(), slot.clone()));
                if let Some(state) = self.state.cards.get_mut(&slot.gpu) {
                    state.instances.push(Held {
                        live,
                        generation: Some(generation),
                        tenure: Tenure::Pod {
                            uid,
                            pod,
                            container,
                        },
                    });
                }
                Ok(())
            }
            Err(error) => {
                let words = format!(
                    "cannot make {} at {} on {}: {error}",
                    slot.profile, slot.start, slot.gpu
                );
                tracing::warn!(pod, container, words, "Creation failed");
                self.happen(Happening {
                    pod_uid: Some(uid.clone()),
                    warning: true,
                    reason: "InstanceCreationFailed",
                    message: words.clone(),
                });
                let retry_at = self.now() + 2_000;
                self.state
                    .create_failures
                    .insert((uid, slot), (words.clone(), retry_at));
                self.survey(cards);
                Err(words)
            }
        }
    }

    fn set_mode(&mut self, cards: &Cards, gpu: &str, mode: VgpuMode) -> Result<(), String> {
        let result = cards.set_mig_mode(gpu, mode == VgpuMode::Mig);
        let now = self.now();
        let failure = result.as_ref().err().map(ToString::to_string);
        if let Some(state) = self.state.cards.get_mut(gpu) {
            state.mode_failure = failure.clone().map(|words| (words, now + 10_000));
        }
        match &failure {
            None => tracing::info!(gpu, %mode, "Changed the mode"),
            Some(words) => {
                tracing::warn!(gpu, %mode, words, "Cannot change the mode");
                self.happen(Happening {
                    pod_uid: None,
                    warning: true,
                    reason: "ModeChangeFailed",
                    message: format!("GPU {gpu} cannot change to mode {mode}: {words}"),
                });
            }
        }
        self.survey(cards);
        failure.map_or(Ok(()), Err)
    }

    fn make(&mut self, cards: &Cards, slot: &Slot) -> Result<(LiveInstance, u64), String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let state = self.state.cards.get(&slot.gpu).ok_or("the card is gone")?;
        let offer = state
            .card
            .model
            .offer(&slot.profile)
            .ok_or_else(|| words(&NvmlError::NoSuchProfile(slot.profile.clone())))?;
        let profile_id = offer.profile_id;
        let generation = self
            .journal
            .intend(&slot.gpu, profile_id, slot.start, slot.size)
            .map_err(|e| words(&e))?;
        let id = match cards.create_gpu_instance(&slot.gpu, profile_id, slot.start, slot.size) {
            Ok(id) => id,
            Err(error) => {
                self.release(generation);
                return Err(words(&error));
            }
        };
        let mut live = LiveInstance {
            id,
            profile_id,
            start: slot.start,
            size: slot.size,
            compute: vec![],
        };
        let rest = self
            .journal
            .made(generation, id)
            .map_err(|e| words(&e))
            .and_then(|()| {
                cards
                    .create_compute_instance(&slot.gpu, id)
                    .map_err(|e| words(&e))
            });
        match rest {
            Ok(compute) => {
                live.compute.push(compute);
                Ok((live, generation))
            }
            Err(error) => {
                // Half an instance is of no use; if it stays, the next survey finds it by the journal.
                if cards.destroy(&slot.gpu, &live).is_ok() {
                    self.release(generation);
                }
                Err(error)
            }
        }
    }

    fn destroy(
        &mut self,
        cards: &Cards,
        gpu: &str,
        id: u32,
        started: Instant,
    ) -> Result<(), String> {
        let now = self.now();
        let Some(held) = self.state.held(gpu, id) else {
            return Ok(());
        };
        let Some(generation) = held.generation else {
            return Err("the instance is not ours to destroy".to_owned());
        };
        let live = held.live.clone();
        let result = cards.destroy(gpu, &live);
        self.metrics.destroyed(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => {
                tracing::info!(
                    gpu,
                    id,
                    start = live.start,
                    ms = millis(started.elapsed()),
                    "Removed an instance"
                );
                if let Some(state) = self.state.cards.get_mut(gpu) {
                    state.instances.retain(|held| held.live.id != id);
                }
                self.release(generation);
                Ok(())
            }
            Err(error) => {
                let words = error.to_string();
                let failures = match &held.tenure {
                    Tenure::Stuck { failures, .. } => failures + 1,
                    _ => 1,
                };
                let quarantined = failures == crate::instances::QUARANTINE_AFTER;
                held.tenure = Tenure::Stuck {
                    failures,
                    retry_at: now + backoff(failures),
                    reason: words.clone(),
                };
                tracing::warn!(gpu, id, failures, words, "Cannot remove an instance");
                if quarantined {
                    self.happen(Happening {
                        pod_uid: None,
                        warning: true,
                        reason: "InstanceQuarantined",
                        message: format!(
                            "GPU instance {id} of {gpu} cannot be destroyed ({words}); its slices are not offered until it can"
                        ),
                    });
                }
                if error.code() != Some(Code::IN_USE) {
                    self.survey(cards);
                }
                Err(words)
            }
        }
    }

    fn happen(&self, happening: Happening) {
        // A full queue means a storm; the log has them all.
        let _ = self.tell.try_send(happening);
    }

    fn announce(&self) {
        self.publish.send_replace(Arc::new(Inventory {
            instances: self.state.clone(),
            nvml: self.nvml.clone(),
        }));
    }
}

/// 0.1 s, doubled with each failure up to 5 s, and 30 s once it is quarantined.
fn backoff(failures: u32) -> Millis {
    if failures >= crate::instances::QUARANTINE_AFTER {
        30_000
    } else {
        (100 << failures.min(6)).min(5_000)
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn source_text(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
