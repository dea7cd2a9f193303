//! A gateway's Deployment.

use std::time::Duration;

use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::seal::PublicKey;
use serde_json::{Value, json};

use super::{TemplateHash, annotations, metadata, pod_labels, selector};
use crate::gateway::pod_settings::Settings;
use crate::model::{Attachment, GatewayId, GatewayLocation, Setting};

/// How long a gateway stays bound to a node that does not answer, in seconds.
const UNREACHABLE_SECONDS: i64 = 10;
/// The same where another pod answers meanwhile.
const UNREACHABLE_SECONDS_OF_SEVERAL: i64 = 2;
/// On nodes that load balancers are to leave out (Kubernetes API). A cluster may
/// have no others, so gateways prefer those without it.
const EXCLUDED_NODES_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// How long a pod has to end, beside the time for its connections.
const TERMINATION_SECONDS: u16 = 5;
/// The volume with the election's key; only pods of several have it.
pub const KEY_VOLUME: &str = "key";
/// The progress deadline of a roll-out: after so long Kubernetes gives it up, and
/// others wait for it no longer.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(60);
/// The resources of a gateway unless they are set.
const RESOURCES: [(&str, &[(&str, &str)]); 2] =
    [("requests", &[("cpu", "10m"), ("memory", "16Mi")]), ("limits", &[("memory", "64Mi")])];

/// What a gateway's Deployment is made from.
#[derive(Clone, Copy, Debug)]
pub struct DeploymentTemplate<'a> {
    /// The attachment's name.
    pub provider: &'a Provider,
    /// The attachment.
    pub attachment: &'a Attachment,
    /// The settings for all gateways.
    pub all: &'a Settings,
    /// Those of this gateway's own.
    pub own: &'a Settings,
    /// The keys of which one has to have signed the gateway's configuration; without
    /// any, it need not be signed.
    pub trusted: &'a [PublicKey],
}

