//! Rendered Deployments for tests.

use serde_json::Value;

use crate::gateway::manifests::{DeploymentTemplate, deployment};
use crate::gateway::pod_settings::{Configuration, Settings};
use crate::model::{Attachment, GatewayLocation, GatewayRef, ServiceId, ServiceRef, Setting};

/// The Service of a gateway, by name.
pub fn owner(name: &str) -> ServiceId {
    ServiceId { service: ServiceRef::new("default", name), uid: "uid-1".into() }
}

/// Where its gateway is.
pub fn gateway(name: &str) -> GatewayLocation {
    GatewayLocation { gateway: GatewayRef::dedicated_to(owner(name).service), namespace: "default".into() }
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
        &owner(name),
        &gateway(name),
        &DeploymentTemplate { provider: &provider, attachment, all: &all, own: &own, trusted: &[] },
    )
}
