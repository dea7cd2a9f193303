//! The announcer: election, conflict detection and gratuitous ARP of one pod, as the
//! agent drives them.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::{ElectionStatus, Role};
use lb_svc_election::lease_time;
use tracing::{info, warn};

use super::conflict_detection::{ConflictDetection, Verdict};
use super::election_task::{ElectionTask, LanHosts, Parameters, Snapshot, read_key};
use super::garp_schedule::{AnnouncingInterface, GarpSchedule};
use super::lease::{self, Lease};
use super::router_watch::RouterWatch;
use super::stranger_watch::StrangerWatch;
use super::watchdog::Heartbeat;
use crate::config::Config;
use crate::datapath::Trust;
use crate::fault::Fault;
use crate::l2::arp::{self, Frame, Mac, format_mac};
use crate::l2::socket::{ArpFilter, FrameSender, PacketReceiver, PolledReceiver};
use crate::limit::Limit;
use crate::route::model::{Link, NetworkState};
use crate::telemetry::metrics::{Metrics, Outcome};

/// The announcer of one pod.
pub struct Layer2 {
    key_dir: PathBuf,
    /// NET_RAW is effective. Without it, nothing is sent, which is a fault of its own.
    has_net_raw: bool,
    metrics: Metrics,
    lease: Lease,
    /// The other pods whose packets the lease's table lets in.
    admitted: BTreeSet<Mac>,
    /// The LAN interface's name, once it is known.
    interface: Option<String>,
    /// The pod has a key, and so an election.
    has_election: bool,
    election: Option<ElectionTask>,
    /// The election as of the last run of the agent.
    snapshot: Snapshot,
    heartbeat: Heartbeat,
    detection: ConflictDetection,
    /// Receives ARP while an address is tentative, on the interface with this
    /// `ifindex`.
    receiver: Option<(u32, PacketReceiver)>,
    sender: FrameSender,
    garp: GarpSchedule,
    routers: RouterWatch,
    router_frames: Option<FramesOf>,
    /// When to look again whether this pod owns the addresses.
    look_again: Option<Instant>,
    strangers: StrangerWatch,
    address_frames: Option<FramesOf>,
}

/// Queues the ARP frames of some hosts of the LAN.
struct FramesOf {
    /// The `ifindex` of the interface.
    index: u32,
    hosts: Vec<Ipv4Addr>,
    receiver: PolledReceiver,
}

impl FramesOf {
    /// The queue that there is, if it is of these hosts, or another; `None` without hosts,
    /// or if the kernel refuses. Needs NET_RAW.
    fn hosts(known: Option<Self>, lan: &Link, hosts: &[Ipv4Addr]) -> Option<Self> {
        if known.as_ref().is_some_and(|known| known.index == lan.index && known.hosts == hosts) {
            return known;
        }
        if hosts.is_empty() {
            return None;
        }
        let filter = ArpFilter { senders: hosts.to_vec(), targets: Vec::new() };
        let receiver = PolledReceiver::arp(&lan.name, &filter)
            .inspect_err(|error| warn!(?hosts, %error, "hosts of the LAN are not watched"));
        Some(Self { index: lan.index, hosts: hosts.to_vec(), receiver: receiver.ok()? })
    }

    /// Takes the queued frames.
    fn received(&self) -> Vec<Frame> {
        self.receiver.receive().filter_map(|frame| Frame::parse(&frame)).collect()
    }
}

impl Layer2 {
    /// An announcer without an interface. The election's key is read from `key_dir`.
    pub fn new(key_dir: PathBuf, has_net_raw: bool, metrics: Metrics) -> Self {
        Self {
            key_dir,
            has_net_raw,
            metrics,
            lease: Lease::default(),
            admitted: BTreeSet::new(),
            interface: None,
            has_election: false,
            election: None,
            snapshot: Snapshot::default(),
            heartbeat: Heartbeat::default(),
            detection: ConflictDetection::default(),
            receiver: None,
            sender: FrameSender::default(),
            garp: GarpSchedule::default(),
            routers: RouterWatch::default(),
            router_frames: None,
            look_again: None,
            strangers: StrangerWatch::default(),
            address_frames: None,
        }
    }

    /// Sets the interface to send on; without one, nothing is sent.
    pub fn set_interface(&mut self, interface: Option<&Link>) {
        self.interface = interface.map(|link| link.name.clone());
    }

    /// Stops announcing and probing: the LAN interface is gone.
    pub fn stop(&mut self, now: Instant) {
        self.garp.set(now, None, &[], Duration::ZERO);
        self.receiver = None;
        self.routers.set(now, None, &[]);
        self.router_frames = None;
        self.strangers.set(now, None, &[]);
        self.address_frames = None;
    }

