//! Services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_core::model::{Ingress, PortStatus, Service, ServiceId, ServicePort, ServiceRef, Setting};
use lb_svc_core::node_mode::nodes::ADDRESSES_MAX;
use lb_svc_core::service::spec::{
    ANNOTATION_MAX, MORE_UNKNOWN, PORTS_MAX, SOURCE_RANGES_MAX, is_known, is_unknown,
};
use lb_svc_core::service::unheeded;
use lb_svc_crds::bounded::cut;
use lb_svc_crds::names::{self, Provider};

use super::{conditions, pod_settings};

/// The Service an object is, by name.
pub fn service_ref(object: &core::Service) -> ServiceRef {
    ServiceRef::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// The annotations of a Service that concern us and are not of our domain.
const OTHERS: [&str; 6] = {
    let [metallb, earlier, kube_vip] = names::OTHER_ADDRESSES_ANNOTATIONS;
    let (provider, pass_through) = (names::PROVIDER_ANNOTATION, names::CCE_PASS_THROUGH_ANNOTATION);
    [provider, pass_through, names::TKE_DIRECT_ACCESS_ANNOTATION, metallb, earlier, kube_vip]
};
/// Where source ranges were before they had a field; read where that is empty
/// (Kubernetes cloud-provider).
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// For how long a client stays with its backend unless the Service says
/// (Kubernetes API).
const AFFINITY_SECONDS: u32 = 10_800;
/// How many annotations and labels that have no effect are kept, by name.
const NAMED: usize = 16;
/// The longest name of an annotation or label (Kubernetes API: 253 bytes, `/`
/// and 63).
const NAME_MAX: usize = 320;
/// The longest text of an address.
const ADDRESS_MAX: usize = 64;
/// The most entries of a selector that are compared.
const SELECTOR_MAX: usize = 64;
/// The most entries of `status.loadBalancer.ingress` that are kept.
///
/// One more than nodes have there, so that it shows that there are too many.
const INGRESS_MAX: usize = ADDRESSES_MAX + 1;

/// A Service, if it is or was any of our business. Nothing of it is kept beyond
/// a bound: whoever may write it may write a megabyte.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref();
    let status = object.status.clone().unwrap_or_default();
    let load_balancer = spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    let (conditions, since) = conditions(status.conditions.as_deref().unwrap_or_default(), names::DOMAIN);
    // One that is none any more may still have an address that was filled in.
    let has_address =
        spec.is_some_and(|spec| spec.load_balancer_ip.as_ref().is_some_and(|ip| !ip.is_empty()));
    let is_annotated = object.annotations().contains_key(names::PROVIDER_ANNOTATION);
    // Of the controller's classes nobody else will say what it lacks.
    let class = spec.and_then(|spec| spec.load_balancer_class.as_deref());
    let of_our_class = [names::LOAD_BALANCER_CLASS, names::NODE_CLASS].map(Some).contains(&class);
    let has_mode = object.annotations().contains_key(names::MODE_ANNOTATION);
    let asks = load_balancer && (is_annotated || of_our_class || has_mode) || is_annotated && has_address;
    if !asks && conditions.is_empty() {
        return None;
    }
    let mut spec = spec.cloned().unwrap_or_default();
    if !load_balancer {
        (spec.ports, spec.selector, spec.load_balancer_source_ranges) = (None, None, None);
    }
    let ingress = status.load_balancer.and_then(|lb| lb.ingress).unwrap_or_default();
    let unheeded = unheeded(object, &spec);
    let field = spec.load_balancer_source_ranges.take().unwrap_or_default();
    Some(Service {
        id: ServiceId { service: service_ref(object), uid: object.uid().unwrap_or_default() },
        resource_version: object.resource_version().unwrap_or_default(),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        load_balancer,
        class: spec.load_balancer_class.map(|class| cut(&class, NAME_MAX)),
        settings: pod_settings(object.annotations()),
        annotations: annotations(object.annotations()),
        load_balancer_ip: cut(&spec.load_balancer_ip.unwrap_or_default(), ADDRESS_MAX),
        cluster_ips: spec.cluster_ips.unwrap_or_default(),
        // One more than is served, so that it shows that there are too many.
        ports: spec.ports.unwrap_or_default().into_iter().filter_map(port).take(PORTS_MAX + 1).collect(),
        selector: spec.selector.filter(|selector| selector.len() <= SELECTOR_MAX).unwrap_or_default(),
        affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let said = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
            said.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS)
        }),
        local_policy: spec.external_traffic_policy.as_deref() == Some("Local"),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        ranges_annotated: field.is_empty() && object.annotations().contains_key(SOURCE_RANGES_ANNOTATION),
        source_ranges: source_ranges(object, field),
        k3s_pool: object.labels().get(names::K3S_POOL_LABEL).map(|pool| cut(pool, NAME_MAX)),
        unheeded,
        ingress: ingress.into_iter().take(INGRESS_MAX).map(self::ingress).collect(),
        conditions,
        since,
    })
}

