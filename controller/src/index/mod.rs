//! All that the watches have shown, and which keys a change concerns.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use lb_svc_core::backend::readiness_gate::Verdict;
use lb_svc_core::gateway::config;
use lb_svc_core::ipam::{Allocator, Claim};
use lb_svc_core::model::{
    Attachment, Backend, GatewayLocation, GatewayRef, Node, ObjectKind, ObjectName, OwnedObject, PodId,
    Service, ServiceRef, Subnet,
};
use lb_svc_core::node_mode::claim::PortClaims;
use lb_svc_core::node_mode::request::{Mode, mode};
use lb_svc_core::observed::{Observed, ObservedAddresses, ObservedEndpoints, ObservedGateway, SealState};
use lb_svc_core::service::allocation;
use lb_svc_core::service::spec::is_direct;
use lb_svc_crds::seal::PublicKey;
use tokio::sync::watch;

use endpoint_slices::EndpointSlices;
use gateways::{CompactDeployment, GatewayObjects};
use node_mode::Publishers;
use nodes::Nodes;
use versions::Versions;

mod backends;
mod endpoint_slices;
mod gateways;
mod key;
mod node_mode;
mod nodes;
mod rollouts;
mod subnets;
pub mod versions;

#[cfg(test)]
pub(crate) use gateways::FOREIGN_FOR;
pub use key::Key;

/// The cluster as last seen. Synchronous, no IO: callers hold its lock for as
/// long as a lookup takes.
#[derive(Debug, Default)]
pub struct Index {
    /// The namespace of all gateways; that of their Services if `None`.
    gateway_namespace: Option<String>,
    /// The keys that gateways' configurations are signed by; with `None` none is.
    trusted: Option<Arc<[PublicKey]>>,
    /// The kinds of gateways' objects that are seen in that namespace only.
    narrow: HashSet<TypeId>,
    services: HashMap<ServiceRef, Service>,
    gateways: HashMap<GatewayLocation, GatewayObjects>,
    subnets: BTreeMap<String, Subnet>,
    attachments: HashMap<ObjectName, Attachment>,
    nodes: Nodes,
    /// All namespaces, once the first whole list was seen.
    namespaces: Option<BTreeSet<String>>,
    foreign: HashMap<(ObjectKind, GatewayRef), Instant>,
    /// The Services that wait for an address.
    address_pending: BTreeSet<ServiceRef>,
    /// The gateways whose Deployment is being rolled out.
    rolling: HashSet<GatewayRef>,
    /// The gateways with a reserved slot: about to be rolled out, or moving; since
    /// when.
    reserved: HashMap<GatewayRef, Instant>,
    /// The gateways that ran when they were rolled out as one of many, and have
    /// not been seen to run since.
    rolled_out: BTreeSet<GatewayRef>,
    /// The number of gateways that run with each template, by its hash.
    proven: HashMap<String, usize>,
    /// The gateways that wait for a slot.
    queued: BTreeSet<GatewayRef>,
    /// The Services with direct access to their endpoints.
    direct: BTreeSet<ServiceRef>,
    /// The Services that ask for node addresses.
    at_nodes: BTreeSet<ServiceRef>,
    /// Whether there has been any of these.
    needs_pods: watch::Sender<bool>,
    /// The nodes as they serve those.
    serving_nodes: Arc<BTreeMap<String, Node>>,
    publishers: Publishers,
    port_claims: PortClaims,
    slices: EndpointSlices,
    /// The pods with our readiness gate.
    backends: BTreeMap<ObjectName, Backend>,
    /// The verdicts on those that wait.
    verdicts: HashMap<ServiceRef, BTreeMap<PodId, Verdict>>,
    /// The newest version seen of each object.
    pub versions: Versions,
    /// The allocator of addresses.
    pub allocator: Allocator,
}

impl Index {
    /// An empty index; gateways are to be in this namespace, or with `None` in that
    /// of their Services.
    pub fn new(gateway_namespace: Option<String>) -> Self {
        Self { gateway_namespace, ..Self::default() }
    }

