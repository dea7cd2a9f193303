//! Parts of the system die, one at a time. These run alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use lb_svc_crds::{IP, Subnet};
use lb_svc_e2e::objects::{SUBNET, web};
use lb_svc_e2e::{
    Lab, SLOW, Scene, client, controllers, expect, repository, scale_controller, scene, serves, throughout,
    until,
};
use serde_json::{Value, json};

const SYSTEM: &str = "lb-svc-system";

/// The node of a pod, by its number: `n2` is 2.
fn node(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    Lab::number(&name)
}

/// The resourceVersions of all that the controller writes for this Service.
async fn versions(scene: &Scene) -> Vec<(String, String)> {
    let version = |object: &dyn Fn() -> Option<String>| object().unwrap_or_default();
    let subnets: Api<Subnet> = Api::all(scene.client());
    let claims: Api<IP> = Api::all(scene.client());
    let its_own = scene.claims().await.into_iter().find(|claim| claim.spec.service_name == "web");
    let claim = its_own.map(|claim| claim.name_any()).unwrap_or_default();
    let gateway = scene.gateway("web").await;
    let (service, config, deployment, subnet, claim, events) = (
        scene.service("web").await,
        scene.api::<ConfigMap>().get("lb-svc-web").await.unwrap(),
        scene.api::<Deployment>().get("lb-svc-web").await.unwrap(),
        subnets.get(SUBNET).await.unwrap(),
        claims.get(&claim).await.unwrap(),
        scene
            .api::<Event>()
            .list(&ListParams::default().fields("involvedObject.kind=Service"))
            .await
            .unwrap(),
    );
    vec![
        ("Service".into(), version(&|| service.resource_version())),
        ("ConfigMap".into(), version(&|| config.resource_version())),
        ("Deployment".into(), version(&|| deployment.resource_version())),
        ("Subnet".into(), version(&|| subnet.resource_version())),
        ("IP".into(), version(&|| claim.resource_version())),
        ("Pod".into(), version(&|| gateway.resource_version())),
        ("Events".into(), events.items.len().to_string()),
    ]
}

/// Waits until nothing is written any more.
async fn settled(scene: &Scene) -> Vec<(String, String)> {
    until("everything is written", SLOW, async || {
        let before = versions(scene).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = versions(scene).await;
        if before == after { Ok(after) } else { Err(after) }
    })
    .await
}

async fn controller(scene: &Scene) -> Option<Pod> {
    controllers(&scene.lab).await.into_iter().next()
}

/// Waits until the controller does its work: a Service made now is served.
async fn controller_works(scene: &Scene, name: &str) {
    scene.served(name, 1).await;
}

#[tokio::test]
async fn the_gateway_pod_is_deleted() {
    scene("pod-deleted", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        scene.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
        scene.replaced("web", &pod).await;
        serves(ip).await;
        assert_eq!(scene.address("web").await, ip);
    })
    .await;
}

/// With one replica the kernel's state serves on while the process is away.
#[tokio::test]
async fn the_gateways_container_is_killed() {
    scene("killed", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        Lab::kill(&pod.uid().unwrap(), "lb-svc-gateway").await.unwrap();
        throughout("it serves on", Duration::from_secs(3), async || client::get(ip, 80).await).await;
        until("the container is back", SLOW, async || {
            let now = scene.gateway("web").await;
            let statuses = now.status.and_then(|status| status.container_statuses).unwrap_or_default();
            expect(statuses[0].restart_count == 1 && statuses[0].ready, statuses[0].restart_count)
        })
        .await;
        assert_eq!(scene.gateway("web").await.uid(), pod.uid());
        serves(ip).await;
    })
    .await;
}

#[tokio::test]
async fn the_kubelet_is_restarted() {
    scene("kubelet", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        let node = node(&pod);
        Lab::cluster(&["kubelet-stop", &node]).await.unwrap();
        client::get(ip, 80).await.unwrap();
        Lab::cluster(&["kubelet-start", &node]).await.unwrap();
        throughout("it serves on", Duration::from_secs(2), async || client::get(ip, 80).await).await;
        assert_eq!(scene.address("web").await, ip);
    })
    .await;
}

