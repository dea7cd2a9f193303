//! EndpointSlices.

use std::net::Ipv4Addr;

use lb_svc_crds::gateway::Transport;

use super::{NodeId, PodId};

/// An EndpointSlice as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its ports; a port of another protocol, or without a number, is not
    /// among them.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints, each of which serves all its ports.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The Service's name for it.
    pub name: String,
    /// Its protocol.
    pub protocol: Transport,
    /// The endpoints' number for it.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The pod it is, if it is one.
    pub pod: Option<PodId>,
    /// The node that it is on, if that is said.
    pub node: Option<NodeId>,
}
