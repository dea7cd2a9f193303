//! The kernel's network state as values: interfaces, addresses, routes and rules,
//! as rtnetlink dumps them and as the plan compares them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ipv6::Ipv6State;
use super::policy::MAIN;

/// `RTN_UNICAST`.
pub const UNICAST: u8 = 1;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;
/// `RTPROT_BOOT`, which `ip route` sets, and therefore does not print.
const BOOT: u8 = 3;
/// `RT_SCOPE_UNIVERSE`.
const UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`.
const LINK: u8 = 253;
/// `RT_SCOPE_HOST`.
const HOST: u8 = 254;
/// The `ifindex` of the loopback interface (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// The pod's network state at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// Interfaces.
    pub links: Vec<Link>,
    /// IPv4 addresses of all interfaces.
    pub addresses: Vec<Address>,
    /// IPv4 routes of [`GATEWAY`](super::policy::GATEWAY),
    /// [`ENDPOINTS`](super::policy::ENDPOINTS), [`PROXY`](super::policy::PROXY) and
    /// [`MAIN`].
    pub routes: Vec<Route>,
    /// IPv4 rules.
    pub rules: Vec<Rule>,
    /// Permanent IPv4 neighbours.
    pub neighbours: Vec<Neighbour>,
    /// IPv6, as far as the kernel made it.
    pub ipv6: Ipv6State,
    /// The setting `rp_filter` of `all` interfaces.
    pub rp_filter: u32,
}

impl NetworkState {
    /// The interface with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether the pod's own table has routes by the interface `lan`, as its network's IPAM
    /// makes them.
    pub fn has_routes_to(&self, lan: u32) -> bool {
        self.routes.iter().any(|route| route.table == MAIN && route.hop.interface() == Some(lan))
    }

    /// The unicast route to `address` on the pod network, in the pod's own table:
    /// the longest prefix, of those the lowest metric. Routes by the interface `lan`
    /// do not count: its network's IPAM may have made a default route there.
    pub fn route_to(&self, address: Ipv4Addr, lan: u32) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.table == MAIN && route.tos == 0 && route.destination.contains(&address))
            .filter(|route| route.hop.interface() != Some(lan))
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
    /// Hardware address, if it is an Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Administratively up.
    pub up: bool,
    /// Up, and with carrier.
    pub running: bool,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
    /// Whether the kernel makes IPv6 addresses for it (`addrgenmode` is not `none`).
    pub makes_ipv6_addresses: bool,
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
    /// The interface's `ifindex`.
    pub interface: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
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
    /// Destination.
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
    /// Has no other attributes: no source, metrics, further next hops.
    pub plain: bool,
}

impl Route {
    /// A unicast route as the gateway adds it.
    pub fn unicast(table: u32, destination: Ipv4Net, hop: Hop) -> Self {
        let scope = match hop {
            Hop::Direct { .. } => LINK,
            Hop::Via { .. } | Hop::Other => UNIVERSE,
        };
        Self { table, destination, tos: 0, metric: 0, kind: UNICAST, scope, protocol: BOOT, hop, plain: true }
    }

    /// A route that delivers every packet to the pod itself.
    pub fn local(table: u32) -> Self {
        let hop = Hop::Direct { oif: LOOPBACK };
        Self { kind: LOCAL, scope: HOST, ..Self::unicast(table, Ipv4Net::default(), hop) }
    }

    /// The attributes by which the kernel finds the route to replace.
    pub fn key(&self) -> (u32, Ipv4Net, u8, u32) {
        (self.table, self.destination, self.tos, self.metric)
    }
}

/// The next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Directly connected.
    Direct {
        /// The interface's `ifindex`.
        oif: u32,
    },
    /// Via a router.
    Via {
        /// The interface's `ifindex`.
        oif: u32,
        /// The router.
        gateway: Ipv4Addr,
        /// `onlink`: reachable without a route of its own.
        onlink: bool,
    },
    /// Anything that the gateway never sets: no interface, an IPv6 router.
    Other,
}

impl Hop {
    /// The interface's `ifindex`, if there is one.
    pub fn interface(self) -> Option<u32> {
        match self {
            Self::Direct { oif } | Self::Via { oif, .. } => Some(oif),
            Self::Other => None,
        }
    }
}

/// A permanent IPv4 neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's `ifindex`.
    pub interface: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// An IPv4 rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `preference`.
    pub priority: u32,
    /// The table to look up, 0 for other actions.
    pub table: u32,
    /// `from`.
    pub source: Option<Ipv4Net>,
    /// `to`.
    pub destination: Option<Ipv4Net>,
    /// `iif`.
    pub iif: Option<String>,
    /// `fwmark`, all bits of it.
    pub mark: Option<u32>,
    /// Has no other selectors, and no other action than the lookup.
    pub plain: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::policy::GATEWAY;

    fn route(destination: &str, metric: u32, oif: u32) -> Route {
        Route { metric, ..Route::unicast(MAIN, destination.parse().unwrap(), Hop::Direct { oif }) }
    }

    #[test]
    fn b11_route_to_prefers_the_longest_prefix_of_the_main_table_off_the_lan() {
        const LAN: u32 = 9;
        let mut state = NetworkState {
            routes: vec![
                route("0.0.0.0/0", 0, 1),
                route("10.0.0.0/8", 0, 2),
                route("10.96.0.0/12", 100, 3),
                route("10.96.0.0/12", 10, 4),
                route("10.96.0.0/12", 1, LAN),
                route("10.96.0.1/32", 0, LAN),
                route("0.0.0.0/0", 0, LAN),
                Route { table: GATEWAY, ..route("10.96.0.1/32", 0, 5) },
            ],
            ..NetworkState::default()
        };
        let via = |state: &NetworkState, ip: [u8; 4]| {
            state.route_to(Ipv4Addr::from(ip), LAN).and_then(|r| r.hop.interface())
        };
        assert_eq!(via(&state, [10, 96, 0, 1]), Some(4));
        assert_eq!(via(&state, [10, 1, 0, 1]), Some(2));
        assert_eq!(via(&state, [192, 0, 2, 1]), Some(1));
        // A blackhole is no unicast route, and hides shorter prefixes.
        state.routes.push(Route { kind: 6, ..route("10.96.0.1/32", 0, 0) });
        assert_eq!(via(&state, [10, 96, 0, 1]), None);
    }
}
