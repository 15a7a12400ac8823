//! Flags of the node agent.

use std::{path::PathBuf, time::Duration};

use daemon::args::{AdminArgs, ConfigArgs, LogArgs};

use crate::gpus::health::IgnoredFaults;

/// Carves MIG instances for the pods of one node and hands them to their containers.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Name of the node that the agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// kubelet's directory of device plugin sockets.
    #[arg(long, env, default_value = "/var/lib/kubelet/device-plugins")]
    pub device_plugin_dir: PathBuf,
    /// kubelet's `PodResources` socket.
    #[arg(
        long,
        env,
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub pod_resources_socket: PathBuf,
    /// Path of `libnvidia-ml.so.1`; without it the system's loader finds it.
    #[arg(long, env)]
    pub nvml_library: Option<PathBuf>,
    /// Directory of the agent's journal.
    #[arg(long, env, default_value = "/var/lib/tessera")]
    pub state_dir: PathBuf,
    /// Directory that the container runtime reads CDI specs from.
    #[arg(long, env, default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,
    /// CDI specs of NVIDIA's container toolkit; the common edits (libraries, hooks) of the first that exists
    /// go into every container.
    #[arg(
        long,
        env,
        value_delimiter = ',',
        default_value = "/etc/cdi/nvidia.yaml,/var/run/cdi/nvidia.yaml"
    )]
    pub cdi_base_spec: Vec<PathBuf>,
    /// Where `/proc` of the host is.
    #[arg(long, env, default_value = "/proc")]
    pub proc_dir: PathBuf,
    /// Where the driver's part of `/proc` is: `devices` and `driver/nvidia`; without it in `--proc-dir`.
    #[arg(long, env)]
    pub driver_proc_dir: Option<PathBuf>,
    /// Where `/dev` of the host is: device nodes that are missing are made there.
    #[arg(long, env, default_value = "/dev")]
    pub dev_dir: PathBuf,
    /// Directory of HAMi-core on the host.
    #[arg(long, env, default_value = "/usr/local")]
    pub hook_path: PathBuf,
    /// How long an idle instance is kept for the next pod of its shape, in seconds.
    #[arg(long, env, default_value = "30")]
    pub idle_ttl: Seconds,
    /// How many idle instances are kept on the node; the oldest goes first.
    #[arg(long, env, default_value = "8")]
    pub idle_limit: usize,
    /// Faults that do not make a GPU unhealthy: `all`, or a comma list of XIDs, as for NVIDIA's device plugin.
    #[arg(long, env = "DP_DISABLE_HEALTHCHECKS", default_value = "")]
    pub disable_healthchecks: IgnoredFaults,
    /// Command that resets an idle GPU, `{uuid}` stands for it: where a change of MIG mode or the GPU's health asks
    /// for it. Empty: never.
    #[arg(
        long,
        env,
        value_delimiter = ' ',
        default_value = "nvidia-smi --gpu-reset -i {uuid}"
    )]
    pub gpu_reset_command: Vec<String>,
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

/// A number of seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(u64);

impl std::str::FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!("{text:?} is no number of seconds; write a whole number, such as 30")
        })
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs(seconds.0)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn flags_are_consistent() {
        super::Args::command().debug_assert();
    }

    /// Peer lesson: without these two variables a container sees only its own MIG devices.
    #[test]
    fn the_manifest_starts_the_agent_with_the_right_to_change_mig_devices() {
        let text = include_str!("../../manifests/nodeagent.yaml");
        let manifest: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        let container = &manifest["spec"]["template"]["spec"]["containers"][0];
        for name in ["NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"] {
            let mut env = container["env"].as_array().unwrap().iter();
            let variable = env.find(|variable| variable["name"] == name);
            assert_eq!(variable.unwrap()["value"], "all", "{name}");
        }
        let flags = container["args"].as_array().unwrap().iter();
        let flags = flags.filter_map(serde_json::Value::as_str);
        let args = super::Args::try_parse_from(
            ["tessera-nodeagent", "--node-name=n"]
                .into_iter()
                .chain(flags),
        );
        assert_eq!(args.unwrap().dev_dir.to_str(), Some("/host/dev"));
    }
}
