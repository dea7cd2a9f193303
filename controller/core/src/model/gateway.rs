//! A gateway and the objects that it is made of.

use std::fmt;

use lb_svc_crds::names;

use super::{ServiceId, ServiceRef};

/// A gateway, wherever it is: each is dedicated to one Service and known by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayRef {
    service: ServiceRef,
}

impl GatewayRef {
    /// The gateway that is dedicated to `service`.
    pub fn dedicated_to(service: ServiceRef) -> Self {
        Self { service }
    }

    /// The Service that it is dedicated to.
    pub fn service(&self) -> &ServiceRef {
        &self.service
    }
}

/// The identity of a gateway in its election and of its key: a UUID. No other
/// gateway that had or will have its name has the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayId(String);

impl GatewayId {
    /// The identity of the gateway that is dedicated to `service`: the Service's
    /// uid.
    pub fn dedicated_to(service: &ServiceId) -> Self {
        Self(service.uid.clone())
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a gateway's objects are, or are to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayLocation {
    /// The gateway.
    pub gateway: GatewayRef,
    /// The namespace of ConfigMap, Deployment, PodDisruptionBudget and pods.
    pub namespace: String,
}

impl GatewayLocation {
    /// The name of ConfigMap, Deployment and PodDisruptionBudget.
    pub fn name(&self) -> String {
        let ServiceRef { namespace, name } = self.gateway.service();
        if self.in_service_namespace() {
            names::gateway_name(name)
        } else {
            names::gateway_name_apart(namespace, name)
        }
    }

    /// Whether the gateway is in the namespace of its Service.
    pub fn in_service_namespace(&self) -> bool {
        self.namespace == self.gateway.service().namespace
    }
}

impl fmt::Display for GatewayLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name())
    }
}

/// A ConfigMap or Deployment with a gateway's name, as last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedObject<T> {
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// The uid of the Service it was made for; `None` if the controller did not make
    /// it.
    pub owner_uid: Option<String>,
    /// Its content.
    pub content: T,
}

impl<T> OwnedObject<T> {
    /// The same with another content.
    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> OwnedObject<U> {
        let Self { uid, resource_version, deleting, owner_uid, content } = self;
        OwnedObject { uid, resource_version, deleting, owner_uid, content: to(content) }
    }
}

/// What is known of a Deployment's spec and status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeploymentState {
    /// Why no pod could be made, in the ReplicaSet controller's words.
    pub failure: Option<String>,
    /// Whether it is being rolled out: neither complete nor given up.
    pub rolling: bool,
    /// Whether Kubernetes has given it up: it has not become ready in time.
    pub given_up: bool,
    /// Its metadata and spec, see [`crate::gateway::manifests`].
    pub live: serde_json::Value,
    /// Whether its spec is what the API server answered to our own last write.
    pub as_answered: bool,
}

/// The kinds of object that are a gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// ConfigMap.
    Config,
    /// Deployment.
    Deployment,
    /// PodDisruptionBudget.
    Budget,
}
