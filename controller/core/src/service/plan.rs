//! What is to be done for one gateway: a pure function of what is seen.
//!
//! [`plan`] looks at a Service and everything that bears its gateway's name,
//! and says which writes bring it nearer to what the Service asks. It runs
//! again after every change and every write; nothing depends on having seen
//! the change itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lb_svc_crds::Requested;
use lb_svc_crds::bounded::cut;
use lb_svc_crds::gateway::{
    ADVERTISEMENT_INTERVAL_MS, Address, CONFIG_VERSION, DIRECT_VERSION, Election, Frontend, GatewayConfig,
    GatewayStatus, LIMITED_VERSION, Port, Subset, Target,
};
use lb_svc_crds::names::{self, Provider};

use serde_json::Value;

use super::spec::{self, DirectAccessCause, ServiceSpec, transport};
use crate::action::{Action, Plan};
use crate::backend::convergence::{Convergence, ConvergenceState, EndpointTargets, Observation};
use crate::backend::endpoints;
use crate::gateway::election::{self, ElectionEvent, ElectionView};
use crate::gateway::manifests::{self, DeploymentTemplate, TemplateHash};
use crate::gateway::migration::{self, Step};
use crate::gateway::pod_settings::{Configuration, Settings};
use crate::gateway::rollout::MAX_CONCURRENT_ROLLOUTS;
use crate::ipam::{AddressRequest, AllocationError, BEING_FREED, Claim, Network};
use crate::model::{
    Attachment, Condition, DeploymentState, EndpointSlice, GatewayRef, Ingress, OwnedObject, Pod, PodId,
    Problem, Service, ServicePort, ServiceRef, Setting, StatusReport,
};

/// The Service holds an address.
pub const ADDRESS_ALLOCATED: &str = "lb-svc.kubeovn.io/AddressAllocated";
/// A ready gateway serves the address on all ports.
pub const GATEWAY_READY: &str = "lb-svc.kubeovn.io/GatewayReady";
/// Part of what the Service asks is not served; absent where all is.
pub const LIMITED: &str = "lb-svc.kubeovn.io/Limited";

/// The longest message of the condition [`LIMITED`], in bytes: there may be a
/// warning for each port.
const LIMITED_MAX: usize = 8 * 1024;
/// A ConfigMap holds no more than this (Kubernetes API: 1 MiB of data).
const CONFIG_MAX: usize = 1024 * 1024 - 1024;
/// How often a Warning is said again while it lasts.
const REMIND: Duration = Duration::from_secs(25 * 60);
/// The longest pause between two nudges of a pod that does not follow.
const NUDGE_MAX: Duration = Duration::from_secs(30);
/// How often pods that were refused are asked for again. Kubernetes itself does
/// so ever more seldom, at last every 17 minutes, whatever was done meanwhile;
/// a Deployment that changes makes it look at once.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// What a pod lacks for so long after its creation is no fault yet.
pub const START_GRACE: SignedDuration = SignedDuration::from_secs(10);
/// So many addresses that foreign hosts have are given up in a row, before the
/// last one is waited for.
const GIVEN_UP: usize = 8;
/// How often a key is made anew for pods that seem to wait for it.
const KEY_AGAIN: Duration = Duration::from_secs(10);
/// How often a pod that answers nothing is nudged.
const NUDGES_UNANSWERED: u32 = 4;

/// Everything seen that concerns one gateway.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The Service, if there is one.
    pub service: Option<Service>,
    /// The claims of every Service that has or had its name.
    pub claims: Vec<Claim>,
    /// The networks of those claims' Subnets, by Subnet.
    pub networks: BTreeMap<String, Network>,
    /// The NetworkAttachmentDefinition that the Service names, if it exists.
    pub attachment: Option<Attachment>,
    /// The controller's configuration.
    pub configuration: Arc<Configuration>,
    /// The namespace where the gateway is.
    pub namespace: String,
    /// The namespace where it is to be.
    pub desired_namespace: String,
    /// Whether what is in [`Self::namespace`] can be seen.
    pub is_visible: bool,
    /// The ConfigMap with the gateway's name; its content is [`names::CONFIG_KEY`].
    pub config: Option<OwnedObject<String>>,
    /// The Deployment with the gateway's name.
    pub deployment: Option<OwnedObject<DeploymentState>>,
    /// The PodDisruptionBudget with the gateway's name, compared as the
    /// Deployment is.
    pub budget: Option<OwnedObject<Value>>,
    /// The gateway's pods, whosever they were.
    pub pods: Vec<Pod>,
    /// The Service's EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The pods of its namespace that are ready but for our readiness gate, and
    /// whether they have passed it.
    pub gated_pods: BTreeMap<PodId, bool>,
    /// What this process last saw of the gateway, where it leads straight to
    /// endpoints.
    pub convergence_state: Option<ConvergenceState>,
    /// What this process last saw of their election, if it has looked.
    pub election: Option<ElectionView>,
    /// How long ago this process last made the key.
    pub key_written: Option<Duration>,
    /// How long ago each pod was nudged, by uid, as far as this process
    /// remembers.
    pub nudges: HashMap<String, Duration>,
    /// Of the hardware addresses that gateways name in conflicts, those that
    /// are gateways' own.
    pub own_macs: BTreeSet<String>,
    /// Why no address could be had a moment ago, if that was tried.
    pub allocation_error: Option<AllocationError>,
    /// What the API server said when it refused to write something of this
    /// gateway a moment ago.
    pub write_refused: Option<String>,
    /// How many other gateways are being rolled, or made.
    pub other_rollouts: usize,
    /// How long ago this process last warned of this Service.
    pub warned: Option<Duration>,
    /// Now, by the wall clock.
    pub now: Timestamp,
}

impl Observed {
    /// Where the gateway of `service` is.
    pub fn gateway_ref(&self, service: &ServiceRef) -> GatewayRef {
        GatewayRef { service: service.clone(), namespace: self.namespace.clone() }
    }

    /// Whether the gateway is elsewhere than it is to be.
    pub fn is_misplaced(&self) -> bool {
        self.namespace != self.desired_namespace
    }
}

/// Plans for the gateway of `service`.
pub fn plan(service: &ServiceRef, observed: &Observed) -> Plan {
    match observed.service.as_ref().and_then(|service| Some((service, spec::parse(service)?))) {
        None => withdraw(observed),
        Some((wanted, spec)) => Planner::new(service, wanted, observed).run(spec),
    }
}

/// The configuration as it goes into the ConfigMap.
fn render(config: &GatewayConfig) -> String {
    // Serialising plain structs of strings and numbers cannot fail.
    serde_json::to_string_pretty(config).unwrap_or_default()
}

/// Nobody asks for this gateway: take everything of ours away.
fn withdraw(observed: &Observed) -> Plan {
    let mut actions = Vec::new();
    if let Some(service) = &observed.service {
        let mine: Vec<&Claim> =
            observed.claims.iter().filter(|claim| claim.owner.uid == service.id.uid).collect();
        let ours = |text: &str| mine.iter().any(|claim| claim.address.to_string() == text);
        if service.ingress.iter().any(|entry| ours(&entry.ip)) || !service.conditions.is_empty() {
            actions.push(Action::SetStatus { ingress: Vec::new(), conditions: Vec::new() });
        }
        if is_filled(service, &mine) && !service.deleting {
            actions.push(Action::ClearAddress);
        }
    }
    remove_children(observed, None, &mut actions);
    release_strays(observed, None, &mut actions);
    // What our own write showed of others' was not told to the queue.
    let converged = observed.claims.is_empty() && actions.is_empty();
    Plan { actions, converged, ..Plan::default() }
}

/// Whether `spec.loadBalancerIP` is what we filled in, not what a user wrote.
fn is_filled(service: &Service, mine: &[&Claim]) -> bool {
    mine.iter().any(|claim| {
        claim.requested == Requested::Dynamic && claim.address.to_string() == service.load_balancer_ip
    })
}

/// Deletes a gateway's objects unless they are for the Service `keep`, or not
/// ours.
fn remove_children(observed: &Observed, keep: Option<&str>, actions: &mut Vec<Action>) {
    fn stale<'a, T>(child: Option<&'a OwnedObject<T>>, keep: Option<&str>) -> Option<&'a OwnedObject<T>> {
        child.filter(|child| {
            child.owner_uid.is_some() && child.owner_uid.as_deref() != keep && !child.deleting
        })
    }
    if let Some(child) = stale(observed.budget.as_ref(), keep) {
        actions.push(Action::DeleteBudget(child.uid.clone(), child.resource_version.clone()));
    }
    if let Some(child) = stale(observed.deployment.as_ref(), keep) {
        actions.push(Action::DeleteDeployment(child.uid.clone(), child.resource_version.clone()));
    }
    if let Some(child) = stale(observed.config.as_ref(), keep) {
        actions.push(Action::DeleteConfig(child.uid.clone(), child.resource_version.clone()));
    }
}

/// Whether something could still answer for the address of a claim: a
/// Deployment or ConfigMap to make a new pod from, or a pod.
fn is_held(observed: &Observed, claim: &Claim) -> bool {
    fn is_for<T>(child: Option<&OwnedObject<T>>, uid: &str) -> bool {
        child.is_some_and(|child| child.owner_uid.as_deref() == Some(uid))
    }
    let uid = claim.owner.uid.as_str();
    // What is elsewhere is looked at alone, until it is gone.
    observed.is_misplaced()
        || is_for(observed.deployment.as_ref(), uid)
        || is_for(observed.config.as_ref(), uid)
        || observed.pods.iter().any(|pod| pod.owner_uid == uid && pod.could_answer())
}

/// Releases the claims of every Service but `current` for whose address
/// nothing can answer any more. A claim that is to be kept outlives its
/// Service, but not the Service's request for a gateway.
fn release_strays(observed: &Observed, current: Option<&str>, actions: &mut Vec<Action>) {
    let seen = observed.service.as_ref().map(|service| &service.id.uid);
    for claim in observed.claims.iter().filter(|claim| Some(claim.owner.uid.as_str()) != current) {
        let kept = claim.keep && claim.conflict.is_empty() && Some(&claim.owner.uid) != seen;
        if !kept && !is_held(observed, claim) {
            actions.push(Action::Release(claim.id.clone()));
        }
    }
}

struct Planner<'a> {
    key: &'a ServiceRef,
    service: &'a Service,
    observed: &'a Observed,
    /// The claims of this very Service.
    mine: Vec<&'a Claim>,
    actions: Vec<Action>,
    /// What is not served as asked, while the rest is.
    warnings: Vec<Problem>,
    in_rollout: bool,
    rollout_pending: bool,
    /// Whether the gateway leaves the namespace where it is.
    moves: bool,
    /// What is seen of the election among the gateway's pods.
    election: Option<ElectionView>,
    /// What is seen of the gateway, where it leads straight to endpoints.
    convergence: Option<Convergence>,
    /// Why it does.
    cause: Option<DirectAccessCause>,
}

impl<'a> Planner<'a> {
    fn new(key: &'a ServiceRef, service: &'a Service, observed: &'a Observed) -> Self {
        let mine = observed.claims.iter().filter(|claim| claim.owner.uid == service.id.uid).collect();
        Self {
            key,
            service,
            observed,
            mine,
            actions: Vec::new(),
            warnings: Vec::new(),
            in_rollout: false,
            rollout_pending: false,
            moves: false,
            election: None,
            convergence: None,
            cause: None,
        }
    }

    fn run(mut self, spec: Result<ServiceSpec, Problem>) -> Plan {
        let uid = Some(self.service.id.uid.as_str());
        self.moves = spec.is_ok() && self.is_to_move();
        remove_children(self.observed, uid.filter(|_| !self.moves), &mut self.actions);
        release_strays(self.observed, uid, &mut self.actions);
        match spec {
            // The last good state serves on: nothing but endpoints and the
            // status change.
            Err(problem) => {
                let follows = self.keep_up();
                let ingress = self.kept_ingress();
                self.report(ingress, Err(&problem), Err(&problem));
                let converged = self.actions.is_empty() && follows && !self.is_changing();
                Plan { converged, ..self.plan() }
            }
            Ok(spec) => self.serve(&spec),
        }
    }

    fn serve(mut self, spec: &ServiceSpec) -> Plan {
        if let Some((claim, mac)) = self.new_conflict() {
            let message = format!("{} is in use by {mac}, another address is taken", claim.address);
            self.actions.push(Action::MarkConflict(claim.id.clone(), mac));
            self.actions.push(Action::Event { warning: true, reason: CONFLICT.to_owned(), message });
            return self.plan();
        }
        let target = self.target(spec);
        let allocated = match (target, &self.observed.allocation_error) {
            (Some(claim), _) => Ok(claim),
            (None, Some(allocation_error)) => {
                Err(Problem::new(allocation_error.reason(), allocation_error.to_string()))
            }
            (None, None) => {
                self.actions.push(match self.left_behind(spec) {
                    Some(claim) => Action::Adopt(claim.id.clone()),
                    None => Action::Claim(self.address_request(spec)),
                });
                return self.plan();
            }
        };

        if !self.observed.is_misplaced() {
            // Before anything is made here: whoever comes next has to know.
            let desired_namespace = &self.observed.desired_namespace;
            let astray = self.mine.iter().filter(|claim| claim.gateway_namespace != *desired_namespace);
            self.actions.extend(astray.map(|claim| Action::SetGatewayNamespace(claim.id.clone())));
        }
        // A claim that was taken away, and its address given to another: at
        // once there must be nothing left that answers for it.
        if self.mine.is_empty() {
            remove_children(self.observed, None, &mut self.actions);
        }
        // A Deployment that is made anew takes its turn until the next is there.
        let uid = &self.service.id.uid;
        self.in_rollout |= self
            .observed
            .deployment
            .as_ref()
            .is_some_and(|known| known.deleting && known.owner_uid.as_ref() == Some(uid));
        let serving = self.serving(spec, target);
        self.cause = spec.direct.as_ref().map(|direct| direct.cause);
        let config = self.config(spec, &serving);
        let (digest, written, led) = match config.and_then(|config| config.map(Content::of).transpose()) {
            Ok(Some(content)) => {
                let (digest, written) = self.write(&content);
                (Some(digest), Ok(written), content.led)
            }
            Ok(None) => (None, Ok(false), None),
            Err(problem) => (None, Err(problem), None),
        };
        self.warnings.clone_from(&spec.warnings);
        let deployed = match &written {
            Ok(_) if digest.is_some() => self.deploy(spec),
            Ok(_) => Ok(()),
            Err(problem) => Err(problem.clone()),
        };
        if let Some(digest) = &digest {
            self.warnings.extend(target.and_then(|claim| self.fallen_out(claim)));
            self.annotate(&spec.provider, &serving, digest);
            self.record(&serving);
            self.tell_of_election(&serving);
        }
        for claim in self.mine.iter().filter(|claim| claim.keep != spec.keep) {
            self.actions.push(Action::SetRetain(claim.id.clone(), spec.keep));
        }

        // Who asks for what he cannot have keeps what he has, whether or not
        // his status has said so yet.
        let shown = target
            .or_else(|| serving.iter().find(|claim| self.is_in_status(claim)).or(serving.first()).copied());
        let taken_up = shown.is_none_or(|claim| self.is_taken_up(claim));
        let follows = matches!(written, Ok(true)) && digest.as_ref().is_some_and(|d| self.follows(d));
        self.convergence = led.zip(digest.as_ref()).map(|(led, digest)| self.look(&led, digest, follows));
        let programmed = follows && taken_up;
        // Of endpoints that come and go it may be behind a little.
        let keeps_up = self.convergence.as_ref().is_some_and(|direct| direct.serves);
        let served = programmed || keeps_up && taken_up && self.pods().any(|pod| pod.ready);
        let ingress = match shown {
            Some(claim) if served => vec![Ingress {
                ip: claim.address.to_string(),
                proxy: spec.pass_through,
                ports: spec.port_statuses.clone(),
            }],
            _ => self.kept_ingress(),
        };
        let ready = match deployed {
            Err(problem) => Err(problem),
            Ok(()) if served => Ok(()),
            Ok(()) => Err(self.obstacle(&serving)),
        };
        if let (Some(claim), None) = (target, self.address_request(spec).address)
            && self.service.load_balancer_ip != claim.address.to_string()
        {
            self.actions.push(Action::FillAddress(claim.address));
        }
        if let (Some(digest), true) = (&digest, programmed) {
            self.release_extras(&serving, digest);
        }
        if served {
            self.warnings.extend(self.write_refused());
            self.warnings.extend(self.lacking());
            self.warnings.splice(..0, self.failing());
        }
        let address_pending = allocated.is_err();
        self.report(ingress, allocated.as_ref().copied(), ready.as_ref().copied());
        let writes = self.actions.iter().any(|action| !matches!(action, Action::WriteDeployment(_)));
        let converged = (programmed || address_pending) && !writes && !self.is_changing();
        Plan { converged, address_pending, ..self.plan() }
    }

