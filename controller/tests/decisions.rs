//! What docs/dev/regressions.md promises and no other test shows, on the controller's
//! decisions: index, plan and allocator, with a world that does what the plan says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use k8s_openapi::api::core::v1 as core;
use lb_svc_controller::api_server::read;
use lb_svc_controller::api_server::write::typed;
use lb_svc_controller::index::Index;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::ipam::{self, AddressRequest, AllocationError, Allocator, Pool, Reservation};
use lb_svc_core::model::{
    Attachment, Condition, DeploymentState, GatewayLocation, GatewayRef, OwnedObject, Pod, ServiceId,
    ServiceRef, StatusReport, Subnet,
};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::conditions::{FailedWrite, GATEWAY_READY, LIMITED};
use lb_svc_core::service::plan::plan;
use lb_svc_core::testing;
use lb_svc_crds::gateway::{GatewayConfig, GatewayStatus};
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::{IP, SubnetSpec};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
const NAME: &str = "web";

fn key() -> ServiceRef {
    ServiceRef::new(NAMESPACE, NAME)
}

fn gateway() -> GatewayLocation {
    GatewayLocation { gateway: GatewayRef::Dedicated(key()), namespace: NAMESPACE.to_owned() }
}

fn provider(name: &str) -> Provider {
    Provider { name: name.to_owned(), namespace: "kube-system".to_owned() }
}

fn subnet(provider: &Provider, cidr: &str) -> Subnet {
    let mut subnet = testing::subnet(cidr);
    subnet.spec.provider = provider.to_string();
    subnet
}

fn child<T>(uid: &str, content: T) -> OwnedObject<T> {
    OwnedObject {
        uid: uid.into(),
        resource_version: "1".into(),
        deleting: false,
        gateway_id: Some("uid-1".into()),
        content,
    }
}

/// A cluster in which every write succeeds and every gateway obeys at once.
struct World {
    index: Index,
    /// The Service, as a user sees it.
    service: Value,
    /// The attachment that the Deployment names, as Multus reads it.
    attached: Option<String>,
    writes: u32,
}

