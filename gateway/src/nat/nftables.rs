//! NAT by nftables: one table, in which a map leads each port to its target.
//!
//! However many ports there are, a connection costs one look into the map, and
//! a change of them is a change of its elements, which the kernel makes at one
//! moment: no connection sees half of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Desired, Outcome};
use crate::fault::Fault;
use crate::nft::Table;
use lb_svc_crds::gateway::Transport;

const TABLE: &str = "ip lb-svc";

/// The back end.
pub struct Nftables(Table);

impl Default for Nftables {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Nftables {
    /// See [`super::Backends::ensure`]; without anything desired, there is no
    /// table.
    pub async fn ensure(&mut self, desired: Option<&Desired>, suspect: bool) -> Result<Outcome, Fault> {
        let wanted = desired.map(script).unwrap_or_default();
        let make = |held: &str| match (desired, held) {
            (Some(_), _) => wanted.clone(),
            (None, "") => String::new(),
            (None, _) => format!("delete table {TABLE}"),
        };
        match self.0.ensure(&wanted, suspect, make).await {
            Ok(true) => Ok(Outcome::Applied),
            Ok(false) => Ok(Outcome::Kept),
            // Who has no nft has made nothing with it.
            Err(_) if desired.is_none() => Ok(Outcome::Kept),
            Err(error) => Err(Fault::NatFailed(error.to_string())),
        }
    }
}

// The rules are those of the other back end, see there for why.
fn script(desired: &Desired) -> String {
    let lan = &desired.lan;
    let mut text = format!(
        "add table {TABLE}
add map {TABLE} tcp-targets {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} udp-targets {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add chain {TABLE} arriving {{ type nat hook prerouting priority -100; policy accept; }}
add chain {TABLE} leaving {{ type nat hook postrouting priority 100; policy accept; }}
add chain {TABLE} forwarded {{ type filter hook forward priority 0; policy accept; }}
add chain {TABLE} own {{ type filter hook input priority 0; policy accept; }}
flush table {TABLE}
flush map {TABLE} tcp-targets
flush map {TABLE} udp-targets
add rule {TABLE} forwarded tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
add rule {TABLE} forwarded ct status dnat accept
add rule {TABLE} forwarded ct state related accept
add rule {TABLE} forwarded iifname \"{lan}\" drop
add rule {TABLE} forwarded oifname \"{lan}\" drop
add rule {TABLE} own ct state invalid drop
"
    );
    for address in &desired.addresses {
        let to = format!("add rule {TABLE} own iifname \"{lan}\" ip daddr {address}");
        let _ = writeln!(text, "{to} ip protocol icmp accept");
        let _ = writeln!(text, "{to} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(text, "{to} meta l4proto udp reject with icmp port-unreachable");
    }
    let _ = writeln!(text, "add rule {TABLE} own iifname \"{lan}\" drop");
    for transport in [Transport::Tcp, Transport::Udp].map(Transport::name) {
        let _ = writeln!(
            text,
            "add rule {TABLE} arriving meta l4proto {transport} dnat ip to ip daddr . {transport} dport map @{transport}-targets"
        );
    }
    let targets: BTreeSet<String> = desired.forwards.values().map(ToString::to_string).collect();
    if !targets.is_empty() {
        let targets = targets.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "add rule {TABLE} leaving ct status dnat ip daddr {{ {targets} }} masquerade");
    }
    for (served, target) in &desired.forwards {
        let (address, transport, port) = (served.address, served.transport.name(), served.port);
        let _ = writeln!(
            text,
            "add element {TABLE} {transport}-targets {{ {address} . {port} : {target} . {port} }}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Served;
    use lb_svc_crds::gateway::NatBackend;

    #[test]
    fn each_port_is_an_element() {
        let address = "172.18.0.18".parse().unwrap();
        let served = |transport, port| Served { address, transport, port };
        let desired = Desired {
            backend: NatBackend::Nftables,
            lan: "net1".to_owned(),
            addresses: vec![address],
            forwards: [
                (served(Transport::Tcp, 80), "10.109.201.193".parse().unwrap()),
                (served(Transport::Udp, 53), "10.109.201.194".parse().unwrap()),
            ]
            .into(),
        };
        let script = script(&desired);
        for line in [
            "add rule ip lb-svc leaving ct status dnat ip daddr { 10.109.201.193, 10.109.201.194 } masquerade\n",
            "add element ip lb-svc tcp-targets { 172.18.0.18 . 80 : 10.109.201.193 . 80 }\n",
            "add element ip lb-svc udp-targets { 172.18.0.18 . 53 : 10.109.201.194 . 53 }\n",
        ] {
            assert!(script.contains(line), "{line}{script}");
        }
    }
}
