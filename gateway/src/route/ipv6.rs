//! IPv6 on the LAN interface: nothing is served by it, so the interface is to have
//! no address and no route of its own making.
//!
//! The kernel makes both from router advertisements. The filter drops all IPv6 on
//! the LAN interface, further advertisements included; what came before it is
//! removed. Addresses and routes that something else in the pod configured stay.

use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

/// The IPv6 state of the pod's interfaces, as far as the kernel may have made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipv6State {
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Unicast routes that the kernel made: for addresses, from router
    /// advertisements, from redirects.
    pub routes: Vec<Route>,
}

/// An IPv6 address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's `ifindex`.
    pub interface: u32,
    /// The address, with its prefix.
    pub net: Ipv6Net,
    /// Has no lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
}

/// An IPv6 route that the kernel made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Destination.
    pub destination: Ipv6Net,
    /// `metric`.
    pub metric: u32,
    /// The router, if any.
    pub gateway: Option<Ipv6Addr>,
    /// The interface's `ifindex`.
    pub oif: u32,
    /// `RTPROT_*`.
    pub protocol: u8,
}

impl Address {
    /// Whether the kernel made it: link-local, or with a lifetime.
    fn is_autoconfigured(&self) -> bool {
        !self.permanent || self.net.addr().is_unicast_link_local()
    }
}

impl Ipv6State {
    /// The autoconfigured addresses of an interface, and the routes by it that belong
    /// to no other address.
    pub fn autoconfigured(&self, interface: u32) -> (Vec<Address>, Vec<Route>) {
        let of_interface = self.addresses.iter().filter(|address| address.interface == interface);
        let (made, configured): (Vec<Address>, Vec<Address>) =
            of_interface.partition(|address| address.is_autoconfigured());
        let stays = |route: &Route| configured.iter().any(|a| route.destination == a.net.trunc());
        let routes = self.routes.iter().filter(|route| route.oif == interface && !stays(route));
        (made, routes.copied().collect())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.destination, self.oif)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b41_configured_address_keeps_its_prefix_route() {
        let address =
            |interface, net: &str, permanent| Address { interface, net: net.parse().unwrap(), permanent };
        let route = |oif, destination: &str, protocol| {
            let destination = destination.parse().unwrap();
            Route { table: 254, destination, metric: 256, gateway: None, oif, protocol }
        };
        let state = Ipv6State {
            addresses: vec![
                address(2, "2001:db8:1::5/64", false),
                address(3, "fe80::1/64", true),
                address(3, "2001:db8:2::5/64", false),
                address(3, "2001:db8:3::5/64", true),
            ],
            routes: vec![
                route(2, "2001:db8:1::/64", 2),
                route(3, "2001:db8:2::/64", 2),
                route(3, "2001:db8:3::/64", 2),
                route(3, "::/0", 9),
            ],
        };
        let (addresses, routes) = state.autoconfigured(3);
        assert_eq!(addresses, state.addresses[1..3]);
        assert_eq!(routes, [state.routes[1], state.routes[3]]);
    }
}
