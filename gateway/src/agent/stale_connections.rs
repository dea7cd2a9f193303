//! When to delete stale connections: after a change that may have made some stale, and
//! again a moment later.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::config::Forwards;
use crate::datapath::conntrack;
use crate::telemetry::metrics::Metrics;

/// Delay of the second deletion, for connections that a packet in flight created by
/// the old rules.
const SECOND_PASS: Duration = Duration::from_secs(1);

/// The pending deletions.
pub struct StaleConnections {
    metrics: Metrics,
    /// A change may have made connections stale.
    suspected: bool,
    second_pass: Option<Instant>,
    /// The forwarding table that connections are compared with.
    forwards: Forwards,
    /// Every address that is or was the gateway's.
    owned: BTreeSet<Ipv4Addr>,
    /// The last deletion failed, which was logged.
    failing: bool,
}

impl StaleConnections {
    /// The process before this one may have left stale connections.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            suspected: true,
            second_pass: None,
            forwards: Forwards::new(),
            owned: BTreeSet::new(),
            failing: false,
        }
    }

    /// Adds addresses that are the gateway's.
    pub fn own(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        self.owned.extend(addresses);
    }

    /// Every address that is or was the gateway's.
    pub fn owned(&self) -> &BTreeSet<Ipv4Addr> {
        &self.owned
    }

    /// Sets the forwarding table that connections are compared with.
    pub fn set_forwards(&mut self, forwards: Forwards) {
        self.forwards = forwards;
    }

    /// Notes that connections may be stale.
    pub fn suspect(&mut self) {
        self.suspected = true;
    }

    /// Deletes stale connections, if there may be any. The kernel has to walk the
    /// connections of its whole node for that, so it is the last step of a run.
    pub async fn delete_suspected(&mut self) {
        if std::mem::take(&mut self.suspected) {
            self.second_pass = Some(Instant::now() + SECOND_PASS);
            self.delete().await;
        }
    }

    /// When the second deletion is due.
    pub fn due(&self) -> Option<Instant> {
        self.second_pass
    }

    /// Deletes stale connections a second time, if that is due.
    pub async fn delete_again(&mut self, now: Instant) {
        if self.second_pass.take_if(|at| *at <= now).is_some() {
            self.delete().await;
        }
    }

    /// What could not be looked for is looked for again in the next run.
    async fn delete(&mut self) {
        let deleted = conntrack::delete_stale(self.forwards.clone(), self.owned.clone()).await;
        self.suspected |= deleted.is_err();
        let was_failing = std::mem::replace(&mut self.failing, deleted.is_err());
        match deleted {
            Ok(0) => {}
            Err(_) if was_failing => {}
            Ok(count) => {
                self.metrics.cut.inc_by(count);
                info!(count, "stale connections deleted");
            }
            Err(error) => warn!(
                %error,
                "stale connections not deleted: clients may have to connect anew (is nf_conntrack_netlink loaded?)"
            ),
        }
    }
}
