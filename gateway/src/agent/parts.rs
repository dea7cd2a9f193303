//! Which Services' parts of the configuration are in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::config::{Config, Target};
use crate::fault::{Fault, Scope};

/// The digests of the parts of `config` that are in force after a run with these faults,
/// by Service: all but those of Services that a fault concerns, or one of whose addresses
/// is tentative.
pub fn in_force(
    config: &Config,
    faults: &[Fault],
    tentative: &BTreeSet<Ipv4Addr>,
) -> BTreeMap<String, String> {
    let (mut addresses, mut cluster_ips) = (tentative.clone(), BTreeSet::new());
    for fault in faults {
        match fault.scope() {
            Scope::Pod => return BTreeMap::new(),
            Scope::Address(address) => drop(addresses.insert(address)),
            Scope::ClusterIp(address) => drop(cluster_ips.insert(address)),
        }
    }
    let forwards = config.forwards.values();
    let leads_nowhere = forwards.filter(|forward| match &forward.target {
        Target::ClusterIp(address) => cluster_ips.contains(address),
        Target::Endpoints(_) => false,
    });
    let hindered: BTreeSet<&str> = leads_nowhere.map(|forward| &*forward.service).collect();
    let is_in_force =
        |service: &str, on: &BTreeSet<Ipv4Addr>| on.is_disjoint(&addresses) && !hindered.contains(service);
    let parts = config.parts.iter().filter(|(service, part)| is_in_force(service, &part.addresses));
    parts.map(|(service, part)| (service.clone(), part.digest.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const WEB: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);
    const API: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 12);

    /// The Services whose parts are in force: `web` and `api` lead to ClusterIPs of their
    /// own, `none` has no port.
    fn services(faults: &[Fault], tentative: &[Ipv4Addr]) -> Vec<String> {
        let frontend = |service: &str, address: Ipv4Addr, cluster_ip: &str, ports: &str| {
            format!(
                r#"{{"service":"a/{service}","addresses":["{address}"],"ports":[{ports}],
                    "target":{{"kind":"clusterIp","addresses":["{cluster_ip}"]}}}}"#
            )
        };
        let (tcp, udp) = (r#"{"protocol":"TCP","port":80}"#, r#"{"protocol":"UDP","port":80}"#);
        let frontends = [
            frontend("web", WEB, "10.96.0.1", tcp),
            frontend("api", API, "10.96.0.2", tcp),
            frontend("api", WEB, "10.96.0.2", udp),
            frontend("none", API, "10.96.0.3", ""),
        ];
        let address = |address| format!(r#"{{"address":"{address}","cidr":"172.18.0.0/16","subnet":"lan"}}"#);
        let text = format!(
            r#"{{"version":1,"attachment":"a/b","addresses":[{},{}],"frontends":[{}]}}"#,
            address(WEB),
            address(API),
            frontends.join(",")
        );
        let config = parse(text.as_bytes()).unwrap();
        let digests = lb_svc_crds::parts::digests(&text).unwrap();
        let tentative = tentative.iter().copied().collect();
        let in_force = in_force(&config, faults, &tentative);
        assert!(in_force.iter().all(|(service, digest)| digests[service] == *digest));
        in_force.into_keys().collect()
    }

    #[test]
    fn parts_are_in_force_but_for_those_that_a_fault_concerns() {
        assert_eq!(services(&[], &[]), ["a/api", "a/none", "a/web"]);
        let unreachable = Fault::ClusterIpUnreachable([10, 96, 0, 1].into());
        assert_eq!(services(&[unreachable], &[]), ["a/api", "a/none"]);
        let sockets_only = Fault::ClusterIpSocketsOnly([10, 96, 0, 2].into());
        assert_eq!(services(&[sockets_only], &[]), ["a/none", "a/web"]);
        let conflict = Fault::AddressConflict { address: API, mac: [2, 0, 0, 0, 0, 1] };
        assert_eq!(services(&[conflict], &[]), ["a/web"]);
        assert_eq!(services(&[], &[API]), ["a/web"]);
        assert_eq!(services(&[], &[WEB]), ["a/none"], "of several addresses one is enough");
        assert_eq!(services(&[Fault::NoDefaultRoute], &[]), [""; 0]);
    }
}
