//! Nodes with simulated GPUs: the real one, hollow ones, and their agents.

use std::{
    fs,
    path::{Path, PathBuf},
};

use domain::mode::VgpuMode;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};
use nvml_sim::GpuSpec;
use serde_json::json;

use super::{READY_TIMEOUT, Tessera, agent};
use crate::{
    error::{AtPath, Error},
    machine::{ADMIN_PORT, DEVICE_PLUGIN_DIR},
    processes::Spec,
    programs::binaries_dir,
    wait::until,
};

/// A node with simulated GPUs.
#[derive(Clone, Debug)]
pub struct GpuNodeSpec {
    /// Its name.
    pub name: String,
    /// Model of its GPUs, as in `domain/models.json`.
    pub model: &'static str,
    /// How many.
    pub count: usize,
    /// The mode in which they start, also the value of the node's label.
    pub mode: VgpuMode,
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
    /// Puts simulated GPUs into the real node and starts its agent.
    pub async fn equip_real_node(&self, spec: &GpuNodeSpec) -> Result<(), Error> {
        let state_dir = &self.cluster.state_dir;
        let places = Places {
            device_plugins: DEVICE_PLUGIN_DIR.into(),
            pod_resources: state_dir.kubelet().join("pod-resources/kubelet.sock"),
            cdi: state_dir.cdi(),
        };
        self.provision(spec)?;
        self.start_agent(spec, &places).await
    }

    /// Adds hollow nodes: for each a process that is its kubelet, and an agent.
    pub async fn add_hollow_nodes(&self, specs: &[GpuNodeSpec]) -> Result<(), Error> {
        let state_dir = &self.cluster.state_dir;
        let admin = state_dir.kubeconfig("admin");
        for spec in specs {
            self.provision(spec)?;
            let dir = state_dir.hollow().join(&spec.name);
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
            let node = state_dir.hollow().join(&spec.name);
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
        until(
            &format!("{name} to be forgotten"),
            READY_TIMEOUT,
            async || {
                let left = self.gpu_nodes().await.ok()?;
                left.iter().all(|(known, _)| known != name).then_some(())
            },
        )
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

    async fn start_agent(&self, spec: &GpuNodeSpec, places: &Places) -> Result<(), Error> {
        let node = &spec.name;
        let kubeconfig = self.account("tessera-nodeagent", Some(node)).await?;
        let state_dir = &self.cluster.state_dir;
        let (gpus, own) = (state_dir.gpus(node), state_dir.agent(node));
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
            READY_TIMEOUT,
            async || {
                let status = self.gpu_node(node).await.ok()?;
                (status.gpus.len() == spec.count).then_some(())
            },
        )
        .await
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
        let dir = self.cluster.state_dir.gpus(&spec.name);
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
}

/// Where an agent meets its kubelet and container runtime.
struct Places {
    device_plugins: PathBuf,
    pod_resources: PathBuf,
    cdi: PathBuf,
}
