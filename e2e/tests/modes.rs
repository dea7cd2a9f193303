//! The controller itself is set in another way. These run alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use lb_svc_crds::names::{
    GATEWAY_NAMESPACE_LABEL, SERVICE_ANNOTATION, SIGNING_SECRET, TRUSTED_KEYS_VARIABLE, gateway_name_apart,
};
use lb_svc_e2e::objects::{backends, port, service, web};
use lb_svc_e2e::outage::Watch;
use lb_svc_e2e::{
    GATEWAYS, Lab, QUICK, SLOW, Scene, client, expect, gateway_pods, repository, scale_controller, scene,
    serves, until,
};
use serde_json::{Value, json};

const SYSTEM: &str = "lb-svc-system";
const CONTROLLER: &str = "lb-svc-controller";
/// How many gateways are rolled at once.
const AT_ONCE: usize = 4;

/// Restarts the controller with these arguments beside the usual ones, and
/// waits until it is the only one.
async fn controller(scene: &Scene, more: &[&str]) {
    let usual = ["--enable-lb-svc=true", "--config=/etc/lb-svc/config.yaml"];
    let args = [&usual[..], more].concat();
    let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
    let template = json!({
        "metadata": { "annotations": { "test": scene.namespace, "at": format!("{:?}", SystemTime::now()) } },
        "spec": { "containers": [{ "name": "controller", "args": args }] },
    });
    let patch = Patch::Strategic(json!({ "spec": { "replicas": 1, "template": template } }));
    deployments.patch(CONTROLLER, &PatchParams::default(), &patch).await.unwrap();
    Lab::kubectl(&["rollout", "status", "deployment", CONTROLLER, "-n", SYSTEM, "--timeout=60s"])
        .await
        .unwrap();
}

/// Gives the controller this configuration.
async fn configure(scene: &Scene, configuration: &str) {
    let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
    let volumes =
        deployments.get(CONTROLLER).await.unwrap().spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let name = volumes.iter().find_map(|volume| Some(volume.config_map.as_ref()?.name.clone())).unwrap();
    let configs: Api<ConfigMap> = Api::namespaced(scene.client(), SYSTEM);
    let patch = Patch::Merge(json!({ "data": { "config.yaml": configuration } }));
    configs.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    controller(scene, &[]).await;
}

/// The pods' uids of the gateways whose pod is ready, by Service, and how many
/// gateways have none.
async fn ready(scene: &Scene, services: &[String]) -> (BTreeMap<String, String>, usize) {
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=lb-svc");
    let pods = scene.api::<Pod>().list(&ours).await.unwrap().items;
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.clone().unwrap_or_default().conditions.unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none()
            && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let ready: BTreeMap<String, String> = pods
        .iter()
        .filter(|pod| is_ready(pod))
        .map(|pod| {
            let (_, service) = pod.annotations()[SERVICE_ANNOTATION].split_once('/').unwrap();
            (service.to_owned(), pod.uid().unwrap())
        })
        .collect();
    let without = services.iter().filter(|service| !ready.contains_key(*service)).count();
    (ready, without)
}

async fn many(scene: &Scene, count: usize) -> (Vec<String>, Vec<IpAddr>) {
    scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
    let names: Vec<String> = (0..count).map(|n| format!("web-{n}")).collect();
    for name in &names {
        let mut object = web(name);
        object["spec"]["selector"] = json!({ "app": "web" });
        scene.create::<Service>(object).await;
    }
    let mut addresses = Vec::new();
    for name in &names {
        addresses.push(scene.address(name).await);
        serves(addresses[addresses.len() - 1]).await;
    }
    (names, addresses)
}

