//! Which pod and container a set of device ids means, at the moment when that container starts. Pure.
//!
//! kubelet's calls name device ids only. Its checkpoint lists every (pod, container, ids), its
//! `PodResources` all but ordinary init containers; an init container's ids are given again to the
//! pod's other containers, so the same set may mean several containers, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use domain::demand::ContainerKind;

use crate::gpus::claims::ClaimedPod;

/// A set of device ids; the order differs between kubelet's calls.
pub type DeviceIds = BTreeSet<String>;

/// A container that kubelet says holds device ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// By UID from the checkpoint, by `namespace/name` from `PodResources`.
    pub pod: PodName,
    /// The container.
    pub container: String,
    /// Its ids.
    pub ids: DeviceIds,
}

/// How kubelet named a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodName {
    /// UID.
    Uid(String),
    /// `namespace/name`.
    Key(String),
}

impl PodName {
    /// Whether it is this pod's.
    pub fn is(&self, pod: &ClaimedPod) -> bool {
        match self {
            Self::Uid(uid) => pod.uid == *uid,
            Self::Key(key) => pod.key() == *key,
        }
    }
}

/// The container that was prepared last for a set of ids, with its status at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// UID of the pod.
    pub uid: String,
    /// The container.
    pub container: String,
    /// [`Progress::fingerprint`](crate::gpus::claims::Progress) when it was prepared.
    pub fingerprint: String,
}

/// What a set of device ids means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This container is starting.
    Container {
        /// UID of the pod.
        uid: String,
        /// The container.
        container: String,
    },
    /// It cannot be told yet: the watch of pods lags behind kubelet. Ask again after the next change.
    NotYet(String),
    /// kubelet knows nobody with these ids.
    Nobody,
}

/// Finds the container that is starting with these ids.
///
/// An exact match wins. Where kubelet knows the ids only as part of a container's (an init
/// container's, which `PodResources` hides), the pod's init containers come into question too.
pub fn resolve(
    ids: &DeviceIds,
    holdings: &[Holding],
    pods: &BTreeMap<String, ClaimedPod>,
    served: Option<&Served>,
) -> Owner {
    let find = |name: &PodName| pods.values().find(|pod| name.is(pod));
    let mut candidates: Vec<(&ClaimedPod, &str)> = Vec::new();
    let mut unknown = None;
    for holding in holdings.iter().filter(|holding| holding.ids == *ids) {
        match find(&holding.pod) {
            Some(pod) if !candidates.contains(&(pod, &holding.container)) => {
                candidates.push((pod, &holding.container));
            }
            Some(_) => {}
            None => {
                unknown = Some(format!(
                    "pod of container {} is not known yet",
                    holding.container
                ));
            }
        }
    }
    // An ordinary init container that the checkpoint would have named: of the pod that shares an id.
    let hidden = holdings
        .iter()
        .filter(|holding| !holding.ids.is_disjoint(ids))
        .filter_map(|h| find(&h.pod));
    if candidates.is_empty() {
        for pod in hidden {
            for container in &pod.claim.containers {
                if container.kind == ContainerKind::Init
                    && container.devices.len() == ids.len()
                    && !candidates.contains(&(pod, &container.name))
                {
                    candidates.push((pod, &container.name));
                }
            }
        }
    }
    let Some((pod, _)) = candidates.first().copied() else {
        return unknown.map_or(Owner::Nobody, Owner::NotYet);
    };
    // Ids of a pod that is over may be listed still; a set belongs to one living pod at a time.
    candidates.retain(|(candidate, _)| candidate.uid == pod.uid);
    choose(
        pod,
        &candidates
            .iter()
            .map(|(_, container)| *container)
            .collect::<Vec<_>>(),
        served,
    )
}

