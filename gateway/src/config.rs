//! The gateway's configuration: the mounted file, checked, and reduced to what
//! the IPv4 data path carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lb_svc_crds::gateway::{
    self as wire, CONFIG_VERSIONS, GatewayConfig, HealthCheck, NatBackend, Transport,
};
use serde::Deserialize;

use crate::ranges::Ranges;

/// A configuration that can be carried out as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `<namespace>/<nad>`: how Multus names the LAN interface's network.
    pub attachment: String,
    /// The addresses to own, in the configuration's order.
    pub addresses: Vec<Address>,
    /// Where each served port leads.
    pub forwards: Forwards,
    /// How they are led there.
    pub nat: NatBackend,
    /// Who may connect there.
    pub ranges: Ranges,
    /// Whose it is.
    pub services: Services,
    /// The election, if the gateway has more pods than this one.
    pub election: Option<Election>,
    /// What the file asks for and this build leaves out, for people.
    pub notes: Vec<String>,
}

/// How the gateway's pods agree on which of them is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Election {
    /// The gateway's uid.
    pub gateway: [u8; 16],
    /// Between two advertisements.
    pub interval: Duration,
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
    /// Whether the LAN has to be asked for it first.
    pub probe: bool,
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Served {
    /// One of the gateway's addresses.
    pub address: Ipv4Addr,
    /// The protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
}

/// Where everything served leads.
pub type Forwards = BTreeMap<Served, Target>;

/// Where the connections to a port lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a ClusterIP, on the same port.
    ClusterIp(Ipv4Addr),
    /// To one of these.
    Endpoints(Arc<Endpoints>),
}

/// The endpoints of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Those that new connections are spread over.
    pub live: BTreeSet<SocketAddrV4>,
    /// Those that get none, while their connections of TCP live on.
    pub draining: BTreeSet<SocketAddrV4>,
    /// For how many seconds a client stays with its endpoint, if it does.
    pub affinity: Option<u32>,
    /// How they are asked whether they are well, if they are.
    pub check: Option<Arc<HealthCheck>>,
}

impl Target {
    /// Its endpoints, if it has any of its own.
    pub fn endpoints(&self) -> Option<&Endpoints> {
        match self {
            Self::ClusterIp(_) => None,
            Self::Endpoints(endpoints) => Some(endpoints),
        }
    }
}

/// The ClusterIPs among where everything leads.
pub fn cluster_ips(forwards: &Forwards) -> impl Iterator<Item = (&Served, Ipv4Addr)> {
    forwards.iter().filter_map(|(served, target)| match target {
        Target::ClusterIp(address) => Some((served, *address)),
        Target::Endpoints(_) => None,
    })
}

/// The Service behind everything served, `<namespace>/<name>`.
pub type Services = BTreeMap<Served, Arc<str>>;

/// Why a configuration cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not the JSON that was agreed on.
    #[error("it does not parse: {0}")]
    Json(String),
    /// Written by a controller too far ahead or behind.
    #[error(
        "its version is {0}, and this build carries out {first} to {last}",
        first = CONFIG_VERSIONS.start(),
        last = CONFIG_VERSIONS.end()
    )]
    Version(u32),
    /// No interface can be found without it.
    #[error("attachment {0:?} is not <namespace>/<nad>")]
    Attachment(String),
    /// An address no host may have, or one outside its own network.
    #[error("address {address} cannot be a host's in {network}")]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// Its network as written.
        network: IpNet,
    },
    /// The same address twice, differently.
    #[error("address {0} is given twice, with different networks or gateways")]
    AddressTwice(Ipv4Addr),
    /// A router that cannot be reached from the address.
    #[error("gateway {gateway} of {address} is not another host of {network}")]
    Gateway {
        /// The router.
        gateway: IpAddr,
        /// The address.
        address: Ipv4Addr,
        /// Its network.
        network: Ipv4Net,
    },
    /// A frontend on an address that is not the gateway's.
    #[error("{service} is served on {address}, which is none of the gateway's addresses")]
    Foreign {
        /// The Service.
        service: String,
        /// Where it is to be served.
        address: IpAddr,
    },
    /// An election that cannot be held.
    #[error(
        "the election's gateway {gateway:?} is no UUID, or its interval of {interval_ms} ms is not in 10 to 1000"
    )]
    Election {
        /// The gateway's uid as written.
        gateway: String,
        /// The interval as written.
        interval_ms: u16,
    },
    /// Port 0.
    #[error("{0} has port 0")]
    PortZero(String),
    /// A health check that cannot be made.
    #[error("{0}: a health check's times and counts are above 0, and its path begins with /")]
    Check(String),
    /// One port leading to two places.
    #[error("{address}:{port}/{transport} leads to two places, of {service} and another", transport = .served.transport.name(), address = .served.address, port = .served.port)]
    PortTwice {
        /// The port.
        served: Served,
        /// The later Service.
        service: String,
    },
}

