//! The status of a Service: ingress, conditions, and the Events that say what
//! changed in them.

use std::time::Duration;

use jiff::Timestamp;
use lb_svc_crds::bounded::cut;
use lb_svc_crds::gateway::{Port, ProxyProtocol, Transport};
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;

use super::allocation::{conflict, is_gateways};
use super::passing;
use super::publication::Published;
use super::spec::DirectAccessCause;
use crate::action::Action;
use crate::backend::convergence::Convergence;
use crate::gateway::rollout::Rollouts;
use crate::gateway::workload::{START_GRACE, is_late};
use crate::ipam::{Claim, Network};
use crate::model::{Attachment, Condition, Ingress, Pod, Problem, Service, Setting};
use crate::observed::{Observed, ObservedAddresses};

/// The Service holds an address.
pub const ADDRESS_ALLOCATED: &str = "lb-svc.kubeovn.io/AddressAllocated";
/// A ready gateway serves the address on all ports.
pub const GATEWAY_READY: &str = "lb-svc.kubeovn.io/GatewayReady";
/// kube-proxy serves the Service at addresses of nodes.
pub const NODE_ADDRESSES_READY: &str = "lb-svc.kubeovn.io/NodeAddressesReady";
/// The longest message of the condition [`LIMITED`], in bytes: there may be a
/// warning for each port.
const LIMITED_MAX: usize = 8 * 1024;
/// Part of what the Service asks is not served; absent where all is.
pub const LIMITED: &str = "lb-svc.kubeovn.io/Limited";

/// The reasons of what a gateway's pod reports as a limit, the worst first.
const LIMITS: [Reason; 4] =
    [Reason::AddressAnsweredTwice, Reason::ProxyFull, Reason::RouterSilent, Reason::Ipv6NotBlocked];

/// How long a write fails before that is said on the Service.
pub const FAILS_FOR: Duration = Duration::from_secs(30);
/// How often a Warning is repeated while it lasts.
pub const REMIND: Duration = Duration::from_secs(25 * 60);

/// What a Service's status is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// The ingress as it is to be.
    pub ingress: Vec<Ingress>,
    /// What serves it.
    pub server: Server,
    /// What is allocated, for people, or why nothing is.
    pub allocated: Result<String, Problem>,
    /// Whether what serves it is ready.
    pub ready: Ready,
    /// What is not served as asked, while the rest is.
    pub warnings: Vec<Problem>,
    /// What a gateway that serves lacks; `None` if it does not serve.
    pub degraded: Option<Degraded>,
    /// What is known of the Service.
    pub known: Known,
}

/// What serves a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A gateway.
    Gateway,
    /// kube-proxy, at the nodes' own addresses.
    Nodes,
}

impl Server {
    /// The condition that says whether it is ready.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Gateway => GATEWAY_READY,
            Self::Nodes => NODE_ADDRESSES_READY,
        }
    }

    /// The reason of a Service that holds what it asks for.
    fn allocated(self) -> Reason {
        match self {
            Self::Gateway => Reason::AddressAllocated,
            Self::Nodes => Reason::PortsClaimed,
        }
    }

    /// The reason of a Service that is served.
    fn served(self) -> Reason {
        match self {
            Self::Gateway => Reason::GatewayReady,
            Self::Nodes => Reason::NodeAddressesPublished,
        }
    }
}

/// Whether what serves a Service is ready.
#[derive(Clone, Debug, PartialEq)]
pub enum Ready {
    /// It cannot be made as asked.
    Impossible(Problem),
    /// It is not, for this reason, unless the API server refuses its objects.
    NotYet(Problem),
    /// It is; how it serves.
    Yes(String),
    /// What was said of it stays: claims have to change first.
    AsBefore,
}

/// What a gateway that serves lacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Degraded {
    /// Nothing answers a pod, though endpoints are ready; this comes before other
    /// warnings, which may follow from it.
    pub unreachable: Option<Problem>,
    /// No endpoint of some port is healthy; this comes next.
    pub all_unhealthy: Option<Problem>,
    /// Fewer pods are ready than are asked for.
    pub standby_shortage: Option<Problem>,
    /// What its pods report that they do less well than they should.
    pub limits: Vec<Problem>,
}

