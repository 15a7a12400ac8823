//! Random pods on nodes whose parts are disturbed at random, and an independent look at what must hold.
//!
//! The checker compares the API server's pods with the simulator's cards, behind NVML, and both with
//! what the nodes publish and what the containers were created with: [`check`] is the list.

mod check;
mod disturb;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use daemon::pods;
use domain::gpu::InstanceState;
use e2e::{
    cluster::component::Component,
    error::Error,
    image::IMAGE,
    teardown::clean_clocks,
    tessera::{Options, Tessera, agent},
    wait::until,
};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use nvml_sim::state::State;
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::{
    check::{
        Checker, Container, FEW_FAILURES, IDLE_TTL, Instance, Look, Place, Violation,
        quarantine_interval, unclaimed_limit,
    },
    disturb::{DISTURBANCES, Disturbance, Frozen, JUMPS, STORM},
};

/// Pods that are there at a time, at most.
const PODS: usize = 40;
/// Time between two disturbances.
const CALM: Duration = Duration::from_secs(6);
/// Nodes with MIG cards.
const NODES: [&str; 2] = [REAL, HOLLOW];
const REAL: &str = "real";
const HOLLOW: &str = "hollow-h100";
/// Where somebody else's instance is: node, card, first slice.
const FOREIGN: (&str, usize, u8) = (HOLLOW, 7, 6);
/// A node is without power for so long at least: more than a second, the resolution of times in the API.
const DARK: Duration = Duration::from_millis(1_500);

#[derive(Default)]
struct Tally {
    created: u64,
    deleted: u64,
    /// By reason, and after what.
    failed: BTreeMap<(String, String), u64>,
    last: Option<Disturbance>,
    disturbances: BTreeMap<Disturbance, u64>,
    looks: u64,
    /// What ended by itself and is none of Tessera's: containerd is not there yet when kubelet starts.
    started_again: BTreeMap<String, u64>,
    /// When each was seen first.
    violations: BTreeMap<Violation, Duration>,
}

