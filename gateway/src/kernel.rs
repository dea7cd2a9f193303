//! The part of the kernel's network state that the gateway reads and owns, as
//! plain values: what netlink dumps say and what a plan is made of.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The routing table that is the gateway's alone.
pub const TABLE: u32 = 100;
/// The pod's own routing table (`RT_TABLE_MAIN`).
pub const MAIN: u32 = 254;

/// `RTN_UNICAST`.
pub const UNICAST: u8 = 1;
/// `RTPROT_BOOT`: what `ip route` sets and therefore does not print.
const BOOT: u8 = 3;
/// `RT_SCOPE_UNIVERSE`.
const UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`.
const LINK: u8 = 253;

/// One dump of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Interfaces.
    pub links: Vec<Link>,
    /// IPv4 addresses of all interfaces.
    pub addresses: Vec<Address>,
    /// IPv4 routes of [`TABLE`] and [`MAIN`].
    pub routes: Vec<Route>,
    /// IPv4 rules.
    pub rules: Vec<Rule>,
    /// The `rp_filter` of `all` interfaces.
    pub rp_filter: u32,
}

impl Kernel {
    /// The interface with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The way from the pod's own table to `address`: the longest prefix, of
    /// those the lowest metric.
    pub fn route_to(&self, address: Ipv4Addr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.table == MAIN && route.tos == 0 && route.destination.contains(&address))
            .min_by_key(|route| (std::cmp::Reverse(route.destination.prefix_len()), route.metric))
            .filter(|route| route.kind == UNICAST)
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// `ifindex`.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, of interfaces that have one.
    pub mac: Option<[u8; 6]>,
    /// Administratively up.
    pub up: bool,
    /// Up and with carrier.
    pub running: bool,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
    /// Per-interface IPv4 settings.
    pub settings: Vec<(Setting, u32)>,
}

/// A per-interface IPv4 setting, by its number in `linux/ip.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Setting {
    /// `forwarding`.
    Forwarding = 1,
    /// `accept_redirects`.
    AcceptRedirects = 4,
    /// `send_redirects`.
    SendRedirects = 6,
    /// `rp_filter`.
    RpFilter = 8,
    /// `arp_announce`.
    ArpAnnounce = 18,
    /// `arp_ignore`.
    ArpIgnore = 19,
    /// `promote_secondaries`.
    PromoteSecondaries = 20,
    /// `accept_local`.
    AcceptLocal = 23,
}

/// An IPv4 address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub interface: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// `scope global`.
    pub global: bool,
    /// `noprefixroute`.
    pub no_prefix_route: bool,
    /// No peer.
    pub plain: bool,
}

/// An IPv4 route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Where to.
    pub destination: Ipv4Net,
    /// `dsfield`.
    pub tos: u8,
    /// `metric`.
    pub metric: u32,
    /// Unicast, blackhole and so on (`RTN_*`).
    pub kind: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTPROT_*`.
    pub protocol: u8,
    /// The first or only next hop.
    pub hop: Hop,
    /// Nothing else about it: no source, metrics, further next hops.
    pub plain: bool,
}

impl Route {
    /// A route such as the gateway adds.
    pub fn unicast(table: u32, destination: Ipv4Net, hop: Hop) -> Self {
        let scope = match hop {
            Hop::Direct { .. } => LINK,
            Hop::Via { .. } | Hop::Other => UNIVERSE,
        };
        Self { table, destination, tos: 0, metric: 0, kind: UNICAST, scope, protocol: BOOT, hop, plain: true }
    }

    /// What the kernel takes for one and the same route when it is told to
    /// replace.
    pub fn key(&self) -> (u32, Ipv4Net, u8, u32) {
        (self.table, self.destination, self.tos, self.metric)
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Straight onto an interface.
    Direct {
        /// The interface.
        oif: u32,
    },
    /// To a router.
    Via {
        /// The interface.
        oif: u32,
        /// The router.
        gateway: Ipv4Addr,
        /// Reachable without a route of its own.
        onlink: bool,
    },
    /// Something the gateway never sets: no interface, an IPv6 router.
    Other,
}

impl Hop {
    /// The interface it leaves by.
    pub fn interface(self) -> Option<u32> {
        match self {
            Self::Direct { oif } | Self::Via { oif, .. } => Some(oif),
            Self::Other => None,
        }
    }
}

/// An IPv4 rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place.
    pub priority: u32,
    /// The table looked up, 0 for other actions.
    pub table: u32,
    /// `from`.
    pub source: Option<Ipv4Net>,
    /// `iif`.
    pub iif: Option<String>,
    /// No other selector, no other action than the lookup.
    pub plain: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, metric: u32, oif: u32) -> Route {
        Route { metric, ..Route::unicast(MAIN, destination.parse().unwrap(), Hop::Direct { oif }) }
    }

    #[test]
    fn the_longest_prefix_of_the_main_table_wins() {
        let mut kernel = Kernel {
            routes: vec![
                route("0.0.0.0/0", 0, 1),
                route("10.0.0.0/8", 0, 2),
                route("10.96.0.0/12", 100, 3),
                route("10.96.0.0/12", 10, 4),
                Route { table: TABLE, ..route("10.96.0.1/32", 0, 5) },
            ],
            ..Kernel::default()
        };
        let via = |kernel: &Kernel, ip: [u8; 4]| {
            kernel.route_to(Ipv4Addr::from(ip)).and_then(|r| r.hop.interface())
        };
        assert_eq!(via(&kernel, [10, 96, 0, 1]), Some(4));
        assert_eq!(via(&kernel, [10, 1, 0, 1]), Some(2));
        assert_eq!(via(&kernel, [192, 0, 2, 1]), Some(1));
        // A blackhole is a way to nowhere, not past itself.
        kernel.routes.push(Route { kind: 6, ..route("10.96.0.1/32", 0, 0) });
        assert_eq!(via(&kernel, [10, 96, 0, 1]), None);
    }
}
