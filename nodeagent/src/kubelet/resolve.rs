//! Which container is starting with a set of device ids. Pure.
//!
//! kubelet's calls name device ids only. Its checkpoint lists every container with its ids, its `PodResources` service
//! all but ordinary init containers. kubelet gives an init container's ids again to the pod's other containers, so the
//! same set may belong to several containers, one after the other.

use std::collections::BTreeMap;

use domain::{
    claim::{ClaimedDevice, ContainerClaim},
    demand::ContainerKind,
    pod::PodName,
};

use crate::{
    gpus::claims::{ClaimedPod, Progress},
    kubelet::id_holders::{DeviceIds, IdHolder, PodRef, PreparedContainer},
};

/// What a set of device ids means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution<'a> {
    /// This container is starting.
    Starting {
        pod: &'a ClaimedPod,
        container: &'a str,
    },
    /// The agent's watch of pods lags behind kubelet: ask again after the next change.
    NotYet(Unresolved),
    /// kubelet knows no holder of these ids.
    Nobody,
}

/// What the agent has to learn first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("the pod of container {0} is not known to the agent yet")]
    UnknownPod(String),
    #[error("the claim of pod {0} does not name the container")]
    NotInClaim(PodName),
    #[error(
        "the current status of container {container} of pod {pod} is not known to the agent yet"
    )]
    UnknownStatus { pod: PodName, container: String },
}

/// Finds the container that is starting with these ids. `prepared` is the container that was prepared last for them.
pub(crate) fn resolve<'a>(
    ids: &DeviceIds,
    holders: &[IdHolder],
    pods: &'a BTreeMap<String, ClaimedPod>,
    prepared: Option<&PreparedContainer>,
) -> Resolution<'a> {
    let find = |pod: &PodRef| pods.values().find(|known| pod.refers_to(known));
    let mut candidates: Vec<(&ClaimedPod, &str)> = Vec::new();
    let mut unknown = None;
    for holder in holders.iter().filter(|holder| holder.ids == *ids) {
        match find(&holder.pod) {
            Some(pod) => candidates.push((pod, &holder.container)),
            None => unknown = Some(Unresolved::UnknownPod(holder.container.clone())),
        }
    }
    if candidates.is_empty() {
        let sharing = holders.iter().filter(|h| !h.ids.is_disjoint(ids));
        let pods = sharing.filter_map(|holder| find(&holder.pod));
        let hidden = pods.flat_map(|pod| {
            let containers = hidden_init_containers(pod, ids.len());
            containers.map(move |container| (pod, container))
        });
        candidates.extend(hidden);
    }
    let Some((pod, _)) = candidates.first().copied() else {
        return unknown.map_or(Resolution::Nobody, Resolution::NotYet);
    };
    // kubelet may still list the ids of a pod that is over; a set belongs to one living pod at a time.
    candidates.retain(|(candidate, _)| candidate.uid == pod.uid);
    let claimed = pod.claim.containers.iter();
    let containers: Vec<_> = claimed
        .filter(|claim| candidates.iter().any(|(_, name)| *name == claim.name))
        .collect();
    whose_turn(pod, &containers, prepared)
}

/// The ordinary init containers that may hold a set of that many ids. `PodResources` does not list them, so where the
/// checkpoint cannot be read, kubelet names the ids only as part of what other containers of the pod hold.
fn hidden_init_containers(pod: &ClaimedPod, ids: usize) -> impl Iterator<Item = &str> {
    let containers = pod.claim.containers.iter();
    containers
        .filter(move |claim| claim.kind == ContainerKind::Init && claim.devices.len() == ids)
        .map(|claim| claim.name.as_str())
}

