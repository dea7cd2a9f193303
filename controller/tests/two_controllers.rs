//! Two controllers that both believe they lead, against a model of the API
//! server, in many short seeded rounds: whatever comes between a look and a
//! write, afterwards everything adds up, and no address ever has two owners.
//!
//! ```text
//!   users ──▶ ┌────────────┐ ──log, per kind and late──▶ controller 1: State, plan
//!             │ ApiServer  │ ◀──conditional writes────── one action at a time
//!  kubelet ◀─▶│            │ ◀─────────────────────────▶ controller 2
//!             └────────────┘
//! ```
//!
//! `SOAK_ROUNDS` (100) sets how many, `SOAK_SEED` repeats a single one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use lb_svc_controller::api_server::read;
use lb_svc_controller::api_server::write::typed;
use lb_svc_controller::index::{Index, Key};
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::ipam::{self, AddressRequest, AllocationError, Claim, ClaimId, Reservation};
use lb_svc_core::model::{
    Attachment, DeploymentState, GatewayLocation, GatewayRef, OwnedObject, Pod, Service, ServiceId,
    ServiceRef, StatusReport, Subnet, SubnetStatus,
};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::plan::{Requeue, plan};
use lb_svc_crds::gateway::{GatewayConfig, GatewayStatus};
use lb_svc_crds::names::{self, PROVIDER_ANNOTATION};
use lb_svc_crds::{IP, SubnetSpec};

const NAMESPACE: &str = "default";
const PROVIDER: &str = "lan.kube-system";
/// How many Services there are at most.
const SERVICES: u64 = 4;
/// Static requests are for one of so many addresses: few, so that Services meet.
const ASKED: u64 = 3;
/// Steps of a round in which users change things.
const BUSY: usize = 250;
/// Steps without change after which a round is at rest, and at the most.
const QUIET: (usize, usize) = (60, 20_000);

/// How many events a failure shows.
const HISTORY: usize = 150;

/// Pseudo-random numbers (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(u64::try_from(length).unwrap())).unwrap()
    }
}

/// One change of one object; `None` if it is gone.
#[derive(Clone, Debug)]
enum Event {
    Service(String, Option<Box<Service>>),
    Config(String, Option<OwnedObject<String>>),
    Deployment(String, Option<OwnedObject<DeploymentState>>),
    Pod(String, Option<Box<Pod>>),
    Claim(Box<Claim>, bool),
}

impl Event {
    /// Watches of different kinds run apart.
    fn kind(&self) -> usize {
        match self {
            Self::Service(..) => 0,
            Self::Config(..) => 1,
            Self::Deployment(..) => 2,
            Self::Pod(..) => 3,
            Self::Claim(..) => 4,
        }
    }
}

const KINDS: usize = 5;

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, None) => write!(f, "Service {name} gone, or not ours"),
            Self::Service(name, Some(service)) => {
                let Service { id, load_balancer, load_balancer_ip, ingress, .. } = &**service;
                let ingress: Vec<&str> = ingress.iter().map(|entry| entry.ip.as_str()).collect();
                let uid = &id.uid;
                write!(
                    f,
                    "Service {name} {uid}: ours {load_balancer}, asks {load_balancer_ip:?}, says {ingress:?}"
                )
            }
            Self::Config(name, None) => write!(f, "ConfigMap {name} gone"),
            Self::Config(name, Some(child)) => {
                let config: GatewayConfig = serde_json::from_str(&child.content).unwrap();
                let addresses = config.addresses.iter().map(|address| (address.address, address.probe));
                write!(f, "ConfigMap {name} for {:?}: {:?}", child.gateway_id, addresses.collect::<Vec<_>>())
            }
            Self::Deployment(name, None) => write!(f, "Deployment {name} gone"),
            Self::Deployment(name, Some(child)) => {
                write!(f, "Deployment {name} for {:?}, deleting {}", child.gateway_id, child.deleting)
            }
            Self::Pod(name, None) => write!(f, "Pod {name} gone"),
            Self::Pod(name, Some(pod)) => {
                let Pod { gateway_id, deleting, ready, .. } = &**pod;
                let addresses = addresses(pod);
                write!(
                    f,
                    "Pod {name} for {gateway_id:?}: ready {ready}, deleting {deleting}, answers for {addresses:?}"
                )
            }
            Self::Claim(claim, exists) => {
                let Claim { address, owner, requested, probed, conflict, .. } = &**claim;
                let there = if *exists { "of" } else { "given back by" };
                let uid = &owner.uid;
                write!(
                    f,
                    "Claim {address} {there} {uid}: {requested:?}, probed {probed}, conflict {conflict:?}"
                )
            }
        }
    }
}

