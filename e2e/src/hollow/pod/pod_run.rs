//! A pod of a hollow node, and what it reports.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use daemon::pods;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::hollow::{
    node::Node,
    status::{Container, State, status},
};

/// A pod that was admitted.
pub(super) struct PodRun {
    pub(super) node: Arc<Node>,
    pub(super) pod: Pod,
    pub(super) uid: String,
    pub(super) started: String,
    pub(super) containers: Mutex<BTreeMap<String, Container>>,
    /// Reports are written one at a time, so that no older one comes last.
    pub(super) reporting: tokio::sync::Mutex<()>,
}

impl PodRun {
    pub(super) fn key(&self) -> String {
        pods::name(&self.pod).to_string()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Container>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self, name: &str) -> State {
        self.lock()
            .get(name)
            .map_or_else(State::new, |container| container.state.clone())
    }

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.lock().get_mut(name) {
            change(container);
        }
    }

    pub(super) fn api(&self) -> Api<Pod> {
        Api::namespaced(
            self.node.client.clone(),
            &self.pod.namespace().unwrap_or_default(),
        )
    }

    pub(super) async fn report(&self) {
        let _one = self.reporting.lock().await;
        let status = status(&self.pod, &self.lock(), &self.started);
        self.write(&status).await;
    }

    pub(super) async fn write(&self, status: &Value) {
        let patch = Patch::Merge(json!({ "metadata": { "uid": self.uid }, "status": status }));
        for pause in [100, 500, 2_000, 5_000] {
            let written = self
                .api()
                .patch_status(&self.pod.name_any(), &PatchParams::default(), &patch)
                .await;
            match written {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    return;
                }
                Err(error) => tracing::warn!(pod = self.key(), %error, "Cannot report the status"),
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}
