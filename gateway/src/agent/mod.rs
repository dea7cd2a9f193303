//! The agent: a loop of runs, each of which starts from the whole state.
//!
//! ```text
//!   files ──┐                                               ┌─ filter, source ranges, NAT
//!   netlink ┼─ wake ─▶ inputs ─▶ observe ─▶ desired ─▶ converge ─ settings, routes, rules,
//!   nft ────┤                                               │    addresses
//!   timer ──┘                                               └─ observe again: nothing left?
//!                                                                  │
//!                      wait ◀── report ◀── stale connections ◀─────┘
//!                (announce, probe, check)
//! ```
//!
//! Because each run reads and compares everything, nothing depends on having received
//! each event, nor on what a previous process left. A step that fails is a fault and is
//! retried; nothing ends the loop.
//!
//! | File | Step |
//! |---|---|
//! | `wake` | the sources of events |
//! | `inputs` | the mounted files, and what was pushed |
//! | `kept` | the copy of what was last pushed |
//! | `observe` | the kernel's state, with the roles of interfaces |
//! | `desired` | the state that the configuration asks for |
//! | `converge` | programming it, by `network` and the data path |
//! | `parts` | which Services are carried out |
//! | `stale_connections` | deleting connections that contradict it |
//! | `drain` | the end of a pod that another one succeeds |
//! | `priority`, `report` | what others learn: the election, status, metrics |
//! | `backoff` | how long to wait until the next run |

mod backoff;
mod converge;
mod desired;
mod drain;
mod inputs;
mod kept;
mod network;
mod observe;
mod parts;
mod priority;
mod report;
mod stale_connections;
mod wake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use lb_svc_crds::gateway::Interface;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use self::backoff::{Backoff, RETRY_MAX};
use self::converge::{Changes, converge};
use self::desired::Desired;
use self::drain::Drain;
use self::inputs::{Configured, Inputs};
use self::kept::Kept;
use self::network::{Kernel, Network};
use self::observe::Observation;
use self::report::{Links, Reporter};
use self::stale_connections::StaleConnections;
use self::wake::{Changed, WakeSources};
use crate::announce::layer2::Layer2;
use crate::announce::layer2::watchdog::BEAT;
use crate::capabilities::{self, NET_ADMIN, NET_RAW};
use crate::cli::Cli;
use crate::config;
use crate::config::sealed::Authority;
use crate::datapath::counters::{self, CounterCollector};
use crate::datapath::source_ports::{self, SourcePortCollector};
use crate::datapath::strays::{self, HandOver, next_in_ring};
use crate::datapath::{Datapath, Trust, background, ct_timeouts, filter};
use crate::fault::Fault;
use crate::l2::arp::format_mac;
use crate::limit::Limit;
use crate::podnet::cluster_ip::ForwardingChecks;
use crate::podnet::health_check::HealthChecks;
use crate::podnet::next_hop::{NextHop, NextHopMonitor};
use crate::proxy::Proxy;
use crate::route::desired::Lan;
use crate::route::model::{Link, NetworkState};
use crate::route::plan::{Op, forwarding_off};
use crate::telemetry::http::{self, Published};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::push::{Push, Pushes};