/// The names of annotations and labels, and the paths of fields, that have no
/// effect here.
fn unheeded(object: &core::Service, spec: &core::ServiceSpec) -> Vec<String> {
    let is_set = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let fields = [
        ("spec.trafficDistribution", spec.traffic_distribution.is_some()),
        ("spec.externalIPs", is_set(&spec.external_ips)),
    ];
    let fields = fields.into_iter().filter(|(_, set)| *set).map(|(path, _)| path);
    let names = object.annotations().keys().chain(object.labels().keys()).map(String::as_str);
    let names = fields.chain(names.filter(|name| !is_ours(name)));
    unheeded::select(names, NAMED).into_iter().map(|name| cut(name, NAME_MAX)).collect()
}

/// Whether an annotation that is not of our domain has a meaning here.
fn is_ours(name: &str) -> bool {
    OTHERS.contains(&name) || name == SOURCE_RANGES_ANNOTATION
}

/// What is kept of a Service's annotations: those that have a meaning, of the
/// settings of gateway pods only the names, and the names of some that have
/// our domain and no meaning.
fn annotations(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let subnet = all.get(names::PROVIDER_ANNOTATION).and_then(|provider| provider.parse::<Provider>().ok());
    let subnet = subnet.map(|provider| provider.annotation("logical_switch"));
    let mut kept = BTreeMap::new();
    let mut unknown = 0;
    for (name, value) in all {
        if OTHERS.contains(&name.as_str()) || is_known(name) || Some(name) == subnet.as_ref() {
            kept.insert(name.clone(), cut(value, ANNOTATION_MAX));
        } else if is_unknown(name) {
            unknown += 1;
            if unknown <= NAMED {
                kept.insert(cut(name, NAME_MAX), String::new());
            }
        } else if Setting::ALL.iter().any(|setting| setting.annotation() == name) {
            kept.insert(name.clone(), String::new());
        }
    }
    if unknown > NAMED {
        kept.insert(MORE_UNKNOWN.to_owned(), String::new());
    }
    kept
}

