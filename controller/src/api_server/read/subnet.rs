//! Subnets.

use kube::ResourceExt;
use lb_svc_core::ipam::Rules;
use lb_svc_core::model::{self, SubnetStatus};
use lb_svc_crds::{Subnet, names};

use super::conditions;

/// A Subnet.
pub fn subnet(object: &Subnet) -> model::Subnet {
    let status = object.status.clone().unwrap_or_default();
    let (conditions, since) = conditions(&status.conditions, "");
    let (rules, unread) = Rules::parse(object.annotations());
    model::Subnet {
        uid: object.uid().unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        held: object.finalizers().iter().any(|finalizer| finalizer == names::SUBNET_FINALIZER),
        spec: object.spec.clone(),
        rules,
        unread,
        status: SubnetStatus {
            using: status.v4_using_ips,
            available: status.v4_available_ips,
            using_range: status.v4_using_ip_range,
            available_range: status.v4_available_ip_range,
            conditions,
        },
        since,
    }
}
