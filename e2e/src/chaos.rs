//! Random pods on nodes whose parts are killed at random, and an independent look at what must hold.
//!
//! The checker compares the API server's pods with the simulator's cards, behind NVML: no two pods share
//! slices; a running pod has exactly its instances, the same ones all its life; nothing of ours is
//! without a pod for long; what somebody else made is as it was.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use daemon::pods;
use domain::{Claim, Slot};
use e2e::{Component, Options, Tessera, image::IMAGE, tessera::agent, wait::until};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use nvml_sim::store::{Action, Control, Rule};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde_json::json;

/// Pods that are there at a time, at most.
const PODS: usize = 40;
/// How long an instance of ours may be without a pod: an agent's restart, an outage of the API server, retries.
const UNACCOUNTED: Duration = Duration::from_secs(30);
/// Time between two disturbances.
const CALM: Duration = Duration::from_secs(6);
/// Nodes with MIG cards.
const NODES: [&str; 2] = ["real", "hollow-h100"];
/// Where somebody else's instance is: node, card, first slice.
const FOREIGN: (&str, usize, u8) = ("hollow-h100", 7, 6);

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    AgentKilled,
    PluginKilled,
    WebhookKilled,
    SchedulerKilled,
    KubeletRestarted,
    ApiServerAway,
    DestroyInUse,
    CreateFails,
}

const DISTURBANCES: [Disturbance; 8] = [
    Disturbance::AgentKilled,
    Disturbance::PluginKilled,
    Disturbance::WebhookKilled,
    Disturbance::SchedulerKilled,
    Disturbance::KubeletRestarted,
    Disturbance::ApiServerAway,
    Disturbance::DestroyInUse,
    Disturbance::CreateFails,
];

/// An instance behind NVML: node, card UUID, first slice, size.
type Place = (String, String, u8, u8);
/// Which one it is: GPU instance id and serial number.
type Identity = (u32, u32);

#[derive(Default)]
struct Tally {
    created: u64,
    deleted: u64,
    ran: std::collections::BTreeSet<String>,
    failed: BTreeMap<String, u64>,
    disturbances: BTreeMap<Disturbance, u64>,
    checks: u64,
    violations: Vec<String>,
    longest_unaccounted: Duration,
}

/// What the checker remembers from look to look.
#[derive(Default)]
struct Memory {
    /// Of each running pod: where its instances are and which ones.
    identities: BTreeMap<String, BTreeMap<Place, Identity>>,
    /// Since when an instance has had no pod.
    unaccounted: BTreeMap<(Place, Identity), Instant>,
}

pub(crate) async fn run(dir: &Path, duration: Duration, seed: u64) -> anyhow::Result<()> {
    let options = Options {
        idle_ttl: Some(2),
        ..Options::default()
    };
    let tessera = Tessera::up(dir, options, |step| println!("{step}")).await?;
    let (node, card, start) = FOREIGN;
    let foreign = tessera.gpus(node).with(|state| {
        let card = &mut state.cards[card];
        let smallest = card.model().profiles.iter().min_by_key(|p| p.size);
        let profile = smallest.map_or((0, 1), |p| (p.id, p.size));
        card.create_at(profile.0, start, profile.1)
    })?;
    ensure!(foreign.is_ok(), "cannot make the foreign instance");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut tally, mut memory) = (Tally::default(), Memory::default());
    let foreign = find_foreign(&tessera)?;
    let started = Instant::now();
    let mut disturbed = Instant::now();
    // Each kind once, then again in another order.
    let mut coming: Vec<Disturbance> = vec![];
    let mut looked = Instant::now();
    while started.elapsed() < duration {
        act(&tessera, &mut random, &mut tally).await;
        if disturbed.elapsed() > CALM {
            if coming.is_empty() {
                coming = DISTURBANCES.to_vec();
                coming.shuffle(&mut random);
            }
            let Some(what) = coming.pop() else { continue };
            *tally.disturbances.entry(what).or_default() += 1;
            disturb(&tessera, what, &mut random).await?;
            disturbed = Instant::now();
        }
        if looked.elapsed() > Duration::from_secs(1) {
            look(&tessera, &mut tally, &mut memory, foreign).await;
            looked = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for node in NODES {
        tessera.gpus(node).control(None)?;
    }
    let pods: Api<Pod> = Api::default_namespaced(tessera.cluster.client());
    let everything = ListParams::default();
    pods.delete_collection(&DeleteParams::default(), &everything)
        .await?;
    let mut left = 0;
    let clean = until(
        "all instances but the foreign one to be gone",
        UNACCOUNTED * 2,
        async || {
            let pods = pods.list(&everything).await.ok()?.items.len();
            left = truth(&tessera).ok()?.len();
            (pods == 0 && left == 1).then_some(())
        },
    )
    .await;
    if let Err(error) = clean {
        let error = format!("{error:#}: {left} are left");
        tally.violations.push(error);
    }
    if find_foreign(&tessera)? != foreign {
        tally
            .violations
            .push("the foreign instance is another".to_owned());
    }
    print(&tally, started.elapsed());
    ensure!(tally.violations.is_empty(), "see above");
    Ok(())
}

fn print(tally: &Tally, took: Duration) {
    println!("\nafter {} s:", took.as_secs());
    println!("{:32}{:>8}", "pods created", tally.created);
    println!("{:32}{:>8}", "pods deleted", tally.deleted);
    println!("{:32}{:>8}", "pods that were seen running", tally.ran.len());
    for (reason, count) in &tally.failed {
        println!("{:32}{count:>8}", format!("pods failed: {reason}"));
    }
    for (what, count) in &tally.disturbances {
        println!("{:32}{count:>8}", format!("{what:?}"));
    }
    println!("{:32}{:>8}", "looks at cards and API server", tally.checks);
    let longest = tally.longest_unaccounted.as_secs_f64();
    println!("{:32}{longest:>8.1}", "longest without a pod, seconds");
    println!("{:32}{:>8}", "violations", tally.violations.len());
    for violation in &tally.violations {
        println!("  {violation}");
    }
}

/// Creates or deletes a pod. What the API server refuses while it or the webhook is away is not counted.
async fn act(tessera: &Tessera, random: &mut StdRng, tally: &mut Tally) {
    let pods: Api<Pod> = Api::default_namespaced(tessera.cluster.client());
    let Ok(all) = pods.list(&ListParams::default()).await else {
        return;
    };
    let live: Vec<&Pod> = all
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
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
            tally.created += 1;
        }
    } else if let Some(pod) = live.choose(random) {
        let force = random.random_bool(0.2);
        let params = DeleteParams {
            grace_period_seconds: force.then_some(0),
            ..DeleteParams::default()
        };
        if pods.delete(&pod.name_any(), &params).await.is_ok() {
            tally.deleted += 1;
        }
    }
}

