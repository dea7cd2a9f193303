//! What a Service asks: its spec and annotations, read and checked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use lb_svc_crds::gateway::{HealthCheck, NatBackend, Port, ProxyProtocol, Transport};
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::reason::Reason;

use super::{addresses, health_check as health, unheeded};
use crate::model::{PortStatus, Problem, Service, ServicePort, Setting};
use crate::node_mode::request;

/// Our annotations of a Service, beside those of [`Setting`] and of
/// [`health_check`](super::health_check).
pub const ANNOTATIONS: [&str; 10] = [
    names::ADDRESSES_ANNOTATION,
    names::KEEP_ADDRESS_ANNOTATION,
    names::FILL_ADDRESS_ANNOTATION,
    names::PASS_THROUGH_ANNOTATION,
    names::NAT_BACKEND_ANNOTATION,
    names::DIRECT_ACCESS_ANNOTATION,
    names::PROXY_PROTOCOL_ANNOTATION,
    names::MODE_ANNOTATION,
    names::NODE_POOL,
    names::NODE_ADDRESS_ANNOTATION,
];

/// The most ports, and source ranges, that a Service may have. More would not
/// fit into its status, nor into its gateway's configuration.
pub const PORTS_MAX: usize = 20_000;
/// See [`PORTS_MAX`].
pub const SOURCE_RANGES_MAX: usize = 5_000;
/// The longest value of an annotation that is read.
pub const ANNOTATION_MAX: usize = 1024;

/// What a Service asks, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The attachment its address lives on.
    pub provider: Provider,
    /// The Subnet it names.
    pub subnet: Option<String>,
    /// `spec.loadBalancerIP`, whether the user or the controller set it.
    pub address: Option<IpAddr>,
    /// The address that an annotation names: it comes before the field.
    pub annotated: Option<IpAddr>,
    /// Its IPv4 ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports that a gateway can serve.
    pub ports: Vec<Port>,
    /// All its ports, as its status has them.
    pub port_statuses: Vec<PortStatus>,
    /// Whether clients inside the cluster are to use the gateway as well.
    pub pass_through: bool,
    /// The source ranges that may connect; `None`: all.
    pub clients: Option<Vec<IpNet>>,
    /// Direct access to its endpoints, if it has that.
    pub direct: Option<DirectAccess>,
    /// The header that its backends are sent on TCP ports, of which it has one then.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The NAT back end, if it names one.
    pub nat_backend: Option<NatBackend>,
    /// Whether its address is kept when it is deleted.
    pub keep: bool,
    /// Whether its address is filled into its `spec.loadBalancerIP`, if it says.
    pub fill: Option<bool>,
    /// Why its attachment or address cannot be read: it keeps those of its claims.
    pub refused: Option<Problem>,
    /// What of it cannot be served, while the rest can.
    pub warnings: Vec<Problem>,
}

/// Direct access to a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectAccess {
    /// Why it has that.
    pub cause: DirectAccessCause,
    /// The session affinity timeout, in seconds.
    pub affinity_seconds: Option<u32>,
    /// The health check of the endpoints.
    pub check: Option<HealthCheck>,
}

/// Why a Service has direct access to its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectAccessCause {
    /// An annotation asks for it.
    Asked,
    /// `spec.sessionAffinity` needs it.
    Affinity,
    /// `spec.internalTrafficPolicy` Local needs it, or only local endpoints serve.
    LocalPolicy,
}

impl std::fmt::Display for DirectAccessCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asked => "as asked for",
            Self::Affinity => "for spec.sessionAffinity",
            Self::LocalPolicy => "for spec.internalTrafficPolicy",
        })
    }
}

/// Reads what `service` asks. `None` if it asks for no gateway.
///
/// # Errors
/// What makes it unreadable.
pub fn parse(service: &Service) -> Option<Result<ServiceSpec, Problem>> {
    Some(read(service, provider(service)?))
}

