//! A node at work: its object and heartbeat, its sockets, its pods.

use std::{collections::HashMap, sync::Arc, time::Duration};

use daemon::watches::{self, Change};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node as NodeObject, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{node::Node, pod::admit, sockets, status::now};

/// Interval of the renewals of a node's lease (kubelet: `nodeLeaseDurationSeconds` / 4).
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Time from kubelet's sockets to its first sync of pods, as measured with a real kubelet: a plugin that registers in
/// this time loses no pod after a reboot.
const FIRST_SYNC_DELAY: Duration = Duration::from_millis(900);

/// What ends a pod that was admitted.
#[derive(Clone, Default)]
struct Tokens {
    /// Its object is deleted, or marked so.
    deleted: CancellationToken,
    /// Its phase is terminal, or it is deleted.
    ended: CancellationToken,
}

impl Tokens {
    fn new() -> Self {
        let deleted = CancellationToken::new();
        let ended = deleted.child_token();
        Self { deleted, ended }
    }
}

/// Runs a node forever.
pub(super) async fn run(node: Arc<Node>, labels: Vec<(String, String)>) -> anyhow::Result<()> {
    register(&node, &labels).await?;
    tokio::select! {
        ended = sockets::serve(node.clone()) => ended,
        ended = heartbeat(&node) => ended,
        ended = report_devices(&node) => ended,
        () = watch_pods(node.clone()) => Ok(()),
    }
}

async fn register(node: &Node, labels: &[(String, String)]) -> kube::Result<()> {
    let mut all = json!({ "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux",
        "tessera.dev/hollow": "true" });
    for (key, value) in labels {
        all[key] = json!(value);
    }
    let api: Api<NodeObject> = Api::all(node.client.clone());
    let params = PatchParams::apply("hollow").force();
    let object = json!({ "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node.name, "labels": all } });
    // One that restarts leaves the labels as they are: they are the admin's by now.
    if api.get_opt(&node.name).await?.is_none() {
        api.patch(&node.name, &params, &Patch::Apply(&object))
            .await?;
    }
    let amounts = json!({ "cpu": "64", "memory": "256Gi", "pods": "500" });
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({ "type": kind, "status": status, "reason": reason,
            "lastHeartbeatTime": now(), "lastTransitionTime": now() })
    };
    let status = json!({
        "capacity": amounts, "allocatable": amounts,
        "conditions": [condition("Ready", "True", "KubeletReady"),
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID")],
        "nodeInfo": { "kubeletVersion": "v1.34.4-hollow", "operatingSystem": "linux", "architecture": "amd64",
            "bootID": "", "containerRuntimeVersion": "hollow://1", "kernelVersion": "", "kubeProxyVersion": "",
            "machineID": "", "osImage": "", "systemUUID": "" },
    });
    patch_status(node, &status).await
}

async fn patch_status(node: &Node, status: &Value) -> kube::Result<()> {
    let api: Api<NodeObject> = Api::all(node.client.clone());
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(&node.name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

async fn heartbeat(node: &Node) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(node.client.clone(), "kube-node-lease");
    let params = PatchParams::apply("hollow").force();
    loop {
        let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": node.name },
            "spec": { "holderIdentity": node.name, "leaseDurationSeconds": 40,
                "renewTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string() } });
        if let Err(error) = leases
            .patch(&node.name, &params, &Patch::Apply(&lease))
            .await
        {
            tracing::warn!(node = node.name, %error, "Cannot renew the lease");
        }
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
    }
}

/// Reports capacity and allocatable of the plugins' resources whenever they change.
async fn report_devices(node: &Node) -> anyhow::Result<()> {
    loop {
        node.changed.notified().await;
        node.save();
        let (capacity, allocatable) = node.with_devices(|devices| {
            let count = |wanted: &dyn Fn(bool) -> bool| -> Value {
                let plugins = devices.plugins.iter();
                let counts = plugins.map(|(name, plugin)| {
                    let count = plugin
                        .ids
                        .values()
                        .filter(|healthy| wanted(**healthy))
                        .count();
                    (name.clone(), json!(count.to_string()))
                });
                Value::Object(counts.collect())
            };
            (count(&|_| true), count(&|healthy| healthy))
        });
        let status = json!({ "capacity": capacity, "allocatable": allocatable });
        if let Err(error) = patch_status(node, &status).await {
            tracing::warn!(node = node.name, %error, "Cannot report the devices, retrying");
            tokio::time::sleep(Duration::from_secs(1)).await;
            node.changed.notify_one();
        }
    }
}

async fn watch_pods(node: Arc<Node>) {
    tokio::time::sleep(FIRST_SYNC_DELAY).await;
    let (send, mut changes) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::all(node.client.clone());
    let only = watcher::Config::default().fields(&format!("spec.nodeName={}", node.name));
    let watch = watches::watch(api, only, None, move |change| {
        let _ = send.send(change);
    });
    let apply = async {
        let mut pods = HashMap::new();
        while let Some(change) = changes.recv().await {
            apply(&node, &mut pods, change).await;
        }
    };
    tokio::join!(watch, apply);
}

/// Takes over one change of the node's pods.
async fn apply(node: &Arc<Node>, pods: &mut HashMap<String, Tokens>, change: Change<Pod>) {
    match change {
        Change::Apply(pod) => {
            let uid = pod.uid().unwrap_or_default();
            let is_deleted = pod.metadata.deletion_timestamp.is_some();
            let is_over = daemon::pods::is_over(&pod);
            let known = pods.get(&uid).cloned();
            let is_new = known.is_none();
            let tokens = known.unwrap_or_else(Tokens::new);
            if is_new {
                pods.insert(uid, tokens.clone());
                let Tokens { deleted, ended } = tokens.clone();
                // One after the other, in the order in which they came: as kubelet admits.
                admit(node.clone(), *pod, deleted, ended).await;
            }
            if is_over {
                tokens.ended.cancel();
            }
            if is_deleted {
                tokens.deleted.cancel();
            }
        }
        Change::Delete(pod) => {
            if let Some(tokens) = pods.remove(&pod.uid().unwrap_or_default()) {
                tokens.deleted.cancel();
            }
        }
        Change::Complete { uids, .. } => pods.retain(|uid, tokens| {
            let is_known = uids.contains(uid);
            if !is_known {
                tokens.deleted.cancel();
            }
            is_known
        }),
    }
}
