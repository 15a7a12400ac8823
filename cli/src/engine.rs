//! Places pods: by the scheduler's own view and planning, or by a baseline that knows single devices only.

use std::collections::HashMap;

use anyhow::{anyhow, bail};
use domain::{
    claim::{Claim, ClaimedDevice, ContainerClaim, Share, Slot},
    config::Config,
    demand::{ContainerKind, Demand, Memory},
    rule::Rule,
    status::GpuNodeStatus,
};
use placement::{
    cluster::Cluster,
    layouts::Layouts,
    simulation::{self, fleet::Fleet, stock::Placed, tuning::tune},
};

/// Pods between two tunings of the weighing.
const TUNING_INTERVAL: u32 = 1_000;

/// The cluster of a simulation.
pub(crate) enum Engine<'l> {
    /// The scheduler's view and planning.
    Planning {
        cluster: Box<Cluster>,
        rule: Rule,
        placed: u32,
    },
    /// A rule for simulations only, which knows single devices.
    Baseline {
        fleet: Box<Fleet<'l>>,
        /// Node and UUID of each card.
        cards: Vec<(String, String)>,
        live: HashMap<String, Placed>,
    },
}

impl<'l> Engine<'l> {
    pub(crate) fn new(
        nodes: &[(String, GpuNodeStatus)],
        rule: Rule,
        layouts: Option<&'l Layouts>,
    ) -> anyhow::Result<Self> {
        if !rule.is_simulation_only() {
            let mut cluster = Cluster::default();
            cluster.set_rule(rule);
            for (name, status) in nodes {
                cluster.apply_node(name, status.clone());
                for (uid, claim) in claims(status) {
                    cluster.apply_pod(&uid, name, claim);
                }
            }
            return Ok(Self::Planning {
                cluster: Box::new(cluster),
                rule,
                placed: 0,
            });
        }
        let gpus = || {
            nodes
                .iter()
                .flat_map(|(name, status)| status.gpus.iter().map(move |gpu| (name, gpu)))
        };
        let layouts = layouts.ok_or_else(|| anyhow!("rule {rule} needs GPUs that support MIG"))?;
        let mut models: Vec<&str> = gpus().map(|(_, gpu)| gpu.model.as_str()).collect();
        models.dedup();
        if models.len() > 1
            || gpus().any(|(_, gpu)| !gpu.instances.is_empty() || !gpu.used_shares.is_empty())
        {
            bail!(
                "rule {rule} can only be simulated on empty GPUs of one model; use a list such as \"8 x a100-80gb\""
            );
        }
        let cards: Vec<_> = gpus()
            .map(|(name, gpu)| (name.clone(), gpu.uuid.clone()))
            .collect();
        let mut fleet = simulation::fleet(layouts, rule, u32::try_from(cards.len())?);
        fleet.node = nodes
            .iter()
            .map(|(_, status)| status.gpus.len())
            .max()
            .unwrap_or(1);
        Ok(Self::Baseline {
            fleet: Box::new(fleet),
            cards,
            live: HashMap::new(),
        })
    }

    /// Places a pod now, if there is room: on which node, with which devices.
    pub(crate) fn place(
        &mut self,
        name: &str,
        demand: &Demand,
        config: &Config,
    ) -> anyhow::Result<Option<(String, Claim)>> {
        match self {
            Self::Planning {
                cluster,
                rule,
                placed,
            } => {
                *placed += 1;
                if *rule == Rule::Tuned && placed.is_multiple_of(TUNING_INTERVAL) {
                    for (model, layouts, mix) in cluster.mixes() {
                        cluster.set_weighing(&model, tune(&layouts, &mix.parts));
                    }
                }
                let names: Vec<String> = cluster.nodes().map(|(name, _)| name.to_owned()).collect();
                let ranked = cluster.rank(names.iter().map(String::as_str), demand, config);
                let Some(choice) = ranked.into_iter().next() else {
                    return Ok(None);
                };
                cluster.apply_pod(name, &choice.node, choice.plan.claim.clone());
                Ok(Some((choice.node, choice.plan.claim)))
            }
            Self::Baseline { fleet, cards, live } => {
                let layouts = fleet.layouts();
                let profile = single(layouts, demand, config)?;
                let Some(placed) = fleet.place(profile) else {
                    return Ok(None);
                };
                live.insert(name.to_owned(), placed);
                let (node, gpu) = &cards[placed.card as usize];
                let offer = &layouts.offers[profile];
                let window = layouts.windows[usize::from(placed.window)];
                let slot = Slot {
                    gpu: gpu.clone(),
                    profile: offer.profile.clone(),
                    start: u8::try_from(window.first())?,
                    size: u8::try_from(window.count())?,
                    mem: offer.memory_mib,
                };
                let container = ContainerClaim {
                    name: demand.containers[0].name.clone(),
                    kind: demand.containers[0].kind,
                    devices: vec![ClaimedDevice::Mig(slot)],
                };
                let claim = Claim {
                    containers: vec![container],
                };
                Ok(Some((node.clone(), claim)))
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        match self {
            Self::Planning { cluster, .. } => drop(cluster.remove_pod(name)),
            Self::Baseline { fleet, live, .. } => {
                if let Some(placed) = live.remove(name) {
                    fleet.remove(placed);
                }
            }
        }
    }

    /// The scheduler's view, where there is one.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Planning { cluster, .. } => Some(cluster),
            Self::Baseline { .. } => None,
        }
    }
}

