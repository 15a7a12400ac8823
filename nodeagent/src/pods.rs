//! The pods of this node with a claim, by a watch of the agent's own.

use std::{collections::BTreeMap, sync::Arc};

use daemon::{
    pods,
    ready::Latch,
    watches::{self, Change},
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use tokio::sync::watch;

use crate::{
    gpus::claims::{ClaimedPod, ClaimedPods, Progress},
    materialise::thread::NvmlThread,
};

/// Variable by which a container does without `HAMi`-core's limits.
const DISABLE_VARIABLE: &str = "CUDA_DISABLE_CONTROL";

/// The living pods with a claim; `None` until the first list of pods is complete.
pub(crate) type Pods = Option<Arc<ClaimedPods>>;

/// Watches the pods of a node, and hands every change to the NVML thread and to `share`, forever.
pub(crate) async fn watch(
    client: Client,
    node_name: String,
    latch: Latch,
    nvml: NvmlThread,
    share: watch::Sender<Pods>,
) {
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut known = KnownPods::default();
    watches::watch(Api::<Pod>::all(client), of_node, Some(latch), |change| {
        if let Some(pods) = known.apply(change) {
            nvml.set_pods(pods.clone());
            share.send_replace(Some(pods));
        }
    })
    .await;
}

/// The pods as the watch has delivered them.
#[derive(Debug, Default)]
struct KnownPods {
    /// Shared with all who were handed them; copied when they change.
    pods: Arc<ClaimedPods>,
    /// Whether the first list was complete: before, a pod that is absent may still exist.
    is_complete: bool,
}

impl KnownPods {
    /// Applies a change of the watch. Returns all pods if they are to be handed on: if they have changed, or are complete
    /// for the first time.
    fn apply(&mut self, change: Change<Pod>) -> Option<Arc<ClaimedPods>> {
        let was_complete = self.is_complete;
        let has_changed = match change {
            Change::Apply(pod) => match claimed(&pod) {
                Some(claimed) => self.insert(claimed),
                None => self.remove(&pod),
            },
            Change::Delete(pod) => self.remove(&pod),
            Change::Complete { uids, .. } => {
                self.is_complete = true;
                let has_gone = self.pods.keys().any(|uid| !uids.contains(uid));
                if has_gone {
                    Arc::make_mut(&mut self.pods).retain(|uid, _| uids.contains(uid));
                }
                has_gone
            }
        };
        (self.is_complete && (has_changed || !was_complete)).then(|| self.pods.clone())
    }

    /// Returns whether that is a change.
    fn insert(&mut self, pod: ClaimedPod) -> bool {
        let is_change = self.pods.get(&pod.uid) != Some(&pod);
        if is_change {
            Arc::make_mut(&mut self.pods).insert(pod.uid.clone(), pod);
        }
        is_change
    }

    /// Returns whether that is a change.
    fn remove(&mut self, pod: &Pod) -> bool {
        let uid = pod.uid().unwrap_or_default();
        let is_change = self.pods.contains_key(&uid);
        if is_change {
            Arc::make_mut(&mut self.pods).remove(&uid);
        }
        is_change
    }
}

/// A living pod with a claim that can be read.
fn claimed(pod: &Pod) -> Option<ClaimedPod> {
    if pods::is_over(pod) {
        return None;
    }
    let claim = match pods::claim(pod)? {
        Ok(claim) => claim,
        Err(error) => {
            tracing::warn!(
                pod = %pods::name(pod),
                error = &error as &dyn std::error::Error,
                "Skipped a pod with a bad claim"
            );
            return None;
        }
    };
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let app = status.and_then(|status| status.container_statuses.as_ref());
    let statuses = init.into_iter().chain(app).flatten();
    Some(ClaimedPod {
        uid: pod.uid()?,
        name: pods::name(pod),
        claim,
        containers: with_variables(
            pod,
            statuses
                .map(|status| (status.name.clone(), progress(status)))
                .collect(),
        ),
    })
}

/// Adds what the spec says of the containers. A container without a status yet has made no progress.
fn with_variables(
    pod: &Pod,
    mut containers: BTreeMap<String, Progress>,
) -> BTreeMap<String, Progress> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref());
    let app = spec.map(|spec| &spec.containers);
    for container in init.into_iter().chain(app).flatten() {
        let mut variables = container.env.iter().flatten();
        let disables = variables.any(|variable| {
            variable.name == DISABLE_VARIABLE && variable.value.as_deref().is_some_and(is_true)
        });
        if disables {
            containers
                .entry(container.name.clone())
                .or_default()
                .disables_limiter = true;
        }
    }
    containers
}

