//! The scheduler plugin of Tessera, served to kube-scheduler as an HTTP extender on loopback.
//!
//! In the words of the scheduler framework: *Filter* and *Score* plan the pod on each node ([`verbs`]),
//! *Reserve* and *Bind* plan again, assume the claim, and post the binding that carries it ([`bind`]).
//! Its state is rebuilt from the API server alone: `GpuNode`s and the claims on pods.

pub mod bind;
pub mod preempt;
pub mod protocol;
pub mod verbs;
pub mod wake;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use daemon::{
    admin,
    args::{ConfigArgs, LogArgs},
    follow::{self, Notice, Shared},
    pods,
    ready::Readiness,
    serve::{self, Body, json, text},
    shutdown::{self, CancellationToken},
    tasks::{Tasks, until},
};
use domain::{demand::Demand, rule::Rule};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use kube::ResourceExt;
use placement::cluster::PodUid;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, sync::mpsc};

pub use crate::verbs::choose;
use crate::{
    bind::Binder,
    protocol::{
        ExtenderArgs, ExtenderBindingArgs, ExtenderBindingResult, ExtenderPreemptionArgs,
        FilterResult,
    },
    wake::{Refused, Waiting},
};

/// Largest request: a pod with the names of ten thousand nodes.
const BODY_LIMIT: usize = 16 << 20;

/// Places pods on GPUs, beside kube-scheduler.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Address of the extender, for kube-scheduler in the same pod.
    #[arg(long, env, default_value = "127.0.0.1:8888")]
    pub listen: SocketAddr,
    /// Address of `/live`, `/ready` and `/metrics`.
    #[arg(long, env = "TESSERA_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,
    /// Shared settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the value of a label")]
enum Verb {
    filter,
    prioritize,
    bind,
    preempt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: Verb,
}

#[derive(Clone, Debug)]
struct Metrics(Family<Labels, Histogram, fn() -> Histogram>);

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 2.0, 16))
        });
        registry
            .sub_registry_with_prefix("plugin")
            .register_with_unit(
                "request_duration",
                "Time to answer kube-scheduler",
                Unit::Seconds,
                family.clone(),
            );
        Self(family)
    }
}

/// Runs the plugin until a signal.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        listen,
        admin_address,
        config,
        log,
    } = args;
    log.init()?;
    let config = config.load()?;
    let token = shutdown::on_signal()?;
    let client = daemon::client().await?;
    let bind_to = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))
    };
    let (listener, admin_listener) = (bind_to(listen).await?, bind_to(admin_address).await?);
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("plugin");
    let metrics = Metrics::register(&mut registry);
    let cluster = Shared::default();
    cluster.write().set_rule(config.placement.rule());
    let binder = Binder {
        client: client.clone(),
        cluster: cluster.clone(),
        config,
        epoch: Instant::now(),
    };
    let waiting = Waiting::default();
    let (tell_freed, freed) = mpsc::unbounded_channel();
    let notice = {
        let waiting = waiting.clone();
        move |notice: Notice<'_>| match notice {
            Notice::Settled(uid) => waiting.gone(uid),
            // The receiver lives as long as the process.
            Notice::Freed(node) => drop(tell_freed.send(node.to_owned())),
        }
    };
    let mut tasks = Tasks::new(token.clone());
    follow_all(&mut tasks, &token, &binder, &readiness, &notice);
    let (tell_refused, refused) = mpsc::unbounded_channel();
    tasks.spawn(
        "wake",
        until(
            token.clone(),
            wake::run(
                client,
                cluster,
                binder.config.clone(),
                waiting.clone(),
                freed,
                tell_refused.clone(),
            ),
        ),
    );
    tasks.spawn("preempt", {
        let run = preempt::run(binder.clone(), waiting.clone(), refused);
        until(token.clone(), run)
    });
    if binder.config.placement.rule() == Rule::Tuned {
        tasks.spawn("tune", until(token.clone(), tune(binder.cluster.clone())));
    }
    tasks.spawn("expire", {
        let binder = binder.clone();
        until(token.clone(), async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                binder.cluster.write().expire(binder.now());
            }
        })
    });
    tasks.spawn(
        "admin",
        admin::serve(
            admin_listener,
            Arc::new(registry),
            readiness.clone(),
            token.clone(),
        ),
    );
    tasks.spawn(
        "extender",
        serve::plain(listener, token, move |request| {
            let view = View {
                binder: binder.clone(),
                waiting: waiting.clone(),
                refused: tell_refused.clone(),
            };
            answer(request, view, metrics.clone(), readiness.clone())
        }),
    );
    tasks.run().await
}

