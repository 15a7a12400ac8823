//! How soon the agent tries again what it could not do: to find an instance without processes, to destroy it.
//!
//! The limits of the checker of `make chaos` are derived from these functions.

use crate::gpus::{clock::Millis, instance::QUARANTINE_AFTER};

/// First pause between two checks whether processes are left on an instance without a pod, in milliseconds.
const FIRST_CHECK_INTERVAL_MS: Millis = 1_000;
/// The pause doubles up to this, in milliseconds.
pub const MAX_CHECK_INTERVAL_MS: Millis = 16_000;
/// First pause between two attempts to destroy an instance, in milliseconds, before it is doubled.
const FIRST_DESTROY_INTERVAL_MS: Millis = 100;
/// Pause between two attempts to destroy a quarantined instance, in milliseconds.
const QUARANTINE_INTERVAL_MS: Millis = 30_000;

/// Pause after a check that found processes, in milliseconds; `checks` were made before it.
pub fn check_interval(checks: u32) -> Millis {
    (FIRST_CHECK_INTERVAL_MS << checks.min(4)).min(MAX_CHECK_INTERVAL_MS)
}

/// Pause after an instance could not be destroyed for the `failures`-th time, in milliseconds: 0.2 s, doubled with each
/// failure, and 30 s once the instance is quarantined.
pub fn destroy_interval(failures: u32) -> Millis {
    if failures >= QUARANTINE_AFTER {
        QUARANTINE_INTERVAL_MS
    } else {
        FIRST_DESTROY_INTERVAL_MS << failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limits() {
        let checks: Vec<_> = (0..6).map(check_interval).collect();
        assert_eq!(checks, [1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
        let destroys: Vec<_> = (1..8).map(destroy_interval).collect();
        assert_eq!(destroys, [200, 400, 800, 1_600, 3_200, 30_000, 30_000]);
    }
}
