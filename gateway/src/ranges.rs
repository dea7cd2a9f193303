//! Who may connect: the client networks that Services are limited to, in an
//! nftables table of our own.
//!
//! It looks at every packet before the NAT does, when it still has the address
//! and port that the client asked for. So what is changed holds at once, for
//! connections that there are as well, and it is the same whichever way the NAT
//! is done. What is dropped is counted by port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::config::Served;
use crate::fault::Fault;
use crate::nft::{Before, Names, Table};

/// The table's name.
pub const TABLE: &str = "ip lb-svc-ranges";

/// The networks of clients that a Service's ports are limited to. Ports that
/// are not in here are for everyone.
pub type Ranges = BTreeMap<Served, Arc<BTreeSet<Ipv4Net>>>;

/// Whether a client may connect.
pub fn admit(ranges: &Ranges, to: &Served, client: Ipv4Addr) -> bool {
    ranges.get(to).is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
}

/// The table in the kernel.
pub struct Gate(Table<Ranges>);

impl Default for Gate {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Gate {
    /// Makes the table what `ranges` says; without any there is none. With
    /// `suspect` what the kernel holds is read first; without, it is taken to be
    /// as it was left. Returns whether anything was changed.
    ///
    /// # Errors
    /// When the kernel or the program refuses.
    pub async fn ensure(&mut self, ranges: &Ranges, suspect: bool) -> Result<bool, Fault> {
        let make = |before: Before<'_, Ranges>| match before {
            Before::Found(held) if ranges.is_empty() && held.is_empty() => String::new(),
            Before::Left(before) if ranges.is_empty() && before.is_empty() => String::new(),
            _ if ranges.is_empty() => format!("delete table {TABLE}"),
            Before::Found(held) => script(ranges) + &stale(&held.names, ranges),
            Before::Left(before) => script(ranges) + &stale(&made_of(before), ranges),
        };
        let ensured = self.0.ensure(ranges.clone(), suspect, make).await;
        ensured.map_err(|error| Fault::RangesFailed(error.to_string()))
    }
}

/// The name of the counter of what is dropped.
pub fn counter(served: &Served) -> String {
    let Served { address, transport, port } = served;
    format!("dropped-{address}-{}-{port}", transport.name())
}

/// The networks that something is limited to, each once. Each has a chain.
fn networks(ranges: &Ranges) -> Vec<&Arc<BTreeSet<Ipv4Net>>> {
    let mut all = Vec::new();
    for networks in ranges.values() {
        if !all.contains(&networks) {
            all.push(networks);
        }
    }
    all
}

fn chain(number: usize) -> String {
    format!("clients-{number}")
}

/// The table that is made of `ranges`.
fn made_of(ranges: &Ranges) -> Names {
    Names {
        chains: (0..networks(ranges).len()).map(chain).collect(),
        counters: ranges.keys().map(counter).collect(),
    }
}

/// What removes of `held` what `ranges` have no use for.
fn stale(held: &Names, ranges: &Ranges) -> String {
    let wanted = made_of(ranges);
    let chains = held.chains.iter().filter(|chain| chain.starts_with("clients-"));
    let chains = chains.filter(|chain| !wanted.chains.contains(chain));
    let counters = held.counters.iter().filter(|counter| !wanted.counters.contains(counter));
    let chains = chains.map(|chain| format!("delete chain {TABLE} {chain}\n"));
    chains.chain(counters.map(|counter| format!("delete counter {TABLE} {counter}\n"))).collect()
}

