//! Which gateway serves a Service: one of its own.

use crate::model::{GatewayId, GatewayRef, ServiceId, ServiceRef};

/// The gateway that serves a Service.
pub fn gateway_of(service: &ServiceRef) -> GatewayRef {
    GatewayRef::dedicated_to(service.clone())
}

/// The identity of the gateway that serves a Service.
pub fn id_of(service: &ServiceId) -> GatewayId {
    GatewayId::dedicated_to(service)
}

/// The Service that a gateway serves.
pub fn service_of(gateway: &GatewayRef) -> &ServiceRef {
    gateway.service()
}
