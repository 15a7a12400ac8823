//! A GPU instance and who has it.

use domain::{
    claim::Slot,
    gpu::{InstanceState, Model},
    slices::Slices,
};

use crate::{
    gpus::{action::Action, clock::Millis, record::ContainerRef},
    nvml::data::LiveInstance,
};

/// Failed attempts to destroy an instance after which it is published as quarantined.
pub const QUARANTINE_AFTER: u32 = 6;

/// A GPU instance and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedInstance {
    /// As NVML reported it last.
    pub live: LiveInstance,
    /// Generation of its journal entry; `None`: the agent did not create it.
    pub generation: Option<u64>,
    /// Who has it.
    pub ownership: Ownership,
    /// A fault of this instance alone: no other pod gets it.
    pub fault: Option<String>,
}

/// Who has an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// A pod's container; the application container where several share it.
    Claimed(ContainerRef),
    /// No pod claims it, but processes may still run on it.
    Lingering {
        /// The container that had it last, if the journal knows.
        last: Option<ContainerRef>,
        /// When to check for processes again.
        check_at: Millis,
        /// How often this was checked.
        checks: u32,
    },
    /// Nobody.
    Idle {
        /// Since when.
        since: Millis,
    },
    /// Nobody, and the last attempt to destroy it failed.
    Stuck {
        /// Number of failed attempts.
        failures: u32,
        /// When to try again.
        retry_at: Millis,
        /// The error of the last attempt.
        reason: String,
    },
    /// Somebody else created it.
    Foreign,
}

impl TrackedInstance {
    /// The state to publish.
    pub fn state(&self) -> InstanceState {
        match &self.ownership {
            Ownership::Claimed(_) if self.live.compute.is_empty() => InstanceState::Creating,
            Ownership::Claimed(_) | Ownership::Lingering { .. } => InstanceState::InUse,
            Ownership::Idle { .. } => InstanceState::Idle,
            // What should be gone but is not may still have processes.
            Ownership::Stuck { failures, .. } if *failures < QUARANTINE_AFTER => {
                InstanceState::InUse
            }
            Ownership::Stuck { .. } => InstanceState::Quarantined,
            Ownership::Foreign => InstanceState::Foreign,
        }
    }

    /// Whether it has the profile and the place of a slot.
    pub(crate) fn matches_slot(&self, slot: &Slot, model: &Model) -> bool {
        (self.live.start, self.live.size) == (slot.start, slot.size)
            && model
                .offer(&slot.profile)
                .is_some_and(|offer| offer.profile_id == self.live.profile_id)
    }

    /// The container that has it.
    pub fn claimed_by(&self) -> Option<&ContainerRef> {
        match &self.ownership {
            Ownership::Claimed(container) => Some(container),
            _ => None,
        }
    }

    /// Whether it is the MIG device of this UUID, and this pod has it or had it last.
    pub(crate) fn was_device_of(&self, pod_uid: &str, mig_uuid: &str) -> bool {
        let last = match &self.ownership {
            Ownership::Lingering { last, .. } => last.as_ref(),
            _ => self.claimed_by(),
        };
        last.is_some_and(|last| last.uid == pod_uid)
            && self.live.compute.iter().any(|c| c.uuid == mig_uuid)
    }

    pub(crate) fn overlaps(&self, slices: Slices) -> bool {
        self.live.slices().overlaps(slices)
    }

    pub(crate) fn destroy(&self, gpu: &str) -> Action {
        Action::Destroy {
            gpu: gpu.to_owned(),
            id: self.live.id,
        }
    }

    pub(crate) fn check_processes(&self, gpu: &str) -> Action {
        Action::CheckProcesses {
            gpu: gpu.to_owned(),
            id: self.live.id,
        }
    }
}