/// A gateway's Deployment.
///
/// Nothing in it depends on the address, the ports or the Subnet: changing
/// those must not roll gateways. It says what it was made from, see
/// [`TemplateHash`].
pub fn deployment(id: &GatewayId, gateway: &GatewayLocation, template: &DeploymentTemplate<'_>) -> Value {
    let (nobody, anywhere) = (GatewayId::default(), GatewayLocation::default());
    let nowhere = Provider { name: String::new(), namespace: String::new() };
    let short = |text: String| names::digest(text.as_bytes())[..16].to_owned();
    // What is the same for all gateways, and what is only this one's.
    let all = plain(&nobody, &anywhere, &nowhere, template, template.all);
    let own = json!([template.provider.to_string(), template.own.to_value()]);
    let origin = TemplateHash { all: short(all.to_string()), own: short(own.to_string()) };
    let settings = template.own.or(template.all);
    let mut object = plain(id, gateway, template.provider, template, &settings);
    object["metadata"]["annotations"][names::TEMPLATE_ANNOTATION] = json!(origin.to_string());
    object
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

/// The Deployment without its template hash.
fn plain(
    id: &GatewayId,
    gateway: &GatewayLocation,
    provider: &Provider,
    &DeploymentTemplate { attachment, trusted, .. }: &DeploymentTemplate<'_>,
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
    let mut annotations = annotations(&gateway.gateway);
    annotations[names::NETWORKS_ANNOTATION] = json!(provider.multus_name());
    annotations[names::ATTACHMENT_ANNOTATION] = json!(attachment.digest);
    // A mesh's sidecar would take the traffic before the gateway's rules do.
    annotations["sidecar.istio.io/inject"] = json!("false");
    annotations["linkerd.io/inject"] = json!("disabled");
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(id, gateway),
        "spec": {
            "replicas": settings.replicas(),
            // A roll-out back to an earlier ReplicaSet would count as complete
            // before its pod is ready.
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": PROGRESS_DEADLINE.as_secs(),
            "paused": false,
            "strategy": { "type": "Recreate" },
            "selector": { "matchLabels": selector(id) },
            "template": {
                "metadata": {
                    "labels": pod_labels(id),
                    "annotations": annotations,
                },
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": TERMINATION_SECONDS,
                    "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                    "tolerations": tolerations(settings),
                    "containers": [{
                        "name": "gateway",
                        "image": settings.get(Setting::Image),
                        "imagePullPolicy": "IfNotPresent",
                        "ports": [{ "name": "status", "containerPort": names::GATEWAY_PORT, "protocol": "TCP" }],
                        "readinessProbe": probe("/readyz", 1, 3),
                        // A restart costs nothing: the next process takes over
                        // what the kernel holds.
                        "livenessProbe": probe("/livez", 10, 3),
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
                        { "name": "config", "configMap": { "name": gateway.name() } },
                        { "name": "pod", "downwardAPI": { "items": [
                            annotation_file(names::NETWORK_STATUS_FILE, names::NETWORK_STATUS_ANNOTATION),
                            annotation_file(names::CONFIRMED_FILE, names::CONFIG_ANNOTATION),
                        ] } },
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
    if !trusted.is_empty() {
        let keys: Vec<String> = trusted.iter().map(ToString::to_string).collect();
        pod["containers"][0]["env"] = json!([
            { "name": names::GATEWAY_ID_VARIABLE, "value": id.as_str() },
            { "name": names::TRUSTED_KEYS_VARIABLE, "value": keys.join(",") },
        ]);
    }
    // The image is one for Linux, whatever else is selected.
    pod["nodeSelector"]["kubernetes.io/os"] = json!("linux");
    push(
        &mut pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"],
        json!({ "weight": 100, "preference": { "matchExpressions": [
            { "key": EXCLUDED_NODES_LABEL, "operator": "DoesNotExist" },
        ] } }),
    );
    if settings.replicas() > 1 {
        make_several(&mut object["spec"], id, gateway, settings.drain_seconds());
    }
    object
}

/// A file of the downward API that holds an annotation of the pod.
fn annotation_file(path: &str, annotation: &str) -> Value {
    json!({ "path": path, "fieldRef": { "fieldPath": format!("metadata.annotations['{annotation}']") } })
}

/// Whether the pods of a Deployment trust signed configurations only, as every
/// release does from 0.2 on.
pub fn trusts_keys(live: &Value) -> bool {
    trusted_keys_variable(live).is_some()
}

/// The keys that the pods of a Deployment trust, those that cannot be read left out;
/// `None` where they ask for no signature.
pub fn trusted_keys(live: &Value) -> Option<Vec<PublicKey>> {
    let keys = trusted_keys_variable(live)?["value"].as_str()?;
    Some(keys.split(',').filter_map(|key| key.parse().ok()).collect())
}

fn trusted_keys_variable(live: &Value) -> Option<&Value> {
    let env = live["spec"]["template"]["spec"]["containers"][0]["env"].as_array()?;
    env.iter().find(|variable| variable["name"] == names::TRUSTED_KEYS_VARIABLE)
}

/// Appends to a list that may not be there yet.
fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(items) => items.push(item),
        None => *list = json!([item]),
    }
}

/// Adds what a Deployment of several pods has beyond that of one: each pod is on
/// a node of its own, has the election's key, and terminates before its successor
/// starts, for the others answer meanwhile; it has time to lead its connections on.
fn make_several(spec: &mut Value, id: &GatewayId, gateway: &GatewayLocation, drain_seconds: u16) {
    spec["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } });
    // The next pod may have to wait for the node of the one that ends.
    let drained = u64::from(drain_seconds) + PROGRESS_DEADLINE.as_secs() / 2;
    spec["progressDeadlineSeconds"] = json!(drained.max(PROGRESS_DEADLINE.as_secs()));
    let pod = &mut spec["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = json!(TERMINATION_SECONDS + drain_seconds);
    let apart = json!({
        "labelSelector": { "matchLabels": selector(id) },
        "topologyKey": "kubernetes.io/hostname",
    });
    push(&mut pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"], apart);
    let mount = json!({ "name": KEY_VOLUME, "mountPath": names::KEY_DIR, "readOnly": true });
    push(&mut pod["containers"][0]["volumeMounts"], mount);
    // Its reader is root without any capability over files.
    let secret = json!({ "secretName": names::key_name(&gateway.name(), id.as_str()), "defaultMode": 0o400 });
    push(&mut pod["volumes"], json!({ "name": KEY_VOLUME, "secret": secret }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::manifests::is_as_wanted;
    use crate::testing::deployment::{rendered, with};

    #[test]
    fn deployment_has_two_capabilities_and_no_credentials() {
        let rendered = rendered("web");
        let pod = &rendered["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] }));
        assert_eq!(security["privileged"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
    }

    #[test]
    fn diff_finds_an_edit_but_no_default() {
        let wanted = rendered("web");
        let mut live = wanted.clone();
        live["spec"]["minReadySeconds"] = json!(0);
        live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
        live["spec"]["template"]["spec"]["containers"][0]["securityContext"]
            .as_object_mut()
            .unwrap()
            .remove("privileged");
        assert!(is_as_wanted(&live, &wanted, false));
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
            assert!(!is_as_wanted(&edited, &wanted, false), "{pointer}");
        }
    }

    #[test]
    fn r24_what_others_add_to_the_pods_is_a_difference() {
        let wanted = rendered("web");
        let add = |pointer: &str, field: &str, value: Value| {
            let mut live = wanted.clone();
            live.pointer_mut(pointer).unwrap()[field] = value;
            live
        };
        let (template, pod, container) =
            ("/spec/template", "/spec/template/spec", "/spec/template/spec/containers/0");
        for (pointer, field, value) in [
            (pod, "hostNetwork", json!(true)),
            (pod, "hostPID", json!(true)),
            (pod, "shareProcessNamespace", json!(true)),
            (pod, "serviceAccountName", json!("other")),
            (pod, "initContainers", json!([{ "name": "x", "image": "x" }])),
            (pod, "priorityClassName", json!("system-node-critical")),
            (pod, "dnsPolicy", json!("None")),
            ("/spec/template/spec/nodeSelector", "disk", json!("ssd")),
            ("/spec/template/spec/securityContext", "runAsUser", json!(1)),
            (container, "env", json!([{ "name": "LB_SVC_CONFIG_DIR", "value": "/tmp" }])),
            (container, "command", json!(["sh"])),
            (container, "lifecycle", json!({ "preStop": {} })),
            (&format!("{template}/metadata/labels"), "app", json!("web")),
        ] {
            let live = add(pointer, field, value);
            assert!(!is_as_wanted(&live, &wanted, false), "{pointer}/{field}");
            assert!(is_as_wanted(&live, &wanted, true), "the cluster adds {pointer}/{field} by itself");
        }
        for (pointer, field, value) in [
            (pod, "dnsPolicy", json!("ClusterFirst")),
            (container, "terminationMessagePath", json!("/dev/termination-log")),
            (container, "env", json!([])),
            (&format!("{template}/metadata/annotations"), "kubectl.kubernetes.io/restartedAt", json!("now")),
        ] {
            assert!(is_as_wanted(&add(pointer, field, value), &wanted, false), "{pointer}/{field}");
        }
    }

    #[test]
    fn b06_pods_have_no_label_that_a_selector_meets_by_chance() {
        let rendered = rendered("web");
        let labels = rendered["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        for label in labels.keys() {
            let ours = label == names::MANAGED_BY_LABEL || label.starts_with(names::DOMAIN);
            assert!(ours || label == "istio.io/dataplane-mode", "{label}");
        }
        assert_eq!(rendered["spec"]["selector"]["matchLabels"], json!({ names::SERVICE_UID_LABEL: "uid-1" }));
        for label in ["app", "namespace", "service"] {
            assert!(rendered["metadata"]["labels"][label].is_string(), "{label} is for people");
        }
    }

    #[test]
    fn b14_b25_b26_pods_go_where_they_can_serve() {
        let rendered = rendered("web");
        let template = &rendered["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
        let pod = &template["spec"];
        assert_eq!(pod["nodeSelector"], json!({ "kubernetes.io/os": "linux" }));
        let preferred = &pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(preferred[0]["preference"]["matchExpressions"][0]["key"], EXCLUDED_NODES_LABEL);
    }

    #[test]
    fn r19_a_gateway_that_hangs_is_restarted() {
        let rendered = rendered("web");
        let probe = &rendered["spec"]["template"]["spec"]["containers"][0]["livenessProbe"];
        assert_eq!(probe["httpGet"]["path"], "/livez");
    }

    #[test]
    fn deployment_requests_resource_of_attachment() {
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
    fn template_hash_tells_own_settings_from_those_for_all() {
        let high = [(Setting::PriorityClassName, json!("high"))];
        let attachment = Attachment::default();
        let other = Attachment { digest: "other".into(), ..Attachment::default() };
        let base = TemplateHash::of(&rendered("web"));
        assert_eq!(TemplateHash::of(&with("other", &attachment, &[], &[])), base);
        let all = TemplateHash::of(&with("web", &attachment, &high, &[]));
        let own = TemplateHash::of(&with("web", &attachment, &[], &high));
        let attached = TemplateHash::of(&with("web", &other, &[], &[]));
        assert!(all.all != base.all && all.own == base.own);
        assert!(own.all == base.all && own.own != base.own);
        assert!(attached.all != base.all && attached.own == base.own);
        assert_eq!(TemplateHash::of(&json!({})), TemplateHash::default());
    }

    #[test]
    fn diff_ignores_how_a_quantity_is_written() {
        let set =
            |resources: Value| with("web", &Attachment::default(), &[], &[(Setting::Resources, resources)]);
        let wanted = set(json!({ "limits": { "cpu": "0.5", "memory": "1024Mi" }, "requests": {} }));
        let mut live = wanted.clone();
        let resources = |cpu: &str| json!({ "limits": { "cpu": cpu, "memory": "1Gi" } });
        live["spec"]["template"]["spec"]["containers"][0]["resources"] = resources("500m");
        assert!(is_as_wanted(&live, &wanted, false));
        live["spec"]["template"]["spec"]["containers"][0]["resources"] = resources("600m");
        assert!(!is_as_wanted(&live, &wanted, false));
    }
}
