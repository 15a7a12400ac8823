//! The cluster as the scheduler sees it: inventories, claims and assumed claims. Fed by watches, read by planning.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    card::Card,
    layouts::Layouts,
    mix::Mix,
    plan::{Plan, plan},
    potential::{Potential, Weighing},
    rule::{fills_empty_cards, many_cards_empty, weighing},
};
use domain::{
    claim::Claim,
    config::Config,
    demand::{Demand, Policy},
    gpu::{InstanceState, Model},
    mode::VgpuMode,
    pod::PodName,
    refusal::Refusal,
    rule::Rule,
    status::GpuNodeStatus,
};

/// UID of a pod.
pub type PodUid = String;

/// All nodes and all claims.
///
/// Everything in it is on the API server too (`GpuNode` status, pod annotations), except assumed
/// claims, which live from the decision to bind until the pod's watch event.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, GpuNodeStatus>,
    pods: HashMap<PodUid, ClaimedPod>,
    by_node: HashMap<String, BTreeSet<PodUid>>,
    /// Whether a node's kubelet has devices to allocate, for the nodes that were seen.
    allocatable: HashMap<String, bool>,
    /// How many instances of each profile are claimed: the mix that placements are weighed by.
    claimed: BTreeMap<String, u32>,
    rule: Rule,
    weighed: Vec<Weighed>,
    /// For each node what its cards add to the counts, in the order of `weighed`.
    counts: HashMap<String, Vec<Count>>,
}

/// A model of card that some node has, and its potential in the mix of now.
#[derive(Clone, Debug)]
struct Weighed {
    model: Model,
    layouts: Layouts,
    mix: Mix,
    weighing: Weighing,
    potential: Potential,
    /// The potential while many cards are empty, where the rule has one.
    filling: Option<Potential>,
    count: Count,
}

impl Weighed {
    fn new(model: Model, layouts: Layouts, mix: Mix, rule: Rule) -> Self {
        let weighing = weighing(rule).unwrap_or_default();
        let filling = fills_empty_cards(rule);
        Self {
            potential: Potential::new(&layouts, weighing, &mix),
            filling: filling.then(|| Potential::new(&layouts, Weighing::Filling, &mix)),
            model,
            layouts,
            mix,
            weighing,
            count: Count::default(),
        }
    }

    fn potential(&self) -> &Potential {
        match &self.filling {
            Some(filling) if many_cards_empty(self.count.cards, self.count.empty) => filling,
            _ => &self.potential,
        }
    }
}

/// MIG cards of a model, and those of which nothing is held.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    cards: u32,
    empty: u32,
}

/// A pod that holds a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClaimedPod {
    node: String,
    claim: Claim,
    /// Until when an assumed claim is believed without having been seen, milliseconds; `None`: seen.
    deadline: Option<u64>,
    /// `None` until the pod was seen.
    info: Option<PodInfo>,
}

/// What is known of a pod that holds a claim, beside the claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its namespace and name.
    pub name: PodName,
    /// Its priority.
    pub priority: i32,
    /// Whether it is terminating.
    pub ending: bool,
    /// Whether it may be restarted elsewhere to make room.
    pub movable: bool,
}

/// A node that can take a demand.
#[derive(Clone, Debug)]
pub struct NodeChoice {
    /// The node.
    pub node: String,
    /// How it would.
    pub plan: Plan,
}

