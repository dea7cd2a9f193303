//! Gateways: where they are, and what exists of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_svc_core::ipam::Claim;
use lb_svc_core::model::{Child, DeploymentView, Part, Place, Pod, ServiceRef};
use serde_json::Value;

use super::{Key, State, concerns};

/// A Deployment as it is kept: what is compared is text here, which takes a
/// tenth of the room, and there is one for each gateway.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    failure: Option<String>,
    rolling: bool,
    live: Box<str>,
}

impl Packed {
    pub fn of(view: DeploymentView) -> Self {
        let DeploymentView { failure, rolling, live } = view;
        Self { failure, rolling, live: live.to_string().into() }
    }

    pub fn unpack(self) -> DeploymentView {
        let Self { failure, rolling, live } = self;
        // It is what was written above.
        DeploymentView { failure, rolling, live: serde_json::from_str(&live).unwrap_or_default() }
    }
}

/// What exists of one gateway.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub config: Option<Child<String>>,
    pub deployment: Option<Child<Packed>>,
    pub budget: Option<Child<Value>>,
    pub pods: BTreeMap<String, Pod>,
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

impl State {
    /// The namespace where the gateway of `service` is to be.
    pub(super) fn home<'a>(&'a self, service: &'a ServiceRef) -> &'a str {
        self.gateway_namespace.as_deref().unwrap_or(&service.namespace)
    }

    /// Whether gateways in this namespace are seen.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        !self.narrow || self.gateway_namespace.as_deref() == Some(namespace)
    }

    /// Where the gateway of `service` is: where a claim says, as long as there
    /// is anything of it, or may be; else where it is to be.
    pub(super) fn place(&self, service: &ServiceRef, claims: &[Claim]) -> Place {
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

    /// The gateway's pods, whosever they were, and the namespace they are in.
    pub fn pods(&self, service: &ServiceRef) -> (String, Vec<Pod>) {
        let place = self.place(service, &self.ledger.claims_of(service));
        let pods = self.gateways.get(&place).into_iter().flat_map(|parts| parts.pods.values());
        let pods = pods.map(|pod| self.on_node(pod)).collect();
        (place.namespace, pods)
    }

    /// A pod, with what is known of its node.
    pub(super) fn on_node(&self, pod: &Pod) -> Pod {
        let node = pod.node.as_ref();
        let node_lost = node.is_some_and(|node| self.nodes.get(node).copied().unwrap_or(true));
        Pod { node_lost, ..pod.clone() }
    }

    pub(super) fn foreign<T: Default>(
        &self,
        part: Part,
        service: &ServiceRef,
        now: Instant,
    ) -> Option<Child<T>> {
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

    /// Whether a gateway's interface has this hardware address.
    pub fn is_gateway_mac(&self, mac: &str) -> bool {
        let has = |pod: &Pod| pod.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac));
        self.gateways.values().flat_map(|parts| parts.pods.values()).any(has)
    }

    pub(super) fn tidy(&mut self, place: &Place) {
        if self.gateways.get(place).is_some_and(Parts::is_empty) {
            self.gateways.remove(place);
        }
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
}
