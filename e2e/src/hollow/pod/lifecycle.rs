//! A pod's life after its admission: its containers run as its policy wants, and it is removed when it is deleted.

use std::{sync::Arc, time::Duration};

use domain::demand::ContainerKind;
use k8s_openapi::api::core::v1::Container as ContainerSpec;
use kube::{
    ResourceExt,
    api::{DeleteParams, Preconditions},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    containers::{command_end, specs},
    pod_run::PodRun,
};
use crate::hollow::status::{Container, State, now};

impl PodRun {
    pub(super) async fn run_to_end(
        self: Arc<Self>,
        deleted: CancellationToken,
        ended: CancellationToken,
    ) {
        self.report().await;
        let worked = ended
            .run_until_cancelled(Box::pin(self.clone().run_containers()))
            .await;
        if worked.is_some() {
            // All containers have ended for good: the ids are free, the pod stays until it is deleted.
            self.release();
            deleted.cancelled().await;
        } else if !deleted.is_cancelled() {
            // Somebody else set the phase: their status stays.
            tracing::info!(pod = self.key(), "The pod was failed by somebody else");
            self.release();
            self.remove_when_deleted(deleted).await;
            return;
        }
        for container in self.lock().values_mut() {
            if let State::Running { since } = &container.state {
                let since = since.clone();
                container.state = State::Ended {
                    code: 137,
                    since,
                    at: now(),
                };
            }
        }
        self.report().await;
        self.release();
        self.remove_when_deleted(deleted).await;
    }

    /// Removes the object as soon as somebody has deleted it: the API server leaves that to kubelet.
    pub(super) async fn remove_when_deleted(self: Arc<Self>, deleted: CancellationToken) {
        deleted.cancelled().await;
        let _ = std::fs::remove_dir_all(self.node.dir.join("containers").join(&self.uid));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        loop {
            match self.api().delete(&self.pod.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    return;
                }
                Err(error) => tracing::warn!(pod = self.key(), %error, "Cannot remove the pod"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(super) fn release(&self) {
        self.node.with_devices(|devices| devices.release(&self.uid));
        self.node.save();
    }

    /// Runs all containers until none of them is to be started again.
    async fn run_containers(self: Arc<Self>) {
        let mut sidecars = JoinSet::new();
        let mut apps = JoinSet::new();
        let containers: Vec<(ContainerKind, ContainerSpec)> = specs(&self.pod)
            .map(|(kind, spec)| (kind, spec.clone()))
            .collect();
        for (kind, spec) in containers {
            match kind {
                ContainerKind::Init => {
                    if self.clone().run_container(kind, spec).await != 0 {
                        return;
                    }
                }
                ContainerKind::Sidecar => {
                    self.start(&spec).await;
                    sidecars.spawn(self.clone().run_container(kind, spec));
                }
                ContainerKind::App => {
                    apps.spawn(self.clone().run_container(kind, spec));
                }
            }
        }
        while apps.join_next().await.is_some() {}
    }

    /// Runs a container and restarts it as the pod's policy wants; its last exit code.
    async fn run_container(self: Arc<Self>, kind: ContainerKind, spec: ContainerSpec) -> i32 {
        let policy = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.clone());
        let policy = policy.unwrap_or_else(|| "Always".to_owned());
        let mut pause = Duration::from_secs(1);
        loop {
            if let Some(code) = self.state(&spec.name).code()
                && (code == 0 && kind == ContainerKind::Init || policy == "Never")
            {
                return code;
            }
            self.start(&spec).await;
            let (time, code) = command_end(&spec);
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
            let since = now();
            self.change(&spec.name, |container| {
                container.state = State::Ended {
                    code,
                    since,
                    at: now(),
                };
            });
            self.report().await;
            let restarts = match kind {
                ContainerKind::Init => code != 0 && policy != "Never",
                ContainerKind::Sidecar => true,
                ContainerKind::App => policy == "Always" || policy == "OnFailure" && code != 0,
            };
            if !restarts {
                return code;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
            self.change(&spec.name, Container::start_again);
        }
    }
}
