//! The life of a pod on a hollow node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use daemon::pods;
use domain::demand::ContainerKind;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStatus, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use nodeagent::kubelet::api::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, PreStartContainerRequest,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    cdi,
    devices::{Holding, Request},
    node::Node,
    plugins,
    status::{Container, State, after_reboot, now, reported, status},
};

/// Limit of a call to a device plugin (kubelet: `pluginapi.KubeletPreStartContainerRPCTimeoutInSecs`).
const PATIENCE: Duration = Duration::from_secs(30);

struct Run {
    node: Arc<Node>,
    pod: Pod,
    uid: String,
    started: String,
    containers: Mutex<BTreeMap<String, Container>>,
    /// Reports are written one at a time, so that no older one comes last.
    reporting: tokio::sync::Mutex<()>,
}

/// Takes a pod: gives it its device ids, then runs it in the background until the token fires. `ended` fires when its
/// phase is terminal, whoever wrote that: then its containers end (kubelet: `pod_workers.go`, `UpdatePod`).
pub(super) async fn admit(
    node: Arc<Node>,
    pod: Pod,
    token: CancellationToken,
    ended: CancellationToken,
) {
    let status = pod.status.clone().unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    let mut containers = containers(&pod);
    let exists = |name: &str| node.container(&uid, name).exists();
    let mut running = containers.iter().filter(|(_, c)| c.state.is_running());
    if running.any(|(name, _)| !exists(name)) {
        tracing::info!(pod = pods::key(&pod), "Its containers are gone");
        after_reboot(&pod, &mut containers);
    }
    let run = Arc::new(Run {
        uid,
        containers: Mutex::new(containers),
        started: reported(status.start_time.as_ref()),
        reporting: tokio::sync::Mutex::default(),
        node,
        pod,
    });
    if pods::is_over(&run.pod) {
        run.release();
        tokio::spawn(run.bury(token));
        return;
    }
    let admitted = match status.start_time {
        Some(_) => run.recognise(),
        None if run.pod.metadata.deletion_timestamp.is_none() => run.allocate().await,
        None => Ok(()),
    };
    if let Err(words) = admitted {
        run.release();
        tracing::warn!(pod = run.key(), words, "Not admitted");
        let (reason, empty) = ("UnexpectedAdmissionError", json!([]));
        run.write(
            &json!({ "phase": "Failed", "reason": reason, "message": words,
                "initContainerStatuses": empty, "containerStatuses": empty }),
        )
        .await;
        tokio::spawn(run.bury(token));
        return;
    }
    tokio::spawn(run.live(token, ended));
}

/// Every container, as it was reported before.
fn containers(pod: &Pod) -> BTreeMap<String, Container> {
    let reported = pod.status.clone().unwrap_or_default();
    let reported: Vec<ContainerStatus> = reported
        .init_container_statuses
        .into_iter()
        .chain(reported.container_statuses)
        .flatten()
        .collect();
    specs(pod)
        .map(|(kind, spec)| {
            let known = reported.iter().find(|status| status.name == spec.name);
            let container = Container {
                kind,
                image: spec.image.clone().unwrap_or_default(),
                state: known.map_or_else(State::new, State::reported),
                last: None,
                restarts: known.map_or(0, |status| status.restart_count),
            };
            (spec.name.clone(), container)
        })
        .collect()
}

/// The containers in the order in which they start.
fn specs(pod: &Pod) -> impl Iterator<Item = (ContainerKind, &ContainerSpec)> {
    let spec = pod.spec.as_ref();
    let inits = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    let apps = spec.into_iter().flat_map(|spec| &spec.containers);
    inits
        .map(|init| match init.restart_policy.as_deref() {
            Some("Always") => (ContainerKind::Sidecar, init),
            _ => (ContainerKind::Init, init),
        })
        .chain(apps.map(|app| (ContainerKind::App, app)))
}

