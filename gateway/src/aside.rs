//! nftables tables that nobody waits for: they are programmed after all else,
//! beside the loop, for that takes programs their time, and there are addresses
//! to be announced meanwhile. Where the kernel lacks what they take, what is
//! served is served all the same.

use tokio::sync::watch as cell;
use tracing::warn;

use crate::config::Services;
use crate::nft::{Before, Table};

/// What they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is served.
    pub services: Services,
    /// Another each time that the kernel may not hold what was left there.
    pub suspicion: u64,
}

/// Keeps the table of this name as `script` makes it of what is `wanted` and of
/// what it was, for as long as somebody wants. `lacking` says what there is
/// without it.
pub async fn keep(
    mut wanted: cell::Receiver<Wanted>,
    name: &'static str,
    lacking: &str,
    script: impl Fn(&Services, &Before<'_, Services>) -> String,
) {
    let mut table = Table::new(name);
    let mut suspicion = 0;
    let mut told = None;
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        let suspect = std::mem::replace(&mut suspicion, now.suspicion) != now.suspicion;
        let make = |before: Before<'_, Services>| script(&now.services, &before);
        let failed = table.ensure(now.services.clone(), suspect, make).await;
        let failed = failed.err().map(|error| error.to_string());
        if let Some(error) = failed.as_ref().filter(|_| failed != told) {
            warn!("{lacking}: {error}");
        }
        told = failed;
    }
}
