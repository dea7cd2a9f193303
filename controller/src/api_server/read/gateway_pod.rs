//! Pods of gateways.

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_core::gateway::manifests::KEY_VOLUME;
use lb_svc_core::model::{GatewayRef, Pod, ServiceRef, StatusReport};
use lb_svc_crds::names;
use serde_json::Value;

/// The gateway that a pod is part of.
pub fn gateway_of_pod(pod: &core::Pod) -> Option<GatewayRef> {
    let service = ServiceRef::parse(pod.annotations().get(names::SERVICE_ANNOTATION)?)?;
    Some(GatewayRef { service, namespace: pod.namespace()? })
}

/// A gateway's pod.
pub fn pod(object: &core::Pod) -> Pod {
    let status = object.status.clone().unwrap_or_default();
    let spec = object.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let annotations = object.annotations();
    let attachment = annotations.get(names::NETWORKS_ANNOTATION).cloned().unwrap_or_default();
    let unschedulable = condition("PodScheduled")
        .filter(|condition| condition.status == "False")
        .map(|condition| ("Unschedulable".to_owned(), condition.message.clone().unwrap_or_default()));
    let waiting = status.container_statuses.as_deref().unwrap_or_default().iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .clone()
            .filter(|reason| reason != "ContainerCreating" && reason != "PodInitializing")?;
        let message = waiting.message.clone().unwrap_or_else(|| "the container waits".to_owned());
        Some((reason, message))
    });
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ready = condition("Ready").is_some_and(|condition| condition.status == "True");
    let changed = condition("Ready").and_then(|condition| condition.last_transition_time.as_ref());
    Pod {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        owner_uid: object.labels().get(names::SERVICE_UID_LABEL).cloned().unwrap_or_default(),
        created,
        deleting: object.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        node: spec.and_then(|spec| spec.node_name.clone()),
        node_lost: false,
        ready,
        unready_since: changed.map(|time| time.0).or(created).filter(|_| !ready),
        member: volumes.iter().any(|volume| volume.name == KEY_VOLUME),
        address: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        mac: annotations
            .get(names::NETWORK_STATUS_ANNOTATION)
            .and_then(|status| attached_mac(status, &attachment)),
        annotations: annotations
            .iter()
            .filter(|(key, _)| key.starts_with(names::DOMAIN) || key.contains(".kubernetes.io/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        waiting: unschedulable.or(waiting),
        report: StatusReport::NotQueried,
    }
}

/// The hardware address of the attachment's interface in Multus's report.
fn attached_mac(network_status: &str, attachment: &str) -> Option<String> {
    let networks: Vec<Value> = serde_json::from_str(network_status).ok()?;
    networks.iter().find(|network| network["name"] == attachment)?["mac"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_says_where_it_is_and_since_when_it_is_not_ready() {
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
}
