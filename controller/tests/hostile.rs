//! What others write, from the API server's JSON to the plan: whatever it is, the
//! plan is made, and what it writes stays within the API's bounds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_svc_controller::api_server::read::{self, NetworkAttachmentDefinition, WatchedPod};
use lb_svc_controller::index::Index;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::model::{GatewayLocation, MESSAGE_MAX, ServiceRef, StatusReport};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::plan::plan;
use lb_svc_core::subnet;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names;
use lb_svc_crds::{IP, Subnet};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The most bytes of a condition's message (Kubernetes API: `metav1.Condition`).
const CONDITION_MAX: usize = 32_768;

/// A text where a hostile author may write one: what it should be, or long, of many
/// bytes a character, of control characters, numbers at their limits, JSON, YAML.
fn text(right: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        100 => prop::sample::select(right).prop_map(str::to_owned),
        1 => "\\PC{0,80}",
        1 => "[ä😀/.,:\\-a\\x00-\\x1f]{0,300}",
        1 => "[a-z]{60,70}",
        1 => Just("x".repeat(20_000)),
        1 => Just("[".repeat(1000)),
        1 => Just("&a [*a, *a]".to_owned()),
        1 => prop::sample::select(&["-1", "0", "18446744073709551616", "1e400", "NaN", "::", "0.0.0.0/0", "255.255.255.255"][..])
            .prop_map(str::to_owned),
    ]
}

/// A number where one may be written: mostly what it should be.
fn number(right: i32) -> impl Strategy<Value = i32> {
    prop_oneof![10 => Just(right), 1 => any::<i32>()]
}

/// Every annotation of the product's and of others that it reads, with its values.
const ANNOTATIONS: &[(&str, &[&str])] = &[
    (names::PROVIDER_ANNOTATION, &["lan.kube-system"]),
    ("lan.kube-system.kubernetes.io/logical_switch", &["lan"]),
    (names::DIRECT_ACCESS_ANNOTATION, &["true", "false"]),
    (names::PROXY_PROTOCOL_ANNOTATION, &["v2"]),
    (names::HEALTH_CHECK_ANNOTATION, &["tcp", "http"]),
    (names::REPLICAS_ANNOTATION, &["2", "1"]),
    (names::RESOURCES_ANNOTATION, &["{limits: {cpu: 100m}}"]),
    (names::AFFINITY_ANNOTATION, &["{}"]),
    (names::TOLERATIONS_ANNOTATION, &["[]"]),
    (names::NODE_SELECTOR_ANNOTATION, &["{a: b}"]),
    (names::KEEP_ADDRESS_ANNOTATION, &["true"]),
    ("lb-svc.kubeovn.io/health-check-port", &["80", "http"]),
    ("lb-svc.kubeovn.io/health-check-interval", &["1s"]),
    ("lb-svc.kubeovn.io/unknown", &["x"]),
    ("service.beta.kubernetes.io/load-balancer-source-ranges", &["10.0.0.0/8"]),
    ("metallb.io/loadBalancerIPs", &["172.18.0.18"]),
    (names::ADDRESSES_ANNOTATION, &["172.18.0.18", "172.18.0.19,fd00::1"]),
];

