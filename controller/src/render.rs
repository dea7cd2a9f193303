//! The objects a gateway is made of, from what they are to say.

use std::collections::BTreeMap;

use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::{IP, IPSpec, Requested};
use serde_json::{Value, json};

use crate::domain::Owner;
use crate::ipam::{Candidate, Wish};

/// What is the same for all gateways.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The gateway's image.
    pub image: String,
}

/// For how long a gateway stays bound to a node that does not answer.
const UNREACHABLE_SECONDS: i64 = 10;

fn labels(owner: &Owner) -> BTreeMap<String, String> {
    [
        ("app", names::label_value(&names::gateway_name(&owner.service.name))),
        ("namespace", names::label_value(&owner.service.namespace)),
        ("service", names::label_value(&owner.service.name)),
        (names::MANAGED_BY_LABEL, names::MANAGED_BY.to_owned()),
        (names::SERVICE_UID_LABEL, owner.uid.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Name, labels and owner of a gateway's ConfigMap and Deployment.
fn metadata(owner: &Owner) -> Value {
    json!({
        "name": names::gateway_name(&owner.service.name),
        "namespace": owner.service.namespace,
        "labels": labels(owner),
        "annotations": { names::SERVICE_ANNOTATION: owner.service.to_string() },
        "ownerReferences": [{
            "apiVersion": "v1",
            "kind": "Service",
            "name": owner.service.name,
            "uid": owner.uid,
            "controller": true,
            "blockOwnerDeletion": false,
        }],
    })
}

/// A gateway's ConfigMap.
pub fn config(owner: &Owner, content: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner),
        "data": { names::CONFIG_KEY: content },
    })
}

/// A gateway's Deployment.
///
/// Nothing in it depends on the address, the ports or the Subnet: changing
/// those must not roll gateways.
pub fn deployment(owner: &Owner, provider: &Provider, settings: &Settings) -> Value {
    let labels = labels(owner);
    let selector: BTreeMap<&String, &String> = labels
        .iter()
        .filter(|(key, _)| ["app", "namespace", "service", names::SERVICE_UID_LABEL].contains(&key.as_str()))
        .collect();
    let tolerations = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| {
        json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNREACHABLE_SECONDS })
    });
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": "status", "scheme": "HTTP" },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 2,
            "strategy": { "type": "Recreate" },
            "selector": { "matchLabels": selector },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        names::NETWORKS_ANNOTATION: provider.multus_name(),
                        names::SERVICE_ANNOTATION: owner.service.to_string(),
                        // A mesh's sidecar would take the traffic before the
                        // gateway's rules do.
                        "sidecar.istio.io/inject": "false",
                        "linkerd.io/inject": "disabled",
                    },
                },
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                    "tolerations": tolerations,
                    "containers": [{
                        "name": "gateway",
                        "image": settings.image,
                        "imagePullPolicy": "IfNotPresent",
                        "ports": [{ "name": "status", "containerPort": names::GATEWAY_PORT, "protocol": "TCP" }],
                        "readinessProbe": probe("/readyz", 1, 3),
                        "resources": {
                            "requests": { "cpu": "10m", "memory": "16Mi" },
                            "limits": { "memory": "64Mi" },
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
                            "privileged": false,
                            "readOnlyRootFilesystem": true,
                        },
                        "volumeMounts": [
                            { "name": "config", "mountPath": names::CONFIG_DIR, "readOnly": true },
                            { "name": "pod", "mountPath": names::POD_INFO_DIR, "readOnly": true },
                        ],
                    }],
                    "volumes": [
                        { "name": "config", "configMap": { "name": names::gateway_name(&owner.service.name) } },
                        { "name": "pod", "downwardAPI": { "items": [{
                            "path": names::NETWORK_STATUS_FILE,
                            "fieldRef": { "fieldPath": format!("metadata.annotations['{}']", names::NETWORK_STATUS_ANNOTATION) },
                        }] } },
                    ],
                },
            },
        },
    })
}

/// A claim on `candidate` for who wished it.
pub fn claim(wish: &Wish, candidate: &Candidate) -> IP {
    let address = candidate.address.to_string();
    let (v4, v6) = if candidate.address.is_ipv4() {
        (address.clone(), String::new())
    } else {
        (String::new(), address.clone())
    };
    let mut ip = IP::new(
        &candidate.name,
        IPSpec {
            subnet: candidate.subnet.clone(),
            provider: wish.provider.to_string(),
            ip_address: address,
            v4_ip_address: v4,
            v6_ip_address: v6,
            mac_address: String::new(),
            namespace: wish.owner.service.namespace.clone(),
            service_name: wish.owner.service.name.clone(),
            service_uid: wish.owner.uid.clone(),
            requested: if wish.address.is_some() { Requested::Static } else { Requested::Dynamic },
            keep: wish.keep,
            probed: false,
            conflict: String::new(),
        },
    );
    ip.metadata.labels = Some([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned())].into());
    ip
}

/// Whether `live` already says all that `wanted` says. What the API server
/// filled in or others added to objects is no difference; a list has to have
/// the same length.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            live.get(key).map_or(*wanted == Value::Bool(false), |live| contains(live, wanted))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        _ => live == wanted,
    }
}

/// A rendered object as its type, for a POST.
///
/// # Errors
/// If the rendering is not of that type: a mistake in this module.
pub fn typed<K: serde::de::DeserializeOwned>(object: Value) -> Result<K, serde_json::Error> {
    serde_json::from_value(object)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;
    use crate::domain::ServiceRef;

    fn owner(name: &str) -> Owner {
        Owner { service: ServiceRef::new("default", name), uid: "uid-1".into() }
    }

    fn rendered(name: &str) -> Value {
        let settings = Settings { image: "gateway:1".into() };
        deployment(&owner(name), &"lan.kube-system".parse().unwrap(), &settings)
    }

    #[test]
    fn the_gateway_has_two_capabilities_and_no_credentials() {
        let rendered = rendered("web");
        let pod = &rendered["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] }));
        assert_eq!(security["privileged"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
    }

    #[test]
    fn it_is_a_deployment_and_reads_back_as_itself() {
        for name in ["web", &"w".repeat(63)] {
            let wanted = rendered(name);
            let typed: Deployment = typed(wanted.clone()).unwrap();
            let live = crate::convert::live(&typed);
            assert!(contains(&live, &json!({ "spec": wanted["spec"] })));
            let labels = wanted["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            assert!(labels.values().all(|value| value.as_str().unwrap().len() <= 63));
        }
    }

    #[test]
    fn an_edit_is_seen_and_a_default_is_not() {
        let wanted = rendered("web");
        let mut live = wanted.clone();
        live["spec"]["progressDeadlineSeconds"] = json!(600);
        live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
        live["spec"]["template"]["spec"]["containers"][0]["securityContext"]
            .as_object_mut()
            .unwrap()
            .remove("privileged");
        assert!(contains(&live, &wanted));
        for (pointer, value) in [
            ("/spec/replicas", json!(0)),
            ("/spec/template/spec/containers/0/image", json!("other:1")),
            (
                "/spec/template/spec/containers/0/securityContext/capabilities/add",
                json!(["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]),
            ),
            ("/metadata/labels/app", json!("x")),
        ] {
            let mut edited = live.clone();
            *edited.pointer_mut(pointer).unwrap() = value;
            assert!(!contains(&edited, &wanted), "{pointer}");
        }
    }
}
