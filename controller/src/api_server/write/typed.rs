//! The core's manifests as Kubernetes types.

use serde_json::Value;

/// A rendered object as its type, for a POST.
///
/// # Errors
/// If the rendering is not of that type: a mistake in `lb_svc_core::gateway::manifests`.
pub fn typed<K: serde::de::DeserializeOwned>(object: Value) -> Result<K, serde_json::Error> {
    serde_json::from_value(object)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Secret;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use lb_svc_core::gateway::manifests::{self, is_as_wanted};
    use lb_svc_core::model::{Attachment, GatewayId, Setting};
    use lb_svc_core::testing::deployment::{self, gateway, id, rendered, with};
    use serde_json::json;

    use super::*;
    use crate::api_server::read;

    fn key_secret(id: &GatewayId) -> Value {
        manifests::key(id, &gateway("web"), "cm-1", &json!(ByteString(vec![7; 32])))
    }

    #[test]
    fn deployment_manifest_reads_back_as_itself() {
        for name in ["web", &"w".repeat(63)] {
            let wanted = rendered(name);
            let object: Deployment = typed(wanted.clone()).unwrap();
            let live = read::live(&object);
            assert!(is_as_wanted(&live, &wanted, false));
            let labels = wanted["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            assert!(labels.values().all(|value| value.as_str().unwrap().len() <= 63));
        }
    }

    #[test]
    fn pod_settings_are_in_their_fields() {
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
        assert_eq!(pod["nodeSelector"], json!({ "disk": "ssd", "kubernetes.io/os": "linux" }));
        assert_eq!(pod["affinity"]["podAntiAffinity"], affinity["podAntiAffinity"]);
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": "mirror" }]));
        let seconds: Vec<_> =
            pod["tolerations"].as_array().unwrap().iter().map(|t| &t["tolerationSeconds"]).collect();
        assert_eq!(seconds, [10, 300], "a toleration that is set replaces ours of that key");
        let _: Deployment = typed(rendered).unwrap();
    }

    #[test]
    fn replicas_are_spread_and_share_a_key() {
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
        let made = key_secret(&id());
        assert_eq!(secret["secretName"], made["metadata"]["name"]);
        let object: Deployment = typed(rendered.clone()).unwrap();
        assert!(is_as_wanted(&read::live(&object), &rendered, false));
        assert!(read::pod(&typed(json!({ "spec": pod })).unwrap()).member);
    }

    #[test]
    fn pods_of_several_have_time_to_drain() {
        let times = |set: &[(Setting, Value)]| {
            let spec = with("web", &Attachment::default(), &[], set)["spec"].take();
            let grace = &spec["template"]["spec"]["terminationGracePeriodSeconds"];
            (grace.as_u64().unwrap(), spec["progressDeadlineSeconds"].as_u64().unwrap())
        };
        let several = (Setting::Replicas, json!(2));
        assert_eq!(times(&[]), (5, 60), "one pod has no other to drain for");
        assert_eq!(times(std::slice::from_ref(&several)), (35, 60));
        assert_eq!(times(&[several.clone(), (Setting::DrainSeconds, json!(120))]), (125, 150));
        assert_eq!(times(&[several, (Setting::DrainSeconds, json!(0))]), (5, 60));
    }

    #[test]
    fn single_replica_has_no_election() {
        let rendered = with("web", &Attachment::default(), &[], &[(Setting::Replicas, json!(1))]);
        assert_eq!(rendered["spec"], deployment::rendered("web")["spec"]);
        let pod = &rendered["spec"]["template"]["spec"];
        assert_eq!(rendered["spec"]["strategy"], json!({ "type": "Recreate" }));
        assert_eq!(pod["affinity"]["podAntiAffinity"], Value::Null);
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(
            volumes.iter().all(|volume| volume["emptyDir"].is_null()),
            "kubectl drain would refuse: {volumes:?}"
        );
        assert!(!read::pod(&typed(json!({ "spec": pod })).unwrap()).member);
    }

    #[test]
    fn key_secret_is_owned_by_config_map() {
        let key = |uid: &str| key_secret(&uid.into());
        let object = key("uid-1");
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("ConfigMap"), &json!("cm-1")));
        assert_ne!(key("uid-2")["metadata"]["name"], object["metadata"]["name"]);
        let secret: Secret = typed(object).unwrap();
        assert_eq!(secret.data.unwrap()["key"].0, [7; 32]);
        assert_eq!(secret.immutable, Some(true));
    }

    #[test]
    fn budget_selects_pods_of_the_gateway() {
        let wanted = manifests::budget(&id(), &gateway("web"));
        assert_eq!(wanted["spec"]["selector"], rendered("web")["spec"]["selector"]);
        let object: PodDisruptionBudget = typed(wanted.clone()).unwrap();
        assert!(is_as_wanted(&read::budget(&object).content, &wanted, false));
    }
}
