//! Clients near and far, and what they must not reach.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;

use lb_svc_crds::names::GATEWAY_PORT;
use lb_svc_e2e::{Lab, QUICK, client, expect, scene, until};

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
async fn local_the_gateway_is_no_router_into_the_cluster() {
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
