//! What is seen of one gateway and of its Service, each part for the stages
//! that decide by it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::seal::PublicKey;
use serde_json::Value;

use crate::backend::convergence::ConvergenceState;
use crate::gateway::assignment;
use crate::gateway::election::ElectionView;
use crate::gateway::manifests;
use crate::gateway::pod_settings::Configuration;
use crate::gateway::rollout::Rollouts;
use crate::ipam::{AllocationError, Claim, Network};
use crate::model::{
    Attachment, DeploymentState, EndpointSlice, GatewayId, GatewayLocation, Node, ObjectName, OwnedObject,
    Pod, PodId, Service,
};
use crate::node_mode::claim::PortClaim;
use crate::service::conditions::FailedWrite;
use crate::service::publication::Published;

/// Everything seen that concerns one Service and the gateway that serves it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The Service, if there is one.
    pub service: Option<Service>,
    /// Addresses.
    pub addresses: ObservedAddresses,
    /// The gateway's objects.
    pub gateway: ObservedGateway,
    /// The Service's endpoints.
    pub endpoints: ObservedEndpoints,
    /// Nodes, and who has ports of theirs.
    pub nodes: ObservedNodes,
    /// The NetworkAttachmentDefinition that the Service names, if it exists.
    pub attachment: Option<Attachment>,
    /// The controller's configuration.
    pub configuration: Arc<Configuration>,
    /// The roll-outs of other gateways.
    pub rollouts: Rollouts,
    /// What this process did and saw before.
    pub remembered: Remembered,
    /// Now, by the wall clock.
    pub now: Timestamp,
}

/// The claims, and what is known of their addresses.
#[derive(Clone, Debug, Default)]
pub struct ObservedAddresses {
    /// The claims of every Service that has or had the Service's name.
    pub claims: Vec<Claim>,
    /// The networks of those claims' Subnets, by Subnet.
    pub networks: BTreeMap<String, Network>,
    /// Whether an address that the gateway serves is another's claim, while the
    /// Service has none.
    pub is_given_away: bool,
    /// How many addresses other Services of the namespace have kept, or are to
    /// keep, before this one's.
    pub kept_before: usize,
    /// Whether the namespace of the Service is gone.
    pub is_namespace_gone: bool,
    /// Why no address could be had a moment ago, if that was tried.
    pub allocation_error: Option<AllocationError>,
    /// Of the hardware addresses that pods name in conflicts, those that are of this
    /// gateway itself.
    pub gateway_macs: BTreeSet<String>,
}

/// What bears the gateway's name.
#[derive(Clone, Debug, Default)]
pub struct ObservedGateway {
    /// Where the gateway is.
    pub location: GatewayLocation,
    /// The namespace where it is to be.
    pub desired_namespace: String,
    /// Whether the controller can see into the namespace where it is.
    pub is_visible: bool,
    /// The ConfigMap; its content is that of
    /// [`CONFIG_KEY`](lb_svc_crds::names::CONFIG_KEY).
    pub config: Option<OwnedObject<String>>,
    /// The seal on the ConfigMap's content; `None` where nothing is signed.
    pub seal: Option<SealState>,
    /// The Deployment.
    pub deployment: Option<OwnedObject<DeploymentState>>,
    /// The PodDisruptionBudget, with metadata and spec as the API server has
    /// them.
    pub budget: Option<OwnedObject<Value>>,
    /// The gateway's pods, of whichever gateway of the name.
    pub pods: Vec<Pod>,
}

/// The seal on a gateway's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealState {
    /// The generation of the ConfigMap's content, if its seal is valid.
    pub generation: Option<u64>,
    /// The public keys that gateways are to trust.
    pub trusted: Arc<[PublicKey]>,
}

/// The Service's endpoints.
#[derive(Clone, Debug, Default)]
pub struct ObservedEndpoints {
    /// Its EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The pods of its namespace that are ready but for the readiness gate, and
    /// whether they have satisfied it.
    pub gated_pods: BTreeMap<PodId, bool>,
}

/// Nodes, and who has ports of theirs.
#[derive(Clone, Debug, Default)]
pub struct ObservedNodes {
    /// The claims on ports of every Service that has or had the Service's name.
    pub claims: Vec<Arc<PortClaim>>,
    /// The claims of other Services on the Service's ports. This and the rest is seen
    /// only for a Service that asks for node addresses.
    pub others: Vec<Arc<PortClaim>>,
    /// The names of IP objects that are no claims, of those the Service would make.
    pub strangers: BTreeSet<String>,
    /// All nodes, by name.
    pub nodes: Arc<BTreeMap<String, Node>>,
    /// The pods that publish one of the Service's ports on their node: port, node,
    /// pod.
    pub publishers: Vec<(Port, String, ObjectName)>,
    /// Whether all pods have been seen that publish ports.
    pub are_pods_seen: bool,
    /// What stands in for kube-proxy, if it is known and that is not seen.
    pub stands_in: Option<&'static str>,
    /// Of the nodes' addresses, those that are claimed for gateways.
    pub claimed: BTreeSet<IpAddr>,
}

