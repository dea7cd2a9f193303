//! The loop: look, compare, change, look again, say so.
//!
//! ```text
//!   files ──┐                         ┌─ NAT (one transaction a table)
//!   netlink ┼─ wake ─ observe ─ plan ─┼─ netlink steps, in order
//!   nft ────┤                         ├─ conntrack: cut what is stale
//!   timer ──┘                         └─ observe again: nothing left to do?
//!                                             └─ publish, announce
//! ```
//!
//! Every run starts from whole state, so that nothing depends on having seen
//! each event, nor on what a gateway before this one left behind. A step that
//! fails is a fault and is tried again; nothing that comes in ends the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::{GatewayStatus, Interface, Role};
use lb_svc_crds::names;
use tokio::sync::watch as cell;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::arp;
use crate::aside;
use crate::caps;
use crate::config::{self, Config};
use crate::conntrack;
use crate::desired::{Desired, desired};
use crate::fault::Fault;
use crate::filter::Filter;
use crate::health::{self, Health, Question};
use crate::http::{self, Published};
use crate::interfaces::{self, Network};
use crate::kernel::{Hop, Kernel, Link, MAIN};
use crate::lease::{self, Lease};
use crate::member::{self, Member, Terms, View};
use crate::metrics::{Digest, EndpointState, Kind, Metrics, Outcome, Reason, ServedPort};
use crate::nat::{self, Backends};
use crate::netlink::Netlink;
use crate::path::{self, Paths};
use crate::plan::{Op, plan};
use crate::probe::{Concern, Ear, Probes, Verdict};
use crate::pulse::{Pulse, Way};
use crate::ranges::Gate;
use crate::sources;
use crate::timeouts;
use crate::traffic;
use crate::watch::{Changed, Watch};
use lb_svc_election as election;

/// How events that come together are taken together.
const DEBOUNCE: Duration = Duration::from_millis(1);
/// Between runs, where something else in the pod changes the state each time.
const FIGHT: Duration = Duration::from_millis(250);
/// So many repairs in a row are a fight.
const FIGHT_AFTER: u32 = 20;
/// Between runs without any event.
const PERIOD: Duration = Duration::from_secs(10);
/// Before the first retry; doubled each time.
const RETRY: Duration = Duration::from_millis(50);
/// Between retries at most.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// After cutting stale connections, before looking for those that a packet in
/// flight made by the old rules.
const SECOND_CUT: Duration = Duration::from_secs(1);
/// Priorities in the election, by what a pod can do: everything; serve what it
/// served before; not serve.
const SOUND: NonZeroU8 = NonZeroU8::new(200).unwrap();
const IMPAIRED: NonZeroU8 = NonZeroU8::new(150).unwrap();
const UNSOUND: NonZeroU8 = NonZeroU8::new(50).unwrap();
/// So many endpoints are asked at once whether they are well.
const ASKED_AT_ONCE: usize = 256;
/// Rounds of observing and changing before it is said that it does not help.
const ROUNDS: usize = 3;

/// What `--help` shows.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "lb-svc-gateway",
    version,
    about = "Owns LoadBalancer addresses on a pod's second interface and forwards what they serve"
)]
pub struct Settings {
    /// Directory of the gateway's configuration, a mounted ConfigMap.
    #[arg(long, env = "LB_SVC_CONFIG_DIR", default_value = names::CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// Directory of Multus's network-status, a downward-API volume.
    #[arg(long, env = "LB_SVC_POD_INFO_DIR", default_value = names::POD_INFO_DIR)]
    pub pod_info_dir: PathBuf,
    /// Directory of the election's key, a mounted Secret; who has none is alone.
    #[arg(long, env = "LB_SVC_KEY_DIR", default_value = names::KEY_DIR)]
    pub key_dir: PathBuf,
    /// TCP port of /readyz, /status and /metrics on the pod's address.
    #[arg(long, env = "LB_SVC_PORT", default_value_t = names::GATEWAY_PORT)]
    pub port: u16,
}