/// What is known of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Its `status.loadBalancer.ingress`.
    ingress: Vec<Ingress>,
    /// The controller's conditions in its status.
    conditions: Vec<Condition>,
    /// The annotations by which it sets something of the gateway's pods, which
    /// may be what the API server refuses.
    settings: Vec<&'static str>,
    /// Whether a Warning that was written before is to be repeated.
    remind: bool,
    /// Whether what passes by itself has not.
    lasts: bool,
    /// The status as it was last written.
    published: Option<Published>,
}

/// What is known of `service`.
pub fn known(service: &Service, observed: &Observed) -> Known {
    let settings = Setting::ALL.map(Setting::annotation).into_iter();
    Known {
        ingress: service.ingress.clone(),
        conditions: service.conditions.clone(),
        settings: settings.filter(|name| service.annotations.contains_key(*name)).collect(),
        remind: observed.remembered.warned.is_none_or(|age| age >= REMIND),
        lasts: passing::lasts(observed),
        published: observed.remembered.published.clone(),
    }
}

impl Conditions {
    /// For how long the status is left to another writer, who replaces it each time. Only
    /// what was written before waits.
    pub fn postponed(&self) -> Option<Duration> {
        let Known { ingress, conditions, published, .. } = &self.known;
        let published = published.as_ref().filter(|published| published.ingress == self.ingress)?;
        if published.is_replaced(ingress, conditions) { published.again_in() } else { None }
    }

    /// Writes the status if it differs, and Events that say what changed; nothing while
    /// that is [postponed](Self::postponed). `failed`: the write that failed just now, if
    /// one did.
    pub fn report(&self, failed: Option<&FailedWrite>) -> Vec<Action> {
        if self.postponed().is_some() {
            return Vec::new();
        }
        let failure = failed.map(|failed| failed.problem(&self.known.settings));
        let conditions = self.conditions(failure.as_ref());
        let mut actions = self.events(&conditions);
        let same = |a: &[Condition], b: &[Condition]| a.len() == b.len() && a.iter().all(|c| b.contains(c));
        if self.ingress != self.known.ingress || !same(&conditions, &self.known.conditions) {
            // At an address of nodes kube-proxy serves whatever the Service has: it has
            // to be the Service that was judged.
            let exact = self.server == Server::Nodes && !self.ingress.is_empty();
            actions.push(Action::SetStatus { ingress: self.ingress.clone(), conditions, exact });
        }
        actions
    }

    /// Whether the Service waits for what passes by itself.
    pub fn is_passing(&self) -> bool {
        let conditions = self.conditions(None);
        conditions.iter().any(|condition| !condition.status && passing::passes(&condition.reason))
    }