#[tokio::test]
async fn what_changes_for_all_rolls_a_few_gateways_at_a_time() {
    scene("paced", async |scene| {
        controller(&scene, &[]).await;
        let (services, addresses) = many(&scene, 7).await;
        let (before, _) = ready(&scene, &services).await;
        assert_eq!(before.len(), services.len());

        configure(&scene, "gateway: {tolerations: [{key: example.com/lan, operator: Exists}]}").await;
        let mut most = 0;
        until("all are rolled", SLOW * 2, async || {
            let (now, without) = ready(&scene, &services).await;
            assert!(without <= AT_ONCE, "{without} are away at once");
            most = most.max(without);
            let left = services.iter().filter(|service| now.get(*service) == before.get(*service)).count();
            expect(without == 0 && left == 0, (left, without))
        })
        .await;
        assert!(most > 0, "none was seen to be away");

        // R7: what cannot run takes one away; the rest is not touched until it
        // is mended, also when Kubernetes has given that one up.
        let (before, _) = ready(&scene, &services).await;
        configure(&scene, "gateway: {image: localhost/no-such-image:1}").await;
        until("one is away, and the roll-out halted", SLOW * 2, async || {
            let (now, without) = ready(&scene, &services).await;
            assert!(without <= 1, "{without} are away at once");
            let away = services.iter().find(|service| !now.contains_key(*service)).ok_or("none is away")?;
            let message = ready_message(&scene, away).await;
            expect(message.contains("halted"), message)
        })
        .await;
        for (service, address) in services.iter().zip(&addresses) {
            if ready(&scene, &services).await.0.contains_key(service) {
                client::get(*address, 80).await.unwrap();
            }
        }
        // Those that wait for their turn were made otherwise than the
        // controller would make them now, and do what it says all the same.
        let (now, _) = ready(&scene, &services).await;
        let old = services.iter().position(|service| now.contains_key(service)).unwrap();
        let ports = json!([port("TCP", 80, 80), port("TCP", 81, 80)]);
        scene.patch_service(&services[old], json!({ "spec": { "ports": ports } })).await;
        until("port 81", QUICK, async || client::get(addresses[old], 81).await).await;
        assert_eq!(ready(&scene, &services).await.0.get(&services[old]), before.get(&services[old]));
        for service in services.iter().filter(|service| !now.contains_key(*service)) {
            until("why is said", QUICK, async || {
                let reason = ready_reason(&scene, service).await;
                expect(["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()), reason)
            })
            .await;
        }
        configure(&scene, "gateway: {tolerations: [{key: example.com/lan, operator: Exists}]}").await;
        until("it is mended", SLOW, async || {
            let (now, without) = ready(&scene, &services).await;
            let kept = services.iter().filter(|service| now.get(*service) == before.get(*service)).count();
            expect(without == 0 && kept == services.len() - 1, (without, kept))
        })
        .await;
        for address in addresses {
            serves(address).await;
        }
        configure(&scene, "").await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_is_missing_is_said_and_holds_up_nobody() {
    scene("imageless", async |scene| {
        configure(&scene, "serviceMaySet: [image]").await;
        let mut imageless = web("imageless");
        imageless["metadata"]["annotations"]["lb-svc.kubeovn.io/image"] = "localhost/no-such-image:1".into();
        imageless["spec"]["selector"] = json!({ "app": "web" });
        scene.create::<Service>(imageless).await;
        scene.served("web", 1).await;
        until("it is said", SLOW, async || {
            let (reason, events) = (ready_reason(&scene, "imageless").await, scene.events("imageless").await);
            let said =
                |reason: &str| ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"].contains(&reason);
            let named = |message: &str| message.contains("localhost/no-such-image:1");
            let told = events.iter().any(|(reason, message)| said(reason) && named(message));
            expect(said(&reason) && told, (reason, events))
        })
        .await;
        let right = json!({ "lb-svc.kubeovn.io/image": "localhost/lb-svc-gateway:dev" });
        scene.patch_service("imageless", json!({ "metadata": { "annotations": right } })).await;
        serves(scene.address("imageless").await).await;
        configure(&scene, "").await;
    })
    .await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_at_start_and_gateways_serve_on() {
    scene("misconfigured", async |scene| {
        controller(&scene, &[]).await;
        let ip = scene.served("web", 1).await;
        let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
        let args: Value = json!(["--enable-lb-svc=true", "--config=/no/such/file"]);
        let patch = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "controller", "args": args }] } } } });
        deployments.patch(CONTROLLER, &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        until("it says why", SLOW, async || {
            let log = ["logs", "-n", SYSTEM, "-l", "app=lb-svc-controller", "--tail=20"];
            let log = Lab::kubectl(&log).await.map_err(|error| error.to_string())?;
            expect(log.contains("/no/such/file"), log)
        })
        .await;
        client::get(ip, 80).await.unwrap();
        controller(&scene, &[]).await;
    })
    .await;
}

/// What lets the controller see and write gateways everywhere.
const WIDE: [&str; 2] = ["clusterrolebinding", "lb-svc-gateways"];

/// Installs the product as `manifests/KIND` has it, over what is there.
async fn install(kind: &str) {
    let manifests = repository().join("manifests").join(kind);
    Lab::kubectl(&["apply", "-k", manifests.to_str().unwrap()]).await.unwrap();
    Lab::kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment", CONTROLLER]).await.unwrap();
    Lab::kubectl(&["rollout", "status", "deployment", CONTROLLER, "-n", SYSTEM, "--timeout=60s"])
        .await
        .unwrap();
}

