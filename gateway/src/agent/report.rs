//! What the agent reports: status, readiness, metrics and log lines.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use lb_svc_crds::feature;
use lb_svc_crds::gateway::{GatewayStatus, Interface};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tracing::{info, warn};

use super::converge::Changes;
use super::inputs::Configured;
use super::{Agent, Verified};
use crate::config::{Forwards, Frontend, Target};
use crate::fault::Fault;
use crate::l2::arp::format_mac;
use crate::limit::Limit;
use crate::telemetry::http::Published;
use crate::telemetry::metrics::{Digest, EndpointState, Kind, Metrics, Outcome, Reason, ServedPort};

/// The sentences of the present faults or limits, by reason.
pub type Sentences = BTreeMap<&'static str, String>;

/// Sentences by reason; several of one reason are joined.
pub fn by_reason(sentences: impl IntoIterator<Item = (&'static str, String)>) -> Sentences {
    let mut by_reason = Sentences::new();
    for (reason, sentence) in sentences {
        by_reason.entry(reason).and_modify(|text| *text = format!("{text}; {sentence}")).or_insert(sentence);
    }
    by_reason
}

/// What a run found on the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Whether LAN and primary interface have a carrier, and the next hop is alive.
    pub up: bool,
    /// The LAN interface.
    pub interface: Option<Interface>,
    /// The gateway's addresses on it.
    pub addresses: Vec<Ipv4Addr>,
}

/// Conditions of being ready, besides faults.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// A run has verified the kernel's state.
    pub verified: bool,
    /// No address is tentative.
    pub addresses_verified: bool,
    /// The pod has no election, or has joined it.
    pub joined: bool,
}

/// Whether the pod is ready.
pub fn is_ready(conditions: Conditions, faults: &[Fault]) -> bool {
    let Conditions { verified, addresses_verified, joined } = conditions;
    verified && addresses_verified && joined && !faults.iter().any(Fault::stops_serving)
}

/// Publishes reports.
pub struct Reporter {
    metrics: Metrics,
    published: Arc<Published>,
    pod_ips: watch::Sender<BTreeSet<IpAddr>>,
    /// The faults that were logged.
    faults: Sentences,
    /// The limits that were logged.
    limits: Sentences,
    /// The digest that metrics show.
    digest: Option<String>,
    /// The endpoints that metrics show.
    endpoints: HashSet<EndpointState>,
}

impl Reporter {
    /// A reporter that has not reported anything yet. `pod_ips` is where the HTTP
    /// server listens.
    pub fn new(
        metrics: Metrics,
        published: Arc<Published>,
        pod_ips: watch::Sender<BTreeSet<IpAddr>>,
    ) -> Self {
        Self {
            metrics,
            published,
            pod_ips,
            faults: Sentences::new(),
            limits: Sentences::new(),
            digest: None,
            endpoints: HashSet::new(),
        }
    }

    /// Sets the addresses that the HTTP server listens on. Without any, they stay as they
    /// were: they may be gone only for a moment.
    pub fn set_pod_ips(&self, addresses: BTreeSet<IpAddr>) {
        self.pod_ips.send_if_modified(|now| {
            let moved = !addresses.is_empty() && *now != addresses;
            if moved {
                *now = addresses;
            }
            moved
        });
    }

    /// Counts a failed run.
    pub fn run_failed(&self) {
        self.metrics.converges.get_or_create(&Outcome { outcome: "failed" }).inc();
    }

    /// Counts and logs the changes of a run. `digest` is the configuration's, if all of
    /// it was programmed.
    pub fn run_succeeded(&self, changes: &Changes, repaired: bool, took: Duration, digest: Option<&str>) {
        let outcome = if changes.any() { "changed" } else { "kept" };
        self.metrics.converges.get_or_create(&Outcome { outcome }).inc();
        if !changes.any() {
            return;
        }
        if let Some(apply) = &self.metrics.apply {
            apply.observe(took.as_secs_f64());
        }
        if repaired {
            for kind in changes.kinds() {
                self.metrics.repairs.get_or_create(&Kind { kind }).inc();
            }
        }
        let event = if repaired { "repaired" } else { "programmed" };
        let digest = digest.unwrap_or("in part");
        let config = digest.get(..12).unwrap_or(digest);
        info!(%config, took_ms = took.as_millis(), "{event}: {}", changes.summary());
    }

