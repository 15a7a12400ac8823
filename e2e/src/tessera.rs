//! Tessera on the test cluster: its manifests, its daemons as processes, simulated GPUs.
//!
//! The daemons run with tokens of the service accounts that are shipped, so with exactly their rights.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use daemon::gpu_node::GpuNode;
use domain::mode::VgpuMode;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Node};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use nvml_sim::{GpuSpec, store::Store};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    cluster::{Cluster, Component},
    error::{AtPath, Error},
    layout::{ADMIN_PORT, DEVICE_PLUGIN_DIR, PLUGIN_PORT, WEBHOOK_PORT, binaries_dir, tools_dir},
    process::Spec,
    wait::until,
};

/// Namespace of Tessera.
const NAMESPACE: &str = "tessera-system";
/// The library that moves a process's clock, of Debian's package; the loader knows what `$LIB` is.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";
/// How long a daemon may take to become ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node with simulated GPUs.
#[derive(Clone, Debug)]
pub struct GpuNodeSpec {
    /// Its name.
    pub name: String,
    /// Model of its GPUs, as in `domain/models.json`.
    pub model: &'static str,
    /// How many.
    pub count: usize,
    /// How they work at first, also the value of the node's label.
    pub mode: VgpuMode,
}

/// How Tessera is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Seconds that idle instances are kept; `None`: as shipped.
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

impl GpuNodeSpec {
    /// A node.
    pub fn new(name: &str, model: &'static str, count: usize, mode: VgpuMode) -> Self {
        Self {
            name: name.to_owned(),
            model,
            count,
            mode,
        }
    }

    /// Its label, `key=value`.
    pub fn label(&self) -> String {
        format!("{}={}", domain::keys::VGPU_MODE, self.mode)
    }
}