/// Reads the configuration from the file's bytes.
pub fn parse(bytes: &[u8]) -> Result<Config, Invalid> {
    // The version first: what else an unknown version holds is not for this
    // build to complain about.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let json = |error: serde_json::Error| Invalid::Json(error.to_string());
    let Version { version } = serde_json::from_slice(bytes).map_err(json)?;
    if !CONFIG_VERSIONS.contains(&version) {
        return Err(Invalid::Version(version));
    }
    check(serde_json::from_slice(bytes).map_err(json)?)
}

fn check(wire: GatewayConfig) -> Result<Config, Invalid> {
    let two_parts = wire
        .attachment
        .split_once('/')
        .is_some_and(|(namespace, nad)| !namespace.is_empty() && !nad.is_empty());
    if !two_parts {
        return Err(Invalid::Attachment(wire.attachment));
    }
    let mut notes = Vec::new();
    let mut addresses: Vec<Address> = Vec::new();
    for entry in &wire.addresses {
        let IpAddr::V4(address) = entry.address else {
            notes.push(format!("{} is IPv6 and left out", entry.address));
            continue;
        };
        let new = check_address(address, entry)?;
        match addresses.iter().find(|known| known.address == address) {
            None => addresses.push(new),
            Some(known) if *known == new => {}
            Some(_) => return Err(Invalid::AddressTwice(address)),
        }
    }
    let mut forwards = Forwards::new();
    let mut ranges = Ranges::new();
    let mut services = Services::new();
    for frontend in &wire.frontends {
        let service: Arc<str> = frontend.service.as_str().into();
        // A host of IPv6 is none of these.
        let clients = frontend.clients.as_ref().map(|networks| {
            let of_ipv4 = networks.iter().filter_map(|network| match network {
                IpNet::V4(network) => Some(network.trunc()),
                IpNet::V6(_) => None,
            });
            Arc::new(of_ipv4.collect::<BTreeSet<_>>())
        });
        let targets = targets(frontend)?;
        for &ip in &frontend.addresses {
            if !wire.addresses.iter().any(|known| known.address == ip) {
                return Err(Invalid::Foreign { service: frontend.service.clone(), address: ip });
            }
            let IpAddr::V4(address) = ip else { continue };
            if targets.is_empty() && !frontend.ports.is_empty() {
                notes.push(format!("{service} has no IPv4 ClusterIP and is not served on {address}"));
            }
            for (port, target) in &targets {
                let served = Served { address, transport: port.protocol, port: port.port };
                match forwards.insert(served, target.clone()) {
                    Some(before) if before != *target => {
                        return Err(Invalid::PortTwice { served, service: frontend.service.clone() });
                    }
                    _ => {}
                }
                services.insert(served, Arc::clone(&service));
                if let Some(clients) = &clients {
                    ranges.insert(served, Arc::clone(clients));
                }
            }
        }
    }
    let election = wire.election.as_ref().map(check_election).transpose()?;
    Ok(Config {
        attachment: wire.attachment,
        addresses,
        forwards,
        nat: wire.nat_backend,
        ranges,
        services,
        election,
        notes,
    })
}