    /// Whether more is to be seen of the gateway's endpoints soon.
    fn is_changing(&self) -> bool {
        self.convergence.as_ref().is_some_and(|direct| direct.may_fail || direct.holds)
    }

    /// What is planned so far, with more to come.
    fn plan(self) -> Plan {
        let Self { actions, in_rollout, rollout_pending, convergence, .. } = self;
        Plan { actions, in_rollout, rollout_pending, convergence, ..Plan::default() }
    }

    /// Writes the ConfigMap, unless it is so; returns whether it was.
    fn write(&mut self, content: &Content) -> (Digests, bool) {
        let Content { text, before, .. } = content;
        let known = self.observed.config.as_ref().map(|config| &config.content);
        let written = known == Some(text) || known == Some(before);
        if known != Some(text) {
            self.actions.push(Action::WriteConfig(text.clone()));
        }
        (Digests([text, before].map(|text| names::digest(text.as_bytes()))), written)
    }

    /// Whether a ready pod carries out the configuration.
    fn follows(&self, digest: &Digests) -> bool {
        self.pods().any(|pod| pod.ready && follows(pod, digest))
    }

    /// Looks at a gateway that leads straight to endpoints.
    fn look(&self, led: &EndpointTargets, digest: &Digests, follows: bool) -> Convergence {
        let pods: Vec<&Pod> = self.pods().filter(|pod| pod.ready).collect();
        let carries = |status: &GatewayStatus| status.digest.as_deref().is_some_and(|known| digest.is(known));
        let Observed { slices, gated_pods, now, convergence_state, .. } = self.observed;
        let digest = digest.wanted();
        let look = Observation {
            led,
            digest,
            pods: &pods,
            follows,
            carries: &carries,
            slices,
            gated_pods,
            now: *now,
        };
        look.see(convergence_state.as_ref())
    }

    /// Has the gateway that serves the last good state on follow its endpoints:
    /// they come and go all the same. Returns whether it does.
    fn keep_up(&mut self) -> bool {
        let known = self.observed.config.as_ref().filter(|_| self.name_is_free().is_ok());
        let Some(mut config) = known.and_then(|known| serde_json::from_str(&known.content).ok()) else {
            return true;
        };
        let GatewayConfig { frontends, addresses, .. } = &mut config;
        let mut is_direct = false;
        for Frontend { ports, target, .. } in frontends {
            if let Target::Endpoints { subsets, .. } = target {
                (*subsets, is_direct) = (self.subsets(ports), true);
            }
        }
        if !is_direct {
            return true;
        }
        let is_served = |claim: &&Claim| addresses.iter().any(|known| known.address == claim.address);
        let serving: Vec<&Claim> = self.mine.iter().copied().filter(is_served).collect();
        let (Some(claim), Ok(content)) = (serving.first(), Content::of(config)) else { return true };
        let (digest, written) = self.write(&content);
        self.annotate(&claim.provider, &serving, &digest);
        let follows = written && self.follows(&digest);
        self.convergence = content.led.as_ref().map(|led| self.look(led, &digest, follows));
        follows
    }

    /// The endpoints that the Service's ports lead to, as far as they are among
    /// `ports`.
    fn subsets(&self, ports: &[Port]) -> Vec<Subset> {
        let is_served = |ServicePort { protocol, port, .. }: &&ServicePort| {
            transport(protocol).is_some_and(|protocol| ports.contains(&Port { protocol, port: *port }))
        };
        let ports: Vec<ServicePort> = self.service.ports.iter().filter(is_served).cloned().collect();
        endpoints::subsets(&ports, &self.observed.slices, |pod| self.observed.gated_pods.contains_key(&pod))
    }

    /// Says that checks find no endpoint healthy.
    fn failing(&self) -> Option<Problem> {
        let failing = &self.convergence.as_ref()?.failing;
        let ports: Vec<String> = failing.iter().map(|port| port.port.to_string()).collect();
        let message =
            format!("all endpoints of port {} fail their health check: all are used", ports.join(", "));
        (!failing.is_empty()).then(|| Problem::new("AllUnhealthy", message))
    }

