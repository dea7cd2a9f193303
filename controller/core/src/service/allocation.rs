//! Which claims a Service holds, needs and gives back.

use std::net::IpAddr;
use std::time::Duration;

use lb_svc_crds::Requested;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::reason::Reason;

use super::spec::ServiceSpec;
use crate::action::Action;
use crate::gateway::cleanup::is_held;
use crate::gateway::rendered::PartDigests;
use crate::ipam::{AddressRequest, AllocationError, Claim};
use crate::model::{GatewayId, Pod, Problem, Service};
use crate::observed::{Filled, Observed, ObservedAddresses};

/// The number of addresses in use by foreign hosts that a Service gives up in a
/// row, before it waits for the last one.
const MAX_CONFLICTS: usize = 8;

/// The number of times that an address is filled into a Service's spec from
/// which another writer takes it.
const MAX_FILLS: u32 = 5;
/// The pause after the first fill of an address; it doubles with each.
const FILL_PAUSE: Duration = Duration::from_millis(500);

/// What is to be done about `spec.loadBalancerIP`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// Nothing.
    Not,
    /// Write the address, when the pause after the last fill is over.
    Later,
    /// Write the address.
    Write(Action),
    /// Nothing more: another writer takes it back each time.
    TakenBack(Problem),
}

/// What the claims are to a Service.
#[derive(Debug)]
pub enum Claims<'a> {
    /// They have to change first; with that done, all is planned anew.
    Change(Vec<Action>),
    /// They are as they can be now.
    Allocated(Allocation<'a>),
}

/// The addresses of a Service.
#[derive(Debug)]
pub struct Allocation<'a> {
    /// The claims of this very Service.
    pub own: Vec<&'a Claim>,
    /// The claim that fulfils the request, or why there is none.
    pub target: Result<&'a Claim, Problem>,
    /// Whether the Service has no claim any more, and an address that it had may
    /// be another's.
    pub is_lost: bool,
    /// The claims that the gateway is to serve: the target, and until the
    /// Service's status names that one, the one that it does name.
    pub serving: Vec<&'a Claim>,
    /// Whether the address is to be in `spec.loadBalancerIP`.
    fills: bool,
}

/// Finds the claims of `service`, of which `pods` are the gateway's living
/// ones.
pub fn allocate<'a>(
    service: &Service,
    spec: &ServiceSpec,
    observed: &'a Observed,
    pods: &[&Pod],
) -> Claims<'a> {
    let own = own_claims(service, &observed.addresses);
    // One that keeps what it has takes no other address either.
    let refused = spec.refused.as_ref();
    let conflict = || new_conflict(service, &own, &observed.addresses, pods);
    if let (None, Some((claim, mac))) = (refused, conflict()) {
        let message = format!("{} is in use by {mac}, another address is taken", claim.address);
        return Claims::Change(vec![
            Action::MarkConflict(claim.id.clone(), mac),
            Action::Event { warning: true, reason: Reason::AddressConflict.to_string(), message },
        ]);
    }
    let request = request(service, spec, &own, observed);
    let target = target(service, spec, &request, &own).filter(|_| refused.is_none());
    let serving = serving(service, spec, &own, target);
    let error = observed.addresses.allocation_error.as_ref();
    let is_lost = own.is_empty()
        && (observed.addresses.is_given_away || error.is_some_and(AllocationError::leaves_to_another));
    let target = match (target, error) {
        _ if let Some(problem) = refused => Err(problem.clone()),
        (Some(claim), _) => Ok(claim),
        (None, Some(error)) => Err(Problem::new(error.reason(), error.to_string())),
        (None, None) => {
            return Claims::Change(vec![match retained(&request, observed) {
                Some(claim) => Action::Adopt(claim.id.clone()),
                None => Action::Claim(request),
            }]);
        }
    };
    // An address that was filled in is replaced, so that the field names no other.
    let fills = request.address.is_none() || spec.annotated.is_some() && is_filled(service, &own);
    Claims::Allocated(Allocation { own, target, is_lost, serving, fills })
}

/// Whether the namespace of the Service may keep one more address for it.
pub fn may_keep(observed: &Observed) -> bool {
    observed.addresses.kept_before < observed.configuration.kept_addresses_per_namespace
}

/// The claims of this very Service.
pub fn own_claims<'a>(service: &Service, addresses: &'a ObservedAddresses) -> Vec<&'a Claim> {
    addresses.claims.iter().filter(|claim| claim.owner.uid == service.id.uid).collect()
}

