//! What is wrong with a Service, by the step of its way at which it shows.

use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{Pod, Problem};
use lb_svc_core::node_mode::request::{Mode, mode};
use lb_svc_core::service::conditions::{self, ADDRESS_ALLOCATED, LIMITED};
use lb_svc_core::service::spec;
use lb_svc_crds::gateway::{GatewayConfig, Port};
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;
use lb_svc_crds::seal::{Seal, Unsealed};

use crate::cluster::Cluster;
use crate::view::Gateway;

/// A step of the way from a Service to its last announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// What the Service asks, and whether the controller has answered.
    Service,
    /// The claim on an address.
    Claim,
    /// The gateway's ConfigMap and Deployment.
    Configuration,
    /// The gateway's pods.
    Pods,
    /// What pods have programmed.
    Kernel,
    /// Who announced the address last.
    Announcement,
    /// Where connections end.
    Endpoints,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::Claim,
        Self::Configuration,
        Self::Pods,
        Self::Kernel,
        Self::Announcement,
        Self::Endpoints,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Claim => "claim",
            Self::Configuration => "configuration",
            Self::Pods => "pods",
            Self::Kernel => "kernel",
            Self::Announcement => "announcement",
            Self::Endpoints => "endpoints",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Where it shows.
    pub step: Step,
    /// One word in CamelCase.
    pub reason: String,
    /// What is wrong, for people.
    pub message: String,
}

/// What to say where there is room for one finding: not that the spec was changed, for
/// what was wrong before most likely still is.
pub fn worst(wrong: &[Finding]) -> Option<&Finding> {
    wrong.iter().find(|finding| finding.reason != "SpecNotSeen").or(wrong.first())
}

/// The reasons of the plugin's own, beside those of conditions.
pub const OWN_REASONS: [&str; 13] = [
    "ActiveUnknown",
    "ClaimMissing",
    "ConfigMapMissing",
    "ConfigMapOutdated",
    "ConfigMapUnsigned",
    "DeploymentMissing",
    "IngressMissing",
    "LeftAlone",
    "NoReadyEndpoint",
    "NotAnswered",
    "PodMissing",
    "PodNotReady",
    "SpecNotSeen",
];

/// The reasons of the condition `Limited` that are about what is, not about what the
/// Service asks: they are trouble, the others the Service's author may well accept.
pub const LIMITS_OF_STATE: [Reason; 12] = [
    Reason::AddressAnsweredTwice,
    Reason::AddressNotInSubnet,
    Reason::AddressNotFilled,
    Reason::AllUnhealthy,
    Reason::BackendsUnreachable,
    Reason::ConfigTooLarge,
    Reason::PortInUse,
    Reason::RouterSilent,
    Reason::StandbyMissing,
    Reason::StatusOverwritten,
    Reason::WriteFailed,
    Reason::WriteRefused,
];

/// What of a gateway's objects was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All but ConfigMaps and EndpointSlices.
    Objects,
    /// These as well.
    Contents,
}

/// Everything that is wrong with a Service, by step.
pub fn findings(gateway: &Gateway, cluster: &Cluster, depth: Depth) -> Vec<Finding> {
    let mut all = Findings::default();
    let Some(service) = &gateway.observed.service else { return all.0 };
    if mode(service) != Mode::Gateway {
        // Nothing of ours runs for it: the conditions say all there is.
        answers(gateway, &mut all);
        return all.0;
    }
    let asked = spec::parse(service);
    if let Some(problem) = spec::missing_provider(service) {
        all.problem(Step::Service, &problem);
    }
    let Some(asked) = asked else { return all.0 };
    if let Err(problem) = &asked {
        all.problem(Step::Service, problem);
    }
    answers(gateway, &mut all);
    claim(gateway, cluster, &mut all);
    if gateway.claim().is_some() {
        objects(gateway, cluster, depth, &mut all);
        pods(gateway, cluster, &mut all);
    }
    announcement(gateway, cluster, &mut all);
    if depth == Depth::Contents && cluster.slices.is_whole() && gateway.is_served() {
        let ready = gateway.observed.endpoints.slices.iter().flat_map(|slice| &slice.endpoints);
        if !ready.into_iter().any(|endpoint| endpoint.ready) {
            all.add(
                Step::Endpoints,
                "NoReadyEndpoint",
                "no endpoint of the Service is ready: clients are refused",
            );
        }
    }
    all.0.sort_by_key(|finding| finding.step);
    all.0
}

