//! The objects a gateway is made of, from what they are to say.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::ResourceExt;
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::{IP, IPSpec, Requested};
use serde_json::{Value, json};

use crate::domain::{Attachment, Owner, Place, ServiceRef};
use crate::ipam::{Candidate, Wish};
use crate::keys::Master;
use crate::quantity;
use crate::settings::{Setting, Settings};

/// For how long a gateway stays bound to a node that does not answer.
const UNREACHABLE_SECONDS: i64 = 10;
/// The same where another pod answers meanwhile.
const UNREACHABLE_SECONDS_OF_SEVERAL: i64 = 2;
/// The volume with the election's key; only pods of several have it.
pub const KEY_VOLUME: &str = "key";
/// After so long without progress Kubernetes gives a roll-out up, and so do
/// those that wait for it.
pub const PROGRESS: Duration = Duration::from_secs(60);
/// What a gateway asks for unless it is set.
const RESOURCES: [(&str, &[(&str, &str)]); 2] =
    [("requests", &[("cpu", "10m"), ("memory", "16Mi")]), ("limits", &[("memory", "64Mi")])];

/// What a gateway's Deployment is made from.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    /// The attachment's name.
    pub provider: &'a Provider,
    /// The attachment.
    pub attachment: &'a Attachment,
    /// The settings for all gateways.
    pub all: &'a Settings,
    /// Those of this gateway's own.
    pub own: &'a Settings,
}

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

/// The labels that a gateway's pods, and no others, have.
fn selector(owner: &Owner) -> BTreeMap<String, String> {
    let mut labels = labels(owner);
    labels.remove(names::MANAGED_BY_LABEL);
    labels
}

/// Name, labels and owner of a gateway's ConfigMap, Deployment and
/// PodDisruptionBudget. Ownership ends at the namespace.
fn metadata(owner: &Owner, place: &Place) -> Value {
    let mut metadata = json!({
        "name": place.name(),
        "namespace": place.namespace,
        "labels": labels(owner),
        "annotations": { names::SERVICE_ANNOTATION: owner.service.to_string() },
    });
    if place.is_beside() {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "v1",
            "kind": "Service",
            "name": owner.service.name,
            "uid": owner.uid,
            "controller": true,
            "blockOwnerDeletion": false,
        }]);
    }
    metadata
}

/// A gateway's ConfigMap.
pub fn config(owner: &Owner, place: &Place, content: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, place),
        "data": { names::CONFIG_KEY: content },
    })
}

/// The PodDisruptionBudget of a gateway with several pods: one at a time.
pub fn budget(owner: &Owner, place: &Place) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, place),
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector(owner) } },
    })
}

/// The Secret with a gateway's key. It goes with the gateway's ConfigMap, the
/// one with this uid, for nobody may delete it.
pub fn key(owner: &Owner, place: &Place, config: &str, key: [u8; 32]) -> Value {
    let mut metadata = metadata(owner, place);
    metadata["name"] = json!(names::key_name(&place.name(), &owner.uid));
    metadata["ownerReferences"] = json!([{
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": place.name(),
        "uid": config,
        "controller": true,
        "blockOwnerDeletion": false,
    }]);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "immutable": true,
        "data": { names::KEY_FILE: ByteString(key.to_vec()) },
    })
}

/// The Secret that all gateways' keys are derived from.
pub fn master(namespace: &str, master: &Master) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names::MASTER_SECRET,
            "namespace": namespace,
            "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY },
        },
        "type": "Opaque",
        "immutable": true,
        "data": { names::MASTER_KEY: ByteString(master.bytes().to_vec()) },
    })
}

