//! Strays: packets of connections that this pod does not know and another pod of the
//! gateway may, an nftables table programmed in the background.
//!
//! After the addresses have moved, clients of earlier connections send to the new owner.
//! Only the pod that led a connection knows its masquerade, so the packet is handed on:
//!
//! ```text
//!   client ──▶ active pod ──▶ next pod ──▶ … ──▶ the pod that knows it ──▶ target
//!                 (1)            (2)                        │
//!   client ◀────────────────────────────────────────────────┘
//! ```
//!
//! The pods are a ring in the order of their hardware addresses. A packet's DSCP counts
//! how often it was handed on; from others than the gateway's pods it is not believed.
//! The last pod of the ring resets a connection that none knows, so a stray is copied at
//! most as often as there are pods, whatever it is.
//!
//! Of TCP everything but a first SYN tells that there was a connection; FIN and RST of an
//! unknown one are invalid for conntrack, all else is new. A flow of UDP has no beginning
//! to tell, and goes on by the new owner.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use lb_svc_crds::gateway::Transport;

use super::background::BackgroundTable;
use super::nft::table::Before;
use crate::config::Services;
use crate::l2::arp::{Mac, format_mac};

const TABLE: &str = "ip lb-svc-strays";

/// The address that stands for the next pod of the ring: a neighbour of the LAN interface
/// with that pod's hardware address. Link-local, and on no wire.
pub const NEXT_POD: Ipv4Addr = Ipv4Addr::new(169, 254, 116, 1);

/// Most pods that a ring has: with each a packet's DSCP is one higher.
const RING_MAX: usize = 32;

/// The table.
pub const STRAYS: BackgroundTable<Option<HandOver>> =
    BackgroundTable { name: TABLE, consequence: "connections end when the addresses move", script };

/// What strays are recognised by, and handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The LAN interface's name.
    pub lan: String,
    /// The TCP ports served.
    pub served: BTreeSet<SocketAddrV4>,
    /// The gateway's other pods.
    pub peers: BTreeSet<Mac>,
}

impl HandOver {
    /// What the other pods are handed of these frontends; `None` where there is no other
    /// pod.
    pub fn new(lan: &str, services: &Services, peers: &BTreeSet<Mac>) -> Option<Self> {
        let tcp = services.keys().filter(|frontend| frontend.transport == Transport::Tcp);
        let served = tcp.map(|frontend| SocketAddrV4::new(frontend.address, frontend.port)).collect();
        let peers: BTreeSet<Mac> = peers.iter().copied().take(RING_MAX - 1).collect();
        (!peers.is_empty()).then(|| Self { lan: lan.to_owned(), served, peers })
    }
}

/// The pod that follows `own` in the ring.
pub fn next_in_ring(own: Mac, peers: &BTreeSet<Mac>) -> Option<Mac> {
    peers.range(own..).find(|mac| **mac != own).or_else(|| peers.first()).copied()
}

fn script(desired: &Option<HandOver>, before: &Before<'_, Option<HandOver>>) -> String {
    match desired {
        Some(hand_over) => table(hand_over),
        None => before.removal(TABLE, Option::is_none),
    }
}

