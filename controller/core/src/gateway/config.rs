//! The configuration that a gateway is given, in its ConfigMap: the parts of the Services
//! that it serves, and what is the same for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_svc_crds::gateway::{
    ADVERTISEMENT_INTERVAL_MS, Address, CONFIG_VERSION, DRAIN_SECONDS, Election, Frontend, GatewayConfig,
    NatBackend, Port, Subset, Target,
};
use lb_svc_crds::reason::Reason;

use super::rendered::Rendered;
use crate::backend::endpoints;
use crate::ipam::{Claim, Network};
use crate::model::{GatewayId, OwnedObject, Pod, Problem, Service, ServicePort, ServiceRef};
use crate::observed::{ObservedEndpoints, ObservedGateway};
use crate::service::spec::{ServiceSpec, transport};

/// The most predecessors that a configuration names: there is one Deployment, and its
/// pods are few.
const PREDECESSORS_MAX: usize = 16;

/// What a configuration is made from, beside the Service's spec.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The identity of the gateway.
    pub id: &'a GatewayId,
    /// The Service.
    pub service: &'a Service,
    /// The claims to serve.
    pub serving: &'a [&'a Claim],
    /// The networks of Subnets.
    pub networks: &'a BTreeMap<String, Network>,
    /// The Service's endpoints.
    pub endpoints: &'a ObservedEndpoints,
    /// The gateway as it is.
    pub gateway: &'a ObservedGateway,
    /// Its living pods.
    pub pods: &'a [&'a Pod],
    /// The NAT back end where the Service does not say.
    pub nat_backend: NatBackend,
    /// See [`Election::drain_seconds`]; `None` where the Service's settings are not valid.
    pub drain_seconds: Option<u16>,
}

/// The configuration by which a gateway serves what `spec` asks; `None` without
/// an address to serve.
///
/// # Errors
/// Why an address cannot be served, or that a ConfigMap cannot hold it.
pub fn desired(spec: &ServiceSpec, inputs: &Inputs<'_>) -> Result<Option<Rendered>, Problem> {
    let Inputs { id, service, serving, networks, endpoints, gateway, pods, nat_backend, drain_seconds } =
        *inputs;
    if serving.is_empty() {
        return Ok(None);
    }
    let known = parse(gateway.own_config());
    let mut addresses = Vec::new();
    for claim in serving {
        let listed = known
            .as_ref()
            .and_then(|known| known.addresses.iter().find(|address| address.address == claim.address));
        let probe = claim.is_unproven(service) || !is_proven_here(claim.address, listed, pods);
        let network = networks.get(&claim.subnet).filter(|network| network.holds(claim.address));
        let network = network.map(|network| Address {
            address: claim.address,
            cidr: network.cidr.into(),
            gateway: Some(network.gateway.into()),
            subnet: claim.subnet.clone(),
            probe,
        });
        // A Subnet that was spoiled, lost or shrunk leaves a live address as it
        // is; so does one whose router has it now.
        let before = || Some(Address { probe, ..listed?.clone() });
        addresses.push(network.or_else(before).ok_or_else(|| {
            Problem::new(
                Reason::SubnetNotFound,
                format!(
                    "Subnet {}, which {} is from, does not exist or is not valid",
                    claim.subnet, claim.address
                ),
            )
        })?);
    }
    let target = match &spec.direct {
        None => Target::ClusterIp { addresses: spec.cluster_ips.clone() },
        Some(direct) => Target::Endpoints {
            subsets: subsets(service, &spec.ports, endpoints),
            affinity_seconds: direct.affinity_seconds,
            check: direct.check.clone(),
        },
    };
    let known_drain = || Some(known.as_ref()?.election.as_ref()?.drain_seconds);
    let frontend = Frontend {
        service: service.id.service.to_string(),
        addresses: addresses.iter().map(|address| address.address).collect(),
        target,
        ports: spec.ports.clone(),
        clients: spec.clients.clone(),
        proxy_protocol: spec.proxy_protocol,
    };
    let desired = Desired {
        attachment: spec.provider.multus_name(),
        nat_backend: spec.nat_backend.unwrap_or(nat_backend),
        election: Election {
            gateway: id.to_string(),
            interval_ms: ADVERTISEMENT_INTERVAL_MS,
            predecessors: Some(predecessors(&gateway.pods, id)),
            drain_seconds: drain_seconds.or_else(known_drain).unwrap_or(DRAIN_SECONDS),
        },
        parts: [(service.id.service.clone(), Part { addresses, frontends: vec![frontend] })].into(),
    };
    Rendered::of(desired.into_config(), &service.id.service).map(Some)
}

