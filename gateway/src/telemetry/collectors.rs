//! Metrics that are read from the kernel only when they are scraped.

use std::io;

use futures::future::BoxFuture;

/// Brings some metrics up to date when they are scraped. Implementations are
/// registered with the HTTP server, which knows nothing else about them.
pub trait Collector: Send + Sync {
    /// Updates the metrics.
    ///
    /// # Errors
    /// If the kernel does not answer; the metrics keep their values then.
    fn collect(&self) -> BoxFuture<'_, io::Result<()>>;
}
