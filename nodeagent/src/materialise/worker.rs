//! The loop of the NVML thread: commands in, surveys and actions, inventory out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};

use super::{
    command::{Command, CurrentCall, Request},
    journal::Journal,
    schedule::{SURVEY_INTERVAL, SurveySchedule},
    settings::Settings,
};
use crate::{
    gpus::{
        clock::Millis, event::AgentEvent, inventory::Inventory, next_action::IdleLimits,
        state::NodeState,
    },
    metrics::Metrics,
    nvml::{data::FoundGpu, fault_watch::FaultWatch, session::Session},
};

/// Pause between two attempts to load NVML.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two attempts for containers that wait.
const REQUEST_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest pause of the loop.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// What connects the thread with its handle.
pub(super) struct Channels {
    pub(super) inbox: mpsc::UnboundedReceiver<Command>,
    pub(super) own: mpsc::WeakUnboundedSender<Command>,
    pub(super) inventory: watch::Sender<Arc<Inventory>>,
    pub(super) events: mpsc::Sender<AgentEvent>,
    pub(super) current_call: CurrentCall,
}

pub(super) struct Worker {
    pub(super) settings: Settings,
    pub(super) channels: Channels,
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
    /// Why the driver must be left alone.
    pub(super) pause: Option<String>,
    /// Why the journal cannot be written.
    pub(super) journal_failure: Option<String>,
    pub(super) state: NodeState,
    /// Containers that wait for something that passes: another pod's end, a retry.
    pub(super) requests: Vec<Request>,
    /// When the thread was started.
    epoch: Instant,
    /// All GPUs that NVML counted in the last survey.
    pub(super) found: Vec<FoundGpu>,
    /// Why NVML or a GPU did not answer the last survey.
    pub(super) nvml_failure: Option<String>,
    pub(super) schedule: SurveySchedule,
    pub(super) fault_watch: Option<FaultWatch>,
    /// The GPUs that were reported as unhealthy, and why.
    pub(super) unhealthy: BTreeMap<String, String>,
    /// Only a new process can go on.
    pub(super) must_restart: bool,
}

impl Worker {
    pub(super) fn new(
        settings: Settings,
        channels: Channels,
        metrics: Metrics,
        journal: Journal,
    ) -> Self {
        Self {
            state: NodeState {
                may_reset: !settings.reset_command.is_empty(),
                ..NodeState::default()
            },
            settings,
            channels,
            metrics,
            journal,
            pause: None,
            journal_failure: None,
            requests: vec![],
            epoch: Instant::now(),
            found: vec![],
            nvml_failure: Inventory::unsurveyed().nvml_failure,
            schedule: SurveySchedule::new(Instant::now()),
            fault_watch: None,
            unhealthy: BTreeMap::new(),
            must_restart: false,
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
        let Some(session) = self.open(&runtime) else {
            return;
        };
        tracing::info!(driver = session.driver_version(), "Opened NVML");
        self.survey(&session);
        while !self.must_restart {
            if self.pause.is_some() {
                if !self.leave_driver(&session, &runtime) {
                    break;
                }
                continue;
            }
            let Some(pause) = self.work(&session) else {
                continue;
            };
            self.channels.current_call.set(None);
            let inbox = &mut self.channels.inbox;
            match runtime.block_on(async { tokio::time::timeout(pause, inbox.recv()).await }) {
                Ok(None) => break,
                Ok(Some(command)) => self.take_command(command),
                Err(_) => {}
            }
        }
        self.stop_fault_watch();
    }

    /// One round: commands, containers that wait, a survey that is due, one action. Returns how long to wait for the
    /// next command; `None`: there may be more to do at once.
    fn work(&mut self, session: &Session) -> Option<Duration> {
        while let Ok(command) = self.channels.inbox.try_recv() {
            self.take_command(command);
        }
        if self.pause.is_some() {
            return None;
        }
        self.serve_requests(session);
        if self.schedule.is_due(Instant::now()) {
            self.survey(session);
        }
        let limits = IdleLimits {
            ttl: millis(self.settings.idle_ttl),
            count: self.settings.idle_limit,
        };
        let (action, wakeup) = self.state.next_action(self.now(), limits);
        if let Some(action) = action {
            // A failure is recorded in the state and reported already.
            let _ = self.perform(session, action);
            self.publish();
            return None;
        }
        // Only now: actions stop the watch, and that takes a while.
        self.update_fault_watch();
        self.publish();
        let now = self.now();
        let mut pause = wakeup.map_or(SURVEY_INTERVAL, |at| {
            Duration::from_millis(at.saturating_sub(now)).max(MIN_PAUSE)
        });
        if !self.requests.is_empty() {
            pause = pause.min(REQUEST_RETRY_INTERVAL);
        }
        Some(pause.min(self.schedule.time_left(Instant::now())))
    }

    /// Opens NVML as soon as that is possible; `None` when every handle was dropped in the meantime.
    fn open(&mut self, runtime: &Runtime) -> Option<Session> {
        loop {
            while let Ok(command) = self.channels.inbox.try_recv() {
                self.take_command(command);
            }
            // Opening a session would load the driver's modules.
            if !self.wait_while_paused(runtime) {
                return None;
            }
            match Session::open(self.settings.library.as_deref()) {
                Ok(session) => return Some(session),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "Cannot open NVML, retrying"
                    );
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    self.nvml_failure = Some(format!("{error}: {}", source.unwrap_or_default()));
                    self.publish();
                    // Commands that came in the meantime stay in the inbox.
                    if self.channels.inbox.is_closed() {
                        return None;
                    }
                    std::thread::sleep(OPEN_RETRY_INTERVAL);
                }
            }
        }
    }

    pub(super) fn take_command(&mut self, command: Command) {
        match command {
            Command::Pods(pods) => {
                self.state.apply_pods(pods, self.now());
                self.record_owners();
            }
            Command::Pause(reason) => self.pause = reason,
            Command::WantedModes(modes) => self.state.wanted_modes = modes,
            Command::Watch(event) => self.take_watch_event(event),
            Command::EnsureDevices(request) => self.requests.push(request),
        }
    }

    pub(super) fn now(&self) -> Millis {
        millis(self.epoch.elapsed())
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
