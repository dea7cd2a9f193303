//! Kubernetes objects, as the controller's own terms.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Node};
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::{CustomResource, Resource, ResourceExt};
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::{IP, Subnet};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{
    Attachment, Backend, Child, Condition, DeploymentView, Ingress, Owner, Place, Pod, PodId, PortStatus,
    Service, ServicePort, ServiceRef,
};
use crate::endpoints::{Endpoint, Slice, SlicePort};
use crate::ipam::{Claim, ClaimId};
use crate::render;
use crate::request::transport;
use crate::state::{self, SubnetView};

/// Multus's kind, as far as it concerns us.
#[derive(CustomResource, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    namespaced,
    schema = "disabled"
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// The CNI configuration, JSON.
    #[serde(default)]
    pub config: String,
}

/// An attachment. An empty configuration is right: Multus looks for one on the
/// node then.
pub fn attachment(object: &NetworkAttachmentDefinition) -> Attachment {
    let (config, fault) = match serde_json::from_str::<Value>(&object.spec.config) {
        Ok(config) => (config, None),
        Err(_) if object.spec.config.is_empty() => (Value::Null, None),
        Err(error) => (Value::Null, Some(format!("its spec.config is not JSON: {error}"))),
    };
    Attachment {
        wire: wire(&config),
        resource: object.annotations().get(names::RESOURCE_NAME_ANNOTATION).cloned(),
        digest: names::digest(config.to_string().as_bytes()),
        fault,
    }
}

/// CNI type, interface and VLAN, where the configuration names them.
fn wire(config: &Value) -> Option<String> {
    let plugin = config["plugins"].get(0).unwrap_or(config);
    let (kind, master) = (plugin["type"].as_str()?, plugin["master"].as_str()?);
    let vlan = ["vlan", "vlanId"].iter().find_map(|key| plugin[key].as_u64()).unwrap_or(0);
    Some(format!("{kind} on {master}, VLAN {vlan}"))
}

/// The Service an object is, by name.
pub fn service_ref(object: &core::Service) -> ServiceRef {
    ServiceRef::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// The annotations of a Service that concern us and are not of our domain.
const OTHERS: [&str; 3] =
    [names::PROVIDER_ANNOTATION, names::CCE_PASS_THROUGH_ANNOTATION, names::TKE_DIRECT_ACCESS_ANNOTATION];
/// For how long a client stays with its backend unless the Service says
/// (Kubernetes API).
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service, if it is or was any of our business.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let (conditions, since) = conditions(status.conditions.as_deref().unwrap_or_default(), names::DOMAIN);
    let annotations: BTreeMap<String, String> = object
        .annotations()
        .iter()
        .filter(|(key, _)| {
            OTHERS.contains(&key.as_str())
                || key.starts_with(names::DOMAIN)
                || key.ends_with(".kubernetes.io/logical_switch")
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !annotations.contains_key(names::PROVIDER_ANNOTATION) && conditions.is_empty() {
        return None;
    }
    let ingress = status.load_balancer.and_then(|lb| lb.ingress).unwrap_or_default();
    Some(Service {
        owner: Owner { service: service_ref(object), uid: object.uid().unwrap_or_default() },
        resource_version: object.resource_version().unwrap_or_default(),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
        class: spec.load_balancer_class,
        annotations,
        load_balancer_ip: spec.load_balancer_ip.unwrap_or_default(),
        cluster_ips: spec.cluster_ips.unwrap_or_default(),
        ports: spec.ports.unwrap_or_default().into_iter().filter_map(port).collect(),
        selector: spec.selector.unwrap_or_default(),
        affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let said = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
            said.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS)
        }),
        local_policy: spec.external_traffic_policy.as_deref() == Some("Local"),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
        ingress: ingress.into_iter().map(self::ingress).collect(),
        conditions,
        since,
    })
}

fn port(object: core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: object.name.unwrap_or_default(),
        protocol: object.protocol.unwrap_or_else(|| "TCP".to_owned()),
        port: u16::try_from(object.port).ok()?,
    })
}

fn ingress(object: core::LoadBalancerIngress) -> Ingress {
    let port = |port: core::PortStatus| {
        let number = u16::try_from(port.port).ok()?;
        Some(PortStatus { protocol: port.protocol, port: number, error: port.error })
    };
    Ingress {
        ip: object.ip.unwrap_or_default(),
        proxy: object.ip_mode.as_deref() == Some("Proxy"),
        ports: object.ports.unwrap_or_default().into_iter().filter_map(port).collect(),
    }
}