    /// Publishes the status and everything that metrics show of it. `owner` says that
    /// this pod owns the addresses.
    pub fn publish(&mut self, status: GatewayStatus, ready: bool, owner: bool) {
        let metrics = &self.metrics;
        metrics.ready.set(i64::from(ready));
        metrics.active.set(i64::from(owner));
        metrics.addresses.set(count(status.addresses.len()));
        match &status.election {
            Some(election) => {
                metrics.peers.get_or_create(&[]).set(count(election.peers.len()));
            }
            None => {
                metrics.peers.remove(&[]);
            }
        }
        // A scrape may be written meanwhile: nothing that stays is taken away.
        if self.digest != status.digest {
            if let Some(digest) = self.digest.take() {
                metrics.config.remove(&Digest { digest });
            }
            self.digest.clone_from(&status.digest);
        }
        if let Some(digest) = status.digest.clone() {
            metrics.config.get_or_create(&Digest { digest }).set(1);
        }
        self.published.set(status, ready);
    }

    /// Shows the frontends that are served, and their endpoints, in the metrics.
    pub fn show_targets<'a>(
        &mut self,
        forwards: &Forwards,
        targets: impl Iterator<Item = (&'a Frontend, &'a Target)>,
    ) {
        let mut ports = 0;
        let mut gone = std::mem::take(&mut self.endpoints);
        for (frontend, target) in targets {
            ports += 1;
            let (Some(forward), Some(endpoints)) = (forwards.get(frontend), target.endpoints()) else {
                continue;
            };
            let port = ServedPort::new(&forward.service, frontend);
            for (state, number) in [("live", endpoints.live.len()), ("draining", endpoints.draining.len())] {
                let labels = EndpointState { port: port.clone(), state };
                self.metrics.endpoints.get_or_create(&labels).set(count(number));
                gone.remove(&labels);
                self.endpoints.insert(labels);
            }
        }
        self.metrics.ports.set(ports);
        for labels in gone {
            self.metrics.endpoints.remove(&labels);
        }
    }

    /// Logs faults that appeared or are over, shows the present ones in the metrics, and
    /// returns them for the status.
    pub fn show_faults(&mut self, faults: &[Fault]) -> BTreeMap<String, String> {
        let faults = by_reason(faults.iter().map(|fault| (fault.reason(), fault.to_string())));
        show(&mut self.faults, faults, "fault", &self.metrics.faults)
    }

    /// The same of limits.
    pub fn show_limits(&mut self, limits: &[Limit]) -> BTreeMap<String, String> {
        let limits = by_reason(limits.iter().map(|limit| (limit.reason(), limit.to_string())));
        show(&mut self.limits, limits, "limit", &self.metrics.limits)
    }
}

