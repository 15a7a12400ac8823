//! Random pods on nodes whose parts are disturbed at random, and a checker of what must hold.
//!
//! The checker compares the API server's pods with the simulated GPUs, behind NVML, and both with
//! what the nodes publish and what the containers were created with: [`violation`] is the list.

mod checker;
mod disturbance;
mod faults;
mod frozen;
mod inflict;
mod limits;
mod look;
mod nodes;
mod observe;
mod pods;
mod tally;
mod violation;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use domain::gpu::InstanceState;
use e2e::{
    error::Error,
    teardown::clean_clocks,
    tessera::{Options, Tessera, agent},
    wait::until,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::time::Instant;

use self::{
    checker::Checker,
    disturbance::{DISTURBANCES, Disturbance},
    frozen::Frozen,
    limits::{IDLE_TTL, quarantine_interval, unclaimed_limit},
    nodes::{FOREIGN, NODES},
    tally::{Tally, print},
    violation::Violation,
};

/// Time between two disturbances.
const DISTURBANCE_INTERVAL: Duration = Duration::from_secs(6);

/// A run.
struct Chaos {
    tessera: Tessera,
    random: StdRng,
    started: Instant,
    tally: Tally,
    checker: Checker,
    /// Processes that are down, and until when.
    away: BTreeMap<String, Instant>,
    frozen: Vec<Frozen>,
    /// Nodes with a GPU on which nothing can be destroyed, and until when.
    storms: Vec<(&'static str, Instant)>,
    clock_back: Option<Instant>,
    /// When each node was rebooted last.
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
    chaos.check_clocks()?;
    // An agent surveys its GPUs when it starts, and then only every half minute.
    let agent = agent(FOREIGN.0);
    chaos.tessera.cluster.processes.crash(&agent).await?;
    chaos.make_foreign()?;
    chaos.tessera.start_agent_again(FOREIGN.0).await?;
    // Frozen processes continue when `chaos` is dropped, on an interrupt too.
    tokio::select! {
        ended = chaos.run_for(duration) => ended?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; the cluster is still running"),
    }
    print(&chaos.tally, &chaos.checker, chaos.started.elapsed());
    let violations = chaos.tally.violations.len();
    ensure!(violations == 0, "{violations} violations, see above");
    Ok(())
}

impl Chaos {
    /// Disturbs and looks until the time is over, then checks that nothing is left.
    async fn run_for(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.started = Instant::now();
        let (mut disturbed, mut looked) = (self.started, self.started);
        // Each kind once, then all again in another order.
        let mut coming: Vec<Disturbance> = vec![];
        while self.started.elapsed() < duration {
            self.restore().await?;
            self.create_or_delete_pod().await;
            if disturbed.elapsed() > DISTURBANCE_INTERVAL {
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

    /// A random time in this range of milliseconds.
    fn random_time(&mut self, milliseconds: Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(milliseconds))
    }

    fn report(&mut self, violation: Violation) {
        let at = self.started.elapsed();
        self.tally
            .violations
            .entry(violation)
            .or_insert_with_key(|violation| {
                println!("{:6.1} s VIOLATION: {violation}", at.as_secs_f64());
                at
            });
    }

    /// Without libfaketime moving the clocks would do nothing.
    fn check_clocks(&self) -> anyhow::Result<()> {
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
        faults::make_foreign(&self.tessera.gpus(node))?;
        let uuid = self.simulated_gpus(node)?.gpus[gpu].uuid();
        let all = self.instances_behind_nvml()?;
        let mut there = all
            .into_iter()
            .filter(|(place, _)| place.node == node && place.gpu == uuid && place.start == start);
        let (place, instance) = there.next().context("it was made")?;
        self.checker.expect_foreign(place, instance.identity);
        Ok(())
    }

    /// Ends what is over of the disturbances, and starts processes again that ended, as init systems and kubelets do.
    async fn restore(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.frozen.retain(|frozen| frozen.until > now);
        if self.clock_back.is_some_and(|at| at <= now) {
            self.clock_back = None;
            self.tessera.set_clock("+0")?;
        }
        for (node, _) in self.storms.extract_if(.., |(_, until)| *until <= now) {
            faults::end_storm(&self.tessera.cluster.state_dir.gpus(node)).await?;
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
                    self.report(Violation::Ended { process });
                } else {
                    let times = self.tally.exits.entry(name.clone());
                    *times.or_default() += 1;
                }
                self.away.insert(name, now + Duration::from_secs(1));
            }
        }
        Ok(())
    }

    async fn look(&mut self) {
        let Ok(look) = self.observe().await else {
            // Nor can an agent publish anything.
            self.checker.saw_nothing();
            return;
        };
        self.tally.looks += 1;
        for violation in self.checker.look(&look) {
            self.report(violation);
        }
        self.delete_ended_pods().await;
    }

    /// Ends all disturbances, deletes all pods, and waits until every instance but the foreign one is gone.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.frozen.clear();
        self.tessera.set_clock("+0")?;
        for node in NODES {
            self.tessera.gpus(node).control(None)?;
        }
        while !self.away.is_empty() {
            self.restore().await?;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        self.tessera.cluster.api_server_is_ready().await?;
        let (pods, everything) = (self.pods(), ListParams::default());
        pods.delete_collection(&DeleteParams::default(), &everything)
            .await?;
        let mut left = String::new();
        let clean = until("nothing to be left", quarantine_interval() + unclaimed_limit(), async || {
            let pods = pods.list(&everything).await.ok()?.items.len();
            let truth = self.instances_behind_nvml().ok()?;
            let published = self.published().await.ok()?;
            let stuck = self.quarantined().await.ok()?;
            let of = |node: &str| truth.keys().filter(|place| place.node == node).count();
            let equal = NODES
                .iter()
                .all(|node| published.get(*node).map(BTreeSet::len) == Some(of(node)));
            left = format!(
                "{pods} pods, {} instances including the foreign one, {stuck} quarantined; what is published {} what exists",
                truth.len(), if equal { "is" } else { "differs from" }
            );
            (pods == 0 && truth.len() == 1 && stuck == 0 && equal).then_some(())
        })
        .await;
        if clean.is_err() {
            self.report(Violation::Left { what: left });
        }
        self.look().await;
        Ok(())
    }

    /// How many instances the nodes publish as quarantined.
    async fn quarantined(&self) -> Result<usize, Error> {
        let nodes = self.tessera.gpu_nodes().await?;
        let instances = nodes.iter().flat_map(|(_, status)| &status.gpus);
        let instances = instances.flat_map(|gpu| &gpu.instances);
        Ok(instances
            .filter(|instance| instance.state == InstanceState::Quarantined)
            .count())
    }
}

/// Whether a process is a daemon of Tessera, which never exits by itself.
fn is_daemon(name: &str) -> bool {
    ["webhook", "plugin"].contains(&name) || name.starts_with("agent-")
}
