//! The election as the agent sees it: a member that runs on a thread of its own, told
//! what it needs and asked what it found by two channels that hold the latest value.
//!
//! ```text
//!   agent ── Directions ──▶ member ── frames ──▶ LAN, and with them the lease
//!         ◀── Snapshot ────        ◀── frames ──
//! ```
//!
//! Nothing that the agent does delays the member, however long it takes; only if its
//! loop [stands still](super::watchdog) does the member resign.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use lb_svc_crds::gateway::ElectionStatus;
use lb_svc_crds::names;
use lb_svc_election::{Key, Time};
use tokio::sync::{oneshot, watch};
use tracing::warn;

use super::member;
use super::watchdog::Heartbeat;
use crate::config;
use crate::fault::Fault;
use crate::l2::arp::Mac;
use crate::telemetry::metrics::ElectionMetrics;

/// How long to wait for a member to join, or to leave.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The parameters of a member. If one changes, the member leaves and another one
/// joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The LAN interface's name.
    pub lan: String,
    /// The LAN interface's `ifindex`.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// The election.
    pub election: config::Election,
    /// Its key.
    pub key: Key,
    /// The pod's name.
    pub name: String,
}

/// Reads the election's key from its directory. A pod without that directory
/// has no election; one with it always has, even if the key becomes unreadable.
///
/// # Errors
/// If the key cannot be read, or has another length.
pub fn read_key(directory: &Path) -> Result<Option<Key>, Fault> {
    let path = directory.join(names::KEY_FILE);
    match directory.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        // Without an election the pod would take the addresses.
        Err(error) => return Err(Fault::KeyInvalid { path, why: error.to_string() }),
    }
    let bytes = std::fs::read(&path);
    let bytes = bytes.map_err(|error| Fault::KeyInvalid { path: path.clone(), why: error.to_string() })?;
    let key = Key::try_from(&bytes[..]);
    let why = || format!("it is {} bytes, not 32", bytes.len());
    key.map(Some).map_err(|_| Fault::KeyInvalid { path, why: why() })
}

/// The hosts on the LAN that matter to the election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanHosts {
    /// The addresses that the election is about.
    pub addresses: Vec<Ipv4Addr>,
    /// The LAN's routers.
    pub routers: Vec<Ipv4Addr>,
    /// Pods of this gateway that may answer for the addresses, and are no members; `None`
    /// if the controller does not name them.
    pub predecessors: Option<BTreeSet<Mac>>,
}

/// What the agent tells the member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directions {
    /// This pod's priority.
    pub priority: NonZeroU8,
    /// Whether the LAN's link is up.
    pub link_up: bool,
    /// How often it went down: it may be up again before the member looks.
    pub link_losses: u64,
    /// The hosts that matter to it.
    pub hosts: LanHosts,
    /// The member is to hand over, and to let the others know that it is there.
    pub drain: bool,
    /// The member is to hand over and end.
    pub leave: bool,
}

/// The election as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How many role changes there were, and split brains that this pod stayed
    /// active in. With each, the addresses have to be announced again.
    pub role_changes: u64,
    /// Whether the start is over: the member is active, knows the active member,
    /// or waits for a foreign owner to release the addresses.
    pub joined: bool,
    /// For `/status`.
    pub status: ElectionStatus,
    /// The hardware addresses of the gateway's other pods that are received from, of
    /// those that are leaving as well.
    pub peers: BTreeSet<Mac>,
    /// Until when this pod holds the lease, if it does not renew it. A renewal alone is
    /// no change of the snapshot that [`ElectionTask::changed`] tells.
    pub(super) lease_until: Option<Time>,
}

/// The handle of a running member. Dropped, the member leaves and hands over.
pub struct ElectionTask {
    parameters: Parameters,
    directions: watch::Sender<Directions>,
    snapshot: watch::Receiver<Snapshot>,
    /// Disconnected when the member's thread has ended.
    thread: mpsc::Receiver<()>,
}

