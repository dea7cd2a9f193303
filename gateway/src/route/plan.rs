//! The changes from the observed to the desired network state.
//!
//! Exactly these are the gateway's: everything in tables 100, 32761 and 32762, every rule
//! that looks one of them up, the LAN interface's rule at [`PRIORITY_ENDPOINTS`], and the
//! global IPv4 addresses of the LAN interface except those of its network's own
//! IPAM, and its permanent neighbour [`NEXT_POD`]; and on the LAN interface, what the kernel made of [IPv6](super::ipv6). Nothing
//! else is changed.

use std::fmt;

use super::desired::Desired;
use super::ipv6;
use super::model::{Address, Hop, Neighbour, NetworkState, Route, Rule, Setting};
use super::policy::{ENDPOINTS, GATEWAY, MAIN, PRIORITY_ENDPOINTS, PROXY};
use crate::datapath::strays::NEXT_POD;
use crate::l2::arp::format_mac;

/// One change of the network state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set an interface up.
    Up(u32),
    /// Let the kernel make no IPv6 addresses for an interface.
    MakeNoIpv6Addresses(u32),
    /// Set per-interface IPv4 settings.
    Set(u32, Vec<(Setting, u32)>),
    /// Add a route, or replace the one with the same key.
    ReplaceRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Add a permanent neighbour, or replace the one of that address.
    SetNeighbour(Neighbour),
    /// Remove a neighbour.
    RemoveNeighbour(Neighbour),
    /// Add an address.
    AddAddress(Address),
    /// Remove an address.
    RemoveAddress(Address),
    /// Remove a rule.
    RemoveRule(Rule),
    /// Remove a route.
    RemoveRoute(Route),
    /// Remove an IPv6 address.
    RemoveIpv6Address(ipv6::Address),
    /// Remove an IPv6 route.
    RemoveIpv6Route(ipv6::Route),
}

impl Op {
    /// Whether it concerns IPv6 only.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::MakeNoIpv6Addresses(_) | Self::RemoveIpv6Address(_) | Self::RemoveIpv6Route(_) => true,
            Self::Up(_)
            | Self::Set(..)
            | Self::ReplaceRoute(_)
            | Self::RemoveRoute(_)
            | Self::AddRule(_)
            | Self::RemoveRule(_)
            | Self::SetNeighbour(_)
            | Self::RemoveNeighbour(_)
            | Self::AddAddress(_)
            | Self::RemoveAddress(_) => false,
        }
    }

    /// The kind of object it changes, for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Up(_) => "link",
            Self::Set(..) | Self::MakeNoIpv6Addresses(_) => "devconf",
            Self::ReplaceRoute(_) | Self::RemoveRoute(_) | Self::RemoveIpv6Route(_) => "route",
            Self::AddRule(_) | Self::RemoveRule(_) => "rule",
            Self::SetNeighbour(_) | Self::RemoveNeighbour(_) => "neighbour",
            Self::AddAddress(_) | Self::RemoveAddress(_) | Self::RemoveIpv6Address(_) => "address",
        }
    }
}

