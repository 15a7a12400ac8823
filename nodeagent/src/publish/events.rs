//! Kubernetes Events about pods and the node, and pods that are failed because they cannot start.

use std::{collections::HashMap, time::Duration};

use domain::status::GpuNodeStatus;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::{mpsc, watch};

use crate::{gpus::event::AgentEvent, pods::Pods};

/// Different words for which repetitions are counted at a time.
const MOST_RECORDERS: usize = 256;

/// Tells every happening as an Event, for ever.
pub async fn run(
    client: Client,
    node_name: String,
    mut happenings: mpsc::Receiver<AgentEvent>,
    pods: watch::Receiver<Pods>,
    node: watch::Receiver<Option<Node>>,
    mut published: watch::Receiver<GpuNodeStatus>,
) {
    let reporter = Reporter {
        controller: "tessera-nodeagent".to_owned(),
        instance: Some(node_name),
    };
    let mut recorders: HashMap<String, Recorder> = HashMap::new();
    while let Some(happening) = happenings.recv().await {
        let about = match &happening.pod_uid {
            Some(uid) => {
                let known = pods.borrow().clone().unwrap_or_default();
                known.get(uid).map(|pod| ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    namespace: Some(pod.namespace.clone()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                    ..ObjectReference::default()
                })
            }
            None => node.borrow().as_ref().map(|node| node.object_ref(&())),
        };
        let Some(about) = about else { continue };
        if let Some(gpu) = &happening.fails_pod {
            // Its successor must not come to the same GPU again: the scheduler has to know first.
            let ill = published.wait_for(|status| {
                let mut gpus = status.gpus.iter();
                gpus.any(|known| known.uuid == *gpu && known.unhealthy.is_some())
            });
            let _ = tokio::time::timeout(Duration::from_secs(5), ill).await;
            fail(&client, &about, happening.reason, &happening.message).await;
        }
        let event = Event {
            type_: if happening.is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: happening.reason.to_owned(),
            note: Some(happening.message.clone()),
            action: "Materialise".to_owned(),
            secondary: None,
        };
        // A recorder counts all events of a reason about an object as one, and keeps the words of the first.
        if recorders.len() >= MOST_RECORDERS {
            recorders.clear();
        }
        let recorder = recorders
            .entry(happening.message.clone())
            .or_insert_with(|| Recorder::new(client.clone(), reporter.clone()));
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::warn!(%error, "Cannot tell an event");
        }
    }
}

/// Fails a pod that has not started, so that its controller makes a new one, elsewhere if this node still cannot.
///
/// kubelet ends a pod whose phase is terminal (`pkg/kubelet/pod_workers.go`, `UpdatePod`). A pod that has started by
/// now, or is another one of this name, stays as it is: the patch tests for both.
async fn fail(client: &Client, pod: &ObjectReference, reason: &str, message: &str) {
    let (Some(namespace), Some(name)) = (&pod.namespace, &pod.name) else {
        return;
    };
    let patch = serde_json::json!([
        { "op": "test", "path": "/metadata/uid", "value": pod.uid },
        { "op": "test", "path": "/status/phase", "value": "Pending" },
        { "op": "add", "path": "/status/phase", "value": "Failed" },
        { "op": "add", "path": "/status/reason", "value": reason },
        { "op": "add", "path": "/status/message", "value": message },
    ]);
    let patch: Patch<()> = match serde_json::from_value(patch) {
        Ok(patch) => Patch::Json(patch),
        Err(error) => return tracing::error!(%error, "A patch that is none"),
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods
        .patch_status(name, &PatchParams::default(), &patch)
        .await
    {
        Ok(_) => tracing::warn!(
            pod = format!("{namespace}/{name}"),
            message,
            "Gave a pod up"
        ),
        Err(error) => {
            tracing::info!(pod = format!("{namespace}/{name}"), %error, "Did not give a pod up");
        }
    }
}
