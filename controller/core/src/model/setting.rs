//! The settings of gateways' pods.

use lb_svc_crds::names;
use serde::{Deserialize, Serialize};

/// Something about gateways' pods that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    /// The container's image.
    Image,
    /// What the image is pulled with.
    ImagePullSecrets,
    /// The container's resources.
    Resources,
    /// Which nodes it may run on.
    NodeSelector,
    /// Which taints it bears, beside those of every gateway.
    Tolerations,
    /// Which nodes it had better run on, and near what.
    Affinity,
    /// What it may preempt, and be preempted by.
    PriorityClassName,
    /// How many of them a gateway has.
    Replicas,
    /// For how long one that ends, of several, goes on leading its connections.
    DrainSeconds,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Image,
        Self::ImagePullSecrets,
        Self::Resources,
        Self::NodeSelector,
        Self::Tolerations,
        Self::Affinity,
        Self::PriorityClassName,
        Self::Replicas,
        Self::DrainSeconds,
    ];

    /// What the author of a Service may set for a gateway beside it, if the
    /// configuration does not say: nothing that runs code of theirs with a
    /// gateway's rights, has other pods evicted, or reaches nodes whose taints
    /// keep others off.
    pub const FOR_SERVICES: [Self; 5] =
        [Self::Resources, Self::NodeSelector, Self::Affinity, Self::Replicas, Self::DrainSeconds];

    /// Its field in the spec of a pod, a container or a Deployment; also its
    /// name in the configuration.
    pub fn field(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ImagePullSecrets => "imagePullSecrets",
            Self::Resources => "resources",
            Self::NodeSelector => "nodeSelector",
            Self::Tolerations => "tolerations",
            Self::Affinity => "affinity",
            Self::PriorityClassName => "priorityClassName",
            Self::Replicas => "replicas",
            Self::DrainSeconds => "drainSeconds",
        }
    }

    /// The annotation by which a Service sets it.
    pub fn annotation(self) -> &'static str {
        match self {
            Self::Image => names::IMAGE_ANNOTATION,
            Self::ImagePullSecrets => names::IMAGE_PULL_SECRETS_ANNOTATION,
            Self::Resources => names::RESOURCES_ANNOTATION,
            Self::NodeSelector => names::NODE_SELECTOR_ANNOTATION,
            Self::Tolerations => names::TOLERATIONS_ANNOTATION,
            Self::Affinity => names::AFFINITY_ANNOTATION,
            Self::PriorityClassName => names::PRIORITY_CLASS_ANNOTATION,
            Self::Replicas => names::REPLICAS_ANNOTATION,
            Self::DrainSeconds => names::DRAIN_SECONDS_ANNOTATION,
        }
    }
}
