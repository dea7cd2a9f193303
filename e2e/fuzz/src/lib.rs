//! Everything that reads what others write, as functions of bytes: objects of the
//! API server, files, a gateway's answers, frames of the LAN.
//!
//! Each may refuse its input. None may panic, and what is kept of an input stays
//! within the bounds that its reader promises. `make fuzz` has libFuzzer look for
//! inputs that break that; the test `inputs` tries the seeds and random changes of
//! them.

use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubectl_lb_svc::cluster::Cluster;
use kubectl_lb_svc::view::View;
use kubectl_lb_svc::{documents, render, screens};
use lb_svc_controller::config_file;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::model::{MESSAGE_MAX, StatusReport};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::plan::plan;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::seal::{PrivateKey, Seal};
use lb_svc_election::frame::{self, Frame};
use lb_svc_election::{Instance, Kind};
use lb_svc_gateway::link::network_status;
use lb_svc_gateway::{config, l2::arp};

/// One reader, and inputs that it takes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Reads one input. Panics if a promise is broken.
    pub read: fn(&[u8]),
    /// Inputs to begin with, which are taken.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The most bytes of a condition's message (Kubernetes API: `metav1.Condition`).
const CONDITION_MAX: usize = 32_768;
/// The most bytes of a ConfigMap's content (Kubernetes API).
const CONFIG_MAX: usize = 1 << 20;
/// More is not kept of what a pod answers.
const STATUS_MAX: usize = 1 << 20;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "objects", read: objects, seeds: || vec![CLUSTER.into(), OBJECTS.into()] },
    Target { name: "status", read: status, seeds: || vec![STATUS.into()] },
    Target { name: "config-file", read: config_file, seeds: || vec![CONFIG_FILE.into()] },
    Target { name: "gateway-config", read: gateway_config, seeds: || vec![GATEWAY_CONFIG.into()] },
    Target { name: "seal", read: seal, seeds: || vec![sealed().into()] },
    Target { name: "network-status", read: network_status, seeds: || vec![NETWORKS.into()] },
    Target { name: "election-frame", read: election_frame, seeds: || vec![member().seal(&frame())] },
    Target { name: "arp", read: arp, seeds: || vec![arp::probe([2; 6], [172, 18, 0, 18].into()).into()] },
];

const CLUSTER: &str = include_str!("../../../controller/kubectl-lb-svc/tests/golden/cluster.yaml");
const OBJECTS: &str = include_str!("../../../controller/kubectl-lb-svc/tests/golden/objects.yaml");
const STATUS: &str = include_str!("../../../crds/tests/golden/status.json");
const GATEWAY_CONFIG: &str = include_str!("../../../crds/tests/golden/config-5.json");
const NETWORKS: &str = r#"[{"name": "cbr0", "interface": "eth0", "ips": ["10.16.0.5"], "default": true},
{"name": "kube-system/lan", "interface": "net1", "mac": "02:00:00:00:00:18"}]"#;
const CONFIG_FILE: &str = "gateway:
  image: registry.example.com/lb-svc-gateway:1.0
  imagePullSecrets: [{name: registry}]
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  nodeSelector: {example.com/lan: 'true'}
  tolerations: [{key: example.com/edge, operator: Exists}]
  affinity: {}
  priorityClassName: system-cluster-critical
  replicas: 2
fillAddress: false
serviceMaySet: [resources, nodeSelector, affinity, replicas]
serviceLimits: {replicas: 8, cpu: '1', memory: 512Mi}
keptAddressesPerNamespace: 8
addressesPerNamespace: 100
";

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Objects of a cluster: the controller's readers, its index and its plan of each
/// Service and Subnet, and all screens of the kubectl plugin.
fn objects(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let mut cluster = Cluster { now: Timestamp::UNIX_EPOCH, ..Cluster::default() };
    // What was read before the error stays.
    let _ = documents::add(&mut cluster, text, "default");
    let view = View::of(&cluster);
    for gateway in view.gateways(None) {
        within_bounds(&gateway.observed);
    }
    let traces = cluster.services.iter().map(|service| screens::trace(&view, service));
    let all = [
        screens::status(&view, None),
        screens::services(&view, None, false),
        screens::subnets(&view),
        screens::gateways(&view, None),
        screens::drain(&view, None, "n1"),
    ];
    for screen in all.into_iter().chain(traces) {
        let text = render::text(&screen, false);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(serde_json::from_str::<serde_json::Value>(&render::json(&screen)).is_ok());
    }
    drop(view);
    screens::check(cluster);
}

