//! What is served, counted by the kernel: connections, packets and bytes of
//! each port, in an nftables table of our own.
//!
//! Its counters live on through every change of what is served, and through
//! restarts of the process.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use tokio::sync::watch as cell;
use tracing::debug;

use crate::aside::{Part, Wanted};
use crate::config::{Served, Services};
use crate::metrics::{Flow, Metrics, ServedPort};
use crate::nft::{self, Before};
use crate::ranges;
use crate::sources;

const TABLE: &str = "ip lb-svc-traffic";

/// What is counted of a port, and by which map its packets find the counter:
/// its connections; what comes from clients; what goes to them.
const KINDS: [&str; 3] = ["opened", "received", "sent"];

/// The table.
pub const PART: Part = Part { name: TABLE, lacking: "traffic is not counted", script };

fn script(services: &Services, before: &Before<'_, Services>) -> String {
    let counters = match before {
        Before::Left(before) => names(before).collect(),
        Before::Found(held) => held.names.counters.clone(),
    };
    whole(services) + &stale(&counters, services)
}

fn name(kind: &str, served: &Served) -> String {
    let Served { address, transport, port } = served;
    format!("{kind}-{address}-{}-{port}", transport.name())
}

/// The names of all counters.
fn names(services: &Services) -> impl Iterator<Item = String> {
    KINDS.iter().flat_map(move |kind| services.keys().map(move |served| name(kind, served)))
}

// Connections are counted where the NAT is decided, which is once for each;
// packets where clients still see the address: after those that are refused
// went, and before the NAT; and after it on the way back. Which way a packet
// goes is asked first, for a look into a map costs more.
fn whole(services: &Services) -> String {
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

/// What removes those of the `counters` that nothing is counted with any more.
fn stale(counters: &[String], services: &Services) -> String {
    let wanted: BTreeSet<String> = names(services).collect();
    let stale = counters.iter().filter(|name| !wanted.contains(*name));
    stale.map(|name| format!("delete counter {TABLE} {name}\n")).collect()
}

/// Reads the counters, and how full the connection table is, for whoever asks.
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
        if let Err(error) = self.read_counters().await {
            debug!("counters are not read: {error}");
        }
        if let Err(error) = sources::show(&self.metrics, &self.wanted).await {
            debug!("the connection table is not read: {error}");
        }
    }

    async fn read_counters(&self) -> io::Result<()> {
        let (counted, refused) = (nft::counters(TABLE).await?, nft::counters(ranges::TABLE).await?);
        let Metrics { connections, packets, bytes, dropped, .. } = &self.metrics;
        connections.clear();
        packets.clear();
        bytes.clear();
        dropped.clear();
        for (served, service) in &self.wanted.borrow().services {
            let port = ServedPort::new(service, served);
            let of = |kind| counted.get(&name(kind, served)).copied().unwrap_or_default();
            connections.get_or_create(&port).inc_by(of("opened").0);
            for (kind, direction) in [("received", "in"), ("sent", "out")] {
                let flow = Flow { port: port.clone(), direction };
                let (count, size) = of(kind);
                packets.get_or_create(&flow).inc_by(count);
                bytes.get_or_create(&flow).inc_by(size);
            }
            if let Some((count, _)) = refused.get(&ranges::counter(served)) {
                dropped.get_or_create(&port).inc_by(*count);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::Transport;

    fn services() -> Services {
        let served = Served { address: "172.18.0.18".parse().unwrap(), transport: Transport::Tcp, port: 80 };
        [(served, "default/web".into())].into()
    }

    #[test]
    fn only_what_is_served_is_counted() {
        let counters = ["opened-172.18.0.18-tcp-80", "sent-172.18.0.18-udp-53"].map(String::from);
        assert_eq!(
            stale(&counters, &services()),
            "delete counter ip lb-svc-traffic sent-172.18.0.18-udp-53\n"
        );
        let script = whole(&services());
        for kind in KINDS {
            let name = format!("{kind}-172.18.0.18-tcp-80");
            let element = format!("{kind} {{ 172.18.0.18 . tcp . 80 : \"{name}\" }}\n");
            assert!(script.contains(&format!("add counter {TABLE} {name}\n")), "{script}");
            assert!(script.contains(&format!("add element {TABLE} {element}")), "{script}");
        }
    }
}