/// A gateway's Deployment.
///
/// Nothing in it depends on the address, the ports or the Subnet: changing
/// those must not roll gateways. It says what it was made from, see
/// [`Origin`].
pub fn deployment(owner: &Owner, place: &Place, template: &Template<'_>) -> Value {
    let nobody = Owner { service: ServiceRef::new("", ""), uid: String::new() };
    let anywhere = Place { service: nobody.service.clone(), namespace: String::new() };
    let nowhere = Provider { name: String::new(), namespace: String::new() };
    let short = |text: String| names::digest(text.as_bytes())[..16].to_owned();
    // What this build makes of it for anyone, and what is only this one's.
    let all = plain(&nobody, &anywhere, &nowhere, template.attachment, template.all);
    let own = json!([template.provider.to_string(), template.own.to_value()]);
    let origin = Origin { all: short(all.to_string()), own: short(own.to_string()) };
    let settings = template.own.or(template.all);
    let mut object = plain(owner, place, template.provider, template.attachment, &settings);
    object["metadata"]["annotations"][names::TEMPLATE_ANNOTATION] = json!(origin.to_string());
    object
}

/// Digests of what a Deployment was made from, so that it can be told later
/// what has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// What is the same for all gateways on an attachment: build,
    /// configuration, attachment.
    pub all: String,
    /// What is this one's own.
    pub own: String,
}

impl Origin {
    /// What a Deployment says of itself; empty where it says nothing.
    pub fn of(deployment: &Value) -> Self {
        let said = deployment["metadata"]["annotations"][names::TEMPLATE_ANNOTATION].as_str();
        let (all, own) = said.and_then(|said| said.split_once('.')).unwrap_or_default();
        Self { all: all.to_owned(), own: own.to_owned() }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.all, self.own)
    }
}

fn resources(attachment: &Attachment, settings: &Settings) -> Value {
    let mut resources = settings.get(Setting::Resources).cloned().unwrap_or_else(|| {
        RESOURCES.iter().map(|(kind, amounts)| (*kind, amounts.iter().copied().collect::<Value>())).collect()
    });
    // As Multus's own injector does for pods that users make.
    if let Some(resource) = &attachment.resource {
        for kind in ["requests", "limits"] {
            if resources[kind][resource].is_null() {
                resources[kind][resource] = json!("1");
            }
        }
    }
    resources
}

/// The tolerations that are set, and those that free a gateway from a node
/// that is lost, unless these are set.
fn tolerations(settings: &Settings) -> Vec<Value> {
    let set = settings.get(Setting::Tolerations).and_then(Value::as_array).cloned().unwrap_or_default();
    let several = settings.replicas() > 1;
    let seconds = if several { UNREACHABLE_SECONDS_OF_SEVERAL } else { UNREACHABLE_SECONDS };
    let ours = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| {
        json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds })
    });
    let unset =
        ours.into_iter().filter(|ours| set.iter().all(|set| set["key"] != ours["key"])).collect::<Vec<_>>();
    unset.into_iter().chain(set).collect()
}

/// The Deployment but for its origin.
fn plain(
    owner: &Owner,
    place: &Place,
    provider: &Provider,
    attachment: &Attachment,
    settings: &Settings,
) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": "status", "scheme": "HTTP" },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, place),
        "spec": {
            "replicas": settings.replicas(),
            // A roll-out back to an earlier ReplicaSet would count as complete
            // before its pod is ready.
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": PROGRESS.as_secs(),
            "paused": false,
            "strategy": { "type": "Recreate" },
            "selector": { "matchLabels": selector(owner) },
            "template": {
                "metadata": {
                    "labels": labels(owner),
                    "annotations": {
                        names::NETWORKS_ANNOTATION: provider.multus_name(),
                        names::SERVICE_ANNOTATION: owner.service.to_string(),
                        names::ATTACHMENT_ANNOTATION: attachment.digest,
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
                    "tolerations": tolerations(settings),
                    "containers": [{
                        "name": "gateway",
                        "image": settings.get(Setting::Image),
                        "imagePullPolicy": "IfNotPresent",
                        "ports": [{ "name": "status", "containerPort": names::GATEWAY_PORT, "protocol": "TCP" }],
                        "readinessProbe": probe("/readyz", 1, 3),
                        "resources": resources(attachment, settings),
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
                        { "name": "config", "configMap": { "name": place.name() } },
                        { "name": "pod", "downwardAPI": { "items": [{
                            "path": names::NETWORK_STATUS_FILE,
                            "fieldRef": { "fieldPath": format!("metadata.annotations['{}']", names::NETWORK_STATUS_ANNOTATION) },
                        }] } },
                    ],
                },
            },
        },
    });
    let pod = &mut object["spec"]["template"]["spec"];
    for setting in
        [Setting::ImagePullSecrets, Setting::NodeSelector, Setting::Affinity, Setting::PriorityClassName]
    {
        if let Some(value) = settings.get(setting) {
            pod[setting.field()] = value.clone();
        }
    }
    if settings.replicas() > 1 {
        make_several(&mut object["spec"], owner, place);
    }
    object
}