/// Findings, each reason once: a condition often says what an object shows.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, step: Step, reason: &str, message: impl Into<String>) {
        if !self.0.iter().any(|known| known.reason == reason) {
            self.0.push(Finding { step, reason: reason.to_owned(), message: message.into() });
        }
    }

    fn problem(&mut self, step: Step, Problem { reason, message }: &Problem) {
        self.add(step, reason, message.as_str());
    }
}

/// What the controller's conditions say.
fn answers(gateway: &Gateway, all: &mut Findings) {
    let allocated = gateway.condition(ADDRESS_ALLOCATED);
    let ready = gateway.ready();
    if allocated.is_none() && ready.is_none() {
        let message = "the controller has written no condition: does it run, and with --enable-lb-svc?";
        all.add(Step::Service, "NotAnswered", message);
    }
    if let Some(described) = gateway.described {
        let message = format!(
            "the conditions are about generation {described} of the Service, which has been changed since"
        );
        all.add(Step::Service, "SpecNotSeen", message);
    }
    if let Some(condition) = allocated.filter(|condition| !condition.status) {
        all.add(Step::Claim, &condition.reason, condition.message.as_str());
    }
    if let Some(condition) = ready.filter(|condition| !condition.status) {
        let step = match gateway.pods().iter().any(|pod| pod.ready) {
            true => Step::Kernel,
            false => Step::Pods,
        };
        all.add(step, &condition.reason, condition.message.as_str());
    }
    let of_state = |reason: &str| LIMITS_OF_STATE.iter().any(|limit| limit.as_str() == reason);
    if let Some(condition) = gateway.condition(LIMITED).filter(|condition| of_state(&condition.reason)) {
        all.add(Step::Kernel, &condition.reason, condition.message.as_str());
    }
}

fn claim(gateway: &Gateway, cluster: &Cluster, all: &mut Findings) {
    let is_said = gateway.condition(ADDRESS_ALLOCATED).filter(|condition| condition.status);
    match gateway.claim() {
        None => {
            if let Some(condition) = is_said.filter(|_| cluster.claims.is_whole()) {
                let message = format!(
                    "{}, says the condition, but no IP object of this Service is there",
                    condition.message
                );
                all.add(Step::Claim, "ClaimMissing", message);
            }
        }
        Some(claim) => {
            if !claim.conflict.is_empty() {
                let message = format!(
                    "{} is in use by the host with the hardware address {}",
                    claim.address, claim.conflict
                );
                all.add(Step::Claim, Reason::AddressConflict.as_str(), message);
            }
            let problem = conditions::out_of_range(claim, &gateway.observed.addresses);
            if let Some(problem) = problem.filter(|_| cluster.subnets.is_whole()) {
                all.problem(Step::Claim, &problem);
            }
        }
    }
}

