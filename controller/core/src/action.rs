//! The writes by which a gateway and its Service are brought nearer to what is
//! asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::gateway::election::ElectionView;
use crate::ipam::{AddressRequest, ClaimId};
use crate::model::{Condition, GatewayId, Ingress};
use crate::node_mode::claim::PortRequest;

/// One write, or what is to be remembered of the writes before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Choose an address and claim it. It is the last action: with the claim, or the
    /// error, all is planned anew.
    Claim(AddressRequest),
    /// Claim ports of nodes, in this order, up to the first that another has. It is
    /// the last action: all is planned anew then.
    ClaimPorts(Vec<PortRequest>),
    /// Record in the claim on a port the nodes whose port it is.
    SetPortNodes(ClaimId, BTreeSet<String>),
    /// Write the address into the Service's `spec.loadBalancerIP`.
    FillAddress(IpAddr),
    /// Clear the address that the controller filled in there.
    ClearAddress,
    /// Write the gateway's ConfigMap.
    WriteConfig(String),
    /// Hand the ConfigMap's content to pods of the gateway. What comes of it is
    /// remembered, and all is planned anew.
    PushConfig {
        /// The digest of the content: of another nothing is handed over.
        digest: String,
        /// The pods, by uid.
        pods: Vec<(String, IpAddr)>,
    },
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
    /// Delete the ReplicaSets of the gateway of this identity that no Deployment owns,
    /// with their pods.
    DeleteOrphans(GatewayId),
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
    /// Delete this pod.
    DeletePod {
        /// The pod's name.
        pod: String,
        /// Its uid.
        uid: String,
        /// Why, for the log.
        why: &'static str,
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
        /// Whether the Service has to be in the version that was seen.
        exact: bool,
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

impl Action {
    /// What it writes, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Claim(_)
            | Self::RecordMac { .. }
            | Self::MarkConflict(..)
            | Self::SetRetain(..)
            | Self::Adopt(_)
            | Self::SetGatewayNamespace(_)
            | Self::Release(_) => "the claim on an address (IP)",
            Self::ClaimPorts(_) | Self::SetPortNodes(..) => "the claim on a port of nodes (IP)",
            Self::FillAddress(_) | Self::ClearAddress => "spec.loadBalancerIP",
            Self::WriteConfig(_) | Self::DeleteConfig(..) => "the gateway's ConfigMap",
            Self::PushConfig { .. } => "the gateway pods' configuration",
            Self::WriteKey(_) => "the Secret with the gateway's key",
            Self::WriteDeployment(_) | Self::DeleteDeployment(..) | Self::OrphanDeployment(..) => {
                "the gateway's Deployment"
            }
            Self::DeleteLegacyReplicaSets | Self::DeleteOrphans(_) => "the gateway's earlier ReplicaSets",
            Self::WriteBudget(_) | Self::DeleteBudget(..) => "the gateway's PodDisruptionBudget",
            Self::AnnotatePod { .. } => "the annotations of a gateway pod",
            Self::DeletePod { .. } => "the deletion of a gateway pod",
            Self::SetStatus { .. } => "the Service's status",
            Self::Event { .. } => "an Event",
            Self::RememberElection(_) => "nothing",
        }
    }
}