/// What a write came to.
enum Refused {
    /// Precondition or name: someone else was quicker.
    Conflict,
}

type Written = Result<(), Refused>;

/// The objects, and the log that watches read. Versions rise with each write.
#[derive(Default)]
struct ApiServer {
    version: u64,
    services: BTreeMap<String, Service>,
    configs: BTreeMap<String, OwnedObject<String>>,
    deployments: BTreeMap<String, OwnedObject<DeploymentState>>,
    pods: BTreeMap<String, Pod>,
    claims: BTreeMap<String, Claim>,
    log: Vec<(u64, Event)>,
}

fn service_ref(name: &str) -> ServiceRef {
    ServiceRef::new(NAMESPACE, name)
}

fn location(name: &str) -> GatewayLocation {
    GatewayLocation { gateway: gateway_of(&service_ref(name)), namespace: NAMESPACE.to_owned() }
}

/// The Service that a gateway's pod is of.
fn service_of(pod: &str) -> String {
    pod.split('.').next().unwrap().to_owned()
}

impl ApiServer {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn tell(&mut self, event: Event) {
        self.log.push((self.version, event));
    }

    // === users and kubelets ===

    fn create_service(&mut self, name: &str, address: Option<IpAddr>) {
        if self.services.contains_key(name) {
            return;
        }
        let version = self.next();
        let service = Service {
            id: ServiceId { service: service_ref(name), uid: format!("uid-{version}") },
            resource_version: version,
            generation: Some(1),
            annotations: [(PROVIDER_ANNOTATION.to_owned(), PROVIDER.to_owned())].into(),
            load_balancer_ip: address.map(|address| address.to_string()).unwrap_or_default(),
            cluster_ips: vec!["10.96.0.7".to_owned()],
            ..lb_svc_core::testing::service()
        };
        self.services.insert(name.to_owned(), service);
        self.show_service(name);
    }

    /// The Service as the controllers' watch reads it.
    fn show_service(&mut self, name: &str) {
        let seen = self.services.get(name).filter(|service| {
            service.annotations.contains_key(PROVIDER_ANNOTATION) || !service.conditions.is_empty()
        });
        self.tell(Event::Service(name.to_owned(), seen.cloned().map(Box::new)));
    }

    fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Service)) {
        if !self.services.contains_key(name) {
            return;
        }
        let version = self.next();
        let service = self.services.get_mut(name).unwrap();
        edit(service);
        service.resource_version = version;
        self.show_service(name);
    }

    fn delete_service(&mut self, name: &str, orphan: bool) {
        if self.services.remove(name).is_none() {
            return;
        }
        self.next();
        self.show_service(name);
        if !orphan {
            self.drop_config(name);
            self.drop_deployment(name);
        }
    }

    fn drop_config(&mut self, name: &str) {
        if self.configs.remove(name).is_some() {
            self.next();
            self.tell(Event::Config(name.to_owned(), None));
        }
    }

    /// In the foreground: it stays until its pods are gone.
    fn drop_deployment(&mut self, name: &str) {
        if self.deployments.contains_key(name) {
            let version = self.next();
            let child = self.deployments.get_mut(name).unwrap();
            (child.deleting, child.resource_version) = (true, version);
            let child = child.clone();
            self.tell(Event::Deployment(name.to_owned(), Some(child)));
        }
    }

    fn drop_pod(&mut self, name: &str) {
        if self.pods.contains_key(name) {
            self.next();
            let pod = self.pods.get_mut(name).unwrap();
            pod.deleting = true;
            let pod = pod.clone();
            self.tell(Event::Pod(name.to_owned(), Some(Box::new(pod))));
        }
    }

    /// What kubelets and Kubernetes' own controllers do next for one Service's
    /// gateway. Returns whether that was anything.
    fn kubelet(&mut self, name: &str) -> bool {
        let mine = |pod: &&String| service_of(pod) == name;
        if let Some(leaving) = self.pods.iter().find(|(key, pod)| pod.deleting && mine(key)) {
            let leaving = leaving.0.clone();
            self.pods.remove(&leaving);
            self.next();
            self.tell(Event::Pod(leaving, None));
            return true;
        }
        let pod = self.pods.keys().find(mine).cloned();
        match (self.deployments.get(name).cloned(), pod) {
            (Some(child), Some(pod)) if child.deleting => self.drop_pod(&pod),
            (Some(child), None) if child.deleting => {
                self.deployments.remove(name);
                self.next();
                self.tell(Event::Deployment(name.to_owned(), None));
            }
            (Some(child), None) => self.create_pod(name, &child),
            (None, Some(pod)) => self.drop_pod(&pod),
            (Some(_), Some(pod)) => return self.program(name, &pod),
            (None, None) => return false,
        }
        true
    }

    fn create_pod(&mut self, name: &str, deployment: &OwnedObject<DeploymentState>) {
        let version = self.next();
        let number = u32::try_from(self.version).unwrap();
        let [.., a, b] = number.to_be_bytes();
        let key = format!("{name}.{version}");
        let pod = Pod {
            name: key.clone(),
            uid: format!("pod-{version}"),
            gateway_id: deployment.gateway_id.clone(),
            address: Some(Ipv4Addr::new(10, 244, a, b).into()),
            mac: Some(format!("02:00:00:00:{a:02x}:{b:02x}")),
            report: StatusReport::Reported(Box::default()),
            ..Pod::default()
        };
        self.pods.insert(key.clone(), pod.clone());
        self.tell(Event::Pod(key, Some(Box::new(pod))));
    }

    /// The gateway in `pod` carries out the ConfigMap of its name. An address
    /// that the LAN is to be asked for first is left to the host that has it.
    fn program(&mut self, name: &str, pod: &str) -> bool {
        let Some(config) = self.configs.get(name) else { return false };
        let digest = names::digest(config.content.as_bytes());
        let parsed: GatewayConfig = serde_json::from_str(&config.content).unwrap();
        let mut status = GatewayStatus { digest: Some(digest.clone()), ..GatewayStatus::default() };
        status.seen = Some(digest);
        for address in &parsed.addresses {
            match self.owner_of(address.address, pod) {
                Some(mac) if address.probe => drop(status.conflicts.insert(address.address, mac)),
                _ => status.addresses.push(address.address),
            }
        }
        let known = &self.pods[pod];
        let ready = status.conflicts.is_empty();
        let report = StatusReport::Reported(Box::new(status));
        if known.report == report && known.ready == ready {
            return false;
        }
        self.next();
        let known = self.pods.get_mut(pod).unwrap();
        (known.report, known.ready) = (report, ready);
        let pod = known.clone();
        self.tell(Event::Pod(pod.name.clone(), Some(Box::new(pod))));
        true
    }

    /// The hardware address of another pod that answers for `address`.
    fn owner_of(&self, address: IpAddr, pod: &str) -> Option<String> {
        let others = self.pods.values().filter(|other| other.name != pod);
        let mut owners = others.filter(|other| addresses(other).contains(&address));
        owners.find_map(|other| other.mac.clone())
    }

    /// What happened last, for the report of a failure.
    fn history(&self) -> String {
        let last = &self.log[self.log.len().saturating_sub(HISTORY)..];
        last.iter().map(|(version, event)| format!("{version}: {event}\n")).collect()
    }

    /// # Panics
    /// Two gateways report for one address.
    fn check_owners(&self) {
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for pod in self.pods.values() {
            for address in addresses(pod) {
                if let Some(other) = owners.insert(address, &pod.name) {
                    panic!("{address} is answered for by {} and by {other}\n{}", pod.name, self.history());
                }
            }
        }
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    match &pod.report {
        StatusReport::Reported(status) => status.addresses.clone(),
        StatusReport::NotQueried | StatusReport::Missed | StatusReport::NoResponse => Vec::new(),
    }
}

