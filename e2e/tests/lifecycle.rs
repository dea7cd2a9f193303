//! Services come, change and go; what is theirs comes, changes and goes with
//! them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams, PropagationPolicy};
use lb_svc_crds::names;
use lb_svc_e2e::objects::{PROVIDER, backends, port, web};
use lb_svc_e2e::{Lab, QUICK, SLOW, Scene, client, expect, scene, serves, throughout, until};
use serde_json::{Value, json};

async fn stops(ip: IpAddr) {
    until(&format!("{ip} to stop"), SLOW, async || client::refused(ip, 80).await).await;
}

#[tokio::test]
async fn a_deleted_service_leaves_nothing() {
    scene("deleted", async |scene| {
        let ip = scene.served("web", 1).await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        scene.gone("web").await;
        stops(ip).await;
    })
    .await;
}

#[tokio::test]
async fn nor_does_one_deleted_without_its_dependents() {
    scene("orphaned", async |scene| {
        let ip = scene.served("web", 1).await;
        let orphan =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        scene.api::<Service>().delete("web", &orphan).await.unwrap();
        scene.gone("web").await;
        stops(ip).await;
    })
    .await;
}

#[tokio::test]
async fn r41_nor_does_one_whose_deployment_went_without_its_dependents_before() {
    scene("orphaned-pods", async |scene| {
        let ip = scene.served("web", 1).await;
        let orphan =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        let (deployments, services) = (scene.api::<Deployment>(), scene.api::<Service>());
        let (deployment, service) =
            tokio::join!(deployments.delete("lb-svc-web", &orphan), services.delete("web", &orphan));
        deployment.unwrap();
        service.unwrap();
        scene.gone("web").await;
        stops(ip).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_retyped_and_typed_back() {
    scene("retyped", async |scene| {
        let ip = scene.served("web", 1).await;
        scene.patch_service("web", json!({ "spec": { "type": "ClusterIP" } })).await;
        scene.gone("web").await;
        stops(ip).await;
        until("nothing of ours in it", QUICK, async || {
            let service = scene.service("web").await;
            let ip = service.spec.unwrap_or_default().load_balancer_ip;
            let conditions = service.status.unwrap_or_default().conditions.unwrap_or_default();
            expect(ip.is_none() && conditions.is_empty(), (ip, conditions))
        })
        .await;
        scene.patch_service("web", json!({ "spec": { "type": "LoadBalancer" } })).await;
        serves(scene.address("web").await).await;
    })
    .await;
}

#[tokio::test]
async fn the_annotation_is_removed_and_set_again() {
    scene("annotation", async |scene| {
        let ip = scene.served("web", 1).await;
        let annotate = |value: Value| {
            json!({ "metadata": { "annotations": { "ovn.kubernetes.io/attachmentprovider": value } } })
        };
        scene.patch_service("web", annotate(Value::Null)).await;
        scene.gone("web").await;
        stops(ip).await;
        until("no ingress", QUICK, async || expect(scene.ingress("web").await.is_empty(), "ingress")).await;
        scene.patch_service("web", annotate(PROVIDER.into())).await;
        serves(scene.address("web").await).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_annotated_later() {
    scene("later", async |scene| {
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        let mut plain = web("web");
        plain["metadata"]["annotations"] = json!({});
        plain["spec"]["type"] = "ClusterIP".into();
        scene.create::<Service>(plain).await;
        scene.patch_service("web", json!({ "spec": { "type": "LoadBalancer" } })).await;
        let annotations = json!({ "ovn.kubernetes.io/attachmentprovider": PROVIDER });
        scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
        serves(scene.address("web").await).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_made_again_at_once_under_its_name() {
    scene("again", async |scene| {
        let ip = scene.served("web", 1).await;
        let old = scene.gateway("web").await.uid();
        let mut again = web("web");
        again["spec"]["loadBalancerIP"] = ip.to_string().into();
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        let again = serde_json::from_value(again).unwrap();
        let made = scene.api::<Service>().create(&PostParams::default(), &again).await.unwrap();
        assert_eq!(scene.address("web").await, ip, "the very address, once the gateway before is gone");
        serves(ip).await;
        assert_ne!(scene.gateway("web").await.uid(), old);
        let claims = scene.claims().await;
        assert_eq!(claims.len(), 1);
        assert_eq!(Some(&claims[0].spec.service_uid), made.uid().as_ref());
    })
    .await;
}

/// Whoever has another controller make the Service cannot write its spec.
#[tokio::test]
async fn an_address_is_asked_for_by_annotation_and_followed() {
    scene("annotated", async |scene| {
        let filled = scene.served("web", 1).await;
        let holds = async |want: IpAddr| {
            let (ingress, claims) = (scene.ingress("web").await, scene.claims().await.len());
            expect(ingress == [want] && claims == 1, (ingress, claims))
        };
        let [metallb, ours]: [IpAddr; 2] =
            ["172.18.200.71".parse().unwrap(), "172.18.200.72".parse().unwrap()];
        let annotate =
            |name: &str, ip: IpAddr| json!({ "metadata": { "annotations": { name: ip.to_string() } } });
        scene.patch_service("web", annotate("metallb.io/loadBalancerIPs", metallb)).await;
        until("MetalLB's annotation is followed", SLOW, async || holds(metallb).await).await;
        serves(metallb).await;
        stops(filled).await;
        let field = scene.service("web").await.spec.unwrap().load_balancer_ip;
        assert_eq!(field, Some(metallb.to_string()), "what was filled in names no other");

        scene.patch_service("web", annotate("lb-svc.kubeovn.io/addresses", ours)).await;
        until("ours comes first", SLOW, async || holds(ours).await).await;
        serves(ours).await;
        until("the other is said to have no effect", SLOW, async || {
            let conditions =
                scene.service("web").await.status.unwrap_or_default().conditions.unwrap_or_default();
            let limited = conditions.iter().find(|condition| condition.type_ == "lb-svc.kubeovn.io/Limited");
            expect(
                limited.is_some_and(|it| it.message.contains("metallb.io/loadBalancerIPs has no effect")),
                limited,
            )
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn two_services_of_one_name() {
    scene("twins-a", async |a| {
        scene("twins-b", async move |b| {
            let (first, second) = (a.served("web", 1).await, b.served("web", 1).await);
            assert_ne!(first, second);
            a.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
            a.gone("web").await;
            stops(first).await;
            serves(second).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_service_of_another_class_is_not_touched() {
    scene("foreign", async |scene| {
        let mut classed = web("classed");
        classed["spec"]["loadBalancerClass"] = "example.com/other".into();
        let mut plain = web("plain");
        plain["metadata"]["annotations"] = json!({});
        scene.create::<Service>(classed).await;
        scene.create::<Service>(plain).await;
        // One that is ours, made after them: when it is served, they were seen.
        scene.served("web", 1).await;
        throughout("they are left alone", Duration::from_secs(2), async || {
            for name in ["classed", "plain"] {
                let service = scene.service(name).await;
                let managers = service.managed_fields().iter().map(|fields| fields.manager.clone());
                let managers: Vec<String> = managers.map(Option::unwrap_or_default).collect();
                let ours = managers.iter().any(|manager| manager.starts_with("lb-svc"));
                expect(!ours && scene.gateways(name).await.is_empty(), managers)?;
            }
            Ok::<(), String>(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_static_address_replaces_a_dynamic_one_without_a_gap() {
    scene("readdressed", async |scene| {
        let old = scene.served("web", 1).await;
        let new: IpAddr = "172.18.77.77".parse().unwrap();
        let before = scene.gateway("web").await.uid();
        scene.patch_service("web", json!({ "spec": { "loadBalancerIP": new.to_string() } })).await;
        until("the new address", SLOW, async || {
            let [ingress] = scene.ingress("web").await[..] else { return Err("no ingress".to_owned()) };
            // What the status says serves, at any time.
            client::get(ingress, 80).await.map_err(|error| panic!("{ingress}: {error}")).ok();
            expect(ingress == new, ingress)
        })
        .await;
        serves(new).await;
        stops(old).await;
        until("the old claim is given back", SLOW, async || {
            let claims = scene.claims().await;
            expect(claims.len() == 1, claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
        })
        .await;
        assert_eq!(scene.gateway("web").await.uid(), before, "the gateway was not rolled");
    })
    .await;
}

#[tokio::test]
async fn bad_input_is_answered_and_holds_up_nobody() {
    scene("bad-input", async |scene| {
        let mut outside = web("outside");
        outside["spec"]["loadBalancerIP"] = "192.0.2.1".into();
        let mut nowhere = web("nowhere");
        nowhere["metadata"]["annotations"]["ovn.kubernetes.io/attachmentprovider"] =
            "no-such.kube-system".into();
        scene.create::<Service>(outside).await;
        scene.create::<Service>(nowhere).await;
        let ip = scene.served("web", 1).await;
        let mut taken = web("taken");
        taken["spec"]["loadBalancerIP"] = ip.to_string().into();
        scene.create::<Service>(taken).await;
        for (name, reason) in
            [("outside", "AddressNotAssignable"), ("nowhere", "SubnetNotFound"), ("taken", "AddressInUse")]
        {
            until(&format!("an Event on {name}"), QUICK, async || {
                let events = scene.events(name).await;
                expect(events.iter().any(|(told, _)| told == reason), events)
            })
            .await;
        }
        // What was waited for comes free.
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        assert_eq!(scene.address("taken").await, ip);
    })
    .await;
}

/// Another attachment, another Subnet, the same LAN: the client has an address
/// there too.
#[tokio::test]
async fn a_second_attachment_and_subnet() {
    scene("second-lan", async |scene| {
        let ns = &scene.namespace;
        scene.attach("second", "cidrBlock: 172.29.0.0/24, gateway: 172.29.0.1").await;
        Lab::cluster(&["client", "ip", "addr", "replace", "172.29.0.9/24", "dev", "eth0"]).await.unwrap();
        let first = scene.served("first", 1).await;
        scene.create::<Deployment>(backends("second", 1, &["tcp/80"])).await;
        let mut second = web("second");
        second["metadata"]["annotations"] =
            json!({ "ovn.kubernetes.io/attachmentprovider": format!("second.{ns}") });
        scene.create::<Service>(second).await;
        let ip = scene.address("second").await;
        assert_eq!(ip.to_string(), "172.29.0.2", "the first address but the gateway's");
        serves(ip).await;
        serves(first).await;
        scene.api::<Service>().delete("second", &DeleteParams::default()).await.unwrap();
        scene.gone("second").await;
        Lab::kubectl(&["delete", "subnet", ns, "--timeout=20s"]).await.unwrap();
        Lab::cluster(&["client", "ip", "addr", "del", "172.29.0.9/24", "dev", "eth0"]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_live_service_moves_to_another_attachment_and_another_subnet() {
    scene("moves", async |scene| {
        let ns = scene.namespace.as_str();
        let (networks, more) = (["172.29.20", "172.29.21"], format!("{ns}-more"));
        for network in networks {
            let own = format!("{network}.9/24");
            Lab::cluster(&["client", "ip", "addr", "replace", &own, "dev", "eth0"]).await.unwrap();
        }
        scene.attach("other", "cidrBlock: 172.29.20.0/24, gateway: 172.29.20.1").await;
        let subnet = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": more },
            "spec": { "provider": format!("other.{ns}"), "cidrBlock": "172.29.21.0/24", "gateway": "172.29.21.1" },
        });
        Lab::apply(&subnet.to_string()).await.unwrap();
        let moved = async |key: &str, value: &str, to: &str| {
            scene.patch_service("web", json!({ "metadata": { "annotations": { key: value } } })).await;
            let ip = until(&format!("an address of {to}"), SLOW, async || {
                let ingress = scene.ingress("web").await;
                let there = ingress.iter().find(|ip| ip.to_string().starts_with(&format!("{to}."))).copied();
                there.ok_or(ingress)
            })
            .await;
            serves(ip).await;
            ip
        };
        let first = scene.served("web", 1).await;
        let second =
            moved("ovn.kubernetes.io/attachmentprovider", &format!("other.{ns}"), networks[0]).await;
        stops(first).await;
        let third = moved(&format!("other.{ns}.kubernetes.io/logical_switch"), &more, networks[1]).await;
        stops(second).await;
        until("the old claims are given back", SLOW, async || {
            let claims = scene.claims().await;
            let held = claims.iter().all(|claim| claim.spec.ip_address == third.to_string());
            expect(held && claims.len() == 1, claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
        })
        .await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        scene.gone("web").await;
        Lab::kubectl(&["delete", "subnet", ns, &more, "--timeout=20s"]).await.unwrap();
        for network in networks {
            let own = format!("{network}.9/24");
            Lab::cluster(&["client", "ip", "addr", "del", &own, "dev", "eth0"]).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_service_of_another_class_after_a_retype_and_of_ours_again() {
    scene("reclassed", async |scene| {
        let ours = "lb-svc.kubeovn.io/gateway";
        let mut classed = web("web");
        classed["spec"]["loadBalancerClass"] = ours.into();
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        scene.create::<Service>(classed).await;
        let ip = scene.address("web").await;
        serves(ip).await;
        let become_of = async |class: &str| {
            let plain = json!({ "spec": { "type": "ClusterIP", "loadBalancerClass": null } });
            scene.patch_service("web", plain).await;
            scene.gone("web").await;
            let classed = json!({ "spec": { "type": "LoadBalancer", "loadBalancerClass": class } });
            scene.patch_service("web", classed).await;
        };
        become_of("example.com/other").await;
        stops(ip).await;
        // What comes later is served, and it would have been.
        scene.served("beside", 1).await;
        scene.gone("web").await;
        assert!(scene.ingress("web").await.is_empty());
        become_of(ours).await;
        serves(scene.address("web").await).await;
    })
    .await;
}

#[tokio::test]
async fn a_subnet_in_use_outlives_its_deletion() {
    scene("subnet-held", async |scene| {
        let ns = &scene.namespace;
        scene.attach("held", "cidrBlock: 172.30.0.0/29").await;
        let from_there = |name: &str| {
            let mut service = web(name);
            service["metadata"]["annotations"] =
                json!({ "ovn.kubernetes.io/attachmentprovider": format!("held.{ns}") });
            service
        };
        scene.create::<Service>(from_there("held")).await;
        scene.address("held").await;
        Lab::kubectl(&["delete", "subnet", ns, "--wait=false"]).await.unwrap();
        until("the Subnet says what it waits for", QUICK, async || {
            let subnet = lb_svc_e2e::subnet(&scene.lab, ns).await;
            let conditions = subnet.status.unwrap_or_default().conditions;
            let named = |message: &str| message.contains(&format!("{ns}/held"));
            let said = |condition: &Condition| condition.reason == "Deleting" && named(&condition.message);
            expect(conditions.iter().any(said), conditions)
        })
        .await;
        scene.create::<Service>(from_there("late")).await;
        until("nothing is handed out", QUICK, async || {
            let events = scene.events("late").await;
            expect(events.iter().any(|(reason, _)| reason == "SubnetDeleting"), events)
        })
        .await;
        assert_eq!(scene.claims().await.len(), 1);
        scene.api::<Service>().delete("held", &DeleteParams::default()).await.unwrap();
        until("the Subnet to go", SLOW, async || {
            let left = Lab::kubectl(&["get", "subnet", ns, "--ignore-not-found", "-o", "name"]).await;
            let left = left.map_err(|error| error.to_string())?;
            expect(left.is_empty(), left)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn r5_a_kept_address_goes_with_its_namespace() {
    scene("kept", async |scene| {
        let mut kept = web("web");
        kept["metadata"]["annotations"]["lb-svc.kubeovn.io/keep-address"] = "true".into();
        let ends = async || {
            until("the gateway is gone", SLOW, async || {
                let objects = ["get", "deployments,configmaps,pods", "-n", &scene.namespace, "-o", "name"];
                let left = Lab::kubectl(&objects).await.map_err(|error| error.to_string())?;
                expect(!left.contains("lb-svc-web"), left)
            })
            .await;
        };
        scene.create::<Service>(kept.clone()).await;
        let ip = scene.address("web").await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        ends().await;
        let addresses = async || -> Vec<String> {
            scene.claims().await.into_iter().map(|claim| claim.spec.v4_ip_address).collect()
        };
        assert_eq!(addresses().await, [ip.to_string()]);
        scene.create::<Service>(kept).await;
        assert_eq!(scene.address("web").await, ip);
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        ends().await;
        assert_eq!(addresses().await, [ip.to_string()]);
        // The scene deletes the namespace, and waits until no claim of it is left.
    })
    .await;
}

/// What the controller last named to a gateway pod.
fn named(pod: &Pod) -> Option<String> {
    pod.annotations().get("lb-svc.kubeovn.io/config").cloned()
}

/// Whether the gateway carries out what its ConfigMap says.
async fn carries_out(scene: &Scene, pod: &Pod) -> Result<(), String> {
    let config = scene.api::<ConfigMap>().get("lb-svc-web").await.map_err(|error| error.to_string())?;
    let wanted = names::digest(config.data.unwrap_or_default()["config.json"].as_bytes());
    let status = scene.status(pod).await.map_err(|error| error.to_string())?;
    expect(status.digest.as_ref() == Some(&wanted), (status.digest, wanted))
}

#[tokio::test]
async fn a_port_edit_is_pushed_and_no_pod_is_annotated() {
    scene("pushed", async |scene| {
        let ip = scene.served("web", 1).await;
        let pod = scene.gateway("web").await;
        let before = named(&pod);
        assert!(before.is_some(), "the first configuration is named");
        let mut times = Vec::new();
        for number in [83, 82, 81] {
            let ports = json!([port("TCP", 80, 80), port("TCP", number, 80)]);
            let start = Instant::now();
            scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
            until(&format!("port {number}"), QUICK, async || client::get(ip, number).await).await;
            times.push(start.elapsed());
        }
        eprintln!("answered after {times:?}");
        until("its status to say so", QUICK, async || carries_out(&scene, &pod).await).await;
        let pushes = scene.metric(&pod, "lb_svc_gateway_pushes_total{outcome=\"admitted\"}").await.unwrap();
        assert!(pushes >= 3, "{pushes}");

        assert_eq!(named(&scene.gateway("web").await), before);

        // The mounted file may be behind for a minute; the next process does without it.
        Lab::kill(&pod.uid().unwrap(), "lb-svc-gateway").await.unwrap();
        throughout("port 81 goes on", Duration::from_secs(5), async || client::get(ip, 81).await).await;
        until("the container is back", SLOW, async || {
            let now = scene.gateway("web").await;
            let statuses = now.status.and_then(|status| status.container_statuses).unwrap_or_default();
            expect(statuses.iter().all(|status| status.restart_count == 1), statuses.len())
        })
        .await;
        until("its status to say so", QUICK, async || carries_out(&scene, &pod).await).await;
        client::get(ip, 81).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_the_controller_cannot_reach_is_nudged() {
    scene("unreached", async |scene| {
        let ip = scene.served("web", 1).await;
        let pod = scene.gateway("web").await;
        let before = named(&pod);
        let controllers: Api<Pod> = Api::namespaced(scene.client(), "lb-svc-system");
        for controller in controllers.list(&ListParams::default()).await.unwrap() {
            let address = controller.status.and_then(|status| status.pod_ip).unwrap();
            let drop =
                ["iptables", "-I", "INPUT", "-s", &address, "-p", "tcp", "--dport", "9410", "-j", "DROP"];
            scene.in_pod(&pod, &drop).await;
        }
        // The kubelet may refresh the mount for reasons of its own just then, and no nudge is
        // needed; not each time.
        for number in 81..=84 {
            let ports = json!([port("TCP", 80, 80), port("TCP", number, 80)]);
            scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
            until(&format!("port {number}"), QUICK, async || client::get(ip, number).await).await;
            until("its status to say so", QUICK, async || carries_out(&scene, &pod).await).await;
            if named(&scene.gateway("web").await) != before {
                return;
            }
        }
        panic!("no change was nudged for");
    })
    .await;
}