/// A run.
struct Chaos {
    tessera: Tessera,
    random: StdRng,
    started: Instant,
    tally: Tally,
    checker: Checker,
    /// Processes that are away, and until when.
    away: BTreeMap<String, Instant>,
    frozen: Vec<Frozen>,
    /// Nodes on one of whose cards nothing can be removed, and until when.
    storms: Vec<(&'static str, Instant)>,
    clock_back: Option<Instant>,
    /// When a node was rebooted last.
    rebooted: BTreeMap<&'static str, Timestamp>,
}

pub(crate) async fn run(dir: &Path, duration: Duration, seed: u64) -> anyhow::Result<()> {
    let options = Options {
        idle_ttl: u32::try_from(IDLE_TTL.as_secs()).ok(),
        movable_clock: true,
    };
    let tessera = Tessera::up(dir, options, |step| println!("{step}")).await?;
    let mut chaos = Chaos {
        tessera,
        random: StdRng::seed_from_u64(seed),
        started: Instant::now(),
        tally: Tally::default(),
        checker: Checker::default(),
        away: BTreeMap::new(),
        frozen: vec![],
        storms: vec![],
        clock_back: None,
        rebooted: BTreeMap::new(),
    };
    chaos.clocks_can_move()?;
    // An agent looks for what others make every half minute only, but when it starts.
    let agent = agent(FOREIGN.0);
    chaos.tessera.cluster.processes.crash(&agent).await?;
    chaos.make_foreign()?;
    chaos.tessera.start_agent_again(FOREIGN.0).await?;
    // What is frozen goes on when `chaos` is dropped, on an interrupt too.
    tokio::select! {
        ended = chaos.go(duration) => ended?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; the cluster still runs"),
    }
    print(&chaos.tally, &chaos.checker, chaos.started.elapsed());
    ensure!(chaos.tally.violations.is_empty(), "see above");
    Ok(())
}

fn print(tally: &Tally, checker: &Checker, took: Duration) {
    let line = |what: &str, count: u64| println!("{what:40}{count:>8}");
    let count = |set: &BTreeSet<String>| u64::try_from(set.len()).unwrap_or_default();
    let longest = |what: &str, time: Duration| println!("{what:40}{:>8.1}", time.as_secs_f64());
    println!("\nafter {} s:", took.as_secs());
    for (what, times) in &tally.disturbances {
        line(&what.to_string(), *times);
    }
    line("all disturbances", tally.disturbances.values().sum());
    for (process, times) in &tally.started_again {
        line(&format!("{process} ended by itself"), *times);
    }
    line("pods created", tally.created);
    line("pods deleted", tally.deleted);
    line("pods seen running", count(&checker.ran));
    line("pods running again after a reboot", count(&checker.back));
    for ((reason, after), times) in &tally.failed {
        println!("pods failed: {reason} (after {after}): {times}");
    }
    let [usual, storm] = checker.longest_unaccounted;
    longest("longest without a pod, s", usual);
    longest("the same while nothing is removed, s", storm);
    longest("longest published otherwise, s", checker.longest_unequal);
    line("looks at cards and API server", tally.looks);
    let violations = u64::try_from(tally.violations.len());
    line("violations", violations.unwrap_or_default());
    for (violation, at) in &tally.violations {
        println!("  {:.1} s: {violation}", at.as_secs_f64());
    }
}

impl Chaos {
    /// Disturbs and looks until the time is over, then looks whether anything is left.
    async fn go(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.started = Instant::now();
        let (mut disturbed, mut looked) = (self.started, self.started);
        // Each kind once, then again in another order.
        let mut coming: Vec<Disturbance> = vec![];
        while self.started.elapsed() < duration {
            self.tend().await?;
            self.act().await;
            if disturbed.elapsed() > CALM {
                if coming.is_empty() {
                    coming = DISTURBANCES.to_vec();
                    coming.shuffle(&mut self.random);
                }
                let Some(what) = coming.pop() else { continue };
                println!("{:6.1} s {what}", self.started.elapsed().as_secs_f64());
                *self.tally.disturbances.entry(what).or_default() += 1;
                self.tally.last = Some(what);
                disturbed = Instant::now();
                self.disturb(what).await?;
            }
            if looked.elapsed() > Duration::from_secs(1) {
                self.look().await;
                looked = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        self.end().await
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.tessera.cluster.client())
    }

    /// A time from so many milliseconds to so many.
    fn some(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(milliseconds))
    }

    fn violated(&mut self, violation: Violation) {
        let at = self.started.elapsed();
        self.tally
            .violations
            .entry(violation)
            .or_insert_with_key(|violation| {
                println!("{:6.1} s VIOLATION: {violation}", at.as_secs_f64());
                at
            });
    }