/// Reads the rest of what `service` asks, where its attachment or address cannot
/// be read for this `problem` and it holds an address of `provider`. `None` if the
/// rest cannot be read either.
pub fn parse_rest(service: &Service, provider: &Provider, problem: &Problem) -> Option<ServiceSpec> {
    let mut rest = Service { load_balancer_ip: String::new(), ..service.clone() };
    rest.annotations.retain(|name, _| !addresses::is_annotation(name));
    let spec = read(&rest, &provider.to_string()).ok()?;
    Some(ServiceSpec { refused: Some(problem.clone()), ..spec })
}

/// Whether `service` has direct access to its endpoints. The rest of its spec may
/// be invalid.
pub fn is_direct(service: &Service) -> bool {
    provider(service).is_some() && cause(service, &mut Vec::new()).is_some()
}

/// The transport protocol of this name, if gateways forward it.
pub fn transport(name: &str) -> Option<Transport> {
    match name {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        _ => None,
    }
}

/// That a Service is of the controller's class, which no other will serve, and
/// names no attachment.
pub fn missing_provider(service: &Service) -> Option<Problem> {
    let is_ours = service.class.as_deref() == Some(names::LOAD_BALANCER_CLASS);
    let is_missing = !service.annotations.contains_key(names::PROVIDER_ANNOTATION);
    (service.load_balancer && is_ours && is_missing && !service.deleting).then(|| {
        let (class, annotation) = (names::LOAD_BALANCER_CLASS, names::PROVIDER_ANNOTATION);
        let message = format!(
            "spec.loadBalancerClass is {class}, and no annotation {annotation} names an attachment: set it to <nad>.<namespace>, for example lb-svc-attachment.kube-system"
        );
        Problem::new(Reason::ProviderMissing, message)
    })
}

/// The provider annotation of a Service that asks for a gateway.
fn provider(service: &Service) -> Option<&String> {
    let ours = service.class.as_deref().is_none_or(|class| class == names::LOAD_BALANCER_CLASS);
    let asks = service.load_balancer && ours && !service.deleting;
    service.annotations.get(names::PROVIDER_ANNOTATION).filter(|_| asks)
}

/// Why the Service has direct access; `None` if it has not.
fn cause(service: &Service, warnings: &mut Vec<Problem>) -> Option<DirectAccessCause> {
    let asked = [names::DIRECT_ACCESS_ANNOTATION, names::TKE_DIRECT_ACCESS_ANNOTATION]
        .into_iter()
        .find_map(|name| switch(service, name, &[], warnings));
    match asked {
        Some(asked) => asked.then_some(DirectAccessCause::Asked),
        None if service.affinity.is_some() => Some(DirectAccessCause::Affinity),
        None => service.internal_local.then_some(DirectAccessCause::LocalPolicy),
    }
}

