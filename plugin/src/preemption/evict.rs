//! Evicts a pod, and reports why as an Event of that pod.

use domain::{keys, pod::PodName};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The pod is going.
    Evicted,
    /// A disruption budget protects the pod for now.
    Protected,
}

/// Why a pod is evicted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    /// A pod of higher priority needs its slices.
    Preempted,
    /// Its restart elsewhere makes another pod fit.
    Relocated,
}

impl Reason {
    /// The reason of the Event.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Preempted => "Preempted",
            Self::Relocated => "Moved",
        }
    }

    fn note(self, pod: &PodName, node: &str) -> String {
        match self {
            Self::Preempted => format!(
                "Preempted by pod {pod} on node {node}: it has a higher priority and found no free GPU slices"
            ),
            Self::Relocated => format!(
                "Restarted elsewhere, as {} allows, to free GPU slices on node {node} for pod {pod}",
                keys::ALLOW_RESTART
            ),
        }
    }
}

/// The recorder of the plugin's Events.
pub(super) fn recorder(client: Client) -> Recorder {
    let reporter = Reporter {
        controller: "tessera-plugin".to_owned(),
        instance: None,
    };
    Recorder::new(client, reporter)
}

/// Evicts a pod, unless another one has its name now.
pub(super) async fn evict(client: &Client, name: &PodName, uid: &str) -> kube::Result<Outcome> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    let params = EvictParams {
        delete_options: Some(DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        }),
        ..EvictParams::default()
    };
    match api.evict(&name.name, &params).await {
        Ok(_) => Ok(Outcome::Evicted),
        // 404: gone; 409: another pod has its name.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(Outcome::Evicted),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(Outcome::Protected),
        Err(error) => Err(error),
    }
}

/// Reports to the evicted pod's author for which pod it was evicted.
pub(super) async fn report(
    recorder: &Recorder,
    victim: (&PodName, &str),
    reason: Reason,
    pod: &PodName,
    node: &str,
) {
    let (name, uid) = victim;
    let victim = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(name.namespace.clone()),
        name: Some(name.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Normal,
        reason: reason.as_str().to_owned(),
        note: Some(reason.note(pod, node)),
        action: "Preempting".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &victim).await {
        tracing::warn!(pod = %name, %error, "Cannot publish an Event");
    }
}
