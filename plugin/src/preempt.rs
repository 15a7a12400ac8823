//! Preemption by placement: which pods of lower priority make room for a pod that found none.
//!
//! kube-scheduler's own preemption (`framework/preemption`) looks for victims with its own filters only,
//! and asks an extender about nodes where it found some. GPU memory is scarce to us alone, so it
//! finds none and does not ask: it is asked where CPU or memory is scarce too ([`preempt`]), and the
//! common case is carried out here ([`run`]), by the Eviction API, which keeps disruption budgets.
//!
//! Where nobody is less important, one pod that allows it (`nvidia.com/allow-restart`) is restarted
//! elsewhere, if that alone makes room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use daemon::follow::Shared;
use domain::{config::Config, demand::Demand, keys};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use placement::{
    cluster::{Cluster, PodUid},
    preemption::{Victim, victims},
    relocation::find_relocation,
};
use tokio::sync::mpsc;

use crate::{
    bind::Binder,
    protocol::{ExtenderPreemptionArgs, ExtenderPreemptionResult, MetaPod, MetaVictims},
    wake::{Refused, Waiting},
};

/// How long those that were evicted for a pod are taken to be ending without having been seen so.
const EVICTED: Duration = Duration::from_secs(30);
/// How long what becomes free is set aside for the pod: longer than most grace periods.
const SET_ASIDE: Duration = Duration::from_mins(2);
/// How often another set is looked for when a budget protects one of the chosen.
const TRIES: usize = 4;

/// Completes the victims that kube-scheduler found by those that make room on the GPUs; drops the nodes where nothing does.
pub fn preempt(
    args: ExtenderPreemptionArgs,
    cluster: &Cluster,
    config: &Config,
) -> ExtenderPreemptionResult {
    let meta = args.node_name_to_meta_victims.unwrap_or_default();
    let full = args.node_name_to_victims.unwrap_or_default();
    let full = full.into_iter().map(|(node, victims)| {
        let pods = victims.pods.iter().filter_map(ResourceExt::uid);
        let pods = pods.map(|uid| MetaPod { uid }).collect();
        let violations = victims.violations;
        (node, MetaVictims { pods, violations })
    });
    let asked: BTreeMap<String, MetaVictims> = meta.into_iter().chain(full).collect();
    let demand = Demand::read(&daemon::pods::request(&args.pod), config);
    let Ok(Some(demand)) = demand else {
        return ExtenderPreemptionResult {
            node_name_to_meta_victims: asked,
        };
    };
    let priority = args.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    let complete = |(node, mut found): (String, MetaVictims)| {
        let already: BTreeSet<&str> = found.pods.iter().map(|pod| pod.uid.as_str()).collect();
        let lower = lower(cluster, &node, priority, &BTreeSet::new());
        let more = victims(cluster, &node, &demand, config, &lower, &already)?;
        found
            .pods
            .extend(more.into_iter().map(|uid| MetaPod { uid }));
        Some((node, found))
    };
    ExtenderPreemptionResult {
        node_name_to_meta_victims: asked.into_iter().filter_map(complete).collect(),
    }
}

/// The pods of a node that a pod of this priority may displace.
fn lower(cluster: &Cluster, node: &str, priority: i32, spared: &BTreeSet<PodUid>) -> Vec<Victim> {
    let pods = cluster.pods_on(node).filter(|uid| !spared.contains(*uid));
    let known = pods.filter_map(|uid| Some((uid, cluster.pod_info(uid)?)));
    known
        .filter(|(_, info)| info.priority < priority)
        .map(|(uid, info)| Victim {
            uid: uid.to_owned(),
            priority: info.priority,
            violates: false,
        })
        .collect()
}

/// The node and the pods on it to evict; no pods where what is ending makes room already.
fn choose(
    cluster: &Cluster,
    own: &str,
    refused: &Refused,
    config: &Config,
    evicted: &BTreeSet<PodUid>,
    spared: &BTreeSet<PodUid>,
) -> Option<(String, Vec<PodUid>)> {
    // One that displaces nobody still waits for what is ending.
    let priority = refused.priority.unwrap_or(i32::MIN);
    let mut best = None;
    let named: Vec<&str> = if refused.nodes.is_empty() {
        cluster.nodes().map(|(name, _)| name).collect()
    } else {
        refused.nodes.iter().map(String::as_str).collect()
    };
    for node in named {
        let ending: BTreeSet<&str> = cluster
            .pods_on(node)
            .filter(|uid| evicted.contains(*uid) || cluster.pod_info(uid).is_some_and(|a| a.ending))
            .chain(cluster.releasing(node))
            // What was set aside for it.
            .chain([own])
            .collect();
        let lower = lower(cluster, node, priority, spared);
        let Some(set) = victims(cluster, node, &refused.demand, config, &lower, &ending) else {
            continue;
        };
        if set.is_empty() {
            return Some((node.to_owned(), set));
        }
        let of = |uid: &PodUid| cluster.pod_info(uid).map_or(0, |info| info.priority);
        let highest = set.iter().map(of).max().unwrap_or(0);
        let sum: i64 = set.iter().map(|uid| i64::from(of(uid))).sum();
        let cost = (highest, sum, set.len());
        if best.as_ref().is_none_or(|(known, _)| cost < *known) {
            best = Some((cost, (node.to_owned(), set)));
        }
    }
    best.map(|(_, found)| found)
}