/// What Go's `strconv.ParseBool` takes for true, as `HAMi` does.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn progress(status: &ContainerStatus) -> Progress {
    let state = status.state.as_ref();
    let ended = state.and_then(|state| state.terminated.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let running = state.is_some_and(|state| state.running.is_some());
    Progress {
        disables_limiter: false,
        running,
        completed: ended.is_some_and(|ended| ended.exit_code == 0),
        fingerprint: format!(
            "{} {} {} {} {}",
            status.restart_count,
            status.container_id.as_deref().unwrap_or_default(),
            running,
            ended.map_or_else(String::new, |ended| ended.exit_code.to_string()),
            waiting
                .and_then(|waiting| waiting.reason.as_deref())
                .unwrap_or_default(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CLAIM: &str = r#"{"v":1,"containers":[{"name":"main","devices":[]}]}"#;

    fn pod(name: &str, claim: &str) -> Pod {
        let pod = serde_json::json!({
            "metadata": { "name": name, "uid": name, "annotations": { "tessera.dev/claim": claim } },
            "spec": { "nodeName": "n", "containers": [] },
        });
        serde_json::from_value(pod).unwrap()
    }

    fn apply(pod: Pod) -> Change<Pod> {
        Change::Apply(Box::new(pod))
    }

    fn complete(uids: &[&str]) -> Change<Pod> {
        Change::Complete {
            uids: uids.iter().map(|uid| (*uid).to_owned()).collect(),
            names: BTreeSet::new(),
        }
    }

    fn uids(pods: Option<Arc<ClaimedPods>>) -> Option<Vec<String>> {
        pods.map(|pods| pods.keys().cloned().collect())
    }

    /// Peer lesson: one bad record does not stop the others.
    #[test]
    fn a_bad_claim_is_skipped_and_the_others_are_read() {
        for bad in [
            "",
            "{",
            r#"{"v":99,"containers":[]}"#,
            r#"{"v":1,"containers":[{"name":1}]}"#,
        ] {
            let pods = [pod("bad", bad), pod("good", CLAIM)];
            let read: Vec<_> = pods.iter().filter_map(claimed).map(|pod| pod.uid).collect();
            assert_eq!(read, ["good"], "{bad}");
        }
    }

    /// Issue 12: `HAMi`'s variable of a container, known before its status is.
    #[test]
    fn a_container_may_do_without_the_limiter() {
        for (value, disables) in [
            ("true", true),
            ("1", true),
            ("false", false),
            ("yes", false),
        ] {
            let mut pod = pod("a", CLAIM);
            let container = serde_json::json!({ "name": "main",
                "env": [{ "name": "CUDA_DISABLE_CONTROL", "value": value }] });
            let container = serde_json::from_value(container).unwrap();
            pod.spec.as_mut().unwrap().containers = vec![container];
            let claimed = claimed(&pod).unwrap();
            let main = claimed.containers.get("main");
            assert_eq!(
                main.is_some_and(|main| main.disables_limiter),
                disables,
                "{value}"
            );
        }
    }

    #[test]
    fn pods_are_handed_on_when_the_first_list_is_complete_and_then_after_each_change() {
        let mut known = KnownPods::default();
        assert_eq!(uids(known.apply(apply(pod("a", CLAIM)))), None);
        let first = known.apply(complete(&["a"]));
        assert_eq!(uids(first), Some(vec!["a".into()]));
        let second = known.apply(apply(pod("b", CLAIM)));
        assert_eq!(uids(second), Some(vec!["a".into(), "b".into()]));
        let gone = known.apply(Change::Delete(Box::new(pod("a", CLAIM))));
        assert_eq!(uids(gone), Some(vec!["b".into()]));
        assert_eq!(uids(known.apply(complete(&[]))), Some(vec![]));
    }

    #[test]
    fn what_changes_nothing_is_neither_handed_on_nor_copied() {
        let mut known = KnownPods::default();
        known.apply(apply(pod("a", CLAIM)));
        let handed_on = known.apply(complete(&["a"])).unwrap();
        for change in [
            apply(pod("a", CLAIM)),
            apply(pod("other", "")),
            Change::Delete(Box::new(pod("other", CLAIM))),
            complete(&["a", "other"]),
        ] {
            assert_eq!(known.apply(change), None);
        }
        assert!(Arc::ptr_eq(&handed_on, &known.pods));
    }
}
