//! How often pods are restarted elsewhere: for one waiting pod, and of one workload. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use placement::cluster::PodUid;

/// Time between two restarts of a workload's pods (those of one controller).
const WORKLOAD_INTERVAL: Duration = Duration::from_mins(10);
/// Time between two restarts for a waiting pod: what the first one frees is reserved for it so long.
const WAITING_POD_INTERVAL: Duration = Duration::from_mins(2);
/// Number of workloads, and of waiting pods, that are remembered; nothing is restarted while that many are.
const MAX_REMEMBERED: usize = 1_024;

/// The restarts of late.
#[derive(Debug, Default)]
pub(super) struct RelocationLimits {
    workloads: HashMap<String, Instant>,
    waiting: HashMap<PodUid, Instant>,
}

impl RelocationLimits {
    /// Forgets what limits nothing any more.
    pub(super) fn expire(&mut self, now: Instant) {
        let recent = |at: Instant, interval| now.saturating_duration_since(at) < interval;
        self.workloads
            .retain(|_, at| recent(*at, WORKLOAD_INTERVAL));
        self.waiting
            .retain(|_, at| recent(*at, WAITING_POD_INTERVAL));
    }

    /// Whether a pod may be restarted for this waiting pod.
    pub(super) fn allow_for(&self, waiting: &str) -> bool {
        self.waiting.len() < MAX_REMEMBERED && !self.waiting.contains_key(waiting)
    }

    /// Whether a pod of this controller may be restarted.
    pub(super) fn allow_of(&self, controller: &str) -> bool {
        self.workloads.len() < MAX_REMEMBERED && !self.workloads.contains_key(controller)
    }

    /// Counts a restart.
    pub(super) fn count(&mut self, waiting: &str, controller: &str, now: Instant) {
        self.waiting.insert(waiting.to_owned(), now);
        self.workloads.insert(controller.to_owned(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 12: a Deployment was restarted forty times in 25 s.
    #[test]
    fn a_workload_is_restarted_once_in_ten_minutes_and_once_for_a_waiting_pod() {
        let (mut limits, now) = (RelocationLimits::default(), Instant::now());
        let after = |minutes| now + Duration::from_mins(minutes);
        limits.count("waiting", "workload", now);
        limits.expire(after(1));
        assert!(!limits.allow_for("waiting") && limits.allow_for("other"));
        assert!(!limits.allow_of("workload") && limits.allow_of("other"));
        limits.expire(after(2));
        assert!(limits.allow_for("waiting") && !limits.allow_of("workload"));
        limits.expire(after(10));
        assert!(limits.allow_of("workload"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut limits, now) = (RelocationLimits::default(), Instant::now());
        for number in 0..MAX_REMEMBERED {
            limits.count(&format!("p{number}"), &format!("w{number}"), now);
        }
        assert!(!limits.allow_for("new") && !limits.allow_of("new"));
    }
}
