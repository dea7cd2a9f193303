//! The objects a gateway is made of, as JSON: what the API server is to be
//! given, and whether what it has is that.

use std::collections::BTreeMap;

use lb_svc_crds::names;
use serde_json::{Value, json};

use crate::model::{GatewayId, GatewayLocation, GatewayRef};

mod deployment;
mod diff;
pub mod quantity;
mod template_hash;

pub use deployment::{
    DeploymentTemplate, KEY_VOLUME, PROGRESS_DEADLINE, deployment, trusted_keys, trusts_keys,
};
pub use diff::{contains, is_as_wanted};
pub use template_hash::TemplateHash;

/// The labels of a gateway's objects, its pods apart.
fn labels(id: &GatewayId, gateway: &GatewayRef) -> BTreeMap<String, String> {
    let GatewayRef::Dedicated(service) = gateway;
    [
        ("app", names::label_value(&names::gateway_name(&service.name))),
        ("namespace", names::label_value(&service.namespace)),
        ("service", names::label_value(&service.name)),
        (names::MANAGED_BY_LABEL, names::MANAGED_BY.to_owned()),
        (names::SERVICE_UID_LABEL, id.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The annotations by which a gateway's objects and pods are known as its own.
fn annotations(gateway: &GatewayRef) -> Value {
    let GatewayRef::Dedicated(service) = gateway;
    json!({ names::SERVICE_ANNOTATION: service.to_string() })
}

/// The label that a gateway's pods, and no others, have.
fn selector(id: &GatewayId) -> BTreeMap<String, String> {
    [(names::SERVICE_UID_LABEL.to_owned(), id.to_string())].into()
}

/// The labels of a gateway's pods: none that the selector of a Service, a
/// budget or a policy of a user's could meet by chance.
fn pod_labels(id: &GatewayId) -> BTreeMap<String, String> {
    let mut labels = selector(id);
    labels.insert(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned());
    // Istio's ambient mode heeds nothing but a label.
    labels.insert("istio.io/dataplane-mode".to_owned(), "none".to_owned());
    labels
}

/// The selector of the Deployment whose pods have the labels of
/// `labels`, as releases before 0.2 made it: it cannot be changed.
pub fn legacy_selector(id: &GatewayId, gateway: &GatewayRef) -> BTreeMap<String, String> {
    let mut labels = labels(id, gateway);
    labels.remove(names::MANAGED_BY_LABEL);
    labels
}

/// Name, labels and owner of a gateway's ConfigMap, Deployment and
/// PodDisruptionBudget. Ownership ends at the namespace.
fn metadata(id: &GatewayId, location: &GatewayLocation) -> Value {
    let GatewayRef::Dedicated(service) = &location.gateway;
    let mut metadata = json!({
        "name": location.name(),
        "namespace": location.namespace,
        "labels": labels(id, &location.gateway),
        "annotations": annotations(&location.gateway),
    });
    if location.is_at_home() {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "v1",
            "kind": "Service",
            "name": service.name,
            "uid": id.as_str(),
            "controller": true,
            "blockOwnerDeletion": false,
        }]);
    }
    metadata
}

/// A gateway's ConfigMap, with the seal on its content, if that is signed.
pub fn config(id: &GatewayId, gateway: &GatewayLocation, content: &str, seal: Option<&str>) -> Value {
    let mut data = json!({ names::CONFIG_KEY: content });
    if let Some(seal) = seal {
        data[names::SEAL_KEY] = seal.into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(id, gateway),
        "data": data,
    })
}

/// The PodDisruptionBudget of a gateway with several pods: one at a time.
pub fn budget(id: &GatewayId, gateway: &GatewayLocation) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(id, gateway),
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector(id) } },
    })
}

/// The Secret with a gateway's key. It goes with the gateway's ConfigMap, the
/// one with this uid, for nobody may delete it. `key` is in base64.
pub fn key(id: &GatewayId, gateway: &GatewayLocation, config: &str, key: &Value) -> Value {
    let mut metadata = metadata(id, gateway);
    metadata["name"] = json!(names::key_name(&gateway.name(), id.as_str()));
    metadata["ownerReferences"] = json!([{
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": gateway.name(),
        "uid": config,
        "controller": true,
        "blockOwnerDeletion": false,
    }]);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "immutable": true,
        "data": { names::KEY_FILE: key },
    })
}

/// The Secret that all gateways' keys are derived from; `master` is in base64.
pub fn master(namespace: &str, master: &Value) -> Value {
    let mut secret = own_secret(namespace, names::MASTER_SECRET, names::MASTER_KEY, master);
    secret["immutable"] = true.into();
    secret
}

/// The Secret with the seed, in base64, of the key that signs configurations. It can
/// be changed: another key takes its place in steps.
pub fn signing(namespace: &str, seed: &Value) -> Value {
    own_secret(namespace, names::SIGNING_SECRET, names::SIGNING_KEY, seed)
}

/// A Secret of the controller's own.
fn own_secret(namespace: &str, name: &str, key: &str, value: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY },
        },
        "type": "Opaque",
        "data": { key: value },
    })
}