/// Of a pod's containers with the same ids, the one whose turn it is.
fn choose(pod: &ClaimedPod, candidates: &[&str], served: Option<&Served>) -> Owner {
    let found = |container: &str| Owner::Container {
        uid: pod.uid.clone(),
        container: container.to_owned(),
    };
    let order: Vec<&str> = pod
        .claim
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .filter(|name| candidates.contains(name))
        .collect();
    let (Some(first), rest) = (order.first(), order.get(1..).unwrap_or_default()) else {
        return Owner::NotYet(format!(
            "the claim of pod {} does not name the container",
            pod.key()
        ));
    };
    let devices = |name: &str| pod.container(name).map(|container| &container.devices);
    if rest.iter().all(|name| devices(name) == devices(first)) && rest.is_empty() {
        return found(first);
    }
    let progress = |name: &str| pod.containers.get(name).cloned().unwrap_or_default();
    let turn = order
        .iter()
        .copied()
        .find(|name| !progress(name).completed)
        .or_else(|| order.last().copied())
        .unwrap_or(first);
    let stale_running = progress(turn).running && turn != *order.last().unwrap_or(first);
    let served_before = served.is_some_and(|served| {
        served.uid == pod.uid
            && served.container == turn
            && served.fingerprint == progress(turn).fingerprint
    });
    // The container was prepared and nothing has been heard of it since: it may have run and ended.
    if (stale_running || served_before) && turn != *order.last().unwrap_or(first) {
        return Owner::NotYet(format!(
            "the status of container {turn} of pod {} is not known yet",
            pod.key()
        ));
    }
    found(turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::claims::Progress;
    use domain::claim::{Claim, ClaimedDevice, ContainerClaim, Slot};

    fn ids(list: &[&str]) -> DeviceIds {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    fn pod(uid: &str, containers: &[(&str, ContainerKind, u8, usize)]) -> ClaimedPod {
        ClaimedPod {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            claim: Claim {
                containers: containers
                    .iter()
                    .map(|(name, kind, start, count)| ContainerClaim {
                        name: (*name).into(),
                        kind: *kind,
                        devices: (0..*count)
                            .map(|i| {
                                ClaimedDevice::Mig(Slot {
                                    gpu: "GPU-1".into(),
                                    profile: "1g.10gb".into(),
                                    start: start + u8::try_from(i).unwrap(),
                                    size: 1,
                                    mem: 1,
                                })
                            })
                            .collect(),
                    })
                    .collect(),
            },
            containers: BTreeMap::new(),
        }
    }

    fn holding(uid: &str, container: &str, list: &[&str]) -> Holding {
        Holding {
            pod: PodName::Uid(uid.into()),
            container: container.into(),
            ids: ids(list),
        }
    }

    fn world(pods: &[ClaimedPod]) -> BTreeMap<String, ClaimedPod> {
        pods.iter()
            .map(|pod| (pod.uid.clone(), pod.clone()))
            .collect()
    }

    fn is(uid: &str, container: &str) -> Owner {
        Owner::Container {
            uid: uid.into(),
            container: container.into(),
        }
    }

    const INIT: ContainerKind = ContainerKind::Init;
    const APP: ContainerKind = ContainerKind::App;

    #[test]
    fn two_pods_bound_together_are_told_apart_by_their_ids() {
        let pods = world(&[pod("a", &[("c", APP, 0, 1)]), pod("b", &[("c", APP, 1, 1)])]);
        let holdings = [holding("a", "c", &["d1"]), holding("b", "c", &["d2"])];
        assert_eq!(resolve(&ids(&["d2"]), &holdings, &pods, None), is("b", "c"));
        assert_eq!(
            resolve(&ids(&["d3"]), &holdings, &pods, None),
            Owner::Nobody
        );
    }

    #[test]
    fn a_pod_that_the_watch_has_not_shown_is_waited_for() {
        let answer = resolve(
            &ids(&["d1"]),
            &[holding("a", "c", &["d1"])],
            &world(&[]),
            None,
        );
        assert!(matches!(answer, Owner::NotYet(_)), "{answer:?}");
    }

    /// Points 4 and 6 of what kubelet does: init {d6,d7}, then c1 {d7}, c2 {d2,d6}.
    #[test]
    fn an_init_containers_ids_are_split_between_the_others() {
        let pods = world(&[pod(
            "a",
            &[("i", INIT, 0, 2), ("c1", APP, 0, 1), ("c2", APP, 1, 2)],
        )]);
        let holdings = [
            holding("a", "i", &["d7", "d6"]),
            holding("a", "c1", &["d7"]),
            holding("a", "c2", &["d6", "d2"]),
        ];
        assert_eq!(
            resolve(&ids(&["d6", "d7"]), &holdings, &pods, None),
            is("a", "i")
        );
        assert_eq!(
            resolve(&ids(&["d7"]), &holdings, &pods, None),
            is("a", "c1")
        );
        // Without the checkpoint only PodResources is there, which hides the init container.
        assert_eq!(
            resolve(&ids(&["d6", "d7"]), &holdings[1..], &pods, None),
            is("a", "i")
        );
    }

    #[test]
    fn of_an_init_and_an_application_container_with_the_same_ids_the_status_tells_whose_turn_it_is()
    {
        let mut a = pod("a", &[("i", INIT, 0, 1), ("c", APP, 4, 1)]);
        let holdings = [holding("a", "i", &["d1"]), holding("a", "c", &["d1"])];
        let ask = |a: &ClaimedPod, served: Option<&Served>| {
            resolve(
                &ids(&["d1"]),
                &holdings,
                &world(std::slice::from_ref(a)),
                served,
            )
        };
        assert_eq!(ask(&a, None), is("a", "i"));
        let served = Served {
            uid: "a".into(),
            container: "i".into(),
            fingerprint: String::new(),
        };
        // Prepared, and no word of it since: it may have ended already.
        assert!(matches!(ask(&a, Some(&served)), Owner::NotYet(_)));
        let mut progress = Progress {
            running: true,
            completed: false,
            fingerprint: "running".into(),
        };
        a.containers.insert("i".into(), progress.clone());
        assert!(matches!(ask(&a, Some(&served)), Owner::NotYet(_)));
        // It failed and is started again.
        progress.running = false;
        progress.fingerprint = "terminated 1".into();
        a.containers.insert("i".into(), progress.clone());
        assert_eq!(ask(&a, Some(&served)), is("a", "i"));
        progress.completed = true;
        a.containers.insert("i".into(), progress);
        assert_eq!(ask(&a, Some(&served)), is("a", "c"));
    }
}