    /// Takes part in the election, if the pod has one. Returns whether this pod owns
    /// the addresses. `initial` is the priority of a new member.
    ///
    /// # Errors
    /// If the key is invalid, the lease cannot be programmed, or the member cannot
    /// join.
    pub async fn elect(
        &mut self,
        lan: &Link,
        config: &Config,
        initial: NonZeroU8,
        trust: Trust,
    ) -> Result<bool, Fault> {
        let key = read_key(&self.key_dir)?;
        self.has_election = key.is_some();
        let Some(key) = key else {
            return Ok(true);
        };
        let failed = |why: &str| Fault::ElectionFailed(why.to_owned());
        let election = config.election.ok_or_else(|| failed("its configuration has none"))?;
        let mac = lan.mac.ok_or_else(|| failed("its LAN interface has no hardware address"))?;
        if self.election.is_none() && !lan.running {
            return Ok(false);
        }
        let addresses: Vec<Ipv4Addr> = config.addresses.iter().map(|a| a.address).collect();
        // Only a newcomer changes the table: a take-over does not wait for the removal of
        // the pod that fell silent.
        if !self.snapshot.peers.is_subset(&self.admitted) {
            self.admitted = self.snapshot.peers.clone();
        }
        let desired = lease::Desired {
            lan: lan.name.clone(),
            addresses: addresses.clone(),
            peers: self.admitted.clone(),
            interval: election.interval,
        };
        // Before joining: the first frame already changes the lease.
        self.lease.ensure(&desired, trust).await?;
        let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let routers: BTreeSet<Ipv4Addr> = config.addresses.iter().filter_map(|a| a.gateway).collect();
        let hosts = LanHosts {
            addresses,
            routers: routers.into_iter().collect(),
            predecessors: config.predecessors.clone(),
        };
        let parameters = Parameters { lan: lan.name.clone(), index: lan.index, mac, election, key, name };
        let task = match self.election.take().filter(|task| *task.parameters() == parameters) {
            Some(task) => task,
            None => {
                self.snapshot = Snapshot::default();
                let (metrics, heartbeat) = (self.metrics.election(), self.heartbeat.clone());
                let joined = ElectionTask::join(parameters, initial, hosts.clone(), metrics, heartbeat).await;
                joined.map_err(|error| failed(&error.to_string()))?
            }
        };
        task.set_hosts(hosts);
        task.set_link(lan.running);
        let snapshot = task.snapshot();
        // Gratuitous ARP on every role change.
        if snapshot.role_changes != self.snapshot.role_changes {
            self.garp.restart();
        }
        self.snapshot = snapshot;
        let active = task.is_active();
        // Renewed just then, or about to resign, of which the latter alone is a change.
        let in_doubt = !active && self.snapshot.status.role == Role::Active;
        self.look_again = in_doubt.then(|| Instant::now() + lease_time(election.interval));
        self.election = Some(task);
        Ok(active)
    }

    /// Sets this pod's priority in the election.
    pub fn set_priority(&self, priority: NonZeroU8) {
        if let Some(task) = &self.election {
            task.set_priority(priority);
        }
    }

    /// Hands the addresses over to another pod, for good; the pod's connections stay.
    pub fn drain(&self) {
        if let Some(task) = &self.election {
            task.drain();
        }
    }

    /// Whether another pod of the gateway is active.
    pub fn has_successor(&self) -> bool {
        let ElectionStatus { role, active, .. } = &self.snapshot.status;
        *role != Role::Active && active.is_some()
    }

    /// The gateway's other pods that are received from, of those that are leaving as well.
    pub fn peers(&self) -> &BTreeSet<Mac> {
        &self.snapshot.peers
    }

    /// To be told that the agent's loop comes round; a member resigns if it does not.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Whether another pod may take over: a member of an election runs.
    pub fn has_member(&self) -> bool {
        self.election.is_some()
    }

    /// Whether this pod owned the addresses in the last run: it has no election, or is
    /// active.
    pub fn is_owner(&self) -> bool {
        !self.has_election || self.snapshot.status.role == Role::Active
    }

    /// Whether the pod has no election, or has joined it.
    pub fn has_joined(&self) -> bool {
        !self.has_election || self.snapshot.joined
    }

    /// The election for `/status`, if the pod has one.
    pub fn election_status(&self) -> Option<ElectionStatus> {
        self.has_election.then(|| self.snapshot.status.clone())
    }

