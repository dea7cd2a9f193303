//! Subnets are edited around live addresses, and claims outlive what they are
//! for where that is wanted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use lb_svc_crds::IP;
use lb_svc_e2e::objects::{backends, web};
use lb_svc_e2e::{
    Lab, QUICK, SLOW, Scene, client, expect, gateway_pods, scene, serves, subnet, throughout, until,
};
use serde_json::{Value, json};

/// What the Service does not get as it asks, if that is said.
async fn limit(scene: &Scene, service: &str) -> Option<(String, String)> {
    let conditions = scene.service(service).await.status.unwrap_or_default().conditions.unwrap_or_default();
    let limited = conditions.into_iter().find(|condition| condition.type_ == "lb-svc.kubeovn.io/Limited");
    limited.map(|condition| (condition.reason, condition.message))
}

/// Waits until the Service says that its address is none of its Subnet's, or
/// says nothing.
async fn is_outside(scene: &Scene, service: &str, ip: IpAddr, outside: bool) {
    until(&format!("{service} to be outside: {outside}"), QUICK, async || {
        let limit = limit(scene, service).await;
        let said = limit.as_ref().is_some_and(|(reason, message)| {
            reason == "AddressNotInSubnet" && message.contains(&ip.to_string())
        });
        expect(said == outside && limit.is_some() == outside, limit)
    })
    .await;
}

async fn edit(subnet: &str, spec: Value) {
    let patch = json!({ "spec": spec }).to_string();
    Lab::kubectl(&["patch", "subnet", subnet, "--type=merge", "-p", &patch]).await.unwrap();
}

/// Waits until the gateway of the Service sends what leaves the LAN there.
async fn leaves_by(scene: &Scene, service: &str, router: &str) {
    until(&format!("{service} to leave by {router}"), QUICK, async || {
        let pod = scene.gateway(service).await.name_any();
        let routes = Lab::exec(&scene.namespace, &pod, &["ip", "route", "show", "table", "100"]).await;
        let routes = routes.map_err(|error| error.to_string())?;
        expect(routes.contains(&format!("default via {router} dev net1")), routes)
    })
    .await;
}