/// What a gateway is to do, by Service.
#[derive(Clone, Debug)]
struct Desired {
    /// The attachment, as Multus names it.
    attachment: String,
    nat_backend: NatBackend,
    election: Election,
    parts: BTreeMap<ServiceRef, Part>,
}

/// What a gateway is to do for one Service.
#[derive(Clone, Debug)]
struct Part {
    /// The addresses that it needs; others may need them as well.
    addresses: Vec<Address>,
    frontends: Vec<Frontend>,
}

impl Desired {
    /// The configuration that says so: each address once, and the frontends in the order
    /// of their Services.
    fn into_config(self) -> GatewayConfig {
        let Self { attachment, nat_backend, election, parts } = self;
        let (mut addresses, mut frontends) = (Vec::<Address>::new(), Vec::new());
        let mut listed = BTreeSet::new();
        for part in parts.into_values() {
            addresses.extend(part.addresses.into_iter().filter(|address| listed.insert(address.address)));
            frontends.extend(part.frontends);
        }
        let config = GatewayConfig {
            version: CONFIG_VERSION,
            requires: BTreeSet::new(),
            attachment,
            addresses,
            frontends,
            nat_backend,
            election: Some(election),
        };
        config.with_requirements()
    }
}

/// The hardware addresses of pods that may answer, beside the members of an election
/// of the gateway of this identity.
fn predecessors(pods: &[Pod], id: &GatewayId) -> Vec<String> {
    let is_member = |pod: &&Pod| pod.member && pod.is_of(id);
    if !pods.iter().any(|pod| is_member(&pod)) {
        return Vec::new();
    }
    let others = pods.iter().filter(|pod| pod.of_deployment && pod.could_answer() && !is_member(pod));
    let macs: BTreeSet<&String> = others.filter_map(|pod| pod.mac.as_ref()).collect();
    macs.into_iter().take(PREDECESSORS_MAX).cloned().collect()
}

/// Whether an address that the ConfigMap has as `listed` is known to be free
/// for this gateway: the ConfigMap says so, or a pod has it. Another is not,
/// whatever served it before: the claim was retained while no gateway held it, or
/// what is seen of the claim is out of date.
fn is_proven_here(address: IpAddr, listed: Option<&Address>, pods: &[&Pod]) -> bool {
    let has = |pod: &&Pod| pod.reported().is_some_and(|status| status.addresses.contains(&address));
    listed.is_some_and(|listed| !listed.probe) || pods.iter().any(has)
}

/// The addresses that a ConfigMap of ours has a gateway serve.
pub fn addresses(known: Option<&OwnedObject<String>>) -> Vec<IpAddr> {
    let config = parse(known.filter(|config| config.gateway_id.is_some()));
    config.map_or(Vec::new(), |config| config.addresses.iter().map(|listed| listed.address).collect())
}

