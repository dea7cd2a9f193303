//! A gateway and the objects that it is made of.

use std::fmt;

use lb_svc_crds::names;

use super::ServiceRef;

/// Where a Service's gateway is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayRef {
    /// The Service.
    pub service: ServiceRef,
    /// The namespace of ConfigMap, Deployment and pods.
    pub namespace: String,
}

impl GatewayRef {
    /// The name of ConfigMap and Deployment.
    pub fn name(&self) -> String {
        let ServiceRef { namespace, name } = &self.service;
        if self.in_service_namespace() {
            names::gateway_name(name)
        } else {
            names::gateway_name_apart(namespace, name)
        }
    }

    /// Whether the gateway is in the Service's own namespace.
    pub fn in_service_namespace(&self) -> bool {
        self.namespace == self.service.namespace
    }
}

impl fmt::Display for GatewayRef {
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
    /// The uid of the Service it was made for; `None` if we did not make it.
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

/// What a Deployment's content is to the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeploymentState {
    /// Why no pod could be made, in the ReplicaSet controller's words.
    pub failure: Option<String>,
    /// Whether its pod is being replaced or made: not ready yet, and not given
    /// up either.
    pub rolling: bool,
    /// Whether Kubernetes has given it up: it has not become ready in time.
    pub given_up: bool,
    /// What of it is compared with what is wanted, see [`crate::gateway::manifests`].
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
