//! The status of a pod as kubelet writes it. Pure.

use std::collections::BTreeMap;

use domain::demand::ContainerKind;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not created, and why.
    Waiting { reason: String, message: String },
    /// Runs, since then.
    Running { since: String },
    /// Has ended.
    Ended {
        code: i32,
        since: String,
        at: String,
    },
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) kind: ContainerKind,
    pub(super) image: String,
    pub(super) state: State,
    /// How it ended before it was started again.
    pub(super) last: Option<State>,
    pub(super) restarts: i32,
}

/// The time of now, as in the API.
pub(super) fn now() -> String {
    in_words(jiff::Timestamp::now())
}

/// A time that was reported.
pub(super) fn reported(time: Option<&Time>) -> String {
    in_words(time.map_or_else(jiff::Timestamp::now, |time| time.0))
}

fn in_words(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl State {
    /// Nothing has been done yet.
    pub(super) fn new() -> Self {
        Self::Waiting {
            reason: "ContainerCreating".to_owned(),
            message: String::new(),
        }
    }

    /// As it was reported before this process started.
    pub(super) fn reported(status: &ContainerStatus) -> Self {
        let state = status.state.clone().unwrap_or_default();
        if let Some(ended) = state.terminated {
            return Self::Ended {
                code: ended.exit_code,
                since: reported(ended.started_at.as_ref()),
                at: reported(ended.finished_at.as_ref()),
            };
        }
        match state.running {
            Some(running) => Self::Running {
                since: reported(running.started_at.as_ref()),
            },
            None => Self::new(),
        }
    }

    /// As it is after a reboot of the node: what ran has ended.
    fn after_reboot(self) -> Self {
        match self {
            Self::Running { since } => Self::Ended {
                code: 255,
                since,
                at: now(),
            },
            other => other,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub(super) fn code(&self) -> Option<i32> {
        match self {
            Self::Ended { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn json(&self, id: &str) -> Value {
        match self {
            Self::Waiting { reason, message } => {
                json!({ "waiting": { "reason": reason, "message": message } })
            }
            Self::Running { since } => json!({ "running": { "startedAt": since } }),
            Self::Ended { code, since, at } => json!({ "terminated": { "exitCode": code,
                "reason": if *code == 0 { "Completed" } else { "Error" },
                "startedAt": since, "finishedAt": at, "containerID": id } }),
        }
    }
}

/// What a reboot of the node does to a pod's containers: they are gone with the sandbox, and are created again, init
/// containers first, as far as the pod's policy wants them again.
pub(super) fn after_reboot(pod: &Pod, containers: &mut BTreeMap<String, Container>) {
    let policy = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    for container in containers.values_mut() {
        let state = container.state.clone().after_reboot();
        let again = match (policy, state.code()) {
            (_, None) | (Some("Never"), _) => false,
            (Some("OnFailure"), Some(code)) => container.kind != ContainerKind::App || code != 0,
            _ => true,
        };
        container.state = state;
        if again {
            container.start_again();
        }
    }
}

impl Container {
    /// It is to be created again.
    pub(super) fn start_again(&mut self) {
        let ended = std::mem::replace(&mut self.state, State::new());
        self.last = Some(ended);
        self.restarts += 1;
    }
}

/// The status as kubelet reports it; `started` is when it admitted the pod.
pub(super) fn status(pod: &Pod, containers: &BTreeMap<String, Container>, started: &str) -> Value {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let of = |name: &str| {
        let container = containers.get(name)?;
        let id = format!("hollow://{uid}/{name}/{}", container.restarts);
        let created = !matches!(container.state, State::Waiting { .. });
        let running = container.state.is_running();
        let ready =
            running || container.kind == ContainerKind::Init && container.state.code() == Some(0);
        Some(json!({
            "name": name, "image": container.image, "imageID": container.image,
            "state": container.state.json(&id),
            "lastState": container.last.as_ref().map_or_else(|| json!({}), |last| last.json(&id)),
            "ready": ready, "started": running, "restartCount": container.restarts,
            "containerID": if created { id } else { String::new() },
        }))
    };
    let spec = pod.spec.as_ref();
    let inits = spec
        .and_then(|spec| spec.init_containers.clone())
        .unwrap_or_default();
    let apps = spec.map(|spec| spec.containers.clone()).unwrap_or_default();
    let state = |name: &str| containers.get(name).map(|container| &container.state);
    let initialized = inits.iter().all(|init| match containers.get(&init.name) {
        Some(c) if c.kind == ContainerKind::Sidecar => c.state.is_running(),
        Some(c) => c.state.code() == Some(0),
        None => false,
    });
    let ready = apps
        .iter()
        .all(|app| state(&app.name).is_some_and(State::is_running));
    let condition = |kind: &str, holds: bool| {
        json!({ "type": kind, "status": if holds { "True" } else { "False" },
            "lastTransitionTime": started })
    };
    json!({
        "phase": phase(pod, containers),
        "conditions": [condition("PodScheduled", true), condition("PodReadyToStartContainers", true),
            condition("Initialized", initialized), condition("ContainersReady", ready),
            condition("Ready", ready)],
        "initContainerStatuses": inits.iter().filter_map(|c| of(&c.name)).collect::<Vec<_>>(),
        "containerStatuses": apps.iter().filter_map(|c| of(&c.name)).collect::<Vec<_>>(),
        "startTime": started, "qosClass": "BestEffort",
    })
}

/// kubelet's `getPhase`.
fn phase(pod: &Pod, containers: &BTreeMap<String, Container>) -> &'static str {
    let policy = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    let policy = policy.unwrap_or("Always");
    let apps = || containers.values().filter(|c| c.kind == ContainerKind::App);
    let init_failed = containers
        .values()
        .any(|c| c.kind == ContainerKind::Init && c.state.code().is_some_and(|code| code != 0));
    if init_failed && policy == "Never" {
        return "Failed";
    }
    if apps().all(|c| c.state.code().is_some()) && policy != "Always" {
        let failed = apps().any(|c| c.state.code() != Some(0));
        return match (failed, policy) {
            (false, _) => "Succeeded",
            (true, "Never") => "Failed",
            (true, _) => "Running",
        };
    }
    if apps().all(|c| matches!(c.state, State::Waiting { .. }) && c.restarts == 0) {
        return "Pending";
    }
    "Running"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(
            json!({ "metadata": { "uid": "u" }, "spec": { "restartPolicy": policy,
            "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] } }),
        )
        .unwrap()
    }

    fn states(init: State, app: State) -> BTreeMap<String, Container> {
        let container = |kind, state| Container {
            kind,
            image: "x".into(),
            state,
            last: None,
            restarts: 0,
        };
        [
            ("i".to_owned(), container(ContainerKind::Init, init)),
            ("a".to_owned(), container(ContainerKind::App, app)),
        ]
        .into()
    }

    fn ended(code: i32) -> State {
        State::Ended {
            code,
            since: now(),
            at: now(),
        }
    }

    #[test]
    fn the_phase_follows_from_the_containers() {
        let running = State::Running { since: now() };
        for (policy, init, app, phase) in [
            ("Always", State::new(), State::new(), "Pending"),
            ("Always", ended(0), running.clone(), "Running"),
            ("Never", ended(0), ended(0), "Succeeded"),
            ("Never", ended(0), ended(1), "Failed"),
            ("Never", ended(1), State::new(), "Failed"),
            ("Always", ended(0), ended(1), "Running"),
        ] {
            let status = status(&pod(policy), &states(init, app), "t");
            assert_eq!(status["phase"], phase, "{policy}");
        }
    }

    #[test]
    fn after_a_reboot_containers_are_created_again_as_the_policy_wants() {
        let running = State::Running { since: now() };
        for (policy, code, restarts) in [
            ("Always", None, [1, 1]),
            ("OnFailure", None, [1, 1]),
            ("Never", Some(255), [0, 0]),
        ] {
            let mut containers = states(ended(0), running.clone());
            after_reboot(&pod(policy), &mut containers);
            assert_eq!(containers["a"].state.code(), code, "{policy}");
            assert_eq!(
                [containers["i"].restarts, containers["a"].restarts],
                restarts
            );
        }
        let mut containers = states(ended(0), ended(0));
        after_reboot(&pod("OnFailure"), &mut containers);
        assert_eq!(
            containers["a"].state.code(),
            Some(0),
            "it has done its work"
        );
        let mut containers = states(ended(0), running);
        after_reboot(&pod("Always"), &mut containers);
        let status = status(&pod("Always"), &containers, "t");
        let app = &status["containerStatuses"][0];
        assert_eq!(
            (
                &app["restartCount"],
                &app["lastState"]["terminated"]["exitCode"]
            ),
            (&1.into(), &255.into())
        );
        assert_eq!(status["phase"], "Running", "as kubelet's getPhase");
    }

    #[test]
    fn what_was_reported_is_known_again() {
        let status = status(
            &pod("Always"),
            &states(ended(0), State::Running { since: now() }),
            "2026-01-01T00:00:00Z",
        );
        let status: k8s_openapi::api::core::v1::PodStatus = serde_json::from_value(status).unwrap();
        let init = State::reported(&status.init_container_statuses.unwrap()[0]);
        assert_eq!(init.code(), Some(0));
        let app = status.container_statuses.unwrap();
        let at = app[0].state.clone().unwrap().running.unwrap().started_at;
        let since = reported(at.as_ref());
        assert_eq!(State::reported(&app[0]), State::Running { since });
    }
}