/// Returns the changes in an order in which no address is added before what it
/// needs, and nothing is removed before its replacement is added. Addresses are
/// added last: with an address the kernel starts to answer ARP.
pub fn plan(observed: &NetworkState, desired: &Desired) -> Vec<Op> {
    let mut ops = Vec::new();
    let lan = observed.link(desired.lan);
    // The kernel makes a link-local address when the interface comes up.
    if lan.is_some_and(|link| link.makes_ipv6_addresses) {
        ops.push(Op::MakeNoIpv6Addresses(desired.lan));
    }
    if lan.is_some_and(|link| !link.up) {
        ops.push(Op::Up(desired.lan));
    }
    let (made_addresses, made_routes) = observed.ipv6.autoconfigured(desired.lan);
    ops.extend(made_addresses.into_iter().map(Op::RemoveIpv6Address));
    ops.extend(made_routes.into_iter().map(Op::RemoveIpv6Route));
    for link in &observed.links {
        let values: Vec<(Setting, u32)> = desired
            .settings
            .iter()
            .filter(|(index, setting, value)| {
                *index == link.index && !link.settings.contains(&(*setting, *value))
            })
            .map(|(_, setting, value)| (*setting, *value))
            .collect();
        if !values.is_empty() {
            ops.push(Op::Set(link.index, values));
        }
    }

    let routes: Vec<&Route> = observed.routes.iter().filter(|r| is_own(r.table)).collect();
    let (stale_routes, missing) = compare(&routes, &desired.routes);
    // The first route with the key is replaced without a gap.
    let mut stale_routes = stale_routes;
    for route in missing {
        if let Some(at) = stale_routes.iter().position(|old| old.key() == route.key()) {
            stale_routes.remove(at);
        }
        ops.push(Op::ReplaceRoute(route));
    }

    let rules: Vec<&Rule> = observed.rules.iter().filter(|rule| is_ours(rule, desired)).collect();
    let (stale_rules, missing) = compare(&rules, &desired.rules);
    ops.extend(missing.into_iter().map(Op::AddRule));

    let addresses: Vec<&Address> = observed
        .addresses
        .iter()
        .filter(|address| {
            let wanted = desired.addresses.iter().any(|d| d.address == address.address);
            address.interface == desired.lan
                && address.global
                && (wanted || !desired.foreign_addresses.contains(&address.address))
        })
        .collect();
    let (stale_addresses, missing) = compare(&addresses, &desired.addresses);
    // The same address with the same prefix cannot exist twice: one that differs
    // in other attributes has to be removed first.
    let same = |a: &Address, b: &Address| (a.address, a.prefix_len) == (b.address, b.prefix_len);
    let (blocking, stale_addresses): (Vec<_>, Vec<_>) =
        stale_addresses.into_iter().partition(|old| missing.iter().any(|new| same(old, new)));
    ops.extend(blocking.into_iter().map(Op::RemoveAddress));
    ops.extend(missing.into_iter().map(Op::AddAddress));

    let ours = |known: &&Neighbour| known.interface == desired.lan && known.address == NEXT_POD;
    let neighbour = observed.neighbours.iter().find(ours).copied();
    if neighbour != desired.next_pod {
        ops.extend(desired.next_pod.or(neighbour).map(match desired.next_pod {
            Some(_) => Op::SetNeighbour,
            None => Op::RemoveNeighbour,
        }));
    }

    // With an interface's last address the kernel removes its routes as well:
    // another reason to add the new ones first.
    ops.extend(stale_addresses.into_iter().map(Op::RemoveAddress));
    ops.extend(stale_rules.into_iter().map(Op::RemoveRule));
    ops.extend(stale_routes.into_iter().map(Op::RemoveRoute));
    ops
}

/// The changes by which the pod forwards nothing between its interfaces.
pub fn forwarding_off(observed: &NetworkState) -> Vec<Op> {
    let forwarding = observed.links.iter().filter(|link| link.settings.contains(&(Setting::Forwarding, 1)));
    forwarding.map(|link| Op::Set(link.index, vec![(Setting::Forwarding, 0)])).collect()
}

fn is_ours(rule: &Rule, desired: &Desired) -> bool {
    let Rule { priority, table, source, destination, iif, mark, plain } = rule;
    let no_other = source.is_none() && destination.is_none() && mark.is_none();
    let of_lan = iif.as_ref() == Some(&desired.lan_name) && no_other && *plain;
    is_own(*table) || *priority == PRIORITY_ENDPOINTS && *table == MAIN && of_lan
}

/// Whether a routing table is the gateway's alone.
fn is_own(table: u32) -> bool {
    [GATEWAY, ENDPOINTS, PROXY].contains(&table)
}

