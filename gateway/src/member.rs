//! A member of the election: the state machine of [`lb_svc_election`] with its
//! socket, its clock and its key.
//!
//! It lives in a task of its own beside the loop, on the same thread: what
//! wedges the one silences the other, and with it goes the lease.

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_svc_crds::gateway::{self as wire, ElectionStatus};
use lb_svc_crds::names;
use nix::libc;
use nix::sys::socket::{MsgFlags, SetSockOpt as _, sendto};
use nix::time::{ClockId, clock_gettime};
use nix::{setsockopt_impl, sockopt_impl};
use socket2::Socket;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch as cell;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::arp::{self, Frame, Mac};
use crate::config;
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::probe::{self, Concern, Ear};
use crate::reach::{Company, Hosts, Reach};
use lb_svc_election::{
    self as election, Counters, ETHERTYPE, Election, Instance, Key, MemberConfig, Output, Reason, Role, Time,
};

/// While nobody else takes part: how often it is asked who has the addresses.
/// While there is no link: how often it is looked for.
const ASK: Duration = Duration::from_millis(50);
/// Whoever has the addresses for so long and is not heard in the election takes
/// no part in it.
const STRANGER: Duration = Duration::from_secs(1);

sockopt_impl!(
    /// Has the interface hear a group address as well.
    JoinGroup,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_ADD_MEMBERSHIP,
    libc::packet_mreq
);

/// What an election depends on. Another is another election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The LAN interface's name.
    pub lan: String,
    /// The LAN interface.
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
/// is alone; one with it never is, whatever happens to the key.
///
/// # Errors
/// When it cannot be read, or is no key.
pub fn key(directory: &Path) -> Result<Option<Key>, Fault> {
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

/// What the loop sees of the election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Changes with each change of role, and with each split that was stayed
    /// in: then the addresses are to be announced anew.
    pub turns: u64,
    /// Whether it has found its place: it is active, or knows who is, or waits
    /// for who is there to go.
    pub joined: bool,
    /// For `/status`.
    pub status: ElectionStatus,
}

/// Takes part for as long as it lives; dropped, it leaves, and hands over.
pub struct Member {
    terms: Terms,
    seat: Arc<Mutex<Seat>>,
    view: cell::Receiver<View>,
    task: JoinHandle<()>,
}

