//! Gateways: where they are, and what exists of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_svc_core::gateway::assignment::{self, Assignment};
use lb_svc_core::gateway::manifests::TemplateHash;
use lb_svc_core::ipam::Claim;
use lb_svc_core::model::{
    DeploymentState, GatewayId, GatewayLocation, GatewayRef, ObjectKind, OwnedObject, Pod, ServiceRef,
};
use lb_svc_crds::names;
use lb_svc_crds::seal::Seal;
use serde_json::Value;

use super::nodes::Moment;
use super::{Index, Key, concerns};

/// A Deployment as the index keeps it: metadata and spec as text, which takes a
/// tenth of the room, for there is one for each gateway.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CompactDeployment {
    failure: Option<String>,
    rolling: bool,
    given_up: bool,
    /// The hash of the template that it was made from.
    pub template: String,
    live: Box<str>,
    /// Digest of the spec that the API server answered to our own last write.
    answered: Option<String>,
}

impl CompactDeployment {
    pub fn of(view: DeploymentState) -> Self {
        let DeploymentState { failure, rolling, given_up, live, as_answered: _ } = view;
        let template = TemplateHash::of(&live).all;
        Self { failure, rolling, given_up, template, live: live.to_string().into(), answered: None }
    }

    pub fn expand(self) -> DeploymentState {
        let Self { failure, rolling, given_up, template: _, live, answered } = self;
        // It is what was written above.
        let live: Value = serde_json::from_str(&live).unwrap_or_default();
        let as_answered = answered.is_some_and(|answered| answered == spec_digest(&live));
        DeploymentState { failure, rolling, given_up, live, as_answered }
    }

    /// Whether its pods run.
    pub fn is_complete(&self) -> bool {
        !self.rolling && !self.is_failing()
    }

    /// Whether its pods do not run, and will not without a change.
    pub fn is_failing(&self) -> bool {
        self.given_up || self.failure.is_some()
    }
}

fn spec_digest(live: &Value) -> String {
    names::digest(live["spec"].to_string().as_bytes())
}

/// A gateway's pod, and since when it has been seen on its node.
#[derive(Debug)]
pub(super) struct SeenPod {
    pub pod: Pod,
    since: Moment,
}

/// The objects of one gateway.
#[derive(Debug, Default)]
pub(super) struct GatewayObjects {
    pub config: Option<OwnedObject<String>>,
    /// The generation of its content, if that has a valid seal.
    pub generation: Option<u64>,
    pub deployment: Option<OwnedObject<CompactDeployment>>,
    pub budget: Option<OwnedObject<Value>>,
    pub pods: BTreeMap<String, SeenPod>,
}

impl GatewayObjects {
    fn is_empty(&self) -> bool {
        self.config.is_none() && self.deployment.is_none() && self.budget.is_none() && self.pods.is_empty()
    }
}

/// Whether an object is another than before. A change of its resourceVersion
/// alone, as with each status of a Deployment, concerns nobody.
fn differs<T: PartialEq>(before: Option<&OwnedObject<T>>, now: Option<&OwnedObject<T>>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => {
            let of = |it: &OwnedObject<T>| (it.deleting, it.uid.clone(), it.gateway_id.clone());
            of(before) != of(now) || before.content != now.content
        }
        (before, now) => before.is_some() != now.is_some(),
    }
}

/// How long a name is taken to be that of an object of others, which no watch
/// shows, as it has no label of the controller. Then a write is tried again: only
/// that shows whether the name is free.
pub(crate) const FOREIGN_FOR: Duration = Duration::from_secs(5);

impl Index {
    /// The gateway that serves a Service.
    pub fn gateway_of(&self, service: &ServiceRef) -> GatewayRef {
        assignment::gateway_of(service)
    }

    /// What is run for a change that concerns a Service.
    pub(super) fn key_of(&self, service: &ServiceRef) -> Key {
        Key::Gateway(self.gateway_of(service))
    }

    /// The Services of a gateway: those that are there, or hold a claim.
    pub(super) fn assignment(&self, gateway: &GatewayRef) -> Assignment {
        let stands =
            |service: &ServiceRef| self.services.contains_key(service) || self.allocator.has_claims(service);
        Assignment::of(gateway, stands)
    }

