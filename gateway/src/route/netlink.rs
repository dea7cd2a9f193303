//! Reading and changing the kernel's network state over rtnetlink. A dump becomes
//! a [`NetworkState`], an [`Op`] becomes one request; nothing is decided here.

mod ipv6_messages;
mod neighbours;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use ipnet::Ipv4Net;
use nix::libc::{EADDRNOTAVAIL, EEXIST, ENOENT, EPERM, ESRCH};
use rtnetlink::packet_core::{DefaultNla, NLA_F_NESTED};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteVia};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::sync::oneshot;

use self::neighbours::{is_in_doubt, neighbour, neighbour_message, permanent_neighbour};
use super::ipv6::Ipv6State;
use super::model::{Address, Hop, Link, Neighbour, NetworkState, Route, Rule, Setting};
use super::plan::Op;
use super::policy::{ENDPOINTS, GATEWAY, MAIN, PROXY};
use crate::capabilities;
use crate::fault::Fault;

/// `IFLA_INET_CONF`.
const IFLA_INET_CONF: u16 = 1;
/// How long to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to the kernel.
pub struct Netlink(Handle);

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel refuses a socket or a thread.
    pub async fn connect() -> Result<Self, Fault> {
        // A thread of its own: the kernel blocks the caller while anything on the
        // node changes interfaces, and the election must go on meanwhile.
        let (report, connected) = oneshot::channel();
        let thread = std::thread::Builder::new().name("netlink".to_owned()).spawn(|| run_connection(report));
        let connected = match thread {
            Ok(_) => connected.await.unwrap_or_else(|_| Err(io::Error::other("its thread has ended"))),
            Err(error) => Err(error),
        };
        connected.map(Self).map_err(|error| Fault::NetlinkFailed(format!("netlink socket: {error}")))
    }

    /// Dumps the network state.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time.
    pub async fn observe(&self) -> Result<NetworkState, Fault> {
        in_time(self.dump()).await
    }

    /// Carries out one change. Adding what exists, or removing what does not,
    /// succeeds.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time; it may still carry it
    /// out then.
    pub async fn apply(&self, op: &Op) -> Result<(), Fault> {
        in_time(self.carry_out(op)).await
    }

    /// Counts the neighbours of an interface as reachable that the kernel would ask again:
    /// without the lease it cannot ask in the name of the addresses.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time.
    pub async fn confirm_neighbours(&self, interface: u32) -> Result<(), Fault> {
        in_time(async {
            let known = self.0.neighbours().get().set_address_family(AddressFamily::Inet);
            for message in collect("neighbours", known.execute()).await? {
                let Some((address, mac)) = neighbour(&message) else { continue };
                if is_in_doubt(&message) && message.header.ifindex == interface {
                    let request = self.0.neighbours().add(interface, IpAddr::V4(address));
                    let request = request.state(NeighbourState::Reachable).link_layer_address(&mac);
                    let confirmed = request.replace().execute().await;
                    confirmed.map_err(|error| fault(&format!("neighbour {address}"), &error))?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn dump(&self) -> Result<NetworkState, Fault> {
        let links = collect("links", self.0.link().get().execute()).await?;
        let mut request = self.0.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let addresses = collect("addresses", request.execute()).await?;
        let mut routes = Vec::new();
        for table in [GATEWAY, ENDPOINTS, PROXY, MAIN] {
            let message = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table);
            let mut message = message.build();
            // The strict check allows no other attributes in a dump request.
            message.header = rtnetlink::packet_route::route::RouteHeader {
                address_family: AddressFamily::Inet,
                table: message.header.table,
                ..Default::default()
            };
            let dump: Result<Vec<_>, _> = self.0.route().get(message).execute().try_collect().await;
            match dump {
                // A routing table without routes does not exist.
                Err(error) if errno(&error) == ENOENT => {}
                dump => routes.extend(dump.map_err(|error| fault("dump of routes", &error))?),
            }
        }
        let rules = collect("rules", self.0.rule().get(IpVersion::V4).execute()).await?;
        let neighbours = self.0.neighbours().get().set_address_family(AddressFamily::Inet);
        let neighbours = collect("neighbours", neighbours.execute()).await?;
        Ok(NetworkState {
            links: links.iter().filter_map(link).collect(),
            addresses: addresses.iter().filter_map(address).collect(),
            routes: routes.iter().filter_map(route).collect(),
            rules: rules.iter().map(rule).collect(),
            neighbours: neighbours.iter().filter_map(permanent_neighbour).collect(),
            ipv6: self.dump_ipv6().await?,
            rp_filter: rp_filter_of_all(),
        })
    }

    async fn dump_ipv6(&self) -> Result<Ipv6State, Fault> {
        let mut request = self.0.address().get();
        request.message_mut().header.family = AddressFamily::Inet6;
        let addresses = collect("IPv6 addresses", request.execute()).await?;
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        let routes = collect("IPv6 routes", self.0.route().get(message).execute()).await?;
        Ok(Ipv6State {
            addresses: addresses.iter().filter_map(ipv6_messages::address).collect(),
            routes: routes.iter().filter_map(ipv6_messages::route).collect(),
        })
    }

    async fn carry_out(&self, op: &Op) -> Result<(), Fault> {
        let (result, ignored): (_, &[i32]) = match op {
            Op::Up(index) => {
                let message = LinkUnspec::new_with_index(*index).up().build();
                (self.0.link().set(message).execute().await, &[])
            }
            Op::MakeNoIpv6Addresses(index) => {
                let message = ipv6_messages::no_addresses(*index);
                (self.0.link().set(message).execute().await, &[])
            }
            Op::Set(index, values) => {
                let message = set_message(*index, values);
                (self.0.link().set(message).execute().await, &[])
            }
            Op::ReplaceRoute(route) => {
                let request = self.0.route().add(route_message(route)).replace();
                (request.execute().await, &[EEXIST])
            }
            Op::RemoveRoute(route) => {
                let request = self.0.route().del(route_message(route));
                (request.execute().await, &[ESRCH, ENOENT])
            }
            Op::AddRule(rule) => {
                // Not NLM_F_REPLACE: with it the kernel adds a duplicate.
                let mut request = self.0.rule().add();
                *request.message_mut() = rule_message(rule);
                (request.execute().await, &[EEXIST])
            }
            Op::RemoveRule(rule) => {
                let request = self.0.rule().del(rule_message(rule));
                (request.execute().await, &[ENOENT, ESRCH])
            }
            Op::SetNeighbour(Neighbour { interface, address, mac }) => {
                let request = self.0.neighbours().add(*interface, IpAddr::V4(*address));
                (request.link_layer_address(mac).replace().execute().await, &[])
            }
            Op::RemoveNeighbour(neighbour) => {
                let request = self.0.neighbours().del(neighbour_message(neighbour));
                (request.execute().await, &[ENOENT])
            }
            Op::AddAddress(address) => {
                let mut request =
                    self.0.address().add(address.interface, IpAddr::V4(address.address), address.prefix_len);
                *request.message_mut() = address_message(address);
                (request.execute().await, &[EEXIST])
            }
            Op::RemoveAddress(address) => {
                let request = self.0.address().del(address_message(address));
                (request.execute().await, &[EADDRNOTAVAIL, ENOENT])
            }
            Op::RemoveIpv6Address(address) => {
                let request = self.0.address().del(ipv6_messages::remove_address(address));
                (request.execute().await, &[EADDRNOTAVAIL, ENOENT])
            }
            Op::RemoveIpv6Route(route) => {
                let request = self.0.route().del(ipv6_messages::remove_route(route));
                (request.execute().await, &[ESRCH, ENOENT])
            }
        };
        match result {
            Err(error) if !ignored.contains(&errno(&error)) => Err(fault(&op.to_string(), &error)),
            _ => Ok(()),
        }
    }
}

/// Runs a netlink connection on the calling thread until it ends.
fn run_connection(report: oneshot::Sender<io::Result<Handle>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        // With the strict check the kernel filters dumps itself, and rejects
        // unknown attributes instead of ignoring them.
        match rtnetlink::new_connection_with_strict_check() {
            Ok((connection, handle, _)) => {
                let _ = report.send(Ok(handle));
                connection.await;
            }
            Err(error) => {
                let _ = report.send(Err(error));
            }
        }
    });
}

async fn in_time<T>(request: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(TIMEOUT, request).await.unwrap_or(Err(Fault::KernelSilent(TIMEOUT)))
}

async fn collect<T>(
    what: &str,
    dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Fault> {
    dump.try_collect().await.map_err(|error| fault(&format!("dump of {what}"), &error))
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => -message.raw_code(),
        _ => 0,
    }
}

fn fault(what: &str, error: &rtnetlink::Error) -> Fault {
    match errno(error) {
        EPERM => Fault::CapabilityMissing(capabilities::NET_ADMIN),
        0 => Fault::NetlinkFailed(format!("{what}: {error}")),
        code => Fault::NetlinkFailed(format!("{what}: {}", std::io::Error::from_raw_os_error(code))),
    }
}

/// `rp_filter` of `all`, in the network namespace of the thread; if it cannot be
/// read, it is assumed to be strict.
fn rp_filter_of_all() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    text.trim().parse().unwrap_or(1)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::CarrierChanges(count) => link.carrier_changes = *count,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::AfSpecUnspec(families) => {
                for family in families {
                    match family {
                        AfSpecUnspec::Inet(specs) => {
                            link.settings.extend(specs.iter().flat_map(|spec| match spec {
                                AfSpecInet::DevConf(conf) => settings(conf),
                                _ => Vec::new(),
                            }));
                        }
                        AfSpecUnspec::Inet6(specs) => {
                            let makes = |spec: &AfSpecInet6| matches!(spec, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None);
                            link.makes_ipv6_addresses = specs.iter().any(makes);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn settings(conf: &InetDevConf) -> Vec<(Setting, u32)> {
    [
        (Setting::Forwarding, conf.forwarding),
        (Setting::AcceptRedirects, conf.accept_redirects),
        (Setting::SendRedirects, conf.send_redirects),
        (Setting::RpFilter, conf.rp_filter),
        (Setting::ArpAnnounce, conf.arp_announce),
        (Setting::ArpIgnore, conf.arp_ignore),
        (Setting::PromoteSecondaries, conf.promote_secondaries),
        (Setting::AcceptLocal, conf.accept_local),
    ]
    .into_iter()
    .filter_map(|(setting, value)| Some((setting, u32::try_from(value).ok()?)))
    .collect()
}

/// A request that sets IPv4 settings. Netlink needs NET_ADMIN only, while /proc/sys
/// is read-only in a pod. The attribute is encoded by hand: the crate's own leaves
/// out every setting with value 0.
fn set_message(index: u32, values: &[(Setting, u32)]) -> LinkMessage {
    let mut nested = Vec::new();
    for (setting, value) in values {
        nested.extend(8u16.to_ne_bytes());
        nested.extend((*setting as u16).to_ne_bytes());
        nested.extend(value.to_ne_bytes());
    }
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, nested));
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])])];
    message
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => peer = Some(*ip),
            AddressAttribute::Flags(bits) => flags = *bits,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    Some(Address {
        interface: message.header.index,
        address,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        plain: peer.is_none_or(|peer| peer == address),
    })
}

fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = address.interface;
    message.header.prefix_len = address.prefix_len;
    let ip = IpAddr::V4(address.address);
    message.attributes.push(AddressAttribute::Local(ip));
    if address.plain {
        message.attributes.push(AddressAttribute::Address(ip));
    }
    if address.no_prefix_route {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    }
    message
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut table = u32::from(header.table);
    let (mut oif, mut gateway, mut metric) = (None, None, 0);
    let (mut via_ipv6, mut plain) = (false, true);
    let mut take = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = *ip,
        RouteAttribute::Table(id) => table = *id,
        RouteAttribute::Priority(value) => metric = *value,
        RouteAttribute::Oif(index) => oif = Some(*index),
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
        RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some(*ip),
        RouteAttribute::Via(_) => via_ipv6 = true,
        RouteAttribute::CacheInfo(_) => {}
        _ => plain = false,
    };
    let mut onlink = header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        take(attribute);
        // Of several next hops, the first is used.
        if let RouteAttribute::MultiPath(hops) = attribute
            && let Some(hop) = hops.first()
        {
            take(&RouteAttribute::Oif(hop.interface_index));
            hop.attributes.iter().for_each(&mut take);
            onlink |= u32::from(hop.flags.bits()) & RouteFlags::Onlink.bits() != 0;
        }
    }
    let hop = match (oif, gateway) {
        _ if via_ipv6 => Hop::Other,
        (Some(oif), Some(gateway)) => Hop::Via { oif, gateway, onlink },
        (Some(oif), None) => Hop::Direct { oif },
        (None, _) => Hop::Other,
    };
    Some(Route {
        table,
        destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
        tos: header.tos,
        metric,
        kind: header.kind.into(),
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        hop,
        plain,
    })
}