async fn uninstall_apart() {
    install("").await;
    let nothing_left = ["get", "deployments", "-n", GATEWAYS, "-o", "name"];
    until("no gateway is apart", SLOW, async || {
        let left = Lab::kubectl(&nothing_left).await.map_err(|error| error.to_string())?;
        expect(left.is_empty(), left)
    })
    .await;
    Lab::kubectl(&["delete", "namespace", GATEWAYS, "--timeout=60s"]).await.unwrap();
}

/// The pods of the gateway of `service`, in the namespace of all gateways.
async fn apart(scene: &Scene, service: &str) -> Vec<Pod> {
    gateway_pods(&Api::namespaced(scene.client(), GATEWAYS), &scene.namespace, service).await
}

async fn ready_message(scene: &Scene, service: &str) -> String {
    let conditions = scene.service(service).await.status.unwrap_or_default().conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "lb-svc.kubeovn.io/GatewayReady");
    ready.map(|condition| condition.message.clone()).unwrap_or_default()
}

async fn ready_reason(scene: &Scene, service: &str) -> String {
    let conditions = scene.service(service).await.status.unwrap_or_default().conditions.unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "lb-svc.kubeovn.io/GatewayReady");
    ready.map(|condition| condition.reason).unwrap_or_default()
}

#[tokio::test]
async fn a_tenant_under_restricted_pod_security_is_served_from_a_namespace_of_gateways() {
    scene("restricted", async |scene| {
        let ns = scene.namespace.as_str();
        install("gateway-namespace").await;
        Lab::kubectl(&["delete", WIDE[0], WIDE[1]]).await.unwrap();
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        Lab::kubectl(&["label", "namespace", ns, restricted]).await.unwrap();

        let mut workload = backends("web", 1, &["tcp/8080"]);
        let pod = &mut workload["spec"]["template"]["spec"];
        pod["securityContext"] =
            json!({ "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } });
        pod["containers"][0]["securityContext"] =
            json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        scene.create::<Deployment>(workload).await;

        // What is not ours and has the gateway's name is left alone.
        let name = gateway_name_apart(ns, "web");
        let configs: Api<ConfigMap> = Api::namespaced(scene.client(), GATEWAYS);
        let theirs = json!({ "metadata": { "name": name }, "data": { "is": "theirs" } });
        configs.create(&Default::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
        scene.create::<Service>(service("web", &json!([port("TCP", 80, 8080)]))).await;
        until("the name is said to be taken", SLOW, async || {
            let reason = ready_reason(&scene, "web").await;
            expect(reason == "NameTaken", reason)
        })
        .await;
        assert_eq!(configs.get(&name).await.unwrap().data.unwrap()["is"], "theirs");
        let made = Api::<Deployment>::namespaced(scene.client(), GATEWAYS).get_opt(&name).await.unwrap();
        assert!(made.is_none(), "no pod runs on it");
        configs.delete(&name, &DeleteParams::default()).await.unwrap();

        let ip = scene.address("web").await;
        serves(ip).await;
        assert!(scene.gateways("web").await.is_empty(), "not in the tenant's namespace");
        let pods = apart(&scene, "web").await;
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].annotations()["k8s.v1.cni.cncf.io/networks"], "kube-system/lb-svc-attachment");
        assert_eq!(pods[0].annotations()["lb-svc.kubeovn.io/service"], format!("{ns}/web"));
        assert_eq!(scene.claims().await[0].labels()[GATEWAY_NAMESPACE_LABEL], GATEWAYS);
        scene.patch_service("web", json!({ "spec": { "ports": [port("TCP", 81, 8080)] } })).await;
        until("port 81", QUICK, async || client::get(ip, 81).await).await;

        // Nobody but the controller collects it.
        scale_controller(&scene.lab, 0).await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        assert_eq!(apart(&scene, "web").await.len(), 1);
        scale_controller(&scene.lab, 1).await;
        until("it is collected", SLOW, async || {
            let left = apart(&scene, "web").await.len() + scene.claims().await.len();
            expect(left == 0, left)
        })
        .await;
        assert!(configs.get_opt(&name).await.unwrap().is_none());
        uninstall_apart().await;
    })
    .await;
}

#[tokio::test]
async fn gateways_move_and_no_address_is_ever_in_two_places() {
    scene("moved", async |scene| {
        install("").await;
        let ip = scene.served("web", 1).await;

        // Where the controller may not look a gateway serves on.
        scale_controller(&scene.lab, 0).await;
        Lab::kubectl(&["delete", WIDE[0], WIDE[1]]).await.unwrap();
        install("gateway-namespace").await;
        until("it is said", SLOW, async || {
            let reason = ready_reason(&scene, "web").await;
            expect(reason == "GatewayElsewhere", reason)
        })
        .await;
        client::get(ip, 80).await.unwrap();
        assert_eq!(scene.gateways("web").await.len(), 1);
        assert!(apart(&scene, "web").await.is_empty());

        // With rights everywhere it moves.
        install("").await;
        until("it is as it was", SLOW, async || {
            let reason = ready_reason(&scene, "web").await;
            expect(reason == "GatewayReady", reason)
        })
        .await;
        let pod = scene.gateway("web").await;
        install("gateway-namespace").await;
        let both = async || {
            let labels = ListParams::default().labels("app.kubernetes.io/managed-by=lb-svc");
            let here = scene.api::<Pod>().list(&labels).await.unwrap().items.len();
            (here, apart(&scene, "web").await.len())
        };
        until("the gateway moves", SLOW, async || {
            let (here, there) = both().await;
            assert!(here == 0 || there == 0, "{here} pods beside the Service and {there} apart from it");
            expect(there == 1 && ready_reason(&scene, "web").await == "GatewayReady", (here, there))
        })
        .await;
        assert_eq!(scene.ingress("web").await, [ip]);
        serves(ip).await;
        assert_eq!(scene.claims().await[0].labels()[GATEWAY_NAMESPACE_LABEL], GATEWAYS);
        scene.api::<Deployment>().get_opt("lb-svc-web").await.unwrap().ok_or(()).unwrap_err();

        // The rights that it needs no more may go while it runs.
        Lab::kubectl(&["delete", WIDE[0], WIDE[1]]).await.unwrap();
        until("it notices", SLOW, async || {
            let log = ["logs", "-n", SYSTEM, "-l", "app=lb-svc-controller", "--tail=-1"];
            let log = Lab::kubectl(&log).await.map_err(|error| error.to_string())?;
            expect(log.matches("watching the gateway namespace only").count() >= 3, log)
        })
        .await;
        let backend = json!([port("TCP", 80, 80), port("TCP", 81, 80)]);
        scene.patch_service("web", json!({ "spec": { "ports": backend } })).await;
        until("port 81", QUICK, async || client::get(ip, 81).await).await;

        // And back.
        install("").await;
        until("the gateway is back", SLOW, async || {
            let (here, there) = both().await;
            assert!(here == 0 || there == 0, "{here} pods beside the Service and {there} apart from it");
            expect(here == 1 && ready_reason(&scene, "web").await == "GatewayReady", (here, there))
        })
        .await;
        assert_ne!(scene.gateway("web").await.uid(), pod.uid());
        serves(ip).await;
        until("the claim says so", QUICK, async || {
            let labels = scene.claims().await[0].labels().clone();
            expect(!labels.contains_key(GATEWAY_NAMESPACE_LABEL), labels)
        })
        .await;
        uninstall_apart().await;
    })
    .await;
}

/// The Deployment of a gateway as releases before 0.2 made it: its pods have
/// the Deployment's labels, and are selected by them.
fn legacy(deployment: &Deployment) -> Value {
    let mut labels = deployment.labels().clone();
    let mut object = serde_json::to_value(deployment).unwrap();
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| {
        ["name", "namespace", "labels", "annotations", "ownerReferences"].contains(&field.as_str())
    });
    object.as_object_mut().unwrap().remove("status");
    object["spec"]["template"]["metadata"]["labels"] = json!(labels);
    labels.remove("app.kubernetes.io/managed-by");
    object["spec"]["selector"]["matchLabels"] = json!(labels);
    object
}

