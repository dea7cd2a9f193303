//! Gateways in many states, and what their plans say.

use crate::action::Action;
use crate::gateway::assignment::gateway_of;
use crate::gateway::pod_settings::Configuration;
use crate::ipam::{Claim, ClaimId, Network};
use crate::model::{
    Attachment, Condition, DeploymentState, EndpointSlice, GatewayLocation, Ingress, OwnedObject, Pod,
    ServiceId, Setting, StatusReport,
};
use crate::observed::{Observed, ObservedAddresses, ObservedGateway};
use crate::service::conditions::FailedWrite;
use crate::service::plan::{Plan, Requeue};
use lb_svc_crds::gateway::{GatewayConfig, GatewayStatus, Role, Target, Transport};
use lb_svc_crds::names::Provider;
use lb_svc_crds::{Requested, feature, names, parts};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::service;
use crate::service::plan::plan;

/// A claim of the fixture Service on `address`.
pub fn claim(address: &str, requested: Requested) -> Claim {
    let provider: Provider = "lan.kube-system".parse().unwrap();
    let address: IpAddr = address.parse().unwrap();
    Claim {
        id: ClaimId { name: provider.claim_name(address), uid: "c".into(), resource_version: "1".into() },
        provider,
        subnet: "lan".into(),
        address,
        owner: service().id,
        requested,
        mac: "ba:85:f7:02:9f:42".into(),
        keep: false,
        probed: false,
        conflict: String::new(),
        gateway_namespace: "default".into(),
    }
}

/// The same claim, of an earlier Service of the name.
pub fn of_earlier(mut claim: Claim) -> Claim {
    claim.owner = ServiceId { uid: "uid-0".into(), ..claim.owner };
    claim
}

/// The network of Subnet `lan`.
pub fn network() -> Network {
    Network {
        provider: "lan.kube-system".parse().unwrap(),
        cidr: "172.18.0.0/16".parse().unwrap(),
        gateway: "172.18.0.1".parse().unwrap(),
        excludes: Vec::new(),
        namespaces: Vec::new(),
    }
}

/// The fixture Service with these claims and nothing else.
pub fn claimed(claims: &[Claim]) -> Observed {
    Observed {
        service: Some(service()),
        addresses: ObservedAddresses {
            claims: claims.to_vec(),
            networks: [("lan".to_owned(), network())].into(),
            ..ObservedAddresses::default()
        },
        gateway: ObservedGateway {
            location: GatewayLocation {
                gateway: gateway_of(&service().id.service),
                namespace: "default".into(),
            },
            desired_namespace: "default".into(),
            is_visible: true,
            ..ObservedGateway::default()
        },
        attachment: Some(Attachment::default()),
        ..Observed::default()
    }
}

/// The ConfigMap's content that a plan writes.
pub fn config_of(plan: &Plan) -> Option<&String> {
    plan.steps().find_map(|action| match action {
        Action::WriteConfig(content) => Some(content),
        _ => None,
    })
}

/// An object of the gateway with this uid.
pub fn owned<T>(uid: &str, content: T) -> OwnedObject<T> {
    OwnedObject {
        uid: uid.into(),
        resource_version: "3".into(),
        deleting: false,
        gateway_id: Some("uid-1".into()),
        content,
    }
}

/// The status of a pod that carries the configuration `content` out, as far as it is about
/// that.
pub fn carries_out(content: &str) -> GatewayStatus {
    let digest = Some(names::digest(content.as_bytes()));
    GatewayStatus { digest, parts: parts::digests(content).ok(), ..GatewayStatus::default() }
}

