//! Parsing and validating the mounted file.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lb_svc_crds::gateway::{self as wire, CONFIG_VERSIONS, GatewayConfig, HealthCheck, Transport};
use lb_svc_crds::{feature, parts};
use serde::Deserialize;

use crate::l2::arp::parse_mac;

use super::model::{
    Address, Config, Election, Endpoints, Forward, Forwards, Frontend, Part, SourceRanges, Target,
};

/// Why a configuration is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not JSON of the agreed schema.
    #[error("it does not parse: {0}")]
    Json(String),
    /// Of a version that this build does not support.
    #[error(
        "its version is {0}, and this build carries out {first} to {last}",
        first = CONFIG_VERSIONS.start(),
        last = CONFIG_VERSIONS.end()
    )]
    Version(u32),
    /// It needs something that this build is not able to do.
    #[error("it needs {0:?}, which this build is not able to do")]
    Feature(String),
    /// The attachment, which names the LAN interface, has the wrong form.
    #[error("attachment {0:?} is not <namespace>/<nad>")]
    Attachment(String),
    /// An address that a host cannot have, or outside its network.
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
    /// A frontend on an address that the gateway does not own.
    #[error("{service} is served on {address}, which is none of the gateway's addresses")]
    Foreign {
        /// The Service.
        service: String,
        /// The frontend's address.
        address: IpAddr,
    },
    /// Election parameters out of range.
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
    /// Health check parameters out of range.
    #[error("{0}: a health check's times and counts are above 0, and its path begins with /")]
    Check(String),
    /// One frontend with two targets.
    #[error("{address}:{port}/{transport} leads to two places, of {service} and another", transport = .frontend.transport.name(), address = .frontend.address, port = .frontend.port)]
    PortTwice {
        /// The frontend.
        frontend: Frontend,
        /// The later Service.
        service: String,
    },
}

/// Parses and validates the mounted file.
///
/// # Errors
/// If it cannot be used as a whole.
pub fn parse(bytes: &[u8]) -> Result<Config, Invalid> {
    // What it needs first: errors in the rest, which this build does not know, would
    // mislead.
    #[derive(Deserialize)]
    struct Needs {
        version: u32,
        #[serde(default)]
        requires: BTreeSet<String>,
    }
    let json = |error: serde_json::Error| Invalid::Json(error.to_string());
    let Needs { version, requires } = serde_json::from_slice(bytes).map_err(json)?;
    if !CONFIG_VERSIONS.contains(&version) {
        return Err(Invalid::Version(version));
    }
    if let Some(unknown) = requires.difference(&feature::names()).next() {
        return Err(Invalid::Feature(unknown.clone()));
    }
    let text = str::from_utf8(bytes).map_err(|error| Invalid::Json(error.to_string()))?;
    let mut config = validate(serde_json::from_str(text).map_err(json)?)?;
    for (service, digest) in parts::digests(text).map_err(json)? {
        config.parts.entry(service).or_default().digest = digest;
    }
    Ok(config)
}

fn validate(wire: GatewayConfig) -> Result<Config, Invalid> {
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
        let new = validate_address(address, entry)?;
        match addresses.iter().find(|known| known.address == address) {
            None => addresses.push(new),
            Some(known) if *known == new => {}
            Some(_) => return Err(Invalid::AddressTwice(address)),
        }
    }
    let (mut forwards, mut parts) = (Forwards::new(), BTreeMap::<String, Part>::new());
    for entry in &wire.frontends {
        parts.entry(entry.service.clone()).or_default().addresses.extend(ipv4(&entry.addresses));
        let service: Arc<str> = entry.service.as_str().into();
        // Networks of IPv6 contain no client of IPv4.
        let clients: Option<SourceRanges> = entry.clients.as_ref().map(|networks| {
            let of_ipv4 = networks.iter().filter_map(|network| match network {
                IpNet::V4(network) => Some(network.trunc()),
                IpNet::V6(_) => None,
            });
            Arc::new(of_ipv4.collect::<BTreeSet<_>>())
        });
        let targets = targets(entry)?;
        for &ip in &entry.addresses {
            if !wire.addresses.iter().any(|known| known.address == ip) {
                return Err(Invalid::Foreign { service: entry.service.clone(), address: ip });
            }
            let IpAddr::V4(address) = ip else { continue };
            if targets.is_empty() && !entry.ports.is_empty() {
                notes.push(format!("{service} has no IPv4 ClusterIP and is not served on {address}"));
            }
            for (port, target) in &targets {
                let frontend = Frontend { address, transport: port.protocol, port: port.port };
                let forward = Forward {
                    service: Arc::clone(&service),
                    target: target.clone(),
                    clients: clients.clone(),
                    proxied: entry.proxy_protocol.is_some() && port.protocol == Transport::Tcp,
                };
                match forwards.entry(frontend) {
                    Entry::Vacant(new) => {
                        new.insert(forward);
                    }
                    Entry::Occupied(before)
                        if before.get().target != *target || before.get().proxied != forward.proxied =>
                    {
                        return Err(Invalid::PortTwice { frontend, service: entry.service.clone() });
                    }
                    // The same target twice: the later entry counts, but does not
                    // lift a limit of the earlier one.
                    Entry::Occupied(mut before) => {
                        let clients = forward.clients.or_else(|| before.get().clients.clone());
                        before.insert(Forward { clients, ..forward });
                    }
                }
            }
        }
    }
    let election = wire.election.as_ref().map(validate_election).transpose()?;
    let predecessors = wire.election.as_ref().and_then(|election| election.predecessors.as_ref());
    let predecessors = predecessors.map(|macs| macs.iter().filter_map(|mac| parse_mac(mac)).collect());
    let (attachment, nat) = (wire.attachment, wire.nat_backend);
    Ok(Config { attachment, addresses, forwards, parts, nat, election, predecessors, notes })
}