/// A run in progress: what it saw, and what it has yet to do.
struct Run {
    service: String,
    observed: Observed,
    actions: VecDeque<Action>,
    /// The address whose claim is to be written.
    candidate: Option<(Reservation, AddressRequest)>,
}

struct Controller {
    index: Index,
    /// How far each watch has read the log.
    read: [usize; KINDS],
    /// The newest version seen of each object: a watch is behind what the API
    /// server answers to a write.
    newest: HashMap<(usize, String), u64>,
    dirty: BTreeSet<String>,
    run: Option<Run>,
}

impl Controller {
    fn new() -> Self {
        let mut index = Index::default();
        let spec = SubnetSpec {
            provider: PROVIDER.to_owned(),
            cidr_block: "172.18.0.0/24".to_owned(),
            ..SubnetSpec::default()
        };
        let subnet = Subnet {
            uid: "subnet".to_owned(),
            created: None,
            generation: Some(1),
            deleting: false,
            held: true,
            rules: Default::default(),
            unread: Vec::new(),
            spec,
            status: SubnetStatus::default(),
            since: BTreeMap::new(),
        };
        index.set_subnet("lan", Some(subnet));
        index.set_attachment(("kube-system".into(), "lan".into()), Some(Attachment::default()));
        Self { index, read: [0; KINDS], newest: HashMap::new(), dirty: BTreeSet::new(), run: None }
    }

    /// Takes in an event, from a watch or as the report to a write.
    fn learn(&mut self, version: u64, event: Event) {
        let object = match &event {
            Event::Service(name, _) | Event::Config(name, _) | Event::Deployment(name, _) => name.clone(),
            Event::Pod(name, _) => name.clone(),
            Event::Claim(claim, _) => claim.id.name.clone(),
        };
        let newest = self.newest.entry((event.kind(), object)).or_default();
        if version < *newest {
            return;
        }
        *newest = version;
        let keys = match event {
            Event::Service(name, service) => {
                self.index.set_service(service_ref(&name), service.map(|service| *service))
            }
            Event::Config(name, config) => self.index.set_config(location(&name), config, None),
            Event::Deployment(name, deployment) => self.index.set_deployment(location(&name), deployment),
            Event::Pod(name, pod) => {
                let pod = pod.map(|pod| Pod { report: StatusReport::NotQueried, ..*pod });
                self.index.set_pod(location(&service_of(&name)), &name, pod)
            }
            Event::Claim(claim, true) => self.index.set_claim(*claim),
            Event::Claim(claim, false) => self.index.claim_gone(&claim.id.name, &claim.id.uid),
        };
        for key in keys {
            if let Key::Gateway(GatewayRef::Dedicated(service)) = key {
                self.dirty.insert(service.name);
            }
        }
    }

    /// One of the watches shows the next event. Returns whether there was one.
    fn watch(&mut self, api: &ApiServer, kind: usize) -> bool {
        let rest = api.log[self.read[kind]..].iter();
        let Some(ahead) = rest.clone().position(|(_, event)| event.kind() == kind) else {
            self.read[kind] = api.log.len();
            return false;
        };
        self.read[kind] += ahead + 1;
        let (version, event) = api.log[self.read[kind] - 1].clone();
        self.learn(version, event);
        true
    }