/// The attachment of a Service's gateway: the one that the Service names, or
/// where that cannot be read the one of its claims, first of the claim on the
/// address that its status names.
pub fn provider(service: &Service, claims: &[Claim]) -> Option<Provider> {
    let named = service.annotations.get(names::PROVIDER_ANNOTATION)?;
    let own = || claims.iter().filter(|claim| claim.owner.uid == service.id.uid);
    let shown = || own().find(|claim| service.has_ingress(claim.address));
    let held = || shown().or_else(|| own().min_by_key(|claim| claim.address));
    named.parse().ok().or_else(|| held().map(|claim| claim.provider.clone()))
}

/// Whether `spec.loadBalancerIP` is what the controller filled in, not what a
/// user wrote.
pub fn is_filled(service: &Service, own: &[&Claim]) -> bool {
    own.iter().any(|claim| {
        claim.requested == Requested::Dynamic && claim.address.to_string() == service.load_balancer_ip
    })
}

/// The hardware address of the host that has `address` instead of the gateway,
/// as its pods report.
pub fn conflict<'a>(pods: &[&'a Pod], address: IpAddr) -> Option<&'a String> {
    pods.iter().find_map(|pod| pod.reported()?.conflicts.get(&address))
}

/// Whether a gateway has or had this hardware address, and is on its way out if
/// it answers for an address that is not its own.
pub fn is_gateways(addresses: &ObservedAddresses, mac: &str) -> bool {
    let known = |claim: &Claim| claim.mac.eq_ignore_ascii_case(mac);
    addresses.gateway_macs.contains(mac) || addresses.claims.iter().any(known)
}

/// A dynamic claim on an address that turns out to be a foreign host's, with
/// that host's hardware address, if another is to be tried. What has been in
/// service is not given up.
fn new_conflict<'a>(
    service: &Service,
    own: &[&'a Claim],
    addresses: &ObservedAddresses,
    pods: &[&Pod],
) -> Option<(&'a Claim, String)> {
    let given_up = own.iter().filter(|claim| !claim.conflict.is_empty()).count();
    let mut candidates = own.iter().filter(|claim| {
        claim.requested == Requested::Dynamic && claim.conflict.is_empty() && claim.is_unproven(service)
    });
    candidates.find_map(|claim| {
        let mac = conflict(pods, claim.address)
            .filter(|mac| given_up < MAX_CONFLICTS && !is_gateways(addresses, mac))?;
        Some((*claim, mac.clone()))
    })
}

/// The request to the allocator. An address that the controller filled in is
/// not the user's request.
fn request(service: &Service, spec: &ServiceSpec, own: &[&Claim], observed: &Observed) -> AddressRequest {
    AddressRequest {
        owner: service.id.clone(),
        provider: spec.provider.clone(),
        subnet: spec.subnet.clone(),
        address: spec.annotated.or_else(|| spec.address.filter(|_| !is_filled(service, own))),
        keep: spec.keep && may_keep(observed),
        limit: observed.configuration.addresses_per_namespace,
    }
}

/// The claim that an earlier Service of the name retained, if it fulfils the
/// request and its gateway is gone.
fn retained<'a>(request: &AddressRequest, observed: &'a Observed) -> Option<&'a Claim> {
    let retained = |claim: &&Claim| claim.keep && claim.conflict.is_empty() && fulfils(claim, request);
    let mut claims = observed.addresses.claims.iter().filter(retained);
    claims.find(|claim| !is_held(&observed.gateway, claim))
}

/// The claim that fulfils the request, if there is one already.
fn target<'a>(
    service: &Service,
    spec: &ServiceSpec,
    request: &AddressRequest,
    own: &[&'a Claim],
) -> Option<&'a Claim> {
    // The one in use before any other: what a user's tooling drops from the
    // spec is filled in again.
    let in_use = |claim: &&Claim| Some(claim.address) == spec.address || service.has_ingress(claim.address);
    let fits =
        |claim: &&&Claim| fulfils(claim, request) && (request.address.is_some() || claim.conflict.is_empty());
    let fitting: Vec<&Claim> = own.iter().filter(fits).copied().collect();
    fitting.iter().find(|claim| in_use(claim)).or(fitting.first()).copied()
}

