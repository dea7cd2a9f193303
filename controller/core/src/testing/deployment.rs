//! Rendered Deployments for tests.

use serde_json::Value;

use crate::gateway::manifests::{DeploymentTemplate, deployment};
use crate::gateway::pod_settings::{Configuration, Settings};
use crate::model::{Attachment, GatewayId, GatewayLocation, GatewayRef, ServiceRef, Setting};

/// The identity of a gateway.
pub fn id() -> GatewayId {
    "uid-1".into()
}

/// Where the gateway of the Service `name` is.
pub fn gateway(name: &str) -> GatewayLocation {
    GatewayLocation {
        gateway: GatewayRef::Dedicated(ServiceRef::new("default", name)),
        namespace: "default".into(),
    }
}

/// The Deployment of a gateway of which nothing is set.
pub fn rendered(name: &str) -> Value {
    with(name, &Attachment::default(), &[], &[])
}

/// The same, with settings for all gateways and its own.
pub fn with(
    name: &str,
    attachment: &Attachment,
    all: &[(Setting, Value)],
    own: &[(Setting, Value)],
) -> Value {
    let all = Settings::from_iter(all.iter().cloned()).or(&Configuration::new("gateway:1", false).gateway);
    let own = Settings::from_iter(own.iter().cloned());
    let provider = "lan.kube-system".parse().unwrap();
    deployment(
        &id(),
        &gateway(name),
        &DeploymentTemplate { provider: &provider, attachment, all: &all, own: &own, trusted: &[] },
    )
}
