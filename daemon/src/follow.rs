//! Keeps a `placement::cluster::Cluster` true to the API server, by watches of pods and `GpuNode`s.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use domain::pod::PodName;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use placement::cluster::{Cluster, PodInfo};
use serde::de::DeserializeOwned;

use crate::{gpu_node::GpuNode, pods, ready::Latch};

/// A cluster that a watch writes and others read; locks are held for computations only.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<RwLock<Cluster>>);

impl Shared {
    /// For reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Cluster> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, Cluster> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One change of a watched kind.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is so now.
    Apply(Box<K>),
    /// The object is gone.
    Delete(Box<K>),
    /// A fresh list is complete: what it did not name by this (UID and name) is gone.
    Complete(BTreeSet<String>, BTreeSet<String>),
}

/// Calls `change` for every change of the objects of a kind, for ever; releases the latch after the first list.
pub async fn objects<K>(
    api: Api<K>,
    config: watcher::Config,
    latch: Option<Latch>,
    mut change: impl FnMut(Change<K>),
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut latch = latch;
    let (mut uids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let events = watcher(api, config)
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear());
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                uids.clear();
                names.clear();
            }
            Ok(Event::InitApply(object)) => {
                uids.extend(object.uid());
                names.insert(object.name_any());
                change(Change::Apply(Box::new(object)));
            }
            Ok(Event::InitDone) => {
                change(Change::Complete(
                    std::mem::take(&mut uids),
                    std::mem::take(&mut names),
                ));
                if let Some(latch) = latch.take() {
                    latch.release();
                }
            }
            Ok(Event::Apply(object)) => change(Change::Apply(Box::new(object))),
            Ok(Event::Delete(object)) => change(Change::Delete(Box::new(object))),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "Watch failed, trying again"
            ),
        }
    }
}

