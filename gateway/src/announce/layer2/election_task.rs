//! A member of the election: the state machine of [`lb_svc_election`] with its
//! socket, its clock and its key.
//!
//! It runs as a task of its own beside the agent's loop, on the same thread: if
//! the loop blocks, the election stops as well, and with it ends the lease.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_svc_crds::gateway::{self as wire, ElectionStatus};
use lb_svc_crds::names;
use lb_svc_election::{
    self as election, Counters, ETHERTYPE, Election, Instance, Key, MemberConfig, Output, Reason, Role, Time,
    frame,
};
use nix::libc;
use nix::sys::socket::{GetSockOpt as _, MsgFlags, SetSockOpt as _, sendto};
use nix::time::{ClockId, clock_gettime};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::Socket;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::isolation::{Hosts, IsolationDetector, PeerVisibility};
use super::lan::Lan;
use super::startup_guard::StartupGuard;
use crate::config;
use crate::fault::Fault;
use crate::l2::arp::{Frame, Mac, format_mac};
use crate::l2::socket::{BATCH, bytes_filter, link_address, packet_socket};
use crate::telemetry::metrics::Metrics;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// How often to check for the link while it is down.
const LINK_CHECK: Duration = Duration::from_millis(50);

sockopt_impl!(
    /// Makes the interface receive a group address as well.
    JoinGroup,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_ADD_MEMBERSHIP,
    libc::packet_mreq
);

sockopt_impl!(
    /// The frames that a packet socket received and dropped.
    PacketStatistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

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
    if !directory.exists() {
        return Ok(None);
    }
    let path = directory.join(names::KEY_FILE);
    let bytes = std::fs::read(&path);
    let bytes = bytes.map_err(|error| Fault::KeyInvalid { path: path.clone(), why: error.to_string() })?;
    let key = Key::try_from(&bytes[..]);
    let why = || format!("it is {} bytes, not 32", bytes.len());
    key.map(Some).map_err(|_| Fault::KeyInvalid { path, why: why() })
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
}

/// The handle of a running member. Dropped, the member leaves and hands over.
pub struct ElectionTask {
    parameters: Parameters,
    driver: Arc<Mutex<Driver>>,
    snapshot: watch::Receiver<Snapshot>,
    task: JoinHandle<()>,
}

impl ElectionTask {
    /// Starts a member. Needs NET_RAW.
    ///
    /// # Errors
    /// If the kernel refuses a socket or random bytes.
    pub fn join(parameters: Parameters, priority: NonZeroU8, metrics: Metrics) -> io::Result<Self> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        let group = election::group(&parameters.election.gateway);
        let socket = packet_socket(&parameters.lan, ETHERTYPE)?;
        let mut address = [0; 8];
        address[..6].copy_from_slice(&group);
        let membership = libc::packet_mreq {
            mr_ifindex: i32::try_from(parameters.index).map_err(io::Error::other)?,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: address,
        };
        JoinGroup.set(&socket, &membership)?;
        let marker = frame::marker(&parameters.election.gateway);
        socket.attach_filter(&bytes_filter(ETHERNET + frame::MARKER_AT, &marker))?;
        let frames = Receiver::from_owned_fd_unchecked(socket.as_fd().try_clone_to_owned()?)?;
        let config = MemberConfig {
            uid: parameters.election.gateway,
            key: parameters.key,
            instance: Instance(instance),
            name: parameters.name.clone(),
            interval: parameters.election.interval,
            priority,
        };
        let (publish, snapshot) = watch::channel(Snapshot::default());
        let driver = Arc::new(Mutex::new(Driver {
            election: Election::new(config, now()),
            socket,
            header: [&group[..], &parameters.mac, &ETHERTYPE.to_be_bytes()].concat(),
            link: link_address(&parameters.lan)?,
            role_changes: 0,
            joined: false,
            sending_fails: false,
            link_down: false,
            isolated: false,
            hosts: Hosts { mac: parameters.mac, addresses: Vec::new(), routers: Vec::new() },
            since: SystemTime::now(),
            metrics,
            counted: Counters::default(),
            publish,
        }));
        let lan = Lan::open(&parameters.lan)?;
        let task = tokio::spawn(run(Arc::clone(&driver), frames, lan, parameters.election.interval));
        Ok(Self { parameters, driver, snapshot, task })
    }

    /// The parameters that it was started with.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Sets this pod's priority.
    pub fn set_priority(&self, priority: NonZeroU8) {
        lock(&self.driver).input(|election, now| election.set_priority(now, priority));
    }

    /// Sets whether the LAN's link is up. While it is down the member takes no
    /// part; when it comes up, the member starts with a hold.
    pub fn set_link(&self, up: bool) {
        let mut driver = lock(&self.driver);
        if std::mem::replace(&mut driver.link_down, !up) == up {
            info!(up, "LAN link changed");
            // However short it was down, frames may have been missed.
            driver.input(if up { Election::isolated } else { Election::send_failed });
        }
    }

    /// Sets the addresses that the election is about, and the LAN's routers.
    pub fn set_hosts(&self, addresses: Vec<Ipv4Addr>, routers: Vec<Ipv4Addr>) {
        let hosts = &mut lock(&self.driver).hosts;
        (hosts.addresses, hosts.routers) = (addresses, routers);
    }

    /// Whether this pod owns the addresses at this moment.
    pub fn is_active(&self) -> bool {
        lock(&self.driver).election.holds_lease(now())
    }

    /// The election as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Resolves when role changes or status differ from `known`; never without a
    /// task.
    pub async fn changed(task: Option<&mut Self>, known: &Snapshot) {
        let Some(task) = task else { return std::future::pending().await };
        let differs = |now: &Snapshot| (now.role_changes, &now.status) != (known.role_changes, &known.status);
        // If the task has ended, nothing changes any more.
        if task.snapshot.wait_for(differs).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for ElectionTask {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.driver).input(Election::leave);
    }
}

