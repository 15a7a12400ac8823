//! Pods come, wait, run and go; what became of each.

use std::{
    collections::{BTreeMap, BinaryHeap},
    fmt,
};

use comfy_table::{Table, presets};
use domain::{claim::ClaimedDevice, config::Config, rule::Rule, status::GpuNodeStatus};
use indicatif::{ProgressBar, ProgressStyle};
use placement::{
    cluster::Cluster, layouts::Layouts, relocation::find_relocation, simulation::churn::Departure,
};
use serde::Serialize;

use crate::{
    engine::Engine,
    input::{SimulatedPod, index},
};

/// A table has a line for each pod up to so many; beyond that the sums say more.
const LISTED: usize = 200;

/// What a simulation found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// By which rule.
    pub policy: String,
    /// Every pod, in the order of arrival.
    pub pods: Vec<Fate>,
    /// In sum.
    pub summary: Summary,
    /// State after each arrival.
    pub series: Vec<Sample>,
}

/// What became of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fate {
    /// Its name.
    pub name: String,
    /// The node; absent while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Seconds from arrival to start; absent while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// Why it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The pods whose restart would make room for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

/// A device of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The container.
    pub container: String,
    /// NVML index of the GPU.
    pub gpu: u32,
    /// MIG profile, or `share`.
    pub profile: String,
    /// First memory slice, of an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u8>,
    /// Memory slices, of an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u8>,
    /// MiB.
    pub memory_mib: u64,
}

/// Sums.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Pods.
    pub pods: usize,
    /// Pods that were placed.
    pub placed: usize,
    /// Pods that are pending at the end.
    pub pending: usize,
    /// GPU parts given at their arrival by GPU parts asked for, percent.
    pub accepted_at_once: f64,
    /// Mean wait of those placed, seconds.
    pub mean_wait_seconds: f64,
    /// Longest wait of those placed, seconds.
    pub longest_wait_seconds: f64,
    /// Part of the GPUs that is held, percent: mean over time, and at the end.
    pub mean_utilisation: f64,
    /// At the end.
    pub utilisation: f64,
}

/// The state at a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Seconds.
    pub at: f64,
    /// Part of the GPUs that is held, percent.
    pub utilisation: f64,
    /// GPU parts given at once by GPU parts asked for, so far, percent.
    pub accepted: f64,
}

struct World<'a> {
    nodes: BTreeMap<&'a str, &'a GpuNodeStatus>,
    pods: &'a [SimulatedPod],
    config: &'a Config,
    engine: Engine<'a>,
    fates: Vec<Fate>,
    /// GPUs that each pod holds.
    parts: Vec<f64>,
    ends: BinaryHeap<Departure>,
    held: f64,
    all: f64,
}

