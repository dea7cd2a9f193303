//! What a Service asks of the nodes, read and checked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;

use super::ports::{Named, NodePermissions};
use crate::model::{Problem, Service};
use crate::service::spec::{self, transport};
use crate::service::unheeded;

/// The most ports of a Service: each is a claim of its own.
pub const PORTS_MAX: usize = 64;

/// The annotations that have a meaning on a Service of this mode.
const ANNOTATIONS: [&str; 3] = [names::MODE_ANNOTATION, names::NODE_POOL, names::NODE_ADDRESS_ANNOTATION];

/// By these labels kube-proxy leaves a Service to another (Kubernetes).
const OF_ANOTHER_PROXY: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
/// What others need advice for, and kube-proxy itself heeds: fields and topology.
const HEEDED_BY_KUBE_PROXY: [&str; 2] = ["spec.", "service.kubernetes.io/topology"];

/// What serves a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A gateway, or nothing of ours.
    Gateway,
    /// The nodes.
    Nodes,
    /// It asks for both, or for what there is not.
    Refused(Problem),
}

/// What is to serve `service`.
pub fn mode(service: &Service) -> Mode {
    if !service.load_balancer || service.deleting {
        return Mode::Gateway;
    }
    let has_provider = service.annotations.contains_key(names::PROVIDER_ANNOTATION);
    let asked = service.annotations.get(names::MODE_ANNOTATION).map(String::as_str);
    let contradicted = |one: &str, other: &str| {
        let message = format!(
            "{one} asks for node addresses, and {other} for a gateway: remove one of them; until then all stays as it was"
        );
        Mode::Refused(Problem::new(Reason::NodeModeContradicted, message))
    };
    let mode = format!("annotation {}", names::MODE_ANNOTATION);
    let provider = format!("annotation {}", names::PROVIDER_ANNOTATION);
    match (service.class.as_deref(), asked) {
        (Some(names::NODE_CLASS), Some(asked)) if asked != names::MODE_NODE => Mode::Refused(unknown(asked)),
        (Some(names::NODE_CLASS), _) if has_provider => {
            contradicted(&format!("spec.loadBalancerClass {}", names::NODE_CLASS), &provider)
        }
        (Some(names::NODE_CLASS), _) => Mode::Nodes,
        (Some(names::LOAD_BALANCER_CLASS), Some(names::MODE_NODE)) => {
            contradicted(&mode, &format!("spec.loadBalancerClass {}", names::LOAD_BALANCER_CLASS))
        }
        (None, Some(names::MODE_NODE)) if has_provider => contradicted(&mode, &provider),
        (None, Some(names::MODE_NODE)) => Mode::Nodes,
        (None, Some(asked)) if !has_provider => Mode::Refused(unknown(asked)),
        _ => Mode::Gateway,
    }
}

/// That the annotation for the mode has a value without meaning.
pub fn unknown(asked: &str) -> Problem {
    let name = names::MODE_ANNOTATION;
    let message =
        format!("annotation {name}: {asked:?} is not \"{}\": correct or remove it", names::MODE_NODE);
    Problem::new(Reason::InvalidAnnotation, message)
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Whether an address is of it.
    pub fn has(self, address: IpAddr) -> bool {
        self == Self::of(address)
    }
}

/// Which nodes, and which of their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The pool; all nodes if `None`.
    pub pool: Option<String>,
    /// The only addresses that serve; any if `None`.
    pub only: Option<IpNet>,
}

impl Scope {
    /// The pool's name in claims.
    pub fn pool(&self) -> &str {
        self.pool.as_deref().unwrap_or(names::NODE_POOL_ALL)
    }
}

/// What a Service asks of the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRequest {
    /// Its ports.
    pub ports: BTreeSet<Port>,
    /// Its address families, in order.
    pub families: Vec<Family>,
    /// Whether only nodes with a ready endpoint serve it.
    pub local: bool,
    /// Which nodes and addresses, or why that cannot be read: what serves it stays.
    pub scope: Result<Scope, Problem>,
    /// What of it has no effect.
    pub warnings: Vec<Problem>,
}