/// The state machine with its output side.
struct Driver {
    election: Election,
    socket: Socket,
    /// The Ethernet header of every frame: to the group, from the interface.
    header: Vec<u8>,
    link: nix::sys::socket::LinkAddr,
    role_changes: u64,
    joined: bool,
    /// The last frame could not be sent, which was logged.
    sending_fails: bool,
    link_down: bool,
    isolated: bool,
    hosts: Hosts,
    since: SystemTime,
    metrics: Metrics,
    counted: Counters,
    publish: watch::Sender<Snapshot>,
}

impl Driver {
    /// Passes an input to the election, carries out its outputs, and publishes
    /// the result.
    fn input(&mut self, input: impl FnOnce(&mut Election, Time) -> Vec<Output>) {
        self.carry_out(input);
        self.publish();
    }

    /// Passes an input to the election and carries out its outputs.
    fn carry_out(&mut self, input: impl FnOnce(&mut Election, Time) -> Vec<Output>) {
        let mut outputs = VecDeque::from(input(&mut self.election, now()));
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Send(payload) => {
                    let sent = self.send(&payload);
                    if let Err(error) = &sent {
                        // The outputs after it depend on a frame that was not sent.
                        outputs.clear();
                        if !self.sending_fails {
                            warn!(%error, "election frame not sent");
                        }
                        outputs.extend(self.election.send_failed(now()));
                    }
                    self.sending_fails = sent.is_err();
                }
                Output::RoleChanged(role, reason) => self.role_changed(role, &reason),
                Output::SplitBrain { with, stays } => {
                    warn!(peer = with, stays, "split brain: two pods were active");
                    self.role_changes += u64::from(stays);
                }
            }
        }
    }

    /// Passes the queued frames to the election, at most [`BATCH`].
    fn receive(&mut self, frames: &Receiver) {
        let mut buffer = [0; 2048];
        let mut any = false;
        for _ in 0..BATCH {
            let Ok(length) = frames.try_read(&mut buffer) else { break };
            if !self.link_down {
                let payload = buffer.get(ETHERNET..length).unwrap_or_default();
                self.carry_out(|election, now| election.receive(now, payload));
                any = true;
            }
        }
        if any {
            self.publish();
        }
    }

    fn send(&self, payload: &[u8]) -> io::Result<()> {
        let frame = [&self.header, payload].concat();
        sendto(self.socket.as_raw_fd(), &frame, &self.link, MsgFlags::empty())?;
        Ok(())
    }

    fn role_changed(&mut self, role: Role, reason: &Reason) {
        self.role_changes += 1;
        self.since = SystemTime::now();
        self.metrics.role_changes.inc();
        let role = match role {
            Role::Active => "active",
            Role::Standby => "standby",
            Role::Left => "left",
        };
        info!(role, %reason, "election role changed");
    }

    fn publish(&mut self) {
        let election = self.election.snapshot();
        self.joined |= election.active.is_some();
        let role = match election.role {
            Role::Active => wire::Role::Active,
            Role::Standby if self.joined => wire::Role::Standby,
            Role::Standby | Role::Left => wire::Role::Joining,
        };
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        // The kernel counts from the last time that it was asked.
        let dropped = PacketStatistics.get(&self.socket).map_or(0, |statistics| statistics.tp_drops);
        self.metrics.count_dropped(dropped.into());
        let counters = self.election.counters();
        self.metrics.count_election(&self.counted, &counters);
        self.counted = counters;
        let mut peers: Vec<String> = election.peers.into_iter().map(|peer| peer.name).collect();
        peers.sort_unstable();
        let snapshot = Snapshot {
            role_changes: self.role_changes,
            joined: self.joined,
            status: ElectionStatus {
                role,
                since_ms: u64::try_from(since).unwrap_or(u64::MAX),
                why: election.reason.to_string(),
                term: election.term,
                active: election.active.map(|(_, name)| name),
                peers,
                splits: counters.splits,
            },
        };
        self.publish.send_if_modified(|last| {
            let changed = *last != snapshot;
            *last = snapshot;
            changed
        });
    }

    /// Lets the startup guard see received ARP frames, until it is over.
    fn guard_start(&mut self, guard: &mut StartupGuard, received: &[Frame], lan: &mut Lan) {
        if guard.is_passed() {
            return;
        }
        let election = self.election.snapshot();
        if election.role != Role::Standby || !election.peers.is_empty() {
            guard.pass();
            return;
        }
        let now = Instant::now();
        let answers = guard.receive(now, &self.hosts, received);
        if answers.in_use {
            self.election.address_in_use(self::now());
        }
        if let Some((address, mac)) = answers.foreign {
            warn!(%address, owner = format_mac(mac), "address has a foreign owner outside the election: waiting");
        }
        if guard.poll(now) {
            for address in &self.hosts.addresses {
                lan.probe(self.hosts.mac, *address, None);
            }
        }
        self.joined |= guard.has_foreign_owner();
    }

    /// Gives up the addresses while nothing on the LAN is reachable, neither
    /// another member nor a router.
    fn check_isolation(&mut self, detector: &mut IsolationDetector, received: &[Frame], lan: &mut Lan) {
        let now = Instant::now();
        for arp in received {
            detector.receive_arp(now, &self.hosts, arp);
        }
        for frame in lan.receive() {
            detector.receive(now, &self.hosts, &frame);
        }
        // While the link is down, missing peers mean nothing more.
        let peers = match self.election.is_peer_reachable(self::now()).filter(|_| !self.link_down) {
            Some(true) => PeerVisibility::Reachable,
            Some(false) => PeerVisibility::Missing,
            None => PeerVisibility::NoPeers,
        };
        let isolated = detector.check(now, peers);
        if std::mem::replace(&mut self.isolated, isolated) != isolated {
            if isolated {
                warn!(routers = ?self.hosts.routers, "isolated: no other pod and no router answers on the LAN");
            } else {
                info!("isolation ended");
            }
            lan.receive_all(isolated);
        }
        if isolated && !self.link_down {
            self.input(Election::isolated);
        }
        for (router, at) in detector.poll(now, &self.hosts) {
            lan.probe(self.hosts.mac, router, at);
        }
    }
}

