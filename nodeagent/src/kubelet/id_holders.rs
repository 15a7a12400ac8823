//! Which containers hold which device ids, as kubelet reports it and as our CDI specs record it.

use std::collections::BTreeSet;

use domain::pod::PodName;
use serde::{Deserialize, Serialize};

use crate::gpus::claims::ClaimedPod;

/// A set of device ids. kubelet's calls list them in different orders.
pub(crate) type DeviceIds = BTreeSet<String>;

/// A container that holds device ids, according to kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdHolder {
    pub(crate) pod: PodRef,
    pub(crate) container: String,
    pub(crate) ids: DeviceIds,
}

/// How kubelet identifies the pod of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodRef {
    /// In its checkpoint.
    Uid(String),
    /// In its `PodResources` service.
    Name(PodName),
}

impl PodRef {
    pub(crate) fn refers_to(&self, pod: &ClaimedPod) -> bool {
        match self {
            Self::Uid(uid) => pod.uid == *uid,
            Self::Name(name) => pod.name == *name,
        }
    }
}

/// The container that was prepared last for a set of ids. The CDI spec of the ids keeps it as an annotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreparedContainer {
    /// UID of the pod.
    pub(crate) uid: String,
    pub(crate) container: String,
    /// [`Progress::fingerprint`](crate::gpus::claims::Progress) when it was prepared.
    pub(crate) fingerprint: String,
}
