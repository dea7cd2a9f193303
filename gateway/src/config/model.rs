//! The configuration as the IPv4 data path uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use lb_svc_crds::gateway::{HealthCheck, NatBackend, Transport};

use crate::l2::arp::Mac;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `<namespace>/<nad>`: how Multus names the LAN interface's network.
    pub attachment: String,
    /// The addresses to own, in the configuration's order.
    pub addresses: Vec<Address>,
    /// What is served, and where it leads.
    pub forwards: Forwards,
    /// The parts of the Services, by their names (`<namespace>/<name>`).
    pub parts: BTreeMap<String, Part>,
    /// The NAT back end to use.
    pub nat: NatBackend,
    /// The election, if the gateway has several pods.
    pub election: Option<Election>,
    /// Hosts that are pods of this gateway, and take no part in the election; `None` if
    /// the controller does not name them.
    pub predecessors: Option<BTreeSet<Mac>>,
    /// Parts of the file that this build ignores, as sentences for people.
    pub notes: Vec<String>,
}

/// The parameters of the election among the gateway's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Election {
    /// The gateway's UID.
    pub gateway: [u8; 16],
    /// The advertisement interval.
    pub interval: Duration,
    /// For how long a pod that ends goes on leading the connections that it has, at most.
    pub drain: Duration,
}

/// One Service's part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its digest, see [`lb_svc_crds::parts`].
    pub digest: String,
    /// The addresses that it needs.
    pub addresses: BTreeSet<Ipv4Addr>,
}

/// An IPv4 address to own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: Ipv4Addr,
    /// Its network, without host bits.
    pub network: Ipv4Net,
    /// The LAN's router, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Whether to probe the LAN for it before it is assigned.
    pub probe: bool,
}

/// An address, protocol and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// One of the gateway's addresses.
    pub address: Ipv4Addr,
    /// The protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
}

/// The forwarding table.
pub type Forwards = BTreeMap<Frontend, Forward>;

/// How the connections to a frontend are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The Service that the frontend is of, `<namespace>/<name>`.
    pub service: Arc<str>,
    /// Where connections lead.
    pub target: Target,
    /// The networks that clients may connect from; without, any.
    pub clients: Option<SourceRanges>,
    /// Whether the gateway accepts the connections itself, and tells the target by a
    /// header who the client is; of TCP only.
    pub proxied: bool,
}

impl Forward {
    /// Whether a client may connect.
    pub fn allows(&self, client: Ipv4Addr) -> bool {
        let contain = |ranges: &SourceRanges| ranges.iter().any(|range| range.contains(&client));
        self.clients.as_ref().is_none_or(contain)
    }
}

/// Networks of clients.
pub type SourceRanges = Arc<BTreeSet<Ipv4Net>>;

/// Where connections lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A ClusterIP, on the frontend's port.
    ClusterIp(Ipv4Addr),
    /// One of these endpoints.
    Endpoints(Arc<Endpoints>),
}

impl Target {
    /// The endpoints, if it is not a ClusterIP.
    pub fn endpoints(&self) -> Option<&Endpoints> {
        match self {
            Self::ClusterIp(_) => None,
            Self::Endpoints(endpoints) => Some(endpoints),
        }
    }
}

/// The endpoints of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Endpoints that receive new connections.
    pub live: BTreeSet<SocketAddrV4>,
    /// Endpoints that receive none, and keep their TCP connections.
    pub draining: BTreeSet<SocketAddrV4>,
    /// For how many seconds a client stays with its endpoint; without, a client
    /// has no affinity.
    pub affinity: Option<u32>,
    /// The health check, if there is one.
    pub check: Option<Arc<HealthCheck>>,
}

/// The target of each frontend.
pub type Targets = BTreeMap<Frontend, Target>;

/// The targets of a forwarding table.
pub fn targets(forwards: &Forwards) -> Targets {
    forwards.iter().map(|(frontend, forward)| (*frontend, forward.target.clone())).collect()
}

/// The Service of each frontend, `<namespace>/<name>`.
pub type Services = BTreeMap<Frontend, Arc<str>>;

/// The Services of a forwarding table.
pub fn services(forwards: &Forwards) -> Services {
    forwards.iter().map(|(frontend, forward)| (*frontend, Arc::clone(&forward.service))).collect()
}

/// The ClusterIPs that frontends lead to.
pub fn cluster_ips(targets: &Targets) -> impl Iterator<Item = (&Frontend, Ipv4Addr)> {
    targets.iter().filter_map(|(frontend, target)| match target {
        Target::ClusterIp(address) => Some((frontend, *address)),
        Target::Endpoints(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_allows_clients_in_its_ranges_only() {
        let allows = |ranges: Option<&[&str]>, client: &str| {
            let clients =
                ranges.map(|ranges| Arc::new(ranges.iter().map(|text| text.parse().unwrap()).collect()));
            let target = Target::ClusterIp(Ipv4Addr::new(10, 96, 0, 1));
            let forward = Forward { service: "default/web".into(), target, clients, proxied: false };
            forward.allows(client.parse().unwrap())
        };
        let ranges: Option<&[&str]> = Some(&["192.0.2.0/24", "198.51.100.7/32"]);
        assert!(allows(ranges, "192.0.2.9") && allows(ranges, "198.51.100.7"));
        assert!(!allows(ranges, "198.51.100.8"));
        assert!(!allows(Some(&[]), "192.0.2.9"), "limited to no client");
        assert!(allows(None, "203.0.113.1"), "not limited");
    }
}
