//! Services that cannot be served say why, hold up nobody, and are served by
//! themselves once the cause is gone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::DeleteParams;
use lb_svc_e2e::objects::{backends, web};
use lb_svc_e2e::{Lab, QUICK, SLOW, Scene, client, expect, scene, serves, until};
use serde_json::{Value, json};

/// Waits until a condition of the Service and an Event on it say this reason
/// and this word.
async fn says_why(scene: &Scene, service: &str, reason: &str, word: &str) {
    until(&format!("{service} to say {reason}"), SLOW, async || {
        let status = scene.service(service).await.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let events = scene.events(service).await;
        let said = conditions.iter().any(|condition| {
            condition.status == "False" && condition.reason == reason && condition.message.contains(word)
        });
        let told = events.iter().any(|(told, message)| told == reason && message.contains(word));
        expect(said && told, (conditions, events))
    })
    .await;
}

/// A Service of port 80 on the attachment `provider`.
fn on(provider: &str, name: &str) -> Value {
    let mut service = web(name);
    service["metadata"]["annotations"]["ovn.kubernetes.io/attachmentprovider"] = provider.into();
    service
}

async fn kubectl(args: &[&str]) -> String {
    Lab::kubectl(args).await.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Takes the Services away, then the Subnet that is named like the namespace.
async fn tidy(scene: &Scene, services: &[&str]) {
    for name in services {
        scene.api::<Service>().delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in services {
        scene.gone(name).await;
    }
    kubectl(&["delete", "subnet", &scene.namespace, "--timeout=20s"]).await;
}

#[tokio::test]
async fn a_gateway_that_pod_security_denies() {
    scene("denied", async |denied| {
        scene("beside", async move |beside| {
            let label = "pod-security.kubernetes.io/enforce";
            kubectl(&["label", "namespace", &denied.namespace, &format!("{label}=baseline")]).await;
            denied.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
            denied.create::<Service>(web("web")).await;
            beside.served("web", 1).await;
            says_why(&denied, "web", "PodRefused", "NET_ADMIN").await;
            kubectl(&["label", "namespace", &denied.namespace, &format!("{label}-")]).await;
            serves(denied.address("web").await).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_no_node_takes() {
    scene("nowhere", async |scene| {
        let label = format!("example.com/{}", scene.namespace);
        let mut nowhere = web("nowhere");
        nowhere["metadata"]["annotations"]["lb-svc.kubeovn.io/node-selector"] =
            json!({ &label: "yes" }).to_string().into();
        nowhere["spec"]["selector"] = json!({ "app": "web" });
        scene.create::<Service>(nowhere).await;
        scene.served("web", 1).await;
        says_why(&scene, "nowhere", "Unschedulable", "node").await;
        let nodes = kubectl(&["get", "nodes", "-o", "name"]).await;
        let node = nodes.lines().last().unwrap();
        kubectl(&["label", node, &format!("{label}=yes")]).await;
        let ip = scene.address("nowhere").await;
        kubectl(&["label", node, &format!("{label}-")]).await;
        serves(ip).await;
    })
    .await;
}

#[tokio::test]
async fn a_full_subnet_and_an_address_that_is_freed() {
    scene("full", async |scene| {
        let ns = scene.namespace.as_str();
        let provider = format!("small.{ns}");
        scene
            .attach(
                "small",
                "cidrBlock: 172.31.60.0/29, gateway: 172.31.60.1, excludeIps: [172.31.60.3..172.31.60.6]",
            )
            .await;
        scene.create::<Service>(on(&provider, "first")).await;
        let ip = scene.address("first").await;
        scene.create::<Service>(on(&provider, "second")).await;
        scene.served("beside", 1).await;
        says_why(&scene, "second", "SubnetFull", ns).await;
        scene.api::<Service>().delete("first", &DeleteParams::default()).await.unwrap();
        assert_eq!(scene.address("second").await, ip, "what was freed");

        scene.create::<Service>(on(&provider, "third")).await;
        says_why(&scene, "third", "SubnetFull", ns).await;
        let wider = json!({ "spec": { "excludeIps": ["172.31.60.4..172.31.60.6"] } }).to_string();
        kubectl(&["patch", "subnet", ns, "--type=merge", "-p", &wider]).await;
        assert_eq!(scene.address("third").await.to_string(), "172.31.60.3", "what was added");
        tidy(&scene, &["second", "third"]).await;
    })
    .await;
}

/// An attachment `lan` of this namespace to `master`.
async fn attachment(namespace: &str, master: &str) {
    let config = json!({ "cniVersion": "0.3.0", "type": "macvlan", "master": master, "mode": "bridge" });
    let manifest = json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": "lan", "namespace": namespace },
        "spec": { "config": config.to_string() },
    });
    Lab::apply(&manifest.to_string()).await.unwrap();
}

async fn on_every_node(command: &[&str]) {
    let nodes = kubectl(&["get", "nodes", "-o", "name"]).await.lines().count();
    for node in 1..=nodes {
        Lab::cluster(&[&["node", &node.to_string()], command].concat()).await.unwrap();
    }
}

/// The Subnet comes first, then an attachment to an interface that no node
/// has; then they have it; then it is another, and at last the attachment goes
/// and comes back.
#[tokio::test]
async fn an_attachment_is_missing_wrong_changed_deleted_and_made_again() {
    scene("attachment", async |scene| {
        let ns = scene.namespace.as_str();
        let subnet = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": ns },
            "spec": { "provider": format!("lan.{ns}"), "cidrBlock": "172.29.9.0/24", "gateway": "172.29.9.1" },
        });
        Lab::apply(&subnet.to_string()).await.unwrap();
        Lab::cluster(&["client", "ip", "addr", "replace", "172.29.9.9/24", "dev", "eth0"]).await.unwrap();
        scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
        scene.create::<Service>(on(&format!("lan.{ns}"), "web")).await;
        says_why(&scene, "web", "AttachmentNotFound", "lan").await;

        attachment(ns, "lan9").await;
        scene.served("beside", 1).await;
        says_why(&scene, "web", "FailedCreatePodSandBox", "lan9").await;

        on_every_node(&["ip", "link", "add", "lan9", "link", "eth0", "type", "macvlan", "mode", "bridge"]).await;
        on_every_node(&["ip", "link", "set", "lan9", "up"]).await;
        let ip = scene.address("web").await;
        serves(ip).await;

        let pod = scene.gateway("web").await;
        attachment(ns, "eth0").await;
        let pod = scene.replaced("web", &pod).await;
        on_every_node(&["ip", "link", "del", "lan9"]).await;
        serves(ip).await;

        kubectl(&["delete", "-n", ns, "network-attachment-definition", "lan"]).await;
        says_why(&scene, "web", "AttachmentNotFound", "lan").await;
        client::get(ip, 80).await.unwrap();
        attachment(ns, "eth0").await;
        until("it is well again", QUICK, async || {
            let conditions = scene.service("web").await.status.unwrap_or_default().conditions.unwrap_or_default();
            expect(conditions.iter().all(|condition| condition.status == "True"), conditions)
        })
        .await;
        assert_eq!(scene.gateway("web").await.uid(), pod.uid(), "nor is it rolled");
        assert_eq!(scene.ingress("web").await, [ip]);
        client::get(ip, 80).await.unwrap();
        tidy(&scene, &["web"]).await;
        Lab::cluster(&["client", "ip", "addr", "del", "172.29.9.9/24", "dev", "eth0"]).await.unwrap();
    })
    .await;
}

/// The cluster's Multus lets a pod have attachments of its own namespace and
/// of kube-system.
#[tokio::test]
async fn an_attachment_that_multus_bars() {
    scene("theirs", async |theirs| {
        scene("barred", async move |scene| {
            theirs.attach("lan", "cidrBlock: 172.29.10.0/24, gateway: 172.29.10.1").await;
            scene.create::<Deployment>(backends("web", 1, &["tcp/80"])).await;
            scene.create::<Service>(on(&format!("lan.{}", theirs.namespace), "web")).await;
            scene.served("beside", 1).await;
            says_why(&scene, "web", "FailedCreatePodSandBox", "namespace isolation").await;
            let provider = on(lb_svc_e2e::objects::PROVIDER, "web")["metadata"]["annotations"].clone();
            scene.patch_service("web", json!({ "metadata": { "annotations": provider } })).await;
            serves(scene.address("web").await).await;
            scene.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
            scene.gone("web").await;
            kubectl(&["delete", "subnet", &theirs.namespace, "--timeout=20s"]).await;
        })
        .await;
    })
    .await;
}