impl Member {
    /// Begins to take part. Needs NET_RAW.
    ///
    /// # Errors
    /// When there is no socket to be had, or no randomness.
    pub fn join(terms: Terms, priority: NonZeroU8, metrics: Metrics) -> io::Result<Self> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        let group = election::group(&terms.election.gateway);
        let socket = probe::socket(&terms.lan, ETHERTYPE)?;
        let mut address = [0; 8];
        address[..6].copy_from_slice(&group);
        let membership = libc::packet_mreq {
            mr_ifindex: i32::try_from(terms.index).map_err(io::Error::other)?,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: address,
        };
        JoinGroup.set(&socket, &membership)?;
        let frames = Receiver::from_owned_fd_unchecked(socket.as_fd().try_clone_to_owned()?)?;
        let member = MemberConfig {
            uid: terms.election.gateway,
            key: terms.key,
            instance: Instance(instance),
            name: terms.name.clone(),
            interval: terms.election.interval,
            priority,
        };
        let (publish, view) = cell::channel(View::default());
        let seat = Arc::new(Mutex::new(Seat {
            election: Election::new(member, now()),
            socket,
            header: [&group[..], &terms.mac, &ETHERTYPE.to_be_bytes()].concat(),
            link: arp::link_address(&terms.lan)?,
            turns: 0,
            joined: false,
            mute: false,
            unplugged: false,
            lost: false,
            hosts: Hosts { mac: terms.mac, addresses: Vec::new(), routers: Vec::new() },
            since: SystemTime::now(),
            metrics,
            counted: Counters::default(),
            publish,
        }));
        let lan = Lan::open(&terms.lan)?;
        let task = tokio::spawn(attend(Arc::clone(&seat), frames, lan, terms.election.interval));
        Ok(Self { terms, seat, view, task })
    }

    /// What it depends on.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Says how sound this pod is.
    pub fn set_priority(&self, priority: NonZeroU8) {
        lock(&self.seat).act(|election, now| election.set_priority(now, priority));
    }

    /// Says whether the LAN's link is there. While it is not, the member takes
    /// no part, and afterwards it listens first.
    pub fn set_link(&self, up: bool) {
        let mut seat = lock(&self.seat);
        if std::mem::replace(&mut seat.unplugged, !up) == up {
            info!("the LAN's link is {}", if up { "back" } else { "gone" });
            // Back, it has missed what was said, however short that was.
            seat.act(if up { Election::isolated } else { Election::send_failed });
        }
    }

    /// Says which addresses it is about, and which routers their LAN has.
    pub fn set_hosts(&self, addresses: Vec<Ipv4Addr>, routers: Vec<Ipv4Addr>) {
        let hosts = &mut lock(&self.seat).hosts;
        (hosts.addresses, hosts.routers) = (addresses, routers);
    }

    /// Whether the addresses are this pod's, at this moment.
    pub fn is_active(&self) -> bool {
        lock(&self.seat).election.holds_lease(now())
    }

    /// What there is to say of it.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Resolves when there is more to say of it than at `known`; never without
    /// a member.
    pub async fn turned(member: Option<&mut Self>, known: &View) {
        let Some(member) = member else { return std::future::pending().await };
        let news = |view: &View| (view.turns, &view.status) != (known.turns, &known.status);
        // Without its task there is nothing more to hear.
        if member.view.wait_for(news).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.seat).act(Election::leave);
    }
}

/// The state machine with its way out.
struct Seat {
    election: Election,
    socket: Socket,
    /// Of all its frames: to the group, from the interface.
    header: Vec<u8>,
    link: nix::sys::socket::LinkAddr,
    turns: u64,
    joined: bool,
    /// The last frame did not leave, and that was said.
    mute: bool,
    /// The LAN's link is gone.
    unplugged: bool,
    /// Nothing of the LAN is in reach.
    lost: bool,
    hosts: Hosts,
    since: SystemTime,
    metrics: Metrics,
    counted: Counters,
    publish: cell::Sender<View>,
}

impl Seat {
    /// Gives the election an input, carries out what it says, and publishes
    /// what came of it.
    fn act(&mut self, input: impl FnOnce(&mut Election, Time) -> Vec<Output>) {
        let mut outputs = std::collections::VecDeque::from(input(&mut self.election, now()));
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Send(payload) => {
                    let sent = self.send(&payload);
                    if let Err(error) = &sent {
                        // What follows stands on a frame that did not leave.
                        outputs.clear();
                        if !self.mute {
                            warn!("the election's frames do not leave: {error}");
                        }
                        outputs.extend(self.election.send_failed(now()));
                    }
                    self.mute = sent.is_err();
                }
                Output::RoleChanged(role, reason) => self.became(role, &reason),
                Output::SplitBrain { with, stays } => {
                    let outcome = if stays { "this pod stays" } else { "this pod gives way" };
                    warn!("{with} was active as well: {outcome}");
                    self.turns += u64::from(stays);
                }
            }
        }
        self.publish();
    }

    fn send(&self, payload: &[u8]) -> io::Result<()> {
        let frame = [&self.header, payload].concat();
        sendto(self.socket.as_raw_fd(), &frame, &self.link, MsgFlags::empty())?;
        Ok(())
    }

    fn became(&mut self, role: Role, reason: &Reason) {
        self.turns += 1;
        self.since = SystemTime::now();
        self.metrics.role_changes.inc();
        match role {
            Role::Active => info!("active: {reason}"),
            Role::Standby => info!("standby: {reason}"),
            Role::Left => info!("left: {reason}"),
        }
    }

    fn publish(&mut self) {
        let seen = self.election.snapshot();
        self.joined |= seen.active.is_some();
        let role = match seen.role {
            Role::Active => wire::Role::Active,
            Role::Standby if self.joined => wire::Role::Standby,
            Role::Standby | Role::Left => wire::Role::Joining,
        };
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let counters = self.election.counters();
        self.metrics.count_election(&self.counted, &counters);
        self.counted = counters;
        let mut peers: Vec<String> = seen.peers.into_iter().map(|other| other.name).collect();
        peers.sort_unstable();
        let view = View {
            turns: self.turns,
            joined: self.joined,
            status: ElectionStatus {
                role,
                since_ms: u64::try_from(since).unwrap_or(u64::MAX),
                why: seen.reason.to_string(),
                term: seen.term,
                active: seen.active.map(|(_, name)| name),
                peers,
                splits: counters.splits,
            },
        };
        self.publish.send_if_modified(|last| {
            let changed = *last != view;
            *last = view;
            changed
        });
    }
}