/// The smallest profile by memory, then by compute, that serves a demand of one device.
fn single(layouts: &Layouts, demand: &Demand, config: &Config) -> anyhow::Result<usize> {
    let [container] = &demand.containers[..] else {
        bail!("a baseline only places pods of one container; use --policy demand");
    };
    if container.count != 1 {
        bail!("a baseline only places pods of one device; use --policy demand");
    }
    let all = layouts.offers.iter().enumerate();
    let found = match container.memory {
        Memory::Whole => all.max_by_key(|(_, offer)| offer.size),
        Memory::Percent(_) => bail!("a baseline only knows memory in MiB; use --policy demand"),
        Memory::Mib(mib) => all
            .filter(|(_, offer)| {
                let nominal = offer.nominal_mib().filter(|_| config.nominal_memory);
                offer.memory_mib.max(nominal.unwrap_or(0)) >= mib
            })
            .min_by_key(|(_, offer)| (offer.memory_mib, offer.compute_slices)),
    };
    found
        .map(|(at, _)| at)
        .ok_or_else(|| anyhow!("no MIG profile has the memory that a pod asks for"))
}

/// The claims of the pods that have the instances and shares of a node, as far as its agent reports.
fn claims(status: &GpuNodeStatus) -> HashMap<String, Claim> {
    let mut claims: HashMap<String, Claim> = HashMap::new();
    for gpu in &status.gpus {
        for instance in &gpu.instances {
            let (Some(uid), Some(container)) = (&instance.pod_uid, &instance.container) else {
                continue;
            };
            let slot = Slot {
                gpu: gpu.uuid.clone(),
                profile: instance.profile.clone(),
                start: instance.start,
                size: instance.size,
                mem: instance.memory_mib,
            };
            let device = ClaimedDevice::Mig(slot);
            add(&mut claims, uid, container, ContainerKind::App, device);
        }
        for used in &gpu.used_shares {
            let device = ClaimedDevice::HamiCore(Share {
                gpu: gpu.uuid.clone(),
                mem: used.memory_mib,
                cores: used.cores,
            });
            add(
                &mut claims,
                &used.pod_uid,
                &used.container,
                used.kind,
                device,
            );
        }
    }
    claims
}

fn add(
    claims: &mut HashMap<String, Claim>,
    uid: &str,
    container: &str,
    kind: ContainerKind,
    device: ClaimedDevice,
) {
    let claim = claims
        .entry(uid.to_owned())
        .or_insert_with(|| Claim { containers: vec![] });
    let mut known = claim.containers.iter_mut();
    match known.find(|known| known.name == container) {
        Some(known) => known.devices.push(device),
        None => claim.containers.push(ContainerClaim {
            name: container.to_owned(),
            kind,
            devices: vec![device],
        }),
    }
}

#[cfg(test)]
mod tests {
    use domain::demand::Memory;

    use super::*;
    use crate::input;

    /// Issue 12: `kubectl get gpunodes -o yaml`, with a share of 20,000 of 24,576 MiB in use.
    const SAVED: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: tessera.dev/v1alpha1
  kind: GpuNode
  metadata: {name: n}
  status:
    mode: hami-core
    summary: 1 part
    inUse: 1
    models: [{name: NVIDIA A30, memoryMib: 24576, memorySlices: 4, computeSlices: 4, offers: []}]
    gpus:
    - index: 0
      uuid: GPU-1
      model: NVIDIA A30
      memoryMib: 24576
      mode: hami-core
      shares: 10
      instances: []
      usedShares:
      - {pod: default/a, podUid: u, container: prepare, kind: init, memoryMib: 20000, cores: 0}
      - {pod: default/a, podUid: u, container: main, memoryMib: 20000, cores: 30}
";

    #[test]
    fn shares_of_a_saved_node_are_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nodes.yaml");
        std::fs::write(&file, SAVED).unwrap();
        let nodes = input::nodes::read(file.to_str().unwrap(), 8).unwrap();
        let mut engine = Engine::new(&nodes, Rule::default(), None).unwrap();
        let mut place = |memory| {
            let mut demand = domain::fixtures::demand(0);
            demand.containers[0].memory = memory;
            let placed = engine.place("p", &demand, &Config::default()).unwrap();
            placed.is_some()
        };
        assert!(!place(Memory::Whole));
        assert!(!place(Memory::Mib(5_000)), "20,000 + 5,000 is too much");
        assert!(place(Memory::Mib(4_000)));
    }
}