/// A ready pod that carries the configuration `content` out and has these
/// addresses.
pub fn gateway_pod(name: &str, content: &str, addresses: &[&str]) -> Pod {
    let digest = names::digest(content.as_bytes());
    Pod {
        name: name.into(),
        uid: format!("uid-{name}"),
        gateway_id: Some("uid-1".into()),
        ready: true,
        address: Some("10.244.1.5".parse().unwrap()),
        mac: Some("ba:85:f7:02:9f:42".into()),
        annotations: [(names::CONFIG_ANNOTATION.to_owned(), format!("{digest}.0"))].into(),
        report: StatusReport::Reported(Box::new(GatewayStatus {
            seen: Some(digest),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            features: feature::names(),
            ..carries_out(content)
        })),
        ..Pod::default()
    }
}

/// The Deployment that a plan writes.
pub fn deployment_of(plan: &Plan) -> Option<OwnedObject<DeploymentState>> {
    plan.steps().find_map(|action| match action {
        Action::WriteDeployment(live) => {
            Some(owned("dep", DeploymentState { live: live.clone(), ..DeploymentState::default() }))
        }
        _ => None,
    })
}

/// All that `plan` writes, written, with a pod that carries it out.
pub fn carried_out(mut observed: Observed, address: &str) -> Observed {
    let planned = plan(&observed);
    let content = config_of(&planned).unwrap().clone();
    observed.gateway.config = Some(owned("cm", content.clone()));
    observed.gateway.deployment = deployment_of(&planned);
    observed.gateway.pods = vec![gateway_pod("gw", &content, &[address])];
    settle(observed)
}

/// Applies what is written to pods and Service until nothing is.
pub fn settle(mut observed: Observed) -> Observed {
    for _ in 0..5 {
        for action in steps(&plan(&observed)) {
            let service = observed.service.as_mut().unwrap();
            match action {
                Action::SetStatus { ingress, conditions, .. } => {
                    (service.ingress, service.conditions) = (ingress, conditions);
                }
                Action::FillAddress(address) => service.load_balancer_ip = address.to_string(),
                Action::AnnotatePod { pod, annotations, .. } => {
                    let pod = observed.gateway.pods.iter_mut().find(|known| known.name == pod).unwrap();
                    pod.annotations.extend(annotations);
                }
                Action::Release(id) => observed.addresses.claims.retain(|claim| claim.id != id),
                Action::RecordMac { claim: id, mac, probed } => {
                    let claim = observed.addresses.claims.iter_mut().find(|claim| claim.id == id).unwrap();
                    (claim.mac, claim.probed) = (mac, probed);
                    claim.conflict.clear();
                }
                Action::MarkConflict(id, mac) => {
                    observed.addresses.claims.iter_mut().find(|claim| claim.id == id).unwrap().conflict = mac;
                }
                Action::WriteConfig(content) => {
                    observed.gateway.config = Some(owned("cm", content));
                }
                Action::WriteDeployment(live) => {
                    let view = DeploymentState { live, ..DeploymentState::default() };
                    observed.gateway.deployment = Some(owned("dep", view));
                }
                Action::WriteBudget(live) => observed.gateway.budget = Some(owned("bud", live)),
                Action::RememberElection(election) => observed.remembered.election = election,
                _ => {}
            }
        }
        observed.remembered.warned = Some(Duration::ZERO);
    }
    observed
}

/// The status that a plan writes: ingress and conditions.
pub fn status(plan: &Plan) -> Option<(&Vec<Ingress>, &Vec<Condition>)> {
    plan.steps().find_map(|action| match action {
        Action::SetStatus { ingress, conditions, .. } => Some((ingress, conditions)),
        _ => None,
    })
}

/// The reason of the condition of this type.
pub fn reason<'a>(conditions: &'a [Condition], kind: &str) -> &'a str {
    &conditions.iter().find(|condition| condition.kind == kind).unwrap().reason
}

/// A pod that withholds an address that the host with `mac` has.
pub fn withholds(mut observed: Observed, address: &str, mac: &str) -> Observed {
    let content = config_of(&plan(&observed)).cloned();
    let content = content.unwrap_or_else(|| observed.gateway.config.clone().unwrap().content);
    let mut pod = Pod { ready: false, ..gateway_pod("gw", &content, &[]) };
    let StatusReport::Reported(status) = &mut pod.report else { panic!("it answers") };
    (status.digest, status.parts) = (None, Some(BTreeMap::new()));
    status.conflicts.insert(address.parse().unwrap(), mac.to_owned());
    status.faults.insert("AddressConflict".to_owned(), "in use".to_owned());
    observed.gateway.config = Some(owned("cm", content));
    observed.gateway.deployment = Some(owned("dep", DeploymentState::default()));
    observed.gateway.pods = vec![pod];
    observed
}

