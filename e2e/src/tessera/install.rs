//! Bringing up a cluster with Tessera.

use std::path::Path;

use domain::mode::VgpuMode;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;

use super::{Options, READY_TIMEOUT, Tessera, nodes::GpuNodeSpec};
use crate::{cluster::Cluster, error::Error, machine::ADMIN_PORT, programs::source, wait::until};

impl Tessera {
    /// A cluster with Tessera and three nodes: one real, two hollow; `step` is called after each step, with what has been done.
    pub async fn up(
        dir: &Path,
        options: Options,
        mut step: impl FnMut(&str),
    ) -> Result<Self, Error> {
        let real = GpuNodeSpec::new("real", "a100-80gb", 2, VgpuMode::Mig);
        let hollow = [
            GpuNodeSpec::new("hollow-h100", "h100-80gb", 8, VgpuMode::Mig),
            GpuNodeSpec::new("hollow-a100", "a100-80gb", 2, VgpuMode::HamiCore),
        ];
        let cluster = Cluster::up(dir, &real.name, &real.label()).await?;
        step("control plane and real node are ready");
        let tessera = Self::install(cluster, options).await?;
        step("Tessera is installed: webhook, plugin, scheduler");
        tessera.equip_real_node(&real).await?;
        step("the agent of the real node has published its GPUs");
        tessera.add_hollow_nodes(&hollow).await?;
        step("the hollow nodes and their agents are ready");
        Ok(tessera)
    }

    /// Installs the manifests and starts webhook, plugin and the scheduler beside it.
    async fn install(cluster: Cluster, options: Options) -> Result<Self, Error> {
        let manifests = source("e2e/manifests");
        cluster
            .kubectl(&["apply", "--server-side", "-k", &manifests.to_string_lossy()])
            .await?;
        let tessera = Self { cluster, options };
        if options.movable_clock {
            tessera.set_clock("+0")?;
        }
        tessera.start_webhook().await?;
        tessera.start_plugin().await?;
        tessera.start_scheduler().await?;
        tessera.webhook_is_ready().await?;
        tessera.is_ready("plugin", ADMIN_PORT + 1).await?;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(tessera.cluster.client());
        until("the webhook's caBundle", READY_TIMEOUT, async || {
            let configuration = configurations.get("tessera").await.ok()?;
            let webhooks = configuration.webhooks?;
            webhooks.first()?.client_config.ca_bundle.clone()
        })
        .await?;
        Ok(tessera)
    }
}