async fn disturb(tessera: &Tessera, what: Disturbance, random: &mut StdRng) -> anyhow::Result<()> {
    let processes = &tessera.cluster.processes;
    let node = *NODES.choose(random).unwrap_or(&NODES[0]);
    let pause = Duration::from_millis(random.random_range(0..1_500));
    let fault = |call: &str, code, times| Control {
        rules: vec![Rule {
            call: call.to_owned(),
            gpu: None,
            nth: None,
            times: Some(times),
            action: Action::Code(code),
        }],
        ..Control::default()
    };
    let killed = match what {
        Disturbance::AgentKilled => agent(node),
        Disturbance::PluginKilled => "plugin".to_owned(),
        Disturbance::WebhookKilled => "webhook".to_owned(),
        Disturbance::SchedulerKilled => "tessera-scheduler".to_owned(),
        Disturbance::KubeletRestarted => {
            processes.restart(Component::Kubelet.name()).await?;
            return Ok(());
        }
        Disturbance::ApiServerAway => {
            processes.stop(Component::ApiServer.name()).await?;
            tokio::time::sleep(Duration::from_secs(2) + pause).await;
            processes.start_again(Component::ApiServer.name())?;
            tessera.cluster.api_server_answers().await?;
            return Ok(());
        }
        // NVML_ERROR_IN_USE and NVML_ERROR_UNKNOWN.
        Disturbance::DestroyInUse => {
            let times = random.random_range(1..8);
            let fault = fault("nvmlGpuInstanceDestroy", 19, times);
            tessera.gpus(node).control(Some(&fault))?;
            return Ok(());
        }
        Disturbance::CreateFails => {
            let times = random.random_range(1..3);
            let fault = fault("nvmlDeviceCreateGpuInstanceWithPlacement", 999, times);
            tessera.gpus(node).control(Some(&fault))?;
            return Ok(());
        }
    };
    processes.crash(&killed).await?;
    tokio::time::sleep(pause).await;
    processes.start_again(&killed)?;
    Ok(())
}

/// Every instance that exists, behind NVML.
fn truth(tessera: &Tessera) -> anyhow::Result<BTreeMap<Place, Identity>> {
    let mut all = BTreeMap::new();
    for node in NODES {
        for card in tessera.gpus(node).snapshot()?.cards {
            for instance in &card.instances {
                let place = (node.to_owned(), card.uuid(), instance.start, instance.size);
                all.insert(place, (instance.id, instance.serial));
            }
        }
    }
    Ok(all)
}

