//! Fixtures of Services at node addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_svc_crds::gateway::{Port, Transport};
use lb_svc_crds::names;

use crate::gateway::pod_settings::Configuration;
use crate::ipam::ClaimId;
use crate::model::{Node, Service, ServiceId, ServiceRef};
use crate::node_mode::claim::PortClaim;
use crate::node_mode::ports::NodePermissions;
use crate::node_mode::request::Scope;
use crate::observed::{Observed, ObservedNodes};

/// A TCP port.
pub fn port(port: u16) -> Port {
    Port { protocol: Transport::Tcp, port }
}

/// A Service that asks for node addresses, on port 80.
pub fn service() -> Service {
    let annotations = [(names::MODE_ANNOTATION.to_owned(), names::MODE_NODE.to_owned())].into();
    Service { annotations, ..super::service() }
}

/// Those of the test's namespace may have some ports.
pub fn permissions() -> NodePermissions {
    NodePermissions {
        namespaces: ["default".to_owned()].into(),
        ports: "22,53,80,443,8000-8999".parse().unwrap(),
        reserved: Default::default(),
    }
}

/// The nodes of a pool.
pub fn scope(pool: &str) -> Scope {
    Scope { pool: Some(pool.to_owned()).filter(|pool| pool != names::NODE_POOL_ALL), only: None }
}

/// Ready nodes `n1` and so on with these internal addresses.
pub fn nodes(addresses: &[&str]) -> BTreeMap<String, Node> {
    let node = |(n, address): (usize, &&str)| {
        let address: IpAddr = address.parse().unwrap();
        (format!("n{}", n + 1), Node { internal: vec![address], ready: true, ..Node::default() })
    };
    addresses.iter().enumerate().map(node).collect()
}

/// The claim of the Service of this name, in the test's namespace, on a TCP port.
pub fn claim(service: &str, pool: &str, number: u16, nodes: &[&str]) -> PortClaim {
    let port = port(number);
    let name = names::node_claim_name(pool, &port);
    let uid = if service == "test-service" { "uid-1".to_owned() } else { format!("uid-of-{service}") };
    PortClaim {
        id: ClaimId { uid: format!("uid-{name}"), name, resource_version: "5".into() },
        pool: pool.to_owned(),
        port,
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        owner: ServiceId { service: ServiceRef::new("default", service), uid },
        created: None,
    }
}

/// A cluster of these nodes with a Service that asks for their addresses.
pub fn observed(service: Service, nodes: BTreeMap<String, Node>) -> Observed {
    let configuration = Configuration { node_mode: permissions(), ..Configuration::default() };
    Observed {
        service: Some(service),
        nodes: ObservedNodes { nodes: Arc::new(nodes), are_pods_seen: true, ..ObservedNodes::default() },
        configuration: Arc::new(configuration),
        ..Observed::default()
    }
}