/// Which of a pod's containers with the same ids is starting. They are in the order in which they run.
fn whose_turn<'a>(
    pod: &'a ClaimedPod,
    containers: &[&'a ContainerClaim],
    prepared: Option<&PreparedContainer>,
) -> Resolution<'a> {
    let Some(last) = containers.last() else {
        return Resolution::NotYet(Unresolved::NotInClaim(pod.name.clone()));
    };
    let unreported = Progress::default();
    let progress = |container: &str| pod.containers.get(container).unwrap_or(&unreported);
    let mut in_order = containers.iter();
    let turn = in_order.find(|claim| !progress(&claim.name).completed);
    let turn = turn.unwrap_or(last);
    let status = progress(&turn.name);
    // It was prepared, and its status has not changed since: it may have run and completed already.
    let was_prepared = prepared.is_some_and(|prepared| {
        (&prepared.uid, &prepared.container) == (&pod.uid, &turn.name)
            && prepared.fingerprint == status.fingerprint
    });
    // A container that runs is not starting: its status is outdated as well.
    let is_outdated = status.running || was_prepared;
    // Nothing comes after the last one, and where all get the same spec it does not matter which one it is.
    if turn.name != last.name && is_outdated && !get_same_spec(containers) {
        return Resolution::NotYet(Unresolved::UnknownStatus {
            pod: pod.name.clone(),
            container: turn.name.clone(),
        });
    }
    Resolution::Starting {
        pod,
        container: &turn.name,
    }
}

/// Whether the CDI spec is the same for each of these containers: they have the same MIG devices. The spec of a
/// container with shares names the container.
fn get_same_spec(containers: &[&ContainerClaim]) -> bool {
    let mut devices = containers.iter().flat_map(|claim| &claim.devices);
    let is_mig = devices.all(|device| matches!(device, ClaimedDevice::Mig(_)));
    let mut pairs = containers.windows(2);
    is_mig && pairs.all(|pair| pair[0].devices == pair[1].devices)
}

#[cfg(test)]
mod tests {
    use domain::claim::{Share, Slot};

    use super::*;
    use crate::gpus::testing::claimed_pod;

    const INIT: ContainerKind = ContainerKind::Init;
    const APP: ContainerKind = ContainerKind::App;

