//! loadBalancerSourceRanges: the networks that clients of a Service may connect
//! from, an nftables table with either NAT back end.
//!
//! It sees every packet before the NAT, when the packet still has the address and
//! port of the frontend. So a change applies at once, to existing connections as
//! well. Dropped packets are counted by frontend.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures::future::{FutureExt, LocalBoxFuture, TryFutureExt};

use super::nft::dump::Names;
use super::nft::table::{Before, Table};
use super::{Managed, Trust};
use crate::config::{Forward, Forwards, Frontend, SourceRanges};
use crate::datapath;
use crate::fault::Fault;

/// The table's name.
pub const TABLE: &str = "ip lb-svc-ranges";

/// The source ranges of each frontend that has any. Frontends that are not in
/// here accept any client.
pub type Limits = BTreeMap<Frontend, SourceRanges>;

/// The source ranges of a forwarding table.
pub fn limits(forwards: &Forwards) -> Limits {
    let limited = |(frontend, forward): (&Frontend, &Forward)| {
        forward.clients.as_ref().map(|clients| (*frontend, Arc::clone(clients)))
    };
    forwards.iter().filter_map(limited).collect()
}

/// The table in the kernel. Without limits there is none.
pub struct SourceRangeFilter(Table<Limits>);

impl Default for SourceRangeFilter {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Managed for SourceRangeFilter {
    fn ensure<'a>(
        &'a mut self,
        desired: &'a datapath::Desired,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        let limits = &desired.source_ranges;
        let make = |before: Before<'_, Limits>| match before {
            before if limits.is_empty() => before.removal(TABLE, Limits::is_empty),
            Before::AsFound(contents) => script(limits) + &remove_stale(&contents.names, limits),
            Before::AsApplied(before) => script(limits) + &remove_stale(&object_names(before), limits),
        };
        let ensured = self.0.ensure(limits.clone(), trust, make);
        ensured.map_err(|error| Fault::RangesFailed(error.to_string())).boxed_local()
    }
}

/// The name of the counter of a frontend's dropped packets.
pub fn counter(frontend: &Frontend) -> String {
    let Frontend { address, transport, port } = frontend;
    format!("dropped-{address}-{}-{port}", transport.name())
}

/// The different source ranges. Each has a chain.
fn distinct(limits: &Limits) -> Vec<&SourceRanges> {
    let mut all = Vec::new();
    for ranges in limits.values() {
        if !all.contains(&ranges) {
            all.push(ranges);
        }
    }
    all
}

fn chain(number: usize) -> String {
    format!("clients-{number}")
}

/// The objects of the table for these limits.
fn object_names(limits: &Limits) -> Names {
    Names {
        chains: (0..distinct(limits).len()).map(chain).collect(),
        counters: limits.keys().map(counter).collect(),
    }
}

/// The part of a script that removes the objects that these limits do not use.
fn remove_stale(before: &Names, limits: &Limits) -> String {
    let desired = object_names(limits);
    let chains = before.chains.iter().filter(|chain| chain.starts_with("clients-"));
    let chains = chains.filter(|chain| !desired.chains.contains(chain));
    let counters = before.counters.iter().filter(|counter| !desired.counters.contains(counter));
    let chains = chains.map(|chain| format!("delete chain {TABLE} {chain}\n"));
    chains.chain(counters.map(|counter| format!("delete counter {TABLE} {counter}\n"))).collect()
}

// The hook's priority is just before the NAT's (-100), after conntrack (-200).
fn script(limits: &Limits) -> String {
    const KEY: &str = "ip daddr . meta l4proto . th dport";
    let distinct = distinct(limits);
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
    for (number, ranges) in distinct.iter().enumerate() {
        let chain = chain(number);
        let _ = writeln!(text, "add chain {TABLE} {chain}");
        if !ranges.is_empty() {
            let networks = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "add rule {TABLE} {chain} ip saddr {{ {networks} }} return");
        }
        let _ = writeln!(text, "add rule {TABLE} {chain} counter name {KEY} map @dropped");
        let _ = writeln!(text, "add rule {TABLE} {chain} drop");
    }
    for (frontend, ranges) in limits {
        let Frontend { address, transport, port } = frontend;
        let key = format!("{address} . {} . {port}", transport.name());
        let counter = counter(frontend);
        let number = distinct.iter().position(|other| *other == ranges).unwrap_or_default();
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

    fn limits(ports: &[(u16, &[&str])]) -> Limits {
        let address = "172.18.0.18".parse().unwrap();
        let networks = |texts: &[&str]| Arc::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        let frontend = |port| Frontend { address, transport: Transport::Tcp, port };
        ports.iter().map(|(port, texts)| (frontend(*port), networks(texts))).collect()
    }

    #[test]
    fn equal_ranges_share_a_chain_and_each_port_has_a_counter() {
        let lan: &[&str] = &["10.0.0.0/8", "192.0.2.0/24"];
        let script = script(&limits(&[(80, lan), (81, &[]), (82, lan)]));
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
    fn unused_chains_and_counters_are_removed() {
        let before = object_names(&limits(&[(80, &["10.0.0.0/8"]), (81, &[])]));
        let after = limits(&[(80, &["192.0.2.0/24"])]);
        let gone = "delete chain ip lb-svc-ranges clients-1\ndelete counter ip lb-svc-ranges dropped-172.18.0.18-tcp-81\n";
        assert_eq!(remove_stale(&before, &after), gone);
        assert_eq!(remove_stale(&object_names(&after), &after), "");
    }
}
