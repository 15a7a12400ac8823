//! Keeps the view of the cluster up to date, by watches of pods, `GpuNode`s and nodes.

use daemon::{
    gpu_node::GpuNode,
    pods,
    ready::Latch,
    watches::{self, Change},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use placement::cluster::PodInfo;

use crate::shared_cluster::SharedCluster;

/// A change of the view that may matter to pods that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterChange<'a> {
    /// Something on this node's GPUs may have become free.
    Freed(&'a str),
    /// The pod of this UID no longer waits for a node.
    Settled(&'a str),
}

/// Watches the claims of all pods; calls `on_change` after each change of the view.
pub async fn pods(
    client: Client,
    cluster: SharedCluster,
    latch: Latch,
    mut on_change: impl FnMut(ClusterChange<'_>),
) {
    watches::watch(
        Api::<Pod>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(pod) => apply_pod(&cluster, &pod, &mut on_change),
            Change::Delete(pod) => {
                if let Some(uid) = pod.uid() {
                    remove_pod(&cluster, &uid, &mut on_change);
                }
            }
            Change::Complete { uids, .. } => {
                cluster.write().retain_pods(&uids);
                // Names are copied: `on_change` may lock the view.
                let nodes: Vec<String> = {
                    let cluster = cluster.read();
                    cluster.nodes().map(|(name, _)| name.to_owned()).collect()
                };
                for node in &nodes {
                    on_change(ClusterChange::Freed(node));
                }
            }
        },
    )
    .await;
}

fn remove_pod(cluster: &SharedCluster, uid: &str, on_change: &mut impl FnMut(ClusterChange<'_>)) {
    let node = cluster.write().remove_pod(uid);
    on_change(ClusterChange::Settled(uid));
    if let Some(node) = node {
        on_change(ClusterChange::Freed(&node));
    }
}

fn apply_pod(cluster: &SharedCluster, pod: &Pod, on_change: &mut impl FnMut(ClusterChange<'_>)) {
    let Some(uid) = pod.uid() else { return };
    if pods::is_over(pod) {
        remove_pod(cluster, &uid, on_change);
        return;
    }
    let (Some(claim), Some(node)) = (pods::claim(pod), pods::node(pod)) else {
        return;
    };
    let claim = match claim {
        Ok(claim) => claim,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(pod = %pods::name(pod), error, "Skipped an unreadable claim");
            return;
        }
    };
    let info = PodInfo {
        name: pods::name(pod),
        priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
        ending: pod.metadata.deletion_timestamp.is_some(),
        movable: pods::may_restart(pod),
        is_pinned: pods::is_pinned(pod),
        controller: pods::controller(pod).map(str::to_owned),
    };
    {
        let mut cluster = cluster.write();
        cluster.apply_pod(&uid, node, claim);
        cluster.set_pod_info(&uid, info);
    }
    on_change(ClusterChange::Settled(&uid));
}

/// Watches on which nodes a resource is allocatable; calls `on_change` where it becomes so.
///
/// kube-scheduler ignores the resource (`ignoredByScheduler`), so that the plugin must: when a node's
/// amount changes, kube-scheduler does not retry a pod that also asks for resources no node has.
pub async fn allocatable(
    client: Client,
    cluster: SharedCluster,
    resource: String,
    latch: Latch,
    mut on_change: impl FnMut(ClusterChange<'_>),
) {
    watches::watch(
        Api::<Node>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(node) => {
                let amounts = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
                let quantity = amounts.and_then(|amounts| amounts.get(&resource));
                let allocatable = quantity.is_some_and(|quantity| quantity.0 != "0");
                let name = node.name_any();
                let changed = cluster.write().set_allocatable(&name, allocatable);
                if changed && allocatable {
                    on_change(ClusterChange::Freed(&name));
                }
            }
            Change::Delete(node) => cluster.write().remove_allocatable(&node.name_any()),
            Change::Complete { names, .. } => cluster.write().retain_allocatable(&names),
        },
    )
    .await;
}

/// Watches the inventories of all nodes; calls `on_change` after each change of the view.
pub async fn gpu_nodes(
    client: Client,
    cluster: SharedCluster,
    latch: Latch,
    mut on_change: impl FnMut(ClusterChange<'_>),
) {
    watches::watch(
        Api::<GpuNode>::all(client),
        watcher::Config::default(),
        Some(latch),
        |change| match change {
            Change::Apply(mut node) => {
                let name = node.name_any();
                if let Some(status) = node.status.take() {
                    cluster.write().apply_node(&name, status);
                    on_change(ClusterChange::Freed(&name));
                }
            }
            Change::Delete(node) => cluster.write().remove_node(&node.name_any()),
            Change::Complete { names, .. } => cluster.write().retain_nodes(&names),
        },
    )
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    use daemon::ready::Readiness;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    fn pod(name: &str, node: Option<&str>, phase: &str) -> Value {
        let claim = match name {
            "bad" => "junk",
            _ => r#"{"v":1,"containers":[]}"#,
        };
        json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "n", "uid": name, "resourceVersion": "2",
                "annotations": { "tessera.dev/claim": claim } },
            "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase } })
    }

    #[tokio::test]
    async fn claims_come_and_go_with_the_pods() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let (cluster, readiness) = (SharedCluster::default(), Readiness::default());
        let latch = readiness.latch("pods");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(pods(client, cluster.clone(), latch, {
            let seen = seen.clone();
            move |change| seen.lock().unwrap().push(format!("{change:?}"))
        }));
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
        // The watch ends with its body; the next request shows that all events were handled.
        let _ = server.next_request().await.unwrap();
        assert_eq!(held("b").as_deref(), Some("n3"));
        assert_eq!((held("a"), held("c")), (None, None));
        let seen = seen.lock().unwrap();
        for freed in [
            "Freed(\"n1\")",
            "Freed(\"n2\")",
            "Settled(\"c\")",
            "Settled(\"b\")",
        ] {
            assert!(
                seen.iter().any(|change| change == freed),
                "{freed} in {seen:?}"
            );
        }
        task.abort();
    }
}
