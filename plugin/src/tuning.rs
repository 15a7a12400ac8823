//! Tunes the weighing of placements to the profiles that are claimed (`placement: tuned`).

use std::time::Duration;

use crate::shared_cluster::SharedCluster;

/// Time from the start to the first tuning: the view must be complete.
const START_DELAY: Duration = Duration::from_secs(10);
/// Time between two tunings.
const INTERVAL: Duration = Duration::from_mins(5);

/// Chooses the weighing of each GPU model by simulating the mix of profiles that is claimed, for ever.
pub(crate) async fn run(cluster: SharedCluster) {
    tokio::time::sleep(START_DELAY).await;
    loop {
        let mixes = cluster.read().mixes();
        for (model, layouts, mix) in mixes {
            let simulate = move || placement::simulation::tuning::tune(&layouts, &mix.parts);
            // A simulation takes seconds: not on a thread that answers kube-scheduler.
            let Ok(weighing) = tokio::task::spawn_blocking(simulate).await else {
                continue;
            };
            if cluster.write().set_weighing(&model, weighing) {
                tracing::info!(model, ?weighing, "Changed the weighing of placements");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