/// Where each port of a frontend leads.
fn targets(frontend: &wire::Frontend) -> Result<BTreeMap<wire::Port, Target>, Invalid> {
    let zero = || Invalid::PortZero(frontend.service.clone());
    if frontend.ports.iter().any(|port| port.port == 0) {
        return Err(zero());
    }
    match &frontend.target {
        wire::Target::ClusterIp { addresses } => {
            let target = ipv4(addresses).next().map(Target::ClusterIp);
            let ports = frontend.ports.iter().filter_map(|port| Some((port.clone(), target.clone()?)));
            Ok(ports.collect())
        }
        wire::Target::Endpoints { subsets, affinity_seconds, check } => {
            let makes_sense = |check: &HealthCheck| {
                let counts = [check.interval_ms, check.timeout_ms, check.rise, check.fall];
                counts.iter().all(|count| *count > 0)
                    && check.path.as_ref().is_none_or(|path| path.starts_with('/'))
            };
            if !check.as_ref().is_none_or(makes_sense) {
                return Err(Invalid::Check(frontend.service.clone()));
            }
            let none = Endpoints {
                // What times out after nothing never does, to nftables.
                affinity: affinity_seconds.map(|seconds| seconds.max(1)),
                check: check.clone().map(Arc::new),
                ..Endpoints::default()
            };
            let ports = frontend.ports.iter().map(|port| (port.clone(), none.clone()));
            let mut ports: BTreeMap<wire::Port, Endpoints> = ports.collect();
            for subset in subsets {
                for to in &subset.ports {
                    let port = wire::Port { protocol: to.protocol, port: to.port };
                    let Some(endpoints) = ports.get_mut(&port) else { continue };
                    if to.target_port == 0 {
                        return Err(zero());
                    }
                    let at = |address| SocketAddrV4::new(address, to.target_port);
                    endpoints.live.extend(ipv4(&subset.addresses).map(at));
                    endpoints.draining.extend(ipv4(&subset.draining).map(at));
                }
            }
            let target = |mut endpoints: Endpoints| {
                endpoints.draining.retain(|endpoint| !endpoints.live.contains(endpoint));
                Target::Endpoints(Arc::new(endpoints))
            };
            Ok(ports.into_iter().map(|(port, endpoints)| (port, target(endpoints))).collect())
        }
    }
}

fn ipv4(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}

fn check_election(wire: &wire::Election) -> Result<Election, Invalid> {
    let bad = || Invalid::Election { gateway: wire.gateway.clone(), interval_ms: wire.interval_ms };
    let digits = wire.gateway.replace('-', "");
    let gateway = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).ok_or_else(bad)?;
    if !(10..=1000).contains(&wire.interval_ms) {
        return Err(bad());
    }
    let interval = Duration::from_millis(wire.interval_ms.into());
    Ok(Election { gateway: gateway.to_be_bytes(), interval })
}

