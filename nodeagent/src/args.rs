//! Flags of the node agent.

use std::{
    num::ParseIntError,
    path::{Path, PathBuf},
    time::Duration,
};

use daemon::args::{AdminArgs, ConfigArgs, LogArgs};
use domain::config::FilterDevices;

use crate::{
    gpus::health::IgnoredFaults,
    kubelet::{
        cdi::{driver::DriverProc, specs::CdiSpecs},
        client::Kubelet,
    },
    materialise::settings::Settings,
};

/// Creates MIG instances for the pods of one node and hands them to their containers.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Name of the node that the agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// kubelet of the node.
    #[command(flatten)]
    pub kubelet: KubeletArgs,
    /// NVML and the GPUs.
    #[command(flatten)]
    pub nvml: NvmlArgs,
    /// CDI specs.
    #[command(flatten)]
    pub cdi: CdiArgs,
    /// Directory where `/proc` of the host is mounted.
    #[arg(long, env, default_value = "/proc")]
    pub proc_dir: PathBuf,
    /// The settings that all daemons share.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Probes and metrics.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where kubelet is.
#[derive(Clone, Debug, clap::Args)]
pub struct KubeletArgs {
    /// Directory of kubelet's device plugin sockets.
    #[arg(long, env, default_value = "/var/lib/kubelet/device-plugins")]
    pub device_plugin_dir: PathBuf,
    /// Socket of kubelet's `PodResources` service.
    #[arg(
        long,
        env,
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub pod_resources_socket: PathBuf,
}

/// How the GPUs are managed.
#[derive(Clone, Debug, clap::Args)]
pub struct NvmlArgs {
    /// Path of `libnvidia-ml.so.1`. Default: where the dynamic loader finds it.
    #[arg(long, env)]
    pub nvml_library: Option<PathBuf>,
    /// Directory where `/sys` of the host is mounted: NUMA nodes of the GPUs.
    #[arg(long, env, default_value = "/sys")]
    pub sysfs_dir: PathBuf,
    /// Directory of the agent's journal.
    #[arg(long, env, default_value = "/var/lib/tessera")]
    pub state_dir: PathBuf,
    /// How long an idle instance is kept for the next pod that fits it, in seconds.
    #[arg(long, env, default_value = "30")]
    pub idle_ttl: Seconds,
    /// How many idle instances are kept on the node. The oldest is destroyed first.
    #[arg(long, env, default_value = "8")]
    pub idle_limit: usize,
    /// Faults that do not make a GPU unhealthy: `all`, or XIDs separated by commas, as for NVIDIA's device plugin.
    #[arg(long, env = "DP_DISABLE_HEALTHCHECKS", default_value = "")]
    pub disable_healthchecks: IgnoredFaults,
    /// Command that resets an idle GPU, with `{uuid}` for its UUID. It runs when a change of MIG mode needs a reset, and
    /// when an unhealthy GPU does. Empty: GPUs are never reset.
    #[arg(
        long,
        env,
        value_delimiter = ' ',
        default_value = "nvidia-smi --gpu-reset -i {uuid}"
    )]
    pub gpu_reset_command: Vec<String>,
}

/// Where CDI specs are written, and where their contents come from.
#[derive(Clone, Debug, clap::Args)]
pub struct CdiArgs {
    /// Directory that the container runtime reads CDI specs from.
    #[arg(long, env, default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,
    /// CDI specs of NVIDIA's container toolkit. The common edits (libraries, hooks) of the first that exists are added to
    /// every container.
    #[arg(
        long,
        env,
        value_delimiter = ',',
        default_value = "/etc/cdi/nvidia.yaml,/var/run/cdi/nvidia.yaml"
    )]
    pub cdi_base_spec: Vec<PathBuf>,
    /// Directory with the driver's part of `/proc`: `devices` and `driver/nvidia`. Default: `--proc-dir`.
    #[arg(long, env)]
    pub driver_proc_dir: Option<PathBuf>,
    /// Directory where `/dev` of the host is mounted. Missing device nodes are created there.
    #[arg(long, env, default_value = "/dev")]
    pub dev_dir: PathBuf,
    /// Directory of HAMi-core on the host.
    #[arg(long, env, default_value = "/usr/local")]
    pub hook_path: PathBuf,
}

impl KubeletArgs {
    pub(crate) fn kubelet(self, resource: &str) -> Kubelet {
        Kubelet {
            directory: self.device_plugin_dir,
            pod_resources_socket: self.pod_resources_socket,
            resource: resource.to_owned(),
        }
    }
}

impl NvmlArgs {
    pub(crate) fn settings(
        self,
        proc: &Path,
        filter: FilterDevices,
        memory_mib: Option<u64>,
    ) -> Settings {
        // clap splits an empty flag into one empty word.
        let reset_command = self.gpu_reset_command.into_iter();
        let reset_command = reset_command.filter(|word| !word.is_empty());
        Settings {
            library: self.nvml_library.map(Into::into),
            journal: self.state_dir.join("journal"),
            idle_ttl: self.idle_ttl.into(),
            idle_limit: self.idle_limit,
            filter,
            memory_mib,
            sysfs: self.sysfs_dir,
            ignored_faults: self.disable_healthchecks,
            reset_command: reset_command.collect(),
            proc: proc.to_owned(),
        }
    }
}

impl CdiArgs {
    pub(crate) fn specs(self, proc: PathBuf) -> CdiSpecs {
        CdiSpecs {
            directory: self.cdi_dir,
            driver: DriverProc(self.driver_proc_dir.unwrap_or(proc)),
            dev: self.dev_dir,
            base_specs: self.cdi_base_spec,
            hook: self.hook_path,
        }
    }
}

/// A number of seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(u64);

/// A text that is not a number of seconds.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a number of seconds; write a whole number, such as 30")]
pub struct InvalidSeconds {
    text: String,
    source: ParseIntError,
}

impl std::str::FromStr for Seconds {
    type Err = InvalidSeconds;

    fn from_str(text: &str) -> Result<Self, InvalidSeconds> {
        match text.parse() {
            Ok(seconds) => Ok(Self(seconds)),
            Err(source) => Err(InvalidSeconds {
                text: text.to_owned(),
                source,
            }),
        }
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

    use super::*;

    fn parse<'a>(flags: impl IntoIterator<Item = &'a str>) -> Args {
        let own = ["tessera-nodeagent", "--node-name=n"];
        Args::try_parse_from(own.into_iter().chain(flags)).unwrap()
    }

    #[test]
    fn flags_are_consistent() {
        let command = Args::command();
        command.clone().debug_assert();
        // Not that of a group of flags.
        let about = command.get_about().unwrap().to_string();
        assert!(about.starts_with("Creates MIG instances"), "{about}");
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
        let args = parse(flags.filter_map(serde_json::Value::as_str));
        assert_eq!(args.cdi.dev_dir.to_str(), Some("/host/dev"));
    }

    #[test]
    fn an_empty_reset_command_is_none() {
        let words = |flags: &[&str]| {
            let nvml = parse(flags.iter().copied()).nvml;
            let settings = nvml.settings(Path::new("/proc"), FilterDevices::default(), None);
            settings.reset_command.len()
        };
        assert_eq!(words(&[]), 4);
        assert_eq!(words(&["--gpu-reset-command="]), 0);
    }

    #[test]
    fn a_bad_number_of_seconds_is_refused_with_the_right_way_to_write_it() {
        let error = "1m".parse::<Seconds>().unwrap_err().to_string();
        assert!(error.contains("write a whole number"), "{error}");
    }
}