/// What this process did and saw before. It may be lost: it only paces, and
/// keeps from reporting twice.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The election among the gateway's pods as last reported, if it was.
    pub election: Option<ElectionView>,
    /// The convergence of a gateway with endpoint targets.
    pub convergence: Option<ConvergenceState>,
    /// For how long nothing that concerns the gateway has changed.
    pub quiet: Duration,
    /// How long ago the ConfigMap was written.
    pub config_written: Option<Duration>,
    /// How long ago the Secret with the key was written.
    pub key_written: Option<Duration>,
    /// How long ago each pod was nudged, by uid.
    pub nudges: HashMap<String, Duration>,
    /// The last push to each pod, by uid.
    pub pushes: HashMap<String, Push>,
    /// For how long each pod has reported that its interface is missing, by uid.
    pub unattached: HashMap<String, Duration>,
    /// The fills of an address into the Service's spec.
    pub filled: Option<Filled>,
    /// How long ago a Warning of this Service was written.
    pub warned: Option<Duration>,
    /// For how long the Service has waited for what passes by itself.
    pub passing: Option<Duration>,
    /// Why the address is not filled into the Service's spec.
    pub fill_failure: Option<FailedWrite>,
    /// The status that was last written.
    pub published: Option<Published>,
}

/// A push of a configuration to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// The configuration's digest.
    pub digest: String,
    /// How the pod answered.
    pub answer: PushAnswer,
    /// How long ago.
    pub age: Duration,
}

/// How a pod answered a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushAnswer {
    /// It has taken the configuration.
    Taken,
    /// It refused it, or did not answer in time.
    Failed,
    /// It knows no pushes: it is of an earlier release.
    Unknown,
}

/// The fills of an address into a Service's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The address.
    pub address: IpAddr,
    /// How often it was filled.
    pub times: u32,
    /// How long ago it was last filled.
    pub age: Duration,
}

impl Observed {
    /// The identity that the gateway is to have; `None` without a Service to serve.
    pub fn gateway_id(&self) -> Option<GatewayId> {
        self.service.as_ref().map(|service| assignment::id_of(&service.id))
    }
}

impl ObservedGateway {
    /// Whether nothing has to be signed anew: the ConfigMap's content is signed, and
    /// no pod has a later generation in force.
    pub fn is_sealed(&self) -> bool {
        self.seal.as_ref().is_none_or(|seal| seal.generation.is_some() && seal.generation >= self.in_force())
    }

    /// The generation after every one that is known of.
    pub fn next_generation(&self) -> u64 {
        let written = self.seal.as_ref().and_then(|seal| seal.generation);
        written.max(self.in_force()).map_or(1, |known| known.saturating_add(1))
    }

    /// The latest generation that a pod reports.
    fn in_force(&self) -> Option<u64> {
        self.pods.iter().filter_map(|pod| pod.reported()?.generation).max()
    }

    /// The ConfigMap, if its content is the controller's own: signed, or of a gateway
    /// from before configurations were signed.
    pub fn own_config(&self) -> Option<&OwnedObject<String>> {
        let is_signed = self.seal.as_ref().is_none_or(|seal| seal.generation.is_some());
        let is_legacy =
            || self.deployment.as_ref().is_some_and(|it| !manifests::trusts_keys(&it.content.live));
        self.config.as_ref().filter(|_| is_signed || is_legacy())
    }

    /// The ConfigMap, if its content is the last that the controller wrote: its own,
    /// and not older than what a pod has in force.
    pub fn last_config(&self) -> Option<&OwnedObject<String>> {
        let is_last = self.seal.as_ref().is_none_or(|seal| seal.generation >= self.in_force());
        self.own_config().filter(|_| is_last)
    }

    /// The public keys that the gateway is to trust.
    pub fn trusted_keys(&self) -> &[PublicKey] {
        self.seal.as_ref().map_or(&[], |seal| &seal.trusted)
    }

    /// Whether the gateway is in another namespace than it is to be.
    pub fn is_misplaced(&self) -> bool {
        self.location.namespace != self.desired_namespace
    }

    /// The living pods that were made for the gateway of this identity.
    pub fn living_pods(&self, id: &GatewayId) -> Vec<&Pod> {
        let living = |pod: &&Pod| pod.is_of(id) && !pod.deleting && !pod.finished;
        self.pods.iter().filter(living).collect()
    }
}
