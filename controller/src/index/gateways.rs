//! Gateways: where they are, and what exists of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_svc_core::gateway::manifests::TemplateHash;
use lb_svc_core::ipam::Claim;
use lb_svc_core::model::{DeploymentState, GatewayRef, ObjectKind, OwnedObject, Pod, ServiceRef};
use lb_svc_crds::names;
use serde_json::Value;

use super::{Index, Key, concerns};

/// A Deployment as it is kept: what is compared is text here, which takes a
/// tenth of the room, and there is one for each gateway.
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

/// What exists of one gateway.
#[derive(Debug, Default)]
pub(super) struct GatewayObjects {
    pub config: Option<OwnedObject<String>>,
    pub deployment: Option<OwnedObject<CompactDeployment>>,
    pub budget: Option<OwnedObject<Value>>,
    pub pods: BTreeMap<String, Pod>,
}

impl GatewayObjects {
    fn is_empty(&self) -> bool {
        self.config.is_none() && self.deployment.is_none() && self.budget.is_none() && self.pods.is_empty()
    }
}

/// For how long a name is believed to be taken by an object that no watch
/// shows, for it bears no label of ours. Then it is tried again, which is all
/// that shows that the name is free.
pub(crate) const FOREIGN_FOR: Duration = Duration::from_secs(5);

impl Index {
    /// The namespace where the gateway of `service` is to be.
    pub(super) fn desired_namespace<'a>(&'a self, service: &'a ServiceRef) -> &'a str {
        self.gateway_namespace.as_deref().unwrap_or(&service.namespace)
    }

