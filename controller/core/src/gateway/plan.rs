//! What is to be done for the gateway of one Service.
//!
//! ```text
//!  spec ──▶ placement ──▶ allocation ──▶ cleanup
//!                             │
//!                             ▼
//!       config ──▶ apply: config sync, workload ──▶ election
//!          │                                           │
//!          └────────────▶ acknowledgement ◀────────────┘
//!                             │
//!                             ▼
//!                         conditions
//! ```
//!
//! Each stage is a function of the values of those before it, and says which
//! writes bring the gateway nearer to what its Service asks. [`plan`] has them
//! in order.

use std::time::Duration;

use lb_svc_crds::names::Provider;
use lb_svc_crds::reason::Reason;

use super::acknowledgement::{self, Acknowledgement};
use super::apply::{self, apply};
use super::config;
use super::placement::{self, Placement};
use super::pod_settings::Settings;
use super::rendered::Rendered;
use super::rollout::Rollout;
use super::workload::{self, Workload};
use super::{assignment, cleanup, election, election_report};
use crate::action::Action;
use crate::ipam::Claim;
use crate::model::{GatewayId, Ingress, Pod, Problem, Service, StatusReport};
use crate::observed::{Observed, ObservedGateway};
use crate::service::allocation::{self, Allocation, Claims, Fill};
use crate::service::conditions::{self, Conditions, Degraded, Ready, Server};
use crate::service::passing;
use crate::service::plan::{IndexUpdate, Plan, Requeue};
use crate::service::spec::{self, ServiceSpec};

/// Plans for the gateway of a Service, or for what is left of one.
pub fn plan(observed: &Observed) -> Plan {
    match observed.service.as_ref().and_then(|service| Some((service, spec::parse(service)?))) {
        None => {
            withdraw(observed, observed.service.as_ref().and_then(|service| unattached(service, observed)))
        }
        Some((service, Ok(spec))) => serve(service, &spec, observed),
        Some((service, Err(problem))) => match readable(service, &problem, observed) {
            Some(spec) => serve(service, &spec, observed),
            None => keep_serving(service, &problem, observed),
        },
    }
}

/// The spec of a Service that holds an address and of which only the attachment or
/// the address cannot be read: the rest of it is served as ever.
fn readable(service: &Service, problem: &Problem, observed: &Observed) -> Option<ServiceSpec> {
    let provider = allocation::provider(service, &observed.addresses.claims)?;
    let own = allocation::own_claims(service, &observed.addresses);
    own.iter().find(|claim| claim.provider == provider)?;
    spec::parse_rest(service, &provider, problem)
}

/// What is said of a Service of the controller's class that names no attachment.
fn unattached(service: &Service, observed: &Observed) -> Option<Conditions> {
    let problem = spec::missing_provider(service)?;
    Some(Conditions {
        ingress: Vec::new(),
        server: Server::Gateway,
        allocated: Err(problem.clone()),
        ready: Ready::Impossible(problem),
        warnings: Vec::new(),
        degraded: None,
        known: conditions::known(service, observed),
    })
}

/// Takes everything of a gateway away that nobody asks for, and has the Service's
/// status say this, if anything.
pub fn withdraw(observed: &Observed, said: Option<Conditions>) -> Plan {
    let mut actions = Vec::new();
    let report = said.as_ref().map(|said| said.report(None)).unwrap_or_default();
    if let Some(service) = &observed.service {
        let own = allocation::own_claims(service, &observed.addresses);
        let kept = conditions::kept_ingress(service, &own);
        if said.is_none() && (!kept.is_empty() || !service.conditions.is_empty()) {
            actions.push(Action::SetStatus { ingress: Vec::new(), conditions: Vec::new(), exact: false });
        }
        if allocation::is_filled(service, &own) && !service.deleting {
            actions.push(Action::ClearAddress);
        }
    }
    actions.extend(cleanup::delete_objects(&observed.gateway, None));
    actions.extend(cleanup::release_orphaned(observed, None));
    actions.extend(cleanup::delete_orphans(&observed.gateway, None));
    // A write of its own may have shown what the queue was not told of.
    let converged = observed.addresses.claims.is_empty() && actions.is_empty();
    let next = requeue(observed, converged, &actions, &Acknowledgement::default());
    let waits = said.as_ref().is_some_and(Conditions::is_passing);
    Plan { actions, report, next, waits, conditions: said, ..Plan::default() }
}

