//! The right to answer for the addresses, as a lease in the kernel that the
//! gateway's own advertisements renew as they leave, and that expires by itself.
//!
//! ```text
//!   table netdev lb-svc, on the LAN interface
//!     lease: a set that contains the interface while the lease is held
//!     late:  a set that contains it for a while after it was given up
//!     in:    without the lease, drops what comes in for the addresses, ARP included
//!     out:   without the lease, drops what goes out from the addresses
//!     own:   changes the lease by the first byte of an election frame:
//!              TakeOver               starts or renews it
//!              Advertisement          renews it; without it, the frame is dropped
//!              ExtendedAdvertisement  the same, for longer
//!              Resign                 ends it
//! ```
//!
//! ARP is the lease's alone, so that neighbours learn of one owner. Connections outlast
//! it: a pod without the lease takes packets for the addresses from the gateway's other
//! pods, which [hand strays over](crate::datapath::strays), and for 2 s after a
//! Resign from everybody, as neighbours learn of the new owner one after the other. What
//! goes out from the addresses has [`OWN_CONNECTION`], or is dropped.
//!
//! So what the other members receive and what the kernel does cannot differ. A
//! process that is killed, stopped or starved sends nothing, and its kernel stops
//! answering when the lease expires; when it runs again, it cannot renew an expired
//! lease, and learns that from the frame that could not be sent. Needs Linux 5.16
//! (the netdev family's egress hook) and NET_ADMIN.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::datapath::nft::table::Table;
use crate::datapath::{OWN_CONNECTION, Trust};
use crate::fault::Fault;
use crate::l2::arp::{Mac, format_mac};
use lb_svc_election::{ETHERTYPE, Kind, extended, lease_time};

const TABLE: &str = "netdev lb-svc";
/// For how long after a Resign packets are taken that neighbours still send here. The
/// new owner has announced itself several times by then.
const LATE: Duration = Duration::from_secs(2);

/// What the lease protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's name.
    pub lan: String,
    /// The gateway's addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// The hardware addresses of the gateway's other pods.
    pub peers: BTreeSet<Mac>,
    /// The advertisement interval, on which the lease's duration depends.
    pub interval: Duration,
}

/// The lease's table in the kernel.
pub struct Lease(Table<Desired>);

impl Default for Lease {
    fn default() -> Self {
        Self(Table::new(TABLE))
    }
}

impl Lease {
    /// Programs the table. A lease that is held stays held.
    ///
    /// # Errors
    /// If nft or the kernel fails.
    pub async fn ensure(&mut self, desired: &Desired, trust: Trust) -> Result<(), Fault> {
        let script = script(desired);
        if self.0.ensure(desired.clone(), trust, |_| script.clone()).await.is_err() {
            // The existing table has another shape: it is of another interface.
            let anew = format!("add table {TABLE}\ndelete table {TABLE}\n{script}");
            let made = self.0.ensure(desired.clone(), Trust::Unverified, |_| anew).await;
            made.map_err(|error| Fault::LeaseFailed(error.to_string()))?;
        }
        Ok(())
    }
}

