//! The pod's two interfaces: the LAN's, as Multus reports it, and the primary
//! one, by which the pod reaches the cluster.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::fault::Fault;
use crate::kernel::{Address, Kernel, Link, MAIN};

/// One network of the pod, as Multus's network-status lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// `<namespace>/<nad>`, or what the default network calls itself.
    #[serde(default)]
    pub name: String,
    /// The interface's name in the pod.
    #[serde(default)]
    pub interface: String,
    /// Addresses that the network's own IPAM gave.
    #[serde(default)]
    pub ips: Vec<String>,
    /// Whether this is the pod's default network.
    #[serde(default)]
    pub default: bool,
}

/// Reads Multus's network-status. The file is empty, or absent, until Multus
/// has written the pod's annotation.
pub fn parse(text: &str) -> Result<Vec<Network>, Fault> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|error| Fault::NetworkStatusInvalid(error.to_string()))
}

/// The LAN's network among the pod's.
pub fn lan<'a>(networks: &'a [Network], attachment: &str) -> Result<&'a Network, Fault> {
    networks
        .iter()
        .find(|network| network.name == attachment && !network.default && !network.interface.is_empty())
        .ok_or_else(|| Fault::AttachmentPending {
            attachment: attachment.to_owned(),
            reported: networks.iter().map(|n| n.name.clone()).collect(),
        })
}

/// The LAN's network before Multus has reported it: the mounted report is as
/// old as the pod until the kubelet refreshes it, while the interface is there
/// before the gateway starts. The pod asks for one attachment, so one other
/// Ethernet interface beside the primary can only be that; but with an address
/// on it that is not one of `ours`, only the report tells whose that is.
pub fn presumed(kernel: &Kernel, attachment: &str, ours: &BTreeSet<Ipv4Addr>) -> Option<Network> {
    let primary = primary(kernel, &[], None).ok()?;
    let ethernet = |link: &&Link| link.mac.is_some_and(|mac| mac != [0; 6]);
    let mut others = kernel.links.iter().filter(ethernet).filter(|link| link.index != primary.index);
    let link = others.next().filter(|_| others.next().is_none())?;
    let foreign = |address: &Address| {
        address.interface == link.index && address.global && !ours.contains(&address.address)
    };
    (!kernel.addresses.iter().any(foreign)).then(|| Network {
        name: attachment.to_owned(),
        interface: link.name.clone(),
        ips: Vec::new(),
        default: false,
    })
}

/// The interface that the pod's own default route leaves by; failing that, the
/// default network's. Never the LAN's, even where its NAD set a default route.
pub fn primary<'a>(kernel: &'a Kernel, networks: &[Network], lan: Option<u32>) -> Result<&'a Link, Fault> {
    let by_route = kernel
        .routes
        .iter()
        .filter(|route| route.table == MAIN && route.destination.prefix_len() == 0)
        .filter_map(|route| Some((route.metric, route.hop.interface()?)))
        .filter(|(_, interface)| Some(*interface) != lan)
        .min_by_key(|(metric, _)| *metric)
        .and_then(|(_, interface)| kernel.link(interface));
    let by_report = || {
        let network = networks.iter().find(|network| network.default)?;
        let link = kernel.link_named(&network.interface)?;
        (Some(link.index) != lan).then_some(link)
    };
    by_route.or_else(by_report).ok_or(Fault::NoDefaultRoute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Hop, Route};

    const STATUS: &str = r#"[
      {"name": "kindnet", "interface": "eth0", "ips": ["10.16.0.5"], "mac": "aa:aa:aa:aa:aa:aa", "default": true, "dns": {}},
      {"name": "kube-system/lb-svc-attachment", "interface": "net1", "mac": "bb:bb:bb:bb:bb:bb", "dns": {}, "mtu": 1500}
    ]"#;

    #[test]
    fn before_the_report_the_one_other_interface_is_presumed() {
        let link = |index, name: &str, mac| Link { index, name: name.into(), mac, ..Link::default() };
        let hop = Hop::Direct { oif: 2 };
        let mut kernel = Kernel {
            links: vec![
                link(1, "lo", Some([0; 6])),
                link(2, "eth0", Some([2; 6])),
                link(3, "tunl0", None),
                link(4, "net1", Some([4; 6])),
            ],
            routes: vec![Route::unicast(MAIN, "0.0.0.0/0".parse().unwrap(), hop)],
            ..Kernel::default()
        };
        let ours = BTreeSet::from([Ipv4Addr::new(172, 18, 0, 18)]);
        let presumed = |kernel: &Kernel| Some(super::presumed(kernel, "a/b", &ours)?.interface);
        assert_eq!(presumed(&kernel), Some("net1".to_owned()));
        let address = |last| Address {
            interface: 4,
            address: Ipv4Addr::new(172, 18, 0, last),
            prefix_len: 16,
            global: true,
            no_prefix_route: true,
            plain: true,
        };
        kernel.addresses.push(address(18));
        assert_eq!(presumed(&kernel), Some("net1".to_owned()), "our own does not count");
        kernel.addresses.push(address(19));
        assert_eq!(presumed(&kernel), None, "an IPAM's, perhaps");
        kernel.addresses.clear();
        kernel.links.push(link(5, "net2", Some([5; 6])));
        assert_eq!(presumed(&kernel), None, "which of the two?");
    }

    #[test]
    fn the_lan_is_found_by_its_attachment() {
        let networks = parse(STATUS).unwrap();
        let network = lan(&networks, "kube-system/lb-svc-attachment").unwrap();
        assert_eq!(network.interface, "net1");
        assert!(network.ips.is_empty());
    }

    #[test]
    fn an_attachment_not_reported_yet_is_pending() {
        for text in ["", "\n", "[]", STATUS] {
            let networks = parse(text).unwrap();
            assert!(
                matches!(lan(&networks, "kube-system/other"), Err(Fault::AttachmentPending { .. })),
                "{text}"
            );
        }
        assert!(matches!(parse("{"), Err(Fault::NetworkStatusInvalid(_))));
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
    fn the_primary_interface_is_the_default_routes() {
        let mut kernel = Kernel { links: vec![link(2, "eth0"), link(3, "net1")], ..Kernel::default() };
        // No route: by Multus's report, or not at all.
        assert!(matches!(primary(&kernel, &[], Some(3)), Err(Fault::NoDefaultRoute)));
        let networks = parse(STATUS).unwrap();
        assert_eq!(primary(&kernel, &networks, Some(3)).unwrap().name, "eth0");
        // A default route by the LAN does not make it the primary.
        kernel.routes = vec![default_route(3, 0), default_route(2, 100)];
        assert_eq!(primary(&kernel, &[], Some(3)).unwrap().name, "eth0");
        assert_eq!(primary(&kernel, &[], None).unwrap().name, "net1");
    }
}