/// Has the gateway serve on as it does, though its Service's spec cannot be
/// read, or all its claims have vanished with the Subnet: from the configuration
/// that was last written its objects are restored and rolled out as ever, and
/// endpoints followed. It ends if its address is another's by now.
pub fn keep_serving(service: &Service, problem: &Problem, observed: &Observed) -> Plan {
    let Observed { addresses, gateway, .. } = observed;
    let id = &assignment::id_of(&service.id);
    let pods = gateway.living_pods(id);
    let placement = placement::place(id, gateway, &pods, observed.rollouts.others);
    let own = allocation::own_claims(service, addresses);
    let is_given_away = addresses.is_given_away;
    let mut actions = cleanup::delete_objects(gateway, (!is_given_away).then_some(id));
    actions.extend(cleanup::release_orphaned(observed, Some(&service.id.uid)));
    let last = last_config(id, service, &own, observed).filter(|_| !is_given_away);
    let (mut workload, mut later) = (Workload::default(), None);
    let acknowledgement = last.as_ref().map(|(config, claim)| {
        let provider = allocation::provider(service, &addresses.claims);
        let is_served = |provider: &Provider| claim.is_none_or(|claim| claim.provider == *provider);
        let provider = provider.filter(is_served);
        let applied = apply(&apply::Inputs {
            config,
            workload: provider.as_ref().map(|it| workload_inputs(id, service, it, &pods, observed)),
            annotated: claim.map(|claim| (claim, &claim.provider)),
            pods: &pods,
            observed,
        });
        actions.extend(applied.actions);
        // What keeps it from being rolled out is said once the Service can be read.
        (workload, later) = (applied.workload.unwrap_or_default(), applied.later);
        acknowledge(config, &pods, observed)
    });
    actions.extend(cleanup::delete_orphans(gateway, (!is_given_away).then_some(id)));
    let ingress = ingress_as_before(service, &own, observed);
    let is_lost = !ingress.is_empty() && gateway.is_visible && gateway.last_config().is_none();
    let ready = match is_lost {
        true => Problem {
            message: format!(
                "{}; the gateway's ConfigMap is lost or was edited, and is made again once that is corrected",
                problem.message
            ),
            ..problem.clone()
        },
        false => problem.clone(),
    };
    // Without a configuration to follow there is nothing to wait for.
    let acknowledged = acknowledgement.as_ref().is_none_or(|acknowledgement| acknowledgement.whole);
    let acknowledgement = acknowledgement.unwrap_or_default();
    let conditions = Conditions {
        ingress,
        server: Server::Gateway,
        allocated: Err(problem.clone()),
        ready: Ready::Impossible(ready),
        warnings: last.and_then(|(config, _)| config.left_out).into_iter().chain(workload.warning).collect(),
        degraded: None,
        known: conditions::known(service, observed),
    };
    let (report, postponed) = (conditions.report(None), conditions.postponed());
    let is_settled = actions.is_empty() && report.is_empty() && postponed.is_none();
    let converged = acknowledged && is_settled && !acknowledgement.is_changing();
    let again = earliest([later, workload.again, postponed]);
    Plan {
        next: requeue(observed, converged, &actions, &acknowledgement).within(again),
        index: IndexUpdate {
            verdicts: acknowledgement.verdicts(),
            address_pending: serves_without_claim(service, &own, observed),
            rollout: workload.rollout.or(placement.rollout),
        },
        remember: acknowledgement.convergence.map(|convergence| convergence.state),
        waits: false,
        actions,
        report,
        conditions: Some(conditions),
    }
}

/// The gateway's configuration as it was last written, with the endpoints as they
/// are now, and a claim that it serves, if there are any.
fn last_config<'a>(
    id: &GatewayId,
    service: &Service,
    own: &[&'a Claim],
    observed: &Observed,
) -> Option<(Rendered, Option<&'a Claim>)> {
    placement::writable(id, &observed.gateway, &Placement::STAYS).ok()?;
    config::as_before(observed.gateway.last_config(), service, own, &observed.endpoints)
}

fn workload_inputs<'a>(
    id: &'a GatewayId,
    service: &'a Service,
    provider: &'a Provider,
    pods: &'a [&'a Pod],
    observed: &'a Observed,
) -> workload::Inputs<'a> {
    workload::Inputs {
        id,
        service,
        provider,
        attachment: observed.attachment.as_ref(),
        configuration: &observed.configuration,
        gateway: &observed.gateway,
        pods,
        key_written: observed.remembered.key_written,
        quiet: observed.remembered.quiet,
        rollouts: &observed.rollouts,
        now: observed.now,
    }
}

