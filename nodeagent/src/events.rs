//! Kubernetes Events about pods and the node.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::{mpsc, watch};

use crate::{materialise::Happening, pods::Pods};

/// Tells every happening as an Event, for ever.
pub async fn run(
    client: Client,
    node_name: String,
    mut happenings: mpsc::Receiver<Happening>,
    pods: watch::Receiver<Pods>,
    node: watch::Receiver<Option<Node>>,
) {
    let reporter = Reporter {
        controller: "tessera-nodeagent".to_owned(),
        instance: Some(node_name),
    };
    let recorder = Recorder::new(client, reporter);
    while let Some(happening) = happenings.recv().await {
        let about = match &happening.pod_uid {
            Some(uid) => pods.borrow().get(uid).map(|pod| ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            }),
            None => node.borrow().as_ref().map(|node| node.object_ref(&())),
        };
        let Some(about) = about else { continue };
        let event = Event {
            type_: if happening.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: happening.reason.to_owned(),
            note: Some(happening.message),
            action: "Materialise".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::warn!(%error, "Cannot tell an event");
        }
    }
}
