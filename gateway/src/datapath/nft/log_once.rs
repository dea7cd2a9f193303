//! Logging a failure once, however often it repeats.

use tracing::warn;

use super::transaction::Error;

/// The failure that was logged last, if it still lasts.
#[derive(Debug, Default)]
pub struct LogOnce(Option<String>);

impl LogOnce {
    /// Logs a failure and its consequence, unless the last one was the same.
    pub fn log(&mut self, consequence: &str, failure: Option<&Error>) {
        let failure = failure.map(ToString::to_string);
        if let Some(error) = failure.as_ref().filter(|_| failure != self.0) {
            warn!("{consequence}: {error}");
        }
        self.0 = failure;
    }
}
