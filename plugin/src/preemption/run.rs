//! The task that evicts pods for those that found no node.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use domain::{demand::Demand, pod::PodName};
use kube::runtime::events::Recorder;
use placement::cluster::{PodInfo, PodUid};
use tokio::sync::mpsc;

use super::{
    evict::{self, Outcome, Reason},
    limits::RelocationLimits,
    relocate::select_relocation,
    select::{departing_pods, select_victims},
};
use crate::{
    context::Context,
    unschedulable::{UnschedulablePod, UnschedulablePods},
};

/// How long an evicted pod counts as departing although the watch has not shown it.
const EVICTION_VISIBLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long what becomes free is reserved for the pod: longer than most grace periods.
const RESERVATION_TIMEOUT: Duration = Duration::from_mins(2);
/// Number of sets of victims that are tried for a pod, when disruption budgets protect some.
const MAX_ATTEMPTS: usize = 4;

/// Pods to evict.
struct Eviction {
    node: String,
    /// Empty where the departing pods free enough.
    victims: Vec<PodUid>,
    reason: Reason,
}

struct Preemptor {
    context: Context,
    unschedulable: UnschedulablePods,
    recorder: Recorder,
    /// The pods that were evicted of late, and when.
    evicted: HashMap<PodUid, Instant>,
    limits: RelocationLimits,
}

/// For each pod in `unplaced`: evicts the cheapest victims, where there are any, for ever.
pub(crate) async fn run(
    context: Context,
    unschedulable: UnschedulablePods,
    mut unplaced: mpsc::UnboundedReceiver<PodUid>,
) {
    let mut preemptor = Preemptor {
        recorder: evict::recorder(context.client.clone()),
        context,
        unschedulable,
        evicted: HashMap::new(),
        limits: RelocationLimits::default(),
    };
    while let Some(uid) = unplaced.recv().await {
        preemptor.preempt_for(&uid).await;
    }
}

impl Preemptor {
    async fn preempt_for(&mut self, uid: &str) {
        self.evicted
            .retain(|_, at| at.elapsed() < EVICTION_VISIBLE_TIMEOUT);
        self.limits.expire(Instant::now());
        let mut protected = BTreeSet::new();
        for _ in 0..MAX_ATTEMPTS {
            let Some(pod) = self.unschedulable.tried_lately(uid) else {
                return;
            };
            let Some(eviction) = self.select(uid, &pod, &protected).await else {
                return;
            };
            match self.evict_all(uid, &pod.name, &eviction).await {
                None => return self.reserve(uid, &pod.demand, &eviction),
                Some(victim) => protected.insert(victim),
            };
        }
    }

    async fn select(
        &self,
        uid: &str,
        pod: &UnschedulablePod,
        protected: &BTreeSet<PodUid>,
    ) -> Option<Eviction> {
        let config = &self.context.config;
        let evicted: BTreeSet<PodUid> = self.evicted.keys().cloned().collect();
        let selected = {
            let cluster = self.context.cluster.read();
            select_victims(&cluster, uid, pod, config, &evicted, protected)
        };
        match selected {
            Some((node, victims)) if config.preemption || victims.is_empty() => Some(Eviction {
                node,
                victims,
                reason: Reason::Preempted,
            }),
            _ if !self.limits.allow_for(uid) => None,
            _ => {
                let limits = &self.limits;
                let relocation = select_relocation(&self.context, pod, protected, limits);
                let (node, victim) = relocation.await?;
                Some(Eviction {
                    node,
                    victims: vec![victim],
                    reason: Reason::Relocated,
                })
            }
        }
    }

    /// Evicts the victims in order; returns the first that a disruption budget protects, and stops there.
    async fn evict_all(
        &mut self,
        waiting: &str,
        pod: &PodName,
        eviction: &Eviction,
    ) -> Option<PodUid> {
        let Eviction {
            node,
            victims,
            reason,
        } = eviction;
        for uid in victims {
            let Some(PodInfo {
                name: victim,
                controller,
                ..
            }) = self.info(uid)
            else {
                continue;
            };
            match evict::evict(&self.context.client, &victim, uid).await {
                Ok(Outcome::Evicted) => {
                    self.evicted.insert(uid.clone(), Instant::now());
                    if let (Reason::Relocated, Some(controller)) = (reason, &controller) {
                        self.limits.count(waiting, controller, Instant::now());
                    }
                    let why = reason.as_str();
                    tracing::info!(%pod, %victim, node, reason = why, "Evicted a pod");
                    evict::report(&self.recorder, (&victim, uid), *reason, pod, node).await;
                }
                Ok(Outcome::Protected) => {
                    tracing::info!(%pod, %victim, "A disruption budget protects the victim");
                    return Some(uid.clone());
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%pod, %victim, error, "Cannot evict a pod");
                }
            }
        }
        None
    }

    /// What is known of a pod that holds a claim.
    fn info(&self, uid: &str) -> Option<PodInfo> {
        self.context.cluster.read().pod_info(uid).cloned()
    }

    /// Reserves what becomes free for the pod, so that no other pod takes it, least of all the evicted ones.
    fn reserve(&self, uid: &str, demand: &Demand, eviction: &Eviction) {
        let Context {
            cluster, config, ..
        } = &self.context;
        let evicted = eviction.victims.iter().cloned().collect();
        let mut cluster = cluster.write();
        let departing = departing_pods(&cluster, &eviction.node, uid, &evicted);
        let plan = cluster.plan_without(&eviction.node, demand, config, &departing);
        if let Ok(plan) = plan {
            let deadline = self.context.deadline(RESERVATION_TIMEOUT);
            cluster.reserve(uid, &eviction.node, plan.claim, deadline);
        }
    }
}
