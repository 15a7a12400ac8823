//! Plans a demand on one node or on many, the best first.

use std::collections::BTreeSet;

use domain::{config::Config, demand::Demand, refusal::Refusal};

use crate::{
    cluster::Cluster,
    plan::{outcome::Plan, plan},
};

/// A node that can take a demand.
#[derive(Clone, Debug)]
pub struct NodeChoice {
    /// The node's name.
    pub node: String,
    /// How it would serve the demand.
    pub plan: Plan,
}

impl Cluster {
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
        if let Some(status) = self.node(node) {
            // The agent reports it at once; kubelet takes ten seconds, but also notices an agent that died.
            if !status.is_registered() || !self.may_start_pods(node) {
                return Err(Refusal::NoAgent);
            }
        }
        plan(&self.cards_without(node, gone), demand, config)
    }

    /// Plans a demand on each of the nodes that can take it, the best first.
    ///
    /// The order is that of [`Preference`](crate::plan::outcome::Preference), and then that of the names.
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
        let nodes = nodes.into_iter();
        let planned = nodes.filter_map(|node| {
            let plan = self.plan_without(node, demand, config, gone).ok()?;
            Some(NodeChoice {
                node: node.to_owned(),
                plan,
            })
        });
        let mut choices: Vec<NodeChoice> = planned.collect();
        choices.sort_by(|a, b| {
            let preference = |choice: &NodeChoice| choice.plan.preference(&choice.node, demand);
            let order = preference(a).cmp(&preference(b));
            order.then_with(|| a.node.cmp(&b.node))
        });
        choices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{
        fixtures::{self, demand as one},
        mode::VgpuMode,
        status::{Condition, GpuNodeStatus, REGISTERED},
    };

    /// Issue 12: a `GpuNode` may outlive its node.
    #[test]
    fn a_node_that_is_gone_is_refused() {
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        let fits = |cluster: &Cluster| cluster.plan("n", &one(1_000), &Config::default()).is_ok();
        cluster.set_allocatable("n", true);
        cluster.retain_allocatable(&BTreeSet::from(["n".to_owned()]));
        assert!(fits(&cluster));
        cluster.remove_allocatable("n");
        assert!(!fits(&cluster), "deleted");
        cluster.set_allocatable("n", true);
        cluster.retain_allocatable(&BTreeSet::new());
        assert!(!fits(&cluster), "deleted while the watch was interrupted");
        assert!(
            cluster
                .rank(["n"], &one(1_000), &Config::default())
                .is_empty()
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
        // Or as the agent reports.
        for (status, takes) in [("False", false), ("True", true)] {
            let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
            node.conditions.push(Condition {
                kind: REGISTERED.into(),
                status: status.into(),
                reason: "R".into(),
                message: "m".into(),
                last_transition_time: "2026-01-01T00:00:00Z".into(),
            });
            cluster.apply_node("n", node);
            assert_eq!(plan(&cluster).is_ok(), takes, "{status}");
        }
    }

    /// A node of one GPU with software shares, and one of two whose idle GPUs change their mode for a pod.
    fn fixed_and_auto() -> (Cluster, GpuNodeStatus) {
        let mut cluster = Cluster::default();
        let fixed = fixtures::node("fixed", &fixtures::a30(), 1, VgpuMode::HamiCore);
        let mut auto = fixtures::node("auto", &fixtures::a30(), 2, VgpuMode::HamiCore);
        for gpu in &mut auto.gpus {
            gpu.auto_mode = true;
        }
        cluster.apply_node("fixed", fixed);
        cluster.apply_node("auto", auto.clone());
        (cluster, auto)
    }

    fn mig_instance() -> Demand {
        Demand {
            mode: Some(VgpuMode::Mig),
            ..one(5_000)
        }
    }

    fn best(cluster: &Cluster, demand: &Demand) -> Option<(String, VgpuMode, bool)> {
        let ranked = cluster.rank(["auto", "fixed"], demand, &Config::default());
        let best = ranked.into_iter().next();
        best.map(|choice| (choice.node, choice.plan.mode, choice.plan.changes_mode))
    }

    #[test]
    fn an_idle_card_changes_its_mode_only_for_a_pod_that_fits_nowhere_else() {
        let (cluster, _) = fixed_and_auto();
        // A share is there without a change, also for a pod that an instance would suit better.
        for demand in [one(2_000), one(5_000)] {
            let (_, mode, changes) = best(&cluster, &demand).unwrap();
            assert_eq!((mode, changes), (VgpuMode::HamiCore, false));
        }
        let placed = best(&cluster, &mig_instance());
        assert_eq!(placed, Some(("auto".to_owned(), VgpuMode::Mig, true)));
    }

    #[test]
    fn a_card_that_is_changing_its_mode_takes_nobody_and_then_everybody() {
        let (mut cluster, mut auto) = fixed_and_auto();
        let (config, share, mig) = (Config::default(), one(2_000), mig_instance());
        let plan = cluster.plan("auto", &mig, &config).unwrap();
        let changing = plan.claim.slots().next().unwrap().gpu.clone();
        cluster.apply_pod("a", "auto", plan.claim);
        for gpu in &mut auto.gpus {
            gpu.changing_to = (gpu.uuid == changing).then_some(VgpuMode::Mig);
        }
        cluster.apply_node("auto", auto.clone());
        // The share goes to the other card, which then stays as it is.
        let plan = cluster.plan("auto", &share, &config).unwrap();
        assert!(!plan.changes_mode && plan.claim.devices().all(|d| d.gpu() != changing));
        cluster.apply_pod("b", "auto", plan.claim);
        let refusal = cluster.plan("auto", &mig, &config).unwrap_err();
        assert_eq!(refusal, Refusal::Mode(VgpuMode::Mig));
        // Once it has changed, the next instance goes beside the first.
        let gpu = auto.gpus.iter_mut().find(|gpu| gpu.uuid == changing);
        let gpu = gpu.unwrap();
        (gpu.mode, gpu.changing_to) = (VgpuMode::Mig, None);
        cluster.apply_node("auto", auto);
        let placed = best(&cluster, &mig);
        assert_eq!(placed, Some(("auto".to_owned(), VgpuMode::Mig, false)));
    }
}
