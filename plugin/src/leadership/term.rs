//! The term of this plugin: while it holds, bindings may be planned and sent.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use daemon::shutdown::CancellationToken;
use tokio::sync::Notify;

/// How long the Lease is kept after the last binding.
const IDLE_RELEASE: Duration = Duration::from_secs(10);

/// The term, and who needs it; a clone shares the same one.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// No term holds once it has fired: it closes the listener too, and who listens in our place next counts on that.
    token: CancellationToken,
    state: Mutex<State>,
    /// Wakes the task that holds the Lease.
    wanted: Notify,
    /// Wakes those that wait for a term.
    begun: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the term; it is another one whenever another plugin may have bound in between.
    term: u64,
    /// Until when the term holds if it is not renewed.
    valid_until: Option<Instant>,
    /// Why there is no term.
    obstacle: Option<String>,
    /// Bindings that are under way, or whose outcome is not known.
    under_way: usize,
    last_use: Option<Instant>,
}

/// A binding that is under way: the Lease is kept until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Leadership);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.under_way -= 1;
        state.last_use = Some(Instant::now());
        drop(state);
        self.0.0.wanted.notify_one();
    }
}

impl Leadership {
    /// No term yet, and none once the token has fired.
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self(Arc::new(Shared {
            token,
            state: Mutex::default(),
            wanted: Notify::new(),
            begun: Notify::new(),
        }))
    }

    /// Begins a binding: the Lease is taken for it and kept until it is over.
    pub(crate) fn begin(&self) -> UnderWay {
        let mut state = self.lock();
        state.under_way += 1;
        state.last_use = Some(Instant::now());
        drop(state);
        self.0.wanted.notify_one();
        UnderWay(self.clone())
    }

    /// The number of the term that holds now.
    pub(crate) fn term(&self) -> Option<u64> {
        let state = self.lock();
        let holds = state
            .valid_until
            .is_some_and(|until| Instant::now() < until);
        (holds && !self.0.token.is_cancelled()).then_some(state.term)
    }

    /// Waits for a term, at most until the deadline; then the error says why there is none.
    pub(crate) async fn wait(&self, deadline: Instant) -> Result<u64, String> {
        loop {
            let begun = self.0.begun.notified();
            tokio::pin!(begun);
            // Before the look at the term, so that none is missed.
            begun.as_mut().enable();
            if let Some(term) = self.term() {
                return Ok(term);
            }
            let late = tokio::select! {
                () = begun => false,
                () = tokio::time::sleep_until(deadline.into()) => true,
                () = self.0.token.cancelled() => return Err("it is shutting down".to_owned()),
            };
            if late {
                let unknown = || "the API server has not granted the lease yet".to_owned();
                return Err(self.lock().obstacle.clone().unwrap_or_else(unknown));
            }
        }
    }

    /// Whether bindings need the Lease, or did a short while ago.
    pub(super) fn is_wanted(&self) -> bool {
        let state = self.lock();
        let recent = |at: Instant| at.elapsed() < IDLE_RELEASE;
        state.under_way > 0 || state.last_use.is_some_and(recent)
    }

    /// Whether bindings are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().under_way > 0
    }

    /// Waits until a binding begins or ends.
    pub(super) async fn changed(&self) {
        self.0.wanted.notified().await;
    }

    /// Lets the term hold until then; `fresh`: another plugin may have bound since the last one.
    pub(crate) fn extend(&self, until: Instant, fresh: bool) {
        let mut state = self.lock();
        state.term += u64::from(fresh);
        state.valid_until = Some(until);
        state.obstacle = None;
        drop(state);
        self.0.begun.notify_waiters();
    }

    /// Ends the term: the Lease is released or lost.
    pub(super) fn end(&self) {
        self.lock().valid_until = None;
    }

    /// Remembers why there is no term.
    pub(super) fn set_obstacle(&self, obstacle: String) {
        self.lock().obstacle = Some(obstacle);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_term_holds_until_its_time_or_the_process_ends() {
        let token = CancellationToken::new();
        let leadership = Leadership::new(token.clone());
        let soon = || Instant::now() + Duration::from_millis(20);
        leadership.set_obstacle("held by x".to_owned());
        assert_eq!(leadership.wait(soon()).await.unwrap_err(), "held by x");
        leadership.extend(Instant::now() + Duration::from_mins(1), true);
        assert_eq!(leadership.wait(soon()).await, Ok(1));
        leadership.extend(Instant::now() + Duration::from_mins(1), false);
        assert_eq!(leadership.term(), Some(1), "renewed");
        leadership.extend(Instant::now(), false);
        assert_eq!(leadership.term(), None, "its time is over");
        leadership.extend(Instant::now() + Duration::from_mins(1), true);
        assert_eq!(leadership.term(), Some(2));
        token.cancel();
        assert_eq!(leadership.term(), None);
        assert_eq!(
            leadership.wait(soon()).await.unwrap_err(),
            "it is shutting down"
        );
    }

    #[test]
    fn the_lease_is_wanted_while_a_binding_is_under_way_and_a_while_after() {
        let leadership = Leadership::new(CancellationToken::new());
        assert!(!leadership.is_wanted());
        let binding = leadership.begin();
        assert!(leadership.is_wanted() && leadership.is_busy());
        drop(binding);
        assert!(leadership.is_wanted() && !leadership.is_busy());
    }
}
