//! Nodes.

use std::net::Ipv4Addr;

/// A node as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its own IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it is declared lost for good (the taint
    /// `node.kubernetes.io/out-of-service`).
    pub lost: bool,
}
