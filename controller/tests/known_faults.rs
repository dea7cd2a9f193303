//! Faults that were found once, each by its id: see docs/dev/regressions.md for what
//! each of them is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use lb_svc_controller::api_server::read::{self, NetworkAttachmentDefinition, WatchedPod};
use lb_svc_core::model::ServiceRef;
use lb_svc_crds::names;
use lb_svc_crds::{IP, Subnet};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn r12_manifests_run_two_controllers_that_leave_a_lost_node_soon() {
    let file = |name: &str| {
        let path = format!("{}/../manifests/controller/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let deployment: Deployment = serde_saphyr::from_str(&file("deployment")).unwrap();
    let spec = deployment.spec.unwrap();
    let pod = spec.template.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let apart = pod.affinity.unwrap().pod_anti_affinity.unwrap();
    assert!(apart.preferred_during_scheduling_ignored_during_execution.is_some());
    assert_eq!(apart.required_during_scheduling_ignored_during_execution, None, "one node is enough");
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-cluster-critical"));
    let tolerations = pod.tolerations.unwrap();
    assert_eq!(tolerations.len(), 2);
    assert!(tolerations.iter().all(|it| it.toleration_seconds.is_some_and(|seconds| seconds <= 10)));
    let budget: PodDisruptionBudget = serde_saphyr::from_str(&file("budget")).unwrap();
    assert_eq!(budget.spec.unwrap().selector, Some(spec.selector));
}

/// Text as a hostile author writes it: long, of many bytes a character, with
/// what separates names, numbers at their limits, and JSON.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,80}",
        "[ä😀/.\\-a]{0,300}",
        Just(format!("{}/x", "ä".repeat(30))),
        Just(format!("x/{}", "ä".repeat(400))),
        Just(format!("digest.{}", u32::MAX)),
        Just(u64::MAX.to_string()),
        Just("[".repeat(1000)),
        Just(r#"[{"name":"a","mac":null},{"mac":1},[]]"#.to_owned()),
    ]
}

/// An object of any kind that has texts of others wherever it may have any.
fn object() -> impl Strategy<Value = Value> {
    (prop::collection::vec(text(), 12), any::<u16>(), any::<bool>()).prop_map(|(texts, number, flag)| {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = &texts[..] else { unreachable!() };
        json!({
            "metadata": {
                "name": a, "namespace": b, "uid": c, "resourceVersion": d,
                "labels": {
                    names::MANAGED_BY_LABEL: names::MANAGED_BY, names::SERVICE_UID_LABEL: e,
                    read::SERVICE_NAME_LABEL: f, g.as_str(): h,
                },
                "annotations": {
                    names::SERVICE_ANNOTATION: i, names::CONFIG_ANNOTATION: j, names::NETWORK_STATUS_ANNOTATION: k,
                    names::PROVIDER_ANNOTATION: l, names::NETWORKS_ANNOTATION: a, names::ASKED_ANNOTATION: b,
                    names::RESOURCE_NAME_ANNOTATION: c, "lb-svc.kubeovn.io/unknown": d,
                },
            },
            "data": { names::CONFIG_KEY: e },
            "spec": {
                "type": "LoadBalancer", "loadBalancerIP": f, "loadBalancerClass": g, "clusterIPs": [h, i],
                "loadBalancerSourceRanges": [j, k], "selector": {},
                "ports": [{ "name": l, "port": number, "protocol": a }],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": i32::from(number) - 40_000 } },
                "readinessGates": [{ "conditionType": names::READINESS_GATE }],
                "config": b, "cidrBlock": c, "gateway": d, "excludeIps": [e, f], "provider": g,
                "subnet": h, "ipAddress": i, "namespace": j, "serviceName": k, "serviceUid": l,
                "requested": if flag { "static" } else { "dynamic" }, "macAddress": a, "conflict": b,
            },
            "status": {
                "podIP": c, "phase": d,
                "conditions": [{ "type": "lb-svc.kubeovn.io/x", "status": e, "reason": f, "message": g,
                    "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "loadBalancer": { "ingress": [{ "ip": h, "ipMode": i,
                    "ports": [{ "port": number, "protocol": j, "error": k }] }] },
                "addresses": [{ "type": "InternalIP", "address": l }],
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [a, b], "targetRef": { "kind": "Pod", "uid": c } }, { "addresses": [] }],
            "ports": [{ "name": d, "port": number, "protocol": e }],
        })
    })
}