/// The claims the gateway is to serve. Without a target that is the one that
/// the Service's status names, or the first of those held, so that the others
/// are released; of addresses that all are in use by foreign hosts each is
/// kept, for any may come free.
fn serving<'a>(
    service: &Service,
    spec: &ServiceSpec,
    own: &[&'a Claim],
    target: Option<&'a Claim>,
) -> Vec<&'a Claim> {
    let candidates = || own.iter().filter(|claim| claim.provider == spec.provider).copied();
    let named = candidates().find(|claim| service.has_ingress(claim.address));
    match target {
        Some(target) => {
            let others = named.filter(|named| named.id.name != target.id.name);
            std::iter::once(target).chain(others).collect()
        }
        None => {
            // In the order of their addresses: two controllers choose alike.
            let sound = candidates().filter(|claim| claim.conflict.is_empty());
            match named.or_else(|| sound.min_by_key(|claim| claim.address)) {
                Some(kept) => vec![kept],
                None => candidates().collect(),
            }
        }
    }
}

/// Whether a claim is what is requested.
fn fulfils(claim: &Claim, request: &AddressRequest) -> bool {
    claim.provider == request.provider
        && match request.address {
            Some(address) => claim.address == address,
            None => request.subnet.as_ref().is_none_or(|subnet| *subnet == claim.subnet),
        }
}

impl Claims<'_> {
    /// Whether the gateway may answer for an address that is another's now.
    pub fn are_lost(&self) -> bool {
        matches!(self, Self::Allocated(allocation) if allocation.is_lost)
    }
}