/// The source ranges of the field, or else of the annotation.
fn source_ranges(object: &core::Service, field: Vec<String>) -> Vec<String> {
    let annotation = || {
        let text = object.annotations().get(SOURCE_RANGES_ANNOTATION)?.trim();
        (!text.is_empty()).then(|| text.split(',').map(str::to_owned).take(SOURCE_RANGES_MAX + 1).collect())
    };
    let all: Vec<String> = if field.is_empty() { annotation().unwrap_or_default() } else { field };
    all.iter().take(SOURCE_RANGES_MAX + 1).map(|range| cut(range, ADDRESS_MAX)).collect()
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
        ports: (!ingress.ports.is_empty()).then(|| ingress.ports.iter().map(port).collect()),
        ..core::LoadBalancerIngress::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use serde_json::Value;

    #[test]
    fn affinity_timeout_is_that_of_the_service() {
        let of = |spec: Value| {
            let annotations = json!({ names::PROVIDER_ANNOTATION: "lan.kube-system" });
            let mut object = json!({ "metadata": { "annotations": annotations }, "spec": spec });
            object["spec"]["type"] = "LoadBalancer".into();
            service(&serde_json::from_value(object).unwrap()).unwrap().affinity
        };
        assert_eq!(of(json!({ "sessionAffinity": "None" })), None);
        assert_eq!(of(json!({ "sessionAffinity": "ClientIP" })), Some(10_800));
        let config = json!({ "clientIP": { "timeoutSeconds": 60 } });
        assert_eq!(of(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config })), Some(60));
    }

    fn read(object: Value) -> Option<Service> {
        service(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn r3_no_more_is_kept_of_a_service_than_is_served() {
        let long = "x".repeat(250_000);
        let mut annotations = json!({
            names::PROVIDER_ANNOTATION: "lan.kube-system",
            "lan.kube-system.kubernetes.io/logical_switch": &long,
            "other.kube-system.kubernetes.io/logical_switch": &long,
            names::HEALTH_CHECK_PATH_ANNOTATION: &long,
            names::AFFINITY_ANNOTATION: &long,
        });
        for n in 0..1000 {
            annotations[format!("lb-svc.kubeovn.io/unknown-{n}")] = long[..100].into();
            annotations[format!("service.beta.kubernetes.io/x-{n}")] = long[..100].into();
        }
        let selector: BTreeMap<String, &str> = (0..10_000).map(|n| (format!("k{n}"), "v")).collect();
        let service = read(json!({
            "metadata": { "namespace": "tenant", "name": "web", "annotations": annotations },
            "spec": {
                "type": "LoadBalancer", "loadBalancerIP": long, "selector": selector,
                "ports": (1..30_000).map(|port| json!({ "port": port })).collect::<Value>(),
                "loadBalancerSourceRanges": vec![long[..1000].to_owned(); 10_000],
            },
        }))
        .unwrap();
        let kept: usize = service.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(kept < 8_192, "{kept} bytes of annotations");
        assert!(service.annotations.contains_key(MORE_UNKNOWN));
        assert!(service.settings.values().all(Result::is_err));
        assert_eq!((service.unheeded.len(), service.selector.len()), (NAMED, 0));
        assert!(service.load_balancer_ip.len() < 80);
        assert_eq!(
            (service.ports.len(), service.source_ranges.len()),
            (PORTS_MAX + 1, SOURCE_RANGES_MAX + 1)
        );
    }

    #[test]
    fn r3_a_service_that_is_no_load_balancer_is_kept_only_while_its_status_is_ours() {
        let of = |kind: &str, conditions: Value| {
            let annotations = json!({ names::PROVIDER_ANNOTATION: "lan.kube-system" });
            let metadata = json!({ "namespace": "tenant", "name": "web", "annotations": annotations });
            read(
                json!({ "metadata": metadata, "spec": { "type": kind }, "status": { "conditions": conditions } }),
            )
        };
        let ours = json!([{ "type": "lb-svc.kubeovn.io/GatewayReady", "status": "True", "reason": "GatewayReady",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        assert!(of("ClusterIP", json!([])).is_none());
        assert!(of("ClusterIP", ours).is_some());
        assert!(of("LoadBalancer", json!([])).is_some());
        let filled = read(json!({
            "metadata": { "annotations": { names::PROVIDER_ANNOTATION: "lan.kube-system" } },
            "spec": { "type": "ClusterIP", "loadBalancerIP": "172.18.0.11", "ports": [{ "port": 80 }] },
        }));
        assert_eq!(filled.unwrap().ports, [], "only its address is of interest");
    }

    #[test]
    fn b20_fields_without_effect_are_named() {
        let annotations = json!({ names::PROVIDER_ANNOTATION: "lan.kube-system" });
        let spec = json!({
            "type": "LoadBalancer", "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferClose",
        });
        let service = read(json!({ "metadata": { "annotations": annotations }, "spec": spec })).unwrap();
        assert_eq!(service.unheeded, ["spec.trafficDistribution", "spec.externalIPs"]);
    }

    #[test]
    fn b20_source_ranges_of_the_annotation_hold_where_the_field_is_empty() {
        let of = |field: Value, text: &str| {
            let annotations =
                json!({ names::PROVIDER_ANNOTATION: "lan.kube-system", SOURCE_RANGES_ANNOTATION: text });
            let spec = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": field });
            let service = read(json!({ "metadata": { "annotations": annotations }, "spec": spec })).unwrap();
            assert_eq!(service.unheeded, [] as [&str; 0]);
            service.source_ranges
        };
        assert_eq!(of(json!([]), "172.18.99.0/24, 10.0.0.0/8"), ["172.18.99.0/24", " 10.0.0.0/8"]);
        assert_eq!(of(json!(["192.0.2.0/24"]), "172.18.99.0/24"), ["192.0.2.0/24"]);
        assert_eq!(of(json!([]), " "), [] as [&str; 0]);
    }
}
