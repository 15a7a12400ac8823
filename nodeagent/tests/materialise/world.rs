//! Simulated GPUs, and an agent's NVML thread on them.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{claim::Claim, config::FilterDevices, gpu::Offer, mode::NodeMode};
use nodeagent::{
    gpus::{
        event::AgentEvent,
        inventory::{Inventory, LiveDevice},
        modes::WantedModes,
        state::GpuState,
    },
    materialise::{settings::Settings, thread::NvmlThread},
    metrics::Metrics,
};
use nvml_sim::{
    GpuSpec, built_library,
    event::{Event, XID},
    fault::{Action, Control, Rule},
    provision,
    store::Store,
};
use prometheus_client::registry::Registry;

use crate::{processes, support::pods};

/// How long anything may take here.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the work of a test in a process of its own, in a fresh directory: the library finds its GPUs by an environment
/// variable.
pub(crate) fn alone<W, F: Future<Output = ()>>(work: W)
where
    W: FnOnce(World) -> F,
{
    if let Some(dir) = std::env::var_os("WORLD_DIR").map(PathBuf::from) {
        fs::write(dir.join("ran"), "").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(work(World { dir }));
    }
    // A closure is named after the function that it is in: `crate::module::test::{{closure}}`.
    let path = std::any::type_name::<W>();
    let (_, test) = path.split_once("::").unwrap();
    let test = test.trim_end_matches("::{{closure}}");
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("WORLD_DIR", dir.path())
        .env("NVML_SIM_DIR", dir.path())
        .status();
    assert!(status.unwrap().success());
    assert!(dir.path().join("ran").exists(), "there is no test {test}");
}

/// A directory with simulated GPUs.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
}

/// An agent's NVML thread, and the Events that it reported.
pub(crate) struct Agent {
    pub(crate) nvml: NvmlThread,
    events: Arc<Mutex<Vec<AgentEvent>>>,
}

