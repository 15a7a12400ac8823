//! Readiness: a process is ready when every latch is released.

use std::sync::{Arc, Mutex, PoisonError};

/// What the process still waits for; a clone shares the same latches.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<&'static str>>>);

/// One condition of readiness. Dropping it without [`release`](Latch::release) keeps the process
/// unready: a task that died has not completed.
#[derive(Debug)]
pub struct Latch {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Adds a condition.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.lock().push(name);
        Latch {
            readiness: self.clone(),
            name,
        }
    }

    /// The conditions that are not met; empty: ready.
    pub fn waiting(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// The condition is met.
    pub fn release(self) {
        let mut waiting = self.readiness.lock();
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
