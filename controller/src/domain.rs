//! What the controller knows of the cluster, in its own terms: no Kubernetes
//! types, so that [`crate::plan`] can be read and tested without them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names;
use sha2::{Digest, Sha256};

/// A Service, or the gateway that serves it: both are known by this.
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

    /// Reads `<namespace>/<name>`.
    pub fn parse(text: &str) -> Option<Self> {
        text.split_once('/').map(|(namespace, name)| Self::new(namespace, name))
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a Service's gateway is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The Service.
    pub service: ServiceRef,
    /// The namespace of ConfigMap, Deployment and pods.
    pub namespace: String,
}

impl Place {
    /// The name of ConfigMap and Deployment.
    pub fn name(&self) -> String {
        let ServiceRef { namespace, name } = &self.service;
        if self.is_beside() { names::gateway_name(name) } else { names::gateway_name_apart(namespace, name) }
    }

    /// Whether the gateway is in the Service's own namespace.
    pub fn is_beside(&self) -> bool {
        self.namespace == self.service.namespace
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name())
    }
}

/// One Service, and no other that had or will have its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Namespace and name.
    pub service: ServiceRef,
    /// Its uid.
    pub uid: String,
}

/// A Service as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace, name, uid.
    pub owner: Owner,
    /// For conditional writes.
    pub resource_version: String,
    /// Conditions carry it; absent where the API server keeps none.
    pub generation: Option<i64>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether `spec.type` is LoadBalancer.
    pub load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// The annotations that concern us, see [`crate::request`].
    pub annotations: BTreeMap<String, String>,
    /// `spec.loadBalancerIP`, as written.
    pub load_balancer_ip: String,
    /// `spec.clusterIPs`, as written.
    pub cluster_ips: Vec<String>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`.
    pub selector: BTreeMap<String, String>,
    /// For how many seconds a client stays with its backend, where
    /// `spec.sessionAffinity` is ClientIP.
    pub affinity: Option<u32>,
    /// Whether `spec.externalTrafficPolicy` is Local.
    pub local_policy: bool,
    /// Whether `spec.internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `spec.loadBalancerSourceRanges`, as written.
    pub source_ranges: Vec<String>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<Ingress>,
    /// Our conditions in its status.
    pub conditions: Vec<Condition>,
    /// When each of them last changed its status.
    pub since: BTreeMap<String, Timestamp>,
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

/// What became of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Its protocol, as written.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// Why it is not served.
    pub error: Option<String>,
}

/// A condition of ours on a Service or a Subnet, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: String,
    /// True or False.
    pub status: bool,
    /// One CamelCase word for the cause.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// A NetworkAttachmentDefinition as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The wire it is on, as far as its configuration says: two attachments of
    /// one wire are one network.
    pub wire: Option<String>,
    /// The extended resource that a pod needs one of for it.
    pub resource: Option<String>,
    /// Digest of what interfaces are made from, however it is spelled.
    pub digest: String,
    /// Why no interface can be made from it.
    pub fault: Option<String>,
}

/// A ConfigMap or Deployment with a gateway's name, as last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Child<T> {
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// The uid of the Service it was made for; `None` if we did not make it.
    pub made_for: Option<String>,
    /// Its content.
    pub content: T,
}

impl<T> Child<T> {
    /// The same with another content.
    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> Child<U> {
        let Self { uid, resource_version, deleting, made_for, content } = self;
        Child { uid, resource_version, deleting, made_for, content: to(content) }
    }
}

/// What a Deployment's content is to the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeploymentView {
    /// Why no pod could be made, in the ReplicaSet controller's words.
    pub failure: Option<String>,
    /// Whether its pod is being replaced or made: not ready yet, and not given
    /// up either.
    pub rolling: bool,
    /// What of it is compared with what is wanted, see [`crate::render`].
    pub live: serde_json::Value,
}

/// A gateway pod as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The Service it was made for, by uid.
    pub made_for: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether its containers have ended for good.
    pub finished: bool,
    /// Its node, once scheduled.
    pub node: Option<String>,
    /// Whether its node is gone, or said to be off (taint out-of-service).
    pub node_lost: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// Since when it has not been ready, while it is not.
    pub unready_since: Option<Timestamp>,
    /// Whether it has the election's key mounted, and so takes part in one.
    pub member: bool,
    /// Its pod IP.
    pub address: Option<IpAddr>,
    /// The attached interface's hardware address, as Multus reports it.
    pub mac: Option<String>,
    /// Its annotations that are ours.
    pub annotations: BTreeMap<String, String>,
    /// What keeps it from running: reason and message.
    pub waiting: Option<(String, String)>,
    /// What it answered at `/status`.
    pub answer: Answer,
}

/// A pod's uid, in little room: there may be one for each endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId([u8; 16]);

impl PodId {
    /// The pod with this uid.
    pub fn of(uid: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(uid).into();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

/// A pod that has our readiness gate, as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its uid.
    pub uid: String,
    /// The same in short.
    pub id: PodId,
    /// What Services select it by.
    pub labels: BTreeMap<String, String>,
    /// Whether it is ready but for our gate, and not on its way out.
    pub fit: bool,
    /// When it passed our gate, if it has.
    pub passed: Option<Timestamp>,
    /// Whether its condition says what keeps it from that.
    pub told: bool,
}

/// What a gateway said when asked for its status.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Answer {
    /// It was not asked: there is nobody to ask yet.
    #[default]
    Unasked,
    /// It was asked and nothing came back in time: it is starting or gone, or
    /// a NetworkPolicy stands between.
    Silence,
    /// It answered.
    Said(Box<GatewayStatus>),
}

impl Pod {
    /// Whether anything in it could still answer on the LAN.
    pub fn could_answer(&self) -> bool {
        !self.finished && !self.node_lost
    }
}
