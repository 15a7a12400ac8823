//! When the GPUs are surveyed.

use std::time::{Duration, Instant};

/// Interval of surveys without a reason: for what others do to the GPUs, and for their health.
pub(super) const SURVEY_INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a survey that failed, doubled up to [`SURVEY_INTERVAL`].
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long after a fault the driver surely publishes the recovery that it requests.
const RECOVERY_ACTION_DELAY: Duration = Duration::from_secs(16);

/// When the GPUs are surveyed.
#[derive(Debug)]
pub(super) struct SurveySchedule {
    next: Instant,
    /// The last pause, while surveys fail.
    retry_interval: Option<Duration>,
    /// The survey that looks for the recovery that the driver requests after a fault.
    after_fault: Option<Instant>,
}

impl SurveySchedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            retry_interval: None,
            after_fault: None,
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    pub(super) fn request(&mut self, now: Instant) {
        self.next = now;
    }

    /// Requests a survey now and another when the driver has published the recovery that it requests.
    pub(super) fn request_after_fault(&mut self, now: Instant) {
        self.next = now;
        self.after_fault = Some(now + RECOVERY_ACTION_DELAY);
    }

    /// A survey has ended.
    pub(super) fn surveyed(&mut self, succeeded: bool, now: Instant) {
        self.retry_interval = (!succeeded).then(|| {
            let doubled = self.retry_interval.map(|interval| interval * 2);
            doubled.map_or(FIRST_RETRY_INTERVAL, |interval| {
                interval.min(SURVEY_INTERVAL)
            })
        });
        self.after_fault = self.after_fault.filter(|at| *at > now);
        let next = now + self.retry_interval.unwrap_or(SURVEY_INTERVAL);
        self.next = self.after_fault.map_or(next, |at| at.min(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surveys_that_fail_are_retried_soon_and_then_less_often() {
        let now = Instant::now();
        let mut schedule = SurveySchedule::new(now);
        assert!(schedule.is_due(now));
        let mut pause = |succeeded| {
            schedule.surveyed(succeeded, now);
            schedule.time_left(now).as_secs()
        };
        assert_eq!([false; 7].map(&mut pause), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!([true, false].map(pause), [30, 1]);
    }

    #[test]
    fn a_fault_is_followed_by_a_survey_at_once_and_one_for_the_recovery() {
        let now = Instant::now();
        let mut schedule = SurveySchedule::new(now);
        schedule.surveyed(true, now);
        schedule.request_after_fault(now);
        assert!(schedule.is_due(now));
        schedule.surveyed(true, now);
        assert_eq!(schedule.time_left(now), RECOVERY_ACTION_DELAY);
        let later = now + RECOVERY_ACTION_DELAY;
        schedule.surveyed(true, later);
        assert_eq!(schedule.time_left(later), SURVEY_INTERVAL);
    }
}
