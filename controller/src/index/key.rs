//! What a run of the controller's loop is about.

use lb_svc_core::model::{ObjectName, ServiceRef};

/// What one run of the controller's loop is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The gateway of this Service.
    Gateway(ServiceRef),
    /// The Subnet of this name.
    Subnet(String),
    /// The pod of this name that waits for our readiness gate.
    Backend(ObjectName),
}
