//! Services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_core::model::{Ingress, PortStatus, Service, ServiceId, ServicePort, ServiceRef};
use lb_svc_crds::names;

use super::{conditions, pod_settings};

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
        id: ServiceId { service: service_ref(object), uid: object.uid().unwrap_or_default() },
        resource_version: object.resource_version().unwrap_or_default(),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
        class: spec.load_balancer_class,
        settings: pod_settings(&annotations),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use serde_json::Value;

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
}
