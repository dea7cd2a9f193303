//! The controller itself is set in another way. These run alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use lb_svc_e2e::objects::{backends, web};
use lb_svc_e2e::{Lab, SLOW, Scene, client, expect, scene, serves, until};
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
        "metadata": { "annotations": { "test": scene.namespace, "at": format!("{:?}", std::time::SystemTime::now()) } },
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
    let pods = scene.api::<k8s_openapi::api::core::v1::Pod>().list(&ours).await.unwrap().items;
    let is_ready = |pod: &k8s_openapi::api::core::v1::Pod| {
        let conditions = pod.status.clone().unwrap_or_default().conditions.unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none()
            && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let ready: BTreeMap<String, String> = pods
        .iter()
        .filter(|pod| is_ready(pod))
        .map(|pod| (pod.labels()["service"].clone(), pod.uid().unwrap()))
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

        configure(&scene, "gateway: {nodeSelector: {kubernetes.io/os: linux}}").await;
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

        // What cannot run takes a few away, not all; the rest is not touched
        // until it is mended.
        let (before, _) = ready(&scene, &services).await;
        configure(&scene, "gateway: {image: localhost/no-such-image:1}").await;
        until("some are away", SLOW, async || {
            let (_, without) = ready(&scene, &services).await;
            assert!(without <= AT_ONCE, "{without} are away at once");
            expect(without == AT_ONCE, without)
        })
        .await;
        for (service, address) in services.iter().zip(&addresses) {
            if ready(&scene, &services).await.0.contains_key(service) {
                client::get(*address, 80).await.unwrap();
            }
        }
        configure(&scene, "gateway: {nodeSelector: {kubernetes.io/os: linux}}").await;
        until("it is mended", SLOW, async || {
            let (now, without) = ready(&scene, &services).await;
            let kept = services.iter().filter(|service| now.get(*service) == before.get(*service)).count();
            expect(without == 0 && kept == services.len() - AT_ONCE, (without, kept))
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