    /// The gateway's living pods.
    fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        let uid = &self.service.id.uid;
        self.observed.pods.iter().filter(move |pod| pod.owner_uid == *uid && !pod.deleting && !pod.finished)
    }

    /// What to ask of the allocator. An address that we filled in is not the
    /// user's request.
    fn address_request(&self, spec: &ServiceSpec) -> AddressRequest {
        AddressRequest {
            owner: self.service.id.clone(),
            provider: spec.provider.clone(),
            subnet: spec.subnet.clone(),
            address: spec.address.filter(|_| !is_filled(self.service, &self.mine)),
            keep: spec.keep,
        }
    }

    /// The claim that an earlier Service of this name left behind, if it
    /// fulfils the request and its gateway is gone.
    fn left_behind(&self, spec: &ServiceSpec) -> Option<&'a Claim> {
        let address_request = self.address_request(spec);
        let mut kept = self
            .observed
            .claims
            .iter()
            .filter(|claim| claim.keep && claim.conflict.is_empty() && fulfils(claim, &address_request));
        kept.find(|claim| !is_held(self.observed, claim))
    }

    /// Who has the claim's address instead of our gateway, as that says.
    fn conflict(&self, claim: &Claim) -> Option<&'a String> {
        self.pods().find_map(|pod| said(pod)?.conflicts.get(&claim.address))
    }

    /// Whether a gateway has or had this hardware address, and is on its way
    /// out if it answers for an address that is not its own.
    fn is_own(&self, mac: &str) -> bool {
        let known = |claim: &Claim| claim.mac.eq_ignore_ascii_case(mac);
        self.observed.own_macs.contains(mac) || self.observed.claims.iter().any(known)
    }

    /// A dynamic claim on an address that turns out to be a foreign host's, if
    /// another is to be tried. What has been in service is not given up.
    fn new_conflict(&self) -> Option<(&'a Claim, String)> {
        let given_up = self.mine.iter().filter(|claim| !claim.conflict.is_empty()).count();
        let mut candidates = self.mine.iter().filter(|claim| {
            claim.requested == Requested::Dynamic && claim.conflict.is_empty() && self.is_unproven(claim)
        });
        candidates.find_map(|claim| {
            let mac = self.conflict(claim).filter(|mac| given_up < GIVEN_UP && !self.is_own(mac))?;
            Some((*claim, mac.clone()))
        })
    }

    /// Whether the LAN is to be asked for the address: it has never been in
    /// service.
    fn is_unproven(&self, claim: &Claim) -> bool {
        !claim.probed && !self.is_in_status(claim)
    }

    /// Whether the LAN is to be asked for the address before the gateway takes
    /// it. An address that the gateway's configuration does not list is not
    /// known to be free, whatever served it before: the claim was kept while no
    /// gateway held it, or what is seen of it is out of date.
    fn is_to_probe(&self, claim: &Claim, listed: Option<&Address>) -> bool {
        let has = |pod: &Pod| said(pod).is_some_and(|status| status.addresses.contains(&claim.address));
        let is_proven = listed.is_some_and(|listed| !listed.probe || self.pods().any(has));
        !is_proven || self.is_unproven(claim)
    }

    /// The claim that fulfils the request, if there is one already.
    fn target(&self, spec: &ServiceSpec) -> Option<&'a Claim> {
        let address_request = self.address_request(spec);
        // The one in use before any other: what a user's tooling drops from
        // the spec is filled in again.
        let in_use = |claim: &&Claim| Some(claim.address) == spec.address || self.is_in_status(claim);
        let fits = |claim: &&&Claim| {
            fulfils(claim, &address_request)
                && (address_request.address.is_some() || claim.conflict.is_empty())
        };
        let fitting: Vec<&Claim> = self.mine.iter().filter(fits).copied().collect();
        fitting.iter().find(|claim| in_use(claim)).or(fitting.first()).copied()
    }

    /// The claims the gateway is to serve: the one asked for, and until the
    /// Service's status says that one, the one that it does say. Where none is
    /// as asked, that one alone, or the first of those held, so that the others
    /// are given back; of addresses that all are in use by foreign hosts each
    /// is kept, for any may come free.
    fn serving(&self, spec: &ServiceSpec, target: Option<&'a Claim>) -> Vec<&'a Claim> {
        let candidates = || self.mine.iter().filter(|claim| claim.provider == spec.provider).copied();
        let shown = candidates().find(|claim| self.is_in_status(claim));
        match target {
            Some(target) => {
                let others = shown.filter(|shown| shown.id.name != target.id.name);
                std::iter::once(target).chain(others).collect()
            }
            None => {
                // In the order of their addresses: two controllers choose alike.
                let sound = candidates().filter(|claim| claim.conflict.is_empty());
                match shown.or_else(|| sound.min_by_key(|claim| claim.address)) {
                    Some(kept) => vec![kept],
                    None => candidates().collect(),
                }
            }
        }
    }

    /// The gateway's configuration; `None` without an address to serve.
    fn config(&self, spec: &ServiceSpec, serving: &[&Claim]) -> Result<Option<GatewayConfig>, Problem> {
        self.name_is_free()?;
        if serving.is_empty() {
            return Ok(None);
        }
        let known: Option<GatewayConfig> =
            self.observed.config.as_ref().and_then(|config| serde_json::from_str(&config.content).ok());
        let mut addresses = Vec::new();
        for claim in serving {
            let listed = known
                .as_ref()
                .and_then(|known| known.addresses.iter().find(|address| address.address == claim.address));
            let probe = self.is_to_probe(claim, listed);
            let network =
                self.observed.networks.get(&claim.subnet).filter(|network| network.holds(claim.address));
            let network = network.map(|network| Address {
                address: claim.address,
                cidr: network.cidr.into(),
                gateway: Some(network.gateway.into()),
                subnet: claim.subnet.clone(),
                probe,
            });
            // A Subnet that was spoiled, lost or shrunk leaves a live address as
            // it is; so does one whose router has it now.
            let before = || Some(Address { probe, ..listed?.clone() });
            addresses.push(network.or_else(before).ok_or_else(|| {
                Problem::new(
                    "SubnetNotFound",
                    format!(
                        "Subnet {}, which {} is from, does not exist or is not valid",
                        claim.subnet, claim.address
                    ),
                )
            })?);
        }
        let target = match &spec.direct {
            None => Target::ClusterIp { addresses: spec.cluster_ips.clone() },
            Some(direct) => Target::Endpoints {
                subsets: self.subsets(&spec.ports),
                affinity_seconds: direct.affinity_seconds,
                check: direct.check.clone(),
            },
        };
        Ok(Some(GatewayConfig {
            version: match (&target, &spec.clients) {
                (Target::Endpoints { .. }, _) => DIRECT_VERSION,
                (_, Some(_)) => LIMITED_VERSION,
                (_, None) => CONFIG_VERSION,
            },
            attachment: spec.provider.multus_name(),
            frontends: vec![Frontend {
                service: self.key.to_string(),
                addresses: addresses.iter().map(|address| address.address).collect(),
                target,
                ports: spec.ports.clone(),
                clients: spec.clients.clone(),
            }],
            nat_backend: spec.nat_backend.unwrap_or(self.observed.configuration.nat_backend),
            addresses,
            election: Some(Election {
                gateway: self.service.id.uid.clone(),
                interval_ms: ADVERTISEMENT_INTERVAL_MS,
            }),
        }))
    }

    /// Says of a live address that its Subnet would not give it out now.
    fn fallen_out(&self, claim: &Claim) -> Option<Problem> {
        let Claim { address, subnet, .. } = claim;
        let why = match self.observed.networks.get(subnet) {
            Some(network) if network.holds(*address) => return None,
            Some(Network { cidr, gateway, .. }) => {
                format!(
                    "{address} is not among the addresses of Subnet {subnet} ({cidr}, gateway {gateway}) any more"
                )
            }
            None => {
                format!("Subnet {subnet}, which {address} is from, does not exist or is not valid any more")
            }
        };
        let message = format!(
            "{why}: the Service keeps it, served as before; correct the Subnet, or give the Service another (spec.loadBalancerIP)"
        );
        Some(Problem::new("AddressNotInSubnet", message))
    }

    /// Whether the gateway is to leave where it is now. Until its turn comes it
    /// is served there like any other.
    fn is_to_move(&mut self) -> bool {
        if !self.observed.is_misplaced() || !self.observed.is_visible {
            return false;
        }
        let has_left = self.observed.deployment.as_ref().is_none_or(|child| child.deleting);
        let turn =
            self.observed.other_rollouts < MAX_CONCURRENT_ROLLOUTS || !self.pods().any(|pod| pod.ready);
        (self.in_rollout, self.rollout_pending) = (has_left || turn, !has_left && !turn);
        self.in_rollout
    }

    /// Whether ConfigMap and Deployment are ours to write.
    fn name_is_free(&self) -> Result<(), Problem> {
        let Observed { namespace, desired_namespace, .. } = self.observed;
        if self.moves {
            let message = format!("the gateway moves from namespace {namespace} to {desired_namespace}");
            return Err(Problem::new(REPLACING, message));
        }
        if self.observed.is_misplaced() && !self.observed.is_visible {
            let message = format!(
                "the gateway is in namespace {namespace}, where the controller may not look, and is to be in {desired_namespace}: give the controller its rights there back until it has moved"
            );
            return Err(Problem::new("GatewayElsewhere", message));
        }
        let children = [
            ("ConfigMap", self.observed.config.as_ref().map(|child| (&child.owner_uid, child.deleting))),
            ("Deployment", self.observed.deployment.as_ref().map(|child| (&child.owner_uid, child.deleting))),
        ];
        for (kind, child) in children {
            match child {
                None => {}
                Some((Some(uid), false)) if *uid == self.service.id.uid => {}
                Some((Some(_), _)) => {
                    let message = "the gateway of an earlier Service of this name is being removed";
                    return Err(Problem::new(REPLACING, message));
                }
                Some((None, _)) => {
                    let name = self.observed.gateway_ref(self.key);
                    let message = format!(
                        "{kind} {name} exists and was not made by lb-svc: rename or delete it, or rename the Service"
                    );
                    return Err(Problem::new("NameTaken", message));
                }
            }
        }
        Ok(())
    }

    fn deploy(&mut self, spec: &ServiceSpec) -> Result<(), Problem> {
        // A gateway that runs needs the attachment no more and stays as it is;
        // a new one would hang half made.
        let attachment = self.attachment(&spec.provider)?;
        let configuration = &self.observed.configuration;
        let own = match Settings::of_service(&self.service.settings, &configuration.service_may_set) {
            Ok(own) => own,
            Err(problem) if self.observed.deployment.is_some() => {
                self.warnings.push(problem);
                return Ok(());
            }
            Err(problem) => return Err(problem),
        };
        let template = DeploymentTemplate {
            provider: &spec.provider,
            attachment,
            all: &configuration.gateway,
            own: &own,
        };
        let place = self.observed.gateway_ref(self.key);
        let mut wanted = manifests::deployment(&self.service.id, &place, &template);
        let several = own.or(&configuration.gateway).replicas() > 1;
        if !self.migrate(several) {
            return Ok(());
        }
        if let Some(DeploymentState { live, as_answered, .. }) =
            self.observed.deployment.as_ref().map(|child| &child.content)
        {
            if manifests::is_as_wanted(live, &wanted, *as_answered) {
                if several && self.waits_for_key() {
                    self.actions.extend(self.key());
                }
                if self.is_to_ask_again() {
                    wanted["metadata"]["annotations"][names::ASKED_ANNOTATION] =
                        self.observed.now.to_string().into();
                    self.actions.push(Action::WriteDeployment(wanted));
                }
                self.budget(several);
                return Ok(());
            }
            let (known, origin) = (TemplateHash::of(live), TemplateHash::of(&wanted));
            let of_its_own = known.own != origin.own && known != TemplateHash::default();
            // One that serves nobody, or was changed by others, is mended at once.
            if known.all != origin.all && !of_its_own && self.pods().any(|pod| pod.ready) {
                self.in_rollout = self.observed.other_rollouts < MAX_CONCURRENT_ROLLOUTS;
                self.rollout_pending = !self.in_rollout;
                if self.rollout_pending {
                    return Ok(());
                }
            }
        }
        if several {
            // It has an owner, and is there before who waits for it.
            let Some(key) = self.key() else { return Ok(()) };
            self.actions.push(key);
        }
        self.actions.push(Action::WriteDeployment(wanted));
        self.budget(several);
        Ok(())
    }

    /// Has a Deployment of an earlier release made anew, as one of many. Returns
    /// whether there is none, so that the Deployment can be written.
    fn migrate(&mut self, several: bool) -> bool {
        let pods: Vec<&Pod> = self
            .observed
            .pods
            .iter()
            .filter(|pod| pod.owner_uid == self.service.id.uid && pod.could_answer())
            .collect();
        let known = self.observed.deployment.as_ref();
        let step = migration::step(known.map(|child| &child.content.live), &pods, several);
        if matches!(step, Step::Done) {
            return true;
        }
        self.in_rollout =
            self.observed.other_rollouts < MAX_CONCURRENT_ROLLOUTS || !pods.iter().any(|pod| pod.ready);
        self.rollout_pending = !self.in_rollout;
        let is_begun = matches!(step, Step::Wait | Step::EndLegacyPods);
        if self.rollout_pending && !is_begun {
            return false;
        }
        let ids = known.map(|child| (child.uid.clone(), child.resource_version.clone()));
        match (step, ids) {
            (Step::Shrink(mut live), Some(_)) => {
                live["apiVersion"] = "apps/v1".into();
                live["kind"] = "Deployment".into();
                live["metadata"]["name"] = self.observed.gateway_ref(self.key).name().into();
                live["metadata"]["namespace"] = self.observed.namespace.clone().into();
                self.actions.push(Action::WriteDeployment(live));
            }
            (Step::Orphan, Some((uid, version))) => self.actions.push(Action::OrphanDeployment(uid, version)),
            (Step::Delete, Some((uid, version))) => self.actions.push(Action::DeleteDeployment(uid, version)),
            (Step::EndLegacyPods, _) => self.actions.push(Action::DeleteLegacyReplicaSets),
            _ => {}
        }
        // The new Deployment goes on while the earlier pods end.
        is_begun && !known.is_some_and(|child| migration::is_legacy(&child.content.live))
    }

    /// Whether pods were refused, and have not been asked for again lately.
    fn is_to_ask_again(&self) -> bool {
        let Some(OwnedObject { content, deleting: false, .. }) = &self.observed.deployment else {
            return false;
        };
        let asked = content.live["metadata"]["annotations"][names::ASKED_ANNOTATION].as_str();
        let asked = asked.and_then(|at| at.parse::<Timestamp>().ok());
        content.failure.is_some()
            && asked.is_none_or(|at| self.observed.now.duration_since(at).abs() >= ASK_AGAIN)
    }

    /// Makes the key, once the ConfigMap is there to own it.
    fn key(&self) -> Option<Action> {
        self.observed.config.as_ref().map(|config| Action::WriteKey(config.uid.clone()))
    }

    /// Whether a pod that has a node gets nothing to run with: somebody may
    /// have deleted the key.
    fn waits_for_key(&self) -> bool {
        let unschedulable = |pod: &Pod| pod.node.is_none();
        let waits =
            |pod: &Pod| pod.member && pod.address.is_none() && !unschedulable(pod) && self.is_late(pod);
        self.observed.key_written.is_none_or(|age| age >= KEY_AGAIN) && self.pods().any(waits)
    }

    /// Whether the pod has not been ready for longer than starting takes.
    fn is_late(&self, pod: &Pod) -> bool {
        pod.unready_since.is_some_and(|since| self.observed.now.duration_since(since) >= START_GRACE)
    }

    /// Has several pods go one at a time. A budget that is not ours is left
    /// alone: nothing depends on it.
    fn budget(&mut self, several: bool) {
        let Observed { budget, .. } = self.observed;
        if budget.as_ref().is_some_and(|budget| budget.owner_uid.is_none() || budget.deleting) {
            return;
        }
        if several {
            let wanted = manifests::budget(&self.service.id, &self.observed.gateway_ref(self.key));
            if !budget.as_ref().is_some_and(|budget| manifests::is_as_wanted(&budget.content, &wanted, false))
            {
                self.actions.push(Action::WriteBudget(wanted));
            }
        } else if let Some(OwnedObject { uid, resource_version, .. }) = budget {
            self.actions.push(Action::DeleteBudget(uid.clone(), resource_version.clone()));
        }
    }

    /// The attachment, if interfaces can be made from it.
    fn attachment(&self, provider: &Provider) -> Result<&'a Attachment, Problem> {
        let Provider { name, namespace } = provider;
        match &self.observed.attachment {
            Some(Attachment { fault: Some(fault), .. }) => Err(Problem::new(
                "AttachmentInvalid",
                format!("NetworkAttachmentDefinition {name} in namespace {namespace}: {fault}"),
            )),
            Some(attachment) => Ok(attachment),
            None => Err(Problem::new(
                "AttachmentNotFound",
                format!(
                    "there is no NetworkAttachmentDefinition {name} in namespace {namespace}: create it, or correct the annotation {}",
                    names::PROVIDER_ANNOTATION
                ),
            )),
        }
    }

    /// What the API server will not have.
    fn write_refused(&self) -> Option<Problem> {
        let refused = self.observed.write_refused.as_ref()?;
        let settings = Setting::ALL.map(Setting::annotation);
        let set = settings.into_iter().filter(|name| self.service.annotations.contains_key(*name));
        let set = set.collect::<Vec<_>>().join(", ");
        let hint = if set.is_empty() { String::new() } else { format!("; this Service sets {set}") };
        Some(Problem::new("WriteRefused", format!("the API server refuses it: {refused}{hint}")))
    }

    /// Patches what a pod says of its address, and nudges those that have not
    /// read their configuration yet.
    fn annotate(&mut self, provider: &Provider, serving: &[&Claim], digest: &Digests) {
        let Some(claim) = serving.first() else { return };
        let network = self.observed.networks.get(&claim.subnet);
        let mut patches = Vec::new();
        for pod in self.pods() {
            let Some(mac) = &pod.mac else { continue };
            let mut annotations = BTreeMap::new();
            let mut set = |key: &str, value: String| annotations.insert(provider.annotation(key), value);
            set("allocated", "true".to_owned());
            if let Some(network) = network {
                set("cidr", network.cidr.to_string());
                set("gateway", network.gateway.to_string());
            }
            set("ip_address", claim.address.to_string());
            set("logical_switch", claim.subnet.clone());
            set("mac_address", mac.clone());
            set("pod_nic_type", "veth-pair".to_owned());

            let (told, attempt) = told(pod);
            let (told, nudge) = if digest.suits(pod, told) {
                (told, self.is_due(pod, digest, attempt).then_some(attempt.wrapping_add(1)))
            } else {
                (digest.wanted(), Some(0))
            };
            let value = format!("{told}.{}", nudge.unwrap_or(attempt));
            annotations.insert(names::CONFIG_ANNOTATION.to_owned(), value);
            if annotations.iter().any(|(key, value)| pod.annotations.get(key) != Some(value)) {
                patches.push(Action::AnnotatePod {
                    pod: pod.name.clone(),
                    uid: pod.uid.clone(),
                    annotations,
                    nudge,
                });
            }
        }
        self.actions.append(&mut patches);
    }

    /// Whether a pod that was told of the configuration needs telling again:
    /// the kubelet may have refreshed the mount from an older ConfigMap.
    fn is_due(&self, pod: &Pod, digest: &Digests, attempt: u32) -> bool {
        let age = self.observed.nudges.get(&pod.uid).copied().unwrap_or(NUDGE_MAX);
        let pause = (Duration::from_millis(250) * 2u32.pow(attempt.min(7))).min(NUDGE_MAX);
        match &pod.report {
            StatusReport::Reported(status) => {
                !status.seen.as_deref().is_some_and(|seen| digest.suits(pod, seen)) && age >= pause
            }
            StatusReport::NoResponse => pod.ready && attempt < NUDGES_UNANSWERED && age >= pause,
            StatusReport::NotQueried => false,
        }
    }

    /// The pod that answers for the addresses: the active one, where there is
    /// an election; who waits for one that takes no part does not answer.
    fn answering(&self) -> Option<&'a Pod> {
        let pods: Vec<&Pod> = self.pods().collect();
        let alone = || pods.iter().copied().filter(|pod| !pod.member && pod.mac.is_some());
        election::active(&pods).map(|active| active.pod).or_else(|| alone().max_by_key(|pod| pod.ready))
    }

    /// Whether the claim's address is in service, as far as that is known. Of
    /// several pods the ready ones need not be those that answer for it, so
    /// before it is said for the first time one has to have it.
    fn is_taken_up(&self, claim: &Claim) -> bool {
        let has = |pod: &Pod| match said(pod) {
            Some(status) => !pod.member || status.addresses.contains(&claim.address),
            None => pod.ready && self.conflict(claim).is_none(),
        };
        self.is_in_status(claim) || self.pods().any(has)
    }

    /// Tells who is active now, and that two were.
    fn tell_of_election(&mut self, serving: &[&Claim]) {
        let before = &self.observed.election;
        let pods: Vec<&Pod> = self.pods().collect();
        let mut news = Vec::new();
        if pods.iter().any(|pod| pod.member) {
            let (seen, more) = ElectionView::observe(before.as_ref(), &pods);
            (self.election, news) = (Some(seen), more);
        }
        let addresses = serving.iter().map(|claim| claim.address.to_string()).collect::<Vec<_>>().join(", ");
        for news in news {
            let (warning, reason, message) = match news {
                ElectionEvent::ActiveChanged(pod, node, why) => {
                    let on = node.map(|node| format!(" on {node}")).unwrap_or_default();
                    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                    (false, "ActiveChanged", format!("{pod}{on} answers for {addresses} now{why}"))
                }
                ElectionEvent::SplitBrain(pods) => {
                    let pods = pods.join(" and ");
                    let message = format!(
                        "two pods answered for {addresses} at once until one gave way, says {pods}: the LAN was in parts, or loses frames"
                    );
                    (true, "SplitBrain", message)
                }
            };
            self.actions.push(Action::Event { warning, reason: reason.to_owned(), message });
        }
        if self.election != *before {
            self.actions.push(Action::Remember(self.election.clone()));
        }
    }

    /// Who serves, where there are several: without anything that changes
    /// while they stay the same.
    fn by_whom(&self) -> String {
        let Some((active, _)) = self.election.as_ref().and_then(|seen| seen.active.as_ref()) else {
            return String::new();
        };
        let place = |pod: &Pod| {
            let on = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
            format!("{}{on}", pod.name)
        };
        let Some(active) = self.pods().find(|pod| pod.name == *active) else { return String::new() };
        let standbys = self.pods().filter(|pod| pod.member && pod.ready && pod.name != active.name);
        let mut standbys: Vec<String> = standbys.map(place).collect();
        standbys.sort_unstable();
        let standbys = match standbys.is_empty() {
            true => "no standby".to_owned(),
            false => format!("standby {}", standbys.join(", ")),
        };
        format!(" by {}; {standbys}", place(active))
    }

    /// How it serves, where that is not by the ClusterIP.
    fn how(&self) -> String {
        let cause = self.cause.map(|cause| format!("; connections go straight to its endpoints, {cause}"));
        cause.unwrap_or_default()
    }

    /// Why there are fewer pods than are asked for, while others serve.
    fn lacking(&self) -> Option<Problem> {
        let deployment = &self.observed.deployment.as_ref()?.content;
        let asked = deployment.live["spec"]["replicas"].as_u64().filter(|asked| *asked > 1)?;
        let ready = self.pods().filter(|pod| pod.ready).count();
        if u64::try_from(ready).unwrap_or(u64::MAX) >= asked {
            return None;
        }
        let refused = deployment.failure.as_ref().map(|failure| format!("no pod can be made: {failure}"));
        let why = refused.or_else(|| {
            let pod = self.pods().find(|pod| self.is_late(pod))?;
            let fault = said(pod).and_then(|status| status.faults.values().next());
            let why = pod.waiting.as_ref().map(|(_, message)| message).or(fault);
            Some(format!("{}: {}", pod.name, why.map_or("it is not ready", String::as_str)))
        })?;
        Some(Problem::new("StandbyMissing", format!("{ready} of {asked} gateway pods are ready; {why}")))
    }

    /// Records in the claims what their gateway knows.
    fn record(&mut self, serving: &[&Claim]) {
        let Some((pod, mac)) = self.answering().and_then(|pod| Some((pod, pod.mac.as_ref()?))) else {
            return;
        };
        for claim in serving {
            let served = said(pod).is_some_and(|status| status.addresses.contains(&claim.address));
            let mac = if pod.ready { mac } else { &claim.mac };
            let probed = claim.probed || served;
            if claim.mac != *mac || claim.probed != probed {
                let claim = claim.id.clone();
                self.actions.push(Action::RecordMac { claim, mac: mac.clone(), probed });
            }
        }
    }

    /// Gives back the addresses that were asked for earlier, once no gateway
    /// of ours answers for them.
    fn release_extras(&mut self, serving: &[&Claim], digest: &Digests) {
        let uid = &self.service.id.uid;
        for claim in &self.mine {
            let let_go = |pod: &Pod| {
                said(pod).is_some_and(|status| {
                    status.digest.as_deref().is_some_and(|known| digest.is(known))
                        && !status.addresses.contains(&claim.address)
                })
            };
            let held = self
                .observed
                .pods
                .iter()
                .any(|pod| pod.owner_uid == *uid && pod.could_answer() && !let_go(pod));
            if !serving.iter().any(|kept| kept.id.name == claim.id.name) && !held {
                self.actions.push(Action::Release(claim.id.clone()));
            }
        }
    }

    /// What is in the status already and still ours.
    fn kept_ingress(&self) -> Vec<Ingress> {
        let ours = |entry: &&Ingress| self.mine.iter().any(|claim| claim.address.to_string() == entry.ip);
        self.service.ingress.iter().filter(ours).cloned().collect()
    }

    /// Whether the status names the claim's address.
    fn is_in_status(&self, claim: &Claim) -> bool {
        let address = claim.address.to_string();
        self.service.ingress.iter().any(|entry| entry.ip == address)
    }

    /// What keeps the gateway from serving, as far as can be seen.
    fn obstacle(&self, serving: &[&Claim]) -> Problem {
        if let Some(problem) = self.write_refused() {
            return problem;
        }
        let conflicts = serving.iter().filter_map(|claim| Some((claim.address, self.conflict(claim)?)));
        if let Some((address, mac)) = conflicts.into_iter().next() {
            return if self.is_own(mac) {
                let message = format!(
                    "{address} is answered for by an earlier gateway ({mac}), which is on its way out"
                );
                Problem::new(BEING_FREED, message)
            } else {
                let message = format!(
                    "{address} is in use by the host with the hardware address {mac}: take it from that host, or choose another"
                );
                Problem::new(CONFLICT, message)
            };
        }
        if let Some(failure) =
            self.observed.deployment.as_ref().and_then(|deployment| deployment.content.failure.as_ref())
        {
            return Problem::new("PodRefused", format!("no gateway pod can be made: {failure}"));
        }
        for pod in self.pods() {
            if let Some((reason, message)) = &pod.waiting {
                let l2_segment =
                    self.observed.attachment.as_ref().and_then(|attachment| attachment.l2_segment.as_ref());
                let place = match (&pod.node, l2_segment) {
                    (Some(node), Some(l2_segment)) if pod.address.is_none() => {
                        format!(" on {node}, attached by {l2_segment}")
                    }
                    (Some(node), _) => format!(" on {node}"),
                    (None, _) => String::new(),
                };
                return Problem::new(reason, format!("gateway pod {}{place}: {message}", pod.name));
            }
            // What a new pod lacks is usually on its way.
            let is_new =
                pod.created.is_some_and(|created| self.observed.now.duration_since(created) < START_GRACE);
            let fault = said(pod).filter(|_| !is_new).and_then(|status| status.faults.first_key_value());
            if let Some((reason, message)) = fault {
                return Problem::new(reason, format!("gateway pod {}: {message}", pod.name));
            }
        }
        Problem::new(STARTING, "the gateway is being started or updated")
    }

    /// Writes the status if it differs, and tells what changed.
    fn report(
        &mut self,
        ingress: Vec<Ingress>,
        allocated: Result<&Claim, &Problem>,
        ready: Result<(), &Problem>,
    ) {
        let condition = |kind: &str, status: bool, reason: &str, message: String| Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
        };
        let mut conditions = vec![
            match allocated {
                Ok(claim) => {
                    let message = format!("{} from Subnet {}", claim.address, claim.subnet);
                    condition(ADDRESS_ALLOCATED, true, "AddressAllocated", message)
                }
                Err(problem) => condition(ADDRESS_ALLOCATED, false, &problem.reason, problem.message.clone()),
            },
            match ready {
                Ok(()) => condition(
                    GATEWAY_READY,
                    true,
                    "GatewayReady",
                    format!("{} is served{}{}", ips(&ingress).join(", "), self.by_whom(), self.how()),
                ),
                Err(problem) => condition(GATEWAY_READY, false, &problem.reason, problem.message.clone()),
            },
        ];
        if let Some(limit) = self.warnings.first() {
            let messages: Vec<&str> = self.warnings.iter().map(|limit| limit.message.as_str()).collect();
            let message = cut(&messages.join("; "), LIMITED_MAX);
            conditions.push(condition(LIMITED, true, &limit.reason, message));
        }
        let same = |a: &[Condition], b: &[Condition]| a.len() == b.len() && a.iter().all(|c| b.contains(c));
        let remind = self.observed.warned.is_none_or(|age| age >= REMIND);
        let mut told = Vec::new();
        for condition in &conditions {
            let news = match condition.kind.as_str() {
                // Who of several serves is told as it changes.
                GATEWAY_READY if condition.status => {
                    let same =
                        |known: &&Condition| known.kind == condition.kind && known.reason == condition.reason;
                    ips(&ingress) != ips(&self.service.ingress)
                        || !self.service.conditions.iter().any(|known| same(&known))
                }
                _ => !self.service.conditions.contains(condition),
            };
            let warning = !condition.status || condition.kind == LIMITED;
            // What passes by itself is no news; what two conditions say is said once.
            let passing = [STARTING, REPLACING, BEING_FREED].contains(&condition.reason.as_str());
            if passing || told.contains(&condition.reason) || !(news || warning && remind) {
                continue;
            }
            told.push(condition.reason.clone());
            self.actions.push(Action::Event {
                warning,
                reason: condition.reason.clone(),
                message: condition.message.clone(),
            });
        }
        if ingress != self.service.ingress || !same(&conditions, &self.service.conditions) {
            self.actions.push(Action::SetStatus { ingress, conditions });
        }
    }
}