/// The attachment, the ConfigMap and the Deployment.
fn objects(gateway: &Gateway, cluster: &Cluster, depth: Depth, all: &mut Findings) {
    let observed = &gateway.observed;
    let objects = &observed.gateway;
    let location = &objects.location;
    let provider = gateway.claim().map(|claim| claim.provider.multus_name()).unwrap_or_default();
    match &observed.attachment {
        None if cluster.attachments.is_whole() => all.add(
            Step::Configuration,
            Reason::AttachmentNotFound.as_str(),
            format!("there is no NetworkAttachmentDefinition {provider}"),
        ),
        Some(attachment) => {
            if let Some(fault) = &attachment.fault {
                let message = format!("NetworkAttachmentDefinition {provider}: {fault}");
                all.add(Step::Configuration, Reason::AttachmentInvalid.as_str(), message);
            }
        }
        None => {}
    }
    if depth == Depth::Contents && cluster.configs.is_whole() {
        match &objects.config {
            None => {
                all.add(Step::Configuration, "ConfigMapMissing", format!("there is no ConfigMap {location}"));
            }
            Some(config) => {
                if let Err(message) = follows(&config.content, gateway) {
                    all.add(
                        Step::Configuration,
                        "ConfigMapOutdated",
                        format!("ConfigMap {location}: {message}"),
                    );
                }
                if let Some(Err(unsealed)) = seal(gateway, cluster) {
                    let message = format!("ConfigMap {location}: {unsealed}: its pods do not carry it out");
                    all.add(Step::Configuration, "ConfigMapUnsigned", message);
                }
            }
        }
    }
    match &objects.deployment {
        None if cluster.deployments.is_whole() => {
            all.add(Step::Configuration, "DeploymentMissing", format!("there is no Deployment {location}"));
        }
        Some(deployment) => {
            if let Some(failure) = &deployment.content.failure {
                let message = format!("Deployment {location}: {failure}");
                all.add(Step::Pods, Reason::PodRefused.as_str(), message);
            }
        }
        None => {}
    }
}

/// Whether a ConfigMap's content has the Service's address and ports.
///
/// # Errors
/// What it has not.
fn follows(content: &str, gateway: &Gateway) -> Result<(), String> {
    let config: GatewayConfig =
        serde_json::from_str(content).map_err(|error| format!("config.json cannot be read: {error}"))?;
    if let Some(claim) = gateway.claim()
        && !config.addresses.iter().any(|served| served.address == claim.address)
    {
        return Err(format!("it does not have the address {}", claim.address));
    }
    let ports = gateway.observed.service.iter().flat_map(|service| &service.ports);
    let asked =
        ports.filter_map(|port| Some(Port { protocol: spec::transport(&port.protocol)?, port: port.port }));
    let has = |port: &Port| config.frontends.iter().any(|frontend| frontend.ports.contains(port));
    match asked.into_iter().find(|port| !has(port)) {
        Some(port) => Err(format!("it does not have the port {}/{}", port.port, port.protocol.name())),
        None => Ok(()),
    }
}

/// The generation of a gateway's ConfigMap as its pods judge it: by the keys in the
/// Deployment's pod template. `None` where they ask for no signature.
pub fn seal(gateway: &Gateway, cluster: &Cluster) -> Option<Result<u64, Unsealed>> {
    let objects = &gateway.observed.gateway;
    let trusted = manifests::trusted_keys(&objects.deployment.as_ref()?.content.live)?;
    let location = &objects.location;
    let config = cluster.configs.get(&location.namespace, &location.name())?;
    let text = config.data.as_ref().and_then(|data| data.get(names::SEAL_KEY));
    let uid = gateway.observed.service.as_ref()?.id.uid.clone();
    let read = |part: &str| Some(config.data.as_ref()?.get(part)?.clone().into_bytes());
    let opened = text.ok_or(Unsealed::Missing).and_then(|text| Seal::open(text.as_bytes(), &trusted));
    Some(opened.and_then(|seal| seal.verify(&uid, read).map(|()| seal.generation)))
}

fn pods(gateway: &Gateway, cluster: &Cluster, all: &mut Findings) {
    if !cluster.pods.is_whole() {
        return;
    }
    let pods = gateway.pods();
    if pods.is_empty() && gateway.observed.gateway.deployment.is_some() {
        all.add(Step::Pods, "PodMissing", "the Deployment has no pod");
    }
    let unready: Vec<String> = pods.iter().filter(|pod| !pod.ready).map(|pod| why_unready(pod)).collect();
    if unready.is_empty() {
        return;
    }
    // The condition may have said why.
    if all.0.iter().any(|known| known.step == Step::Pods) {
        return;
    }
    let (reason, message) = match pods.iter().any(|pod| pod.ready) {
        false => ("PodNotReady", format!("no pod of the gateway is ready: {}", unready.join("; "))),
        true => {
            let ready = pods.len() - unready.len();
            let message =
                format!("{ready} of {} pods of the gateway are ready: {}", pods.len(), unready.join("; "));
            (Reason::StandbyMissing.as_str(), message)
        }
    };
    all.add(Step::Pods, reason, message);
}

