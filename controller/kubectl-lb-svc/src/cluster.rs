//! The objects that screens are made from, wherever they are from.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Resource, ResourceExt};
use lb_svc_controller::api_server::read::NetworkAttachmentDefinition;
use lb_svc_crds::{IP, Subnet};

/// Objects of one kind.
#[derive(Clone, Debug, Default)]
pub enum Seen<K> {
    /// All that concern us, as far as they were asked for.
    All(Vec<K>),
    /// None was asked for, or none could be seen.
    #[default]
    Not,
}

impl<K> Seen<K> {
    /// Those that are seen.
    pub fn iter(&self) -> std::slice::Iter<'_, K> {
        match self {
            Self::All(objects) => objects.iter(),
            Self::Not => [].iter(),
        }
    }

    /// Whether one that is not among them does not exist.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::All(_))
    }

    /// One more is seen.
    pub fn push(&mut self, object: K) {
        match self {
            Self::All(objects) => objects.push(object),
            Self::Not => *self = Self::All(vec![object]),
        }
    }
}

impl<K: Resource> Seen<K> {
    /// The one of this name, in this namespace if it is of a kind that has one.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&K> {
        let is_it = |object: &&K| {
            object.name_any() == name && object.namespace().is_none_or(|found| found == namespace)
        };
        self.iter().find(is_it)
    }
}

/// What is seen of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Services.
    pub services: Seen<Service>,
    /// Subnets.
    pub subnets: Seen<Subnet>,
    /// Claims.
    pub claims: Seen<IP>,
    /// NetworkAttachmentDefinitions.
    pub attachments: Seen<NetworkAttachmentDefinition>,
    /// Nodes.
    pub nodes: Seen<Node>,
    /// Pods of gateways.
    pub pods: Seen<Pod>,
    /// ConfigMaps of gateways, and that of the controller.
    pub configs: Seen<ConfigMap>,
    /// Deployments of gateways.
    pub deployments: Seen<Deployment>,
    /// Deployments of the controller.
    pub controllers: Seen<Deployment>,
    /// PodDisruptionBudgets.
    pub budgets: Seen<PodDisruptionBudget>,
    /// EndpointSlices.
    pub slices: Seen<EndpointSlice>,
    /// Events of the reason `ActiveChanged` about Services.
    pub events: Seen<Event>,
    /// Leases: that of the controllers.
    pub leases: Seen<Lease>,
    /// What could not be seen, for people.
    pub unseen: Vec<String>,
    /// When it was seen.
    pub now: Timestamp,
}
