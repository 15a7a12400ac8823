//! The owner of the cards over the simulated `libnvidia-ml.so.1`: faults, modes, resets, reboots, calls that hang.
//!
//! The library finds its cards by an environment variable, so each test runs in a process of its own.
#![allow(clippy::unwrap_used, reason = "tests and what they share")]

mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    config::FilterDevices,
    gpu::{InstanceState, Offer},
    mode::{NodeMode, VgpuMode},
};
use nodeagent::{
    gpus::{event::AgentEvent, inventory::Inventory, modes::WantedModes, state::GpuState},
    materialise::{settings::Settings, thread::NvmlThread},
    metrics::Metrics,
};
use nvml_sim::{
    GpuSpec, built_library,
    event::{Event, XID},
    fault::{Action, Control, Rule},
    gpu::RECOVER_BY_RESET,
    provision,
    store::Store,
};
use prometheus_client::registry::Registry;
use support::{claim, pods};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test's work in a process of its own, in a fresh directory.
fn alone<F: Future<Output = ()>>(test: &str, work: impl FnOnce(World) -> F) {
    if let Some(dir) = std::env::var_os("OWNER_TEST_DIR") {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(work(World { dir: dir.into() }));
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("OWNER_TEST_DIR", dir.path())
        .env("NVML_SIM_DIR", dir.path())
        .status();
    assert!(status.unwrap().success());
}

/// A directory with simulated cards.
struct World {
    dir: PathBuf,
}

/// An agent's owner thread, and what it told.
struct Agent {
    nvml: NvmlThread,
    told: Arc<Mutex<Vec<AgentEvent>>>,
}

impl World {
    fn cards(&self, model: &str, count: usize, mig: bool) -> Vec<String> {
        let spec = GpuSpec {
            model: model.to_owned(),
            mig,
            mirrored: false,
        };
        provision(&self.dir, "owner", &vec![spec; count]).unwrap();
        let cards = self.store().snapshot().unwrap().gpus;
        cards.iter().map(nvml_sim::gpu::Gpu::uuid).collect()
    }

    fn store(&self) -> Store {
        Store::new(&self.dir)
    }

    fn settings(&self) -> Settings {
        let own = std::env::current_exe().unwrap();
        Settings {
            library: Some(built_library().unwrap().into()),
            journal: self.dir.join("journal"),
            idle_ttl: Duration::ZERO,
            idle_limit: 8,
            filter: FilterDevices::default(),
            ignored_faults: "".parse().unwrap(),
            // In the place of nvidia-smi: this test's own executable, once more.
            reset_command: ["env", "RESET_GPU={uuid}", own.to_str().unwrap()]
                .into_iter()
                .chain(["--exact", "reset_command", "--nocapture"])
                .map(str::to_owned)
                .collect(),
            // Pods of these short names are nobody's on the machine.
            proc: self.dir.join("proc"),
        }
    }

    fn agent(&self) -> Agent {
        Agent::start(self.settings(), NodeMode::Mig)
    }

    fn faults(&self, rules: &[(&str, Action, Option<u64>)]) {
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

    fn xid(&self, gpu: usize, xid: u64, instance: Option<u32>) {
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

    /// Instances behind NVML: card, first slice, GPU instance id and which of all that ever were.
    fn truth(&self) -> BTreeSet<(usize, u8, u32, u32)> {
        let cards = self.store().snapshot().unwrap().gpus;
        let cards = cards.iter().enumerate();
        cards
            .flat_map(|(at, card)| card.instances.iter().map(move |i| (at, i)))
            .map(|(at, i)| (at, i.start, i.id, i.serial))
            .collect()
    }

    /// A process that is on a card, or on the first instance of it, until it is killed.
    #[allow(clippy::zombie_processes, reason = "the tests end it")]
    fn hold(&self, gpu: usize, instance: bool) -> Child {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder", "--nocapture"])
            .env("HOLD_GPU", gpu.to_string())
            .env("HOLD_INSTANCE", u8::from(instance).to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if !self.store().device_processes().is_empty() {
                return child;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the process does not get onto the card")
    }
}

impl Agent {
    fn start(settings: Settings, mode: NodeMode) -> Self {
        let (tell, mut happenings) = tokio::sync::mpsc::channel(256);
        let metrics = Metrics::register(&mut Registry::default());
        let nvml = NvmlThread::start(settings, metrics, tell).unwrap();
        nvml.set_wanted_modes(WantedModes {
            node: Some(mode),
            devices: vec![],
        });
        nvml.set_pods(pods([]));
        let told = Arc::new(Mutex::new(vec![]));
        let kept = told.clone();
        tokio::spawn(async move {
            while let Some(happening) = happenings.recv().await {
                kept.lock().unwrap().push(happening);
            }
        });
        Self { nvml, told }
    }

    /// Waits for a state of the inventory.
    async fn until(&self, what: &str, is: impl Fn(&Inventory) -> bool) -> Arc<Inventory> {
        let mut inventory = self.nvml.inventory();
        let reached = inventory.wait_for(|inventory| is(inventory));
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(Ok(inventory)) => inventory.clone(),
            _ => panic!("not reached: {what}; told {:?}", self.told()),
        }
    }

    async fn until_card(&self, what: &str, gpu: &str, is: impl Fn(&GpuState) -> bool) {
        self.until(what, |inventory| {
            inventory.state.gpus.get(gpu).is_some_and(|gpu| is(gpu))
        })
        .await;
    }

    /// Raises an XID until what should come of it has: those that come before the agent listens are not told.
    async fn raised<T>(
        &self,
        world: &World,
        (xid, instance): (u64, Option<u32>),
        follows: impl Future<Output = T>,
    ) -> T {
        let raise = async {
            loop {
                world.xid(0, xid, instance);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        tokio::select! {
            result = follows => result,
            () = raise => unreachable!(),
        }
    }

    async fn until_told(&self, reason: &str) -> AgentEvent {
        self.until_told_that(reason, |told| told.reason == reason)
            .await
    }

    async fn until_told_that(&self, what: &str, is: impl Fn(&AgentEvent) -> bool) -> AgentEvent {
        for _ in 0..PATIENCE.as_millis() / 50 {
            if let Some(known) = self.told().into_iter().find(&is) {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not told: {what}, but {:?}", self.told())
    }

    fn told(&self) -> Vec<AgentEvent> {
        self.told.lock().unwrap().clone()
    }

    /// The thread ends with the last handle; a restart is another one on the same directory.
    async fn end(self) {
        let mut inventory = self.nvml.inventory();
        drop(self.nvml);
        while inventory.changed().await.is_ok() {}
    }
}

fn offer(profile: &str) -> Offer {
    let models = ["a100-80gb", "h100-80gb"].map(|key| domain::fixtures::model(key).unwrap());
    let offer = models.iter().find_map(|model| model.offer(profile));
    offer.unwrap().clone()
}

fn is_ill(card: &GpuState) -> bool {
    card.unhealthy_reason().is_some()
}

#[test]
fn reset_command() {
    if let Ok(gpu) = std::env::var("RESET_GPU") {
        let dir = std::env::var_os("NVML_SIM_DIR").unwrap();
        nvml_sim::reset(Path::new(&dir), &gpu).unwrap();
    }
}

#[test]
fn holder() {
    let Ok(gpu) = std::env::var("HOLD_GPU") else {
        return;
    };
    let gpu: usize = gpu.parse().unwrap();
    let store = Store::new(Path::new(&std::env::var_os("NVML_SIM_DIR").unwrap()));
    let on_instance = std::env::var("HOLD_INSTANCE").unwrap() == "1";
    let cards = store.snapshot().unwrap().gpus;
    let first = cards[gpu].instances.first();
    let instance = first.filter(|_| on_instance).map(|i| (i.id, i.serial, 0));
    let held = store.hold(&nvml_sim::process::DeviceProcess {
        pid: std::process::id(),
        gpu,
        instance,
    });
    let _held = held.unwrap();
    std::thread::sleep(Duration::from_mins(10));
}

#[test]
fn a_gpu_that_reported_a_fault_is_reset_when_it_is_idle_and_offered_again() {
    alone(
        "a_gpu_that_reported_a_fault_is_reset_when_it_is_idle_and_offered_again",
        async |world: World| {
            let gpus = world.cards("h100-80gb", 2, true);
            let agent = world.agent();
            let own = claim(&gpus[0], &offer("1g.10gb"), 6);
            agent.nvml.set_pods(pods([("a", &own)]));
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
            let before = world.truth();
            // What comes before the agent listens is not told.
            let listens = agent.until_told("GpuFault");
            agent.raised(&world, (31, None), listens).await;
            world.store().double_bit_error(0).unwrap();
            agent.until_card("the card is ill", &gpus[0], is_ill).await;
            // Its pod goes on, the other card too.
            let of = |told: &AgentEvent| {
                told.reason == "GpuFault" && told.message.contains("double bit")
            };
            let told = agent.until_told_that("the double bit error", of).await;
            assert_eq!(told.pod_uid.as_deref(), Some("a"), "{told:?}");
            assert_eq!(world.truth(), before);
            let inventory = agent.nvml.inventory().borrow().clone();
            assert_eq!(inventory.unhealthy_reason(&gpus[1]), None);
            assert!(
                agent
                    .nvml
                    .ensure_devices("a", "main", PATIENCE)
                    .await
                    .is_ok()
            );
            agent.nvml.set_pods(pods([]));
            agent
                .until_card("it is well after a reset", &gpus[0], |card| !is_ill(card))
                .await;
            agent.until_told("GpuReset").await;
            let card = world.store().snapshot().unwrap().gpus[0].clone();
            assert_eq!((card.recovery_action, card.instances.len()), (0, 0));
        },
    );
}

#[test]
fn an_applications_fault_and_one_of_an_instance_leave_the_gpu_alone() {
    alone(
        "an_applications_fault_and_one_of_an_instance_leave_the_gpu_alone",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 1, true);
            let agent = world.agent();
            let own = claim(&gpus[0], &offer("1g.10gb"), 6);
            agent.nvml.set_pods(pods([("a", &own)]));
            let devices = agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
            let id = devices[0].gpu_instance;
            let told = agent.until_told("GpuFault");
            let told = agent.raised(&world, (31, Some(id)), told).await;
            assert!(told.message.contains("an application error"), "{told:?}");
            world.xid(0, 94, Some(id));
            agent
                .until_card("the instance has a fault", &gpus[0], |card| {
                    card.instances.iter().any(|held| held.fault.is_some())
                })
                .await;
            assert_eq!(
                agent.nvml.inventory().borrow().unhealthy_reason(&gpus[0]),
                None
            );
            let before = world.truth();
            // The next pod at this place gets another one, although it is of the same shape.
            agent.nvml.set_pods(pods([("b", &own)]));
            agent
                .nvml
                .ensure_devices("b", "main", PATIENCE)
                .await
                .unwrap();
            assert!(before.is_disjoint(&world.truth()), "{before:?}");
        },
    );
}

#[test]
fn a_lost_gpu_leaves_the_others_alone_and_is_healthy_when_it_answers() {
    alone(
        "a_lost_gpu_leaves_the_others_alone_and_is_healthy_when_it_answers",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 2, true);
            let lose = |lost| {
                let lose = world.store().with(|state| state.gpus[0].lost = lost);
                lose.unwrap();
            };
            let agent = world.agent();
            agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
            let had = claim(&gpus[0], &offer("2g.20gb"), 0);
            agent.nvml.set_pods(pods([("had", &had)]));
            agent
                .nvml
                .ensure_devices("had", "main", PATIENCE)
                .await
                .unwrap();
            lose(true);
            agent
                .until_card("lost", &gpus[0], |card| card.lost.is_some())
                .await;
            // The node is told, and the pod that is on it.
            for uid in [None, Some("had")] {
                let of = |told: &AgentEvent| {
                    told.reason == "GpuUnhealthy" && told.pod_uid.as_deref() == uid
                };
                let told = agent.until_told_that("GpuUnhealthy", of).await;
                assert!(told.message.contains("GPU is lost"), "{told:?}");
            }
            let own = claim(&gpus[1], &offer("2g.20gb"), 0);
            agent.nvml.set_pods(pods([("a", &own)]));
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
            // A pod that is bound to the lost card is told so, and failed if that goes on.
            let other = claim(&gpus[0], &offer("2g.20gb"), 0);
            agent.nvml.set_pods(pods([("a", &own), ("b", &other)]));
            let told = agent.until_told("InstanceCreationFailed").await;
            assert_eq!(told.pod_uid.as_deref(), Some("b"), "{told:?}");
            lose(false);
            agent
                .until_card("back", &gpus[0], |card| !is_ill(card))
                .await;
            agent
                .nvml
                .ensure_devices("b", "main", PATIENCE)
                .await
                .unwrap();
            // Lost when the agent starts, it holds up nobody either.
            agent.end().await;
            lose(true);
            let agent = world.agent();
            let surveyed = agent.until("surveyed", Inventory::is_surveyed).await;
            assert!(surveyed.nvml_failure.is_some());
            agent.nvml.set_pods(pods([("a", &own)]));
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
        },
    );
}

/// Peer lesson: GPUs that must not be touched are not, also at the start; what is not ours is never destroyed.
#[test]
fn what_is_filtered_or_foreign_is_not_touched_at_the_start() {
    alone(
        "what_is_filtered_or_foreign_is_not_touched_at_the_start",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 3, true);
            let small = offer("1g.10gb");
            let make = |card: usize| {
                let made = world.store().with(|state| {
                    state.gpus[card].mig = true;
                    state.gpus[card].create_at(small.profile_id, 0, small.size)
                });
                made.unwrap().unwrap();
            };
            (0..3).for_each(make);
            let before = world.truth();
            let settings = Settings {
                filter: FilterDevices {
                    uuid: vec![gpus[1].clone()],
                    index: vec![2],
                },
                ..world.settings()
            };
            let agent = Agent::start(settings, NodeMode::HamiCore);
            let inventory = agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
            let cards = &inventory.state.gpus;
            assert_eq!(cards.keys().collect::<Vec<_>>(), [&gpus[0]]);
            let held = &cards[&gpus[0]].instances[0];
            assert_eq!(held.state(), InstanceState::Foreign);
            // The mode that is wanted has to wait for whoever made it.
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(world.truth(), before);
            let changing = agent.nvml.inventory().borrow().state.changing_to(&gpus[0]);
            assert_eq!(changing, Some(VgpuMode::HamiCore));
        },
    );
}

/// Peer lesson: both results of `SetMigMode`; a mode that cannot be changed is said, with who is in the way.
#[test]
fn a_mode_that_waits_for_a_reset_or_a_client_is_reported_and_comes_by_itself() {
    alone(
        "a_mode_that_waits_for_a_reset_or_a_client_is_reported_and_comes_by_itself",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 1, false);
            let mut client = world.hold(0, false);
            // SUCCESS, and an activation status of IN_USE: only the pending mode changes.
            world.faults(&[("nvmlDeviceSetMigMode", Action::Activation(19), Some(1))]);
            let agent = world.agent();
            let told = agent.until_told("ModeChangeFailed").await;
            let name = format!("(process {})", client.id());
            assert!(told.message.contains(&name), "{told:?}");
            let mode = |world: &World| {
                let card = &world.store().snapshot().unwrap().gpus[0];
                (card.mig, card.pending)
            };
            assert_eq!(
                mode(&world),
                (false, false),
                "not asked while somebody is on it"
            );
            client.kill().unwrap();
            client.wait().unwrap();
            agent
                .until_card("MIG mode by a reset", &gpus[0], |card| {
                    card.mode() == VgpuMode::Mig
                })
                .await;
            assert_eq!(mode(&world), (true, true));
            agent.until_told("ModeChanged").await;
        },
    );
}