    /// The claims on a gateway's addresses.
    pub(super) fn claims_on(&self, gateway: &GatewayRef) -> Vec<Claim> {
        self.assignment(gateway).services().flat_map(|service| self.allocator.claims_of(service)).collect()
    }

    /// The namespace where a gateway is to be.
    pub(super) fn desired_namespace<'a>(&'a self, gateway: &'a GatewayRef) -> &'a str {
        self.gateway_namespace.as_deref().unwrap_or_else(|| gateway.home())
    }

    /// Whether gateways in this namespace are seen.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        self.narrow.is_empty() || self.gateway_namespace.as_deref() == Some(namespace)
    }

    /// Where a gateway is: where one of its `claims` says, as long as there is
    /// anything of it, or may be; else where it is to be.
    pub(super) fn location(&self, gateway: &GatewayRef, claims: &[Claim]) -> GatewayLocation {
        let desired_namespace = self.desired_namespace(gateway);
        let is_there = |namespace: &str| {
            let location = GatewayLocation { gateway: gateway.clone(), namespace: namespace.to_owned() };
            namespace != desired_namespace
                && (!self.sees(namespace)
                    || self.gateways.get(&location).is_some_and(|objects| {
                        let could_answer = |seen: &SeenPod| self.on_node(seen).could_answer();
                        objects.config.is_some()
                            || objects.deployment.is_some()
                            || objects.budget.is_some()
                            || objects.pods.values().any(could_answer)
                    }))
        };
        let said = claims.iter().map(|claim| claim.gateway_namespace.as_str());
        let namespace = said.clone().find(|namespace| is_there(namespace)).unwrap_or(desired_namespace);
        GatewayLocation { gateway: gateway.clone(), namespace: namespace.to_owned() }
    }

    /// The pods of every gateway of the name, and the namespace
    /// they are in.
    pub fn pods(&self, gateway: &GatewayRef) -> (String, Vec<Pod>) {
        let location = self.location(gateway, &self.claims_on(gateway));
        let pods = self.gateways.get(&location).into_iter().flat_map(|objects| objects.pods.values());
        let pods = pods.map(|seen| self.on_node(seen)).collect();
        (location.namespace, pods)
    }

    /// A pod, with what is known of its node.
    pub(super) fn on_node(&self, SeenPod { pod, since }: &SeenPod) -> Pod {
        let node_lost = pod.node.as_ref().is_some_and(|node| self.nodes.is_lost(node, *since));
        Pod { node_lost, ..pod.clone() }
    }

    /// The gateways with a pod on a node of which this is so.
    fn on_nodes(&self, is_so: impl Fn(&str) -> bool) -> Vec<Key> {
        let has = |parts: &GatewayObjects| {
            parts.pods.values().any(|seen| seen.pod.node.as_deref().is_some_and(&is_so))
        };
        let with = self.gateways.iter().filter(|(_, parts)| has(parts));
        with.map(|(location, _)| Key::Gateway(location.gateway.clone())).collect()
    }

    /// A node is there, and lost for good or not; `None` if it is gone. Returns the
    /// gateways with pods on it, if that is news.
    pub(super) fn set_node_lost(&mut self, name: &str, lost: Option<bool>) -> Vec<Key> {
        if !self.nodes.set(name, lost, Instant::now()) {
            return Vec::new();
        }
        if lost.is_none() {
            let pods = self.gateways.values_mut().flat_map(|parts| parts.pods.values_mut());
            let on_it = pods.filter(|seen| seen.pod.node.as_deref() == Some(name));
            on_it.for_each(|seen| seen.since = Moment::PAST);
        }
        self.on_nodes(|node| node == name)
    }

    /// A list of all nodes begins.
    pub fn begin_nodes(&mut self) {
        self.nodes.begin();
    }

    /// All nodes have been listed, and set. Returns the gateways with pods on
    /// others.
    pub fn complete_nodes(&mut self) -> Vec<Key> {
        self.nodes.complete();
        self.on_nodes(|node| !self.nodes.knows(node))
    }

    pub(super) fn foreign<T: Default>(
        &self,
        kind: ObjectKind,
        gateway: &GatewayRef,
        now: Instant,
    ) -> Option<OwnedObject<T>> {
        let seen = self.foreign.get(&(kind, gateway.clone()))?;
        (now.duration_since(*seen) < FOREIGN_FOR).then(|| OwnedObject {
            uid: String::new(),
            resource_version: String::new(),
            deleting: false,
            gateway_id: None,
            content: T::default(),
        })
    }

    /// An object of others has a name that a gateway needs.
    pub fn set_foreign(&mut self, kind: ObjectKind, gateway: &GatewayRef, now: Instant) {
        self.foreign.retain(|_, seen| now.duration_since(*seen) < FOREIGN_FOR);
        self.foreign.insert((kind, gateway.clone()), now);
    }

    /// Whether anything says that there is this gateway, beside objects that
    /// anyone may label as one's. Of others no content is kept: it may be large,
    /// and all that is done with them is to delete them.
    fn has_gateway(&self, gateway: &GatewayRef) -> bool {
        !self.assignment(gateway).is_empty()
    }

    /// The generation of a ConfigMap's content, if `seal` is a valid one on it, for
    /// the gateway that the ConfigMap is labelled with.
    fn generation(&self, config: &OwnedObject<String>, seal: &str) -> Option<u64> {
        let seal = Seal::open(seal.as_bytes(), self.trusted.as_ref()?).ok()?;
        let read = |part: &str| (part == names::CONFIG_KEY).then(|| config.content.clone().into_bytes());
        seal.verify(config.gateway_id.as_ref()?.as_str(), read).ok()?;
        Some(seal.generation)
    }

    /// A gateway's ConfigMap is so, with this seal on its content; `None` if it is
    /// gone.
    pub fn set_config(
        &mut self,
        location: GatewayLocation,
        config: Option<OwnedObject<String>>,
        seal: Option<&str>,
    ) -> Vec<Key> {
        let known = self.has_gateway(&location.gateway);
        let sealed = config.as_ref().zip(seal).filter(|_| known);
        let generation = sealed.and_then(|(config, seal)| self.generation(config, seal));
        let config = config.map(|config| if known { config } else { config.map(|_| String::new()) });
        let objects = self.gateways.entry(location.clone()).or_default();
        let changed = differs(objects.config.as_ref(), config.as_ref()) || objects.generation != generation;
        (objects.config, objects.generation) = (config, generation);
        self.tidy(&location);
        concerns(changed, Key::Gateway(location.gateway))
    }

    /// The content of the ConfigMap of the gateway of this identity, and its generation,
    /// if its seal is valid.
    pub fn sealed_config(&self, location: &GatewayLocation, id: &GatewayId) -> Option<(String, u64)> {
        let objects = self.gateways.get(location)?;
        let config = objects.config.as_ref().filter(|config| config.is_of(id))?;
        Some((config.content.clone(), objects.generation?))
    }

    /// A gateway's Deployment is so; `None` if it is gone.
    pub fn set_deployment(
        &mut self,
        location: GatewayLocation,
        deployment: Option<OwnedObject<DeploymentState>>,
    ) -> Vec<Key> {
        let known = self.has_gateway(&location.gateway);
        let objects = self.gateways.entry(location.clone()).or_default();
        let rolling =
            known && deployment.as_ref().is_some_and(|object| object.content.rolling && !object.deleting);
        let compact = |state: DeploymentState| {
            CompactDeployment::of(if known { state } else { DeploymentState::default() })
        };
        let mut deployment = deployment.map(|object| object.map(compact));
        if let (Some(object), Some(known)) = (&mut deployment, &objects.deployment) {
            object.content.answered.clone_from(&known.content.answered);
        }
        let changed = differs(objects.deployment.as_ref(), deployment.as_ref());
        let before = std::mem::replace(&mut objects.deployment, deployment);
        let now = objects.deployment.as_ref().map(|object| object.content.clone());
        self.tidy(&location);
        self.follow_rollout(&location.gateway, before.map(|object| object.content).as_ref(), now.as_ref());
        let done = if rolling {
            self.rolling.insert(location.gateway.clone());
            Vec::new()
        } else if self.rolling.remove(&location.gateway) {
            self.next_to_roll(Instant::now())
        } else {
            Vec::new()
        };
        concerns(changed, Key::Gateway(location.gateway)).into_iter().chain(done).collect()
    }

    /// The API server answered so to our own write of a gateway's Deployment.
    pub fn set_answered(&mut self, location: &GatewayLocation, deployment: &Value) {
        let known = self.gateways.get_mut(location).and_then(|objects| objects.deployment.as_mut());
        if let Some(known) = known {
            known.content.answered = Some(spec_digest(deployment));
        }
    }

    /// A gateway's PodDisruptionBudget is so; `None` if it is gone.
    pub fn set_budget(&mut self, location: GatewayLocation, budget: Option<OwnedObject<Value>>) -> Vec<Key> {
        let known = self.has_gateway(&location.gateway);
        let budget = budget.map(|budget| if known { budget } else { budget.map(|_| Value::Null) });
        let objects = self.gateways.entry(location.clone()).or_default();
        let changed = differs(objects.budget.as_ref(), budget.as_ref());
        objects.budget = budget;
        self.tidy(&location);
        concerns(changed, Key::Gateway(location.gateway))
    }

    /// A gateway's pod is so; `None` if it is gone.
    pub fn set_pod(&mut self, location: GatewayLocation, name: &str, pod: Option<Pod>) -> Vec<Key> {
        let objects = self.gateways.entry(location.clone()).or_default();
        let known = objects.pods.get(name);
        let changed = known.map(|seen| &seen.pod) != pod.as_ref();
        match pod {
            Some(pod) => {
                let stayed = known.filter(|seen| (&seen.pod.uid, &seen.pod.node) == (&pod.uid, &pod.node));
                let now = || self.nodes.moment(pod.node.as_deref().unwrap_or_default(), Instant::now());
                let since = stayed.map_or_else(now, |seen| seen.since);
                objects.pods.insert(name.to_owned(), SeenPod { pod, since })
            }
            None => objects.pods.remove(name),
        };
        self.tidy(&location);
        concerns(changed, Key::Gateway(location.gateway))
    }

    /// Whether an interface of this very gateway has this hardware address, wherever its
    /// pods are. One that answers for an address of another's has no business to.
    pub fn is_mac_of(&self, gateway: &GatewayRef, mac: &str) -> bool {
        let has = |seen: &SeenPod| {
            seen.pod.of_deployment && seen.pod.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac))
        };
        let own = self.gateways.iter().filter(|(location, _)| location.gateway == *gateway);
        own.flat_map(|(_, objects)| objects.pods.values()).any(has)
    }

    /// How many gateways have pods with a key of an election.
    pub fn keyed_gateways(&self) -> usize {
        let is_keyed = |objects: &&GatewayObjects| {
            objects.pods.values().any(|seen| seen.pod.of_deployment && seen.pod.member)
        };
        self.gateways.values().filter(is_keyed).count()
    }

    pub(super) fn tidy(&mut self, location: &GatewayLocation) {
        if self.gateways.get(location).is_some_and(GatewayObjects::is_empty) {
            self.gateways.remove(location);
        }
    }

    /// The gateways that have an object of this kind.
    pub fn known_parts(&self, part: ObjectKind) -> Vec<GatewayLocation> {
        let has = |parts: &GatewayObjects| match part {
            ObjectKind::Config => parts.config.is_some(),
            ObjectKind::Deployment => parts.deployment.is_some(),
            ObjectKind::Budget => parts.budget.is_some(),
        };
        self.gateways.iter().filter(|(_, parts)| has(parts)).map(|(gateway, _)| gateway.clone()).collect()
    }

    /// The gateways' pods, with their names.
    pub fn known_pods(&self) -> Vec<(GatewayLocation, String)> {
        let of = |(gateway, parts): (&GatewayLocation, &GatewayObjects)| {
            parts.pods.keys().map(|name| (gateway.clone(), name.clone())).collect::<Vec<_>>()
        };
        self.gateways.iter().flat_map(of).collect()
    }
}