/// Brings the gateway nearer to what the Service asks.
fn serve(service: &Service, spec: &ServiceSpec, observed: &Observed) -> Plan {
    let Observed { addresses, gateway, remembered, .. } = observed;
    let id = &assignment::id_of(&service.id);
    let pods = gateway.living_pods(id);
    let placement = placement::place(id, gateway, &pods, observed.rollouts.others);
    let claims = allocation::allocate(service, spec, observed, &pods);

    if let Claims::Allocated(Allocation { target: Err(problem), own, is_lost: false, .. }) = &claims
        && own.is_empty()
        && !placement.moves
        && is_configured(gateway, id)
    {
        return keep_serving(service, problem, observed);
    }
    // Objects of a Service whose claims were taken away may answer for what is
    // another's now.
    let stays = !placement.moves && !claims.are_lost();
    let mut actions = cleanup::delete_objects(gateway, stays.then_some(id));
    actions.extend(cleanup::release_orphaned(observed, Some(&service.id.uid)));
    let allocation = match claims {
        Claims::Allocated(allocation) => allocation,
        Claims::Change(changes) => {
            actions.extend(changes);
            let next = requeue(observed, false, &actions, &Acknowledgement::default());
            let index = IndexUpdate { rollout: placement.rollout, ..IndexUpdate::default() };
            let conditions = Some(claiming(service, observed));
            return Plan { actions, next, index, conditions, ..Plan::default() };
        }
    };
    if !gateway.is_misplaced() {
        actions.extend(allocation.record_namespace(&gateway.desired_namespace));
    }

    let config = placement::writable(id, gateway, &placement).and_then(|()| {
        let configuration = &observed.configuration;
        let settings = Settings::of_service(&service.settings, &configuration.services);
        let inputs = config::Inputs {
            id,
            service,
            serving: &allocation.serving,
            networks: &addresses.networks,
            endpoints: &observed.endpoints,
            gateway,
            pods: &pods,
            nat_backend: configuration.nat_backend,
            drain_seconds: settings.ok().map(|own| own.or(&configuration.gateway).drain_seconds()),
        };
        config::desired(spec, &inputs)
    });
    let mut workload = config.as_ref().map(|_| Workload::default()).map_err(Clone::clone);
    let mut warnings = spec.warnings.clone();
    let mut acknowledgement = Acknowledgement::default();
    let (mut how, mut later) = (String::new(), None);
    if let Ok(Some(config)) = &config {
        let applied = apply(&apply::Inputs {
            config,
            workload: Some(workload_inputs(id, service, &spec.provider, &pods, observed)),
            annotated: allocation.serving.first().map(|claim| (*claim, &spec.provider)),
            pods: &pods,
            observed,
        });
        actions.extend(applied.actions);
        (workload, later) = (applied.workload, applied.later);
        warnings.extend(config.left_out.clone());
        warnings.extend(conditions::cpu_limited(&pods));
        warnings.extend(conditions::shared_attachment(observed.attachment.as_ref()));
        warnings.extend(workload.as_ref().ok().and_then(|workload| workload.warning.clone()));
        if let Ok(claim) = allocation.target {
            warnings.extend(conditions::out_of_range(claim, addresses));
        }
        actions.extend(allocation.record_answering(election::answering(&pods)));
        let election = election_report::report(remembered.election.as_ref(), &pods, &allocation.serving);
        actions.extend(election.actions);
        how += &election::active_pods(election.view.as_ref(), &pods);
        acknowledgement = acknowledge(config, &pods, observed);
    }
    let rollout = workload.as_ref().map_or(Rollout::None, |workload| workload.rollout).or(placement.rollout);
    how += &conditions::directly(spec.direct.as_ref().map(|direct| direct.cause));
    how += conditions::by_proxy(spec.proxy_protocol);
    let keeps = spec.keep && allocation::may_keep(observed);
    actions.extend(allocation.retain(keeps));
    if spec.keep && !keeps {
        warnings.push(conditions::not_kept(observed));
    }

    let shown = allocation.shown(service);
    let in_service = shown.is_none_or(|claim| acknowledgement::is_in_service(service, claim, &pods));
    let programmed = acknowledgement.whole && in_service;
    // A gateway may have carried out that it forwards nothing.
    let nothing = spec.ports.is_empty().then(|| {
        Problem::new(Reason::UnsupportedProtocol, "no port of the Service is TCP or UDP: nothing is served")
    });
    // Of endpoints that come and go it may be behind a little.
    let carried_out =
        programmed || acknowledgement.keeps_up() && in_service && pods.iter().any(|pod| pod.ready);
    let served = carried_out && nothing.is_none();
    // What the status names follows the gateway all the same.
    let is_shown = carried_out && (nothing.is_none() || !service.ingress.is_empty());
    let fill = allocation.fill(service, remembered.filled);
    let fill = if spec.fill.unwrap_or(observed.configuration.fill_address) { fill } else { Fill::Not };
    match &fill {
        Fill::TakenBack(warning) => warnings.push(warning.clone()),
        Fill::Write(_) => warnings.extend(remembered.fill_failure.as_ref().map(|failed| failed.problem(&[]))),
        Fill::Not | Fill::Later => {}
    }
    let again = workload.as_ref().ok().and_then(|workload| workload.again);
    if let (Ok(Some(config)), true) = (&config, programmed) {
        actions.extend(allocation.release_surplus(&gateway.pods, &config.part, id));
    }
    // Last, for it may be refused, and nothing else depends on it.
    actions.extend(cleanup::delete_orphans(gateway, stays.then_some(id)));

    let conditions = Conditions {
        ingress: match shown {
            Some(claim) if is_shown => vec![ingress(claim, spec)],
            _ => conditions::kept_ingress(service, &allocation.own),
        },
        server: Server::Gateway,
        ready: match workload {
            Err(problem) => Ready::Impossible(passing::with_remedy(problem, observed)),
            Ok(_) if let Some(nothing) = nothing => Ready::Impossible(nothing),
            Ok(_) if served => Ready::Yes(how),
            Ok(_) => {
                let obstacle = conditions::obstacle(observed, &pods, &allocation.serving);
                let obstacle = passing::with_remedy(obstacle, observed);
                Ready::NotYet(conditions::halting(obstacle, &observed.rollouts))
            }
        },
        degraded: served.then(|| Degraded {
            unreachable: conditions::unreachable(observed, &pods),
            all_unhealthy: conditions::all_unhealthy(acknowledgement.convergence.as_ref()),
            standby_shortage: conditions::standby_shortage(observed, &pods),
            limits: conditions::limits(&pods),
        }),
        warnings,
        known: conditions::known(service, observed),
        allocated: match allocation.target {
            Ok(claim) => Ok(format!("{} from Subnet {}", claim.address, claim.subnet)),
            Err(problem) => Err(passing::with_remedy(problem, observed)),
        },
    };
    let (mut report, postponed) = (conditions.report(None), conditions.postponed());
    // Nothing waits for the spec: others may forbid it, or take it back.
    let fill_is_due = fill == Fill::Later;
    if let Fill::Write(action) = fill {
        report.push(action);
    }
    let address_pending = conditions.allocated.is_err();
    let is_quiet = actions.iter().chain(&report).all(|action| matches!(action, Action::WriteDeployment(_)));
    let is_settled = is_quiet && !fill_is_due && later.is_none() && postponed.is_none();
    let is_settled = is_settled && !acknowledgement.is_changing();
    let waits = conditions.is_passing();
    let converged = (programmed || address_pending) && is_settled && (!waits || passing::lasts(observed));
    Plan {
        next: requeue(observed, converged, &actions, &acknowledgement)
            .within(earliest([later, again, postponed])),
        index: IndexUpdate { rollout, address_pending, verdicts: acknowledgement.verdicts() },
        remember: acknowledgement.convergence.map(|convergence| convergence.state),
        waits,
        actions,
        report,
        conditions: Some(conditions),
    }
}