    /// A disturbance that does nothing would be none.
    fn clocks_can_move(&self) -> anyhow::Result<()> {
        let processes = &self.tessera.cluster.processes;
        for name in processes.names().iter().filter(|name| is_daemon(name)) {
            let process = processes.running(name).context("it was ready")?;
            let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid))?;
            ensure!(
                maps.contains("libfaketime"),
                "{name} runs without libfaketime"
            );
        }
        Ok(())
    }

    fn make_foreign(&mut self) -> anyhow::Result<()> {
        let (node, gpu, start) = FOREIGN;
        disturb::make_foreign(&self.tessera.gpus(node))?;
        let uuid = self.simulated(node)?.gpus[gpu].uuid();
        let all = self.truth()?;
        let mut there = all
            .into_iter()
            .filter(|(place, _)| place.node == node && place.gpu == uuid && place.start == start);
        let (place, instance) = there.next().context("it was made")?;
        self.checker.expect_foreign(place, instance.identity);
        Ok(())
    }

    /// What init systems and kubelets do: a process that ended is started again. And what is over is put back.
    async fn tend(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.frozen.retain(|frozen| frozen.until > now);
        if self.clock_back.is_some_and(|at| at <= now) {
            self.clock_back = None;
            self.tessera.set_clock("+0")?;
        }
        for (node, _) in self.storms.extract_if(.., |(_, until)| *until <= now) {
            disturb::calm(&self.tessera.cluster.state_dir.gpus(node)).await?;
        }
        let processes = self.tessera.cluster.processes.clone();
        for name in processes.names() {
            if self.away.get(&name).is_some_and(|until| *until > now) {
                continue;
            }
            if processes.running(&name).is_some() {
                self.away.remove(&name);
            } else if self.away.remove(&name).is_some() {
                clean_clocks();
                processes.start_again(&name)?;
            } else {
                if is_daemon(&name) {
                    println!("{}", processes.died(&name));
                    let process = name.clone();
                    self.violated(Violation::Ended { process });
                } else {
                    let times = self.tally.started_again.entry(name.clone());
                    *times.or_default() += 1;
                }
                self.away.insert(name, now + Duration::from_secs(1));
            }
        }
        Ok(())
    }

    /// Creates or deletes a pod. What the API server refuses while it or the webhook is away is not counted.
    async fn act(&mut self) {
        let pods = self.pods();
        let Ok(all) = pods.list(&ListParams::default()).await else {
            return;
        };
        let live: Vec<&Pod> = all
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect();
        let random = &mut self.random;
        if live.len() < PODS && random.random_bool(0.6) {
            let mib = *[1_000, 8_000, 8_000, 19_000, 40_000, 80_000]
                .choose(random)
                .unwrap_or(&8_000);
            let count = if mib < 30_000 {
                random.random_range(1..=2)
            } else {
                1
            };
            let mut pod = json!({
                "metadata": { "generateName": "chaos-" },
                "spec": { "terminationGracePeriodSeconds": random.random_range(0..=2),
                    "containers": [{ "name": "main", "image": IMAGE, "command": ["sleep", "86400"],
                        "resources": { "limits": { "nvidia.com/gpu": count.to_string(), "nvidia.com/gpumem": mib.to_string() } } }] },
            });
            if random.random_bool(0.5) {
                pod["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
            }
            if let Ok(pod) = serde_json::from_value(pod)
                && pods.create(&PostParams::default(), &pod).await.is_ok()
            {
                self.tally.created += 1;
            }
        } else if let Some(pod) = live.choose(random) {
            let force = random.random_bool(0.2);
            let params = DeleteParams {
                grace_period_seconds: force.then_some(0),
                ..DeleteParams::default()
            };
            if pods.delete(&pod.name_any(), &params).await.is_ok() {
                self.tally.deleted += 1;
            }
        }
    }

    /// Begins a disturbance; [`Self::tend`] ends it.
    async fn disturb(&mut self, what: Disturbance) -> anyhow::Result<()> {
        let node = *NODES.choose(&mut self.random).unwrap_or(&REAL);
        let gpus = self.tessera.cluster.state_dir.gpus(node);
        match what {
            Disturbance::AgentKilled => self.kill(agent(node)).await,
            Disturbance::PluginKilled => self.kill("plugin".to_owned()).await,
            Disturbance::WebhookKilled => self.kill("webhook".to_owned()).await,
            Disturbance::SchedulerKilled => self.kill("tessera-scheduler".to_owned()).await,
            Disturbance::AgentFrozen => {
                self.freeze(agent(node));
                Ok(())
            }
            Disturbance::PluginFrozen => {
                self.freeze("plugin".to_owned());
                Ok(())
            }
            Disturbance::AgentUpdated => {
                let away = self.some(1_000..4_000);
                self.restart(agent(node), away).await
            }
            Disturbance::KubeletRestarted => {
                let kubelet = self.tessera.kubelet(node);
                self.restart(kubelet, Duration::ZERO).await
            }
            Disturbance::ApiServerAway => {
                let name = Component::ApiServer.name().to_owned();
                self.kill(name.clone()).await?;
                let until = Instant::now() + self.some(2_000..3_500);
                self.away.insert(name, until);
                Ok(())
            }
            Disturbance::NodeRebooted(node) => self.reboot(node).await,
            Disturbance::ClockJumps => {
                let offset = *JUMPS.choose(&mut self.random).unwrap_or(&"+2h");
                println!("         {offset}");
                self.tessera.set_clock(offset)?;
                self.clock_back = Some(Instant::now() + self.some(8_000..15_000));
                Ok(())
            }
            Disturbance::DestroyInUse => {
                let times = self.random.random_range(FEW_FAILURES);
                disturb::order(&gpus, disturb::destroy_in_use(times.into())).await
            }
            Disturbance::DestroyStorm => self.storm().await,
            Disturbance::CreateFails => {
                let times = self.random.random_range(1..3);
                disturb::order(&gpus, disturb::create_fails(times)).await
            }
            Disturbance::GpuFault => {
                let gpu = self.one_gpu(node)?;
                disturb::fault(&gpus, gpu).await
            }
            Disturbance::GpuLost => {
                let (gpu, time) = (self.one_gpu(node)?, self.some(3_000..8_000));
                disturb::lose(&gpus, gpu, time).await
            }
        }
    }

    /// Any GPU of a node, but for the one with somebody else's instance: that is in nobody's hands.
    fn one_gpu(&mut self, node: &str) -> anyhow::Result<usize> {
        let cards = self.simulated(node)?.gpus.len();
        let ours: Vec<usize> = (0..cards).filter(|gpu| !is_foreign(node, *gpu)).collect();
        let gpu = ours.choose(&mut self.random).copied().unwrap_or_default();
        println!("         GPU {gpu} of {node}");
        Ok(gpu)
    }

    async fn kill(&mut self, name: String) -> anyhow::Result<()> {
        self.tessera.cluster.processes.crash(&name).await?;
        let until = Instant::now() + self.some(0..1_500);
        self.away.insert(name, until);
        Ok(())
    }

    /// In order, after this time.
    async fn restart(&mut self, name: String, away: Duration) -> anyhow::Result<()> {
        self.tessera.cluster.processes.stop(&name).await?;
        self.away.insert(name, Instant::now() + away);
        Ok(())
    }

    fn freeze(&mut self, name: String) {
        let time = self.some(3_000..8_000);
        if let Some(process) = self.tessera.cluster.processes.running(&name) {
            self.frozen.push(Frozen::new(name, process, time));
        }
    }

    /// A node's reboot. Every other time its agent is up before kubelet and its pods come back; else kubelet fails them.
    async fn reboot(&mut self, node: &'static str) -> anyhow::Result<()> {
        self.tessera.power_off(node).await?;
        self.checker.reboot(node);
        self.rebooted.insert(node, Timestamp::now());
        if node == FOREIGN.0 {
            self.make_foreign()?;
        }
        let what = Disturbance::NodeRebooted(node);
        let times = self.tally.disturbances.get(&what);
        let late = if times.is_some_and(|times| times % 2 == 0) {
            self.some(3_000..6_000)
        } else {
            Duration::ZERO
        };
        println!("         its agent is {} ms late", late.as_millis());
        let on = Instant::now() + DARK;
        let kubelet = self.tessera.kubelet(node);
        self.away.insert(agent(node), on + late);
        self.away.insert(kubelet, on + Duration::from_secs(1));
        if node == REAL {
            let containerd = Component::Containerd.name().to_owned();
            self.away.insert(containerd, on);
        }
        Ok(())
    }

    /// On one card with instances of ours nothing can be removed, longer than it takes to be called quarantined.
    async fn storm(&mut self) -> anyhow::Result<()> {
        let mut used = Vec::new();
        for node in NODES {
            for (index, card) in self.simulated(node)?.gpus.into_iter().enumerate() {
                if card.instances.len() > usize::from(is_foreign(node, index)) {
                    used.push((node, index, card.uuid()));
                }
            }
        }
        let Some((node, index, uuid)) = used.choose(&mut self.random) else {
            return Ok(());
        };
        let times = [(); 2].map(|()| self.random.random_range(STORM));
        let time = self.some(12_000..20_000);
        println!("         of card {index} of {node}");
        let gpus = self.tessera.cluster.state_dir.gpus(node);
        disturb::order(&gpus, disturb::storm(*index, times)).await?;
        self.storms.push((*node, Instant::now() + time));
        let until = self.started.elapsed() + time;
        self.checker.storm(node, uuid, until);
        // Else nobody might want to remove anything there in this time.
        let pods = self.pods();
        let here = |pod: &check::Pod| pod.slots.iter().any(|slot| slot.gpu == *uuid);
        for pod in self.holding().await.unwrap_or_default() {
            let params = DeleteParams::default();
            if here(&pod) && pods.delete(&pod.name, &params).await.is_ok() {
                self.tally.deleted += 1;
            }
        }
        Ok(())
    }

    /// The cards of a node, behind NVML; without their lock, which a frozen agent may hold.
    fn simulated(&self, node: &str) -> anyhow::Result<State> {
        let file = self.tessera.cluster.state_dir.gpus(node).join("state.json");
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }

    /// Every instance that exists, behind NVML.
    fn truth(&self) -> anyhow::Result<BTreeMap<Place, Instance>> {
        let mut all = BTreeMap::new();
        for node in NODES {
            for card in self.simulated(node)?.gpus {
                for instance in &card.instances {
                    let place = Place {
                        node: node.to_owned(),
                        gpu: card.uuid(),
                        start: instance.start,
                        size: instance.size,
                    };
                    let profile = card.model().by_id(instance.profile_id);
                    let compute = instance.compute.iter();
                    let instance = Instance {
                        identity: (instance.id, instance.serial),
                        profile: profile.map(|p| p.name.clone()).unwrap_or_default(),
                        compute: compute.map(|c| card.mig_uuid(instance, c)).collect(),
                    };
                    all.insert(place, instance);
                }
            }
        }
        Ok(all)
    }

    /// The pods that hold something.
    async fn holding(&self) -> kube::Result<Vec<check::Pod>> {
        let all = self.pods().list(&ListParams::default()).await?;
        let holding = all.iter().filter(|pod| !pods::is_over(pod));
        let holding = holding.filter_map(|pod| {
            let claim = pods::claim(pod)?.ok()?;
            let node = pods::node(pod)?.to_owned();
            let since = self.rebooted.get(node.as_str()).copied();
            Some(check::Pod {
                uid: pod.uid()?,
                name: pod.name_any(),
                slots: claim.slots().cloned().collect(),
                running: running(pod, since).map(|containers| {
                    containers
                        .into_iter()
                        .map(|(name, id)| {
                            let devices = self.devices(pod, &node, &name, &id);
                            Container { id, devices }
                        })
                        .collect()
                }),
                node,
            })
        });
        Ok(holding.collect())
    }

    /// The devices that a container was created with, as its runtime has it on disk.
    fn devices(&self, pod: &Pod, node: &str, name: &str, id: &str) -> Option<BTreeSet<String>> {
        let state_dir = &self.tessera.cluster.state_dir;
        let read =
            |file: &Path| -> Option<Value> { serde_json::from_slice(&fs::read(file).ok()?).ok() };
        let uuids = if node == REAL {
            let id = id.strip_prefix("containerd://")?;
            let tasks = state_dir
                .containerd_state()
                .join("io.containerd.runtime.v2.task/k8s.io");
            let config = read(&tasks.join(id).join("config.json"))?;
            let env = config["process"]["env"].as_array()?;
            let mut words = env.iter().filter_map(Value::as_str);
            words
                .find_map(|word| word.strip_prefix("TESSERA_DEVICES="))
                .unwrap_or_default()
                .to_owned()
        } else {
            let containers = state_dir.hollow().join(node).join("containers");
            let created = read(&containers.join(pod.uid()?).join(format!("{name}.json")))?;
            let uuids = created["env"]["TESSERA_DEVICES"].as_str();
            uuids.unwrap_or_default().to_owned()
        };
        let uuids = uuids.split(',').filter(|uuid| !uuid.is_empty());
        Some(uuids.map(str::to_owned).collect())
    }

    /// What the nodes publish whose agents are up.
    async fn published(&self) -> Result<BTreeMap<String, BTreeSet<Place>>, Error> {
        let mut all = BTreeMap::new();
        for (name, status) in self.tessera.gpu_nodes().await? {
            let agent = agent(&name);
            let frozen = self.frozen.iter().any(|frozen| frozen.name == agent);
            let running = self.tessera.cluster.processes.running(&agent).is_some();
            if !NODES.contains(&name.as_str()) || frozen || !running {
                continue;
            }
            let places = status.gpus.iter().flat_map(|gpu| {
                gpu.instances.iter().map(|instance| Place {
                    node: name.clone(),
                    gpu: gpu.uuid.clone(),
                    start: instance.start,
                    size: instance.size,
                })
            });
            all.insert(name.clone(), places.collect());
        }
        Ok(all)
    }

    async fn look(&mut self) {
        let Ok(look) = self.see().await else {
            // Nor can an agent tell the API server anything.
            self.checker.saw_nothing();
            return;
        };
        self.tally.looks += 1;
        for violation in self.checker.look(&look) {
            self.violated(violation);
        }
        self.sweep().await;
    }

    async fn see(&self) -> anyhow::Result<Look> {
        // What is the same before and after the look at the cards was so during it.
        let before = self.holding().await?;
        let at = self.started.elapsed();
        let instances = self.truth()?;
        let mut pods = self.holding().await?;
        let published = self.published().await?;
        let ids = |pod: &check::Pod| -> Option<Vec<String>> {
            let containers = pod.running.as_ref()?.iter();
            Some(containers.map(|container| container.id.clone()).collect())
        };
        for pod in &mut pods {
            let known = before.iter().find(|known| known.uid == pod.uid);
            if known.and_then(ids) != ids(pod) {
                pod.running = None;
            }
        }
        Ok(Look {
            at,
            claimed: before.iter().flat_map(check::Pod::places).collect(),
            pods,
            instances,
            published,
        })
    }

    /// Counts and deletes the pods that have ended: nobody else does.
    async fn sweep(&mut self) {
        let pods = self.pods();
        let Ok(all) = pods.list(&ListParams::default()).await else {
            return;
        };
        let ended = all.into_iter().filter(pods::is_over);
        for pod in ended.filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let status = pod.status.clone().unwrap_or_default();
            let ended = status.container_statuses.into_iter().flatten().next();
            let ended = ended.and_then(|status| status.state?.terminated);
            let ended = ended.map(|state| {
                let reason = state.reason.unwrap_or_default();
                format!("{reason}, exit code {}", state.exit_code)
            });
            let reason = status.reason.or(ended);
            let reason = reason.unwrap_or_else(|| "no reason".to_owned());
            // A failed pod is the user's to delete: it counts once and goes.
            if pods
                .delete(&pod.name_any(), &DeleteParams::default())
                .await
                .is_ok()
            {
                let after = self
                    .tally
                    .last
                    .map_or_else(String::new, |last| last.to_string());
                *self.tally.failed.entry((reason, after)).or_default() += 1;
            }
        }
    }

    /// Puts all back, deletes all pods, and waits until every instance but the foreign one is gone.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.frozen.clear();
        self.tessera.set_clock("+0")?;
        for node in NODES {
            self.tessera.gpus(node).control(None)?;
        }
        while !self.away.is_empty() {
            self.tend().await?;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        self.tessera.cluster.api_server_is_ready().await?;
        let (pods, everything) = (self.pods(), ListParams::default());
        pods.delete_collection(&DeleteParams::default(), &everything)
            .await?;
        let mut left = String::new();
        let clean = until("an end", quarantine_interval() + unclaimed_limit(), async || {
            let pods = pods.list(&everything).await.ok()?.items.len();
            let truth = self.truth().ok()?;
            let published = self.published().await.ok()?;
            let stuck = self.quarantined().await.ok()?;
            let of = |node: &str| truth.keys().filter(|place| place.node == node).count();
            let equal = NODES
                .iter()
                .all(|node| published.get(*node).map(BTreeSet::len) == Some(of(node)));
            left = format!(
                "{pods} pods, {} instances with the foreign one, {stuck} quarantined, published {} what is",
                truth.len(), if equal { "is" } else { "is not" }
            );
            (pods == 0 && truth.len() == 1 && stuck == 0 && equal).then_some(())
        })
        .await;
        if clean.is_err() {
            self.violated(Violation::Left { what: left });
        }
        self.look().await;
        Ok(())
    }

    /// How many instances the nodes call quarantined.
    async fn quarantined(&self) -> Result<usize, Error> {
        let nodes = self.tessera.gpu_nodes().await?;
        let instances = nodes.iter().flat_map(|(_, status)| &status.gpus);
        let instances = instances.flat_map(|gpu| &gpu.instances);
        Ok(instances
            .filter(|instance| instance.state == InstanceState::Quarantined)
            .count())
    }
}

