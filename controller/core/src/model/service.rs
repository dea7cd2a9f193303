//! Services: what is read of their spec and status.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use lb_svc_crds::names;
use serde_json::Value;

use super::{Condition, Setting};

/// A Service, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
}

impl ServiceRef {
    /// The Service `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The Service that `<namespace>/<name>` names; `None` unless both are
    /// names that Kubernetes gives Services, for the text may be anyone's.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Self::checked(namespace, name)
    }

    /// The Service `name` in `namespace`; `None` unless both can be names.
    pub fn checked(namespace: &str, name: &str) -> Option<Self> {
        (names::is_dns_label(namespace) && names::is_dns_label(name)).then(|| Self::new(namespace, name))
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One Service, and no other that had or will have its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId {
    /// Namespace and name.
    pub service: ServiceRef,
    /// Its uid.
    pub uid: String,
}

/// A Service as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace, name, uid.
    pub id: ServiceId,
    /// For conditional writes.
    pub resource_version: String,
    /// `metadata.generation`, for conditions; absent where the API server keeps none.
    pub generation: Option<i64>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether `spec.type` is LoadBalancer.
    pub load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// The annotations that are read, see [`crate::service::spec`]. Of those of
    /// the product's domain without meaning, and of the settings, only the names.
    pub annotations: BTreeMap<String, String>,
    /// The gateway pod settings among the annotations, as the API writes them;
    /// an error says what is wrong with the annotation's value.
    pub settings: BTreeMap<Setting, Result<Value, String>>,
    /// `spec.loadBalancerIP`, as written.
    pub load_balancer_ip: String,
    /// `spec.clusterIPs`, as written.
    pub cluster_ips: Vec<String>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`.
    pub selector: BTreeMap<String, String>,
    /// The session affinity timeout in seconds, where `spec.sessionAffinity` is
    /// ClientIP.
    pub affinity: Option<u32>,
    /// Whether `spec.externalTrafficPolicy` is Local.
    pub local_policy: bool,
    /// Whether `spec.internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `spec.loadBalancerSourceRanges`, or the annotation that was before it, as
    /// written.
    pub source_ranges: Vec<String>,
    /// Whether they are the annotation's, which Kubernetes itself heeds no more.
    pub ranges_annotated: bool,
    /// The value of K3s's label for the pool of nodes.
    pub k3s_pool: Option<String>,
    /// The names of its annotations and labels, and the paths of its fields, that
    /// [`unheeded`](crate::service::unheeded) has an entry for.
    pub unheeded: Vec<String>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<Ingress>,
    /// The controller's conditions in its status.
    pub conditions: Vec<Condition>,
    /// When each of them last changed its status.
    pub since: BTreeMap<String, Timestamp>,
}

impl Service {
    /// Whether its status names the address.
    pub fn has_ingress(&self, address: IpAddr) -> bool {
        let address = address.to_string();
        self.ingress.iter().any(|entry| entry.ip == address)
    }

    /// Its IPv4 ClusterIPs.
    pub fn ipv4_cluster_ips(&self) -> Vec<IpAddr> {
        self.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).filter(IpAddr::is_ipv4).collect()
    }
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be empty where it is the only one.
    pub name: String,
    /// Its protocol, as written.
    pub protocol: String,
    /// Its number.
    pub port: u16,
}

/// An entry of a Service's `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// The address; empty in an entry without one.
    pub ip: String,
    /// Whether `ipMode` is Proxy: to clients inside the cluster the address is
    /// one to send to, not one that their node serves by itself.
    pub proxy: bool,
    /// Every port of the Service.
    pub ports: Vec<PortStatus>,
}

/// The status of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Its protocol, as written.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// Why it is not served.
    pub error: Option<String>,
}