#[test]
fn after_a_reboot_mode_and_instances_come_back_by_themselves() {
    alone(
        "after_a_reboot_mode_and_instances_come_back_by_themselves",
        async |world: World| {
            let gpus = world.cards("h100-80gb", 1, true);
            let agent = world.agent();
            let [stays, goes] = [6, 0].map(|start| claim(&gpus[0], &offer("1g.10gb"), start));
            agent
                .nvml
                .set_pods(pods([("stays", &stays), ("goes", &goes)]));
            for uid in ["stays", "goes"] {
                agent
                    .nvml
                    .ensure_devices(uid, "main", PATIENCE)
                    .await
                    .unwrap();
            }
            agent.end().await;
            nvml_sim::reboot(&world.dir).unwrap();
            assert!(
                !world.store().snapshot().unwrap().gpus[0].mig,
                "Hopper forgets"
            );
            let agent = world.agent();
            agent.nvml.set_pods(pods([("stays", &stays)]));
            let devices = agent.nvml.ensure_devices("stays", "main", PATIENCE).await;
            assert_eq!(devices.unwrap().len(), 1);
            let starts: Vec<u8> = world.truth().iter().map(|(_, start, ..)| *start).collect();
            assert_eq!(starts, [6]);
        },
    );
}

/// Peer lesson: a slot is free when the process is gone, not when the pod is.
#[test]
fn processes_of_a_pod_that_is_gone_keep_its_instance_also_over_a_restart() {
    alone(
        "processes_of_a_pod_that_is_gone_keep_its_instance_also_over_a_restart",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 1, true);
            let agent = world.agent();
            let own = claim(&gpus[0], &offer("1g.10gb"), 6);
            agent.nvml.set_pods(pods([("a", &own)]));
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
            let mut process = world.hold(0, true);
            let before = world.truth();
            let lingers = |inventory: &Inventory| {
                let states = inventory.state.gpus.values().flat_map(|c| &c.instances);
                let mut states = states.map(|held| (held.state(), held.claimed_by().is_none()));
                states.next() == Some((InstanceState::InUse, true))
            };
            agent.nvml.set_pods(pods([]));
            agent.until("in use without a pod", lingers).await;
            agent.end().await;
            let agent = world.agent();
            agent.until("still in use", lingers).await;
            // Nobody else gets it meanwhile.
            agent.nvml.set_pods(pods([("b", &own)]));
            let blocked = agent
                .nvml
                .ensure_devices("b", "main", Duration::from_secs(2))
                .await;
            assert!(blocked.is_err(), "{blocked:?}");
            assert_eq!(world.truth(), before);
            process.kill().unwrap();
            process.wait().unwrap();
            let devices = agent.nvml.ensure_devices("b", "main", PATIENCE).await;
            assert_eq!(devices.unwrap().len(), 1);
        },
    );
}