fn find_foreign(tessera: &Tessera) -> anyhow::Result<Option<Identity>> {
    let (node, card, start) = FOREIGN;
    let state = tessera.gpus(node).snapshot()?;
    let instances = state.cards[card].instances.iter();
    let mut at = instances.filter(|instance| instance.start == start);
    Ok(at.next().map(|instance| (instance.id, instance.serial)))
}

/// The claims of the pods that hold something, by UID: node, claim and the pod.
async fn claims(tessera: &Tessera) -> kube::Result<BTreeMap<String, (String, Claim, Pod)>> {
    let pods: Api<Pod> = Api::default_namespaced(tessera.cluster.client());
    let all = pods.list(&ListParams::default()).await?;
    let holding = all.into_iter().filter(|pod| !pods::is_over(pod));
    let holding = holding.filter_map(|pod| {
        let claim = pods::claim(&pod)?.ok()?;
        let node = pods::node(&pod)?.to_owned();
        Some((pod.uid()?, (node, claim, pod)))
    });
    Ok(holding.collect())
}

fn runs(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

async fn look(
    tessera: &Tessera,
    tally: &mut Tally,
    memory: &mut Memory,
    foreign: Option<Identity>,
) {
    // What is the same before and after the look at the cards was so during it.
    let Ok(before) = claims(tessera).await else {
        return;
    };
    let Ok(cards) = truth(tessera) else { return };
    let Ok(after) = claims(tessera).await else {
        return;
    };
    tally.checks += 1;
    let place =
        |node: &str, slot: &Slot| (node.to_owned(), slot.gpu.clone(), slot.start, slot.size);
    let mut held: Vec<(&str, &str, &Slot)> = Vec::new();
    for (uid, (node, claim, pod)) in &after {
        for slot in claim.slots() {
            let other = held.iter().find(|(other, _, known)| {
                other != uid && known.gpu == slot.gpu && known.slices().overlaps(slot.slices())
            });
            if let Some((_, name, _)) = other {
                let both = format!("{} and {name} share slices of {}", pod.name_any(), slot.gpu);
                tally.violations.push(both);
            }
            held.push((uid, pod.metadata.name.as_deref().unwrap_or(""), slot));
        }
        let steady = before.get(uid).is_some_and(|(_, _, pod)| runs(pod)) && runs(pod);
        if !steady {
            continue;
        }
        tally.ran.insert(uid.clone());
        let mut own = BTreeMap::new();
        for slot in claim.slots() {
            let place = place(node, slot);
            match cards.get(&place) {
                Some(identity) => drop(own.insert(place, *identity)),
                None => tally.violations.push(format!(
                    "{} runs without its {} at {} of {}",
                    pod.name_any(),
                    slot.profile,
                    slot.start,
                    slot.gpu
                )),
            }
        }
        let known = memory
            .identities
            .entry(uid.clone())
            .or_insert_with(|| own.clone());
        if *known != own {
            let changed = format!("{} had {known:?} and has {own:?}", pod.name_any());
            tally.violations.push(changed);
            *known = own;
        }
    }
    let claimed = |wanted: &Place| {
        let of = |all: &BTreeMap<String, (String, Claim, Pod)>| {
            all.values()
                .any(|(node, claim, _)| claim.slots().any(|slot| place(node, slot) == *wanted))
        };
        of(&before) || of(&after)
    };
    unaccounted(cards, claimed, foreign, tally, memory);
    sweep(tessera, tally).await;
    let (node, ..) = FOREIGN;
    if find_foreign(tessera).ok().flatten() != foreign {
        tally
            .violations
            .push(format!("the foreign instance of {node} is another"));
    }
}

/// Notes the instances that no pod claims, and since when.
fn unaccounted(
    cards: BTreeMap<Place, Identity>,
    claimed: impl Fn(&Place) -> bool,
    foreign: Option<Identity>,
    tally: &mut Tally,
    memory: &mut Memory,
) {
    let mut found = BTreeMap::new();
    for (place, identity) in cards {
        let is_foreign = Some(identity) == foreign && place.0 == FOREIGN.0 && place.2 == FOREIGN.2;
        if is_foreign || claimed(&place) {
            continue;
        }
        let key = (place, identity);
        let since = memory
            .unaccounted
            .get(&key)
            .copied()
            .unwrap_or_else(Instant::now);
        let long = since.elapsed();
        tally.longest_unaccounted = tally.longest_unaccounted.max(long);
        if long > UNACCOUNTED {
            tally
                .violations
                .push(format!("{key:?} has had no pod for {} s", long.as_secs()));
        }
        found.insert(key, since);
    }
    memory.unaccounted = found;
}

/// Counts and deletes the pods that have ended: nobody else does.
async fn sweep(tessera: &Tessera, tally: &mut Tally) {
    let pods: Api<Pod> = Api::default_namespaced(tessera.cluster.client());
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
            *tally.failed.entry(reason).or_default() += 1;
        }
    }
}
