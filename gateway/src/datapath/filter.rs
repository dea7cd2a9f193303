//! The packet filter, an nftables table with either NAT back end: what is
//! forwarded, what reaches the pod itself, and which way its ICMP errors leave.
//!
//! Every packet traverses it, so it is not of iptables, whose rules cost more.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use futures::future::{FutureExt, LocalBoxFuture, TryFutureExt};

use super::nft::dump::{self, Contents};
use super::nft::table::Table;
use super::nft::transaction::Error;
use super::redirect::MARK;
use super::{Managed, OWN_CONNECTION, Trust};
use crate::datapath;
use crate::fault::Fault;
use crate::limit::Limit;

const TABLE: &str = "ip lb-svc-filter";
/// The table that keeps IPv6 off the LAN interface.
const IPV6_TABLE: &str = "ip6 lb-svc-filter";
/// Exists where the kernel has IPv6.
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";

/// What the filter depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's name.
    pub lan: String,
    /// The gateway's addresses on it.
    pub addresses: Vec<Ipv4Addr>,
    /// The addresses and TCP ports that the proxy serves.
    pub proxied: BTreeSet<SocketAddrV4>,
}

/// The tables in the kernel.
pub struct Filter {
    ipv4: Table<Desired>,
    /// By the LAN interface's name.
    ipv6: Table<String>,
    /// Why that one is missing.
    ipv6_failure: Option<String>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { ipv4: Table::new(TABLE), ipv6: Table::new(IPV6_TABLE), ipv6_failure: None }
    }
}

impl Filter {
    async fn program(&mut self, desired: &Desired, trust: Trust) -> Result<bool, Error> {
        let mut changed = self.ipv4.ensure(desired.clone(), trust, |_| script(desired)).await?;
        changed |= self.program_ipv6(&desired.lan, trust).await;
        Ok(changed)
    }

    /// Nothing of IPv4 waits for this: a kernel may have IPv6 and no nf_tables for it.
    /// What failed is tried again with the next look for drift.
    async fn program_ipv6(&mut self, lan: &str, trust: Trust) -> bool {
        let has_ipv6 = std::path::Path::new(IPV6_ADDRESSES).exists();
        if has_ipv6 && self.ipv6_failure.is_some() && trust == Trust::AsApplied {
            return false;
        }
        self.ipv6_failure = None;
        if !has_ipv6 {
            return false;
        }
        let ensured = self.ipv6.ensure(lan.to_owned(), trust, |_| ipv6_script(lan)).await;
        ensured.unwrap_or_else(|error| {
            self.ipv6_failure = Some(error.to_string());
            false
        })
    }
}

impl Managed for Filter {
    fn ensure<'a>(
        &'a mut self,
        desired: &'a datapath::Desired,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        let programmed = self.program(&desired.filter, trust);
        programmed.map_err(|error| Fault::FilterFailed(error.to_string())).boxed_local()
    }

    fn limits(&self) -> Vec<Limit> {
        self.ipv6_failure.iter().cloned().map(Limit::Ipv6NotBlocked).collect()
    }
}

/// Whether the filter stands, of this process or a previous one.
///
/// # Errors
/// If the kernel does not say.
pub async fn exists() -> Result<bool, Fault> {
    stands(dump::read(TABLE).await).map_err(|error| Fault::FilterFailed(error.to_string()))
}

/// What reading the table says. That it cannot be read does not mean that there is none.
fn stands(read: io::Result<Contents>) -> Result<bool, Error> {
    match read.map_err(Error::Read) {
        Err(error) if error.means_no_nftables() => Ok(false),
        read => read.map(|contents| !contents.is_empty()),
    }
}

/// Nothing is served by IPv6: on the LAN interface it is dropped in every direction,
/// the advertisements and redirects of routers and what the kernel itself sends
/// included.
fn ipv6_script(lan: &str) -> String {
    let table = IPV6_TABLE;
    format!(
        "add table {table}
delete table {table}
add table {table}
add chain {table} passing {{ type filter hook forward priority 0; policy accept; }}
add chain {table} own {{ type filter hook input priority 0; policy accept; }}
add chain {table} leaving {{ type filter hook output priority 0; policy accept; }}
add rule {table} passing iifname \"{lan}\" drop
add rule {table} passing oifname \"{lan}\" drop
add rule {table} own iifname \"{lan}\" drop
add rule {table} leaving oifname \"{lan}\" drop
"
    )
}