/// Returns the observed items that are not desired, and the desired ones that
/// were not observed. Of a duplicate, one is not desired.
fn compare<T: PartialEq + Clone>(observed: &[&T], desired: &[T]) -> (Vec<T>, Vec<T>) {
    let mut missing: Vec<T> = desired.to_vec();
    let mut stale = Vec::new();
    for item in observed {
        match missing.iter().position(|wanted| wanted == *item) {
            Some(at) => {
                missing.remove(at);
            }
            None => stale.push((*item).clone()),
        }
    }
    (stale, missing)
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(index) => write!(f, "link {index} up"),
            Self::MakeNoIpv6Addresses(index) => write!(f, "link {index} addrgenmode none"),
            Self::Set(index, values) => write!(f, "link {index} {values:?}"),
            Self::ReplaceRoute(route) => write!(f, "+route {}", Shown(route)),
            Self::RemoveRoute(route) => write!(f, "-route {}", Shown(route)),
            Self::AddRule(rule) => write!(f, "+rule {}", Shown(rule)),
            Self::RemoveRule(rule) => write!(f, "-rule {}", Shown(rule)),
            Self::SetNeighbour(neighbour) => write!(f, "+neighbour {}", Shown(neighbour)),
            Self::RemoveNeighbour(neighbour) => write!(f, "-neighbour {}", Shown(neighbour)),
            Self::AddAddress(address) => write!(f, "+address {}", Shown(address)),
            Self::RemoveAddress(address) => write!(f, "-address {}", Shown(address)),
            Self::RemoveIpv6Address(address) => write!(f, "-address {address}"),
            Self::RemoveIpv6Route(route) => write!(f, "-route {route}"),
        }
    }
}

/// Formats a value about as `ip` does.
struct Shown<'a, T>(&'a T);

impl fmt::Display for Shown<'_, Route> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.destination)?;
        match self.0.hop {
            Hop::Direct { oif } => write!(f, " dev {oif}"),
            Hop::Via { oif, gateway, .. } => write!(f, " via {gateway} dev {oif}"),
            Hop::Other => write!(f, " kind {}", self.0.kind),
        }
    }
}

impl fmt::Display for Shown<'_, Rule> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.0.priority)?;
        if let Some(source) = self.0.source {
            write!(f, " from {source}")?;
        }
        if let Some(destination) = self.0.destination {
            write!(f, " to {destination}")?;
        }
        if let Some(iif) = &self.0.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(mark) = self.0.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        write!(f, " lookup {}", self.0.table)
    }
}

impl fmt::Display for Shown<'_, Neighbour> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Neighbour { interface, address, mac } = self.0;
        write!(f, "{address} dev {interface} lladdr {}", format_mac(*mac))
    }
}