    /// Looks at `name` and plans, as the reconciler does.
    fn start(&mut self, api: &ApiServer, name: &str, refusal: Option<AllocationError>) {
        let service = service_ref(name);
        let mut observed = self.index.observe(&gateway_of(&service), Instant::now());
        observed.addresses.allocation_error = refusal;
        for pod in &mut observed.gateway.pods {
            // A pod that has gone since answers nothing.
            pod.report = api.pods.get(&pod.name).map_or(StatusReport::NoResponse, |live| live.report.clone());
            if let StatusReport::Reported(status) = &pod.report {
                let ours =
                    status.conflicts.values().filter(|mac| self.index.is_mac_of(&gateway_of(&service), mac));
                observed.addresses.gateway_macs.extend(ours.cloned());
            }
        }
        let planned = plan(&observed);
        self.index.set_address_pending(&service, planned.index.address_pending);
        if matches!(planned.next, Requeue::Unconverged { .. }) {
            self.dirty.insert(name.to_owned());
        }
        let actions = planned.steps().cloned().collect();
        self.run = Some(Run { service: name.to_owned(), observed, actions, candidate: None });
    }

    /// One step of the run in progress, or the beginning of one. Returns
    /// whether anything was written.
    fn step(&mut self, api: &mut ApiServer, dice: &mut Dice) -> bool {
        let Some(mut run) = self.run.take() else {
            let names: Vec<String> = self.dirty.iter().cloned().collect();
            if !names.is_empty() {
                let name = &names[dice.index(names.len())];
                self.dirty.remove(name);
                self.start(api, name, None);
            }
            return false;
        };
        if let Some((candidate, wish)) = run.candidate.take() {
            self.claim(api, &run.service, &candidate, &wish);
            return true;
        }
        match run.actions.pop_front() {
            None => false,
            Some(Action::Claim(wish)) => {
                match self.index.allocator.reserve(&wish) {
                    // The POST is on its way while others act.
                    Ok(candidate) => self.run = Some(Run { candidate: Some((candidate, wish)), ..run }),
                    Err(refusal) => self.start(api, &run.service, Some(refusal)),
                }
                false
            }
            Some(action) => {
                let length = api.log.len();
                if self.act(api, &run, action).is_ok() {
                    // The API server's report comes before the watch shows it.
                    for (version, event) in api.log[length..].iter().cloned() {
                        self.learn(version, event);
                    }
                    self.run = Some(run);
                } else {
                    self.dirty.insert(run.service);
                }
                api.log.len() > length
            }
        }
    }

    fn claim(&mut self, api: &mut ApiServer, service: &str, candidate: &Reservation, wish: &AddressRequest) {
        if !api.claims.contains_key(&candidate.name) {
            let version = api.next();
            let mut object: IP = typed(ipam::claim::manifest(wish, candidate, NAMESPACE)).unwrap();
            object.metadata.uid = Some(format!("claim-{version}"));
            object.metadata.resource_version = Some(version);
            let claim = read::claim(&object).unwrap();
            api.claims.insert(candidate.name.clone(), claim.clone());
            api.tell(Event::Claim(Box::new(claim), true));
        }
        let claim = api.claims[&candidate.name].clone();
        let key = (4, candidate.name.clone());
        let version = claim.id.resource_version.parse().unwrap();
        if self.newest.get(&key).is_none_or(|newest| version >= *newest) {
            self.newest.insert(key, version);
            self.index.allocator.apply(claim, false);
        } else {
            self.index.allocator.unreserve(candidate);
        }
        self.start(api, service, None);
    }