#[tokio::test]
async fn the_controller_is_killed_and_nothing_moves() {
    scene("controller", async |scene| {
        let ip = scene.served("web", 2).await;
        let before = settled(&scene).await;
        let pod = controller(&scene).await.unwrap();
        Lab::kill(&pod.uid().unwrap(), "lb-svc-controller").await.unwrap();
        throughout("it serves on", Duration::from_secs(2), async || client::get(ip, 80).await).await;
        until("the controller is back", SLOW, async || {
            let statuses =
                controller(&scene).await.and_then(|pod| pod.status?.container_statuses).unwrap_or_default();
            expect(statuses.iter().any(|status| status.restart_count > 0 && status.ready), statuses.len())
        })
        .await;
        controller_works(&scene, "later").await;
        let mut after = versions(&scene).await;
        let mut before = before;
        // The later Service's claim is in the Subnet's status, its Events beside the others.
        for versions in [&mut before, &mut after] {
            versions.retain(|(kind, _)| kind != "Subnet" && kind != "Events");
        }
        assert_eq!(before, after);
        assert_eq!(scene.address("web").await, ip);
    })
    .await;
}

#[tokio::test]
async fn the_gateway_pod_is_replaced_while_the_controller_is_away() {
    scene("away", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        scale_controller(&scene.lab, 0).await;
        scene.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
        scene.replaced("web", &pod).await;
        serves(ip).await;
        scale_controller(&scene.lab, 1).await;
        controller_works(&scene, "later").await;
    })
    .await;
}

#[tokio::test]
async fn with_the_flag_off_nothing_is_written() {
    scene("flag-off", async |scene| {
        let ip = scene.served("web", 2).await;
        let before = settled(&scene).await;
        let flag = async |value: &str| {
            let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
            let args = json!([format!("--enable-lb-svc={value}")]);
            let containers = json!([{ "name": "controller", "args": args }]);
            let patch =
                Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": containers } } } }));
            deployments.patch("lb-svc-controller", &PatchParams::default(), &patch).await.unwrap();
            let status =
                ["rollout", "status", "deployment", "lb-svc-controller", "-n", SYSTEM, "--timeout=60s"];
            Lab::kubectl(&status).await.unwrap();
        };
        flag("false").await;
        until("only the controller that is off", SLOW, async || {
            let pods: Api<Pod> = Api::namespaced(scene.client(), SYSTEM);
            let pods = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            expect(pods.len() == 1, pods.len())
        })
        .await;
        scene.create::<Service>(web("ignored")).await;
        throughout("nothing is written, the gateway serves", Duration::from_secs(3), async || {
            client::get(ip, 80).await.map_err(|error| error.to_string())?;
            expect(scene.ingress("ignored").await.is_empty() && scene.claims().await.len() == 1, "ignored")?;
            let now = versions(&scene).await;
            expect(now == before, now)
        })
        .await;
        let pod = controller(&scene).await.unwrap().name_any();
        let log = Lab::kubectl(&["logs", "-n", SYSTEM, &pod]).await.unwrap();
        assert_eq!(log.matches("--enable-lb-svc is off").count(), 1, "{log}");
        flag("true").await;
        until("the other is served", SLOW, async || expect(!scene.ingress("ignored").await.is_empty(), ""))
            .await;
        client::get(ip, 80).await.unwrap();
    })
    .await;
}

/// The object as a backup has it: what the API server gives is left out.
fn backup<K: serde::Serialize + Resource<DynamicType = ()>>(object: &K) -> Value {
    let mut object = serde_json::to_value(object).unwrap();
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
        metadata.remove(field);
    }
    object
}

