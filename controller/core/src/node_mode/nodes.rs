//! Which nodes may serve a Service, and at which of their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::request::{Family, Scope};
use crate::model::Node;

/// The most addresses that a Service's status names.
pub const ADDRESSES_MAX: usize = 64;

/// Whether an address can be a node's, of those that others may reach it at. Others
/// would have kube-proxy take over what is not the node's at all.
pub fn is_node_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            !(first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// Whether any node says by K3s's label whether it serves: then only those do that
/// say so.
pub fn is_k3s_in_use(nodes: &BTreeMap<String, Node>) -> bool {
    nodes.values().any(|node| node.k3s.is_some())
}

/// The nodes of a scope, ready or not, that have an address for one of `families`.
pub fn of_scope<'a>(
    nodes: &'a BTreeMap<String, Node>,
    scope: &Scope,
    families: &[Family],
    claimed: &BTreeSet<IpAddr>,
) -> BTreeMap<&'a str, &'a Node> {
    let is_k3s_in_use = is_k3s_in_use(nodes);
    let is_member = |node: &Node| {
        let serves = match &scope.pool {
            Some(pool) => node.pools.contains(pool),
            None => !is_k3s_in_use || node.k3s == Some(true),
        };
        let has_address =
            || families.iter().any(|family| usable(node, scope, *family, claimed).next().is_some());
        serves && !node.excluded && !node.lost && has_address()
    };
    nodes.iter().filter(|(_, node)| is_member(node)).map(|(name, node)| (name.as_str(), node)).collect()
}

/// The addresses of these nodes for a Service: families in order, and of each the
/// ExternalIPs, or where no node has one the InternalIPs.
pub fn addresses(
    nodes: &[&Node],
    scope: &Scope,
    families: &[Family],
    claimed: &BTreeSet<IpAddr>,
) -> Vec<IpAddr> {
    let of = |family: Family, external: bool| -> BTreeSet<IpAddr> {
        let usable = nodes.iter().flat_map(|node| usable(node, scope, family, claimed));
        usable.filter(|(_, is_external)| *is_external == external).map(|(address, _)| address).collect()
    };
    let of_family = |family: &Family| {
        let external = of(*family, true);
        if external.is_empty() { of(*family, false) } else { external }
    };
    families.iter().flat_map(of_family).collect()
}

/// The addresses of a node that a Service may be served at, and whether each is an
/// ExternalIP.
fn usable<'a>(
    node: &'a Node,
    scope: &'a Scope,
    family: Family,
    claimed: &'a BTreeSet<IpAddr>,
) -> impl Iterator<Item = (IpAddr, bool)> + 'a {
    let external = node.external.iter().map(|address| (*address, true));
    let internal = node.internal.iter().map(|address| (*address, false));
    external.chain(internal).filter(move |(address, _)| {
        family.has(*address)
            && is_node_address(*address)
            && scope.only.is_none_or(|only| only.contains(address))
            && !claimed.contains(address)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::nodes::{nodes, scope};

    const BOTH: [Family; 2] = [Family::V6, Family::V4];

    fn found(nodes: &BTreeMap<String, Node>, scope: &Scope, families: &[Family]) -> Vec<String> {
        let members = of_scope(nodes, scope, families, &BTreeSet::new());
        let members: Vec<&Node> = members.into_values().collect();
        let found = addresses(&members, scope, families, &BTreeSet::new());
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn external_addresses_come_before_internal_ones_in_each_family_and_families_in_order() {
        let mut nodes = nodes(&["10.0.0.2", "10.0.0.10"]);
        assert_eq!(found(&nodes, &scope("all"), &[Family::V4]), ["10.0.0.2", "10.0.0.10"]);
        let n2 = nodes.get_mut("n2").unwrap();
        n2.external = vec!["192.0.2.9".parse().unwrap()];
        n2.internal.push("fd00::2".parse().unwrap());
        assert_eq!(found(&nodes, &scope("all"), &[Family::V4]), ["192.0.2.9"], "no mixture");
        assert_eq!(found(&nodes, &scope("all"), &BOTH), ["fd00::2", "192.0.2.9"]);
        let inside = Scope { only: "10.0.0.0/28".parse().ok(), ..scope("all") };
        assert_eq!(found(&nodes, &inside, &BOTH), ["10.0.0.2", "10.0.0.10"]);
    }

    #[test]
    fn pool_narrows_to_its_nodes_and_k3s_labels_to_those_that_say_so() {
        let mut nodes = nodes(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        nodes.get_mut("n1").unwrap().pools = ["edge".to_owned(), "web".to_owned()].into();
        nodes.get_mut("n2").unwrap().pools = ["web".to_owned()].into();
        let v4 = [Family::V4];
        assert_eq!(found(&nodes, &scope("edge"), &v4), ["10.0.0.1"]);
        assert_eq!(found(&nodes, &scope("web"), &v4), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(found(&nodes, &scope("none"), &v4), [] as [&str; 0]);
        nodes.get_mut("n3").unwrap().k3s = Some(true);
        nodes.get_mut("n2").unwrap().k3s = Some(false);
        assert_eq!(found(&nodes, &scope("all"), &v4), ["10.0.0.3"]);
        nodes.get_mut("n3").unwrap().excluded = true;
        assert_eq!(found(&nodes, &scope("all"), &v4), [] as [&str; 0]);
    }

    #[test]
    fn address_that_is_no_nodes_is_never_taken() {
        for wrong in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "224.0.0.5",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_node_address(wrong.parse().unwrap()), "{wrong}");
            let nodes = nodes(&[wrong]);
            assert_eq!(found(&nodes, &scope("all"), &BOTH), [] as [&str; 0]);
        }
        let nodes = nodes(&["10.0.0.1"]);
        let claimed = ["10.0.0.1".parse().unwrap()].into();
        assert!(of_scope(&nodes, &scope("all"), &BOTH, &claimed).is_empty(), "a gateway's");
    }

    proptest! {
        #[test]
        fn whatever_nodes_say_only_addresses_of_theirs_are_taken(
            said in prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 0..6),
        ) {
            let address = |bits: u32| IpAddr::V4(bits.into());
            let node = |(internal, external, ready): &(u32, u32, bool)| Node {
                internal: vec![address(*internal)],
                external: vec![address(*external)],
                ready: *ready,
                ..Node::default()
            };
            let nodes: BTreeMap<String, Node> =
                said.iter().enumerate().map(|(n, said)| (format!("n{n}"), node(said))).collect();
            let all: BTreeSet<String> =
                said.iter().flat_map(|(a, b, _)| [address(*a), address(*b)]).map(|a| a.to_string()).collect();
            for text in found(&nodes, &scope("all"), &BOTH) {
                prop_assert!(all.contains(&text), "{}", text);
                prop_assert!(is_node_address(text.parse().unwrap()));
            }
        }
    }
}