impl fmt::Display for Shown<'_, Address> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.address, self.0.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::desired::tests::{made, state};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    /// What the kernel does with a change, as far as it matters for a plan.
    fn apply(kernel: &mut NetworkState, op: &Op) {
        match op {
            Op::Up(index) => {
                for link in &mut kernel.links {
                    link.up |= link.index == *index;
                }
            }
            Op::Set(index, values) => {
                for link in kernel.links.iter_mut().filter(|link| link.index == *index) {
                    for (setting, value) in values {
                        link.settings.retain(|(known, _)| known != setting);
                        link.settings.push((*setting, *value));
                    }
                }
            }
            Op::ReplaceRoute(route) => match kernel.routes.iter_mut().find(|old| old.key() == route.key()) {
                Some(old) => *old = route.clone(),
                None => kernel.routes.push(route.clone()),
            },
            Op::AddRule(rule) => {
                assert!(!kernel.rules.contains(rule), "{op} exists");
                kernel.rules.push(rule.clone());
            }
            Op::AddAddress(address) => {
                let same = |old: &&Address| {
                    (old.interface, old.address, old.prefix_len)
                        == (address.interface, address.address, address.prefix_len)
                };
                assert_eq!(kernel.addresses.iter().find(same), None, "{op} exists");
                kernel.addresses.push(address.clone());
            }
            Op::SetNeighbour(neighbour) => {
                kernel.neighbours.retain(|known| {
                    (known.interface, known.address) != (neighbour.interface, neighbour.address)
                });
                kernel.neighbours.push(*neighbour);
            }
            Op::RemoveNeighbour(neighbour) => remove(&mut kernel.neighbours, neighbour),
            Op::RemoveAddress(address) => remove(&mut kernel.addresses, address),
            Op::RemoveRule(rule) => remove(&mut kernel.rules, rule),
            Op::RemoveRoute(route) => remove(&mut kernel.routes, route),
            Op::MakeNoIpv6Addresses(_) | Op::RemoveIpv6Address(_) | Op::RemoveIpv6Route(_) => {
                unreachable!("there is no IPv6")
            }
        }
    }

    fn remove<T: PartialEq>(items: &mut Vec<T>, item: &T) {
        let at = items.iter().position(|known| known == item);
        items.remove(at.expect("only what exists is removed"));
    }

    fn hop() -> impl Strategy<Value = Hop> {
        let oif = 2..4u32;
        prop_oneof![
            oif.clone().prop_map(|oif| Hop::Direct { oif }),
            (oif, any::<bool>(), 1..3u8).prop_map(|(oif, onlink, last)| Hop::Via {
                oif,
                gateway: [172, 18, 0, last].into(),
                onlink,
            }),
            Just(Hop::Other),
        ]
    }

    fn route() -> impl Strategy<Value = Route> {
        const DESTINATIONS: [&str; 4] =
            ["0.0.0.0/0", "172.18.0.0/16", "10.109.201.193/32", "198.51.100.0/24"];
        let table = prop_oneof![Just(GATEWAY), Just(ENDPOINTS), Just(PROXY), Just(MAIN), Just(101)];
        (table, prop::sample::select(&DESTINATIONS), hop(), 0..2u32, any::<bool>()).prop_map(
            |(table, destination, hop, metric, plain)| Route {
                metric,
                plain,
                ..Route::unicast(table, destination.parse().unwrap(), hop)
            },
        )
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let source = prop_oneof![
            Just(None),
            Just(Some("172.18.0.18/32".parse().unwrap())),
            Just(Some("192.0.2.1/32".parse().unwrap())),
        ];
        let iif = prop_oneof![Just(None), Just(Some("eth0".to_owned())), Just(Some("net1".to_owned()))];
        let table = prop_oneof![Just(GATEWAY), Just(ENDPOINTS), Just(PROXY), Just(MAIN)];
        let mark = prop_oneof![Just(None), Just(Some(1))];
        (32760..32767u32, table, source, iif, mark, any::<bool>()).prop_map(
            |(priority, table, source, iif, mark, plain)| {
                // Either is a network.
                let (source, destination) = if priority % 2 == 0 { (source, None) } else { (None, source) };
                Rule { priority, table, source, destination, iif, mark, plain }
            },
        )
    }

    fn address() -> impl Strategy<Value = Address> {
        (2..4u32, 17..22u8, prop_oneof![Just(16u8), Just(24)], any::<[bool; 3]>()).prop_map(
            |(interface, last, prefix_len, [global, no_prefix_route, plain])| Address {
                interface,
                address: [172, 18, 0, last].into(),
                prefix_len,
                global,
                no_prefix_route,
                plain,
            },
        )
    }

    /// The documented pod, with anything else besides.
    fn junk() -> impl Strategy<Value = NetworkState> {
        let routes = prop::collection::vec(route(), 0..8);
        let rules = prop::collection::vec(rule(), 0..8);
        let addresses = prop::collection::vec(address(), 0..6);
        let neighbours = prop::collection::vec((2..4u32, any::<bool>(), any::<[u8; 6]>()), 0..4);
        (routes, rules, addresses, neighbours, any::<bool>()).prop_map(
            |(routes, rules, addresses, neighbours, up)| {
                let mut kernel = state();
                for (interface, ours, mac) in neighbours {
                    let address = if ours { NEXT_POD } else { Ipv4Addr::new(169, 254, 1, 1) };
                    if kernel
                        .neighbours
                        .iter()
                        .all(|known| (known.interface, known.address) != (interface, address))
                    {
                        kernel.neighbours.push(Neighbour { interface, address, mac });
                    }
                }
                kernel.links[1].up = up;
                kernel.routes.extend(routes);
                for rule in rules {
                    if !kernel.rules.contains(&rule) {
                        kernel.rules.push(rule);
                    }
                }
                for address in addresses {
                    let known = kernel.addresses.iter();
                    let same = |old: &Address| {
                        (old.interface, old.address, old.prefix_len)
                            == (address.interface, address.address, address.prefix_len)
                    };
                    // On the LAN interface, ours are global.
                    if !known.into_iter().any(same) && (address.global || address.address.octets()[3] > 19) {
                        kernel.addresses.push(address);
                    }
                }
                kernel
            },
        )
    }

    proptest! {
        #[test]
        fn plan_leads_from_any_state_to_the_desired_one(before in junk(), several in any::<bool>(), next in any::<Option<[u8; 6]>>()) {
            let (mut desired, _) = made(&state());
            if several {
                desired = desired.of_several(next);
            }
            desired.foreign_addresses = BTreeSet::from([[172, 18, 0, 21].into()]);
            let ops = plan(&before, &desired);
            let mut after = before.clone();
            for op in &ops {
                apply(&mut after, op);
            }
            prop_assert_eq!(plan(&after, &desired), vec![]);

            // All that is desired exists once, and nothing else of ours.
            let ours: Vec<&Route> = after.routes.iter().filter(|r| is_own(r.table)).collect();
            prop_assert_eq!(ours.len(), desired.routes.len());
            prop_assert!(desired.routes.iter().all(|wanted| ours.contains(&wanted)));
            let ours: Vec<&Rule> = after.rules.iter().filter(|rule| is_ours(rule, &desired)).collect();
            prop_assert_eq!(ours.len(), desired.rules.len());
            prop_assert!(desired.rules.iter().all(|wanted| ours.contains(&wanted)));
            prop_assert!(desired.addresses.iter().all(|wanted| after.addresses.contains(wanted)));

            let is_ours_at = |known: &Neighbour| known.interface == desired.lan && known.address == NEXT_POD;
            let ours: Vec<Neighbour> = after.neighbours.iter().copied().filter(is_ours_at).collect();
            prop_assert_eq!(ours, desired.next_pod.into_iter().collect::<Vec<_>>());

            // What is not ours is unchanged.
            let others = |kernel: &NetworkState| {
                let mut kernel = kernel.clone();
                kernel.neighbours.retain(|known| !is_ours_at(known));
                kernel.routes.retain(|route| !is_own(route.table));
                kernel.rules.retain(|rule| !is_ours(rule, &desired));
                kernel.addresses.retain(|a| {
                    a.interface != desired.lan || !a.global || desired.foreign_addresses.contains(&a.address)
                });
                (kernel.routes, kernel.rules, kernel.addresses, kernel.neighbours)
            };
            prop_assert_eq!(others(&before), others(&after));

            // Nothing desired is removed meanwhile, and no address is added before
            // what it needs.
            let first = ops.iter().position(|op| matches!(op, Op::AddAddress(_)));
            let last = ops.iter().rposition(|op| {
                matches!(op, Op::Up(_) | Op::Set(..) | Op::ReplaceRoute(_) | Op::AddRule(_))
            });
            if let (Some(first), Some(last)) = (first, last) {
                prop_assert!(last < first, "{:?}", ops);
            }
            for op in &ops {
                let wanted = match op {
                    Op::RemoveRoute(route) => desired.routes.contains(route)
                        && before.routes.iter().filter(|r| *r == route).count() < 2,
                    Op::RemoveRule(rule) => desired.rules.contains(rule),
                    Op::RemoveAddress(address) => desired.addresses.contains(address),
                    _ => false,
                };
                prop_assert!(!wanted, "{} is desired", op);
            }
        }
    }

    #[test]
    fn changed_router_is_replaced_without_a_gap() {
        let (desired, _) = made(&state());
        let mut observed = state();
        for op in plan(&observed.clone(), &desired) {
            apply(&mut observed, &op);
        }
        let mut moved = desired.clone();
        let default = moved.routes.last_mut().unwrap();
        default.hop = Hop::Via { oif: 3, gateway: [172, 18, 0, 2].into(), onlink: false };
        let default = default.clone();
        assert_eq!(plan(&observed, &moved), [Op::ReplaceRoute(default)]);
    }

    #[test]
    fn changed_prefix_keeps_the_address_assigned() {
        let (desired, _) = made(&state());
        let mut observed = state();
        for op in plan(&observed.clone(), &desired) {
            apply(&mut observed, &op);
        }
        let mut moved = desired.clone();
        moved.addresses[0].prefix_len = 24;
        assert_eq!(
            plan(&observed, &moved),
            [Op::AddAddress(moved.addresses[0].clone()), Op::RemoveAddress(desired.addresses[0].clone()),]
        );
    }
}