/// Whether somebody else has an instance on a GPU.
fn is_foreign(node: &str, gpu: usize) -> bool {
    (node, gpu) == (FOREIGN.0, FOREIGN.1)
}

/// Whether a process is one of ours that never ends by itself.
fn is_daemon(name: &str) -> bool {
    ["webhook", "plugin"].contains(&name) || name.starts_with("agent-")
}

/// Name and id of a pod's containers, when all of them run. What was reported before its node was rebooted is no longer
/// so: such containers have started before.
fn running(pod: &Pod, rebooted: Option<Timestamp>) -> Option<Vec<(String, String)>> {
    let status = pod.status.as_ref()?;
    let runs = status.phase.as_deref() == Some("Running");
    // There are none while a kubelet that admits it no more has not said so yet.
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if !runs || pod.metadata.deletion_timestamp.is_some() || containers.is_empty() {
        return None;
    }
    containers
        .iter()
        .map(|container| {
            let running = container.state.as_ref()?.running.as_ref()?;
            let started = running.started_at.as_ref()?.0;
            let before = rebooted.is_some_and(|at| started.as_second() <= at.as_second());
            let id = container.container_id.clone()?;
            (!before).then_some((container.name.clone(), id))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerStatus;

    use super::*;

    #[test]
    fn what_started_before_a_reboot_does_not_run_any_more() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "containerID": "x://1",
                "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": { "startedAt": "2026-01-01T00:00:10Z" } } }] }
        }))
        .unwrap();
        let at = |text: &str| Some(text.parse().unwrap());
        let all = Some(vec![("c".to_owned(), "x://1".to_owned())]);
        assert_eq!(running(&pod, None), all);
        assert_eq!(running(&pod, at("2026-01-01T00:00:09.9Z")), all);
        assert_eq!(running(&pod, at("2026-01-01T00:00:10.9Z")), None);
        let with = |change: fn(&mut Vec<ContainerStatus>)| {
            let mut pod = pod.clone();
            let status = pod.status.as_mut().unwrap();
            change(status.container_statuses.as_mut().unwrap());
            pod
        };
        assert_eq!(running(&with(|all| all[0].state = None), None), None);
        assert_eq!(running(&with(Vec::clear), None), None);
    }
}
