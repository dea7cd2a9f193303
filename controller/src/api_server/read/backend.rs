//! All pods of the cluster: those with the readiness gate, and those that publish
//! ports on their node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::{Resource, ResourceExt};
use lb_svc_core::model::{Backend, PodId};
use lb_svc_core::node_mode::proxy;
use lb_svc_core::service::spec::transport;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::names;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// A pod, as far as our readiness gate and its node's ports concern it. All of the
/// cluster are watched, so that it is read straight from JSON, and no more of it than
/// this.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = core::Pod)]
pub struct WatchedPod {
    #[serde(deserialize_with = "metadata")]
    metadata: meta::ObjectMeta,
    spec: Option<WatchedPodSpec>,
    status: Option<WatchedPodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatchedPodSpec {
    readiness_gates: Option<Vec<Gate>>,
    node_name: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Container {
    ports: Option<Vec<ContainerPort>>,
}

/// With `hostNetwork` Kubernetes itself makes each declared port a `hostPort`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    host_port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Gate {
    condition_type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct WatchedPodStatus {
    phase: Option<String>,
    conditions: Option<Vec<GateCondition>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GateCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<String>,
}

/// What is used of a pod's metadata; `managedFields` alone are half of a pod.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<IgnoredAny>,
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<meta::ObjectMeta, D::Error> {
    let Metadata { name, namespace, uid, resource_version, labels, deletion_timestamp } =
        Metadata::deserialize(deserializer)?;
    // When it was deleted is of no use.
    let deletion_timestamp = deletion_timestamp.map(|_| meta::Time(jiff::Timestamp::UNIX_EPOCH));
    let rest = meta::ObjectMeta::default();
    Ok(meta::ObjectMeta { name, namespace, uid, resource_version, labels, deletion_timestamp, ..rest })
}

impl WatchedPod {
    fn gates(&self) -> impl Iterator<Item = &str> {
        let gates = self.spec.iter().filter_map(|spec| spec.readiness_gates.as_ref()).flatten();
        gates.map(|gate| gate.condition_type.as_str())
    }

    /// Whether our gate is among its own.
    pub fn is_gated(&self) -> bool {
        self.gates().any(|gate| gate == names::READINESS_GATE)
    }
}

/// The ports that a pod publishes on its node, and the node. Of one node no two pods
/// have the same: Kubernetes itself bounds how many there are.
pub fn published_ports(object: &WatchedPod) -> Option<(String, BTreeSet<Port>)> {
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let spec = object.spec.as_ref()?;
    let containers = spec.containers.iter().chain(&spec.init_containers).flatten();
    let published = |port: &ContainerPort| {
        let protocol = transport(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some(Port { protocol, port: port.host_port.filter(|port| *port != 0)? })
    };
    let ports: BTreeSet<Port> =
        containers.filter_map(|it| it.ports.as_ref()).flatten().filter_map(published).collect();
    let node = spec.node_name.clone().filter(|_| !ports.is_empty())?;
    Some((node, ports))
}

/// Whether a pod is of kube-proxy, or of what may stand in for it.
pub fn proxy_of(object: &WatchedPod) -> Option<&'static str> {
    proxy::of_pod(&object.namespace()?, object.labels())
}

/// The most labels of a pod, in number and in bytes, by which it is selected
/// here. Beyond that only EndpointSlices say whose endpoint it is.
const LABELS_MAX: (usize, usize) = (64, 8_192);

fn labels(object: &WatchedPod) -> BTreeMap<String, String> {
    let all = object.labels();
    let bytes: usize = all.iter().map(|(name, value)| name.len() + value.len()).sum();
    let (count, length) = LABELS_MAX;
    if all.len() <= count && bytes <= length { all.clone() } else { BTreeMap::new() }
}

/// A pod that has our gate.
pub fn backend(object: &WatchedPod) -> Backend {
    let status = object.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.kind == kind);
    let is = |kind: &str, status: &str| condition(kind).filter(|condition| condition.status == status);
    let is_true = |kind: &str| is(kind, "True").is_some();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let others = object.gates().filter(|gate| *gate != names::READINESS_GATE).all(is_true);
    let uid = object.uid().unwrap_or_default();
    Backend {
        id: PodId::of(&uid),
        uid,
        labels: labels(object),
        ready_except_gate: !ended
            && object.metadata.deletion_timestamp.is_none()
            && others
            && is_true("ContainersReady"),
        gate_satisfied_at: is(names::READINESS_GATE, "True").map(|condition| {
            let since = condition.last_transition_time.as_ref().and_then(|time| time.parse().ok());
            since.unwrap_or_default()
        }),
        gate_reported: is(names::READINESS_GATE, "False").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use serde_json::Value;

    #[test]
    fn backend_is_ready_except_gate_if_all_else_is_ready() {
        let other = "example.com/other";
        let of = |metadata: Value, phase: &str, conditions: &[(&str, &str)]| {
            let conditions = conditions.iter().map(|(kind, status)| {
                json!({ "type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:07Z" })
            });
            let gates = [names::READINESS_GATE, other].map(|gate| json!({ "conditionType": gate }));
            let object = json!({
                "metadata": metadata,
                "spec": { "readinessGates": gates, "containers": [] },
                "status": { "phase": phase, "conditions": conditions.collect::<Value>() },
            });
            let pod: WatchedPod = serde_json::from_value(object).unwrap();
            assert!(pod.is_gated());
            let Backend { ready_except_gate, gate_satisfied_at, gate_reported, .. } = backend(&pod);
            (ready_except_gate, gate_satisfied_at.map(|at| at.to_string()), gate_reported)
        };
        let lives = || json!({ "uid": "p-1" });
        let (containers, others) = (("ContainersReady", "True"), (other, "True"));
        let ours = |status| (names::READINESS_GATE, status);
        assert_eq!(of(lives(), "Running", &[containers, others]), (true, None, false));
        assert_eq!(of(lives(), "Running", &[containers, others, ours("False")]), (true, None, true));
        let passed = Some("2026-01-01T00:00:07Z".to_owned());
        assert_eq!(of(lives(), "Running", &[containers, others, ours("True")]), (true, passed, false));
        assert!(!of(lives(), "Running", &[others]).0);
        assert!(!of(lives(), "Running", &[containers, (other, "False")]).0);
        assert!(!of(lives(), "Failed", &[containers, others]).0);
        let ends = json!({ "uid": "p-1", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        assert!(!of(ends, "Running", &[containers, others]).0);
    }

    #[test]
    fn ports_that_a_pod_publishes_on_its_node_are_read_of_all_its_containers() {
        let of = |spec: serde_json::Value, phase: &str| {
            let object = json!({ "metadata": { "namespace": "a", "name": "b" }, "spec": spec, "status": { "phase": phase } });
            published_ports(&serde_json::from_value(object).unwrap())
        };
        let ports = json!([
            { "containerPort": 8080, "hostPort": 80 }, { "containerPort": 53, "hostPort": 53, "protocol": "UDP" },
            { "containerPort": 9000 }, { "containerPort": 9, "hostPort": 9, "protocol": "SCTP" },
        ]);
        let sidecar = json!([{ "ports": [{ "containerPort": 443, "hostPort": 443 }] }]);
        let spec = json!({ "nodeName": "n1", "containers": [{ "ports": ports }], "initContainers": sidecar });
        let (node, found) = of(spec.clone(), "Running").unwrap();
        let found: Vec<_> = found.iter().map(|port| (port.port, port.protocol.name())).collect();
        assert_eq!((node.as_str(), &found[..]), ("n1", &[(80, "tcp"), (443, "tcp"), (53, "udp")][..]));
        assert_eq!(of(spec.clone(), "Succeeded"), None);
        let mut nowhere = spec;
        nowhere["nodeName"] = json!(null);
        assert_eq!(of(nowhere, "Pending"), None, "it is on no node yet");
        assert_eq!(of(json!({ "nodeName": "n1", "containers": [{ "name": "c" }] }), "Running"), None);
    }
}
