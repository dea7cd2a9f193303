//! What is to be done for one gateway.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::backend::convergence::Convergence;
use crate::gateway::election::ElectionView;
use crate::ipam::{AddressRequest, ClaimId};
use crate::model::{Condition, Ingress};

/// One write, or what is to be remembered of those before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Choose an address and claim it. Nothing else is planned with it: with
    /// the claim, or the refusal, all is planned anew.
    Claim(AddressRequest),
    /// Write the address into the Service's `spec.loadBalancerIP`.
    FillAddress(IpAddr),
    /// Take what we filled out of it again.
    ClearAddress,
    /// Write the gateway's ConfigMap.
    WriteConfig(String),
    /// Make the Secret with the gateway's key, unless it is there; the
    /// ConfigMap with this uid owns it.
    WriteKey(String),
    /// Write the gateway's Deployment: make it, or make it what it should be.
    WriteDeployment(Value),
    /// Write the gateway's PodDisruptionBudget, likewise.
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
        /// All of our annotations on it.
        annotations: BTreeMap<String, String>,
        /// The number of this nudge, if it is one.
        nudge: Option<u32>,
    },
    /// Record in the claim which interface answers for the address, and
    /// whether it is known to be no one else's.
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
    /// Make the claim outlive its Service, or not.
    SetRetain(ClaimId, bool),
    /// Take over the claim that an earlier Service of this name left behind.
    Adopt(ClaimId),
    /// Record in the claim that the gateway that answers for it is at home.
    SetGatewayNamespace(ClaimId),
    /// Give the address back.
    Release(ClaimId),
    /// Write the Service's status: ingress and our conditions, all of them.
    SetStatus {
        /// `status.loadBalancer.ingress`.
        ingress: Vec<Ingress>,
        /// Our conditions.
        conditions: Vec<Condition>,
    },
    /// Tell about it on the Service.
    Event {
        /// Whether something is wrong.
        warning: bool,
        /// One word.
        reason: String,
        /// One sentence.
        message: String,
    },
    /// Remember what is seen of the election, all news of which was told.
    Remember(Option<ElectionView>),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in order.
    pub actions: Vec<Action>,
    /// Whether, after them, there is nothing to wait for.
    pub converged: bool,
    /// Whether the Service waits for an address that it may get when another
    /// is freed, or a Subnet changes.
    pub address_pending: bool,
    /// Whether, with them, the gateway is rolled as one of many.
    pub in_rollout: bool,
    /// Whether the gateway is to be rolled as one of many, when others are
    /// done.
    pub rollout_pending: bool,
    /// What is seen of the gateway, where it leads straight to endpoints.
    pub convergence: Option<Convergence>,
}