impl Cluster {
    /// Places by another rule from now on; one that weighs no states counts as the default.
    pub fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
        for weighed in &mut self.weighed {
            let count = weighed.count;
            let (model, layouts) = (weighed.model.clone(), weighed.layouts.clone());
            *weighed = Weighed::new(model, layouts, weighed.mix.clone(), rule);
            weighed.count = count;
        }
    }

    /// The models of MIG cards, with the mix that is claimed: what [`tune`](crate::simulation::tuning::tune) asks for.
    pub fn mixes(&self) -> Vec<(String, Layouts, Mix)> {
        let all = self.weighed.iter();
        all.map(|w| (w.model.name.clone(), w.layouts.clone(), w.mix.clone()))
            .collect()
    }

    /// Weighs the states of a model's cards otherwise from now on; tells whether that is new.
    pub fn set_weighing(&mut self, model: &str, weighing: Weighing) -> bool {
        let mut changed = false;
        for weighed in &mut self.weighed {
            if weighed.model.name == model && weighed.weighing != weighing {
                weighed.weighing = weighing;
                weighed.potential = Potential::new(&weighed.layouts, weighing, &weighed.mix);
                changed = true;
            }
        }
        changed
    }

    /// Takes over what a node's agent published.
    pub fn apply_node(&mut self, name: &str, status: GpuNodeStatus) {
        for model in &status.models {
            if !self.weighed.iter().any(|known| known.model == *model)
                && let Some(layouts) = Layouts::new(model)
            {
                let mix = Mix::of_claims(&layouts.offers, &self.claimed);
                self.weighed
                    .push(Weighed::new(model.clone(), layouts, mix, self.rule));
            }
        }
        self.nodes.insert(name.to_owned(), status);
        self.count(name);
    }

    /// Takes over whether a node's kubelet has devices to allocate; returns whether that is new.
    pub fn set_allocatable(&mut self, node: &str, allocatable: bool) -> bool {
        self.allocatable.insert(node.to_owned(), allocatable) != Some(allocatable)
    }

    /// Forgets whether the kubelet of a node that is gone has devices.
    pub fn remove_allocatable(&mut self, node: &str) {
        self.allocatable.remove(node);
    }

    /// Forgets a node whose `GpuNode` is gone; the claims of its pods stay.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
        self.count(name);
    }

    /// The node as published.
    pub fn node(&self, name: &str) -> Option<&GpuNodeStatus> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &GpuNodeStatus)> {
        self.nodes
            .iter()
            .map(|(name, status)| (name.as_str(), status))
    }

    /// Takes over a bound pod's claim as seen on the API server.
    pub fn apply_pod(&mut self, uid: &str, node: &str, claim: Claim) {
        self.put(uid, node, claim, None);
    }

    /// Keeps what is known of a pod that holds a claim.
    pub fn set_pod_info(&mut self, uid: &str, info: PodInfo) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.info = Some(info);
        }
    }

    /// What is known of a pod that holds a claim; `None` for an assumed one that was not seen yet.
    pub fn pod_info(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid)?.info.as_ref()
    }

    /// Forgets a pod that is gone or has ended for good; tells the node that it held something of.
    pub fn remove_pod(&mut self, uid: &str) -> Option<String> {
        let pod = self.pods.remove(uid)?;
        for slot in pod.claim.slots() {
            if let Some(count) = self.claimed.get_mut(&slot.profile) {
                *count = count.saturating_sub(1);
            }
        }
        self.weigh();
        if let Some(uids) = self.by_node.get_mut(&pod.node) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_node.remove(&pod.node);
            }
        }
        self.count(&pod.node);
        Some(pod.node)
    }

    /// Forgets a pod and the instances that it has, as after its end.
    pub(crate) fn end(&mut self, uid: &str) {
        let Some(node) = self.remove_pod(uid) else {
            return;
        };
        if let Some(status) = self.nodes.get_mut(&node) {
            for gpu in &mut status.gpus {
                gpu.instances
                    .retain(|instance| instance.pod_uid.as_deref() != Some(uid));
            }
        }
        self.count(&node);
    }

    /// Keeps only these pods, as after a fresh list; assumed claims stay.
    pub fn retain_pods(&mut self, seen: &BTreeSet<PodUid>) {
        let gone: Vec<_> = self
            .pods
            .iter()
            .filter(|(uid, pod)| pod.deadline.is_none() && !seen.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.remove_pod(&uid);
        }
    }

    /// Keeps only these nodes, as after a fresh list.
    pub fn retain_nodes(&mut self, seen: &BTreeSet<String>) {
        let gone = self.nodes.keys().filter(|name| !seen.contains(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.remove_node(&name);
        }
    }

    /// Holds a claim that is about to be bound, until it is seen, forgotten, or `deadline` (milliseconds) passes.
    pub fn assume(&mut self, uid: &str, node: &str, claim: Claim, deadline: u64) {
        self.put(uid, node, claim, Some(deadline));
    }

    /// Drops an assumed claim whose binding failed; one that was seen stays.
    pub fn forget(&mut self, uid: &str) {
        if self.pods.get(uid).is_some_and(|pod| pod.deadline.is_some()) {
            self.remove_pod(uid);
        }
    }

    /// Drops assumed claims that were never seen.
    pub fn expire(&mut self, now: u64) {
        let late: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in late {
            self.remove_pod(&uid);
        }
    }

    /// The claim of a pod, and its node.
    pub fn claim(&self, uid: &str) -> Option<(&str, &Claim)> {
        self.pods
            .get(uid)
            .map(|pod| (pod.node.as_str(), &pod.claim))
    }

    /// How many pods hold a claim.
    pub fn claims(&self) -> usize {
        self.pods.len()
    }

    /// Weighs the windows again where the mix has changed.
    fn weigh(&mut self) {
        for weighed in &mut self.weighed {
            let mix = Mix::of_claims(&weighed.layouts.offers, &self.claimed);
            if mix != weighed.mix {
                weighed.potential = Potential::new(&weighed.layouts, weighed.weighing, &mix);
                weighed.mix = mix;
            }
        }
    }

    /// Counts the cards of a node anew after a change.
    fn count(&mut self, node: &str) {
        let mut counts = vec![Count::default(); self.weighed.len()];
        for card in self.cards(node) {
            let known = self.weighed.iter().position(|w| w.model == *card.model);
            if let Some(known) = known
                && card.gpu.mode == VgpuMode::Mig
            {
                counts[known].cards += 1;
                counts[known].empty += u32::from(card.is_idle());
            }
        }
        let before = self.counts.remove(node).unwrap_or_default();
        for (at, weighed) in self.weighed.iter_mut().enumerate() {
            let old = before.get(at).copied().unwrap_or_default();
            weighed.count.cards = weighed.count.cards - old.cards + counts[at].cards;
            weighed.count.empty = weighed.count.empty - old.empty + counts[at].empty;
        }
        if self.nodes.contains_key(node) {
            self.counts.insert(node.to_owned(), counts);
        }
    }

    fn put(&mut self, uid: &str, node: &str, claim: Claim, deadline: Option<u64>) {
        // Every change of a pod's status comes here: what it holds is as it was.
        if let Some(known) = self.pods.get_mut(uid)
            && known.node == node
            && known.claim == claim
        {
            known.deadline = deadline;
            return;
        }
        self.remove_pod(uid);
        for slot in claim.slots() {
            *self.claimed.entry(slot.profile.clone()).or_default() += 1;
        }
        self.weigh();
        self.by_node
            .entry(node.to_owned())
            .or_default()
            .insert(uid.to_owned());
        self.pods.insert(
            uid.to_owned(),
            ClaimedPod {
                node: node.to_owned(),
                claim,
                deadline,
                info: None,
            },
        );
        self.count(node);
    }

    /// The cards of a node with all that is held of them; empty for an unknown node.
    ///
    /// A slot is free only when no claim holds it *and* no instance in use, foreign or quarantined
    /// stands on it: a deleted pod's instance holds its slices until the agent says that it is idle.
    pub fn cards(&self, node: &str) -> Vec<Card<'_>> {
        self.cards_without(node, &BTreeSet::new())
    }

    /// The same as if these pods were gone, and their instances with them.
    fn cards_without(&self, node: &str, gone: &BTreeSet<&str>) -> Vec<Card<'_>> {
        let Some(status) = self.nodes.get(node) else {
            return vec![];
        };
        let pods = || {
            self.by_node
                .get(node)
                .into_iter()
                .flatten()
                .filter(|uid| !gone.contains(uid.as_str()))
                .filter_map(|uid| self.pods.get(uid))
        };
        let models: Vec<_> = status
            .models
            .iter()
            .map(|model| {
                let known = self.weighed.iter().find(|known| known.model == *model);
                (model, known.map(Weighed::potential))
            })
            .collect();
        let mut cards: Vec<Card<'_>> = status
            .gpus
            .iter()
            .filter_map(|gpu| {
                let (model, potential) = *models.iter().find(|(m, _)| m.name == gpu.model)?;
                let mut card = Card::new(gpu, model, potential);
                for instance in &gpu.instances {
                    let goes = instance.pod_uid.as_deref();
                    let goes = goes.is_some_and(|uid| gone.contains(uid));
                    if instance.state != InstanceState::Idle && !goes {
                        card.hold(instance.slices(), &instance.profile);
                    }
                }
                Some(card)
            })
            .collect();
        for pod in pods() {
            for device in pod.claim.devices() {
                let card = cards.iter_mut().find(|card| card.gpu.uuid == device.gpu());
                if let (Some(card), Some(slot)) = (card, device.slot()) {
                    card.hold(slot.slices(), &slot.profile);
                }
            }
            if pod.claim.devices().any(|device| device.share().is_some()) {
                for card in &mut cards {
                    let share = pod.claim.share_use(&card.gpu.uuid);
                    card.used_shares = card.used_shares.plus(share);
                }
            }
        }
        cards
    }

    /// Plans a demand on a node.
    ///
    /// # Errors
    /// The [`Refusal`] names the scarce thing.
    pub fn plan(&self, node: &str, demand: &Demand, config: &Config) -> Result<Plan, Refusal> {
        self.plan_without(node, demand, config, &BTreeSet::new())
    }

    /// Plans a demand on a node as if these pods were gone.
    ///
    /// # Errors
    /// The [`Refusal`] names the scarce thing.
    pub fn plan_without(
        &self,
        node: &str,
        demand: &Demand,
        config: &Config,
        gone: &BTreeSet<&str>,
    ) -> Result<Plan, Refusal> {
        if let Some(status) = self.nodes.get(node) {
            // The agent says it at once, kubelet within ten seconds, but also of an agent that died.
            if !status.is_registered() || self.allocatable.get(node) == Some(&false) {
                return Err(Refusal::NoAgent);
            }
        }
        plan(&self.cards_without(node, gone), demand, config)
    }

    /// The pods that are gone while an instance of a node is still theirs, by UID: it is being released.
    pub fn releasing(&self, node: &str) -> impl Iterator<Item = &str> {
        let gpus = self.nodes.get(node).into_iter().flat_map(|n| &n.gpus);
        let instances = gpus.flat_map(|gpu| &gpu.instances);
        let live =
            instances.filter(|i| matches!(i.state, InstanceState::InUse | InstanceState::Creating));
        live.filter_map(|instance| instance.pod_uid.as_deref())
            .filter(|uid| !self.pods.contains_key(*uid))
    }

    /// The pods that hold something of a node, by UID.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &str> {
        let pods = self.by_node.get(node).into_iter().flatten();
        pods.map(String::as_str)
    }

    /// Plans a demand on each of the nodes that can take it, the best first.
    ///
    /// Order: no card has to change its mode, how well the mode suits, no larger size than needed, the pod's wish for binpack or spread, the loss of future
    /// capacity, the webhook's hint, the name.
    pub fn rank<'n>(
        &self,
        nodes: impl IntoIterator<Item = &'n str>,
        demand: &Demand,
        config: &Config,
    ) -> Vec<NodeChoice> {
        self.rank_without(nodes, demand, config, &BTreeSet::new())
    }

    /// The same as if these pods were gone.
    pub fn rank_without<'n>(
        &self,
        nodes: impl IntoIterator<Item = &'n str>,
        demand: &Demand,
        config: &Config,
        gone: &BTreeSet<&str>,
    ) -> Vec<NodeChoice> {
        let mut choices: Vec<NodeChoice> = nodes
            .into_iter()
            .filter_map(|node| {
                let plan = self.plan_without(node, demand, config, gone).ok()?;
                Some(NodeChoice {
                    node: node.to_owned(),
                    plan,
                })
            })
            .collect();
        let wish = |plan: &Plan| match demand.node_policy {
            Some(Policy::Binpack) => -plan.used,
            Some(Policy::Spread) => plan.used,
            None => 0.0,
        };
        let hinted = |choice: &NodeChoice| demand.hint.as_deref() != Some(&choice.node);
        choices.sort_by(|a, b| {
            a.plan
                .changes_mode
                .cmp(&b.plan.changes_mode)
                .then(a.plan.suitability.cmp(&b.plan.suitability))
                .then(a.plan.larger.cmp(&b.plan.larger))
                .then(wish(&a.plan).total_cmp(&wish(&b.plan)))
                .then(a.plan.loss.total_cmp(&b.plan.loss))
                .then(hinted(a).cmp(&hinted(b)))
                .then(a.node.cmp(&b.node))
        });
        choices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, fixtures::demand as one};

    #[test]
    fn no_slice_is_wasted_while_many_cards_are_empty_and_the_counts_follow() {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            let node = fixtures::node(name, &fixtures::a100_80gb(), 8, VgpuMode::Mig);
            cluster.apply_node(name, node);
        }
        let start = |cluster: &Cluster| {
            let plan = cluster.plan("a", &one(8_000), &Config::default()).unwrap();
            plan.claim.slots().next().unwrap().start
        };
        assert_eq!(start(&cluster), 0, "6 would waste slice 7");
        for (at, node) in ["b", "c"].repeat(8).into_iter().enumerate() {
            let whole = cluster
                .plan(node, &one(80_000), &Config::default())
                .unwrap();
            cluster.apply_pod(&at.to_string(), node, whole.claim);
        }
        assert_ne!(start(&cluster), 0, "8 empty cards are few");
        for pod in 0..8 {
            cluster.remove_pod(&pod.to_string());
        }
        assert_eq!(start(&cluster), 0);
        let mut fixed = cluster.clone();
        fixed.set_rule(Rule::Fixed);
        assert_ne!(start(&fixed), 0, "that rule knows no filling");
        cluster.remove_node("b");
        cluster.remove_node("c");
        assert_ne!(start(&cluster), 0);
    }

    #[test]
    fn cards_are_kept_to_the_known_geometries_in_their_order_until_their_instances_fit_another() {
        let config: Config = serde_json::from_str(
            r#"{"knownMigGeometries":[{"models":["A100-SXM4-80GB"],"allowedGeometries":[
                [{"name":"2g.20gb","count":3},{"name":"1g.10gb","count":1}],
                [{"name":"3g.40gb","count":2}]]}]}"#,
        )
        .unwrap();
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        let place = |cluster: &mut Cluster, uid: &str, mib| {
            let plan = cluster.plan("n", &one(mib), &config)?;
            let slot = plan.claim.slots().next().unwrap().clone();
            cluster.apply_pod(uid, "n", plan.claim);
            Ok::<_, Refusal>((slot.profile, slot.start))
        };
        let single = place(&mut cluster, "a", 8_000).unwrap();
        assert_eq!(
            single,
            ("1g.10gb".to_owned(), 6),
            "where the three 2g.20gb still fit"
        );
        let refusal = place(&mut cluster, "b", 8_000).unwrap_err().to_string();
        assert!(refusal.contains("would fit now: 2g.20gb"), "{refusal}");
        assert!(
            place(&mut cluster, "c", 40_000).is_err(),
            "that is another geometry"
        );
        cluster.remove_pod("a");
        assert_eq!(place(&mut cluster, "c", 40_000).unwrap().0, "3g.40gb");
        let lasting = place(&mut cluster, "d", 80_000).unwrap_err();
        assert!(
            lasting.is_unresolvable(),
            "no geometry has 7g.80gb: {lasting}"
        );
    }

    #[test]
    fn a_larger_size_is_given_only_where_allowed_and_the_right_one_is_full() {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        // Singles everywhere but on one pair.
        let config: Config = serde_json::from_str(
            r#"{"knownMigGeometries":[{"models":["A30"],
                "allowedGeometries":[[{"name":"1g.6gb","count":2},{"name":"2g.12gb","count":1}]]}]}"#,
        )
        .unwrap();
        for uid in ["a", "b"] {
            let plan = cluster.plan("n", &one(5_000), &config).unwrap();
            assert_eq!(
                (plan.larger, plan.claim.slots().next().unwrap().size),
                (0, 1)
            );
            cluster.apply_pod(uid, "n", plan.claim);
        }
        assert!(cluster.plan("n", &one(5_000), &config).is_err());
        let larger = Demand {
            allow_larger: true,
            ..one(5_000)
        };
        let plan = cluster.plan("n", &larger, &config).unwrap();
        assert_eq!(
            (plan.larger, plan.claim.slots().next().unwrap().size),
            (1, 2)
        );
    }

    #[test]
    fn a_node_whose_kubelet_offers_no_device_is_refused_until_it_does() {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        let demand = one(1_000);
        let plan = |cluster: &Cluster| cluster.plan("n", &demand, &Config::default());
        assert!(plan(&cluster).is_ok(), "unknown is no reason");
        assert!(cluster.set_allocatable("n", false) && !cluster.set_allocatable("n", false));
        let refusal = plan(&cluster).unwrap_err();
        assert_eq!(refusal, Refusal::NoAgent);
        assert!(!refusal.is_unresolvable());
        assert!(cluster.set_allocatable("n", true));
        assert!(plan(&cluster).is_ok());
        // Or as the agent says.
        for (status, takes) in [("False", false), ("True", true)] {
            let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
            node.conditions.push(domain::status::Condition {
                kind: domain::status::REGISTERED.into(),
                status: status.into(),
                reason: "R".into(),
                message: "m".into(),
                last_transition_time: "2026-01-01T00:00:00Z".into(),
            });
            cluster.apply_node("n", node);
            assert_eq!(plan(&cluster).is_ok(), takes, "{status}");
        }
    }

    #[test]
    fn an_idle_card_changes_its_mode_only_for_a_pod_that_fits_nowhere_else() {
        let mut cluster = Cluster::default();
        let fixed = fixtures::node("fixed", &fixtures::a30(), 1, VgpuMode::HamiCore);
        let mut auto = fixtures::node("auto", &fixtures::a30(), 2, VgpuMode::HamiCore);
        for gpu in &mut auto.gpus {
            gpu.auto_mode = true;
        }
        cluster.apply_node("fixed", fixed);
        cluster.apply_node("auto", auto.clone());
        let config = Config::default();
        let best = |cluster: &Cluster, demand: &Demand| {
            let ranked = cluster.rank(["auto", "fixed"], demand, &config);
            let best = ranked.into_iter().next();
            best.map(|choice| (choice.node, choice.plan.mode, choice.plan.changes_mode))
        };
        let (share, instance) = (one(2_000), one(5_000));
        let mig = Demand {
            mode: Some(VgpuMode::Mig),
            ..instance.clone()
        };
        // A share is there without a change, also for a pod that an instance would suit better.
        for demand in [&share, &instance] {
            let (_, mode, changes) = best(&cluster, demand).unwrap();
            assert_eq!((mode, changes), (VgpuMode::HamiCore, false));
        }
        let placed = best(&cluster, &mig);
        assert_eq!(placed, Some(("auto".to_owned(), VgpuMode::Mig, true)));
        // While it changes it takes nobody; with a share on it it stays; the other card is asked then.
        let plan = cluster.plan("auto", &mig, &config).unwrap();
        let changing = plan.claim.slots().next().unwrap().gpu.clone();
        cluster.apply_pod("a", "auto", plan.claim);
        for gpu in &mut auto.gpus {
            gpu.changing_to = (gpu.uuid == changing).then_some(VgpuMode::Mig);
        }
        cluster.apply_node("auto", auto.clone());
        let plan = cluster.plan("auto", &share, &config).unwrap();
        assert!(!plan.changes_mode && plan.claim.devices().all(|d| d.gpu() != changing));
        cluster.apply_pod("b", "auto", plan.claim);
        let refusal = cluster.plan("auto", &mig, &config).unwrap_err();
        assert_eq!(refusal, Refusal::Mode(VgpuMode::Mig));
        // Done: the next instance goes beside the first without a change.
        let gpu = auto.gpus.iter_mut().find(|gpu| gpu.uuid == changing);
        gpu.map(|gpu| (gpu.mode, gpu.changing_to) = (VgpuMode::Mig, None))
            .unwrap();
        cluster.apply_node("auto", auto);
        let placed = best(&cluster, &mig);
        assert_eq!(placed, Some(("auto".to_owned(), VgpuMode::Mig, false)));
    }

    /// Peer lesson: a slot is free when its instance is gone or idle, not when its pod is.
    #[test]
    fn the_slices_of_an_instance_are_free_only_when_it_is_idle() {
        use domain::gpu::Instance;
        let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        node.gpus[0].instances.push(Instance {
            profile: "4g.24gb".into(),
            start: 0,
            size: 4,
            gpu_instance_id: 0,
            uuid: None,
            memory_mib: 24_000,
            state: InstanceState::Idle,
            pod: None,
            pod_uid: None,
            container: None,
            reason: None,
        });
        for state in InstanceState::ALL {
            node.gpus[0].instances[0].state = state;
            let mut cluster = Cluster::default();
            cluster.apply_node("n", node.clone());
            let plan = cluster.plan("n", &one(1_000), &Config::default());
            assert_eq!(plan.is_ok(), state == InstanceState::Idle, "{state:?}");
        }
    }
}