impl<'a> Allocation<'a> {
    /// The claim whose address the Service's status names or is to name. A
    /// Service that requests what it cannot have keeps what it has, whether or
    /// not its status names that already.
    pub fn shown(&self, service: &Service) -> Option<&'a Claim> {
        let serving = || {
            let named = self.serving.iter().find(|claim| service.has_ingress(claim.address));
            named.or(self.serving.first()).copied()
        };
        self.target.as_ref().ok().copied().or_else(serving)
    }

    /// Records in the claims the namespace where the gateway is about to be:
    /// before anything is made there, for a controller that starts then has to
    /// know.
    pub fn record_namespace(&self, namespace: &str) -> Vec<Action> {
        let elsewhere = self.own.iter().filter(|claim| claim.gateway_namespace != namespace);
        elsewhere.map(|claim| Action::SetGatewayNamespace(claim.id.clone())).collect()
    }

    /// Records in the claims what the pod that answers for them knows.
    pub fn record_answering(&self, answering: Option<&Pod>) -> Vec<Action> {
        let Some((pod, mac)) = answering.and_then(|pod| Some((pod, pod.mac.as_ref()?))) else {
            return Vec::new();
        };
        let record = |claim: &&Claim| {
            let served = pod.reported().is_some_and(|status| status.addresses.contains(&claim.address));
            let mac = if pod.ready { mac } else { &claim.mac };
            let probed = claim.probed || served;
            (claim.mac != *mac || claim.probed != probed).then(|| Action::RecordMac {
                claim: claim.id.clone(),
                mac: mac.clone(),
                probed,
            })
        };
        self.serving.iter().filter_map(record).collect()
    }

    /// Makes the claims outlive the Service, or not, as it asks.
    pub fn retain(&self, keep: bool) -> Vec<Action> {
        let others = self.own.iter().filter(|claim| claim.keep != keep);
        others.map(|claim| Action::SetRetain(claim.id.clone(), keep)).collect()
    }

    /// Fills an address that the user did not name into the Service's spec.
    /// `filled`: the fills of this process so far.
    pub fn fill(&self, service: &Service, filled: Option<Filled>) -> Fill {
        let Some(claim) = self.target.as_ref().ok().filter(|_| self.fills) else { return Fill::Not };
        if service.load_balancer_ip == claim.address.to_string() {
            return Fill::Not;
        }
        match filled.filter(|filled| filled.address == claim.address) {
            Some(Filled { times, .. }) if times >= MAX_FILLS => {
                let message = format!(
                    "spec.loadBalancerIP was filled with {} {times} times, and another writer took it back: it is left alone, the status has the address; set the annotation {} to \"false\", or have that writer keep the field",
                    claim.address,
                    names::FILL_ADDRESS_ANNOTATION
                );
                Fill::TakenBack(Problem::new(Reason::AddressNotFilled, message))
            }
            Some(Filled { times, age, .. }) if age < FILL_PAUSE * 2u32.pow(times) => Fill::Later,
            _ => Fill::Write(Action::FillAddress(claim.address)),
        }
    }

    /// Releases the claims that the gateway no longer is to serve, once none of
    /// its pods answers for them.
    pub fn release_surplus(&self, pods: &[Pod], part: &PartDigests, gateway: &GatewayId) -> Vec<Action> {
        let is_surplus = |claim: &&&Claim| {
            let has_let_go = |pod: &Pod| {
                let released = |status: &GatewayStatus| {
                    part.acknowledged_by(status) && !status.addresses.contains(&claim.address)
                };
                pod.reported().is_some_and(released)
            };
            let held = pods.iter().any(|pod| pod.is_of(gateway) && pod.could_answer() && !has_let_go(pod));
            !self.serving.iter().any(|serving| serving.id.name == claim.id.name) && !held
        };
        self.own.iter().filter(is_surplus).map(|claim| Action::Release(claim.id.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::pod_settings::Configuration;
    use crate::model::{DeploymentState, Ingress, StatusReport};
    use crate::service::conditions::{ADDRESS_ALLOCATED, GATEWAY_READY, LIMITED, ips};
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        FOREIGN_MAC, MAC_A, MAC_B, annotate, carried_out, claim, claimed, config_of, gateway_pod,
        is_converged, members, message, observed_again, of_earlier, owned, reason, reported_mut, settle,
        status, steps, two_pods, with_pods, withholds,
    };
    use crate::testing::service;
    use lb_svc_crds::gateway::GatewayConfig;

    #[test]
    fn service_without_claim_requests_one() {
        let plan = plan(&claimed(&[]));
        let address_request = AddressRequest {
            owner: service().id,
            provider: "lan.kube-system".parse().unwrap(),
            subnet: None,
            address: None,
            keep: false,
            limit: None,
        };
        assert_eq!(steps(&plan), [Action::Claim(address_request)]);
    }

    #[test]
    fn static_address_in_conflict_is_kept_and_reported() {
        let mut wanted = claimed(&[claim("172.18.0.18", Requested::Static)]);
        wanted.service.as_mut().unwrap().load_balancer_ip = "172.18.0.18".into();
        let observed = withholds(wanted, "172.18.0.18", FOREIGN_MAC);
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (0, "AddressConflict"));
        let told = planned.steps().find_map(|action| match action {
            Action::Event { warning: true, reason, message } if reason == "AddressConflict" => Some(message),
            _ => None,
        });
        let told = told.expect("an Event");
        assert!(told.contains(FOREIGN_MAC) && told.contains("172.18.0.18"), "{told}");
        assert!(!is_converged(&planned));
        assert!(
            !planned.steps().any(|action| matches!(action, Action::MarkConflict(..) | Action::Release(_)))
        );

        // A gateway of ours is waited for: by its pod, or by what the claim remembers.
        let mut own = observed.clone();
        own.addresses.gateway_macs = [FOREIGN_MAC.to_owned()].into();
        let mut remembered = observed.clone();
        remembered.addresses.claims.push(Claim {
            mac: FOREIGN_MAC.to_uppercase(),
            ..of_earlier(claim("172.18.0.19", Requested::Dynamic))
        });
        for waiting in [own, remembered] {
            let planned = plan(&waiting);
            assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "AddressBeingFreed");
            assert!(!planned.steps().any(
                |action| matches!(action, Action::Event { reason, .. } if reason == "AddressBeingFreed")
            ));
        }

        let content = observed.gateway.config.as_ref().unwrap().content.clone();
        let healed = with_pods(observed, vec![gateway_pod("gw", &content, &["172.18.0.18"])]);
        assert_eq!(ips(status(&plan(&healed)).unwrap().0), ["172.18.0.18"]);
    }

    #[test]
    fn dynamic_address_in_conflict_is_replaced() {
        let mut filled = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        filled.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        let mut observed = withholds(filled, "172.18.0.11", FOREIGN_MAC);
        let old = observed.addresses.claims[0].id.clone();
        let planned = plan(&observed);
        let [Action::MarkConflict(id, mac), Action::Event { warning: true, reason, .. }] =
            &steps(&planned)[..]
        else {
            panic!("{:?}", steps(&planned))
        };
        assert_eq!((id, mac.as_str(), reason.as_str()), (&old, FOREIGN_MAC, "AddressConflict"));

        observed.addresses.claims[0].conflict = FOREIGN_MAC.into();
        let Some(Action::Claim(address_request)) = plan(&observed).actions.pop() else { panic!("no claim") };
        assert_eq!(address_request.address, None);
        observed.addresses.claims.push(claim("172.18.0.12", Requested::Dynamic));
        let planned = plan(&observed);
        let config: GatewayConfig = serde_json::from_str(config_of(&planned).unwrap()).unwrap();
        let addresses: Vec<_> = config.addresses.iter().map(|a| (a.address.to_string(), a.probe)).collect();
        assert_eq!(addresses, [("172.18.0.12".to_owned(), true)]);
        assert!(planned.steps().any(|step| *step == Action::FillAddress("172.18.0.12".parse().unwrap())));
        let release = Action::Release(old);
        assert!(!planned.actions.contains(&release), "nor is it handed out again meanwhile");

        // Served: the other is given back.
        let content = config_of(&planned).unwrap().clone();
        observed.gateway.config = Some(owned("cm", content.clone()));
        observed.gateway.pods = vec![gateway_pod("gw", &content, &["172.18.0.12"])];
        let planned = plan(&observed);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.12"]);
        assert!(planned.actions.contains(&release));
        let done = settle(observed);
        assert_eq!(done.service.as_ref().unwrap().load_balancer_ip, "172.18.0.12");
        assert!(is_converged(&plan(&done)));

        // In service it is not given up again.
        let late = withholds(done, "172.18.0.12", FOREIGN_MAC);
        assert!(!plan(&late).steps().any(|action| matches!(action, Action::MarkConflict(..))));
    }

    #[test]
    fn addresses_all_in_conflict_keep_the_last() {
        let given_up = |last: u8| Claim {
            conflict: FOREIGN_MAC.into(),
            ..claim(&format!("172.18.0.{last}"), Requested::Dynamic)
        };
        let mut claims: Vec<Claim> = (11..19).map(given_up).collect();
        claims.push(claim("172.18.0.19", Requested::Dynamic));
        let observed = withholds(claimed(&claims), "172.18.0.19", FOREIGN_MAC);
        let planned = plan(&observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "AddressConflict");
        assert!(!planned.steps().any(|action| matches!(action, Action::MarkConflict(..) | Action::Claim(_))));

        // Nor is there another one: each of them is asked for, the first that
        // comes free is taken.
        let mut full = claimed(&claims[..2]);
        full.addresses.allocation_error = Some(AllocationError::Full("Subnet lan".into()));
        let content = config_of(&plan(&full)).unwrap().clone();
        let config: GatewayConfig = serde_json::from_str(&content).unwrap();
        assert!(config.addresses.len() == 2 && config.addresses.iter().all(|address| address.probe));
        let mut pod = gateway_pod("gw", &content, &["172.18.0.12"]);
        pod.ready = false;
        full.gateway.config = Some(owned("cm", content));
        full.gateway.pods = vec![pod];
        let served = settle(full).gateway.config.unwrap().content;
        let config: GatewayConfig = serde_json::from_str(&served).unwrap();
        assert_eq!(config.addresses.len(), 1);
        assert_eq!(config.addresses[0].address.to_string(), "172.18.0.12");
    }

    #[test]
    fn retained_claim_in_conflict_is_not_adopted() {
        let kept =
            Claim { keep: true, conflict: FOREIGN_MAC.into(), ..claim("172.18.0.11", Requested::Dynamic) };
        let observed = claimed(std::slice::from_ref(&kept));
        assert!(matches!(steps(&plan(&observed))[..], [Action::Claim(_)]));
        let gone = Observed { service: None, ..claimed(&[of_earlier(kept.clone())]) };
        assert_eq!(steps(&plan(&gone)), [Action::Release(kept.id)]);
    }

    #[test]
    fn filled_address_is_not_a_static_request() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        // The user's tooling drops it: filled again.
        let planned = plan(&observed);
        assert!(planned.steps().any(|step| *step == Action::FillAddress("172.18.0.11".parse().unwrap())));
        // Another Subnet is asked for: the filled address does not stand in the way.
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.11".into();
        service.annotations.insert("lan.kube-system.kubernetes.io/logical_switch".into(), "other".into());
        let Some(Action::Claim(address_request)) = plan(&observed).actions.pop() else { panic!("no claim") };
        assert_eq!((address_request.subnet.as_deref(), address_request.address), (Some("other"), None));
    }

    #[test]
    fn address_of_an_annotation_is_requested_and_the_field_is_left_to_the_user() {
        let mut observed = claimed(&[]);
        annotate(&mut observed, names::ADDRESSES_ANNOTATION, "172.18.0.18");
        let requested = |observed: &Observed| {
            let Some(Action::Claim(request)) = plan(observed).actions.pop() else { panic!("no claim") };
            request.address.unwrap().to_string()
        };
        assert_eq!(requested(&observed), "172.18.0.18");
        let fills = |observed: &Observed| {
            plan(observed).steps().find_map(|step| match step {
                Action::FillAddress(address) => Some(address.to_string()),
                _ => None,
            })
        };
        observed.addresses.claims = vec![claim("172.18.0.18", Requested::Static)];
        assert_eq!(fills(&observed), None);
        // What a user wrote there counts no more, and stays.
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        assert_eq!(fills(&observed), None);
        let settled = settle(carried_out(observed.clone(), "172.18.0.18"));
        assert_eq!(settled.service.as_ref().unwrap().ingress[0].ip, "172.18.0.18");
        assert!(message(&settled, LIMITED).starts_with("spec.loadBalancerIP has no effect here"));

        // What was filled in follows.
        observed.addresses.claims = vec![claim("172.18.0.11", Requested::Dynamic)];
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        assert_eq!(requested(&observed), "172.18.0.18");
        observed.addresses.claims.push(claim("172.18.0.18", Requested::Static));
        assert_eq!(fills(&observed).as_deref(), Some("172.18.0.18"));
        annotate(&mut observed, names::FILL_ADDRESS_ANNOTATION, "false");
        assert_eq!(fills(&observed), None);
    }

    #[test]
    fn annotation_that_is_no_address_leaves_what_serves() {
        let mut observed =
            settle(carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11"));
        annotate(&mut observed, names::ADDRESSES_ANNOTATION, "172.18.0");
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(
            (ingress[0].ip.as_str(), reason(conditions, ADDRESS_ALLOCATED)),
            ("172.18.0.11", "InvalidAddress")
        );
        assert!(!planned.steps().any(|step| matches!(step, Action::Claim(_) | Action::Release(_))));
    }

    #[test]
    fn new_static_address_serves_before_old_is_released() {
        let old = claim("172.18.0.11", Requested::Dynamic);
        let mut observed = carried_out(claimed(std::slice::from_ref(&old)), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.18".into();
        let Some(Action::Claim(address_request)) = plan(&observed).actions.pop() else { panic!("no claim") };
        assert_eq!(address_request.address, Some("172.18.0.18".parse().unwrap()));

        // Claimed: the gateway serves both, the Service says the old one.
        observed.addresses.claims.push(claim("172.18.0.18", Requested::Static));
        let planned = plan(&observed);
        let both = config_of(&planned).unwrap().clone();
        let config: GatewayConfig = serde_json::from_str(&both).unwrap();
        let addresses: Vec<String> =
            config.addresses.iter().map(|address| address.address.to_string()).collect();
        assert_eq!(addresses, ["172.18.0.18", "172.18.0.11"]);
        assert!(!planned.steps().any(|action| matches!(action, Action::Release(_))));
        observed.gateway.config.as_mut().unwrap().content = both.clone();
        assert_eq!(ips(status(&plan(&observed)).unwrap().0), ["172.18.0.11"], "not programmed yet");

        // The gateway serves both: the Service says the new one, then that goes on alone.
        observed.gateway.pods = vec![gateway_pod("gw", &both, &["172.18.0.18", "172.18.0.11"])];
        let planned = plan(&observed);
        assert_eq!(config_of(&planned), None);
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.18"]);
        let entry = Ingress { ip: "172.18.0.18".into(), ..Ingress::default() };
        observed.service.as_mut().unwrap().ingress = vec![entry];
        let planned = plan(&observed);
        let one = config_of(&planned).unwrap().clone();
        assert!(!one.contains("172.18.0.11\""));
        assert!(!planned.actions.contains(&Action::Release(old.id.clone())), "the pod answers for it still");
        observed.gateway.config.as_mut().unwrap().content = one.clone();
        assert!(!plan(&observed).actions.contains(&Action::Release(old.id.clone())));

        // It let go of the old one: given back.
        observed.gateway.pods = vec![gateway_pod("gw", &one, &["172.18.0.18"])];
        let planned = plan(&observed);
        assert!(planned.actions.contains(&Action::Release(old.id)));
        assert_eq!(ips(status(&planned).unwrap().0), ["172.18.0.18"]);
    }

    #[test]
    fn retained_claim_is_adopted_by_next_service() {
        let kept = Claim { keep: true, ..of_earlier(claim("172.18.0.11", Requested::Dynamic)) };
        let gone = Observed { service: None, ..claimed(std::slice::from_ref(&kept)) };
        assert_eq!(steps(&plan(&gone)), []);

        let mut next = claimed(std::slice::from_ref(&kept));
        next.gateway.pods =
            vec![Pod { gateway_id: Some("uid-0".into()), deleting: true, ..gateway_pod("old", "", &[]) }];
        assert!(!plan(&next).actions.contains(&Action::Adopt(kept.id.clone())), "its gateway is there");
        next.gateway.pods.clear();
        assert_eq!(steps(&plan(&next)), [Action::Adopt(kept.id.clone())]);

        // Not what it wants: the kept one waits on.
        next.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        assert!(matches!(steps(&plan(&next))[..], [Action::Claim(_)]));

        // The annotation comes and goes on a live Service.
        let mut live = claimed(&[Claim { keep: true, ..claim("172.18.0.11", Requested::Dynamic) }]);
        assert!(plan(&live).actions.contains(&Action::SetRetain(kept.id.clone(), false)));
        // Whoever needs no gateway any more needs no address.
        live.service.as_mut().unwrap().load_balancer = false;
        assert!(plan(&live).actions.contains(&Action::Release(kept.id)));
    }

    #[test]
    fn claim_records_mac_of_active_pod() {
        let mut observed = two_pods();
        assert_eq!(
            (observed.addresses.claims[0].mac.as_str(), observed.addresses.claims[0].probed),
            (MAC_A, true)
        );
        members(&mut observed, "b", 2);
        observed = settle(observed);
        assert_eq!(observed.addresses.claims[0].mac, MAC_B);
        // Nobody knows for a moment: what was known stays.
        observed.gateway.pods.truncate(1);
        assert_eq!(settle(observed).addresses.claims[0].mac, MAC_B);

        // The pod from before there were several answers until it goes.
        let mut mixed = two_pods();
        mixed.gateway.pods[0] = Pod { member: false, ..mixed.gateway.pods[0].clone() };
        let StatusReport::Reported(status) = &mut mixed.gateway.pods[0].report else { panic!("it answers") };
        status.election = None;
        reported_mut(&mut mixed.gateway.pods[1]).election.as_mut().unwrap().active = None;
        mixed.addresses.claims[0].mac = String::new();
        let mixed = settle(mixed);
        assert_eq!(mixed.addresses.claims[0].mac, MAC_A);
    }

    #[test]
    fn refused_address_before_first_service_keeps_the_claim() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let content = config_of(&plan(&observed)).unwrap().clone();
        // Edited while the gateway was on its way.
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        observed.addresses.allocation_error =
            Some(AllocationError::Taken("172.18.0.99".parse().unwrap(), Some("other".into())));
        observed.gateway.config = Some(owned("cm", content.clone()));
        observed.gateway.deployment = Some(owned("dep", DeploymentState::default()));
        observed.gateway.pods = vec![gateway_pod("gw", &content, &["172.18.0.11"])];
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressInUse");
        assert_eq!(reason(conditions, GATEWAY_READY), "GatewayReady");
    }

    #[test]
    fn r5_no_more_addresses_are_kept_than_a_namespace_may_keep() {
        let most = Configuration::default().kept_addresses_per_namespace;
        let kept = Claim { keep: true, ..claim("172.18.0.11", Requested::Dynamic) };
        let mut observed = carried_out(claimed(std::slice::from_ref(&kept)), "172.18.0.11");
        annotate(&mut observed, names::KEEP_ADDRESS_ANNOTATION, "true");
        let observed = observed_again(observed);
        assert!(is_converged(&plan(&observed)));
        let mut many = observed.clone();
        many.addresses.kept_before = most;
        let planned = plan(&many);
        assert!(planned.actions.contains(&Action::SetRetain(kept.id.clone(), false)));
        let (_, conditions) = status(&planned).unwrap();
        assert_eq!(reason(conditions, LIMITED), "AddressNotKept");

        // Of Services that are gone.
        let gone = Observed { service: None, ..claimed(&[of_earlier(kept.clone())]) };
        assert_eq!(steps(&plan(&gone)), []);
        let mut many = gone.clone();
        many.addresses.kept_before = most;
        assert_eq!(steps(&plan(&many)), [], "what is kept stays, though fewer may be by now");
        let mut without_namespace = gone;
        without_namespace.addresses.is_namespace_gone = true;
        assert_eq!(steps(&plan(&without_namespace)), [Action::Release(kept.id)]);
    }

    #[test]
    fn s1_of_two_claims_only_the_served_one_is_kept_while_another_is_requested() {
        let claims = ["172.18.0.11", "172.18.0.12"].map(|ip| claim(ip, Requested::Dynamic));
        for (shown, kept) in [("172.18.0.12", "172.18.0.12"), ("", "172.18.0.11")] {
            let mut observed = claimed(&claims);
            let service = observed.service.as_mut().unwrap();
            service.load_balancer_ip = "172.18.0.77".into();
            if !shown.is_empty() {
                service.ingress = vec![Ingress { ip: shown.into(), ..Ingress::default() }];
            }
            let taken = AllocationError::Taken("172.18.0.77".parse().unwrap(), Some("other".to_owned()));
            observed.addresses.allocation_error = Some(taken);
            let content = config_of(&plan(&observed)).unwrap().clone();
            let config: GatewayConfig = serde_json::from_str(&content).unwrap();
            let addresses: Vec<String> = config.addresses.iter().map(|a| a.address.to_string()).collect();
            assert_eq!(addresses, [kept], "status {shown:?}");
            observed.gateway.pods = vec![gateway_pod("gw", &content, &[kept])];
            observed.gateway.config = Some(owned("cm", content));
            let planned = plan(&observed);
            let released: Vec<&Action> =
                planned.steps().filter(|action| matches!(action, Action::Release(_))).collect();
            let surplus = claims.iter().find(|claim| claim.address.to_string() != kept).unwrap();
            assert_eq!(released, [&Action::Release(surplus.id.clone())]);
        }
    }

    #[test]
    fn b01_fill_is_paced_and_gives_way_to_an_owner_that_insists() {
        let observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let fills = |times: u32, age: Duration, address: &str| {
            let mut observed = observed.clone();
            observed.remembered.filled = Some(Filled { address: address.parse().unwrap(), times, age });
            let planned = plan(&observed);
            let written = planned.steps().any(|action| matches!(action, Action::FillAddress(_)));
            let last = planned.steps().last().cloned();
            assert!(!written || matches!(last, Some(Action::FillAddress(_))), "the status does not wait");
            (written, planned.conditions.unwrap().warnings.iter().any(|w| w.reason == "AddressNotFilled"))
        };
        let second = Duration::from_secs(1);
        assert_eq!(fills(1, second / 2, "172.18.0.11"), (false, false));
        assert_eq!(fills(1, second, "172.18.0.11"), (true, false));
        assert_eq!(fills(4, second, "172.18.0.11"), (false, false));
        assert_eq!(fills(4, second * 8, "172.18.0.11"), (true, false));
        assert_eq!(fills(5, second * 3600, "172.18.0.11"), (false, true));
        assert_eq!(fills(5, second, "172.18.0.12"), (true, false), "another address begins anew");
        let mut asked = observed.clone();
        asked
            .service
            .as_mut()
            .unwrap()
            .annotations
            .insert(names::FILL_ADDRESS_ANNOTATION.to_owned(), "false".to_owned());
        assert!(!plan(&asked).steps().any(|action| matches!(action, Action::FillAddress(_))));
    }
    #[test]
    fn b01_fill_that_is_due_is_come_back_to() {
        let mut served = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        assert!(is_converged(&plan(&served)));
        served.service.as_mut().unwrap().load_balancer_ip.clear();
        let filled = |times| Filled { address: "172.18.0.11".parse().unwrap(), times, age: Duration::ZERO };
        served.remembered.filled = Some(filled(1));
        let paused = plan(&served);
        assert_eq!(steps(&paused), []);
        assert!(!is_converged(&paused), "the pause ends");

        served.remembered.filled = Some(filled(MAX_FILLS));
        assert!(is_converged(&plan(&settle(served))), "nothing more is to be done");
    }
}