/// The first of these times at which something is to be done.
fn earliest(times: [Option<Duration>; 3]) -> Option<Duration> {
    times.into_iter().flatten().min()
}

/// What is said while claims have to change first, if that fails.
fn claiming(service: &Service, observed: &Observed) -> Conditions {
    let own = allocation::own_claims(service, &observed.addresses);
    Conditions {
        ingress: ingress_as_before(service, &own, observed),
        server: Server::Gateway,
        allocated: Err(Problem::new(Reason::WriteFailed, "an address is being claimed")),
        ready: Ready::AsBefore,
        warnings: Vec::new(),
        degraded: None,
        known: conditions::known(service, observed),
    }
}

/// The ingress of a Service whose gateway serves on as it does.
fn ingress_as_before(service: &Service, own: &[&Claim], observed: &Observed) -> Vec<Ingress> {
    match serves_without_claim(service, own, observed) {
        true => service.ingress.clone(),
        false => conditions::kept_ingress(service, own),
    }
}

/// Whether the gateway serves though the Service has no claim: claims that
/// vanish with the CRDs or the Subnet take nothing out of service.
fn serves_without_claim(service: &Service, own: &[&Claim], observed: &Observed) -> bool {
    own.is_empty()
        && !observed.addresses.is_given_away
        && is_configured(&observed.gateway, &assignment::id_of(&service.id))
}

