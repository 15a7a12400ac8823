//! The node agent: creates GPU instances for the pods of its node, hands them to their containers, destroys them.
//!
//! ```text
//! watches (pods, node) ──► materialise (the thread that owns NVML) ──► publish (GpuNode, Events, metrics)
//!                               ▲
//! kubelet ──► device_plugin ──► prepare (whose ids? wait for the devices) ──► cdi
//! ```
//!
//! `gpus` decides what to do, `materialise` carries it out and records it in its journal, `nvml` makes the calls.

pub mod args;
mod driver_pause;
pub mod gpus;
pub mod kubelet;
pub mod materialise;
pub mod metrics;
mod node;
pub mod nvml;
mod pods;
mod publish;

use std::time::Duration;

use daemon::{
    admin,
    ready::Readiness,
    serve,
    shutdown::{self, CancellationToken},
    tasks::Tasks,
};
use domain::{config::Config, status::GpuNodeStatus};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::sync::{mpsc, watch};

use crate::{
    args::Args,
    gpus::event::AgentEvent,
    kubelet::{
        cdi::specs::CdiSpecs,
        client::Kubelet,
        device_plugin::DevicePluginService,
        prepare::Preparer,
        registration::{self, Registration, RegistrationState},
    },
    materialise::thread::{NVML_HANG_TIMEOUT, NvmlThread},
    metrics::Metrics,
    pods::Pods,
    publish::{
        collector::GpuCollector,
        events::EventPublisher,
        own_object::{self, SeenObject},
        publisher::Publisher,
    },
};

/// How long the agent waits, before it ends, for the write of a status that keeps pods away.
const END_REPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a pod from the scheduler's decision to its admission by kubelet.
const POD_ARRIVAL_TIME: Duration = Duration::from_secs(1);
/// Number of events that may wait to be published.
const EVENT_QUEUE_LENGTH: usize = 256;

/// Runs the agent until a signal.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        node_name,
        kubelet,
        nvml,
        cdi,
        proc_dir,
        config,
        admin,
        log,
    } = args;
    log.init()?;
    let config = config.load()?;
    let signal = shutdown::on_signal()?;
    let token = CancellationToken::new();
    let client = daemon::client().await?;
    let listener = serve::listen(admin.admin_address).await?;
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("nodeagent");
    let metrics = Metrics::register(&mut registry);
    let (send_events, events) = mpsc::channel(EVENT_QUEUE_LENGTH);
    let settings = nvml.settings(
        &proc_dir,
        config.node(&node_name).filterdevices,
        config.preconfigured_memory(&node_name),
    );
    let nvml = NvmlThread::start(settings, metrics.clone(), send_events.clone())?;
    registry.register_collector(Box::new(GpuCollector {
        node_name: node_name.clone(),
        inventory: nvml.inventory(),
    }));
    let agent = Agent {
        kubelet: kubelet.kubelet(&config.resource_count_name),
        node_name,
        config,
        client,
        nvml,
        events: send_events,
        metrics,
        cdi: cdi.specs(proc_dir),
        registration: RegistrationState::new(),
        pods: watch::Sender::new(None),
        node: watch::Sender::new(None),
        seen: watch::Sender::new(SeenObject::default()),
        published: watch::Sender::new(GpuNodeStatus::default()),
    };

    let mut tasks = Tasks::new(token.clone());
    let admin = admin::serve(listener, registry.into(), readiness.clone(), token.clone());
    tasks.spawn("admin", admin);
    agent.spawn_watches(&mut tasks, &readiness);
    agent.spawn_publishers(&mut tasks, &readiness, events);
    agent.spawn_kubelet_tasks(&mut tasks, &token);
    tasks.spawn("hangs", watch_for_hangs(agent.nvml.clone(), token.clone()));
    let (registration, published) = (agent.registration.clone(), agent.published.subscribe());
    tasks.spawn("drain", drain(registration, published, signal, token));
    // The NVML thread ends with the last task that needs it.
    drop(agent);
    tasks.run().await
}

/// What the tasks share.
struct Agent {
    node_name: String,
    config: Config,
    client: Client,
    nvml: NvmlThread,
    events: mpsc::Sender<AgentEvent>,
    metrics: Metrics,
    kubelet: Kubelet,
    cdi: CdiSpecs,
    registration: RegistrationState,
    /// Written by the watch of pods.
    pods: watch::Sender<Pods>,
    /// Written by the watch of the node.
    node: watch::Sender<Option<Node>>,
    /// The node's `GpuNode` object; written by its watch.
    seen: watch::Sender<SeenObject>,
    /// Written by the publisher.
    published: watch::Sender<GpuNodeStatus>,
}