    fn conditions(&self, failure: Option<&Problem>) -> Vec<Condition> {
        let condition = |kind: &str, status: bool, reason: &str, message: String| Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
        };
        let kind = self.server.condition();
        let allocated = match &self.allocated {
            Ok(what) => condition(ADDRESS_ALLOCATED, true, self.server.allocated().as_str(), what.clone()),
            Err(problem) => {
                let problem = failure.filter(|_| self.ready == Ready::AsBefore).unwrap_or(problem);
                condition(ADDRESS_ALLOCATED, false, &problem.reason, problem.message.clone())
            }
        };
        let not_ready = |problem: &Problem| condition(kind, false, &problem.reason, problem.message.clone());
        let ready = match &self.ready {
            Ready::Impossible(problem) => not_ready(problem),
            Ready::NotYet(problem) => not_ready(failure.unwrap_or(problem)),
            Ready::Yes(how) => {
                let verb = if self.ingress.len() > 1 { "are" } else { "is" };
                let message = format!("{} {verb} served{how}", ips(&self.ingress).join(", "));
                condition(kind, true, self.server.served().as_str(), message)
            }
            Ready::AsBefore => {
                let known = self.known.conditions.iter().find(|known| known.kind == kind);
                let known = known.filter(|known| known.status).cloned();
                known.unwrap_or_else(|| Condition { kind: kind.to_owned(), ..allocated.clone() })
            }
        };
        let overwritten = self.known.published.as_ref().and_then(Published::overwritten);
        let mut warnings: Vec<&Problem> = self.warnings.iter().chain(&overwritten).collect();
        if matches!(self.ready, Ready::Yes(_) | Ready::Impossible(_)) {
            warnings.extend(failure);
        }
        if let Some(Degraded { unreachable, all_unhealthy, standby_shortage, limits }) = &self.degraded {
            warnings.extend(standby_shortage);
            warnings.extend(limits);
            warnings.splice(..0, unreachable.iter().chain(all_unhealthy));
        }
        let limited = warnings.first().map(|first| {
            let messages: Vec<&str> = warnings.iter().map(|warning| warning.message.as_str()).collect();
            condition(LIMITED, true, &first.reason, cut(&messages.join("; "), LIMITED_MAX))
        });
        [allocated, ready].into_iter().chain(limited).collect()
    }

    /// Events for what is new in `conditions`, or is to be repeated.
    fn events(&self, conditions: &[Condition]) -> Vec<Action> {
        let mut reported: Vec<&String> = Vec::new();
        let mut actions = Vec::new();
        for condition in conditions {
            let is_news = match condition.kind.as_str() {
                // A change of the active pod is an Event of its own.
                GATEWAY_READY | NODE_ADDRESSES_READY if condition.status => {
                    let same =
                        |known: &&Condition| known.kind == condition.kind && known.reason == condition.reason;
                    ips(&self.ingress) != ips(&self.known.ingress)
                        || !self.known.conditions.iter().any(|known| same(&known))
                }
                _ => !self.known.conditions.contains(condition),
            };
            let warning = !condition.status || condition.kind == LIMITED;
            // Nobody has to act on a limit of a Service that is served.
            let remind = !condition.status && self.known.remind;
            // What passes by itself is no news; what two conditions say is
            // reported once.
            let passing = passing::passes(&condition.reason) && !self.known.lasts;
            if passing || reported.contains(&&condition.reason) || !(is_news || remind) {
                continue;
            }
            reported.push(&condition.reason);
            let (reason, message) = (condition.reason.clone(), condition.message.clone());
            actions.push(Action::Event { warning, reason, message });
        }
        actions
    }
}

/// A write that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedWrite {
    /// What was written.
    pub what: &'static str,
    /// Whether the API server refused it; else it has failed for
    /// [`FAILS_FOR`].
    pub refused: bool,
    /// Why, in the API server's words.
    pub why: String,
}

impl FailedWrite {
    /// What is said of it; `settings`: the annotations that may be what the API
    /// server refuses.
    pub fn problem(&self, settings: &[&str]) -> Problem {
        let Self { what, refused, why } = self;
        if !refused {
            let message = format!("writing {what} has failed for {} s: {why}", FAILS_FOR.as_secs());
            return Problem::new(Reason::WriteFailed, message);
        }
        let set = settings.join(", ");
        let hint = if set.is_empty() { String::new() } else { format!("; this Service sets {set}") };
        Problem::new(Reason::WriteRefused, format!("the API server refuses to write {what}: {why}{hint}"))
    }
}

/// What is in the status already and still a claim of the Service's.
pub fn kept_ingress(service: &Service, own: &[&Claim]) -> Vec<Ingress> {
    let is_own = |entry: &&Ingress| own.iter().any(|claim| claim.address.to_string() == entry.ip);
    service.ingress.iter().filter(is_own).cloned().collect()
}

/// That the address goes with its Service, though it is to be kept.
pub fn not_kept(observed: &Observed) -> Problem {
    let message = format!(
        "annotation {}: the namespace keeps {} addresses, as many as it may (keptAddressesPerNamespace of the controller's configuration): this one goes with the Service",
        names::KEEP_ADDRESS_ANNOTATION,
        observed.addresses.kept_before,
    );
    Problem::new(Reason::AddressNotKept, message)
}