/// What a change of the view may mean to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// Something of this node's cards may be free now.
    Freed(&'a str),
    /// The pod of this UID waits for no node any more.
    Settled(&'a str),
}

/// Follows the claims of all pods; `notice` is called after each change.
pub async fn pods(
    client: Client,
    cluster: Shared,
    latch: Latch,
    mut notice: impl FnMut(Notice<'_>),
) {
    objects(
        Api::<Pod>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(pod) => apply_pod(&cluster, &pod, &mut notice),
            Change::Delete(pod) => {
                if let Some(uid) = pod.uid() {
                    remove_pod(&cluster, &uid, &mut notice);
                }
            }
            Change::Complete(uids, _) => {
                cluster.write().retain_pods(&uids);
                let all: Vec<String> = cluster.read().nodes().map(|(n, _)| n.to_owned()).collect();
                for node in &all {
                    notice(Notice::Freed(node));
                }
            }
        },
    )
    .await;
}

fn remove_pod(cluster: &Shared, uid: &str, notice: &mut impl FnMut(Notice<'_>)) {
    let node = cluster.write().remove_pod(uid);
    notice(Notice::Settled(uid));
    if let Some(node) = node {
        notice(Notice::Freed(&node));
    }
}

fn apply_pod(cluster: &Shared, pod: &Pod, notice: &mut impl FnMut(Notice<'_>)) {
    let Some(uid) = pod.uid() else { return };
    let (claim, node) = (pods::claim(pod), pods::node(pod));
    match (claim, node) {
        _ if pods::is_over(pod) => remove_pod(cluster, &uid, notice),
        (Some(Ok(claim)), Some(node)) => {
            let info = PodInfo {
                name: PodName::new(pod.namespace().unwrap_or_default(), pod.name_any()),
                priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
                ending: pod.metadata.deletion_timestamp.is_some(),
                movable: pods::may_restart(pod),
            };
            {
                let mut cluster = cluster.write();
                cluster.apply_pod(&uid, node, claim);
                cluster.set_pod_info(&uid, info);
            }
            notice(Notice::Settled(&uid));
        }
        (Some(Err(error)), Some(_)) => {
            tracing::warn!(
                pod = pods::key(pod),
                error = &error as &dyn std::error::Error,
                "Skipped a bad claim"
            );
        }
        _ => {}
    }
}

/// Follows which nodes' kubelets offer devices of a resource; `notice` is called where that changes.
///
/// kube-scheduler is told to leave the resource to us, because it does not try a pod again when a
/// node's amount changes while the pod also asks for resources that are no node's.
pub async fn served(
    client: Client,
    cluster: Shared,
    resource: String,
    latch: Latch,
    mut notice: impl FnMut(Notice<'_>),
) {
    objects(
        Api::<Node>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(node) => {
                let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
                let quantity = allocatable.and_then(|amounts| amounts.get(&resource));
                let served = quantity.is_some_and(|quantity| quantity.0 != "0");
                let name = node.name_any();
                let new = cluster.write().set_allocatable(&name, served);
                if new && served {
                    notice(Notice::Freed(&name));
                }
            }
            Change::Delete(node) => cluster.write().remove_allocatable(&node.name_any()),
            Change::Complete(..) => {}
        },
    )
    .await;
}

/// Follows the inventories of all nodes; `notice` is called after each change.
pub async fn gpu_nodes(
    client: Client,
    cluster: Shared,
    latch: Latch,
    mut notice: impl FnMut(Notice<'_>),
) {
    objects(
        Api::<GpuNode>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(node) => {
                if let Some(status) = node.status.clone() {
                    cluster.write().apply_node(&node.name_any(), status);
                    notice(Notice::Freed(&node.name_any()));
                }
            }
            Change::Delete(node) => cluster.write().remove_node(&node.name_any()),
            Change::Complete(_, names) => cluster.write().retain_nodes(&names),
        },
    )
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ready::Readiness;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    #[tokio::test]
    async fn claims_come_and_go_with_the_pods() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let (cluster, readiness) = (Shared::default(), Readiness::default());
        let latch = readiness.latch("pods");
        let noticed = Arc::new(std::sync::Mutex::new(Vec::new()));
        let task = tokio::spawn(pods(client, cluster.clone(), latch, {
            let noticed = noticed.clone();
            move |notice| noticed.lock().unwrap().push(format!("{notice:?}"))
        }));
        let claim = r#"{"v":1,"containers":[]}"#;
        let pod = |name: &str, node: Option<&str>, phase: &str| {
            json!({ "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "n", "uid": name, "resourceVersion": "2",
                    "annotations": { "tessera.dev/claim": if name == "bad" { "junk" } else { claim } } },
                "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase } })
        };
        let (request, reply) = server.next_request().await.unwrap();
        assert_eq!(request.uri().path(), "/api/v1/pods");
        assert!(
            !request
                .uri()
                .query()
                .unwrap_or_default()
                .contains("watch=true")
        );
        let list = json!({ "apiVersion": "v1", "kind": "PodList", "metadata": { "resourceVersion": "1" },
            "items": [pod("a", Some("n1"), "Running"), pod("b", None, "Pending"), pod("bad", Some("n1"), "Running"),
                pod("over", Some("n1"), "Succeeded"), pod("c", Some("n2"), "Running")] });
        reply.send_response(Response::new(Body::from(list.to_string().into_bytes())));
        let (request, reply) = server.next_request().await.unwrap();
        assert!(
            request
                .uri()
                .query()
                .unwrap_or_default()
                .contains("watch=true")
        );
        let held = |uid: &str| cluster.read().claim(uid).map(|(node, _)| node.to_owned());
        assert_eq!(held("a").as_deref(), Some("n1"));
        assert_eq!((held("b"), held("bad"), held("over")), (None, None, None));
        assert_eq!(readiness.waiting(), Vec::<&str>::new());
        let events = [
            json!({ "type": "MODIFIED", "object": pod("b", Some("n3"), "Pending") }),
            json!({ "type": "MODIFIED", "object": pod("a", Some("n1"), "Failed") }),
            json!({ "type": "DELETED", "object": pod("c", Some("n2"), "Running") }),
        ];
        let lines = events.map(|event| format!("{event}\n")).concat();
        reply.send_response(Response::new(Body::from(lines.into_bytes())));
        // The watch ends with its body; the next request says that all events were taken.
        let _ = server.next_request().await.unwrap();
        assert_eq!(held("b").as_deref(), Some("n3"));
        assert_eq!((held("a"), held("c")), (None, None));
        let noticed = noticed.lock().unwrap();
        for freed in [
            "Freed(\"n1\")",
            "Freed(\"n2\")",
            "Settled(\"c\")",
            "Settled(\"b\")",
        ] {
            assert!(
                noticed.iter().any(|notice| notice == freed),
                "{freed} in {noticed:?}"
            );
        }
        task.abort();
    }
}