    /// Carries out one action, with the preconditions that the real one has.
    fn act(&self, api: &mut ApiServer, run: &Run, action: Action) -> Written {
        let Run { service: name, observed, .. } = run;
        let uid = observed.service.as_ref().map(|service| service.id.uid.clone());
        match action {
            Action::FillAddress(address) => set_address(api, run, &address.to_string())?,
            Action::ClearAddress => set_address(api, run, "")?,
            Action::SetStatus { ingress, conditions, .. } => {
                let Some(live) = api.services.get(name) else { return Ok(()) };
                if Some(&live.id.uid) != uid.as_ref() {
                    return Err(Refused::Conflict);
                }
                if (&live.ingress, &live.conditions) != (&ingress, &conditions) {
                    api.edit(name, |live| (live.ingress, live.conditions) = (ingress, conditions));
                }
            }
            Action::WriteConfig(content) => {
                let version =
                    |child: &OwnedObject<String>| (child.uid.clone(), child.resource_version.clone());
                let known = observed.gateway.config.as_ref().map(version);
                let live = api.configs.get(name).map(version);
                let child_uid = match (known, live) {
                    (None, Some(_)) => return Ok(()),
                    (Some(known), live) if live.as_ref() != Some(&known) => return Err(Refused::Conflict),
                    (known, _) => known.map(|(uid, _)| uid),
                };
                let version = api.next();
                let uid = uid.clone().unwrap();
                let child = child(child_uid.unwrap_or(format!("cm-{version}")), version, &uid, content);
                // Its owner is gone: Kubernetes collects it at once.
                let owned = api.services.values().any(|service| service.id.uid == uid);
                if owned {
                    api.configs.insert(name.clone(), child.clone());
                    api.tell(Event::Config(name.clone(), Some(child)));
                } else {
                    api.drop_config(name);
                }
            }
            Action::WriteDeployment(live) => {
                let known = observed.gateway.deployment.as_ref();
                let current = api.deployments.get(name);
                let child_uid = match (known, current) {
                    (None, Some(_)) | (Some(_), None) => return Ok(()),
                    (Some(known), Some(current)) if current.resource_version != known.resource_version => {
                        return Err(Refused::Conflict);
                    }
                    (known, _) => known.map(|child| child.uid.clone()),
                };
                let version = api.next();
                let uid = uid.clone().unwrap();
                let view = DeploymentState { live, ..DeploymentState::default() };
                let child = child(child_uid.unwrap_or(format!("dep-{version}")), version, &uid, view);
                let owned = api.services.values().any(|service| service.id.uid == uid);
                if owned {
                    api.deployments.insert(name.clone(), child.clone());
                    api.tell(Event::Deployment(name.clone(), Some(child)));
                } else {
                    api.drop_deployment(name);
                }
            }
            Action::DeleteConfig(uid, version) => {
                if let Some(live) = api.configs.get(name) {
                    if (&live.uid, &live.resource_version) != (&uid, &version) {
                        return Err(Refused::Conflict);
                    }
                    api.drop_config(name);
                }
            }
            Action::DeleteDeployment(uid, version) => {
                if let Some(live) = api.deployments.get(name) {
                    if (&live.uid, &live.resource_version) != (&uid, &version) {
                        return Err(Refused::Conflict);
                    }
                    api.drop_deployment(name);
                }
            }
            Action::AnnotatePod { pod, annotations, .. } => {
                if api.pods.contains_key(&pod) {
                    api.next();
                    let live = api.pods.get_mut(&pod).unwrap();
                    live.annotations.extend(annotations);
                    let live = live.clone();
                    api.tell(Event::Pod(pod, Some(Box::new(live))));
                }
            }
            Action::RecordMac { claim, mac, probed } => change(api, &claim, |claim| {
                (claim.mac, claim.probed) = (mac, probed);
                claim.conflict.clear();
            })?,
            Action::MarkConflict(claim, mac) => change(api, &claim, |claim| claim.conflict = mac)?,
            Action::SetRetain(claim, keep) => change(api, &claim, |claim| claim.keep = keep)?,
            Action::Adopt(claim) => {
                let uid = uid.clone().unwrap();
                change(api, &claim, |claim| (claim.owner.uid, claim.probed) = (uid, false))?;
            }
            Action::Release(id) => {
                if let Some(live) = api.claims.get(&id.name) {
                    if live.id != id {
                        return Err(Refused::Conflict);
                    }
                    api.next();
                    let gone = api.claims.remove(&id.name).unwrap();
                    api.tell(Event::Claim(Box::new(gone), false));
                }
            }
            Action::Event { .. } | Action::RememberElection(_) => {}
            other => panic!("this world knows nothing of {other:?}"),
        }
        Ok(())
    }
}

