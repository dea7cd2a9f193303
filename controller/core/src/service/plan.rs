//! What is to be done for one Service: a pure function of what is seen.
//!
//! [`plan`] leads to the plan of its [gateway](crate::gateway::plan), or of the
//! [nodes](crate::node_mode::plan). It runs again after every change and every
//! write; nothing depends on having seen the change itself.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_svc_crds::reason::Reason;

use super::allocation;
use super::conditions::{self, Conditions, FailedWrite, Ready, Server};
use super::passing;
use crate::action::Action;
use crate::backend::convergence::ConvergenceState;
use crate::backend::readiness_gate::Verdict;
use crate::gateway::rollout::Rollout;
use crate::gateway::{assignment, cleanup, plan as gateway_plan};
use crate::model::{PodId, Problem, Service};
use crate::node_mode::plan as node_mode;
use crate::node_mode::request::{self, Mode};
use crate::observed::Observed;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in order.
    pub actions: Vec<Action>,
    /// The writes that report on the Service what became of these, in order.
    pub report: Vec<Action>,
    /// What [`Self::report`] is made from; `None` if the Service's status is no
    /// part of the plan.
    pub conditions: Option<Conditions>,
    /// When the gateway is to be planned for again.
    pub next: Requeue,
    /// What others are to see of it.
    pub index: IndexUpdate,
    /// Whether the Service waits for what passes by itself.
    pub waits: bool,
    /// What is to be remembered for the next plan, if that is anything new.
    pub remember: Option<ConvergenceState>,
}

impl Plan {
    /// All writes, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Action> {
        self.actions.iter().chain(&self.report)
    }

    /// The report if one of the writes failed, `place` being its place among
    /// the actions: what is still to be said of those after it, and conditions
    /// that say why. Of claims that have to change first nothing else is true
    /// then.
    pub fn after_failure(&self, place: usize, failed: &FailedWrite) -> Vec<Action> {
        let says = |action: &&Action| matches!(action, Action::Event { .. } | Action::RememberElection(_));
        let depends = self.conditions.as_ref().is_some_and(|conditions| conditions.ready == Ready::AsBefore);
        let rest = self.actions.iter().skip(place + 1).filter(|_| !depends).filter(says).cloned();
        rest.chain(self.conditions.iter().flat_map(|conditions| conditions.report(Some(failed)))).collect()
    }
}

/// When a gateway is to be planned for again, if nothing changes before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requeue {
    /// Not at all: nothing of it is left.
    #[default]
    Never,
    /// In a while: it is as it is to be.
    Converged {
        /// Whether more changes of it than Kubernetes shows, which only its
        /// pods report.
        poll: bool,
    },
    /// Soon, and less often each time that nothing has changed.
    Unconverged {
        /// Whether something was written that its pods have to follow, so that
        /// it is soon again.
        restart: bool,
        /// Whether pods wait at their readiness gate for it.
        holds_gates: bool,
        /// Whether its pods report, so that more changes than Kubernetes shows.
        reports: bool,
        /// After which time something is to be written that waits for nothing else.
        within: Option<Duration>,
    },
}

impl Requeue {
    /// The same, and after that time at the latest.
    pub fn within(self, later: Option<Duration>) -> Self {
        match self {
            Self::Unconverged { restart, holds_gates, reports, .. } => {
                Self::Unconverged { restart, holds_gates, reports, within: later }
            }
            Self::Never | Self::Converged { .. } => self,
        }
    }
}

/// What others are to see of a gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IndexUpdate {
    /// Its part in the roll-outs.
    pub rollout: Rollout,
    /// Whether its Service waits for an address that it may get when another is
    /// freed, or a Subnet changes.
    pub address_pending: bool,
    /// What it makes of the pods that wait for their readiness gate.
    pub verdicts: BTreeMap<PodId, Verdict>,
}

/// Plans for a Service: for its gateway, or for the nodes. It has never both: what
/// served it before is gone first.
pub fn plan(observed: &Observed) -> Plan {
    let service = observed.service.as_ref();
    match service.map(|service| (service, request::mode(service))) {
        Some((service, Mode::Nodes)) if has_gateway(service, observed) => {
            gateway_plan::withdraw(observed, Some(changing_over(service, observed)))
        }
        Some((service, Mode::Nodes)) => at_nodes(service, None, observed),
        Some((service, Mode::Refused(problem))) => match has_gateway(service, observed) {
            true => gateway_plan::keep_serving(service, &problem, observed),
            false => at_nodes(service, Some(problem), observed),
        },
        _ if !observed.nodes.claims.is_empty() => node_mode::leave(observed),
        Some((_, Mode::Gateway)) | None => gateway_plan::plan(observed),
    }
}

/// Plans for a Service at the nodes, and takes away what an earlier one of its name
/// has left of a gateway.
fn at_nodes(service: &Service, refused: Option<Problem>, observed: &Observed) -> Plan {
    let mut plan = node_mode::plan(service, refused, observed);
    let earlier = cleanup::delete_objects(&observed.gateway, None).into_iter();
    let earlier = earlier.chain(cleanup::release_orphaned(observed, None));
    let mut actions: Vec<Action> = earlier.chain(cleanup::delete_orphans(&observed.gateway, None)).collect();
    // A claim is the last action.
    actions.append(&mut plan.actions);
    Plan { actions, ..plan }
}

/// Whether there is anything left of a gateway of this very Service.
fn has_gateway(service: &Service, observed: &Observed) -> bool {
    let (id, gateway) = (&assignment::id_of(&service.id), &observed.gateway);
    !allocation::own_claims(service, &observed.addresses).is_empty()
        || gateway.config.as_ref().is_some_and(|object| object.is_of(id))
        || gateway.deployment.as_ref().is_some_and(|object| object.is_of(id))
        || gateway.budget.as_ref().is_some_and(|object| object.is_of(id))
        || gateway.pods.iter().any(|pod| pod.is_of(id) && pod.could_answer())
}

/// What is said of a Service whose gateway has to go before nodes serve it.
fn changing_over(service: &Service, observed: &Observed) -> Conditions {
    let message = "the Service's gateway is being removed, then nodes serve it";
    let problem = passing::with_remedy(Problem::new(Reason::Replacing, message), observed);
    Conditions {
        ingress: Vec::new(),
        server: Server::Nodes,
        allocated: Err(problem.clone()),
        ready: Ready::NotYet(problem),
        warnings: Vec::new(),
        degraded: None,
        known: conditions::known(service, observed),
    }
}
