//! The agent that is killed: the real NVML thread and the real journal, without kubelet and API server.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use domain::{claim::Claim, config::FilterDevices, mode::VgpuMode};
use nodeagent::{
    gpus::{instance::Ownership, inventory::Inventory, modes::WantedModes, state::GpuState},
    materialise::{settings::Settings, thread::NvmlThread},
    metrics::Metrics,
};
use nvml_sim::built_library;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::support::pods;

/// How long an agent may take to reach its goal.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What an agent has to bring about before it ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// Claims by UID of the pod; all of them have the container `main`.
    pub(crate) pods: BTreeMap<String, Claim>,
    /// The pod whose container starts.
    pub(crate) ensure: Option<String>,
    /// `mig` or `hami-core`.
    pub(crate) mode: String,
}

impl Goal {
    /// A goal in mode `mig`.
    pub(crate) fn new(pods: &[(&str, &Claim)], ensure: Option<&str>) -> Self {
        let pods = pods.iter();
        Self {
            pods: pods
                .map(|(uid, claim)| ((*uid).to_owned(), (*claim).clone()))
                .collect(),
            ensure: ensure.map(str::to_owned),
            mode: "mig".to_owned(),
        }
    }

    fn mode(&self) -> VgpuMode {
        self.mode.parse().unwrap()
    }

    fn is_reached(&self, inventory: &Inventory) -> bool {
        let is_settled = |gpu: &GpuState| {
            let mut ours = gpu.instances.iter().filter(|i| i.generation.is_some());
            let all_claimed = ours.all(|i| matches!(i.ownership, Ownership::Claimed(_)));
            all_claimed && gpu.mode() == self.mode()
        };
        let gpus = &inventory.state.gpus;
        inventory.nvml_failure.is_none()
            && !gpus.is_empty()
            && gpus.values().all(|gpu| is_settled(gpu))
    }
}

/// Runs an agent in a directory until it has reached its goal, or was killed.
pub(crate) fn run_agent(dir: &Path, goal: &Goal) -> Output {
    fs::write(dir.join("goal.json"), serde_json::to_vec(goal).unwrap()).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent::child_process", "--nocapture"])
        .env("NVML_SIM_DIR", dir)
        .env("CRASH_CHILD", dir)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

/// What an agent printed.
pub(crate) fn output_text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(&[&out[..], &err[..]].concat()).into_owned()
}

/// The child of [`run_agent`]; without its variable it does nothing.
#[test]
fn child_process() {
    let Some(dir) = std::env::var_os("CRASH_CHILD").map(PathBuf::from) else {
        return;
    };
    let goal: Goal = serde_json::from_slice(&fs::read(dir.join("goal.json")).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let settings = Settings {
        library: Some(built_library().unwrap().into()),
        journal: dir.join("journal"),
        idle_ttl: Duration::ZERO,
        idle_limit: 0,
        filter: FilterDevices::default(),
        memory_mib: None,
        sysfs: "/sys".into(),
        // Another thread's calls would come between those that are counted.
        ignored_faults: "all".parse().unwrap(),
        reset_command: vec![],
        proc: dir.join("proc"),
    };
    let (events, _reported) = tokio::sync::mpsc::channel(64);
    let metrics = Metrics::register(&mut Registry::default());
    let nvml = NvmlThread::start(settings, metrics, events).unwrap();
    nvml.set_wanted_modes(WantedModes {
        node: Some(goal.mode.parse().unwrap()),
        devices: vec![],
    });
    let claims = goal.pods.iter();
    nvml.set_pods(pods(claims.map(|(uid, claim)| (uid.as_str(), claim))));
    runtime.block_on(async {
        if let Some(uid) = &goal.ensure {
            let devices = nvml.ensure_devices(uid, "main", TIMEOUT).await;
            assert_eq!(devices.map(|devices| devices.len()), Ok(1));
        }
        let mut inventory = nvml.inventory();
        let reached = inventory.wait_for(|inventory| goal.is_reached(inventory));
        let reached = tokio::time::timeout(TIMEOUT, reached).await;
        assert!(reached.is_ok_and(|reached| reached.is_ok()), "not reached");
    });
}
