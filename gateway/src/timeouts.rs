//! How long the kernel remembers the connections of TCP that are served, in an
//! nftables table of our own.
//!
//! While it remembers one, the connection's source port towards its target is
//! taken, and a masquerade has no more than 64,512 of them for each. The
//! kernel's own defaults would hold most of them for who is long gone.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use lb_svc_crds::gateway::Transport;

use crate::aside::Part;
use crate::config::{Served, Services};
use crate::nft::Before;

const TABLE: &str = "ip lb-svc-timeouts";

/// In seconds; what is not named here is as the kernel has it.
///
/// - One that was established and idle for a day is as good as dead: the nodes'
///   kube-proxy says so too.
/// - After the last of both ends the target may be in TIME_WAIT for 60 s. If the
///   same tuple came sooner, with the timestamps of another client, the target
///   would take it for an old packet and pass it over (PAWS, RFC 7323): so never
///   less than that, and a little more.
/// - After a reset nobody remembers anything. The kernel believes only a reset
///   that is exact.
const POLICY: &str = "established : 86400, time_wait : 62, close : 2";

/// The table. It concerns connections that are new; others stay as they are.
pub const PART: Part = Part { name: TABLE, lacking: "connections keep the kernel's own timeouts", script };

fn script(services: &Services, before: &Before<'_, Services>) -> String {
    let ports = ports(services);
    match before {
        Before::Found(held) if ports.is_empty() && held.is_empty() => String::new(),
        Before::Left(before) if ports == self::ports(before) => String::new(),
        _ if ports.is_empty() => format!("delete table {TABLE}\n"),
        _ => whole(&ports),
    }
}

fn ports(services: &Services) -> BTreeSet<&Served> {
    services.keys().filter(|served| served.transport == Transport::Tcp).collect()
}

// A chain for the NAT, though it changes nothing: the kernel asks those once for
// each connection, and others for each packet.
fn whole(ports: &BTreeSet<&Served>) -> String {
    let mut text = format!(
        "add table {TABLE}
add ct timeout {TABLE} short {{ protocol tcp; l3proto ip; policy = {{ {POLICY} }}; }}
add set {TABLE} served {{ type ipv4_addr . inet_service; }}
add chain {TABLE} opening {{ type nat hook prerouting priority -110; policy accept; }}
flush table {TABLE}
flush set {TABLE} served
add rule {TABLE} opening ip daddr . tcp dport @served ct timeout set \"short\"
"
    );
    for Served { address, port, .. } in ports {
        let _ = writeln!(text, "add element {TABLE} served {{ {address} . {port} }}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::Held;

    fn services(ports: &[(Transport, u16)]) -> Services {
        let address = "172.18.0.18".parse().unwrap();
        let served = |&(transport, port)| (Served { address, transport, port }, "default/web".into());
        ports.iter().map(served).collect()
    }

    #[test]
    fn there_is_a_table_while_a_port_of_tcp_is_served() {
        use Transport::{Tcp, Udp};
        let (none, web) = (services(&[(Udp, 53)]), services(&[(Udp, 53), (Tcp, 80)]));
        let nothing = Held::default();
        assert_eq!(script(&none, &Before::Found(&nothing)), "");
        let made = script(&web, &Before::Found(&nothing));
        assert!(made.ends_with("add element ip lb-svc-timeouts served { 172.18.0.18 . 80 }\n"), "{made}");
        assert!(!made.contains("53"), "{made}");
        assert_eq!(script(&services(&[(Tcp, 80)]), &Before::Left(&web)), "", "UDP is no matter");
        assert_eq!(script(&none, &Before::Left(&web)), "delete table ip lb-svc-timeouts\n");
    }
}