fn check_address(address: Ipv4Addr, entry: &wire::Address) -> Result<Address, Invalid> {
    let bad = || Invalid::Address { address, network: entry.cidr };
    let IpNet::V4(network) = entry.cidr else {
        return Err(bad());
    };
    let network = network.trunc();
    let host = |ip: Ipv4Addr| {
        let ends = network.prefix_len() < 31 && (ip == network.network() || ip == network.broadcast());
        network.contains(&ip)
            && !ends
            && !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
    };
    if !host(address) {
        return Err(bad());
    }
    let gateway = match entry.gateway {
        None => None,
        Some(IpAddr::V4(gateway)) if host(gateway) && gateway != address => Some(gateway),
        Some(gateway) => {
            return Err(Invalid::Gateway { gateway, address, network });
        }
    };
    Ok(Address { address, network, gateway, probe: entry.probe })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
      "version": 1,
      "attachment": "kube-system/lb-svc-attachment",
      "addresses": [
        {"address": "172.18.0.18", "cidr": "172.18.0.0/16", "gateway": "172.18.0.1", "subnet": "s"}
      ],
      "frontends": [{
        "service": "default/test-service",
        "addresses": ["172.18.0.18"],
        "target": {"kind": "clusterIp", "addresses": ["10.109.201.193"]},
        "ports": [{"protocol": "TCP", "port": 80}]
      }]
    }"#;

    fn with(from: &str, to: &str) -> Result<Config, Invalid> {
        assert!(GOOD.contains(from), "{from}");
        parse(GOOD.replace(from, to).as_bytes())
    }

    #[test]
    fn the_documented_configuration_is_understood() {
        let config = parse(GOOD.as_bytes()).unwrap();
        let served = Served { address: Ipv4Addr::new(172, 18, 0, 18), transport: Transport::Tcp, port: 80 };
        assert_eq!(config.forwards[&served], Target::ClusterIp(Ipv4Addr::new(10, 109, 201, 193)));
        assert_eq!(config.addresses[0].network.to_string(), "172.18.0.0/16");
        assert!(!config.addresses[0].probe, "earlier controllers ask for no probe");
        assert_eq!(config.notes, Vec::<String>::new());
    }

    #[test]
    fn the_next_version_is_carried_out_and_the_one_after_is_named() {
        assert!(with("\"version\": 1", "\"version\": 6").is_ok());
        // Even though nothing else of it could be read.
        assert_eq!(parse(br#"{"version": 7, "addresses": "elsewhere"}"#), Err(Invalid::Version(7)));
        assert_eq!(Invalid::Version(7).to_string(), "its version is 7, and this build carries out 1 to 6");
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_whole() {
        let cases = [
            ("\"kube-system/lb-svc-attachment\"", "\"lb-svc-attachment\"", "attachment"),
            ("\"172.18.0.18\", \"cidr\"", "\"172.19.0.18\", \"cidr\"", "cannot be a host's"),
            ("\"172.18.0.18\", \"cidr\"", "\"172.18.0.0\", \"cidr\"", "cannot be a host's"),
            ("172.18.0.0/16", "fd00::/64", "cannot be a host's"),
            ("\"gateway\": \"172.18.0.1\"", "\"gateway\": \"172.18.0.18\"", "gateway"),
            ("\"gateway\": \"172.18.0.1\"", "\"gateway\": \"10.0.0.1\"", "gateway"),
            ("[\"172.18.0.18\"]", "[\"172.18.0.19\"]", "none of the gateway's"),
            ("\"port\": 80", "\"port\": 0", "port 0"),
            ("\"port\": 80", "\"port\": 65536", "does not parse"),
            ("\"clusterIp\"", "\"teleport\"", "does not parse"),
            ("TCP", "SCTP", "does not parse"),
        ];
        for (from, to, says) in cases {
            let error = with(from, to).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
        }
    }

    #[test]
    fn one_port_leads_to_one_place() {
        let twice = |ip: &str| {
            let one = r#"{"service":"a/b","addresses":["172.18.0.18"],"target":{"kind":"clusterIp","addresses":["IP"]},"ports":[{"protocol":"TCP","port":80}]},"#;
            with("\"frontends\": [", &format!("\"frontends\": [{}", one.replace("IP\"", &format!("{ip}\""))))
        };
        assert!(twice("10.109.201.193").is_ok());
        assert!(matches!(twice("10.0.0.1"), Err(Invalid::PortTwice { .. })));
        // Of different protocols they are two.
        let both = with(
            "{\"protocol\": \"TCP\", \"port\": 80}",
            r#"{"protocol":"UDP","port":53},{"protocol":"TCP","port":53}"#,
        )
        .unwrap();
        assert_eq!(both.forwards.len(), 2);
    }

    const DIRECT: &str = r#"{"kind": "endpoints", "subsets": [
      {"ports": [{"protocol": "TCP", "port": 80, "targetPort": 8080}],
       "addresses": ["10.16.1.2", "10.16.1.3", "fd00::1"], "draining": ["10.16.1.4", "10.16.1.3"]},
      {"ports": [{"protocol": "TCP", "port": 80, "targetPort": 8081}, {"protocol": "TCP", "port": 81, "targetPort": 9}],
       "addresses": ["10.16.1.5"]}
    ], "affinitySeconds": 60}"#;

    fn direct(from: &str, to: &str) -> Result<Config, Invalid> {
        assert!(DIRECT.contains(from), "{from}");
        with(r#"{"kind": "clusterIp", "addresses": ["10.109.201.193"]}"#, &DIRECT.replace(from, to))
    }

    #[test]
    fn endpoints_are_gathered_by_port() {
        let config = direct("60", "0").unwrap();
        let Some(Target::Endpoints(endpoints)) = config.forwards.values().next() else { panic!("direct") };
        let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        assert_eq!(config.forwards.len(), 1, "a port that is not served leads nowhere");
        assert_eq!(endpoints.live, ["10.16.1.2:8080", "10.16.1.3:8080", "10.16.1.5:8081"].map(at).into());
        assert_eq!(endpoints.draining, [at("10.16.1.4:8080")].into());
        assert_eq!(endpoints.affinity, Some(1));
        let empty = direct("\"port\": 80,", "\"port\": 82,").unwrap();
        assert_eq!(empty.forwards.len(), 1, "a port without endpoints is served to nobody, not unknown");
        assert!(empty.forwards.values().all(|target| target.endpoints().unwrap().live.is_empty()));
    }

    #[test]
    fn what_endpoints_cannot_be_is_refused() {
        assert_eq!(direct("9}", "0}").map(|_| ()), Ok(()), "of a port that is not served");
        assert!(matches!(direct("8080", "0"), Err(Invalid::PortZero(_))));
        let check = |check: &str| direct("60", &format!("60, \"check\": {check}"));
        let good = r#"{"path": "/", "intervalMs": 5000, "timeoutMs": 1000, "rise": 2, "fall": 3}"#;
        assert!(check(good).is_ok());
        for (from, to) in [("5000", "0"), ("1000", "0"), ("2", "0"), ("3", "0"), ("\"/\"", "\"x\"")] {
            assert!(matches!(check(&good.replace(from, to)), Err(Invalid::Check(_))), "{from}");
        }
    }

    #[test]
    fn who_may_connect_is_of_the_same_family() {
        let limited = |clients: &str| {
            let ports = "\"ports\": [";
            with(ports, &format!("\"clients\": {clients}, {ports}")).unwrap().ranges
        };
        let networks = |ranges: Ranges| -> Vec<String> {
            ranges.values().flat_map(|networks| networks.iter().map(ToString::to_string)).collect()
        };
        assert_eq!(networks(limited(r#"["10.1.2.3/8", "fd00::/8"]"#)), ["10.0.0.0/8"]);
        let nobody = limited(r#"["fd00::/8"]"#);
        assert_eq!((nobody.len(), networks(nobody).len()), (1, 0), "limited, to nobody of IPv4");
        assert_eq!(parse(GOOD.as_bytes()).unwrap().ranges, Ranges::new());
    }

    #[test]
    fn ipv6_is_left_out_with_a_note() {
        let config = with(
            "\"addresses\": [\n",
            "\"addresses\": [{\"address\": \"fd00::18\", \"cidr\": \"fd00::/64\", \"subnet\": \"s\"},\n",
        )
        .unwrap();
        assert_eq!(config.addresses.len(), 1);
        assert_eq!(config.notes, ["fd00::18 is IPv6 and left out"]);
    }
}