/// The hardware address of a foreign host.
pub const FOREIGN_MAC: &str = "02:00:00:00:00:99";

/// A slice of the Service's one port; endpoints as [`endpoint`](super::endpoint)
/// has them.
pub fn tcp_slice(endpoints: &[(u8, &str)]) -> Arc<EndpointSlice> {
    Arc::new(super::slice(&[("", Transport::Tcp, 8080)], endpoints))
}

/// A gateway that serves with two endpoints as its targets.
pub fn direct_access() -> Observed {
    let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
    annotate(&mut observed, names::DIRECT_ACCESS_ANNOTATION, "true");
    observed.endpoints.slices = vec![tcp_slice(&[(1, "ready"), (2, "ready")])];
    observed_again(carried_out(observed, "172.18.0.11"))
}

/// The same, with what a plan remembers.
pub fn observed_again(mut observed: Observed) -> Observed {
    observed.remembered.convergence = plan(&observed).remember;
    observed
}

/// The configuration that a plan writes.
pub fn config_written(plan: &Plan) -> GatewayConfig {
    serde_json::from_str(config_of(plan).expect("a ConfigMap")).unwrap()
}

/// The endpoints' addresses in a configuration.
pub fn target_addresses(config: &GatewayConfig) -> Vec<String> {
    let Target::Endpoints { subsets, .. } = &config.frontends[0].target else { panic!("not direct") };
    subsets.iter().flat_map(|subset| &subset.addresses).map(ToString::to_string).collect()
}

/// A gateway that serves.
pub fn served() -> Observed {
    carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11")
}

/// Sets an annotation of the Service.
pub fn annotate(observed: &mut Observed, annotation: &str, value: &str) {
    let annotations = &mut observed.service.as_mut().unwrap().annotations;
    annotations.insert(annotation.to_owned(), value.to_owned());
}

/// The Service sets this for its own gateway.
pub fn set(observed: &mut Observed, setting: Setting, value: Value) {
    annotate(observed, setting.annotation(), &value.to_string());
    let read = setting.check(&value).map(|()| value);
    observed.service.as_mut().unwrap().settings.insert(setting, read);
}

/// The Service sets this to something that is not of its type.
pub fn set_wrongly(observed: &mut Observed, setting: Setting) {
    annotate(observed, setting.annotation(), "[{kei: a}]");
    let fault = "there is no field 0.kei".to_owned();
    observed.service.as_mut().unwrap().settings.insert(setting, Err(fault));
}

/// The controller's configuration names this image.
pub fn configured(mut observed: Observed, image: &str) -> Observed {
    observed.configuration = Arc::new(Configuration::new(image, false));
    observed
}

/// Gateways are to be in a namespace of their own.
pub fn misplaced(observed: Observed) -> Observed {
    let gateway = ObservedGateway { desired_namespace: "gateways".into(), ..observed.gateway };
    Observed { gateway, ..observed }
}

/// The hardware address of pod `a`.
pub const MAC_A: &str = "ba:85:f7:02:9f:42";
/// The hardware address of pod `b`.
pub const MAC_B: &str = "ba:85:f7:02:9f:43";

/// The Service asks for so many pods.
pub fn replicated(mut observed: Observed, replicas: &str) -> Observed {
    set(&mut observed, Setting::Replicas, replicas.parse::<u64>().unwrap().into());
    observed
}