fn lock(seat: &Mutex<Seat>) -> std::sync::MutexGuard<'_, Seat> {
    seat.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A clock that counts the time that the host is suspended.
fn now() -> Time {
    // It exists on every kernel there is.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

async fn attend(seat: Arc<Mutex<Seat>>, frames: Receiver, mut lan: Lan, interval: Duration) {
    let mut frame = [0; 2048];
    let mut doorway = Doorway::new(Instant::now(), interval);
    let mut reach = Reach::new(Instant::now());
    loop {
        // First what was received, then what time has passed: who slept hears
        // what it missed before it acts.
        while let Ok(length) = frames.try_read(&mut frame) {
            let payload = frame.get(14..length).unwrap_or_default();
            let mut seat = lock(&seat);
            if !seat.unplugged {
                seat.act(|election, now| election.receive(now, payload));
            }
        }
        let deadline = {
            let mut seat = lock(&seat);
            let seat = &mut *seat;
            lan.tune(&seat.hosts);
            let heard = lan.hear();
            doorway.watch(seat, &heard, &mut lan);
            look_around(seat, &heard, &mut reach, &mut lan);
            if !seat.unplugged && seat.election.deadline().is_some_and(|deadline| deadline <= now()) {
                seat.act(Election::tick);
            }
            if seat.unplugged { Some(now() + ASK) } else { seat.election.deadline() }
        };
        let Some(deadline) = deadline else { return };
        let due = Instant::now() + deadline.saturating_sub(now());
        let due = doorway.due().map_or(due, |ask| ask.min(due)).min(reach.due());
        tokio::select! {
            _ = frames.readable() => {}
            () = Ear::heard(Some(&lan.arp)) => {}
            () = Ear::heard(lan.all.as_ref()) => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }
}

/// What is heard on the LAN beside the election.
struct Lan {
    name: String,
    arp: Ear,
    /// The hosts that it was last tuned to.
    tuned: Option<Hosts>,
    /// While nothing is in reach: it hears what the lease lets nobody else hear.
    all: Option<Ear>,
    sender: arp::Sender,
}

impl Lan {
    fn open(name: &str) -> io::Result<Self> {
        let arp = Ear::open(name, &Concern::default())?;
        Ok(Self { name: name.to_owned(), arp, tuned: None, all: None, sender: arp::Sender::default() })
    }

    /// Hears of these hosts: the routers, who has the addresses, and who asks
    /// for them.
    fn tune(&mut self, hosts: &Hosts) {
        if self.tuned.as_ref() == Some(hosts) {
            return;
        }
        let Hosts { addresses, routers, .. } = hosts;
        let concern = Concern { senders: [&addresses[..], routers].concat(), targets: addresses.clone() };
        // Where the kernel refuses, it is tried again with the next frame.
        self.tuned = self.arp.tune(&concern).is_ok().then(|| hosts.clone());
    }

    /// The ARP frames there are.
    fn hear(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.arp.take()).filter_map(|frame| Frame::parse(&frame)).collect()
    }

    /// Asks the host there for an address, or all, as one that has none. That it
    /// cannot ask, a member is told by its own frames.
    fn ask(&mut self, mac: Mac, address: Ipv4Addr, at: Option<Mac>) {
        let _ = self.sender.send(&self.name, &arp::to(at, arp::probe(mac, address)));
    }
}

/// Lets go of the addresses where nothing is in reach: neither another member
/// nor a router.
fn look_around(seat: &mut Seat, heard: &[Frame], reach: &mut Reach, lan: &mut Lan) {
    let now = Instant::now();
    for said in heard {
        reach.hear(now, &seat.hosts, said);
    }
    while let Some(frame) = lan.all.as_ref().and_then(Ear::take) {
        reach.hear_any(now, &seat.hosts, &frame);
    }
    // What a missing link hides is known already.
    let company = match seat.election.is_peer_reachable(self::now()).filter(|_| !seat.unplugged) {
        Some(true) => Company::Present,
        Some(false) => Company::Missing,
        None => Company::Absent,
    };
    let lost = reach.is_lost(now, company);
    if std::mem::replace(&mut seat.lost, lost) != lost {
        if lost {
            warn!("neither another pod nor the router {:?} answers on the LAN", seat.hosts.routers);
        } else {
            info!("the LAN is heard again");
        }
        // Without it, the router alone is heard.
        lan.all = lost.then(|| Ear::for_all(&lan.name).ok()).flatten();
    }
    if lost && !seat.unplugged {
        seat.act(Election::isolated);
    }
    for (router, at) in reach.take(now, &seat.hosts) {
        lan.ask(seat.hosts.mac, router, at);
    }
}

/// Keeps a member that hears no other from taking addresses that somebody
/// answers for: a gateway's pod from before there was an election, or with
/// another key. Once others are heard, or it is active, it has no say.
struct Doorway {
    /// It has no say any more.
    passed: bool,
    /// When to ask next.
    ask: Instant,
    /// Since when somebody answers, and whether that was said.
    occupied: Option<(Instant, bool)>,
}

impl Doorway {
    /// Asks from when other members would have been heard, late ones too: to one
    /// that just asks the LAN whether its address is free, a question for the
    /// same address is a conflict (RFC 5227, 2.1.1).
    fn new(now: Instant, interval: Duration) -> Self {
        Self { passed: false, ask: now + 2 * election::lease_time(interval), occupied: None }
    }

    fn due(&self) -> Option<Instant> {
        (!self.passed).then_some(self.ask)
    }

    fn watch(&mut self, seat: &mut Seat, heard: &[Frame], lan: &mut Lan) {
        if self.passed {
            return;
        }
        let seen = seat.election.snapshot();
        self.passed = seen.role != Role::Standby || !seen.peers.is_empty();
        if self.passed {
            return;
        }
        let Hosts { mac, addresses, .. } = &seat.hosts;
        let now = Instant::now();
        for said in heard.iter().filter(|said| said.mac != *mac && addresses.contains(&said.sender)) {
            seat.election.address_in_use(self::now());
            let (since, told) = self.occupied.get_or_insert((now, false));
            if *since + STRANGER <= now && !std::mem::replace(told, true) {
                let mac = arp::show(said.mac);
                warn!("{mac} answers for {} and takes no part in the election: waiting", said.sender);
            }
        }
        if self.ask <= now {
            self.ask = now + ASK;
            for address in addresses {
                lan.ask(*mac, *address, None);
            }
        }
        // There is a stranger to wait for.
        seat.joined |= self.occupied.is_some_and(|(_, told)| told);
    }
}
