//! The pods of this node, by a watch of our own.

use std::{collections::BTreeMap, sync::Arc};

use daemon::{pods, watches::Change};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use tokio::sync::watch;

use crate::{
    gpus::claims::{ClaimedPod, ClaimedPods, Progress},
    materialise::thread::NvmlThread,
};

/// The living pods with a claim, by UID; nothing until the first list of them is complete.
pub type Pods = Option<Arc<ClaimedPods>>;

/// Keeps the pods, and hands every change to the owner of the cards.
#[derive(Debug, Default)]
pub struct Follower {
    pods: BTreeMap<String, ClaimedPod>,
    /// Nothing is handed on before the first list is complete: its absence of a pod would be no truth.
    complete: bool,
}

impl Follower {
    /// Takes over a change of the watch.
    pub fn apply(&mut self, change: Change<Pod>, nvml: &NvmlThread, shared: &watch::Sender<Pods>) {
        let before = self.pods.clone();
        match change {
            Change::Apply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                match claimed(&pod) {
                    Some(claimed) => {
                        self.pods.insert(uid, claimed);
                    }
                    None => {
                        self.pods.remove(&uid);
                    }
                }
            }
            Change::Delete(pod) => {
                self.pods.remove(&pod.uid().unwrap_or_default());
            }
            Change::Complete { uids, .. } => {
                self.pods.retain(|uid, _| uids.contains(uid));
                if !self.complete {
                    self.complete = true;
                    nvml.set_pods(Arc::new(self.pods.clone()));
                    shared.send_replace(Some(Arc::new(self.pods.clone())));
                }
            }
        }
        if self.complete && self.pods != before {
            nvml.set_pods(Arc::new(self.pods.clone()));
            shared.send_replace(Some(Arc::new(self.pods.clone())));
        }
    }
}

fn claimed(pod: &Pod) -> Option<ClaimedPod> {
    if pods::is_over(pod) {
        return None;
    }
    let claim = match pods::claim(pod)? {
        Ok(claim) => claim,
        Err(error) => {
            tracing::warn!(
                pod = pods::key(pod),
                error = &error as &dyn std::error::Error,
                "Skipped a bad claim"
            );
            return None;
        }
    };
    let status = pod.status.as_ref();
    let statuses = |list: Option<&Vec<ContainerStatus>>| list.cloned().unwrap_or_default();
    let containers = statuses(status.and_then(|s| s.init_container_statuses.as_ref()))
        .into_iter()
        .chain(statuses(status.and_then(|s| s.container_statuses.as_ref())))
        .map(|status| (status.name.clone(), progress(&status)))
        .collect();
    Some(ClaimedPod {
        uid: pod.uid()?,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        claim,
        containers,
    })
}

fn progress(status: &ContainerStatus) -> Progress {
    let state = status.state.as_ref();
    let ended = state.and_then(|state| state.terminated.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let running = state.is_some_and(|state| state.running.is_some());
    Progress {
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
    use super::*;

    fn pod(name: &str, claim: &str) -> Pod {
        let pod = serde_json::json!({
            "metadata": { "name": name, "uid": name, "annotations": { "tessera.dev/claim": claim } },
            "spec": { "nodeName": "n", "containers": [] },
        });
        serde_json::from_value(pod).unwrap()
    }

    /// Peer lesson: one bad record does not stop the others.
    #[test]
    fn a_bad_claim_is_skipped_and_the_others_are_read() {
        let good = r#"{"v":1,"containers":[{"name":"main","devices":[]}]}"#;
        for bad in [
            "",
            "{",
            r#"{"v":99,"containers":[]}"#,
            r#"{"v":1,"containers":[{"name":1}]}"#,
        ] {
            let pods = [pod("bad", bad), pod("good", good)];
            let read: Vec<_> = pods.iter().filter_map(claimed).map(|pod| pod.uid).collect();
            assert_eq!(read, ["good"], "{bad}");
        }
    }
}