fn read(service: &Service, provider: &str) -> Result<ServiceSpec, Problem> {
    let provider: Provider = provider.parse().map_err(|error| {
        Problem::new(Reason::InvalidProvider, format!("annotation {}: {error}", names::PROVIDER_ANNOTATION))
    })?;
    let subnet = service
        .annotations
        .get(&provider.annotation("logical_switch"))
        .filter(|subnet| !subnet.is_empty())
        .cloned();
    let mut warnings = Vec::new();
    let annotated = addresses::annotated(service, &mut warnings)?;
    let address = match service.load_balancer_ip.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(address) => Some(address),
            Err(_) if annotated.is_some() => None,
            Err(_) => {
                let message = format!("spec.loadBalancerIP: {text:?} is not an address");
                return Err(Problem::new(Reason::InvalidAddress, message));
            }
        },
    };
    for (what, count, most) in [
        ("spec.ports", service.ports.len(), PORTS_MAX),
        ("spec.loadBalancerSourceRanges", service.source_ranges.len(), SOURCE_RANGES_MAX),
    ] {
        if count > most {
            return Err(Problem::new(
                Reason::ServiceTooLarge,
                format!("{what} has more than {most} entries"),
            ));
        }
    }
    unheeded::check(service, &mut warnings)?;
    let cluster_ips = service.ipv4_cluster_ips();
    if cluster_ips.is_empty() {
        return Err(Problem::new(
            Reason::UnsupportedFamily,
            "the Service has no IPv4 ClusterIP, and gateways serve IPv4 only: set spec.ipFamilies to include IPv4",
        ));
    }
    if service.cluster_ips.iter().any(|ip| ip.parse::<Ipv6Addr>().is_ok()) {
        warnings.push(Problem::new(
            Reason::UnsupportedFamily,
            "the Service's IPv6 half is not served: gateways serve IPv4 only",
        ));
    }
    let cause = cause(service, &mut warnings);
    let asked_protocol = proxy_protocol(service)?;
    // What hides the client's address, or would have to know it, is a warning.
    let unserved = [
        (
            service.affinity.is_some() && cause.is_none(),
            Reason::AffinityNotKept,
            "spec.sessionAffinity ClientIP sees the gateway as the only client without direct access: all connections go to one backend",
        ),
        (
            service.local_policy && asked_protocol.is_none(),
            Reason::ClientAddressHidden,
            "spec.externalTrafficPolicy Local does not keep the client's address: backends see the gateway's",
        ),
        (
            service.internal_local && cause.is_none(),
            Reason::LocalBackendsOnly,
            "spec.internalTrafficPolicy Local keeps the gateway, too, to the backends of its own node without direct access: without one there nobody is served",
        ),
    ];
    warnings.extend(
        unserved
            .iter()
            .filter(|(asked, ..)| *asked)
            .map(|(_, reason, message)| Problem::new(*reason, *message)),
    );
    let mut ports = BTreeSet::new();
    let mut port_statuses = Vec::new();
    for ServicePort { protocol, port, .. } in &service.ports {
        let transport = transport(protocol);
        let error = transport.is_none().then(|| format!("{}/{}", names::DOMAIN, Reason::UnsupportedProtocol));
        port_statuses.push(PortStatus { protocol: protocol.clone(), port: *port, error });
        match transport {
            Some(protocol) => {
                ports.insert(Port { protocol, port: *port });
            }
            None => warnings.push(Problem::new(
                Reason::UnsupportedProtocol,
                format!("port {port}/{protocol} is not served: gateways forward TCP and UDP"),
            )),
        }
    }
    let has = |transport| ports.iter().any(|port: &Port| port.protocol == transport);
    if asked_protocol.is_some() && has(Transport::Udp) {
        let name = names::PROXY_PROTOCOL_ANNOTATION;
        let message = format!(
            "annotation {name} concerns TCP ports only: backends of UDP ports see the gateway's address"
        );
        warnings.push(Problem::new(Reason::ClientAddressHidden, message));
    }
    let proxy_protocol = asked_protocol.filter(|_| has(Transport::Tcp));
    let keep = switch(service, names::KEEP_ADDRESS_ANNOTATION, &[], &mut warnings).unwrap_or(false);
    let fill = switch(service, names::FILL_ADDRESS_ANNOTATION, &[], &mut warnings);
    // As in CCE: a Service with policy Local is to use the gateway from inside as well. Nor
    // does a node send the header that backends expect.
    let pass_through = [names::PASS_THROUGH_ANNOTATION, names::CCE_PASS_THROUGH_ANNOTATION]
        .into_iter()
        .find_map(|name| switch(service, name, &["onlyLocal"], &mut warnings))
        .unwrap_or(service.local_policy || proxy_protocol.is_some());
    let check = health::check(&service.annotations, &service.ports, &mut warnings);
    let direct =
        cause.map(|cause| DirectAccess { cause, affinity_seconds: service.affinity, check: check.clone() });
    let unchecked = match &direct {
        None => Some("without direct access"),
        Some(_) if ports.iter().all(|port| port.protocol != Transport::Tcp) => Some("without a TCP port"),
        Some(_) => None,
    };
    if let (Some(_), Some(why)) = (check, unchecked) {
        warnings.push(health::ignored(why));
    }
    let mut nat_backend = service.annotations.get(names::NAT_BACKEND_ANNOTATION).and_then(|text| {
        let fault = |why| {
            let message = format!("annotation {}: {why}", names::NAT_BACKEND_ANNOTATION);
            warnings.push(Problem::new(Reason::InvalidAnnotation, message));
        };
        text.parse().map_err(fault).ok()
    });
    if direct.as_ref().is_some_and(|direct| direct.affinity_seconds.is_some()) {
        if nat_backend == Some(NatBackend::Iptables) {
            let name = names::NAT_BACKEND_ANNOTATION;
            let message =
                format!("annotation {name}: only nftables keeps spec.sessionAffinity, and is taken");
            warnings.push(Problem::new(Reason::NatBackendIgnored, message));
        }
        nat_backend = Some(NatBackend::Nftables);
    }
    let unknown = service.annotations.keys().filter(|name| is_unknown(name));
    warnings.extend(unknown.map(|name| unknown_annotation(name)));
    // A request for node addresses does not come here.
    warnings.extend(service.annotations.get(names::MODE_ANNOTATION).map(|asked| request::unknown(asked)));
    let of_nodes = [names::NODE_POOL, names::NODE_ADDRESS_ANNOTATION];
    warnings.extend(of_nodes.iter().filter(|name| service.annotations.contains_key(**name)).map(|name| {
        let message = format!("annotation {name} has no effect for a gateway: remove it");
        Problem::new(Reason::NotHeeded, message)
    }));
    Ok(ServiceSpec {
        provider,
        subnet,
        address,
        annotated,
        cluster_ips,
        ports: ports.into_iter().collect(),
        port_statuses,
        pass_through,
        clients: clients(service)?,
        direct,
        proxy_protocol,
        nat_backend,
        keep,
        fill,
        refused: None,
        warnings,
    })
}

