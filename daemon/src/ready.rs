//! Readiness: a process is ready when every latch is released.

use std::sync::{Arc, Mutex, PoisonError};

/// What the process still waits for.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<&'static str>>>);

/// One thing that must be there first. Dropping it without [`release`](Latch::release) keeps the
/// process unready: a task that died is no task that is done.
#[derive(Debug)]
pub struct Latch {
    of: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Adds a thing to wait for.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.lock().push(name);
        Latch {
            of: self.clone(),
            name,
        }
    }

    /// The names that are waited for; empty: ready.
    pub fn waiting(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// It is there.
    pub fn release(self) {
        let mut waiting = self.of.lock();
        if let Some(at) = waiting.iter().position(|name| *name == self.name) {
            waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_latches_are_released() {
        let readiness = Readiness::default();
        let (pods, nodes) = (readiness.latch("pods"), readiness.latch("nodes"));
        pods.release();
        assert_eq!(readiness.waiting(), ["nodes"]);
        drop(nodes);
        assert_eq!(readiness.waiting(), ["nodes"], "a dead task is not done");
    }
}
