//! Faults that were found once, on the real cluster: docs/dev/regressions.md
//! says what each of them is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use lb_svc_e2e::objects::{backends, port, service, web};
use lb_svc_e2e::{QUICK, SLOW, Scene, client, expect, scene, serves, throughout, until};
use serde_json::{Value, json};

/// What mends itself is mended within this.
const MENDED: Duration = Duration::from_secs(100);

/// The reason and message of one of the Service's conditions.
async fn condition(scene: &Scene, service: &str, kind: &str) -> Result<(String, String), String> {
    let conditions = scene.service(service).await.status.unwrap_or_default().conditions.unwrap_or_default();
    let kind = format!("lb-svc.kubeovn.io/{kind}");
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found
        .map(|condition| (condition.reason.clone(), condition.message.clone()))
        .ok_or_else(|| format!("no condition {kind}"))
}

/// How often each container of the controllers has been started again.
async fn restarts(scene: &Scene) -> i32 {
    let pods: Api<Pod> = Api::namespaced(scene.client(), "lb-svc-system");
    let pods = pods.list(&ListParams::default()).await.unwrap().items;
    let statuses = pods.into_iter().filter_map(|pod| pod.status?.container_statuses);
    statuses.flatten().map(|container| container.restart_count).sum()
}

#[tokio::test]
async fn r1_objects_with_odd_labels_end_no_controller() {
    scene("odd", async |scene| {
        let before = restarts(&scene).await;
        for (n, name) in
            ["ä".repeat(30) + "/x", "x/".to_owned() + &"ä".repeat(60), "/".to_owned()].iter().enumerate()
        {
            let metadata = json!({
                "name": format!("odd-{n}"),
                "labels": { "app.kubernetes.io/managed-by": "lb-svc" },
                "annotations": { "lb-svc.kubeovn.io/service": name },
            });
            scene.create::<ConfigMap>(json!({ "metadata": metadata })).await;
        }
        let ip = scene.served("web", 1).await;
        client::get(ip, 80).await.unwrap();
        assert_eq!(restarts(&scene).await, before);
    })
    .await;
}

#[tokio::test]
async fn b06_a_gateway_is_an_endpoint_of_no_service() {
    scene("labels", async |scene| {
        let mut workload = backends("web", 2, &["tcp/80"]);
        for labels in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
            *workload.pointer_mut(labels).unwrap() = json!({ "service": "web", "app": "lb-svc-web" });
        }
        scene.create::<Deployment>(workload).await;
        let mut object = web("web");
        object["spec"]["selector"] = json!({ "service": "web" });
        scene.create::<Service>(object).await;
        let by_namespace = json!({
            "metadata": { "name": "all" },
            "spec": { "selector": { "namespace": scene.namespace }, "ports": [{ "port": 80 }] },
        });
        scene.create::<Service>(by_namespace).await;
        let ip = scene.address("web").await;
        serves(ip).await;
        let gateway = scene.gateway("web").await.name_any();
        let slices = scene.api::<EndpointSlice>().list(&ListParams::default()).await.unwrap().items;
        for endpoint in slices.iter().flat_map(|slice| &slice.endpoints) {
            let target = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            assert_ne!(target, Some(gateway.clone()), "{slices:?}");
        }
        for n in 0..50 {
            client::get(ip, 80).await.unwrap_or_else(|error| panic!("request {n}: {error}"));
        }
    })
    .await;
}

#[tokio::test]
async fn b03_a_gateway_whose_interface_went_is_replaced() {
    scene("no-net1", async |scene| {
        let ip = scene.served("web", 1).await;
        let old = scene.gateway("web").await;
        scene.in_pod(&old, &["ip", "link", "del", "net1"]).await;
        let start = Instant::now();
        until("it is said", SLOW, async || {
            let (reason, message) = condition(&scene, "web", "GatewayReady").await?;
            expect(reason == "InterfaceMissing", (reason, message))
        })
        .await;
        until("another pod to serve", MENDED, async || {
            let pods = scene.gateways("web").await;
            expect(pods.iter().all(|pod| pod.uid() != old.uid()) && !pods.is_empty(), pods.len())?;
            client::get(ip, 80).await.map_err(|error| error.to_string())
        })
        .await;
        eprintln!("mended after {:?}", start.elapsed());
    })
    .await;
}

