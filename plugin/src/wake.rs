//! Wakes kube-scheduler when a pod that was refused would fit.
//!
//! kube-scheduler tries a pod that an extender refused again after an event of an object that it
//! watches (`framework.ExtenderName` in `schedule_one.go`), and else after five minutes. A
//! `GpuNode` is no such object, so what becomes free there is told by an annotation of the node,
//! after it has arrived in the view: kube-scheduler's next question is answered by it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use daemon::follow::Shared;
use domain::{config::Config, demand::Demand, keys};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use placement::cluster::{Cluster, PodUid};
use tokio::sync::mpsc;

/// A pod that was refused by more nodes than this is taken to wait for any.
const NAMED: usize = 128;
/// For so many pods that still do not fit another way to make room is looked for.
const AGAIN: usize = 16;
/// What comes in a burst (instances of one pod, pods of one deployment) is told once.
const BURST: Duration = Duration::from_millis(20);

/// The pods that were refused by every node that they were asked for.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<HashMap<PodUid, Refused>>>);

/// A pod that every node refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// `namespace/name`.
    pub name: String,
    /// What it asks for.
    pub demand: Demand,
    /// Its priority, where it may displace others.
    pub priority: Option<i32>,
    /// The nodes; empty: any.
    pub nodes: BTreeSet<String>,
}

impl Refused {
    /// A pod that waits for any node.
    pub fn new(name: &str, demand: Demand, priority: Option<i32>) -> Self {
        Self {
            name: name.to_owned(),
            demand,
            priority,
            nodes: BTreeSet::new(),
        }
    }
}

impl Waiting {
    /// Remembers a pod that every one of these nodes refused.
    pub fn refused<'n>(
        &self,
        uid: &str,
        pod: Refused,
        nodes: impl ExactSizeIterator<Item = &'n String>,
    ) {
        let nodes = if nodes.len() > NAMED {
            BTreeSet::new()
        } else {
            nodes.cloned().collect()
        };
        self.lock().insert(uid.to_owned(), Refused { nodes, ..pod });
    }

    /// The pod of that UID, while it waits.
    pub fn get(&self, uid: &str) -> Option<Refused> {
        self.lock().get(uid).cloned()
    }

    /// Some of the pods that wait, the most important first.
    fn first(&self) -> Vec<PodUid> {
        let waiting = self.lock();
        let mut all: Vec<_> = waiting
            .iter()
            .map(|(uid, pod)| (pod.priority, uid))
            .collect();
        all.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        let some = all.into_iter().take(AGAIN);
        some.map(|(_, uid)| uid.clone()).collect()
    }

    /// Forgets a pod that is bound, over or gone.
    pub fn gone(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Takes out the pods that would fit on a node now; tells whether there are any.
    pub fn fits(&self, node: &str, cluster: &Cluster, config: &Config) -> bool {
        let mut waiting = self.lock();
        let before = waiting.len();
        waiting.retain(|uid, refused| {
            let asked = refused.nodes.is_empty() || refused.nodes.contains(node);
            let own = BTreeSet::from([uid.as_str()]);
            let plan = || cluster.plan_without(node, &refused.demand, config, &own);
            !(asked && plan().is_ok())
        });
        waiting.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each node on which something became free: wakes kube-scheduler where that helps a pod; for ever.
pub async fn run(
    client: Client,
    cluster: Shared,
    config: Config,
    waiting: Waiting,
    mut freed: mpsc::UnboundedReceiver<String>,
    still_waiting: mpsc::UnboundedSender<PodUid>,
) {
    let nodes: Api<Node> = Api::all(client);
    while let Some(first) = freed.recv().await {
        tokio::time::sleep(BURST).await;
        let mut names = BTreeSet::from([first]);
        while let Ok(more) = freed.try_recv() {
            names.insert(more);
        }
        names.retain(|name| waiting.fits(name, &cluster.read(), &config));
        for uid in waiting.first() {
            // The receiver lives as long as the process.
            drop(still_waiting.send(uid));
        }
        for name in names {
            let now = k8s_openapi::jiff::Timestamp::now().to_string();
            let annotations = serde_json::json!({ keys::FREED: now });
            let patch = serde_json::json!({ "metadata": { "annotations": annotations } });
            match nodes
                .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => tracing::info!(node = name, "Told kube-scheduler of free GPU slices"),
                Err(error) => tracing::warn!(
                    node = name,
                    error = &error as &dyn std::error::Error,
                    "Cannot tell kube-scheduler of free GPU slices: pods wait up to five minutes"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{demand::PodRequest, fixtures, mode::VgpuMode};

    fn demand() -> Demand {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } }))
        .unwrap();
        let request: PodRequest = daemon::pods::request(&pod);
        Demand::read(&request, &Config::default()).unwrap().unwrap()
    }

    #[test]
    fn a_pod_is_woken_once_and_only_by_a_node_that_refused_it_and_has_room() {
        let (waiting, config) = (Waiting::default(), Config::default());
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node = fixtures::node(name, &fixtures::a30(), 1, VgpuMode::Mig);
            cluster.apply_node(name, node);
        }
        let plan = cluster.plan("a", &demand(), &config).unwrap();
        cluster.apply_pod("holder", "a", plan.claim);
        waiting.refused(
            "u",
            Refused::new("default/p", demand(), None),
            ["a".to_owned()].iter(),
        );
        assert!(!waiting.fits("a", &cluster, &config), "it is full");
        assert!(!waiting.fits("b", &cluster, &config), "not asked for");
        cluster.remove_pod("holder");
        assert!(waiting.fits("a", &cluster, &config));
        assert!(!waiting.fits("a", &cluster, &config), "told already");
        waiting.refused(
            "u",
            Refused::new("default/p", demand(), None),
            std::iter::empty(),
        );
        waiting.gone("u");
        assert!(!waiting.fits("b", &cluster, &config));
    }
}
