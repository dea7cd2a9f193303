//! The masquerade's source ports: how many are in use, and what helps when they run
//! out.
//!
//! Every forwarded connection has the pod's one address as its source. So a target
//! can have no more connections at a time than there are ports, and a closed
//! connection occupies its port for as long as conntrack remembers it.
//!
//! When no other port is free, the kernel gives the port of a closed connection to
//! a new one if that begins with a later sequence number (Linux 6.5). If the client
//! closed first, this works. If the server did, the server is in TIME_WAIT for a
//! minute, and with TCP timestamps it accepts a new connection only if they
//! increase: those of another client do not in half of the cases, and the server
//! drops the SYN (PAWS, RFC 7323). Without timestamps the server checks only the
//! sequence number, which the gateway's kernel has seen to. So TCP timestamps are
//! stripped from SYNs to targets near exhaustion by connections that they closed.
//!
//! Not for all clients, nor always: a client that closes first needs timestamps to
//! reuse its own port soon (`net.ipv4.tcp_tw_reuse`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use lb_svc_crds::gateway::Transport;
use tokio::sync::watch;
use tracing::{debug, info};

use super::Trust;
use super::background;
use super::conntrack::{self, Entry};
use super::nft::log_once::LogOnce;
use super::nft::table::{Before, Table};
use crate::config::{Frontend, Services};
use crate::off_loop::off_loop;
use crate::telemetry::collectors::Collector;
use crate::telemetry::metrics::{Metrics, ServedPort};

/// Number of ports that the kernel chooses from for a client whose own port is not
/// below 1024: 1024 to 65535.
pub const LIMIT: u32 = 64_512;

const TABLE: &str = "ip lb-svc-crowded";
/// A target with more connections that it closed is near exhaustion. With fewer the
/// kernel nearly always finds a free port.
const NEAR_EXHAUSTION: u32 = LIMIT / 4 * 3;
/// A target is near exhaustion until it has no more than this number.
const RELIEVED: u32 = LIMIT / 2;
/// Interval of the checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A check takes longer with more connections: at most this fraction (one part in so
/// many) of the time is spent.
const FRACTION: u32 = 10;

/// The number of source ports in use towards a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InUse {
    all: u32,
    /// By connections that the server was the first to close.
    closed_by_server: u32,
}

/// The source ports in use, by frontend and target.
#[derive(Debug, Default)]
pub struct Usage(BTreeMap<(Frontend, SocketAddrV4), InUse>);

impl Usage {
    /// Reads the current usage.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read() -> io::Result<Self> {
        let mut usage = Self::default();
        conntrack::list(|entry| usage.count(&entry)).await?;
        Ok(usage)
    }

    fn count(&mut self, entry: &Entry<'_>) {
        // Without NAT there is no masquerade.
        if *entry.answers.ip() != entry.to.address {
            let in_use = self.0.entry((entry.to, entry.answers)).or_default();
            in_use.all += 1;
            in_use.closed_by_server += u32::from(entry.closed_by_server);
        }
    }

    /// The usage by target: frontends with the same target share its source ports.
    fn targets(&self) -> BTreeMap<(Transport, SocketAddrV4), InUse> {
        let mut targets: BTreeMap<_, InUse> = BTreeMap::new();
        for ((frontend, target), in_use) in &self.0 {
            let sum = targets.entry((frontend.transport, *target)).or_default();
            sum.all += in_use.all;
            sum.closed_by_server += in_use.closed_by_server;
        }
        targets
    }

    /// The source ports in use of each frontend, at the fullest of its targets.
    pub fn fullest(&self) -> BTreeMap<Frontend, u32> {
        let targets = self.targets();
        let mut fullest = BTreeMap::new();
        for (frontend, target) in self.0.keys() {
            let most: &mut u32 = fullest.entry(*frontend).or_default();
            *most = targets[&(frontend.transport, *target)].all.max(*most);
        }
        fullest
    }

    /// The targets near exhaustion; those of `before` are until relieved.
    fn near_exhaustion(&self, before: &Exhausted) -> Exhausted {
        let most = |target: &SocketAddrV4| if before.contains(target) { RELIEVED } else { NEAR_EXHAUSTION };
        let targets = self.targets().into_iter();
        let exhausted = targets.filter(|((_, target), in_use)| in_use.closed_by_server > most(target));
        exhausted.map(|((_, target), _)| target).collect()
    }
}