/// Runs the gateway until `terminate` is set, and then for as long as connections need it.
pub async fn run(cli: Cli, terminate: watch::Receiver<bool>) {
    let (metrics, registry) = Metrics::new(env!("CARGO_PKG_VERSION"));
    let (background, tables) = watch::channel(background::Desired::default());
    let counters = CounterCollector::new(metrics.clone(), tables.clone());
    let source_ports = SourcePortCollector::new(metrics.clone(), tables.clone());
    tokio::spawn(background::maintain(tables, [ct_timeouts::TIMEOUTS, counters::COUNTERS]));
    tokio::spawn(source_ports::relieve());
    let (hand_over, strays) = watch::channel(background::Desired::default());
    tokio::spawn(background::maintain(strays, [strays::STRAYS]));
    let published = Arc::new(Published::new(registry, vec![Box::new(counters), Box::new(source_ports)]));
    let (pod_ips, listen_on) = watch::channel(BTreeSet::new());
    let authority = Authority { gateway: cli.gateway_id.clone(), trusted: cli.trusted_keys.clone() };
    let (intake, pushes) = Pushes::new(authority.clone(), metrics.pushes.clone());
    tokio::spawn(http::serve(Arc::clone(&published), intake, listen_on, cli.port));
    let missing = capabilities::missing();
    let has_net_raw = !missing.contains(&Fault::CapabilityMissing(NET_RAW));
    let agent = Agent {
        wake: WakeSources::open(&[&cli.config_dir, &cli.pod_info_dir]),
        pushes,
        inputs: Inputs::new(authority, Kept::new(cli.state_dir.clone())),
        kernel: Kernel::default(),
        datapath: Datapath::default(),
        announcer: Layer2::new(cli.key_dir.clone(), has_net_raw, metrics.clone()),
        next_hop: NextHopMonitor::default(),
        forwarding: ForwardingChecks::default(),
        health: HealthChecks::default(),
        proxy: Proxy::new(metrics.clone()),
        stale: StaleConnections::new(metrics.clone()),
        background,
        hand_over,
        terminate,
        drain: None,
        reporter: Reporter::new(metrics, published, pod_ips),
        backoff: Backoff::default(),
        missing_capabilities: missing,
        links: Links::default(),
        verified: None,
        ipv6_refused: None,
        cli,
    };
    agent.run().await;
}

/// A desired state that the kernel was seen to have.
struct Verified {
    desired: Desired,
    /// The digest of its configuration, if nothing of that was left out.
    digest: Option<String>,
    /// The digests of the Services' parts of it of which nothing was left out.
    parts: BTreeMap<String, String>,
}

/// A configured pod whose interfaces are known.
struct Pod {
    configured: Configured,
    state: NetworkState,
    lan: Lan,
    primary: Link,
}

/// Which addresses the pod is not to have now.
struct Assignment {
    /// All of them on a standby that does not drain; otherwise those that are tentative.
    absent: BTreeSet<Ipv4Addr>,
    /// Those that are tentative.
    tentative: BTreeSet<Ipv4Addr>,
    /// Why addresses cannot be verified, or are in use by others.
    faults: Vec<Fault>,
}

struct Agent {
    cli: Cli,
    wake: WakeSources,
    /// Configurations that the controller hands over.
    pushes: mpsc::Receiver<Push>,
    inputs: Inputs,
    kernel: Kernel,
    datapath: Datapath,
    announcer: Layer2,
    next_hop: NextHopMonitor,
    forwarding: ForwardingChecks,
    health: HealthChecks,
    proxy: Proxy,
    stale: StaleConnections,
    background: watch::Sender<background::Desired<config::Services>>,
    hand_over: watch::Sender<background::Desired<Option<HandOver>>>,
    /// Whether the pod is to end.
    terminate: watch::Receiver<bool>,
    /// Begun when the pod is to end and another one can take over.
    drain: Option<Drain>,
    reporter: Reporter,
    backoff: Backoff,
    missing_capabilities: Vec<Fault>,
    /// As last observed.
    links: Links,
    verified: Option<Verified>,
    /// Of changes of IPv6, as of the last run that came to an end.
    ipv6_refused: Option<Limit>,
}

impl Agent {
    async fn run(mut self) {
        let mut changed = Changed::ALL;
        let heartbeat = self.announcer.heartbeat();
        loop {
            heartbeat.beat(Instant::now());
            if changed.nftables {
                self.datapath.distrust();
            }
            let trust = self.datapath.trust();
            if self.is_over().await {
                return;
            }
            if changed.files && self.inputs.read(&self.cli.config_dir, &self.cli.pod_info_dir) {
                self.backoff.forget_failures();
            }
            while let Ok(push) = self.pushes.try_recv() {
                self.take(push);
            }
            let faults = heartbeat.beside(self.run_once()).await;
            self.announcer.set_priority(priority::compute(self.links.up, &faults));
            self.publish(&faults);
            if let Err(fault) = heartbeat.beside(self.datapath.read_back()).await {
                debug!("{fault}");
            }
            self.update_background(trust);
            changed = self.wait(faults.iter().any(Fault::is_retried)).await;
        }
    }