fn ips(ingress: &[Ingress]) -> Vec<&str> {
    ingress.iter().map(|entry| entry.ip.as_str()).collect()
}

/// Reasons that pass by themselves.
const STARTING: &str = "GatewayStarting";
const REPLACING: &str = "Replacing";

/// A foreign host has the address.
const CONFLICT: &str = "AddressConflict";

/// A gateway's configuration as it goes into the ConfigMap.
struct Content {
    text: String,
    /// The same, before the first address had been in service: the LAN is to
    /// be asked for it. A gateway that carried that out carries out this.
    before: String,
    /// Where it leads connections, if that is straight to endpoints.
    led: Option<EndpointTargets>,
}

impl Content {
    fn of(mut config: GatewayConfig) -> Result<Self, Problem> {
        let text = render(&config);
        if let Some(address) = config.addresses.first_mut() {
            address.probe = true;
        }
        let before = render(&config);
        if before.len() > CONFIG_MAX {
            let message = format!(
                "the gateway's configuration is {} bytes, a ConfigMap holds {CONFIG_MAX}: use fewer ports, or fewer endpoints",
                before.len()
            );
            return Err(Problem::new("ConfigTooLarge", message));
        }
        let led = config.frontends.iter_mut().find_map(|frontend| {
            let Target::Endpoints { subsets, check, .. } = &mut frontend.target else { return None };
            Some((frontend.ports.clone(), std::mem::take(subsets), check.clone()))
        });
        let led = led.map(|(ports, subsets, check)| {
            let rest = names::digest(render(&config).as_bytes());
            EndpointTargets { ports, subsets, check, rest }
        });
        Ok(Self { text, before, led })
    }
}

/// The digests of a [`Content`], the wanted one first.
struct Digests([String; 2]);

impl Digests {
    fn wanted(&self) -> &str {
        &self.0[0]
    }

    fn is(&self, digest: &str) -> bool {
        self.0.iter().any(|known| known == digest)
    }

    /// Whether the pod need not be told another than `digest`. Where there are
    /// several, all have to know that the LAN has been asked: who takes over
    /// must not ask it again.
    fn suits(&self, pod: &Pod, digest: &str) -> bool {
        if pod.member { digest == self.wanted() } else { self.is(digest) }
    }
}

/// Whether a claim is what is wished for.
fn fulfils(claim: &Claim, address_request: &AddressRequest) -> bool {
    claim.provider == address_request.provider
        && match address_request.address {
            Some(address) => claim.address == address,
            None => address_request.subnet.as_ref().is_none_or(|subnet| *subnet == claim.subnet),
        }
}

fn said(pod: &Pod) -> Option<&GatewayStatus> {
    match &pod.report {
        StatusReport::Reported(status) => Some(status),
        StatusReport::NotQueried | StatusReport::NoResponse => None,
    }
}

/// Whether the pod carries out the configuration. One that may not be asked is
/// believed its readiness.
fn follows(pod: &Pod, digest: &Digests) -> bool {
    match &pod.report {
        StatusReport::Reported(status) => status.digest.as_deref().is_some_and(|known| digest.is(known)),
        StatusReport::NoResponse => true,
        StatusReport::NotQueried => false,
    }
}