fn show(
    before: &mut Sentences,
    now: Sentences,
    what: &str,
    metric: &Family<Reason, Gauge>,
) -> BTreeMap<String, String> {
    for (reason, text) in &now {
        if before.get(reason) != Some(text) {
            warn!("{reason}: {text}");
        }
    }
    for reason in before.keys().filter(|reason| !now.contains_key(*reason)) {
        info!(reason, "{what} cleared");
        metric.remove(&Reason { reason });
    }
    for reason in now.keys() {
        metric.get_or_create(&Reason { reason }).set(1);
    }
    *before = now;
    before.iter().map(|(reason, text)| ((*reason).to_owned(), text.clone())).collect()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Agent {
    /// Every present limit.
    fn limits(&self) -> Vec<Limit> {
        let mut limits = self.datapath.limits();
        limits.extend(self.ipv6_refused.clone());
        limits.extend(self.proxy.limit());
        let cluster_ips = self.forwarding.silent().map(|ip| format!("ClusterIP {ip}"));
        let config = self.inputs.configured.as_ref().map(|configured| &*configured.config);
        limits.extend(config.into_iter().flat_map(|config| self.announcer.limits(config)));
        let ports = config.map(|config| self.health.silent(&config.forwards)).unwrap_or_default();
        let endpoints = ports.into_iter().map(|port| format!("the endpoints of port {port}"));
        let silent: Vec<String> = cluster_ips.chain(endpoints).collect();
        limits.extend((!silent.is_empty()).then_some(Limit::BackendsUnreachable(silent)));
        limits
    }

    pub(super) fn publish(&mut self, faults: &[Fault]) {
        let conditions = Conditions {
            verified: self.verified.is_some(),
            addresses_verified: self.announcer.tentative().is_empty(),
            joined: self.announcer.has_joined(),
        };
        if let Some(Verified { desired, .. }) = &self.verified
            && let Some(Configured { config, .. }) = &self.inputs.configured
        {
            self.reporter.show_targets(&config.forwards, desired.datapath.targets());
        }
        let limits = self.limits();
        let conflicts = self.announcer.conflicts();
        let status = GatewayStatus {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            digest: self.verified.as_ref().and_then(|verified| verified.digest.clone()),
            seen: self.inputs.seen.clone(),
            generation: self.inputs.configured.as_ref().and_then(|configured| configured.generation),
            addresses: self.links.addresses.iter().copied().map(IpAddr::V4).collect(),
            conflicts: conflicts.map(|(a, mac)| (IpAddr::V4(a), format_mac(mac))).collect(),
            unhealthy: self.health.unhealthy(),
            interface: self.links.interface.clone(),
            election: self.announcer.election_status(),
            faults: self.reporter.show_faults(faults),
            limits: self.reporter.show_limits(&limits),
            features: feature::names(),
            parts: Some(self.verified.as_ref().map(|verified| verified.parts.clone()).unwrap_or_default()),
        };
        let ready = is_ready(conditions, faults);
        self.reporter.publish(status, ready, self.announcer.is_owner());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::ElectionStatus;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn faults_of_one_reason_are_joined() {
        let unreachable = |last| Fault::ClusterIpUnreachable([10, 96, 0, last].into());
        let faults = [unreachable(1), Fault::NoDefaultRoute, unreachable(2)];
        let faults = by_reason(faults.iter().map(|fault| (fault.reason(), fault.to_string())));
        assert_eq!(faults.keys().copied().collect::<Vec<_>>(), ["ClusterIpUnreachable", "NoDefaultRoute"]);
        let text = format!("{}; {}", unreachable(1), unreachable(2));
        assert_eq!(faults["ClusterIpUnreachable"], text);
    }

    #[test]
    fn ready_needs_every_condition_and_no_severe_fault() {
        let all = Conditions { verified: true, addresses_verified: true, joined: true };
        assert!(is_ready(all, &[]));
        assert!(is_ready(all, &[Fault::NetworkStatusInvalid(String::new())]), "it serves all the same");
        assert!(!is_ready(all, &[Fault::NoDefaultRoute]));
        assert!(!is_ready(Conditions { verified: false, ..all }, &[]));
        assert!(!is_ready(Conditions { addresses_verified: false, ..all }, &[]));
        assert!(!is_ready(Conditions { joined: false, ..all }, &[]));
    }

    #[test]
    fn pod_ips_stay_while_there_are_none() {
        let published = Arc::new(Published::new(Registry::default(), Vec::new()));
        let (sender, receiver) = watch::channel(BTreeSet::new());
        let reporter = Reporter::new(Metrics::default(), published, sender);
        let addresses = BTreeSet::from([IpAddr::from([10, 16, 0, 5])]);
        reporter.set_pod_ips(addresses.clone());
        reporter.set_pod_ips(BTreeSet::new());
        assert_eq!(*receiver.borrow(), addresses);
    }

    #[test]
    fn peers_are_shown_where_there_is_an_election() {
        let (metrics, registry) = Metrics::new("test");
        let published = Arc::new(Published::new(Registry::default(), Vec::new()));
        let mut reporter = Reporter::new(metrics, published, watch::channel(BTreeSet::new()).0);
        let shown = |reporter: &mut Reporter, peers: Option<&[&str]>| {
            let election = peers.map(|peers| ElectionStatus {
                peers: peers.iter().map(ToString::to_string).collect(),
                ..ElectionStatus::default()
            });
            reporter.publish(GatewayStatus { election, ..GatewayStatus::default() }, true, true);
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.lines().find_map(|line| line.strip_prefix("lb_svc_gateway_peers{} ")).map(str::to_owned)
        };
        assert_eq!(shown(&mut reporter, None), None);
        assert_eq!(shown(&mut reporter, Some(&["b", "c"])).as_deref(), Some("2"));
        assert_eq!(shown(&mut reporter, Some(&[])).as_deref(), Some("0"));
        assert_eq!(shown(&mut reporter, None), None);
    }

    #[test]
    fn faults_in_metrics_follow_the_run() {
        let published = Arc::new(Published::new(Registry::default(), Vec::new()));
        let metrics = Metrics::default();
        let mut reporter = Reporter::new(metrics.clone(), published, watch::channel(BTreeSet::new()).0);
        let shown = reporter.show_faults(&[Fault::NoDefaultRoute]);
        assert_eq!(shown.keys().collect::<Vec<_>>(), ["NoDefaultRoute"]);
        let reason = Reason { reason: "NoDefaultRoute" };
        assert_eq!(metrics.faults.get_or_create(&reason).get(), 1);
        let limited = reporter.show_limits(&[Limit::Ipv6NotBlocked("no".to_owned())]);
        assert_eq!(limited.keys().collect::<Vec<_>>(), ["Ipv6NotBlocked"]);
        assert!(reporter.show_faults(&[]).is_empty());
        assert_eq!(metrics.faults.get_or_create(&reason).get(), 0);
    }
}
