//! Tessera on the test cluster: its manifests, its daemons as processes, simulated GPUs.
//!
//! The daemons run with tokens of the service accounts that are shipped, so with exactly their rights.

mod daemons;
mod install;
pub mod nodes;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use daemon::gpu_node::GpuNode;
use domain::status::GpuNodeStatus;
use kube::{Api, ResourceExt, api::ListParams};
use nvml_sim::store::Store;

use crate::{
    cluster::{Cluster, component::Component},
    error::{AtPath, Error},
    http::get,
    processes::Spec,
    programs::binaries_dir,
    wait::until,
};

/// Namespace of Tessera.
const NAMESPACE: &str = "tessera-system";

/// The library of Debian's libfaketime that moves a process's clock; the loader replaces `$LIB`.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// How long a daemon may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How Tessera is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long idle instances are kept, seconds; `None`: as shipped.
    pub idle_ttl: Option<u32>,
    /// Whether [`Tessera::set_clock`] moves the wall clock of webhook, plugin and agents.
    pub movable_clock: bool,
}

/// Tessera on a cluster.
#[derive(Clone)]
pub struct Tessera {
    /// The cluster.
    pub cluster: Cluster,
    /// How it is started.
    pub options: Options,
}

impl Tessera {
    /// Tessera on a cluster where it was installed before.
    pub fn attach(cluster: Cluster) -> Self {
        let options = Options::default();
        Self { cluster, options }
    }

    /// Name of the process that is a node's kubelet.
    pub fn kubelet(&self, node: &str) -> String {
        let real = Component::Kubelet.name();
        if node == self.cluster.node {
            real.to_owned()
        } else {
            format!("{real}-{node}")
        }
    }

    /// Moves the wall clock of webhook, plugin and agents against the machine's: `+2h`, `-90m`, `+0`. It runs on from
    /// there; what they measure by the monotonic clock is as it was.
    pub fn set_clock(&self, offset: &str) -> Result<(), Error> {
        let file = self.cluster.state_dir.clock();
        // In one step: a daemon reads it whenever it asks for the time.
        let fresh = file.with_extension("new");
        fs::write(&fresh, format!("{offset}\n")).at(&fresh)?;
        fs::rename(&fresh, &file).at(&file)
    }

    /// The simulated GPUs of a node, as they are behind NVML.
    pub fn gpus(&self, node: &str) -> Store {
        Store::new(&self.cluster.state_dir.gpus(node))
    }

    /// All nodes as their agents publish them.
    pub async fn gpu_nodes(&self) -> Result<Vec<(String, GpuNodeStatus)>, Error> {
        let nodes: Api<GpuNode> = Api::all(self.cluster.client());
        let nodes = nodes.list(&ListParams::default()).await?;
        Ok(nodes
            .into_iter()
            .map(|node| (node.name_any(), node.status.unwrap_or_default()))
            .collect())
    }

    /// The node as its agent publishes it.
    pub async fn gpu_node(&self, name: &str) -> Result<GpuNodeStatus, Error> {
        let nodes: Api<GpuNode> = Api::all(self.cluster.client());
        Ok(nodes.get(name).await?.status.unwrap_or_default())
    }

    pub(super) async fn account(&self, name: &str, node: Option<&str>) -> Result<PathBuf, Error> {
        self.cluster.service_account(NAMESPACE, name, node).await
    }

    pub(super) fn daemon(&self, name: &str, program: &str, kubeconfig: &Path) -> Spec {
        let spec = Spec::new(name, binaries_dir().join(program))
            .env("KUBECONFIG", kubeconfig.to_string_lossy());
        if !self.options.movable_clock {
            return spec;
        }
        let clock = self.cluster.state_dir.clock();
        spec.env("LD_PRELOAD", FAKETIME)
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_string_lossy())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    pub(super) fn start(&self, spec: &Spec) -> Result<(), Error> {
        self.cluster.processes.start(spec).map(drop)
    }

    pub(super) async fn is_ready(&self, name: &str, port: u16) -> Result<(), Error> {
        let what = format!("{name} to be ready");
        let ready = until(&what, READY_TIMEOUT, async || {
            get(port, "/ready").await.filter(|answer| answer.0 == 200)
        });
        match ready.await {
            Err(Error::Timeout { .. }) if self.cluster.processes.running(name).is_none() => {
                Err(self.cluster.processes.died(name))
            }
            result => result.map(drop),
        }
    }
}

/// Name of the process of a node's agent.
pub fn agent(node: &str) -> String {
    format!("agent-{node}")
}