    /// Whether gateways in this namespace are seen.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        !self.narrow || self.gateway_namespace.as_deref() == Some(namespace)
    }

    /// Where the gateway of `service` is: where a claim says, as long as there
    /// is anything of it, or may be; else where it is to be.
    pub(super) fn gateway_ref(&self, service: &ServiceRef, claims: &[Claim]) -> GatewayRef {
        let desired_namespace = self.desired_namespace(service);
        let is_there = |namespace: &str| {
            let gateway = GatewayRef { service: service.clone(), namespace: namespace.to_owned() };
            namespace != desired_namespace
                && (!self.sees(namespace)
                    || self.gateways.get(&gateway).is_some_and(|parts| {
                        let could_answer = |pod: &Pod| self.on_node(pod).could_answer();
                        parts.config.is_some()
                            || parts.deployment.is_some()
                            || parts.budget.is_some()
                            || parts.pods.values().any(could_answer)
                    }))
        };
        let said = claims.iter().map(|claim| claim.gateway_namespace.as_str());
        let namespace = said.clone().find(|namespace| is_there(namespace)).unwrap_or(desired_namespace);
        GatewayRef { service: service.clone(), namespace: namespace.to_owned() }
    }

    /// The gateway's pods, whosever they were, and the namespace they are in.
    pub fn pods(&self, service: &ServiceRef) -> (String, Vec<Pod>) {
        let gateway = self.gateway_ref(service, &self.allocator.claims_of(service));
        let pods = self.gateways.get(&gateway).into_iter().flat_map(|parts| parts.pods.values());
        let pods = pods.map(|pod| self.on_node(pod)).collect();
        (gateway.namespace, pods)
    }

    /// A pod, with what is known of its node.
    pub(super) fn on_node(&self, pod: &Pod) -> Pod {
        let node = pod.node.as_ref();
        let node_lost = node.is_some_and(|node| self.nodes.get(node).copied().unwrap_or(true));
        Pod { node_lost, ..pod.clone() }
    }

    pub(super) fn foreign<T: Default>(
        &self,
        part: ObjectKind,
        service: &ServiceRef,
        now: Instant,
    ) -> Option<OwnedObject<T>> {
        let seen = self.foreign.get(&(part, service.clone()))?;
        (now.duration_since(*seen) < FOREIGN_FOR).then(|| OwnedObject {
            uid: String::new(),
            resource_version: String::new(),
            deleting: false,
            owner_uid: None,
            content: T::default(),
        })
    }

    /// Someone else's object has a name that the gateway of `service` needs.
    pub fn set_foreign(&mut self, part: ObjectKind, service: &ServiceRef, now: Instant) {
        self.foreign.retain(|_, seen| now.duration_since(*seen) < FOREIGN_FOR);
        self.foreign.insert((part, service.clone()), now);
    }

    /// Whether anything says that `service` has a gateway, beside objects that
    /// anyone may label as one's. Of others no content is kept: it may be large,
    /// and all that is done with them is to delete them.
    fn has_gateway(&self, service: &ServiceRef) -> bool {
        self.services.contains_key(service) || self.allocator.has_claims(service)
    }

    /// A gateway's ConfigMap is so; `None` if it is gone.
    pub fn set_config(&mut self, gateway: GatewayRef, config: Option<OwnedObject<String>>) -> Vec<Key> {
        let known = self.has_gateway(&gateway.service);
        let config = config.map(|config| if known { config } else { config.map(|_| String::new()) });
        let parts = self.gateways.entry(gateway.clone()).or_default();
        let changed = parts.config != config;
        parts.config = config;
        self.tidy(&gateway);
        concerns(changed, Key::Gateway(gateway.service))
    }

    /// A gateway's Deployment is so; `None` if it is gone.
    pub fn set_deployment(
        &mut self,
        gateway: GatewayRef,
        deployment: Option<OwnedObject<DeploymentState>>,
    ) -> Vec<Key> {
        let known = self.has_gateway(&gateway.service);
        let parts = self.gateways.entry(gateway.clone()).or_default();
        let rolling =
            known && deployment.as_ref().is_some_and(|child| child.content.rolling && !child.deleting);
        let compact = |state: DeploymentState| {
            CompactDeployment::of(if known { state } else { DeploymentState::default() })
        };
        let mut deployment = deployment.map(|child| child.map(compact));
        if let (Some(child), Some(known)) = (&mut deployment, &parts.deployment) {
            child.content.answered.clone_from(&known.content.answered);
        }
        let changed = parts.deployment != deployment;
        let before = std::mem::replace(&mut parts.deployment, deployment);
        let now = parts.deployment.as_ref().map(|child| child.content.clone());
        self.tidy(&gateway);
        self.follow_rollout(&gateway.service, before.map(|child| child.content).as_ref(), now.as_ref());
        let done = if rolling {
            self.rolling.insert(gateway.service.clone());
            Vec::new()
        } else if self.rolling.remove(&gateway.service) {
            self.next_to_roll(Instant::now())
        } else {
            Vec::new()
        };
        concerns(changed, Key::Gateway(gateway.service)).into_iter().chain(done).collect()
    }

    /// The API server answered so to our own write of a gateway's Deployment.
    pub fn set_answered(&mut self, gateway: &GatewayRef, deployment: &Value) {
        let known = self.gateways.get_mut(gateway).and_then(|parts| parts.deployment.as_mut());
        if let Some(known) = known {
            known.content.answered = Some(spec_digest(deployment));
        }
    }

    /// A gateway's PodDisruptionBudget is so; `None` if it is gone.
    pub fn set_budget(&mut self, gateway: GatewayRef, budget: Option<OwnedObject<Value>>) -> Vec<Key> {
        let known = self.has_gateway(&gateway.service);
        let budget = budget.map(|budget| if known { budget } else { budget.map(|_| Value::Null) });
        let parts = self.gateways.entry(gateway.clone()).or_default();
        let changed = parts.budget != budget;
        parts.budget = budget;
        self.tidy(&gateway);
        concerns(changed, Key::Gateway(gateway.service))
    }

    /// A gateway's pod is so; `None` if it is gone.
    pub fn set_pod(&mut self, gateway: GatewayRef, name: &str, pod: Option<Pod>) -> Vec<Key> {
        let parts = self.gateways.entry(gateway.clone()).or_default();
        let changed = parts.pods.get(name) != pod.as_ref();
        match pod {
            Some(pod) => parts.pods.insert(name.to_owned(), pod),
            None => parts.pods.remove(name),
        };
        self.tidy(&gateway);
        concerns(changed, Key::Gateway(gateway.service))
    }

    /// Whether a gateway's interface has this hardware address.
    pub fn is_gateway_mac(&self, mac: &str) -> bool {
        let has = |pod: &Pod| {
            pod.of_deployment && pod.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac))
        };
        self.gateways.values().flat_map(|parts| parts.pods.values()).any(has)
    }

    pub(super) fn tidy(&mut self, gateway: &GatewayRef) {
        if self.gateways.get(gateway).is_some_and(GatewayObjects::is_empty) {
            self.gateways.remove(gateway);
        }
    }

    /// The gateways of which there is a part of this kind.
    pub fn known_parts(&self, part: ObjectKind) -> Vec<GatewayRef> {
        let has = |parts: &GatewayObjects| match part {
            ObjectKind::Config => parts.config.is_some(),
            ObjectKind::Deployment => parts.deployment.is_some(),
            ObjectKind::Budget => parts.budget.is_some(),
        };
        self.gateways.iter().filter(|(_, parts)| has(parts)).map(|(gateway, _)| gateway.clone()).collect()
    }

    /// The gateways' pods, with their names.
    pub fn known_pods(&self) -> Vec<(GatewayRef, String)> {
        let of = |(gateway, parts): (&GatewayRef, &GatewayObjects)| {
            parts.pods.keys().map(|name| (gateway.clone(), name.clone())).collect::<Vec<_>>()
        };
        self.gateways.iter().flat_map(of).collect()
    }
}