/// The configuration as it is with the targets as they are now, and the first
/// of the claims `own` that it serves, if there are any. `None` if it serves none
/// of the claims, or cannot be read or held.
///
/// A ClusterIP that the Service has no more may be another's by now.
pub fn as_before<'a>(
    known: Option<&OwnedObject<String>>,
    service: &Service,
    own: &[&'a Claim],
    endpoints: &ObservedEndpoints,
) -> Option<(Rendered, Option<&'a Claim>)> {
    let mut config = parse(known)?;
    for Frontend { ports, target, .. } in &mut config.frontends {
        match target {
            Target::Endpoints { subsets, .. } => *subsets = self::subsets(service, ports, endpoints),
            Target::ClusterIp { addresses } => *addresses = service.ipv4_cluster_ips(),
        }
    }
    let is_served = |claim: &&&Claim| config.addresses.iter().any(|known| known.address == claim.address);
    let claim = own.iter().find(is_served).copied();
    if claim.is_none() && !own.is_empty() {
        return None;
    }
    Some((Rendered::of(config, &service.id.service).ok()?, claim))
}

fn parse(known: Option<&OwnedObject<String>>) -> Option<GatewayConfig> {
    serde_json::from_str(&known?.content).ok()
}

/// The endpoints of the Service's ports, as far as these are among `ports`.
fn subsets(service: &Service, ports: &[Port], endpoints: &ObservedEndpoints) -> Vec<Subset> {
    let is_served = |ServicePort { protocol, port, .. }: &&ServicePort| {
        transport(protocol).is_some_and(|protocol| ports.contains(&Port { protocol, port: *port }))
    };
    let ports: Vec<ServicePort> = service.ports.iter().filter(is_served).cloned().collect();
    endpoints::subsets(&ports, &endpoints.slices, |pod| endpoints.gated_pods.contains_key(&pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::gateway::manifests;
    use crate::model::DeploymentState;
    use crate::model::{Setting, StatusReport};
    use crate::observed::{Observed, SealState};
    use crate::service::conditions::{GATEWAY_READY, LIMITED, ips};
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        annotate, carried_out, claim, claimed, config_of, config_written, direct_access, gateway_pod,
        is_converged, network, owned, reason, set, set_wrongly, settle, status, target_addresses, with_pods,
    };
    use crate::testing::port;
    use lb_svc_crds::Requested;
    use lb_svc_crds::gateway::{DIRECT_VERSION, ProxyProtocol, REQUIRES_VERSION};
    use lb_svc_crds::names;
    use lb_svc_crds::seal::PrivateKey;

    #[test]
    fn address_is_probed_until_in_service() {
        let claims = [claim("172.18.0.11", Requested::Dynamic)];
        let mut observed = claimed(&claims);
        let asking = config_of(&plan(&observed)).unwrap().clone();
        assert!(asking.contains("\"probe\":true"));
        observed.gateway.config = Some(owned("cm", asking.clone()));
        observed.gateway.deployment = Some(owned("dep", DeploymentState::default()));
        observed.gateway.pods = vec![gateway_pod("gw", &asking, &["172.18.0.11"])];
        let planned = plan(&observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.11"], "nothing is waited for");
        let (claim, mac) = (claims[0].id.clone(), claims[0].mac.clone());
        assert!(planned.actions.contains(&Action::RecordMac { claim, mac, probed: true }));
        assert_eq!(config_of(&planned), None);

        // What is left for the next pod to know is written beside what serves.
        observed.addresses.claims[0].probed = true;
        let planned = plan(&observed);
        assert!(!config_of(&planned).unwrap().contains("probe"));
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
        assert!(!planned.steps().any(|action| matches!(action, Action::AnnotatePod { nudge: Some(_), .. })));
        let done = settle(observed);
        assert!(!done.gateway.config.as_ref().unwrap().content.contains("probe"));
        assert!(is_converged(&plan(&done)), "with a pod that has the earlier one still");

        // An address in the status is in service, whatever the claim says.
        let mut earlier = done;
        earlier.addresses.claims[0].probed = false;
        earlier.gateway.pods.clear();
        assert_eq!(config_of(&plan(&earlier)), None);
    }

    #[test]
    fn lost_subnet_keeps_live_address() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.addresses.networks.get_mut("lan").unwrap().cidr = "172.18.1.0/24".parse().unwrap();
        let reported = |observed: &Observed| {
            let planned = plan(observed);
            assert_eq!(config_of(&planned), None);
            let (ingress, conditions) = status(&planned).unwrap();
            assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
            reason(conditions, LIMITED) == "AddressNotInSubnet"
        };
        assert!(reported(&observed), "nor one that is shrunk");
        *observed.addresses.networks.get_mut("lan").unwrap() = network();
        observed.addresses.networks.get_mut("lan").unwrap().gateway = "172.18.0.11".parse().unwrap();
        assert!(reported(&observed), "nor one whose router has it");
        observed.addresses.networks.clear();
        assert!(reported(&observed));
    }

    #[test]
    fn time_to_drain_is_in_config_and_kept_where_the_settings_are_wrong() {
        let mut observed = served();
        set(&mut observed, Setting::DrainSeconds, 5.into());
        let planned = plan(&observed);
        assert_eq!(config_written(&planned).election.unwrap().drain_seconds, 5);
        observed.gateway.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
        set_wrongly(&mut observed, Setting::DrainSeconds);
        observed.service.as_mut().unwrap().ports.push(port("TCP", 443));
        assert_eq!(config_written(&plan(&observed)).election.unwrap().drain_seconds, 5);
        set(&mut observed, Setting::DrainSeconds, DRAIN_SECONDS.into());
        assert!(!config_of(&plan(&observed)).unwrap().contains("drainSeconds"), "as before there was one");
    }

    #[test]
    fn endpoint_options_are_in_config() {
        let mut observed = direct_access();
        let service = observed.service.as_mut().unwrap();
        service.affinity = Some(60);
        service.source_ranges = vec!["192.0.2.0/24".into()];
        annotate(&mut observed, names::HEALTH_CHECK_ANNOTATION, "tcp");
        let config = config_written(&plan(&observed));
        assert_eq!((config.version, config.nat_backend), (DIRECT_VERSION, NatBackend::Nftables));
        assert!(config.frontends[0].clients.is_some());
        let Target::Endpoints { affinity_seconds, check, .. } = &config.frontends[0].target else {
            panic!("not direct")
        };
        assert_eq!((*affinity_seconds, check.is_some()), (Some(60), true));

        // And back to the ClusterIP.
        let mut plain = direct_access();
        annotate(&mut plain, names::DIRECT_ACCESS_ANNOTATION, "false");
        let config = config_written(&plan(&plain));
        assert_eq!(config.version, CONFIG_VERSION);
        assert!(matches!(config.frontends[0].target, Target::ClusterIp { .. }));
    }

    #[test]
    fn proxy_protocol_is_in_config_of_a_version_that_earlier_gateways_refuse() {
        let mut observed = direct_access();
        annotate(&mut observed, names::PROXY_PROTOCOL_ANNOTATION, "v2");
        let config = config_written(&plan(&observed));
        assert_eq!(config.version, REQUIRES_VERSION);
        assert_eq!(config.requires, ["proxy-protocol".to_owned()].into());
        assert_eq!(config.frontends[0].proxy_protocol, Some(ProxyProtocol::V2));

        // An edit to what there is not leaves the header as it is.
        let mut edited = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        annotate(&mut edited, names::PROXY_PROTOCOL_ANNOTATION, "v2");
        let mut edited = carried_out(edited, "172.18.0.11");
        assert!(is_converged(&plan(&edited)));
        annotate(&mut edited, names::PROXY_PROTOCOL_ANNOTATION, "v1");
        let planned = plan(&edited);
        assert_eq!(config_of(&planned), None);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ingress.len(), 1);
        assert!(conditions.iter().any(|condition| condition.reason == "InvalidAnnotation"), "{conditions:?}");
    }

    #[test]
    fn config_without_endpoints_serves_the_address() {
        let mut observed = direct_access();
        observed.endpoints.slices.clear();
        let done = carried_out(with_pods(observed, Vec::new()), "172.18.0.11");
        assert_eq!(ips(&done.service.as_ref().unwrap().ingress), ["172.18.0.11"]);
        let config: GatewayConfig = serde_json::from_str(&done.gateway.config.unwrap().content).unwrap();
        assert!(target_addresses(&config).is_empty());
        assert_eq!(config.frontends[0].ports.len(), 1);
    }

    /// The gateway as it is once its configuration is signed, with the generation
    /// that the ConfigMap's content has and the one that its pod has in force.
    fn signed(mut observed: Observed, written: Option<u64>, in_force: Option<u64>) -> Observed {
        let trusted = [PrivateKey::from_seed(&[1; 32]).unwrap().public()].into();
        observed.gateway.seal = Some(SealState { generation: written, trusted });
        for pod in &mut observed.gateway.pods {
            let StatusReport::Reported(status) = &mut pod.report else { continue };
            status.generation = in_force;
        }
        observed
    }

    fn served() -> Observed {
        carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11")
    }

    #[test]
    fn b17_pods_from_before_the_election_are_named_to_its_members() {
        let named = |pods: &[Pod]| predecessors(pods, &"uid-1".into());
        let pod = |mac: &str, member, owner: &str| Pod {
            mac: Some(mac.to_owned()),
            gateway_id: Some(owner.into()),
            of_deployment: true,
            member,
            ..Pod::default()
        };
        let (old, new) = (pod("02:00:00:00:00:01", false, "uid-1"), pod("02:00:00:00:00:02", true, "uid-1"));
        assert_eq!(named(std::slice::from_ref(&old)), [""; 0], "there is no election");
        assert_eq!(named(&[old.clone(), new.clone()]), ["02:00:00:00:00:01"]);
        let earlier = pod("02:00:00:00:00:03", true, "uid-0");
        assert_eq!(named(&[earlier, new.clone()]), ["02:00:00:00:00:03"]);
        let gone = Pod { finished: true, ..old.clone() };
        let forged = Pod { of_deployment: false, ..old };
        assert_eq!(named(&[gone, forged, new]), [""; 0]);
    }

    #[test]
    fn r10_content_without_a_valid_seal_is_written_anew() {
        let good = served().gateway.config.unwrap().content;
        let kept = signed(served(), Some(3), Some(3));
        assert_eq!(config_of(&plan(&kept)), None);
        assert_eq!(kept.gateway.next_generation(), 4);

        // Whatever the content is, the seal is not on it.
        let mut edited = signed(settle(kept), None, Some(3));
        assert_eq!(config_of(&plan(&edited)), Some(&good), "the same, of which the seal was taken");
        edited.gateway.config.as_mut().unwrap().content = good.replace("172.18.0.11", "172.18.0.99");
        assert_eq!(config_of(&plan(&edited)), Some(&good));
        assert_eq!(edited.gateway.next_generation(), 4, "after the one in force");
        // Nothing that it says is relied upon: that an address needs no probe.
        edited.gateway.config.as_mut().unwrap().content = good.clone();
        edited.gateway.pods.clear();
        assert!(config_of(&plan(&edited)).unwrap().contains("\"probe\":true"));
        edited.service.as_mut().unwrap().source_ranges = vec!["x".into()];
        edited.gateway.config.as_mut().unwrap().content = good.replace("172.18.0.11", "172.18.0.99");
        assert_eq!(config_of(&plan(&edited)), None, "nor is it kept up");
    }

    #[test]
    fn r23_configuration_is_restored_from_the_claim_alone_or_as_last_signed() {
        let good = served().gateway.config.unwrap().content;
        let mut edited = signed(served(), None, Some(3));
        edited.gateway.config.as_mut().unwrap().content = good.replace("172.18.0.11", "172.18.0.99");
        edited.service.as_mut().unwrap().load_balancer_ip = "x".into();
        assert_eq!(config_of(&plan(&edited)), Some(&good), "not by what the ConfigMap says");

        // One that was signed once and is put back is not signed anew.
        let mut older = signed(served(), Some(3), Some(5));
        older.service.as_mut().unwrap().source_ranges = vec!["x".into()];
        assert_eq!(config_of(&plan(&older)), None);
        let StatusReport::Reported(status) = &mut older.gateway.pods[0].report else { panic!("it answers") };
        status.generation = Some(3);
        older.gateway.deployment = None;
        let deploys = |observed: &Observed| {
            plan(observed).steps().any(|action| matches!(action, Action::WriteDeployment(_)))
        };
        assert!(deploys(&older), "what is the last is deployed");
        older.gateway.seal.as_mut().unwrap().generation = None;
        assert!(!deploys(&older));
    }

    #[test]
    fn r10_older_signed_content_is_written_anew() {
        let older = signed(served(), Some(3), Some(5));
        assert!(config_of(&plan(&older)).is_some(), "though it means the same");
        assert_eq!(older.gateway.next_generation(), 6);
    }

    #[test]
    fn r10_gateway_of_an_earlier_release_is_signed_and_replaced() {
        let mut upgraded = signed(served(), None, None);
        let good = upgraded.gateway.config.as_ref().unwrap().content.clone();
        upgraded.gateway.pods.clear();
        let planned = plan(&upgraded);
        assert_eq!(config_of(&planned), Some(&good), "what it says is relied upon");
        assert!(planned.steps().any(|action| match action {
            Action::WriteDeployment(wanted) => manifests::trusts_keys(wanted),
            _ => false,
        }));
        assert_eq!(upgraded.gateway.next_generation(), 1);
    }

    #[test]
    fn r21_address_that_the_gateway_does_not_list_is_probed_first() {
        let proven = Claim { probed: true, ..claim("172.18.0.11", Requested::Dynamic) };
        let mut observed = claimed(&[proven]);
        let probes = |observed: &Observed| -> Vec<bool> {
            let content = config_of(&plan(observed)).unwrap().clone();
            let config: GatewayConfig = serde_json::from_str(&content).unwrap();
            config.addresses.iter().map(|address| address.probe).collect()
        };
        assert_eq!(probes(&observed), [true], "no ConfigMap says that a gateway has it");
        let content = config_of(&plan(&observed)).unwrap().clone();
        observed.gateway.config = Some(owned("cm", content.clone()));
        observed.gateway.pods = vec![gateway_pod("gw", &content, &[])];
        assert_eq!(config_of(&plan(&observed)), None, "not taken up yet");
        observed.gateway.pods = vec![gateway_pod("gw", &content, &["172.18.0.11"])];
        assert_eq!(probes(&observed), [false]);
    }

    #[test]
    fn address_of_several_services_is_listed_once() {
        let text = config_of(&plan(&claimed(&[claim("172.18.0.11", Requested::Dynamic)]))).unwrap().clone();
        let one: GatewayConfig = serde_json::from_str(&text).unwrap();
        let part = |service: &ServiceRef| Part {
            addresses: one.addresses.clone(),
            frontends: vec![Frontend { service: service.to_string(), ..one.frontends[0].clone() }],
        };
        let config = |services: &[&str]| {
            let services = services.iter().map(|name| ServiceRef::new("default", name));
            let parts = services.map(|service| (service.clone(), part(&service))).collect();
            let (attachment, nat_backend) = (one.attachment.clone(), one.nat_backend);
            Desired { attachment, nat_backend, election: one.election.clone().unwrap(), parts }.into_config()
        };
        assert_eq!(config(&["test-service"]), one, "of one it is what it was");
        let two = config(&["test-service", "other"]);
        let services = two.frontends.iter().map(|frontend| frontend.service.as_str());
        assert_eq!(services.collect::<Vec<_>>(), ["default/other", "default/test-service"]);
        assert_eq!(two.addresses, one.addresses);
        assert_eq!(two.requires, ["parts".to_owned()].into());
    }
}
