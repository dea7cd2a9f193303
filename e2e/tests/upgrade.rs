//! From the release before to this one, and back, under traffic. These run alone, and
//! only where that release is in the cache (`cluster.sh release-before`).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use lb_svc_e2e::objects::{DIRECT, backends, port, service};
use lb_svc_e2e::outage::Watch;
use lb_svc_e2e::{Lab, SLOW, Scene, client, expect, is_ready, repository, scene, serves, throughout, until};
use serde_json::json;

const CONTROLLER: [&str; 4] = ["deployment", "lb-svc-controller", "-n", "lb-svc-system"];
/// A Service of each kind, and how many pods its gateway has.
const SERVICES: [(&str, usize); 3] = [("one", 1), ("two", 2), ("straight", 1)];

/// Installs a release from its manifests over the one that is there, and waits until
/// its controller is the only one.
async fn install(manifests: PathBuf) {
    Lab::kubectl(&["apply", "-k", manifests.to_str().unwrap()]).await.unwrap();
    Lab::kubectl(&[&["rollout", "status"][..], &CONTROLLER, &["--timeout=60s"]].concat()).await.unwrap();
}

/// The ready pods of a gateway, all of this image.
async fn of_image(scene: &Scene, name: &str, count: usize, image: &str) -> Result<(), String> {
    let pods = scene.gateways(name).await;
    let image_of =
        |pod: &Pod| pod.spec.clone().unwrap_or_default().containers.remove(0).image.unwrap_or_default();
    let found: Vec<String> = pods.iter().map(image_of).collect();
    let all =
        found.len() == count && pods.iter().all(is_ready) && found.iter().all(|found| found.ends_with(image));
    expect(all, format!("{found:?}"))
}

/// Adds a port to each Service, which its gateway serves.
async fn edited(scene: &Scene, addresses: &[IpAddr], number: u16) {
    for ((name, _), ip) in SERVICES.iter().zip(addresses) {
        let ports = json!([port("TCP", 80, 80), port("UDP", 80, 80), port("TCP", number, 80)]);
        scene.patch_service(name, json!({ "spec": { "ports": ports } })).await;
        until(&format!("port {number} of {name}"), SLOW, async || client::get(*ip, number).await).await;
    }
}

#[tokio::test]
async fn r10_a_release_up_and_down_is_served_on() {
    let before = PathBuf::from(Lab::cluster(&["release-before"]).await.unwrap().trim());
    let images =
        ["controller", "gateway"].map(|name| before.join(name).with_extension("tar").display().to_string());
    Lab::cluster(&["load", &images[0], &images[1]]).await.unwrap();
    let now = repository().join("manifests/controller");
    scene("upgrade", async |scene| {
        install(before.join("manifests")).await;
        scene.create::<Deployment>(backends("web", 2, &["tcp/80", "udp/80"])).await;
        let ports = json!([port("TCP", 80, 80), port("UDP", 80, 80)]);
        let mut addresses = Vec::new();
        for (name, replicas) in SERVICES {
            let mut object = service(name, &ports);
            object["spec"]["selector"] = json!({ "app": "web" });
            object["metadata"]["annotations"]["lb-svc.kubeovn.io/replicas"] = replicas.to_string().into();
            object["metadata"]["annotations"][DIRECT] = (name == "straight").to_string().into();
            scene.create::<Service>(object).await;
            addresses.push(scene.address(name).await);
        }
        for ip in &addresses {
            serves(*ip).await;
        }

        // Up: gateways are made anew by the new controller, which serves on.
        let watches: Vec<Watch> = addresses.iter().map(|ip| Watch::begin(*ip, 80, 80)).collect();
        install(now.clone()).await;
        for (name, count) in SERVICES {
            until(&format!("{name} is of this release"), SLOW * 2, async || {
                of_image(&scene, name, count, ":dev").await
            })
            .await;
        }
        for (watch, (name, count)) in watches.into_iter().zip(SERVICES) {
            let outage = watch.end().await;
            eprintln!("{name}, {count} pods, up: {outage:?}");
            let limit = Duration::from_millis(if count > 1 { 800 } else { 10_000 });
            assert!(outage.longest < limit, "{name}: {outage:?}");
        }
        edited(&scene, &addresses, 81).await;

        // Down: what runs serves on, whatever the earlier controller makes of it.
        let uids = async || {
            let mut uids = Vec::new();
            for (name, _) in SERVICES {
                uids.extend(scene.gateways(name).await.iter().filter_map(ResourceExt::uid));
            }
            uids
        };
        let pods = uids().await;
        install(before.join("manifests")).await;
        throughout("all is served on", Duration::from_secs(10), async || {
            for ip in &addresses {
                client::get(*ip, 80).await?;
                client::get(*ip, 81).await?;
            }
            anyhow::Ok(())
        })
        .await;
        eprintln!(
            "down: {} of {} pods are others",
            {
                let now = uids().await;
                now.iter().filter(|uid| !pods.contains(uid)).count()
            },
            pods.len()
        );

        // And up again.
        install(now.clone()).await;
        edited(&scene, &addresses, 82).await;
        for (name, count) in SERVICES {
            until(&format!("{name} is of this release"), SLOW * 2, async || {
                of_image(&scene, name, count, ":dev").await
            })
            .await;
        }
        for ((name, _), ip) in SERVICES.iter().zip(&addresses) {
            assert_eq!(scene.address(name).await, *ip, "{name}");
        }
    })
    .await;
}