    /// Sets the addresses to verify before they are assigned, while this pod owns them:
    /// those that the configuration asks it for; and where it is not `confirmed`, and
    /// there is no election, which has a guard of its own, all that the pod does not
    /// have yet, for it may have started with an older configuration. Confirmed, one
    /// that was in service is assigned after a while even if another host answers on.
    /// Returns a fault if probing is not possible.
    pub fn verify_addresses(
        &mut self,
        state: &NetworkState,
        lan: &Link,
        config: &Config,
        active: bool,
        confirmed: bool,
    ) -> Option<Fault> {
        let now = Instant::now();
        for address in config.addresses.iter().filter(|a| confirmed && !a.probe) {
            self.detection.insist(now, address.address);
        }
        let guarded = self.has_election || !self.has_net_raw;
        let has_conflict = |address| self.detection.conflicts().any(|(other, _)| other == address);
        let is_in_doubt = |address| !guarded && (!confirmed || has_conflict(address));
        let to_verify = config.addresses.iter().filter(|a| active && (a.probe || is_in_doubt(a.address)));
        let to_verify: Vec<Ipv4Addr> = to_verify.map(|a| a.address).collect();
        let held = state.addresses.iter().filter(|a| a.interface == lan.index).map(|a| a.address).collect();
        let mut interface = AnnouncingInterface::of(lan);
        self.receiver.take_if(|(index, _)| *index != lan.index);
        let mut why = None;
        if !self.has_net_raw {
            interface = None;
        } else if interface.is_some() && !to_verify.iter().all(|a| self.detection.is_verified(*a)) {
            if let Err(error) = self.receive_about(lan, &to_verify) {
                interface = None;
                why = Some(error.to_string());
            }
        } else if interface.is_none() && lan.up {
            why = Some("it has no carrier".to_owned());
        }
        self.detection.set(now, interface, &to_verify, &held);
        let Some(address) = self.detection.tentative().first().copied() else {
            self.receiver = None;
            return None;
        };
        self.detect_conflicts();
        why.map(|why| Fault::ProbeFailed { address, interface: lan.name.clone(), why })
    }

    /// Sets which routers of the LAN to watch: those of the configuration.
    pub fn watch_routers(&mut self, lan: &Link, config: &Config) {
        let routers: BTreeSet<Ipv4Addr> = config.addresses.iter().filter_map(|a| a.gateway).collect();
        let routers: Vec<Ipv4Addr> = routers.into_iter().collect();
        self.router_frames =
            self.has_net_raw.then(|| FramesOf::hosts(self.router_frames.take(), lan, &routers)).flatten();
        let interface = AnnouncingInterface::of(lan).filter(|_| self.router_frames.is_some());
        self.routers.set(Instant::now(), interface, &routers);
    }

    /// The limits of a LAN whose routers do not answer, or others do in this pod's place.
    pub fn limits(&self, config: &Config) -> Vec<Limit> {
        let limit = |router| {
            let of = config.addresses.iter().find(|address| address.gateway == Some(router))?;
            Some(Limit::RouterSilent { router, network: of.network })
        };
        let answered_twice = |(address, hosts): (Ipv4Addr, &BTreeSet<Mac>)| Limit::AddressAnsweredTwice {
            address,
            hosts: hosts.iter().copied().map(format_mac).collect(),
        };
        let silent = self.routers.silent().filter_map(limit);
        silent.chain(self.strangers.strangers().map(answered_twice)).collect()
    }

    /// Receives ARP from and for these addresses.
    fn receive_about(&mut self, lan: &Link, addresses: &[Ipv4Addr]) -> io::Result<()> {
        let filter = ArpFilter { senders: addresses.to_vec(), targets: addresses.to_vec() };
        match &self.receiver {
            Some((_, receiver)) => receiver.set_filter(&filter)?,
            None => self.receiver = Some((lan.index, PacketReceiver::arp(&lan.name, &filter)?)),
        }
        Ok(())
    }

    /// The addresses that must not be assigned yet.
    pub fn tentative(&self) -> BTreeSet<Ipv4Addr> {
        self.detection.tentative()
    }