    /// Takes a configuration that was pushed, or refuses it. Returns whether a run is to
    /// follow.
    fn take(&mut self, Push { sealed, answer }: Push) -> bool {
        if answer.is_closed() {
            return false;
        }
        let generation = sealed.generation;
        let taken = self.inputs.push(sealed);
        match &taken {
            Ok(true) => {
                debug!(generation, "configuration pushed");
                self.backoff.forget_failures();
            }
            Ok(false) => {}
            Err(refusal) => warn!("push refused: {refusal}"),
        }
        let is_new = taken == Ok(true);
        // Whoever pushed it may be gone by now.
        let _ = answer.send(taken.map(drop));
        is_new
    }

    /// One run. Returns every present fault.
    async fn run_once(&mut self) -> Vec<Fault> {
        let mut faults = self.missing_capabilities.clone();
        faults.extend(self.inputs.faults().cloned());
        match self.steps().await {
            Ok(more) => faults.extend(more),
            Err(fault) => {
                self.reporter.run_failed();
                if matches!(fault, Fault::NetlinkFailed(_)) {
                    self.kernel.disconnect();
                }
                self.datapath.distrust();
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        faults
    }

    async fn steps(&mut self) -> Result<Vec<Fault>, Fault> {
        let started = Instant::now();
        let Some(pod) = self.observe(started).await? else { return Ok(Vec::new()) };
        let assignment = self.assign(&pod).await?;
        self.program(started, pod, assignment).await
    }

    /// Observes the pod; `None` while it is not configured, or nothing can be changed.
    async fn observe(&mut self, started: Instant) -> Result<Option<Pod>, Fault> {
        let may_change = !self.missing_capabilities.contains(&Fault::CapabilityMissing(NET_ADMIN));
        let mut state = self.kernel.observe().await?;
        if may_change && self.datapath.trust() == Trust::Unverified && !filter::exists().await? {
            state = self.stop_forwarding(state).await?;
        }
        let configured = self.inputs.configured.clone();
        let config = configured.as_ref().map(|configured| &*configured.config);
        self.stale.own(config.into_iter().flat_map(|config| &config.addresses).map(|a| a.address));
        let observation = Observation::new(state, config, &self.inputs.networks, self.stale.owned());
        self.reporter.set_pod_ips(observation.pod_ips());
        let Observation { state, lan, primary } = observation;
        let (Some(configured), Some(lan)) = (configured, lan) else { return Ok(None) };
        self.links = Links::default();
        self.announcer.set_interface(None);
        let lan = lan.inspect_err(|_| self.announcer.stop(started))?;
        let primary = primary.inspect_err(|_| self.announcer.stop(started))?;
        self.announcer.set_interface(Some(&lan.link));
        let mac = lan.link.mac.map(format_mac).unwrap_or_default();
        self.links.interface = Some(Interface { name: lan.link.name.clone(), mac });
        Ok(may_change.then_some(Pod { configured, state, lan, primary }))
    }

    /// Stops forwarding, which a pod may inherit, until the filter stands; programming
    /// starts it again. Returns the state after that.
    async fn stop_forwarding(&mut self, state: NetworkState) -> Result<NetworkState, Fault> {
        let ops = forwarding_off(&state);
        if ops.is_empty() {
            return Ok(state);
        }
        info!("no filter yet: forwarding stopped");
        for op in &ops {
            self.kernel.apply(op).await?;
        }
        self.kernel.observe().await
    }

    /// Decides which addresses the pod is to have: by the election, and by conflict
    /// detection.
    async fn assign(&mut self, pod: &Pod) -> Result<Assignment, Fault> {
        let Pod { configured: Configured { config, .. }, state, lan: Lan { link: lan, .. }, primary } = pod;
        let trust = self.datapath.trust();
        let active = self.announcer.elect(lan, config, priority::FAILED, trust).await?;
        self.links.up = lan.running && self.is_next_hop_alive(state, primary) && primary.running;
        self.announcer.watch_routers(lan, config);
        let unverifiable =
            self.announcer.verify_addresses(state, lan, config, active, self.inputs.is_confirmed());
        let tentative = self.announcer.tentative();
        let mut absent = tentative.clone();
        // A standby has everything but the addresses. One that drains keeps them, silent
        // without the lease: with its last address an interface loses its routes and
        // neighbours, and replies their way.
        if !active && self.drain.is_none() {
            absent.extend(config.addresses.iter().map(|a| a.address));
        }
        let conflict = |(address, mac)| Fault::AddressConflict { address, mac };
        let faults = unverifiable.into_iter().chain(self.announcer.conflicts().map(conflict)).collect();
        Ok(Assignment { absent, tentative, faults })
    }

    /// Whether the pod network's next hop is alive, as far as known. It is monitored
    /// only where another pod may take over.
    fn is_next_hop_alive(&mut self, state: &NetworkState, primary: &Link) -> bool {
        let monitored = self.announcer.has_member();
        self.next_hop.set(monitored.then(|| NextHop::of(state, primary)).flatten())
    }

    /// Programs the kernel, and then announces the addresses that it has.
    async fn program(
        &mut self,
        started: Instant,
        Pod { configured: Configured { config, digest, .. }, state, lan, primary }: Pod,
        Assignment { absent, tentative, mut faults }: Assignment,
    ) -> Result<Vec<Fault>, Fault> {
        // Where the LAN's IPAM made routes, the pod's own table does not lead to the cluster.
        let outgoing = state.has_routes_to(lan.link.index).then(|| Arc::from(primary.name.as_str()));
        let forwards = self.health.set(started, &config.forwards, outgoing.clone());
        let listener = self.proxy.set(&forwards, outgoing.clone())?;
        let (mut desired, unreachable) =
            Desired::new(&config, &forwards, &state, &lan, &primary, &absent, listener);
        if self.announcer.has_member() {
            let next = lan.link.mac.and_then(|own| next_in_ring(own, self.announcer.peers()));
            desired.route = desired.route.of_several(next);
        }
        faults.extend(unreachable.into_iter().map(Fault::ClusterIpUnreachable));
        // What is proxied needs no more than sockets.
        let is_forwarded = |ip: &Ipv4Addr| {
            config::cluster_ips(&desired.datapath.nat.targets).any(|(_, forwarded)| forwarded == *ip)
        };
        let sockets_only = self.forwarding.sockets_only().filter(is_forwarded);
        faults.extend(sockets_only.map(Fault::ClusterIpSocketsOnly));
        self.stale.set_forwards(forwards);
        // Addresses of a previous process or configuration were the gateway's as well.
        let held = state.addresses.iter().filter(|a| a.interface == lan.link.index && a.global);
        self.stale.own(held.map(|a| a.address).filter(|a| !lan.foreign_addresses.contains(a)));

        let repairing = self.verified.as_ref().is_some_and(|verified| verified.desired == desired);
        self.links.addresses = desired.assigned(&state);
        let changes = converge(&mut self.datapath, &mut self.kernel, &desired, state).await?;
        self.links.addresses = desired.assigned(&changes.state);
        self.ipv6_refused = changes.ipv6_refused.clone();
        if let Some(op) = &changes.missing {
            return Err(Fault::NotConverged(format!("{op} does not last")));
        }
        let parts = parts::in_force(&config, &faults, &tentative);
        let digest = (faults.is_empty() && tentative.is_empty()).then_some(digest);
        self.changed(&changes, &desired, repairing);
        self.reporter.run_succeeded(&changes, repairing, started.elapsed(), digest.as_deref());
        self.stale.delete_suspected().await;
        // An address that was added, or whose link was down, is announced at once.
        let restart = changes.ops.iter().any(|op| matches!(op, Op::AddAddress(_) | Op::Up(_)));
        let link = changes.state.link(lan.link.index);
        self.announcer.announce(link, &self.links.addresses, restart);
        let targets = desired.datapath.targets().map(|(frontend, target)| (*frontend, target.clone()));
        self.forwarding.set(Instant::now(), &targets.collect(), outgoing);
        self.verified = Some(Verified { desired, digest, parts });
        Ok(faults)
    }

    /// Notes what a change of the kernel's state entails.
    fn changed(&mut self, changes: &Changes, desired: &Desired, repairing: bool) {
        if !changes.any() {
            return;
        }
        if repairing {
            self.backoff.repaired();
        }
        // Walking conntrack takes the kernel longer than everything else: not where
        // connections are only added to.
        let before = self.verified.as_ref().map(|verified| &verified.desired.datapath);
        if repairing || !before.is_some_and(|before| desired.datapath.keeps(before)) {
            self.stale.suspect();
        }
    }

    /// Sets what the background tables are programmed for, once it is served. `trust` is
    /// that before the run.
    fn update_background(&self, trust: Trust) {
        let (Some(Configured { config, .. }), Some(_)) = (&self.inputs.configured, &self.verified) else {
            return;
        };
        let services = config::services(&config.forwards);
        let suspect = trust == Trust::Unverified;
        if self.announcer.has_member()
            && let Some(lan) = &self.links.interface
        {
            let hand_over = HandOver::new(&lan.name, &services, self.announcer.peers());
            self.hand_over.send_if_modified(|desired| desired.set(hand_over, suspect));
        }
        self.background.send_if_modified(|desired| desired.set(services, suspect));
    }

    /// Waits until there is a reason for a run; announces, probes and checks meanwhile.
    /// `failed` says that the last run is to be retried.
    async fn wait(&mut self, failed: bool) -> Changed {
        let pause = self.backoff.after_run(failed);
        let until = Instant::now() + pause;
        let heartbeat = self.announcer.heartbeat();
        loop {
            heartbeat.beat(Instant::now());
            if self.announcer.poll() {
                return Changed::OWN;
            }
            self.forwarding.start(Instant::now());
            self.health.start(Instant::now());
            let beat = self.announcer.has_member().then(|| Instant::now() + BEAT);
            let drain = self.drain.as_ref().map(Drain::due);
            let due = [
                self.announcer.due(),
                self.forwarding.due(),
                self.health.due(),
                self.stale.due(),
                beat,
                drain,
            ];
            let due = due.into_iter().flatten().fold(until, Instant::min);
            let own = tokio::select! {
                changed = self.wake.wait() => {
                    tokio::time::sleep(self.backoff.debounce()).await;
                    let more = self.wake.take();
                    return Changed {
                        files: changed.files || more.files,
                        network: true,
                        nftables: changed.nftables || more.nftables,
                    };
                }
                elected = self.announcer.wait() => elected,
                changed = self.forwarding.next() => changed,
                changed = self.health.next() => changed,
                () = self.next_hop.changed() => true,
                Ok(()) = self.terminate.changed() => true,
                Some(push) = self.pushes.recv() => self.take(push),
                () = tokio::time::sleep_until(due.into()) => false,
            };
            if own {
                return Changed::OWN;
            }
            let now = Instant::now();
            if self.drain.as_ref().is_some_and(|drain| drain.due() <= now) {
                return Changed::OWN;
            }
            heartbeat.beside(self.stale.delete_again(now)).await;
            if until <= now {
                self.wake.watch_directories();
                self.backoff.quiet();
                // Reading nftables may take a process, so not with every retry.
                return Changed { nftables: pause >= RETRY_MAX, ..Changed::ALL };
            }
        }
    }
}