fn annotations() -> impl Strategy<Value = Value> {
    let of = |(name, right): &(&'static str, &'static [&'static str])| {
        (
            Just(*name),
            if *name == names::PROVIDER_ANNOTATION {
                prop::option::weighted(0.95, text(right))
            } else {
                prop::option::weighted(0.4, text(right))
            },
        )
    };
    let all: Vec<_> = ANNOTATIONS.iter().map(of).collect();
    all.prop_map(|all| {
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect()
    })
}

fn service() -> impl Strategy<Value = Value> {
    let texts = (
        text(&["172.18.0.18"]),
        text(&["10.96.0.1"]),
        text(&["lb-svc.kubeovn.io/gateway"]),
        text(&["10.0.0.0/8"]),
        prop::collection::vec((text(&["http", ""]), number(80), text(&["TCP", "UDP", "SCTP"])), 0..4),
        text(&["Local", "Cluster"]),
        text(&["VIP", "Proxy"]),
        number(60),
    );
    (annotations(), texts).prop_map(|(annotations, (ip, cluster_ip, class, range, ports, policy, mode, seconds))| {
        let port = |(name, port, protocol): (String, i32, String)| json!({ "name": name, "port": port, "protocol": protocol });
        json!({
            "metadata": {
                "namespace": "default", "name": "web", "uid": "uid-1", "resourceVersion": "5",
                "annotations": annotations,
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerIP": ip, "loadBalancerClass": class, "clusterIPs": [cluster_ip],
                "loadBalancerSourceRanges": [range], "ports": ports.into_iter().map(port).collect::<Vec<_>>(),
                "externalTrafficPolicy": policy, "sessionAffinity": "ClientIP", "selector": { "a": "b" },
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
            },
            "status": {
                "conditions": [{ "type": "lb-svc.kubeovn.io/GatewayReady", "status": "True", "reason": mode,
                    "message": class, "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "loadBalancer": { "ingress": [{ "ip": ip, "ipMode": mode, "ports": [{ "port": seconds, "protocol": policy }] }] },
            },
        })
    })
}

/// The gateway's objects as others may have made or edited them.
fn objects() -> impl Strategy<Value = [Value; 3]> {
    let texts = (
        text(&["{\"version\":1}", "{}"]),
        text(&["uid-1"]),
        text(&["172.18.0.18"]),
        text(&["[{\"name\":\"kube-system/lan\",\"interface\":\"net1\",\"mac\":\"02:00:00:00:00:01\"}]"]),
        number(1),
    );
    texts.prop_map(|(config, uid, address, networks, number)| {
        let metadata = |kind: &str| {
            json!({
                "namespace": "default", "name": "lb-svc-web", "uid": format!("uid-{kind}"), "resourceVersion": "7",
                "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY, names::SERVICE_UID_LABEL: uid },
                "annotations": {
                    names::SERVICE_ANNOTATION: "default/web", names::NETWORK_STATUS_ANNOTATION: networks,
                    names::CONFIG_ANNOTATION: config, names::ASKED_ANNOTATION: address, names::TEMPLATE_ANNOTATION: uid,
                },
            })
        };
        [
            json!({ "metadata": metadata("cm"), "data": { names::CONFIG_KEY: config, names::SEAL_KEY: networks } }),
            json!({ "metadata": metadata("dep"), "spec": { "replicas": number, "selector": {},
                "template": { "metadata": metadata("t"), "spec": { "containers": [{ "name": uid, "env": [{ "name": address }] }] } } },
                "status": { "conditions": [{ "type": "ReplicaFailure", "status": "True", "message": networks }] } }),
            json!({ "metadata": metadata("pod"), "spec": { "containers": [{ "name": uid }], "nodeName": uid },
                "status": { "podIP": address, "phase": "Running", "conditions": [
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } }),
        ]
    })
}

/// What a pod answers at `/status`.
fn status() -> impl Strategy<Value = Value> {
    let texts = (
        text(&["0123"]),
        text(&["172.18.0.18"]),
        text(&["02:00:00:00:00:01"]),
        text(&["AttachmentPending", "InterfaceMissing"]),
        any::<u64>(),
        0..2000_usize,
    );
    texts.prop_map(|(digest, address, mac, reason, number, count)| {
        let many: Value = (0..count).map(|n| (format!("{reason}{n}"), json!(mac))).collect();
        json!({
            "digest": digest, "seen": digest, "generation": number, "addresses": [address],
            "conflicts": { address.as_str(): mac }, "interface": { "name": reason, "mac": mac },
            "election": { "role": "active", "term": number, "splits": number, "why": reason, "active": mac,
                "peers": [digest, reason] },
            "faults": many,
        })
    })
}

fn others() -> impl Strategy<Value = Value> {
    let texts = (
        text(&["172.18.0.0/16"]),
        text(&["172.18.0.1"]),
        text(&["172.18.0.0..172.18.0.10"]),
        text(&["lan.kube-system"]),
        text(&[r#"{"cniVersion":"0.3.0","type":"macvlan","master":"eth0"}"#]),
        text(&["default"]),
    );
    texts.prop_map(|(cidr, router, range, provider, config, namespace)| {
        json!({
            "metadata": { "namespace": "kube-system", "name": "lan", "uid": "u", "resourceVersion": "3" },
            "spec": {
                "cidrBlock": cidr, "gateway": router, "excludeIps": [range], "provider": provider, "config": config,
                "namespaces": [namespace], "protocol": "IPv4", "podCIDR": cidr,

            },
            "status": { "addresses": [{ "type": "InternalIP", "address": router }] },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [router, cidr], "targetRef": { "kind": "Pod", "uid": provider } }],
            "ports": [{ "name": namespace, "port": 80, "protocol": "TCP" }],
        })
    })
}

/// The Service's claim, with what others may have written into it.
fn claim() -> impl Strategy<Value = Value> {
    let texts = (
        text(&["172.18.0.18"]),
        text(&["uid-1"]),
        text(&["lan"]),
        text(&["02:00:00:00:00:01", ""]),
        text(&["02:00:00:00:00:99", ""]),
        text(&["default"]),
        any::<bool>(),
    );
    texts.prop_map(|(address, uid, subnet, mac, conflict, namespace, flag)| {
        json!({
            "metadata": {
                "name": "lan.kube-system.172.18.0.18", "uid": "u", "resourceVersion": "3",
                "labels": { names::GATEWAY_NAMESPACE_LABEL: namespace },
            },
            "spec": {
                "subnet": subnet, "provider": "lan.kube-system", "ipAddress": address, "v4IpAddress": address,
                "namespace": "default", "serviceName": "web", "serviceUid": uid,
                "requested": if flag { "static" } else { "dynamic" }, "macAddress": mac, "conflict": conflict,
                "probed": flag, "keep": flag,
            },
        })
    })
}

fn read<K: serde::de::DeserializeOwned>(object: &Value) -> Option<K> {
    serde_json::from_value(object.clone()).ok()
}

/// An index that has been shown all of it.
fn shown(service: &Value, [config, deployment, pod]: &[Value; 3], other: &Value, claim: &Value) -> Index {
    let name = ServiceRef::new("default", "web");
    let location = GatewayLocation { gateway: gateway_of(&name), namespace: "default".into() };
    let object_name = || ("kube-system".to_owned(), "lan".to_owned());
    let mut index = Index::default();
    if let Some(subnet) = read::<Subnet>(other) {
        index.set_subnet("lan", Some(read::subnet(&subnet)));
    }
    if let Some(attachment) = read::<NetworkAttachmentDefinition>(other) {
        index.set_attachment(object_name(), Some(read::attachment(&attachment)));
    }
    if let Some(node) = read::<Node>(other) {
        index.set_node("n1", Some(read::node(&node)));
    }
    if let Some(claim) = read::<IP>(claim).and_then(|claim| read::claim(&claim).ok()) {
        index.set_claim(claim);
    }
    if let Some(service) = read::<Service>(service) {
        index.set_service(name, read::service(&service));
    }
    if let Some(slice) = read::<EndpointSlice>(other) {
        index.set_slice(&object_name(), read::slice(&slice));
    }
    if let Some(config) = read::<ConfigMap>(config) {
        index.set_config(location.clone(), Some(read::config(&config)), read::seal(&config));
    }
    if let Some(deployment) = read::<Deployment>(deployment) {
        index.set_deployment(location.clone(), Some(read::deployment(&deployment)));
    }
    if let Some(gated) = read::<WatchedPod>(pod) {
        index.set_backend(object_name(), Some(read::backend(&gated)));
    }
    if let Some(pod) = read::<Pod>(pod) {
        index.set_pod(location, "lb-svc-web-1", Some(read::pod(&pod)));
    }
    index
}

/// What a plan writes is what the API server takes.
fn check(actions: impl Iterator<Item = Action>) {
    for action in actions {
        match action {
            Action::SetStatus { conditions, .. } => {
                assert!(conditions.len() <= 8, "{conditions:?}");
                for condition in conditions {
                    assert!(condition.message.len() <= CONDITION_MAX, "{}", condition.message.len());
                }
            }
            Action::WriteConfig(content) => assert!(content.len() <= 1 << 20),
            Action::AnnotatePod { annotations, .. } => {
                for (name, value) in annotations {
                    assert!(name.len() + value.len() <= MESSAGE_MAX, "{name}: {value}");
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn r1_whatever_others_write_there_is_a_plan(
        service in service(), objects in objects(), other in others(), claim in claim(), status in status(),
    ) {
        let index = shown(&service, &objects, &other, &claim);
        let gateway = gateway_of(&ServiceRef::new("default", "web"));
        let mut observed: Observed = index.observe(&gateway, Instant::now());
        check(plan(&observed).steps().cloned());
        if let Some(subnet) = read::<Subnet>(&other) {
            let planned = subnet::plan::plan(&read::subnet(&subnet), &index.allocator.usage("lan").unwrap());
            let conditions = planned.status.into_iter().flat_map(|status| status.conditions);
            assert!(conditions.into_iter().all(|condition| condition.message.len() <= CONDITION_MAX));
        }
        // The pod answers.
        let report = read::<GatewayStatus>(&status).map(|status| StatusReport::Reported(Box::new(status)));
        for pod in &mut observed.gateway.pods {
            pod.report = report.clone().unwrap_or(StatusReport::NoResponse);
        }
        check(plan(&observed).steps().cloned());
    }
}