    /// The addresses that another host owns, with its hardware address.
    pub fn conflicts(&self) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        self.detection.conflicts()
    }

    /// Sets the addresses to announce, which the interface has; with `restart`, all of
    /// them anew.
    pub fn announce(&mut self, interface: Option<&Link>, addresses: &[Ipv4Addr], restart: bool) {
        if restart {
            self.garp.restart();
        }
        // A member whose link was down, unnoticed, may have been replaced meanwhile. It
        // has received of that by then.
        let settle = self.election.as_ref().map(|task| 2 * lease_time(task.parameters().election.interval));
        let lan = interface.filter(|_| self.has_net_raw);
        self.address_frames = lan.and_then(|lan| FramesOf::hosts(self.address_frames.take(), lan, addresses));
        let interface = interface.and_then(AnnouncingInterface::of);
        let watched = interface.filter(|_| self.address_frames.is_some());
        self.strangers.set(Instant::now(), watched, addresses);
        self.garp.set(Instant::now(), interface, addresses, settle.unwrap_or_default());
    }

    /// Sends the announcements, probes and requests that are due, and processes received
    /// frames. Returns whether an address was verified or has a conflict, or a router is
    /// silent, or another host answers for an address, or does no more.
    pub fn poll(&mut self) -> bool {
        self.send_announcements();
        let limits_changed = self.ask_routers() | self.ask_for_strangers();
        let now = Instant::now();
        let in_doubt = self.look_again.take_if(|at| *at <= now).is_some();
        self.detect_conflicts() || limits_changed || in_doubt
    }

    /// When to call [`Self::poll`] next.
    pub fn due(&self) -> Option<Instant> {
        let due = [self.garp.due(), self.detection.due(), self.routers.due(), self.strangers.due()];
        due.into_iter().chain([self.look_again]).flatten().min()
    }

    /// Waits for frames to process by [`Self::poll`], or for a change of the election.
    /// Returns whether it was the latter.
    pub async fn wait(&mut self) -> bool {
        let awaiting = self.detection.is_awaiting_answer();
        let receiver = self.receiver.as_ref().map(|(_, receiver)| receiver).filter(|_| awaiting);
        tokio::select! {
            () = PacketReceiver::readable(receiver) => false,
            () = ElectionTask::changed(self.election.as_mut(), &self.snapshot) => true,
        }
    }

    fn send_announcements(&mut self) {
        let Some(interface) = &self.interface else {
            return;
        };
        for (from, address) in self.garp.poll(Instant::now()) {
            match self.sender.send(interface, &arp::announcement(from.mac, address)) {
                Ok(()) => {
                    self.metrics.announcements.inc();
                }
                // A fault of its own.
                Err(_) if !self.has_net_raw => {}
                Err(error) => warn!(%address, %error, "address not announced"),
            }
        }
    }

    fn ask_routers(&mut self) -> bool {
        let (Some(interface), Some(frames)) = (&self.interface, &self.router_frames) else { return false };
        let now = Instant::now();
        if self.routers.due().is_none_or(|due| due > now) {
            return false;
        }
        let changed = self.routers.receive(now, &frames.received());
        let requests = self.routers.poll(now);
        if let Some(from) = self.routers.interface() {
            for (router, to) in requests {
                // Not from an address, which may be of another network than the router's.
                let request = arp::unicast_to(to, arp::probe(from.mac, router));
                // A request that is not sent is not answered either.
                let _ = self.sender.send(interface, &request);
            }
        }
        changed
    }

    fn ask_for_strangers(&mut self) -> bool {
        let (Some(interface), Some(frames)) = (&self.interface, &self.address_frames) else { return false };
        let now = Instant::now();
        if self.strangers.due().is_none_or(|due| due > now) {
            return false;
        }
        let changed = self.strangers.receive(now, &frames.received());
        if let Some(from) = self.strangers.interface() {
            for address in self.strangers.poll(now) {
                // A probe that is not sent is not answered either.
                let _ = self.sender.send(interface, &arp::probe(from.mac, address));
            }
        }
        changed
    }

    fn detect_conflicts(&mut self) -> bool {
        let Some(interface) = &self.interface else {
            return false;
        };
        let now = Instant::now();
        let mut verdicts = Vec::new();
        if let Some((_, receiver)) = &self.receiver {
            for frame in receiver.receive() {
                verdicts.extend(self.detection.receive(now, &frame));
            }
        }
        let (probes, verified) = self.detection.poll(now);
        verdicts.extend(verified);
        if let Some(from) = self.detection.interface() {
            for address in probes {
                if let Err(error) = self.sender.send(interface, &arp::probe(from.mac, address)) {
                    warn!(%address, %error, "ARP probe not sent");
                    self.detection.send_failed(now, address);
                }
            }
        }
        for (address, verdict) in &verdicts {
            let outcome = match verdict {
                Verdict::Free => "free",
                Verdict::Conflict(_) => "conflict",
            };
            info!(%address, outcome, "address probed for");
            self.metrics.probes.get_or_create(&Outcome { outcome }).inc();
        }
        !verdicts.is_empty()
    }
}
