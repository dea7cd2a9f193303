//! Conntrack timeouts of served TCP connections, an nftables table programmed in
//! the background.
//!
//! An entry occupies a source port towards its target, of which a masquerade has
//! 64,512 for each target. With the kernel's own timeouts most of them would be
//! occupied by connections that are long gone.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use lb_svc_crds::gateway::Transport;

use super::background::BackgroundTable;
use super::nft::table::Before;
use crate::config::{Frontend, Services};

const TABLE: &str = "ip lb-svc-timeouts";

/// Timeouts in seconds; the others are the kernel's.
///
/// - `established`: a connection that is idle for a day counts as dead, as for the
///   nodes' kube-proxy.
/// - `close_wait`: of a connection that one end has closed, the other end may take an
///   hour for its answer, as for the nodes' kube-proxy. The kernel's own are 60 s.
/// - `time_wait`: after both ends have closed, the target may be in TIME_WAIT for
///   60 s. If the tuple were reused sooner, with the timestamps of another client,
///   the target would drop the segment as old (PAWS, RFC 7323). So a little longer.
/// - `close`: after a reset neither end keeps state. The kernel accepts only a reset
///   with the exact sequence number.
const POLICY: &str = "established : 86400, close_wait : 3600, time_wait : 62, close : 2";

/// The table. It applies to new connections only.
pub const TIMEOUTS: BackgroundTable<Services> =
    BackgroundTable { name: TABLE, consequence: "connections keep the kernel's own timeouts", script };

fn script(services: &Services, before: &Before<'_, Services>) -> String {
    let ports = ports(services);
    match before {
        _ if ports.is_empty() => before.removal(TABLE, |before| self::ports(before).is_empty()),
        Before::AsApplied(before) if ports == self::ports(before) => String::new(),
        _ => table(&ports),
    }
}

fn ports(services: &Services) -> BTreeSet<&Frontend> {
    services.keys().filter(|frontend| frontend.transport == Transport::Tcp).collect()
}

// A chain of type nat, though it translates nothing: the kernel evaluates those once
// per connection, and others for each packet.
fn table(ports: &BTreeSet<&Frontend>) -> String {
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
    for Frontend { address, port, .. } in ports {
        let _ = writeln!(text, "add element {TABLE} served {{ {address} . {port} }}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::nft::dump::Contents;

    fn services(ports: &[(Transport, u16)]) -> Services {
        let address = "172.18.0.18".parse().unwrap();
        let service = |&(transport, port)| (Frontend { address, transport, port }, "default/web".into());
        ports.iter().map(service).collect()
    }

    #[test]
    fn table_exists_while_a_tcp_port_is_served() {
        use Transport::{Tcp, Udp};
        let (none, web) = (services(&[(Udp, 53)]), services(&[(Udp, 53), (Tcp, 80)]));
        let nothing = Contents::default();
        assert_eq!(script(&none, &Before::AsFound(&nothing)), "");
        let made = script(&web, &Before::AsFound(&nothing));
        assert!(made.ends_with("add element ip lb-svc-timeouts served { 172.18.0.18 . 80 }\n"), "{made}");
        assert!(!made.contains("53"), "{made}");
        assert_eq!(script(&services(&[(Tcp, 80)]), &Before::AsApplied(&web)), "", "UDP does not matter");
        assert_eq!(script(&none, &Before::AsApplied(&web)), "delete table ip lb-svc-timeouts\n");
    }
}
