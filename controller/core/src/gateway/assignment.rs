//! Which gateway serves a Service, and which Services a gateway serves: today each
//! has one of its own.
//!
//! Every way from a Service to its gateway, and back, leads through this file. The
//! exceptions are what is made of one alone: a dedicated gateway's name, its labels,
//! and the run that plans it together with its Service.

use std::collections::BTreeSet;

use crate::model::{GatewayId, GatewayRef, ServiceId, ServiceRef};

/// The gateway that serves a Service.
pub fn gateway_of(service: &ServiceRef) -> GatewayRef {
    GatewayRef::Dedicated(service.clone())
}

/// The identity of the gateway that serves a Service: of a dedicated one it is the
/// Service's uid.
pub fn id_of(service: &ServiceId) -> GatewayId {
    service.uid.as_str().into()
}

/// The Services of a gateway: those that it serves, and those that are gone while it
/// may still answer for their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment(BTreeSet<ServiceRef>);

impl Assignment {
    /// The Services of `gateway` among those for which something stands: the Service
    /// itself, or a claim.
    pub fn of(gateway: &GatewayRef, stands: impl Fn(&ServiceRef) -> bool) -> Self {
        match gateway {
            GatewayRef::Dedicated(service) => {
                Self(Some(service).filter(|it| stands(it)).cloned().into_iter().collect())
            }
        }
    }

    /// The Services, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceRef> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dedicated_gateway_serves_its_service_while_anything_stands() {
        let web = ServiceRef::new("default", "web");
        let gateway = gateway_of(&web);
        let services = |stands| Assignment::of(&gateway, |_| stands).services().cloned().collect::<Vec<_>>();
        assert_eq!(services(true), [web]);
        assert!(services(false).is_empty());
    }

    #[test]
    fn gateway_of_a_later_service_of_the_name_is_another() {
        let id = |uid: &str| ServiceId { service: ServiceRef::new("default", "web"), uid: uid.into() };
        assert_eq!(gateway_of(&id("uid-1").service), gateway_of(&id("uid-2").service));
        assert_ne!(id_of(&id("uid-1")), id_of(&id("uid-2")));
        assert_eq!(id_of(&id("uid-1")).as_str(), "uid-1", "names, selectors and keys stay");
    }
}