/// The object as kind `K`, as far as the API types take it.
fn read<K: serde::de::DeserializeOwned>(object: &Value) -> Option<K> {
    let mut object = object.clone();
    loop {
        match serde_json::from_value(object.clone()) {
            Ok(read) => return Some(read),
            // What a kind has otherwise is left out, until it can be read.
            Err(_) => {
                let fields = object.as_object_mut().unwrap();
                let part = ["status", "spec", "ports", "endpoints"]
                    .into_iter()
                    .find(|part| fields.contains_key(*part))?;
                fields.remove(part);
            }
        }
    }
}

proptest! {
    #[test]
    fn r1_no_object_ends_a_converter(object in object()) {
        if let Some(config_map) = read::<ConfigMap>(&object) {
            read::gateway_of(&config_map);
            read::config(&config_map);
        }
        if let Some(deployment) = read::<Deployment>(&object) {
            read::gateway_of(&deployment);
            read::deployment(&deployment);
        }
        if let Some(budget) = read::<PodDisruptionBudget>(&object) {
            read::gateway_of(&budget);
            read::budget(&budget);
        }
        if let Some(pod) = read::<Pod>(&object) {
            read::gateway_of_pod(&pod);
            read::pod(&pod);
        }
        if let Some(pod) = read::<WatchedPod>(&object) {
            read::backend(&pod);
        }
        if let Some(service) = read::<Service>(&object) {
            read::service(&service);
        }
        if let Some(slice) = read::<EndpointSlice>(&object) {
            read::slice(&slice);
        }
        if let Some(node) = read::<Node>(&object) {
            read::node(&node);
        }
        if let Some(attachment) = read::<NetworkAttachmentDefinition>(&object) {
            read::attachment(&attachment);
        }
        if let Some(subnet) = read::<Subnet>(&object) {
            read::subnet(&subnet);
        }
        if let Some(claim) = read::<IP>(&object) {
            drop(read::claim(&claim));
        }
    }
}

fn config_map(service: &str) -> ConfigMap {
    let object = json!({
        "metadata": {
            "namespace": "tenant", "name": "any",
            "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY },
            "annotations": { names::SERVICE_ANNOTATION: service },
        },
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn r1_an_umlaut_in_a_label_names_no_gateway() {
    assert_eq!(read::gateway_of(&config_map(&format!("{}/x", "ä".repeat(30)))), None);
    for text in ["", "/", "a/", "/a", "a/b/c", "A/b", "a/b.c", "a\n/b", &format!("a/{}", "b".repeat(64))] {
        assert_eq!(ServiceRef::parse(text), None, "{text:?}");
    }
    assert_eq!(ServiceRef::parse("default/web"), Some(ServiceRef::new("default", "web")));
}

#[test]
fn b38_three_thousand_ports_fit_into_the_service_and_the_config_map() {
    use lb_svc_core::testing::gateway::{carried_out, claim, claimed};
    let mut observed = claimed(&[claim("172.18.0.11", lb_svc_crds::Requested::Dynamic)]);
    observed.service.as_mut().unwrap().ports =
        (10_000..13_000).map(|number| lb_svc_core::testing::port("UDP", number)).collect();
    let observed = carried_out(observed, "172.18.0.11");
    let entry = read::ingress_entry(&observed.service.as_ref().unwrap().ingress[0]);
    assert_eq!(entry.ports.as_ref().map(Vec::len), Some(3000));
    let status = serde_json::to_string(&entry).unwrap().len();
    // What the user wrote, with node ports, and who wrote it.
    let port = |n: u32| json!({ "name": format!("rtp-{n}"), "protocol": "UDP", "port": n, "targetPort": n, "nodePort": n });
    let managed = |n: u32| {
        let key = format!("k:{{\"port\":{n},\"protocol\":\"UDP\"}}");
        json!({ key: { ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {} } })
    };
    let theirs: usize =
        (10_000..13_000).map(|n| port(n).to_string().len() + managed(n).to_string().len()).sum();
    let config = observed.gateway.config.unwrap().content.len();
    assert!(status + theirs < 1 << 20, "an object in etcd takes 1.5 MiB");
    assert!(config < 1 << 19, "a ConfigMap takes 1 MiB");
}