/// Whether the gateway of this identity has a configuration.
fn is_configured(gateway: &ObservedGateway, id: &GatewayId) -> bool {
    gateway.config.as_ref().is_some_and(|config| config.is_of(id))
}

fn acknowledge(config: &Rendered, pods: &[&Pod], observed: &Observed) -> Acknowledgement {
    let Observed { gateway, endpoints, remembered, now, .. } = observed;
    let written = config.is_written(gateway.config.as_ref());
    acknowledgement::acknowledge(config, written, pods, endpoints, remembered, *now)
}

fn ingress(claim: &Claim, spec: &ServiceSpec) -> Ingress {
    Ingress { ip: claim.address.to_string(), proxy: spec.pass_through, ports: spec.port_statuses.clone() }
}

/// When the gateway is to be planned for again.
fn requeue(
    observed: &Observed,
    converged: bool,
    actions: &[Action],
    acknowledgement: &Acknowledgement,
) -> Requeue {
    let Observed { service, addresses, gateway, .. } = observed;
    let convergence = acknowledgement.convergence.as_ref();
    if service.is_none() && addresses.claims.is_empty() && gateway.pods.is_empty() {
        return Requeue::Never;
    }
    if converged {
        let has_limits = |pod: &Pod| pod.reported().is_some_and(|status| !status.limits.is_empty());
        let poll = gateway.pods.iter().any(|pod| pod.member || has_limits(pod))
            || convergence.is_some_and(|it| it.checks);
        return Requeue::Converged { poll };
    }
    let wrote = |action: &Action| {
        matches!(
            action,
            Action::WriteConfig(_)
                | Action::AnnotatePod { .. }
                | Action::Claim(_)
                | Action::Adopt(_)
                | Action::MarkConflict(..)
        )
    };
    Requeue::Unconverged {
        restart: actions.iter().any(wrote),
        holds_gates: convergence.is_some_and(|convergence| convergence.holds_gates),
        reports: gateway
            .pods
            .iter()
            .any(|pod| matches!(pod.report, StatusReport::Reported(_) | StatusReport::Missed)),
        within: None,
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::names;

    use std::net::IpAddr;

    use super::*;
    use crate::ipam::AllocationError;
    use crate::model::PodId;
    use crate::observed::SealState;
    use crate::service::conditions::{ADDRESS_ALLOCATED, FailedWrite, GATEWAY_READY, LIMITED, ips};
    use crate::testing::gateway::{
        FOREIGN_MAC, annotate, carried_out, claim, claimed, config_of, config_written, configured,
        deployment_of, direct_access, events, is_converged, observed_again, reason, served, settle, status,
        steps, target_addresses, tcp_slice, two_pods, with_pods, withholds,
    };
    use crate::testing::port;
    use lb_svc_crds::Requested;
    use lb_svc_crds::gateway::{GatewayConfig, Target};

    #[test]
    fn ingress_is_set_once_gateway_serves() {
        let plan = plan(&claimed(&[claim("172.18.0.11", Requested::Dynamic)]));
        let config: GatewayConfig = serde_json::from_str(config_of(&plan).unwrap()).unwrap();
        assert_eq!(config.frontends[0].ports[0].port, 80);
        assert!(plan.steps().any(|step| *step == Action::FillAddress("172.18.0.11".parse().unwrap())));
        let (ingress, conditions) = status(&plan).unwrap();
        assert!(ingress.is_empty());
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressAllocated");
        assert_eq!(reason(conditions, GATEWAY_READY), "GatewayStarting");

        let done = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let service = done.service.as_ref().unwrap();
        assert_eq!(ips(&service.ingress), ["172.18.0.11"]);
        assert_eq!(service.load_balancer_ip, "172.18.0.11");
        assert_eq!(
            done.gateway.pods[0].annotations["lan.kube-system.kubernetes.io/ip_address"],
            "172.18.0.11"
        );
        assert_eq!(
            done.gateway.pods[0].annotations["lan.kube-system.kubernetes.io/mac_address"],
            "ba:85:f7:02:9f:42"
        );
    }

    #[test]
    fn requeue_polls_what_only_pods_report() {
        let next = |observed: Observed| plan(&observed).next;
        assert_eq!(next(served()), Requeue::Converged { poll: false });
        assert_eq!(next(two_pods()), Requeue::Converged { poll: true });
        let mut checked = direct_access();
        annotate(&mut checked, names::HEALTH_CHECK_ANNOTATION, "tcp");
        checked.gateway.config = None;
        let checked = observed_again(carried_out(with_pods(checked, Vec::new()), "172.18.0.11"));
        assert_eq!(next(checked), Requeue::Converged { poll: true });
        let mut gated = direct_access();
        gated.endpoints.slices = vec![tcp_slice(&[(3, "unready")])];
        gated.endpoints.gated_pods = [(PodId::of("uid-3"), false)].into();
        assert_eq!(
            next(gated),
            Requeue::Unconverged { restart: true, holds_gates: true, reports: true, within: None }
        );
        let mut waiting = served();
        waiting.gateway.pods[0].ready = false;
        assert_eq!(
            next(waiting),
            Requeue::Unconverged { restart: false, holds_gates: false, reports: true, within: None }
        );
        let gone = Observed { service: None, ..Observed::default() };
        assert_eq!(next(gone), Requeue::Never);
    }

    #[test]
    fn b22_service_without_a_port_that_is_served_is_not_ready() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        for port in &mut observed.service.as_mut().unwrap().ports {
            port.protocol = "SCTP".into();
        }
        let observed = carried_out(observed, "172.18.0.11");
        let service = observed.service.as_ref().unwrap();
        assert_eq!(service.ingress, []);
        assert_eq!(reason(&service.conditions, GATEWAY_READY), "UnsupportedProtocol");
        assert!(is_converged(&plan(&observed)), "nothing is waited for");
    }

    #[test]
    fn r37_service_of_the_controllers_class_without_an_attachment_gets_a_condition() {
        let mut observed = claimed(&[]);
        let service = observed.service.as_mut().unwrap();
        service.annotations.clear();
        assert_eq!(steps(&plan(&observed)), [], "of no class it is another's");
        let service = observed.service.as_mut().unwrap();
        service.class = Some(names::LOAD_BALANCER_CLASS.to_owned());
        let planned = plan(&observed);
        let (_, conditions) = status(&planned).unwrap();
        for kind in [ADDRESS_ALLOCATED, GATEWAY_READY] {
            assert_eq!(reason(conditions, kind), "ProviderMissing");
        }
        assert_eq!(events(&planned).len(), 1);
    }

    #[test]
    fn r22_claim_that_cannot_be_written_is_reported() {
        let failed = |refused| FailedWrite { what: "the claim", refused, why: "webhook down (500)".into() };
        let after = |observed: &Observed, refused| {
            let planned = plan(observed);
            Plan { report: planned.after_failure(0, &failed(refused)), actions: Vec::new(), ..planned }
        };
        for (refused, expected) in [(true, "WriteRefused"), (false, "WriteFailed")] {
            let planned = after(&claimed(&[]), refused);
            let (_, conditions) = status(&planned).unwrap();
            assert_eq!(reason(conditions, ADDRESS_ALLOCATED), expected);
            assert_eq!(reason(conditions, GATEWAY_READY), expected);
            assert!(conditions[0].message.contains("webhook down (500)"), "{conditions:?}");
        }
        // What is served is said to be, and keeps its ingress.
        let mut moved = served();
        moved.service.as_mut().unwrap().load_balancer_ip = "172.18.0.99".into();
        let planned = after(&moved, false);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "WriteFailed");
        assert_eq!(reason(conditions, GATEWAY_READY), "GatewayReady");
    }

    #[test]
    fn r32_claim_that_cannot_be_made_again_leaves_the_status() {
        let failed = FailedWrite { what: "the claim", refused: true, why: "not found (404)".into() };
        let mut observed = served();
        observed.addresses.claims.clear();
        let planned = plan(&observed);
        let report = planned.after_failure(0, &failed);
        let planned = Plan { report, actions: Vec::new(), ..planned };
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "WriteRefused");

        observed.addresses.is_given_away = true;
        let planned = plan(&observed);
        let report = planned.after_failure(0, &failed);
        let planned = Plan { report, actions: Vec::new(), ..planned };
        assert_eq!(status(&planned).map(|(ingress, _)| ips(ingress)), Some(Vec::new()));
    }

    #[test]
    fn r22_conflict_that_cannot_be_recorded_is_no_event_of_another_address() {
        let observed =
            withholds(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11", FOREIGN_MAC);
        let planned = plan(&observed);
        let place = planned.actions.iter().position(|action| matches!(action, Action::MarkConflict(..)));
        let failed = FailedWrite { what: "the claim", refused: true, why: "forbidden (403)".into() };
        let report = planned.after_failure(place.unwrap(), &failed);
        let planned = Plan { report, actions: Vec::new(), ..planned };
        assert_eq!(events(&planned).iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), ["WriteRefused"]);
    }

    #[test]
    fn r22_fill_that_fails_is_reported_while_it_is_due() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer_ip.clear();
        let why = "failed calling webhook (500)".to_owned();
        observed.remembered.fill_failure =
            Some(FailedWrite { what: "spec.loadBalancerIP", refused: false, why });
        let limited = |observed: &Observed| {
            let planned = plan(observed);
            let conditions = status(&planned).map(|(_, conditions)| conditions.clone());
            conditions
                .and_then(|all| all.iter().find(|one| one.kind == LIMITED).map(|one| one.reason.clone()))
        };
        assert_eq!(limited(&observed).as_deref(), Some("WriteFailed"));
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        assert_eq!(limited(&observed), None);
    }

    #[test]
    fn converged_gateway_has_no_actions() {
        let done = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let plan = plan(&done);
        assert_eq!(steps(&plan), []);
        assert!(is_converged(&plan));
    }

    #[test]
    fn invalid_edit_keeps_last_good_state() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer_ip = "not-an-address".into();
        let planned = plan(&observed);
        assert_eq!(config_of(&planned), None);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "InvalidAddress");

        // Another's address: refused, the old one serves, ports still follow.
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.99".into();
        service.ports.push(port("TCP", 443));
        observed.addresses.allocation_error =
            Some(AllocationError::Taken("172.18.0.99".parse().unwrap(), Some("other".into())));
        let planned = plan(&observed);
        assert!(config_of(&planned).unwrap().contains("443"));
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "AddressInUse");
        assert!(planned.index.address_pending);
    }

    #[test]
    fn r23_gateway_is_mended_while_its_address_or_attachment_cannot_be_read() {
        for (address, attachment, cause) in
            [("nonsense", "lan.kube-system", "InvalidAddress"), ("", "lan", "InvalidProvider")]
        {
            let mut observed = served();
            annotate(&mut observed, names::PROVIDER_ANNOTATION, attachment);
            observed.service.as_mut().unwrap().load_balancer_ip = address.to_owned();
            let observed = settle(observed);
            let conditions = &observed.service.as_ref().unwrap().conditions;
            assert_eq!(reason(conditions, ADDRESS_ALLOCATED), cause);
            assert_eq!(reason(conditions, GATEWAY_READY), "GatewayReady");
            assert_eq!(ips(&observed.service.as_ref().unwrap().ingress), ["172.18.0.11"]);
            assert!(is_converged(&plan(&observed)));

            let mut lost = observed.clone();
            (lost.gateway.deployment, lost.gateway.config) = (None, None);
            let planned = plan(&lost);
            let config = config_written(&planned);
            assert_eq!(config.addresses.len(), 1);
            assert_eq!(config.addresses[0].address.to_string(), "172.18.0.11");
            assert!(deployment_of(&planned).is_some());
            let written = |action: &Action| matches!(action, Action::Claim(_) | Action::FillAddress(_));
            assert!(!planned.steps().any(written), "no address is taken or written for it");

            let mut edited = observed.clone();
            edited.gateway.deployment.as_mut().unwrap().content.live["spec"]["replicas"] = 0.into();
            assert!(deployment_of(&plan(&edited)).is_some());
            assert!(deployment_of(&plan(&configured(observed.clone(), "gateway:2"))).is_some());

            let mut followed = observed;
            followed.service.as_mut().unwrap().ports.push(port("TCP", 443));
            assert_eq!(config_written(&plan(&followed)).frontends[0].ports.len(), 2, "the rest can be read");
        }
    }

    #[test]
    fn r23_gateway_is_mended_from_its_last_configuration() {
        let mut observed = served();
        let service = observed.service.as_mut().unwrap();
        service.source_ranges = vec!["nonsense".into()];
        service.ports.push(port("TCP", 443));
        let observed = settle(observed);
        assert!(is_converged(&plan(&observed)));
        let mut lost = observed.clone();
        lost.gateway.deployment = None;
        let planned = plan(&lost);
        assert!(deployment_of(&planned).is_some() && config_of(&planned).is_none());
        let planned = plan(&configured(observed.clone(), "gateway:2"));
        assert!(
            deployment_of(&planned).is_some() && planned.index.rollout != Rollout::None,
            "as one of many"
        );

        // Who may connect cannot be read: nobody is let in by guess.
        lost.gateway.config = None;
        let planned = plan(&lost);
        assert!(deployment_of(&planned).is_none() && config_of(&planned).is_none());
        let (_, conditions) = status(&planned).unwrap();
        let ready = conditions.iter().find(|condition| condition.kind == GATEWAY_READY).unwrap();
        assert!(ready.reason == "InvalidSourceRange" && ready.message.contains("is lost"), "{ready:?}");

        // Nor is a pod made while the address has no configuration of its own.
        lost.gateway.config = observed.gateway.config.clone();
        lost.gateway.seal = Some(SealState::default());
        lost.gateway.deployment = observed.gateway.deployment.clone();
        let live = &mut lost.gateway.deployment.as_mut().unwrap().content.live;
        live["metadata"]["annotations"] = serde_json::json!({});
        assert_eq!(config_of(&plan(&lost)), lost.gateway.config.as_ref().map(|config| &config.content));
    }

    #[test]
    fn w1_cluster_ip_that_the_service_has_no_more_is_led_to_no_longer() {
        let addresses = |planned: &Plan| match &config_written(planned).frontends[0].target {
            Target::ClusterIp { addresses } => addresses.clone(),
            Target::Endpoints { .. } => panic!("direct"),
        };
        // A Service of both families that gives its second one up.
        let mut observed = served();
        observed.service.as_mut().unwrap().cluster_ips = vec!["fd00::1".into()];
        assert_eq!(addresses(&plan(&observed)), [] as [IpAddr; 0]);
        let observed = settle(observed);
        let conditions = &observed.service.as_ref().unwrap().conditions;
        assert_eq!(reason(conditions, GATEWAY_READY), "UnsupportedFamily");

        // One that was an ExternalName meanwhile, and of which the rest cannot be read.
        let mut observed = served();
        let service = observed.service.as_mut().unwrap();
        service.cluster_ips = vec!["10.109.201.194".into()];
        service.source_ranges = vec!["nonsense".into()];
        assert_eq!(addresses(&plan(&observed)), ["10.109.201.194".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn r23_gateway_without_a_claim_is_restored() {
        let mut observed = served();
        observed.addresses.claims.clear();
        observed.addresses.allocation_error = Some(AllocationError::Deleting("lan".to_owned()));
        observed.gateway.deployment = None;
        assert!(deployment_of(&plan(&observed)).is_some());
        observed.addresses.is_given_away = true;
        assert!(deployment_of(&plan(&observed)).is_none());
    }

    #[test]
    fn invalid_spec_still_follows_endpoints() {
        let mut observed = direct_access();
        let service = observed.service.as_mut().unwrap();
        service.source_ranges = vec!["nonsense".into()];
        service.ports.push(port("TCP", 443));
        let observed = settle(observed);
        assert!(is_converged(&plan(&observed)));
        let mut changed = observed.clone();
        changed.endpoints.slices = vec![tcp_slice(&[(3, "ready")])];
        let planned = plan(&changed);
        let config = config_written(&planned);
        assert_eq!(
            (target_addresses(&config), config.frontends[0].ports.len()),
            (vec!["10.0.0.3".into()], 1)
        );
        assert!(config.frontends[0].clients.is_none(), "the rest stays as it was");
        assert!(planned.steps().any(|action| matches!(action, Action::AnnotatePod { nudge: Some(0), .. })));
        // Until it does, it is told again.
        changed.gateway.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
        let changed = settle(changed);
        let planned = plan(&changed);
        assert!(!is_converged(&planned));

        // What goes to the ClusterIP is left alone.
        let mut plain = served();
        plain.endpoints.slices = changed.endpoints.slices;
        plain.service.as_mut().unwrap().source_ranges = vec!["nonsense".into()];
        assert_eq!(config_of(&plan(&plain)), None);
    }

    #[test]
    fn withdrawn_service_is_planned_again_after_a_write() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer = false;
        (observed.gateway.config, observed.gateway.deployment) = (None, None);
        observed.gateway.pods.clear();
        observed.addresses.claims.clear();
        let planned = plan(&observed);
        assert!(status(&planned).is_some() && !is_converged(&planned));
        let service = observed.service.as_mut().unwrap();
        (service.ingress, service.conditions) = (Vec::new(), Vec::new());
        assert!(is_converged(&plan(&observed)));
    }
}
