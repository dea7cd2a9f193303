//! Pods of gateways.

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_core::gateway::manifests::KEY_VOLUME;
use lb_svc_core::model::{GatewayLocation, GatewayRef, Pod, ServiceRef, StatusReport};
use lb_svc_crds::bounded::cut;
use lb_svc_crds::names::{self, POD_ANNOTATIONS};
use serde_json::Value;

/// The gateway that a pod is part of.
pub fn gateway_of_pod(pod: &core::Pod) -> Option<GatewayLocation> {
    let service = ServiceRef::parse(pod.annotations().get(names::SERVICE_ANNOTATION)?)?;
    Some(GatewayLocation { gateway: GatewayRef::Dedicated(service), namespace: pod.namespace()? })
}

/// The longest text that is kept of a pod's annotation or of what it waits for.
const TEXT_MAX: usize = 512;
/// The most annotations of a pod that are kept.
const ANNOTATIONS_MAX: usize = 32;

/// Whether a ReplicaSet of this name is one of the gateway's Deployment: it is
/// named after the Deployment, a dash and a hash.
pub fn is_set_of(gateway: &GatewayLocation, name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(name, _)| name == gateway.name())
}

/// Whether nothing is the object's controller.
pub fn is_alone(object: &impl ResourceExt) -> bool {
    object.owner_references().iter().all(|owner| owner.controller != Some(true))
}

/// Whether a ReplicaSet of the gateway's Deployment made the pod.
fn is_of_deployment(object: &core::Pod) -> bool {
    let Some(gateway) = gateway_of_pod(object) else { return false };
    object.owner_references().iter().any(|owner| {
        owner.controller == Some(true) && owner.kind == "ReplicaSet" && is_set_of(&gateway, &owner.name)
    })
}

/// A gateway's pod. Nothing of it is kept beyond a bound: whoever may create
/// pods may write into them what they like.
pub fn pod(object: &core::Pod) -> Pod {
    let status = object.status.clone().unwrap_or_default();
    let spec = object.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let annotations = object.annotations();
    let attachment = annotations.get(names::NETWORKS_ANNOTATION).cloned().unwrap_or_default();
    let unschedulable =
        condition("PodScheduled").filter(|condition| condition.status == "False").map(|condition| {
            ("Unschedulable".to_owned(), cut(condition.message.as_deref().unwrap_or_default(), TEXT_MAX))
        });
    let waiting = status.container_statuses.as_deref().unwrap_or_default().iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .clone()
            .filter(|reason| reason != "ContainerCreating" && reason != "PodInitializing")?;
        let message = waiting.message.as_deref().unwrap_or("the container waits");
        Some((cut(&reason, TEXT_MAX), cut(message, TEXT_MAX)))
    });
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ready = condition("Ready").is_some_and(|condition| condition.status == "True");
    let id = object.labels().get(names::SERVICE_UID_LABEL).filter(|id| !id.is_empty());
    let changed = condition("Ready").and_then(|condition| condition.last_transition_time.as_ref());
    Pod {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        gateway_id: id.map(|id| id.as_str().into()),
        of_deployment: is_of_deployment(object),
        alone: is_alone(object),
        legacy: object.labels().contains_key("service"),
        created,
        deleting: object.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        node: spec.and_then(|spec| spec.node_name.clone()),
        node_lost: false,
        ready,
        unready_since: changed.map(|time| time.0).or(created).filter(|_| !ready),
        cpu_limit: spec.and_then(cpu_limit),
        member: volumes.iter().any(|volume| volume.name == KEY_VOLUME),
        address: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        mac: annotations
            .get(names::NETWORK_STATUS_ANNOTATION)
            .and_then(|status| attached_mac(status, &attachment)),
        annotations: annotations
            .iter()
            .filter(|(key, _)| is_written(key))
            .map(|(key, value)| (key.clone(), cut(value, TEXT_MAX)))
            .take(ANNOTATIONS_MAX)
            .collect(),
        waiting: unschedulable.or(waiting),
        report: StatusReport::NotQueried,
    }
}

/// The CPU limit of one of the containers, which a LimitRange may have set.
fn cpu_limit(spec: &core::PodSpec) -> Option<String> {
    let limit =
        |container: &core::Container| container.resources.as_ref()?.limits.as_ref()?.get("cpu").cloned();
    spec.containers.iter().find_map(limit).map(|limit| cut(&limit.0, TEXT_MAX))
}

