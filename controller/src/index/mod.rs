//! All that the watches have shown, and who is concerned when it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lb_svc_core::backend::readiness_gate::{Said, Verdict};
use lb_svc_core::gateway::manifests::PROGRESS;
use lb_svc_core::gateway::rollout::ROLLS_AT_ONCE;
use lb_svc_core::ipam::{Claim, Ledger};
use lb_svc_core::model::{
    Attachment, Backend, Child, DeploymentView, Node, ObjectName, Part, Place, Pod, PodId, Service,
    ServiceRef, Slice, Subnet,
};
use lb_svc_core::service::plan::Observed;
use lb_svc_core::service::spec::is_direct;
use lb_svc_crds::names::{self, Provider};
use serde_json::Value;

use endpoint_slices::Slices;
use versions::Versions;

mod endpoint_slices;
mod key;
pub mod versions;

pub use key::Key;

/// A Deployment as it is kept: what is compared is text here, which takes a
/// tenth of the room, and there is one for each gateway.
#[derive(Clone, Debug, PartialEq)]
struct Packed {
    failure: Option<String>,
    rolling: bool,
    live: Box<str>,
}

impl Packed {
    fn of(view: DeploymentView) -> Self {
        let DeploymentView { failure, rolling, live } = view;
        Self { failure, rolling, live: live.to_string().into() }
    }

    fn unpack(self) -> DeploymentView {
        let Self { failure, rolling, live } = self;
        // It is what was written above.
        DeploymentView { failure, rolling, live: serde_json::from_str(&live).unwrap_or_default() }
    }
}

/// What exists of one gateway.
#[derive(Debug, Default)]
struct Parts {
    config: Option<Child<String>>,
    deployment: Option<Child<Packed>>,
    budget: Option<Child<Value>>,
    pods: BTreeMap<String, Pod>,
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.config.is_none() && self.deployment.is_none() && self.budget.is_none() && self.pods.is_empty()
    }
}

/// For how long a name is believed to be taken by an object that no watch
/// shows, for it bears no label of ours. Then it is tried again, which is all
/// that shows that the name is free.
pub(crate) const FOREIGN_FOR: Duration = Duration::from_secs(5);

/// A pod that has passed our gate is in its slice as ready after this at the
/// latest. From then on that is believed: of a pod whose node is dead nothing
/// else changes.
const PASSES_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// The cluster as last seen. Synchronous, no IO: callers hold its lock for as
/// long as a lookup takes.
#[derive(Debug, Default)]
pub struct State {
    /// Where gateways are to be; beside their Services if it is `None`.
    gateway_namespace: Option<String>,
    /// Whether only that namespace can be looked into.
    narrow: bool,
    services: HashMap<ServiceRef, Service>,
    gateways: HashMap<Place, Parts>,
    subnets: BTreeMap<String, Subnet>,
    attachments: HashMap<ObjectName, Attachment>,
    nodes: HashMap<String, bool>,
    foreign: HashMap<(Part, ServiceRef), Instant>,
    waiting: BTreeSet<ServiceRef>,
    /// The gateways whose Deployment is being rolled out.
    rolling: HashSet<ServiceRef>,
    /// The gateways that are about to be rolled, or on their way elsewhere,
    /// since when.
    reserved: HashMap<ServiceRef, Instant>,
    /// The gateways that are to be rolled when others are done.
    queued: BTreeSet<ServiceRef>,
    /// The Services that ask to be served straight from their endpoints.
    direct: BTreeSet<ServiceRef>,
    slices: Slices,
    /// The pods with our readiness gate.
    backends: BTreeMap<ObjectName, Backend>,
    /// What gateways make of those that wait.
    verdicts: HashMap<ServiceRef, BTreeMap<PodId, Verdict>>,
    /// How new what is seen is.
    pub versions: Versions,
    /// Addresses.
    pub ledger: Ledger,
}

impl State {
    /// Nothing seen yet; gateways are to be in this namespace, or with `None`
    /// beside their Services.
    pub fn new(gateway_namespace: Option<String>) -> Self {
        Self { gateway_namespace, ..Self::default() }
    }

    /// From now on gateways are seen in the gateway namespace only.
    pub fn set_narrow(&mut self) {
        self.narrow = true;
    }

