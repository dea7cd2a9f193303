//! How long a run waits for the next one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The time until a converged gateway is planned for again.
pub(super) const CONVERGED: Duration = Duration::from_secs(60);
/// The same for one of which more changes than Kubernetes shows: which of
/// several pods is active, which endpoints are healthy.
pub(super) const CONVERGED_POLL: Duration = Duration::from_secs(10);
/// The longest pause while pods wait for a gateway at their readiness gate.
pub(super) const HOLDS_GATES: Duration = Duration::from_secs(1);
/// The first pause of a gateway that has not converged, and the longest while
/// nothing changes. Of what it waits for Kubernetes shows most; not a quota, say,
/// or an object of others that has its name.
pub(super) const UNCONVERGED: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(600));
/// The most runs without a change that count once something has changed: the next
/// pause is 3.2 s then.
pub(super) const WOKEN: u32 = 6;
/// The first and the longest pause after a failed write.
pub(super) const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// The `n`th pause of a series that doubles from the first to the last.
pub(super) fn pause((first, last): (Duration, Duration), n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(last)
}

/// `pause`, more or less, so that not all runs fall together.
pub(super) fn about(pause: Duration) -> Duration {
    // Each `RandomState` is seeded anew.
    let random = RandomState::new().build_hasher().finish();
    let percent = u32::try_from(random % 50).unwrap_or_default();
    pause * (75 + percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread() {
        let pauses: Vec<Duration> = (0..100).map(|_| about(Duration::from_secs(100))).collect();
        assert!(pauses.iter().all(|pause| (75..125).contains(&pause.as_secs())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
