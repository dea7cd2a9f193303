//! Claims on ports of nodes: which Service has a port where.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::names;
use lb_svc_crds::{IPSpec, NodePort, Requested};
use serde_json::{Value, json};

use crate::ipam::ClaimId;
use crate::ipam::known::{Holding, Known};
use crate::model::{ServiceId, ServiceRef};

/// One Service's hold on a port of nodes: an IP object, as last seen. Its name has
/// pool, protocol and port, so that the API server refuses a second one. Where pools
/// share nodes, the list of nodes decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortClaim {
    /// The object.
    pub id: ClaimId,
    /// The pool.
    pub pool: String,
    /// The port.
    pub port: Port,
    /// The nodes whose port it is.
    pub nodes: BTreeSet<String>,
    /// The Service, by uid.
    pub owner: ServiceId,
    /// When it was made.
    pub created: Option<Timestamp>,
}

impl PortClaim {
    /// Whether a node that both list is this one's: the older has it, and of two of
    /// one second the same one for whoever asks.
    pub fn precedes(&self, other: &Self) -> bool {
        (self.created, &self.id.uid) < (other.created, &other.id.uid)
    }
}

/// A request for a port of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// The Service.
    pub owner: ServiceId,
    /// The pool.
    pub pool: String,
    /// The port.
    pub port: Port,
    /// The nodes.
    pub nodes: BTreeSet<String>,
}

impl PortRequest {
    /// The name of the claim.
    pub fn name(&self) -> String {
        names::node_claim_name(&self.pool, &self.port)
    }
}

/// The IP object that claims what is requested.
pub fn manifest(request: &PortRequest) -> Value {
    let spec = IPSpec {
        subnet: String::new(),
        provider: String::new(),
        ip_address: String::new(),
        v4_ip_address: String::new(),
        v6_ip_address: String::new(),
        mac_address: String::new(),
        namespace: request.owner.service.namespace.clone(),
        service_name: request.owner.service.name.clone(),
        service_uid: request.owner.uid.clone(),
        requested: Requested::Static,
        keep: false,
        probed: false,
        conflict: String::new(),
        node_port: Some(NodePort {
            pool: request.pool.clone(),
            protocol: request.port.protocol,
            port: request.port.port,
            nodes: request.nodes.iter().cloned().collect(),
        }),
    };
    json!({
        "apiVersion": "kubeovn.io/v1",
        "kind": "IP",
        "metadata": { "name": request.name(), "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY } },
        "spec": spec,
    })
}

impl Holding for Arc<PortClaim> {
    fn id(&self) -> &ClaimId {
        &self.id
    }

    fn owner(&self) -> &ServiceId {
        &self.owner
    }
}

/// All claims on ports as last seen.
#[derive(Debug, Default)]
pub struct PortClaims {
    claims: Known<Arc<PortClaim>>,
    by_port: HashMap<Port, BTreeSet<String>>,
}

impl PortClaims {
    /// A claim exists: the watch shows it (`confirmed`), or the API server answered so
    /// to our own write. Returns whether that is news.
    pub fn apply(&mut self, claim: PortClaim, confirmed: bool) -> bool {
        let claim = Arc::new(claim);
        if self.claims.has(&claim, confirmed) {
            return false;
        }
        self.remove_entry(&claim.id.name);
        self.by_port.entry(claim.port.clone()).or_default().insert(claim.id.name.clone());
        self.claims.insert(claim, confirmed);
        true
    }

    /// Whether there is a claim of this name and uid.
    pub fn knows(&self, name: &str, uid: &str) -> bool {
        self.claims.knows(name, uid)
    }

    /// The claim with this name and uid is gone. Returns it, if it was known.
    pub fn remove(&mut self, name: &str, uid: &str) -> Option<Arc<PortClaim>> {
        if self.knows(name, uid) { self.remove_entry(name) } else { None }
    }

    /// The watch listed all claims anew: those it did not name are gone, but for our
    /// own that it cannot have seen yet. Returns the ones gone.
    pub fn retain(&mut self, listed: &BTreeSet<String>) -> Vec<Arc<PortClaim>> {
        let gone = self.claims.unlisted(listed);
        gone.iter().filter_map(|name| self.remove_entry(name)).collect()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<PortClaim>> {
        self.claims.all()
    }

    /// Those of every Service that has or had this name.
    pub fn of(&self, service: &ServiceRef) -> impl Iterator<Item = &Arc<PortClaim>> {
        self.claims.of(service)
    }

    /// Those on a port, in whichever pool.
    pub fn on(&self, port: &Port) -> impl Iterator<Item = &Arc<PortClaim>> {
        self.by_port.get(port).into_iter().flatten().filter_map(|name| self.claims.get(name))
    }

    fn remove_entry(&mut self, name: &str) -> Option<Arc<PortClaim>> {
        let claim = self.claims.remove(name)?;
        if let Some(names) = self.by_port.get_mut(&claim.port) {
            names.remove(name);
            if names.is_empty() {
                self.by_port.remove(&claim.port);
            }
        }
        Some(claim)
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::gateway::Transport;

    use super::*;
    use crate::testing::nodes::{claim, port};

    #[test]
    fn claims_are_found_by_service_and_by_port_until_they_are_gone() {
        let mut all = PortClaims::default();
        let (web, other) = (claim("web", "all", 80, &["n1"]), claim("other", "edge", 80, &["n2"]));
        assert!(all.apply(web.clone(), false));
        assert!(!all.apply(web.clone(), true), "no news");
        assert!(all.apply(other, true));
        let on = |all: &PortClaims| all.on(&port(80)).map(|claim| claim.pool.clone()).collect::<Vec<_>>();
        assert_eq!(on(&all), ["all", "edge"]);
        assert_eq!(all.of(&web.owner.service).count(), 1);
        assert!(all.remove(&web.id.name, "another").is_none());
        assert!(all.remove(&web.id.name, &web.id.uid).is_some());
        assert_eq!((on(&all), all.of(&web.owner.service).count()), (vec!["edge".to_owned()], 0));
        // One that was just made is not in a list that began before.
        all.apply(web, false);
        assert_eq!(all.retain(&BTreeSet::new()).len(), 1);
        assert_eq!(on(&all), ["all"]);
    }

    #[test]
    fn name_of_a_claim_is_that_of_no_address() {
        let (tcp, udp) = (port(80), Port { protocol: Transport::Udp, port: 80 });
        assert_eq!(names::node_claim_name("all", &tcp), "node.all.tcp-80");
        assert_ne!(names::node_claim_name("all", &tcp), names::node_claim_name("all", &udp));
        let provider: names::Provider = "node.all".parse().unwrap();
        for address in ["10.0.0.1", "fd00::1"] {
            assert_ne!(provider.claim_name(address.parse().unwrap()), "node.all.tcp-80");
        }
    }
}