/// How long a command takes and how it ends; `None`: not by itself.
fn fate(spec: &ContainerSpec) -> (Option<Duration>, i32) {
    let words: Vec<&str> = spec
        .command
        .iter()
        .chain(&spec.args)
        .flatten()
        .map(String::as_str)
        .collect();
    match words.as_slice() {
        ["true"] => (Some(Duration::ZERO), 0),
        ["false"] => (Some(Duration::ZERO), 1),
        ["sleep", seconds] => (seconds.parse().ok().map(Duration::from_secs), 0),
        _ => (None, 0),
    }
}

impl Run {
    fn key(&self) -> String {
        pods::key(&self.pod)
    }

    /// The ids of a pod that ran before this process started are in the checkpoint, without its name. As kubelet:
    /// what does not run any more is admitted only while the device plugin is there.
    fn recognise(&self) -> Result<(), String> {
        let name = (
            self.pod.namespace().unwrap_or_default(),
            self.pod.name_any(),
        );
        let kinds: BTreeMap<&str, ContainerKind> = specs(&self.pod)
            .map(|(kind, spec)| (spec.name.as_str(), kind))
            .collect();
        self.node.with_devices(|devices| {
            for holding in devices
                .held
                .iter_mut()
                .filter(|holding| holding.uid == self.uid)
            {
                holding.pod = Some(name.clone());
                holding.kind = kinds.get(holding.container.as_str()).copied();
            }
        });
        if self.pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let containers = self.lock();
        let ended = containers.iter().filter(|(_, c)| !c.state.is_running());
        for (name, _) in ended {
            self.node
                .with_devices(|devices| devices.admit_again(&self.uid, name))?;
        }
        Ok(())
    }

    async fn allocate(&self) -> Result<(), String> {
        let requests: Vec<Request> = specs(&self.pod)
            .map(|(kind, spec)| {
                let limits = spec
                    .resources
                    .as_ref()
                    .and_then(|resources| resources.limits.as_ref());
                let counts = limits.into_iter().flatten().filter_map(|(name, quantity)| {
                    Some((
                        name.clone(),
                        quantity.0.parse().ok().filter(|count| *count > 0)?,
                    ))
                });
                Request {
                    container: spec.name.clone(),
                    kind,
                    counts: counts.collect(),
                }
            })
            .collect();
        let (namespace, name) = (
            self.pod.namespace().unwrap_or_default(),
            self.pod.name_any(),
        );
        let given = self
            .node
            .with_devices(|devices| devices.allocate(&self.uid, (&namespace, &name), &requests))?;
        for holding in given {
            let endpoint = self.plugin(&holding.resource)?.0;
            let request = AllocateRequest {
                container_requests: vec![ContainerAllocateRequest {
                    devices_ids: holding.ids.iter().cloned().collect(),
                }],
            };
            let mut client = plugins::dial(&self.node, &endpoint).await?;
            let answer = client.allocate(request).await;
            let answer = answer.map_err(|status| {
                format!(
                    "Allocate failed due to {}, which is unexpected",
                    status.message()
                )
            })?;
            let response = answer.into_inner().container_responses.into_iter().next();
            let bytes = response.unwrap_or_default().encode_to_vec();
            self.node.with_devices(|devices| {
                let held = devices.held.iter_mut().find(|held| {
                    (&held.uid, &held.container, &held.resource)
                        == (&holding.uid, &holding.container, &holding.resource)
                });
                if let Some(held) = held {
                    held.response = bytes;
                }
            });
        }
        self.node.save();
        Ok(())
    }

    fn plugin(&self, resource: &str) -> Result<(String, bool), String> {
        self.node
            .with_devices(|devices| {
                let plugin = devices.plugins.get(resource)?;
                Some((plugin.endpoint.clone(), plugin.pre_start))
            })
            .ok_or_else(|| format!("no device plugin for {resource}"))
    }

