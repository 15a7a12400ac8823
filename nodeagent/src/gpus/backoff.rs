//! How failed creations of instances are retried, and when a pod is given up.

use crate::gpus::clock::Millis;

/// Failed creations after which a pod is given up ...
const GIVE_UP_AFTER_FAILURES: u32 = 5;
/// ... and how long they must have gone on, in milliseconds.
const GIVE_UP_AFTER_MS: Millis = 30_000;
/// Limit of the pause between two attempts, in milliseconds.
const MAX_RETRY_INTERVAL_MS: Millis = 30_000;
/// First back-off of a GPU on which instances cannot be created, in milliseconds; doubled each time ...
const FIRST_BACKOFF_MS: Millis = 60_000;
/// ... up to this.
const MAX_BACKOFF_MS: Millis = 600_000;

/// An instance could not be created for a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreationFailure {
    /// Time of the first failure.
    pub since: Millis,
    /// Number of failures.
    pub count: u32,
    /// When to try again.
    pub retry_at: Millis,
}

impl CreationFailure {
    /// One more failure after those `before`.
    pub(crate) fn after(before: Option<&Self>, now: Millis) -> Self {
        let count = before.map_or(0, |failure| failure.count) + 1;
        Self {
            since: before.map_or(now, |failure| failure.since),
            count,
            retry_at: now + (1_000 << count.min(5)).min(MAX_RETRY_INTERVAL_MS),
        }
    }

    /// Whether the pod should be given up, so that its controller creates another one elsewhere.
    pub(crate) fn is_hopeless(&self, now: Millis) -> bool {
        self.count >= GIVE_UP_AFTER_FAILURES && now >= self.since + GIVE_UP_AFTER_MS
    }
}

/// Instances cannot be created on a GPU: it is not offered for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreationBackoff {
    /// The error of the last creation.
    pub reason: String,
    /// Number of pods that were given up since an instance was created last.
    pub count: u32,
    /// When the GPU is offered again.
    pub until: Millis,
    /// Whether it is offered again already.
    pub is_over: bool,
}

impl CreationBackoff {
    /// The back-off after a pod was given up; one that is not over yet stays as it is.
    pub(crate) fn after(before: Option<Self>, reason: &str, now: Millis) -> Self {
        if let Some(current) = before.as_ref().filter(|backoff| !backoff.is_over) {
            return current.clone();
        }
        let count = before.map_or(0, |backoff| backoff.count) + 1;
        Self {
            reason: reason.to_owned(),
            count,
            until: now + (FIRST_BACKOFF_MS << (count - 1).min(4)).min(MAX_BACKOFF_MS),
            is_over: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::{
        action::Action,
        testing::{GPU, LIMITS, node},
    };

    #[test]
    fn a_pod_is_given_up_when_it_waits_long_for_what_cannot_be_made() {
        let mut failure = None;
        let mut now = 0;
        while !failure
            .as_ref()
            .is_some_and(|f: &CreationFailure| f.is_hopeless(now))
        {
            failure = Some(CreationFailure::after(failure.as_ref(), now));
            now = failure.as_ref().unwrap().retry_at;
        }
        let failure = failure.unwrap();
        assert_eq!((failure.count, now), (5, 60_000));
        assert!(!CreationFailure::after(None, 0).is_hopeless(1_000_000));
        // The GPU is not offered for a while.
        let mut state = node(&[], &[]);
        let backoff = CreationBackoff {
            reason: "no".into(),
            count: 1,
            until: 100,
            is_over: false,
        };
        state.gpu_mut(GPU).unwrap().creation_backoff = Some(backoff);
        assert_eq!(state.gpus[GPU].unhealthy_reason().as_deref(), Some("no"));
        assert_eq!(state.next_action(0, LIMITS), (None, Some(100)));
        let offer = Action::EndBackoff { gpu: GPU.into() };
        assert_eq!(state.next_action(100, LIMITS).0, Some(offer));
    }
}
