//! Properties of planning, compared with brute force over everything that is legal.

use std::collections::BTreeMap;

use proptest::prelude::*;

use domain::{
    claim::{Claim, Slot},
    config::Config,
    demand::{ContainerDemand, ContainerKind, Demand, Memory},
    fixtures,
    gpu::{Model, Offer},
    mode::VgpuMode,
    slices::Slices,
    status::GpuNodeStatus,
};

use crate::cluster::Cluster;

fn model() -> impl Strategy<Value = Model> {
    prop::sample::select(fixtures::models())
}

fn memory() -> impl Strategy<Value = Memory> {
    prop_oneof![
        1 => Just(Memory::Whole),
        6 => (1u64..90_000).prop_map(Memory::Mib),
        2 => (1u32..=100).prop_map(Memory::Percent),
    ]
}

fn container(kind: ContainerKind) -> impl Strategy<Value = ContainerDemand> {
    let cores = prop_oneof![3 => Just(0u32), 1 => 1u32..=100];
    (1u32..=2, memory(), cores).prop_map(move |(count, memory, cores)| ContainerDemand {
        name: String::new(),
        kind,
        count,
        memory,
        cores,
    })
}

fn kind() -> impl Strategy<Value = ContainerKind> {
    prop_oneof![
        Just(ContainerKind::Init),
        Just(ContainerKind::Sidecar),
        Just(ContainerKind::App)
    ]
}

fn demand(kinds: impl Strategy<Value = ContainerKind>) -> impl Strategy<Value = Demand> {
    let containers = prop::collection::vec(kinds.prop_flat_map(container), 1..=3);
    containers.prop_map(|mut containers| {
        // In the order in which they start: applications last.
        containers.sort_by_key(|container| container.kind == ContainerKind::App);
        for (at, container) in containers.iter_mut().enumerate() {
            container.name = format!("c{at}");
        }
        Demand {
            mode: Some(VgpuMode::Mig),
            containers,
            ..Demand::default()
        }
    })
}

/// A node of which some legal, disjoint slots are held by other pods.
fn world() -> impl Strategy<Value = (GpuNodeStatus, Vec<Slot>)> {
    let picks = prop::collection::vec((0usize..2, any::<prop::sample::Index>()), 0..8);
    (model(), picks).prop_map(|(model, picks)| {
        let status = fixtures::node("n", &model, 2, VgpuMode::Mig);
        let mut held: Vec<Slot> = Vec::new();
        for (gpu, pick) in picks {
            let gpu = &status.gpus[gpu].uuid;
            let all: Vec<Slot> = legal(&model, gpu, |_| true);
            let slot = pick.get(&all).clone();
            if !held.iter().any(|other| collide(other, &slot)) {
                held.push(slot);
            }
        }
        (status, held)
    })
}

fn collide(a: &Slot, b: &Slot) -> bool {
    a.gpu == b.gpu && a.slices().overlaps(b.slices())
}

/// Every placement that NVML would take on an empty card.
fn legal(model: &Model, gpu: &str, wanted: impl Fn(&Offer) -> bool) -> Vec<Slot> {
    let offers = model.offers.iter().filter(|offer| wanted(offer));
    offers
        .flat_map(|offer| {
            offer.starts.iter().map(|&start| Slot {
                gpu: gpu.to_owned(),
                profile: offer.profile.clone(),
                start,
                size: offer.size,
                mem: offer.memory_mib,
            })
        })
        .collect()
}

/// Whether an offer has what is asked for, implemented a second time in the simplest way.
fn enough(model: &Model, offer: &Offer, demand: &ContainerDemand) -> bool {
    let memory = match demand.memory {
        Memory::Whole => Some(offer) == model.whole(),
        Memory::Mib(mib) => offer.memory_mib.max(offer.nominal_mib().unwrap_or(0)) >= mib,
        Memory::Percent(percent) => {
            offer.memory_mib.max(offer.nominal_mib().unwrap_or(0)) * 100
                >= model.memory_mib * u64::from(percent)
        }
    };
    offer.is_plain() && memory && model.cores_percent(offer) >= demand.cores
}

/// The slots that may serve a device: those of the smallest memory size that is enough.
fn may_serve(model: &Model, status: &GpuNodeStatus, demand: &ContainerDemand) -> Vec<Slot> {
    let sizes = model
        .offers
        .iter()
        .filter(|offer| enough(model, offer, demand));
    let Some(smallest) = sizes.map(|offer| offer.memory_mib).min() else {
        return vec![];
    };
    let serves = |offer: &Offer| enough(model, offer, demand) && offer.memory_mib == smallest;
    let gpus = status.gpus.iter();
    gpus.flat_map(|gpu| legal(model, &gpu.uuid, serves))
        .collect()
}

/// Tries every combination of slots for containers that all run together.
fn fits(options: &[Vec<Slot>], held: &mut Vec<Slot>) -> bool {
    let Some((first, rest)) = options.split_first() else {
        return true;
    };
    first.iter().any(|slot| {
        if held.iter().any(|other| collide(other, slot)) {
            return false;
        }
        held.push(slot.clone());
        let fits = fits(rest, held);
        held.pop();
        fits
    })
}

