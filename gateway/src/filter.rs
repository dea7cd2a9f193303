//! What passes the gateway and what reaches the pod itself, in an nftables table
//! of our own, whichever way the NAT is done.
//!
//! Every packet comes by here, which is why iptables does not do it: its rules
//! cost more.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::fault::Fault;
use crate::nft::Table;

const TABLE: &str = "ip lb-svc-filter";

/// What the filter is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's name.
    pub lan: String,
    /// The gateway's addresses on it.
    pub addresses: Vec<Ipv4Addr>,
}

/// The table in the kernel.
pub struct Filter(Table<Desired>);

impl Default for Filter {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Filter {
    /// Makes the table what `desired` says. With `suspect` what the kernel holds
    /// is read first; without, it is taken to be as it was left. Returns whether
    /// anything was changed.
    ///
    /// # Errors
    /// When the kernel or the program refuses.
    pub async fn ensure(&mut self, desired: &Desired, suspect: bool) -> Result<bool, Fault> {
        let ensured = self.0.ensure(desired.clone(), suspect, |_| script(desired)).await;
        ensured.map_err(|error| Fault::FilterFailed(error.to_string()))
    }
}

/// Makes the table anew, whatever stands there: in one transaction, no packet
/// finds it gone.
fn script(desired: &Desired) -> String {
    let Desired { lan, addresses } = desired;
    // A gateway is no router: only what was DNATed passes between the LAN and
    // the pods, and the errors that belong to it.
    let mut text = format!(
        "add table {TABLE}
delete table {TABLE}
add table {TABLE}
add chain {TABLE} passing {{ type filter hook forward priority 0; policy accept; }}
add chain {TABLE} own {{ type filter hook input priority 0; policy accept; }}
add rule {TABLE} passing tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
add rule {TABLE} passing ct status dnat accept
add rule {TABLE} passing ct state related accept
add rule {TABLE} passing iifname \"{lan}\" drop
add rule {TABLE} passing oifname \"{lan}\" drop
"
    );
    // A reply that conntrack cannot place would be taken for the pod's own and
    // reset, and with it a connection that is well.
    let _ = writeln!(text, "add rule {TABLE} own ct state invalid drop");
    // Ports that are not served refuse at once, whatever listens in the pod;
    // and no conntrack entry stays that would keep a flow from being DNATed
    // once they are.
    for address in addresses {
        let to = format!("add rule {TABLE} own iifname \"{lan}\" ip daddr {address}");
        let _ = writeln!(text, "{to} ip protocol icmp accept");
        let _ = writeln!(text, "{to} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(text, "{to} meta l4proto udp reject with icmp port-unreachable");
    }
    let _ = writeln!(text, "add rule {TABLE} own iifname \"{lan}\" drop");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_answers_pings_and_refuses_the_rest() {
        let addresses = ["172.18.0.18", "172.18.0.19"].map(|text| text.parse().unwrap());
        let text = script(&Desired { lan: "net1".to_owned(), addresses: addresses.to_vec() });
        for address in addresses {
            let to = format!("add rule {TABLE} own iifname \"net1\" ip daddr {address} ");
            let what: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&to)).collect();
            let refused = ["tcp reject with tcp reset", "udp reject with icmp port-unreachable"];
            assert_eq!(what[0], "ip protocol icmp accept");
            assert_eq!(what[1..], refused.map(|what| format!("meta l4proto {what}")));
        }
        assert!(text.ends_with("own iifname \"net1\" drop\n"), "{text}");
    }
}