/// What a Deployment of several pods has beyond that of one: each pod is on a
/// node of its own, has the election's key, and leaves before its successor
/// comes, for the others answer meanwhile.
fn make_several(spec: &mut Value, owner: &Owner, place: &Place) {
    fn push(list: &mut Value, item: Value) {
        match list.as_array_mut() {
            Some(items) => items.push(item),
            None => *list = json!([item]),
        }
    }
    spec["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } });
    let pod = &mut spec["template"]["spec"];
    let apart = json!({
        "labelSelector": { "matchLabels": selector(owner) },
        "topologyKey": "kubernetes.io/hostname",
    });
    push(&mut pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"], apart);
    let mount = json!({ "name": KEY_VOLUME, "mountPath": names::KEY_DIR, "readOnly": true });
    push(&mut pod["containers"][0]["volumeMounts"], mount);
    // Its reader is root without any capability over files.
    let secret = json!({ "secretName": names::key_name(&place.name(), &owner.uid), "defaultMode": 0o400 });
    push(&mut pod["volumes"], json!({ "name": KEY_VOLUME, "secret": secret }));
}

/// A claim on `candidate` for who wished it, whose gateway is or will be in
/// `gateway_namespace`.
pub fn claim(wish: &Wish, candidate: &Candidate, gateway_namespace: &str) -> IP {
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
    let labels = ip.labels_mut();
    labels.insert(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned());
    if gateway_namespace != wish.owner.service.namespace {
        labels.insert(names::GATEWAY_NAMESPACE_LABEL.to_owned(), gateway_namespace.to_owned());
    }
    ip
}

/// Whether a Deployment, as [`crate::convert::live`] shows it, is what it
/// should be.
pub fn is_as_wanted(live: &Value, wanted: &Value) -> bool {
    let metadata = ["labels", "annotations", "ownerReferences"];
    contains(&live["spec"], &wanted["spec"])
        && metadata.iter().all(|field| contains(&live["metadata"][field], &wanted["metadata"][field]))
}

/// Whether `live` already says all that `wanted` says. What the API server
/// filled in or others added to objects is no difference; a list has to have
/// the same length.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let compare = if key == "resources" { contains_resources } else { contains };
            live.get(key).map_or(is_nothing(wanted), |live| compare(live, wanted))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        _ => live == wanted,
    }
}

