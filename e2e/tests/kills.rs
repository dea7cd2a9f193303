//! The controller is killed at every one of its writes, once before the API
//! server gets it and once before the answer gets back. Whatever it had done,
//! the next process completes it, and nothing is left or held twice.
//!
//! The controller and the API server are real; gateways are played
//! ([`StandIns`]), so that a life takes a second.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use lb_svc_e2e::objects::web;
use lb_svc_e2e::{
    Controller, Cut, Lab, Proxy, Scene, StandIns, expect, scene, subnet, until, without_controller,
};
use serde_json::json;

/// The longest that anything may take, two conflicts' pauses included.
const SETTLE: Duration = Duration::from_secs(20);
/// A network of its own: 13 addresses and a router.
const NETWORK: &str = "cidrBlock: 172.27.9.0/28";
const ADDRESSES: u64 = 13;
const NAMED: &str = "172.27.9.9";
const EDITED: &str = "172.27.9.10";

/// What there is to be: Services, each with the address it asks for, if any.
type Wanted<'a> = &'a [(&'a str, Option<&'a str>)];

#[tokio::test]
async fn it_is_killed_at_every_write() {
    scene("kills", async |scene| {
        scene.attach("kills", NETWORK).await;
        without_controller(&scene.lab, async || {
            let gateways = StandIns::start(&scene.client(), &scene.namespace).await.unwrap();
            let proxy = Proxy::start(scene.client()).await.unwrap();
            let mut controller = Some(Controller::start(proxy.kubeconfig()).unwrap());
            for cut in [Cut::Before, Cut::After] {
                let start = Instant::now();
                let mut kills = 0;
                while kill_once(&scene, &gateways, &proxy, &mut controller, kills + 1, cut).await {
                    kills += 1;
                }
                assert!(kills > 20, "{kills} writes are too few to be all");
                eprintln!("{cut:?}: {kills} kills in {:?}", start.elapsed());
            }
            controller.unwrap().stop().await.unwrap();
        })
        .await;
        Lab::kubectl(&["delete", "subnet", &scene.namespace, "--timeout=20s"]).await.unwrap();
    })
    .await;
}

/// Every write is the last but one of a process: each life gets one done.
#[tokio::test]
async fn it_is_killed_again_and_again() {
    scene("kills-again", async |scene| {
        scene.attach("kills", NETWORK).await;
        without_controller(&scene.lab, async || {
            let gateways = StandIns::start(&scene.client(), &scene.namespace).await.unwrap();
            let proxy = Proxy::start(scene.client()).await.unwrap();
            let lives = Cell::new(0);
            let live_and_die = async {
                loop {
                    lives.set(lives.get() + 1);
                    proxy.forget();
                    let there = proxy.cut_off(2, Cut::Before);
                    let controller = Controller::start(proxy.kubeconfig()).unwrap();
                    // It may have nothing to do but one write, or none.
                    let _ = tokio::time::timeout(Duration::from_secs(2), there).await;
                    controller.kill().await.unwrap();
                }
            };
            tokio::select! {
                () = story(&scene, &gateways) => {}
                () = live_and_die => {}
            }
            assert!(lives.get() > 20, "{} lives are too few for all writes", lives.get());
        })
        .await;
        Lab::kubectl(&["delete", "subnet", &scene.namespace, "--timeout=20s"]).await.unwrap();
    })
    .await;
}

/// The whole story, with a kill at the write of this number; whether there was
/// such a write.
async fn kill_once(
    scene: &Scene,
    gateways: &StandIns,
    proxy: &Proxy,
    controller: &mut Option<Controller>,
    number: usize,
    cut: Cut,
) -> bool {
    proxy.forget();
    let there = proxy.cut_off(number, cut);
    let mut killed = false;
    let kill = async {
        let Ok(go_on) = there.await else { return };
        controller.take().unwrap().kill().await.unwrap();
        killed = true;
        let _ = go_on.send(());
        *controller = Some(Controller::start(proxy.kubeconfig()).unwrap());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = story(scene, gateways) => {}
        () = kill => {}
    }
    if killed {
        let writes = proxy.writes();
        let write = writes.iter().filter(|write| !write.is_event()).nth(number - 1).unwrap();
        eprintln!("{cut:?} {number:2}: {} {}", write.method, write.target.split('?').next().unwrap());
    }
    killed
}

