//! Nodes, pods and the queue under arrivals and departures.

use std::collections::{BTreeMap, BinaryHeap};

use domain::{config::Config, rule::Rule, status::GpuNodeStatus};
use indicatif::{ProgressBar, ProgressStyle};
use placement::{cluster::Cluster, layouts::Layouts, simulation::churn::Departure};

use super::{
    explain::{reason, restart},
    report::{Fate, Report, Sample, Summary},
    usage::{Usage, gpus_asked_for, gpus_of_claim},
};
use crate::{
    engine::Engine,
    input::{nodes::Node, pod::SimulatedPod},
};

struct World<'a> {
    nodes: BTreeMap<&'a str, &'a GpuNodeStatus>,
    pods: &'a [SimulatedPod],
    config: &'a Config,
    engine: Engine<'a>,
    fates: Vec<Fate>,
    /// GPUs that each pod has or had.
    gpus: Vec<f64>,
    departures: BinaryHeap<Departure>,
    /// Pods that wait, in the order of arrival.
    queue: Vec<usize>,
    usage: Usage,
}

/// GPUs asked for so far, and those of them that were given on arrival.
#[derive(Debug, Default)]
struct Acceptance {
    asked: f64,
    given: f64,
}

/// Simulates; shows a progress bar on the standard error where that is a terminal.
pub fn run(
    nodes: &[Node],
    pods: &[SimulatedPod],
    rule: Rule,
    config: &Config,
) -> anyhow::Result<Report> {
    let model = nodes.iter().find_map(|(_, status)| status.models.first());
    let layouts = model.and_then(Layouts::new);
    let engine = Engine::new(nodes, rule, layouts.as_ref())?;
    let mut world = World::new(nodes, pods, engine, config);
    let bar = progress_bar(pods.len());
    let mut acceptance = Acceptance::default();
    let mut series: Vec<Sample> = Vec::with_capacity(pods.len());
    for (number, pod) in pods.iter().enumerate() {
        world.depart_until(pod.arrival)?;
        if world.arrive(number)? {
            acceptance.given += world.gpus[number];
        }
        acceptance.asked += world.gpus_asked(number);
        series.push(Sample {
            at: pod.arrival,
            utilisation: world.usage.percent(),
            accepted: 100.0 * acceptance.given / f64::max(acceptance.asked, f64::MIN_POSITIVE),
        });
        bar.inc(1);
    }
    world.drain()?;
    bar.finish_and_clear();
    world.explain();
    Ok(Report {
        policy: rule.to_string(),
        summary: world.summary(series.last()),
        pods: world.fates,
        series,
    })
}

