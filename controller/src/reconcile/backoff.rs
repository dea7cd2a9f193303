//! How long a run waits for the next one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How often a settled gateway is asked how it fares.
pub(super) const SETTLED: Duration = Duration::from_secs(60);
/// The same for one of which more changes than Kubernetes shows: who of several
/// pods answers, which endpoints are healthy.
pub(super) const SETTLED_ALIVE: Duration = Duration::from_secs(10);
/// How often one is asked at least that holds pods up at our readiness gate.
pub(super) const HOLDS: Duration = Duration::from_secs(1);
/// How soon one that is not settled is looked at again, and at most.
pub(super) const UNSETTLED: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(5));
/// How soon a failed write is tried again, and at most.
pub(super) const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// The `n`th pause of a series that doubles from the first to the last.
pub(super) fn pause((first, last): (Duration, Duration), n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(last)
}

/// `pause`, more or less, so that not all look at once.
pub(super) fn about(pause: Duration) -> Duration {
    // Each of them is seeded anew.
    let random = RandomState::new().build_hasher().finish();
    let percent = u32::try_from(random % 50).unwrap_or_default();
    pause * (75 + percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_look_at_once() {
        let pauses: Vec<Duration> = (0..100).map(|_| about(Duration::from_secs(100))).collect();
        assert!(pauses.iter().all(|pause| (75..125).contains(&pause.as_secs())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
