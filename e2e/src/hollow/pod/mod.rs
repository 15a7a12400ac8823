//! A pod of a hollow node, from its admission to its removal.

mod allocation;
mod containers;
mod creation;
mod lifecycle;
mod pod_run;

use std::sync::{Arc, Mutex};

use daemon::pods;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{containers::containers, pod_run::PodRun};
use super::{
    node::Node,
    status::{after_reboot, reported},
};

/// Admits a pod: allocates its device ids, then runs it in the background until `deleted` fires. `ended` fires when its
/// phase is terminal, whoever wrote that: then its containers end (kubelet: `pod_workers.go`, `UpdatePod`).
pub(super) async fn admit(
    node: Arc<Node>,
    pod: Pod,
    deleted: CancellationToken,
    ended: CancellationToken,
) {
    let status = pod.status.clone().unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    let mut containers = containers(&pod);
    let exists = |name: &str| node.container(&uid, name).exists();
    let mut running = containers.iter().filter(|(_, c)| c.state.is_running());
    if running.any(|(name, _)| !exists(name)) {
        tracing::info!(
            pod = %pods::name(&pod),
            "The node was rebooted: the containers of the pod are gone"
        );
        after_reboot(&pod, &mut containers);
    }
    let run = Arc::new(PodRun {
        uid,
        containers: Mutex::new(containers),
        started: reported(status.start_time.as_ref()),
        reporting: tokio::sync::Mutex::default(),
        node,
        pod,
    });
    if pods::is_over(&run.pod) {
        run.release();
        tokio::spawn(run.remove_when_deleted(deleted));
        return;
    }
    let admitted = match status.start_time {
        Some(_) => run.recognise(),
        None if run.pod.metadata.deletion_timestamp.is_none() => run.allocate().await,
        None => Ok(()),
    };
    if let Err(error) = admitted {
        let words = error.to_string();
        run.release();
        tracing::warn!(pod = run.key(), words, "Pod not admitted");
        let (reason, empty) = ("UnexpectedAdmissionError", json!([]));
        run.write(
            &json!({ "phase": "Failed", "reason": reason, "message": words,
                "initContainerStatuses": empty, "containerStatuses": empty }),
        )
        .await;
        tokio::spawn(run.remove_when_deleted(deleted));
        return;
    }
    tokio::spawn(run.run_to_end(deleted, ended));
}
