//! Services at the nodes' own addresses, by kube-proxy and without a pod. With a
//! controller of their own, whose configuration allows it: these run alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use lb_svc_e2e::objects::{backends, on_the_first_node, port};
use lb_svc_e2e::{
    Controller, Lab, Proxy, QUICK, SLOW, Scene, client, expect, scale_controller, scene, serves, throughout,
    until, with_controller,
};
use serde_json::{Value, json};

/// The label of nodes that load balancers leave out (Kubernetes API).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// How soon what changed is in the status. On a machine with all tests' load.
const SOON: Duration = Duration::from_secs(2);

/// A controller beside the cluster, and what it writes.
struct Beside {
    scene: Arc<Scene>,
    proxy: Proxy,
    configuration: PathBuf,
    controller: Option<Controller>,
}

impl Beside {
    /// Starts the controller anew with this configuration.
    async fn configure(&mut self, configuration: &str) {
        if let Some(controller) = self.controller.take() {
            controller.stop().await.unwrap();
        }
        std::fs::write(&self.configuration, configuration).unwrap();
        let file: &Path = &self.configuration;
        self.controller = Some(Controller::start_with(self.proxy.kubeconfig(), Some(file)).unwrap());
    }

    /// Services of the test's namespace may have some ports.
    fn allowed(&self) -> String {
        format!("nodeMode: {{namespaces: [{}], ports: '22,80,8080-8089'}}", self.scene.namespace)
    }

    /// What it wrote that is neither a claim, nor a status, nor an Event.
    fn other_writes(&self) -> Vec<String> {
        let others = self.proxy.writes().into_iter().filter(|write| !write.is_event());
        let others = others.filter(|write| {
            !write.target.contains("/ips")
                && !write.target.contains("/status")
                && !write.target.contains("/leases")
        });
        others.map(|write| format!("{} {}", write.method, write.target)).collect()
    }
}

/// Runs `test` beside a controller whose configuration lets the test's namespace use
/// node addresses; afterwards everything of it is gone and all is as usual.
async fn at_nodes(name: &str, test: impl AsyncFnOnce(&mut Beside)) {
    scene(name, async |scene| {
        scale_controller(&scene.lab, 0).await;
        let configuration = std::env::temp_dir().join(format!("{}.yaml", scene.namespace));
        let proxy = Proxy::start(scene.client()).await.unwrap();
        let mut beside = Beside { scene: Arc::clone(&scene), proxy, configuration, controller: None };
        let allowed = beside.allowed();
        beside.configure(&allowed).await;
        let outcome = AssertUnwindSafe(test(&mut beside)).catch_unwind().await;
        let params = (DeleteParams::default(), ListParams::default());
        scene.api::<Service>().delete_collection(&params.0, &params.1).await.unwrap();
        let freed = tokio::time::timeout(QUICK, async {
            while !scene.claims().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let freed = freed.await;
        drop(beside.controller.take());
        std::fs::remove_file(&beside.configuration).ok();
        with_controller(&scene.lab).await;
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        freed.unwrap_or_else(|_| panic!("ports of deleted Services are not given back"));
    })
    .await;
}

/// A Service of the nodes' class.
fn web(name: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|number| port("TCP", *number, 80)).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "lb-svc.kubeovn.io/node",
            "allocateLoadBalancerNodePorts": false, "selector": { "app": "web" }, "ports": ports,
        },
    })
}

/// The internal addresses of the nodes that serve, by their names: control planes of
/// kubeadm, and so of kind, are excluded.
async fn nodes(scene: &Scene) -> Vec<(String, IpAddr)> {
    let nodes: Api<Node> = Api::all(scene.client());
    let excluded = |node: &Node| node.labels().contains_key(EXCLUDED);
    let nodes = nodes.list(&ListParams::default()).await.unwrap().items.into_iter();
    let nodes = nodes.filter(|node| !excluded(node));
    let internal = |node: &Node| {
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        addresses.iter().find(|address| address.type_ == "InternalIP")?.address.parse().ok()
    };
    nodes.map(|node| (node.name_any(), internal(&node).unwrap())).collect()
}

async fn shows(scene: &Scene, name: &str, wanted: &[IpAddr], within: Duration) {
    let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
    until(&format!("{name} at {wanted:?}"), within, async || {
        let shown: BTreeSet<IpAddr> = scene.ingress(name).await.into_iter().collect();
        expect(shown == wanted, shown)
    })
    .await;
}

/// Waits until a condition of a Service has this reason, and returns its message.
async fn said(scene: &Scene, name: &str, kind: &str, reason: &str) -> String {
    until(&format!("{name}: {reason}"), QUICK, async || {
        let status = scene.service(name).await.status.unwrap_or_default();
        let kind = format!("lb-svc.kubeovn.io/{kind}");
        let conditions = status.conditions.unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition.type_ == kind);
        let found = found.filter(|condition| condition.reason == reason);
        found.map(|condition| condition.message).ok_or("another, or none")
    })
    .await
}