impl World {
    /// A Service on attachment `lan`, beside an attachment `other`; `lan` has
    /// two Subnets.
    fn new() -> Self {
        let mut index = Index::default();
        for (name, attachment, cidr) in [
            ("lan", "lan", "172.18.0.0/16"),
            ("more", "lan", "172.19.0.0/16"),
            ("other", "other", "172.20.0.0/16"),
        ] {
            let provider = provider(attachment);
            index.set_subnet(name, Some(subnet(&provider, cidr)));
            index.set_attachment((provider.namespace, provider.name), Some(Attachment::default()));
        }
        let service = json!({
            "metadata": {
                "namespace": NAMESPACE, "name": NAME, "uid": "uid-1", "resourceVersion": "1",
                "annotations": { names::PROVIDER_ANNOTATION: "lan.kube-system" },
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIPs": ["10.109.201.193"],
                "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            },
        });
        let mut world = Self { index, service, attached: None, writes: 0 };
        world.show();
        world
    }

    /// The Service's watch shows it.
    fn show(&mut self) {
        let object: core::Service = serde_json::from_value(self.service.clone()).unwrap();
        self.index.set_service(key(), read::service(&object));
    }

    fn edit(&mut self, pointer: &str, value: Value) {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        self.service.pointer_mut(parent).unwrap()[last.replace("~1", "/")] = value;
        self.show();
    }

    fn annotate(&mut self, annotation: &str, value: &str) {
        self.edit(&format!("/metadata/annotations/{}", annotation.replace('/', "~1")), json!(value));
    }

    fn config(&self) -> Option<GatewayConfig> {
        let text = self.index.observe(&gateway_of(&key()), Instant::now()).gateway.config?.content;
        Some(serde_json::from_str(&text).unwrap())
    }

    fn ports(&self) -> Vec<u16> {
        self.config().unwrap().frontends[0].ports.iter().map(|port| port.port).collect()
    }

    fn claims(&self) -> Vec<String> {
        self.index.allocator.claims_of(&key()).iter().map(|claim| claim.address.to_string()).collect()
    }

    fn ingress(&self) -> Vec<String> {
        self.observe(None).service.unwrap().ingress.into_iter().map(|entry| entry.ip).collect()
    }

    fn condition(&self, kind: &str) -> Option<Condition> {
        let conditions = self.observe(None).service.unwrap().conditions;
        conditions.into_iter().find(|condition| condition.kind == kind)
    }

    /// What a run sees: every pod says that it does what the ConfigMap says.
    fn observe(&self, allocation_error: Option<AllocationError>) -> Observed {
        let mut observed = self.index.observe(&gateway_of(&key()), Instant::now());
        observed.addresses.allocation_error = allocation_error;
        if let (Some(config), Some(attached)) = (&observed.gateway.config, &self.attached) {
            let parsed: GatewayConfig = serde_json::from_str(&config.content).unwrap();
            let digest = Some(names::digest(config.content.as_bytes()));
            let here = parsed.attachment == *attached;
            let addresses = parsed.addresses.iter().filter(|_| here).map(|address| address.address);
            let status = GatewayStatus {
                digest: digest.clone().filter(|_| here),
                seen: digest,
                addresses: addresses.collect(),
                ..GatewayStatus::default()
            };
            for pod in &mut observed.gateway.pods {
                (pod.ready, pod.report) = (here, StatusReport::Reported(Box::new(status.clone())));
            }
        }
        observed
    }

    /// Runs until nothing more is written, or `writes` are made.
    fn settle_for(&mut self, writes: u32) {
        self.writes = 0;
        let mut allocation_error = None;
        for _ in 0..20 {
            let observed = self.observe(allocation_error.take());
            let before = self.writes;
            for action in plan(&observed).steps().cloned() {
                if self.writes == writes {
                    return;
                }
                if let Action::Claim(request) = &action {
                    allocation_error = self.claim(request).err();
                } else {
                    self.act(&observed, action);
                }
            }
            if self.writes == before && allocation_error.is_none() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", plan(&self.observe(None)));
    }

    fn settle(&mut self) {
        self.settle_for(u32::MAX);
    }

    fn claim(&mut self, request: &AddressRequest) -> Result<(), AllocationError> {
        let reservation = self.index.allocator.reserve(request)?;
        let mut object: IP = typed(ipam::claim::manifest(request, &reservation, NAMESPACE)).unwrap();
        object.metadata.uid = Some(format!("u-{}", reservation.name));
        object.metadata.resource_version = Some("1".into());
        self.index.set_claim(read::claim(&object).unwrap());
        self.writes += 1;
        Ok(())
    }

    fn act(&mut self, observed: &Observed, action: Action) {
        let mut change = |id: &ipam::ClaimId, change: &dyn Fn(&mut ipam::Claim)| {
            let mut claim = observed.addresses.claims.iter().find(|claim| claim.id == *id).unwrap().clone();
            change(&mut claim);
            self.index.set_claim(claim);
        };
        match action {
            Action::FillAddress(address) => {
                self.edit("/spec/loadBalancerIP", json!(address));
            }
            Action::ClearAddress => self.edit("/spec/loadBalancerIP", Value::Null),
            Action::WriteConfig(content) => {
                self.index.set_config(gateway(), Some(child("cm", content)), None);
            }
            Action::WriteDeployment(live) => {
                let template = &live["spec"]["template"]["metadata"]["annotations"];
                self.attached = template[names::NETWORKS_ANNOTATION].as_str().map(str::to_owned);
                let view = DeploymentState { live, ..DeploymentState::default() };
                self.index.set_deployment(gateway(), Some(child("dep", view)));
                let pod = Pod {
                    name: "gw".into(),
                    uid: "uid-gw".into(),
                    gateway_id: Some("uid-1".into()),
                    address: Some(Ipv4Addr::new(10, 244, 1, 5).into()),
                    mac: Some("ba:85:f7:02:9f:42".into()),
                    ..Pod::default()
                };
                self.index.set_pod(gateway(), "gw", Some(pod));
            }
            Action::DeleteConfig(..) => drop(self.index.set_config(gateway(), None, None)),
            Action::DeleteDeployment(..) => {
                self.attached = None;
                self.index.set_deployment(gateway(), None);
                self.index.set_pod(gateway(), "gw", None);
            }
            Action::AnnotatePod { annotations, .. } => {
                let mut pod = observed.gateway.pods[0].clone();
                pod.report = StatusReport::NotQueried;
                pod.annotations.extend(annotations);
                self.index.set_pod(gateway(), "gw", Some(pod));
            }
            Action::RecordMac { claim, mac, probed } => change(&claim, &|claim| {
                (claim.mac, claim.probed) = (mac.clone(), probed);
            }),
            Action::Release(id) => drop(self.index.allocator.remove(&id.name, &id.uid)),
            Action::SetStatus { ingress, conditions, .. } => {
                let ingress: Vec<_> = ingress.iter().map(read::ingress_entry).collect();
                let condition = |c: &Condition| {
                    json!({
                        "type": c.kind, "status": if c.status { "True" } else { "False" }, "reason": c.reason,
                        "message": c.message, "lastTransitionTime": "2026-01-01T00:00:00Z",
                    })
                };
                let conditions: Vec<Value> = conditions.iter().map(condition).collect();
                let status = json!({ "loadBalancer": { "ingress": ingress }, "conditions": conditions });
                self.edit("/status", status);
            }
            // Told once a condition: this world has no clock.
            Action::Event { .. } => return,
            other => panic!("this world knows nothing of {other:?}"),
        }
        self.writes += 1;
    }
}

/// One that is served.
fn served() -> World {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.ingress(), ["172.18.0.2"]);
    world
}

#[test]
fn fault_03_interrupted_run_is_completed_by_the_next() {
    let mut whole = World::new();
    whole.settle();
    assert!(whole.writes > 5);
    for cut in 0..whole.writes {
        let mut world = World::new();
        world.settle_for(cut);
        world.settle();
        assert_eq!(world.service, whole.service, "cut off after {cut} writes");
        assert_eq!((world.config(), world.claims()), (whole.config(), whole.claims()));
    }
}

#[test]
fn fault_07_changed_attachment_or_subnet_is_followed() {
    let mut world = served();
    let switch = provider("lan").annotation("logical_switch");
    world.annotate(&switch, "more");
    world.settle();
    assert_eq!(world.ingress(), ["172.19.0.2"]);
    assert_eq!(world.claims(), ["172.19.0.2"], "the other is given back");

    world.annotate(&switch, "");
    world.annotate(names::PROVIDER_ANNOTATION, "other.kube-system");
    // Ports are followed all the while.
    world.edit("/spec/ports/0/port", json!(8080));
    world.settle();
    assert_eq!(world.attached.as_deref(), Some("kube-system/other"));
    assert_eq!((world.ingress(), world.claims()), (vec!["172.20.0.2".into()], vec!["172.20.0.2".into()]));
    assert_eq!(world.ports(), [8080]);
}

#[test]
fn fault_24_deleted_attachment_does_not_stop_cleanup() {
    let mut world = served();
    world.index.set_attachment(("kube-system".into(), "lan".into()), None);
    world.edit("/spec/type", json!("ClusterIP"));
    world.settle();
    assert!(world.claims().is_empty());
    assert!(world.attached.is_none() && world.config().is_none());
}

#[test]
fn fault_26_changed_ports_replace_the_old() {
    let mut world = served();
    world.edit("/spec/ports", json!([{ "port": 443 }, { "port": 53, "protocol": "UDP" }]));
    world.settle();
    let mut ports = world.ports();
    ports.sort_unstable();
    assert_eq!(ports, [53, 443], "what was open before is in no event");
    // A name is no part of what is served.
    world.edit("/spec/ports/0/name", json!("renamed"));
    world.settle();
    assert_eq!(world.writes, 0);
}

#[test]
fn fault_27_unsupported_request_is_reported() {
    let said = |direct: Option<&str>, pointer: &str, value: Value| {
        let mut world = World::new();
        direct.inspect(|value| world.annotate(names::DIRECT_ACCESS_ANNOTATION, value));
        world.edit(pointer, value);
        world.settle();
        assert_eq!(world.ingress().len(), 1, "the rest is served");
        world.condition(LIMITED).map(|condition| condition.reason)
    };
    let told = |pointer: &str, value: Value| said(None, pointer, value).expect("a condition");
    for (pointer, value, reason) in [
        ("/spec/sessionAffinity", "ClientIP", "AffinityNotKept"),
        ("/spec/internalTrafficPolicy", "Local", "LocalBackendsOnly"),
    ] {
        assert_eq!(said(Some("false"), pointer, json!(value)).expect("a condition"), reason);
        assert_eq!(said(None, pointer, json!(value)), None, "straight to its endpoints that is kept");
    }
    assert_eq!(told("/spec/externalTrafficPolicy", json!("Local")), "ClientAddressHidden");
    let sctp = json!([{ "port": 80 }, { "port": 81, "protocol": "SCTP" }]);
    assert_eq!(told("/spec/ports", sctp), "UnsupportedProtocol");
}

#[test]
fn fault_28_refused_write_is_reported() {
    let mut world = World::new();
    world.settle_for(1);
    let why = "deployments.apps \"lb-svc-web\" is forbidden: exceeded quota (403)".to_owned();
    let refused = FailedWrite { what: "the gateway's Deployment", refused: true, why };
    let report = plan(&world.observe(None)).after_failure(0, &refused);
    let told = report.iter().find_map(|action| match action {
        Action::Event { warning: true, reason, message } => Some((reason.as_str(), message)),
        _ => None,
    });
    let (reason, message) = told.expect("an Event");
    assert_eq!(reason, "WriteRefused");
    assert!(message.contains("exceeded quota"), "{message}");
    world.settle();
    assert!(world.condition(GATEWAY_READY).unwrap().status, "it passes with its cause");
}

#[test]
fn fault_34_corrected_subnet_is_ready_again() {
    let mut subnet = subnet(&provider("lan"), "10.0.0.0/33");
    let mut look = |spec: &SubnetSpec| {
        let mut allocator = Allocator::default();
        allocator.set_subnet("lan", spec, None, false);
        subnet.status =
            lb_svc_core::subnet::plan::plan(&subnet, &allocator.usage("lan").unwrap()).status.expect("news");
        subnet.status.conditions.clone()
    };
    let mut spec = SubnetSpec {
        provider: "lan.kube-system".into(),
        cidr_block: "10.0.0.0/33".into(),
        ..SubnetSpec::default()
    };
    let kinds = |conditions: &[Condition]| {
        conditions.iter().map(|condition| (condition.kind.clone(), condition.status)).collect::<Vec<_>>()
    };
    let both = |status| vec![("Ready".to_owned(), status), ("Validated".to_owned(), status)];
    assert_eq!(kinds(&look(&spec)), both(false));
    spec.cidr_block = "10.0.0.0/24".into();
    assert_eq!(kinds(&look(&spec)), both(true), "nothing of what was wrong stays");
}

#[test]
fn fault_37_longest_names_fit() {
    let longest = format!("{}.{}", "n".repeat(63), "s".repeat(63));
    let request = AddressRequest {
        owner: ServiceId { service: ServiceRef::new(&"s".repeat(63), &"w".repeat(63)), uid: "uid-1".into() },
        provider: longest.parse().unwrap(),
        subnet: None,
        address: None,
        keep: false,
        limit: None,
    };
    let address: IpAddr = "172.18.0.11".parse().unwrap();
    let reservation =
        Reservation { name: request.provider.claim_name(address), subnet: "x".repeat(253), address };
    let claim: IP = typed(ipam::claim::manifest(&request, &reservation, NAMESPACE)).unwrap();
    assert!(claim.metadata.name.as_ref().unwrap().len() <= 253);
    for (label, value) in claim.metadata.labels.iter().flatten() {
        let name = label.rsplit('/').next().unwrap();
        assert!(name.len() <= 63 && value.len() <= 63, "{label}: {value}");
    }
    assert_eq!(claim.spec.subnet, reservation.subnet, "whole, where there is room for it");
}

/// Every address of a network, at its edges too, is either no Service's at all
/// or one that a Service can name and can be given unasked.
#[test]
fn fault_38_requestable_address_can_be_allocated() {
    for cidr in ["10.0.0.8/29", "10.0.0.8/30", "10.0.0.8/31", "255.255.255.0/24", "10.0.0.0/24"] {
        let spec = subnet(&provider("lan"), cidr).spec;
        let Ok(network) = ipam::Network::parse(&spec) else { continue };
        let mut pool = Pool::new(&network);
        let mut unasked = BTreeSet::new();
        while let Some(address) = pool.next() {
            pool.take(address);
            unasked.insert(IpAddr::V4(address));
        }
        let ask = |address: IpAddr| {
            let mut allocator = Allocator::default();
            allocator.set_subnet("lan", &spec, None, false);
            let owner = ServiceId { service: key(), uid: "uid-1".into() };
            let (provider, address) = (provider("lan"), Some(address));
            allocator
                .reserve(&AddressRequest { owner, provider, subnet: None, address, keep: false, limit: None })
                .is_ok()
        };
        let all = u32::from(network.cidr.network())..=u32::from(network.cidr.broadcast());
        let all = all.map(|address| IpAddr::V4(address.into()));
        let asked: BTreeSet<IpAddr> = all.filter(|address| ask(*address)).collect();
        assert!(!asked.is_empty(), "{cidr}");
        assert_eq!(asked, unasked, "{cidr}");
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The tables of docs/dev/regressions.md: each row's number or ids, and the tests it
/// names.
fn table() -> Vec<(String, Vec<String>, String)> {
    let text = fs::read_to_string(root().join("docs/dev/regressions.md")).unwrap();
    let lines = text.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        let spans = rest.split('`').skip(1).step_by(2).filter(|span| span.contains("::"));
        let is_row = number.chars().any(|c| c.is_ascii_digit());
        is_row.then(|| (number.to_owned(), spans.map(str::to_owned).collect(), rest.to_owned()))
    });
    lines.collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn fault_table_names_tests_or_says_why_not() {
    let table = table();
    let numbers: Vec<u32> = table.iter().filter_map(|(number, ..)| number.parse().ok()).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<u32>>());
    for (number, tests, line) in &table {
        let mut decisions = line.split("](adr/").skip(1).filter_map(|rest| rest.split(')').next()).peekable();
        let says = !tests.is_empty() || decisions.peek().is_some() || line.contains("Cannot apply:");
        assert!(says, "{number} shows nothing");
        for decision in decisions {
            assert!(root().join("docs/dev/adr").join(decision).exists(), "{number}: {decision}");
        }
    }
}

#[test]
fn fault_table_names_tests_that_exist() {
    let named: BTreeSet<String> = table().into_iter().flat_map(|(_, tests, _)| tests).collect();
    for test in &named {
        let (file, name) = test.rsplit_once("::").unwrap();
        let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("fn {name}(")), "{file} has no test {name}");
    }
    let mut files = Vec::new();
    for member in ["crds", "controller", "gateway", "e2e"] {
        sources(&root().join(member), &mut files);
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let functions = text.lines().filter_map(|line| line.trim().split("fn ").nth(1)?.split('(').next());
        for name in functions.filter(|name| has_id(name)) {
            let test = format!("::{name}");
            let is_named = named.iter().any(|named| named.ends_with(&test));
            assert!(is_named, "{test} is not in docs/dev/regressions.md");
        }
    }
}

/// Whether a test is called by a fault: `fault_12_…`, `r1_…`, `b05_…`, `s1_…`, `w1_…`.
fn has_id(name: &str) -> bool {
    let mut ids =
        ["fault_", "r", "b", "s", "w"].iter().filter_map(|kind| name.strip_prefix(kind)?.split_once('_'));
    ids.any(|(id, _)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}
