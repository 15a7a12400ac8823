//! What a scenario does and waits for.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use domain::{
    gpu::InstanceState,
    mode::{NodeMode, VgpuMode},
    status::GpuNodeStatus,
};
use e2e::{table, tessera::Tessera, wait::until};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a scenario waits for what it expects, such as a pod that runs.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

/// Name of the node with real containers.
pub(crate) const REAL: &str = "real";

/// The nodes that the cluster begins with.
const NODES: [&str; 3] = [REAL, "hollow-h100", "hollow-a100"];

/// Ids and restarts of a pod's containers.
pub(crate) type Fingerprint = Vec<(String, i32)>;

/// The cluster with Tessera that all scenarios share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) tessera: Tessera,
}

/// What the probe prints in a container.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) gpus: Vec<SeenGpu>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct SeenGpu {
    pub(crate) uuid: String,
    pub(crate) instances: Vec<SeenInstance>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SeenInstance {
    pub(crate) uuid: String,
    pub(crate) memory_mib: u64,
}

impl Seen {
    pub(crate) fn instances(&self) -> Vec<SeenInstance> {
        let mut all: Vec<_> = self
            .gpus
            .iter()
            .flat_map(|gpu| gpu.instances.clone())
            .collect();
        all.sort();
        all
    }
}

