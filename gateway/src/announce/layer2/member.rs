//! A member of the election: the state machine of [`lb_svc_election`] with its
//! socket, its clock and its key.
//!
//! It is alone on its thread, with a runtime of its own. Here nothing waits for
//! anything but frames, time and directions: no program, no file, no request to the
//! kernel that others could hold up.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_svc_crds::gateway::{self as wire, ElectionStatus};
use lb_svc_election::{
    self as election, Counters, ETHERTYPE, Election, Instance, MemberConfig, Output, Reason, Role,
    STRANGER_WAIT, Time, frame,
};
use nix::libc;
use nix::sys::socket::{GetSockOpt as _, LinkAddr, MsgFlags, SetSockOpt as _, sendto};
use nix::time::{ClockId, clock_gettime};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::Socket;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::election_task::{Directions, Parameters, Snapshot};
use super::isolation::{Hosts, IsolationDetector, PeerVisibility};
use super::lan::Lan;
use super::startup_guard::StartupGuard;
use super::watchdog::{Heartbeat, Watchdog};
use crate::l2::arp::{Frame, Mac, format_mac};
use crate::l2::socket::{BATCH, bytes_filter, link_address, packet_socket};
use crate::scheduling;
use crate::telemetry::metrics::ElectionMetrics;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// How many hosts are remembered that send frames of this gateway and are no peers.
const NOT_PEERS_MAX: usize = 16;
/// How often to look whether there is a reason to take part again.
const PAUSED_CHECK: Duration = Duration::from_millis(50);

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

/// What connects the member with the rest of the process.
pub(super) struct Links {
    pub directions: watch::Receiver<Directions>,
    pub publish: watch::Sender<Snapshot>,
    pub metrics: ElectionMetrics,
    pub heartbeat: Heartbeat,
}

