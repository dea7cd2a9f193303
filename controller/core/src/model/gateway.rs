//! A gateway and the objects that it is made of.

use std::fmt;

use lb_svc_crds::names;

use super::ServiceRef;

/// A gateway, wherever its objects are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayRef {
    /// The gateway of one Service alone, by which it is known.
    Dedicated(ServiceRef),
}

impl GatewayRef {
    /// The namespace that it belongs to, where gateways have none of their own.
    pub fn home(&self) -> &str {
        match self {
            Self::Dedicated(service) => &service.namespace,
        }
    }
}

/// The gateway of nobody, for which is rendered what is the same for all.
impl Default for GatewayRef {
    fn default() -> Self {
        Self::Dedicated(ServiceRef::new("", ""))
    }
}

impl fmt::Display for GatewayRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dedicated(service) => write!(f, "gateway of {service}"),
        }
    }
}

/// The identity of a gateway: a UUID that no other has which had or will have its
/// name. Its objects and pods are labelled with it, its configuration is signed for
/// it, its key is derived from it, and it is the gateway's name in its election.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(String);

impl GatewayId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for GatewayId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for GatewayId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a gateway's objects are, or are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayLocation {
    /// The gateway.
    pub gateway: GatewayRef,
    /// The namespace of ConfigMap, Deployment, PodDisruptionBudget and pods.
    pub namespace: String,
}

impl GatewayLocation {
    /// The name of ConfigMap, Deployment and PodDisruptionBudget.
    pub fn name(&self) -> String {
        match &self.gateway {
            GatewayRef::Dedicated(service) if self.is_at_home() => names::gateway_name(&service.name),
            GatewayRef::Dedicated(service) => names::gateway_name_apart(&service.namespace, &service.name),
        }
    }

    /// Whether the gateway is in the namespace that it belongs to.
    pub fn is_at_home(&self) -> bool {
        self.namespace == self.gateway.home()
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
    /// The identity of the gateway it was made for; `None` if the controller did not
    /// make it.
    pub gateway_id: Option<GatewayId>,
    /// Its content.
    pub content: T,
}

impl<T> OwnedObject<T> {
    /// Whether it was made for this gateway.
    pub fn is_of(&self, gateway: &GatewayId) -> bool {
        self.gateway_id.as_ref() == Some(gateway)
    }

    /// The same with another content.
    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> OwnedObject<U> {
        let Self { uid, resource_version, deleting, gateway_id, content } = self;
        OwnedObject { uid, resource_version, deleting, gateway_id, content: to(content) }
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