/// Reads what `service` asks.
///
/// # Errors
/// Why it may not be served at any node: kube-proxy would serve all that it has.
pub fn read(
    service: &Service,
    permissions: &NodePermissions,
    is_k3s_in_use: bool,
) -> Result<NodeRequest, Problem> {
    permissions.check_namespace(&service.id.service.namespace)?;
    let mut warnings = Vec::new();
    let ports = ports(service)?;
    ports.iter().try_for_each(|port| permissions.check_port(port))?;
    heed(service, &mut warnings)?;
    let mut families: Vec<Family> = Vec::new();
    for address in service.cluster_ips.iter().filter_map(|address| address.parse().ok()) {
        if !families.contains(&Family::of(address)) {
            families.push(Family::of(address));
        }
    }
    if service.local_policy && families.contains(&Family::V6) {
        let message = "spec.externalTrafficPolicy Local at nodes' IPv6 addresses is not served";
        let problem = Problem::new(Reason::UnsupportedFamily, message);
        families.retain(|family| *family == Family::V4);
        if families.is_empty() {
            return Err(problem);
        }
        warnings.push(problem);
    }
    if families.is_empty() {
        return Err(Problem::new(Reason::NodeAddressesPending, "the Service has no ClusterIP yet"));
    }
    let scope = scope(service, is_k3s_in_use);
    Ok(NodeRequest { ports, families, local: service.local_policy, scope, warnings })
}

/// The ports, each once.
fn ports(service: &Service) -> Result<BTreeSet<Port>, Problem> {
    if service.ports.len() > PORTS_MAX {
        let message = format!("spec.ports has more than {PORTS_MAX} entries, as many as nodes serve");
        return Err(Problem::new(Reason::ServiceTooLarge, message));
    }
    let ports = service.ports.iter().map(|port| {
        let unsupported = || {
            let message = format!(
                "port {}/{} is not served, and kube-proxy would serve it at the nodes: nodes serve TCP and UDP only, remove it",
                port.port, port.protocol
            );
            Problem::new(Reason::UnsupportedProtocol, message)
        };
        Ok(Port { protocol: transport(&port.protocol).ok_or_else(unsupported)?, port: port.port })
    });
    let ports: BTreeSet<Port> = ports.collect::<Result<_, Problem>>()?;
    if ports.is_empty() {
        return Err(Problem::new(Reason::UnsupportedProtocol, "the Service has no port"));
    }
    Ok(ports)
}

/// Names what has no effect, and refuses what kube-proxy would not do.
fn heed(service: &Service, warnings: &mut Vec<Problem>) -> Result<(), Problem> {
    if service.ranges_annotated && !service.source_ranges.is_empty() {
        let message = "kube-proxy heeds no annotation that limits clients: set spec.loadBalancerSourceRanges; the Service is not served without the limit";
        return Err(Problem::new(Reason::ClientLimitNotHeeded, message));
    }
    for name in &service.unheeded {
        let Some(entry) = unheeded::find(name) else { continue };
        if OF_ANOTHER_PROXY.contains(&name.as_str()) {
            let message = format!(
                "the label {name} has kube-proxy leave the Service to another, which may not serve it at the nodes' addresses: remove it"
            );
            return Err(Problem::new(Reason::NotServedByKubeProxy, message));
        }
        entry.check_limit(name)?;
        let is_heeded =
            name == names::K3S_POOL_LABEL || HEEDED_BY_KUBE_PROXY.iter().any(|start| name.starts_with(start));
        if !is_heeded {
            warnings.push(without_effect(name));
        }
    }
    let of_gateways = service.annotations.keys().filter(|name| !ANNOTATIONS.contains(&name.as_str()));
    warnings.extend(of_gateways.map(|name| match spec::is_unknown(name) {
        true => spec::unknown_annotation(name),
        false => without_effect(&format!("annotation {name}")),
    }));
    if !service.load_balancer_ip.is_empty() {
        warnings.push(without_effect("spec.loadBalancerIP"));
    }
    Ok(())
}

fn without_effect(name: &str) -> Problem {
    Problem::new(Reason::NotHeeded, format!("{name} has no effect at node addresses: remove it"))
}