/// Replaces the table, whatever it is, in one transaction: no packet passes
/// unfiltered.
fn script(desired: &Desired) -> String {
    let Desired { lan, addresses, proxied } = desired;
    // The gateway is no router: only DNATed connections pass between the LAN and
    // the pods, and the ICMP errors related to them.
    let mut text = format!(
        "add table {TABLE}
delete table {TABLE}
add table {TABLE}
add chain {TABLE} passing {{ type filter hook forward priority 0; policy accept; }}
add chain {TABLE} own {{ type filter hook input priority 0; policy accept; }}
add rule {TABLE} passing ct direction reply ct status dnat meta mark set meta mark or {OWN_CONNECTION:#x}
add rule {TABLE} passing tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
add rule {TABLE} passing ct status dnat accept
add rule {TABLE} passing ct state related accept
add rule {TABLE} passing iifname \"{lan}\" drop
add rule {TABLE} passing oifname \"{lan}\" drop
"
    );
    // What the proxy has a socket for is its own, whatever conntrack knows of it.
    if !proxied.is_empty() {
        let ports = proxied.iter().map(|at| format!("{} . {}", at.ip(), at.port()));
        let ports = ports.collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "add rule {TABLE} own iifname \"{lan}\" meta mark {MARK:#x} ip daddr . tcp dport {{ {ports} }} accept"
        );
    }
    // A reply that conntrack cannot match would be delivered to the pod itself,
    // which would reset a working connection.
    let _ = writeln!(text, "add rule {TABLE} own ct state invalid drop");
    // Ports that are not served are refused at once, whatever listens in the pod;
    // and no conntrack entry remains that would keep a flow from being DNATed once
    // the port is served.
    for address in addresses {
        let to = format!("add rule {TABLE} own iifname \"{lan}\" ip daddr {address}");
        let _ = writeln!(text, "{to} ip protocol icmp accept");
        let _ = writeln!(text, "{to} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(text, "{to} meta l4proto udp reject with icmp port-unreachable");
    }
    let _ = writeln!(text, "add rule {TABLE} own iifname \"{lan}\" drop");
    // What the pod itself sends on a connection: a reset.
    if !addresses.is_empty() {
        let from = addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "add chain {TABLE} leaving {{ type filter hook output priority 0; policy accept; }}
add rule {TABLE} leaving ip saddr {{ {from} }} meta l4proto tcp meta mark set meta mark or {OWN_CONNECTION:#x}"
        );
    }
    // The pod's own ICMP errors about forwarded packets (fragmentation needed, time
    // exceeded) have the pod's address until the NAT translates them, so they would
    // leave by the pod network. From the address that the client sent to, the rule for
    // what the pod itself sends applies: a chain of type route looks the way up anew.
    let _ = writeln!(
        text,
        "add chain {TABLE} errors {{ type route hook output priority -150; policy accept; }}
add rule {TABLE} errors ip protocol icmp ct state related ct direction reply ct status dnat ip saddr set ct original ip daddr"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;

    #[test]
    fn r44_filter_that_cannot_be_read_is_not_taken_to_be_missing() {
        let errno = |code| Err(io::Error::from_raw_os_error(code));
        assert!(!stands(Ok(Contents::default())).unwrap());
        assert!(!stands(errno(libc::EINVAL)).unwrap(), "without nf_tables there is none");
        for code in [libc::ENOBUFS, libc::ENOMEM, libc::EINTR, libc::ETIMEDOUT] {
            assert!(matches!(stands(errno(code)), Err(Error::Read(_))), "{code}");
        }
    }

    #[test]
    fn address_accepts_pings_and_refuses_the_rest() {
        let addresses = ["172.18.0.18", "172.18.0.19"].map(|text| text.parse().unwrap());
        let proxied = BTreeSet::new();
        let text = script(&Desired { lan: "net1".to_owned(), addresses: addresses.to_vec(), proxied });
        for address in addresses {
            let to = format!("add rule {TABLE} own iifname \"net1\" ip daddr {address} ");
            let what: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&to)).collect();
            let refused = ["tcp reject with tcp reset", "udp reject with icmp port-unreachable"];
            assert_eq!(what[0], "ip protocol icmp accept");
            assert_eq!(what[1..], refused.map(|what| format!("meta l4proto {what}")));
        }
        assert!(text.contains("own iifname \"net1\" drop\n"), "{text}");
        assert!(!text.contains(&format!("{MARK:#x}")), "{text}");
    }

    #[test]
    fn proxied_port_is_accepted_by_its_mark_and_before_anything_is_refused() {
        let proxied = ["172.18.0.18:80", "172.18.0.18:443"].map(|text| text.parse().unwrap()).into();
        let addresses = vec!["172.18.0.18".parse().unwrap()];
        let text = script(&Desired { lan: "net1".to_owned(), addresses, proxied });
        let own: Vec<_> =
            text.lines().filter(|line| line.starts_with("add rule ip lb-svc-filter own")).collect();
        let expected = "iifname \"net1\" meta mark 0xff000001 ip daddr . tcp dport { 172.18.0.18 . 80, 172.18.0.18 . 443 } accept";
        assert_eq!(own[0], format!("add rule ip lb-svc-filter own {expected}"));
        assert!(own[1].ends_with("ct state invalid drop"), "{}", own[1]);
    }
}
