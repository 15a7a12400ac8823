//! The cluster as the scheduler sees it: inventories, claims and assumed claims. Fed by watches, read by planning.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::{claim::Claim, gpu::InstanceState, pod::PodName, rule::Rule, status::GpuNodeStatus};

use crate::{
    card::Card, layouts::Layouts, mix::Mix, node_cards, potential::Weighing, weights::Weights,
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
    /// Whether all nodes of the cluster are in `allocatable`: others are gone.
    knows_all_nodes: bool,
    weights: Weights,
}

/// A pod that holds a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClaimedPod {
    node: String,
    claim: Claim,
    standing: Standing,
    /// `None` until the pod was seen.
    info: Option<PodInfo>,
}

/// Why a claim is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The pod was seen with it.
    Seen,
    /// Its binding was sent, or is about to be: no time ends it, only what the API server answers.
    Assumed,
    /// It is held for a pod that is not bound yet, until this time in milliseconds.
    Reserved(u64),
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
    /// Whether it asks for certain nodes (selector, affinity, spread): only where it is now is known to suit it.
    pub is_pinned: bool,
    /// UID of the controller that recreates it.
    pub controller: Option<String>,
}

impl Cluster {
    /// Places by another rule from now on; one that weighs no states counts as the default.
    pub fn set_rule(&mut self, rule: Rule) {
        self.weights.set_rule(rule);
    }

    /// The models of MIG cards by name, with the mix that is claimed: what [`tune`](crate::simulation::tuning::tune)
    /// needs.
    pub fn mixes(&self) -> Vec<(String, Layouts, Mix)> {
        self.weights.mixes()
    }

    /// Weighs the states of a model's cards by something else from now on; returns whether that is new.
    pub fn set_weighing(&mut self, model: &str, weighing: Weighing) -> bool {
        self.weights.set_weighing(model, weighing)
    }

    /// Stores what a node's agent published.
    pub fn apply_node(&mut self, name: &str, status: GpuNodeStatus) {
        self.weights.add_models(&status.models);
        self.nodes.insert(name.to_owned(), status);
        self.count_cards(name);
    }

    /// Stores whether a node's kubelet has devices to allocate; returns whether that is new.
    pub fn set_allocatable(&mut self, node: &str, allocatable: bool) -> bool {
        self.allocatable.insert(node.to_owned(), allocatable) != Some(allocatable)
    }

    /// Forgets whether the kubelet of a node that is gone has devices.
    pub fn remove_allocatable(&mut self, node: &str) {
        self.allocatable.remove(node);
    }

    /// Forgets the nodes that are gone, as after a fresh list; from now on a node that is not known is gone.
    pub fn retain_allocatable(&mut self, seen: &BTreeSet<String>) {
        self.allocatable.retain(|node, _| seen.contains(node));
        self.knows_all_nodes = true;
    }

    /// Whether the node's kubelet has devices to allocate; `None`: not known, or the node is gone.
    pub fn allocatable(&self, node: &str) -> Option<bool> {
        self.allocatable.get(node).copied()
    }

    /// Whether pods can start on the node, as far as is known: it exists, and its kubelet has devices.
    pub(crate) fn may_start_pods(&self, node: &str) -> bool {
        self.allocatable(node).unwrap_or(!self.knows_all_nodes)
    }

    /// Forgets a node whose `GpuNode` is gone; the claims of its pods stay.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
        self.count_cards(name);
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

    /// Stores a bound pod's claim as seen on the API server.
    pub fn apply_pod(&mut self, uid: &str, node: &str, claim: Claim) {
        self.put(uid, node, claim, Standing::Seen);
    }

