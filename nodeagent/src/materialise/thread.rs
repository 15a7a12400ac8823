//! The handle to the NVML thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    command::{Command, CurrentCall, Request},
    journal::Journal,
    settings::Settings,
    worker::{Channels, Worker},
};
use crate::{
    gpus::{
        blocked::Blocked,
        claims::ClaimedPods,
        event::AgentEvent,
        inventory::{Inventory, LiveDevice},
        modes::WantedModes,
    },
    metrics::Metrics,
};

/// How long a call of NVML may take before all GPUs count as unhealthy. A destroy takes a second, a reset several.
pub const NVML_HANG_TIMEOUT: Duration = Duration::from_secs(30);

/// A handle to the NVML thread.
#[derive(Clone)]
pub struct NvmlThread {
    commands: mpsc::UnboundedSender<Command>,
    inventory: watch::Receiver<Arc<Inventory>>,
    publish: watch::Sender<Arc<Inventory>>,
    current_call: CurrentCall,
    events: mpsc::Sender<AgentEvent>,
}

impl NvmlThread {
    /// Starts the thread. It ends when the last handle is dropped.
    ///
    /// Events go to `events`; they are dropped when nobody receives them fast enough.
    pub fn start(
        settings: Settings,
        metrics: Metrics,
        events: mpsc::Sender<AgentEvent>,
    ) -> anyhow::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (publish, inventory) = watch::channel(Arc::new(Inventory::unsurveyed()));
        let (journal, bad_lines) = Journal::open(&settings.journal)?;
        for bad in bad_lines {
            tracing::warn!(
                line = bad.line,
                problem = %bad.problem,
                "Skipped a bad journal record"
            );
        }
        let current_call = CurrentCall::default();
        let channels = Channels {
            inbox,
            // The thread must not keep itself alive.
            own: commands.downgrade(),
            inventory: publish.clone(),
            events: events.clone(),
            current_call: current_call.clone(),
        };
        let mut worker = Worker::new(settings, channels, metrics, journal);
        std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            commands,
            inventory,
            publish,
            current_call,
            events,
        })
    }

    /// The published inventory. It is published after every action.
    pub fn inventory(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.clone()
    }

    /// Hands in all pods of this node that hold a claim, after every change.
    pub fn set_pods(&self, pods: Arc<ClaimedPods>) {
        self.send(Command::Pods(pods));
    }

    /// Hands in the modes that the admin wants.
    pub fn set_wanted_modes(&self, modes: WantedModes) {
        self.send(Command::WantedModes(modes));
    }

    /// Lets the thread close NVML and leave the driver alone, for this reason, or use it again.
    pub fn set_pause(&self, reason: Option<String>) {
        self.send(Command::Pause(reason));
    }

    /// Creates the MIG devices of a pod's container if they do not exist, and waits for them at most `limit`.
    pub async fn ensure_devices(
        &self,
        pod_uid: &str,
        container: &str,
        limit: Duration,
    ) -> Result<Vec<LiveDevice>, Blocked> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::EnsureDevices(Request {
            pod_uid: pod_uid.to_owned(),
            container: container.to_owned(),
            reply,
            since: Instant::now(),
        }));
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Blocked::ShuttingDown),
            Err(_) => Err(Blocked::TimedOut(limit.as_secs())),
        }
    }

    /// Publishes that NVML hangs whenever one of its calls does not return. Ends when the thread has ended.
    pub async fn watch_for_hangs(self, limit: Duration) -> anyhow::Result<()> {
        let mut reported = None;
        let mut tick = tokio::time::interval(limit / 6);
        loop {
            tick.tick().await;
            if self.commands.is_closed() {
                anyhow::bail!("the NVML thread has ended; its log says why");
            }
            let call = self.current_call.get();
            let Some((since, call)) = call.filter(|(since, _)| since.elapsed() >= limit) else {
                continue;
            };
            if reported == Some(since) {
                continue;
            }
            reported = Some(since);
            let reason = format!("NVML has not answered for {} s: {call}", limit.as_secs());
            tracing::error!(call, "NVML hangs");
            self.publish
                .send_modify(|inventory| Arc::make_mut(inventory).nvml_hang = Some(reason.clone()));
            let _ = self
                .events
                .try_send(AgentEvent::warning(None, "NvmlHangs", reason));
        }
    }

    fn send(&self, command: Command) {
        // Where the thread has ended the agent ends too.
        let _ = self.commands.send(command);
    }
}
