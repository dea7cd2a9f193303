//! What can be set of gateways' pods, by annotations of a Service.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use lb_svc_e2e::objects::web;
use lb_svc_e2e::{Lab, QUICK, Scene, client, expect, scene, serves, throughout, until};
use serde_json::{Value, json};

fn annotate(annotations: &Value) -> Value {
    json!({ "metadata": { "annotations": annotations } })
}

/// The pod's spec, as JSON.
fn spec(pod: &Pod) -> Value {
    serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap()
}

async fn generation(scene: &Scene, service: &str) -> i64 {
    let deployment = scene.api::<Deployment>().get(&format!("lb-svc-{service}")).await.unwrap();
    deployment.metadata.generation.unwrap()
}

async fn condition(scene: &Scene, service: &str, kind: &str) -> Option<(String, String)> {
    let conditions = scene.service(service).await.status.unwrap_or_default().conditions.unwrap_or_default();
    let kind = format!("lb-svc.kubeovn.io/{kind}");
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map(|condition| (condition.reason, condition.message))
}

#[tokio::test]
async fn a_setting_is_on_the_gateways_pod_and_goes_with_its_annotation() {
    scene("set", async |scene| {
        let ip = scene.served("web", 1).await;
        let plain = scene.gateway("web").await;
        let set = annotate(&json!({
            "lb-svc.kubeovn.io/resources": "{requests: {cpu: 0.02, memory: 20480Ki}, limits: {memory: 0.0625Gi}}",
            "lb-svc.kubeovn.io/node-selector": r#"{"kubernetes.io/os": "linux"}"#,
            "lb-svc.kubeovn.io/affinity":
                "nodeAffinity:\n  requiredDuringSchedulingIgnoredDuringExecution:\n    nodeSelectorTerms:\n    - matchExpressions: [{key: kubernetes.io/arch, operator: Exists}]",
        }));
        scene.patch_service("web", set).await;
        let pod = scene.replaced("web", &plain).await;
        let seen = spec(&pod);
        assert_eq!(seen["nodeSelector"], json!({ "kubernetes.io/os": "linux" }));
        let resources = &seen["containers"][0]["resources"];
        assert_eq!(resources["requests"], json!({ "cpu": "20m", "memory": "20Mi" }));
        assert_eq!(resources["limits"], json!({ "memory": "64Mi" }));
        let asked = &seen["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(asked["nodeSelectorTerms"][0]["matchExpressions"][0]["key"], "kubernetes.io/arch");
        serves(ip).await;

        // Ports do not roll it, nor is anything written again and again.
        let written = generation(&scene, "web").await;
        let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81, "targetPort": 80 }]);
        scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
        until("port 81", QUICK, async || client::get(ip, 81).await).await;
        assert_eq!(scene.gateway("web").await.uid(), pod.uid());
        assert_eq!(generation(&scene, "web").await, written);

        let unset = json!({
            "lb-svc.kubeovn.io/resources": null, "lb-svc.kubeovn.io/node-selector": null,
            "lb-svc.kubeovn.io/affinity": null,
        });
        scene.patch_service("web", annotate(&unset)).await;
        let seen = spec(&scene.replaced("web", &pod).await);
        let plain = spec(&plain);
        for field in ["nodeSelector", "affinity", "tolerations", "priorityClassName"] {
            assert_eq!(seen[field], plain[field], "{field}");
        }
        assert_eq!(seen["containers"][0]["resources"], plain["containers"][0]["resources"]);
        serves(ip).await;
    })
    .await;
}