impl Tessera {
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
        until("the webhook's caBundle", PATIENCE, async || {
            let configuration = configurations.get("tessera").await.ok()?;
            let webhooks = configuration.webhooks?;
            webhooks.first()?.client_config.ca_bundle.clone()
        })
        .await?;
        Ok(tessera)
    }

    /// Waits until the webhook answers.
    pub async fn webhook_is_ready(&self) -> Result<(), Error> {
        self.is_ready("webhook", ADMIN_PORT).await
    }

    /// Tessera on a cluster where it was installed before.
    pub fn attach(cluster: Cluster) -> Self {
        let options = Options::default();
        Self { cluster, options }
    }

    /// A cluster with Tessera and three nodes: one real, two hollow; `step` is told of every one that is done.
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

    async fn start_webhook(&self) -> Result<(), Error> {
        let kubeconfig = self.account("tessera-webhook", None).await?;
        self.start(
            &self
                .daemon("webhook", "tessera-webhook", &kubeconfig)
                .arg(format!("--listen=127.0.0.1:{WEBHOOK_PORT}"))
                .arg("--extra-name=127.0.0.1")
                .arg(format!("--admin-address=127.0.0.1:{ADMIN_PORT}")),
        )
    }

    async fn start_plugin(&self) -> Result<(), Error> {
        let kubeconfig = self.account("tessera-scheduler", None).await?;
        self.start(
            &self
                .daemon("plugin", "tessera-plugin", &kubeconfig)
                .arg(format!("--listen=127.0.0.1:{PLUGIN_PORT}"))
                .arg(format!("--admin-address=127.0.0.1:{}", ADMIN_PORT + 1)),
        )
    }

    /// kube-scheduler by the shipped configuration, but for what a process has in another place than a pod.
    async fn start_scheduler(&self) -> Result<(), Error> {
        let shipped = source("manifests/scheduler-config.yaml");
        let text = fs::read_to_string(&shipped).at(&shipped)?;
        let mut config: Value = serde_saphyr::from_str(&text).map_err(|error| Error::File {
            path: shipped,
            source: std::io::Error::other(error.to_string()),
        })?;
        let kubeconfig = self.account("tessera-scheduler", None).await?;
        config["clientConnection"] = json!({ "kubeconfig": kubeconfig });
        config["leaderElection"]["leaderElect"] = json!(false);
        config["extenders"][0]["urlPrefix"] = json!(format!("http://127.0.0.1:{PLUGIN_PORT}"));
        let file = self.cluster.layout.config().join("tessera-scheduler.json");
        fs::write(&file, serde_json::to_vec_pretty(&config)?).at(&file)?;
        self.start(
            &Spec::new("tessera-scheduler", tools_dir().join("controlplane"))
                .arg("kube-scheduler")
                .arg(format!("--config={}", file.display()))
                .arg("--secure-port=0"),
        )
    }

    /// Puts simulated GPUs into the real node and starts its agent.
    pub async fn equip_real_node(&self, spec: &GpuNodeSpec) -> Result<(), Error> {
        let layout = &self.cluster.layout;
        let places = Places {
            device_plugins: DEVICE_PLUGIN_DIR.into(),
            pod_resources: layout.kubelet().join("pod-resources/kubelet.sock"),
            cdi: layout.cdi(),
        };
        self.provision(spec)?;
        self.start_agent(spec, &places).await
    }

    /// Adds hollow nodes: for each a process that is its kubelet, and an agent.
    pub async fn add_hollow_nodes(&self, specs: &[GpuNodeSpec]) -> Result<(), Error> {
        let layout = &self.cluster.layout;
        let admin = layout.kubeconfig("admin");
        for spec in specs {
            self.provision(spec)?;
            let dir = layout.hollow().join(&spec.name);
            let program = binaries_dir().join("tessera-hollow");
            self.start(
                &Spec::new(self.kubelet(&spec.name), program)
                    .arg(format!("--dir={}", dir.display()))
                    .arg(format!("--kubeconfig={}", admin.display()))
                    .arg(format!("--node={}={}", spec.name, spec.label())),
            )?;
        }
        for spec in specs {
            self.cluster.node_is_ready(&spec.name).await?;
            let node = layout.hollow().join(&spec.name);
            let places = Places {
                device_plugins: node.join("device-plugins"),
                pod_resources: node.join("pod-resources/kubelet.sock"),
                cdi: node.join("cdi"),
            };
            self.start_agent(spec, &places).await?;
        }
        Ok(())
    }

    /// Takes a hollow node out of the cluster, with all that it published.
    pub async fn remove_hollow_node(&self, name: &str) -> Result<(), Error> {
        let processes = &self.cluster.processes;
        processes.remove(&agent(name)).await?;
        processes.remove(&self.kubelet(name)).await?;
        let nodes: Api<Node> = Api::all(self.cluster.client());
        nodes.delete(name, &DeleteParams::default()).await?;
        // Its GpuNode goes with it.
        until(&format!("{name} to be forgotten"), PATIENCE, async || {
            let left = self.gpu_nodes().await.ok()?;
            left.iter().all(|(known, _)| known != name).then_some(())
        })
        .await
    }

    /// Starts a node's agent as it was started before, and waits until kubelet knows its devices.
    pub async fn start_agent_again(&self, node: &str) -> Result<(), Error> {
        let name = agent(node);
        self.cluster.processes.start_again(&name)?;
        let spec = self.cluster.processes.spec(&name)?;
        let flag = spec
            .args
            .iter()
            .find_map(|arg| arg.strip_prefix("--admin-address=127.0.0.1:"));
        let port = flag.and_then(|port| port.parse().ok());
        self.is_ready(&name, port.ok_or(Error::Unknown(name.clone()))?)
            .await
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
        let file = self.cluster.layout.clock();
        // In one step: a daemon reads it whenever it asks for the time.
        let fresh = file.with_extension("new");
        fs::write(&fresh, format!("{offset}\n")).at(&fresh)?;
        fs::rename(&fresh, &file).at(&file)
    }

    /// The simulated GPUs of a node, as they are behind NVML.
    pub fn gpus(&self, node: &str) -> Store {
        Store::new(&self.cluster.layout.gpus(node))
    }

    /// All nodes as their agents publish them.
    pub async fn gpu_nodes(&self) -> Result<Vec<(String, domain::status::GpuNodeStatus)>, Error> {
        let nodes: Api<GpuNode> = Api::all(self.cluster.client());
        let nodes = nodes.list(&ListParams::default()).await?;
        Ok(nodes
            .into_iter()
            .map(|node| (node.name_any(), node.status.unwrap_or_default()))
            .collect())
    }

    /// The node as its agent publishes it.
    pub async fn gpu_node(&self, name: &str) -> Result<domain::status::GpuNodeStatus, Error> {
        let nodes: Api<GpuNode> = Api::all(self.cluster.client());
        Ok(nodes.get(name).await?.status.unwrap_or_default())
    }

    fn provision(&self, spec: &GpuNodeSpec) -> Result<(), Error> {
        let gpus = vec![
            GpuSpec {
                model: spec.model.to_owned(),
                mig: spec.mode == VgpuMode::Mig,
                mirrored: false,
            };
            spec.count
        ];
        let dir = self.cluster.layout.gpus(&spec.name);
        nvml_sim::provision(&dir, &spec.name, &gpus).at(&dir)?;
        // In the place of what NVIDIA's toolkit generates: how a container gets the driver's library.
        let library = binaries_dir().join("libnvml_sim.so");
        let options = |mode| [mode, "nosuid", "nodev", "bind"];
        let base = json!({
            "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [],
            "containerEdits": {
                "env": ["NVML_SIM_DEV=/dev", "NVML_SIM_DIR=/var/lib/nvml-sim"],
                "mounts": [
                    { "hostPath": dir, "containerPath": "/var/lib/nvml-sim", "options": options("rw") },
                    { "hostPath": library, "containerPath": "/usr/lib/libnvidia-ml.so.1", "options": options("ro") }],
            },
        });
        let file = dir.join("nvidia.json");
        fs::write(&file, base.to_string()).at(&file)
    }

    async fn start_agent(&self, spec: &GpuNodeSpec, places: &Places) -> Result<(), Error> {
        let node = &spec.name;
        let kubeconfig = self.account("tessera-nodeagent", Some(node)).await?;
        let layout = &self.cluster.layout;
        let (gpus, own) = (layout.gpus(node), layout.agent(node));
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let port = self.agent_port()?;
        let ttl = self.options.idle_ttl;
        let ttl = ttl.map(|seconds| format!("--idle-ttl={seconds}"));
        self.start(
            &self
                .daemon(&agent(node), "tessera-nodeagent", &kubeconfig)
                .args(ttl)
                .arg(format!("--node-name={node}"))
                .arg(flag("device-plugin-dir", &places.device_plugins))
                .arg(flag("pod-resources-socket", &places.pod_resources))
                .arg(flag("cdi-dir", &places.cdi))
                .arg(flag("nvml-library", &binaries_dir().join("libnvml_sim.so")))
                .arg(flag("state-dir", &own))
                .arg(flag("hook-path", &own.join("hook")))
                .arg(flag("cdi-base-spec", &gpus.join("nvidia.json")))
                .arg(flag("driver-proc-dir", &gpus.join("proc")))
                .arg(flag("dev-dir", &gpus.join("dev")))
                .arg(format!(
                    "--gpu-reset-command={} nvidia-smi --gpu-reset -i {{uuid}}",
                    binaries_dir().join("nvml-sim").display()
                ))
                .arg(format!("--admin-address=127.0.0.1:{port}"))
                .env("NVML_SIM_DIR", gpus.to_string_lossy()),
        )?;
        self.is_ready(&agent(node), port).await?;
        let name = agent(node);
        until(
            &format!("{name} to publish its GPUs"),
            PATIENCE,
            async || {
                let status = self.gpu_node(node).await.ok()?;
                (status.gpus.len() == spec.count).then_some(())
            },
        )
        .await
    }

    /// A port for the metrics of one more agent.
    fn agent_port(&self) -> Result<u16, Error> {
        let names = self.cluster.processes.names();
        let agents = names
            .iter()
            .filter(|name| name.starts_with("agent-"))
            .count();
        u16::try_from(agents)
            .map(|number| ADMIN_PORT + 10 + number)
            .map_err(|_| Error::Unknown("a free port".to_owned()))
    }

    async fn account(&self, name: &str, node: Option<&str>) -> Result<PathBuf, Error> {
        self.cluster.service_account(NAMESPACE, name, node).await
    }

    fn daemon(&self, name: &str, program: &str, kubeconfig: &Path) -> Spec {
        let spec = Spec::new(name, binaries_dir().join(program))
            .env("KUBECONFIG", kubeconfig.to_string_lossy());
        if !self.options.movable_clock {
            return spec;
        }
        let clock = self.cluster.layout.clock();
        spec.env("LD_PRELOAD", FAKETIME)
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_string_lossy())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    fn start(&self, spec: &Spec) -> Result<(), Error> {
        self.cluster.processes.start(spec).map(drop)
    }

    async fn is_ready(&self, name: &str, port: u16) -> Result<(), Error> {
        let what = format!("{name} to be ready");
        let ready = until(&what, PATIENCE, async || {
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

/// Where an agent meets its kubelet and container runtime.
struct Places {
    device_plugins: PathBuf,
    pod_resources: PathBuf,
    cdi: PathBuf,
}

/// Name of the process of a node's agent.
pub fn agent(node: &str) -> String {
    format!("agent-{node}")
}

/// A file of the repository.
pub fn source(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap_or(root).join(path)
}

/// Status and body of a GET on loopback.
pub async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}
