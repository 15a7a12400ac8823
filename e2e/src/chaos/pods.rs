//! Random pods: created, deleted, and removed when they have ended.

use daemon::pods;
use e2e::image::IMAGE;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::Chaos;

/// Limit of the pods that exist at a time.
const MAX_PODS: usize = 40;

impl Chaos {
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.tessera.cluster.client())
    }

    /// Creates or deletes a pod. Requests that fail while the API server or the webhook is away are not counted.
    pub(super) async fn create_or_delete_pod(&mut self) {
        let pods = self.pods();
        let Ok(all) = pods.list(&ListParams::default()).await else {
            return;
        };
        let live: Vec<&Pod> = all
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect();
        let random = &mut self.random;
        if live.len() < MAX_PODS && random.random_bool(0.6) {
            let pod = random_pod(random);
            if let Ok(pod) = serde_json::from_value(pod)
                && pods.create(&PostParams::default(), &pod).await.is_ok()
            {
                self.tally.created += 1;
            }
        } else if let Some(pod) = live.choose(random) {
            let force = random.random_bool(0.2);
            let params = DeleteParams {
                grace_period_seconds: force.then_some(0),
                ..DeleteParams::default()
            };
            if pods.delete(&pod.name_any(), &params).await.is_ok() {
                self.tally.deleted += 1;
            }
        }
    }

    /// Counts and deletes the pods that have ended; nobody else would.
    pub(super) async fn delete_ended_pods(&mut self) {
        let pods = self.pods();
        let Ok(all) = pods.list(&ListParams::default()).await else {
            return;
        };
        let ended = all.into_iter().filter(pods::is_over);
        for pod in ended.filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let status = pod.status.clone().unwrap_or_default();
            let ended = status.container_statuses.into_iter().flatten().next();
            let ended = ended.and_then(|status| status.state?.terminated);
            let ended = ended.map(|state| {
                let reason = state.reason.unwrap_or_default();
                format!("{reason}, exit code {}", state.exit_code)
            });
            let reason = status.reason.or(ended);
            let reason = reason.unwrap_or_else(|| "no reason".to_owned());
            // Deleting a failed pod is up to its user: it is counted once and deleted.
            if pods
                .delete(&pod.name_any(), &DeleteParams::default())
                .await
                .is_ok()
            {
                let after = self
                    .tally
                    .last
                    .map_or_else(String::new, |last| last.to_string());
                *self.tally.failed.entry((reason, after)).or_default() += 1;
            }
        }
    }
}
/// A pod of a random size; every other one insists on MIG.
fn random_pod(random: &mut StdRng) -> Value {
    let mib = *[1_000, 8_000, 8_000, 19_000, 40_000, 80_000]
        .choose(random)
        .unwrap_or(&8_000);
    let count = if mib < 30_000 {
        random.random_range(1..=2)
    } else {
        1
    };
    let mut pod = json!({
        "metadata": { "generateName": "chaos-" },
        "spec": { "terminationGracePeriodSeconds": random.random_range(0..=2),
            "containers": [{ "name": "main", "image": IMAGE, "command": ["sleep", "86400"],
                "resources": { "limits": { "nvidia.com/gpu": count.to_string(), "nvidia.com/gpumem": mib.to_string() } } }] },
    });
    if random.random_bool(0.5) {
        pod["metadata"]["annotations"] = json!({ "nvidia.com/vgpu-mode": "mig" });
    }
    pod
}
