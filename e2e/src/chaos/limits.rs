//! How long what the checker sees may last, derived from the pauses of the agent.

use std::{ops::RangeInclusive, time::Duration};

use nodeagent::gpus::{
    instance::QUARANTINE_AFTER,
    retry::{MAX_CHECK_INTERVAL_MS, destroy_interval},
};

/// How long an idle instance is kept in a run.
pub(super) const IDLE_TTL: Duration = Duration::from_secs(2);

/// The times that a disturbance may let a destruction fail: fewer than make an agent quarantine the instance, which is
/// the storm's.
pub(super) const FEW_FAILURES: RangeInclusive<u32> = 1..=QUARANTINE_AFTER - 1;

/// How long an agent may not learn that a claim is over, or not act on it: processes that end late, a restart, a frozen
/// agent, an outage of the API server.
const DISTURBANCE_ALLOWANCE: Duration = Duration::from_secs(20);

/// How long an instance of ours may be without a claim.
///
/// Processes may end just after a check: the agent finds that by the next one. Then the instance is kept while it is idle,
/// and then its destruction may fail a few times.
pub(super) fn unclaimed_limit() -> Duration {
    let check = Duration::from_millis(MAX_CHECK_INTERVAL_MS);
    DISTURBANCE_ALLOWANCE + check + IDLE_TTL + few_failures()
}

/// The pauses after the failures that a disturbance may cause.
pub(super) fn few_failures() -> Duration {
    Duration::from_millis(FEW_FAILURES.map(destroy_interval).sum())
}

/// The pause after which the agent tries again to destroy a quarantined instance.
pub(super) fn quarantine_interval() -> Duration {
    Duration::from_millis(destroy_interval(QUARANTINE_AFTER))
}

/// How long what a node publishes may differ from its GPUs while its agent and the API server are up.
pub(super) const STALE_LIMIT: Duration = Duration::from_secs(5);