async fn not_served(scene: &Scene, name: &str, reason: &str) -> String {
    let message = said(scene, name, "NodeAddressesReady", reason).await;
    assert_eq!(scene.ingress(name).await, [] as [IpAddr; 0], "{message}");
    message
}

/// The nodes that the Service's pods are on.
async fn nodes_of(scene: &Scene) -> BTreeSet<String> {
    let pods = scene.pods("web").await.into_iter();
    pods.filter_map(|pod: Pod| pod.spec?.node_name).collect()
}

/// Each node answers at its own address, and with policy Local only those with an
/// endpoint, whose pods see the client.
async fn served_at_every_node(scene: &Scene) {
    scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
    scene.create::<Service>(web("web", &[80])).await;
    let nodes = nodes(scene).await;
    let all: Vec<IpAddr> = nodes.iter().map(|(_, address)| *address).collect();
    shows(scene, "web", &all, QUICK).await;
    for address in &all {
        serves(*address).await;
    }
    let here = UdpSocket::bind("0.0.0.0:0").unwrap();
    here.connect((all[0], 80)).unwrap();
    let me = here.local_addr().unwrap().ip().to_string();
    scene.patch_service("web", json!({ "spec": { "externalTrafficPolicy": "Local" } })).await;
    let on = nodes_of(scene).await;
    let local: Vec<IpAddr> =
        nodes.iter().filter(|(name, _)| on.contains(name)).map(|(_, address)| *address).collect();
    assert_eq!(local.len(), 1);
    shows(scene, "web", &local, QUICK).await;
    until("the client's own address to be seen", QUICK, async || {
        let answer = client::get(local[0], 80).await.map_err(|error| error.to_string())?;
        expect(answer.contains(&me), answer)
    })
    .await;
}

