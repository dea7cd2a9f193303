//! The README's example, step by step, on a cluster that nobody used before.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use lb_svc_e2e::objects::{PROVIDER, SUBNET, port};
use lb_svc_e2e::{Lab, QUICK, SLOW, Scene, client, expect, objects, repository, until, until_using};
use serde_json::{Value, json};

/// The lines of a command's output, spaces made single.
fn lines(output: &str) -> Vec<String> {
    output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn the_example_of_the_readme() {
    let scene = Scene::within("default".to_owned(), Lab::connect().await.unwrap());
    scene.shown(the_example(&scene)).await;
}

async fn the_example(scene: &Scene) {
    let lab = &scene.lab;
    let overlay = repository().join("e2e/examples");
    Lab::kubectl(&["apply", "-k", overlay.to_str().unwrap()]).await.unwrap();

    let address: IpAddr = "172.18.0.18".parse().unwrap();
    assert_eq!(scene.address("test-service").await, address);
    let pods = until("both backends answer", SLOW, async || {
        let pods = client::answerers(address, 80, 20).await.map_err(|error| error.to_string())?;
        if pods.len() == 2 { Ok(pods) } else { Err(format!("{pods:?}")) }
    })
    .await;
    assert!(pods.iter().all(|pod| pod.starts_with("dynamic-")), "{pods:?}");

    its_pod_says_so(scene).await;
    its_kernel_says_so(scene).await;
    until_using(lab, SUBNET, 1).await;
    let subnet = lb_svc_e2e::subnet(lab, SUBNET).await.status.unwrap();
    assert_eq!((subnet.v4_available_ips, subnet.v4_using_ip_range.as_str()), (65523, "172.18.0.18"));
    assert_eq!(subnet.v4_available_ip_range, "172.18.0.11-172.18.0.17,172.18.0.19-172.18.255.254");
    assert!(subnet.conditions.iter().all(|condition| condition.status == "True"), "{:?}", subnet.conditions);

    without_an_address_of_its_own(scene).await;

    Lab::kubectl(&["delete", "-f", repository().join("manifests/examples/service.yaml").to_str().unwrap()])
        .await
        .unwrap();
    scene.gone("test-service").await;
    client::refused(address, 80).await.unwrap();
    until_using(lab, SUBNET, 0).await;
    Lab::kubectl(&["delete", "deployment", "dynamic"]).await.unwrap();
}

async fn its_pod_says_so(scene: &Scene) {
    let pod = scene.gateway("test-service").await;
    let annotation = |key: &str| pod.annotations().get(key).cloned().unwrap_or_default();
    assert_eq!(annotation("k8s.v1.cni.cncf.io/networks"), "kube-system/lb-svc-attachment");
    let ours = |key: &str| annotation(&format!("{PROVIDER}.kubernetes.io/{key}"));
    for (key, value) in [
        ("allocated", "true"),
        ("cidr", "172.18.0.0/16"),
        ("gateway", "172.18.0.1"),
        ("ip_address", "172.18.0.18"),
        ("logical_switch", "attach-subnet"),
        ("pod_nic_type", "veth-pair"),
    ] {
        assert_eq!(ours(key), value, "{key}");
    }
    let link = scene.in_gateway("test-service", &["ip", "-j", "link", "show", "net1"]).await;
    let link: Value = serde_json::from_str(&link).unwrap();
    assert_eq!(link[0]["address"], ours("mac_address"), "the interface's real address");
    // The Deployment's labels are for people; its pods have none that the
    // selector of another object could meet by chance.
    let deployment = scene.api::<Deployment>().get("lb-svc-test-service").await.unwrap();
    for (label, value) in
        [("app", "lb-svc-test-service"), ("namespace", "default"), ("service", "test-service")]
    {
        assert_eq!(deployment.labels()[label], value);
        assert_eq!(pod.labels().get(label), None, "{label}");
    }
    let claim = &scene.claims().await[0];
    assert_eq!(claim.name_any(), "lb-svc-attachment.kube-system.172.18.0.18");
    until("the claim's mac", QUICK, async || {
        let claim = &scene.claims().await[0];
        expect(claim.spec.mac_address == ours("mac_address"), &claim.spec.mac_address)
    })
    .await;
}

async fn its_kernel_says_so(scene: &Scene) {
    let service = scene.service("test-service").await;
    let cluster_ip = service.spec.unwrap().cluster_ip.unwrap();
    assert_eq!(
        lines(&scene.in_gateway("test-service", &["ip", "rule"]).await),
        [
            "0: from all lookup local",
            "32763: from 172.18.0.18 lookup 100",
            "32764: from all iif eth0 lookup 100",
            "32765: from all iif net1 lookup 100",
            "32766: from all lookup main",
            "32767: from all lookup default",
        ]
    );
    let main = scene.in_gateway("test-service", &["ip", "-j", "route", "show", "default"]).await;
    let main: Value = serde_json::from_str(&main).unwrap();
    let next_hop = main[0]["gateway"].as_str().unwrap();
    assert_eq!(
        lines(&scene.in_gateway("test-service", &["ip", "route", "show", "table", "100"]).await),
        [
            "default via 172.18.0.1 dev net1".to_owned(),
            format!("{cluster_ip} via {next_hop} dev eth0"),
            "172.18.0.0/16 dev net1 scope link".to_owned(),
        ]
    );
    let nat = scene.in_gateway("test-service", &["iptables", "-t", "nat", "-S"]).await;
    let has = |parts: &[&str]| nat.lines().any(|rule| parts.iter().all(|part| rule.contains(part)));
    let to = format!("--to-destination {cluster_ip}:80");
    assert!(has(&["-d 172.18.0.18/32", "-p tcp", "--dport 80", "-j DNAT", &to]), "{nat}");
    assert!(has(&[&format!("-d {cluster_ip}/32"), "-j MASQUERADE"]), "{nat}");
    let version = scene.in_gateway("test-service", &["iptables", "--version"]).await;
    assert!(version.contains("nf_tables"), "{version}");
}

/// The first address, filled in, and an ingress that never lies: the first
/// request after it appears is answered.
async fn without_an_address_of_its_own(scene: &Scene) {
    let mut object = objects::service("dynamic-address", &json!([port("TCP", 80, 80)]));
    object["spec"]["selector"] = json!({ "app": "dynamic" });
    // Inside the cluster it is served before it asks for an address: what is
    // refused after that, the gateway refused.
    object["spec"]["type"] = "ClusterIP".into();
    let services: Api<Service> = scene.api();
    services.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    scene.answers_inside("dynamic-address", 80).await;
    scene.patch_service("dynamic-address", json!({ "spec": { "type": "LoadBalancer" } })).await;
    let address = scene.address("dynamic-address").await;
    client::get(address, 80).await.unwrap();
    assert_eq!(address.to_string(), "172.18.0.11");
    let spec = scene.service("dynamic-address").await.spec.unwrap();
    assert_eq!(spec.load_balancer_ip.as_deref(), Some("172.18.0.11"));

    let pod = scene.gateways("dynamic-address").await.remove(0);
    let programmed = pod.annotations()[&format!("{PROVIDER}.kubernetes.io/ip_address")].clone();
    assert_eq!(programmed, "172.18.0.11");
    services.delete("dynamic-address", &DeleteParams::default()).await.unwrap();
    scene.gone("dynamic-address").await;
}