/// Why a pod is not ready.
pub fn why_unready(pod: &Pod) -> String {
    let on = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let why = match &pod.waiting {
        Some((reason, message)) => format!("{reason}: {message}"),
        None if pod.node_lost => "its node is gone".to_owned(),
        None if pod.node.is_none() => "it has no node yet".to_owned(),
        None if pod.mac.is_none() => "it has no interface on the attachment yet".to_owned(),
        None => "its readiness probe fails, see its log".to_owned(),
    };
    format!("{}{on}: {why}", pod.name)
}

fn announcement(gateway: &Gateway, cluster: &Cluster, all: &mut Findings) {
    let (Some(service), Some(claim)) = (&gateway.observed.service, gateway.claim()) else { return };
    if !gateway.is_served() {
        return;
    }
    if !service.has_ingress(claim.address) {
        let message =
            format!("the gateway is ready, and status.loadBalancer does not have {}", claim.address);
        all.add(Step::Announcement, "IngressMissing", message);
    }
    if gateway.active().is_none() && cluster.pods.is_whole() && !gateway.pods().is_empty() {
        let message = match claim.mac.as_str() {
            "" => "the claim does not say which pod answers for the address".to_owned(),
            mac => format!(
                "the claim says that {mac} answers for the address, which no living pod of the gateway has: it moves, or the controller has not asked since"
            ),
        };
        all.add(Step::Announcement, "ActiveUnknown", message);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kube::ResourceExt;
    use lb_svc_crds::seal::PrivateKey;
    use serde_json::json;

    use super::*;
    use crate::cluster::Seen;
    use crate::documents;
    use crate::view::View;

    fn cluster() -> Cluster {
        let mut cluster = Cluster { now: Timestamp::UNIX_EPOCH, ..Cluster::default() };
        documents::add(&mut cluster, include_str!("../tests/golden/cluster.yaml"), "default").unwrap();
        cluster
    }

    /// The first object of a kind that has to do with Service `name`.
    fn of<'a, K: ResourceExt>(seen: &'a mut Seen<K>, name: &str) -> &'a mut K {
        let Seen::All(objects) = seen else { panic!("none is seen") };
        objects.iter_mut().find(|object| object.name_any().contains(name)).unwrap()
    }

    /// What is found wrong with Service shop/web after this change, by reason.
    fn found(change: impl FnOnce(&mut Cluster)) -> Vec<String> {
        let mut cluster = cluster();
        change(&mut cluster);
        let view = View::of(&cluster);
        let gateways = view.gateways(Some("shop"));
        let web = gateways.iter().find(|gateway| gateway.service.name == "web").unwrap();
        findings(web, &cluster, Depth::Contents).into_iter().map(|finding| finding.reason).collect()
    }

    fn none<K>() -> Seen<K> {
        Seen::All(Vec::new())
    }

    #[test]
    fn served_service_has_no_finding() {
        assert!(found(|_| {}).is_empty());
    }

    #[test]
    fn object_that_is_missing_is_found_unless_its_kind_is_not_seen() {
        assert_eq!(found(|cluster| cluster.claims = none()), ["ClaimMissing"]);
        assert_eq!(found(|cluster| cluster.configs = none()), ["ConfigMapMissing"]);
        assert_eq!(found(|cluster| cluster.deployments = none()), ["DeploymentMissing"]);
        assert_eq!(found(|cluster| cluster.pods = none()), ["PodMissing"]);
        assert_eq!(found(|cluster| cluster.attachments = none()), ["AttachmentNotFound"]);
        assert_eq!(found(|cluster| cluster.subnets = none()), ["AddressNotInSubnet"]);
        assert_eq!(found(|cluster| cluster.slices = none()), ["NoReadyEndpoint"]);
        let unseen = found(|cluster| {
            (cluster.claims, cluster.configs, cluster.deployments) = (Seen::Not, Seen::Not, Seen::Not);
            (cluster.pods, cluster.attachments) = (Seen::Not, Seen::Not);
            (cluster.subnets, cluster.slices) = (Seen::Not, Seen::Not);
        });
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn objects_that_contradict_one_another_are_found() {
        let moved =
            found(|cluster| of(&mut cluster.claims, "172.18.0.2").spec.mac_address = "02:0:0:0:0:ff".into());
        assert_eq!(moved, ["ActiveUnknown"]);
        let taken =
            found(|cluster| of(&mut cluster.claims, "172.18.0.2").spec.conflict = "02:0:0:0:0:ff".into());
        assert_eq!(taken, ["AddressConflict"]);
        let withdrawn = found(|cluster| {
            of(&mut cluster.services, "web").status.as_mut().unwrap().load_balancer = None;
        });
        assert_eq!(withdrawn, ["IngressMissing"]);
        let changed = found(|cluster| {
            let ports = of(&mut cluster.services, "web").spec.as_mut().unwrap().ports.as_mut().unwrap();
            ports[0].port = 443;
        });
        assert_eq!(changed, ["ConfigMapOutdated"]);
        let edited = found(|cluster| of(&mut cluster.services, "web").metadata.generation = Some(7));
        assert_eq!(edited, ["SpecNotSeen"]);
    }

    #[test]
    fn pod_that_the_deployment_did_not_make_is_no_pod_of_the_gateway() {
        let forged = found(|cluster| {
            let active = of(&mut cluster.pods, "web-6f9d-aaaaa");
            active.metadata.owner_references.as_mut().unwrap()[0].kind = "Job".into();
        });
        assert_eq!(forged, ["ActiveUnknown"]);
    }

    #[test]
    fn config_map_is_judged_by_the_keys_that_pods_trust() {
        let key = PrivateKey::from_seed(&[7; 32]).unwrap();
        let signed = |seal: Option<Seal>| {
            found(|cluster| {
                let spec = of(&mut cluster.deployments, "web").spec.as_mut().unwrap();
                let env =
                    json!([{ "name": names::TRUSTED_KEYS_VARIABLE, "value": key.public().to_string() }]);
                spec.template.spec.as_mut().unwrap().containers[0].env = serde_json::from_value(env).unwrap();
                let data = of(&mut cluster.configs, "web").data.as_mut().unwrap();
                if let Some(seal) = seal {
                    data.insert(names::SEAL_KEY.to_owned(), key.sign(&seal));
                }
            })
        };
        let mut cluster = cluster();
        let content = of(&mut cluster.configs, "web").data.as_ref().unwrap()[names::CONFIG_KEY].clone();
        let seal = |gateway: &str, content: &str| Some(Seal::of_config(gateway, 3, content.as_bytes()));
        assert!(signed(seal("uid-1", &content)).is_empty());
        for wrong in [None, seal("uid-2", &content), seal("uid-1", "other")] {
            assert_eq!(signed(wrong), ["ConfigMapUnsigned"]);
        }
    }

    #[test]
    fn limit_that_a_service_asks_for_itself_is_no_finding() {
        let limited = |reason: &str| {
            found(|cluster| {
                let status = of(&mut cluster.services, "web").status.as_mut().unwrap();
                let mut limit = status.conditions.as_ref().unwrap()[1].clone();
                (limit.type_, limit.reason) = (LIMITED.to_owned(), reason.to_owned());
                status.conditions.as_mut().unwrap().push(limit);
            })
        };
        assert_eq!(limited("RouterSilent"), ["RouterSilent"]);
        assert!(limited("ClientAddressHidden").is_empty());
    }
}