fn route_message(route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(route.table)
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .tos(route.tos)
        .kind(route.kind.into())
        .scope(route.scope.into())
        .protocol(route.protocol.into());
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    match route.hop {
        Hop::Direct { oif } => builder = builder.output_interface(oif),
        Hop::Via { oif, gateway, onlink } => {
            builder = builder.output_interface(oif).gateway(gateway);
            if onlink {
                builder = builder.onlink();
            }
        }
        Hop::Other => {}
    }
    builder.build()
}

fn rule(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut priority, mut source, mut destination, mut iif, mut mark) = (0, None, None, None, None);
    let mut plain =
        header.action == RuleAction::ToTable && header.tos == 0 && !header.flags.contains(RuleFlags::Invert);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Source(IpAddr::V4(ip)) => source = Ipv4Net::new(*ip, header.src_len).ok(),
            RuleAttribute::Destination(IpAddr::V4(ip)) => {
                destination = Ipv4Net::new(*ip, header.dst_len).ok();
            }
            RuleAttribute::Iifname(name) => iif = Some(name.clone()),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(u32::MAX) => {}
            // Attributes that every rule has.
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::Protocol(_) => {}
            _ => plain = false,
        }
    }
    Rule { priority, table, source, destination, iif, mark, plain }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    // Without an action the kernel would accept the rule, and lookups would fail.
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Table(rule.table), RuleAttribute::Priority(rule.priority)];
    if let Some(source) = rule.source {
        message.header.src_len = source.prefix_len();
        message.attributes.push(RuleAttribute::Source(IpAddr::V4(source.addr())));
    }
    if let Some(destination) = rule.destination {
        message.header.dst_len = destination.prefix_len();
        message.attributes.push(RuleAttribute::Destination(IpAddr::V4(destination.addr())));
    }
    if let Some(iif) = &rule.iif {
        message.attributes.push(RuleAttribute::Iifname(iif.clone()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encoding and decoding are inverse.
    #[test]
    fn encoded_values_decode_to_themselves() {
        let gateway = "10.16.0.1".parse().unwrap();
        for hop in [
            Hop::Direct { oif: 3 },
            Hop::Via { oif: 2, gateway, onlink: false },
            Hop::Via { oif: 2, gateway, onlink: true },
        ] {
            for destination in ["0.0.0.0/0", "172.18.0.0/16", "10.109.201.193/32"] {
                let value = Route { metric: 7, ..Route::unicast(GATEWAY, destination.parse().unwrap(), hop) };
                assert_eq!(route(&route_message(&value)), Some(value));
            }
        }
        let value = Route::local(PROXY);
        assert_eq!(route(&route_message(&value)), Some(value));
        let network = || Some("172.18.0.18/32".parse().unwrap());
        for (source, destination, iif, mark) in [
            (None, None, Some("net1".to_owned()), None),
            (network(), None, None, None),
            (None, network(), None, None),
            (None, None, None, Some(0xff00_0001)),
        ] {
            let value = Rule { priority: 32764, table: GATEWAY, source, destination, iif, mark, plain: true };
            assert_eq!(rule(&rule_message(&value)), value);
        }
        let value = Neighbour { interface: 3, address: gateway, mac: [2, 0, 0, 0, 0, 1] };
        assert_eq!(permanent_neighbour(&neighbour_message(&value)), Some(value));
        let value = Address {
            interface: 3,
            address: "172.18.0.18".parse().unwrap(),
            prefix_len: 16,
            global: true,
            no_prefix_route: true,
            plain: true,
        };
        assert_eq!(address(&address_message(&value)), Some(value));
    }
}