#[tokio::test]
async fn b08_the_controllers_class_without_an_attachment_is_answered() {
    scene("class", async |scene| {
        let mut object = service("web", &json!([port("TCP", 80, 80)]));
        object["metadata"]["annotations"] = json!({});
        object["spec"]["loadBalancerClass"] = "lb-svc.kubeovn.io/gateway".into();
        scene.create::<Service>(object).await;
        until("a condition", QUICK, async || {
            let (reason, message) = condition(&scene, "web", "AddressAllocated").await?;
            expect(reason == "ProviderMissing" && message.contains("attachmentprovider"), (reason, message))
        })
        .await;
        until("an Event", QUICK, async || {
            let events = scene.events("web").await;
            expect(events.iter().any(|(reason, _)| reason == "ProviderMissing"), events)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn b20_a_limit_of_clients_by_annotation_is_not_passed_over() {
    scene("ranges", async |scene| {
        let name = "service.beta.kubernetes.io/load-balancer-source-ranges";
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        let mut object = web("web");
        object["metadata"]["annotations"][name] = "198.51.100.0/24".into();
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        client::refused(ip, 80).await.unwrap();
        let patch = json!({ "metadata": { "annotations": { name: Value::Null } } });
        scene.patch_service("web", patch).await;
        serves(ip).await;
        let mut cloud = web("cloud");
        cloud["metadata"]["annotations"]["service.beta.kubernetes.io/azure-allowed-ip-ranges"] =
            "192.0.2.0/24".into();
        scene.create::<Service>(cloud).await;
        until("a condition", QUICK, async || {
            let (reason, message) = condition(&scene, "cloud", "AddressAllocated").await?;
            expect(reason == "ClientLimitNotHeeded", (reason, message))
        })
        .await;
        assert_eq!(scene.ingress("cloud").await, [] as [std::net::IpAddr; 0]);
    })
    .await;
}

#[tokio::test]
async fn b01_an_owner_who_takes_the_address_out_of_the_spec_wins() {
    scene("owner", async |scene| {
        let ip = scene.served("web", 1).await;
        let take = async || {
            let spec = scene.service("web").await.spec.unwrap();
            if spec.load_balancer_ip.is_some_and(|ip| !ip.is_empty()) {
                scene.patch_service("web", json!({ "spec": { "loadBalancerIP": Value::Null } })).await;
            }
        };
        until("it to give way", MENDED, async || {
            take().await;
            let (reason, message) = condition(&scene, "web", "Limited").await?;
            expect(reason == "AddressNotFilled", (reason, message))
        })
        .await;
        take().await;
        assert_eq!(scene.ingress("web").await, [ip]);
        client::get(ip, 80).await.unwrap();

        let mut asked = web("asked");
        asked["metadata"]["annotations"]["lb-svc.kubeovn.io/fill-address"] = "false".into();
        asked["spec"]["selector"] = json!({ "app": "web" });
        scene.create::<Service>(asked).await;
        let ip = scene.address("asked").await;
        serves(ip).await;
        assert_eq!(scene.service("asked").await.spec.unwrap().load_balancer_ip, None);
    })
    .await;
}

#[tokio::test]
async fn r10_an_edited_config_map_moves_no_address() {
    scene("edited", async |scene| {
        let ip = scene.served("web", 2).await;
        let stranger: IpAddr = [172, 18, 77, 77].into();
        let configs = scene.api::<ConfigMap>();
        let merge = async |patch: Value| {
            configs.patch("lb-svc-web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
        };
        let first = configs.get("lb-svc-web").await.unwrap().data.unwrap();
        scene
            .patch_service("web", json!({ "spec": { "ports": [port("TCP", 80, 80), port("TCP", 81, 80)] } }))
            .await;
        until("port 81", QUICK, async || client::get(ip, 81).await).await;
        let evil = first["config.json"].replace(&ip.to_string(), &stranger.to_string());
        let edits = [
            // The configuration of another address, with and without its seal.
            json!({ "data": { "config.json": evil } }),
            json!({ "data": { "config.json": evil, "seal.json": null } }),
            // What the controller signed earlier, before port 81.
            json!({ "data": first }),
            // No longer the controller's to write, as it seems.
            json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": null } }, "data": { "config.json": evil } }),
        ];
        for edit in edits {
            merge(edit).await;
            throughout("the address", Duration::from_secs(3), async || {
                for pod in scene.gateways("web").await {
                    let status = scene.status(&pod).await.map_err(|error| error.to_string())?;
                    expect(!status.addresses.contains(&stranger), status)?;
                }
                client::get(ip, 81).await.map_err(|error| error.to_string())
            })
            .await;
        }
        assert!(client::get(stranger, 80).await.is_err());
        // The ConfigMap is given back.
        merge(json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "lb-svc" } } })).await;
        until("the controller's own again", SLOW, async || {
            let data = configs.get("lb-svc-web").await.unwrap().data.unwrap();
            expect(data["config.json"].contains(&ip.to_string()) && data.contains_key("seal.json"), data)
        })
        .await;
        scene.patch_service("web", json!({ "spec": { "ports": [port("TCP", 82, 80)] } })).await;
        until("port 82", SLOW, async || client::get(ip, 82).await).await;
    })
    .await;
}

#[tokio::test]
async fn r24_fields_that_others_add_to_a_gateway_are_taken_away() {
    scene("added", async |scene| {
        let ip = scene.served("web", 1).await;
        let deployments = scene.api::<Deployment>();
        let added = json!({ "spec": { "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "hostNetwork": true, "priorityClassName": "system-node-critical" },
        } } });
        deployments.patch("lb-svc-web", &PatchParams::default(), &Patch::Merge(added)).await.unwrap();
        until("it to be put right", SLOW, async || {
            let template = deployments.get("lb-svc-web").await.unwrap().spec.unwrap().template;
            let (labels, spec) = (template.metadata.unwrap().labels.unwrap(), template.spec.unwrap());
            expect(
                !labels.contains_key("app")
                    && spec.host_network != Some(true)
                    && spec.priority_class_name.is_none(),
                (labels, spec.host_network, spec.priority_class_name),
            )
        })
        .await;
        serves(ip).await;
        // What the cluster fills in is let be.
        let settled = deployments.get("lb-svc-web").await.unwrap().metadata.generation;
        scene
            .patch_service("web", json!({ "spec": { "ports": [port("TCP", 80, 80), port("TCP", 81, 80)] } }))
            .await;
        until("port 81", QUICK, async || client::get(ip, 81).await).await;
        assert_eq!(deployments.get("lb-svc-web").await.unwrap().metadata.generation, settled);
    })
    .await;
}