/// That the Subnet of an address in service would not give it out now.
pub fn out_of_range(claim: &Claim, addresses: &ObservedAddresses) -> Option<Problem> {
    let Claim { address, subnet, .. } = claim;
    let why = match addresses.networks.get(subnet) {
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
    Some(Problem::new(Reason::AddressNotInSubnet, message))
}

/// That pods of an election may be kept from a processor for longer than their
/// lease lasts: what a change of the data path takes is used up in a moment.
pub fn cpu_limited(pods: &[&Pod]) -> Option<Problem> {
    let limit = |pod: &&Pod| pod.cpu_limit.clone().filter(|_| pod.of_deployment && pod.member);
    let (pod, limit) = pods.iter().find_map(|pod| Some((pod, limit(pod)?)))?;
    let message = format!(
        "gateway pod {} has a CPU limit of {limit}, by which the address may move to another pod at any change: remove it from the namespace's LimitRange or from the setting of resources",
        pod.name
    );
    Some(Problem::new(Reason::CpuLimited, message))
}

/// That an attachment's interfaces share their node's hardware address.
pub fn shared_attachment(attachment: Option<&Attachment>) -> Option<Problem> {
    let message = "the attachment is of type ipvlan: all gateways of a node have the node's hardware address, so that an address in use by a host there is not told from one of a gateway; use macvlan";
    attachment.filter(|attachment| attachment.shared).map(|_| Problem::new(Reason::AttachmentShared, message))
}

/// That health checks find no endpoint of some port healthy.
pub fn all_unhealthy(convergence: Option<&Convergence>) -> Option<Problem> {
    let ports: &[Port] = &convergence?.all_unhealthy;
    let numbers: Vec<String> = ports.iter().map(|port| port.port.to_string()).collect();
    let message =
        format!("all endpoints of port {} fail their health check: all are used", numbers.join(", "));
    (!ports.is_empty()).then(|| Problem::new(Reason::AllUnhealthy, message))
}

/// How a gateway serves that leads connections straight to endpoints.
pub fn directly(cause: Option<DirectAccessCause>) -> String {
    let how = cause.map(|cause| format!("; connections go straight to its endpoints, {cause}"));
    how.unwrap_or_default()
}

/// How a gateway serves that tells backends by a header who the client is.
pub fn by_proxy(protocol: Option<ProxyProtocol>) -> &'static str {
    match protocol {
        Some(ProxyProtocol::V2) => {
            "; TCP connections are proxied with the PROXY protocol v2, and end with the gateway pod that has them"
        }
        None => "",
    }
}

/// Why fewer pods are ready than are asked for, while others serve.
pub fn standby_shortage(observed: &Observed, pods: &[&Pod]) -> Option<Problem> {
    let deployment = &observed.gateway.deployment.as_ref()?.content;
    let asked = deployment.live["spec"]["replicas"].as_u64().filter(|asked| *asked > 1)?;
    let ready = pods.iter().filter(|pod| pod.ready).count();
    if u64::try_from(ready).unwrap_or(u64::MAX) >= asked {
        return None;
    }
    let refused = deployment.failure.as_ref().map(|failure| format!("no pod can be made: {failure}"));
    let why = refused.or_else(|| {
        let pod = pods.iter().find(|pod| is_late(pod, observed.now))?;
        let fault = pod.reported().and_then(|status| status.faults.values().next());
        let why = pod.waiting.as_ref().map(|(_, message)| message).or(fault);
        Some(format!("{}: {}", pod.name, why.map_or("it is not ready", String::as_str)))
    })?;
    Some(Problem::new(Reason::StandbyMissing, format!("{ready} of {asked} gateway pods are ready; {why}")))
}

/// The limits that pods report, each of the first pod that does; those that are not
/// known are none.
pub fn limits(pods: &[&Pod]) -> Vec<Problem> {
    LIMITS.iter().filter_map(|reason| limit(pods, *reason)).collect()
}

