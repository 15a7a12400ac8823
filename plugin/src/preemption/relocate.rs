//! The pod to restart elsewhere for a pod that can displace nobody.

use std::collections::BTreeSet;

use placement::{
    cluster::{Cluster, PodInfo, PodUid},
    relocation::find_relocation,
};

use super::limits::RelocationLimits;
use crate::{context::Context, unschedulable::UnschedulablePod};

/// The one pod whose restart makes the waiting pod fit, of those that allow it, and the node it leaves.
pub(super) async fn select_relocation(
    context: &Context,
    pod: &UnschedulablePod,
    spared: &BTreeSet<PodUid>,
    limits: &RelocationLimits,
) -> Option<(String, PodUid)> {
    let (view, movable) = {
        let cluster = context.cluster.read();
        let movable = movable_pods(&cluster, &pod.usable, spared, limits);
        if movable.is_empty() {
            return None;
        }
        (cluster.clone(), movable)
    };
    let (demand, usable) = (pod.demand.clone(), pod.usable.clone());
    let config = context.config.clone();
    // It tries every placement of every movable pod: not on a thread that answers kube-scheduler.
    let search = tokio::task::spawn_blocking(move || {
        let usable = |node: &str| usable.contains(node);
        find_relocation(&view, &demand, &config, 1, usable, |uid| {
            movable.contains(uid)
        })
    });
    let relocation = search.await.ok()??;
    let (uid, _) = relocation.moves.into_iter().next()?;
    Some((relocation.choice.node, uid))
}

/// The pods on these nodes that may be restarted now.
fn movable_pods(
    cluster: &Cluster,
    nodes: &BTreeSet<String>,
    spared: &BTreeSet<PodUid>,
    limits: &RelocationLimits,
) -> BTreeSet<PodUid> {
    let pods = nodes.iter().flat_map(|node| cluster.pods_on(node));
    let may_move = |info: &PodInfo| {
        let controller = info.controller.as_ref();
        info.movable && !info.ending && controller.is_some_and(|c| limits.allow_of(c))
    };
    pods.filter(|uid| !spared.contains(*uid) && cluster.pod_info(uid).is_some_and(may_move))
        .map(str::to_owned)
        .collect()
}