// The set has room for expired elements that were not collected yet: a full set
// would refuse the lease.
fn script(desired: &Desired) -> String {
    let Desired { lan, addresses, peers, interval } = desired;
    let addresses = addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "add table {TABLE}
add set {TABLE} lease {{ type iface_index; size 256; flags dynamic, timeout; }}
add set {TABLE} late {{ type iface_index; size 256; flags dynamic, timeout; }}
add chain {TABLE} in {{ type filter hook ingress device \"{lan}\" priority 0; policy accept; }}
add chain {TABLE} out {{ type filter hook egress device \"{lan}\" priority 0; policy accept; }}
add chain {TABLE} own
flush table {TABLE}
"
    );
    let mut rule = |chain: &str, rule: &str| {
        let _ = writeln!(text, "add rule {TABLE} {chain} {rule}");
    };
    let mut own = |kind: Kind, what: &str| rule("own", &format!("@nh,0,8 {} {what}", kind as u8));
    let renew = |time: Duration| format!("update @lease {{ oif timeout {}ms }}", time.as_millis());
    let (short, long) = (renew(lease_time(*interval)), renew(lease_time(extended(*interval))));
    own(Kind::TakeOver, &short);
    for (kind, renew) in [(Kind::Advertisement, &short), (Kind::ExtendedAdvertisement, &long)] {
        own(kind, "oif != @lease drop");
        own(kind, renew);
    }
    own(
        Kind::Resign,
        &format!("delete @lease {{ oif }} update @late {{ oif timeout {}ms }}", LATE.as_millis()),
    );
    rule("own", "accept");
    rule("in", "iif @lease accept");
    rule("out", &format!("ether type {ETHERTYPE:#06x} goto own"));
    rule("out", "oif @lease accept");
    if !addresses.is_empty() {
        rule("in", &format!("arp daddr ip {{ {addresses} }} drop"));
        rule("in", "iif @late accept");
        if !peers.is_empty() {
            let peers = peers.iter().copied().map(format_mac).collect::<Vec<_>>().join(", ");
            rule("in", &format!("ether saddr {{ {peers} }} accept"));
        }
        rule("in", &format!("ip daddr {{ {addresses} }} drop"));
        rule("out", &format!("arp saddr ip {{ {addresses} }} drop"));
        let other = format!("meta mark and {OWN_CONNECTION:#x} == 0");
        rule("out", &format!("ip saddr {{ {addresses} }} {other} drop"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_holds_addresses_to_the_lease() {
        let desired = Desired {
            lan: "net1".to_owned(),
            addresses: vec!["172.18.0.18".parse().unwrap(), "172.18.0.19".parse().unwrap()],
            peers: [[2, 0, 0, 0, 0, 1]].into(),
            interval: Duration::from_millis(50),
        };
        let expected = "\
add table netdev lb-svc
add set netdev lb-svc lease { type iface_index; size 256; flags dynamic, timeout; }
add set netdev lb-svc late { type iface_index; size 256; flags dynamic, timeout; }
add chain netdev lb-svc in { type filter hook ingress device \"net1\" priority 0; policy accept; }
add chain netdev lb-svc out { type filter hook egress device \"net1\" priority 0; policy accept; }
add chain netdev lb-svc own
flush table netdev lb-svc
add rule netdev lb-svc own @nh,0,8 3 update @lease { oif timeout 150ms }
add rule netdev lb-svc own @nh,0,8 2 oif != @lease drop
add rule netdev lb-svc own @nh,0,8 2 update @lease { oif timeout 150ms }
add rule netdev lb-svc own @nh,0,8 4 oif != @lease drop
add rule netdev lb-svc own @nh,0,8 4 update @lease { oif timeout 450ms }
add rule netdev lb-svc own @nh,0,8 1 delete @lease { oif } update @late { oif timeout 2000ms }
add rule netdev lb-svc own accept
add rule netdev lb-svc in iif @lease accept
add rule netdev lb-svc out ether type 0x88b5 goto own
add rule netdev lb-svc out oif @lease accept
add rule netdev lb-svc in arp daddr ip { 172.18.0.18, 172.18.0.19 } drop
add rule netdev lb-svc in iif @late accept
add rule netdev lb-svc in ether saddr { 02:00:00:00:00:01 } accept
add rule netdev lb-svc in ip daddr { 172.18.0.18, 172.18.0.19 } drop
add rule netdev lb-svc out arp saddr ip { 172.18.0.18, 172.18.0.19 } drop
add rule netdev lb-svc out ip saddr { 172.18.0.18, 172.18.0.19 } meta mark and 0x1000 == 0 drop
";
        assert_eq!(script(&desired), expected);
    }
}
