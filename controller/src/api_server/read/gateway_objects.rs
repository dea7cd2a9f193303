//! The objects that a gateway is made of: ConfigMap, Deployment and
//! PodDisruptionBudget.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use lb_svc_core::model::{
    DeploymentState, GatewayLocation, GatewayRef, MESSAGE_MAX, OwnedObject, ServiceRef,
};
use lb_svc_crds::bounded::cut;
use lb_svc_crds::names;
use serde::Serialize;
use serde_json::Value;

/// The gateway that a ConfigMap or Deployment of ours is part of; `None` if
/// its name is not that gateway's.
pub fn gateway_of<K: Resource>(object: &K) -> Option<GatewayLocation> {
    let meta = object.meta();
    let managed = meta.labels.as_ref()?.get(names::MANAGED_BY_LABEL)? == names::MANAGED_BY;
    let service = ServiceRef::parse(meta.annotations.as_ref()?.get(names::SERVICE_ANNOTATION)?)?;
    let gateway =
        GatewayLocation { gateway: GatewayRef::Dedicated(service), namespace: meta.namespace.clone()? };
    (managed && meta.name.as_ref() == Some(&gateway.name())).then_some(gateway)
}

fn child<K: Resource, T>(object: &K, content: T) -> OwnedObject<T> {
    let meta = object.meta();
    let id = meta.labels.as_ref().and_then(|labels| labels.get(names::SERVICE_UID_LABEL));
    OwnedObject {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        gateway_id: id.map(|id| id.as_str().into()),
        content,
    }
}

/// A gateway's ConfigMap.
pub fn config(object: &ConfigMap) -> OwnedObject<String> {
    let content = object.data.as_ref().and_then(|data| data.get(names::CONFIG_KEY)).cloned();
    child(object, content.unwrap_or_default())
}

/// The seal on a gateway's ConfigMap, if there is one.
pub fn seal(object: &ConfigMap) -> Option<&str> {
    object.data.as_ref()?.get(names::SEAL_KEY).map(String::as_str)
}

/// A gateway's Deployment.
pub fn deployment(object: &Deployment) -> OwnedObject<DeploymentState> {
    let conditions =
        object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
        .map(|condition| cut(condition.message.as_deref().unwrap_or_default(), MESSAGE_MAX));
    let rolling = failure.is_none() && rolling(object);
    let given_up =
        conditions.iter().any(|condition| condition.type_ == "Progressing" && condition.status == "False");
    let view = DeploymentState { failure, rolling, given_up, live: live(object), as_answered: false };
    child(object, view)
}

/// A gateway's PodDisruptionBudget, as [`live`] shows a Deployment.
pub fn budget(object: &PodDisruptionBudget) -> OwnedObject<Value> {
    child(object, compared(object, &object.spec))
}

/// Whether the Deployment controller is still at it, or has yet to begin. What
/// comes to nothing within the progress deadline it gives up, and says so.
fn rolling(object: &Deployment) -> bool {
    let Some(status) = &object.status else { return true };
    let replicas = object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let progress = conditions.iter().find(|condition| condition.type_ == "Progressing");
    let finished = progress.is_some_and(|progress| {
        let complete = progress.reason.as_deref() == Some("NewReplicaSetAvailable")
            && status.updated_replicas.unwrap_or(0) >= replicas;
        complete || progress.status == "False"
    });
    !finished || status.observed_generation < object.metadata.generation
}

/// What of a Deployment is compared with what it should be.
pub fn live(object: &Deployment) -> Value {
    compared(object, &object.spec)
}

fn compared<K: Resource>(object: &K, spec: &impl Serialize) -> Value {
    let meta = object.meta();
    serde_json::json!({
        "metadata": {
            "labels": meta.labels,
            "annotations": meta.annotations,
            "ownerReferences": meta.owner_references,
            "finalizers": meta.finalizers,
        },
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rollout_ends_when_complete_or_given_up() {
        let rolling_of = |replicas: i32, observed: i64, updated: i32, progress: Value| {
            let object = json!({
                "metadata": { "generation": 2 },
                "spec": { "replicas": replicas, "selector": {}, "template": {} },
                "status": { "observedGeneration": observed, "updatedReplicas": updated, "conditions": [progress] },
            });
            deployment(&serde_json::from_value(object).unwrap()).content.rolling
        };
        let rolling = |observed, updated, progress| rolling_of(1, observed, updated, progress);
        let condition =
            |status: &str, reason: &str| json!({ "type": "Progressing", "status": status, "reason": reason });
        let complete = condition("True", "NewReplicaSetAvailable");
        assert!(!rolling(2, 1, complete.clone()));
        assert!(rolling(1, 1, complete.clone()), "the change has not been seen yet");
        assert!(rolling(2, 0, complete.clone()), "the old pod is on its way out");
        assert!(rolling_of(2, 2, 1, complete.clone()), "one of two is done");
        assert!(!rolling_of(2, 2, 2, complete));
        assert!(rolling(2, 1, condition("True", "ReplicaSetUpdated")));
        assert!(!rolling(2, 1, condition("False", "ProgressDeadlineExceeded")));
        let refused = json!({ "type": "ReplicaFailure", "status": "True", "message": "quota" });
        assert!(!rolling(2, 0, refused));
        assert!(deployment(&Deployment::default()).content.rolling, "it has just been made");
    }
}