    /// The namespace where the gateway of `service` is to be.
    fn home<'a>(&'a self, service: &'a ServiceRef) -> &'a str {
        self.gateway_namespace.as_deref().unwrap_or(&service.namespace)
    }

    /// Whether gateways in this namespace are seen.
    fn sees(&self, namespace: &str) -> bool {
        !self.narrow || self.gateway_namespace.as_deref() == Some(namespace)
    }

    /// Where the gateway of `service` is: where a claim says, as long as there
    /// is anything of it, or may be; else where it is to be.
    fn place(&self, service: &ServiceRef, claims: &[Claim]) -> Place {
        let home = self.home(service);
        let is_there = |namespace: &str| {
            let place = Place { service: service.clone(), namespace: namespace.to_owned() };
            namespace != home
                && (!self.sees(namespace)
                    || self.gateways.get(&place).is_some_and(|parts| {
                        let could_answer = |pod: &Pod| self.on_node(pod).could_answer();
                        parts.config.is_some()
                            || parts.deployment.is_some()
                            || parts.budget.is_some()
                            || parts.pods.values().any(could_answer)
                    }))
        };
        let said = claims.iter().map(|claim| claim.gateway_namespace.as_str());
        let namespace = said.clone().find(|namespace| is_there(namespace)).unwrap_or(home);
        Place { service: service.clone(), namespace: namespace.to_owned() }
    }

    /// Everything that concerns the gateway of `service`.
    pub fn observe(&self, service: &ServiceRef, now: Instant) -> Observed {
        let wall = Timestamp::now();
        let claims = self.ledger.claims_of(service);
        let networks = claims
            .iter()
            .filter_map(|claim| Some((claim.subnet.clone(), self.ledger.network(&claim.subnet)?.clone())))
            .collect();
        let seen = self.services.get(service);
        let attachment = seen
            .and_then(|service| service.annotations.get(names::PROVIDER_ANNOTATION))
            .and_then(|provider| provider.parse::<Provider>().ok())
            .and_then(|provider| self.attachments.get(&(provider.namespace, provider.name)));
        let place = self.place(service, &claims);
        let home = self.home(service).to_owned();
        let parts = self.gateways.get(&place);
        let at_home = place.namespace == home;
        let foreign = || at_home.then_some(service);
        Observed {
            service: seen.cloned(),
            claims,
            networks,
            attachment: attachment.cloned(),
            config: parts
                .and_then(|parts| parts.config.clone())
                .or_else(|| self.foreign(Part::Config, foreign()?, now)),
            deployment: parts
                .and_then(|parts| parts.deployment.clone())
                .map(|child| child.map(Packed::unpack))
                .or_else(|| self.foreign(Part::Deployment, foreign()?, now)),
            budget: parts
                .and_then(|parts| parts.budget.clone())
                .or_else(|| self.foreign(Part::Budget, foreign()?, now)),
            pods: parts
                .into_iter()
                .flat_map(|parts| parts.pods.values())
                .map(|pod| self.on_node(pod))
                .collect(),
            slices: self.slices.of(service).cloned().collect(),
            fit: self.fit(&service.namespace, wall),
            is_seen: self.sees(&place.namespace),
            namespace: place.namespace,
            home,
            rolling: self.under_way(now).filter(|other| *other != service).count(),
            now: wall,
            ..Observed::default()
        }
    }

    /// The gateway's pods, whosever they were, and the namespace they are in.
    pub fn pods(&self, service: &ServiceRef) -> (String, Vec<Pod>) {
        let place = self.place(service, &self.ledger.claims_of(service));
        let pods = self.gateways.get(&place).into_iter().flat_map(|parts| parts.pods.values());
        let pods = pods.map(|pod| self.on_node(pod)).collect();
        (place.namespace, pods)
    }

