//! Ports of every kind, and what happens when they change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use lb_svc_e2e::client::{self, Udp};
use lb_svc_e2e::objects::{backends, port, service};
use lb_svc_e2e::{QUICK, SLOW, Scene, expect, scene, until};
use serde_json::json;
use std::net::IpAddr;

/// Waits until `GET` at the port is answered by the backend's port `target`.
async fn serves_tcp(ip: IpAddr, port: u16, target: u16) {
    until(&format!("tcp/{port}"), SLOW, async || {
        let answer = client::get(ip, port).await.map_err(|error| error.to_string())?;
        expect(answer.contains(&format!(" tcp/{target} ")), answer)
    })
    .await;
}

async fn serves_udp(client: &Udp, target: u16) {
    until(&format!("udp to {target}"), SLOW, async || {
        let answer = client.ask().await.map_err(|error| error.to_string())?;
        expect(answer.contains(&format!(" udp/{target} ")), answer)
    })
    .await;
}

fn identity(pod: &Pod) -> (String, i32) {
    let statuses =
        pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    (pod.uid().unwrap_or_default(), statuses.iter().map(|status| status.restart_count).sum())
}

#[tokio::test]
async fn a_port_is_not_its_target_port() {
    scene("target-port", async |scene| {
        scene.create::<Deployment>(backends("web", 2, &["tcp/8080", "tcp/9090=admin"])).await;
        let ports = json!([port("TCP", 80, 8080), port("TCP", 81, "admin")]);
        scene.create::<Service>(service("web", &ports)).await;
        let ip = scene.address("web").await;
        serves_tcp(ip, 80, 8080).await;
        serves_tcp(ip, 81, 9090).await;
        client::refused(ip, 8080).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn several_ports_longer_numbers_first() {
    scene("many-ports", async |scene| {
        scene.create::<Deployment>(backends("web", 1, &["tcp/80", "tcp/8080", "tcp/53", "udp/53"])).await;
        let ports =
            json!([port("TCP", 8080, 8080), port("TCP", 80, 80), port("TCP", 53, 53), port("UDP", 53, 53)]);
        scene.create::<Service>(service("web", &ports)).await;
        let ip = scene.address("web").await;
        for number in [8080, 80, 53] {
            serves_tcp(ip, number, number).await;
        }
        serves_udp(&Udp::new(ip, 53).await.unwrap(), 53).await;
    })
    .await;
}

#[tokio::test]
async fn ports_change_on_the_live_service() {
    scene("live-ports", async |scene: std::sync::Arc<Scene>| {
        scene.create::<Deployment>(backends("web", 1, &["tcp/80", "tcp/81", "udp/53", "udp/54"])).await;
        scene.create::<Service>(service("web", &json!([port("TCP", 80, 80), port("UDP", 53, 53)]))).await;
        let ip = scene.address("web").await;
        serves_tcp(ip, 80, 80).await;
        let before = identity(&scene.gateway("web").await);
        let udp = Udp::new(ip, 53).await.unwrap();
        serves_udp(&udp, 53).await;

        // Added; one that a client asked for in vain before.
        let eager = Udp::new(ip, 54).await.unwrap();
        eager.ask().await.unwrap_err();
        let ports =
            json!([port("TCP", 80, 80), port("TCP", 81, 81), port("UDP", 53, 53), port("UDP", 54, 54)]);
        scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
        serves_tcp(ip, 81, 81).await;
        serves_udp(&eager, 54).await;
        serves_udp(&udp, 53).await;

        // Changed: the port's target, for the client that stays.
        let ports = json!([port("TCP", 80, 81), port("UDP", 53, 54), port("UDP", 54, 54)]);
        scene.patch_service("web", json!({ "spec": { "ports": ports } })).await;
        serves_tcp(ip, 80, 81).await;
        until("tcp/81 to close", QUICK, async || client::refused(ip, 81).await).await;

        // Removed: also for the client that keeps its source port.
        scene.patch_service("web", json!({ "spec": { "ports": [port("TCP", 80, 81)] } })).await;
        for client in [&udp, &eager] {
            until("udp to stop", QUICK, async || match client.ask().await {
                Ok(answer) => Err(answer),
                Err(_) => Ok(()),
            })
            .await;
        }
        serves_tcp(ip, 80, 81).await;
        assert_eq!(identity(&scene.gateway("web").await), before, "the gateway pod was not restarted");
    })
    .await;
}

#[tokio::test]
async fn the_gateways_security_context() {
    scene("security", async |scene| {
        scene.create::<Service>(service("web", &json!([port("TCP", 80, 80)]))).await;
        scene.address("web").await;
        let pod = scene.gateway("web").await;
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert!(
            spec.volumes.iter().flatten().all(|volume| volume.projected.is_none() && volume.secret.is_none())
        );
        assert_eq!(spec.host_network, None);
        let seccomp = spec.security_context.as_ref().unwrap().seccomp_profile.as_ref().unwrap();
        assert_eq!(seccomp.type_, "RuntimeDefault");
        let security = spec.containers[0].security_context.as_ref().unwrap();
        let capabilities = security.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        assert_eq!(capabilities.add.as_deref(), Some(&["NET_ADMIN".to_owned(), "NET_RAW".to_owned()][..]));
        assert_eq!(security.privileged, Some(false));
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));

        // What the kernel says of the process: NET_ADMIN (12) and NET_RAW (13), seccomp on, no new privileges.
        let gateway = lb_svc_e2e::Lab::processes(&pod.uid().unwrap()).into_iter().find_map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.starts_with("Name:\tlb-svc-gateway").then_some(status)
        });
        let status = gateway.expect("the gateway's process");
        let line = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim().to_owned()
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(line(set), "0000000000003000", "{set}");
        }
        assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    })
    .await;
}
