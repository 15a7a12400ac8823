//! The pod to restart elsewhere for a pod that can displace nobody.

use std::collections::BTreeSet;

use placement::{cluster::PodUid, relocation::find_relocation};

use crate::{context::Context, unschedulable::UnschedulablePod};

/// The one pod whose restart makes the waiting pod fit, of those that allow it, and the node it leaves.
pub(super) async fn select_relocation(
    context: &Context,
    pod: &UnschedulablePod,
    spared: &BTreeSet<PodUid>,
) -> Option<(String, PodUid)> {
    let view = {
        let cluster = context.cluster.read();
        let mut all = cluster.nodes().flat_map(|(name, _)| cluster.pods_on(name));
        let any_movable = all.any(|uid| cluster.pod_info(uid).is_some_and(|info| info.movable));
        any_movable.then(|| cluster.clone())?
    };
    let (demand, spared) = (pod.demand.clone(), spared.clone());
    let config = context.config.clone();
    // It tries every placement of every movable pod: not on a thread that answers kube-scheduler.
    let search = tokio::task::spawn_blocking(move || {
        find_relocation(&view, &demand, &config, 1, |uid| {
            let info = view.pod_info(uid);
            !spared.contains(uid) && info.is_some_and(|info| info.movable && !info.ending)
        })
    });
    let relocation = search.await.ok()??;
    let (uid, _) = relocation.moves.into_iter().next()?;
    Some((relocation.choice.node, uid))
}
