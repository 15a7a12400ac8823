//! The node agent: makes GPU instances for the pods of its node, hands them to their containers, removes them.
//!
//! ```text
//! watch of pods ──► pods ──► materialise (owns NVML, one thread) ──► publish (GpuNode), metrics
//! kubelet ──► device_plugin ──► nvml (whose ids?) ──► ensure ──► cdi
//! ```
//!
//! `instances` decides, `materialise` carries out, `journal` remembers; `health` judges what the cards tell.

pub mod args;
pub mod gpus;
pub mod kubelet;
pub mod materialise;
pub mod metrics;
pub mod nvml;
pub mod pods;
pub mod publish;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use daemon::{
    admin,
    ready::Readiness,
    shutdown::{self, CancellationToken},
    tasks::{Tasks, until},
    watches,
};
use domain::{keys, mode::NodeMode, status::GpuNodeStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, runtime::watcher};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    args::Args,
    gpus::modes::WantedModes,
    kubelet::cdi::Cdi,
    kubelet::device_plugin::{Kubelet, Plugin, Registration},
    materialise::settings::Settings,
    materialise::thread::{NVML_HANG_TIMEOUT, NvmlThread},
    metrics::{CardsCollector, Metrics},
    publish::status::Publisher,
};

/// How long the API server may take to be told that the agent ends.
const SAID: Duration = Duration::from_secs(3);
/// How long a pod may take from the scheduler's choice to kubelet's admission.
const ARRIVE: Duration = Duration::from_secs(1);

/// Runs the agent until a signal.
#[allow(
    clippy::too_many_lines,
    reason = "one list of the tasks and what each is given"
)]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        node_name,
        device_plugin_dir,
        pod_resources_socket,
        nvml_library,
        state_dir,
        cdi_dir,
        cdi_base_spec,
        proc_dir,
        driver_proc_dir,
        dev_dir,
        hook_path,
        idle_ttl,
        idle_limit,
        disable_healthchecks,
        gpu_reset_command,
        config,
        admin,
        log,
    } = args;
    log.init()?;
    let config = config.load()?;
    let signal = shutdown::on_signal()?;
    let token = CancellationToken::new();
    let client = daemon::client().await?;
    let listener = TcpListener::bind(admin.admin_address)
        .await
        .with_context(|| format!("cannot listen on {}", admin.admin_address))?;
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("nodeagent");
    let metrics = Metrics::register(&mut registry);
    let settings = config.node(&node_name);
    let (events, happenings) = mpsc::channel(256);
    let nvml = NvmlThread::start(
        Settings {
            library: nvml_library.map(Into::into),
            journal: state_dir.join("journal"),
            idle_ttl: idle_ttl.into(),
            idle_limit,
            filter: settings.filterdevices.clone(),
            ignored_faults: disable_healthchecks,
            // One empty word: an empty flag.
            reset_command: gpu_reset_command
                .into_iter()
                .filter(|word| !word.is_empty())
                .collect(),
            proc: proc_dir.clone(),
        },
        metrics.clone(),
        events,
    )?;
    registry.register_collector(Box::new(CardsCollector {
        node: node_name.clone(),
        inventory: nvml.inventory(),
    }));
    let cdi = Cdi {
        directory: cdi_dir,
        proc: driver_proc_dir.unwrap_or(proc_dir),
        dev: dev_dir,
        base: cdi_base_spec,
        hook: hook_path,
    };
    let (share_pods, pods) = watch::channel(None);
    let (share_node, node) = watch::channel(None);
    let (registration, registered) = watch::channel(Registration::Missing);
    let (show, published) = watch::channel(GpuNodeStatus::default());

    let mut tasks = Tasks::new(token.clone());
    tasks.spawn(
        "admin",
        admin::serve(
            listener,
            Arc::new(registry),
            readiness.clone(),
            token.clone(),
        ),
    );
    tasks.spawn("pods", {
        let (api, nvml, latch) = (
            Api::<Pod>::all(client.clone()),
            nvml.clone(),
            readiness.latch("pods"),
        );
        let only = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
        let mut follower = pods::Follower::default();
        until(token.clone(), async move {
            watches::watch(api, only, Some(latch), |change| {
                follower.apply(change, &nvml, &share_pods);
            })
            .await;
        })
    });
    tasks.spawn("node", {
        let (api, nvml) = (Api::<Node>::all(client.clone()), nvml.clone());
        let only = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
        until(token.clone(), async move {
            watches::watch(api, only, None, |change| {
                if let watches::Change::Apply(node) = change {
                    nvml.set_wanted_modes(WantedModes {
                        node: wanted_mode(&node).or(settings.operatingmode),
                        devices: settings.devicemodes.clone(),
                    });
                    share_node.send_replace(Some(*node));
                }
            })
            .await;
        })
    });
    let publishing = Publisher {
        client: client.clone(),
        node_name: node_name.clone(),
        shares: config.device_split_count,
        inventory: nvml.inventory(),
        node: node.clone(),
        registration: registered,
        show,
        ready: readiness.latch("kubelet"),
    };
    tasks.spawn("publish", until(token.clone(), publishing.run()));
    tasks.spawn(
        "drain",
        drain(
            signal,
            token.clone(),
            registration.clone(),
            published.clone(),
        ),
    );
    tasks.spawn(
        "events",
        until(
            token.clone(),
            publish::events::run(client, node_name, happenings, pods.clone(), node, published),
        ),
    );
    tasks.spawn("clean", {
        let (cdi, mut pods) = (cdi.clone(), pods.clone());
        until(token.clone(), async move {
            while pods.changed().await.is_ok() {
                let known = pods.borrow_and_update().clone();
                if let Some(known) = known {
                    cdi.clean(|uid| known.contains_key(uid));
                }
            }
        })
    });
    tasks.spawn("hangs", {
        let (nvml, token) = (nvml.clone(), token.clone());
        async move {
            let watched = token.run_until_cancelled(nvml.watch_for_hangs(NVML_HANG_TIMEOUT));
            watched.await.unwrap_or(Ok(()))
        }
    });
    tasks.spawn(
        "kubelet",
        kubelet::device_plugin::run(
            Plugin {
                kubelet: Kubelet {
                    directory: device_plugin_dir,
                    pod_resources: pod_resources_socket,
                    resource: config.resource_count_name.clone(),
                    shares: config.device_split_count,
                },
                nvml,
                pods,
                cdi,
                metrics,
                registration,
            },
            token.clone(),
        ),
    );
    tasks.run().await
}

/// Ends the agent in order after a signal: no pods are sent to the node any more, those on their way arrive, and only
/// then kubelet is not served any more.
async fn drain(
    signal: CancellationToken,
    token: CancellationToken,
    registration: watch::Sender<Registration>,
    mut published: watch::Receiver<GpuNodeStatus>,
) -> anyhow::Result<()> {
    let work = async {
        signal.cancelled().await;
        registration.send_replace(Registration::Ends);
        let said = published.wait_for(|status| !status.is_registered());
        let said = tokio::time::timeout(SAID, said).await.is_ok();
        if said {
            tokio::time::sleep(ARRIVE).await;
        } else {
            tracing::warn!("Ending, although the scheduler could not be told");
        }
    };
    token.run_until_cancelled(work).await;
    token.cancel();
    Ok(())
}

/// The mode that the node's label asks for; a label that names none is reported and ignored.
fn wanted_mode(node: &Node) -> Option<NodeMode> {
    let text = node.labels().get(keys::VGPU_MODE)?;
    text.parse()
        .inspect_err(|error| tracing::warn!(%error, "Ignored the node label {}", keys::VGPU_MODE))
        .ok()
}