impl Agent {
    fn spawn_watches(&self, tasks: &mut Tasks, readiness: &Readiness) {
        let (client, node_name) = (self.client.clone(), self.node_name.clone());
        let (latch, share) = (readiness.latch("pods"), self.pods.clone());
        let pods = pods::watch(client, node_name, latch, self.nvml.clone(), share);
        tasks.spawn_loop("pods", pods);

        let (client, node_name) = (self.client.clone(), self.node_name.clone());
        let (config, share) = (self.config.node(&node_name), self.node.clone());
        let node = node::watch(client, node_name, config, self.nvml.clone(), share);
        tasks.spawn_loop("node", node);

        let (client, node_name) = (self.client.clone(), self.node_name.clone());
        let object = own_object::watch(client, node_name, self.seen.clone());
        tasks.spawn_loop("gpunode", object);
    }

    fn spawn_publishers(
        &self,
        tasks: &mut Tasks,
        readiness: &Readiness,
        events: mpsc::Receiver<AgentEvent>,
    ) {
        let publisher = Publisher {
            client: self.client.clone(),
            node_name: self.node_name.clone(),
            settings: self.config.node(&self.node_name),
            events: self.events.clone(),
            max_shares: self.config.device_split_count,
            inventory: self.nvml.inventory(),
            node: self.node.subscribe(),
            registration: self.registration.subscribe(),
            seen: self.seen.subscribe(),
            published: self.published.clone(),
            ready: Some(readiness.latch("kubelet")),
        };
        tasks.spawn_loop("publish", publisher.run());
        let publisher = EventPublisher {
            client: self.client.clone(),
            node_name: self.node_name.clone(),
            events,
            pods: self.pods.subscribe(),
            node: self.node.subscribe(),
            published: self.published.subscribe(),
        };
        tasks.spawn_loop("events", publisher.run());
    }

    fn spawn_kubelet_tasks(&self, tasks: &mut Tasks, token: &CancellationToken) {
        let specs = remove_specs_with_their_pods(self.cdi.clone(), self.pods.subscribe());
        tasks.spawn_loop("specs", specs);
        let service = DevicePluginService {
            kubelet: self.kubelet.clone(),
            ids_per_gpu: self.config.device_split_count,
            inventory: self.nvml.inventory(),
            preparer: Preparer {
                kubelet: self.kubelet.clone(),
                nvml: self.nvml.clone(),
                pods: self.pods.subscribe(),
                cdi: self.cdi.clone(),
            },
            metrics: self.metrics.clone(),
            registration: self.registration.clone(),
        };
        tasks.spawn(
            "kubelet",
            serve_kubelet(
                self.kubelet.clone(),
                service,
                self.registration.clone(),
                token.clone(),
            ),
        );
    }
}

/// Ends the agent gracefully after a signal: first no more pods are scheduled to the node, then those on their way
/// arrive, and only then kubelet is served no longer.
async fn drain(
    registration: RegistrationState,
    mut published: watch::Receiver<GpuNodeStatus>,
    signal: CancellationToken,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let work = async {
        signal.cancelled().await;
        registration.set(Registration::Ending);
        let reported = published.wait_for(|status| !status.is_registered());
        let reported = tokio::time::timeout(END_REPORT_TIMEOUT, reported);
        if reported.await.is_ok() {
            tokio::time::sleep(POD_ARRIVAL_TIME).await;
        } else {
            tracing::warn!("Ending although the scheduler could not be informed");
        }
    };
    // Another task that has ended cancels the token without a signal.
    token.run_until_cancelled(work).await;
    token.cancel();
    Ok(())
}

/// Removes the CDI specs of pods that are over, whenever the pods change.
async fn remove_specs_with_their_pods(cdi: CdiSpecs, mut pods: watch::Receiver<Pods>) {
    loop {
        let known = pods.borrow_and_update().clone();
        if let Some(known) = known {
            cdi.retain(|uid| known.contains_key(uid));
        }
        if pods.changed().await.is_err() {
            return;
        }
    }
}

/// Serves kubelet until `token` is cancelled.
async fn serve_kubelet(
    kubelet: Kubelet,
    service: DevicePluginService,
    registration: RegistrationState,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let mut inventory = service.inventory.clone();
    // Registering before the first survey would offer no devices: for a moment the node would have no GPUs.
    let surveyed = inventory.wait_for(|inventory| inventory.is_surveyed());
    if token.run_until_cancelled(surveyed).await.is_some() {
        registration::run(kubelet, service, registration, token).await;
    }
    Ok(())
}

/// Reports calls of NVML that hang, until `token` is cancelled.
async fn watch_for_hangs(nvml: NvmlThread, token: CancellationToken) -> anyhow::Result<()> {
    let watch = nvml.watch_for_hangs(NVML_HANG_TIMEOUT);
    token.run_until_cancelled(watch).await.unwrap_or(Ok(()))
}