/// The header that backends are to be sent. Another than there is would break those that
/// expect it, so that one serves on as before.
fn proxy_protocol(service: &Service) -> Result<Option<ProxyProtocol>, Problem> {
    let name = names::PROXY_PROTOCOL_ANNOTATION;
    let parsed = service.annotations.get(name).map(|text| text.parse());
    parsed.transpose().map_err(|why: String| {
        let message = format!("annotation {name}: {why}, and backends are not served without the header");
        Problem::new(Reason::InvalidAnnotation, message)
    })
}

/// The source ranges that the Service is limited to.
fn clients(service: &Service) -> Result<Option<Vec<IpNet>>, Problem> {
    let parse = |text: &String| {
        text.trim().parse().map_err(|_| {
            let message =
                format!("spec.loadBalancerSourceRanges: {text:?} is not a network, as 192.0.2.0/24 is");
            Problem::new(Reason::InvalidSourceRange, message)
        })
    };
    let mut networks = service.source_ranges.iter().map(parse).collect::<Result<Vec<IpNet>, _>>()?;
    networks.sort_unstable();
    networks.dedup();
    let everybody = |network: &IpNet| network.addr().is_ipv4() && network.prefix_len() == 0;
    Ok((!networks.is_empty() && !networks.iter().any(everybody)).then_some(networks))
}

/// The value of an annotation that is "true" or "false", or another word for
/// "true". `None` if it is missing, or neither.
fn switch(service: &Service, name: &str, also: &[&str], warnings: &mut Vec<Problem>) -> Option<bool> {
    match service.annotations.get(name)?.as_str() {
        "true" => Some(true),
        "false" => Some(false),
        other if also.contains(&other) => Some(true),
        other => {
            let message = format!("annotation {name}: {other:?} is neither \"true\" nor \"false\"");
            warnings.push(Problem::new(Reason::InvalidAnnotation, message));
            None
        }
    }
}

/// Stands for the annotations of the product's domain without meaning, beyond
/// those that are named.
pub const MORE_UNKNOWN: &str = "lb-svc.kubeovn.io/…";