// The filter comes just before the NAT's hook (-100), after conntrack (-200).
fn script(ranges: &Ranges) -> String {
    const KEY: &str = "ip daddr . meta l4proto . th dport";
    let networks = networks(ranges);
    let mut text = format!(
        "add table {TABLE}
add map {TABLE} limited {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map {TABLE} dropped {{ type ipv4_addr . inet_proto . inet_service : counter; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority -110; policy accept; }}
flush table {TABLE}
flush map {TABLE} limited
flush map {TABLE} dropped
add rule {TABLE} arriving {KEY} vmap @limited
"
    );
    for (number, networks) in networks.iter().enumerate() {
        let chain = chain(number);
        let _ = writeln!(text, "add chain {TABLE} {chain}");
        if !networks.is_empty() {
            let networks = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "add rule {TABLE} {chain} ip saddr {{ {networks} }} return");
        }
        let _ = writeln!(text, "add rule {TABLE} {chain} counter name {KEY} map @dropped");
        let _ = writeln!(text, "add rule {TABLE} {chain} drop");
    }
    for (served, of) in ranges {
        let Served { address, transport, port } = served;
        let key = format!("{address} . {} . {port}", transport.name());
        let counter = counter(served);
        let number = networks.iter().position(|networks| *networks == of).unwrap_or_default();
        let _ = writeln!(text, "add counter {TABLE} {counter}");
        let _ = writeln!(text, "add element {TABLE} dropped {{ {key} : \"{counter}\" }}");
        let _ = writeln!(text, "add element {TABLE} limited {{ {key} : jump {} }}", chain(number));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::Transport;

    fn ranges(ports: &[(u16, &[&str])]) -> Ranges {
        let address = "172.18.0.18".parse().unwrap();
        let networks = |texts: &[&str]| Arc::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        let served = |port| Served { address, transport: Transport::Tcp, port };
        ports.iter().map(|(port, texts)| (served(*port), networks(texts))).collect()
    }

    #[test]
    fn equal_limits_share_a_chain_and_each_port_has_a_counter() {
        let lan: &[&str] = &["10.0.0.0/8", "192.0.2.0/24"];
        let script = script(&ranges(&[(80, lan), (81, &[]), (82, lan)]));
        let expected = "\
add rule ip lb-svc-ranges arriving ip daddr . meta l4proto . th dport vmap @limited
add chain ip lb-svc-ranges clients-0
add rule ip lb-svc-ranges clients-0 ip saddr { 10.0.0.0/8, 192.0.2.0/24 } return
add rule ip lb-svc-ranges clients-0 counter name ip daddr . meta l4proto . th dport map @dropped
add rule ip lb-svc-ranges clients-0 drop
add chain ip lb-svc-ranges clients-1
add rule ip lb-svc-ranges clients-1 counter name ip daddr . meta l4proto . th dport map @dropped
add rule ip lb-svc-ranges clients-1 drop
add counter ip lb-svc-ranges dropped-172.18.0.18-tcp-80
add element ip lb-svc-ranges dropped { 172.18.0.18 . tcp . 80 : \"dropped-172.18.0.18-tcp-80\" }
add element ip lb-svc-ranges limited { 172.18.0.18 . tcp . 80 : jump clients-0 }
";
        assert!(script.contains(expected), "{script}");
        for element in ["172.18.0.18 . tcp . 81 : jump clients-1", "172.18.0.18 . tcp . 82 : jump clients-0"]
        {
            assert!(script.contains(&format!("limited {{ {element} }}")), "{script}");
        }
    }

    #[test]
    fn what_nothing_is_limited_by_any_more_goes() {
        let before = made_of(&ranges(&[(80, &["10.0.0.0/8"]), (81, &[])]));
        let after = ranges(&[(80, &["192.0.2.0/24"])]);
        let gone = "delete chain ip lb-svc-ranges clients-1\ndelete counter ip lb-svc-ranges dropped-172.18.0.18-tcp-81\n";
        assert_eq!(stale(&before, &after), gone);
        assert_eq!(stale(&made_of(&after), &after), "");
    }

    #[test]
    fn who_is_not_in_a_range_is_not_admitted() {
        let ranges = ranges(&[(80, &["192.0.2.0/24", "198.51.100.7/32"]), (81, &[])]);
        let admit = |port, client: &str| {
            let served = Served { port, ..*ranges.keys().next().unwrap() };
            admit(&ranges, &served, client.parse().unwrap())
        };
        assert!(admit(80, "192.0.2.9") && admit(80, "198.51.100.7"));
        assert!(!admit(80, "198.51.100.8"));
        assert!(!admit(81, "192.0.2.9"), "limited to nobody");
        assert!(admit(82, "203.0.113.1"), "not limited");
    }
}