/// What the pod's annotation last told it: digest and attempt.
fn told(pod: &Pod) -> (&str, u32) {
    pod.annotations
        .get(names::CONFIG_ANNOTATION)
        .and_then(|value| value.rsplit_once('.'))
        .map_or(("", 0), |(digest, attempt)| (digest, attempt.parse().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_svc_crds::gateway::{NatBackend, Role, TargetPort, Transport};

    use super::*;
    use crate::backend::readiness_gate::Verdict;
    use crate::ipam::ClaimId;
    use crate::model::{Endpoint, PortStatus, ServiceId};
    use crate::testing::{port, service};

    fn key() -> ServiceRef {
        ServiceRef::new("default", "test-service")
    }

    fn claim(address: &str, requested: Requested) -> Claim {
        let provider: Provider = "lan.kube-system".parse().unwrap();
        let address: IpAddr = address.parse().unwrap();
        Claim {
            id: ClaimId { name: provider.claim_name(address), uid: "c".into(), resource_version: "1".into() },
            provider,
            subnet: "lan".into(),
            address,
            owner: service().id,
            requested,
            mac: "ba:85:f7:02:9f:42".into(),
            keep: false,
            probed: false,
            conflict: String::new(),
            gateway_namespace: "default".into(),
        }
    }

    fn of_earlier(mut claim: Claim) -> Claim {
        claim.owner = ServiceId { uid: "uid-0".into(), ..claim.owner };
        claim
    }

    fn network() -> Network {
        Network {
            provider: "lan.kube-system".parse().unwrap(),
            cidr: "172.18.0.0/16".parse().unwrap(),
            gateway: "172.18.0.1".parse().unwrap(),
            excludes: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    /// The document's Service with its address claimed and nothing else.
    fn claimed(claims: &[Claim]) -> Observed {
        Observed {
            service: Some(service()),
            claims: claims.to_vec(),
            networks: [("lan".to_owned(), network())].into(),
            namespace: "default".into(),
            desired_namespace: "default".into(),
            is_visible: true,
            attachment: Some(Attachment::default()),
            ..Observed::default()
        }
    }

    fn config_of(plan: &Plan) -> Option<&String> {
        plan.actions.iter().find_map(|action| match action {
            Action::WriteConfig(content) => Some(content),
            _ => None,
        })
    }

    fn child<T>(uid: &str, content: T) -> OwnedObject<T> {
        OwnedObject {
            uid: uid.into(),
            resource_version: "3".into(),
            deleting: false,
            owner_uid: Some("uid-1".into()),
            content,
        }
    }

    fn pod(name: &str, content: &str, addresses: &[&str]) -> Pod {
        let digest = names::digest(content.as_bytes());
        Pod {
            name: name.into(),
            uid: format!("uid-{name}"),
            owner_uid: "uid-1".into(),
            ready: true,
            address: Some("10.244.1.5".parse().unwrap()),
            mac: Some("ba:85:f7:02:9f:42".into()),
            annotations: [(names::CONFIG_ANNOTATION.to_owned(), format!("{digest}.0"))].into(),
            report: StatusReport::Reported(Box::new(GatewayStatus {
                digest: Some(digest.clone()),
                seen: Some(digest),
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                ..GatewayStatus::default()
            })),
            ..Pod::default()
        }
    }

    fn deployment_of(plan: &Plan) -> Option<OwnedObject<DeploymentState>> {
        plan.actions.iter().find_map(|action| match action {
            Action::WriteDeployment(live) => {
                Some(child("dep", DeploymentState { live: live.clone(), ..DeploymentState::default() }))
            }
            _ => None,
        })
    }

    /// All that `plan` writes, written, with a pod that carries it out.
    fn carried_out(mut observed: Observed, address: &str) -> Observed {
        let planned = plan(&key(), &observed);
        let content = config_of(&planned).unwrap().clone();
        observed.config = Some(child("cm", content.clone()));
        observed.deployment = deployment_of(&planned);
        observed.pods = vec![pod("gw", &content, &[address])];
        settle(observed)
    }

    /// Applies what is written to pods and Service until nothing is.
    fn settle(mut observed: Observed) -> Observed {
        for _ in 0..5 {
            for action in plan(&key(), &observed).actions {
                let service = observed.service.as_mut().unwrap();
                match action {
                    Action::SetStatus { ingress, conditions } => {
                        (service.ingress, service.conditions) = (ingress, conditions);
                    }
                    Action::FillAddress(address) => service.load_balancer_ip = address.to_string(),
                    Action::AnnotatePod { pod, annotations, .. } => {
                        let pod = observed.pods.iter_mut().find(|known| known.name == pod).unwrap();
                        pod.annotations.extend(annotations);
                    }
                    Action::Release(id) => observed.claims.retain(|claim| claim.id != id),
                    Action::RecordMac { claim: id, mac, probed } => {
                        let claim = observed.claims.iter_mut().find(|claim| claim.id == id).unwrap();
                        (claim.mac, claim.probed) = (mac, probed);
                        claim.conflict.clear();
                    }
                    Action::MarkConflict(id, mac) => {
                        observed.claims.iter_mut().find(|claim| claim.id == id).unwrap().conflict = mac;
                    }
                    Action::WriteConfig(content) => {
                        observed.config = Some(child("cm", content));
                    }
                    Action::WriteDeployment(live) => {
                        let view = DeploymentState { live, ..DeploymentState::default() };
                        observed.deployment = Some(child("dep", view));
                    }
                    Action::WriteBudget(live) => observed.budget = Some(child("bud", live)),
                    Action::Remember(election) => observed.election = election,
                    _ => {}
                }
            }
            observed.warned = Some(Duration::ZERO);
        }
        observed
    }

    fn status(plan: &Plan) -> Option<(&Vec<Ingress>, &Vec<Condition>)> {
        plan.actions.iter().find_map(|action| match action {
            Action::SetStatus { ingress, conditions } => Some((ingress, conditions)),
            _ => None,
        })
    }

    fn reason<'a>(conditions: &'a [Condition], kind: &str) -> &'a str {
        &conditions.iter().find(|condition| condition.kind == kind).unwrap().reason
    }

    #[test]
    fn first_an_address() {
        let plan = plan(&key(), &claimed(&[]));
        let address_request = AddressRequest {
            owner: service().id,
            provider: "lan.kube-system".parse().unwrap(),
            subnet: None,
            address: None,
            keep: false,
        };
        assert_eq!(plan.actions, [Action::Claim(address_request)]);
    }

    #[test]
    fn then_the_gateway_and_ingress_only_when_it_serves() {
        let plan = plan(&key(), &claimed(&[claim("172.18.0.11", Requested::Dynamic)]));
        let config: GatewayConfig = serde_json::from_str(config_of(&plan).unwrap()).unwrap();
        assert_eq!(config.frontends[0].ports[0].port, 80);
        assert!(plan.actions.contains(&Action::FillAddress("172.18.0.11".parse().unwrap())));
        let (ingress, conditions) = status(&plan).unwrap();
        assert!(ingress.is_empty());
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressAllocated");
        assert_eq!(reason(conditions, GATEWAY_READY), STARTING);

        let done = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let service = done.service.as_ref().unwrap();
        assert_eq!(ips(&service.ingress), ["172.18.0.11"]);
        assert_eq!(service.load_balancer_ip, "172.18.0.11");
        assert_eq!(done.pods[0].annotations["lan.kube-system.kubernetes.io/ip_address"], "172.18.0.11");
        assert_eq!(
            done.pods[0].annotations["lan.kube-system.kubernetes.io/mac_address"],
            "ba:85:f7:02:9f:42"
        );
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let done = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let plan = plan(&key(), &done);
        assert_eq!(plan.actions, []);
        assert!(plan.converged);
    }

    /// A pod that withholds an address that the host with `mac` has.
    fn withholds(mut observed: Observed, address: &str, mac: &str) -> Observed {
        let content = config_of(&plan(&key(), &observed)).cloned();
        let content = content.unwrap_or_else(|| observed.config.clone().unwrap().content);
        let mut pod = Pod { ready: false, ..pod("gw", &content, &[]) };
        let StatusReport::Reported(status) = &mut pod.report else { panic!("it answers") };
        status.digest = None;
        status.conflicts.insert(address.parse().unwrap(), mac.to_owned());
        status.faults.insert(CONFLICT.to_owned(), "in use".to_owned());
        observed.config = Some(child("cm", content));
        observed.deployment = Some(child("dep", DeploymentState::default()));
        observed.pods = vec![pod];
        observed
    }

    const FOREIGN: &str = "02:00:00:00:00:99";

    #[test]
    fn the_lan_is_asked_once_for_a_claim() {
        let claims = [claim("172.18.0.11", Requested::Dynamic)];
        let mut observed = claimed(&claims);
        let asking = config_of(&plan(&key(), &observed)).unwrap().clone();
        assert!(asking.contains("\"probe\": true"));
        observed.config = Some(child("cm", asking.clone()));
        observed.deployment = Some(child("dep", DeploymentState::default()));
        observed.pods = vec![pod("gw", &asking, &["172.18.0.11"])];
        let planned = plan(&key(), &observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.11"], "nothing is waited for");
        let (claim, mac) = (claims[0].id.clone(), claims[0].mac.clone());
        assert!(planned.actions.contains(&Action::RecordMac { claim, mac, probed: true }));
        assert_eq!(config_of(&planned), None);

        // What is left for the next pod to know is written beside what serves.
        observed.claims[0].probed = true;
        let planned = plan(&key(), &observed);
        assert!(!config_of(&planned).unwrap().contains("probe"));
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
        assert!(
            !planned
                .actions
                .iter()
                .any(|action| matches!(action, Action::AnnotatePod { nudge: Some(_), .. }))
        );
        let done = settle(observed);
        assert!(!done.config.as_ref().unwrap().content.contains("probe"));
        assert!(plan(&key(), &done).converged, "with a pod that has the earlier one still");

        // An address in the status is in service, whatever the claim says.
        let mut earlier = done;
        earlier.claims[0].probed = false;
        earlier.pods.clear();
        assert_eq!(config_of(&plan(&key(), &earlier)), None);
    }

    #[test]
    fn a_static_address_in_use_is_a_condition_that_ends_by_itself() {
        let mut wanted = claimed(&[claim("172.18.0.18", Requested::Static)]);
        wanted.service.as_mut().unwrap().load_balancer_ip = "172.18.0.18".into();
        let observed = withholds(wanted, "172.18.0.18", FOREIGN);
        let planned = plan(&key(), &observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (0, CONFLICT));
        let told = planned.actions.iter().find_map(|action| match action {
            Action::Event { warning: true, reason, message } if reason == CONFLICT => Some(message),
            _ => None,
        });
        let told = told.expect("an Event");
        assert!(told.contains(FOREIGN) && told.contains("172.18.0.18"), "{told}");
        assert!(!planned.converged);
        assert!(
            !planned
                .actions
                .iter()
                .any(|action| matches!(action, Action::MarkConflict(..) | Action::Release(_)))
        );

        // A gateway of ours is waited for: by its pod, or by what the claim remembers.
        let own = Observed { own_macs: [FOREIGN.to_owned()].into(), ..observed.clone() };
        let mut remembered = observed.clone();
        remembered.claims.push(Claim {
            mac: FOREIGN.to_uppercase(),
            ..of_earlier(claim("172.18.0.19", Requested::Dynamic))
        });
        for waiting in [own, remembered] {
            let planned = plan(&key(), &waiting);
            assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), BEING_FREED);
            assert!(
                !planned
                    .actions
                    .iter()
                    .any(|action| matches!(action, Action::Event { reason, .. } if reason == BEING_FREED))
            );
        }

        let content = observed.config.as_ref().unwrap().content.clone();
        let healed = Observed { pods: vec![pod("gw", &content, &["172.18.0.18"])], ..observed };
        assert_eq!(ips(status(&plan(&key(), &healed)).unwrap().0), ["172.18.0.18"]);
    }

    #[test]
    fn a_dynamic_address_in_use_is_replaced() {
        let mut filled = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        filled.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        let mut observed = withholds(filled, "172.18.0.11", FOREIGN);
        let old = observed.claims[0].id.clone();
        let planned = plan(&key(), &observed);
        let [Action::MarkConflict(id, mac), Action::Event { warning: true, reason, .. }] =
            &planned.actions[..]
        else {
            panic!("{:?}", planned.actions)
        };
        assert_eq!((id, mac.as_str(), reason.as_str()), (&old, FOREIGN, CONFLICT));

        observed.claims[0].conflict = FOREIGN.into();
        let Some(Action::Claim(address_request)) = plan(&key(), &observed).actions.pop() else {
            panic!("no claim")
        };
        assert_eq!(address_request.address, None);
        observed.claims.push(claim("172.18.0.12", Requested::Dynamic));
        let planned = plan(&key(), &observed);
        let config: GatewayConfig = serde_json::from_str(config_of(&planned).unwrap()).unwrap();
        let addresses: Vec<_> = config.addresses.iter().map(|a| (a.address.to_string(), a.probe)).collect();
        assert_eq!(addresses, [("172.18.0.12".to_owned(), true)]);
        assert!(planned.actions.contains(&Action::FillAddress("172.18.0.12".parse().unwrap())));
        let release = Action::Release(old);
        assert!(!planned.actions.contains(&release), "nor is it handed out again meanwhile");

        // Served: the other is given back.
        let content = config_of(&planned).unwrap().clone();
        observed.config = Some(child("cm", content.clone()));
        observed.pods = vec![pod("gw", &content, &["172.18.0.12"])];
        let planned = plan(&key(), &observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.12"]);
        assert!(planned.actions.contains(&release));
        let done = settle(observed);
        assert_eq!(done.service.as_ref().unwrap().load_balancer_ip, "172.18.0.12");
        assert!(plan(&key(), &done).converged);

        // In service it is not given up again.
        let late = withholds(done, "172.18.0.12", FOREIGN);
        assert!(!plan(&key(), &late).actions.iter().any(|action| matches!(action, Action::MarkConflict(..))));
    }

    #[test]
    fn when_every_address_is_in_use_the_last_is_waited_for() {
        let given_up = |last: u8| Claim {
            conflict: FOREIGN.into(),
            ..claim(&format!("172.18.0.{last}"), Requested::Dynamic)
        };
        let mut claims: Vec<Claim> = (11..19).map(given_up).collect();
        claims.push(claim("172.18.0.19", Requested::Dynamic));
        let observed = withholds(claimed(&claims), "172.18.0.19", FOREIGN);
        let planned = plan(&key(), &observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), CONFLICT);
        assert!(
            !planned
                .actions
                .iter()
                .any(|action| matches!(action, Action::MarkConflict(..) | Action::Claim(_)))
        );

        // Nor is there another one: each of them is asked for, the first that
        // comes free is taken.
        let mut full = claimed(&claims[..2]);
        full.allocation_error = Some(AllocationError::Full("Subnet lan".into()));
        let content = config_of(&plan(&key(), &full)).unwrap().clone();
        let config: GatewayConfig = serde_json::from_str(&content).unwrap();
        assert!(config.addresses.len() == 2 && config.addresses.iter().all(|address| address.probe));
        let mut pod = pod("gw", &content, &["172.18.0.12"]);
        pod.ready = false;
        full.config = Some(child("cm", content));
        full.pods = vec![pod];
        let served = settle(full).config.unwrap().content;
        let config: GatewayConfig = serde_json::from_str(&served).unwrap();
        assert_eq!(config.addresses.len(), 1);
        assert_eq!(config.addresses[0].address.to_string(), "172.18.0.12");
    }

    #[test]
    fn s1_of_two_claims_only_the_served_one_is_kept_while_another_is_asked_for() {
        let claims = ["172.18.0.11", "172.18.0.12"].map(|ip| claim(ip, Requested::Dynamic));
        for (shown, kept) in [("172.18.0.12", "172.18.0.12"), ("", "172.18.0.11")] {
            let mut observed = claimed(&claims);
            let service = observed.service.as_mut().unwrap();
            service.load_balancer_ip = "172.18.0.77".into();
            if !shown.is_empty() {
                service.ingress = vec![Ingress { ip: shown.into(), ..Ingress::default() }];
            }
            observed.allocation_error =
                Some(AllocationError::Taken("172.18.0.77".parse().unwrap(), "default/other".to_owned()));
            let content = config_of(&plan(&key(), &observed)).unwrap().clone();
            let config: GatewayConfig = serde_json::from_str(&content).unwrap();
            let addresses: Vec<String> = config.addresses.iter().map(|a| a.address.to_string()).collect();
            assert_eq!(addresses, [kept], "status {shown:?}");
            let pod = pod("gw", &content, &[kept]);
            let served = Observed { config: Some(child("cm", content)), pods: vec![pod], ..observed };
            let released: Vec<Action> = plan(&key(), &served)
                .actions
                .into_iter()
                .filter(|action| matches!(action, Action::Release(_)))
                .collect();
            let surplus = claims.iter().find(|claim| claim.address.to_string() != kept).unwrap();
            assert_eq!(released, [Action::Release(surplus.id.clone())]);
        }
    }

    #[test]
    fn r21_address_that_the_gateway_does_not_list_is_asked_of_the_lan_first() {
        let proven = Claim { probed: true, ..claim("172.18.0.11", Requested::Dynamic) };
        let mut observed = claimed(&[proven]);
        let probes = |observed: &Observed| -> Vec<bool> {
            let content = config_of(&plan(&key(), observed)).unwrap().clone();
            let config: GatewayConfig = serde_json::from_str(&content).unwrap();
            config.addresses.iter().map(|address| address.probe).collect()
        };
        assert_eq!(probes(&observed), [true], "no ConfigMap says that a gateway has it");
        let content = config_of(&plan(&key(), &observed)).unwrap().clone();
        observed.config = Some(child("cm", content.clone()));
        observed.pods = vec![pod("gw", &content, &[])];
        assert_eq!(config_of(&plan(&key(), &observed)), None, "not taken up yet");
        observed.pods = vec![pod("gw", &content, &["172.18.0.11"])];
        assert_eq!(probes(&observed), [false]);
    }

    #[test]
    fn a_kept_claim_in_conflict_is_not_taken_over() {
        let kept = Claim { keep: true, conflict: FOREIGN.into(), ..claim("172.18.0.11", Requested::Dynamic) };
        let observed = claimed(std::slice::from_ref(&kept));
        assert!(matches!(plan(&key(), &observed).actions[..], [Action::Claim(_)]));
        let gone = Observed { service: None, ..claimed(&[of_earlier(kept.clone())]) };
        assert_eq!(plan(&key(), &gone).actions, [Action::Release(kept.id)]);
    }

    /// A slice of the Service's one port; endpoints as [`crate::testing`] has
    /// them.
    fn slice(endpoints: &[(u8, &str)]) -> Arc<EndpointSlice> {
        Arc::new(crate::testing::slice(&[("", Transport::Tcp, 8080)], endpoints))
    }

    /// One that leads straight to two endpoints, and does.
    fn direct() -> Observed {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        annotate(&mut observed, names::DIRECT_ACCESS_ANNOTATION, "true");
        observed.slices = vec![slice(&[(1, "ready"), (2, "ready")])];
        seen(carried_out(observed, "172.18.0.11"))
    }

    /// The same, with what a look at it leaves.
    fn seen(mut observed: Observed) -> Observed {
        observed.convergence_state =
            plan(&key(), &observed).convergence.map(|direct| direct.convergence_state);
        observed
    }

    /// Where a plan's ConfigMap leads.
    fn led(plan: &Plan) -> GatewayConfig {
        serde_json::from_str(config_of(plan).expect("a ConfigMap")).unwrap()
    }

    fn addresses(config: &GatewayConfig) -> Vec<String> {
        let Target::Endpoints { subsets, .. } = &config.frontends[0].target else { panic!("not direct") };
        subsets.iter().flat_map(|subset| &subset.addresses).map(ToString::to_string).collect()
    }

    #[test]
    fn endpoints_are_followed_and_the_gateway_serves_meanwhile() {
        let mut observed = direct();
        let planned = plan(&key(), &observed);
        assert_eq!((&planned.actions[..], planned.converged), (&[][..], true));
        let text = &observed.config.as_ref().unwrap().content;
        let config: GatewayConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.version, config.frontends[0].ports.len()), (DIRECT_VERSION, 1));
        let condition = observed.service.as_ref().unwrap().conditions.iter();
        let message = &condition.clone().find(|condition| condition.kind == GATEWAY_READY).unwrap().message;
        assert!(message.ends_with("connections go straight to its endpoints, as asked for"), "{message}");

        observed.slices = vec![slice(&[(1, "ready"), (2, "leaving"), (3, "ready")])];
        let planned = plan(&key(), &observed);
        let config = led(&planned);
        assert_eq!(addresses(&config), ["10.0.0.1", "10.0.0.3"]);
        let Target::Endpoints { subsets, affinity_seconds, check } = &config.frontends[0].target else {
            panic!("not direct")
        };
        let target = TargetPort { protocol: Transport::Tcp, port: 80, target_port: 8080 };
        assert_eq!((&subsets[0].ports, affinity_seconds, check), (&vec![target], &None, &None));
        assert_eq!(subsets[0].draining.len(), 1);
        let digest = names::digest(config_of(&planned).unwrap().as_bytes());
        let nudged = planned.actions.iter().any(|action| match action {
            Action::AnnotatePod { annotations, nudge: Some(0), .. } => {
                annotations[names::CONFIG_ANNOTATION] == format!("{digest}.0")
            }
            _ => false,
        });
        assert!(nudged, "{:?}", planned.actions);
        assert_eq!(status(&planned), None, "nothing to be said of it");
        assert!(!planned.converged);

        // A gateway that does not follow at all is one that does not serve.
        observed.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
        observed = seen(observed);
        assert_eq!(status(&plan(&key(), &observed)), None);
        observed.now += SignedDuration::from_secs(10);
        let planned = plan(&key(), &observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), STARTING);

        // Another port is more than an endpoint.
        let mut observed = direct();
        observed.service.as_mut().unwrap().ports.push(port("TCP", 443));
        assert_eq!(reason(status(&plan(&key(), &observed)).unwrap().1, GATEWAY_READY), STARTING);
    }

    #[test]
    fn without_endpoints_the_address_is_served_all_the_same() {
        let mut observed = direct();
        observed.slices.clear();
        let done = carried_out(Observed { pods: Vec::new(), ..observed }, "172.18.0.11");
        assert_eq!(ips(&done.service.as_ref().unwrap().ingress), ["172.18.0.11"]);
        let config: GatewayConfig = serde_json::from_str(&done.config.unwrap().content).unwrap();
        assert!(addresses(&config).is_empty());
        assert_eq!(config.frontends[0].ports.len(), 1);
    }

    #[test]
    fn what_a_service_asks_of_its_endpoints_is_in_the_configuration() {
        let mut observed = direct();
        let service = observed.service.as_mut().unwrap();
        service.affinity = Some(60);
        service.source_ranges = vec!["192.0.2.0/24".into()];
        annotate(&mut observed, names::HEALTH_CHECK_ANNOTATION, "tcp");
        let config = led(&plan(&key(), &observed));
        assert_eq!((config.version, config.nat_backend), (DIRECT_VERSION, NatBackend::Nftables));
        assert!(config.frontends[0].clients.is_some());
        let Target::Endpoints { affinity_seconds, check, .. } = &config.frontends[0].target else {
            panic!("not direct")
        };
        assert_eq!((*affinity_seconds, check.is_some()), (Some(60), true));

        // And back to the ClusterIP.
        let mut plain = direct();
        annotate(&mut plain, names::DIRECT_ACCESS_ANNOTATION, "false");
        let config = led(&plan(&key(), &plain));
        assert_eq!(config.version, CONFIG_VERSION);
        assert!(matches!(config.frontends[0].target, Target::ClusterIp { .. }));
    }

    #[test]
    fn endpoints_are_followed_whatever_else_is_wrong() {
        let mut observed = direct();
        let service = observed.service.as_mut().unwrap();
        service.source_ranges = vec!["nonsense".into()];
        service.ports.push(port("TCP", 443));
        let observed = settle(observed);
        assert!(plan(&key(), &observed).converged);
        let mut changed = observed.clone();
        changed.slices = vec![slice(&[(3, "ready")])];
        let planned = plan(&key(), &changed);
        let config = led(&planned);
        assert_eq!((addresses(&config), config.frontends[0].ports.len()), (vec!["10.0.0.3".into()], 1));
        assert!(config.frontends[0].clients.is_none(), "the rest stays as it was");
        assert!(
            planned.actions.iter().any(|action| matches!(action, Action::AnnotatePod { nudge: Some(0), .. }))
        );
        // Until it does, it is told again.
        changed.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
        let changed = settle(changed);
        let planned = plan(&key(), &changed);
        assert!(!planned.converged);

        // What goes to the ClusterIP is left alone.
        let mut plain = served();
        plain.slices = changed.slices;
        plain.service.as_mut().unwrap().source_ranges = vec!["nonsense".into()];
        assert_eq!(config_of(&plan(&key(), &plain)), None);
    }

    #[test]
    fn more_endpoints_than_a_config_map_holds_keep_the_last_good_state() {
        let mut observed = direct();
        let many = |n: u8| {
            let mut slice = EndpointSlice::clone(&slice(&[(1, "ready")]));
            let one = slice.endpoints[0];
            slice.endpoints = (0..u16::MAX)
                .map(|k| Endpoint { address: (u32::from(k) + (u32::from(n) << 24)).into(), ..one })
                .collect();
            Arc::new(slice)
        };
        observed.slices = vec![many(10), many(11)];
        let planned = plan(&key(), &observed);
        assert_eq!(config_of(&planned), None);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "ConfigTooLarge"));
    }

    #[test]
    fn a_check_that_fails_everywhere_is_said_first() {
        let mut observed = direct();
        observed.service.as_mut().unwrap().local_policy = true;
        annotate(&mut observed, names::HEALTH_CHECK_ANNOTATION, "tcp");
        observed.config = None;
        let mut observed = seen(carried_out(Observed { pods: Vec::new(), ..observed }, "172.18.0.11"));
        let StatusReport::Reported(said) = &mut observed.pods[0].report else { panic!("it answers") };
        said.unhealthy = ["10.0.0.1:8080", "10.0.0.2:8080"].map(|socket| socket.parse().unwrap()).into();
        let planned = plan(&key(), &observed);
        assert!(status(&planned).is_none() && !planned.converged, "it may just not have asked yet");
        observed = seen(observed);
        observed.now += SignedDuration::from_secs(3);
        let planned = plan(&key(), &observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
        let limited = conditions.iter().find(|condition| condition.kind == LIMITED).unwrap();
        assert_eq!(limited.reason, "AllUnhealthy");
        assert!(limited.message.starts_with("all endpoints of port 80 fail"), "{}", limited.message);
        assert!(limited.message.contains("externalTrafficPolicy"), "beside what else there is");
    }

    #[test]
    fn a_pod_that_waits_for_its_gate_is_led_to_and_judged() {
        let mut observed = direct();
        let waiting = PodId::of("uid-3");
        observed.slices = vec![slice(&[(1, "ready"), (2, "ready"), (3, "unready")])];
        assert_eq!(addresses(&led(&plan(&key(), &observed))), ["10.0.0.1", "10.0.0.2"]);
        observed.gated_pods = [(waiting, false)].into();
        let planned = plan(&key(), &observed);
        let config = led(&planned);
        assert_eq!(addresses(&config), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert!(planned.convergence.unwrap().verdicts.is_empty(), "it is on its way");

        let content = config_of(&plan(&key(), &observed)).unwrap().clone();
        observed.config.as_mut().unwrap().content = content.clone();
        observed.pods = vec![pod("gw", &content, &["172.18.0.11"])];
        let observed = settle(observed);
        let planned = plan(&key(), &observed);
        let direct = planned.convergence.unwrap();
        assert_eq!(direct.verdicts, [(waiting, Verdict::Programmed)].into());
        assert!(!planned.converged, "it is about to pass");
        let passed = Observed { gated_pods: [(waiting, true)].into(), ..observed };
        let planned = plan(&key(), &passed);
        assert!(
            planned.converged
                && planned.actions.is_empty()
                && planned.convergence.unwrap().verdicts.is_empty()
        );
    }

    #[test]
    fn the_status_has_every_port_and_who_serves_the_cluster() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        observed.service.as_mut().unwrap().ports.push(port("SCTP", 81));
        let observed = carried_out(observed, "172.18.0.11");
        let entry = |observed: &Observed| observed.service.as_ref().unwrap().ingress[0].clone();
        let port = |protocol: &str, port, error: Option<&str>| PortStatus {
            protocol: protocol.into(),
            port,
            error: error.map(Into::into),
        };
        let sctp = port("SCTP", 81, Some("lb-svc.kubeovn.io/UnsupportedProtocol"));
        assert_eq!(entry(&observed).ports, [port("TCP", 80, None), sctp]);
        assert!(!entry(&observed).proxy);
        let with = |name: &str, value: &str| {
            let mut observed = observed.clone();
            let service = observed.service.as_mut().unwrap();
            service.annotations.insert(name.into(), value.into());
            entry(&settle(observed)).proxy
        };
        assert!(with(names::PASS_THROUGH_ANNOTATION, "true"));
        assert!(with(names::CCE_PASS_THROUGH_ANNOTATION, "onlyLocal"));
        assert!(!with(names::PASS_THROUGH_ANNOTATION, "false"));
        let mut local = observed.clone();
        local.service.as_mut().unwrap().local_policy = true;
        assert!(entry(&settle(local)).proxy, "as CCE has it");
    }

    #[test]
    fn ingress_stays_while_the_gateway_is_replaced() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.pods.clear();
        let planned = plan(&key(), &observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.11"]);
        assert!(!planned.converged);
        observed.pods = vec![Pod { ready: false, report: StatusReport::NoResponse, ..pod("new", "", &[]) }];
        assert_eq!(ips(status(&plan(&key(), &observed)).unwrap().0), ["172.18.0.11"]);
    }

    #[test]
    fn a_filled_address_is_no_static_request() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        // The user's tooling drops it: filled again.
        let planned = plan(&key(), &observed);
        assert!(planned.actions.contains(&Action::FillAddress("172.18.0.11".parse().unwrap())));
        // Another Subnet is asked for: the filled address does not stand in the way.
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.11".into();
        service.annotations.insert("lan.kube-system.kubernetes.io/logical_switch".into(), "other".into());
        let Some(Action::Claim(address_request)) = plan(&key(), &observed).actions.pop() else {
            panic!("no claim")
        };
        assert_eq!((address_request.subnet.as_deref(), address_request.address), (Some("other"), None));
    }

    #[test]
    fn a_new_static_address_serves_before_the_old_is_freed() {
        let old = claim("172.18.0.11", Requested::Dynamic);
        let mut observed = carried_out(claimed(std::slice::from_ref(&old)), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.18".into();
        let Some(Action::Claim(address_request)) = plan(&key(), &observed).actions.pop() else {
            panic!("no claim")
        };
        assert_eq!(address_request.address, Some("172.18.0.18".parse().unwrap()));

        // Claimed: the gateway serves both, the Service says the old one.
        observed.claims.push(claim("172.18.0.18", Requested::Static));
        let planned = plan(&key(), &observed);
        let both = config_of(&planned).unwrap().clone();
        let config: GatewayConfig = serde_json::from_str(&both).unwrap();
        let addresses: Vec<String> =
            config.addresses.iter().map(|address| address.address.to_string()).collect();
        assert_eq!(addresses, ["172.18.0.18", "172.18.0.11"]);
        assert!(!planned.actions.iter().any(|action| matches!(action, Action::Release(_))));
        observed.config.as_mut().unwrap().content = both.clone();
        assert_eq!(ips(status(&plan(&key(), &observed)).unwrap().0), ["172.18.0.11"], "not programmed yet");

        // The gateway serves both: the Service says the new one, then that goes on alone.
        observed.pods = vec![pod("gw", &both, &["172.18.0.18", "172.18.0.11"])];
        let planned = plan(&key(), &observed);
        assert_eq!(config_of(&planned), None);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.18"]);
        let entry = Ingress { ip: "172.18.0.18".into(), ..Ingress::default() };
        observed.service.as_mut().unwrap().ingress = vec![entry];
        let planned = plan(&key(), &observed);
        let one = config_of(&planned).unwrap().clone();
        assert!(!one.contains("172.18.0.11\""));
        assert!(!planned.actions.contains(&Action::Release(old.id.clone())), "the pod answers for it still");
        observed.config.as_mut().unwrap().content = one.clone();
        assert!(!plan(&key(), &observed).actions.contains(&Action::Release(old.id.clone())));

        // It let go of the old one: given back.
        observed.pods = vec![pod("gw", &one, &["172.18.0.18"])];
        let planned = plan(&key(), &observed);
        assert!(planned.actions.contains(&Action::Release(old.id)));
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.18"]);
    }

    #[test]
    fn a_bad_edit_keeps_the_last_good_state() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer_ip = "not-an-address".into();
        let planned = plan(&key(), &observed);
        assert_eq!(config_of(&planned), None);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "InvalidAddress");

        // Another's address: refused, the old one serves, ports still follow.
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.99".into();
        service.ports.push(port("TCP", 443));
        observed.allocation_error =
            Some(AllocationError::Taken("172.18.0.99".parse().unwrap(), "default/other".into()));
        let planned = plan(&key(), &observed);
        assert!(config_of(&planned).unwrap().contains("443"));
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressInUse");
        assert!(planned.address_pending);
    }

    #[test]
    fn a_bad_edit_before_the_first_service_leaves_what_comes_into_service() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let content = config_of(&plan(&key(), &observed)).unwrap().clone();
        // Edited while the gateway was on its way.
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        observed.allocation_error =
            Some(AllocationError::Taken("172.18.0.99".parse().unwrap(), "default/other".into()));
        observed.config = Some(child("cm", content.clone()));
        observed.deployment = Some(child("dep", DeploymentState::default()));
        observed.pods = vec![pod("gw", &content, &["172.18.0.11"])];
        let planned = plan(&key(), &observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressInUse");
        assert_eq!(reason(conditions, GATEWAY_READY), "GatewayReady");
    }

    #[test]
    fn what_its_own_write_may_have_shown_is_looked_at_again() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer = false;
        (observed.config, observed.deployment) = (None, None);
        observed.pods.clear();
        observed.claims.clear();
        let planned = plan(&key(), &observed);
        assert!(status(&planned).is_some() && !planned.converged);
        let service = observed.service.as_mut().unwrap();
        (service.ingress, service.conditions) = (Vec::new(), Vec::new());
        assert!(plan(&key(), &observed).converged);
    }

    #[test]
    fn an_address_that_another_has_now_is_given_up_at_once() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.claims.clear();
        let Some(Action::Claim(address_request)) = plan(&key(), &observed).actions.pop() else {
            panic!("no claim")
        };
        assert_eq!(address_request.address, Some("172.18.0.11".parse().unwrap()), "it is asked for again");
        observed.allocation_error =
            Some(AllocationError::Taken("172.18.0.11".parse().unwrap(), "default/other".into()));
        let planned = plan(&key(), &observed);
        assert!(planned.actions.contains(&Action::DeleteDeployment("dep".into(), "3".into())));
        assert!(planned.actions.contains(&Action::DeleteConfig("cm".into(), "3".into())));
        assert!(status(&planned).unwrap().0.is_empty());
    }

    #[test]
    fn a_subnet_that_is_lost_leaves_a_live_address_as_it_is() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.networks.get_mut("lan").unwrap().cidr = "172.18.1.0/24".parse().unwrap();
        let reported = |observed: &Observed| {
            let planned = plan(&key(), observed);
            assert_eq!(config_of(&planned), None);
            let (ingress, conditions) = status(&planned).unwrap();
            assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
            reason(conditions, LIMITED) == "AddressNotInSubnet"
        };
        assert!(reported(&observed), "nor one that is shrunk");
        *observed.networks.get_mut("lan").unwrap() = network();
        observed.networks.get_mut("lan").unwrap().gateway = "172.18.0.11".parse().unwrap();
        assert!(reported(&observed), "nor one whose router has it");
        observed.networks.clear();
        assert!(reported(&observed));
    }

    #[test]
    fn nothing_is_left_when_nobody_asks() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer = false;
        let planned = plan(&key(), &observed);
        assert_eq!(
            planned.actions,
            [
                Action::SetStatus { ingress: vec![], conditions: vec![] },
                Action::ClearAddress,
                Action::DeleteDeployment("dep".into(), "3".into()),
                Action::DeleteConfig("cm".into(), "3".into()),
            ]
        );
        // The claim outlives Deployment and ConfigMap as long as a pod is there.
        observed.service = None;
        (observed.deployment, observed.config) = (None, None);
        observed.pods[0].deleting = true;
        assert_eq!(plan(&key(), &observed).actions, []);
        let lost = Pod { node_lost: true, ..observed.pods[0].clone() };
        observed.pods.clear();
        let release = [Action::Release(observed.claims[0].id.clone())];
        assert_eq!(plan(&key(), &observed).actions, release);
        observed.pods = vec![lost];
        assert_eq!(plan(&key(), &observed).actions, release, "its node is gone for good");
    }

    #[test]
    fn an_address_the_user_asked_for_is_not_cleared() {
        let mut observed = claimed(&[claim("172.18.0.18", Requested::Static)]);
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.18".into();
        service.annotations.clear();
        assert!(!plan(&key(), &observed).actions.contains(&Action::ClearAddress));
    }

    #[test]
    fn a_service_made_again_waits_for_the_gateway_before_it() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.claims = vec![of_earlier(claim("172.18.0.11", Requested::Dynamic))];
        for owner_uid in [
            &mut observed.config.as_mut().unwrap().owner_uid,
            &mut observed.deployment.as_mut().unwrap().owner_uid,
        ] {
            *owner_uid = Some("uid-0".into());
        }
        observed.pods[0].owner_uid = "uid-0".into();
        observed.service.as_mut().unwrap().ingress.clear();
        let planned = plan(&key(), &observed);
        assert!(planned.actions.contains(&Action::DeleteDeployment("dep".into(), "3".into())));
        assert!(planned.actions.contains(&Action::DeleteConfig("cm".into(), "3".into())));
        assert!(matches!(planned.actions.last(), Some(Action::Claim(_))), "an address of its own meanwhile");
        observed.claims.push(claim("172.18.0.12", Requested::Dynamic));
        assert_eq!(config_of(&plan(&key(), &observed)), None, "not into what is being deleted");
    }

    #[test]
    fn a_kept_address_waits_for_the_next_service_of_the_name() {
        let kept = Claim { keep: true, ..of_earlier(claim("172.18.0.11", Requested::Dynamic)) };
        let gone = Observed { service: None, ..claimed(std::slice::from_ref(&kept)) };
        assert_eq!(plan(&key(), &gone).actions, []);

        let mut next = claimed(std::slice::from_ref(&kept));
        next.pods = vec![Pod { owner_uid: "uid-0".into(), deleting: true, ..pod("old", "", &[]) }];
        assert!(
            !plan(&key(), &next).actions.contains(&Action::Adopt(kept.id.clone())),
            "its gateway is there"
        );
        next.pods.clear();
        assert_eq!(plan(&key(), &next).actions, [Action::Adopt(kept.id.clone())]);

        // Not what it wants: the kept one waits on.
        next.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        assert!(matches!(plan(&key(), &next).actions[..], [Action::Claim(_)]));

        // The annotation comes and goes on a live Service.
        let mut live = claimed(&[Claim { keep: true, ..claim("172.18.0.11", Requested::Dynamic) }]);
        assert!(plan(&key(), &live).actions.contains(&Action::SetRetain(kept.id.clone(), false)));
        // Whoever needs no gateway any more needs no address.
        live.service.as_mut().unwrap().load_balancer = false;
        assert!(plan(&key(), &live).actions.contains(&Action::Release(kept.id)));
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_named() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        observed.deployment =
            Some(OwnedObject { owner_uid: None, ..child("theirs", DeploymentState::default()) });
        let planned = plan(&key(), &observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "NameTaken");
        assert!(!planned.actions.iter().any(|action| matches!(
            action,
            Action::DeleteDeployment(..) | Action::WriteDeployment(_) | Action::WriteConfig(_)
        )));
        observed.service = None;
        let deletes = |action: &Action| matches!(action, Action::DeleteDeployment(..));
        assert!(!plan(&key(), &observed).actions.iter().any(deletes));
    }

    #[test]
    fn a_pod_that_does_not_follow_is_told_again() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().ports.push(port("UDP", 53));
        let content = config_of(&plan(&key(), &observed)).unwrap().clone();
        let digest = names::digest(content.as_bytes());
        observed.config.as_mut().unwrap().content = content;
        let told = |observed: &Observed| {
            plan(&key(), observed).actions.into_iter().find_map(|action| match action {
                Action::AnnotatePod { annotations, nudge, .. } => {
                    Some((annotations[names::CONFIG_ANNOTATION].clone(), nudge))
                }
                _ => None,
            })
        };
        assert_eq!(told(&observed), Some((format!("{digest}.0"), Some(0))));
        observed.pods[0].annotations.insert(names::CONFIG_ANNOTATION.into(), format!("{digest}.0"));
        let nudged = |age| [("uid-gw".to_owned(), age)].into();
        observed.nudges = nudged(Duration::from_millis(100));
        assert_eq!(told(&observed), None, "it gets a moment");
        observed.nudges = nudged(Duration::from_millis(300));
        assert_eq!(told(&observed), Some((format!("{digest}.1"), Some(1))));
    }

    #[test]
    fn why_there_is_no_gateway_is_said() {
        let why = |change: fn(&mut Observed)| {
            let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
            let content = config_of(&plan(&key(), &observed)).unwrap().clone();
            observed.config = Some(child("cm", content));
            observed.deployment = Some(child("dep", DeploymentState::default()));
            change(&mut observed);
            let planned = plan(&key(), &observed);
            let told =
                planned.actions.iter().any(|action| matches!(action, Action::Event { warning: true, .. }));
            (reason(status(&planned).unwrap().1, GATEWAY_READY).to_owned(), told)
        };
        let expect = |reason: &str| (reason.to_owned(), true);
        assert_eq!(why(|o| o.attachment = None), expect("AttachmentNotFound"));
        assert_eq!(
            why(|o| o.attachment.as_mut().unwrap().fault = Some("its spec.config is not JSON".into())),
            expect("AttachmentInvalid")
        );
        assert_eq!(why(|o| o.write_refused = Some("exceeded quota".into())), expect("WriteRefused"));
        assert_eq!(
            why(|o| o.deployment.as_mut().unwrap().content.failure = Some("violates PodSecurity".into())),
            expect("PodRefused")
        );
        assert_eq!(
            why(|o| {
                let waiting = Some(("ImagePullBackOff".into(), "no such image".into()));
                o.pods = vec![Pod { waiting, ready: false, ..pod("gw", "", &[]) }];
            }),
            expect("ImagePullBackOff")
        );
        let mut hangs = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let content = config_of(&plan(&key(), &hangs)).unwrap().clone();
        hangs.config = Some(child("cm", content));
        hangs.deployment = deployment_of(&plan(&key(), &hangs));
        hangs.attachment.as_mut().unwrap().l2_segment = Some("macvlan on eth7, VLAN 0".into());
        let waiting = Some(("FailedCreatePodSandBox".into(), "Link not found".into()));
        let (node, address) = (Some("n2".into()), None);
        hangs.pods = vec![Pod { waiting, node, address, ready: false, ..pod("gw", "", &[]) }];
        let planned = plan(&key(), &hangs);
        let said = status(&planned).unwrap().1.iter().find(|condition| condition.kind == GATEWAY_READY);
        let message = &said.unwrap().message;
        assert!(["n2", "eth7", "Link not found"].iter().all(|word| message.contains(word)), "{message}");
        assert_eq!(
            why(|o| {
                let faults = [("CapabilityMissing".to_owned(), "NET_ADMIN".to_owned())].into();
                let report =
                    StatusReport::Reported(Box::new(GatewayStatus { faults, ..GatewayStatus::default() }));
                o.pods = vec![Pod { report, ready: false, ..pod("gw", "", &[]) }];
            }),
            expect("CapabilityMissing")
        );
    }

    fn served() -> Observed {
        carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11")
    }

    fn annotate(observed: &mut Observed, annotation: &str, value: &str) {
        let annotations = &mut observed.service.as_mut().unwrap().annotations;
        annotations.insert(annotation.to_owned(), value.to_owned());
    }

    /// The Service sets this for its own gateway.
    fn set(observed: &mut Observed, setting: Setting, value: Value) {
        annotate(observed, setting.annotation(), &value.to_string());
        let read = setting.check(&value).map(|()| value);
        observed.service.as_mut().unwrap().settings.insert(setting, read);
    }

    /// The Service sets this to something that is not of its type.
    fn set_wrongly(observed: &mut Observed, setting: Setting) {
        annotate(observed, setting.annotation(), "[{kei: a}]");
        let fault = "there is no field 0.kei".to_owned();
        observed.service.as_mut().unwrap().settings.insert(setting, Err(fault));
    }

    fn configured(mut observed: Observed, image: &str) -> Observed {
        observed.configuration = Arc::new(Configuration::new(image));
        observed
    }

    #[test]
    fn a_setting_comes_and_goes_with_its_annotation() {
        let selector = |plan: &Plan| {
            deployment_of(plan)
                .map(|child| child.content.live["spec"]["template"]["spec"]["nodeSelector"].clone())
        };
        let mut observed = served();
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "disk": "ssd" }));
        // Its own change is not made to wait for others.
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&key(), &observed);
        assert_eq!(selector(&planned).unwrap()["disk"], "ssd");
        assert!(!planned.in_rollout && !planned.rollout_pending);
        let planned = plan(&key(), &configured(observed.clone(), "gateway:2"));
        assert!(
            deployment_of(&planned).is_some() && !planned.rollout_pending,
            "nor with what changes for all"
        );
        observed.deployment = deployment_of(&plan(&key(), &observed));
        assert_eq!(plan(&key(), &observed).actions, []);
        observed.service.as_mut().unwrap().settings.clear();
        assert_eq!(selector(&plan(&key(), &observed)).unwrap()["disk"], Value::Null);
    }

    #[test]
    fn a_setting_of_its_own_wins_and_the_others_are_those_for_all() {
        let mut observed = served();
        let all = Settings::from_iter([
            (Setting::NodeSelector, serde_json::json!({ "zone": "a" })),
            (Setting::PriorityClassName, "high".into()),
            (Setting::Replicas, 2.into()),
        ]);
        let plain = Configuration::default();
        observed.configuration = Arc::new(Configuration { gateway: all.or(&plain.gateway), ..plain });
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "disk": "ssd" }));
        set(&mut observed, Setting::Replicas, 1.into());
        let planned = plan(&key(), &observed);
        let live = deployment_of(&planned).unwrap().content.live;
        let pod = &live["spec"]["template"]["spec"];
        let selector = serde_json::json!({ "disk": "ssd", "kubernetes.io/os": "linux" });
        assert_eq!(pod["nodeSelector"], selector, "as a whole");
        assert_eq!(pod["priorityClassName"], "high");
        assert_eq!(live["spec"]["replicas"], 1);
        let of_several = |action: &Action| matches!(action, Action::WriteKey(_) | Action::WriteBudget(_));
        assert!(!planned.actions.iter().any(of_several));
    }

    #[test]
    fn a_bad_setting_is_said_and_the_gateway_stays_as_it_is() {
        let limit = |observed: &Observed| {
            let planned = plan(&key(), observed);
            assert_eq!(deployment_of(&planned), None);
            let (ingress, conditions) = status(&planned).unwrap();
            assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
            assert!(
                planned.actions.iter().any(|action| matches!(action, Action::Event { warning: true, .. }))
            );
            conditions.iter().find(|condition| condition.kind == LIMITED).unwrap().clone()
        };
        let mut observed = served();
        set_wrongly(&mut observed, Setting::Tolerations);
        let said = limit(&observed);
        assert_eq!(said.reason, "InvalidSetting");
        assert!(said.message.contains(names::TOLERATIONS_ANNOTATION), "{}", said.message);
        // Nor is it rolled for what changes for all.
        assert_eq!(limit(&configured(observed, "gateway:2")), said);

        let mut observed = served();
        set(&mut observed, Setting::Image, "mine:1".into());
        assert_eq!(limit(&observed).reason, "SettingNotAllowed");

        // What only the API server finds.
        let mut observed = served();
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "a b": "c" }));
        observed.deployment = deployment_of(&plan(&key(), &observed));
        observed.write_refused = Some("spec.template.spec.nodeSelector: Invalid value".into());
        let said = limit(&observed);
        assert_eq!(said.reason, "WriteRefused");
        assert!(said.message.contains(names::NODE_SELECTOR_ANNOTATION), "{}", said.message);

        // There is no last good state: it is not guessed.
        let mut fresh = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        set_wrongly(&mut fresh, Setting::Tolerations);
        let planned = plan(&key(), &fresh);
        assert_eq!(deployment_of(&planned), None);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "InvalidSetting");
    }

    #[test]
    fn what_changes_for_all_rolls_a_few_at_a_time() {
        let mut observed = configured(served(), "gateway:2");
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS - 1;
        let planned = plan(&key(), &observed);
        assert!(deployment_of(&planned).is_some() && planned.in_rollout && !planned.rollout_pending);
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&key(), &observed);
        assert!(deployment_of(&planned).is_none() && !planned.in_rollout && planned.rollout_pending);
        assert!(planned.converged, "it serves meanwhile");

        // What was made by a release that did not say from what, too.
        let mut earlier = served();
        earlier.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let live = &mut earlier.deployment.as_mut().unwrap().content.live;
        live["metadata"]["annotations"].as_object_mut().unwrap().remove(names::TEMPLATE_ANNOTATION);
        assert!(plan(&key(), &earlier).rollout_pending);

        // Another attachment behind its name as well.
        let mut attached = served();
        attached.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        attached.attachment = Some(Attachment { digest: "other".into(), ..Attachment::default() });
        assert!(plan(&key(), &attached).rollout_pending);

        // Who serves nobody has nothing to wait for.
        observed.pods[0].ready = false;
        assert!(deployment_of(&plan(&key(), &observed)).is_some());
    }

    #[test]
    fn what_others_change_is_put_right_at_once() {
        let mut observed = served();
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        observed.deployment.as_mut().unwrap().content.live["spec"]["replicas"] = 0.into();
        let planned = plan(&key(), &observed);
        assert!(deployment_of(&planned).is_some() && !planned.rollout_pending);
    }

    /// Gateways are to be in a namespace of their own.
    fn apart(observed: Observed) -> Observed {
        Observed { desired_namespace: "gateways".into(), ..observed }
    }

    #[test]
    fn a_gateway_moves_by_leaving_first() {
        let mut observed = apart(served());
        let planned = plan(&key(), &observed);
        assert_eq!(
            planned.actions[..2],
            [
                Action::DeleteDeployment("dep".into(), "3".into()),
                Action::DeleteConfig("cm".into(), "3".into()),
            ]
        );
        assert!(config_of(&planned).is_none() && deployment_of(&planned).is_none());
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, REPLACING));
        assert!(planned.in_rollout, "as one of a few");

        // What is left of it is waited for, and takes its room.
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        observed.deployment.as_mut().unwrap().deleting = true;
        observed.config = None;
        let planned = plan(&key(), &observed);
        assert!(config_of(&planned).is_none() && planned.in_rollout && !planned.rollout_pending);

        // Nothing is: where the gateway will be is recorded before it is made.
        observed.namespace = "gateways".into();
        (observed.deployment, observed.pods) = (None, Vec::new());
        let planned = plan(&key(), &observed);
        let converged =
            planned.actions.iter().position(|action| matches!(action, Action::SetGatewayNamespace(_)));
        let written = planned.actions.iter().position(|action| matches!(action, Action::WriteConfig(_)));
        assert!(converged.unwrap() < written.unwrap());
        let live = deployment_of(&planned).unwrap().content.live;
        assert_eq!(live["metadata"]["namespace"], "gateways");
        assert!(live["metadata"]["ownerReferences"].is_null());
        observed.claims[0].gateway_namespace = "gateways".into();
        assert!(
            !plan(&key(), &observed)
                .actions
                .iter()
                .any(|action| matches!(action, Action::SetGatewayNamespace(_)))
        );
    }

    #[test]
    fn until_its_turn_comes_a_gateway_is_served_where_it_is() {
        let mut observed = apart(served());
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        observed.service.as_mut().unwrap().ports.push(port("TCP", 443));
        let planned = plan(&key(), &observed);
        assert!(config_of(&planned).unwrap().contains("443"));
        assert!(planned.rollout_pending && !planned.in_rollout);
        assert!(!planned.actions.iter().any(|action| matches!(action, Action::DeleteDeployment(..))));
        // Nor does it move for a spec that makes no sense.
        observed.other_rollouts = 0;
        observed.service.as_mut().unwrap().load_balancer_ip = "nonsense".into();
        let planned = plan(&key(), &observed);
        assert!(!planned.actions.iter().any(|action| matches!(action, Action::DeleteDeployment(..))));
    }

    #[test]
    fn a_gateway_that_cannot_be_seen_is_not_made_a_second_time() {
        let mut observed = apart(served());
        observed.is_visible = false;
        (observed.config, observed.deployment, observed.pods) = (None, None, Vec::new());
        let planned = plan(&key(), &observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayElsewhere"));
        assert!(config_of(&planned).is_none() && deployment_of(&planned).is_none());
        // Nor is its address given away.
        observed.service = None;
        assert_eq!(plan(&key(), &observed).actions, []);
        // Nothing of it was there after all.
        observed.namespace = "gateways".into();
        assert_eq!(plan(&key(), &observed).actions, [Action::Release(observed.claims[0].id.clone())]);
    }

    #[test]
    fn a_gateway_that_runs_outlives_its_attachment() {
        let mut observed = configured(served(), "gateway:2");
        observed.attachment = None;
        let planned = plan(&key(), &observed);
        assert_eq!(deployment_of(&planned), None, "a new pod would not come up");
        assert_eq!(status(&planned).unwrap().0.len(), 1);
    }

    #[test]
    fn a_warning_is_said_again_while_it_lasts() {
        let mut observed = claimed(&[]);
        observed.allocation_error = Some(AllocationError::Full("Subnet lan".into()));
        let mut observed = settle(observed);
        let warns = |observed: &Observed| {
            plan(&key(), observed)
                .actions
                .iter()
                .filter(|action| matches!(action, Action::Event { .. }))
                .count()
        };
        assert_eq!(warns(&observed), 0);
        observed.warned = Some(REMIND);
        assert_eq!(warns(&observed), 1);
    }

    // === several pods ===

    const MAC_A: &str = "ba:85:f7:02:9f:42";
    const MAC_B: &str = "ba:85:f7:02:9f:43";

    fn of_several(mut observed: Observed, replicas: &str) -> Observed {
        set(&mut observed, Setting::Replicas, replicas.parse::<u64>().unwrap().into());
        observed
    }

    /// Pod `name` of an election in which `active` is active for the `term`th
    /// time, and has the address.
    fn member(observed: &Observed, name: &str, active: &str, term: u64) -> Pod {
        let content = observed.config.as_ref().unwrap().content.clone();
        let (role, addresses) =
            if name == active { (Role::Active, &["172.18.0.11"][..]) } else { (Role::Standby, &[][..]) };
        let mac = if name == "a" { MAC_A } else { MAC_B };
        let mut pod = Pod {
            node: Some(format!("node-{name}")),
            member: true,
            mac: Some(mac.into()),
            ..pod(name, &content, addresses)
        };
        said_mut(&mut pod).election = Some(crate::testing::election_status(role, active, term));
        pod
    }

    fn said_mut(pod: &mut Pod) -> &mut GatewayStatus {
        match &mut pod.report {
            StatusReport::Reported(status) => status,
            _ => panic!("it answers"),
        }
    }

    fn members(observed: &mut Observed, active: &str, term: u64) {
        observed.pods = ["a", "b"].map(|name| member(observed, name, active, term)).into();
    }

    /// Two pods, of which `a` is active, and everything is done.
    fn two() -> Observed {
        let mut observed = settle(of_several(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2"));
        members(&mut observed, "a", 1);
        let mut observed = settle(observed);
        // All have the configuration that says that the LAN was asked.
        let (election, content) =
            (observed.election.take(), observed.config.as_ref().unwrap().content.clone());
        let digest = names::digest(content.as_bytes());
        for pod in &mut observed.pods {
            (said_mut(pod).seen, said_mut(pod).digest) = (Some(digest.clone()), Some(digest.clone()));
        }
        Observed { election, ..observed }
    }

    fn message<'a>(observed: &'a Observed, kind: &str) -> &'a str {
        let conditions = &observed.service.as_ref().unwrap().conditions;
        conditions.iter().find(|condition| condition.kind == kind).map_or("", |condition| &condition.message)
    }

    fn events(plan: &Plan) -> Vec<(&str, &str)> {
        let told = plan.actions.iter().filter_map(|action| match action {
            Action::Event { reason, message, .. } => Some((reason.as_str(), message.as_str())),
            _ => None,
        });
        told.collect()
    }

    /// The gateway's objects that are written or deleted, in order.
    fn objects(plan: &Plan) -> Vec<String> {
        let objects = plan.actions.iter().filter_map(|action| match action {
            Action::WriteConfig(_) => Some("config".to_owned()),
            Action::WriteKey(config) => Some(format!("key of {config}")),
            Action::WriteDeployment(live) => Some(format!("deployment of {}", live["spec"]["replicas"])),
            Action::WriteBudget(_) => Some("budget".to_owned()),
            Action::DeleteConfig(..) => Some("no config".to_owned()),
            Action::DeleteDeployment(..) => Some("no deployment".to_owned()),
            Action::DeleteBudget(uid, _) => Some(format!("no {uid}")),
            _ => None,
        });
        objects.collect()
    }

    #[test]
    fn the_key_is_there_before_the_pods_that_wait_for_it() {
        let mut observed = of_several(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2");
        let planned = plan(&key(), &observed);
        assert_eq!(objects(&planned), ["config"], "which is to own the key");
        assert!(!planned.converged);
        observed.config = Some(child("cm", config_of(&planned).unwrap().clone()));
        assert_eq!(objects(&plan(&key(), &observed)), ["key of cm", "deployment of 2", "budget"]);
        let done = two();
        let planned = plan(&key(), &done);
        assert_eq!(planned.actions, []);
        assert!(planned.converged);
    }

    #[test]
    fn key_and_budget_are_for_several_only() {
        assert_eq!(
            objects(&plan(&key(), &of_several(served(), "2"))),
            ["key of cm", "deployment of 2", "budget"]
        );
        assert_eq!(objects(&plan(&key(), &of_several(served(), "1"))), ["deployment of 1"]);
        let one = of_several(two(), "1");
        assert_eq!(objects(&plan(&key(), &one)), ["deployment of 1", "no bud"]);
        let nobody = Observed { service: None, ..two() };
        assert_eq!(objects(&plan(&key(), &nobody)), ["no bud", "no deployment", "no config"]);
    }

    #[test]
    fn a_bad_number_of_pods_leaves_as_many_as_there_are() {
        let observed = of_several(two(), "9");
        let planned = plan(&key(), &observed);
        assert_eq!(objects(&planned), Vec::<String>::new());
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, LIMITED)), (1, "InvalidSetting"));
    }

    #[test]
    fn a_budget_is_mended_if_it_is_ours() {
        let mut observed = two();
        observed.budget.as_mut().unwrap().content["spec"]["maxUnavailable"] = 0.into();
        assert_eq!(objects(&plan(&key(), &observed)), ["budget"]);
        observed.budget.as_mut().unwrap().owner_uid = None;
        let planned = plan(&key(), &observed);
        assert_eq!(planned.actions, []);
        assert_eq!(objects(&plan(&key(), &of_several(observed, "1"))), ["deployment of 1"]);
    }

    #[test]
    fn a_key_that_was_lost_is_made_again() {
        let made = |change: fn(&mut Observed)| {
            let mut observed = two();
            observed.now = Timestamp::from_second(100).unwrap();
            let since = Some(Timestamp::from_second(90).unwrap());
            observed.pods[1] = Pod {
                ready: false,
                unready_since: since,
                address: None,
                mac: None,
                report: StatusReport::NotQueried,
                ..observed.pods[1].clone()
            };
            change(&mut observed);
            objects(&plan(&key(), &observed))
        };
        assert_eq!(made(|_| {}), ["key of cm"]);
        let never: [fn(&mut Observed); 5] = [
            |o| o.now = Timestamp::from_second(99).unwrap(),
            |o| o.key_written = Some(Duration::from_secs(9)),
            |o| o.pods[1].node = None,
            |o| o.pods[1].address = Some("10.244.1.6".parse().unwrap()),
            |o| o.pods[1].deleting = true,
        ];
        for change in never {
            assert_eq!(made(change), Vec::<String>::new());
        }
        assert_eq!(made(|o| o.key_written = Some(KEY_AGAIN)), ["key of cm"]);
    }

    #[test]
    fn the_claim_follows_the_active_pod() {
        let mut observed = two();
        assert_eq!((observed.claims[0].mac.as_str(), observed.claims[0].probed), (MAC_A, true));
        members(&mut observed, "b", 2);
        observed = settle(observed);
        assert_eq!(observed.claims[0].mac, MAC_B);
        // Nobody knows for a moment: what was known stays.
        observed.pods.truncate(1);
        assert_eq!(settle(observed).claims[0].mac, MAC_B);

        // The pod from before there were several answers until it goes.
        let mut mixed = two();
        mixed.pods[0] = Pod { member: false, ..mixed.pods[0].clone() };
        let StatusReport::Reported(status) = &mut mixed.pods[0].report else { panic!("it answers") };
        status.election = None;
        said_mut(&mut mixed.pods[1]).election.as_mut().unwrap().active = None;
        mixed.claims[0].mac = String::new();
        let mixed = settle(mixed);
        assert_eq!(mixed.claims[0].mac, MAC_A);
    }

    #[test]
    fn an_address_is_in_service_once_one_of_several_has_it() {
        let mut observed = settle(of_several(claimed(&[claim("172.18.0.11", Requested::Static)]), "2"));
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        members(&mut observed, "a", 1);
        let ingress = |observed: &Observed| {
            let planned = plan(&key(), observed);
            let (ingress, conditions) = status(&planned).unwrap();
            (ingress.len(), reason(conditions, GATEWAY_READY).to_owned())
        };
        assert_eq!(ingress(&observed), (1, "GatewayReady".into()));

        // The active one withholds it; the standby is ready all the same.
        let mut withheld = observed.clone();
        withheld.pods[0].ready = false;
        let status = said_mut(&mut withheld.pods[0]);
        (status.digest, status.addresses) = (None, Vec::new());
        status.conflicts.insert("172.18.0.11".parse().unwrap(), FOREIGN.to_owned());
        assert_eq!(ingress(&withheld), (0, CONFLICT.into()));
        withheld.pods[1].report = StatusReport::NoResponse;
        assert_eq!(ingress(&withheld), (0, CONFLICT.into()));

        // Pods that may not be asked are believed their readiness.
        observed.pods.iter_mut().for_each(|pod| pod.report = StatusReport::NoResponse);
        assert_eq!(ingress(&observed), (1, "GatewayReady".into()));
    }

    #[test]
    fn one_of_several_that_is_ready_is_enough() {
        for ready in ["a", "b"] {
            let mut observed = two();
            for pod in observed.pods.iter_mut().filter(|pod| pod.name != ready) {
                (pod.ready, pod.report) = (false, StatusReport::NoResponse);
            }
            let settled = settle(observed);
            let service = settled.service.as_ref().unwrap();
            assert_eq!(ips(&service.ingress), ["172.18.0.11"]);
            assert_eq!(reason(&service.conditions, GATEWAY_READY), "GatewayReady", "{ready}");
            assert!(plan(&key(), &settled).converged);
        }
    }

    #[test]
    fn who_may_take_over_knows_that_the_lan_was_asked() {
        let mut observed = settle(of_several(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2"));
        members(&mut observed, "a", 1);
        let nudged = |observed: &Observed| {
            let planned = plan(&key(), observed);
            let names = planned.actions.iter().filter_map(|action| match action {
                Action::AnnotatePod { pod, nudge: Some(_), .. } => Some(pod.clone()),
                _ => None,
            });
            names.collect::<Vec<_>>()
        };
        assert_eq!(nudged(&observed), Vec::<String>::new());
        observed.claims[0].probed = true;
        assert_eq!(nudged(&observed), ["a", "b"]);
    }

    #[test]
    fn each_change_of_who_is_active_is_told_once() {
        let mut observed = two();
        assert_eq!(
            message(&observed, GATEWAY_READY),
            "172.18.0.11 is served by a on node-a; standby b on node-b"
        );
        members(&mut observed, "b", 2);
        let planned = plan(&key(), &observed);
        let told = [("ActiveChanged", "b on node-b answers for 172.18.0.11 now: why 2")];
        assert_eq!(events(&planned), told, "and nothing else");
        let observed = settle(observed);
        assert_eq!(
            message(&observed, GATEWAY_READY),
            "172.18.0.11 is served by b on node-b; standby a on node-a"
        );
        assert_eq!(events(&plan(&key(), &observed)), []);

        // A process that has just started only learns.
        let mut fresh = Observed { election: None, ..observed.clone() };
        let planned = plan(&key(), &fresh);
        assert!(matches!(planned.actions[..], [Action::Remember(Some(_))]), "{:?}", planned.actions);

        // Nobody can be asked for a moment: nothing changes for that.
        fresh = observed;
        fresh.pods.iter_mut().for_each(|pod| pod.report = StatusReport::NoResponse);
        fresh.nudges = [("uid-a".into(), Duration::ZERO), ("uid-b".into(), Duration::ZERO)].into();
        assert_eq!(plan(&key(), &fresh).actions, []);
        // The other pod leaves.
        fresh.pods.remove(0);
        assert_eq!(
            message(&settle(fresh.clone()), GATEWAY_READY),
            "172.18.0.11 is served by b on node-b; no standby"
        );
        // Back to one: what was seen of their election is no matter any more.
        fresh.pods[0].member = false;
        let planned = plan(&key(), &fresh);
        assert!(planned.actions.contains(&Action::Remember(None)), "{:?}", planned.actions);
        assert_eq!(message(&settle(fresh), GATEWAY_READY), "172.18.0.11 is served");
    }

    #[test]
    fn a_split_is_a_warning() {
        let mut observed = two();
        said_mut(&mut observed.pods[0]).election.as_mut().unwrap().splits = 1;
        let planned = plan(&key(), &observed);
        let [(reason, message)] = events(&planned)[..] else { panic!("{:?}", planned.actions) };
        assert!(
            reason == "SplitBrain" && message.contains("172.18.0.11") && message.contains("says a:"),
            "{message}"
        );
        assert_eq!(plan(&key(), &settle(observed)).actions, []);
    }

    #[test]
    fn why_there_is_no_standby_is_said() {
        let limit = |change: fn(&mut Observed)| {
            let mut observed = two();
            observed.now = Timestamp::from_second(100).unwrap();
            let pod = &mut observed.pods[1];
            (pod.ready, pod.unready_since, pod.report) =
                (false, Some(Timestamp::from_second(90).unwrap()), StatusReport::NotQueried);
            change(&mut observed);
            let settled = settle(observed);
            assert_eq!(settled.service.as_ref().unwrap().ingress.len(), 1);
            message(&settled, LIMITED).to_owned()
        };
        assert_eq!(limit(|_| {}), "1 of 2 gateway pods are ready; b: it is not ready");
        let unschedulable: fn(&mut Observed) =
            |o| o.pods[1].waiting = Some(("Unschedulable".into(), "0/1 nodes".into()));
        assert_eq!(limit(unschedulable), "1 of 2 gateway pods are ready; b: 0/1 nodes");
        let refused: fn(&mut Observed) = |o| {
            o.pods.pop();
            let deployment = &mut o.deployment.as_mut().unwrap().content;
            deployment.failure = Some("quota".into());
            deployment.live["metadata"]["annotations"][names::ASKED_ANNOTATION] = o.now.to_string().into();
        };
        assert_eq!(limit(refused), "1 of 2 gateway pods are ready; no pod can be made: quota");
        assert_eq!(limit(|o| o.now = Timestamp::from_second(99).unwrap()), "", "it is on its way");
    }

    #[test]
    fn pods_that_were_refused_are_asked_for_again_now_and_then() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.now = Timestamp::from_second(1000).unwrap();
        observed.deployment.as_mut().unwrap().content.failure = Some("violates PodSecurity".into());
        let asked = |observed: &Observed| deployment_of(&plan(&key(), observed));
        let first = asked(&observed).unwrap();
        let at = first.content.live["metadata"]["annotations"][names::ASKED_ANNOTATION].clone();
        assert_eq!(at, "1970-01-01T00:16:40Z");
        observed.deployment.as_mut().unwrap().content.live = first.content.live;
        assert_eq!(asked(&observed), None);
        observed.now = Timestamp::from_second(1030).unwrap();
        assert!(asked(&observed).is_some());
        observed.deployment.as_mut().unwrap().content.failure = None;
        assert_eq!(asked(&observed), None);
    }

    #[test]
    fn several_pods_are_rolled_as_one_gateway() {
        let mut observed = configured(two(), "gateway:2");
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&key(), &observed);
        assert!(planned.rollout_pending && objects(&planned).is_empty());
        observed.other_rollouts -= 1;
        let planned = plan(&key(), &observed);
        assert!(planned.in_rollout);
        assert_eq!(objects(&planned), ["key of cm", "deployment of 2"]);
    }

    #[test]
    fn a_configuration_too_large_is_a_condition() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        observed.service.as_mut().unwrap().ports = (1..=20_000).map(|number| port("TCP", number)).collect();
        let planned = plan(&key(), &observed);
        assert_eq!(config_of(&planned), None);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "ConfigTooLarge");
    }
}
