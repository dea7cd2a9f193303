//! Addresses that a host of the LAN, here the client, has already.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::DeleteParams;
use lb_svc_e2e::objects::{backends, web};
use lb_svc_e2e::{Lab, QUICK, SLOW, Scene, expect, scene, serves, throughout, until};
use serde_json::{Value, json};

/// Gives the client an address, or takes it.
async fn client_address(verb: &str, ip: &str) {
    Lab::cluster(&["client", "ip", "addr", verb, &format!("{ip}/32"), "dev", "eth0"]).await.unwrap();
}

async fn client_mac() -> String {
    let link = Lab::cluster(&["client", "ip", "-j", "link", "show", "eth0"]).await.unwrap();
    let link: Value = serde_json::from_str(&link).unwrap();
    link[0]["address"].as_str().unwrap().to_owned()
}

/// Waits for the Event that names address and host.
async fn conflict_is_told(scene: &Scene, service: &str, ip: &str, mac: &str) {
    until("the conflict to be told", SLOW, async || {
        let events = scene.events(service).await;
        let told = events.iter().any(|(reason, message)| {
            reason == "AddressConflict" && message.contains(ip) && message.contains(mac)
        });
        expect(told, events)
    })
    .await;
}

#[tokio::test]
async fn a_requested_address_in_use_is_waited_for() {
    scene("conflict-static", async |scene| {
        let (ip, mac) = ("172.18.55.5", client_mac().await);
        client_address("replace", ip).await;
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        let mut service = web("web");
        service["spec"]["loadBalancerIP"] = ip.into();
        scene.create::<Service>(service).await;
        conflict_is_told(&scene, "web", ip, &mac).await;
        until("the condition", QUICK, async || {
            let status = scene.service("web").await.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let said = conditions.iter().find(|condition| condition.type_.ends_with("/GatewayReady"));
            let said = said.map(|condition| (condition.status.clone(), condition.reason.clone()));
            expect(said == Some(("False".to_owned(), "AddressConflict".to_owned())), said)
        })
        .await;
        throughout("there is no ingress", Duration::from_secs(1), async || {
            expect(scene.ingress("web").await.is_empty(), "ingress")
        })
        .await;
        let gateway = scene.gateways("web").await.first().map(ResourceExt::name_any).unwrap();
        let own = Lab::exec(&scene.namespace, &gateway, &["ip", "addr", "show", "net1"]).await.unwrap();
        assert!(!own.contains(ip), "{own}");

        client_address("del", ip).await;
        assert_eq!(scene.address("web").await, ip.parse::<IpAddr>().unwrap());
        serves(ip.parse().unwrap()).await;
        until("the claim to say so", QUICK, async || {
            let claims = scene.claims().await;
            expect(claims.iter().all(|claim| claim.spec.probed), claims)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_allocated_address_in_use_is_replaced() {
    scene("conflict-dynamic", async |scene| {
        let ns = &scene.namespace;
        let mac = client_mac().await;
        // Two to hand out: the client has the first, and a way to the other.
        scene
            .attach(
                "small",
                "cidrBlock: 172.31.55.0/29, gateway: 172.31.55.1, excludeIps: [172.31.55.4..172.31.55.6]",
            )
            .await;
        let route = |verb: &'static str| {
            ["client", "ip", "route", verb, "172.31.55.3/32", "dev", "eth0", "src", "172.31.55.2"]
        };
        client_address("replace", "172.31.55.2").await;
        Lab::cluster(&route("replace")).await.unwrap();
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        let mut service = web("web");
        service["metadata"]["annotations"] =
            json!({ "ovn.kubernetes.io/attachmentprovider": format!("small.{ns}") });
        scene.create::<Service>(service).await;
        let ip = scene.address("web").await;
        assert_eq!(ip.to_string(), "172.31.55.3");
        conflict_is_told(&scene, "web", "172.31.55.2", &mac).await;
        assert_eq!(scene.service("web").await.spec.unwrap().load_balancer_ip, Some(ip.to_string()));
        serves(ip).await;
        until("the other claim is given back", SLOW, async || {
            let claims = scene.claims().await;
            expect(claims.len() == 1, claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
        })
        .await;
        Lab::cluster(&route("del")).await.unwrap();
        client_address("del", "172.31.55.2").await;
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        scene.gone("web").await;
        Lab::kubectl(&["delete", "subnet", ns, "--timeout=20s"]).await.unwrap();
    })
    .await;
}
