//! Kubernetes Events about pods and the node.

use std::{collections::HashMap, time::Duration};

use domain::status::GpuNodeStatus;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::{mpsc, watch};

use crate::{
    gpus::{claims::ClaimedPod, event::AgentEvent},
    pods::Pods,
    publish::pod_failure,
};

/// Number of different messages for which repetitions are counted.
const MAX_RECORDERS: usize = 256;
/// How long a pod is kept from failing until its GPU is published as unhealthy.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes events, and fails the pods that cannot start.
pub(crate) struct EventPublisher {
    pub(crate) client: Client,
    pub(crate) node_name: String,
    pub(crate) events: mpsc::Receiver<AgentEvent>,
    pub(crate) pods: watch::Receiver<Pods>,
    pub(crate) node: watch::Receiver<Option<Node>>,
    /// The status of the `GpuNode` object as written last.
    pub(crate) published: watch::Receiver<GpuNodeStatus>,
}

impl EventPublisher {
    /// Publishes every event, forever.
    pub(crate) async fn run(mut self) {
        let reporter = Reporter {
            controller: "tessera-nodeagent".to_owned(),
            instance: Some(self.node_name.clone()),
        };
        let mut recorders: HashMap<String, Recorder> = HashMap::new();
        while let Some(event) = self.events.recv().await {
            let Some(regarding) = self.regarding(&event) else {
                continue;
            };
            if let Some(gpu) = &event.fails_pod {
                self.wait_until_unhealthy(gpu).await;
                pod_failure::fail(&self.client, &regarding, event.reason, &event.message).await;
            }
            // A recorder counts all events of one reason and object as one, and keeps the message of the first.
            if recorders.len() >= MAX_RECORDERS {
                recorders.clear();
            }
            let recorder = recorders
                .entry(event.message.clone())
                .or_insert_with(|| Recorder::new(self.client.clone(), reporter.clone()));
            if let Err(error) = recorder.publish(&kubernetes_event(event), &regarding).await {
                tracing::warn!(%error, "Cannot publish an Event");
            }
        }
    }

    /// The object that an event concerns; `None` if it is not known (any more).
    fn regarding(&self, event: &AgentEvent) -> Option<ObjectReference> {
        match &event.pod_uid {
            Some(uid) => self
                .pods
                .borrow()
                .as_ref()
                .and_then(|pods| pods.get(uid))
                .map(reference),
            None => self.node.borrow().as_ref().map(|node| node.object_ref(&())),
        }
    }

    /// Waits until the scheduler can know that a GPU is unhealthy: the successor of a failed pod must not get the same.
    async fn wait_until_unhealthy(&mut self, gpu: &str) {
        let unhealthy = self.published.wait_for(|status| {
            let mut gpus = status.gpus.iter();
            gpus.any(|known| known.uuid == gpu && known.unhealthy.is_some())
        });
        // A pod that cannot start must not wait for an API server that does not answer.
        let _ = tokio::time::timeout(PUBLISH_TIMEOUT, unhealthy).await;
    }
}

fn reference(pod: &ClaimedPod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.name.namespace.clone()),
        name: Some(pod.name.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn kubernetes_event(event: AgentEvent) -> Event {
    Event {
        type_: if event.is_warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: event.reason.to_owned(),
        note: Some(event.message),
        action: "Materialise".to_owned(),
        secondary: None,
    }
}
