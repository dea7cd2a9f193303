//! Straight to many endpoints: even shares, and changes that move nobody who
//! need not move.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use lb_svc_e2e::objects::{backends, direct, port, slice};
use lb_svc_e2e::{QUICK, SLOW, Scene, client, expect, is_ready, scene, until};
use serde_json::{Value, json};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 10_000;
/// Under way at a time.
const AT_ONCE: usize = 32;
/// Established while endpoints come and go.
const ESTABLISHED: usize = 40;

/// So many pods of the workload, once they are ready and there are no others.
async fn pods(scene: &Arc<Scene>, workload: &str, count: usize) -> Vec<Pod> {
    until(&format!("{count} pods"), SLOW, async || {
        let pods = scene.pods(workload).await;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        if ready == count && pods.len() == count { Ok(pods) } else { Err(format!("{ready} are ready")) }
    })
    .await
}

/// Who answers: the pod, and the port that the connection arrived at.
fn endpoint(answer: &str) -> String {
    answer.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// How often each endpoint answers so many connections.
async fn shares(ip: IpAddr, port: u16, connections: usize) -> BTreeMap<String, usize> {
    let asked = futures::stream::iter(0..connections).map(|_| client::get(ip, port));
    let mut answers = asked.buffer_unordered(AT_ONCE);
    let mut shares = BTreeMap::new();
    while let Some(answer) = answers.next().await {
        *shares.entry(endpoint(&answer.unwrap())).or_insert(0) += 1;
    }
    shares
}

/// So many endpoints get equal shares, give or take this part of one.
async fn is_even(ip: IpAddr, port: u16, endpoints: usize, off: f64) {
    let shares = shares(ip, port, CONNECTIONS).await;
    assert_eq!(shares.len(), endpoints, "{shares:?}");
    let share = CONNECTIONS as f64 / endpoints as f64;
    assert!(shares.values().all(|count| (*count as f64 - share).abs() <= off * share), "{shares:?}");
}

/// Waits until the port leads to these ports of the two pods, and to no other.
async fn leads_to(ip: IpAddr, port: u16, targets: &[u16]) {
    until(&format!("port {port} to lead to {targets:?} of two pods"), QUICK, async || {
        let seen = shares(ip, port, 30 * targets.len()).await;
        let at = |target: &u16| seen.keys().filter(|at| at.ends_with(&format!(" tcp/{target}"))).count();
        expect(seen.len() == 2 * targets.len() && targets.iter().all(|target| at(target) == 2), seen)
    })
    .await;
}

#[tokio::test]
async fn shares_are_even_and_who_need_not_move_stays() {
    scene("spread", async |scene| {
        // Two pods with 25 ports are 50 endpoints; port 80 has those of two.
        let targets: Vec<u16> = (9000..9025).collect();
        let listen: Vec<String> = targets.iter().map(|target| format!("tcp/{target}")).collect();
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        scene.create::<Deployment>(backends("web", 2, &listen)).await;
        let pods = pods(&scene, "web", 2).await;
        let name = |target: u16| format!("web-{target}");
        let slice = |target: u16, ports: &[u16]| {
            let ports: Vec<_> = ports.iter().map(|port| (format!("tcp-{port}"), target)).collect();
            slice(&name(target), "web", &[&pods[0], &pods[1]], &ports).unwrap()
        };
        for &target in &targets {
            let ports: &[u16] = if target < 9002 { &[80, 81] } else { &[81] };
            scene.create::<EndpointSlice>(slice(target, ports)).await;
        }
        let mut object = direct("web", &json!([port("TCP", 80, 80), port("TCP", 81, 81)]), "iptables");
        object["spec"]["selector"] = Value::Null;
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;

        for back_end in ["iptables", "nftables"] {
            scene.use_back_end("web", back_end).await;
            leads_to(ip, 80, &[9000, 9001]).await;
            is_even(ip, 80, 4, 0.15).await;
            is_even(ip, 81, 50, 0.35).await;

            let mut established = Vec::new();
            for _ in 0..ESTABLISHED {
                let mut stream = TcpStream::connect(SocketAddr::new(ip, 80)).await.unwrap();
                let with = endpoint(&client::ask(&mut stream).await.unwrap());
                established.push((stream, with));
            }
            // Of one pair of endpoints another is made.
            let slices = scene.api::<EndpointSlice>();
            for (target, ports) in [(9001, &[81][..]), (9002, &[80, 81])] {
                let patch = Patch::Merge(json!({ "ports": slice(target, ports)["ports"] }));
                slices.patch(&name(target), &PatchParams::default(), &patch).await.unwrap();
            }
            leads_to(ip, 80, &[9000, 9002]).await;
            for (stream, with) in &mut established {
                if with.ends_with(" tcp/9000") {
                    assert_eq!(endpoint(&client::ask(stream).await.unwrap()), *with);
                } else {
                    // Cut once all new ones are led elsewhere.
                    let ends = async || expect(client::ask(stream).await.is_err(), "");
                    until(&format!("a connection to {with} to end"), QUICK, ends).await;
                }
            }
            for (target, ports) in [(9001, &[80, 81][..]), (9002, &[81])] {
                let patch = Patch::Merge(json!({ "ports": slice(target, ports)["ports"] }));
                slices.patch(&name(target), &PatchParams::default(), &patch).await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_ports_of_five_pods_are_five_thousand_endpoints() {
    scene("many", async |scene| {
        scene.create::<Deployment>(backends("web", 5, &["tcp/80"])).await;
        pods(&scene, "web", 5).await;
        let ports: Value = (1000..2000).map(|number| port("TCP", number, 80)).collect();
        let mut object = direct("web", &ports, "nftables");
        // There are not so many.
        object["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        let programmed = async || {
            let slots = scene.in_gateway("web", &["nft", "list", "map", "ip", "lb-svc", "slots"]).await;
            slots.matches(" . 80").count()
        };
        assert_eq!(programmed().await, 5000);
        for port in [1000, 1234, 1999] {
            assert_eq!(shares(ip, port, 100).await.len(), 5, "port {port}");
        }

        let patch = Patch::Merge(json!({ "spec": { "replicas": 4 } }));
        scene.api::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
        until("four endpoints of each port", QUICK, async || {
            expect(programmed().await == 4000, programmed().await)
        })
        .await;
        for port in [1000, 1234, 1999] {
            assert_eq!(shares(ip, port, 100).await.len(), 4, "port {port}");
        }
    })
    .await;
}
