//! Who may connect: the client networks that Services are limited to, in an
//! nftables table of our own.
//!
//! It looks at every packet before the NAT does, when it still has the address
//! and port that the client asked for. So what is changed holds at once, for
//! connections that there are as well, and it is the same whichever way the NAT
//! is done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::config::Served;
use crate::fault::Fault;
use crate::nft::Table;
use crate::tool::RunError;

const TABLE: &str = "ip lb-svc-ranges";

/// The networks of clients that a Service's ports are limited to. Ports that
/// are not in here are for everyone.
pub type Ranges = BTreeMap<Served, Arc<BTreeSet<Ipv4Net>>>;

/// Whether a client may connect.
pub fn admit(ranges: &Ranges, to: &Served, client: Ipv4Addr) -> bool {
    ranges.get(to).is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
}

/// The table in the kernel.
pub struct Gate(Table);

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
        let wanted = script(ranges);
        let make = |held: &str| match (held, wanted.as_str()) {
            ("", "") => String::new(),
            // As one transaction: at no moment is anybody let in for it.
            _ => format!("add table {TABLE}\ndelete table {TABLE}\n{wanted}"),
        };
        match self.0.ensure(&wanted, suspect, make).await {
            // An image without nft will do where nothing is asked of it.
            Err(RunError::Start { .. }) if ranges.is_empty() => Ok(false),
            ensured => ensured.map_err(|error| Fault::RangesFailed(error.to_string())),
        }
    }
}

// The filter comes just before the NAT's hook (-100), after conntrack (-200).
fn script(ranges: &Ranges) -> String {
    let mut chains: Vec<&Arc<BTreeSet<Ipv4Net>>> = Vec::new();
    let mut elements = String::new();
    for (served, networks) in ranges {
        let chain = chains.iter().position(|known| *known == networks).unwrap_or_else(|| {
            chains.push(networks);
            chains.len() - 1
        });
        let Served { address, transport, port } = served;
        let _ = writeln!(
            elements,
            "add element {TABLE} limited {{ {address} . {} . {port} : jump clients-{chain} }}",
            transport.name()
        );
    }
    if chains.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "add table {TABLE}
add map {TABLE} limited {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority -110; policy accept; }}
add rule {TABLE} arriving ip daddr . meta l4proto . th dport vmap @limited
"
    );
    for (number, networks) in chains.iter().enumerate() {
        let _ = writeln!(text, "add chain {TABLE} clients-{number}");
        if !networks.is_empty() {
            let networks = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "add rule {TABLE} clients-{number} ip saddr {{ {networks} }} return");
        }
        let _ = writeln!(text, "add rule {TABLE} clients-{number} counter drop");
    }
    text + &elements
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
    fn the_script() {
        assert_eq!(script(&Ranges::default()), "");
        let lan: &[&str] = &["10.0.0.0/8", "192.0.2.0/24"];
        let expected = "\
add table ip lb-svc-ranges
add map ip lb-svc-ranges limited { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain ip lb-svc-ranges arriving { type filter hook prerouting priority -110; policy accept; }
add rule ip lb-svc-ranges arriving ip daddr . meta l4proto . th dport vmap @limited
add chain ip lb-svc-ranges clients-0
add rule ip lb-svc-ranges clients-0 ip saddr { 10.0.0.0/8, 192.0.2.0/24 } return
add rule ip lb-svc-ranges clients-0 counter drop
add chain ip lb-svc-ranges clients-1
add rule ip lb-svc-ranges clients-1 counter drop
add element ip lb-svc-ranges limited { 172.18.0.18 . tcp . 80 : jump clients-0 }
add element ip lb-svc-ranges limited { 172.18.0.18 . tcp . 81 : jump clients-1 }
add element ip lb-svc-ranges limited { 172.18.0.18 . tcp . 82 : jump clients-0 }
";
        assert_eq!(script(&ranges(&[(80, lan), (81, &[]), (82, lan)])), expected);
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
