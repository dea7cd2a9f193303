#[cfg(feature = "kube")]
use kube::{CustomResource, KubeSchema};
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::Transport;

/// A claim: one Service's hold on one address of an attached network.
///
/// Its name is network and address ([`crate::names::Provider::claim_name`]),
/// so the API server itself refuses a second one. It is keyed to the Service's
/// uid and outlives every gateway pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(CustomResource, KubeSchema))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "kubeovn.io",
        version = "v1",
        kind = "IP",
        plural = "ips",
        singular = "ip",
        shortname = "ip",
        doc = "A claim: one Service's hold on one address of an attached network.",
        derive = "PartialEq",
        printcolumn = r#"{"name":"V4IP","type":"string","jsonPath":".spec.v4IpAddress"}"#,
        printcolumn = r#"{"name":"V6IP","type":"string","jsonPath":".spec.v6IpAddress"}"#,
        printcolumn = r#"{"name":"Mac","type":"string","jsonPath":".spec.macAddress"}"#,
        printcolumn = r#"{"name":"Subnet","type":"string","jsonPath":".spec.subnet"}"#,
        printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.namespace"}"#,
        printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.serviceName"}"#,
        printcolumn = r#"{"name":"Keep","type":"boolean","jsonPath":".spec.keep","priority":1}"#,
        printcolumn = r#"{"name":"Requested","type":"string","jsonPath":".spec.requested","priority":1}"#,
        printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".spec.nodePort.nodes","priority":1}"#
    )
)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "kube", x_kube(
    validation = Rule::new("self.ipAddress == oldSelf.ipAddress && self.provider == oldSelf.provider && (self.serviceUid == oldSelf.serviceUid || (has(oldSelf.keep) && oldSelf.keep))")
        .message("a claim's address, provider and Service never change: delete the claim and make another")
))]
pub struct IPSpec {
    /// The Subnet the address is from.
    pub subnet: String,
    /// The attachment, `<nad>.<namespace>`.
    pub provider: String,
    /// The address.
    pub ip_address: String,
    /// The address, if it is IPv4.
    #[serde(default)]
    pub v4_ip_address: String,
    /// The address, if it is IPv6.
    #[serde(default)]
    pub v6_ip_address: String,
    /// Hardware address of the interface that last answered for it.
    #[serde(default)]
    pub mac_address: String,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service_name: String,
    /// Uid of the Service.
    pub service_uid: String,
    /// Whether the Service named the address or took what was free.
    pub requested: Requested,
    /// Whether the claim outlives its Service, for the next one of that
    /// namespace and name. Deleting the claim frees the address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Whether the address has been in service, after the LAN was asked for it
    /// and nobody answered: it is not asked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probed: bool,
    /// Hardware address of the foreign host that has the address, for which
    /// the Service is given another.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub conflict: String,
    /// What is claimed, where that is no address but a port of nodes; Subnet,
    /// provider and address are empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<NodePort>,
}

/// A port of the nodes of a pool, claimed by a Service that is served at their own
/// addresses. The claim's name says the same
/// ([`crate::names::node_claim_name`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub struct NodePort {
    /// The pool.
    pub pool: String,
    /// The protocol.
    pub protocol: Transport,
    /// The port.
    pub port: u16,
    /// The nodes whose port this is.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// How a Service came to its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// The user named it in `spec.loadBalancerIP`.
    Static,
    /// It was allocated, and filled into `spec.loadBalancerIP`.
    Dynamic,
}