    /// From now on gateways' configurations are signed, by one of these keys.
    pub fn trust(&mut self, keys: &[PublicKey]) {
        self.trusted = Some(keys.into());
    }

    /// From now on gateways' objects of kind `K` are seen in the gateway namespace
    /// only.
    pub fn set_narrow<K: 'static>(&mut self) {
        self.narrow.insert(TypeId::of::<K>());
    }

    /// All gateways' objects of kind `K` have been seen, in every namespace.
    pub fn set_wide<K: 'static>(&mut self) -> Vec<Key> {
        if !self.narrow.remove(&TypeId::of::<K>()) || !self.narrow.is_empty() {
            return Vec::new();
        }
        let is_apart = |claim: &&Claim| Some(&claim.gateway_namespace) != self.gateway_namespace.as_ref();
        self.allocator.claims().filter(is_apart).map(|claim| self.key_of(&claim.owner.service)).collect()
    }

    /// Whether any Service so far concerns pods that are no gateway's; followed.
    pub fn needs_pods(&self) -> watch::Receiver<bool> {
        self.needs_pods.subscribe()
    }

    /// A Service as last seen.
    pub fn service(&self, name: &ServiceRef) -> Option<&Service> {
        self.services.get(name)
    }

    /// Everything that concerns a gateway and the Service that it is dedicated to: these
    /// are planned together.
    pub fn observe(&self, gateway: &GatewayRef, now: Instant) -> Observed {
        let GatewayRef::Dedicated(service) = gateway;
        let wall = Timestamp::now();
        let claims = self.allocator.claims_of(service);
        let networks = claims
            .iter()
            .filter_map(|claim| Some((claim.subnet.clone(), self.allocator.network(&claim.subnet)?.clone())))
            .collect();
        let seen = self.services.get(service);
        let attachment = seen
            .and_then(|service| allocation::provider(service, &claims))
            .and_then(|provider| self.attachments.get(&(provider.namespace, provider.name)));
        let location = self.location(gateway, &claims);
        let desired_namespace = self.desired_namespace(gateway).to_owned();
        let objects = self.gateways.get(&location);
        let is_in_place = location.namespace == desired_namespace;
        let foreign = || is_in_place.then_some(gateway);
        let generation = objects.and_then(|objects| objects.generation);
        let seal = self.trusted.clone().map(|trusted| SealState { generation, trusted });
        let rollouts = self.rollouts(gateway, now);
        let gateway = ObservedGateway {
            config: objects
                .and_then(|objects| objects.config.clone())
                .or_else(|| self.foreign(ObjectKind::Config, foreign()?, now)),
            seal,
            deployment: objects
                .and_then(|objects| objects.deployment.clone())
                .map(|object| object.map(CompactDeployment::expand))
                .or_else(|| self.foreign(ObjectKind::Deployment, foreign()?, now)),
            budget: objects
                .and_then(|objects| objects.budget.clone())
                .or_else(|| self.foreign(ObjectKind::Budget, foreign()?, now)),
            pods: objects
                .into_iter()
                .flat_map(|objects| objects.pods.values())
                .map(|seen| self.on_node(seen))
                .collect(),
            is_visible: self.sees(&location.namespace),
            location,
            desired_namespace,
        };
        let kept_before = self.kept_before(service, &claims);
        let is_given_away =
            seen.is_some_and(|service| self.is_given_away(service, &claims, gateway.own_config()));
        Observed {
            service: seen.cloned(),
            addresses: ObservedAddresses {
                claims,
                networks,
                is_given_away,
                kept_before,
                is_namespace_gone: self.is_namespace_gone(&service.namespace),
                ..ObservedAddresses::default()
            },
            attachment: attachment.cloned(),
            endpoints: ObservedEndpoints {
                slices: self.slices.of(service).cloned().collect(),
                gated_pods: self.gated_pods(&service.namespace, wall),
            },
            nodes: self.observe_nodes(service),
            gateway,
            rollouts,
            now: wall,
            ..Observed::default()
        }
    }

    /// The Service waits for an address, or no longer does.
    pub fn set_address_pending(&mut self, service: &ServiceRef, pending: bool) {
        if pending {
            self.address_pending.insert(service.clone());
        } else {
            self.address_pending.remove(service);
        }
    }

    /// How many Services wait for an address.
    pub fn services_waiting(&self) -> usize {
        self.address_pending.len()
    }

    /// Every key there is a reason to look at, for the first run.
    pub fn keys(&self) -> Vec<Key> {
        let owners = self.allocator.claims().map(|claim| &claim.owner.service);
        let owners = owners.chain(self.port_claims.all().map(|claim| &claim.owner.service));
        let services: BTreeSet<&ServiceRef> = self.services.keys().chain(owners).collect();
        let gateways: BTreeSet<GatewayRef> = services
            .into_iter()
            .map(|service| self.gateway_of(service))
            .chain(self.gateways.keys().map(|location| location.gateway.clone()))
            .collect();
        let subnets = self.subnets.keys().map(|name| Key::Subnet(name.clone()));
        let gateways = gateways.into_iter().map(Key::Gateway);
        let backends = self.backends.keys().map(|name| Key::Backend(name.clone()));
        gateways.chain(subnets).chain(backends).collect()
    }

    /// Whether another than `service`, which has none of `claims`, claims an
    /// address that the gateway with this ConfigMap serves.
    fn is_given_away(
        &self,
        service: &Service,
        claims: &[Claim],
        config: Option<&OwnedObject<String>>,
    ) -> bool {
        // All claims are looked through, which is seldom: they vanish with the CRDs.
        if claims.iter().any(|claim| claim.owner.uid == service.id.uid) {
            return false;
        }
        let served = config::addresses(config);
        !served.is_empty() && self.allocator.claims().any(|claim| served.contains(&claim.address))
    }

    fn waiting_keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.address_pending.iter().map(|service| self.key_of(service))
    }

    // === what the watches show; each returns whom it concerns ===

    /// A Service is so; `None` if it is gone.
    pub fn set_service(&mut self, name: ServiceRef, service: Option<Service>) -> Vec<Key> {
        let gateway = self.key_of(&name);
        let is_direct = service.as_ref().is_some_and(is_direct);
        let is_at_nodes = service.as_ref().is_some_and(|service| mode(service) != Mode::Gateway);
        for (services, is_one) in [(&mut self.direct, is_direct), (&mut self.at_nodes, is_at_nodes)] {
            if is_one {
                services.insert(name.clone());
                self.needs_pods.send_if_modified(|known| !std::mem::replace(known, true));
            } else {
                services.remove(&name);
            }
        }
        let changed = match service {
            Some(service) => {
                let known = self.services.insert(name, service.clone());
                known.as_ref() != Some(&service)
            }
            None => {
                self.address_pending.remove(&name);
                self.services.remove(&name).is_some()
            }
        };
        concerns(changed, gateway)
    }

    /// The names known of one kind, to find what a new list no longer shows.
    pub fn known_services(&self) -> Vec<ServiceRef> {
        self.services.keys().cloned().collect()
    }
}

