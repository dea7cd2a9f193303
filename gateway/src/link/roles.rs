//! Which interface is the LAN's, and which the primary one, by which the pod
//! reaches the cluster.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::network_status::Network;
use crate::fault::Fault;
use crate::route::model::{Address, Link, NetworkState};
use crate::route::policy::MAIN;

/// The LAN's network before Multus has reported it: the mounted report is as
/// old as the pod until the kubelet refreshes it, while the interface exists
/// before the gateway starts. The pod has one attachment, so the only other
/// Ethernet interface beside the primary must be it. If that has an address that
/// is not one of `owned`, only the report can tell whose address it is.
pub fn presumed_lan(state: &NetworkState, attachment: &str, owned: &BTreeSet<Ipv4Addr>) -> Option<Network> {
    let primary = primary(state, &[], None).ok()?;
    let ethernet = |link: &&Link| link.mac.is_some_and(|mac| mac != [0; 6]);
    let mut others = state.links.iter().filter(ethernet).filter(|link| link.index != primary.index);
    let link = others.next().filter(|_| others.next().is_none())?;
    let foreign = |address: &Address| {
        address.interface == link.index && address.global && !owned.contains(&address.address)
    };
    (!state.addresses.iter().any(foreign)).then(|| Network {
        name: attachment.to_owned(),
        interface: link.name.clone(),
        ips: Vec::new(),
        default: false,
    })
}

/// The interface of the pod's own default route; without one, the default
/// network's. Never the LAN's, even if its NAD set a default route.
///
/// # Errors
/// If there is neither.
pub fn primary<'a>(
    state: &'a NetworkState,
    networks: &[Network],
    lan: Option<u32>,
) -> Result<&'a Link, Fault> {
    let by_route = state
        .routes
        .iter()
        .filter(|route| route.table == MAIN && route.destination.prefix_len() == 0)
        .filter_map(|route| Some((route.metric, route.hop.interface()?)))
        .filter(|(_, interface)| Some(*interface) != lan)
        .min_by_key(|(metric, _)| *metric)
        .and_then(|(_, interface)| state.link(interface));
    let by_report = || {
        let network = networks.iter().find(|network| network.default)?;
        let link = state.link_named(&network.interface)?;
        (Some(link.index) != lan).then_some(link)
    };
    by_route.or_else(by_report).ok_or(Fault::NoDefaultRoute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::network_status::{parse, tests::STATUS};
    use crate::route::model::{Hop, Route};

    #[test]
    fn lan_before_the_report_is_the_only_other_interface() {
        let link = |index, name: &str, mac| Link { index, name: name.into(), mac, ..Link::default() };
        let hop = Hop::Direct { oif: 2 };
        let mut state = NetworkState {
            links: vec![
                link(1, "lo", Some([0; 6])),
                link(2, "eth0", Some([2; 6])),
                link(3, "tunl0", None),
                link(4, "net1", Some([4; 6])),
            ],
            routes: vec![Route::unicast(MAIN, "0.0.0.0/0".parse().unwrap(), hop)],
            ..NetworkState::default()
        };
        let owned = BTreeSet::from([Ipv4Addr::new(172, 18, 0, 18)]);
        let presumed = |state: &NetworkState| Some(presumed_lan(state, "a/b", &owned)?.interface);
        assert_eq!(presumed(&state), Some("net1".to_owned()));
        let address = |last| Address {
            interface: 4,
            address: Ipv4Addr::new(172, 18, 0, last),
            prefix_len: 16,
            global: true,
            no_prefix_route: true,
            plain: true,
        };
        state.addresses.push(address(18));
        assert_eq!(presumed(&state), Some("net1".to_owned()), "an owned address does not count");
        state.addresses.push(address(19));
        assert_eq!(presumed(&state), None, "perhaps of an IPAM");
        state.addresses.clear();
        state.links.push(link(5, "net2", Some([5; 6])));
        assert_eq!(presumed(&state), None, "ambiguous");
    }

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), ..Link::default() }
    }

    fn default_route(oif: u32, metric: u32) -> Route {
        Route {
            metric,
            ..Route::unicast(
                MAIN,
                "0.0.0.0/0".parse().unwrap(),
                Hop::Via { oif, gateway: "10.16.0.1".parse().unwrap(), onlink: false },
            )
        }
    }

    #[test]
    fn primary_is_the_default_routes_interface() {
        let mut state =
            NetworkState { links: vec![link(2, "eth0"), link(3, "net1")], ..NetworkState::default() };
        // Without a route: by Multus's report, or not at all.
        assert!(matches!(primary(&state, &[], Some(3)), Err(Fault::NoDefaultRoute)));
        let networks = parse(STATUS).unwrap();
        assert_eq!(primary(&state, &networks, Some(3)).unwrap().name, "eth0");
        // A default route by the LAN does not make it the primary.
        state.routes = vec![default_route(3, 0), default_route(2, 100)];
        assert_eq!(primary(&state, &[], Some(3)).unwrap().name, "eth0");
        assert_eq!(primary(&state, &[], None).unwrap().name, "net1");
    }
}