/// Runs for ever.
pub async fn run(settings: Settings) {
    let (metrics, registry) = Metrics::new(env!("CARGO_PKG_VERSION"));
    let (wanted, to_keep) = cell::channel(aside::Wanted::default());
    let meter = traffic::Meter::new(metrics.clone(), to_keep.clone());
    tokio::spawn(aside::keep(to_keep, [timeouts::PART, traffic::PART]));
    tokio::spawn(sources::relieve());
    let published = Arc::new(Published::new(registry, meter));
    let (pod_ip, listen_on) = cell::channel(None);
    tokio::spawn(http::serve(Arc::clone(&published), listen_on, settings.port));
    let watch = Watch::open(&[&settings.config_dir, &settings.pod_info_dir]);
    let mut gateway = Gateway {
        watch,
        settings,
        metrics,
        published,
        pod_ip,
        capabilities: caps::missing(),
        netlink: None,
        filter: Filter::default(),
        gate: Gate::default(),
        wanted,
        nat: Backends::default(),
        files: Files::default(),
        nat_suspect: true,
        lease: Lease::default(),
        member: None,
        view: View::default(),
        alone: true,
        pulse: None,
        alive: true,
        ours: BTreeSet::new(),
        cut: true,
        cut_again: None,
        verified: None,
        schedule: arp::Schedule::default(),
        probes: Probes::default(),
        ear: None,
        sender: arp::Sender::default(),
        paths: Paths::default(),
        looks: JoinSet::new(),
        health: Health::default(),
        checks: JoinSet::new(),
        report: Report::default(),
        faults: BTreeMap::new(),
        fights: 0,
        failures: 0,
    };
    gateway.run().await;
}

/// What was last read of the mounted files.
#[derive(Default)]
struct Files {
    /// The last good configuration, and the digest of its file.
    config: Option<(Config, String)>,
    /// The digest of the file as last read.
    seen: Option<String>,
    config_fault: Option<Fault>,
    networks: Vec<Network>,
    networks_fault: Option<Fault>,
}

/// What a run found, beside the faults.
#[derive(Clone, Default)]
struct Report {
    /// Whether the LAN and the primary interface have a carrier.
    links_up: bool,
    interface: Option<Interface>,
    addresses: Vec<Ipv4Addr>,
}

struct Gateway {
    settings: Settings,
    watch: Watch,
    metrics: Metrics,
    published: Arc<Published>,
    pod_ip: cell::Sender<Option<Ipv4Addr>>,
    capabilities: Vec<Fault>,
    netlink: Option<Netlink>,
    filter: Filter,
    gate: Gate,
    /// What is programmed beside the loop.
    wanted: cell::Sender<aside::Wanted>,
    nat: Backends,
    files: Files,
    /// The kernel's NAT may not be what was left there.
    nat_suspect: bool,
    lease: Lease,
    /// This pod's part in the election, if it has one, and what was last seen
    /// of it.
    member: Option<Member>,
    view: View,
    /// Whether it has no part because it has no key.
    alone: bool,
    /// The pod's way into the cluster, where a pod that is sounder may take
    /// over, and whether it was last felt to be alive.
    pulse: Option<Pulse>,
    alive: bool,
    /// Every address that is or was the gateway's.
    ours: BTreeSet<Ipv4Addr>,
    /// Connections may be stale.
    cut: bool,
    cut_again: Option<Instant>,
    /// What the kernel was last seen to hold in full, and the digest of the
    /// configuration it came from, if nothing of that had to be left out.
    verified: Option<(Desired, Option<String>)>,
    schedule: arp::Schedule,
    probes: Probes,
    /// Hears the LAN while an address is withheld, by `ifindex`.
    ear: Option<(u32, Ear)>,
    sender: arp::Sender,
    paths: Paths,
    /// At the paths, each for itself: none is waited for.
    looks: JoinSet<(SocketAddrV4, std::io::Result<path::Verdict>)>,
    health: Health,
    /// At the endpoints, likewise.
    checks: JoinSet<(Question, std::io::Result<()>)>,
    report: Report,
    faults: BTreeMap<&'static str, String>,
    fights: u32,
    failures: u32,
}

impl Gateway {
    async fn run(&mut self) {
        let mut changed = Changed { files: true, network: true, nat: true };
        loop {
            self.nat_suspect |= changed.nat;
            let suspect = self.nat_suspect;
            if changed.files {
                self.read_files();
            }
            let faults = self.converge().await;
            self.judge(&faults);
            self.publish(&faults);
            if let Err(fault) = self.nat.settle().await {
                debug!("{fault}");
            }
            self.set_aside(suspect);
            changed = self.sleep(faults.iter().any(Fault::is_retried)).await;
        }
    }