    /// Stores what is known of a pod that holds a claim.
    pub fn set_pod_info(&mut self, uid: &str, info: PodInfo) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.info = Some(info);
        }
    }

    /// What is known of a pod that holds a claim; `None` for an assumed one that was not seen yet.
    pub fn pod_info(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid)?.info.as_ref()
    }

    /// Forgets a pod that is gone or has ended; returns the node on which it held something.
    pub fn remove_pod(&mut self, uid: &str) -> Option<String> {
        let pod = self.pods.remove(uid)?;
        self.weights.remove_claim(&pod.claim);
        if let Some(uids) = self.by_node.get_mut(&pod.node) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_node.remove(&pod.node);
            }
        }
        self.count_cards(&pod.node);
        Some(pod.node)
    }

    /// Forgets a pod and its instances, as if it had ended.
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
        self.count_cards(&node);
    }

    /// Forgets all pods but these, after a fresh list; assumed claims stay.
    pub fn retain_pods(&mut self, seen: &BTreeSet<PodUid>) {
        let gone: Vec<_> = self
            .pods
            .iter()
            .filter(|(uid, pod)| pod.standing == Standing::Seen && !seen.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.remove_pod(&uid);
        }
    }

    /// Forgets all nodes but these, after a fresh list.
    pub fn retain_nodes(&mut self, seen: &BTreeSet<String>) {
        let gone = self.nodes.keys().filter(|name| !seen.contains(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.remove_node(&name);
        }
    }

    /// Holds a claim that is about to be bound, until it is seen or forgotten; one that was seen stays so.
    pub fn assume(&mut self, uid: &str, node: &str, claim: Claim) {
        let known = self
            .pods
            .get(uid)
            .filter(|pod| pod.node == node && pod.claim == claim);
        if known.is_none_or(|pod| pod.standing != Standing::Seen) {
            self.put(uid, node, claim, Standing::Assumed);
        }
    }

    /// Holds a claim for a pod that is not bound yet, until it is bound, forgotten, or `deadline` (milliseconds) passes.
    pub fn reserve(&mut self, uid: &str, node: &str, claim: Claim, deadline: u64) {
        self.put(uid, node, claim, Standing::Reserved(deadline));
    }

    /// Whether the pod's claim is assumed, and was not seen yet.
    pub fn is_assumed(&self, uid: &str) -> bool {
        let pod = self.pods.get(uid);
        pod.is_some_and(|pod| pod.standing == Standing::Assumed)
    }

    /// Drops a claim that was assumed or reserved; one that was seen stays.
    pub fn forget(&mut self, uid: &str) {
        let pod = self.pods.get(uid);
        if pod.is_some_and(|pod| pod.standing != Standing::Seen) {
            self.remove_pod(uid);
        }
    }

    /// Drops the reservations whose deadline has passed.
    pub fn expire(&mut self, now: u64) {
        let late =
            |pod: &ClaimedPod| matches!(pod.standing, Standing::Reserved(until) if until <= now);
        let pods = self.pods.iter().filter(|(_, pod)| late(pod));
        for uid in pods.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
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

    /// Counts the cards of a node anew after a change.
    fn count_cards(&mut self, node: &str) {
        let counts = self.weights.count(&self.cards(node));
        self.weights.set_counts(node, counts);
    }

    fn put(&mut self, uid: &str, node: &str, claim: Claim, standing: Standing) {
        // Every change of a pod's status comes here; mostly its claim is the same.
        if let Some(known) = self.pods.get_mut(uid)
            && known.node == node
            && known.claim == claim
        {
            known.standing = standing;
            return;
        }
        self.remove_pod(uid);
        self.weights.add_claim(&claim);
        self.by_node
            .entry(node.to_owned())
            .or_default()
            .insert(uid.to_owned());
        self.pods.insert(
            uid.to_owned(),
            ClaimedPod {
                node: node.to_owned(),
                claim,
                standing,
                info: None,
            },
        );
        self.count_cards(node);
    }

    /// The cards of a node with all that is held of them; empty for an unknown node.
    pub fn cards(&self, node: &str) -> Vec<Card<'_>> {
        self.cards_without(node, &BTreeSet::new())
    }

    /// The same as if these pods were gone, and their instances with them.
    pub(crate) fn cards_without(&self, node: &str, gone: &BTreeSet<&str>) -> Vec<Card<'_>> {
        let Some(status) = self.nodes.get(node) else {
            return vec![];
        };
        let pods = self.pods_on(node).filter(|uid| !gone.contains(*uid));
        let claims = pods.filter_map(|uid| Some(&self.pods.get(uid)?.claim));
        node_cards::cards(status, &self.weights, claims, gone)
    }

    /// The pods, by UID, that are gone but whose instances on the node are still being released.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{
        claim::{ClaimedDevice, ContainerClaim, Slot},
        demand::ContainerKind,
    };

    fn claim() -> Claim {
        let slot = Slot {
            gpu: "GPU-n-0".to_owned(),
            profile: "1g.6gb".to_owned(),
            start: 0,
            size: 1,
            mem: 5_952,
        };
        Claim {
            containers: vec![ContainerClaim {
                name: "c".to_owned(),
                kind: ContainerKind::App,
                devices: vec![ClaimedDevice::Mig(slot)],
            }],
        }
    }

    /// Issue 12: no time ends a claim whose binding may have been carried out.
    #[test]
    fn an_assumed_claim_lives_until_it_is_seen_or_forgotten_and_a_reservation_ends() {
        let mut cluster = Cluster::default();
        for uid in ["seen", "failed", "unclear"] {
            cluster.assume(uid, "n", claim());
        }
        cluster.reserve("late", "n", claim(), 100);
        cluster.apply_pod("seen", "n", claim());
        cluster.assume("seen", "n", claim());
        cluster.forget("seen");
        cluster.forget("failed");
        cluster.expire(99);
        let held = |cluster: &Cluster| cluster.pods_on("n").map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(held(&cluster), ["late", "seen", "unclear"]);
        cluster.expire(u64::MAX);
        assert_eq!(held(&cluster), ["seen", "unclear"]);
        assert!(cluster.is_assumed("unclear") && !cluster.is_assumed("seen"));
    }

    #[test]
    fn a_fresh_list_removes_what_it_does_not_name_but_assumed_claims() {
        let mut cluster = Cluster::default();
        cluster.apply_pod("old", "n", claim());
        cluster.apply_pod("new", "n", claim());
        cluster.assume("assumed", "n", claim());
        cluster.retain_pods(&BTreeSet::from(["new".to_owned()]));
        assert_eq!(cluster.pods_on("n").collect::<Vec<_>>(), ["assumed", "new"]);
    }

    #[test]
    fn what_is_known_of_a_pod_stays_while_its_claim_is_the_same() {
        let mut cluster = Cluster::default();
        let info = PodInfo {
            name: PodName::new("default", "a"),
            priority: 3,
            ending: false,
            movable: true,
            is_pinned: false,
            controller: None,
        };
        cluster.assume("a", "n", claim());
        assert_eq!(cluster.pod_info("a"), None);
        cluster.set_pod_info("a", info.clone());
        cluster.apply_pod("a", "n", claim());
        assert_eq!(cluster.pod_info("a"), Some(&info));
        assert_eq!(cluster.remove_pod("a").as_deref(), Some("n"));
        assert_eq!(cluster.pod_info("a"), None);
    }
}
