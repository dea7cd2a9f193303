//! Fixtures of tests.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod deployment;
pub mod gateway;
pub mod nodes;

use std::net::Ipv4Addr;

use lb_svc_crds::gateway::{ElectionStatus, Role, Transport};
use lb_svc_crds::{SubnetSpec, names};

use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, PodId, Service, ServiceId, ServicePort, ServiceRef, Subnet,
    SubnetStatus,
};

/// A spec of the document's provider.
pub fn subnet_spec(cidr: &str, gateway: &str, excludes: &[&str]) -> SubnetSpec {
    SubnetSpec {
        provider: "lan.kube-system".into(),
        cidr_block: cidr.into(),
        gateway: (!gateway.is_empty()).then(|| gateway.into()),
        exclude_ips: excludes.iter().map(ToString::to_string).collect(),
        ..SubnetSpec::default()
    }
}

/// A Subnet of the document's provider, of which nothing was said yet.
pub fn subnet(cidr: &str) -> Subnet {
    Subnet {
        uid: "u".into(),
        created: None,
        generation: Some(1),
        deleting: false,
        held: false,
        spec: subnet_spec(cidr, "", &[]),
        rules: Default::default(),
        unread: Vec::new(),
        status: SubnetStatus::default(),
        since: Default::default(),
    }
}

/// A port of a Service, without a name.
pub fn port(protocol: &str, port: u16) -> ServicePort {
    ServicePort { name: String::new(), protocol: protocol.into(), port }
}

/// The document's Service, without its loadBalancerIP.
pub fn service() -> Service {
    Service {
        id: ServiceId { service: ServiceRef::new("default", "test-service"), uid: "uid-1".into() },
        resource_version: "7".into(),
        generation: None,
        deleting: false,
        load_balancer: true,
        class: None,
        annotations: [(names::PROVIDER_ANNOTATION.to_owned(), "lan.kube-system".to_owned())].into(),
        settings: Default::default(),
        load_balancer_ip: String::new(),
        cluster_ips: vec!["10.109.201.193".into()],
        ports: vec![port("TCP", 80)],
        selector: Default::default(),
        affinity: None,
        local_policy: false,
        internal_local: false,
        source_ranges: Vec::new(),
        ranges_annotated: false,
        k3s_pool: None,
        unheeded: Vec::new(),
        ingress: Vec::new(),
        conditions: Vec::new(),
        since: Default::default(),
    }
}

/// An endpoint: its address' last part, and what is said of it.
pub fn endpoint(last: u8, said: &str) -> Endpoint {
    let (ready, serving, terminating) = match said {
        "ready" => (true, true, false),
        "unready" => (false, false, false),
        "leaving" => (false, true, true),
        "gone" => (false, false, true),
        other => panic!("{other}"),
    };
    let pod = Some(PodId::of(&format!("uid-{last}")));
    Endpoint { address: Ipv4Addr::new(10, 0, 0, last), ready, serving, terminating, pod, node: None }
}

/// An EndpointSlice with these ports (name, protocol, number), and endpoints
/// as [`endpoint`] has them.
pub fn slice(ports: &[(&str, Transport, u16)], endpoints: &[(u8, &str)]) -> EndpointSlice {
    let port = |(name, protocol, port): &(&str, Transport, u16)| EndpointPort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
    };
    let endpoints = endpoints.iter().map(|(last, said)| endpoint(*last, said)).collect();
    EndpointSlice { ports: ports.iter().map(port).collect(), endpoints }
}

/// What a pod says of its part in the election.
pub fn election_status(role: Role, active: &str, term: u64) -> ElectionStatus {
    ElectionStatus {
        role,
        term,
        active: Some(active.to_owned()),
        why: format!("why {term}"),
        ..Default::default()
    }
}