    fn backends_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectName, &'a Backend)> {
        let first = (namespace.to_owned(), String::new());
        self.backends.range(first..).take_while(move |((of, _), _)| of == namespace)
    }

    /// The pods in a namespace that are ready but for our gate, and whether they
    /// have passed it.
    fn fit(&self, namespace: &str, now: Timestamp) -> BTreeMap<PodId, bool> {
        let is_new = |passed: Timestamp| now.duration_since(passed) < PASSES_WITHIN;
        let backends = self.backends_in(namespace).map(|(_, backend)| backend);
        let fit = backends.filter(|backend| backend.fit && backend.passed.is_none_or(is_new));
        fit.map(|backend| (backend.id, backend.passed.is_some())).collect()
    }

    fn direct_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ServiceRef> {
        let first = ServiceRef::new(namespace, "");
        self.direct.range(first..).take_while(move |service| service.namespace == namespace)
    }

    /// A pod that lacks nothing but our readiness gate, and what the gateway of
    /// each Service that leads to it, or is to, makes of it.
    pub fn waiting_backend(&self, name: &ObjectName) -> Option<(&Backend, Said)> {
        let backend = self.backends.get(name).filter(|backend| backend.fit && backend.passed.is_none())?;
        // Its slice may not be there yet, so selectors count. They are no use
        // for a Service without one: its slices are written by others.
        let selects = |service: &ServiceRef| {
            let selector = self.services.get(service).map(|service| &service.selector);
            selector.is_some_and(|selector| {
                !selector.is_empty()
                    && selector.iter().all(|(key, value)| backend.labels.get(key) == Some(value))
            })
        };
        let leads = |service: &&ServiceRef| selects(service) || self.slices.have(service, backend.id);
        let said = self.direct_in(&name.0).filter(leads).map(|service| {
            let verdict = self.verdicts.get(service).and_then(|verdicts| verdicts.get(&backend.id));
            (service.clone(), verdict.cloned())
        });
        Some((backend, said.collect()))
    }

    /// How many pods lack nothing but our readiness gate.
    pub fn waiting_backends(&self) -> usize {
        self.backends.values().filter(|backend| backend.fit && backend.passed.is_none()).count()
    }

    /// What the gateway of `service` makes of the pods that wait. Returns for
    /// which of them that is news.
    pub fn set_verdicts(&mut self, service: &ServiceRef, verdicts: BTreeMap<PodId, Verdict>) -> Vec<Key> {
        let before = self.verdicts.remove(service).unwrap_or_default();
        let mut concerned = Vec::new();
        if before != verdicts {
            let is_news = |pod: &Backend| before.get(&pod.id) != verdicts.get(&pod.id);
            let news = self.backends_in(&service.namespace).filter(|(_, pod)| is_news(pod));
            concerned.extend(news.map(|(name, _)| Key::Backend(name.clone())));
        }
        if !verdicts.is_empty() {
            self.verdicts.insert(service.clone(), verdicts);
        }
        concerned
    }

    /// A pod, with what is known of its node.
    fn on_node(&self, pod: &Pod) -> Pod {
        let node = pod.node.as_ref();
        let node_lost = node.is_some_and(|node| self.nodes.get(node).copied().unwrap_or(true));
        Pod { node_lost, ..pod.clone() }
    }

    fn foreign<T: Default>(&self, part: Part, service: &ServiceRef, now: Instant) -> Option<Child<T>> {
        let seen = self.foreign.get(&(part, service.clone()))?;
        (now.duration_since(*seen) < FOREIGN_FOR).then(|| Child {
            uid: String::new(),
            resource_version: String::new(),
            deleting: false,
            made_for: None,
            content: T::default(),
        })
    }

    /// Someone else's object has a name that the gateway of `service` needs.
    pub fn set_foreign(&mut self, part: Part, service: &ServiceRef, now: Instant) {
        self.foreign.retain(|_, seen| now.duration_since(*seen) < FOREIGN_FOR);
        self.foreign.insert((part, service.clone()), now);
    }

    /// A Subnet as last seen.
    pub fn subnet(&self, name: &str) -> Option<&Subnet> {
        self.subnets.get(name)
    }

    /// The Service waits, or no longer waits, for an address.
    pub fn set_waiting(&mut self, service: &ServiceRef, waiting: bool) {
        if waiting {
            self.waiting.insert(service.clone());
        } else {
            self.waiting.remove(service);
        }
    }

    /// How many Services wait for an address.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What a plan says of rolling the gateway of `service`: whether it is
    /// about to be, and whether it is to be once others are done. Returns whose
    /// turn it is now.
    pub fn set_rolling(
        &mut self,
        service: &ServiceRef,
        reserved: bool,
        queued: bool,
        now: Instant,
    ) -> Vec<Key> {
        if reserved {
            self.reserved.entry(service.clone()).or_insert(now);
        } else {
            self.reserved.remove(service);
        }
        if queued {
            self.queued.insert(service.clone());
        } else {
            self.queued.remove(service);
        }
        self.next_to_roll(now)
    }

    /// The gateways that are being rolled. What comes to nothing for so long
    /// that Kubernetes would give up a Deployment, such as one that leaves a
    /// node that is lost, holds up the others no longer.
    fn under_way(&self, now: Instant) -> impl Iterator<Item = &ServiceRef> {
        let reserved = self.reserved.iter().filter(move |(service, since)| {
            !self.rolling.contains(*service) && now.duration_since(**since) < PROGRESS
        });
        self.rolling.iter().chain(reserved.map(|(service, _)| service))
    }

    /// As many of those that wait to be rolled as there is room for. Whoever
    /// still has to wait says so again.
    fn next_to_roll(&mut self, now: Instant) -> Vec<Key> {
        let room = ROLLS_AT_ONCE.saturating_sub(self.under_way(now).count());
        std::iter::from_fn(|| self.queued.pop_first()).take(room).map(Key::Gateway).collect()
    }

    /// Every key there is a reason to look at, for the first run.
    pub fn keys(&self) -> Vec<Key> {
        let owners = self.ledger.claims().map(|claim| &claim.owner.service);
        let services: BTreeSet<&ServiceRef> = self
            .services
            .keys()
            .chain(self.gateways.keys().map(|place| &place.service))
            .chain(owners)
            .collect();
        let subnets = self.subnets.keys().map(|name| Key::Subnet(name.clone()));
        let gateways = services.into_iter().map(|service| Key::Gateway(service.clone()));
        let backends = self.backends.keys().map(|name| Key::Backend(name.clone()));
        gateways.chain(subnets).chain(backends).collect()
    }

    fn waiting_keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.waiting.iter().map(|service| Key::Gateway(service.clone()))
    }

    // === what the watches show; each returns whom it concerns ===

    /// A Service is so; `None` if it is gone.
    pub fn set_service(&mut self, name: ServiceRef, service: Option<Service>) -> Vec<Key> {
        if service.as_ref().is_some_and(is_direct) {
            self.direct.insert(name.clone());
        } else {
            self.direct.remove(&name);
        }
        let changed = match service {
            Some(service) => {
                let known = self.services.insert(name.clone(), service.clone());
                known.as_ref() != Some(&service)
            }
            None => {
                self.waiting.remove(&name);
                self.services.remove(&name).is_some()
            }
        };
        concerns(changed, Key::Gateway(name))
    }

    /// A gateway's ConfigMap is so; `None` if it is gone.
    pub fn set_config(&mut self, place: Place, config: Option<Child<String>>) -> Vec<Key> {
        let parts = self.gateways.entry(place.clone()).or_default();
        let changed = parts.config != config;
        parts.config = config;
        self.tidy(&place);
        concerns(changed, Key::Gateway(place.service))
    }

    /// A gateway's Deployment is so; `None` if it is gone.
    pub fn set_deployment(&mut self, place: Place, deployment: Option<Child<DeploymentView>>) -> Vec<Key> {
        let parts = self.gateways.entry(place.clone()).or_default();
        let rolling = deployment.as_ref().is_some_and(|child| child.content.rolling && !child.deleting);
        let deployment = deployment.map(|child| child.map(Packed::of));
        let changed = parts.deployment != deployment;
        parts.deployment = deployment;
        self.tidy(&place);
        let done = if rolling {
            self.rolling.insert(place.service.clone());
            Vec::new()
        } else if self.rolling.remove(&place.service) {
            self.next_to_roll(Instant::now())
        } else {
            Vec::new()
        };
        concerns(changed, Key::Gateway(place.service)).into_iter().chain(done).collect()
    }

    /// A gateway's PodDisruptionBudget is so; `None` if it is gone.
    pub fn set_budget(&mut self, place: Place, budget: Option<Child<Value>>) -> Vec<Key> {
        let parts = self.gateways.entry(place.clone()).or_default();
        let changed = parts.budget != budget;
        parts.budget = budget;
        self.tidy(&place);
        concerns(changed, Key::Gateway(place.service))
    }

    /// A gateway's pod is so; `None` if it is gone.
    pub fn set_pod(&mut self, place: Place, name: &str, pod: Option<Pod>) -> Vec<Key> {
        let parts = self.gateways.entry(place.clone()).or_default();
        let changed = parts.pods.get(name) != pod.as_ref();
        match pod {
            Some(pod) => parts.pods.insert(name.to_owned(), pod),
            None => parts.pods.remove(name),
        };
        self.tidy(&place);
        concerns(changed, Key::Gateway(place.service))
    }

    /// An EndpointSlice is of the Service of this name, and so; `None` if it is
    /// gone.
    pub fn set_slice(&mut self, name: &ObjectName, slice: Option<(String, Slice)>) -> Vec<Key> {
        let changed = self.slices.set(name, slice).into_iter();
        changed.filter(|service| self.direct.contains(service)).map(Key::Gateway).collect()
    }

    /// A pod with our readiness gate is so; `None` if it is gone.
    pub fn set_backend(&mut self, name: ObjectName, backend: Option<Backend>) -> Vec<Key> {
        let known = self.backends.get(&name);
        if known == backend.as_ref() {
            return Vec::new();
        }
        let ids: BTreeSet<PodId> = known.into_iter().chain(&backend).map(|backend| backend.id).collect();
        let leads = |service: &&ServiceRef| ids.iter().any(|id| self.slices.have(service, *id));
        let gateways = self.direct_in(&name.0).filter(leads).map(|service| Key::Gateway(service.clone()));
        let concerned = gateways.chain([Key::Backend(name.clone())]).collect();
        match backend {
            Some(backend) => self.backends.insert(name, backend),
            None => self.backends.remove(&name),
        };
        concerned
    }

    /// Whether a gateway's interface has this hardware address.
    pub fn is_gateway_mac(&self, mac: &str) -> bool {
        let has = |pod: &Pod| pod.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac));
        self.gateways.values().flat_map(|parts| parts.pods.values()).any(has)
    }

    fn tidy(&mut self, place: &Place) {
        if self.gateways.get(place).is_some_and(Parts::is_empty) {
            self.gateways.remove(place);
        }
    }

    /// A Subnet is so; `None` if it is gone.
    pub fn set_subnet(&mut self, name: &str, subnet: Option<Subnet>) -> Vec<Key> {
        let Some(subnet) = subnet else {
            let mut concerned = self.ledger.remove_subnet(name);
            return match self.subnets.remove(name) {
                Some(_) => {
                    concerned.push(name.to_owned());
                    self.concerned_by_subnets(&concerned)
                }
                None => Vec::new(),
            };
        };
        let news = self.ledger.set_subnet(name, &subnet.spec, subnet.created, subnet.deleting);
        let changed = self.subnets.insert(name.to_owned(), subnet.clone()).as_ref() != Some(&subnet);
        if news.is_empty() {
            return concerns(changed, Key::Subnet(name.to_owned()));
        }
        self.concerned_by_subnets(&news)
    }

    /// The Subnets themselves, who holds addresses of them, and who waits.
    fn concerned_by_subnets(&self, names: &[String]) -> Vec<Key> {
        if names.is_empty() {
            return Vec::new();
        }
        let holders = self.ledger.claims().filter(|claim| names.contains(&claim.subnet));
        let holders = holders.map(|claim| Key::Gateway(claim.owner.service.clone()));
        names.iter().map(|name| Key::Subnet(name.clone())).chain(holders).chain(self.waiting_keys()).collect()
    }

    /// The watch shows this claim.
    pub fn set_claim(&mut self, claim: Claim) -> Vec<Key> {
        let keys = vec![Key::Gateway(claim.owner.service.clone()), Key::Subnet(claim.subnet.clone())];
        if self.ledger.apply(claim, true) { keys } else { Vec::new() }
    }

    /// The watch shows that these claims are gone.
    pub fn claims_gone(&self, claims: &[Claim]) -> Vec<Key> {
        let mut keys = Vec::new();
        for claim in claims {
            keys.extend([Key::Gateway(claim.owner.service.clone()), Key::Subnet(claim.subnet.clone())]);
        }
        if !claims.is_empty() {
            keys.extend(self.waiting_keys());
        }
        keys
    }

    /// A NetworkAttachmentDefinition is so; `None` if it is gone.
    pub fn set_attachment(&mut self, name: ObjectName, attachment: Option<Attachment>) -> Vec<Key> {
        let before = match &attachment {
            Some(attachment) => self.attachments.insert(name.clone(), attachment.clone()),
            None => self.attachments.remove(&name),
        };
        if before == attachment {
            return Vec::new();
        }
        let provider = Provider { namespace: name.0, name: name.1 };
        let subnets =
            self.ledger.set_wire(provider.clone(), attachment.and_then(|attachment| attachment.wire));
        let provider = provider.to_string();
        let users = self
            .services
            .iter()
            .filter(|(_, service)| service.annotations.get(names::PROVIDER_ANNOTATION) == Some(&provider));
        let users = users.map(|(name, _)| Key::Gateway(name.clone()));
        users.chain(self.concerned_by_subnets(&subnets)).collect()
    }

    /// A node is so; `None` if it is gone.
    pub fn set_node(&mut self, name: &str, node: Option<Node>) -> Vec<Key> {
        let (addresses, lost) = match node {
            Some(node) => (node.addresses, Some(node.lost)),
            None => (Vec::new(), None),
        };
        let before = match lost {
            Some(lost) => self.nodes.insert(name.to_owned(), lost),
            None => self.nodes.remove(name),
        };
        let mut keys = Vec::new();
        if before != lost {
            let on_it = |parts: &Parts| parts.pods.values().any(|pod| pod.node.as_deref() == Some(name));
            keys.extend(
                self.gateways
                    .iter()
                    .filter(|(_, parts)| on_it(parts))
                    .map(|(place, _)| Key::Gateway(place.service.clone())),
            );
        }
        if self.ledger.set_node(name, addresses) {
            keys.extend(self.subnets.keys().map(|subnet| Key::Subnet(subnet.clone())));
            keys.extend(self.waiting_keys());
        }
        keys
    }

    // === what a new list no longer shows ===

    /// The names known of one kind, to find what a new list no longer shows.
    pub fn known_services(&self) -> Vec<ServiceRef> {
        self.services.keys().cloned().collect()
    }

    /// The gateways of which there is a part of this kind.
    pub fn known_parts(&self, part: Part) -> Vec<Place> {
        let has = |parts: &Parts| match part {
            Part::Config => parts.config.is_some(),
            Part::Deployment => parts.deployment.is_some(),
            Part::Budget => parts.budget.is_some(),
        };
        self.gateways.iter().filter(|(_, parts)| has(parts)).map(|(place, _)| place.clone()).collect()
    }

    /// The gateways' pods, by place and name.
    pub fn known_pods(&self) -> Vec<(Place, String)> {
        let of = |(place, parts): (&Place, &Parts)| {
            parts.pods.keys().map(|name| (place.clone(), name.clone())).collect::<Vec<_>>()
        };
        self.gateways.iter().flat_map(of).collect()
    }

    /// The EndpointSlices' names.
    pub fn known_slices(&self) -> Vec<ObjectName> {
        self.slices.names()
    }

    /// The names of the pods with our readiness gate.
    pub fn known_backends(&self) -> Vec<ObjectName> {
        self.backends.keys().cloned().collect()
    }

    /// The Subnets' names.
    pub fn known_subnets(&self) -> Vec<String> {
        self.subnets.keys().cloned().collect()
    }

    /// The attachments' names.
    pub fn known_attachments(&self) -> Vec<ObjectName> {
        self.attachments.keys().cloned().collect()
    }

    /// The nodes' names.
    pub fn known_nodes(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }
}

