//! Nodes as they serve Services at their own addresses, and who has ports of theirs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use lb_svc_core::model::{Node, ObjectName, Service, ServiceRef};
use lb_svc_core::node_mode::claim::PortClaim;
use lb_svc_core::node_mode::proxy;
use lb_svc_core::node_mode::request::{Mode, mode};
use lb_svc_core::observed::ObservedNodes;
use lb_svc_core::service::spec::transport;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::names;

use super::{Index, Key};

/// The pods that publish ports on their node.
#[derive(Debug, Default)]
pub(super) struct Publishers {
    of: HashMap<ObjectName, (String, BTreeSet<Port>)>,
    by_port: HashMap<Port, BTreeSet<(String, ObjectName)>>,
    /// Whether all have been seen.
    pub are_seen: bool,
    /// The pods of kube-proxy, and of what may stand in for it.
    proxies: BTreeMap<ObjectName, &'static str>,
}

impl Publishers {
    /// A pod publishes these ports on this node. Returns the ports for which that is
    /// news.
    fn set(&mut self, pod: &ObjectName, published: Option<(String, BTreeSet<Port>)>) -> BTreeSet<Port> {
        if self.of.get(pod) == published.as_ref() {
            return BTreeSet::new();
        }
        let mut changed = BTreeSet::new();
        if let Some((node, ports)) = self.of.remove(pod) {
            for port in ports {
                if let Some(pods) = self.by_port.get_mut(&port) {
                    pods.remove(&(node.clone(), pod.clone()));
                    if pods.is_empty() {
                        self.by_port.remove(&port);
                    }
                }
                changed.insert(port);
            }
        }
        if let Some((node, ports)) = published {
            for port in &ports {
                self.by_port.entry(port.clone()).or_default().insert((node.clone(), pod.clone()));
                changed.insert(port.clone());
            }
            self.of.insert(pod.clone(), (node, ports));
        }
        changed
    }
}

/// The ports of a Service that nodes serve.
fn ports(service: &Service) -> impl Iterator<Item = Port> {
    service
        .ports
        .iter()
        .filter_map(|port| Some(Port { protocol: transport(&port.protocol)?, port: port.port }))
}

impl Index {
    /// What concerns a Service that asks for node addresses, or has ports of nodes.
    pub(super) fn observe_nodes(&self, name: &ServiceRef) -> ObservedNodes {
        let claims: Vec<Arc<PortClaim>> = self.port_claims.of(name).cloned().collect();
        let service = self.services.get(name).filter(|service| mode(service) != Mode::Gateway);
        let Some(service) = service else { return ObservedNodes { claims, ..ObservedNodes::default() } };
        let asked: BTreeSet<Port> = ports(service).collect();
        let others = asked.iter().flat_map(|port| self.port_claims.on(port));
        let pool = service.annotations.get(names::NODE_POOL).or(service.k3s_pool.as_ref());
        let pools = [Some(names::NODE_POOL_ALL), pool.map(String::as_str)];
        let names = pools
            .iter()
            .flatten()
            .flat_map(|pool| asked.iter().map(move |port| names::node_claim_name(pool, port)));
        let publishers = asked.iter().flat_map(|port| {
            let pods = self.publishers.by_port.get(port).into_iter().flatten();
            pods.map(move |(node, pod)| (port.clone(), node.clone(), pod.clone()))
        });
        let of_node = |node: &Node| node.internal.iter().chain(&node.external).copied().collect::<Vec<_>>();
        let addresses: BTreeSet<IpAddr> = self.serving_nodes.values().flat_map(of_node).collect();
        let claimed = self.allocator.claims().map(|claim| claim.address);
        ObservedNodes {
            others: others.filter(|claim| claim.owner.service != *name).cloned().collect(),
            strangers: names.filter(|name| self.allocator.is_stranger(name)).collect(),
            nodes: Arc::clone(&self.serving_nodes),
            publishers: publishers.collect(),
            are_pods_seen: self.publishers.are_seen,
            stands_in: self.stands_in(),
            claimed: claimed.filter(|address| addresses.contains(address)).collect(),
            claims,
        }
    }