/// The target of each port of an entry.
fn targets(entry: &wire::Frontend) -> Result<BTreeMap<wire::Port, Target>, Invalid> {
    let zero = || Invalid::PortZero(entry.service.clone());
    if entry.ports.iter().any(|port| port.port == 0) {
        return Err(zero());
    }
    match &entry.target {
        wire::Target::ClusterIp { addresses } => {
            let target = ipv4(addresses).next().map(Target::ClusterIp);
            let ports = entry.ports.iter().filter_map(|port| Some((port.clone(), target.clone()?)));
            Ok(ports.collect())
        }
        wire::Target::Endpoints { subsets, affinity_seconds, check } => {
            let is_valid = |check: &HealthCheck| {
                let counts = [check.interval_ms, check.timeout_ms, check.rise, check.fall];
                counts.iter().all(|count| *count > 0)
                    && check.port != Some(0)
                    && check.path.as_ref().is_none_or(|path| path.starts_with('/'))
            };
            if !check.as_ref().is_none_or(is_valid) {
                return Err(Invalid::Check(entry.service.clone()));
            }
            let none = Endpoints {
                // nftables takes a timeout of 0 for none.
                affinity: affinity_seconds.map(|seconds| seconds.max(1)),
                check: check.clone().map(Arc::new),
                ..Endpoints::default()
            };
            let ports = entry.ports.iter().map(|port| (port.clone(), none.clone()));
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

fn validate_election(wire: &wire::Election) -> Result<Election, Invalid> {
    let bad = || Invalid::Election { gateway: wire.gateway.clone(), interval_ms: wire.interval_ms };
    let digits = wire.gateway.replace('-', "");
    let gateway = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).ok_or_else(bad)?;
    if !(10..=1000).contains(&wire.interval_ms) {
        return Err(bad());
    }
    let interval = Duration::from_millis(wire.interval_ms.into());
    let drain = Duration::from_secs(wire.drain_seconds.into());
    Ok(Election { gateway: gateway.to_be_bytes(), interval, drain })
}

fn validate_address(address: Ipv4Addr, entry: &wire::Address) -> Result<Address, Invalid> {
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
    fn documented_configuration_is_valid() {
        let config = parse(GOOD.as_bytes()).unwrap();
        let frontend =
            Frontend { address: Ipv4Addr::new(172, 18, 0, 18), transport: Transport::Tcp, port: 80 };
        assert_eq!(config.forwards[&frontend].target, Target::ClusterIp(Ipv4Addr::new(10, 109, 201, 193)));
        assert_eq!(config.addresses[0].network.to_string(), "172.18.0.0/16");
        assert!(!config.addresses[0].probe, "earlier controllers ask for no probe");
        assert_eq!(config.notes, Vec::<String>::new());
    }

    #[test]
    fn unknown_version_is_named() {
        assert!(with("\"version\": 1", "\"version\": 7").is_ok());
        // Even though nothing else of it could be read.
        assert_eq!(parse(br#"{"version": 8, "addresses": "elsewhere"}"#), Err(Invalid::Version(8)));
        assert_eq!(Invalid::Version(8).to_string(), "its version is 8, and this build carries out 1 to 7");
    }

    #[test]
    fn required_feature_that_is_unknown_is_named() {
        let requires =
            |features: &str| format!(r#"{{"version": 7, "requires": [{features}], "addresses": 1}}"#);
        let unknown = Invalid::Feature("later".to_owned());
        assert_eq!(parse(requires(r#""later", "parts""#).as_bytes()), Err(unknown.clone()));
        assert_eq!(unknown.to_string(), r#"it needs "later", which this build is not able to do"#);
        assert!(matches!(parse(requires(r#""parts""#).as_bytes()), Err(Invalid::Json(_))), "that is known");
        assert!(with("\"version\": 1", "\"version\": 7, \"requires\": [\"parts\"]").is_ok());
        // Where no version says that it counts, it does all the same.
        assert!(with("\"version\": 1", "\"version\": 1, \"requires\": [\"later\"]").is_err());
    }

    #[test]
    fn part_of_a_service_has_its_addresses_and_the_digest_of_its_text() {
        let config = parse(GOOD.as_bytes()).unwrap();
        let digest = parts::digests(GOOD).unwrap().remove("default/test-service").unwrap();
        let addresses = [Ipv4Addr::new(172, 18, 0, 18)].into();
        assert_eq!(config.parts, [("default/test-service".to_owned(), Part { digest, addresses })].into());
    }

    #[test]
    fn invalid_part_rejects_the_whole() {
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
    fn frontend_with_two_targets_is_rejected() {
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
    fn endpoints_are_collected_by_frontend() {
        let config = direct("60", "0").unwrap();
        let target = &config.forwards.values().next().unwrap().target;
        let Target::Endpoints(endpoints) = target else { panic!("direct") };
        let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        assert_eq!(config.forwards.len(), 1, "a port that is not served leads nowhere");
        assert_eq!(endpoints.live, ["10.16.1.2:8080", "10.16.1.3:8080", "10.16.1.5:8081"].map(at).into());
        assert_eq!(endpoints.draining, [at("10.16.1.4:8080")].into());
        assert_eq!(endpoints.affinity, Some(1));
        let empty = direct("\"port\": 80,", "\"port\": 82,").unwrap();
        assert_eq!(empty.forwards.len(), 1, "a port without endpoints is known all the same");
        assert!(empty.forwards.values().all(|forward| forward.target.endpoints().unwrap().live.is_empty()));
    }

    #[test]
    fn invalid_endpoints_are_rejected() {
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
    fn proxy_protocol_is_of_tcp_ports_only() {
        let ports = r#""ports": [{"protocol": "TCP", "port": 80}"#;
        let with_udp = format!(r#""proxyProtocol": "v2", {ports}, {{"protocol": "UDP", "port": 53}}"#);
        let config = with(ports, &with_udp).unwrap();
        let proxied: Vec<_> =
            config.forwards.iter().map(|(frontend, forward)| (frontend.port, forward.proxied)).collect();
        assert_eq!(proxied, [(80, true), (53, false)]);
        let unknown = with(ports, &with_udp.replace("v2", "v3")).unwrap_err();
        assert!(matches!(unknown, Invalid::Json(_)), "{unknown}");
        assert!(parse(GOOD.as_bytes()).unwrap().forwards.values().all(|forward| !forward.proxied));
    }

    #[test]
    fn ipv6_source_ranges_are_dropped_and_still_limit() {
        let limited = |clients: &str| {
            let ports = "\"ports\": [";
            with(ports, &format!("\"clients\": {clients}, {ports}")).unwrap().forwards
        };
        let networks = |forwards: &Forwards| -> Vec<String> {
            let limits = forwards.values().flat_map(|forward| &forward.clients);
            limits.flat_map(|networks| networks.iter().map(ToString::to_string)).collect()
        };
        assert_eq!(networks(&limited(r#"["10.1.2.3/8", "fd00::/8"]"#)), ["10.0.0.0/8"]);
        let limits = |forwards: &Forwards| forwards.values().flat_map(|forward| &forward.clients).count();
        let none = limited(r#"["fd00::/8"]"#);
        assert_eq!((limits(&none), networks(&none).len()), (1, 0), "limited, to no IPv4 client");
        assert_eq!(limits(&parse(GOOD.as_bytes()).unwrap().forwards), 0);
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