/// The same as an entry of `status.loadBalancer.ingress`.
pub fn ingress_entry(ingress: &Ingress) -> core::LoadBalancerIngress {
    let port = |port: &PortStatus| core::PortStatus {
        error: port.error.clone(),
        port: port.port.into(),
        protocol: port.protocol.clone(),
    };
    core::LoadBalancerIngress {
        ip: Some(ingress.ip.clone()),
        ip_mode: Some(if ingress.proxy { "Proxy" } else { "VIP" }.to_owned()),
        ports: Some(ingress.ports.iter().map(port).collect()),
        ..core::LoadBalancerIngress::default()
    }
}

/// Our conditions among `all`: those whose type begins with `prefix`.
fn conditions(all: &[meta::Condition], prefix: &str) -> (Vec<Condition>, BTreeMap<String, jiff::Timestamp>) {
    let ours = || all.iter().filter(|condition| condition.type_.starts_with(prefix));
    let conditions = ours().map(|condition| Condition {
        kind: condition.type_.clone(),
        status: condition.status == "True",
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    });
    let since = ours().map(|condition| (condition.type_.clone(), condition.last_transition_time.0));
    (conditions.collect(), since.collect())
}

/// The gateway that a ConfigMap or Deployment of ours is part of; `None` if
/// its name is not that gateway's.
pub fn gateway_of<K: Resource>(object: &K) -> Option<Place> {
    let meta = object.meta();
    let managed = meta.labels.as_ref()?.get(names::MANAGED_BY_LABEL)? == names::MANAGED_BY;
    let service = ServiceRef::parse(meta.annotations.as_ref()?.get(names::SERVICE_ANNOTATION)?)?;
    let place = Place { service, namespace: meta.namespace.clone()? };
    (managed && meta.name.as_ref() == Some(&place.name())).then_some(place)
}

/// The gateway that a pod is part of.
pub fn gateway_of_pod(pod: &core::Pod) -> Option<Place> {
    let service = ServiceRef::parse(pod.annotations().get(names::SERVICE_ANNOTATION)?)?;
    Some(Place { service, namespace: pod.namespace()? })
}

fn child<K: Resource, T>(object: &K, content: T) -> Child<T> {
    let meta = object.meta();
    Child {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        made_for: meta.labels.as_ref().and_then(|labels| labels.get(names::SERVICE_UID_LABEL)).cloned(),
        content,
    }
}

/// A gateway's ConfigMap.
pub fn config(object: &ConfigMap) -> Child<String> {
    let content = object.data.as_ref().and_then(|data| data.get(names::CONFIG_KEY)).cloned();
    child(object, content.unwrap_or_default())
}

/// A gateway's Deployment.
pub fn deployment(object: &Deployment) -> Child<DeploymentView> {
    let conditions =
        object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
        .map(|condition| condition.message.clone().unwrap_or_default());
    let rolling = failure.is_none() && rolling(object);
    let view = DeploymentView { failure, rolling, live: live(object) };
    child(object, view)
}

/// A gateway's PodDisruptionBudget, as [`live`] shows a Deployment.
pub fn budget(object: &PodDisruptionBudget) -> Child<Value> {
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
        made_for: object.labels().get(names::SERVICE_UID_LABEL).cloned().unwrap_or_default(),
        created,
        deleting: object.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        node: spec.and_then(|spec| spec.node_name.clone()),
        node_lost: false,
        ready,
        unready_since: changed.map(|time| time.0).or(created).filter(|_| !ready),
        member: volumes.iter().any(|volume| volume.name == render::KEY_VOLUME),
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
        answer: crate::domain::Answer::Unasked,
    }
}

