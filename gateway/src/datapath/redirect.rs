//! Handing the connections to proxied frontends over to the proxy, an nftables table with
//! either NAT back end.
//!
//! ```text
//!   from the LAN, to a proxied frontend ──(tproxy)──▶ the proxy's socket, and a mark
//!     mark ──▶ rule 32761: delivered to the pod ──▶ filter: accepted
//! ```
//!
//! The packets keep their addresses: a connection's socket is found by them, and a new
//! connection's is the proxy's listener, which nothing else leads to. Without a process
//! that listens, no packet is marked, and the filter refuses the connection. The rule is
//! after the NAT: what that has translated is not for the proxy.

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use futures::future::{FutureExt, LocalBoxFuture, TryFutureExt};

use super::nft::table::{Before, Table};
use super::{Managed, Trust};
use crate::config::{Frontend, Targets};
use crate::datapath;
use crate::fault::Fault;

/// The mark of packets to the proxy. The NAT uses marks for slots and for the addresses
/// of endpoints: this is neither, as a number far too large and as an address of class E.
pub const MARK: u32 = 0xff00_0001;

const TABLE: &str = "ip lb-svc-proxy";

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's name.
    pub lan: String,
    /// Where the proxy listens.
    pub listener: SocketAddrV4,
    /// The proxied frontends, with the targets that the proxy connects to.
    pub targets: Targets,
}

/// The table in the kernel, by the script that made it. Without anything to hand over
/// there is none.
pub struct Redirect(Table<String>);

impl Default for Redirect {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Managed for Redirect {
    fn ensure<'a>(
        &'a mut self,
        desired: &'a datapath::Desired,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        let wanted = desired.proxy.as_ref().map(script).unwrap_or_default();
        let text = wanted.clone();
        let make = |before: Before<'_, String>| {
            if text.is_empty() { before.removal(TABLE, String::is_empty) } else { text }
        };
        let ensured = self.0.ensure(wanted, trust, make);
        ensured
            .map(|ensured| match ensured {
                // Where nothing is proxied, nothing depends on it.
                Err(error) if desired.proxy.is_none() && error.means_no_nftables() => Ok(false),
                ensured => ensured,
            })
            .map_err(|error| Fault::ProxyFailed(error.to_string()))
            .boxed_local()
    }
}

/// Replaces the table, whatever it is, in one transaction.
fn script(desired: &Desired) -> String {
    let Desired { lan, listener, targets } = desired;
    let mut text = format!(
        "add table {TABLE}
delete table {TABLE}
add table {TABLE}
add set {TABLE} proxied {{ type ipv4_addr . inet_service; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority -90; policy accept; }}
add rule {TABLE} arriving iifname \"{lan}\" meta l4proto tcp ip daddr . tcp dport @proxied tproxy to {listener} meta mark set {MARK:#x}
"
    );
    for Frontend { address, port, .. } in targets.keys() {
        let _ = writeln!(text, "add element {TABLE} proxied {{ {address} . {port} }}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Target;
    use lb_svc_crds::gateway::Transport;

    #[test]
    fn script_hands_over_the_proxied_frontends_and_no_other() {
        let frontend = |port| Frontend { address: [172, 18, 0, 18].into(), transport: Transport::Tcp, port };
        let target = Target::ClusterIp([10, 109, 201, 193].into());
        let desired = Desired {
            lan: "net1".to_owned(),
            listener: "127.0.0.1:4711".parse().unwrap(),
            targets: [(frontend(80), target.clone()), (frontend(443), target)].into(),
        };
        let expected = "\
add table ip lb-svc-proxy
delete table ip lb-svc-proxy
add table ip lb-svc-proxy
add set ip lb-svc-proxy proxied { type ipv4_addr . inet_service; }
add chain ip lb-svc-proxy arriving { type filter hook prerouting priority -90; policy accept; }
add rule ip lb-svc-proxy arriving iifname \"net1\" meta l4proto tcp ip daddr . tcp dport @proxied tproxy to 127.0.0.1:4711 meta mark set 0xff000001
add element ip lb-svc-proxy proxied { 172.18.0.18 . 80 }
add element ip lb-svc-proxy proxied { 172.18.0.18 . 443 }
";
        assert_eq!(script(&desired), expected);
    }
}