#[test]
fn a_call_that_hangs_is_reported_and_holds_up_nobody_who_asks() {
    alone(
        "a_call_that_hangs_is_reported_and_holds_up_nobody_who_asks",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 2, true);
            let agent = world.agent();
            agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
            let watched = agent.nvml.clone().watch_for_hangs(Duration::from_secs(1));
            tokio::spawn(watched);
            // Longer than the watch's limit, and over before the test's.
            let slow = Action::DelayMs(6_000);
            world.faults(&[("nvmlDeviceCreateGpuInstanceWithPlacement", slow, Some(1))]);
            let own = claim(&gpus[0], &offer("1g.10gb"), 6);
            agent.nvml.set_pods(pods([("a", &own)]));
            let limit = Duration::from_millis(500);
            let blocked = agent
                .nvml
                .ensure_devices("a", "main", limit)
                .await
                .unwrap_err();
            assert!(
                blocked.to_string().contains("NVML may be slow"),
                "{blocked}"
            );
            let told = agent.until_told("NvmlHangs").await;
            assert!(told.message.contains("creating 1g.10gb"), "{told:?}");
            let inventory = agent.nvml.inventory().borrow().clone();
            assert!(
                inventory.unhealthy_reason(&gpus[1]).is_some(),
                "no card can be served now"
            );
            agent.until("it returned", |i| i.nvml_hang.is_none()).await;
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
        },
    );
}

