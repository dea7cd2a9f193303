//! What is to be done for one gateway.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::backend::convergence::ConvergenceState;
use crate::backend::readiness_gate::Verdict;
use crate::gateway::election::ElectionView;
use crate::gateway::rollout::Rollout;
use crate::ipam::{AddressRequest, ClaimId};
use crate::model::{Condition, Ingress, PodId};
use crate::service::conditions::Conditions;

/// One write, or what is to be remembered of the writes before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Choose an address and claim it. It is the last action: with the claim, or the
    /// error, all is planned anew.
    Claim(AddressRequest),
    /// Write the address into the Service's `spec.loadBalancerIP`.
    FillAddress(IpAddr),
    /// Clear the address that the controller filled in there.
    ClearAddress,
    /// Write the gateway's ConfigMap.
    WriteConfig(String),
    /// Create the Secret with the gateway's key, unless it exists; the ConfigMap with
    /// this uid owns it.
    WriteKey(String),
    /// Create or replace the gateway's Deployment.
    WriteDeployment(Value),
    /// Create or apply the gateway's PodDisruptionBudget.
    WriteBudget(Value),
    /// Delete the ConfigMap with this uid and resourceVersion.
    DeleteConfig(String, String),
    /// Delete the Deployment with this uid and resourceVersion.
    DeleteDeployment(String, String),
    /// Delete the Deployment with this uid and resourceVersion, and leave its
    /// pods.
    OrphanDeployment(String, String),
    /// Delete the ReplicaSets whose pods have the labels of earlier releases,
    /// with their pods.
    DeleteLegacyReplicaSets,
    /// Delete the PodDisruptionBudget with this uid and resourceVersion.
    DeleteBudget(String, String),
    /// Set these annotations on a pod.
    AnnotatePod {
        /// The pod's name.
        pod: String,
        /// Its uid.
        uid: String,
        /// All annotations of the controller on it.
        annotations: BTreeMap<String, String>,
        /// The number of this nudge, if it is one.
        nudge: Option<u32>,
    },
    /// Delete this pod: its Deployment makes another.
    DeletePod {
        /// The pod's name.
        pod: String,
        /// Its uid.
        uid: String,
    },
    /// Record in the claim which interface answers for the address, and whether the
    /// address has been in service.
    RecordMac {
        /// The claim.
        claim: ClaimId,
        /// The interface's hardware address.
        mac: String,
        /// Whether the address has been in service.
        probed: bool,
    },
    /// Record in the claim that the foreign host with this hardware address
    /// has the address.
    MarkConflict(ClaimId, String),
    /// Make the claim outlive its Service, or not (reclaim policy).
    SetRetain(ClaimId, bool),
    /// Adopt the claim that an earlier Service of the name retained.
    Adopt(ClaimId),
    /// Record in the claim the namespace where its gateway is.
    SetGatewayNamespace(ClaimId),
    /// Delete the claim.
    Release(ClaimId),
    /// Write the Service's status: ingress and all of the controller's conditions.
    SetStatus {
        /// `status.loadBalancer.ingress`.
        ingress: Vec<Ingress>,
        /// The conditions.
        conditions: Vec<Condition>,
    },
    /// Create an Event of the Service.
    Event {
        /// Whether it is a Warning.
        warning: bool,
        /// The reason: one word in CamelCase.
        reason: String,
        /// The message for people.
        message: String,
    },
    /// Remember what is seen of the election: all changes were reported.
    RememberElection(Option<ElectionView>),
}

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
    /// What is to be remembered for the next plan, if that is anything new.
    pub remember: Option<ConvergenceState>,
}

impl Plan {
    /// All writes, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Action> {
        self.actions.iter().chain(&self.report)
    }

    /// The report if the API server refused one of the writes with these
    /// words, `failed` being its place among the actions: what is still to be
    /// said of those after it, and conditions that say why.
    pub fn after_refusal(&self, failed: usize, refused: &str) -> Vec<Action> {
        let says = |action: &&Action| matches!(action, Action::Event { .. } | Action::RememberElection(_));
        let rest = self.actions.iter().skip(failed + 1).filter(says).cloned();
        rest.chain(self.conditions.iter().flat_map(|conditions| conditions.report(Some(refused)))).collect()
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
    /// Soon, and less often each time.
    Unconverged {
        /// Whether something was written that its pods have to follow, so that
        /// it is soon again.
        restart: bool,
        /// Whether pods wait at their readiness gate for it.
        holds_gates: bool,
    },
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