    async fn live(self: Arc<Self>, token: CancellationToken, ended: CancellationToken) {
        self.report().await;
        let worked = ended
            .run_until_cancelled(Box::pin(self.clone().work()))
            .await;
        if worked.is_some() {
            // All containers have ended for good: the ids are free, the pod stays until it is deleted.
            self.release();
            token.cancelled().await;
        } else if !token.is_cancelled() {
            // Somebody else failed it: what they wrote stays.
            tracing::info!(pod = self.key(), "It was failed");
            self.release();
            self.bury(token).await;
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
        self.bury(token).await;
    }

    /// Removes what is over as soon as somebody has deleted it: the API server leaves that to kubelet.
    async fn bury(self: Arc<Self>, token: CancellationToken) {
        token.cancelled().await;
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
                Err(error) => tracing::warn!(pod = self.key(), %error, "Cannot delete"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn release(&self) {
        self.node.with_devices(|devices| devices.release(&self.uid));
        self.node.save();
    }

    /// Runs all containers to their end for good.
    async fn work(self: Arc<Self>) {
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

    /// Runs a container, again and again as its pod's policy wants; its last exit code.
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
            let (time, code) = fate(&spec);
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
            let again = match kind {
                ContainerKind::Init => code != 0 && policy != "Never",
                ContainerKind::Sidecar => true,
                ContainerKind::App => policy == "Always" || policy == "OnFailure" && code != 0,
            };
            if !again {
                return code;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
            self.change(&spec.name, Container::start_again);
        }
    }

    /// Creates a container, trying again until it can be; one that runs already is left alone.
    async fn start(&self, spec: &ContainerSpec) {
        let mut pause = Duration::from_secs(1);
        while !self.state(&spec.name).is_running() {
            match self.create(spec).await {
                Ok(()) => self.change(&spec.name, |container| {
                    container.state = State::Running { since: now() };
                }),
                Err(message) => {
                    tracing::warn!(
                        pod = self.key(),
                        container = spec.name,
                        message,
                        "CreateContainerError"
                    );
                    self.change(&spec.name, |container| {
                        container.state = State::Waiting {
                            reason: "CreateContainerError".to_owned(),
                            message,
                        };
                    });
                    self.report().await;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
            self.report().await;
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), String> {
        let mut names = Vec::new();
        for Holding {
            resource,
            ids,
            response,
            ..
        } in self
            .node
            .with_devices(|devices| devices.of(&self.uid, &spec.name))
        {
            let (endpoint, pre_start) = self.plugin(&resource)?;
            if pre_start {
                let mut client = plugins::dial(&self.node, &endpoint).await?;
                // Not the order of Allocate: that, too, is as kubelet does.
                let devices_ids = ids.into_iter().rev().collect();
                let call = client.pre_start_container(PreStartContainerRequest { devices_ids });
                tokio::time::timeout(PATIENCE, call)
                    .await
                    .map_err(|_| "PreStartContainer: deadline exceeded".to_owned())?
                    .map_err(|status| format!("PreStartContainer: {}", status.message()))?;
            }
            let response = ContainerAllocateResponse::decode(response.as_slice());
            let devices = response.map_err(|error| error.to_string())?.cdi_devices;
            names.extend(devices.into_iter().map(|device| device.name));
        }
        let mut created = cdi::resolve(&self.node.cdi(), &names)?;
        created["pod"] = self.key().into();
        let file = self.node.container(&self.uid, &spec.name);
        std::fs::create_dir_all(file.parent().unwrap_or(&self.node.dir))
            .and_then(|()| std::fs::write(&file, created.to_string()))
            .map_err(|error| error.to_string())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Container>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, name: &str) -> State {
        self.lock()
            .get(name)
            .map_or_else(State::new, |container| container.state.clone())
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.lock().get_mut(name) {
            change(container);
        }
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(
            self.node.client.clone(),
            &self.pod.namespace().unwrap_or_default(),
        )
    }

    async fn report(&self) {
        let _one = self.reporting.lock().await;
        let status = status(&self.pod, &self.lock(), &self.started);
        self.write(&status).await;
    }

    async fn write(&self, status: &Value) {
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
                Err(error) => tracing::warn!(pod = self.key(), %error, "Cannot report"),
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}