#[test]
fn a_driver_that_was_replaced_ends_the_agent_and_a_dead_session_is_opened_again() {
    alone(
        "a_driver_that_was_replaced_ends_the_agent_and_a_dead_session_is_opened_again",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 1, true);
            let agent = world.agent();
            agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
            // UNINITIALIZED: the driver was loaded anew.
            world.faults(&[("nvmlDeviceGetCount_v2", Action::Code(1), None)]);
            let fails = agent.until("NVML fails", |i| i.nvml_failure.is_some());
            agent.raised(&world, (154, None), fails).await;
            world.faults(&[]);
            agent
                .until("NVML answers", |i| i.nvml_failure.is_none())
                .await;
            assert!(!is_ill(
                &agent.nvml.inventory().borrow().state.gpus[&gpus[0]]
            ));
            // LIB_RM_VERSION_MISMATCH: only a new process loads the new library.
            world.faults(&[
                ("nvmlDeviceGetCount_v2", Action::Code(1), None),
                ("nvmlInit_v2", Action::Code(18), None),
            ]);
            let watched = agent.nvml.clone().watch_for_hangs(Duration::from_secs(1));
            let ended = tokio::time::timeout(PATIENCE, watched);
            let ended = agent.raised(&world, (154, None), ended).await;
            assert!(ended.unwrap().is_err());
        },
    );
}