impl World {
    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.tessera.cluster.client())
    }

    pub(crate) fn pods_in(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.tessera.cluster.client(), namespace)
    }

    pub(crate) async fn create(&self, pod: &Value) -> anyhow::Result<Pod> {
        let pod: Pod = serde_json::from_value(pod.clone())?;
        Ok(self.pods().create(&PostParams::default(), &pod).await?)
    }

    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.pods().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a pod runs, with all its containers ready.
    pub(crate) async fn runs(&self, name: &str) -> anyhow::Result<Pod> {
        self.runs_in("default", name).await
    }

    /// The same in a namespace.
    pub(crate) async fn runs_in(&self, namespace: &str, name: &str) -> anyhow::Result<Pod> {
        let pods = self.pods_in(namespace);
        let ready = |pod: &Pod| {
            let conditions = pod
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let result = until(&format!("pod {name} to run"), WAIT_TIMEOUT, async || {
            pods.get(name).await.ok().filter(ready)
        })
        .await;
        match result {
            Ok(pod) => Ok(pod),
            Err(error) => Err(error).context(self.events(name).await?.join("\n")),
        }
    }

    pub(crate) async fn create_and_run(&self, pod: &Value) -> anyhow::Result<Pod> {
        let created = self.create(pod).await?;
        self.runs(&created.name_any()).await
    }

    /// Reasons and messages of the events of a pod.
    pub(crate) async fn events(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let events: Api<Event> = Api::default_namespaced(self.tessera.cluster.client());
        let of = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = events.list(&of).await?;
        Ok(events
            .into_iter()
            .map(|event| {
                let (reason, message) = (event.reason, event.message);
                format!(
                    "{}: {}",
                    reason.unwrap_or_default(),
                    message.unwrap_or_default()
                )
            })
            .collect())
    }

    /// Waits for an event of a pod that has all these words.
    pub(crate) async fn event(&self, name: &str, words: &[&str]) -> anyhow::Result<String> {
        let found = until(
            &format!("an event of {name} with {words:?}"),
            WAIT_TIMEOUT,
            async || {
                let events = self.events(name).await.ok()?;
                let has = |event: &String| words.iter().all(|word| event.contains(word));
                events.into_iter().find(has)
            },
        )
        .await;
        match found {
            Ok(event) => Ok(event),
            Err(error) => Err(error).context(self.events(name).await?.join("\n")),
        }
    }

    /// What NVML shows in a container of the real node.
    pub(crate) async fn seen(&self, pod: &str, container: &str) -> anyhow::Result<Seen> {
        let text = self
            .tessera
            .cluster
            .kubectl(&["exec", pod, "-c", container, "--", "tessera-probe"])
            .await?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Waits until a node's agent publishes so many instances for a pod, which may be a moment after the pod runs.
    pub(crate) async fn instances(
        &self,
        node: &str,
        pod: &str,
        count: usize,
    ) -> anyhow::Result<BTreeSet<String>> {
        let key = format!("default/{pod}");
        let mut last = BTreeSet::new();
        let found = until(
            &format!("{count} instances of {pod} to be published"),
            WAIT_TIMEOUT,
            async || {
                let status = self.tessera.gpu_node(node).await.ok()?;
                let instances = status.gpus.into_iter().flat_map(|gpu| gpu.instances);
                last = instances
                    .filter(|instance| instance.pod.as_ref() == Some(&key))
                    .filter_map(|instance| instance.uuid)
                    .collect();
                (last.len() == count).then(|| last.clone())
            },
        )
        .await;
        found.with_context(|| format!("{last:?}"))
    }

    /// Waits until a node's agent publishes its first GPU as working in this mode and staying in it.
    pub(crate) async fn works_as(&self, node: &str, mode: VgpuMode) -> anyhow::Result<()> {
        until(
            &format!("the GPU of {node} to work as {mode}"),
            WAIT_TIMEOUT,
            async || {
                let status = self.tessera.gpu_node(node).await.ok()?;
                let gpu = status.gpus.first()?;
                (gpu.mode == mode && gpu.changing_to.is_none()).then_some(())
            },
        )
        .await?;
        Ok(())
    }

    /// Waits until a pod's one container was started again, and the pod runs.
    pub(crate) async fn runs_again(&self, name: &str, before: &Fingerprint) -> anyhow::Result<Pod> {
        let again = until(&format!("{name} to run again"), WAIT_TIMEOUT, async || {
            let now = self.fingerprint(name).await.ok()?;
            let restarted = now.len() == 1 && now[0].0 != before[0].0 && now[0].1 > before[0].1;
            restarted.then_some(())
        })
        .await;
        if let Err(error) = again {
            return Err(error).context(self.events(name).await?.join("\n"));
        }
        self.runs(name).await
    }

    /// Ids and restarts of a pod's containers: the same as before when nobody disturbed it.
    pub(crate) async fn fingerprint(&self, name: &str) -> anyhow::Result<Fingerprint> {
        let status = self.pods().get(name).await?.status.unwrap_or_default();
        let statuses = status.container_statuses.unwrap_or_default();
        let of = |status: k8s_openapi::api::core::v1::ContainerStatus| {
            (
                status.container_id.unwrap_or_default(),
                status.restart_count,
            )
        };
        Ok(statuses.into_iter().map(of).collect())
    }

    pub(crate) async fn rows(&self) -> anyhow::Result<Vec<table::Row>> {
        Ok(table::rows(self.tessera.cluster.client()).await?)
    }

    /// Deletes all pods and waits until every instance is gone, on the GPUs as well as in what is published.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let everything = ListParams::default();
        self.pods()
            .delete_collection(&DeleteParams::default(), &everything)
            .await?;
        until("all pods to be gone", WAIT_TIMEOUT, async || {
            let left = self.pods().list(&everything).await.ok()?;
            left.items.is_empty().then_some(())
        })
        .await?;
        let mut last = String::new();
        let gone = until("all instances to be gone", WAIT_TIMEOUT, async || {
            let nodes = self.tessera.gpu_nodes().await.ok()?;
            let lines = nodes
                .iter()
                .map(|(name, status)| [name, ": ", &status.layout].concat());
            last = lines.collect::<Vec<_>>().join("\n");
            let published = nodes
                .iter()
                .flat_map(|(_, node)| &node.gpus)
                .map(|gpu| gpu.instances.len());
            let real: usize = nodes.iter().map(|(name, _)| self.on_gpus(name)).sum();
            (published.sum::<usize>() + real == 0).then_some(())
        })
        .await;
        gone.with_context(|| last)
    }

    /// Removes the nodes that a scenario has added, so that each begins with the same cluster.
    pub(crate) async fn remove_added_nodes(&self) -> anyhow::Result<()> {
        for (node, _) in self.tessera.gpu_nodes().await? {
            if !NODES.contains(&node.as_str()) {
                self.tessera.remove_hollow_node(&node).await?;
            }
        }
        Ok(())
    }

    /// What the admin does: `kubectl label node NODE nvidia.com/vgpu-mode=MODE`.
    pub(crate) async fn label(&self, node: &str, mode: NodeMode) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.tessera.cluster.client());
        let label = json!({ "metadata": { "labels": { domain::keys::VGPU_MODE: mode } } });
        nodes
            .patch(node, &PatchParams::default(), &Patch::Merge(label))
            .await?;
        Ok(())
    }

    /// GPU instances that exist behind NVML on a node.
    pub(crate) fn on_gpus(&self, node: &str) -> usize {
        let snapshot = self.tessera.gpus(node).snapshot();
        snapshot.map_or(0, |state| {
            state.gpus.iter().map(|gpu| gpu.instances.len()).sum()
        })
    }
}

/// Instances of a node that are not idle.
pub(crate) fn busy(status: &GpuNodeStatus) -> usize {
    let instances = status.gpus.iter().flat_map(|gpu| &gpu.instances);
    instances
        .filter(|instance| instance.state != InstanceState::Idle)
        .count()
}