fn child<T>(uid: String, resource_version: String, id: &str, content: T) -> OwnedObject<T> {
    OwnedObject { uid, resource_version, deleting: false, gateway_id: Some(id.into()), content }
}

fn set_address(api: &mut ApiServer, run: &Run, address: &str) -> Written {
    let seen = run.observed.service.as_ref().unwrap();
    match api.services.get(&run.service) {
        None => Ok(()),
        Some(live) if live.load_balancer_ip != seen.load_balancer_ip || live.id != seen.id => {
            Err(Refused::Conflict)
        }
        Some(_) => {
            api.edit(&run.service, |service| address.clone_into(&mut service.load_balancer_ip));
            Ok(())
        }
    }
}

fn change(api: &mut ApiServer, id: &ClaimId, change: impl FnOnce(&mut Claim)) -> Written {
    let Some(live) = api.claims.get(&id.name) else { return Ok(()) };
    if live.id != *id {
        return Err(Refused::Conflict);
    }
    let version = api.next();
    let claim = api.claims.get_mut(&id.name).unwrap();
    change(claim);
    claim.id.resource_version = version;
    let claim = claim.clone();
    api.tell(Event::Claim(Box::new(claim), true));
    Ok(())
}

fn asked(dice: &mut Dice) -> IpAddr {
    let last = u8::try_from(dice.roll(ASKED)).unwrap();
    Ipv4Addr::new(172, 18, 0, 100 + last).into()
}

/// One change by a user; it may come to nothing.
fn edit(api: &mut ApiServer, dice: &mut Dice) {
    let name = format!("s{}", dice.roll(SERVICES));
    let address = (dice.roll(3) == 0).then(|| asked(dice));
    match dice.roll(12) {
        0..4 => api.create_service(&name, address),
        4 => api.delete_service(&name, false),
        5 => {
            api.delete_service(&name, true);
            api.create_service(&name, address);
        }
        6..8 => {
            let address = asked(dice).to_string();
            api.edit(&name, |service| service.load_balancer_ip = address);
        }
        8 => api.edit(&name, |service| service.load_balancer_ip.clear()),
        9 => {
            let load_balancer = dice.roll(2) == 0;
            api.edit(&name, |service| service.load_balancer = load_balancer);
        }
        10 => {
            let opted_in = dice.roll(2) == 0;
            api.edit(&name, |service| {
                service.annotations.clear();
                if opted_in {
                    service.annotations.insert(PROVIDER_ANNOTATION.to_owned(), PROVIDER.to_owned());
                }
            });
        }
        _ => match dice.roll(3) {
            0 => api.drop_deployment(&name),
            1 => api.drop_config(&name),
            _ => {
                let pods: Vec<String> = api.pods.keys().cloned().collect();
                pods.iter().filter(|pod| service_of(pod) == name).for_each(|pod| api.drop_pod(pod));
            }
        },
    }
}

