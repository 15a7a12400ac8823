//! The mutating admission webhook: turns a pod that asks for GPUs into one that Tessera schedules.
//!
//! ```text
//! API server ──► server ──► review (AdmissionReview) ──► mutate (the pod) ──► plugin::hint (node and mode)
//! ```
//!
//! It is stateless: `mutate` is a function of the pod and the view of the cluster, which the plugin's
//! watches and one of nodes keep up to date. Any number of replicas can serve.

pub mod args;
mod denial;
mod gpu_nodes;
mod metrics;
mod mutate;
mod review;
mod server;
mod visible_devices;

use std::sync::{Arc, Mutex};

use daemon::{
    admin,
    ready::{Latch, Readiness},
    serve, shutdown,
    tasks::Tasks,
    tls::Certificate,
};
use domain::config::Config;
use kube::Client;
use plugin::{shared_cluster::SharedCluster, watches};

use crate::{args::Args, gpu_nodes::SharedGpuNodes, metrics::Metrics, server::Server};

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
    let listener = serve::listen(listen).await?;
    let admin_listener = serve::listen(admin.admin_address).await?;
    let readiness = Readiness::default();
    let mut registry = daemon::metrics::registry("webhook");
    let metrics = Metrics::register(&mut registry);
    let cluster = SharedCluster::new(config.placement.rule());
    let gpu_nodes = SharedGpuNodes::default();
    let certificate = Certificate::empty();
    let settings = certs::settings::Settings {
        namespace,
        secret,
        service,
        extra_names: extra_name,
        webhook_configuration: Some(webhook_configuration).filter(|name| !name.is_empty()),
    };

    let mut tasks = Tasks::new(token.clone());
    let view = (&cluster, &gpu_nodes);
    spawn_watches(&mut tasks, &client, view, &config, &readiness);
    tasks.spawn_loop("certificate", {
        let install = installer(certificate.clone(), readiness.latch("certificate"));
        certs::rotate::run(client, settings, install)
    });
    tasks.spawn(
        "admin",
        admin::serve(admin_listener, registry.into(), readiness, token.clone()),
    );
    let server = Arc::new(Server {
        cluster,
        gpu_nodes,
        config,
        metrics,
    });
    let tls = certificate.server_config()?;
    tasks.spawn(
        "webhook",
        serve::tls(listener, tls, token, move |request| {
            let server = server.clone();
            async move { server.answer(request).await }
        }),
    );
    tasks.run().await
}

/// Spawns the tasks that keep the view up to date.
fn spawn_watches(
    tasks: &mut Tasks,
    client: &Client,
    (cluster, gpu_nodes): (&SharedCluster, &SharedGpuNodes),
    config: &Config,
    readiness: &Readiness,
) {
    tasks.spawn_loop("nodes", {
        let (client, resource) = (client.clone(), config.resource_count_name.clone());
        gpu_nodes::watch(
            client,
            gpu_nodes.clone(),
            resource,
            readiness.latch("nodes"),
        )
    });
    let latch = readiness.latch("pods");
    let pods = watches::pods(client.clone(), cluster.clone(), latch, |_| {});
    tasks.spawn_loop("pods", pods);
    let latch = readiness.latch("gpunodes");
    let nodes = watches::gpu_nodes(client.clone(), cluster.clone(), latch, |_| {});
    tasks.spawn_loop("gpunodes", nodes);
}

/// What serves each new certificate; the first releases the latch.
fn installer(
    certificate: Arc<Certificate>,
    latch: Latch,
) -> impl Fn(&str, &str) -> anyhow::Result<()> {
    let latch = Mutex::new(Some(latch));
    move |chain, key| {
        if certificate.set_pem(chain.as_bytes(), key.as_bytes())? {
            tracing::info!("Serving a new certificate");
        }
        let first = latch.lock().map(|mut latch| latch.take());
        if let Ok(Some(latch)) = first {
            latch.release();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    /// Issue 12, A12: what the webhook leaves alone, the policy of devices does not refuse.
    #[test]
    fn the_same_namespaces_are_exempt_from_webhook_and_policy() {
        let text = include_str!("../../manifests/admission/webhook-configuration.yaml");
        let webhooks: Value = serde_saphyr::from_str(text).unwrap();
        let exempt = &webhooks["webhooks"][0]["namespaceSelector"];
        let text = include_str!("../../manifests/admission/policies.yaml");
        let policies: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        let mut policies = policies.iter();
        let devices = policies.find(|policy| policy["metadata"]["name"] == "tessera-devices");
        let constraints = &devices.unwrap()["spec"]["matchConstraints"];
        assert_eq!(&constraints["namespaceSelector"], exempt);
        let names = &exempt["matchExpressions"][0]["values"];
        let names: Vec<_> = names.as_array().unwrap().iter().collect();
        assert!(
            !names.iter().any(|name| *name == "kube-system"),
            "{names:?}"
        );
    }
}
