//! The pods of this node that hold a claim, as the agent's own watch delivers them.

use std::collections::BTreeMap;

use domain::{
    claim::{Claim, ContainerClaim},
    pod::PodName,
};

use crate::gpus::record::ContainerRef;

/// All living pods of the node with a readable claim, by UID.
pub type ClaimedPods = BTreeMap<String, ClaimedPod>;

/// A pod bound to this node with a readable claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedPod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace` and `metadata.name`.
    pub name: PodName,
    /// The content of its claim annotation.
    pub claim: Claim,
    /// Progress of its containers by name, from the pod's status.
    pub containers: BTreeMap<String, Progress>,
}

/// How far a container is, from the pod's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether it runs now.
    pub running: bool,
    /// It ended with exit code 0 and will not run again (for an ordinary init container).
    pub completed: bool,
    /// Its own variable `CUDA_DISABLE_CONTROL` is true: it gets no limits.
    pub disables_limiter: bool,
    /// Everything that the status says about it, to notice any change.
    pub fingerprint: String,
}

impl ClaimedPod {
    /// One of its containers, as the journal records it.
    pub fn container_ref(&self, container: &str) -> ContainerRef {
        ContainerRef {
            uid: self.uid.clone(),
            pod: self.name.to_string(),
            container: container.to_owned(),
        }
    }

    /// The claim of one of its containers.
    pub fn container(&self, name: &str) -> Option<&ContainerClaim> {
        self.claim.container(name)
    }
}
