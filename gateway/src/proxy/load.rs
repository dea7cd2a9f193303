//! How much the proxy carries: counted on its thread, read on the agent's.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::telemetry::metrics::{Metrics, Reason};

/// For how long a refusal is reported.
const REPORTED: Duration = Duration::from_secs(60);

/// The load.
pub struct Load {
    metrics: Metrics,
    capacity: usize,
    open: AtomicUsize,
    since: Instant,
    /// When the last connection was refused for being one too many, in milliseconds
    /// after `since`; 0 if none was.
    refused: AtomicU64,
}

impl Load {
    /// Of a proxy that takes so many connections.
    pub fn new(metrics: Metrics, capacity: usize) -> Self {
        metrics.proxied_limit.set(i64::try_from(capacity).unwrap_or(i64::MAX));
        let (open, refused) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { metrics, capacity, open, since: Instant::now(), refused }
    }

    /// The most connections.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether there are so many, or a connection was refused lately.
    pub fn is_full(&self, now: Instant) -> bool {
        let refused = self.refused.load(Ordering::Relaxed);
        let at = self.since + Duration::from_millis(refused);
        self.open.load(Ordering::Relaxed) >= self.capacity || refused > 0 && now < at + REPORTED
    }

    /// Counts a connection.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.metrics.proxied.inc();
    }

    /// It has ended.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.metrics.proxied.dec();
    }

    /// Counts a connection that is one too many.
    pub fn refuse_full(&self) {
        let after = u64::try_from(self.since.elapsed().as_millis()).unwrap_or_default();
        self.refused.store(after.max(1), Ordering::Relaxed);
        self.metrics.proxy_refused.get_or_create(&Reason { reason: "full" }).inc();
    }

    /// Counts a connection whose target cannot be reached, or that has none.
    pub fn refuse_unreachable(&self) {
        self.metrics.proxy_refused.get_or_create(&Reason { reason: "unreachable" }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_reported_for_a_minute() {
        let load = Load::new(Metrics::default(), 2);
        let now = Instant::now();
        load.opened();
        assert!(!load.is_full(now));
        load.opened();
        assert!(load.is_full(now + Duration::from_secs(3600)));
        load.refuse_full();
        load.closed();
        assert!(load.is_full(now + Duration::from_secs(59)));
        assert!(!load.is_full(now + Duration::from_secs(61)));
        assert_eq!((load.metrics.proxied.get(), load.metrics.proxied_limit.get()), (1, 2));
        let refused = load.metrics.proxy_refused.get_or_create(&Reason { reason: "full" }).get();
        assert_eq!(refused, 1);
    }
}