    /// Sleeps until there is a reason to look again, announcing and probing
    /// meanwhile.
    async fn sleep(&mut self, failed: bool) -> Changed {
        self.failures = if failed { self.failures + 1 } else { 0 };
        let pause = match self.failures {
            0 => PERIOD,
            n => RETRY_MAX.min(RETRY * 2u32.saturating_pow(n - 1)),
        };
        let until = Instant::now() + pause;
        loop {
            self.announce();
            if self.probe() {
                return Changed { network: true, ..Changed::default() };
            }
            for at in self.paths.take(Instant::now()) {
                self.looks.spawn(async move { (at, path::look(at).await) });
            }
            let room = ASKED_AT_ONCE - self.checks.len();
            for question in self.health.take(Instant::now(), room) {
                self.checks.spawn(async move {
                    let answer = health::ask(&question).await;
                    (question, answer)
                });
            }
            // Who waits for room is asked when an answer has made some.
            let health = self.health.due().filter(|_| self.checks.len() < ASKED_AT_ONCE);
            let due = [self.schedule.due(), self.probes.due(), self.paths.due(), health, self.cut_again];
            let due = due.into_iter().flatten().fold(until, Instant::min);
            tokio::select! {
                changed = self.watch.wait() => {
                    let settle = if self.fights > FIGHT_AFTER { FIGHT } else { DEBOUNCE };
                    tokio::time::sleep(settle).await;
                    let more = self.watch.take();
                    return Changed {
                        files: changed.files || more.files,
                        network: true,
                        nat: changed.nat || more.nat,
                    };
                }
                () = Ear::heard(self.ear.as_ref().map(|(_, ear)| ear)), if self.probes.is_listening() => {}
                Some(Ok((at, seen))) = self.looks.join_next() => {
                    if self.looked(at, seen) {
                        return Changed { network: true, ..Changed::default() };
                    }
                }
                Some(Ok((question, answer))) = self.checks.join_next() => {
                    if self.answered(&question, answer) {
                        return Changed { network: true, ..Changed::default() };
                    }
                }
                () = Pulse::turned(self.pulse.as_mut(), self.alive) => {
                    return Changed { network: true, ..Changed::default() };
                }
                () = Member::turned(self.member.as_mut(), &self.view) => {
                    return Changed { network: true, ..Changed::default() };
                }
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let now = Instant::now();
            if self.cut_again.is_some_and(|at| at <= now) {
                self.cut_again = None;
                self.cut_stale().await;
            }
            if until <= now {
                self.watch.arm();
                if !failed {
                    self.fights = 0;
                }
                return Changed {
                    files: true,
                    network: true,
                    // It takes a process, so not with every retry.
                    nat: pause >= RETRY_MAX,
                };
            }
        }
    }

    /// Reads the mounted files. What does not parse leaves in force what was
    /// there before.
    fn read_files(&mut self) {
        let path = self.settings.config_dir.join(names::CONFIG_KEY);
        let files = &mut self.files;
        files.config_fault = match std::fs::read(&path) {
            Err(error) => Some(Fault::ConfigMissing { path, why: error.to_string() }),
            Ok(bytes) => {
                let digest = names::digest(&bytes);
                let known = files.seen.as_ref() == Some(&digest);
                files.seen = Some(digest.clone());
                if known {
                    files.config_fault.take().filter(|fault| matches!(fault, Fault::ConfigInvalid(_)))
                } else {
                    self.failures = 0;
                    match config::parse(&bytes) {
                        Ok(config) => {
                            for note in &config.notes {
                                info!("{note}");
                            }
                            self.ours.extend(config.addresses.iter().map(|a| a.address));
                            files.config = Some((config, digest));
                            None
                        }
                        Err(invalid) => Some(Fault::ConfigInvalid(invalid)),
                    }
                }
            }
        };
        let path = self.settings.pod_info_dir.join(names::NETWORK_STATUS_FILE);
        // Absent is as good as empty: Multus has not written it yet.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        files.networks_fault = match interfaces::parse(&text) {
            Ok(networks) => {
                // A report that was there and went leaves the interface where
                // it is.
                if !networks.is_empty() {
                    files.networks = networks;
                }
                None
            }
            Err(fault) => Some(fault),
        };
    }