#[tokio::test]
async fn nodes_serve_without_a_pod() {
    at_nodes("nodes", async |beside| {
        let scene = Arc::clone(&beside.scene);
        served_at_every_node(&scene).await;
        assert_eq!(beside.other_writes(), [] as [&str; 0]);

        let scale = async |replicas: u32| {
            let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
            scene.api::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
        };
        scale(0).await;
        not_served(&scene, "web", "NoNodeAddress").await;
        scale(1).await;
        let all: Vec<IpAddr> = nodes(&scene).await.into_iter().map(|(_, address)| address).collect();
        scene.patch_service("web", json!({ "spec": { "externalTrafficPolicy": "Cluster" } })).await;
        shows(&scene, "web", &all, QUICK).await;
        serves(all[0]).await;

        // A Service that asks by annotation, and takes that back.
        let mut asks = web("asks", &[8080]);
        asks["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
        asks["metadata"]["annotations"] = json!({ "lb-svc.kubeovn.io/mode": "node" });
        scene.create::<Service>(asks).await;
        shows(&scene, "asks", &all, QUICK).await;
        let none = json!({ "metadata": { "annotations": { "lb-svc.kubeovn.io/mode": null } } });
        scene.patch_service("asks", none).await;
        shows(&scene, "asks", &[], QUICK).await;
        until("its port to be free", QUICK, async || {
            let held: Vec<String> = scene.claims().await.iter().map(ResourceExt::name_any).collect();
            expect(held == ["node.all.tcp-80"], held)
        })
        .await;

        // Who may no longer is taken out.
        beside.configure("nodeMode: {ports: '80'}").await;
        let message = not_served(&scene, "web", "NodeModeNotAllowed").await;
        assert!(message.contains("nodeMode.namespaces"), "{message}");
        assert_eq!(beside.other_writes(), [] as [&str; 0]);
    })
    .await;
}

#[tokio::test]
async fn port_that_is_not_to_be_had_is_told_and_not_served() {
    at_nodes("nodes-ports", async |beside| {
        let scene = Arc::clone(&beside.scene);
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        scene.create::<Service>(web("web", &[80])).await;
        let nodes = nodes(&scene).await;
        let all: Vec<IpAddr> = nodes.iter().map(|(_, address)| *address).collect();
        shows(&scene, "web", &all, QUICK).await;
        serves(all[0]).await;

        scene.create::<Service>(web("late", &[8080, 80])).await;
        let message = not_served(&scene, "late", "PortInUse").await;
        assert!(message.contains(&format!("{}/web", scene.namespace)), "{message}");
        scene.create::<Service>(web("ssh", &[22])).await;
        not_served(&scene, "ssh", "PortReserved").await;
        scene.create::<Service>(web("odd", &[9999])).await;
        let message = not_served(&scene, "odd", "NodeModeNotAllowed").await;
        assert!(message.contains("nodeMode.ports"), "{message}");
        let mut both = web("both", &[8081]);
        both["metadata"]["annotations"] =
            json!({ "ovn.kubernetes.io/attachmentprovider": "lb-svc-attachment.kube-system" });
        scene.create::<Service>(both).await;
        not_served(&scene, "both", "NodeModeContradicted").await;
        throughout("no node serves what is refused", Duration::from_secs(1), async || {
            client::refused(all[0], 8080).await
        })
        .await;
        assert_eq!(beside.other_writes(), [] as [&str; 0]);

        // The port comes free, for all of the other Service's ports at once.
        scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
        shows(&scene, "late", &all, QUICK).await;
        until("port 8080", QUICK, async || client::get(all[0], 8080).await).await;

        // A pod of the node's network publishes a port there.
        let (name, address) = &nodes[nodes.len() - 1];
        let mut pod = backends("edge", 1, &["tcp/8080=web"]);
        pod["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["template"]["spec"]["nodeName"] = json!(name);
        scene.create::<Deployment>(pod).await;
        let rest: Vec<IpAddr> = all.iter().copied().filter(|other| other != address).collect();
        shows(&scene, "late", &rest, SLOW).await;
        let message = said(&scene, "late", "Limited", "PortInUse").await;
        assert!(message.contains(name), "{message}");
        until("the pod itself", SLOW, async || {
            let answer = client::get(*address, 8080).await.map_err(|error| error.to_string())?;
            expect(!answer.starts_with("web-"), answer)
        })
        .await;
    })
    .await;
}

/// A node's Ready condition, as the cluster's own controller writes it of one that dies.
async fn call_ready(scene: &Scene, node: &str, status: &str) {
    let nodes: Api<Node> = Api::all(scene.client());
    let condition = json!({ "type": "Ready", "status": status, "reason": "ATest", "message": "",
        "lastHeartbeatTime": null, "lastTransitionTime": null });
    let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    nodes.patch_status(node, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn node_that_dies_leaves_the_status_at_once() {
    at_nodes("nodes-die", async |beside| {
        let scene = Arc::clone(&beside.scene);
        let mut workload = backends("web", 1, &["tcp/80"]);
        on_the_first_node(&mut workload);
        scene.create::<Deployment>(workload).await;
        scene.create::<Service>(web("web", &[80])).await;
        let nodes = nodes(&scene).await;
        let all: Vec<IpAddr> = nodes.iter().map(|(_, address)| *address).collect();
        shows(&scene, "web", &all, QUICK).await;
        let (name, address) = nodes.iter().find(|(name, _)| name != Lab::first_node()).unwrap();
        let rest: Vec<IpAddr> = all.iter().copied().filter(|other| other != address).collect();
        let number = Lab::number(name);
        Lab::cluster(&["kubelet-stop", &number]).await.unwrap();
        let tested = AssertUnwindSafe(async {
            call_ready(&scene, name, "Unknown").await;
            shows(&scene, "web", &rest, SOON).await;
            for address in &rest {
                serves(*address).await;
            }
        });
        let outcome = tested.catch_unwind().await;
        Lab::cluster(&["kubelet-start", &number]).await.unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        shows(&scene, "web", &all, SLOW).await;

        let nodes: Api<Node> = Api::all(scene.client());
        let label = |value: Value| json!({ "metadata": { "labels": { EXCLUDED: value } } });
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(label("".into()))).await.unwrap();
        let excluded = AssertUnwindSafe(shows(&scene, "web", &rest, SOON));
        let outcome = excluded.catch_unwind().await;
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(label(Value::Null))).await.unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        shows(&scene, "web", &all, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn local_kube_proxy_serves_in_its_iptables_mode_as_well() {
    at_nodes("nodes-iptables", async |beside| {
        let scene = Arc::clone(&beside.scene);
        Lab::cluster(&["proxy-mode", "iptables"]).await.unwrap();
        let outcome = AssertUnwindSafe(served_at_every_node(&scene)).catch_unwind().await;
        let rules = Lab::cluster(&["node", "1", "iptables-save", "-t", "nat"]).await;
        Lab::cluster(&["proxy-mode", "nftables"]).await.unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let rules = rules.unwrap();
        let serves = |address: &IpAddr, rule: &str| {
            rule.contains(&format!("-d {address}/32")) && rule.contains("-j KUBE-EXT-")
        };
        let shown = scene.ingress("web").await;
        let served = shown.iter().all(|address| rules.lines().any(|rule| serves(address, rule)));
        assert!(served && !shown.is_empty(), "{shown:?} not by iptables:\n{rules}");
    })
    .await;
}
