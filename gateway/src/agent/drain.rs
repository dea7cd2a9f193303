//! The end of a pod that is told to end while another one takes over: it hands the
//! addresses over at once, and goes on for as long as it leads connections that the
//! successor hands to it.
//!
//! ```text
//!   told to end ──▶ handed over ──▶ no connection left, or no successor, or time over ──▶ end
//! ```

use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::Agent;
use crate::datapath::conntrack;

/// Neighbours learn of the new owner one after the other; until then they send here.
const SETTLE: Duration = Duration::from_secs(1);
/// How long no other pod may be active: then there is none to hand anything to this one.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at the connections, for which the kernel walks those of its node.
const LOOK: Duration = Duration::from_secs(1);

/// A drain that has begun.
#[derive(Debug)]
pub struct Drain {
    began: Instant,
    until: Instant,
    look: Instant,
    /// When another pod was last seen to be active.
    succeeded: Instant,
    connections: Option<u64>,
}

/// Why a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No connection is left.
    Drained,
    /// No other pod is active.
    NoSuccessor,
    /// Its time is over.
    TimeOver,
}

impl Drain {
    /// A drain that takes no longer than `time`.
    pub fn begin(now: Instant, time: Duration) -> Self {
        Self { began: now, until: now + time, look: now + SETTLE, succeeded: now, connections: None }
    }

    /// When to look at the connections, or to end.
    pub fn due(&self) -> Instant {
        self.look.min(self.until).min(self.succeeded + SUCCESSOR_WAIT)
    }

    /// Notes whether another pod is active.
    pub fn note_successor(&mut self, now: Instant, is_there: bool) {
        if is_there {
            self.succeeded = now;
        }
    }

    /// Whether the connections are to be counted now.
    pub fn is_look_due(&mut self, now: Instant) -> bool {
        let due = self.look <= now;
        if due {
            self.look = now + LOOK;
        }
        due
    }

    /// Notes the number of connections; `None` if they cannot be counted.
    pub fn note_connections(&mut self, connections: Option<u64>) {
        self.connections = connections;
    }

    /// Why the drain is over, if it is.
    pub fn end(&self, now: Instant) -> Option<End> {
        if now >= self.until {
            Some(End::TimeOver)
        } else if now >= self.succeeded + SUCCESSOR_WAIT {
            Some(End::NoSuccessor)
        } else if now >= self.began + SETTLE && self.connections == Some(0) {
            Some(End::Drained)
        } else {
            None
        }
    }
}

impl Agent {
    /// Whether the pod is to end now. A pod without an election ends at once: the kernel's
    /// state stays, and the next process takes it over or it goes with the pod.
    pub(super) async fn is_over(&mut self) -> bool {
        if !*self.terminate.borrow_and_update() {
            return false;
        }
        let now = Instant::now();
        let time = self.inputs.configured.as_ref().and_then(|configured| configured.config.election);
        let Some(time) = time.map(|election| election.drain).filter(|_| self.announcer.has_member()) else {
            return true;
        };
        if self.drain.is_none() {
            info!(at_most = ?time, "addresses handed over, connections go on");
            self.announcer.drain();
        }
        let drain = self.drain.get_or_insert_with(|| Drain::begin(now, time));
        drain.note_successor(now, self.announcer.has_successor());
        if drain.is_look_due(now) {
            let heartbeat = self.announcer.heartbeat();
            let counted = heartbeat.beside(conntrack::count_open(self.stale.owned().clone())).await;
            drain.note_connections(
                counted.inspect_err(|error| debug!(%error, "connections not counted")).ok(),
            );
            if let Some(lan) = &self.verified.as_ref().map(|verified| verified.desired.route.lan)
                && let Err(fault) = heartbeat.beside(self.kernel.confirm_neighbours(*lan)).await
            {
                debug!("{fault}");
            }
        }
        let end = drain.end(now);
        match end {
            Some(End::Drained) => info!("no connection left"),
            Some(End::NoSuccessor) => info!("no other pod is active"),
            Some(End::TimeOver) => info!("time to drain is over"),
            None => {}
        }
        end.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(30);

    /// Lets the drain pass with so many connections left in each second, and a successor
    /// until then; returns its end, and after how long.
    fn passed(connections: &[Option<u64>], successor_until: Duration) -> (End, Duration) {
        let start = Instant::now();
        let mut drain = Drain::begin(start, TIME);
        let mut counts = connections.iter().copied();
        loop {
            let now = drain.due();
            drain.note_successor(now, now < start + successor_until);
            if drain.is_look_due(now) {
                drain.note_connections(counts.next().unwrap_or(Some(7)));
            }
            if let Some(end) = drain.end(now) {
                return (end, now - start);
            }
        }
    }

    #[test]
    fn drain_ends_with_the_last_connection() {
        let secs = Duration::from_secs;
        assert_eq!(passed(&[Some(0)], TIME), (End::Drained, secs(1)), "not before neighbours know");
        assert_eq!(passed(&[Some(3), None, Some(1), Some(0)], TIME), (End::Drained, secs(4)));
    }

    #[test]
    fn drain_ends_when_its_time_is_over_or_nobody_succeeds() {
        assert_eq!(passed(&[], TIME), (End::TimeOver, TIME));
        assert_eq!(passed(&[None; 40], TIME), (End::TimeOver, TIME), "uncounted");
        assert_eq!(passed(&[], Duration::ZERO), (End::NoSuccessor, SUCCESSOR_WAIT));
        let (end, after) = passed(&[], Duration::from_secs(5));
        assert_eq!(end, End::NoSuccessor);
        assert!(after <= Duration::from_secs(6), "{after:?}");
    }
}
