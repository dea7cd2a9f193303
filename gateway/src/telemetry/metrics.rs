//! The gateway's metrics, as OpenMetrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::config::Frontend;
use lb_svc_election::Counters;

/// Label: the kind of object that was repaired.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// nat, route, rule, neighbour, address, devconf or link.
    pub kind: &'static str,
}

/// Label: the cause of a fault or rejection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// A fault's reason; full or unreachable.
    pub reason: &'static str,
}

/// Label: a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Digest {
    /// SHA-256 of the file.
    pub digest: String,
}

/// Label: the result of a run of the agent, of a probe, or of a push.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// kept, changed or failed; free or conflict; admitted, or why not.
    pub outcome: &'static str,
}

/// Labels: a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServedPort {
    /// The Service, `<namespace>/<name>`.
    pub service: String,
    /// The address.
    pub address: String,
    /// tcp or udp.
    pub protocol: &'static str,
    /// The port.
    pub port: String,
}

impl ServedPort {
    /// The labels of a frontend of `service`.
    pub fn new(service: &str, frontend: &Frontend) -> Self {
        Self {
            service: service.to_owned(),
            address: frontend.address.to_string(),
            protocol: frontend.transport.name(),
            port: frontend.port.to_string(),
        }
    }
}

/// Labels: a direction of a frontend's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Flow {
    /// The port.
    #[prometheus(flatten)]
    pub port: ServedPort,
    /// in: from clients; out: to clients.
    pub direction: &'static str,
}

/// Labels: endpoints of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndpointState {
    /// The port.
    #[prometheus(flatten)]
    pub port: ServedPort,
    /// live: with new connections; draining: without.
    pub state: &'static str,
}

/// Without labels, of a metric that is not always there.
pub type Unlabelled = [(String, String); 0];

/// All metrics; a clone shares them.
#[derive(Clone, Default)]
pub struct Metrics {
    /// 1 for the converged configuration.
    pub config: Family<Digest, Gauge>,
    /// 1 if ready.
    pub ready: Gauge,
    /// 1 if this pod owns the addresses: it has no election, or is elected.
    pub active: Gauge,
    /// Other pods of the gateway that the election hears; absent without an election.
    pub peers: Family<Unlabelled, Gauge>,
    /// Changes of role in the election.
    pub role_changes: Counter<u64, AtomicU64>,
    /// Times that two pods were active at once.
    pub splits: Counter<u64, AtomicU64>,
    /// Times that the election acted an interval or more after its deadline.
    pub late: Counter<u64, AtomicU64>,
    /// Frames of the election that were rejected.
    pub rejected: Family<Reason, Counter>,
    /// Addresses programmed.
    pub addresses: Gauge,
    /// Ports served.
    pub ports: Gauge,
    /// Endpoints of frontends with endpoint targets.
    pub endpoints: Family<EndpointState, Gauge>,
    /// Comparisons of the kernel with the configuration.
    pub converges: Family<Outcome, Counter>,
    /// Configurations that were pushed.
    pub pushes: Family<Outcome, Counter>,
    /// Changes by others that were undone.
    pub repairs: Family<Kind, Counter>,
    /// Time from noticing a difference to its verified end.
    pub apply: Option<Histogram>,
    /// 1 for each present fault.
    pub faults: Family<Reason, Gauge>,
    /// 1 for each present limit.
    pub limits: Family<Reason, Gauge>,
    /// Gratuitous ARP frames sent.
    pub announcements: Counter<u64, AtomicU64>,
    /// Addresses probed for on the LAN, by result.
    pub probes: Family<Outcome, Counter>,
    /// Stale conntrack entries deleted.
    pub cut: Counter<u64, AtomicU64>,
    /// Connections that clients opened, as the kernel counts them.
    pub connections: Family<ServedPort, Counter>,
    /// Packets of clients' connections.
    pub packets: Family<Flow, Counter>,
    /// Bytes of them, IP headers included.
    pub bytes: Family<Flow, Counter>,
    /// Packets of clients outside the source ranges.
    pub dropped: Family<ServedPort, Counter>,
    /// Connections that the proxy has.
    pub proxied: Gauge,
    /// Most of them.
    pub proxied_limit: Gauge,
    /// Connections that the proxy reset without having relayed anything.
    pub proxy_refused: Family<Reason, Counter>,
    /// Source ports in use towards the fullest target of a frontend.
    pub source_ports: Family<ServedPort, Gauge>,
    /// Source ports that exist towards a target.
    pub source_ports_limit: Family<ServedPort, Gauge>,
    /// Entries in the pod's connection table.
    pub conntrack_entries: Gauge,
    /// Most entries in it.
    pub conntrack_limit: Gauge,
}