    fn ids(list: &[&str]) -> DeviceIds {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    /// A pod by its containers: name, kind, first slice and number of devices.
    fn pod(uid: &str, containers: &[(&str, ContainerKind, u8, u8)]) -> ClaimedPod {
        let device = |start| {
            ClaimedDevice::Mig(Slot {
                gpu: "GPU-1".into(),
                profile: "1g.10gb".into(),
                start,
                size: 1,
                mem: 1,
            })
        };
        let containers = containers
            .iter()
            .map(|(name, kind, start, count)| ContainerClaim {
                name: (*name).into(),
                kind: *kind,
                devices: (*start..start + count).map(device).collect(),
            });
        claimed_pod(uid, containers.collect())
    }

    fn holder(uid: &str, container: &str, list: &[&str]) -> IdHolder {
        IdHolder {
            pod: PodRef::Uid(uid.into()),
            container: container.into(),
            ids: ids(list),
        }
    }

    fn prepared(container: &str) -> PreparedContainer {
        PreparedContainer {
            uid: "a".into(),
            container: container.into(),
            fingerprint: String::new(),
        }
    }

    /// The answer in short: `uid/container`, `not yet` or `nobody`.
    fn ask(
        set: &[&str],
        holders: &[IdHolder],
        pods: &[&ClaimedPod],
        prepared: Option<&PreparedContainer>,
    ) -> String {
        let pods = pods.iter().map(|pod| (pod.uid.clone(), (*pod).clone()));
        match resolve(&ids(set), holders, &pods.collect(), prepared) {
            Resolution::Starting { pod, container } => format!("{}/{container}", pod.uid),
            Resolution::NotYet(_) => "not yet".to_owned(),
            Resolution::Nobody => "nobody".to_owned(),
        }
    }

    #[test]
    fn two_pods_bound_together_are_told_apart_by_their_ids() {
        let a = pod("a", &[("c", APP, 0, 1)]);
        let b = pod("b", &[("c", APP, 1, 1)]);
        let holders = [holder("a", "c", &["d1"]), holder("b", "c", &["d2"])];
        assert_eq!(ask(&["d2"], &holders, &[&a, &b], None), "b/c");
        assert_eq!(ask(&["d3"], &holders, &[&a, &b], None), "nobody");
    }

    #[test]
    fn a_pod_that_the_watch_has_not_delivered_is_waited_for() {
        let holders = [holder("a", "c", &["d1"])];
        assert_eq!(ask(&["d1"], &holders, &[], None), "not yet");
    }

    /// What kubelet does: the init container has {d6,d7}, then c1 {d7} and c2 {d2,d6}.
    #[test]
    fn an_init_containers_ids_are_split_between_the_others() {
        let a = pod(
            "a",
            &[("i", INIT, 0, 2), ("c1", APP, 0, 1), ("c2", APP, 1, 2)],
        );
        let holders = [
            holder("a", "i", &["d7", "d6"]),
            holder("a", "c1", &["d7"]),
            holder("a", "c2", &["d6", "d2"]),
        ];
        assert_eq!(ask(&["d6", "d7"], &holders, &[&a], None), "a/i");
        assert_eq!(ask(&["d7"], &holders, &[&a], None), "a/c1");
        // Without the checkpoint there is only PodResources, which hides the init container.
        assert_eq!(ask(&["d6", "d7"], &holders[1..], &[&a], None), "a/i");
    }

    #[test]
    fn of_containers_with_the_same_ids_the_status_tells_whose_turn_it_is() {
        let mut a = pod("a", &[("i", INIT, 0, 1), ("c", APP, 4, 1)]);
        let holders = [holder("a", "i", &["d1"]), holder("a", "c", &["d1"])];
        let init = prepared("i");
        assert_eq!(ask(&["d1"], &holders, &[&a], None), "a/i");
        // Prepared, and no status since: it may have completed already.
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&init)), "not yet");
        let mut progress = Progress {
            disables_limiter: false,
            running: true,
            completed: false,
            fingerprint: "running".into(),
        };
        a.containers.insert("i".into(), progress.clone());
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&init)), "not yet");
        // It failed and is started again.
        progress.running = false;
        progress.fingerprint = "terminated 1".into();
        a.containers.insert("i".into(), progress.clone());
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&init)), "a/i");
        progress.completed = true;
        a.containers.insert("i".into(), progress);
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&init)), "a/c");
        // The application container is the last one: nothing is waited for.
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&prepared("c"))), "a/c");
    }

    #[test]
    fn containers_with_the_same_ids_and_the_same_mig_devices_do_not_wait_for_a_status() {
        let mut a = pod("a", &[("i", INIT, 0, 1), ("c", APP, 0, 1)]);
        let holders = [holder("a", "i", &["d1"]), holder("a", "c", &["d1"])];
        // Whichever of them it is: its spec has these devices.
        assert_eq!(ask(&["d1"], &holders, &[&a], Some(&prepared("i"))), "a/i");
        let running = Progress {
            running: true,
            ..Progress::default()
        };
        a.containers.insert("i".into(), running);
        assert_eq!(ask(&["d1"], &holders, &[&a], None), "a/i");
        let completed = Progress {
            completed: true,
            ..Progress::default()
        };
        a.containers.insert("i".into(), completed);
        assert_eq!(ask(&["d1"], &holders, &[&a], None), "a/c");
    }

    #[test]
    fn containers_with_the_same_share_wait_because_their_specs_name_them() {
        let mut a = pod("a", &[("i", INIT, 0, 1), ("c", APP, 0, 1)]);
        for container in &mut a.claim.containers {
            container.devices = vec![ClaimedDevice::HamiCore(Share {
                gpu: "GPU-1".into(),
                mem: 1,
                cores: 0,
            })];
        }
        let holders = [holder("a", "i", &["d1"]), holder("a", "c", &["d1"])];
        let answer = ask(&["d1"], &holders, &[&a], Some(&prepared("i")));
        assert_eq!(answer, "not yet");
    }
}
