//! The messages of rtnetlink about IPv6.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use crate::route::ipv6;
use crate::route::model::UNICAST;

/// Routes to the pod's own addresses (`RT_TABLE_LOCAL`).
const LOCAL: u32 = 255;
/// The protocols (`RTPROT_*`) of routes that the kernel makes: from redirects, for
/// addresses, from router advertisements.
const MADE_BY_THE_KERNEL: [u8; 3] = [1, 2, 9];

/// A request that sets `addrgenmode none`. Of IPv6, netlink can set this only.
pub(super) fn no_addresses(index: u32) -> LinkMessage {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])];
    message
}

/// Decodes an address; `None` if it is not of IPv6: a kernel without IPv6 dumps other families instead.
pub(super) fn address(message: &AddressMessage) -> Option<ipv6::Address> {
    let (mut local, mut peer, mut permanent) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V6(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V6(ip)) => peer = Some(*ip),
            AddressAttribute::Flags(flags) => permanent = flags.contains(AddressFlags::Permanent),
            _ => {}
        }
    }
    let net = Ipv6Net::new(local.or(peer)?, message.header.prefix_len).ok()?;
    Some(ipv6::Address { interface: message.header.index, net, permanent })
}

/// Names an address to remove.
pub(super) fn remove_address(address: &ipv6::Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.index = address.interface;
    message.header.prefix_len = address.net.prefix_len();
    message.attributes.push(AddressAttribute::Local(IpAddr::V6(address.net.addr())));
    message
}

/// Decodes a route; `None` if the kernel did not make it.
pub(super) fn route(message: &RouteMessage) -> Option<ipv6::Route> {
    let header = &message.header;
    let (mut table, mut destination) = (u32::from(header.table), Ipv6Addr::UNSPECIFIED);
    let (mut oif, mut gateway, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = *ip,
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(*ip),
            _ => {}
        }
    }
    let protocol = header.protocol.into();
    let made = header.address_family == AddressFamily::Inet6
        && u8::from(header.kind) == UNICAST
        && table != LOCAL
        && MADE_BY_THE_KERNEL.contains(&protocol);
    let destination = Ipv6Net::new(destination, header.destination_prefix_length).ok()?;
    made.then_some(ipv6::Route { table, destination, metric, gateway, oif: oif?, protocol })
}

/// Names a route to remove.
pub(super) fn remove_route(route: &ipv6::Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
        .table_id(route.table)
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .protocol(route.protocol.into())
        .output_interface(route.oif)
        .priority(route.metric);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::policy::MAIN;

    /// Encoding and decoding are inverse.
    #[test]
    fn encoded_values_decode_to_themselves() {
        for gateway in [None, Some("fe80::1".parse().unwrap())] {
            let destination = "2001:db8::/64".parse().unwrap();
            let value = ipv6::Route { table: MAIN, destination, metric: 1024, gateway, oif: 3, protocol: 9 };
            assert_eq!(route(&remove_route(&value)), Some(value));
        }
    }
}