impl Metrics {
    /// The metrics, and the registry that writes them.
    pub fn new(build: &str) -> (Self, Registry) {
        let buckets = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
        let apply = Histogram::new(buckets);
        let metrics = Self { apply: Some(apply.clone()), ..Self::default() };
        let mut registry = Registry::with_prefix("lb_svc_gateway");
        let r = &mut registry;
        r.register("build", "The gateway's build", Info::new([("build", build.to_owned())]));
        r.register("config", "The configuration carried out", metrics.config.clone());
        r.register("ready", "Whether the addresses are served", metrics.ready.clone());
        r.register("active", "Whether the addresses are this pod's", metrics.active.clone());
        r.register("peers", "Other pods of the gateway that are heard", metrics.peers.clone());
        r.register("role_changes", "Changes of role in the election", metrics.role_changes.clone());
        r.register("splits", "Times that two pods were active at once", metrics.splits.clone());
        r.register(
            "late",
            "Times that the election had to wait for a processor for an interval or more",
            metrics.late.clone(),
        );
        r.register(
            "election_rejected",
            "Frames of the election that did not count",
            metrics.rejected.clone(),
        );
        r.register("addresses", "Addresses programmed", metrics.addresses.clone());
        r.register("ports", "Ports served", metrics.ports.clone());
        r.register("endpoints", "Endpoints that ports lead straight to", metrics.endpoints.clone());
        r.register(
            "converges",
            "Comparisons of the kernel with the configuration",
            metrics.converges.clone(),
        );
        r.register("pushes", "Configurations that were pushed", metrics.pushes.clone());
        r.register("repairs", "Changes by others that were undone", metrics.repairs.clone());
        r.register_with_unit("apply", "From noticing a difference to its verified end", Unit::Seconds, apply);
        r.register(
            "faults",
            "What keeps the gateway from carrying out its configuration",
            metrics.faults.clone(),
        );
        r.register("limits", "What the gateway does less well than it should", metrics.limits.clone());
        r.register("announcements", "Gratuitous ARP frames sent", metrics.announcements.clone());
        r.register("probes", "Addresses that the LAN was asked for", metrics.probes.clone());
        r.register("conntrack_cut", "Stale connections cut", metrics.cut.clone());
        r.register("connections", "Connections that clients opened", metrics.connections.clone());
        r.register("packets", "Packets of clients' connections", metrics.packets.clone());
        r.register("bytes", "Bytes of clients' connections, with their IP headers", metrics.bytes.clone());
        r.register(
            "dropped_packets",
            "Packets of clients outside spec.loadBalancerSourceRanges",
            metrics.dropped.clone(),
        );
        r.register("proxied_connections", "Connections that the proxy has", metrics.proxied.clone());
        r.register(
            "proxied_connections_limit",
            "Connections that it takes; 0 while nothing is proxied",
            metrics.proxied_limit.clone(),
        );
        r.register(
            "proxy_refused",
            "Connections that the proxy reset: one too many, or without a target that accepts",
            metrics.proxy_refused.clone(),
        );
        r.register(
            "source_ports",
            "Source ports taken towards the target of a port that has the most connections",
            metrics.source_ports.clone(),
        );
        r.register(
            "source_ports_limit",
            "Source ports that there are towards each target",
            metrics.source_ports_limit.clone(),
        );
        r.register(
            "conntrack_entries",
            "Entries in the pod's connection table",
            metrics.conntrack_entries.clone(),
        );
        r.register("conntrack_limit", "Entries that there may be in it", metrics.conntrack_limit.clone());
        (metrics, registry)
    }

    /// What a member of the election counts.
    pub fn election(&self) -> ElectionMetrics {
        let rejected = |reason| self.rejected.get_or_create(&Reason { reason }).clone();
        ElectionMetrics {
            role_changes: self.role_changes.clone(),
            splits: self.splits.clone(),
            late: self.late.clone(),
            dropped: rejected("dropped"),
            malformed: rejected("malformed"),
            foreign: rejected("foreign"),
            bad_tag: rejected("bad_tag"),
            replayed: rejected("replayed"),
            unanswering: rejected("unanswering"),
        }
    }
}

/// The metrics of the election, which are counted without a lock: whoever is writing
/// metrics does not hold the election up.
pub struct ElectionMetrics {
    pub(crate) role_changes: Counter<u64, AtomicU64>,
    splits: Counter<u64, AtomicU64>,
    late: Counter<u64, AtomicU64>,
    /// Frames that the kernel dropped, as too many were queued.
    pub(crate) dropped: Counter,
    malformed: Counter,
    foreign: Counter,
    bad_tag: Counter,
    replayed: Counter,
    unanswering: Counter,
}

impl ElectionMetrics {
    /// Adds what the election counted since `before`.
    pub(crate) fn count(&self, before: &Counters, now: &Counters) {
        self.splits.inc_by(now.splits.saturating_sub(before.splits));
        self.late.inc_by(now.overloaded.saturating_sub(before.overloaded));
        for (counter, before, now) in [
            (&self.malformed, before.malformed, now.malformed),
            (&self.foreign, before.foreign, now.foreign),
            (&self.bad_tag, before.bad_tag, now.bad_tag),
            (&self.replayed, before.replayed, now.replayed),
            (&self.unanswering, before.unacknowledging, now.unacknowledging),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
    }
}
