//! What a run of the controller's loop is about.

use std::fmt;

use lb_svc_core::model::{GatewayRef, ObjectName};

/// What one run of the controller's loop is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// This gateway, together with the Service that it is dedicated to.
    Gateway(GatewayRef),
    /// The Subnet of this name.
    Subnet(String),
    /// The pod of this name that waits for our readiness gate.
    Backend(ObjectName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway) => write!(f, "{gateway}"),
            Self::Subnet(name) => write!(f, "Subnet {name}"),
            Self::Backend((namespace, name)) => write!(f, "pod {namespace}/{name}"),
        }
    }
}
