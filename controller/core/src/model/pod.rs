//! Pods of gateways.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use lb_svc_crds::gateway::GatewayStatus;
use sha2::{Digest, Sha256};

use super::GatewayId;

/// A gateway pod as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The identity of the gateway it was made for, as its label has it.
    pub gateway_id: Option<GatewayId>,
    /// Whether a ReplicaSet of the gateway's Deployment made it. Only such a pod
    /// is asked for its status, and only its hardware address is a gateway's:
    /// labels and annotations are anyone's to write.
    pub of_deployment: bool,
    /// Whether nothing is its controller: who deleted that left it alone.
    pub alone: bool,
    /// Whether it has the labels of earlier releases, see
    /// [`migration`](crate::gateway::migration).
    pub legacy: bool,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether its containers have ended for good.
    pub finished: bool,
    /// Its node, once scheduled.
    pub node: Option<String>,
    /// Whether its node is gone, or said to be off (taint out-of-service).
    pub node_lost: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// Since when it has not been ready, while it is not.
    pub unready_since: Option<Timestamp>,
    /// Whether it has the election's key mounted, and so takes part in one.
    pub member: bool,
    /// The CPU limit of one of its containers, as the API server has it.
    pub cpu_limit: Option<String>,
    /// Its pod IP.
    pub address: Option<IpAddr>,
    /// The attached interface's hardware address, as Multus reports it.
    pub mac: Option<String>,
    /// Its annotations of the product and of Kube-OVN.
    pub annotations: BTreeMap<String, String>,
    /// What keeps it from running: reason and message.
    pub waiting: Option<(String, String)>,
    /// Its status, as it reports it at `/status`.
    pub report: StatusReport,
}

impl Pod {
    /// The status that it reported.
    pub fn reported(&self) -> Option<&GatewayStatus> {
        match &self.report {
            StatusReport::Reported(status) => Some(status),
            StatusReport::NotQueried | StatusReport::Missed | StatusReport::NoResponse => None,
        }
    }

    /// Whether it was made for this gateway.
    pub fn is_of(&self, gateway: &GatewayId) -> bool {
        self.gateway_id.as_ref() == Some(gateway)
    }

    /// Whether anything in it could still answer on the LAN.
    pub fn could_answer(&self) -> bool {
        !self.finished && !self.node_lost
    }
}

/// A hash of a pod's uid, 16 bytes: there may be one for each endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId([u8; 16]);

impl PodId {
    /// The pod with this uid.
    pub fn of(uid: &str) -> Self {
        Self(digest(uid))
    }
}

/// What stands for a longer text.
pub(super) fn digest(text: &str) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}

/// What came of a query of a gateway pod's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum StatusReport {
    /// It was not queried: it has no address yet.
    #[default]
    NotQueried,
    /// It did not respond in time, though it has a moment ago. That says nothing of
    /// what it does.
    Missed,
    /// It has never responded, or not for long: it is starting or gone, or a
    /// NetworkPolicy stands between.
    NoResponse,
    /// It reported its status.
    Reported(Box<GatewayStatus>),
}