fn cluster(status: &GpuNodeStatus, held: &[Slot]) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.apply_node("n", status.clone());
    for (number, slot) in held.iter().enumerate() {
        cluster.apply_pod(&format!("held-{number}"), "n", claim_of(slot));
    }
    cluster
}

fn claim_of(slot: &Slot) -> Claim {
    Claim {
        containers: vec![domain::claim::ContainerClaim {
            name: "c".to_owned(),
            kind: ContainerKind::App,
            devices: vec![domain::claim::ClaimedDevice::Mig(slot.clone())],
        }],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// A pod is placed exactly when some combination of legal placements exists.
    #[test]
    fn a_plan_exists_exactly_when_brute_force_finds_one(
        (status, mut held) in world(),
        demand in demand(prop_oneof![Just(ContainerKind::App), Just(ContainerKind::Sidecar)]),
    ) {
        let model = &status.models[0];
        let options: Vec<Vec<Slot>> = demand
            .containers
            .iter()
            .flat_map(|c| std::iter::repeat_n(may_serve(model, &status, c), c.count as usize))
            .collect();
        let planned = cluster(&status, &held).plan("n", &demand, &Config::default());
        prop_assert_eq!(planned.is_ok(), fits(&options, &mut held), "{:?}", planned);
    }

    /// Every slot of a plan is legal, large enough, and free while its container runs.
    #[test]
    fn a_plan_holds_what_it_promises((status, held) in world(), demand in demand(kind())) {
        let model = &status.models[0];
        let Ok(plan) = cluster(&status, &held).plan("n", &demand, &Config::default()) else {
            return Ok(());
        };
        let mut of: BTreeMap<&str, Vec<&Slot>> = BTreeMap::new();
        for (asked, got) in demand.containers.iter().zip(&plan.claim.containers) {
            prop_assert_eq!(&asked.name, &got.name);
            prop_assert_eq!(asked.count as usize, got.devices.len());
            for slot in got.devices.iter().filter_map(|device| device.slot()) {
                let offer = model.offer(&slot.profile).unwrap();
                prop_assert!(offer.starts.contains(&slot.start) && offer.size == slot.size);
                prop_assert!(enough(model, offer, asked), "{slot:?} for {asked:?}");
                prop_assert!(!held.iter().any(|other| collide(other, slot)), "{slot:?} is held");
                of.entry(&asked.name).or_default().push(slot);
            }
        }
        // All but the ordinary init containers run together, and each of these with the sidecars.
        let running = |wanted: &dyn Fn(&ContainerDemand) -> bool| -> Vec<&Slot> {
            let containers = demand.containers.iter().filter(|c| wanted(c));
            containers.flat_map(|c| of[c.name.as_str()].clone()).collect()
        };
        let mut moments = vec![running(&|c| c.kind != ContainerKind::Init)];
        for init in demand.containers.iter().filter(|c| c.kind == ContainerKind::Init) {
            moments.push(running(&|c| c.kind == ContainerKind::Sidecar || c.name == init.name));
        }
        for slots in moments {
            for (at, slot) in slots.iter().enumerate() {
                prop_assert!(!slots[..at].iter().any(|other| collide(other, slot)), "{slots:?}");
            }
        }
    }

    /// The same view gives the same plan, in whatever order its parts came.
    #[test]
    fn a_plan_does_not_depend_on_the_order_of_events(
        (status, held) in world(),
        demand in demand(kind()),
    ) {
        let mut backwards = Cluster::default();
        for (number, slot) in held.iter().enumerate().rev() {
            backwards.apply_pod(&format!("held-{number}"), "n", claim_of(slot));
        }
        backwards.apply_node("n", status.clone());
        let config = Config::default();
        let plan = |cluster: &Cluster| cluster.plan("n", &demand, &config).map(|plan| plan.claim);
        prop_assert_eq!(plan(&cluster(&status, &held)), plan(&backwards));
    }

    /// However pods come and go, no two claims hold one slice, and a claim survives the wire.
    #[test]
    fn no_two_claims_overlap(
        status in model().prop_map(|model| fixtures::node("n", &model, 2, VgpuMode::Mig)),
        steps in prop::collection::vec((demand(kind()), any::<prop::sample::Index>(), 0u8..3), 1..25),
    ) {
        let mut cluster = Cluster::default();
        cluster.apply_node("n", status.clone());
        let mut live: Vec<(String, Claim)> = Vec::new();
        for (number, (demand, victim, what)) in steps.into_iter().enumerate() {
            if what == 0 && !live.is_empty() {
                let (uid, _) = live.swap_remove(victim.index(live.len()));
                cluster.remove_pod(&uid);
                continue;
            }
            if let Ok(plan) = cluster.plan("n", &demand, &Config::default()) {
                let claim = Claim::from_annotation(&plan.claim.to_annotation()).unwrap();
                prop_assert_eq!(&claim, &plan.claim);
                let uid = format!("u{number}");
                cluster.apply_pod(&uid, "n", claim.clone());
                live.push((uid, claim));
            }
        }
        for gpu in &status.gpus {
            let slices = live.iter().map(|(_, claim)| claim.slices(&gpu.uuid));
            let sum: u32 = slices.clone().map(Slices::count).sum();
            prop_assert_eq!(sum, slices.collect::<Slices>().count());
        }
    }
}