fn concerns(changed: bool, key: Key) -> Vec<Key> {
    if changed { vec![key] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use lb_svc_core::gateway::assignment::gateway_of;
    use lb_svc_core::gateway::manifests::PROGRESS_DEADLINE;
    use lb_svc_core::gateway::rollout::{MAX_CONCURRENT_ROLLOUTS, Rollout};
    use lb_svc_core::ipam::{AddressRequest, Reservation, claim};
    use lb_svc_core::model::{DeploymentState, Ingress, Pod, ServiceId};
    use lb_svc_crds::names;

    use serde_json::json;

    use crate::signing::{Seed, SigningKeys};

    use super::backends::PASSES_WITHIN;
    use super::*;
    use crate::api_server::read;
    use crate::api_server::write::typed;

    fn service(n: usize) -> ServiceRef {
        ServiceRef::new("default", &format!("s{n}"))
    }

    fn gateway(n: usize) -> GatewayRef {
        gateway_of(&service(n))
    }

    /// Gateway `n`'s Deployment, on its way or not.
    fn location(n: usize) -> GatewayLocation {
        GatewayLocation { gateway: gateway(n), namespace: "default".into() }
    }

    /// Its Service exists, and its Deployment is so.
    fn show(index: &mut Index, n: usize, rolling: bool) -> Vec<Key> {
        index.set_service(service(n), Some(lb_svc_core::testing::service()));
        let content = DeploymentState { rolling, ..DeploymentState::default() };
        let child = OwnedObject {
            uid: format!("d{n}"),
            resource_version: "1".into(),
            deleting: false,
            gateway_id: Some(format!("u{n}").into()),
            content,
        };
        index.set_deployment(location(n), Some(child))
    }

    fn show_rolling_without_service(index: &mut Index) {
        for n in 0..MAX_CONCURRENT_ROLLOUTS {
            let content = DeploymentState { rolling: true, ..DeploymentState::default() };
            let (uid, resource_version, gateway_id) =
                (format!("d{n}"), "1".to_owned(), Some(format!("u{n}").into()));
            let child = OwnedObject { uid, resource_version, deleting: false, gateway_id, content };
            index.set_deployment(location(n), Some(child));
        }
    }

    fn is_free(index: &Index, n: usize) -> bool {
        index.observe(&gateway(n), Instant::now()).rollouts.others < MAX_CONCURRENT_ROLLOUTS
    }

    fn claim_of(owner: &ServiceId, address: &str, namespace: &str) -> Claim {
        let request = AddressRequest {
            owner: owner.clone(),
            provider: "lan.kube-system".parse().unwrap(),
            subnet: None,
            address: None,
            keep: false,
            limit: None,
        };
        let address = address.parse().unwrap();
        let name = request.provider.claim_name(address);
        let reservation = Reservation { name, subnet: "lan".into(), address };
        read::claim(&typed(claim::manifest(&request, &reservation, namespace)).unwrap()).unwrap()
    }

    #[test]
    fn r14_only_a_gateways_own_hardware_addresses_are_on_their_way_out() {
        let mut index = Index::new(None);
        let pod = |mac: &str| Pod { mac: Some(mac.to_owned()), of_deployment: true, ..Pod::default() };
        for (n, mac) in [(0, "02:00:00:00:00:01"), (1, "02:00:00:00:00:02")] {
            show(&mut index, n, false);
            index.set_pod(location(n), "gw", Some(pod(mac)));
        }
        assert!(index.is_mac_of(&gateway(0), "02:00:00:00:00:01"));
        assert!(!index.is_mac_of(&gateway(0), "02:00:00:00:00:02"), "another's has the address");
    }

    #[test]
    fn r5_kept_addresses_are_counted_and_go_with_their_namespace() {
        let mut index = Index::new(None);
        let kept = |n: usize| {
            let owner = ServiceId { service: service(n), uid: format!("u{n}") };
            Claim { keep: true, ..claim_of(&owner, &format!("172.18.0.{}", 10 + n), "default") }
        };
        for n in 0..4 {
            index.set_claim(kept(n));
        }
        // Two Services are there, two are gone; those come first.
        for n in [0, 2] {
            index.set_service(service(n), Some(lb_svc_core::testing::service()));
        }
        let before = |n| index.observe(&gateway(n), Instant::now()).addresses.kept_before;
        assert_eq!([0, 1, 2, 3].map(before), [2, 0, 3, 1]);
        // One that asks anew takes the place of none.
        let mut asks = lb_svc_core::testing::service();
        asks.annotations.insert(names::KEEP_ADDRESS_ANNOTATION.to_owned(), "true".to_owned());
        let new = ServiceRef::new("default", "a");
        index.set_service(new.clone(), Some(asks));
        let observed = index.observe(&gateway_of(&new), Instant::now());
        assert_eq!(observed.addresses.kept_before, 4);

        let gone = |index: &Index| index.observe(&gateway(1), Instant::now()).addresses.is_namespace_gone;
        assert!(!gone(&index), "no namespace was seen yet");
        assert_eq!(index.set_namespaces(["default".to_owned()].into()), []);
        assert!(!gone(&index));
        assert_eq!(index.set_namespace("other", false), []);
        let keys = index.set_namespace("default", false);
        assert!(gone(&index) && keys.contains(&Key::Gateway(gateway_of(&service(1)))));
        index.set_namespace("default", true);
        assert!(!gone(&index));
        assert_eq!(index.set_namespaces(BTreeSet::new()).len(), 4, "it went between two lists");
    }

    #[test]
    fn gateway_is_where_its_claim_says_until_it_is_gone() {
        let beside = location(0);
        let config = |uid: &str| {
            let (uid, gateway_id) = (uid.to_owned(), Some("u0".into()));
            Some(OwnedObject {
                uid,
                resource_version: "1".into(),
                deleting: false,
                gateway_id,
                content: String::new(),
            })
        };
        let owner = ServiceId { service: service(0), uid: "u0".into() };
        let claim = |namespace: &str| claim_of(&owner, "172.18.0.11", namespace);
        let at = |index: &Index| {
            let observed = index.observe(&gateway(0), Instant::now());
            (observed.gateway.location.namespace, observed.gateway.is_visible)
        };
        let mut index = Index::new(Some("gateways".into()));
        index.set_config(beside.clone(), config("theirs"), None);
        assert_eq!(at(&index), ("gateways".into(), true), "who says so is not believed");
        index.set_claim(claim("default"));
        assert_eq!(at(&index), ("default".into(), true));
        index.set_config(beside.clone(), None, None);
        let pod = |finished| Pod { finished, ..Pod::default() };
        index.set_pod(beside.clone(), "gw", Some(pod(false)));
        assert_eq!(at(&index), ("default".into(), true), "the pod answers still");
        index.set_pod(beside, "gw", Some(pod(true)));
        assert_eq!(at(&index), ("gateways".into(), true));
        index.set_narrow::<Pod>();
        index.set_narrow::<ObservedGateway>();
        assert_eq!(at(&index), ("default".into(), false), "whether it is there cannot be seen");
        assert_eq!(index.set_wide::<Pod>(), [], "no part of it may be out of sight");
        assert_eq!(at(&index), ("default".into(), false));
        assert_eq!(index.set_wide::<ObservedGateway>(), [Key::Gateway(gateway_of(&service(0)))]);
        assert_eq!(at(&index), ("gateways".into(), true));
        index.set_narrow::<Pod>();
        index.set_claim(claim("gateways"));
        assert_eq!(at(&index), ("gateways".into(), true));
    }

    #[test]
    fn r23_attachment_is_that_of_the_claim_where_the_annotation_cannot_be_read() {
        let mut index = Index::new(None);
        let mut service = lb_svc_core::testing::service();
        let id = service.id.clone();
        service.annotations.insert(names::PROVIDER_ANNOTATION.into(), "nowhere".into());
        index.set_service(id.service.clone(), Some(service));
        index.set_attachment(("kube-system".into(), "lan".into()), Some(Attachment::default()));
        let found = |index: &Index| index.observe(&gateway_of(&id.service), Instant::now()).attachment;
        assert_eq!(found(&index), None);
        index.set_claim(claim_of(&id, "172.18.0.11", "default"));
        assert!(found(&index).is_some());
    }

    #[test]
    fn r32_address_served_without_a_claim_is_given_away_once_another_claims_it() {
        let mut index = Index::new(None);
        let mut service = lb_svc_core::testing::service();
        service.ingress = vec![Ingress { ip: "172.18.0.11".into(), ..Ingress::default() }];
        let (id, name) = (service.id.clone(), service.id.service.clone());
        index.set_service(name.clone(), Some(service));
        let gateway = gateway_of(&name);
        let network = json!({ "address": "172.18.0.11", "cidr": "172.18.0.0/16", "subnet": "lan" });
        let content = json!({ "version": 1, "attachment": "lan", "addresses": [network], "frontends": [] });
        let content = content.to_string();
        let (uid, gateway_id) = ("cm".to_owned(), Some(id.uid.as_str().into()));
        let config = OwnedObject { uid, resource_version: "1".into(), deleting: false, gateway_id, content };
        index.set_config(index.location(&gateway, &[]), Some(config), None);
        index.set_address_pending(&name, true);
        let given_away = |index: &Index| index.observe(&gateway, Instant::now()).addresses.is_given_away;
        assert!(!given_away(&index));

        let other = ServiceId { service: ServiceRef::new("default", "other"), uid: "uid-9".into() };
        index.set_claim(claim_of(&other, "172.18.0.12", "default"));
        assert!(!given_away(&index));
        let keys = index.set_claim(claim_of(&other, "172.18.0.11", "default"));
        assert!(given_away(&index) && keys.contains(&Key::Gateway(gateway_of(&name))), "{keys:?}");
        index.set_claim(claim_of(&id, "172.18.0.13", "default"));
        assert!(!given_away(&index), "it has one of its own");
    }

    #[test]
    fn r48_node_that_is_not_known_yet_is_not_lost() {
        let mut index = Index::default();
        let is_lost = |index: &Index, n| {
            index.observe(&gateway(n), Instant::now()).gateway.pods.iter().all(|pod| pod.node_lost)
        };
        let on = |node: &str| Some(Pod { node: Some(node.into()), ..Pod::default() });
        let node = || Some(lb_svc_core::model::Node::default());
        index.set_pod(location(0), "gw", on("gone"));
        assert!(!is_lost(&index, 0), "nodes have not been listed");
        index.begin_nodes();
        index.set_pod(location(1), "gw", on("new"));
        index.set_node("n1", node());
        index.set_pod(location(0), "gw", Some(Pod { ready: true, ..on("gone").unwrap() }));
        assert_eq!(index.complete_nodes().len(), 2);
        assert!(is_lost(&index, 0), "what was listed later than the pod does not have it");
        assert!(!is_lost(&index, 1), "the node may be newer than the list");
        index.begin_nodes();
        assert!(!is_lost(&index, 1));
        index.complete_nodes();
        assert!(is_lost(&index, 1));
        assert_eq!(index.set_node("new", node()), [Key::Gateway(gateway(1))]);
        assert!(!is_lost(&index, 1));

        index.set_pod(location(2), "gw", on("n1"));
        assert_eq!(index.set_node("n1", None), [Key::Gateway(gateway(2))]);
        assert!(is_lost(&index, 2), "it was there");
        index.set_pod(location(3), "gw", on("n1"));
        assert!(is_lost(&index, 3), "the pod is shown late");
        index.set_node("n1", node());
        assert!(!is_lost(&index, 2) && !is_lost(&index, 3), "it is back");
    }

    /// A Service that is served directly and selects `app=<name>`, if anything.
    fn direct(index: &mut Index, name: &str, selects: bool) -> ServiceRef {
        let mut service = lb_svc_core::testing::service();
        service.id.service = ServiceRef::new("default", name);
        service.annotations.insert(names::DIRECT_ACCESS_ANNOTATION.into(), "true".into());
        service.selector = if selects { [("app".into(), name.into())].into() } else { BTreeMap::new() };
        let name = service.id.service.clone();
        index.set_service(name.clone(), Some(service));
        name
    }

    fn backend(app: &str, passed: Option<Timestamp>) -> Backend {
        let (uid, labels) = ("uid-2".to_owned(), [("app".to_owned(), app.to_owned())].into());
        Backend {
            id: PodId::of(&uid),
            uid,
            labels,
            ready_except_gate: true,
            gate_satisfied_at: passed,
            gate_reported: false,
        }
    }

    #[test]
    fn gated_pod_waits_for_services_that_select_or_target_it() {
        use lb_svc_crds::gateway::Transport::Tcp;
        let mut index = Index::default();
        let pod: ObjectName = ("default".into(), "web-0".into());
        let key = Key::Backend(pod.clone());
        let slice =
            || Some(("free".to_owned(), lb_svc_core::testing::slice(&[("", Tcp, 80)], &[(2, "unready")])));
        let (web, free) = (direct(&mut index, "web", true), direct(&mut index, "free", false));
        direct(&mut index, "other", true);
        let said = |index: &Index| index.waiting_backend(&pod).map(|(_, said)| said);
        assert_eq!(index.set_backend(pod.clone(), Some(backend("web", None))), std::slice::from_ref(&key));
        assert_eq!(index.set_backend(pod.clone(), Some(backend("web", None))), [], "no news");
        assert_eq!(said(&index), Some(vec![(web.clone(), None)]), "its slice may not be there yet");
        let slice_name: ObjectName = ("default".into(), "free-1".into());
        assert_eq!(index.set_slice(&slice_name, slice()), [Key::Gateway(gateway_of(&free))]);
        assert_eq!(said(&index), Some(vec![(free.clone(), None), (web.clone(), None)]));

        let verdicts = || [(PodId::of("uid-2"), Verdict::Programmed)].into();
        assert_eq!(index.set_verdicts(&web, verdicts()), std::slice::from_ref(&key));
        assert_eq!(index.set_verdicts(&web, verdicts()), []);
        assert_eq!(said(&index), Some(vec![(free.clone(), None), (web.clone(), Some(Verdict::Programmed))]));
        assert_eq!(index.set_verdicts(&web, BTreeMap::new()), std::slice::from_ref(&key));
        index.set_service(web, None);
        assert_eq!(said(&index), Some(vec![(free.clone(), None)]));
        assert_eq!(
            (
                index.waiting_backends(),
                index.observe(&gateway_of(&free), Instant::now()).endpoints.gated_pods.len()
            ),
            (1, 1)
        );

        // It has passed: its slice says so soon.
        let (now, long_ago) = (Timestamp::now(), Timestamp::now() - PASSES_WITHIN);
        let keys = index.set_backend(pod.clone(), Some(backend("web", Some(now))));
        assert_eq!(keys, [Key::Gateway(gateway_of(&free)), key]);
        assert_eq!((said(&index), index.waiting_backends()), (None, 0));
        assert_eq!(
            index.observe(&gateway_of(&free), Instant::now()).endpoints.gated_pods,
            [(PodId::of("uid-2"), true)].into()
        );
        index.set_backend(pod.clone(), Some(backend("web", Some(long_ago))));
        assert!(
            index.observe(&gateway_of(&free), Instant::now()).endpoints.gated_pods.is_empty(),
            "then it is believed"
        );
        index.set_backend(pod, None);
        assert_eq!(index.known_backends(), []);
    }

    #[test]
    fn w5_gate_that_was_satisfied_by_a_fast_clock_is_not_believed_for_longer() {
        let mut index = Index::default();
        let backend = |satisfied_at| Backend {
            id: PodId::of("uid-2"),
            uid: "uid-2".into(),
            labels: BTreeMap::new(),
            ready_except_gate: true,
            gate_satisfied_at: Some(satisfied_at),
            gate_reported: false,
        };
        let mut gated = |satisfied_at| {
            index.set_backend(("default".into(), "p".into()), Some(backend(satisfied_at)));
            index.observe(&gateway(0), Instant::now()).endpoints.gated_pods.len()
        };
        assert_eq!((gated(Timestamp::now()), gated(Timestamp::now() + PASSES_WITHIN * 2)), (1, 0));
    }

    #[test]
    fn rollouts_are_limited_and_free_their_slots() {
        let mut index = Index::default();
        // Every one of them wants to be rolled; none is written yet.
        let reserved = (0..10).filter(|n| {
            let free = is_free(&index, *n);
            assert_eq!(
                index.set_rollout(
                    &gateway(*n),
                    if free { Rollout::Reserved } else { Rollout::Pending },
                    Instant::now()
                ),
                []
            );
            free
        });
        assert_eq!(reserved.collect::<Vec<_>>(), [0, 1, 2, 3]);
        for n in 0..MAX_CONCURRENT_ROLLOUTS {
            show(&mut index, n, true);
            assert_eq!(
                index.set_rollout(&gateway(n), Rollout::None, Instant::now()),
                [],
                "its Deployment says so itself now"
            );
        }
        // A process that starts now sees the same.
        let mut next = Index::default();
        (0..10).for_each(|n| drop(show(&mut next, n, n < MAX_CONCURRENT_ROLLOUTS)));
        assert!(!is_free(&next, 9) && is_free(&next, 0), "but for those that are rolled");

        let keys = show(&mut index, 2, false);
        assert_eq!(keys, [Key::Gateway(gateway(2)), Key::Gateway(gateway(4))]);
        // One that has no use for its turn passes it on.
        assert_eq!(index.set_rollout(&gateway(4), Rollout::None, Instant::now()), [Key::Gateway(gateway(5))]);
        // One that goes makes room as well.
        assert_eq!(
            index.set_deployment(location(0), None)[1..],
            [Key::Gateway(gateway(6)), Key::Gateway(gateway(7))]
        );
    }

    #[test]
    fn r10_seal_is_valid_for_the_gateways_own_service_and_content() {
        let keys = SigningKeys::of(&Seed::random().unwrap());
        let mut index = Index::default();
        index.trust(&keys.trusted());
        index.set_service(service(0), Some(lb_svc_core::testing::service()));
        let mut generation = |seal: Option<&str>, content: &str| {
            let (uid, gateway_id) = ("cm".to_owned(), Some("u".into()));
            let (resource_version, content) = ("1".to_owned(), content.to_owned());
            let config = OwnedObject { uid, resource_version, deleting: false, gateway_id, content };
            index.set_config(location(0), Some(config), seal);
            index.observe(&gateway(0), Instant::now()).gateway.seal.unwrap().generation
        };
        let seal = keys.seal("u", 7, b"{}");
        assert_eq!(generation(Some(&seal), "{}"), Some(7));
        assert_eq!(generation(None, "{}"), None);
        assert_eq!(generation(Some(&seal), "{ }"), None);
        assert_eq!(generation(Some(&keys.seal("v", 7, b"{}")), "{}"), None, "another gateway's");
        let others = SigningKeys::of(&Seed::random().unwrap());
        assert_eq!(generation(Some(&others.seal("u", 7, b"{}")), "{}"), None);
    }

    #[test]
    fn r3_content_is_kept_only_of_objects_of_a_gateway_that_there_is() {
        let mut index = Index::default();
        let config = || {
            let (uid, resource_version) = ("cm".to_owned(), "1".to_owned());
            let gateway_id = Some("u".into());
            Some(OwnedObject {
                uid,
                resource_version,
                deleting: false,
                gateway_id,
                content: "x".repeat(1 << 20),
            })
        };
        let kept =
            |index: &Index| index.observe(&gateway(0), Instant::now()).gateway.config.unwrap().content.len();
        index.set_config(location(0), config(), None);
        show_rolling_without_service(&mut index);
        assert_eq!(kept(&index), 0);
        assert!(is_free(&index, 9), "a Deployment that is nobody's takes no turn of a roll-out");
        index.set_service(service(0), Some(lb_svc_core::testing::service()));
        index.set_config(location(0), config(), None);
        assert_eq!(kept(&index), 1 << 20);
    }

    #[test]
    fn stuck_rollout_frees_its_slot_after_the_deadline() {
        let mut index = Index::default();
        let start = Instant::now();
        for n in 0..MAX_CONCURRENT_ROLLOUTS {
            index.set_rollout(&gateway(n), Rollout::Moving, start);
        }
        assert_eq!(index.set_rollout(&gateway(9), Rollout::Pending, start), []);
        let free =
            |index: &Index, now| index.observe(&gateway(9), now).rollouts.others < MAX_CONCURRENT_ROLLOUTS;
        // That it says so again is no news.
        let soon = start + PROGRESS_DEADLINE / 2;
        assert_eq!(index.set_rollout(&gateway(0), Rollout::Moving, soon), []);
        assert!(!free(&index, soon));
        let late = start + PROGRESS_DEADLINE;
        assert_eq!(index.set_rollout(&gateway(0), Rollout::Moving, late), [Key::Gateway(gateway(9))]);
        assert!(free(&index, late));
    }
}