fn limit(pods: &[&Pod], reason: Reason) -> Option<Problem> {
    let reported =
        |pod: &&Pod| Some((pod.name.clone(), pod.reported()?.limits.get(reason.as_str())?.clone()));
    let (pod, message) = pods.iter().find_map(reported)?;
    Some(Problem::new(reason, format!("gateway pod {pod}: {message}")))
}

/// That nothing answers a pod, though the Service has endpoints that are ready: a gateway
/// cannot know whether there are any.
pub fn unreachable(observed: &Observed, pods: &[&Pod]) -> Option<Problem> {
    let problem = limit(pods, Reason::BackendsUnreachable)?;
    let slices = observed.endpoints.slices.iter();
    let of_tcp = slices.filter(|slice| slice.ports.iter().any(|port| port.protocol == Transport::Tcp));
    let is_any_ready = of_tcp.flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.ready);
    let message = format!(
        "{}; some endpoints are ready: if there are NetworkPolicies, allow egress from, and ingress to the backends from, pods with the label {}={} in namespace {}",
        problem.message,
        names::MANAGED_BY_LABEL,
        names::MANAGED_BY,
        observed.gateway.location.namespace,
    );
    is_any_ready.then_some(Problem { message, ..problem })
}

/// An obstacle, with a word on the gateways that wait for it to go.
pub fn halting(obstacle: Problem, rollouts: &Rollouts) -> Problem {
    if !rollouts.is_failing {
        return obstacle;
    }
    let message = format!(
        "{}; the roll-out of what changed for all gateways is halted until this one runs, or that is changed again",
        obstacle.message
    );
    Problem { message, ..obstacle }
}

/// What keeps the gateway from serving, as far as can be seen.
pub fn obstacle(observed: &Observed, pods: &[&Pod], serving: &[&Claim]) -> Problem {
    let mut conflicts =
        serving.iter().filter_map(|claim| Some((claim.address, conflict(pods, claim.address)?)));
    if let Some((address, mac)) = conflicts.next() {
        return if is_gateways(&observed.addresses, mac) {
            let message =
                format!("{address} is answered for by an earlier gateway ({mac}), which is on its way out");
            Problem::new(Reason::AddressBeingFreed, message)
        } else {
            let message = format!(
                "{address} is in use by the host with the hardware address {mac}: take it from that host, or choose another"
            );
            Problem::new(Reason::AddressConflict, message)
        };
    }
    let deployment = observed.gateway.deployment.as_ref();
    if let Some(failure) = deployment.and_then(|deployment| deployment.content.failure.as_ref()) {
        return Problem::new(Reason::PodRefused, format!("no gateway pod can be made: {failure}"));
    }
    let segment = observed.attachment.as_ref().and_then(|attachment| attachment.l2_segment.as_deref());
    let of_pod = pods.iter().find_map(|pod| pod_obstacle(pod, segment, observed.now));
    of_pod.unwrap_or_else(|| Problem::new(Reason::GatewayStarting, "the gateway is being started or updated"))
}

/// What keeps a pod from serving.
fn pod_obstacle(pod: &Pod, l2_segment: Option<&str>, now: Timestamp) -> Option<Problem> {
    if let Some((reason, message)) = &pod.waiting {
        let place = match (&pod.node, l2_segment) {
            (Some(node), Some(segment)) if pod.address.is_none() => {
                format!(" on {node}, attached by {segment}")
            }
            (Some(node), _) => format!(" on {node}"),
            (None, _) => String::new(),
        };
        return Some(Problem::reported(reason, format!("gateway pod {}{place}: {message}", pod.name)));
    }
    // What a new pod lacks is usually on its way.
    let is_new = pod.created.is_some_and(|created| now.duration_since(created) < START_GRACE);
    let status = pod.reported().filter(|_| !is_new);
    let (reason, message) = status.and_then(|status| status.faults.first_key_value())?;
    Some(Problem::reported(reason, format!("gateway pod {}: {message}", pod.name)))
}