/// Simulates; a progress bar on the standard error where that is a terminal.
#[allow(clippy::cast_precision_loss, reason = "pods are far below 2^52")]
pub fn run(
    nodes: &[(String, GpuNodeStatus)],
    pods: &[SimulatedPod],
    rule: Rule,
    config: &Config,
) -> anyhow::Result<Report> {
    let model = nodes.iter().find_map(|(_, status)| status.models.first());
    let layouts = model.and_then(Layouts::new);
    let gpus: usize = nodes.iter().map(|(_, status)| status.gpus.len()).sum();
    let engine = Engine::new(nodes, rule, layouts.as_ref())?;
    let held = engine.cluster().map_or(0.0, held_at_first);
    let mut world = World {
        nodes: nodes
            .iter()
            .map(|(name, status)| (name.as_str(), status))
            .collect(),
        pods,
        config,
        engine,
        fates: pods.iter().map(Fate::waiting).collect(),
        parts: vec![0.0; pods.len()],
        ends: BinaryHeap::new(),
        held,
        all: gpus.max(1) as f64,
    };
    let bar = ProgressBar::new(pods.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pods, {eta} left") {
        bar.set_style(style);
    }
    let mut series: Vec<Sample> = Vec::with_capacity(pods.len());
    let mut queue: Vec<usize> = Vec::new();
    let (mut asked, mut given, mut area, mut last) = (0.0, 0.0, 0.0, 0.0);
    for (number, pod) in pods.iter().enumerate() {
        while let Some(end) = world
            .ends
            .peek()
            .copied()
            .filter(|end| end.at <= pod.arrival)
        {
            world.ends.pop();
            area += world.held * (end.at - last);
            last = end.at;
            world.end(end);
            world.serve(&mut queue, end.at)?;
        }
        area += world.held * (pod.arrival - last);
        last = pod.arrival;
        queue.push(number);
        // Pods that wait were tried when something became free.
        let mut new = vec![number];
        world.serve(&mut new, pod.arrival)?;
        if new.is_empty() {
            queue.pop();
            given += world.parts[number];
        }
        asked += world.part_asked(number);
        series.push(Sample {
            at: pod.arrival,
            utilisation: 100.0 * world.held / world.all,
            accepted: 100.0 * given / f64::max(asked, f64::MIN_POSITIVE),
        });
        bar.inc(1);
    }
    // What is queued may still start while others end.
    while let Some(end) = world.ends.peek().copied().filter(|_| !queue.is_empty()) {
        world.ends.pop();
        area += world.held * (end.at - last);
        last = end.at;
        world.end(end);
        world.serve(&mut queue, end.at)?;
    }
    bar.finish_and_clear();
    world.explain(&queue);
    let waits: Vec<f64> = world
        .fates
        .iter()
        .filter_map(|fate| fate.wait_seconds)
        .collect();
    let summary = Summary {
        pods: pods.len(),
        placed: waits.len(),
        pending: queue.len(),
        accepted_at_once: series.last().map_or(0.0, |sample| sample.accepted),
        mean_wait_seconds: waits.iter().sum::<f64>() / (waits.len().max(1) as f64),
        longest_wait_seconds: waits.iter().copied().fold(0.0, f64::max),
        mean_utilisation: if last > 0.0 {
            100.0 * area / last / world.all
        } else {
            100.0 * world.held / world.all
        },
        utilisation: 100.0 * world.held / world.all,
    };
    Ok(Report {
        policy: rule.to_string(),
        pods: world.fates,
        summary,
        series,
    })
}

/// GPUs that running pods hold before anything comes.
fn held_at_first(cluster: &Cluster) -> f64 {
    let names: Vec<&str> = cluster.nodes().map(|(name, _)| name).collect();
    let cards = names.into_iter().flat_map(|name| cluster.cards(name));
    cards.map(|card| card.used()).sum()
}

