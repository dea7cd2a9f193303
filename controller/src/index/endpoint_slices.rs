//! EndpointSlices by the Service that they are of.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lb_svc_core::model::{EndpointSlice, ObjectName, PodId, ServiceRef};

/// The EndpointSlices of all Services.
#[derive(Debug, Default)]
pub struct EndpointSlices {
    of: HashMap<ServiceRef, BTreeMap<String, Arc<EndpointSlice>>>,
    /// The name of the Service that each is of.
    owners: HashMap<ObjectName, String>,
}

impl EndpointSlices {
    /// An EndpointSlice is of the Service of this name, and so; `None` if it is
    /// gone. Returns for which Services that makes a difference.
    pub fn set(&mut self, name: &ObjectName, slice: Option<(String, EndpointSlice)>) -> Vec<ServiceRef> {
        let (namespace, own) = name;
        let owner = slice.as_ref().map(|(service, _)| service.clone());
        let before = match &owner {
            Some(owner) => self.owners.insert(name.clone(), owner.clone()),
            None => self.owners.remove(name),
        };
        let mut changed = Vec::new();
        if let Some(before) = before.filter(|before| owner.as_ref() != Some(before)) {
            let before = ServiceRef::new(namespace, &before);
            if let Some(slices) = self.of.get_mut(&before) {
                slices.remove(own);
                if slices.is_empty() {
                    self.of.remove(&before);
                }
            }
            changed.push(before);
        }
        if let Some((service, slice)) = slice {
            let service = ServiceRef::new(namespace, &service);
            let slices = self.of.entry(service.clone()).or_default();
            if slices.get(own).is_none_or(|known| **known != slice) {
                slices.insert(own.clone(), Arc::new(slice));
                changed.push(service);
            }
        }
        changed
    }

    /// Those of a Service.
    pub fn of(&self, service: &ServiceRef) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.of.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether a pod is in those of a Service.
    pub fn have(&self, service: &ServiceRef, pod: PodId) -> bool {
        self.of(service).any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.pod == Some(pod)))
    }

    /// The names of all that are known.
    pub fn names(&self) -> Vec<ObjectName> {
        self.owners.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_core::testing::slice;
    use lb_svc_crds::gateway::Transport::Tcp;

    use super::*;

    #[test]
    fn endpoint_slices_are_indexed_by_service() {
        let mut slices = EndpointSlices::default();
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        let (web, dns) = (ServiceRef::new("default", "web"), ServiceRef::new("default", "dns"));
        let one = || slice(&[("", Tcp, 80)], &[(1, "ready")]);
        let of_web = |slice| Some(("web".to_owned(), slice));
        let concerned = std::slice::from_ref(&web);
        assert_eq!(slices.set(&name("web-1"), of_web(one())), concerned);
        assert_eq!(slices.set(&name("web-1"), of_web(one())), [], "no news");
        assert_eq!(slices.set(&name("web-2"), of_web(EndpointSlice::default())), concerned);
        assert_eq!(slices.of(&web).count(), 2);
        assert!(slices.have(&web, PodId::of("uid-1")) && !slices.have(&web, PodId::of("uid-2")));
        // It is made another Service's.
        let moved = slices.set(&name("web-1"), Some(("dns".to_owned(), one())));
        assert_eq!(moved, [web.clone(), dns.clone()]);
        assert_eq!((slices.of(&web).count(), slices.of(&dns).count()), (1, 1));
        assert_eq!(slices.set(&name("web-1"), None), std::slice::from_ref(&dns));
        assert_eq!(slices.set(&name("web-1"), None), []);
        assert_eq!((slices.of(&dns).count(), slices.names()), (0, vec![name("web-2")]));
    }
}