/// A backup names owners that are gone, and has a configuration that was signed for
/// another Service, or earlier than the one in force.
#[tokio::test]
async fn b28_what_a_backup_puts_back_is_served_at_its_address_and_never_takes_it_back_in_time() {
    scene("restore", async |scene| {
        let ip = scene.served("web", 2).await;
        let claims: Api<IP> = Api::all(scene.client());
        let config = async || scene.api::<ConfigMap>().get("lb-svc-web").await.unwrap();
        let old = [
            backup(&claims.get(&scene.claims().await[0].name_any()).await.unwrap()),
            backup(&config().await),
            backup(&scene.api::<Deployment>().get("lb-svc-web").await.unwrap()),
            backup(&scene.service("web").await),
        ];
        let add_port = async |port: u16| {
            let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": port, "targetPort": 80 }]);
            scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
            until("the port is served", SLOW, async || client::get(ip, port).await).await;
        };
        add_port(81).await;

        // Over what is live: the older configuration has no port 81.
        let newer = config().await.data;
        Lab::apply(&old[1].to_string()).await.unwrap();
        throughout("port 81 is served on", Duration::from_secs(2), async || client::get(ip, 81).await).await;
        until("the newer configuration is back", SLOW, async || {
            let now = config().await.data;
            expect(
                now.as_ref().map(|data| &data["config.json"])
                    == newer.as_ref().map(|data| &data["config.json"]),
                now,
            )
        })
        .await;

        // All is lost, the controller too, and all is put back before it runs.
        scale_controller(&scene.lab, 0).await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        let own = scene.claims().await.remove(0);
        claims.delete(&own.name_any(), &DeleteParams::default()).await.unwrap();
        until("nothing is left of the gateway", SLOW, async || {
            let (pods, config) =
                (scene.gateways("web").await, scene.api::<ConfigMap>().get_opt("lb-svc-web").await);
            expect(pods.is_empty() && config.is_ok_and(|it| it.is_none()), pods.len())
        })
        .await;
        for object in &old {
            Lab::apply(&object.to_string()).await.unwrap();
        }
        scale_controller(&scene.lab, 1).await;

        let uid = scene.service("web").await.uid();
        until("it is served by a gateway of its own", SLOW, async || {
            let claims = scene.claims().await;
            let is_its_own = claims.len() == 1 && Some(&claims[0].spec.service_uid) == uid.as_ref();
            expect(is_its_own && scene.ingress("web").await == [ip], claims)
        })
        .await;
        serves(ip).await;
        add_port(82).await;
    })
    .await;
}

const DEFINITIONS: [&str; 2] = ["ips.kubeovn.io", "subnets.kubeovn.io"];

/// What deletes the definitions deletes all claims. Nothing is taken out of
/// service, and with the definitions the claims come back.
#[tokio::test]
async fn r32_deleting_the_definitions_takes_nothing_out_of_service() {
    scene("definitions", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        let subnets: Api<Subnet> = Api::all(scene.client());
        let spec = subnets.get(SUBNET).await.unwrap().spec;

        // Judged only when all is there again: other tests come after.
        let serves_on = async || -> anyhow::Result<()> {
            Lab::kubectl(&[&["delete", "crd", "--timeout=30s"][..], &DEFINITIONS].concat()).await?;
            for _ in 0..50 {
                client::get(ip, 80).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let (address, gateway) = (scene.ingress("web").await, scene.gateway("web").await);
            anyhow::ensure!(address == [ip], "the status has {address:?}");
            anyhow::ensure!(gateway.uid() == pod.uid(), "the pod is another");
            Ok(())
        };
        let served_on = serves_on().await;
        for file in ["crds/yaml/ips.yaml", "crds/yaml/subnets.yaml"] {
            Lab::apply(&std::fs::read_to_string(repository().join(file)).unwrap()).await.unwrap();
        }
        let subnet = json!({
            "apiVersion": "kubeovn.io/v1", "kind": "Subnet", "metadata": { "name": SUBNET }, "spec": spec,
        });
        until("the Subnet is made again", SLOW, async || Lab::apply(&subnet.to_string()).await).await;
        served_on.unwrap();

        until("the claim is back", SLOW, async || {
            let claims = scene.claims().await;
            let own = claims.iter().any(|claim| claim.spec.v4_ip_address == ip.to_string());
            expect(own, claims.len())
        })
        .await;
        serves(ip).await;
        assert_eq!(scene.address("web").await, ip);
        assert_eq!(scene.gateway("web").await.uid(), pod.uid());
    })
    .await;
}