fn progress_bar(pods: usize) -> ProgressBar {
    let bar = ProgressBar::new(pods as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pods, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// GPUs that running pods have before the first arrival.
fn gpus_in_use(cluster: &Cluster) -> f64 {
    let names: Vec<&str> = cluster.nodes().map(|(name, _)| name).collect();
    let cards = names.into_iter().flat_map(|name| cluster.cards(name));
    cards.map(|card| card.used()).sum()
}

impl<'a> World<'a> {
    fn new(
        nodes: &'a [Node],
        pods: &'a [SimulatedPod],
        engine: Engine<'a>,
        config: &'a Config,
    ) -> Self {
        let gpus: usize = nodes.iter().map(|(_, status)| status.gpus.len()).sum();
        let used = engine.cluster().map_or(0.0, gpus_in_use);
        let nodes = nodes.iter().map(|(name, status)| (name.as_str(), status));
        Self {
            nodes: nodes.collect(),
            pods,
            config,
            engine,
            fates: pods.iter().map(Fate::pending).collect(),
            gpus: vec![0.0; pods.len()],
            departures: BinaryHeap::new(),
            queue: Vec::new(),
            usage: Usage::new(used, gpus),
        }
    }

    /// Lets the pods leave whose lifetime is over, and places those that wait after each.
    fn depart_until(&mut self, now: f64) -> anyhow::Result<()> {
        while self.departures.peek().is_some_and(|next| next.at <= now) {
            self.depart()?;
        }
        self.usage.advance_to(now);
        Ok(())
    }

    /// Lets pods leave until nobody waits any more, or nobody leaves.
    fn drain(&mut self) -> anyhow::Result<()> {
        while !self.queue.is_empty() && !self.departures.is_empty() {
            self.depart()?;
        }
        Ok(())
    }

    /// Lets the next pod leave, and places those that wait.
    fn depart(&mut self) -> anyhow::Result<()> {
        let Some(Departure { at, pod }) = self.departures.pop() else {
            return Ok(());
        };
        self.usage.advance_to(at);
        self.engine.remove(&self.pods[pod].name);
        self.usage.give_back(self.gpus[pod]);
        let queue = std::mem::take(&mut self.queue);
        self.queue = self.place_all(&queue, at)?;
        Ok(())
    }

    /// Places a pod that arrives, or lets it wait; returns whether it was placed.
    fn arrive(&mut self, number: usize) -> anyhow::Result<bool> {
        // Those that wait already were tried when something became free.
        let waits = self.place_all(&[number], self.pods[number].arrival)?;
        self.queue.extend(&waits);
        Ok(waits.is_empty())
    }

    /// Places those that fit now, in order, and returns the others. No pod holds up another.
    fn place_all(&mut self, numbers: &[usize], now: f64) -> anyhow::Result<Vec<usize>> {
        let mut in_vain: Vec<usize> = Vec::new();
        let mut rest = Vec::new();
        for &number in numbers {
            let demand = &self.pods[number].demand;
            if in_vain
                .iter()
                .any(|other| self.pods[*other].demand == *demand)
            {
                rest.push(number);
            } else if !self.place(number, now)? {
                in_vain.push(number);
                rest.push(number);
            }
        }
        Ok(rest)
    }

    fn place(&mut self, number: usize, now: f64) -> anyhow::Result<bool> {
        let pod = &self.pods[number];
        let placed = self.engine.place(&pod.name, &pod.demand, self.config)?;
        let Some((node, claim)) = placed else {
            return Ok(false);
        };
        let status = self.nodes.get(node.as_str()).copied();
        self.fates[number].start(&node, &claim, status, now - pod.arrival);
        self.gpus[number] = gpus_of_claim(&claim, status);
        self.usage.take(self.gpus[number]);
        if let Some(lifetime) = pod.lifetime {
            self.departures.push(Departure {
                at: now + lifetime,
                pod: number,
            });
        }
        Ok(true)
    }

    /// The GPUs that a pod asks for: what it got, or else by memory.
    fn gpus_asked(&self, number: usize) -> f64 {
        if self.gpus[number] > 0.0 {
            return self.gpus[number];
        }
        let gpus = self.nodes.values().flat_map(|status| &status.gpus);
        let largest = gpus.map(|gpu| gpu.memory_mib).max().unwrap_or(1);
        gpus_asked_for(&self.pods[number].demand, largest)
    }

    /// Notes for the pods that are pending why, and whose restart would help.
    fn explain(&mut self) {
        let Some(cluster) = self.engine.cluster() else {
            return;
        };
        let mut known: Vec<(usize, String, Vec<String>)> = Vec::new();
        for &number in &self.queue {
            let demand = &self.pods[number].demand;
            let same = |(other, ..): &&(usize, _, _)| self.pods[*other].demand == *demand;
            let (reason, restart) = if let Some((_, reason, restart)) = known.iter().find(same) {
                (reason.clone(), restart.clone())
            } else {
                let reason = reason(cluster, demand, self.config);
                let restart = restart(cluster, demand, self.config);
                known.push((number, reason.clone(), restart.clone()));
                (reason, restart)
            };
            self.fates[number].reason = Some(reason);
            self.fates[number].restart = restart;
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "pods are far below 2^52")]
    fn summary(&self, last: Option<&Sample>) -> Summary {
        let waits = self.fates.iter().filter_map(|fate| fate.wait_seconds);
        let waits: Vec<f64> = waits.collect();
        Summary {
            pods: self.pods.len(),
            placed: waits.len(),
            pending: self.queue.len(),
            accepted_at_once: last.map_or(0.0, |sample| sample.accepted),
            mean_wait_seconds: waits.iter().sum::<f64>() / (waits.len().max(1) as f64),
            longest_wait_seconds: waits.iter().copied().fold(0.0, f64::max),
            mean_utilisation: self.usage.mean_percent(),
            utilisation: self.usage.percent(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input;

    fn report(nodes: &str, pods: &str, rule: Rule) -> Report {
        let config = Config::default();
        let pods = input::pods::read(pods, &config).unwrap();
        run(&input::nodes::read(nodes, 8).unwrap(), &pods, rule, &config).unwrap()
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
    fn a_pending_pod_has_a_reason_and_the_restart_that_would_help() {
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
