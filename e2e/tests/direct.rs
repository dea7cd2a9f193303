//! Straight to the pods: endpoints instead of the ClusterIP, by either back end;
//! affinity, health checks, and roll-outs that lose nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use lb_svc_e2e::objects::{DIRECT, backends, direct, elsewhere, on_the_first_node, port, service, web};
use lb_svc_e2e::{
    Lab, QUICK, SLOW, Scene, alone, client, expect, is_ready, is_true, scene, serves, throughout, until,
    without_controller,
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

fn annotate(object: &mut Value, name: &str, value: &str) {
    object["metadata"]["annotations"][name] = value.into();
}

/// Those that lead to pods.
const BACK_ENDS: [&str; 2] = ["iptables", "nftables"];

/// The Service's conditions of this kind: reason and message.
async fn said(scene: &Scene, name: &str, kind: &str) -> Option<(String, String)> {
    let status = scene.service(name).await.status.unwrap_or_default();
    let mut all = status.conditions.unwrap_or_default().into_iter();
    let condition = all.find(|condition| condition.type_ == format!("lb-svc.kubeovn.io/{kind}"))?;
    Some((condition.reason, condition.message))
}

async fn scale(scene: &Scene, name: &str, replicas: u32) {
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    scene.api::<Deployment>().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

/// The names of the workload's pods that are ready and not on their way out.
async fn ready(scene: &Scene, name: &str) -> BTreeSet<String> {
    let pods = scene.pods(name).await.into_iter();
    let stay = pods.filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    stay.map(|pod| pod.name_any()).collect()
}

/// Waits until just these pods answer.
async fn answered_by(ip: IpAddr, port: u16, pods: &BTreeSet<String>) {
    until(&format!("just {pods:?} to answer"), QUICK, async || {
        let seen = client::answerers(ip, port, 12 * pods.len().max(1)).await.map_err(|e| e.to_string())?;
        expect(seen == *pods, seen)
    })
    .await;
}

#[tokio::test]
async fn ports_lead_to_pods_by_either_back_end() {
    scene("direct", async |scene| {
        scene.create::<Deployment>(backends("web", 4, &["tcp/8080=http", "udp/5353"])).await;
        let ports = json!([port("TCP", 80, "http"), port("UDP", 53, 5353), port("TCP", 81, 8081)]);
        let mut object = service("web", &ports);
        // As TKE has it; and with no NodePort there is no other way.
        annotate(&mut object, "service.cloud.tencent.com/direct-access", "true");
        object["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        let spec = scene.service("web").await.spec.unwrap();
        assert!(spec.ports.unwrap().iter().all(|port| port.node_port.is_none()));
        let gateway = scene.gateway("web").await;
        let pod_ip = gateway.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap();

        for back_end in BACK_ENDS {
            scene.use_back_end("web", back_end).await;
            scale(&scene, "web", 4).await;
            until("four pods", SLOW, async || {
                let pods = ready(&scene, "web").await;
                expect(pods.len() == 4, pods)
            })
            .await;
            answered_by(ip, 80, &ready(&scene, "web").await).await;
            // The pod's own port, and the gateway's address.
            let answer = client::get(ip, 80).await.unwrap();
            let words: Vec<&str> = answer.split_whitespace().collect();
            assert_eq!(words[1], "tcp/8080");
            assert_eq!(words[2].parse::<SocketAddr>().unwrap().ip().to_string(), pod_ip);
            let udp = client::Udp::new(ip, 53).await.unwrap();
            let answer = udp.ask().await.unwrap();
            assert!(answer.contains(" udp/5353 "), "{answer}");
            // Nobody listens there: the pods themselves refuse.
            client::refused(ip, 81).await.unwrap();
            let rules = scene.in_gateway("web", &["ip", "rule"]).await;
            assert!(rules.contains("32762:\tfrom all iif net1 lookup main"), "{rules}");

            scale(&scene, "web", 2).await;
            until("two pods", SLOW, async || {
                let pods = ready(&scene, "web").await;
                expect(pods.len() == 2, pods)
            })
            .await;
            answered_by(ip, 80, &ready(&scene, "web").await).await;
            // A flow that keeps its port is led elsewhere, if it has to be.
            until("the flow to be served", QUICK, async || udp.ask().await).await;
            scale(&scene, "web", 0).await;
            until("nobody to be left", SLOW, async || client::refused(ip, 80).await).await;
            assert_eq!(scene.ingress("web").await, [ip], "missing endpoints take nothing back");
        }
        assert_eq!(said(&scene, "web", "Limited").await, None);

        // And back to the ClusterIP.
        scale(&scene, "web", 2).await;
        let annotations = json!({ "service.cloud.tencent.com/direct-access": null });
        scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
        until("the ClusterIP", SLOW, async || {
            let rules = scene.in_gateway("web", &["ip", "rule"]).await;
            expect(!rules.contains("32762"), rules)
        })
        .await;
        serves(ip).await;
        assert_eq!(scene.gateway("web").await.uid(), gateway.uid(), "the gateway was not replaced");
    })
    .await;
}

/// The pod at the other end of a connection that is used again and again.
async fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    let answer = client::ask(stream).await?;
    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
}

/// Lets a workload's pods serve on for so many seconds after they are told to
/// end.
fn lingering(workload: &mut Value, seconds: u32) {
    let spec = &mut workload["spec"]["template"]["spec"];
    spec["terminationGracePeriodSeconds"] = (seconds + 5).into();
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": seconds } } });
}

#[tokio::test]
async fn what_a_pod_on_its_way_out_serves_lives_on() {
    for back_end in BACK_ENDS {
        a_pod_leaves(back_end).await;
    }
}

async fn a_pod_leaves(back_end: &str) {
    scene(&format!("draining-{back_end}"), async |scene| {
        let mut workload = backends("web", 2, &["tcp/80", "udp/53"]);
        lingering(&mut workload, 12);
        scene.create::<Deployment>(workload).await;
        scene
            .create::<Service>(direct("web", &json!([port("TCP", 80, 80), port("UDP", 53, 53)]), back_end))
            .await;
        let ip = scene.address("web").await;
        serves(ip).await;
        let mut stream = TcpStream::connect(SocketAddr::new(ip, 80)).await.unwrap();
        let leaver = ask(&mut stream).await.unwrap();
        // Flows until one of them is the leaver's as well.
        let mut udp = client::Udp::new(ip, 53).await.unwrap();
        while !udp.ask().await.unwrap().starts_with(&leaver) {
            udp = client::Udp::new(ip, 53).await.unwrap();
        }
        scene.api::<Pod>().delete(&leaver, &DeleteParams::default()).await.unwrap();
        until("no new connection to the pod that leaves", QUICK, async || {
            let seen = client::answerers(ip, 80, 12).await.map_err(|error| error.to_string())?;
            expect(!seen.contains(&leaver), seen)
        })
        .await;
        until("the flow of UDP to be led elsewhere", QUICK, async || {
            let answer = udp.ask().await.map_err(|error| error.to_string())?;
            expect(!answer.starts_with(&leaver), answer)
        })
        .await;
        // Its connection lives for as long as it does.
        let there = scene.api::<Pod>().get_opt(&leaver).await.unwrap();
        assert!(there.is_some(), "it was to serve on for longer than that");
        assert_eq!(ask(&mut stream).await.unwrap(), leaver);
        until("the pod to be gone", SLOW, async || {
            expect(scene.api::<Pod>().get_opt(&leaver).await.is_ok_and(|pod| pod.is_none()), &leaver)
        })
        .await;
        until("its connection to end", QUICK, async || expect(ask(&mut stream).await.is_err(), "")).await;
    })
    .await;
}

#[tokio::test]
async fn local_a_client_stays_with_its_pod() {
    scene("affinity", async |scene| {
        scene.create::<Deployment>(backends("web", 4, &["tcp/80"])).await;
        // Whoever comes while there are fewer stays with one of those, which another gateway pod cannot know.
        until("four pods", SLOW, async || expect(ready(&scene, "web").await.len() == 4, "")).await;
        let mut object = web("web");
        object["spec"]["sessionAffinity"] = "ClientIP".into();
        elsewhere(&mut object, 2);
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        serves(ip).await;
        until("two gateway pods", SLOW, async || {
            let pods = scene.gateways("web").await;
            let mut statuses = Vec::new();
            for pod in &pods {
                statuses.push(scene.status(pod).await.ok().and_then(|status| status.digest).is_some());
            }
            expect(statuses == [true, true], statuses)
        })
        .await;
        assert_eq!(said(&scene, "web", "Limited").await, None, "it is kept");
        // By the client's own address: two clients, and many of one.
        let homes = async || -> Result<(String, String), String> {
            let near = client::answerers(ip, 80, 15).await.map_err(|error| error.to_string())?;
            let url = format!("http://{ip}/");
            let mut far = BTreeSet::new();
            for _ in 0..5 {
                let curl = ["far", "curl", "-sS", "--max-time", "2", &url];
                let answer = Lab::cluster(&curl).await.map_err(|error| error.to_string())?;
                far.insert(answer.split(' ').next().unwrap_or_default().to_owned());
            }
            expect(near.len() == 1 && far.len() == 1, (&near, &far))?;
            Ok((near.into_iter().next().unwrap(), far.into_iter().next().unwrap()))
        };
        let first = homes().await.unwrap();

        // Another gateway pod, that has never seen them, leads them there as well.
        let active = async || -> Option<Pod> {
            for pod in scene.gateways("web").await {
                let status = scene.status(&pod).await.ok()?;
                if status.election?.role == lb_svc_crds::gateway::Role::Active {
                    return Some(pod);
                }
            }
            None
        };
        let before = active().await.unwrap();
        scene.api::<Pod>().delete(&before.name_any(), &DeleteParams::default()).await.unwrap();
        until("another pod to be active", QUICK, async || {
            let now = active().await.ok_or("none")?;
            if now.uid() == before.uid() { Err("the same") } else { Ok(()) }
        })
        .await;
        assert_eq!(until("an answer", QUICK, homes).await, first);
        // A process that starts anew finds what there was.
        let now = active().await.unwrap();
        Lab::kill(&now.uid().unwrap(), "lb-svc-gateway").await.unwrap();
        assert_eq!(until("an answer", QUICK, homes).await, first);

        // Its pod goes: it moves, and stays there.
        scene.api::<Pod>().delete(&first.0, &DeleteParams::default().grace_period(0)).await.unwrap();
        let second = until("another home", QUICK, async || {
            let now = homes().await?;
            if now.0 == first.0 { Err(format!("{now:?}")) } else { Ok(now) }
        })
        .await;
        throughout("it stays", Duration::from_secs(2), async || {
            let now = homes().await?;
            expect(now.0 == second.0, now)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn policies_do_not_keep_the_gateway_from_pods_elsewhere() {
    scene("policies", async |scene| {
        let mut workload = backends("web", 1, &["tcp/80"]);
        on_the_first_node(&mut workload);
        scene.create::<Deployment>(workload).await;
        let mut object = web("web");
        elsewhere(&mut object, 1);
        object["spec"]["internalTrafficPolicy"] = "Local".into();
        object["spec"]["externalTrafficPolicy"] = "Local".into();
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        serves(ip).await;
        // What is not kept is said: whom the pods see.
        let (reason, message) = said(&scene, "web", "Limited").await.unwrap();
        assert_eq!(reason, "ClientAddressHidden", "{message}");
        let ready = said(&scene, "web", "GatewayReady").await.unwrap();
        assert!(ready.1.contains("internalTrafficPolicy"), "{ready:?}");
        assert!(scene.service("web").await.spec.unwrap().health_check_node_port.is_some_and(|port| port > 0));

        // Whoever insists on the ClusterIP is told what that costs.
        let annotations = json!({ DIRECT: "false" });
        scene.patch_service("web", json!({ "metadata": { "annotations": annotations } })).await;
        until("it to be said", QUICK, async || {
            let message = said(&scene, "web", "Limited").await.unwrap_or_default().1;
            expect(message.contains("internalTrafficPolicy"), message)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn pods_that_are_not_ready_are_served_on_request() {
    for back_end in BACK_ENDS {
        none_is_ready(back_end).await;
    }
}

async fn none_is_ready(back_end: &str) {
    scene(&format!("not-ready-{back_end}"), async |scene| {
        let mut workload = backends("web", 1, &["tcp/80"]);
        workload["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
            json!({ "tcpSocket": { "port": 81 }, "periodSeconds": 1 });
        scene.create::<Deployment>(workload).await;
        scene.create::<Service>(direct("web", &json!([port("TCP", 80, 80)]), back_end)).await;
        let ip = scene.address("web").await;
        until("nobody to be ready", QUICK, async || client::refused(ip, 80).await).await;
        scene.patch_service("web", json!({ "spec": { "publishNotReadyAddresses": true } })).await;
        serves(ip).await;
    })
    .await;
}

#[tokio::test]
async fn pods_that_fail_their_check_get_nothing_while_others_pass() {
    for back_end in BACK_ENDS {
        one_fails(back_end).await;
    }
}

async fn one_fails(back_end: &str) {
    scene(&format!("checked-{back_end}"), async |scene| {
        // Without probes both are ready, and one listens elsewhere.
        for (name, listens) in [("well", "tcp/80"), ("unwell", "tcp/8080")] {
            let mut workload = backends(name, 1, &[listens]);
            workload["spec"]["template"]["metadata"]["labels"]["tier"] = "web".into();
            scene.create::<Deployment>(workload).await;
        }
        let mut object = direct("web", &json!([port("TCP", 80, 80)]), back_end);
        object["spec"]["selector"] = json!({ "tier": "web" });
        for (name, value) in [
            ("", "http"),
            ("-path", "/healthz"),
            ("-interval", "200ms"),
            ("-timeout", "200ms"),
            ("-fall", "2"),
        ] {
            annotate(&mut object, &format!("lb-svc.kubeovn.io/health-check{name}"), value);
        }
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        let well = until("both to be ready", SLOW, async || {
            let (well, unwell) = (ready(&scene, "well").await, ready(&scene, "unwell").await);
            if well.len() + unwell.len() == 2 { Ok(well) } else { Err((well, unwell)) }
        })
        .await;
        let gateway = scene.gateway("web").await;
        until("the check to tell", QUICK, async || {
            let unhealthy = scene.status(&gateway).await.map_err(|error| error.to_string())?.unhealthy;
            expect(unhealthy.len() == 1, unhealthy)
        })
        .await;
        // It may have been told of one only.
        answered_by(ip, 80, &well).await;
        // Of twice as many as would do, none goes astray.
        let seen = client::answerers(ip, 80, 40).await.unwrap();
        assert_eq!(seen, well);
        until("nothing to be said", QUICK, async || {
            let said = said(&scene, "web", "Limited").await;
            expect(said.is_none(), said)
        })
        .await;

        // None is left that passes: all are used, and that is said.
        scale(&scene, "well", 0).await;
        until("it to be said", SLOW, async || {
            let said = said(&scene, "web", "Limited").await;
            expect(said.as_ref().is_some_and(|(reason, _)| reason == "AllUnhealthy"), said)
        })
        .await;
        scale(&scene, "well", 1).await;
        serves(ip).await;
        until("it to be over", SLOW, async || {
            let said = said(&scene, "web", "Limited").await;
            expect(said.is_none(), said)
        })
        .await;
    })
    .await;
}

/// Requests, each by a connection of its own, one every 5 ms, for as long as it
/// is not ended.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    fn begin(ip: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut requests = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                requests.spawn(client::get_within(SocketAddr::new(ip, 80), "/", Duration::from_secs(5)));
            }
            let results = requests.join_all().await;
            let sent = results.len();
            (sent, results.into_iter().filter_map(|result| Some(result.err()?.to_string())).collect())
        });
        Self { stop, task }
    }

    /// How many were sent, and why some failed.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A workload whose pods wait for the gate, or do not, and serve on for two
/// seconds.
async fn rolling(scene: &Scene, is_gated: bool, back_end: &str) -> IpAddr {
    let mut workload = backends("web", 3, &["tcp/80"]);
    lingering(&mut workload, 2);
    workload["spec"]["strategy"] = json!({ "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } });
    if is_gated {
        workload["spec"]["template"]["spec"]["readinessGates"] =
            json!([{ "conditionType": "lb-svc.kubeovn.io/ready" }]);
    }
    scene.create::<Deployment>(workload).await;
    scene.create::<Service>(direct("web", &json!([port("TCP", 80, 80)]), back_end)).await;
    let ip = scene.address("web").await;
    serves(ip).await;
    rolled(scene, 3).await;
    ip
}

/// Waits until all pods of the workload are as it says now.
async fn rolled(scene: &Scene, replicas: i32) {
    until("the workload to be rolled out", 2 * SLOW, async || {
        let now = scene.api::<Deployment>().get("web").await.map_err(|error| error.to_string())?;
        let status = now.status.unwrap_or_default();
        let counts = [status.updated_replicas, status.ready_replicas, status.replicas];
        let seen = status.observed_generation == now.metadata.generation;
        expect(seen && counts == [Some(replicas); 3], counts)
    })
    .await;
}

async fn roll(scene: &Scene) {
    let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "rolled": "once" } } } } });
    scene.api::<Deployment>().patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn a_roll_out_behind_the_gate_loses_nothing() {
    for back_end in BACK_ENDS {
        is_rolled_out(back_end).await;
    }
}

async fn is_rolled_out(back_end: &str) {
    scene(&format!("gate-{back_end}"), async |scene| {
        let ip = rolling(&scene, true, back_end).await;
        let before = ready(&scene, "web").await;
        let load = Load::begin(ip);
        roll(&scene).await;
        rolled(&scene, 3).await;
        until("the old pods to be gone", SLOW, async || {
            let pods: BTreeSet<String> = scene.pods("web").await.iter().map(ResourceExt::name_any).collect();
            expect(pods.is_disjoint(&before), pods)
        })
        .await;
        let (sent, failures) = load.end().await;
        assert!(sent > 500, "{sent}");
        assert_eq!(failures, [] as [&str; 0], "of {sent}");
        for pod in scene.pods("web").await {
            let conditions = pod.status.clone().unwrap_or_default().conditions.unwrap_or_default();
            let gate = conditions.into_iter().find(|condition| condition.type_ == "lb-svc.kubeovn.io/ready");
            let gate = gate.map(|condition| (condition.status, condition.reason.unwrap_or_default()));
            assert_eq!(gate, Some(("True".to_owned(), "Served".to_owned())), "{}", pod.name_any());
        }
    })
    .await;
}

/// What the gate is for: nobody tells the gateways, and the roll-out waits, or
/// does not.
#[tokio::test]
async fn without_a_controller_the_gate_holds_what_would_be_lost() {
    for is_gated in [true, false] {
        alone("gate-away", async |scene| {
            let ip = rolling(&scene, is_gated, "iptables").await;
            let before = ready(&scene, "web").await;
            let load = Load::begin(ip);
            without_controller(&scene.lab, async || {
                // They have to take the new pods.
                Lab::kubectl(&["uncordon", "-l", "kubernetes.io/hostname"]).await.unwrap();
                roll(&scene).await;
                if is_gated {
                    let new = until("a pod that waits", SLOW, async || {
                        let waits =
                            |pod: &Pod| is_true(pod, "ContainersReady") && !before.contains(&pod.name_any());
                        scene
                            .pods("web")
                            .await
                            .iter()
                            .find(|pod| waits(pod))
                            .map(ResourceExt::name_any)
                            .ok_or("none yet".to_owned())
                    })
                    .await;
                    throughout("it waits, and the others serve", Duration::from_secs(4), async || {
                        let now = ready(&scene, "web").await;
                        expect(now == before && !now.contains(&new), now)
                    })
                    .await;
                } else {
                    rolled(&scene, 3).await;
                    until("the old pods to be gone", SLOW, async || client::refused(ip, 80).await).await;
                }
            })
            .await;
            rolled(&scene, 3).await;
            until("the new pods to answer", SLOW, async || {
                let now = ready(&scene, "web").await;
                let seen = client::answerers(ip, 80, 30).await.map_err(|error| error.to_string())?;
                expect(seen == now && now.is_disjoint(&before), (seen, now))
            })
            .await;
            let (sent, failures) = load.end().await;
            eprintln!("gate: {is_gated}: {} of {sent} requests lost", failures.len());
            if is_gated {
                assert_eq!(failures, [] as [&str; 0], "of {sent}");
            } else {
                assert!(!failures.is_empty(), "none of {sent} is lost without the gate: it is for nothing");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_pod_that_nobody_is_led_to_passes_the_gate_at_once() {
    scene("gate-alone", async |scene| {
        let mut workload = backends("web", 1, &["tcp/80"]);
        workload["spec"]["template"]["spec"]["readinessGates"] =
            json!([{ "conditionType": "lb-svc.kubeovn.io/ready" }]);
        scene.create::<Deployment>(workload).await;
        until("it to be ready", SLOW, async || expect(ready(&scene, "web").await.len() == 1, "")).await;

        // A Service whose gateway cannot run holds the next one up for a while, and no longer.
        let mut object = direct("web", &json!([port("TCP", 80, 80)]), "iptables");
        annotate(&mut object, "lb-svc.kubeovn.io/node-selector", "{no: node}");
        scene.create::<Service>(object).await;
        scale(&scene, "web", 2).await;
        until("the second to be ready", SLOW, async || expect(ready(&scene, "web").await.len() == 2, ""))
            .await;
    })
    .await;
}