/// What is added later serves who waits.
#[tokio::test]
async fn subnets_hand_out_addresses_by_their_annotations() {
    scene("rules", async |scene| {
        let ns = scene.namespace.as_str();
        scene.attach("lan", "cidrBlock: 172.29.16.0/24, gateway: 172.29.16.1").await;
        let said = "lb-svc.kubeovn.io/auto-assign=false";
        Lab::kubectl(&["annotate", "subnet", ns, said, "lb-svc.kubeovn.io/priority=first"]).await.unwrap();
        until("what cannot be read is said", QUICK, async || {
            let conditions = subnet(&scene.lab, ns).await.status.unwrap_or_default().conditions;
            let said = conditions.iter().any(|condition| condition.message.contains("\"first\" is no number"));
            expect(said, conditions)
        })
        .await;
        let on = |name: &str| {
            let mut service = web(name);
            service["metadata"]["annotations"]["ovn.kubernetes.io/attachmentprovider"] = format!("lan.{ns}").into();
            service
        };
        scene.create::<Service>(on("web")).await;
        until("it waits", QUICK, async || {
            let conditions = scene.service("web").await.status.unwrap_or_default().conditions.unwrap_or_default();
            expect(conditions.iter().any(|condition| condition.reason == "SubnetNotFound"), conditions)
        })
        .await;
        for (name, third, priority) in [("a", 17, "9"), ("b", 18, "5")] {
            let object = json!({
                "apiVersion": "kubeovn.io/v1", "kind": "Subnet",
                "metadata": { "name": format!("{ns}-{name}"), "annotations": { "lb-svc.kubeovn.io/priority": priority } },
                "spec": { "provider": format!("lan.{ns}"), "cidrBlock": format!("172.29.{third}.0/24") },
            });
            // The first of them serves who waits, so that this one has nobody to serve.
            if name == "b" {
                scene.address("web").await;
            }
            Lab::apply(&object.to_string()).await.unwrap();
        }
        assert_eq!(scene.address("web").await.to_string(), "172.29.17.2");
        scene.create::<Service>(on("later")).await;
        assert_eq!(scene.address("later").await.to_string(), "172.29.18.2");
        for name in ["web", "later"] {
            scene.api::<Service>().delete(name, &DeleteParams::default()).await.unwrap();
            scene.gone(name).await;
        }
        let (a, b) = (format!("{ns}-a"), format!("{ns}-b"));
        Lab::kubectl(&["delete", "subnet", ns, &a, &b, "--timeout=30s"]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn edits_of_a_subnet_move_no_address_and_restart_no_gateway() {
    scene("edited", async |scene| {
        let ns = scene.namespace.as_str();
        scene.attach("lan", "cidrBlock: 172.29.8.0/24, gateway: 172.29.8.1").await;
        Lab::cluster(&["client", "ip", "addr", "replace", "172.29.8.9/24", "dev", "eth0"]).await.unwrap();
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        let on = |name: &str| {
            let mut service = web(name);
            service["metadata"]["annotations"]["ovn.kubernetes.io/attachmentprovider"] =
                format!("lan.{ns}").into();
            service["spec"]["selector"] = json!({ "app": "web" });
            service
        };
        let mut far = on("far");
        far["spec"]["loadBalancerIP"] = "172.29.8.200".into();
        scene.create::<Service>(on("web")).await;
        scene.create::<Service>(far).await;
        let (near, far) = (scene.address("web").await, scene.address("far").await);
        assert_eq!((near.to_string(), far.to_string()), ("172.29.8.2".into(), "172.29.8.200".into()));
        let pods = [scene.gateway("web").await.uid(), scene.gateway("far").await.uid()];

        // A live address may be excluded; one that the CIDR leaves out stays.
        edit(ns, json!({ "cidrBlock": "172.29.8.0/28", "excludeIps": ["172.29.8.2..172.29.8.9"] })).await;
        is_outside(&scene, "far", far, true).await;
        let events = scene.events("far").await;
        assert!(events.iter().any(|(reason, _)| reason == "AddressNotInSubnet"), "{events:?}");
        scene.create::<Service>(on("third")).await;
        assert_eq!(scene.address("third").await.to_string(), "172.29.8.10");
        assert_eq!(limit(&scene, "web").await, None);
        until("the network is the gateway's", QUICK, async || {
            let routes = scene.in_gateway("web", &["ip", "route", "show", "table", "100"]).await;
            expect(routes.contains("172.29.8.0/28 dev net1"), routes)
        })
        .await;
        for ip in [near, far] {
            serves(ip).await;
        }

        // It grows again, and has another router.
        edit(ns, json!({ "cidrBlock": "172.29.8.0/24", "gateway": "172.29.8.254", "excludeIps": [] })).await;
        is_outside(&scene, "far", far, false).await;
        for service in ["web", "far"] {
            leaves_by(&scene, service, "172.29.8.254").await;
        }
        // A router cannot be where a Service is; the others follow.
        edit(ns, json!({ "gateway": far.to_string() })).await;
        is_outside(&scene, "far", far, true).await;
        leaves_by(&scene, "web", &far.to_string()).await;
        leaves_by(&scene, "far", "172.29.8.254").await;
        edit(ns, json!({ "gateway": "172.29.8.1" })).await;
        is_outside(&scene, "far", far, false).await;
        for (service, ip) in [("web", near), ("far", far)] {
            leaves_by(&scene, service, "172.29.8.1").await;
            serves(ip).await;
            assert_eq!(scene.ingress(service).await, [ip]);
        }
        assert_eq!([scene.gateway("web").await.uid(), scene.gateway("far").await.uid()], pods);

        for service in ["web", "far", "third"] {
            scene.api::<Service>().delete(service, &DeleteParams::default()).await.unwrap();
        }
        for service in ["web", "far", "third"] {
            scene.gone(service).await;
        }
        Lab::kubectl(&["delete", "subnet", ns, "--timeout=20s"]).await.unwrap();
        Lab::cluster(&["client", "ip", "addr", "del", "172.29.8.9/24", "dev", "eth0"]).await.unwrap();
    })
    .await;
}

async fn delete(scene: &Scene, service: &str) {
    scene.api::<Service>().delete(service, &DeleteParams::default()).await.unwrap();
    until("nothing is left but claims", SLOW, async || {
        let name = format!("lb-svc-{service}");
        let config = scene.api::<ConfigMap>().get_opt(&name).await.map_err(|error| error.to_string())?;
        let pods = gateway_pods(&scene.api(), &scene.namespace, service).await.len();
        expect(config.is_none() && pods == 0, pods)
    })
    .await;
}

#[tokio::test]
async fn a_kept_address_is_listed_taken_over_and_freed_by_hand() {
    scene("kept", async |scene| {
        let mut keep = web("web");
        keep["metadata"]["annotations"]["lb-svc.kubeovn.io/keep-address"] = "true".into();
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        scene.create::<Service>(keep.clone()).await;
        let ip = scene.address("web").await;
        delete(&scene, "web").await;
        let listed = Lab::kubectl(&["get", "ip", "-o", "wide"]).await.unwrap();
        let is_kept = |line: &&str| {
            [&scene.namespace, &ip.to_string(), "true"]
                .iter()
                .all(|word| line.split_whitespace().any(|w| w == *word))
        };
        assert!(listed.lines().any(|line| is_kept(&line)), "{listed}");

        // Nobody else gets it, not even on request.
        let mut taker = web("taker");
        taker["spec"]["loadBalancerIP"] = ip.to_string().into();
        scene.create::<Service>(taker).await;
        until("it is said", QUICK, async || {
            let events = scene.events("taker").await;
            expect(events.iter().any(|(reason, _)| reason == "AddressInUse"), events)
        })
        .await;

        let made = scene.create::<Service>(keep).await;
        assert_eq!(scene.address("web").await, ip);
        serves(ip).await;
        let claims = scene.claims().await;
        assert_eq!(claims.len(), 1);
        assert_eq!(Some(&claims[0].spec.service_uid), made.uid().as_ref());

        delete(&scene, "web").await;
        throughout("it is kept", Duration::from_secs(1), async || {
            let claims = scene.claims().await;
            expect(claims.len() == 1 && claims[0].spec.service_name == "web", claims)
        })
        .await;
        let claims: Api<IP> = Api::all(scene.client());
        claims.delete(&scene.claims().await[0].name_any(), &DeleteParams::default()).await.unwrap();
        assert_eq!(scene.address("taker").await, ip, "what was freed goes to who waits");
    })
    .await;
}

#[tokio::test]
async fn a_claim_deleted_under_a_live_service_comes_back() {
    scene("unclaimed", async |scene| {
        let ip = scene.served("web", 1).await;
        let pod = scene.gateway("web").await;
        let [claim] = &scene.claims().await[..] else { panic!("one claim") };
        let claims: Api<IP> = Api::all(scene.client());
        claims.delete(&claim.name_any(), &DeleteParams::default()).await.unwrap();
        until("it is back", QUICK, async || {
            // It is served on meanwhile.
            client::get(ip, 80).await.unwrap();
            let now = scene.claims().await;
            let same = |now: &IP| now.name_any() == claim.name_any() && now.uid() != claim.uid();
            expect(now.len() == 1 && now.iter().all(same), now)
        })
        .await;
        serves(ip).await;
        assert_eq!(scene.ingress("web").await, [ip]);
        assert_eq!(scene.gateway("web").await.uid(), pod.uid());
    })
    .await;
}
