//! A node: its object and heartbeat, its device manager, its pods.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use daemon::watches::{self, Change};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{devices::Devices, plugins, pod, status::now};
use crate::reboot::remove_sockets;

/// How often a node says that it lives (kubelet: `nodeLeaseDurationSeconds` / 4).
const HEARTBEAT: Duration = Duration::from_secs(10);
/// From kubelet's sockets to its first look at pods, as kubelet was seen to take: a plugin that registers in this time
/// loses no pod after a reboot.
const FIRST_SYNC: Duration = Duration::from_millis(900);

/// A hollow node.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) client: Client,
    devices: Mutex<Devices>,
    /// The devices of a plugin have changed.
    pub(super) changed: Notify,
}

impl Node {
    /// A node with its directory; takes over the ids that it gave before.
    pub(super) fn new(name: &str, dir: PathBuf, client: Client) -> io::Result<Self> {
        let node = Self {
            name: name.to_owned(),
            dir,
            client,
            devices: Mutex::default(),
            changed: Notify::new(),
        };
        for directory in [
            node.device_plugins(),
            node.cdi(),
            node.dir.join("pod-resources"),
        ] {
            std::fs::create_dir_all(directory)?;
        }
        if let Ok(bytes) = std::fs::read(node.checkpoint()) {
            node.with_devices(|devices| devices.restore(&bytes))?;
            node.changed.notify_one();
        }
        // As kubelet: a device plugin sees by this that it has to register anew.
        remove_sockets(&node.device_plugins())?;
        Ok(node)
    }

    pub(super) fn device_plugins(&self) -> PathBuf {
        self.dir.join("device-plugins")
    }

    pub(super) fn kubelet_socket(&self) -> PathBuf {
        self.device_plugins().join("kubelet.sock")
    }

    pub(super) fn pod_resources_socket(&self) -> PathBuf {
        self.dir.join("pod-resources/kubelet.sock")
    }

    pub(super) fn cdi(&self) -> PathBuf {
        self.dir.join("cdi")
    }

    /// What a container was created with; there is no such file when the container is not.
    pub(super) fn container(&self, uid: &str, name: &str) -> PathBuf {
        let containers = self.dir.join("containers");
        containers.join(uid).join(format!("{name}.json"))
    }

    fn checkpoint(&self) -> PathBuf {
        self.device_plugins().join("kubelet_internal_checkpoint")
    }

    /// Looks at or changes the device manager; what it says is on disk afterwards.
    pub(super) fn with_devices<T>(&self, work: impl FnOnce(&mut Devices) -> T) -> T {
        work(&mut self.devices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes `kubelet_internal_checkpoint`.
    pub(super) fn save(&self) {
        let fresh = self.checkpoint().with_extension("new");
        // One at a time.
        let written = self.with_devices(|devices| {
            std::fs::write(&fresh, devices.checkpoint())?;
            std::fs::rename(&fresh, self.checkpoint())
        });
        if let Err(error) = written {
            tracing::error!(node = self.name, %error, "Cannot write the checkpoint");
        }
    }
}

/// Runs a node for ever.
pub(super) async fn run(node: Arc<Node>, labels: Vec<(String, String)>) -> anyhow::Result<()> {
    register(&node, &labels).await?;
    tokio::select! {
        ended = plugins::serve(node.clone()) => ended,
        ended = heartbeat(&node) => ended,
        ended = report_devices(&node) => ended,
        () = follow_pods(node.clone()) => Ok(()),
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
    use k8s_openapi::api::coordination::v1::Lease;
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
            tracing::warn!(node = node.name, %error, "Heartbeat");
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Keeps capacity and allocatable of the plugins' resources true.
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
            tracing::warn!(node = node.name, %error, "Cannot report the devices, trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            node.changed.notify_one();
        }
    }
}

async fn follow_pods(node: Arc<Node>) {
    tokio::time::sleep(FIRST_SYNC).await;
    let (send, mut changes) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::all(node.client.clone());
    let only = watcher::Config::default().fields(&format!("spec.nodeName={}", node.name));
    let watch = watches::watch(api, only, None, move |change| {
        let _ = send.send(change);
    });
    let apply = async {
        let mut pods: HashMap<String, (CancellationToken, CancellationToken)> = HashMap::new();
        while let Some(change) = changes.recv().await {
            match change {
                Change::Apply(pod) => {
                    let uid = pod.uid().unwrap_or_default();
                    let deleted = pod.metadata.deletion_timestamp.is_some();
                    let over = daemon::pods::is_over(&pod);
                    let known = pods.get(&uid).cloned();
                    let (token, ended) = known.clone().unwrap_or_else(|| {
                        let token = CancellationToken::new();
                        let ended = token.child_token();
                        (token, ended)
                    });
                    if known.is_none() {
                        pods.insert(uid, (token.clone(), ended.clone()));
                        // One after the other, in the order in which they came: as kubelet admits.
                        pod::admit(node.clone(), *pod, token.clone(), ended.clone()).await;
                    }
                    if over {
                        ended.cancel();
                    }
                    if deleted {
                        token.cancel();
                    }
                }
                Change::Delete(pod) => {
                    if let Some((token, _)) = pods.remove(&pod.uid().unwrap_or_default()) {
                        token.cancel();
                    }
                }
                Change::Complete { uids, .. } => pods.retain(|uid, (token, _)| {
                    let known = uids.contains(uid);
                    if !known {
                        token.cancel();
                    }
                    known
                }),
            }
        }
    };
    tokio::join!(watch, apply);
}
