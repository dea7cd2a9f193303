//! What a run of the controller's loop is about.

use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::model::{GatewayRef, ObjectName, ServiceRef};

/// What one run of the controller's loop is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// This gateway.
    Gateway(GatewayRef),
    /// The Subnet of this name.
    Subnet(String),
    /// The pod of this name that waits for our readiness gate.
    Backend(ObjectName),
}

impl Key {
    /// The gateway that serves `service`.
    pub fn gateway_of(service: &ServiceRef) -> Self {
        Self::Gateway(gateway_of(service))
    }
}
