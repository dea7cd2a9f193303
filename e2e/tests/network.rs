//! Clients near and far, and what they must not reach.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::ListParams;
use lb_svc_crds::names::GATEWAY_PORT;
use lb_svc_e2e::objects::{backends, elsewhere, on_the_first_node, port, service};
use lb_svc_e2e::{Lab, QUICK, SLOW, client, expect, scene, serves, until};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

/// A client two routers away, the second behind a link with an MTU of 1300.
#[tokio::test]
async fn local_a_client_behind_a_router() {
    scene("far", async |scene| {
        let ip = scene.served("web", 2).await;
        let far = async |url: String| {
            let curl =
                ["far", "curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}", &url];
            Lab::cluster(&curl).await.map_err(|error| error.to_string())
        };
        until("the far client is served", QUICK, async || far(format!("http://{ip}/")).await).await;
        for size in ["20000000", "3000"] {
            let got = far(format!("http://{ip}/bytes/{size}")).await.unwrap();
            assert_eq!(got, size);
        }
        for host in ["client", "far"] {
            Lab::cluster(&[host, "ping", "-c", "2", "-i", "0.2", "-W", "2", &ip.to_string()])
                .await
                .unwrap_or_else(|error| panic!("ping from {host}: {error}"));
        }
        // A packet that is too large for the far link is answered by the router, and the answer is heard.
        let large = ["far", "ping", "-c", "2", "-i", "0.2", "-W", "2", "-s", "4000", &ip.to_string()];
        Lab::cluster(&large).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn nothing_of_the_gateways_own_is_reachable_at_the_address() {
    scene("own-ports", async |scene| {
        let ip = scene.served("web", 2).await;
        for own in [GATEWAY_PORT, 81, 8080, 10250] {
            client::refused(ip, own).await.unwrap();
        }
    })
    .await;
}

/// The gateway is a way to the Service's ports, not a router into the cluster.
#[tokio::test]
async fn the_gateway_is_no_router_into_the_cluster() {
    scene("no-router", async |scene| {
        let ip = scene.served("web", 2).await;
        let pod = scene.gateway("web").await;
        let pod_ip = pod.status.and_then(|status| status.pod_ip).unwrap();
        let cluster_ip = scene.service("web").await.spec.and_then(|spec| spec.cluster_ip).unwrap();
        for (inner, port) in [(&pod_ip, GATEWAY_PORT), (&cluster_ip, 80)] {
            let inner_ip: IpAddr = inner.parse().unwrap();
            let via = ip.to_string();
            Lab::cluster(&["client", "ip", "route", "replace", inner, "via", &via]).await.unwrap();
            let reached = client::refused(inner_ip, port).await;
            Lab::cluster(&["client", "ip", "route", "del", inner, "via", &via]).await.unwrap();
            reached.unwrap();
        }
        let nodes = Lab::kubectl(&["get", "nodes", "-o", "name"]).await.unwrap();
        expect(nodes.lines().count() >= 2, nodes).unwrap();
    })
    .await;
}

/// A node serves the address by itself, unless it is told that it is another's to serve.
#[tokio::test]
async fn clients_inside_the_cluster_go_through_the_gateway_on_request() {
    scene("pass-through", async |scene| {
        let mut workload = backends("web", 1, &["tcp/80"]);
        on_the_first_node(&mut workload);
        scene.create::<Deployment>(workload).await;
        let mut object = service("web", &json!([port("TCP", 80, 80), port("SCTP", 81, 81)]));
        // Not on the node that asks: macvlan is not reached from there.
        elsewhere(&mut object, 1);
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        serves(ip).await;

        let ingress = async || {
            let status = scene.service("web").await.status.unwrap_or_default();
            status.load_balancer.unwrap_or_default().ingress.unwrap_or_default().remove(0)
        };
        let told = ingress().await;
        let ports = told.ports.unwrap_or_default();
        let ports: Vec<_> = ports.iter().map(|p| (p.protocol.as_str(), p.port, p.error.as_deref())).collect();
        let unserved = Some("lb-svc.kubeovn.io/UnsupportedProtocol");
        assert_eq!(ports, [("TCP", 80, None), ("SCTP", 81, unserved)]);
        assert_eq!(told.ip_mode.as_deref(), Some("VIP"));

        // Whom the backend sees tells which way a client inside came.
        let pod = scene.gateway("web").await;
        let gateway = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap();
        // A gateway collects its metrics once a second.
        let opened = async || {
            tokio::time::sleep(Duration::from_millis(1100)).await;
            scene.metric(&pod, "lb_svc_gateway_connections_total{").await.unwrap()
        };
        let pods = scene.api::<Pod>().list(&ListParams::default().labels("app=web")).await.unwrap();
        let pid = Lab::processes(&pods.items[0].uid().unwrap())[0];
        let namespace = format!("--net=/proc/{pid}/ns/net");
        let seen = async || {
            let url = format!("http://{ip}/");
            let curl = ["curl", "-sS", "--max-time", "2", &url];
            let output = Command::new("nsenter").arg(&namespace).args(curl).output().await.unwrap();
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            match answer.split_whitespace().nth(2) {
                Some(client) => Ok(client.rsplit_once(':').unwrap().0.to_owned()),
                None => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        };
        assert!(opened().await > 0, "the client outside was counted");
        // Its node hears of the address in its own time.
        until("its node to serve it", SLOW, async || {
            let seen = seen().await?;
            expect(seen != gateway, seen)
        })
        .await;
        let before = opened().await;
        assert_ne!(seen().await.unwrap(), gateway);
        assert_eq!(opened().await, before);
        for (value, through) in [("true", true), ("false", false)] {
            let annotations = json!({ "lb-svc.kubeovn.io/pass-through": value });
            scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
            until(&format!("pass-through {value}"), SLOW, async || {
                let before = opened().await;
                let seen = seen().await?;
                assert_eq!(opened().await > before, seen == gateway, "counted if it came that way");
                expect((seen == gateway) == through, seen)
            })
            .await;
        }
        serves(ip).await;
    })
    .await;
}

/// `spec.loadBalancerSourceRanges` goes by the client's own address, whatever the backends see; by the ClusterIP, and
/// straight to the pods by either back end.
#[tokio::test]
async fn local_source_ranges_hold_at_once() {
    scene("ranges", async |scene| {
        let ip = scene.served("web", 1).await;
        let url = format!("http://{ip}/");
        let far = async || {
            let curl = ["far", "curl", "-sS", "--max-time", "2", &url];
            Lab::cluster(&curl).await.map_err(|error| error.to_string())
        };
        let limit = async |ranges: Value| {
            scene.patch_service("web", json!({ "spec": { "loadBalancerSourceRanges": ranges } })).await;
        };
        let refused = async || match client::get(ip, 80).await {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        };
        let gateway = scene.gateway("web").await;
        // A gateway collects its metrics once a second.
        let count = async |name: &str| {
            tokio::time::sleep(Duration::from_millis(1100)).await;
            scene.metric(&gateway, &format!("{name}{{")).await.unwrap()
        };
        let mut opened = 0;
        for (direct, back_end) in [(false, "iptables"), (true, "iptables"), (true, "nftables")] {
            let annotations = json!({ "lb-svc.kubeovn.io/direct-access": direct.to_string() });
            scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
            scene.use_back_end("web", back_end).await;
            until("it to be led to the pods, or not", QUICK, async || {
                let rules = scene.in_gateway("web", &["ip", "rule"]).await;
                expect(rules.contains("32762:") == direct, rules)
            })
            .await;
            until("the far client is served", QUICK, far).await;
            let mut stream = TcpStream::connect(SocketAddr::new(ip, 80)).await.unwrap();
            client::ask(&mut stream).await.unwrap();
            limit(json!(["172.20.0.0/24"])).await;
            until("the near client is refused", SLOW, refused).await;
            let cut = async || expect(client::ask(&mut stream).await.is_err(), "it is answered");
            until("its connection to be cut", QUICK, cut).await;
            far().await.unwrap();
            limit(json!(["172.20.0.0/24", "172.18.0.0/16"])).await;
            until("the near client is served again", SLOW, async || client::get(ip, 80).await).await;
            far().await.unwrap();
            limit(json!(["172.18.0.0/16"])).await;
            until("the far client is refused", SLOW, async || far().await.map_or(Ok(()), Err)).await;
            let dropped = count("lb_svc_gateway_dropped_packets_total").await;
            assert!(dropped > 0, "what was dropped is counted");
            limit(Value::Null).await;
            until("the far client is served again", SLOW, far).await;
            client::get(ip, 80).await.unwrap();
            // Whatever changed, it is counted on.
            let before = std::mem::replace(&mut opened, count("lb_svc_gateway_connections_total").await);
            assert!(opened > before + 5, "{before}, then {opened}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_nat_is_programmed_by_either_back_end() {
    scene("nat-backend", async |scene| {
        let ip = scene.served("web", 2).await;
        let (iptables, nftables) = ("LB-SVC-DNAT", "map targets");
        for (backend, shown, gone) in [("nftables", nftables, iptables), ("iptables", iptables, nftables)] {
            let annotations = json!({ "lb-svc.kubeovn.io/nat-backend": backend });
            scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
            until(backend, SLOW, async || {
                client::get(ip, 80).await.map_err(|error| error.to_string())?;
                let rules = scene.in_gateway("web", &["nft", "list", "ruleset"]).await;
                expect(rules.contains(shown) && !rules.contains(gone), rules)
            })
            .await;
            client::get(ip, 80).await.unwrap();
            client::refused(ip, 81).await.unwrap();
        }
    })
    .await;
}