fn concerns(changed: bool, key: Key) -> Vec<Key> {
    if changed { vec![key] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use lb_svc_core::ipam::claim;

    use super::*;
    use crate::api_server::read;
    use crate::api_server::write::typed;

    fn gateway(n: usize) -> ServiceRef {
        ServiceRef::new("default", &format!("s{n}"))
    }

    /// Gateway `n`'s Deployment, on its way or not.
    fn place(n: usize) -> Place {
        Place { service: gateway(n), namespace: "default".into() }
    }

    fn show(state: &mut State, n: usize, rolling: bool) -> Vec<Key> {
        let content = DeploymentView { rolling, ..DeploymentView::default() };
        let child = Child {
            uid: format!("d{n}"),
            resource_version: "1".into(),
            deleting: false,
            made_for: Some(format!("u{n}")),
            content,
        };
        state.set_deployment(place(n), Some(child))
    }

    fn is_free(state: &State, n: usize) -> bool {
        state.observe(&gateway(n), Instant::now()).rolling < ROLLS_AT_ONCE
    }

    #[test]
    fn a_gateway_is_where_its_claim_says_until_nothing_of_it_is_left() {
        let service = gateway(0);
        let beside = place(0);
        let config = |uid: &str| {
            let (uid, made_for) = (uid.to_owned(), Some("u0".to_owned()));
            Some(Child {
                uid,
                resource_version: "1".into(),
                deleting: false,
                made_for,
                content: String::new(),
            })
        };
        let claim = |namespace: &str| {
            let wish = lb_svc_core::ipam::Wish {
                owner: lb_svc_core::model::Owner { service: gateway(0), uid: "u0".into() },
                provider: "lan.kube-system".parse().unwrap(),
                subnet: None,
                address: None,
                keep: false,
            };
            let address = "172.18.0.11".parse().unwrap();
            let name = wish.provider.claim_name(address);
            let candidate = lb_svc_core::ipam::Candidate { name, subnet: "lan".into(), address };
            read::claim(&typed(claim::manifest(&wish, &candidate, namespace)).unwrap()).unwrap()
        };
        let at = |state: &State| {
            let observed = state.observe(&service, Instant::now());
            (observed.namespace, observed.is_seen)
        };
        let mut state = State::new(Some("gateways".into()));
        state.set_config(beside.clone(), config("theirs"));
        assert_eq!(at(&state), ("gateways".into(), true), "who says so is not believed");
        state.set_claim(claim("default"));
        assert_eq!(at(&state), ("default".into(), true));
        state.set_config(beside.clone(), None);
        let pod = |finished| Pod { finished, ..Pod::default() };
        state.set_pod(beside.clone(), "gw", Some(pod(false)));
        assert_eq!(at(&state), ("default".into(), true), "the pod answers still");
        state.set_pod(beside, "gw", Some(pod(true)));
        assert_eq!(at(&state), ("gateways".into(), true));
        state.set_narrow();
        assert_eq!(at(&state), ("default".into(), false), "whether it is there cannot be seen");
        state.set_claim(claim("gateways"));
        assert_eq!(at(&state), ("gateways".into(), true));
    }

    /// A Service that is served directly and selects `app=<name>`, if anything.
    fn direct(state: &mut State, name: &str, selects: bool) -> ServiceRef {
        let mut service = lb_svc_core::testing::service();
        service.owner.service = ServiceRef::new("default", name);
        service.annotations.insert(names::DIRECT_ACCESS_ANNOTATION.into(), "true".into());
        service.selector = if selects { [("app".into(), name.into())].into() } else { BTreeMap::new() };
        let name = service.owner.service.clone();
        state.set_service(name.clone(), Some(service));
        name
    }

    fn backend(app: &str, passed: Option<Timestamp>) -> Backend {
        let (uid, labels) = ("uid-2".to_owned(), [("app".to_owned(), app.to_owned())].into());
        Backend { id: PodId::of(&uid), uid, labels, fit: true, passed, told: false }
    }

    #[test]
    fn a_pod_waits_for_the_services_that_select_it_or_lead_to_it() {
        use lb_svc_crds::gateway::Transport::Tcp;
        let mut state = State::default();
        let pod: ObjectName = ("default".into(), "web-0".into());
        let key = Key::Backend(pod.clone());
        let slice =
            || Some(("free".to_owned(), lb_svc_core::testing::slice(&[("", Tcp, 80)], &[(2, "unready")])));
        let (web, free) = (direct(&mut state, "web", true), direct(&mut state, "free", false));
        direct(&mut state, "other", true);
        let said = |state: &State| state.waiting_backend(&pod).map(|(_, said)| said);
        assert_eq!(state.set_backend(pod.clone(), Some(backend("web", None))), std::slice::from_ref(&key));
        assert_eq!(state.set_backend(pod.clone(), Some(backend("web", None))), [], "no news");
        assert_eq!(said(&state), Some(vec![(web.clone(), None)]), "its slice may not be there yet");
        let slice_name: ObjectName = ("default".into(), "free-1".into());
        assert_eq!(state.set_slice(&slice_name, slice()), [Key::Gateway(free.clone())]);
        assert_eq!(said(&state), Some(vec![(free.clone(), None), (web.clone(), None)]));

        let verdicts = || [(PodId::of("uid-2"), Verdict::Taken)].into();
        assert_eq!(state.set_verdicts(&web, verdicts()), std::slice::from_ref(&key));
        assert_eq!(state.set_verdicts(&web, verdicts()), []);
        assert_eq!(said(&state), Some(vec![(free.clone(), None), (web.clone(), Some(Verdict::Taken))]));
        assert_eq!(state.set_verdicts(&web, BTreeMap::new()), std::slice::from_ref(&key));
        state.set_service(web, None);
        assert_eq!(said(&state), Some(vec![(free.clone(), None)]));
        assert_eq!((state.waiting_backends(), state.observe(&free, Instant::now()).fit.len()), (1, 1));

        // It has passed: its slice says so soon.
        let (now, long_ago) = (Timestamp::now(), Timestamp::now() - PASSES_WITHIN);
        let keys = state.set_backend(pod.clone(), Some(backend("web", Some(now))));
        assert_eq!(keys, [Key::Gateway(free.clone()), key]);
        assert_eq!((said(&state), state.waiting_backends()), (None, 0));
        assert_eq!(state.observe(&free, Instant::now()).fit, [(PodId::of("uid-2"), true)].into());
        state.set_backend(pod.clone(), Some(backend("web", Some(long_ago))));
        assert!(state.observe(&free, Instant::now()).fit.is_empty(), "then it is believed");
        state.set_backend(pod, None);
        assert_eq!(state.known_backends(), []);
    }

    #[test]
    fn a_few_gateways_are_rolled_at_once_and_each_makes_room_for_the_next() {
        let mut state = State::default();
        // Every one of them wants to be rolled; none is written yet.
        let reserved = (0..10).filter(|n| {
            let free = is_free(&state, *n);
            assert_eq!(state.set_rolling(&gateway(*n), free, !free, Instant::now()), []);
            free
        });
        assert_eq!(reserved.collect::<Vec<_>>(), [0, 1, 2, 3]);
        for n in 0..ROLLS_AT_ONCE {
            show(&mut state, n, true);
            assert_eq!(
                state.set_rolling(&gateway(n), false, false, Instant::now()),
                [],
                "its Deployment says so itself now"
            );
        }
        // A process that starts now sees the same.
        let mut next = State::default();
        (0..10).for_each(|n| drop(show(&mut next, n, n < ROLLS_AT_ONCE)));
        assert!(!is_free(&next, 9) && is_free(&next, 0), "but for those that are rolled");

        let keys = show(&mut state, 2, false);
        assert_eq!(keys, [Key::Gateway(gateway(2)), Key::Gateway(gateway(4))]);
        // One that has no use for its turn passes it on.
        assert_eq!(state.set_rolling(&gateway(4), false, false, Instant::now()), [Key::Gateway(gateway(5))]);
        // One that goes makes room as well.
        assert_eq!(
            state.set_deployment(place(0), None)[1..],
            [Key::Gateway(gateway(6)), Key::Gateway(gateway(7))]
        );
    }

    #[test]
    fn a_gateway_that_gets_stuck_on_its_way_does_not_hold_up_the_others_for_ever() {
        let mut state = State::default();
        let start = Instant::now();
        for n in 0..ROLLS_AT_ONCE {
            state.set_rolling(&gateway(n), true, false, start);
        }
        assert_eq!(state.set_rolling(&gateway(9), false, true, start), []);
        let free = |state: &State, now| state.observe(&gateway(9), now).rolling < ROLLS_AT_ONCE;
        // That it says so again is no news.
        let soon = start + PROGRESS / 2;
        assert_eq!(state.set_rolling(&gateway(0), true, false, soon), []);
        assert!(!free(&state, soon));
        let late = start + PROGRESS;
        assert_eq!(state.set_rolling(&gateway(0), true, false, late), [Key::Gateway(gateway(9))]);
        assert!(free(&state, late));
    }
}
