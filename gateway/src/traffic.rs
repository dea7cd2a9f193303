//! What is served, counted by the kernel: connections, packets and bytes of
//! each port, in an nftables table of our own.
//!
//! Nothing but counting happens there, so it is programmed after all else, and
//! its counters live on through every change of what is served, and through
//! restarts of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tokio::sync::watch as cell;
use tracing::warn;

use crate::config::{Served, Services};
use crate::metrics::{Flow, Metrics, ServedPort};
use crate::nft::Table;
use crate::tool;

const TABLE: &str = "ip lb-svc-traffic";

/// What is counted of a port, and by which map its packets find the counter:
/// its connections; what comes from clients; what goes to them.
const KINDS: [&str; 3] = ["opened", "received", "sent"];

/// What is to be counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is served.
    pub services: Services,
    /// Another each time that the kernel may not hold what was left there.
    pub suspicion: u64,
}

/// Has the kernel count what is `wanted`, for as long as somebody wants. Nobody
/// waits for it: it takes programs their time, and there are addresses to be
/// announced meanwhile.
pub async fn keep(mut wanted: cell::Receiver<Wanted>) {
    let mut table = Table::new(TABLE);
    let mut suspicion = 0;
    let mut told = None;
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        let suspect = std::mem::replace(&mut suspicion, now.suspicion) != now.suspicion;
        let script = script(&now.services);
        let make = |held: &str| script.clone() + &stale(held, &now.services);
        let failed = table.ensure(&script, suspect, make).await.err().map(|error| error.to_string());
        if let Some(error) = failed.as_ref().filter(|_| failed != told) {
            warn!("traffic is not counted: {error}");
        }
        told = failed;
    }
}

fn name(kind: &str, served: &Served) -> String {
    let Served { address, transport, port } = served;
    format!("{kind}-{address}-{}-{port}", transport.name())
}

// Connections are counted where the NAT is decided, which is once for each;
// packets where clients still see the address: after those that are refused
// went, and before the NAT; and after it on the way back.
fn script(services: &Services) -> String {
    let mut text = format!("add table {TABLE}\n");
    for kind in KINDS {
        let _ = writeln!(
            text,
            "add map {TABLE} {kind} {{ type ipv4_addr . inet_proto . inet_service : counter; }}"
        );
    }
    let _ = write!(
        text,
        "add chain {TABLE} opening {{ type nat hook prerouting priority -105; policy accept; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority -105; policy accept; }}
add chain {TABLE} leaving {{ type filter hook postrouting priority 105; policy accept; }}
flush table {TABLE}
flush map {TABLE} opened
flush map {TABLE} received
flush map {TABLE} sent
add rule {TABLE} opening counter name ip daddr . meta l4proto . th dport map @opened
add rule {TABLE} arriving counter name ip daddr . meta l4proto . th dport map @received
add rule {TABLE} leaving counter name ip saddr . meta l4proto . th sport map @sent
"
    );
    for kind in KINDS {
        for served in services.keys() {
            let name = name(kind, served);
            let Served { address, transport, port } = served;
            let _ = writeln!(text, "add counter {TABLE} {name}");
            let _ = writeln!(
                text,
                "add element {TABLE} {kind} {{ {address} . {} . {port} : \"{name}\" }}",
                transport.name()
            );
        }
    }
    text
}

/// What removes the counters of `held` that nothing is counted with any more.
fn stale(held: &str, services: &Services) -> String {
    let wanted: BTreeSet<String> =
        KINDS.iter().flat_map(|kind| services.keys().map(move |served| name(kind, served))).collect();
    let names = held.lines().filter_map(counter);
    names
        .filter(|name| !wanted.contains(*name))
        .map(|name| format!("delete counter {TABLE} {name}\n"))
        .collect()
}

/// The name of the counter that this line of a listing begins.
fn counter(line: &str) -> Option<&str> {
    line.trim().strip_prefix("counter ")?.strip_suffix(" {")
}

/// Reads the counters for whoever asks.
pub struct Meter {
    metrics: Metrics,
    wanted: cell::Receiver<Wanted>,
}

impl Meter {
    /// Shows in `metrics` what it reads of what is `wanted`.
    pub fn new(metrics: Metrics, wanted: cell::Receiver<Wanted>) -> Self {
        Self { metrics, wanted }
    }

    /// Brings the metrics up to date. Where the kernel does not say, they stay
    /// as they are.
    pub async fn read(&self) {
        let list = format!("list counters table {TABLE}");
        let Ok(text) = tool::run("nft", &[&list], "").await else { return };
        let counted = parse(&text);
        let Metrics { connections, packets, bytes, .. } = &self.metrics;
        connections.clear();
        packets.clear();
        bytes.clear();
        for (served, service) in &self.wanted.borrow().services {
            let port = ServedPort::new(service, served);
            let of = |kind| counted.get(name(kind, served).as_str()).copied().unwrap_or_default();
            connections.get_or_create(&port).inc_by(of("opened").0);
            for (kind, direction) in [("received", "in"), ("sent", "out")] {
                let flow = Flow { port: port.clone(), direction };
                let (count, size) = of(kind);
                packets.get_or_create(&flow).inc_by(count);
                bytes.get_or_create(&flow).inc_by(size);
            }
        }
    }
}

/// Packets and bytes by counter.
fn parse(listing: &str) -> BTreeMap<&str, (u64, u64)> {
    let mut counted = BTreeMap::new();
    let mut current = None;
    for line in listing.lines() {
        if let Some(name) = counter(line) {
            current = Some(name);
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (Some(name), ["packets", packets, "bytes", bytes]) = (current, &words[..]) {
            counted.insert(name, (packets.parse().unwrap_or(0), bytes.parse().unwrap_or(0)));
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::Transport;

    const LISTING: &str = "table ip lb-svc-traffic {
\tcounter opened-172.18.0.18-tcp-80 {
\t\tpackets 3 bytes 180
\t}

\tcounter sent-172.18.0.18-udp-53 {
\t\tpackets 12 bytes 3400
\t}

\tmap opened {
\t\telements = { 172.18.0.18 . tcp . 80 : \"opened-172.18.0.18-tcp-80\" }
\t}
}
";

    fn services() -> Services {
        let served = Served { address: "172.18.0.18".parse().unwrap(), transport: Transport::Tcp, port: 80 };
        [(served, "default/web".into())].into()
    }

    #[test]
    fn the_counters_are_read() {
        let counted = parse(LISTING);
        assert_eq!(counted["opened-172.18.0.18-tcp-80"], (3, 180));
        assert_eq!(counted["sent-172.18.0.18-udp-53"], (12, 3400));
        assert_eq!(counted.len(), 2);
    }

    #[test]
    fn only_what_is_served_is_counted() {
        assert_eq!(stale(LISTING, &services()), "delete counter ip lb-svc-traffic sent-172.18.0.18-udp-53\n");
        let script = script(&services());
        for kind in KINDS {
            let name = format!("{kind}-172.18.0.18-tcp-80");
            let element = format!("{kind} {{ 172.18.0.18 . tcp . 80 : \"{name}\" }}\n");
            assert!(script.contains(&format!("add counter {TABLE} {name}\n")), "{script}");
            assert!(script.contains(&format!("add element {TABLE} {element}")), "{script}");
        }
    }
}