/// Two Services come, change and go.
async fn story(scene: &Scene, gateways: &StandIns) {
    let services = scene.api::<Service>();
    let well = async |step: &str, wanted: Wanted<'_>| {
        until(step, SETTLE, async || adds_up(scene, gateways, wanted).await).await;
    };
    let mut named = web("named");
    named["spec"]["loadBalancerIP"] = NAMED.into();
    for mut service in [named, web("any")] {
        let provider = format!("kills.{}", scene.namespace);
        service["metadata"]["annotations"] = json!({ "ovn.kubernetes.io/attachmentprovider": provider });
        scene.create::<Service>(service).await;
    }
    well("two Services", &[("named", Some(NAMED)), ("any", None)]).await;
    scene.patch_service("any", json!({ "spec": { "loadBalancerIP": EDITED } })).await;
    well("an edited address", &[("named", Some(NAMED)), ("any", Some(EDITED))]).await;
    scene.patch_service("named", json!({ "spec": { "type": "ClusterIP" } })).await;
    well("one retyped", &[("any", Some(EDITED))]).await;
    for name in ["named", "any"] {
        services.delete(name, &DeleteParams::default()).await.unwrap();
    }
    well("none", &[]).await;
}

/// Whether what is there is what should be there, exactly.
async fn adds_up(scene: &Scene, gateways: &StandIns, wanted: Wanted<'_>) -> Result<(), String> {
    let text = |error: kube::Error| error.to_string();
    // Not even for a moment.
    assert!(gateways.overlaps().is_empty(), "{:?}", gateways.overlaps());
    let claims = scene.claims().await;
    let configs: BTreeMap<String, ConfigMap> = ours(scene).await?;
    let deployments: BTreeMap<String, Deployment> = ours(scene).await?;
    let pods: BTreeMap<String, Pod> = ours(scene).await?;
    let mut addresses = BTreeSet::new();
    for (name, asked) in wanted {
        let service = scene.service(name).await;
        let its = claims.iter().filter(|claim| Some(&claim.spec.service_uid) == service.uid().as_ref());
        let [claim] = its.collect::<Vec<_>>()[..] else { return Err(format!("{name}: claims {claims:?}")) };
        let address: IpAddr = claim.spec.ip_address.parse().unwrap();
        let spec = service.spec.unwrap_or_default();
        let filled = spec.load_balancer_ip.unwrap_or_default();
        expect(filled == claim.spec.ip_address, (name, &filled, address))?;
        expect(asked.is_none_or(|asked| asked == filled), (name, asked, &filled))?;
        expect(scene.ingress(name).await == [address], (name, "ingress"))?;
        let conditions = service.status.unwrap_or_default().conditions.unwrap_or_default();
        let true_ones = conditions.iter().filter(|condition| condition.status == "True");
        expect(true_ones.count() == 2, conditions)?;
        let config = configs.get(&format!("lb-svc-{name}")).and_then(|config| config.data.as_ref());
        let config = config.and_then(|data| data.get("config.json")).cloned().unwrap_or_default();
        let config: serde_json::Value = serde_json::from_str(&config).map_err(|error| error.to_string())?;
        let own = config["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        expect(own.len() == 1 && own[0]["address"] == filled, own)?;
        addresses.insert(address);
    }
    let parts: BTreeSet<String> = wanted.iter().map(|(name, _)| format!("lb-svc-{name}")).collect();
    expect(configs.keys().eq(&parts), configs.keys().collect::<Vec<_>>())?;
    expect(deployments.keys().eq(&parts), deployments.keys().collect::<Vec<_>>())?;
    expect(pods.len() == parts.len(), pods.keys().collect::<Vec<_>>())?;
    expect(claims.len() == wanted.len(), &claims)?;
    let serving = gateways.serving();
    expect(serving.keys().eq(&addresses), serving)?;

    let using = addresses.len() as u64;
    let subnet = subnet(&scene.lab, &scene.namespace).await;
    let held = subnet.finalizers().iter().any(|finalizer| finalizer == "lb-svc.kubeovn.io/claims");
    let status = subnet.status.unwrap_or_default();
    let counted = (status.v4_using_ips, status.v4_available_ips, held);
    expect(counted == (using, ADDRESSES - using, using > 0), counted)?;
    let listed: BTreeSet<IpAddr> = status
        .v4_using_ip_range
        .split([',', '-'])
        .filter(|address| !address.is_empty())
        .map(|address| address.parse().unwrap())
        .collect();
    expect(listed == addresses, status.v4_using_ip_range)?;
    // A Service that wants nothing of us says nothing of us.
    for service in scene.api::<Service>().list(&ListParams::default()).await.map_err(text)?.items {
        let name = service.name_any();
        let conditions = service.status.unwrap_or_default().conditions.unwrap_or_default();
        let wants = wanted.iter().any(|(wanted, _)| *wanted == name);
        expect(wants || conditions.is_empty() && scene.ingress(&name).await.is_empty(), (name, conditions))?;
    }
    Ok(())
}

/// The objects of a kind that the controller made, by name.
async fn ours<K>(scene: &Scene) -> Result<BTreeMap<String, K>, String>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let labelled = ListParams::default().labels("app.kubernetes.io/managed-by=lb-svc");
    let list = scene.api::<K>().list(&labelled).await.map_err(|error| error.to_string())?;
    Ok(list.items.into_iter().map(|object| (object.name_any(), object)).collect())
}