/// Whether an annotation is one that the controller writes on gateway pods.
fn is_written(key: &str) -> bool {
    let of_provider = |key: &str| POD_ANNOTATIONS.iter().any(|name| key.ends_with(&format!("/{name}")));
    key == names::CONFIG_ANNOTATION || key.contains(".kubernetes.io/") && of_provider(key)
}

/// The hardware address of the attachment's interface in Multus's report, in
/// lower case.
fn attached_mac(network_status: &str, attachment: &str) -> Option<String> {
    let networks: Vec<Value> = serde_json::from_str(network_status).ok()?;
    let mac = networks.iter().find(|network| network["name"] == attachment)?["mac"].as_str()?;
    let is_octet = |octet: &str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    (mac.split(':').count() == 6 && mac.split(':').all(is_octet)).then(|| mac.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gateway_pod_has_node_and_time_of_unreadiness() {
        let of = |conditions: Value| {
            let object = json!({
                "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "nodeName": "n1", "containers": [] },
                "status": { "conditions": conditions },
            });
            let pod = pod(&serde_json::from_value(object).unwrap());
            assert_eq!(pod.node.as_deref(), Some("n1"));
            (pod.ready, pod.unready_since.map(|since| since.to_string()))
        };
        let ready = |status: &str| json!([{ "type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:07Z" }]);
        assert_eq!(of(ready("True")), (true, None));
        assert_eq!(of(ready("False")), (false, Some("2026-01-01T00:00:07Z".into())));
        assert_eq!(of(json!([])), (false, Some("2026-01-01T00:00:00Z".into())));
    }

    fn labelled(owner: &Value, annotations: &Value) -> Pod {
        let mut metadata = json!({
            "namespace": "default", "name": "any", "annotations": annotations, "ownerReferences": [owner],
        });
        metadata["annotations"][names::SERVICE_ANNOTATION] = "default/web".into();
        metadata["annotations"][names::NETWORKS_ANNOTATION] = "kube-system/lan".into();
        pod(&serde_json::from_value(json!({ "metadata": metadata })).unwrap())
    }

    #[test]
    fn r2_only_a_pod_of_the_gateways_deployment_is_asked() {
        let of = |kind: &str, name: &str, controller: bool| {
            let owner = json!({ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": controller });
            labelled(&owner, &json!({})).of_deployment
        };
        assert!(of("ReplicaSet", "lb-svc-web-7f7b59c5b7", true));
        assert!(!of("ReplicaSet", "lb-svc-web-2-7f7b59c5b7", true), "another gateway's");
        assert!(!of("ReplicaSet", "lb-svc-web-7f7b59c5b7", false));
        assert!(!of("ReplicaSet", "forged", true));
        assert!(!of("Job", "lb-svc-web-7f7b59c5b7", true));
    }

    #[test]
    fn r3_no_more_is_kept_of_a_pod_than_is_written() {
        let owner = json!({ "apiVersion": "v1", "kind": "Job", "name": "x", "uid": "u" });
        let long = "x".repeat(200_000);
        let mut annotations = json!({ names::CONFIG_ANNOTATION: &long, "a.b.kubernetes.io/note": &long });
        for n in 0..1000 {
            annotations[format!("a.n{n}.kubernetes.io/cidr")] = long[..100].into();
        }
        let pod = labelled(&owner, &annotations);
        let kept: usize = pod.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(kept < 8_192, "{kept} bytes of annotations");
        assert!(
            pod.annotations.len() <= ANNOTATIONS_MAX && pod.annotations.keys().all(|key| is_written(key))
        );
    }

    #[test]
    fn r28_cpu_limit_is_that_of_a_container() {
        let of = |limits: Value| {
            let container = json!({ "name": "gateway", "resources": { "limits": limits } });
            let object = json!({ "metadata": {}, "spec": { "containers": [{ "name": "x" }, container] } });
            pod(&serde_json::from_value(object).unwrap()).cpu_limit
        };
        assert_eq!(of(json!({ "cpu": "50m", "memory": "64Mi" })).as_deref(), Some("50m"));
        assert_eq!(of(json!({ "memory": "64Mi" })), None);
    }

    #[test]
    fn r29_only_a_hardware_address_is_one() {
        let report = |mac: &str| {
            let report = json!([{ "name": "kube-system/lan", "mac": mac }]).to_string();
            attached_mac(&report, "kube-system/lan")
        };
        assert_eq!(report("BA:85:f7:02:9f:42").as_deref(), Some("ba:85:f7:02:9f:42"));
        for mac in ["", "ba:85:f7:02:9f", "ba:85:f7:02:9f:4", "ba:85:f7:02:9f:4g", &"a".repeat(10_000)] {
            assert_eq!(report(mac), None, "{mac}");
        }
    }
}
