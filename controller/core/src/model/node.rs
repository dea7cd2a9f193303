//! Nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// A node as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its own IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it is declared lost for good (the taint
    /// `node.kubernetes.io/out-of-service`).
    pub lost: bool,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// Whether no load balancer may lead to it, or it is being deleted.
    pub excluded: bool,
    /// Its addresses of type ExternalIP.
    pub external: Vec<IpAddr>,
    /// Its addresses of type InternalIP.
    pub internal: Vec<IpAddr>,
    /// The pools that it is in.
    pub pools: BTreeSet<String>,
    /// Whether K3s's label for nodes that serve says so, if the node has it.
    pub k3s: Option<bool>,
}

/// A node, by its name in short: there may be very many endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The node of this name.
    pub fn of(name: &str) -> Self {
        Self(super::pod::digest(name))
    }
}