impl ElectionTask {
    /// Starts a member on a LAN with these `hosts`. Needs NET_RAW.
    ///
    /// # Errors
    /// If the kernel refuses a thread, a socket or random bytes, or does not answer in
    /// time.
    pub async fn join(
        parameters: Parameters,
        priority: NonZeroU8,
        hosts: LanHosts,
        metrics: ElectionMetrics,
        heartbeat: Heartbeat,
    ) -> io::Result<Self> {
        let (directions, directed) = watch::channel(Directions {
            priority,
            link_up: true,
            link_losses: 0,
            hosts,
            drain: false,
            leave: false,
        });
        let (publish, snapshot) = watch::channel(Snapshot::default());
        let (report, joined) = oneshot::channel();
        let (running, thread) = mpsc::channel();
        let links = member::Links { directions: directed, publish, metrics, heartbeat };
        let own = parameters.clone();
        std::thread::Builder::new().name("election".to_owned()).spawn(move || {
            member::run(own, links, report);
            drop::<mpsc::Sender<()>>(running);
        })?;
        let joined = tokio::time::timeout(TIMEOUT, joined).await?;
        joined.map_err(|_| io::Error::other("its thread has ended"))??;
        Ok(Self { parameters, directions, snapshot, thread })
    }

    /// The parameters that it was started with.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Sets this pod's priority.
    pub fn set_priority(&self, priority: NonZeroU8) {
        self.direct(|directions| directions.priority = priority);
    }

    /// Sets whether the LAN's link is up. While it is down the member takes no
    /// part; when it comes up, the member starts with a hold.
    pub fn set_link(&self, up: bool) {
        self.direct(|directions| {
            directions.link_losses += u64::from(directions.link_up && !up);
            directions.link_up = up;
        });
    }

    /// Sets the hosts that matter.
    pub fn set_hosts(&self, hosts: LanHosts) {
        self.direct(|directions| directions.hosts = hosts);
    }

    /// Hands over, for good. The others go on to receive from this pod until the task is
    /// dropped.
    pub fn drain(&self) {
        self.direct(|directions| directions.drain = true);
    }

    fn direct(&self, set: impl FnOnce(&mut Directions)) {
        self.directions.send_if_modified(|directions| {
            let before = directions.clone();
            set(directions);
            before != *directions
        });
    }

    /// Whether this pod owns the addresses at this moment.
    pub fn is_active(&self) -> bool {
        self.snapshot.borrow().lease_until.is_some_and(|until| member::now() <= until)
    }

    /// The election as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Resolves when role changes, status or peers differ from `known`; never without a
    /// task.
    pub async fn changed(task: Option<&mut Self>, known: &Snapshot) {
        let Some(task) = task else { return std::future::pending().await };
        fn seen(snapshot: &Snapshot) -> (u64, &ElectionStatus, &BTreeSet<Mac>) {
            (snapshot.role_changes, &snapshot.status, &snapshot.peers)
        }
        let differs = |now: &Snapshot| seen(now) != seen(known);
        // If the member has ended, nothing changes any more.
        if task.snapshot.wait_for(differs).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for ElectionTask {
    fn drop(&mut self) {
        self.direct(|directions| directions.leave = true);
        // Its last frame ends the lease: nothing of what follows is to come before.
        if self.thread.recv_timeout(TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            warn!("the election's thread does not end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r44_key_directory_that_cannot_be_read_is_not_taken_to_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_key(&dir.path().join("none")).unwrap(), None);
        assert!(matches!(read_key(dir.path()), Err(Fault::KeyInvalid { .. })), "it is there, without a key");
        // A file in place of a directory above it.
        std::fs::write(dir.path().join("file"), "").unwrap();
        let below = read_key(&dir.path().join("file").join("key"));
        assert!(matches!(below, Err(Fault::KeyInvalid { .. })), "{below:?}");
    }
}