/// Targets near exhaustion.
type Exhausted = BTreeSet<SocketAddrV4>;

/// Reads how many source ports are in use when metrics are scraped.
pub struct SourcePortCollector {
    metrics: Metrics,
    background: watch::Receiver<background::Desired<Services>>,
}

impl SourcePortCollector {
    /// A collector for the frontends of the background tables.
    pub fn new(metrics: Metrics, background: watch::Receiver<background::Desired<Services>>) -> Self {
        Self { metrics, background }
    }

    async fn read(&self) -> io::Result<()> {
        let metrics = &self.metrics;
        let fullest = Usage::read().await?.fullest();
        let size = conntrack::size().await?;
        metrics.source_ports.clear();
        metrics.source_ports_limit.clear();
        for (frontend, service) in &self.background.borrow().input {
            let port = ServedPort::new(service, frontend);
            let used = fullest.get(frontend).copied().unwrap_or_default();
            metrics.source_ports.get_or_create(&port).set(used.into());
            metrics.source_ports_limit.get_or_create(&port).set(LIMIT.into());
        }
        metrics.conntrack_entries.set(size.entries.into());
        metrics.conntrack_limit.set(size.limit.into());
        Ok(())
    }
}

impl Collector for SourcePortCollector {
    fn collect(&self) -> BoxFuture<'_, io::Result<()>> {
        self.read().boxed()
    }
}

/// Strips TCP timestamps towards targets near exhaustion, for ever.
pub async fn relieve() {
    let mut table = Table::new(TABLE);
    // Unknown at first: another process may have left a table.
    let mut exhausted = None;
    let mut failure = LogOnce::default();
    loop {
        let began = Instant::now();
        let failed = match check(exhausted.as_ref()).await {
            Ok(now) if now.is_empty() && exhausted.as_ref() == Some(&now) => None,
            Ok(now) => {
                if now != *exhausted.get_or_insert_default() {
                    info!(targets = ?now, "source ports near exhaustion: stripping TCP timestamps");
                }
                let ensured =
                    table.ensure(now.clone(), Trust::Unverified, |before| script(&now, &before)).await;
                exhausted = Some(now);
                ensured.err()
            }
            Err(error) => {
                debug!(%error, "connection table not read");
                None
            }
        };
        failure.log("targets near source-port exhaustion are not relieved", failed.as_ref());
        tokio::time::sleep(INTERVAL.max(began.elapsed() * FRACTION)).await;
    }
}

async fn check(before: Option<&Exhausted>) -> io::Result<Exhausted> {
    let none = Exhausted::new();
    let before = before.unwrap_or(&none);
    // Most gateways never come near, and skip the listing.
    if before.is_empty() && conntrack::size().await?.entries <= NEAR_EXHAUSTION {
        return Ok(none);
    }
    Ok(off_loop(Usage::read).await?.near_exhaustion(before))
}

