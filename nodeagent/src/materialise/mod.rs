//! The one thread that owns NVML: carries out the steps that `instances` decides, one at a time.
//!
//! Others talk to it by [`Owner`]: they hand in claims and wishes and read the published inventory.
//! A call of NVML that hangs holds up this thread and nobody else: every answer is waited for with a limit, and
//! after [`HANGS_AFTER`] all cards are published as unhealthy until it returns.

pub mod journal;
mod proc;
mod steps;
mod thread;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use self::thread::Thread;
use crate::{
    gpus::claims::ClaimedPod,
    gpus::health::Ignored,
    gpus::instances::{Blocked, Instances, Wanted},
    materialise::journal::Journal,
    metrics::Metrics,
    nvml::Fault,
};

/// How long a call of NVML may take before the cards count as unhealthy: destroying takes a second, a reset some.
pub const HANGS_AFTER: Duration = Duration::from_secs(30);

/// How the owner thread works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of `libnvidia-ml.so.1`; `None`: the loader finds it.
    pub library: Option<OsString>,
    /// File of the journal.
    pub journal: PathBuf,
    /// How long an idle instance is kept as warm stock.
    pub idle_ttl: Duration,
    /// How many idle instances are kept.
    pub idle_limit: usize,
    /// Cards that are none of our business.
    pub filter: domain::config::FilterDevices,
    /// Faults that are not looked at.
    pub ignored: Ignored,
    /// Program and arguments that reset a card, `{uuid}` stands for it; empty: no card is reset.
    pub reset: Vec<String>,
    /// `/proc` of the host.
    pub proc: PathBuf,
}

/// What the owner thread publishes: the state of all cards.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The state after the last step.
    pub instances: Instances,
    /// Whether every card answered to the last survey; else what the library or the cards said.
    pub nvml: Result<(), String>,
    /// What has not returned for [`HANGS_AFTER`].
    pub hangs: Option<String>,
    /// Why the journal cannot be written: nothing can be made then.
    pub journal: Option<String>,
}

impl Inventory {
    /// Whether the cards have been looked at; one that does not answer is no reason to wait for it.
    pub fn is_surveyed(&self) -> bool {
        self.nvml.is_ok() || !self.instances.cards.is_empty()
    }

    /// Why a card must not be used for new pods.
    pub fn ailment(&self, gpu: &str) -> Option<String> {
        let state = self.instances.cards.get(gpu)?;
        self.hangs.clone().or_else(|| state.ailment())
    }
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
    /// The pod cannot start on this GPU and is to be failed, so that its controller makes a new one.
    pub fails_pod: Option<String>,
}

impl Happening {
    /// Something to know, about a pod or the node.
    pub fn note(pod_uid: Option<String>, reason: &'static str, message: String) -> Self {
        Self {
            pod_uid,
            warning: false,
            reason,
            message,
            fails_pod: None,
        }
    }

    /// Something that somebody should look at.
    pub fn warning(pod_uid: Option<String>, reason: &'static str, message: String) -> Self {
        Self {
            warning: true,
            ..Self::note(pod_uid, reason, message)
        }
    }
}

enum Command {
    Pods(BTreeMap<String, ClaimedPod>),
    Wanted(Wanted),
    Fault(Fault),
    Ensure {
        uid: String,
        container: String,
        reply: oneshot::Sender<Result<Vec<LiveDevice>, Blocked>>,
    },
}

/// What the thread is at, and since when; nothing while it waits for work.
type Busy = Arc<Mutex<Option<(Instant, String)>>>;

/// A handle to the owner thread.
#[derive(Clone)]
pub struct Owner {
    commands: mpsc::UnboundedSender<Command>,
    inventory: watch::Receiver<Arc<Inventory>>,
    publish: watch::Sender<Arc<Inventory>>,
    busy: Busy,
    tell: mpsc::Sender<Happening>,
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
            hangs: None,
            journal: None,
        }));
        let (journal, bad) = Journal::open(&settings.journal)?;
        for bad in bad {
            tracing::warn!(
                line = bad.line,
                problem = bad.problem,
                "Skipped a bad journal record"
            );
        }
        let busy = Busy::default();
        let mut thread = Thread::new(
            settings,
            inbox,
            commands.downgrade(),
            publish.clone(),
            busy.clone(),
            metrics,
            tell.clone(),
            journal,
        );
        std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || thread.run())?;
        Ok(Self {
            commands,
            inventory,
            publish,
            busy,
            tell,
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

    /// The modes that the admin wants.
    pub fn want(&self, wanted: Wanted) {
        self.send(Command::Wanted(wanted));
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

    /// Publishes that NVML hangs when one of its calls does not return, for ever. Ends when the thread has ended.
    pub async fn watch_for_hangs(self, limit: Duration) -> anyhow::Result<()> {
        let mut known = None;
        let mut tick = tokio::time::interval(limit / 6);
        loop {
            tick.tick().await;
            if self.commands.is_closed() {
                anyhow::bail!("the thread that owns NVML has ended; its log says why");
            }
            let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            let late = busy.clone().filter(|(since, _)| since.elapsed() >= limit);
            drop(busy);
            let Some((since, what)) = late else { continue };
            if known == Some(since) {
                continue;
            }
            known = Some(since);
            let words = format!("NVML has not answered for {} s: {what}", limit.as_secs());
            tracing::error!(words, "NVML hangs");
            self.publish
                .send_modify(|inventory| Arc::make_mut(inventory).hangs = Some(words.clone()));
            let _ = self
                .tell
                .try_send(Happening::warning(None, "NvmlHangs", words));
        }
    }

    fn send(&self, command: Command) {
        // Where the thread has ended the agent ends too.
        let _ = self.commands.send(command);
    }
}