fn lock(driver: &Mutex<Driver>) -> std::sync::MutexGuard<'_, Driver> {
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time by a clock that counts the time that the host is suspended.
fn now() -> Time {
    // The clock exists on every supported kernel.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

async fn run(driver: Arc<Mutex<Driver>>, frames: Receiver, mut lan: Lan, interval: Duration) {
    let mut guard = StartupGuard::new(Instant::now(), interval);
    let mut detector = IsolationDetector::new(Instant::now());
    loop {
        // However many frames there are, this thread's other tasks have their turns.
        tokio::task::yield_now().await;
        // First the received frames, then the passing of time: after a sleep,
        // frames sent meanwhile are processed before the member acts.
        lock(&driver).receive(&frames);
        let deadline = {
            let mut driver = lock(&driver);
            lan.set_hosts(&driver.hosts);
            let received = lan.received_arp();
            driver.guard_start(&mut guard, &received, &mut lan);
            driver.check_isolation(&mut detector, &received, &mut lan);
            if !driver.link_down && driver.election.deadline().is_some_and(|deadline| deadline <= now()) {
                driver.input(Election::tick);
            }
            if driver.link_down { Some(now() + LINK_CHECK) } else { driver.election.deadline() }
        };
        let Some(deadline) = deadline else { return };
        let due = Instant::now() + deadline.saturating_sub(now());
        let due = guard.due().map_or(due, |probe| probe.min(due)).min(detector.due());
        tokio::select! {
            _ = frames.readable() => {}
            () = lan.readable() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }
}