/// The nodes and addresses that a Service names.
fn scope(service: &Service, is_k3s_in_use: bool) -> Result<Scope, Problem> {
    let invalid = |name: &str, why: String| {
        Problem::new(Reason::InvalidAnnotation, format!("{name}: {why}: correct or remove it"))
    };
    // As in K3s: its pools count where its nodes are chosen by label.
    let named = match (service.annotations.get(names::NODE_POOL), &service.k3s_pool) {
        (Some(pool), _) => Some((format!("annotation {}", names::NODE_POOL), pool)),
        (None, Some(pool)) if is_k3s_in_use => Some((format!("label {}", names::K3S_POOL_LABEL), pool)),
        (None, _) => None,
    };
    let pool = match named {
        Some((name, pool)) if !names::is_dns_label(pool) => {
            return Err(invalid(
                &name,
                format!("{pool:?} names no pool: at most 63 small letters, digits and hyphens"),
            ));
        }
        Some((_, pool)) => Some(pool.clone()).filter(|pool| pool != names::NODE_POOL_ALL),
        None => None,
    };
    let only = match service.annotations.get(names::NODE_ADDRESS_ANNOTATION) {
        None => None,
        Some(text) => {
            let address = || text.trim().parse::<IpAddr>().ok().map(IpNet::from);
            let only = text.trim().parse().ok().or_else(address);
            Some(only.ok_or_else(|| {
                invalid(
                    &format!("annotation {}", names::NODE_ADDRESS_ANNOTATION),
                    format!("{text:?} is neither an address nor a network such as 192.0.2.0/24"),
                )
            })?)
        }
    };
    Ok(Scope { pool, only })
}