impl World<'_> {
    fn end(&mut self, Departure { pod, .. }: Departure) {
        self.engine.remove(&self.pods[pod].name);
        self.held -= self.parts[pod];
    }

    /// Places those that have room now, in order; they leave the queue. Nobody holds up another.
    fn serve(&mut self, queue: &mut Vec<usize>, now: f64) -> anyhow::Result<()> {
        let mut in_vain: Vec<usize> = Vec::new();
        let mut rest = Vec::new();
        for &number in queue.iter() {
            let pod = &self.pods[number];
            let same = |other: &usize| self.pods[*other].demand == pod.demand;
            if in_vain.iter().any(same) {
                rest.push(number);
                continue;
            }
            let Some((node, claim)) = self.engine.place(&pod.name, &pod.demand, self.config)?
            else {
                in_vain.push(number);
                rest.push(number);
                continue;
            };
            let status = self.nodes.get(node.as_str()).copied();
            self.fates[number].start(&node, &claim, status, now - pod.arrival);
            let part = claim.devices().map(|device| part(device, status)).sum();
            self.parts[number] = part;
            self.held += part;
            if let Some(lifetime) = pod.lifetime {
                self.ends.push(Departure {
                    at: now + lifetime,
                    pod: number,
                });
            }
        }
        *queue = rest;
        Ok(())
    }

    /// The GPUs that a pod asks for: what it got, or else by memory.
    #[allow(
        clippy::cast_precision_loss,
        reason = "memory sizes are far below 2^52"
    )]
    fn part_asked(&self, number: usize) -> f64 {
        if self.parts[number] > 0.0 {
            return self.parts[number];
        }
        let largest = self.nodes.values().flat_map(|status| &status.gpus);
        let largest = largest.map(|gpu| gpu.memory_mib).max().unwrap_or(1).max(1) as f64;
        let containers = &self.pods[number].demand.containers;
        let parts = containers.iter().map(|container| {
            let part = match container.memory {
                domain::demand::Memory::Whole => 1.0,
                domain::demand::Memory::Mib(mib) => mib as f64 / largest,
                domain::demand::Memory::Percent(percent) => f64::from(percent) / 100.0,
            };
            part * f64::from(container.count)
        });
        parts.sum()
    }

    /// Says why those that are pending are, and whose restart would help.
    fn explain(&mut self, queue: &[usize]) {
        let Some(cluster) = self.engine.cluster() else {
            return;
        };
        let mut known: Vec<(usize, String, Vec<String>)> = Vec::new();
        for &number in queue {
            let demand = &self.pods[number].demand;
            let same = known
                .iter()
                .find(|(other, ..)| self.pods[*other].demand == *demand);
            let (reason, restart) = if let Some((_, reason, restart)) = same {
                (reason.clone(), restart.clone())
            } else {
                let reason = reason(cluster, &self.pods[number], self.config);
                let restart = self.restart(cluster, number);
                known.push((number, reason.clone(), restart.clone()));
                (reason, restart)
            };
            self.fates[number].reason = Some(reason);
            self.fates[number].restart = restart;
        }
    }

    fn restart(&self, cluster: &Cluster, number: usize) -> Vec<String> {
        let found = find_relocation(cluster, &self.pods[number].demand, self.config, 3, |_| true);
        let moves = found.into_iter().flat_map(|relocation| relocation.moves);
        moves.map(|(uid, _)| self.pod_name(&uid)).collect()
    }

    /// `namespace/name` of a pod that ran before, by its UID; our own go by their name.
    fn pod_name(&self, uid: &str) -> String {
        let gpus = self.nodes.values().flat_map(|status| &status.gpus);
        let mut instances = gpus.flat_map(|gpu| &gpu.instances);
        let known = instances.find(|instance| instance.pod_uid.as_deref() == Some(uid));
        known
            .and_then(|instance| instance.pod.clone())
            .unwrap_or_else(|| uid.to_owned())
    }
}

/// The refusals of all nodes in one sentence, as in the pod's event.
fn reason(cluster: &Cluster, pod: &SimulatedPod, config: &Config) -> String {
    let names: Vec<&str> = cluster.nodes().map(|(name, _)| name).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        if let Err(refusal) = cluster.plan(name, &pod.demand, config) {
            let words = if names.len() > 3 {
                refusal.to_string()
            } else {
                format!("{refusal:#}")
            };
            *counts.entry(words).or_default() += 1;
        }
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(words, count)| format!("{count} {words}"))
        .collect();
    format!("0/{} nodes: {}", names.len(), parts.join("; "))
}

/// The part of a GPU that a device is.
#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
fn part(device: &ClaimedDevice, status: Option<&GpuNodeStatus>) -> f64 {
    let gpu = status.and_then(|s| s.gpus.iter().find(|gpu| gpu.uuid == device.gpu()));
    match device {
        ClaimedDevice::Mig(slot) => {
            let model = gpu.and_then(|gpu| status?.model(&gpu.model));
            f64::from(slot.size) / f64::from(model.map_or(8, |model| model.memory_slices.max(1)))
        }
        ClaimedDevice::HamiCore(share) => {
            share.mem as f64 / gpu.map_or(1, |gpu| gpu.memory_mib.max(1)) as f64
        }
    }
}

impl Fate {
    fn waiting(pod: &SimulatedPod) -> Self {
        Self {
            name: pod.name.clone(),
            node: None,
            devices: vec![],
            wait_seconds: None,
            reason: None,
            restart: vec![],
        }
    }

