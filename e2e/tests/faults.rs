//! What docs/dev/regressions.md promises and only a cluster can show.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::core::v1::{ResourceQuota, Service};
use kube::api::DeleteParams;
use lb_svc_e2e::objects::web;
use lb_svc_e2e::{QUICK, SLOW, client, expect, scene, until};
use serde_json::json;

#[tokio::test]
async fn fault_28_a_quota_is_told_and_passes() {
    scene("quota", async |scene| {
        let name = "no-more-deployments";
        let quota =
            json!({ "metadata": { "name": name }, "spec": { "hard": { "count/deployments.apps": "0" } } });
        scene.create::<ResourceQuota>(quota).await;
        let quotas = scene.api::<ResourceQuota>();
        until("the quota to hold", SLOW, async || {
            let hard = quotas
                .get(name)
                .await
                .map_err(|error| error.to_string())?
                .status
                .and_then(|status| status.hard);
            expect(hard.is_some(), hard)
        })
        .await;
        scene.create::<Service>(web("web")).await;
        until("the refusal to be told", QUICK, async || {
            let events = scene.events("web").await;
            let told =
                events.iter().any(|(reason, message)| reason == "WriteRefused" && message.contains(name));
            expect(told, events)
        })
        .await;
        quotas.delete(name, &DeleteParams::default()).await.unwrap();
        let ip = scene.address("web").await;
        client::refused(ip, 81).await.unwrap();
    })
    .await;
}
