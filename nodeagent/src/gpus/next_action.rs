//! The next thing to do without being asked: claims first, then the GPUs themselves.

use crate::gpus::{
    action::Action,
    clock::{Millis, Wakeup},
    state::NodeState,
};

/// How many idle instances are kept for the next pods, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleLimits {
    /// How long an idle instance is kept, in milliseconds.
    pub(crate) ttl: Millis,
    /// How many idle instances are kept on the node.
    pub(crate) count: usize,
}

impl NodeState {
    /// The next action; if there is none, the time to ask again.
    pub(crate) fn next_action(
        &self,
        now: Millis,
        limits: IdleLimits,
    ) -> (Option<Action>, Option<Millis>) {
        let mut wakeup = Wakeup::default();
        let action = self
            .claim_action(now, &mut wakeup)
            .or_else(|| self.gpu_action(now, limits, &mut wakeup));
        match action {
            Some(action) => (Some(action), None),
            None => (None, wakeup.time()),
        }
    }
}