#[tokio::test]
async fn b06_deployments_of_an_earlier_release_are_made_anew_once() {
    scene("legacy", async |scene| {
        controller(&scene, &[]).await;
        scene.create::<Deployment>(backends("web", 1, &["tcp/80", "udp/80"])).await;
        let ports = json!([port("TCP", 80, 80), port("UDP", 80, 80)]);
        let replicas = [("one", "1"), ("two", "2")];
        for (name, replicas) in replicas {
            let mut object = service(name, &ports);
            object["spec"]["selector"] = json!({ "app": "web" });
            object["metadata"]["annotations"]["lb-svc.kubeovn.io/replicas"] = replicas.into();
            scene.create::<Service>(object).await;
        }
        let (one, two) = (scene.address("one").await, scene.address("two").await);
        scale_controller(&scene.lab, 0).await;
        let deployments = scene.api::<Deployment>();
        let ready = async |name: &str, count: usize| {
            let pods = scene.gateways(name).await;
            expect(pods.len() == count && pods.iter().all(lb_svc_e2e::is_ready), pods.len())
        };
        for (name, count) in [("one", 1), ("two", 2)] {
            let object = format!("lb-svc-{name}");
            let known = deployments.get(&object).await.unwrap();
            deployments.delete(&object, &DeleteParams::foreground()).await.unwrap();
            until("its end", SLOW, async || {
                let left = deployments.get_opt(&object).await.map_err(|error| error.to_string())?;
                expect(left.is_none(), "it is still there")
            })
            .await;
            scene.create::<Deployment>(legacy(&known)).await;
            until("its pods", SLOW, async || ready(name, count).await).await;
        }
        serves(one).await;
        serves(two).await;

        let probes = [one, two].map(|ip| Watch::begin(ip, 80, 80));
        scale_controller(&scene.lab, 1).await;
        for (name, count) in [("one", 1), ("two", 2)] {
            until(&format!("the new pods of {name}"), SLOW * 2, async || {
                let pods = scene.gateways(name).await;
                expect(pods.iter().all(|pod| !pod.labels().contains_key("service")), "pods of before")?;
                ready(name, count).await
            })
            .await;
        }
        serves(one).await;
        let [one, two] = probes;
        let (one, two) = (one.end().await, two.end().await);
        eprintln!("one pod: {one:?}; two pods: {two:?}");
        assert!(one.longest < Duration::from_secs(10), "{one:?}");
        assert!(two.longest < Duration::from_millis(800), "{two:?}");
        let sets = ["get", "replicasets", "-n", &scene.namespace, "-l", "service", "-o", "name"];
        assert_eq!(Lab::kubectl(&sets).await.unwrap().trim(), "");
    })
    .await;
}

