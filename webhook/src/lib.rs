//! The mutating admission webhook: turns a pod that asks for GPU pieces into one that Tessera schedules.
//!
//! Stateless: [`mutate`] is a function of the pod and the cluster's view, which watches keep; any
//! number of replicas serve it. [`review`] is its form on the wire.

pub mod mutate;
pub mod review;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use daemon::{
    admin,
    args::{AdminArgs, ConfigArgs, LogArgs},
    ready::Readiness,
    serve::{self, Body, json, text},
    shutdown,
    tasks::{Tasks, until},
    tls::Certificate,
};
use domain::config::Config;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use plugin::{shared_cluster::SharedCluster, watches};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;

use crate::review::Outcome;

/// Largest request: etcd takes objects of 1.5 MiB, and a review has two of them at most.
const BODY_LIMIT: usize = 8 << 20;

/// Admits pods that ask for GPU pieces.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Address of the webhook, HTTPS.
    #[arg(long, env, default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Namespace of the Secret and the Service.
    #[arg(long, env, default_value = "tessera-system")]
    pub namespace: String,
    /// Service by which the API server calls the webhook.
    #[arg(long, env, default_value = "tessera-webhook")]
    pub service: String,
    /// Secret that keeps the certificate.
    #[arg(long, env, default_value = "tessera-webhook-tls")]
    pub secret: String,
    /// `MutatingWebhookConfiguration` whose `caBundle` is kept; empty: somebody else keeps it.
    #[arg(long, env, default_value = "tessera")]
    pub webhook_configuration: String,
    /// More DNS names or IP addresses that the certificate is good for.
    #[arg(long, env, value_delimiter = ',')]
    pub extra_name: Vec<String>,
    /// Shared settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Probes and metrics.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

#[derive(Clone, Debug)]
struct Metrics {
    reviews: Family<Labels, Counter>,
    duration: Histogram,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            duration: Histogram::new(exponential_buckets(0.0001, 2.0, 14)),
        };
        let registry = registry.sub_registry_with_prefix("webhook");
        registry.register("reviews", "Pods reviewed", metrics.reviews.clone());
        registry.register_with_unit(
            "review_duration",
            "Time to answer the API server",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        metrics
    }
}

/// Runs the webhook until a signal.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        listen,
        namespace,
        service,
        secret,
        webhook_configuration,
        extra_name,
        config,
        admin,
        log,
    } = args;
    log.init()?;
    let config = Arc::new(config.load()?);
    let token = shutdown::on_signal()?;
    let client = daemon::client().await?;
    let bind_to = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))
    };
    let (listener, admin_listener) = (bind_to(listen).await?, bind_to(admin.admin_address).await?);
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("webhook");
    let metrics = Metrics::register(&mut registry);
    let cluster = SharedCluster::default();
    cluster.write().set_rule(config.placement.rule());
    let certificate = Certificate::empty();
    let settings = certs::settings::Settings {
        namespace,
        secret,
        service,
        extra_names: extra_name,
        webhook_configuration: Some(webhook_configuration).filter(|name| !name.is_empty()),
    };
    let (pods, nodes) = (readiness.latch("pods"), readiness.latch("gpunodes"));
    let served = std::sync::Mutex::new(Some(readiness.latch("certificate")));

    let mut tasks = Tasks::new(token.clone());
    tasks.spawn(
        "pods",
        until(
            token.clone(),
            watches::pods(client.clone(), cluster.clone(), pods, |_| {}),
        ),
    );
    tasks.spawn(
        "gpunodes",
        until(
            token.clone(),
            watches::gpu_nodes(client.clone(), cluster.clone(), nodes, |_| {}),
        ),
    );
    tasks.spawn("certificate", {
        let certificate = certificate.clone();
        until(
            token.clone(),
            certs::rotate::run(client, settings, move |chain, key| {
                if certificate.set_pem(chain.as_bytes(), key.as_bytes())? {
                    tracing::info!("Serving a new certificate");
                }
                let first = served.lock().map(|mut latch| latch.take());
                if let Ok(Some(latch)) = first {
                    latch.release();
                }
                Ok(())
            }),
        )
    });
    tasks.spawn(
        "admin",
        admin::serve(admin_listener, Arc::new(registry), readiness, token.clone()),
    );
    tasks.spawn(
        "webhook",
        serve::tls(
            listener,
            certificate.server_config()?,
            token,
            move |request| answer(request, cluster.clone(), config.clone(), metrics.clone()),
        ),
    );
    tasks.run().await
}

async fn answer(
    request: Request<Incoming>,
    cluster: SharedCluster,
    config: Arc<Config>,
    metrics: Metrics,
) -> Response<Body> {
    if (request.method(), request.uri().path()) != (&Method::POST, "/mutate") {
        return text(StatusCode::NOT_FOUND, "POST /mutate\n");
    }
    let started = Instant::now();
    let body = match serve::body(request, BODY_LIMIT).await {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    let (review, outcome) = review::review(&body, &cluster.read(), &config);
    metrics.reviews.get_or_create(&Labels { outcome }).inc();
    let took: Duration = started.elapsed();
    metrics.duration.observe(took.as_secs_f64());
    json(&review)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        super::Args::command().debug_assert();
    }
}