/// Runs a member on the calling thread until it has left. Reports first whether it has
/// joined.
pub(super) fn run(parameters: Parameters, links: Links, report: oneshot::Sender<io::Result<()>>) {
    if let Err(error) = scheduling::request_short_slice() {
        warn!(%error, "no short scheduling slice: the election may be late on a busy node");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let (member, joined) = match Member::join(parameters, links) {
            Ok(member) => (Some(member), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // If that took too long, nobody waits for it any more.
        let is_awaited = report.send(joined).is_ok();
        if let Some(member) = member.filter(|_| is_awaited) {
            member.run().await;
        }
    });
}

/// A member with its sockets.
struct Member {
    driver: Driver,
    frames: Receiver,
    lan: Lan,
    directions: watch::Receiver<Directions>,
    watchdog: Watchdog,
    guard: StartupGuard,
    detector: IsolationDetector,
}

impl Member {
    fn join(parameters: Parameters, links: Links) -> io::Result<Self> {
        let Links { directions, publish, metrics, heartbeat } = links;
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        let group = election::group(&parameters.election.gateway);
        let link = link_address(&parameters.lan)?;
        let socket = packet_socket(&link, ETHERTYPE)?;
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
            name: parameters.name,
            interval: parameters.election.interval,
            priority: directions.borrow().priority,
        };
        let driver = Driver {
            election: Election::new(config, now()),
            socket,
            header: [&group[..], &parameters.mac, &ETHERTYPE.to_be_bytes()].concat(),
            link,
            role_changes: 0,
            joined: false,
            sending_fails: false,
            link_down: false,
            link_losses: 0,
            stalled: false,
            isolated: false,
            hosts: Hosts { mac: parameters.mac, addresses: Vec::new(), routers: Vec::new() },
            predecessors: None,
            not_peers: BTreeSet::new(),
            since: SystemTime::now(),
            metrics,
            counted: Counters::default(),
            publish,
        };
        Ok(Self {
            driver,
            frames,
            lan: Lan::open(link)?,
            directions,
            watchdog: Watchdog::new(heartbeat),
            guard: StartupGuard::new(Instant::now(), parameters.election.interval),
            detector: IsolationDetector::new(Instant::now()),
        })
    }

    async fn run(mut self) {
        loop {
            // However many frames there are, the runtime looks at all sockets.
            tokio::task::yield_now().await;
            let directions = self.directions.borrow_and_update().clone();
            let ends = directions.leave || self.directions.has_changed().is_err();
            if ends || directions.drain {
                self.driver.input(Election::leave);
            }
            if ends {
                return;
            }
            self.driver.direct(directions);
            if let Some(stalled) = self.watchdog.look(Instant::now()) {
                self.driver.set_stalled(stalled);
            }
            let due = self.turn();
            tokio::select! {
                _ = self.directions.changed() => {}
                _ = self.frames.readable() => {}
                () = self.lan.readable() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    /// First the received frames, then the passing of time: after a sleep, frames sent
    /// meanwhile are processed before the member acts. Returns when the next turn is due.
    fn turn(&mut self) -> Instant {
        let Self { driver, frames, lan, guard, detector, .. } = self;
        driver.receive(frames);
        lan.set_hosts(&driver.hosts);
        let received = lan.received_arp();
        driver.guard_start(guard, &received, lan);
        driver.check_isolation(detector, &received, lan);
        if !driver.is_paused() && driver.election.deadline() <= now() {
            driver.input(Election::tick);
        }
        let due =
            if driver.is_paused() { PAUSED_CHECK } else { driver.election.deadline().saturating_sub(now()) };
        let due = Instant::now() + due;
        guard.due().map_or(due, |probe| probe.min(due)).min(detector.due())
    }
}

/// The state machine with its output side.
struct Driver {
    election: Election,
    socket: Socket,
    /// The Ethernet header of every frame: to the group, from the interface.
    header: Vec<u8>,
    link: LinkAddr,
    role_changes: u64,
    joined: bool,
    /// The last frame could not be sent, which was logged.
    sending_fails: bool,
    link_down: bool,
    /// See [`Directions::link_losses`].
    link_losses: u64,
    /// The agent's loop stands still.
    stalled: bool,
    isolated: bool,
    hosts: Hosts,
    /// Pods of this gateway that are no members; `None` if the controller does not name
    /// them.
    predecessors: Option<BTreeSet<Mac>>,
    /// Hosts that send frames of this gateway and are no peers, at most
    /// [`NOT_PEERS_MAX`].
    not_peers: BTreeSet<Mac>,
    since: SystemTime,
    metrics: ElectionMetrics,
    counted: Counters,
    publish: watch::Sender<Snapshot>,
}

impl Driver {
    /// Whether the member takes no part for now.
    fn is_paused(&self) -> bool {
        self.link_down || self.stalled
    }

    fn direct(&mut self, directions: Directions) {
        let Directions { priority, link_up, link_losses, hosts, .. } = directions;
        (self.hosts.addresses, self.hosts.routers) = (hosts.addresses, hosts.routers);
        self.predecessors = hosts.predecessors;
        let lost = std::mem::replace(&mut self.link_losses, link_losses) != link_losses;
        let was_down = std::mem::replace(&mut self.link_down, !link_up);
        if lost {
            self.input(Election::send_failed);
        }
        if link_up && (lost || was_down) {
            // However short it was down, frames may have been missed.
            self.input(Election::isolated);
        }
        if lost || was_down == link_up {
            info!(up = link_up, "LAN link changed");
        }
        self.input(|election, now| election.set_priority(now, priority));
    }

    /// Notes that the agent's loop stands still, or goes on.
    fn set_stalled(&mut self, stalled: bool) {
        self.stalled = stalled;
        if stalled {
            warn!("agent's loop stands still: no part in the election");
            self.input(Election::stalled);
        } else {
            info!("agent's loop goes on");
            self.input(Election::isolated);
        }
    }

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
            if !self.is_paused() {
                // The filter lets through nothing shorter than a header.
                let Some((header, payload)) = buffer[..length].split_at_checked(ETHERNET) else { continue };
                let from = Mac::try_from(&header[6..12]).unwrap_or_default();
                let before = self.unheeded();
                self.carry_out(|election, now| election.receive(now, from, payload));
                if self.unheeded() > before && self.not_peers.len() < NOT_PEERS_MAX {
                    self.not_peers.insert(from);
                }
                any = true;
            }
        }
        if any {
            self.publish();
        }
    }

    /// How many frames of this gateway came from hosts that are no peers: they have
    /// another key, or do not receive from this pod.
    fn unheeded(&self) -> u64 {
        let counters = self.election.counters();
        counters.bad_tag + counters.unacknowledging
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
        self.metrics.dropped.inc_by(dropped.into());
        let counters = self.election.counters();
        self.metrics.count(&self.counted, &counters);
        self.counted = counters;
        let reachable = election.peers.iter().filter(|peer| peer.is_reachable).map(|peer| peer.mac).collect();
        // One that is leaving stands in for nobody.
        let others = election.peers.into_iter().filter(|peer| peer.role != Role::Left);
        let mut peers: Vec<String> = others.map(|peer| peer.name).collect();
        peers.sort_unstable();
        let snapshot = Snapshot {
            role_changes: self.role_changes,
            joined: self.joined,
            lease_until: self.election.lease_until(),
            peers: reachable,
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
            // A renewal wakes nobody.
            let changed = Snapshot { lease_until: snapshot.lease_until, ..last.clone() } != snapshot;
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
        // An earlier controller names none: they may be any.
        let named = |mac: &Mac| self.predecessors.as_ref().is_none_or(|macs| macs.contains(mac));
        let is_same_gateway = |mac: &Mac| named(mac) || self.not_peers.contains(mac);
        let answers = guard.receive(now, &self.hosts, is_same_gateway, received);
        if let Some(same_gateway) = answers.in_use {
            self.election.address_in_use(self::now(), same_gateway);
        }
        if let Some((address, mac)) = answers.foreign {
            warn!(
                %address,
                owner = format_mac(mac),
                "address has a foreign owner outside the election: waiting, {STRANGER_WAIT:?} at most unless it is a pod of this gateway",
            );
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
        // While the member takes no part, missing peers mean nothing more.
        let peers = match self.election.is_peer_reachable(self::now()).filter(|_| !self.is_paused()) {
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
        if isolated && !self.is_paused() {
            self.input(Election::isolated);
        }
        for (router, at) in detector.poll(now, &self.hosts) {
            lan.probe(self.hosts.mac, router, at);
        }
    }
}

/// The time by a clock that counts the time that the host is suspended.
pub(super) fn now() -> Time {
    // The clock exists on every supported kernel.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