/// Plans, and checks that the API server takes what would be written.
fn within_bounds(observed: &Observed) {
    for action in plan(observed).steps() {
        match action {
            Action::SetStatus { conditions, .. } => {
                assert!(conditions.iter().all(|condition| condition.message.len() <= CONDITION_MAX));
            }
            Action::WriteConfig(content) => assert!(content.len() <= CONFIG_MAX),
            Action::AnnotatePod { annotations, .. } => {
                assert!(annotations.iter().all(|(name, value)| name.len() + value.len() <= MESSAGE_MAX));
            }
            _ => {}
        }
    }
}

/// What a pod answers at `/status`: as the controller keeps it, and what it plans then.
fn status(input: &[u8]) {
    let Ok(status) = serde_json::from_slice::<GatewayStatus>(input) else { return };
    let kept = serde_json::to_vec(&status).map_or(0, |text| text.len());
    assert!(kept <= STATUS_MAX, "{kept} bytes are kept");
    let mut cluster = Cluster { now: Timestamp::UNIX_EPOCH, ..Cluster::default() };
    documents::add(&mut cluster, CLUSTER, "default").unwrap_or_else(|error| panic!("the seed: {error:#}"));
    let view = View::of(&cluster);
    for gateway in view.gateways(None) {
        let mut observed = view.index.observe(&gateway_of(&gateway.service), Instant::now());
        for pod in &mut observed.gateway.pods {
            pod.report = StatusReport::Reported(Box::new(status.clone()));
        }
        within_bounds(&observed);
    }
}

/// The controller's own file, as an operator may have written it.
fn config_file(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    for apart in [false, true] {
        if let Err(error) = config_file::parse(text, "image", apart) {
            assert!(!error.is_empty());
        }
    }
}

/// The gateway's configuration, once its signature is verified.
fn gateway_config(input: &[u8]) {
    if let Ok(config) = config::parse(input) {
        let services = config::services(&config.forwards);
        assert!(services.len() <= config.forwards.len());
    }
}

/// A key that only this crate has.
fn key() -> PrivateKey {
    PrivateKey::from_seed(&[7; 32]).unwrap_or_else(|| unreachable!("a seed has 32 bytes"))
}

/// The only seal that was ever signed by it.
fn sealed() -> String {
    key().sign(&Seal::of_config("gateway", 1, b"{}"))
}

/// The seal on a configuration: only what was signed is valid.
fn seal(input: &[u8]) {
    let parsed = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    if let Ok(opened) = Seal::open(input, &[key().public()]) {
        let fields = |text: &[u8]| parsed(text).map(|it| (it["payload"].clone(), it["signature"].clone()));
        assert_eq!(fields(input), fields(sealed().as_bytes()), "{opened:?} was not signed");
    }
}

/// Multus's report of the pod's interfaces.
fn network_status(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Ok(networks) = network_status::parse(text)
        && let Err(fault) = network_status::lan(&networks, "kube-system/lan")
    {
        assert!(!fault.to_string().is_empty());
    }
}

/// What frames of one gateway's members are sealed by.
fn member() -> frame::Seal {
    frame::Seal::new([1; 16], &[2; 32])
}

/// The only frame that a member ever sent.
fn frame() -> Frame {
    Frame {
        kind: Kind::Advertisement,
        instance: Instance([3; 16]),
        sequence: 4,
        term: 5,
        successor: Some(Instance([6; 16])),
        interval: Duration::from_millis(50),
        priority: NonZeroU8::MIN,
        name: "lb-svc-web-1".to_owned(),
        acks: vec![(Instance([6; 16]), 7)],
    }
}

/// A payload of the election's EtherType: only what a member sent is opened.
fn election_frame(input: &[u8]) {
    if let Ok(opened) = member().open(input) {
        assert_eq!(opened, frame());
    }
}

/// A frame of the LAN.
fn arp(input: &[u8]) {
    if let Some(frame) = arp::Frame::parse(input) {
        assert_eq!(arp::parse_mac(&arp::format_mac(frame.mac)), Some(frame.mac));
    }
}