#[tokio::test]
async fn a_bad_setting_is_said_and_nothing_is_rolled() {
    scene("set-badly", async |scene| {
        let ip = scene.served("web", 1).await;
        let (pod, written) = (scene.gateway("web").await.uid(), generation(&scene, "web").await);
        for (annotation, value, reason, place) in [
            ("affinity", "{nodeAffinity: {requird: {}}}", "InvalidSetting", "nodeAffinity.requird"),
            ("resources", "{limits: {memory: 64Miz}}", "InvalidSetting", "limits.memory"),
            ("image", "docker.io/mine:1", "SettingNotAllowed", "serviceMaySet"),
            ("tolerations", "[{operator: Exists}]", "SettingNotAllowed", "serviceMaySet"),
            ("affinity", "{podAntiAffinity: {}}", "SettingNotAllowed", "podAntiAffinity"),
            ("resources", "{requests: {cpu: 60}}", "SettingNotAllowed", "serviceLimits.cpu"),
            // What only the API server knows.
            ("node-selector", "{'no label': x}", "WriteRefused", "spec.template.spec.nodeSelector"),
        ] {
            let annotation = format!("lb-svc.kubeovn.io/{annotation}");
            scene.patch_service("web", annotate(&json!({ &annotation: value }))).await;
            until(&format!("{annotation}: {value} is answered"), QUICK, async || {
                let said = condition(&scene, "web", "Limited").await;
                let right = said.as_ref().is_some_and(|(said, message)| {
                    said == reason && message.contains(&annotation) && message.contains(place)
                });
                expect(right, said)
            })
            .await;
            let events = scene.events("web").await;
            assert!(
                events.iter().any(|(told, message)| told == reason && message.contains(&annotation)),
                "{events:?}"
            );
            client::get(ip, 80).await.unwrap();
            scene.patch_service("web", annotate(&json!({ &annotation: null }))).await;
            until("nothing is wrong any more", QUICK, async || {
                let said = condition(&scene, "web", "Limited").await;
                expect(said.is_none(), said)
            })
            .await;
        }
        assert_eq!(scene.gateway("web").await.uid(), pod, "it was not rolled");
        assert_eq!(generation(&scene, "web").await, written, "nor written");

        // A new Service is not guessed at, and served when it is corrected.
        let mut new = web("new");
        new["metadata"]["annotations"]["lb-svc.kubeovn.io/resources"] = "{limit: {}}".into();
        new["spec"]["selector"] = json!({ "app": "web" });
        scene.create::<Service>(new).await;
        until("it is answered", QUICK, async || {
            let said = condition(&scene, "new", "GatewayReady").await;
            expect(said.as_ref().is_some_and(|(reason, _)| reason == "InvalidSetting"), said)
        })
        .await;
        assert!(scene.gateways("new").await.is_empty());
        scene.patch_service("new", annotate(&json!({ "lb-svc.kubeovn.io/resources": null }))).await;
        serves(scene.address("new").await).await;
    })
    .await;
}

/// A resource that exists on all nodes for the time of a test.
async fn advertise(amount: Value) {
    let nodes = Lab::kubectl(&["get", "nodes", "-o", "name"]).await.unwrap();
    let patch = json!({ "status": { "capacity": { "example.com/lan": amount } } }).to_string();
    for node in nodes.lines() {
        Lab::kubectl(&["patch", node, "--subresource=status", "--type=merge", "-p", &patch]).await.unwrap();
    }
}

#[tokio::test]
async fn an_attachments_resource_is_requested_and_its_changes_are_followed() {
    scene("resource", async |scene| {
        let ns = scene.namespace.as_str();
        advertise("4".into()).await;
        scene.attach("special", "cidrBlock: 172.31.0.0/24").await;
        let resource = |value: &str| format!("k8s.v1.cni.cncf.io/resourceName{value}");
        let annotate = async |value: &str| {
            let args = ["annotate", "-n", ns, "network-attachment-definition", "special", &resource(value)];
            Lab::kubectl(&args).await.unwrap();
        };
        annotate("=example.com/lan").await;
        let mut special = web("special");
        special["metadata"]["annotations"]["ovn.kubernetes.io/attachmentprovider"] =
            format!("special.{ns}").into();
        scene.create::<Service>(special).await;
        let pod = scene.gateway("special").await;
        let resources = &spec(&pod)["containers"][0]["resources"];
        assert_eq!(
            (&resources["limits"]["example.com/lan"], &resources["requests"]["example.com/lan"]),
            (&json!("1"), &json!("1"))
        );

        annotate("-").await;
        let pod = scene.replaced("special", &pod).await;
        assert!(spec(&pod)["containers"][0]["resources"]["limits"]["example.com/lan"].is_null());

        // The same in other words is no change; another wire is.
        let config = async |config: &str| {
            let patch = json!({ "spec": { "config": config } }).to_string();
            let args =
                ["patch", "-n", ns, "network-attachment-definition", "special", "--type=merge", "-p", &patch];
            Lab::kubectl(&args).await.unwrap();
        };
        config(r#"{"mode": "bridge", "type": "macvlan", "master": "eth0", "cniVersion": "0.3.0"}"#).await;
        throughout("it stays", Duration::from_secs(2), async || {
            let now = scene.gateway("special").await.uid();
            expect(now == pod.uid(), now)
        })
        .await;
        config(r#"{"mode": "private", "type": "macvlan", "master": "eth0", "cniVersion": "0.3.0"}"#).await;
        scene.replaced("special", &pod).await;
        scene.api::<Service>().delete("special", &Default::default()).await.unwrap();
        scene.gone("special").await;
        Lab::kubectl(&["delete", "subnet", ns, "--timeout=20s"]).await.unwrap();
        advertise(Value::Null).await;
    })
    .await;
}
