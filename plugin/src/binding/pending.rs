//! The bindings that are not over: under way, of unclear outcome, or carried out and not yet seen by the watch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::pod::PodName;
use placement::cluster::PodUid;

/// The bindings that are not over, by pod; a clone shares the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingBindings(Arc<Mutex<HashMap<PodUid, Pending>>>);

#[derive(Clone, Debug)]
struct Pending {
    name: PodName,
    /// Since when the pod is known to be bound; `None`: under way or unclear.
    bound: Option<Instant>,
}

/// A pod's binding that is under way or unclear: no other one of the pod begins until it is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    pending: PendingBindings,
    uid: PodUid,
}

impl Exclusive {
    /// The pod is bound: what is left is to see it.
    pub(crate) fn bound(self) {
        if let Some(known) = self.pending.lock().get_mut(&self.uid) {
            known.bound = Some(Instant::now());
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let mut pending = self.pending.lock();
        if pending.get(&self.uid).is_some_and(|p| p.bound.is_none()) {
            pending.remove(&self.uid);
        }
    }
}

impl PendingBindings {
    /// Begins a binding of the pod; `None` while an earlier one is under way or unclear.
    pub(crate) fn begin(&self, uid: &str, name: PodName) -> Option<Exclusive> {
        let mut pending = self.lock();
        if pending.get(uid).is_some_and(|known| known.bound.is_none()) {
            return None;
        }
        pending.insert(uid.to_owned(), Pending { name, bound: None });
        Some(Exclusive {
            pending: self.clone(),
            uid: uid.to_owned(),
        })
    }

    /// Remembers that a pod is bound, until the watch shows it.
    pub(crate) fn insert_bound(&self, uid: &str, name: PodName) {
        let bound = Some(Instant::now());
        let mut pending = self.lock();
        pending
            .entry(uid.to_owned())
            .or_insert(Pending { name, bound });
    }

    /// Forgets those that were seen, and returns those that were bound this long ago and not seen since.
    pub(crate) fn unseen(
        &self,
        age: Duration,
        is_assumed: impl Fn(&str) -> bool,
    ) -> Vec<(PodUid, PodName)> {
        let mut pending = self.lock();
        pending.retain(|uid, known| known.bound.is_none() || is_assumed(uid));
        let late = pending
            .iter()
            .filter(|(_, known)| known.bound.is_some_and(|at| at.elapsed() >= age));
        late.map(|(uid, known)| (uid.clone(), known.name.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_binding_of_a_pod_at_a_time() {
        let pending = PendingBindings::default();
        let name = || PodName::new("ns", "p");
        let first = pending.begin("u", name()).unwrap();
        assert!(pending.begin("u", name()).is_none());
        assert!(pending.begin("w", name()).is_some(), "another pod");
        assert!(pending.unseen(Duration::ZERO, |_| true).is_empty());
        first.bound();
        let unseen = pending.unseen(Duration::ZERO, |_| true);
        assert_eq!(unseen, [("u".to_owned(), name())]);
        let again = pending.begin("u", name()).unwrap();
        drop(again);
        assert!(pending.unseen(Duration::ZERO, |_| true).is_empty());
    }
}