/// Pod `name` of an election in which `active` is active for the `term`th
/// time, and has the address.
pub fn member(observed: &Observed, name: &str, active: &str, term: u64) -> Pod {
    let content = observed.gateway.config.as_ref().unwrap().content.clone();
    let (role, addresses) =
        if name == active { (Role::Active, &["172.18.0.11"][..]) } else { (Role::Standby, &[][..]) };
    let mac = if name == "a" { MAC_A } else { MAC_B };
    let mut pod = Pod {
        node: Some(format!("node-{name}")),
        member: true,
        mac: Some(mac.into()),
        ..gateway_pod(name, &content, addresses)
    };
    reported_mut(&mut pod).election = Some(super::election_status(role, active, term));
    pod
}

/// The status that a pod reports.
pub fn reported_mut(pod: &mut Pod) -> &mut GatewayStatus {
    match &mut pod.report {
        StatusReport::Reported(status) => status,
        _ => panic!("it answers"),
    }
}

/// Two pods, `a` and `b`, of such an election.
pub fn members(observed: &mut Observed, active: &str, term: u64) {
    observed.gateway.pods = ["a", "b"].map(|name| member(observed, name, active, term)).into();
}

/// Two pods, of which `a` is active, and everything is done.
pub fn two_pods() -> Observed {
    let mut observed = settle(replicated(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2"));
    members(&mut observed, "a", 1);
    let mut observed = settle(observed);
    // All have the configuration that says that the LAN was asked.
    let (election, content) =
        (observed.remembered.election.take(), observed.gateway.config.as_ref().unwrap().content.clone());
    for pod in &mut observed.gateway.pods {
        let GatewayStatus { digest, parts, .. } = carries_out(&content);
        let status = reported_mut(pod);
        (status.seen, status.digest, status.parts) = (digest.clone(), digest, parts);
    }
    observed.remembered.election = election;
    observed
}

/// The message of the Service's condition of this type.
pub fn message<'a>(observed: &'a Observed, kind: &str) -> &'a str {
    let conditions = &observed.service.as_ref().unwrap().conditions;
    conditions.iter().find(|condition| condition.kind == kind).map_or("", |condition| &condition.message)
}

/// The Events that a plan writes: reason and message.
pub fn events(plan: &Plan) -> Vec<(&str, &str)> {
    let told = plan.steps().filter_map(|action| match action {
        Action::Event { reason, message, .. } => Some((reason.as_str(), message.as_str())),
        _ => None,
    });
    told.collect()
}

/// The gateway's objects that are written or deleted, in order.
pub fn objects(plan: &Plan) -> Vec<String> {
    let objects = plan.steps().filter_map(|action| match action {
        Action::WriteConfig(_) => Some("config".to_owned()),
        Action::WriteKey(config) => Some(format!("key of {config}")),
        Action::WriteDeployment(live) => Some(format!("deployment of {}", live["spec"]["replicas"])),
        Action::WriteBudget(_) => Some("budget".to_owned()),
        Action::DeleteConfig(..) => Some("no config".to_owned()),
        Action::DeleteDeployment(..) => Some("no deployment".to_owned()),
        Action::DeleteBudget(uid, _) => Some(format!("no {uid}")),
        _ => None,
    });
    objects.collect()
}

/// All writes of a plan, in order.
pub fn steps(plan: &Plan) -> Vec<Action> {
    plan.steps().cloned().collect()
}

/// Whether a plan leaves nothing to wait for.
pub fn is_converged(plan: &Plan) -> bool {
    matches!(plan.next, Requeue::Never | Requeue::Converged { .. })
}

/// What becomes of a plan if the API server refuses its last action with these
/// words.
pub fn refused(plan: Plan, words: &str) -> Plan {
    let failed = FailedWrite { what: "the gateway's Deployment", refused: true, why: words.to_owned() };
    Plan { report: plan.after_failure(plan.actions.len(), &failed), ..plan }
}

/// The gateway has these pods.
pub fn with_pods(observed: Observed, pods: Vec<Pod>) -> Observed {
    Observed { gateway: ObservedGateway { pods, ..observed.gateway }, ..observed }
}
