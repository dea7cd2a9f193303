//! How long to wait between runs: retries of failures, and contention with something
//! else in the pod that changes the same state.

use std::time::Duration;

/// Interval of runs without any event.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Delay before the first retry; doubled with each further one.
const RETRY: Duration = Duration::from_millis(50);
/// Longest delay between retries.
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long to collect events before a run.
const DEBOUNCE: Duration = Duration::from_millis(1);
/// The same, while the state flaps.
const FLAPPING_DEBOUNCE: Duration = Duration::from_millis(250);
/// More consecutive repairs than these are flapping.
const FLAPPING_AFTER: u32 = 20;

/// The counts that the waiting depends on.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    repairs: u32,
}

impl Backoff {
    /// Notes the result of a run, and returns the longest wait until the next one.
    pub fn after_run(&mut self, failed: bool) -> Duration {
        self.failures = if failed { self.failures + 1 } else { 0 };
        match self.failures {
            0 => PERIOD,
            n => RETRY_MAX.min(RETRY * 2u32.saturating_pow(n - 1)),
        }
    }

    /// Forgets failures: there is a new configuration.
    pub fn forget_failures(&mut self) {
        self.failures = 0;
    }

    /// Notes that a run repaired a change by others.
    pub fn repaired(&mut self) {
        self.repairs += 1;
    }

    /// Notes that the wait elapsed without any event.
    pub fn quiet(&mut self) {
        if self.failures == 0 {
            self.repairs = 0;
        }
    }

    /// How long to collect events before the next run.
    pub fn debounce(&self) -> Duration {
        if self.repairs > FLAPPING_AFTER { FLAPPING_DEBOUNCE } else { DEBOUNCE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_until_a_run_succeeds() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after_run(false), PERIOD);
        let delays: Vec<u128> = (0..9).map(|_| backoff.after_run(true).as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        for _ in 0..100 {
            assert_eq!(backoff.after_run(true), RETRY_MAX);
        }
        backoff.forget_failures();
        assert_eq!(backoff.after_run(true), RETRY);
        assert_eq!(backoff.after_run(false), PERIOD);
    }

    #[test]
    fn repeated_repairs_are_flapping_until_it_is_quiet() {
        let mut backoff = Backoff::default();
        for _ in 0..=FLAPPING_AFTER {
            assert_eq!(backoff.debounce(), DEBOUNCE);
            backoff.repaired();
        }
        assert_eq!(backoff.debounce(), FLAPPING_DEBOUNCE);
        backoff.after_run(true);
        backoff.quiet();
        assert_eq!(backoff.debounce(), FLAPPING_DEBOUNCE, "quiet for want of success");
        backoff.after_run(false);
        backoff.quiet();
        assert_eq!(backoff.debounce(), DEBOUNCE);
    }
}