    fn start(
        &mut self,
        node: &str,
        claim: &domain::claim::Claim,
        status: Option<&GpuNodeStatus>,
        wait: f64,
    ) {
        let gpus = status
            .map(|status| status.gpus.as_slice())
            .unwrap_or_default();
        self.node = Some(node.to_owned());
        self.wait_seconds = Some(wait);
        self.devices = claim
            .containers
            .iter()
            .flat_map(|container| {
                container
                    .devices
                    .iter()
                    .map(move |device| (container, device))
            })
            .map(|(container, device)| {
                let slot = device.slot();
                Device {
                    container: container.name.clone(),
                    gpu: index(gpus, device.gpu()),
                    profile: slot.map_or_else(|| "share".to_owned(), |slot| slot.profile.clone()),
                    start: slot.map(|slot| slot.start),
                    size: slot.map(|slot| slot.size),
                    memory_mib: device.memory_mib(),
                }
            })
            .collect();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pods.len() <= LISTED {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(["POD", "NODE", "GPU", "PROFILE", "START", "MIB", "WAIT"]);
            for pod in &self.pods {
                let wait = pod
                    .wait_seconds
                    .map_or_else(String::new, |wait| format!("{wait:.0}s"));
                for device in &pod.devices {
                    table.add_row([
                        pod.name.clone(),
                        pod.node.clone().unwrap_or_default(),
                        device.gpu.to_string(),
                        device.profile.clone(),
                        device
                            .start
                            .map_or_else(String::new, |start| start.to_string()),
                        device.memory_mib.to_string(),
                        wait.clone(),
                    ]);
                }
                if pod.node.is_none() {
                    table.add_row([pod.name.as_str(), "<pending>", "", "", "", "", ""]);
                }
            }
            writeln!(f, "{table}")?;
        }
        let mut told: Vec<(&str, &[String], Vec<&str>)> = Vec::new();
        for pod in self.pods.iter().filter(|pod| pod.node.is_none()) {
            let reason = pod.reason.as_deref().unwrap_or("no room by this policy");
            match told.iter_mut().find(|(known, ..)| *known == reason) {
                Some((.., names)) => names.push(&pod.name),
                None => told.push((reason, &pod.restart, vec![&pod.name])),
            }
        }
        for (reason, restart, names) in told {
            let others = names.len() - 1;
            let more = if others > 0 {
                format!(" and {others} more")
            } else {
                String::new()
            };
            writeln!(f, "\n{}{more} pending: {reason}", names[0])?;
            if !restart.is_empty() {
                writeln!(
                    f,
                    "  {} would fit after a restart of {}",
                    names[0],
                    restart.join(", ")
                )?;
            }
        }
        let s = &self.summary;
        writeln!(
            f,
            "\n{}: {} of {} pods placed, {:.1} % of what was asked for at once; wait {:.0} s mean, {:.0} s longest; GPUs {:.1} % held on average, {:.1} % at the end",
            self.policy,
            s.placed,
            s.pods,
            s.accepted_at_once,
            s.mean_wait_seconds,
            s.longest_wait_seconds,
            s.mean_utilisation,
            s.utilisation,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input;

    fn report(nodes: &str, pods: &str, rule: Rule) -> Report {
        let config = Config::default();
        let pods = input::pods(pods, &config).unwrap();
        run(&input::nodes(nodes, 8).unwrap(), &pods, rule, &config).unwrap()
    }

    #[test]
    fn pods_wait_run_and_go() {
        let trace = "name,arrival,lifetime,gpumem\na,0,10,24000\nb,1,10,20000\nc,2,10,5000\n";
        for rule in [Rule::Demand, Rule::FirstFit] {
            let report = report("1 x a30", trace, rule);
            let waits: Vec<_> = report.pods.iter().map(|pod| pod.wait_seconds).collect();
            assert_eq!(waits, [Some(0.0), Some(9.0), Some(18.0)]);
            assert_eq!((report.summary.placed, report.summary.pending), (3, 0));
            assert!((report.series[0].utilisation - 100.0).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_pending_says_why_and_whose_restart_would_help() {
        let singles = "arrival,lifetime,gpumem\n".to_owned()
            + "0,5,39000\n0,100,9000\n0,100,9000\n0,100,9000\n0,100,9000\n6,,80000\n6,,70000\n";
        let report = report("1 x a100-80gb", &singles, Rule::Demand);
        let pending: Vec<_> = report
            .pods
            .iter()
            .filter(|pod| pod.node.is_none())
            .collect();
        assert!(
            pending[0]
                .reason
                .as_ref()
                .unwrap()
                .starts_with("0/1 nodes: 1 "),
            "{report}"
        );
        let text = report.to_string();
        assert!(
            text.contains("pending") && text.contains("7g.80gb"),
            "{text}"
        );
    }
}