impl World {
    /// Provisions GPUs. Returns their UUIDs.
    pub(crate) fn provision(&self, model: &str, count: usize, mig: bool) -> Vec<String> {
        let spec = GpuSpec {
            model: model.to_owned(),
            mig,
            mirrored: false,
        };
        provision(&self.dir, "materialise", &vec![spec; count]).unwrap();
        let gpus = self.store().snapshot().unwrap().gpus;
        gpus.iter().map(nvml_sim::gpu::Gpu::uuid).collect()
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(&self.dir)
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            library: Some(built_library().unwrap().into()),
            journal: self.dir.join("journal"),
            idle_ttl: Duration::ZERO,
            idle_limit: 8,
            filter: FilterDevices::default(),
            memory_mib: None,
            sysfs: self.dir.join("sys"),
            ignored_faults: "".parse().unwrap(),
            reset_command: processes::reset_command(),
            // The pods here have short names, which some process on the machine could have, too.
            proc: self.dir.join("proc"),
        }
    }

    /// Starts an agent in mode `mig`.
    pub(crate) fn agent(&self) -> Agent {
        Agent::start(self.settings(), NodeMode::Mig)
    }

    /// Orders faults by function, and how often.
    pub(crate) fn order_faults(&self, rules: &[(&str, Action, Option<u64>)]) {
        let rules = rules.iter().map(|(call, action, times)| Rule {
            call: (*call).to_owned(),
            gpu: None,
            nth: None,
            times: *times,
            action: *action,
        });
        let control = Control {
            rules: rules.collect(),
            ..Control::default()
        };
        self.store().control(Some(&control)).unwrap();
    }

    pub(crate) fn raise_xid(&self, gpu: usize, xid: u64, instance: Option<u32>) {
        let event = Event {
            gpu,
            kind: XID,
            data: xid,
            gi: instance,
            ci: instance.map(|_| 0),
            ..Event::default()
        };
        self.store().raise(event).unwrap();
    }

    /// The instances behind NVML: GPU, first slice, GPU instance id, and a number that is never reused.
    pub(crate) fn instances(&self) -> BTreeSet<(usize, u8, u32, u32)> {
        let gpus = self.store().snapshot().unwrap().gpus;
        let gpus = gpus.iter().enumerate();
        gpus.flat_map(|(index, gpu)| gpu.instances.iter().map(move |i| (index, i)))
            .map(|(index, i)| (index, i.start, i.id, i.serial))
            .collect()
    }

    /// Starts a process that is on a GPU, or on its first instance, until it is killed.
    pub(crate) fn start_process(&self, gpu: usize, on_instance: bool) -> Child {
        let mut child = processes::start_client(gpu, on_instance);
        for _ in 0..200 {
            if !self.store().device_processes().is_empty() {
                return child;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the process does not open the GPU")
    }
}

impl Agent {
    pub(crate) fn start(settings: Settings, mode: NodeMode) -> Self {
        let (report, mut reported) = tokio::sync::mpsc::channel(256);
        let metrics = Metrics::register(&mut Registry::default());
        let nvml = NvmlThread::start(settings, metrics, report).unwrap();
        nvml.set_wanted_modes(WantedModes {
            node: Some(mode),
            devices: vec![],
        });
        nvml.set_pods(pods([]));
        let events = Arc::new(Mutex::new(vec![]));
        let collected = events.clone();
        tokio::spawn(async move {
            while let Some(event) = reported.recv().await {
                collected.lock().unwrap().push(event);
            }
        });
        Self { nvml, events }
    }

    /// Makes a pod with this claim the node's only one. Returns the devices of its container, once they are there.
    pub(crate) async fn devices_of(&self, uid: &str, claim: &Claim) -> Vec<LiveDevice> {
        self.nvml.set_pods(pods([(uid, claim)]));
        let devices = self.nvml.ensure_devices(uid, "main", TIMEOUT).await;
        devices.unwrap()
    }

    /// Waits for a state of the inventory.
    pub(crate) async fn until(
        &self,
        what: &str,
        is: impl Fn(&Inventory) -> bool,
    ) -> Arc<Inventory> {
        let mut inventory = self.nvml.inventory();
        let reached = inventory.wait_for(|inventory| is(inventory));
        match tokio::time::timeout(TIMEOUT, reached).await {
            Ok(Ok(inventory)) => inventory.clone(),
            _ => panic!("not reached: {what}; events {:?}", self.events()),
        }
    }

    /// Waits for a state of a GPU.
    pub(crate) async fn until_gpu(&self, what: &str, gpu: &str, is: impl Fn(&GpuState) -> bool) {
        self.until(what, |inventory| {
            inventory.state.gpus.get(gpu).is_some_and(|gpu| is(gpu))
        })
        .await;
    }

    /// Raises an XID until what should follow has happened: NVML does not report those that come before the agent
    /// listens.
    pub(crate) async fn raise_until<T>(
        &self,
        world: &World,
        (xid, instance): (u64, Option<u32>),
        follows: impl Future<Output = T>,
    ) -> T {
        let raise = async {
            loop {
                world.raise_xid(0, xid, instance);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        tokio::select! {
            result = follows => result,
            () = raise => unreachable!(),
        }
    }

    /// Waits for an Event with this reason.
    pub(crate) async fn event(&self, reason: &str) -> AgentEvent {
        self.event_that(reason, |event| event.reason == reason)
            .await
    }

    pub(crate) async fn event_that(
        &self,
        what: &str,
        is: impl Fn(&AgentEvent) -> bool,
    ) -> AgentEvent {
        for _ in 0..TIMEOUT.as_millis() / 50 {
            if let Some(known) = self.events().into_iter().find(&is) {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no event {what}, but {:?}", self.events())
    }

    fn events(&self) -> Vec<AgentEvent> {
        self.events.lock().unwrap().clone()
    }

    /// Drops the handle and waits for the end of the thread. A restart is another agent on the same directory.
    pub(crate) async fn end(self) {
        let mut inventory = self.nvml.inventory();
        drop(self.nvml);
        while inventory.changed().await.is_ok() {}
    }
}

pub(crate) fn offer(profile: &str) -> Offer {
    let models = ["a100-80gb", "h100-80gb"].map(|key| domain::fixtures::model(key).unwrap());
    let offer = models.iter().find_map(|model| model.offer(profile));
    offer.unwrap().clone()
}

pub(crate) fn is_unhealthy(gpu: &GpuState) -> bool {
    gpu.unhealthy_reason().is_some()
}