/// Peer lesson: never destroy what is not provably ours; ids and UUIDs are used again.
#[test]
fn an_instance_that_another_tool_replaced_is_not_destroyed() {
    alone(
        "an_instance_that_another_tool_replaced_is_not_destroyed",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 1, true);
            let agent = world.agent();
            let own = claim(&gpus[0], &offer("3g.40gb"), 0);
            agent.nvml.set_pods(pods([("a", &own)]));
            let devices = agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
            // At the same place and id and with the same UUID, but another profile.
            let (id, other) = (devices[0].gpu_instance, offer("4g.40gb"));
            let replaced = world.store().with(|state| {
                let card = &mut state.gpus[0];
                card.instances.clear();
                let id = card.create_at(other.profile_id, 0, other.size)?;
                card.create_compute(id, 3).map(|_| id)
            });
            assert_eq!(replaced.unwrap(), Ok(id));
            let before = world.truth();
            agent.nvml.set_pods(pods([]));
            let foreign = |inventory: &Inventory| {
                let mut all = inventory.state.gpus.values().flat_map(|c| &c.instances);
                all.next()
                    .is_some_and(|held| held.state() == InstanceState::Foreign)
            };
            agent.until("it is foreign", foreign).await;
            assert_eq!(world.truth(), before);
        },
    );
}

