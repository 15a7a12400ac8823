//! The pods of this node that hold a claim, as the agent's own watch shows them.

use std::collections::BTreeMap;

use domain::claim::{Claim, ContainerClaim};

use crate::materialise::journal::Bound;

/// A pod bound to this node with a readable claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedPod {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What it holds.
    pub claim: Claim,
    /// State of its containers that matters here, by name.
    pub containers: BTreeMap<String, Progress>,
}

/// How far a container is, from the pod's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Runs now.
    pub running: bool,
    /// Ended with exit code 0 and will not run again (for an ordinary init container).
    pub completed: bool,
    /// All that the status says of it, to notice any change.
    pub fingerprint: String,
}

impl ClaimedPod {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// One of its containers, as the journal names it.
    pub fn bound(&self, container: &str) -> Bound {
        Bound {
            uid: self.uid.clone(),
            pod: self.key(),
            container: container.to_owned(),
        }
    }

    /// The claim of one of its containers.
    pub fn container(&self, name: &str) -> Option<&ContainerClaim> {
        self.claim.container(name)
    }
}