fn table(HandOver { lan, served, peers }: &HandOver) -> String {
    let mut text = format!(
        "add table {TABLE}
delete table {TABLE}
add table {TABLE}
add set {TABLE} served {{ type ipv4_addr . inet_service; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority -108; policy accept; }}
add chain {TABLE} stray
add chain {TABLE} hand_on
add chain {TABLE} unknown
"
    );
    let mut rule = |chain: &str, rule: &str| {
        let _ = writeln!(text, "add rule {TABLE} {chain} {rule}");
    };
    rule("arriving", "ct state established,related accept");
    rule("arriving", &format!("iifname != \"{lan}\" accept"));
    let no_first = "tcp flags & (fin | syn | rst | ack) != syn";
    rule("arriving", &format!("{no_first} ip daddr . tcp dport @served goto stray"));
    let addresses: BTreeSet<&Ipv4Addr> = served.iter().map(SocketAddrV4::ip).collect();
    if !addresses.is_empty() {
        // About a packet of such a connection: that it was too large, for one.
        let addresses = addresses.into_iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
        let errors = "ct state invalid icmp type destination-unreachable";
        rule("arriving", &format!("{errors} ip daddr {{ {addresses} }} goto stray"));
    }
    let from_peer = peers.iter().copied().map(format_mac).collect::<Vec<_>>().join(", ");
    let from_peer = format!("ether saddr {{ {from_peer} }}");
    let last = peers.len();
    rule("stray", &format!("{from_peer} ip dscp >= {last} goto unknown"));
    for count in (1..last).rev() {
        rule("stray", &format!("{from_peer} ip dscp {count} ip dscp set {} goto hand_on", count + 1));
    }
    rule("stray", "ip dscp set 1 goto hand_on");
    rule("hand_on", &format!("dup to {NEXT_POD} device \"{lan}\" drop"));
    rule("unknown", "ct state new meta l4proto tcp reject with tcp reset");
    rule("unknown", "drop");
    for to in served {
        let _ = writeln!(text, "add element {TABLE} served {{ {} . {} }}", to.ip(), to.port());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Frontend;
    use crate::datapath::nft::dump::Contents;

    fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn hand_over(peers: &[u8]) -> Option<HandOver> {
        let address = "172.18.0.18".parse().unwrap();
        let frontend = |transport, port| (Frontend { address, transport, port }, "default/web".into());
        let services = [frontend(Transport::Tcp, 80), frontend(Transport::Udp, 53)].into();
        HandOver::new("net1", &services, &peers.iter().copied().map(mac).collect())
    }

    #[test]
    fn ring_visits_each_pod_once() {
        for count in 2..6u8 {
            let pods: BTreeSet<Mac> = (1..=count).map(mac).collect();
            let mut visited = BTreeSet::new();
            let mut at = mac(2);
            for _ in 0..count {
                assert!(visited.insert(at));
                let mut peers = pods.clone();
                peers.remove(&at);
                at = next_in_ring(at, &peers).unwrap();
            }
            assert_eq!((at, visited), (mac(2), pods));
        }
        assert_eq!(next_in_ring(mac(1), &BTreeSet::new()), None);
    }

    #[test]
    fn stray_ends_at_the_last_pod_of_the_ring() {
        let text = table(&hand_over(&[1, 3, 4]).unwrap());
        let rules: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("add rule ip lb-svc-strays stray ")).collect();
        let from_peer = "ether saddr { 02:00:00:00:00:01, 02:00:00:00:00:03, 02:00:00:00:00:04 }";
        let expected = [
            format!("{from_peer} ip dscp >= 3 goto unknown"),
            format!("{from_peer} ip dscp 2 ip dscp set 3 goto hand_on"),
            format!("{from_peer} ip dscp 1 ip dscp set 2 goto hand_on"),
            "ip dscp set 1 goto hand_on".to_owned(),
        ];
        assert_eq!(rules, expected);
        assert!(text.ends_with("served { 172.18.0.18 . 80 }\n") && !text.contains(" 53 "), "{text}");
    }

    #[test]
    fn table_exists_while_there_is_another_pod() {
        let (alone, two) = (hand_over(&[]), hand_over(&[1]));
        assert_eq!(alone, None);
        let nothing = Contents::default();
        assert_eq!(script(&alone, &Before::AsFound(&nothing)), "");
        assert_eq!(script(&alone, &Before::AsApplied(&alone)), "");
        assert_eq!(script(&alone, &Before::AsApplied(&two)), "delete table ip lb-svc-strays\n");
        assert!(script(&two, &Before::AsFound(&nothing)).starts_with("add table"));
    }

    #[test]
    fn ring_is_bounded() {
        let peers: Vec<u8> = (1..=200).collect();
        assert_eq!(hand_over(&peers).unwrap().peers.len(), RING_MAX - 1);
    }
}