/// Where the driver cannot say what it wants, a card stays ill; a reset makes it well.
#[test]
fn a_reset_by_the_driver_that_is_pending_is_seen_at_the_start() {
    alone(
        "a_reset_by_the_driver_that_is_pending_is_seen_at_the_start",
        async |world: World| {
            let gpus = world.cards("h100-80gb", 1, true);
            let set = |state: &mut nvml_sim::state::State| {
                state.gpus[0].recovery_action = RECOVER_BY_RESET;
            };
            world.store().with(set).unwrap();
            let settings = Settings {
                reset_command: vec![],
                ..world.settings()
            };
            let agent = Agent::start(settings, NodeMode::Mig);
            agent.until_card("ill", &gpus[0], is_ill).await;
            let told = agent.until_told("GpuUnhealthy").await;
            assert!(told.message.contains("requests a GPU reset"), "{told:?}");
            agent.end().await;
            let agent = world.agent();
            agent
                .until_card("well", &gpus[0], |card| !is_ill(card))
                .await;
        },
    );
}

/// Peer lesson: GPUs without MIG go on working.
#[test]
fn a_gpu_without_mig_works_on_in_shares_on_a_mig_node() {
    alone(
        "a_gpu_without_mig_works_on_in_shares_on_a_mig_node",
        async |world: World| {
            let gpus = world.cards("a100-80gb", 2, true);
            let rule = Rule {
                call: "nvmlDeviceGetMigMode".to_owned(),
                gpu: Some(1),
                nth: None,
                times: None,
                // NOT_SUPPORTED
                action: Action::Code(3),
            };
            let control = Control {
                rules: vec![rule],
                ..Control::default()
            };
            world.store().control(Some(&control)).unwrap();
            let agent = world.agent();
            let inventory = agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
            let plain = &inventory.state.gpus[&gpus[1]];
            assert_eq!((plain.mode(), is_ill(plain)), (VgpuMode::HamiCore, false));
            assert!(plain.surveyed.model.offers.is_empty());
            assert_eq!(inventory.state.changing_to(&gpus[1]), None);
            let own = claim(&gpus[0], &offer("1g.10gb"), 6);
            agent.nvml.set_pods(pods([("a", &own)]));
            agent
                .nvml
                .ensure_devices("a", "main", PATIENCE)
                .await
                .unwrap();
        },
    );
}