/// Whether the API server leaves such a value out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// [`contains`] for a container's resources, which the API server writes back
/// in another form.
fn contains_resources(live: &Value, wanted: &Value) -> bool {
    let nanos = |value: &Value| value.as_str().and_then(quantity::nanos);
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            live.get(key).map_or(is_nothing(wanted), |live| contains_resources(live, wanted))
        }),
        (Value::String(_), Value::String(_)) if nanos(live).is_some() => nanos(live) == nanos(wanted),
        _ => contains(live, wanted),
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
    use k8s_openapi::api::core::v1::Secret;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;
    use crate::settings::Configuration;

    fn owner(name: &str) -> Owner {
        Owner { service: ServiceRef::new("default", name), uid: "uid-1".into() }
    }

    fn place(name: &str) -> Place {
        Place { service: owner(name).service, namespace: "default".into() }
    }

    fn rendered(name: &str) -> Value {
        with(name, &Attachment::default(), &[], &[])
    }

    fn with(
        name: &str,
        attachment: &Attachment,
        all: &[(Setting, Value)],
        own: &[(Setting, Value)],
    ) -> Value {
        let all = Settings::from_iter(all.iter().cloned()).or(&Configuration::new("gateway:1").gateway);
        let own = Settings::from_iter(own.iter().cloned());
        let provider = "lan.kube-system".parse().unwrap();
        deployment(
            &owner(name),
            &place(name),
            &Template { provider: &provider, attachment, all: &all, own: &own },
        )
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
            assert!(is_as_wanted(&live, &wanted));
            let labels = wanted["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            assert!(labels.values().all(|value| value.as_str().unwrap().len() <= 63));
        }
    }

    #[test]
    fn an_edit_is_seen_and_a_default_is_not() {
        let wanted = rendered("web");
        let mut live = wanted.clone();
        live["spec"]["minReadySeconds"] = json!(0);
        live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
        live["spec"]["template"]["spec"]["containers"][0]["securityContext"]
            .as_object_mut()
            .unwrap()
            .remove("privileged");
        assert!(is_as_wanted(&live, &wanted));
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
            assert!(!is_as_wanted(&edited, &wanted), "{pointer}");
        }
    }

    #[test]
    fn settings_are_where_kubernetes_looks_for_them() {
        let affinity = json!({ "podAntiAffinity": {} });
        let set = [
            (Setting::Image, json!("other:2")),
            (Setting::Resources, json!({ "limits": { "memory": "1Gi" } })),
            (Setting::NodeSelector, json!({ "disk": "ssd" })),
            (Setting::Affinity, affinity.clone()),
            (Setting::PriorityClassName, json!("high")),
            (Setting::ImagePullSecrets, json!([{ "name": "mirror" }])),
            (
                Setting::Tolerations,
                json!([{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300 }]),
            ),
        ];
        let rendered = with("web", &Attachment::default(), &[], &set);
        let pod = &rendered["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!((&container["image"], &pod["priorityClassName"]), (&json!("other:2"), &json!("high")));
        assert_eq!(container["resources"], json!({ "limits": { "memory": "1Gi" } }));
        assert_eq!((&pod["nodeSelector"], &pod["affinity"]), (&json!({ "disk": "ssd" }), &affinity));
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": "mirror" }]));
        let seconds: Vec<_> =
            pod["tolerations"].as_array().unwrap().iter().map(|t| &t["tolerationSeconds"]).collect();
        assert_eq!(seconds, [10, 300], "a toleration that is set replaces ours of that key");
        let _: Deployment = typed(rendered).unwrap();
    }

    #[test]
    fn several_pods_are_apart_and_share_a_key() {
        let near = json!({ "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "rack" }],
        } });
        let slow = json!([{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300 }]);
        let set = [(Setting::Replicas, json!(3)), (Setting::Affinity, near), (Setting::Tolerations, slow)];
        let rendered = with("web", &Attachment::default(), &[], &set);
        let spec = &rendered["spec"];
        let rolling = json!({ "maxSurge": 0, "maxUnavailable": 1 });
        assert_eq!(spec["replicas"], 3);
        assert_eq!(spec["strategy"], json!({ "type": "RollingUpdate", "rollingUpdate": rolling }));
        let pod = &spec["template"]["spec"];
        let apart = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(apart[0]["topologyKey"], "rack");
        assert_eq!(apart[1]["topologyKey"], "kubernetes.io/hostname");
        assert_eq!(apart[1]["labelSelector"]["matchLabels"], spec["selector"]["matchLabels"]);
        let seconds: Vec<_> =
            pod["tolerations"].as_array().unwrap().iter().map(|t| &t["tolerationSeconds"]).collect();
        assert_eq!(seconds, [2, 300]);
        let key = json!({ "name": "key", "mountPath": "/etc/lb-svc/key", "readOnly": true });
        assert_eq!(pod["containers"][0]["volumeMounts"][2], key);
        let secret = &pod["volumes"][2]["secret"];
        assert_eq!(secret["defaultMode"], 0o400);
        let made = super::key(&owner("web"), &place("web"), "cm-1", [7; 32]);
        assert_eq!(secret["secretName"], made["metadata"]["name"]);
        let typed: Deployment = typed(rendered.clone()).unwrap();
        assert!(is_as_wanted(&crate::convert::live(&typed), &rendered));
        assert!(crate::convert::pod(&super::typed(json!({ "spec": pod })).unwrap()).member);
    }

    #[test]
    fn one_pod_is_alone() {
        let rendered = with("web", &Attachment::default(), &[], &[(Setting::Replicas, json!(1))]);
        assert_eq!(rendered["spec"], super::tests::rendered("web")["spec"]);
        let pod = &rendered["spec"]["template"]["spec"];
        assert_eq!(rendered["spec"]["strategy"], json!({ "type": "Recreate" }));
        assert_eq!((&pod["affinity"], pod["volumes"].as_array().unwrap().len()), (&Value::Null, 2));
        assert!(!crate::convert::pod(&super::typed(json!({ "spec": pod })).unwrap()).member);
    }

    #[test]
    fn a_key_is_one_services_and_goes_with_the_config_map() {
        let key = |uid: &str| {
            let owner = Owner { uid: uid.into(), ..owner("web") };
            super::key(&owner, &place("web"), "cm-1", [7; 32])
        };
        let object = key("uid-1");
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("ConfigMap"), &json!("cm-1")));
        assert_ne!(key("uid-2")["metadata"]["name"], object["metadata"]["name"]);
        let secret: Secret = typed(object).unwrap();
        assert_eq!(secret.data.unwrap()["key"].0, [7; 32]);
        assert_eq!(secret.immutable, Some(true));
    }

    #[test]
    fn a_budget_is_of_the_gateways_pods() {
        let wanted = budget(&owner("web"), &place("web"));
        assert_eq!(wanted["spec"]["selector"], rendered("web")["spec"]["selector"]);
        let typed: PodDisruptionBudget = typed(wanted.clone()).unwrap();
        assert!(is_as_wanted(&crate::convert::budget(&typed).content, &wanted));
    }

    #[test]
    fn one_of_the_attachments_resource_is_asked_for() {
        let attachment = Attachment { resource: Some("intel.com/sriov".into()), ..Attachment::default() };
        let of =
            |rendered: &Value| rendered["spec"]["template"]["spec"]["containers"][0]["resources"].clone();
        let plain = of(&with("web", &attachment, &[], &[]));
        assert_eq!(
            (&plain["requests"]["intel.com/sriov"], &plain["limits"]["intel.com/sriov"]),
            (&json!("1"), &json!("1"))
        );
        assert_eq!(plain["limits"]["memory"], "64Mi");
        let set = [(Setting::Resources, json!({ "limits": { "intel.com/sriov": "2" } }))];
        let set = of(&with("web", &attachment, &[], &set));
        assert_eq!(
            set,
            json!({ "limits": { "intel.com/sriov": "2" }, "requests": { "intel.com/sriov": "1" } })
        );
    }

    #[test]
    fn what_it_was_made_from_tells_its_own_from_what_is_for_all() {
        let high = [(Setting::PriorityClassName, json!("high"))];
        let attachment = Attachment::default();
        let other = Attachment { digest: "other".into(), ..Attachment::default() };
        let base = Origin::of(&rendered("web"));
        assert_eq!(Origin::of(&with("other", &attachment, &[], &[])), base);
        let all = Origin::of(&with("web", &attachment, &high, &[]));
        let own = Origin::of(&with("web", &attachment, &[], &high));
        let attached = Origin::of(&with("web", &other, &[], &[]));
        assert!(all.all != base.all && all.own == base.own);
        assert!(own.all == base.all && own.own != base.own);
        assert!(attached.all != base.all && attached.own == base.own);
        assert_eq!(Origin::of(&json!({})), Origin::default());
    }

    #[test]
    fn the_api_servers_own_way_to_write_a_value_is_no_difference() {
        let set =
            |resources: Value| with("web", &Attachment::default(), &[], &[(Setting::Resources, resources)]);
        let wanted = set(json!({ "limits": { "cpu": "0.5", "memory": "1024Mi" }, "requests": {} }));
        let mut live = wanted.clone();
        let resources = |cpu: &str| json!({ "limits": { "cpu": cpu, "memory": "1Gi" } });
        live["spec"]["template"]["spec"]["containers"][0]["resources"] = resources("500m");
        assert!(is_as_wanted(&live, &wanted));
        live["spec"]["template"]["spec"]["containers"][0]["resources"] = resources("600m");
        assert!(!is_as_wanted(&live, &wanted));
    }
}