/// Changes the Secret with the signing keys, and has the controller read it.
async fn resign(scene: &Scene, data: Value) {
    let secrets: Api<Secret> = Api::namespaced(scene.client(), SYSTEM);
    let patch = Patch::Merge(json!({ "data": data }));
    secrets.patch(SIGNING_SECRET, &PatchParams::default(), &patch).await.unwrap();
    controller(scene, &[]).await;
}

/// The keys that the gateway of `service` trusts, once its pods of before are replaced.
async fn trusted(scene: &Scene, service: &str) -> Result<String, String> {
    let pod = scene.gateway(service).await;
    let variables = pod.spec.unwrap_or_default().containers.remove(0).env.unwrap_or_default();
    let found = variables.into_iter().find(|variable| variable.name == TRUSTED_KEYS_VARIABLE);
    found.and_then(|variable| variable.value).ok_or_else(|| "it trusts no key".to_owned())
}

#[tokio::test]
async fn r10_the_signing_key_is_replaced_as_documented_and_nothing_stops() {
    scene("resigned", async |scene| {
        let ip = scene.served("web", 2).await;
        let first = trusted(&scene, "web").await.unwrap();
        assert!(!first.contains(','), "one key: {first}");
        let secrets: Api<Secret> = Api::namespaced(scene.client(), SYSTEM);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let next = ByteString(format!("{:032x}", now.as_nanos()).into_bytes());

        // 1. Gateways learn the next key.
        resign(&scene, json!({ "next": next })).await;
        let both = until("both keys are trusted", SLOW, async || {
            let keys = trusted(&scene, "web").await?;
            expect(keys.contains(','), keys.clone()).map(|()| keys)
        })
        .await;
        serves(ip).await;
        // 2. It signs, and the other is trusted no longer.
        resign(&scene, json!({ "current": next, "next": null })).await;
        let second = until("one key is trusted", SLOW, async || {
            let keys = trusted(&scene, "web").await?;
            expect(!keys.contains(','), keys.clone()).map(|()| keys)
        })
        .await;
        assert!(both.contains(&first) && both.contains(&second) && second != first);
        serves(ip).await;
        let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81, "targetPort": 80 }]);
        scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
        until("port 81", SLOW, async || client::get(ip, 81).await).await;

        // A lost key: the controller makes another, and gateways follow it once they are replaced.
        secrets.delete(SIGNING_SECRET, &DeleteParams::default()).await.unwrap();
        controller(&scene, &[]).await;
        until("another key is trusted", SLOW, async || {
            let keys = trusted(&scene, "web").await?;
            expect(keys != second, keys)
        })
        .await;
        serves(ip).await;
        let ports = json!([{ "name": "a", "port": 80 }, { "name": "c", "port": 82, "targetPort": 80 }]);
        scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
        until("port 82", SLOW, async || client::get(ip, 82).await).await;
        controller(&scene, &[]).await;
    })
    .await;
}