/// On EndpointSlices: the Service they are of (Kubernetes API).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The Service that an EndpointSlice is of, and what it says.
pub fn slice(object: &EndpointSlice) -> Option<(String, Slice)> {
    let service = object.labels().get(SERVICE_NAME_LABEL)?;
    let port = |port: &discovery::EndpointPort| {
        Some(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: transport(port.protocol.as_deref().unwrap_or("TCP"))?,
            port: u16::try_from(port.port?).ok().filter(|port| *port != 0)?,
        })
    };
    // All that an endpoint has more than one address for is the same to us; and
    // what is not said is meant well, except that it ends.
    let endpoint = |endpoint: &discovery::Endpoint| {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        Some(Endpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            pod: pod.and_then(|pod| pod.uid.as_deref()).map(PodId::of),
        })
    };
    let slice = Slice {
        ports: object.ports.iter().flatten().filter_map(port).collect(),
        endpoints: object.endpoints.iter().filter_map(endpoint).collect(),
    };
    Some((service.clone(), slice))
}

/// A pod, as far as our readiness gate concerns it: all of them are watched.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = core::Pod)]
pub struct GatedPod {
    metadata: meta::ObjectMeta,
    spec: Option<GatedPodSpec>,
    status: Option<GatedPodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GatedPodSpec {
    readiness_gates: Option<Vec<core::PodReadinessGate>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct GatedPodStatus {
    phase: Option<String>,
    conditions: Option<Vec<core::PodCondition>>,
}

impl GatedPod {
    fn gates(&self) -> impl Iterator<Item = &str> {
        let gates = self.spec.iter().filter_map(|spec| spec.readiness_gates.as_ref()).flatten();
        gates.map(|gate| gate.condition_type.as_str())
    }

    /// Whether our gate is among its own.
    pub fn is_gated(&self) -> bool {
        self.gates().any(|gate| gate == names::READINESS_GATE)
    }
}

/// A pod that has our gate.
pub fn backend(object: &GatedPod) -> Backend {
    let status = object.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str, status: &str| condition(kind).filter(|condition| condition.status == status);
    let is_true = |kind: &str| is(kind, "True").is_some();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let others = object.gates().filter(|gate| *gate != names::READINESS_GATE).all(is_true);
    let uid = object.uid().unwrap_or_default();
    Backend {
        id: PodId::of(&uid),
        uid,
        labels: object.labels().clone(),
        fit: !ended && object.metadata.deletion_timestamp.is_none() && others && is_true("ContainersReady"),
        passed: is(names::READINESS_GATE, "True").map(|condition| {
            let since = condition.last_transition_time.as_ref().map(|time| time.0);
            since.unwrap_or_default()
        }),
        told: is(names::READINESS_GATE, "False").is_some(),
    }
}

/// The hardware address of the attachment's interface in Multus's report.
fn attached_mac(network_status: &str, attachment: &str) -> Option<String> {
    let networks: Vec<Value> = serde_json::from_str(network_status).ok()?;
    networks.iter().find(|network| network["name"] == attachment)?["mac"].as_str().map(str::to_owned)
}

/// A node's own IPv4 addresses, and whether it is declared lost for good
/// (the taint `node.kubernetes.io/out-of-service`).
pub fn node(object: &Node) -> (Vec<Ipv4Addr>, bool) {
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let lost = taints.iter().any(|taint| taint.key == "node.kubernetes.io/out-of-service");
    (addresses.iter().filter_map(|address| address.address.parse().ok()).collect(), lost)
}

/// A Subnet.
pub fn subnet(object: &Subnet) -> state::Subnet {
    let status = object.status.clone().unwrap_or_default();
    let (conditions, since) = conditions(&status.conditions, "");
    state::Subnet {
        uid: object.uid().unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        held: object.finalizers().iter().any(|finalizer| finalizer == names::SUBNET_FINALIZER),
        spec: object.spec.clone(),
        status: SubnetView {
            using: status.v4_using_ips,
            available: status.v4_available_ips,
            using_range: status.v4_using_ip_range,
            available_range: status.v4_available_ip_range,
            conditions,
        },
        since,
    }
}

/// Why an IP object is no claim of ours.
#[derive(Debug, thiserror::Error)]
pub enum NoClaim {
    /// Its address.
    #[error("spec.ipAddress is not an address")]
    Address,
    /// Its provider.
    #[error("spec.provider: {0}")]
    Provider(#[from] names::ProviderError),
    /// Its name is not that of its address, so it excludes nobody.
    #[error("its name should be {0}")]
    Name(String),
}

/// A claim.
///
/// # Errors
/// What about it no claim of ours has.
pub fn claim(object: &IP) -> Result<Claim, NoClaim> {
    let address: IpAddr = object.spec.ip_address.parse().map_err(|_| NoClaim::Address)?;
    let provider: Provider = object.spec.provider.parse()?;
    let name = provider.claim_name(address);
    if name != object.name_any() {
        return Err(NoClaim::Name(name));
    }
    Ok(Claim {
        id: ClaimId {
            name,
            uid: object.uid().unwrap_or_default(),
            resource_version: object.resource_version().unwrap_or_default(),
        },
        provider,
        subnet: object.spec.subnet.clone(),
        address,
        owner: Owner {
            service: ServiceRef::new(&object.spec.namespace, &object.spec.service_name),
            uid: object.spec.service_uid.clone(),
        },
        requested: object.spec.requested,
        mac: object.spec.mac_address.clone(),
        keep: object.spec.keep,
        probed: object.spec.probed,
        conflict: object.spec.conflict.clone(),
        gateway_namespace: object
            .labels()
            .get(names::GATEWAY_NAMESPACE_LABEL)
            .unwrap_or(&object.spec.namespace)
            .clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_roll_out_ends_when_it_is_complete_or_given_up() {
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

    #[test]
    fn affinity_lasts_as_long_as_the_service_says() {
        let of = |spec: Value| {
            let annotations = json!({ names::PROVIDER_ANNOTATION: "lan.kube-system" });
            let object = json!({ "metadata": { "annotations": annotations }, "spec": spec });
            service(&serde_json::from_value(object).unwrap()).unwrap().affinity
        };
        assert_eq!(of(json!({ "sessionAffinity": "None" })), None);
        assert_eq!(of(json!({ "sessionAffinity": "ClientIP" })), Some(10_800));
        let config = json!({ "clientIP": { "timeoutSeconds": 60 } });
        assert_eq!(of(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config })), Some(60));
    }

    #[test]
    fn a_slice_is_read_as_kube_proxy_reads_it() {
        let of = |ports: Value, endpoints: Value| {
            let metadata = json!({ "labels": { SERVICE_NAME_LABEL: "web" } });
            let object = json!({
                "metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
            });
            slice(&serde_json::from_value(object).unwrap()).unwrap().1
        };
        let read = of(
            json!([
                { "name": "web", "port": 8080, "protocol": "TCP" }, { "port": 53 }, { "name": "all" },
                { "name": "sctp", "port": 9, "protocol": "SCTP" },
            ]),
            json!([
                { "addresses": ["10.0.0.1", "10.0.0.9"] },
                {
                    "addresses": ["10.0.0.2"],
                    "conditions": { "ready": false, "serving": false, "terminating": true },
                    "targetRef": { "kind": "Pod", "uid": "p-2" },
                },
                { "addresses": ["10.0.0.3"], "targetRef": { "kind": "VirtualMachine", "uid": "v-3" } },
                { "addresses": ["host.example"] },
            ]),
        );
        let ports: Vec<_> = read.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
        assert_eq!(ports, [("web", 8080), ("", 53)]);
        let one = |last, ready, pod: Option<&str>| Endpoint {
            address: Ipv4Addr::new(10, 0, 0, last),
            ready,
            serving: ready,
            terminating: !ready,
            pod: pod.map(PodId::of),
        };
        assert_eq!(read.endpoints, [one(1, true, None), one(2, false, Some("p-2")), one(3, true, None)]);
    }

    #[test]
    fn a_pod_with_our_gate_waits_for_nothing_else() {
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
            let pod: GatedPod = serde_json::from_value(object).unwrap();
            assert!(pod.is_gated());
            let Backend { fit, passed, told, .. } = backend(&pod);
            (fit, passed.map(|at| at.to_string()), told)
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
    fn an_attachment_is_known_by_what_it_says_not_by_how() {
        let of = |config: &str| {
            let spec = NetworkAttachmentDefinitionSpec { config: config.to_owned() };
            attachment(&NetworkAttachmentDefinition::new("lan", spec))
        };
        let one = of(r#"{"type": "macvlan", "master": "eth0"}"#);
        assert_eq!(of(r#"{ "master":"eth0", "type":"macvlan" }"#), one);
        assert_eq!(one.wire.as_deref(), Some("macvlan on eth0, VLAN 0"));
        assert_ne!(of(r#"{"type": "macvlan", "master": "eth1"}"#).digest, one.digest);
        assert!(of("{").fault.is_some());
        assert_eq!(of("").fault, None, "it is on the node then");
    }
}
