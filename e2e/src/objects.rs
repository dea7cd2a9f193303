//! The objects that tests make.

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::Lab;

/// The attachment of the example, which every test uses.
pub const PROVIDER: &str = "lb-svc-attachment.kube-system";
/// The example's Subnet.
pub const SUBNET: &str = "attach-subnet";
/// The annotation of Services that are led straight to their pods.
pub const DIRECT: &str = "lb-svc.kubeovn.io/direct-access";
/// The workload's image.
pub const BACKEND: &str = "localhost/lb-svc-backend:dev";

/// A LoadBalancer Service `name` for pods labelled `app=name`.
pub fn service(name: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "annotations": { "ovn.kubernetes.io/attachmentprovider": PROVIDER },
        },
        "spec": { "type": "LoadBalancer", "selector": { "app": name }, "ports": ports },
    })
}

/// The same, led straight to those pods by this NAT back end.
pub fn direct(name: &str, ports: &Value, back_end: &str) -> Value {
    let mut object = service(name, ports);
    let annotations = &mut object["metadata"]["annotations"];
    annotations[DIRECT] = "true".into();
    annotations["lb-svc.kubeovn.io/nat-backend"] = back_end.into();
    object
}

/// Keeps a workload's pods to the first node.
pub fn on_the_first_node(workload: &mut Value) {
    workload["spec"]["template"]["spec"]["nodeSelector"] =
        json!({ "kubernetes.io/hostname": Lab::first_node() });
}

/// Gives a Service so many gateway pods, none of them on the first node.
pub fn elsewhere(service: &mut Value, replicas: u32) {
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "NotIn", "values": [Lab::first_node()] },
        ] }],
    } } });
    let annotations = &mut service["metadata"]["annotations"];
    annotations["lb-svc.kubeovn.io/affinity"] = json!(affinity.to_string());
    annotations["lb-svc.kubeovn.io/replicas"] = json!(replicas.to_string());
}

/// A LoadBalancer Service `name` of port 80.
pub fn web(name: &str) -> Value {
    service(name, &json!([port("TCP", 80, 80)]))
}

/// One port of a Service: `protocol`, `port`, and where it goes.
pub fn port(protocol: &str, port: u16, target: impl Into<Value>) -> Value {
    json!({
        "name": format!("{}-{port}", protocol.to_lowercase()),
        "protocol": protocol,
        "port": port,
        "targetPort": target.into(),
    })
}

/// The EndpointSlice `name`, which leads the ports of these names of a Service
/// without selector to these ports of pods.
///
/// # Errors
/// When a pod has no address.
pub fn slice(name: &str, service: &str, pods: &[&Pod], ports: &[(String, u16)]) -> anyhow::Result<Value> {
    let endpoint = |pod: &&Pod| {
        let pod_ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
        let pod_ip = pod_ip.context("a pod without address")?;
        anyhow::Ok(json!({ "addresses": [pod_ip], "conditions": { "ready": true } }))
    };
    let port = |(name, number): &(String, u16)| json!({ "name": name, "protocol": "TCP", "port": number });
    Ok(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "endpoints": pods.iter().map(endpoint).collect::<anyhow::Result<Value>>()?,
        "ports": ports.iter().map(port).collect::<Value>(),
    }))
}

/// `replicas` pods labelled `app=name` that listen on `ports`
/// (`tcp/80`; a name may follow: `tcp/8080=web`).
pub fn backends(name: &str, replicas: u32, ports: &[&str]) -> Value {
    let listen: Vec<&str> = ports.iter().map(|port| port.split('=').next().unwrap_or_default()).collect();
    let named: Vec<Value> = ports
        .iter()
        .filter_map(|port| {
            let (listen, name) = port.split_once('=')?;
            let (protocol, number) = listen.split_once('/')?;
            Some(json!({
                "name": name,
                "containerPort": number.parse::<u16>().ok()?,
                "protocol": protocol.to_uppercase(),
            }))
        })
        .collect();
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": { "matchLabels": { "app": name } },
                    }],
                    "containers": [{
                        "name": "backend",
                        "image": BACKEND,
                        "imagePullPolicy": "IfNotPresent",
                        "args": listen,
                        "ports": named,
                    }],
                },
            },
        },
    })
}