/// # Errors
/// What does not add up.
fn adds_up(api: &ApiServer) -> Result<(), String> {
    let expect = |holds: bool, why: String| if holds { Ok(()) } else { Err(why) };
    let mut held = BTreeSet::new();
    for (name, service) in &api.services {
        let mine: Vec<&Claim> =
            api.claims.values().filter(|claim| claim.owner.uid == service.id.uid).collect();
        let addresses: Vec<String> = mine.iter().map(|claim| claim.address.to_string()).collect();
        let ingress: Vec<String> = service.ingress.iter().map(|entry| entry.ip.clone()).collect();
        let is_wanted = service.load_balancer && service.annotations.contains_key(PROVIDER_ANNOTATION);
        if !is_wanted {
            expect(
                mine.is_empty() && ingress.is_empty() && !api.configs.contains_key(name),
                format!("{name} is not ours, has {addresses:?}, says {ingress:?}"),
            )?;
            continue;
        }
        let asked = &service.load_balancer_ip;
        let is_taken = api
            .claims
            .values()
            .any(|claim| claim.address.to_string() == *asked && claim.owner.uid != service.id.uid);
        expect(
            addresses.len() <= 1,
            format!("{name} has {addresses:?}, asks for {asked}, says {ingress:?}"),
        )?;
        expect(addresses == ingress, format!("{name} has {addresses:?}, says {ingress:?}"))?;
        expect(
            addresses.first() == Some(asked) || is_taken,
            format!("{name} has {addresses:?}, asks for {asked}, which nobody else has"),
        )?;
        let served: Vec<String> = api
            .pods
            .iter()
            .filter(|(pod, _)| service_of(pod) == *name)
            .flat_map(|(_, pod)| self::addresses(pod))
            .map(|address| address.to_string())
            .collect();
        expect(served == addresses, format!("{name} has {addresses:?}, its pods report for {served:?}"))?;
        held.extend(addresses);
    }
    expect(api.claims.len() == held.len(), format!("claims {:?}, held {held:?}", api.claims.keys()))?;
    let owners: Vec<&String> =
        api.services.iter().filter(|(_, s)| !s.ingress.is_empty()).map(|s| s.0).collect();
    let configs: Vec<&String> = api.configs.keys().collect();
    let deployments: Vec<&String> = api.deployments.keys().collect();
    expect(configs == owners, format!("ConfigMaps {configs:?} for {owners:?}"))?;
    expect(deployments == owners, format!("Deployments {deployments:?} for {owners:?}"))
}

/// # Panics
/// An address has two owners, or it does not add up at rest.
fn round(seed: u64) {
    let mut dice = Dice(seed);
    let mut api = ApiServer::default();
    let mut controllers = [Controller::new(), Controller::new()];
    let mut quiet = 0;
    for step in 0.. {
        let busy = step < BUSY;
        if busy && dice.roll(6) == 0 {
            edit(&mut api, &mut dice);
        }
        let controller = &mut controllers[dice.index(2)];
        let wrote = match dice.roll(4) {
            0 => {
                let kind = dice.index(KINDS);
                controller.watch(&api, kind)
            }
            1 => {
                let name = format!("s{}", dice.roll(SERVICES));
                api.kubelet(&name)
            }
            _ => controller.step(&mut api, &mut dice),
        };
        api.check_owners();
        if busy || wrote {
            quiet = 0;
            continue;
        }
        quiet += 1;
        if quiet < QUIET.0 {
            continue;
        }
        quiet = 0;
        // It seems at rest: let everyone see everything, and look again.
        let mut rests = true;
        for controller in &mut controllers {
            for kind in 0..KINDS {
                while controller.watch(&api, kind) {
                    rests = false;
                }
            }
            rests &= controller.run.is_none();
            if rests {
                controller.dirty.extend((0..SERVICES).map(|n| format!("s{n}")));
            }
        }
        rests &= (0..SERVICES).all(|n| !api.kubelet(&format!("s{n}")));
        let result = adds_up(&api);
        if rests && result.is_ok() {
            return;
        }
        assert!(step < QUIET.1, "not at rest: {:?}\n{}", result.err(), api.history());
    }
}

#[test]
fn s1_two_controllers_that_both_lead_add_up() {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = setting("SOAK_SEED") {
        return round(seed);
    }
    for n in 0..setting("SOAK_ROUNDS").unwrap_or(100) {
        // Every round has a seed of its own, far from the others'.
        let seed = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let result = std::panic::catch_unwind(|| round(seed));
        assert!(result.is_ok(), "SOAK_SEED={seed} repeats it");
    }
}
