//! Someone breaks what is ours; it is mended.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use lb_svc_crds::gateway::GatewayConfig;
use lb_svc_e2e::{SLOW, client, expect, scene, serves, until};
use serde_json::json;

/// The promise: drift in the kernel is repaired within this.
const HEALED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn drift_in_the_gateways_kernel_is_repaired() {
    scene("drift", async |scene| {
        let ip = scene.served("web", 1).await;
        let state = async || {
            let mut state = Vec::new();
            for command in [
                &["ip", "rule"][..],
                &["ip", "route", "show", "table", "100"],
                &["ip", "-4", "addr", "show", "dev", "net1"],
                &["iptables", "-t", "nat", "-S"],
                &["iptables", "-S"],
            ] {
                state.push(scene.in_gateway("web", command).await);
            }
            state
        };
        let good = state().await;
        let address = format!("{ip}/16");
        let damages: [&[&str]; 7] = [
            &["iptables", "-t", "nat", "-F"],
            &["iptables", "-F"],
            &["ip", "route", "flush", "table", "100"],
            &["ip", "rule", "del", "priority", "32764"],
            &["ip", "rule", "del", "priority", "32765"],
            &["ip", "addr", "del", &address, "dev", "net1"],
            &["ip", "route", "add", "192.0.2.0/24", "dev", "net1", "table", "100"],
        ];
        for damage in damages {
            scene.in_gateway("web", damage).await;
            let start = Instant::now();
            until(&format!("healing of {damage:?}"), HEALED, async || {
                let now = state().await;
                expect(now == good, now)
            })
            .await;
            client::get(ip, 80).await.unwrap_or_else(|error| panic!("after {damage:?}: {error}"));
            eprintln!("{damage:?}: mended within {:?}", start.elapsed());
        }
    })
    .await;
}

#[tokio::test]
async fn a_deleted_deployment_or_config_map_comes_back() {
    scene("children", async |scene| {
        let ip = scene.served("web", 1).await;
        let config = scene.api::<ConfigMap>().get("lb-svc-web").await.unwrap();
        // Whether an address is to be asked for changes once it is in service.
        let content = |config: &ConfigMap| {
            let text = config.data.as_ref().and_then(|data| data.get("config.json")).unwrap();
            let mut content: GatewayConfig = serde_json::from_str(text).unwrap();
            content.addresses.iter_mut().for_each(|address| address.probe = false);
            content
        };
        scene.api::<ConfigMap>().delete("lb-svc-web", &DeleteParams::default()).await.unwrap();
        until("the ConfigMap", SLOW, async || {
            let now = scene.api::<ConfigMap>().get("lb-svc-web").await.map_err(|error| error.to_string())?;
            expect(now.uid() != config.uid() && content(&now) == content(&config), (now.uid(), now.data))
        })
        .await;
        client::get(ip, 80).await.unwrap();

        let deployment = scene.api::<Deployment>().get("lb-svc-web").await.unwrap();
        scene.api::<Deployment>().delete("lb-svc-web", &DeleteParams::default()).await.unwrap();
        until("the Deployment", SLOW, async || {
            let now = scene.api::<Deployment>().get("lb-svc-web").await.map_err(|error| error.to_string())?;
            expect(now.uid() != deployment.uid(), now.uid())
        })
        .await;
        serves(ip).await;
        assert_eq!(scene.address("web").await, ip);
    })
    .await;
}

#[tokio::test]
async fn an_edited_deployment_or_config_map_is_put_right() {
    scene("edits", async |scene| {
        let ip = scene.served("web", 1).await;
        let merge = PatchParams::default();
        let scaled = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
        scene.api::<Deployment>().patch("lb-svc-web", &merge, &scaled).await.unwrap();
        until("one replica again", SLOW, async || {
            let deployment =
                scene.api::<Deployment>().get("lb-svc-web").await.map_err(|error| error.to_string())?;
            let replicas = deployment.spec.and_then(|spec| spec.replicas);
            expect(replicas == Some(1), replicas)
        })
        .await;
        serves(ip).await;
        let spoiled = Patch::Merge(json!({ "data": { "config.json": "{}" } }));
        scene.api::<ConfigMap>().patch("lb-svc-web", &merge, &spoiled).await.unwrap();
        until("the configuration again", SLOW, async || {
            let config =
                scene.api::<ConfigMap>().get("lb-svc-web").await.map_err(|error| error.to_string())?;
            let text = config.data.unwrap_or_default().remove("config.json").unwrap_or_default();
            expect(text.contains(&ip.to_string()), text)
        })
        .await;
        client::get(ip, 80).await.unwrap();
    })
    .await;
}
