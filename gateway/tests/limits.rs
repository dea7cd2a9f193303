//! What the gateway reports and serves on with: it takes a minute to be sure. Needs root;
//! `make netns` runs it, once, for the NAT back end does not matter.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::time::{Duration, Instant};

use lab::{CLUSTER_IP, Lab, VIP, address, config, wait_for};
use lb_svc_gateway::l2::socket::{ArpFilter, PolledReceiver};
use serde_json::json;

/// Longer than a minute, after which silence is reported.
const SILENCE: Duration = Duration::from_secs(90);

#[test]
fn r27_backends_that_nothing_is_heard_of_are_reported() {
    let lab = Lab::new();
    lab.node.run(&format!("iptables -A INPUT -d {CLUSTER_IP} -j DROP"));
    let gateway = lab.serving(&config(&[("TCP", 80), ("TCP", 81), ("UDP", 53)]));
    let limit = || gateway.status()?.limits.get("BackendsUnreachable").cloned();
    let (said, after) = wait_for(SILENCE, "the limit", limit);
    assert!(said.contains(CLUSTER_IP), "{said}");
    assert!(after > Duration::from_secs(50), "{after:?}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 200, "it is a limit, and no fault");
    // One port is enough, be it that it refuses.
    lab.node.run(&format!("iptables -I INPUT -d {CLUSTER_IP} -p tcp --dport 81 -j ACCEPT"));
    wait_for(Duration::from_secs(20), "the limit to be gone", || {
        gateway.status()?.limits.is_empty().then_some(())
    });
}

#[test]
fn b16_router_that_does_not_answer_is_reported() {
    let lab = Lab::new();
    let mut config = config(&[("TCP", 80)]);
    config["addresses"][0]["gateway"] = json!("172.18.0.77");
    let filter = ArpFilter { senders: Vec::new(), targets: vec!["172.18.0.77".parse().unwrap()] };
    let asked = lab.client.enter(|| PolledReceiver::arp("eth0", &filter)).unwrap();
    let gateway = lab.serving(&config);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    let limit = || gateway.status()?.limits.get("RouterSilent").cloned();
    let (said, after) = wait_for(SILENCE, "the limit", limit);
    assert!(said.contains("172.18.0.77") && said.contains("cidrBlock"), "{said}");
    assert!(after > Duration::from_secs(50), "{after:?}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 200, "it is a limit, and no fault");
    let number = asked.receive().count();
    assert!((5..=8).contains(&number), "one every ten seconds, not {number}");
    // With the first answer it is gone.
    lab.client.run("ip addr add 172.18.0.77/16 dev eth0");
    wait_for(Duration::from_secs(20), "the limit to be gone", || {
        gateway.status()?.limits.is_empty().then_some(())
    });
}

#[test]
fn b17_host_that_answers_beside_the_gateway_is_reported() {
    let lab = Lab::new();
    // As a node with the address on kube-ipvs0.
    lab.router.run(&format!("ip addr add {VIP}/32 dev lo"));
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let (said, _) = wait_for(Duration::from_secs(40), "the limit", || {
        gateway.status()?.limits.get("AddressAnsweredTwice").cloned()
    });
    let mac = said.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap();
    assert!(lab.router.run("ip link show eth0").contains(mac) && said.contains("strictARP"), "{said}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 200, "it is a limit, and no fault");
}

#[test]
fn r10_unconfirmed_config_takes_no_address_that_another_host_has() {
    let lab = Lab::new();
    lab.client.run(&format!("ip addr add {VIP}/32 dev eth0"));
    let mut config = config(&[("TCP", 80)]);
    config["addresses"].as_array_mut().unwrap().push(address("172.18.0.19"));
    let digest = lab.put_back(&config);
    let gateway = lab.start();
    assert!(gateway.fault("AddressConflict").contains(VIP));
    // For longer than a confirmed one waits.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        let status = gateway.status().unwrap();
        assert_eq!(status.conflicts.keys().map(ToString::to_string).collect::<Vec<_>>(), [VIP]);
        assert!(!lab.pod.run("ip -4 addr show dev net1").contains(VIP));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(lab.pod.run("ip -4 addr show dev net1").contains("172.18.0.19"), "nobody else has it");
    lab.confirm(&digest);
    gateway.carried_out(&digest);
    assert!(lab.pod.run("ip -4 addr show dev net1").contains(VIP));
}
