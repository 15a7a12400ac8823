//! A pod's containers, as they are specified and as they were reported.

use std::{collections::BTreeMap, time::Duration};

use domain::demand::ContainerKind;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStatus, Pod};

use crate::hollow::status::{Container, State};

/// Every container in the state that was reported last.
pub(super) fn containers(pod: &Pod) -> BTreeMap<String, Container> {
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
pub(super) fn specs(pod: &Pod) -> impl Iterator<Item = (ContainerKind, &ContainerSpec)> {
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

/// How long a container's command runs, and its exit code; `None`: it does not end by itself.
pub(super) fn command_end(spec: &ContainerSpec) -> (Option<Duration>, i32) {
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
