//! Traffic counters of each frontend in the kernel: connections, packets and bytes,
//! an nftables table programmed in the background.
//!
//! The counters persist when frontends change and when the process restarts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

use super::background::{self, BackgroundTable};
use super::nft::dump;
use super::nft::table::Before;
use super::source_ranges;
use crate::config::{Frontend, Services};
use crate::telemetry::collectors::Collector;
use crate::telemetry::metrics::{Flow, Metrics, ServedPort};

const TABLE: &str = "ip lb-svc-traffic";

/// The kinds of counters, and names of the maps from packets to them: connections;
/// packets from clients; packets to them.
const KINDS: [&str; 3] = ["opened", "received", "sent"];

/// The table.
pub const COUNTERS: BackgroundTable<Services> =
    BackgroundTable { name: TABLE, consequence: "traffic is not counted", script };

fn script(services: &Services, before: &Before<'_, Services>) -> String {
    let counters = match before {
        Before::AsApplied(before) => names(before).collect(),
        Before::AsFound(contents) => contents.names.counters.clone(),
    };
    table(services) + &remove_stale(&counters, services)
}

fn name(kind: &str, frontend: &Frontend) -> String {
    let Frontend { address, transport, port } = frontend;
    format!("{kind}-{address}-{}-{port}", transport.name())
}

/// The names of all counters.
fn names(services: &Services) -> impl Iterator<Item = String> {
    KINDS.iter().flat_map(move |kind| services.keys().map(move |frontend| name(kind, frontend)))
}

// Connections are counted in a chain of type nat, which sees each once; packets where
// they have the frontend's address: from clients after the source-range filter and
// before the NAT, to clients after it. The direction is matched first, because a map
// lookup costs more.
fn table(services: &Services) -> String {
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
add rule {TABLE} arriving ct direction original counter name ip daddr . meta l4proto . th dport map @received
add rule {TABLE} leaving ct direction reply counter name ip saddr . meta l4proto . th sport map @sent
"
    );
    for kind in KINDS {
        for frontend in services.keys() {
            let name = name(kind, frontend);
            let Frontend { address, transport, port } = frontend;
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

/// The part of a script that removes the counters of frontends that are not served
/// any more.
fn remove_stale(counters: &[String], services: &Services) -> String {
    let desired: BTreeSet<String> = names(services).collect();
    let stale = counters.iter().filter(|name| !desired.contains(*name));
    stale.map(|name| format!("delete counter {TABLE} {name}\n")).collect()
}

/// Reads the counters when metrics are scraped.
pub struct CounterCollector {
    metrics: Metrics,
    background: watch::Receiver<background::Desired<Services>>,
}

impl CounterCollector {
    /// A collector of the counters of what the background tables are for.
    pub fn new(metrics: Metrics, background: watch::Receiver<background::Desired<Services>>) -> Self {
        Self { metrics, background }
    }

    async fn read(&self) -> io::Result<()> {
        let (counted, refused) = (dump::counters(TABLE).await?, dump::counters(source_ranges::TABLE).await?);
        let Metrics { connections, packets, bytes, dropped, .. } = &self.metrics;
        connections.clear();
        packets.clear();
        bytes.clear();
        dropped.clear();
        for (frontend, service) in &self.background.borrow().input {
            let port = ServedPort::new(service, frontend);
            let of = |kind| counted.get(&name(kind, frontend)).copied().unwrap_or_default();
            connections.get_or_create(&port).inc_by(of("opened").0);
            for (kind, direction) in [("received", "in"), ("sent", "out")] {
                let flow = Flow { port: port.clone(), direction };
                let (count, size) = of(kind);
                packets.get_or_create(&flow).inc_by(count);
                bytes.get_or_create(&flow).inc_by(size);
            }
            if let Some((count, _)) = refused.get(&source_ranges::counter(frontend)) {
                dropped.get_or_create(&port).inc_by(*count);
            }
        }
        Ok(())
    }
}

impl Collector for CounterCollector {
    fn collect(&self) -> BoxFuture<'_, io::Result<()>> {
        self.read().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::Transport;

    fn services() -> Services {
        let frontend =
            Frontend { address: "172.18.0.18".parse().unwrap(), transport: Transport::Tcp, port: 80 };
        [(frontend, "default/web".into())].into()
    }

    #[test]
    fn only_served_ports_are_counted() {
        let counters = ["opened-172.18.0.18-tcp-80", "sent-172.18.0.18-udp-53"].map(String::from);
        assert_eq!(
            remove_stale(&counters, &services()),
            "delete counter ip lb-svc-traffic sent-172.18.0.18-udp-53\n"
        );
        let script = table(&services());
        for kind in KINDS {
            let name = format!("{kind}-172.18.0.18-tcp-80");
            let element = format!("{kind} {{ 172.18.0.18 . tcp . 80 : \"{name}\" }}\n");
            assert!(script.contains(&format!("add counter {TABLE} {name}\n")), "{script}");
            assert!(script.contains(&format!("add element {TABLE} {element}")), "{script}");
        }
    }
}