    /// The Services that ask for node addresses.
    fn at_nodes(&self) -> impl Iterator<Item = Key> + '_ {
        self.at_nodes.iter().map(|service| self.key_of(service))
    }

    /// A node is so, as far as Services are served there; `None` if it is gone.
    pub(super) fn set_serving_node(&mut self, name: &str, node: Option<Node>) -> Vec<Key> {
        if self.serving_nodes.get(name) == node.as_ref() {
            return Vec::new();
        }
        let nodes = Arc::make_mut(&mut self.serving_nodes);
        match node {
            Some(node) => nodes.insert(name.to_owned(), node),
            None => nodes.remove(name),
        };
        self.at_nodes().collect()
    }

    /// There is this claim on a port: the watch shows it (`confirmed`), or the API
    /// server answered so to our own write.
    pub fn set_port_claim(&mut self, claim: PortClaim, confirmed: bool) -> Vec<Key> {
        let owner = self.key_of(&claim.owner.service);
        if !self.port_claims.apply(claim, confirmed) {
            return Vec::new();
        }
        // It may have left nodes to others.
        self.waiting_keys().chain([owner]).collect()
    }

    /// The watch shows that these claims on ports are gone.
    pub(super) fn port_claims_gone(&mut self, claims: &[Arc<PortClaim>]) -> Vec<Key> {
        if claims.is_empty() {
            return Vec::new();
        }
        let owners = claims.iter().map(|claim| self.key_of(&claim.owner.service));
        owners.chain(self.waiting_keys()).collect()
    }

    /// A pod publishes these ports on this node; `None` if it publishes none.
    pub fn set_publisher(
        &mut self,
        pod: &ObjectName,
        published: Option<(String, BTreeSet<Port>)>,
    ) -> Vec<Key> {
        let changed = self.publishers.set(pod, published);
        if changed.is_empty() {
            return Vec::new();
        }
        let uses = |name: &&ServiceRef| {
            self.services.get(name).is_some_and(|service| ports(service).any(|port| changed.contains(&port)))
        };
        self.at_nodes.iter().filter(uses).map(|service| self.key_of(service)).collect()
    }

    fn stands_in(&self) -> Option<&'static str> {
        proxy::stands_in(self.publishers.proxies.values().copied())
    }

    /// A pod is of kube-proxy, or of this that may stand in for it; `None` if of
    /// neither.
    pub fn set_proxy(&mut self, pod: &ObjectName, name: Option<&'static str>) -> Vec<Key> {
        let before = self.stands_in();
        match name {
            Some(name) => self.publishers.proxies.insert(pod.clone(), name),
            None => self.publishers.proxies.remove(pod),
        };
        if before == self.stands_in() { Vec::new() } else { self.at_nodes().collect() }
    }

    /// All pods have been listed, and set: those of other names publish nothing.
    pub fn publishers_listed(&mut self, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone: Vec<ObjectName> =
            self.publishers.of.keys().filter(|pod| !names.contains(*pod)).cloned().collect();
        let mut keys: Vec<Key> = gone.into_iter().flat_map(|pod| self.set_publisher(&pod, None)).collect();
        let gone: Vec<ObjectName> =
            self.publishers.proxies.keys().filter(|pod| !names.contains(*pod)).cloned().collect();
        keys.extend(gone.into_iter().flat_map(|pod| self.set_proxy(&pod, None)));
        if !std::mem::replace(&mut self.publishers.are_seen, true) {
            keys.extend(self.at_nodes());
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use lb_svc_core::gateway::assignment::gateway_of;
    use lb_svc_core::testing::nodes as fixtures;
    use lb_svc_core::testing::nodes::port;

    use super::*;

    fn seen(index: &Index) -> ObservedNodes {
        let service = fixtures::service().id.service;
        index.observe(&gateway_of(&service), Instant::now()).nodes
    }

    fn with_service() -> (Index, Key) {
        let mut index = Index::default();
        let service = fixtures::service();
        let name = service.id.service.clone();
        assert_eq!(index.set_service(name.clone(), Some(service)), [Key::Gateway(gateway_of(&name))]);
        (index, Key::Gateway(gateway_of(&name)))
    }

    #[test]
    fn nodes_concern_services_that_ask_for_their_addresses() {
        let (mut index, key) = with_service();
        let node = |ready| Some(Node { ready, ..Node::default() });
        assert_eq!(index.set_node("n1", node(false)), std::slice::from_ref(&key));
        assert_eq!(index.set_node("n1", node(false)), []);
        assert_eq!(index.set_node("n1", node(true)), std::slice::from_ref(&key));
        assert!(seen(&index).nodes["n1"].ready);
        assert_eq!(index.set_node("n1", None), std::slice::from_ref(&key));
        assert!(seen(&index).nodes.is_empty());
        let gateway = lb_svc_core::testing::service();
        index.set_service(gateway.id.service.clone(), Some(gateway));
        assert_eq!(index.set_node("n1", node(true)), []);
    }

    #[test]
    fn pod_that_publishes_a_port_concerns_who_has_it() {
        let (mut index, key) = with_service();
        let pod = |n: u32| ("kube-system".to_owned(), format!("ingress-{n}"));
        let on = |node: &str, number| Some((node.to_owned(), BTreeSet::from([port(number)])));
        assert!(!seen(&index).are_pods_seen);
        assert_eq!(index.set_publisher(&pod(1), on("n1", 80)), std::slice::from_ref(&key));
        assert_eq!(index.set_publisher(&pod(1), on("n1", 80)), []);
        assert_eq!(index.set_publisher(&pod(2), on("n1", 8080)), [], "another port");
        assert_eq!(seen(&index).publishers, [(port(80), "n1".to_owned(), pod(1))]);
        assert_eq!(index.publishers_listed(&[pod(1), pod(2)].into()), std::slice::from_ref(&key));
        assert!(seen(&index).are_pods_seen);
        assert_eq!(index.publishers_listed(&[pod(2)].into()), std::slice::from_ref(&key));
        assert!(seen(&index).publishers.is_empty());
    }

    #[test]
    fn what_stands_in_for_kube_proxy_concerns_services_at_nodes() {
        let (mut index, key) = with_service();
        let pod = |name: &str| ("kube-system".to_owned(), name.to_owned());
        assert_eq!(index.set_proxy(&pod("cilium-1"), Some("Cilium")), std::slice::from_ref(&key));
        assert_eq!(index.set_proxy(&pod("cilium-2"), Some("Cilium")), []);
        assert_eq!(seen(&index).stands_in, Some("Cilium"));
        assert_eq!(index.set_proxy(&pod("kube-proxy-1"), Some("kube-proxy")), std::slice::from_ref(&key));
        assert_eq!(seen(&index).stands_in, None);
        index.publishers_listed(&[pod("cilium-1")].into());
        assert_eq!(seen(&index).stands_in, Some("Cilium"));
    }

    #[test]
    fn port_that_is_freed_concerns_who_waits_for_it() {
        let (mut index, key) = with_service();
        let claim = fixtures::claim("web", "all", 80, &["n1"]);
        let owner = Key::Gateway(gateway_of(&claim.owner.service));
        assert_eq!(index.set_port_claim(claim.clone(), true), std::slice::from_ref(&owner));
        assert_eq!((seen(&index).claims.len(), seen(&index).others.len()), (0, 1));
        assert!(index.keys().contains(&owner), "it may be gone, and its claim not");
        index.set_address_pending(&fixtures::service().id.service, true);
        let keys = index.claim_gone(&claim.id.name, &claim.id.uid);
        assert!(keys.contains(&key) && keys.contains(&owner), "{keys:?}");
        assert!(seen(&index).others.is_empty());
        index.set_no_claim("node.all.tcp-80", "odd");
        assert!(seen(&index).strangers.contains("node.all.tcp-80"));
        assert_eq!(index.claim_gone("node.all.tcp-80", "odd"), std::slice::from_ref(&key));
    }
}
