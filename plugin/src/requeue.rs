//! Makes kube-scheduler retry a pod that found no node and would now fit.
//!
//! kube-scheduler retries a pod that an extender refused after an event of an object that it
//! watches (`framework.ExtenderName` in `schedule_one.go`), otherwise after five minutes. It does not
//! watch `GpuNode`s. So the plugin touches an annotation of the node, once the change of the `GpuNode`
//! is in the view: the view answers kube-scheduler's next request.

use std::{collections::BTreeSet, time::Duration};

use domain::keys;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use placement::cluster::PodUid;
use tokio::sync::mpsc;

use crate::{context::Context, unschedulable::UnschedulablePods};

/// Number of waiting pods for which preemption is tried again after a change, the most important first.
const MAX_PREEMPTION_RETRIES: usize = 16;
/// Changes within this time (instances of one pod, pods of one deployment) count as one.
const BURST: Duration = Duration::from_millis(20);

/// For each node in `freed`: makes kube-scheduler retry the pods that now fit there, for ever.
///
/// The pods that still wait go to `still_waiting`, for another try of preemption.
pub(crate) async fn run(
    context: Context,
    unschedulable: UnschedulablePods,
    mut freed: mpsc::UnboundedReceiver<String>,
    still_waiting: mpsc::UnboundedSender<PodUid>,
) {
    let api: Api<Node> = Api::all(context.client);
    while let Some(first) = freed.recv().await {
        tokio::time::sleep(BURST).await;
        let mut nodes = BTreeSet::from([first]);
        while let Ok(more) = freed.try_recv() {
            nodes.insert(more);
        }
        nodes.retain(|node| {
            // Locked per node: kube-scheduler's requests need not wait for all of them.
            unschedulable.remove_fitting(node, &context.cluster.read(), &context.config)
        });
        for uid in unschedulable.most_important(MAX_PREEMPTION_RETRIES) {
            // The receiver lives as long as the process.
            drop(still_waiting.send(uid));
        }
        for node in nodes {
            touch(&api, &node).await;
        }
    }
}

/// Changes the node's annotation, an event that makes kube-scheduler retry its unschedulable pods.
async fn touch(api: &Api<Node>, node: &str) {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let annotations = serde_json::json!({ keys::FREED: now });
    let patch = serde_json::json!({ "metadata": { "annotations": annotations } });
    let patched = api
        .patch_metadata(node, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    match patched {
        Ok(_) => tracing::info!(node, "GPU slices became free, requeued waiting pods"),
        Err(error) => tracing::warn!(
            node,
            error = &error as &dyn std::error::Error,
            "Cannot requeue waiting pods, kube-scheduler retries them within five minutes"
        ),
    }
}