/// For each pod that every node refused: evicts the cheapest victims, where there are any; for ever.
pub async fn run(binder: Binder, waiting: Waiting, mut refused: mpsc::UnboundedReceiver<PodUid>) {
    let Binder {
        client,
        cluster,
        config,
        ..
    } = binder.clone();
    let reporter = Reporter {
        controller: "tessera-plugin".to_owned(),
        instance: None,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut evicted: HashMap<PodUid, Instant> = HashMap::new();
    while let Some(uid) = refused.recv().await {
        evicted.retain(|_, at| at.elapsed() < EVICTED);
        let mut spared = BTreeSet::new();
        for _ in 0..TRIES {
            let Some(pod) = waiting.get(&uid) else { break };
            let known: BTreeSet<PodUid> = evicted.keys().cloned().collect();
            let found = choose(&cluster.read(), &uid, &pod, &config, &known, &spared);
            let (node, set, why) = match found {
                Some((node, set)) if config.preemption || set.is_empty() => {
                    (node, set, Why::Priority)
                }
                _ => match by_restart(&cluster, &pod, &config, &spared).await {
                    Some((node, uid)) => (node, vec![uid], Why::Room),
                    None => break,
                },
            };
            let mut protected = false;
            for victim in &set {
                let name = cluster
                    .read()
                    .pod_info(victim)
                    .map(|info| info.name.to_string());
                let Some(name) = name else { continue };
                match evict(&client, &name, victim).await {
                    Ok(()) => {
                        evicted.insert(victim.clone(), Instant::now());
                        let reason = why.reason();
                        tracing::info!(
                            pod = pod.name,
                            victim = name,
                            node,
                            reason,
                            "Evicted a pod"
                        );
                        tell(&recorder, &name, victim, reason, why.note(&pod.name, &node)).await;
                    }
                    Err(kube::Error::Api(status)) if status.code == 429 => {
                        tracing::info!(victim = name, "A disruption budget protects the pod");
                        spared.insert(victim.clone());
                        protected = true;
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(victim = name, error, "Cannot evict a pod");
                    }
                }
                if protected {
                    break;
                }
            }
            if !protected {
                set_aside(&binder, &uid, &pod.demand, &node, &set);
                break;
            }
        }
    }
}

/// Holds what becomes free for the pod, so that nobody else takes it in the meantime, those that were evicted least of all.
fn set_aside(binder: &Binder, uid: &str, demand: &Demand, node: &str, evicted: &[PodUid]) {
    let mut cluster = binder.cluster.write();
    let ending = cluster.pods_on(node).filter(|pod| {
        evicted.iter().any(|uid| uid == pod) || cluster.pod_info(pod).is_some_and(|a| a.ending)
    });
    let gone: BTreeSet<&str> = ending.chain(cluster.releasing(node)).chain([uid]).collect();
    let plan = cluster.plan_without(node, demand, &binder.config, &gone);
    if let Ok(plan) = plan {
        let until = u64::try_from(SET_ASIDE.as_millis()).unwrap_or(u64::MAX);
        cluster.assume(uid, node, plan.claim, binder.now() + until);
    }
}

async fn evict(client: &Client, name: &str, uid: &str) -> kube::Result<()> {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = EvictParams {
        delete_options: Some(DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        }),
        ..EvictParams::default()
    };
    match api.evict(name, &params).await {
        Ok(_) => Ok(()),
        // Gone, or another of its name.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why a pod is evicted.
#[derive(Clone, Copy)]
enum Why {
    Priority,
    Room,
}

impl Why {
    fn reason(self) -> &'static str {
        match self {
            Self::Priority => "Preempted",
            Self::Room => "Moved",
        }
    }

    fn note(self, pod: &str, node: &str) -> String {
        match self {
            Self::Priority => format!(
                "Preempted by pod {pod} on node {node}: it has a higher priority and finds no free GPU slices"
            ),
            Self::Room => format!(
                "Restarted elsewhere, as {} allows, to make room on node {node} for pod {pod}",
                keys::ALLOW_RESTART
            ),
        }
    }
}

/// The one pod whose restart makes room, of those that allow it, and the node it leaves.
async fn by_restart(
    cluster: &Shared,
    refused: &Refused,
    config: &Config,
    spared: &BTreeSet<PodUid>,
) -> Option<(String, PodUid)> {
    let view = {
        let cluster = cluster.read();
        let mut all = cluster.nodes().flat_map(|(name, _)| cluster.pods_on(name));
        let any = all.any(|uid| cluster.pod_info(uid).is_some_and(|info| info.movable));
        any.then(|| cluster.clone())?
    };
    let (demand, config, spared) = (refused.demand.clone(), config.clone(), spared.clone());
    // Every placement of every movable pod is looked at: not on the thread that answers kube-scheduler.
    let found = tokio::task::spawn_blocking(move || {
        find_relocation(&view, &demand, &config, 1, |uid| {
            !spared.contains(uid) && view.pod_info(uid).is_some_and(|a| a.movable && !a.ending)
        })
    });
    let relocation = found.await.ok()??;
    let (uid, _) = relocation.moves.into_iter().next()?;
    Some((relocation.choice.node, uid))
}

async fn tell(recorder: &Recorder, name: &str, uid: &str, reason: &str, note: String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Preempting".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &about).await {
        tracing::warn!(%error, "Cannot tell an event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, mode::VgpuMode, pod::PodName};
    use placement::cluster::PodInfo;
    use serde_json::json;

    fn pod(mib: &str, priority: i32) -> serde_json::Value {
        json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "priority": priority,
            "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": "1", "nvidia.com/gpumem": mib } } }] } })
    }

    /// A card whose halves are held by `a` of priority 1 and `b` of priority 5.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        for (uid, priority) in [("a", 1), ("b", 5)] {
            let half: Pod = serde_json::from_value(pod("40000", 0)).unwrap();
            let demand = Demand::read(&daemon::pods::request(&half), &Config::default());
            let plan = cluster
                .plan("n", &demand.unwrap().unwrap(), &Config::default())
                .unwrap();
            cluster.apply_pod(uid, "n", plan.claim);
            let info = PodInfo {
                name: PodName::new("default", uid),
                priority,
                ending: false,
                movable: false,
            };
            cluster.set_pod_info(uid, info);
        }
        cluster
    }

    fn asked(mib: &str, priority: i32, victims: &[&str]) -> BTreeMap<String, Vec<String>> {
        // As Go writes it.
        let victims: Vec<_> = victims.iter().map(|uid| json!({ "UID": uid })).collect();
        let args = json!({ "Pod": pod(mib, priority), "NodeNameToVictims": null,
            "NodeNameToMetaVictims": { "n": { "Pods": victims, "NumPDBViolations": 0 } } });
        let args = serde_json::from_value(args).unwrap();
        let result = preempt(args, &cluster(), &Config::default());
        let text = serde_json::to_value(&result).unwrap();
        assert!(text["NodeNameToMetaVictims"].is_object(), "{text}");
        let nodes = result.node_name_to_meta_victims.into_iter();
        let uids = |victims: MetaVictims| victims.pods.into_iter().map(|pod| pod.uid).collect();
        nodes.map(|(node, victims)| (node, uids(victims))).collect()
    }

    #[test]
    fn victims_are_completed_by_those_that_hold_slices() {
        let one = |uids: &[&str]| {
            let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
            BTreeMap::from([("n".to_owned(), uids)])
        };
        assert_eq!(
            asked("40000", 9, &["cpu"]),
            one(&["cpu", "a"]),
            "the lower one"
        );
        assert_eq!(asked("40000", 9, &["b"]), one(&["b"]), "that is enough");
        assert_eq!(asked("80000", 9, &["cpu"]), one(&["cpu", "a", "b"]));
        assert_eq!(
            asked("80000", 5, &["cpu"]),
            BTreeMap::new(),
            "b is as important"
        );
    }

    #[test]
    fn nothing_more_is_evicted_while_what_ends_makes_room() {
        let refused = |priority| Refused::new("default/p", pod_demand("40000"), Some(priority));
        let (none, config) = (BTreeSet::new(), Config::default());
        let mut cluster = cluster();
        let chosen = choose(&cluster, "u", &refused(9), &config, &none, &none);
        assert_eq!(chosen, Some(("n".to_owned(), vec!["a".to_owned()])));
        let spared = BTreeSet::from(["a".to_owned()]);
        let chosen = choose(&cluster, "u", &refused(9), &config, &none, &spared);
        assert_eq!(chosen, Some(("n".to_owned(), vec!["b".to_owned()])));
        let waits = Some(("n".to_owned(), vec![]));
        let chosen = choose(&cluster, "u", &refused(9), &config, &spared, &none);
        assert_eq!(chosen, waits, "a was evicted");
        assert_eq!(
            choose(&cluster, "u", &refused(1), &config, &none, &none),
            None
        );
        let never = Refused::new("default/p", pod_demand("40000"), None);
        assert_eq!(choose(&cluster, "u", &never, &config, &none, &none), None);
        let info = PodInfo {
            ending: true,
            ..cluster.pod_info("b").unwrap().clone()
        };
        cluster.set_pod_info("b", info);
        assert_eq!(
            choose(&cluster, "u", &refused(9), &config, &none, &none),
            waits
        );
    }

    fn pod_demand(mib: &str) -> Demand {
        let pod: Pod = serde_json::from_value(pod(mib, 0)).unwrap();
        let demand = Demand::read(&daemon::pods::request(&pod), &Config::default());
        demand.unwrap().unwrap()
    }
}