/// Chooses the weighing of each model anew every few minutes, by simulating the mix that is claimed.
async fn tune(cluster: Shared) {
    const EVERY: Duration = Duration::from_mins(5);
    // Long enough after the start that the view is there.
    tokio::time::sleep(Duration::from_secs(10)).await;
    loop {
        let mixes = cluster.read().mixes();
        for (model, layouts, mix) in mixes {
            let tuned = move || placement::simulation::tuning::tune(&layouts, &mix.parts);
            let Ok(weighing) = tokio::task::spawn_blocking(tuned).await else {
                continue;
            };
            if cluster.write().set_weighing(&model, weighing) {
                tracing::info!(model, ?weighing, "Weighs placements otherwise");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Spawns the tasks that keep the view: of pods, of inventories, and of the kubelets' offers.
fn follow_all<N: FnMut(Notice<'_>) + Clone + Send + 'static>(
    tasks: &mut Tasks,
    token: &CancellationToken,
    binder: &Binder,
    readiness: &Readiness,
    notice: &N,
) {
    let view = || (binder.client.clone(), binder.cluster.clone());
    let (client, cluster) = view();
    let pods = follow::pods(client, cluster, readiness.latch("pods"), notice.clone());
    tasks.spawn("pods", until(token.clone(), pods));
    let (client, cluster) = view();
    let nodes = follow::gpu_nodes(client, cluster, readiness.latch("gpunodes"), notice.clone());
    tasks.spawn("gpunodes", until(token.clone(), nodes));
    let (client, cluster) = view();
    let resource = binder.config.resource_count_name.clone();
    let latch = readiness.latch("nodes");
    let served = follow::served(client, cluster, resource, latch, notice.clone());
    tasks.spawn("nodes", until(token.clone(), served));
}

/// What the verbs work with.
struct View {
    binder: Binder,
    waiting: Waiting,
    /// Pods that found no node.
    refused: mpsc::UnboundedSender<PodUid>,
}

/// Filters, and remembers the pod that found no node; under one lock, so that no change of the view is missed.
fn filter(args: ExtenderArgs, view: &View) -> FilterResult {
    let View {
        binder,
        waiting,
        refused,
    } = view;
    let (uid, request) = (args.pod.uid(), pods::request(&args.pod));
    let (name, spec) = (pods::key(&args.pod), args.pod.spec.as_ref());
    let never = spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never");
    let priority = spec.and_then(|spec| spec.priority).filter(|_| !never);
    let cluster = binder.cluster.read();
    let result = verbs::filter(args, &cluster, &binder.config);
    if result.is_empty()
        && let (Some(uid), Ok(Some(demand))) = (uid, Demand::read(&request, &binder.config))
    {
        let failed = [&result.failed_nodes, &result.failed_and_unresolvable_nodes];
        let names: Vec<&String> = failed.into_iter().flat_map(BTreeMap::keys).collect();
        let pod = Refused::new(&name, demand, priority);
        waiting.refused(&uid, pod, names.into_iter());
        // The receiver lives as long as the process.
        drop(refused.send(uid));
    }
    result
}

async fn answer(
    request: Request<Incoming>,
    view: View,
    metrics: Metrics,
    readiness: Readiness,
) -> Response<Body> {
    let verb = match (request.method(), request.uri().path()) {
        (&Method::POST, "/filter") => Verb::filter,
        (&Method::POST, "/prioritize") => Verb::prioritize,
        (&Method::POST, "/bind") => Verb::bind,
        (&Method::POST, "/preempt") => Verb::preempt,
        _ => {
            return text(
                StatusCode::NOT_FOUND,
                "POST /filter, /prioritize, /bind or /preempt\n",
            );
        }
    };
    // A view without all claims would give away what is held.
    let missing = readiness.waiting();
    if !missing.is_empty() {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}", missing.join(", ")),
        );
    }
    let started = Instant::now();
    let body = match serve::body(request, BODY_LIMIT).await {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    let bad = |error: serde_json::Error| {
        text(
            StatusCode::BAD_REQUEST,
            format!("not the extender protocol: {error}"),
        )
    };
    let response = match verb {
        Verb::filter => match serde_json::from_slice::<ExtenderArgs>(&body) {
            Ok(args) => json(&filter(args, &view)),
            Err(error) => bad(error),
        },
        Verb::prioritize => match serde_json::from_slice::<ExtenderArgs>(&body) {
            Ok(args) => json(&verbs::prioritize(
                &args,
                &view.binder.cluster.read(),
                &view.binder.config,
            )),
            Err(error) => bad(error),
        },
        Verb::preempt => match serde_json::from_slice::<ExtenderPreemptionArgs>(&body) {
            Ok(args) => json(&preempt::preempt(
                args,
                &view.binder.cluster.read(),
                &view.binder.config,
            )),
            Err(error) => bad(error),
        },
        Verb::bind => match serde_json::from_slice::<ExtenderBindingArgs>(&body) {
            Ok(args) => {
                let error = view.binder.bind(&args).await.err().unwrap_or_default();
                let (pod, node) = (
                    format!("{}/{}", args.pod_namespace, args.pod_name),
                    &args.node,
                );
                if error.is_empty() {
                    tracing::info!(pod, node, "Bound a pod");
                } else {
                    tracing::warn!(pod, node, error, "Did not bind a pod");
                }
                json(&ExtenderBindingResult { error })
            }
            Err(error) => bad(error),
        },
    };
    metrics
        .0
        .get_or_create(&Labels { verb })
        .observe(started.elapsed().as_secs_f64());
    response
}