fn script(exhausted: &Exhausted, before: &Before<'_, Exhausted>) -> String {
    match before {
        Before::AsFound(contents) if exhausted.is_empty() && contents.is_empty() => return String::new(),
        Before::AsApplied(before) if exhausted == *before => return String::new(),
        _ if exhausted.is_empty() => return format!("delete table {TABLE}\n"),
        _ => {}
    }
    let mut text = format!(
        "add table {TABLE}
add set {TABLE} targets {{ type ipv4_addr . inet_service; }}
add chain {TABLE} forwarded {{ type filter hook forward priority 0; policy accept; }}
flush table {TABLE}
flush set {TABLE} targets
add rule {TABLE} forwarded tcp flags & (syn | ack) == syn ip daddr . tcp dport @targets reset tcp option timestamp
"
    );
    for target in exhausted {
        let _ = writeln!(text, "add element {TABLE} targets {{ {} . {} }}", target.ip(), target.port());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Tcp, Udp};

    fn entry(port: u16, transport: Transport, answers: &str, closed_by_server: bool) -> Entry<'static> {
        let to = Frontend { address: [172, 18, 0, 18].into(), transport, port };
        let answers = answers.parse().unwrap();
        Entry {
            from: [192, 0, 2, 7].into(),
            to,
            answers,
            closed_by_server,
            is_open: !closed_by_server,
            message: &[],
        }
    }

    fn usage(entries: &[(u32, Entry<'_>)]) -> Usage {
        let mut usage = Usage::default();
        for (count, entry) in entries {
            (0..*count).for_each(|_| usage.count(entry));
        }
        usage
    }

    #[test]
    fn frontends_with_one_target_share_its_source_ports() {
        let usage = usage(&[
            (3, entry(80, Tcp, "10.16.0.1:8080", false)),
            (5, entry(80, Tcp, "10.16.0.2:8080", true)),
            (4, entry(81, Tcp, "10.16.0.1:8080", false)),
            (9, entry(80, Udp, "10.16.0.1:8080", false)),
            (2, entry(82, Tcp, "10.16.0.2:8081", false)),
            (7, entry(83, Tcp, "172.18.0.18:83", false)),
        ]);
        let fullest: Vec<_> =
            usage.fullest().into_iter().map(|(of, most)| (of.transport.name(), of.port, most)).collect();
        assert_eq!(fullest, [("tcp", 80, 7), ("tcp", 81, 7), ("tcp", 82, 2), ("udp", 80, 9)]);
    }

    #[test]
    fn target_is_near_exhaustion_by_connections_it_closed() {
        let (one, other) = ("10.16.0.1:8080", "10.16.0.2:8080");
        let crowd = |count, closed_by_server| usage(&[(count, entry(80, Tcp, one, closed_by_server))]);
        let is: Exhausted = [one.parse().unwrap()].into();
        let was_none = Exhausted::new();
        assert_eq!(crowd(NEAR_EXHAUSTION + 1, true).near_exhaustion(&was_none), is);
        assert_eq!(crowd(NEAR_EXHAUSTION, true).near_exhaustion(&was_none), was_none);
        assert_eq!(crowd(LIMIT, false).near_exhaustion(&was_none), was_none, "clients closed them");
        assert_eq!(crowd(RELIEVED + 1, true).near_exhaustion(&is), is, "it is not over yet");
        assert_eq!(crowd(RELIEVED, true).near_exhaustion(&is), was_none);
        let spread = usage(&[(RELIEVED, entry(80, Tcp, one, true)), (RELIEVED, entry(80, Tcp, other, true))]);
        assert_eq!(spread.near_exhaustion(&was_none), was_none);
    }

    #[test]
    fn table_exists_while_a_target_is_near_exhaustion() {
        let (none, exhausted) = (Exhausted::new(), Exhausted::from(["10.16.0.1:8080".parse().unwrap()]));
        let nothing = crate::datapath::nft::dump::Contents::default();
        assert_eq!(script(&none, &Before::AsFound(&nothing)), "");
        let made = script(&exhausted, &Before::AsFound(&nothing));
        assert!(made.ends_with("add element ip lb-svc-crowded targets { 10.16.0.1 . 8080 }\n"), "{made}");
        assert_eq!(script(&exhausted, &Before::AsApplied(&exhausted)), "");
        assert_eq!(script(&none, &Before::AsApplied(&exhausted)), "delete table ip lb-svc-crowded\n");
    }
}