/// That an annotation of the product's domain, or more of them, has no meaning.
pub fn unknown_annotation(name: &str) -> Problem {
    let message = match name {
        MORE_UNKNOWN => "more annotations mean nothing to lb-svc: correct or remove them".to_owned(),
        name => format!("annotation {name} means nothing to lb-svc: correct or remove it"),
    };
    Problem::new(Reason::UnknownAnnotation, message)
}

/// Whether an annotation has the product's domain and no meaning on a Service.
pub fn is_unknown(name: &str) -> bool {
    names::is_ours(name) && !is_known(name) && !Setting::ALL.iter().any(|known| known.annotation() == name)
}

/// Whether an annotation of the product's domain, beside the settings of gateway pods,
/// has a meaning on a Service.
pub fn is_known(name: &str) -> bool {
    ANNOTATIONS.contains(&name) || health::ANNOTATIONS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{port, service};

    #[test]
    fn provider_annotation_is_the_opt_in() {
        assert!(parse(&service()).is_some());
        let none = |change: fn(&mut Service)| {
            let mut service = service();
            change(&mut service);
            parse(&service).is_none()
        };
        assert!(none(|s| s.annotations.clear()));
        assert!(none(|s| s.load_balancer = false));
        assert!(none(|s| s.deleting = true));
        assert!(none(|s| s.class = Some("metallb.io/l2".into())));
        assert!(!none(|s| s.class = Some("lb-svc.kubeovn.io/gateway".into())));
    }

    #[test]
    fn invalid_spec_says_why() {
        let problem = |change: fn(&mut Service)| {
            let mut service = service();
            change(&mut service);
            parse(&service).unwrap().unwrap_err()
        };
        assert_eq!(problem(|s| s.load_balancer_ip = "172.18.0".into()).reason, "InvalidAddress");
        assert_eq!(problem(|s| s.cluster_ips = vec!["fd00::1".into()]).reason, "UnsupportedFamily");
        let bad = problem(|s| {
            s.annotations.insert(names::PROVIDER_ANNOTATION.into(), "lan".into());
        });
        assert_eq!(bad.reason, "InvalidProvider");
        assert!(bad.message.contains("<nad>.<namespace>"), "{}", bad.message);
    }

    #[test]
    fn unsupported_port_does_not_stop_the_rest() {
        let mut service = service();
        service.ports.push(port("SCTP", 38412));
        service.ports.push(port("UDP", 80));
        service.cluster_ips.push("fd00::1".into());
        let spec = parse(&service).unwrap().unwrap();
        assert_eq!(spec.ports.len(), 2);
        assert_eq!(spec.cluster_ips.len(), 1);
        let reasons: Vec<&str> = spec.warnings.iter().map(|limit| limit.reason.as_str()).collect();
        assert_eq!(reasons, ["UnsupportedFamily", "UnsupportedProtocol"]);
        service.ports.pop();
        service.local_policy = true;
        let warnings = super::parse(&service).unwrap().unwrap().warnings;
        assert!(warnings.iter().any(|limit| limit.reason == "ClientAddressHidden"));
    }

    #[test]
    fn nat_backend_is_read_from_annotation() {
        let of = |value: &str| {
            let mut service = service();
            service.annotations.insert(names::NAT_BACKEND_ANNOTATION.to_owned(), value.to_owned());
            let spec = super::parse(&service).unwrap().unwrap();
            (spec.nat_backend, spec.warnings.first().map(|limit| limit.reason.clone()))
        };
        assert_eq!(of("nftables"), (Some(NatBackend::Nftables), None));
        assert_eq!(of("iptables"), (Some(NatBackend::Iptables), None));
        assert_eq!(of("ipvs"), (None, Some("InvalidAnnotation".to_owned())));
    }

    /// What a Service with these annotations asks, after `change`.
    fn asked(annotations: &[(&str, &str)], change: fn(&mut Service)) -> (ServiceSpec, Vec<String>) {
        let mut service = service();
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        service.annotations.extend(annotations);
        change(&mut service);
        let spec = parse(&service).unwrap().unwrap();
        assert_eq!(is_direct(&service), spec.direct.is_some());
        let reasons = spec.warnings.iter().map(|limit| limit.reason.clone()).collect();
        (spec, reasons)
    }

    #[test]
    fn direct_access_is_requested_or_implied() {
        let cause = |annotations: &[(&str, &str)], change: fn(&mut Service)| {
            let (spec, reasons) = asked(annotations, change);
            (spec.direct.map(|direct| direct.cause), reasons)
        };
        let none = |_: &mut Service| {};
        let affinity = |service: &mut Service| service.affinity = Some(60);
        let local = |service: &mut Service| service.internal_local = true;
        let (ours, theirs) = (names::DIRECT_ACCESS_ANNOTATION, names::TKE_DIRECT_ACCESS_ANNOTATION);
        assert_eq!(cause(&[], none), (None, vec![]));
        for name in [ours, theirs] {
            assert_eq!(cause(&[(name, "true")], none), (Some(DirectAccessCause::Asked), vec![]));
            assert_eq!(cause(&[(name, "false")], none), (None, vec![]));
            assert_eq!(cause(&[(name, "false")], affinity), (None, vec!["AffinityNotKept".to_owned()]));
            assert_eq!(cause(&[(name, "false")], local), (None, vec!["LocalBackendsOnly".to_owned()]));
            assert_eq!(cause(&[(name, "yes")], none), (None, vec!["InvalidAnnotation".to_owned()]));
        }
        assert_eq!(cause(&[(ours, "false"), (theirs, "true")], none), (None, vec![]), "ours first");
        assert_eq!(cause(&[], affinity), (Some(DirectAccessCause::Affinity), vec![]));
        assert_eq!(cause(&[], local), (Some(DirectAccessCause::LocalPolicy), vec![]));
        let (spec, _) = asked(&[(ours, "true")], affinity);
        assert_eq!(spec.direct.unwrap().affinity_seconds, Some(60));

        // It is whatever else is wrong with it.
        let mut service = service();
        service.affinity = Some(60);
        service.load_balancer_ip = "172.18.0".into();
        assert!(super::parse(&service).unwrap().is_err() && is_direct(&service));
        service.load_balancer = false;
        assert!(!is_direct(&service));
    }

    #[test]
    fn affinity_implies_nftables() {
        let affinity = |service: &mut Service| service.affinity = Some(60);
        let backend = |annotations: &[(&str, &str)]| {
            let (spec, reasons) = asked(annotations, affinity);
            (spec.nat_backend, reasons)
        };
        let (nat, direct) = (names::NAT_BACKEND_ANNOTATION, names::DIRECT_ACCESS_ANNOTATION);
        let nftables = Some(NatBackend::Nftables);
        assert_eq!(backend(&[]), (nftables, vec![]));
        assert_eq!(backend(&[(nat, "nftables")]), (nftables, vec![]));
        assert_eq!(backend(&[(nat, "iptables")]), (nftables, vec!["NatBackendIgnored".to_owned()]));
        let plain = backend(&[(nat, "iptables"), (direct, "false")]);
        assert_eq!(plain, (Some(NatBackend::Iptables), vec!["AffinityNotKept".to_owned()]));
        let (spec, reasons) = asked(&[(nat, "iptables"), (direct, "true")], |_| {});
        assert_eq!((spec.nat_backend, reasons), (Some(NatBackend::Iptables), vec![]));
    }

    #[test]
    fn health_check_needs_direct_access_and_tcp() {
        let (check, direct) =
            ((names::HEALTH_CHECK_ANNOTATION, "tcp"), (names::DIRECT_ACCESS_ANNOTATION, "true"));
        let (spec, reasons) = asked(&[check, direct], |_| {});
        assert!(spec.direct.unwrap().check.is_some());
        assert_eq!(reasons, [""; 0]);
        assert_eq!(asked(&[check], |_| {}).1, ["HealthCheckIgnored"]);
        assert_eq!(
            asked(&[check, direct], |service| service.ports = vec![port("UDP", 53)]).1,
            ["HealthCheckIgnored"]
        );
    }

    #[test]
    fn proxy_protocol_is_of_tcp_and_its_clients_use_the_gateway_from_inside() {
        let asks = (names::PROXY_PROTOCOL_ANNOTATION, "v2");
        let (spec, reasons) = asked(&[asks], |service| service.local_policy = true);
        assert_eq!((spec.proxy_protocol, spec.pass_through), (Some(ProxyProtocol::V2), true));
        assert_eq!(reasons, [""; 0], "the client's address is not hidden");
        assert!(asked(&[asks], |_| {}).0.pass_through);
        assert!(!asked(&[asks, (names::PASS_THROUGH_ANNOTATION, "false")], |_| {}).0.pass_through);
        assert!(!asked(&[], |_| {}).0.pass_through);
        let (spec, reasons) = asked(&[asks], |service| service.ports.push(port("UDP", 53)));
        assert_eq!(
            (spec.proxy_protocol, reasons),
            (Some(ProxyProtocol::V2), vec!["ClientAddressHidden".into()])
        );
        let (spec, reasons) = asked(&[asks], |service| service.ports = vec![port("UDP", 53)]);
        assert_eq!((spec.proxy_protocol, spec.pass_through), (None, false));
        assert_eq!(reasons, ["ClientAddressHidden"]);
    }

    #[test]
    fn another_proxy_protocol_is_refused_and_not_passed_over() {
        for value in ["v1", "V2", "true", ""] {
            let mut service = service();
            service.annotations.insert(names::PROXY_PROTOCOL_ANNOTATION.to_owned(), value.to_owned());
            let problem = parse(&service).unwrap().unwrap_err();
            assert_eq!(problem.reason, "InvalidAnnotation");
            assert!(problem.message.contains(names::PROXY_PROTOCOL_ANNOTATION), "{}", problem.message);
        }
    }

    #[test]
    fn source_ranges_are_read_and_sorted() {
        let of = |ranges: &[&str]| {
            let mut service = service();
            service.source_ranges = ranges.iter().map(ToString::to_string).collect();
            super::parse(&service).unwrap().map(|spec| spec.clients)
        };
        let networks = |texts: &[&str]| Some(texts.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["192.0.2.0/24", " 10.0.0.0/8 "]).unwrap(), networks(&["10.0.0.0/8", "192.0.2.0/24"]));
        assert_eq!(of(&["192.0.2.0/24", "0.0.0.0/0"]).unwrap(), None, "that is everybody");
        assert_eq!(of(&["::/0"]).unwrap(), networks(&["::/0"]), "nobody of IPv4");
        assert_eq!(of(&["192.0.2.0"]).unwrap_err().reason, "InvalidSourceRange");
    }

    #[test]
    fn unknown_annotation_is_reported() {
        let mut service = service();
        let known = Setting::ALL.map(Setting::annotation);
        for name in known.into_iter().chain([names::KEEP_ADDRESS_ANNOTATION, names::DIRECT_ACCESS_ANNOTATION])
        {
            service.annotations.insert(name.to_owned(), "false".to_owned());
        }
        for name in health::ANNOTATIONS {
            assert!(!is_unknown(name), "{name}");
        }
        service.annotations.insert("lb-svc.kubeovn.io.example.com/x".to_owned(), String::new());
        assert_eq!(parse(&service).unwrap().unwrap().warnings, []);
        service.annotations.insert("lb-svc.kubeovn.io/keep-adress".to_owned(), "true".to_owned());
        let warnings = parse(&service).unwrap().unwrap().warnings;
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].reason, "UnknownAnnotation");
        assert!(warnings[0].message.contains("lb-svc.kubeovn.io/keep-adress"), "{}", warnings[0].message);
    }
}