/// The addresses of `ingress`.
pub(crate) fn ips(ingress: &[Ingress]) -> Vec<&str> {
    ingress.iter().map(|entry| entry.ip.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::AllocationError;
    use crate::model::{DeploymentState, PortStatus, StatusReport};
    use crate::service::conditions::ips;
    use crate::service::plan::plan;
    use crate::service::plan::{Plan, Requeue};
    use crate::testing::gateway::{
        annotate, carried_out, claim, claimed, config_of, deployment_of, direct_access, gateway_pod,
        is_converged, message, observed_again, owned, reason, refused, settle, status, steps, tcp_slice,
        two_pods, with_pods,
    };
    use crate::testing::port;
    use jiff::SignedDuration;
    use lb_svc_crds::Requested;
    use lb_svc_crds::gateway::GatewayStatus;

    #[test]
    fn ingress_has_every_port_and_ip_mode() {
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

    /// Has the first pod report these limits.
    fn report_limits(observed: &mut Observed, limits: &[&str]) {
        let StatusReport::Reported(status) = &mut observed.gateway.pods[0].report else {
            panic!("it reports");
        };
        let limits = limits.iter().map(|reason| ((*reason).to_owned(), "so it is".to_owned()));
        status.limits = limits.collect();
    }

    #[test]
    fn r27_b13_backends_are_unreachable_only_while_endpoints_are_ready() {
        let mut served = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        report_limits(&mut served, &["BackendsUnreachable"]);
        let limited = |served: &Observed, endpoints: &[(u8, &str)]| {
            let mut observed = served.clone();
            observed.endpoints.slices = vec![tcp_slice(endpoints)];
            settle(observed)
        };
        for endpoints in [&[][..], &[(1, "unready")]] {
            let observed = limited(&served, endpoints);
            let conditions = &observed.service.as_ref().unwrap().conditions;
            assert!(conditions.iter().all(|condition| condition.kind != LIMITED), "{conditions:?}");
        }
        let observed = limited(&served, &[(1, "ready"), (2, "unready")]);
        let said = message(&observed, LIMITED);
        assert!(said.contains("so it is; some endpoints are ready"), "{said}");
        assert!(said.contains("app.kubernetes.io/managed-by=lb-svc in namespace default"), "{said}");
        let reason_of = |observed: &Observed, kind: &str| {
            reason(&observed.service.as_ref().unwrap().conditions, kind).to_owned()
        };
        assert_eq!(reason_of(&observed, LIMITED), "BackendsUnreachable");
        assert_eq!(reason_of(&observed, GATEWAY_READY), "GatewayReady");
        // It is why none is healthy, and comes first.
        let mut direct = direct_access();
        report_limits(&mut direct, &["BackendsUnreachable"]);
        assert_eq!(reason_of(&settle(direct), LIMITED), "BackendsUnreachable");
    }

    #[test]
    fn b16_b41_limit_of_a_pod_is_said_while_the_gateway_serves() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        report_limits(&mut observed, &["RouterSilent"]);
        let planned = plan(&observed);
        assert_eq!(reason(status(&planned).unwrap().1, LIMITED), "RouterSilent");
        report_limits(&mut observed, &["Ipv6NotBlocked", "Whatever"]);
        let planned = plan(&observed);
        let conditions = status(&planned).unwrap().1;
        assert_eq!(reason(conditions, LIMITED), "Ipv6NotBlocked");
        assert_eq!(reason(conditions, GATEWAY_READY), "GatewayReady");
        let observed = settle(observed);
        assert!(message(&observed, LIMITED).ends_with(": so it is"));
        assert_eq!(plan(&observed).next, Requeue::Converged { poll: true }, "until it is over");
    }

    #[test]
    fn r28_cpu_limit_of_pods_of_an_election_is_reported() {
        let mut observed = two_pods();
        observed.gateway.pods[1].cpu_limit = Some("50m".into());
        let limited = |observed: &Observed| message(&settle(observed.clone()), LIMITED).to_owned();
        assert_eq!(limited(&observed), "", "a pod that anyone may have made");
        observed.gateway.pods[1].of_deployment = true;
        let said = limited(&observed);
        assert!(said.contains("pod b has a CPU limit of 50m"), "{said}");
        observed.gateway.pods[1].member = false;
        assert_eq!(limited(&observed), "", "one pod has no lease to lose");
    }

    #[test]
    fn b32_attachment_that_shares_a_hardware_address_is_reported() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.attachment.as_mut().unwrap().shared = true;
        let observed = settle(observed);
        let service = observed.service.as_ref().unwrap();
        assert_eq!(reason(&service.conditions, LIMITED), "AttachmentShared");
        assert_eq!(reason(&service.conditions, GATEWAY_READY), "GatewayReady");
    }

    #[test]
    fn ingress_is_kept_while_gateway_is_replaced() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.gateway.pods.clear();
        let planned = plan(&observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.11"]);
        assert!(!is_converged(&planned));
        observed.gateway.pods =
            vec![Pod { ready: false, report: StatusReport::NoResponse, ..gateway_pod("new", "", &[]) }];
        assert_eq!(ips(status(&plan(&observed)).unwrap().0), ["172.18.0.11"]);
    }

    #[test]
    fn obstacle_is_reported() {
        let why_of = |change: fn(&mut Observed), became: fn(Plan) -> Plan| {
            let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
            let content = config_of(&plan(&observed)).unwrap().clone();
            observed.gateway.config = Some(owned("cm", content));
            observed.gateway.deployment = Some(owned("dep", DeploymentState::default()));
            change(&mut observed);
            let planned = became(plan(&observed));
            let told = planned.steps().any(|action| matches!(action, Action::Event { warning: true, .. }));
            (reason(status(&planned).unwrap().1, GATEWAY_READY).to_owned(), told)
        };
        let why = |change: fn(&mut Observed)| why_of(change, |plan| plan);
        let expect = |reason: &str| (reason.to_owned(), true);
        assert_eq!(why(|o| o.attachment = None), expect("AttachmentNotFound"));
        assert_eq!(
            why(|o| o.attachment.as_mut().unwrap().fault = Some("its spec.config is not JSON".into())),
            expect("AttachmentInvalid")
        );
        assert_eq!(why_of(|_| {}, |plan| refused(plan, "exceeded quota")), expect("WriteRefused"));
        assert_eq!(
            why(|o| o.gateway.deployment.as_mut().unwrap().content.failure =
                Some("violates PodSecurity".into())),
            expect("PodRefused")
        );
        assert_eq!(
            why(|o| {
                let waiting = Some(("ImagePullBackOff".into(), "no such image".into()));
                o.gateway.pods = vec![Pod { waiting, ready: false, ..gateway_pod("gw", "", &[]) }];
            }),
            expect("ImagePullBackOff")
        );
        let mut hangs = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let content = config_of(&plan(&hangs)).unwrap().clone();
        hangs.gateway.config = Some(owned("cm", content));
        hangs.gateway.deployment = deployment_of(&plan(&hangs));
        hangs.attachment.as_mut().unwrap().l2_segment = Some("macvlan on eth7, VLAN 0".into());
        let waiting = Some(("FailedCreatePodSandBox".into(), "Link not found".into()));
        let (node, address) = (Some("n2".into()), None);
        hangs.gateway.pods = vec![Pod { waiting, node, address, ready: false, ..gateway_pod("gw", "", &[]) }];
        let planned = plan(&hangs);
        let said = status(&planned).unwrap().1.iter().find(|condition| condition.kind == GATEWAY_READY);
        let message = &said.unwrap().message;
        assert!(["n2", "eth7", "Link not found"].iter().all(|word| message.contains(word)), "{message}");
        assert_eq!(
            why(|o| {
                let faults = [("CapabilityMissing".to_owned(), "NET_ADMIN".to_owned())].into();
                let report =
                    StatusReport::Reported(Box::new(GatewayStatus { faults, ..GatewayStatus::default() }));
                o.gateway.pods = vec![Pod { report, ready: false, ..gateway_pod("gw", "", &[]) }];
            }),
            expect("CapabilityMissing")
        );
    }

    #[test]
    fn warning_is_repeated_while_it_lasts() {
        let mut observed = claimed(&[]);
        observed.addresses.allocation_error = Some(AllocationError::Full("Subnet lan".into()));
        let mut observed = settle(observed);
        let warns = |observed: &Observed| {
            plan(observed).steps().filter(|action| matches!(action, Action::Event { .. })).count()
        };
        assert_eq!(warns(&observed), 0);
        observed.remembered.warned = Some(REMIND);
        assert_eq!(warns(&observed), 1);
    }

    #[test]
    fn r18_limit_of_a_service_that_is_served_is_not_repeated() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        observed.service.as_mut().unwrap().local_policy = true;
        let mut observed = settle(carried_out(observed, "172.18.0.11"));
        let known = &observed.service.as_ref().unwrap().conditions;
        assert!(known.iter().any(|condition| condition.kind == LIMITED));
        for warned in [None, Some(REMIND)] {
            observed.remembered.warned = warned;
            assert_eq!(steps(&plan(&observed)), []);
        }
    }

    #[test]
    fn all_unhealthy_is_reported_first() {
        let mut observed = direct_access();
        observed.service.as_mut().unwrap().local_policy = true;
        annotate(&mut observed, names::HEALTH_CHECK_ANNOTATION, "tcp");
        observed.gateway.config = None;
        let mut observed = observed_again(carried_out(with_pods(observed, Vec::new()), "172.18.0.11"));
        let StatusReport::Reported(said) = &mut observed.gateway.pods[0].report else { panic!("it answers") };
        said.unhealthy = ["10.0.0.1:8080", "10.0.0.2:8080"].map(|socket| socket.parse().unwrap()).into();
        let planned = plan(&observed);
        assert!(status(&planned).is_none() && !is_converged(&planned), "it may just not have asked yet");
        observed = observed_again(observed);
        observed.now += SignedDuration::from_secs(3);
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
        let limited = conditions.iter().find(|condition| condition.kind == LIMITED).unwrap();
        assert_eq!(limited.reason, "AllUnhealthy");
        assert!(limited.message.starts_with("all endpoints of port 80 fail"), "{}", limited.message);
        assert!(limited.message.contains("externalTrafficPolicy"), "beside what else there is");
    }

    #[test]
    fn standby_shortage_is_reported() {
        let limit = |change: fn(&mut Observed)| {
            let mut observed = two_pods();
            observed.now = Timestamp::from_second(100).unwrap();
            let pod = &mut observed.gateway.pods[1];
            (pod.ready, pod.unready_since, pod.report) =
                (false, Some(Timestamp::from_second(90).unwrap()), StatusReport::NotQueried);
            change(&mut observed);
            let settled = settle(observed);
            assert_eq!(settled.service.as_ref().unwrap().ingress.len(), 1);
            message(&settled, LIMITED).to_owned()
        };
        assert_eq!(limit(|_| {}), "1 of 2 gateway pods are ready; b: it is not ready");
        let unschedulable: fn(&mut Observed) =
            |o| o.gateway.pods[1].waiting = Some(("Unschedulable".into(), "0/1 nodes".into()));
        assert_eq!(limit(unschedulable), "1 of 2 gateway pods are ready; b: 0/1 nodes");
        let refused: fn(&mut Observed) = |o| {
            o.gateway.pods.pop();
            let deployment = &mut o.gateway.deployment.as_mut().unwrap().content;
            deployment.failure = Some("quota".into());
            deployment.live["metadata"]["annotations"][names::ASKED_ANNOTATION] = o.now.to_string().into();
        };
        assert_eq!(limit(refused), "1 of 2 gateway pods are ready; no pod can be made: quota");
        assert_eq!(limit(|o| o.now = Timestamp::from_second(99).unwrap()), "", "it is on its way");
    }
}