    /// Makes the kernel what the configuration says. Returns what is in the
    /// way.
    async fn converge(&mut self) -> Vec<Fault> {
        let mut faults = self.capabilities.clone();
        faults.extend(self.files.config_fault.clone());
        faults.extend(self.files.networks_fault.clone());
        let started = Instant::now();
        match self.converge_kernel(started).await {
            Ok(more) => faults.extend(more),
            Err(fault) => {
                self.metrics.converges.get_or_create(&Outcome { outcome: "failed" }).inc();
                // A connection to the kernel that broke is made anew.
                if matches!(fault, Fault::NetlinkFailed(_)) {
                    self.netlink = None;
                }
                self.nat_suspect = true;
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        faults
    }

    async fn converge_kernel(&mut self, started: Instant) -> Result<Vec<Fault>, Fault> {
        let mut kernel = self.observe().await?;
        let config = self.files.config.clone();
        let lan = config.as_ref().map(|(config, _)| self.find_lan(&kernel, config));
        let lan_index = lan.as_ref().and_then(|lan| lan.as_ref().ok()).map(|(link, _)| link.index);
        let primary = interfaces::primary(&kernel, &self.files.networks, lan_index);
        if let Ok(primary) = &primary {
            self.listen(&kernel, primary.index);
        }
        let (Some((config, digest)), Some(lan)) = (config, lan) else {
            return Ok(Vec::new());
        };
        self.report = Report::default();
        let (lan, foreign) = lan.inspect_err(|_| {
            self.schedule.set(started, None, &[], Duration::ZERO);
            self.ear = None;
        })?;
        let (lan, primary) = (lan.clone(), primary?.clone());
        self.report.interface =
            Some(Interface { name: lan.name.clone(), mac: lan.mac.map(arp::show).unwrap_or_default() });
        if self.lacks(caps::NET_ADMIN) {
            return Ok(Vec::new());
        }

        let active = self.elect(&lan, &config).await?;
        self.report.links_up = lan.running && self.feel_pulse(&kernel, &primary);
        let unheard = self.ask_lan(&kernel, &lan, &config, active);
        let withheld = self.probes.withheld();
        // A standby has everything but the addresses.
        let mut absent = withheld.clone();
        if !active {
            absent.extend(config.addresses.iter().map(|a| a.address));
        }
        self.health.set(started, &config.forwards);
        let forwards = self.health.apply(config.forwards.clone());
        let (desired, mut faults) = desired(&config, forwards, &kernel, &lan, &primary, foreign, &absent);
        faults.extend(unheard);
        faults.extend(self.paths.missing().map(Fault::ClusterIpSocketsOnly));
        faults.extend(self.probes.conflicts().map(|(address, mac)| Fault::AddressConflict { address, mac }));
        let verified = self.verified.as_ref();
        let repairing = verified.is_some_and(|(verified, _)| *verified == desired);
        self.report.addresses = programmed(&kernel, &desired);
        // What a gateway before this one, or another configuration, left on
        // the interface was ours as well.
        let held = kernel.addresses.iter().filter(|a| a.interface == lan.index && a.global);
        let held = held.map(|a| a.address).filter(|a| !desired.foreign_addresses.contains(a));
        self.ours.extend(held);

        let mut done: Vec<Op> = Vec::new();
        let mut nat_applied = false;
        let mut left = Vec::new();
        for _ in 0..ROUNDS {
            // First the filters and the NAT: nothing is forwarded unfiltered,
            // nothing answered for before it is served.
            nat_applied |= self.filter.ensure(&desired.filter, self.nat_suspect).await?;
            nat_applied |= self.gate.ensure(&desired.ranges, self.nat_suspect).await?;
            let outcome = self.nat.ensure(&desired.nat, self.nat_suspect).await?;
            self.nat_suspect = false;
            nat_applied |= outcome == nat::Outcome::Applied;
            left = plan(&kernel, &desired);
            if left.is_empty() {
                break;
            }
            let netlink = self.netlink.as_ref().ok_or_else(lost)?;
            for op in &left {
                netlink.apply(op).await?;
            }
            done.append(&mut left);
            kernel = self.observe().await?;
            left = plan(&kernel, &desired);
        }
        self.report.addresses = programmed(&kernel, &desired);
        if let Some(op) = left.first() {
            return Err(Fault::NotConverged(format!("{op} does not last")));
        }

        if nat_applied || !done.is_empty() {
            // Looking through conntrack takes the kernel longer than all the
            // rest: who only gets more does not wait for it.
            self.cut |= repairing || !self.verified.as_ref().is_some_and(|(before, _)| desired.keeps(before));
        }
        let digest = (faults.is_empty() && withheld.is_empty()).then_some(digest);
        self.count(started, repairing, nat_applied, &done, digest.as_deref());
        // What is new is served by now; the kernel has to look through the
        // connections of its whole node for this.
        if std::mem::take(&mut self.cut) {
            self.cut_again = Some(Instant::now() + SECOND_CUT);
            self.cut_stale().await;
        }
        // An address that came, or came back, is to be heard of at once.
        if done.iter().any(|op| matches!(op, Op::AddAddress(_) | Op::Up(_))) {
            self.schedule.restart();
        }
        let port = kernel.link(lan.index).and_then(port);
        // A member whose link was away for a moment, unnoticed, may have been
        // replaced meanwhile. It has heard so by then.
        let settle = |member: &Member| 2 * election::lease_time(member.terms().election.interval);
        let settle = self.member.as_ref().map_or(Duration::ZERO, settle);
        self.schedule.set(Instant::now(), port, &self.report.addresses, settle);
        self.paths.set(Instant::now(), desired.forwards());
        self.verified = Some((desired, digest));
        Ok(faults)
    }

    /// Whether the addresses are this pod's: it is alone, or elected.
    async fn elect(&mut self, lan: &Link, config: &Config) -> Result<bool, Fault> {
        let key = member::key(&self.settings.key_dir)?;
        self.alone = key.is_none();
        let Some(key) = key else {
            return Ok(true);
        };
        let failed = |why: &str| Fault::ElectionFailed(why.to_owned());
        let election = config.election.ok_or_else(|| failed("its configuration has none"))?;
        let mac = lan.mac.ok_or_else(|| failed("its LAN interface has no hardware address"))?;
        if self.member.is_none() && !lan.running {
            return Ok(false);
        }
        let addresses: Vec<Ipv4Addr> = config.addresses.iter().map(|a| a.address).collect();
        let guard =
            lease::Guard { lan: lan.name.clone(), addresses: addresses.clone(), interval: election.interval };
        self.lease.ensure(&guard, self.nat_suspect).await?;
        let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let terms = Terms { lan: lan.name.clone(), index: lan.index, mac, election, key, name };
        let member = match self.member.take().filter(|member| *member.terms() == terms) {
            Some(member) => member,
            None => {
                self.view = View::default();
                let joined = Member::join(terms, UNSOUND, self.metrics.clone());
                joined.map_err(|error| failed(&error.to_string()))?
            }
        };
        let routers: BTreeSet<Ipv4Addr> = config.addresses.iter().filter_map(|a| a.gateway).collect();
        member.set_hosts(addresses, routers.into_iter().collect());
        member.set_link(lan.running);
        let view = member.view();
        // The neighbours are to hear of every change of hands.
        if view.turns != self.view.turns {
            self.schedule.restart();
        }
        self.view = view;
        let active = member.is_active();
        self.member = Some(member);
        Ok(active)
    }

    /// Whether the pod's way into the cluster is alive, as far as that is known.
    fn feel_pulse(&mut self, kernel: &Kernel, primary: &Link) -> bool {
        let way = || {
            let default =
                kernel.routes.iter().find(|r| r.table == MAIN && r.destination.prefix_len() == 0)?;
            let Hop::Via { gateway: next_hop, oif, .. } = default.hop else { return None };
            let mut own = kernel.addresses.iter().filter(|a| a.interface == primary.index && a.global);
            (oif == primary.index).then_some(())?;
            let (own, mac) = (own.next()?.address, primary.mac?);
            Some(Way { interface: primary.name.clone(), mac, own, next_hop })
        };
        let way = self.member.as_ref().and_then(|_| way());
        self.pulse.take_if(|pulse| Some(pulse.way()) != way.as_ref());
        if let (None, Some(way)) = (&self.pulse, way) {
            self.pulse = Pulse::begin(way)
                .inspect_err(|error| warn!("the pod network's next hop cannot be asked: {error}"))
                .ok();
        }
        self.alive = self.pulse.as_ref().is_none_or(Pulse::is_alive);
        self.alive && primary.running
    }

    /// Says in the election how sound this pod is.
    fn judge(&self, faults: &[Fault]) {
        if let Some(member) = &self.member {
            member.set_priority(match faults {
                _ if !self.report.links_up || faults.iter().any(Fault::stops_serving) => UNSOUND,
                [] => SOUND,
                _ => IMPAIRED,
            });
        }
    }

    async fn observe(&mut self) -> Result<Kernel, Fault> {
        let netlink = match &self.netlink {
            Some(netlink) => netlink,
            None => self.netlink.insert(Netlink::connect().await?),
        };
        netlink.observe().await
    }

    /// The LAN interface, and the addresses that its network's own IPAM gave.
    fn find_lan<'a>(
        &self,
        kernel: &'a Kernel,
        config: &Config,
    ) -> Result<(&'a Link, BTreeSet<Ipv4Addr>), Fault> {
        let presumed = || {
            let unreported = self.files.networks.is_empty();
            unreported.then(|| interfaces::presumed(kernel, &config.attachment, &self.ours))?
        };
        let network = match interfaces::lan(&self.files.networks, &config.attachment) {
            Ok(network) => network.clone(),
            Err(pending) => presumed().ok_or(pending)?,
        };
        let link = kernel
            .link_named(&network.interface)
            .ok_or_else(|| Fault::InterfaceMissing(network.interface.clone()))?;
        let foreign = network.ips.iter().filter_map(|ip| ip.parse().ok());
        Ok((link, foreign.collect()))
    }

    fn listen(&self, kernel: &Kernel, primary: u32) {
        let mut addresses = kernel.addresses.iter();
        let address = addresses.find(|a| a.interface == primary && a.global);
        let address = address.map(|a| a.address);
        // Without one for a moment, better stay where it was.
        self.pod_ip.send_if_modified(|now| {
            let moved = address.is_some() && *now != address;
            if moved {
                *now = address;
            }
            moved
        });
    }

    async fn cut_stale(&mut self) {
        let Some((config, _)) = &self.files.config else {
            return;
        };
        let forwards = self.health.apply(config.forwards.clone());
        match conntrack::cut(&forwards, &config.ranges, &self.ours).await {
            Ok(0) => {}
            Ok(count) => {
                self.metrics.cut.inc_by(count);
                info!("cut {count} stale connections");
            }
            Err(error) => warn!(
                "stale connections cannot be cut, clients may have to connect anew (is nf_conntrack_netlink loaded?): {error}"
            ),
        }
    }

    /// Says what is to be programmed beside the loop, once it is served.
    fn set_aside(&self, suspect: bool) {
        let (Some((config, _)), Some(_)) = (&self.files.config, &self.verified) else {
            return;
        };
        self.wanted.send_if_modified(|wanted| {
            let changed = suspect || wanted.services != config.services;
            if changed {
                wanted.services.clone_from(&config.services);
                wanted.suspicion += u64::from(suspect);
            }
            changed
        });
    }

    fn announce(&mut self) {
        let Some(interface) = &self.report.interface else {
            return;
        };
        for (port, address) in self.schedule.take(Instant::now()) {
            match self.sender.send(&interface.name, &arp::announcement(port.mac, address)) {
                Ok(()) => {
                    self.metrics.announcements.inc();
                }
                // Known and said already.
                Err(_) if self.lacks(caps::NET_RAW) => {}
                Err(error) => warn!("{address} cannot be announced: {error}"),
            }
        }
    }

    /// Sets what the LAN is to be asked for, and begins. Returns why it cannot
    /// be asked.
    fn ask_lan(&mut self, kernel: &Kernel, lan: &Link, config: &Config, active: bool) -> Option<Fault> {
        let to_probe = config.addresses.iter().filter(|a| active && a.probe);
        let to_probe: Vec<Ipv4Addr> = to_probe.map(|a| a.address).collect();
        let held = kernel.addresses.iter().filter(|a| a.interface == lan.index).map(|a| a.address).collect();
        let mut port = port(lan);
        self.ear.take_if(|(index, _)| *index != lan.index);
        let mut why = None;
        // Known and said already.
        if self.lacks(caps::NET_RAW) {
            port = None;
        } else if port.is_some() && !to_probe.iter().all(|a| self.probes.is_free(*a)) {
            if let Err(error) = self.hear(lan, &to_probe) {
                port = None;
                why = Some(error.to_string());
            }
        } else if port.is_none() && lan.up {
            why = Some("it has no carrier".to_owned());
        }
        self.probes.set(Instant::now(), port, &to_probe, &held);
        let Some(address) = self.probes.withheld().first().copied() else {
            self.ear = None;
            return None;
        };
        self.probe();
        why.map(|why| Fault::ProbeFailed { address, interface: lan.name.clone(), why })
    }

    /// Hears what the LAN says of these addresses.
    fn hear(&mut self, lan: &Link, addresses: &[Ipv4Addr]) -> std::io::Result<()> {
        let concern = Concern { senders: addresses.to_vec(), targets: addresses.to_vec() };
        match &self.ear {
            Some((_, ear)) => ear.tune(&concern)?,
            None => self.ear = Some((lan.index, Ear::open(&lan.name, &concern)?)),
        }
        Ok(())
    }

    /// Hears the LAN, and asks what is to be asked now. Returns whether that
    /// says anything new.
    fn probe(&mut self) -> bool {
        let Some(interface) = &self.report.interface else {
            return false;
        };
        let now = Instant::now();
        let mut verdicts = Vec::new();
        if let Some((_, ear)) = &self.ear {
            while let Some(frame) = ear.take() {
                verdicts.extend(self.probes.hear(now, &frame));
            }
        }
        let (ask, silent) = self.probes.take(now);
        verdicts.extend(silent);
        if let Some(port) = self.probes.port() {
            for address in ask {
                if let Err(error) = self.sender.send(&interface.name, &arp::probe(port.mac, address)) {
                    warn!("the LAN cannot be asked for {address}: {error}");
                    self.probes.unsent(now, address);
                }
            }
        }
        for (address, verdict) in &verdicts {
            let outcome = match verdict {
                Verdict::Free => "free",
                Verdict::Conflict(_) => "conflict",
            };
            info!("{address} is asked for in the LAN: {outcome}");
            self.metrics.probes.get_or_create(&Outcome { outcome }).inc();
        }
        !verdicts.is_empty()
    }

    /// Notes what a look at a path showed. Returns whether that is news.
    fn looked(&mut self, at: SocketAddrV4, seen: std::io::Result<path::Verdict>) -> bool {
        let verdict = seen.unwrap_or_else(|error| {
            debug!("no look at {at}: {error}");
            path::Verdict::Unknown
        });
        self.paths.found(Instant::now(), at, verdict)
    }

    /// Notes what an endpoint answered. Returns whether that is news.
    fn answered(&mut self, question: &Question, answer: std::io::Result<()>) -> bool {
        let news = self.health.found(Instant::now(), question, answer.is_ok());
        match answer {
            _ if !news => {}
            Ok(()) => info!("endpoint {} is well", question.endpoint),
            Err(error) => warn!("endpoint {} is not well: {error}", question.endpoint),
        }
        news
    }

    fn lacks(&self, capability: &'static str) -> bool {
        let missing = Fault::CapabilityMissing(capability);
        self.capabilities.contains(&missing)
    }

    fn count(&mut self, started: Instant, repairing: bool, nat: bool, done: &[Op], digest: Option<&str>) {
        let changed = nat || !done.is_empty();
        let outcome = if changed { "changed" } else { "kept" };
        self.metrics.converges.get_or_create(&Outcome { outcome }).inc();
        if !changed {
            return;
        }
        let took = started.elapsed();
        if let Some(apply) = &self.metrics.apply {
            apply.observe(took.as_secs_f64());
        }
        let kinds = done.iter().map(Op::kind).chain(nat.then_some("nat"));
        let kinds: BTreeSet<&'static str> = kinds.collect();
        if repairing {
            self.fights += 1;
            for kind in &kinds {
                self.metrics.repairs.get_or_create(&Kind { kind }).inc();
            }
        }
        let verb = if repairing { "repaired" } else { "programmed" };
        let mut steps: Vec<String> = done.iter().take(10).map(ToString::to_string).collect();
        if done.len() > steps.len() {
            steps.push(format!("and {} more", done.len() - steps.len()));
        }
        if nat {
            steps.push("nat".to_owned());
        }
        let digest = digest.unwrap_or("in part");
        info!(config = %digest.get(..12).unwrap_or(digest), took_ms = took.as_millis(), "{verb}: {}", steps.join(", "));
    }

    /// How many endpoints there are behind what is served.
    fn count_endpoints(&self) {
        let endpoints = &self.metrics.endpoints;
        endpoints.clear();
        let (Some((config, _)), Some((desired, _))) = (&self.files.config, &self.verified) else { return };
        for (served, target) in desired.forwards() {
            let (Some(service), Some(now)) = (config.services.get(served), target.endpoints()) else {
                continue;
            };
            let port = ServedPort::new(service, served);
            for (state, count) in [("live", now.live.len()), ("draining", now.draining.len())] {
                let key = EndpointState { port: port.clone(), state };
                endpoints.get_or_create(&key).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    fn publish(&mut self, faults: &[Fault]) {
        let mut by_reason: BTreeMap<&'static str, String> = BTreeMap::new();
        for fault in faults {
            by_reason
                .entry(fault.reason())
                .and_modify(|said| *said = format!("{said}; {fault}"))
                .or_insert_with(|| fault.to_string());
        }
        for (reason, said) in &by_reason {
            if self.faults.get(reason) != Some(said) {
                warn!("{reason}: {said}");
            }
        }
        for reason in self.faults.keys().filter(|reason| !by_reason.contains_key(*reason)) {
            info!("{reason} is over");
        }
        self.faults = by_reason;

        let stopped = faults.iter().any(Fault::stops_serving);
        let withheld = !self.probes.withheld().is_empty();
        let placed = self.alone || self.view.joined;
        let ready = self.verified.is_some() && !stopped && !withheld && placed;
        let digest = self.verified.as_ref().and_then(|(_, digest)| digest.clone());
        let metrics = &self.metrics;
        metrics.ready.set(i64::from(ready));
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let active = self.alone || self.view.status.role == Role::Active;
        metrics.active.set(i64::from(active));
        metrics.addresses.set(count(self.report.addresses.len()));
        let ports = self.verified.as_ref().map_or(0, |(d, _)| d.forwards().len());
        metrics.ports.set(count(ports));
        self.count_endpoints();
        metrics.faults.clear();
        for reason in self.faults.keys() {
            metrics.faults.get_or_create(&Reason { reason }).set(1);
        }
        metrics.config.clear();
        if let Some(digest) = digest.clone() {
            metrics.config.get_or_create(&Digest { digest }).set(1);
        }
        let status = GatewayStatus {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            digest,
            seen: self.files.seen.clone(),
            addresses: self.report.addresses.iter().copied().map(IpAddr::V4).collect(),
            conflicts: self.probes.conflicts().map(|(a, mac)| (IpAddr::V4(a), arp::show(mac))).collect(),
            unhealthy: self.health.unhealthy(),
            interface: self.report.interface.clone(),
            election: (!self.alone).then(|| self.view.status.clone()),
            faults: self.faults.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        };
        self.published.set(status, ready);
    }
}

/// The wanted addresses that are there.
fn programmed(kernel: &Kernel, desired: &Desired) -> Vec<Ipv4Addr> {
    let there = |address: &&crate::kernel::Address| kernel.addresses.contains(address);
    desired.addresses.iter().filter(there).map(|a| a.address).collect()
}

fn lost() -> Fault {
    Fault::NetlinkFailed("the netlink connection was lost".to_owned())
}

/// The interface to speak and listen by, while it has a carrier.
fn port(link: &Link) -> Option<arp::Port> {
    let Link { index, carrier_changes, .. } = *link;
    link.mac.filter(|_| link.running).map(|mac| arp::Port { index, mac, carrier_changes })
}