/// The Service's ports for people.
pub fn named(ports: &BTreeSet<Port>) -> String {
    let named: Vec<String> = ports.iter().map(|port| Named(port).to_string()).collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::nodes::{permissions, service};
    use crate::testing::port;

    fn refusal(change: impl FnOnce(&mut Service)) -> Problem {
        let mut service = service();
        change(&mut service);
        read(&service, &permissions(), false).unwrap_err()
    }

    fn annotate(service: &mut Service, name: &str, value: &str) {
        service.annotations.insert(name.into(), value.into());
    }

    #[test]
    fn class_or_annotation_is_the_opt_in_and_an_attachment_contradicts_it() {
        let of = |class: Option<&str>, asked: Option<&str>, attached: bool| {
            let mut service = service();
            service.class = class.map(Into::into);
            service.annotations.clear();
            for (name, value) in [
                (names::MODE_ANNOTATION, asked),
                (names::PROVIDER_ANNOTATION, attached.then_some("lan.kube-system")),
            ] {
                if let Some(value) = value {
                    annotate(&mut service, name, value);
                }
            }
            match mode(&service) {
                Mode::Gateway => "gateway".to_owned(),
                Mode::Nodes => "nodes".to_owned(),
                Mode::Refused(problem) => problem.reason,
            }
        };
        let (ours, gateways) = (Some(names::NODE_CLASS), Some(names::LOAD_BALANCER_CLASS));
        for (class, asked, attached, expected) in [
            (ours, None, false, "nodes"),
            (ours, Some("node"), false, "nodes"),
            (None, Some("node"), false, "nodes"),
            (None, None, false, "gateway"),
            (None, None, true, "gateway"),
            (gateways, None, true, "gateway"),
            (Some("example.com/lb"), Some("node"), false, "gateway"),
            (ours, None, true, "NodeModeContradicted"),
            (None, Some("node"), true, "NodeModeContradicted"),
            (gateways, Some("node"), true, "NodeModeContradicted"),
            (gateways, Some("node"), false, "NodeModeContradicted"),
            (ours, Some("gateway"), false, "InvalidAnnotation"),
            (None, Some("nodes"), false, "InvalidAnnotation"),
            (None, Some("nodes"), true, "gateway"),
        ] {
            assert_eq!(of(class, asked, attached), expected, "{class:?} {asked:?} {attached}");
        }
        assert_eq!(mode(&Service { deleting: true, ..service() }), Mode::Gateway);
        assert_eq!(mode(&Service { load_balancer: false, ..service() }), Mode::Gateway);
    }

    #[test]
    fn what_kube_proxy_would_serve_wrongly_is_refused_as_a_whole() {
        let reasons = [
            refusal(|service| service.id.service.namespace = "elsewhere".into()),
            refusal(|service| service.ports.push(port("TCP", 22))),
            refusal(|service| service.ports.push(port("TCP", 9000))),
            refusal(|service| service.ports.push(port("SCTP", 80))),
            refusal(|service| service.ports.clear()),
            refusal(|service| service.ports = vec![port("TCP", 80); PORTS_MAX + 1]),
            refusal(|service| service.unheeded = vec!["service.kubernetes.io/service-proxy-name".into()]),
            refusal(|service| service.unheeded = vec!["kubernetes.io/elb.acl-id".into()]),
            refusal(|service| {
                (service.source_ranges, service.ranges_annotated) = (vec!["10.0.0.0/8".into()], true);
            }),
            refusal(|service| {
                (service.local_policy, service.cluster_ips) = (true, vec!["fd00::1".into()]);
            }),
        ]
        .map(|problem| problem.reason);
        assert_eq!(
            reasons,
            [
                "NodeModeNotAllowed",
                "PortReserved",
                "NodeModeNotAllowed",
                "UnsupportedProtocol",
                "UnsupportedProtocol",
                "ServiceTooLarge",
                "NotServedByKubeProxy",
                "ClientLimitNotHeeded",
                "ClientLimitNotHeeded",
                "UnsupportedFamily",
            ]
        );
    }

    #[test]
    fn pool_and_addresses_are_read_and_a_wrong_value_says_so() {
        let scope = |name: &str, value: &str| {
            let mut service = service();
            annotate(&mut service, name, value);
            read(&service, &permissions(), false).unwrap().scope
        };
        assert_eq!(scope(names::NODE_POOL, "edge").unwrap().pool.as_deref(), Some("edge"));
        assert_eq!(scope(names::NODE_POOL, "all").unwrap().pool, None);
        let only = |text: &str| scope(names::NODE_ADDRESS_ANNOTATION, text).unwrap().only;
        assert_eq!(only("10.0.0.2"), "10.0.0.2/32".parse().ok());
        assert_eq!(only("fd00::/64"), "fd00::/64".parse().ok());
        for (name, value) in [
            (names::NODE_POOL, "a,b"),
            (names::NODE_POOL, ""),
            (names::NODE_POOL, "Edge"),
            (names::NODE_ADDRESS_ANNOTATION, "10.0.0.0/33"),
            (names::NODE_ADDRESS_ANNOTATION, "node-1"),
        ] {
            let problem = scope(name, value).unwrap_err();
            assert_eq!(problem.reason, "InvalidAnnotation");
            assert!(problem.message.contains(name) && problem.message.contains(value), "{}", problem.message);
        }
        let k3s = Service { k3s_pool: Some("edge".into()), ..service() };
        let of = |in_use| read(&k3s, &permissions(), in_use).unwrap().scope.unwrap().pool;
        assert_eq!((of(true), of(false)), (Some("edge".to_owned()), None));
    }

    #[test]
    fn what_has_no_effect_is_said_and_what_kube_proxy_heeds_is_not() {
        let mut service = service();
        annotate(&mut service, names::REPLICAS_ANNOTATION, "");
        annotate(&mut service, "lb-svc.kubeovn.io/nodepool", "");
        service.load_balancer_ip = "10.0.0.9".into();
        service.source_ranges = vec!["10.0.0.0/8".into()];
        service.unheeded =
            ["spec.trafficDistribution", "svccontroller.k3s.cattle.io/lbpool", "metallb.io/address-pool"]
                .map(Into::into)
                .into();
        let warnings = read(&service, &permissions(), false).unwrap().warnings;
        let said: Vec<&str> = warnings.iter().map(|warning| warning.reason.as_str()).collect();
        assert_eq!(said, ["NotHeeded", "UnknownAnnotation", "NotHeeded", "NotHeeded"], "{warnings:?}");
        let both = Service { cluster_ips: vec!["fd00::1".into(), "10.0.0.1".into()], ..self::service() };
        let families = read(&both, &permissions(), false).unwrap().families;
        assert_eq!(families, [Family::V6, Family::V4]);
        let local = read(&Service { local_policy: true, ..both }, &permissions(), false).unwrap();
        assert_eq!((local.families, local.warnings.len()), (vec![Family::V4], 1));
    }
}
