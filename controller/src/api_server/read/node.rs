//! Nodes.

use k8s_openapi::api::core::v1 as core;
use lb_svc_core::model::Node;

/// A node.
pub fn node(object: &core::Node) -> Node {
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let lost = taints.iter().any(|taint| taint.key == "node.kubernetes.io/out-of-service");
    Node { addresses: addresses.iter().filter_map(|address| address.address.parse().ok()).collect(), lost }
}
