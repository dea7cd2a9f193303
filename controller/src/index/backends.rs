//! Endpoints, and the pods with the readiness gate among them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use lb_svc_core::backend::readiness_gate::{GatewayVerdicts, Verdict};
use lb_svc_core::model::{Backend, EndpointSlice, ObjectName, PodId, ServiceRef};

use super::{Index, Key};

/// How long after its gate was satisfied a pod's EndpointSlice may still call it
/// unready. From then on the slice is believed: of a pod on a dead node nothing
/// else changes.
pub(super) const PASSES_WITHIN: SignedDuration = SignedDuration::from_secs(30);

impl Index {
    pub(super) fn backends_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Backend)> {
        let first = (namespace.to_owned(), String::new());
        self.backends.range(first..).take_while(move |((of, _), _)| of == namespace)
    }

    /// The pods in a namespace that are ready except for the gate, and whether they
    /// have satisfied it.
    pub(super) fn gated_pods(&self, namespace: &str, now: Timestamp) -> BTreeMap<PodId, bool> {
        // A controller with another clock may have stamped it.
        let is_new = |passed: Timestamp| now.duration_since(passed).abs() < PASSES_WITHIN;
        let backends = self.backends_in(namespace).map(|(_, backend)| backend);
        let gated = backends
            .filter(|backend| backend.ready_except_gate && backend.gate_satisfied_at.is_none_or(is_new));
        gated.map(|backend| (backend.id, backend.gate_satisfied_at.is_some())).collect()
    }

    pub(super) fn direct_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ServiceRef> {
        let first = ServiceRef::new(namespace, "");
        self.direct.range(first..).take_while(move |service| service.namespace == namespace)
    }

    /// A pod that lacks only the readiness gate, with the verdicts of the gateways of
    /// all Services that select it or have it among their endpoints.
    pub fn waiting_backend(&self, name: &ObjectName) -> Option<(&Backend, GatewayVerdicts)> {
        let backend = self
            .backends
            .get(name)
            .filter(|backend| backend.ready_except_gate && backend.gate_satisfied_at.is_none())?;
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

    /// How many pods lack only the readiness gate.
    pub fn waiting_backends(&self) -> usize {
        self.backends
            .values()
            .filter(|backend| backend.ready_except_gate && backend.gate_satisfied_at.is_none())
            .count()
    }

    /// Sets the verdicts of the gateway that serves `service`. Returns the pods for
    /// which they changed.
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

    /// An EndpointSlice is of the Service of this name, and so; `None` if it is
    /// gone.
    pub fn set_slice(&mut self, name: &ObjectName, slice: Option<(String, EndpointSlice)>) -> Vec<Key> {
        let changed = self.slices.set(name, slice).into_iter();
        changed
            .filter(|service| self.direct.contains(service) || self.at_nodes.contains(service))
            .map(|service| self.key_of(&service))
            .collect()
    }

    /// A pod with our readiness gate is so; `None` if it is gone.
    pub fn set_backend(&mut self, name: ObjectName, backend: Option<Backend>) -> Vec<Key> {
        let known = self.backends.get(&name);
        if known == backend.as_ref() {
            return Vec::new();
        }
        let ids: BTreeSet<PodId> = known.into_iter().chain(&backend).map(|backend| backend.id).collect();
        let leads = |service: &&ServiceRef| ids.iter().any(|id| self.slices.have(service, *id));
        let gateways = self.direct_in(&name.0).filter(leads).map(|service| self.key_of(service));
        let concerned = gateways.chain([Key::Backend(name.clone())]).collect();
        match backend {
            Some(backend) => self.backends.insert(name, backend),
            None => self.backends.remove(&name),
        };
        concerned
    }

    /// The EndpointSlices' names.
    pub fn known_slices(&self) -> Vec<ObjectName> {
        self.slices.names()
    }

    /// The names of the pods with our readiness gate.
    pub fn known_backends(&self) -> Vec<ObjectName> {
        self.backends.keys().cloned().collect()
    }
}
