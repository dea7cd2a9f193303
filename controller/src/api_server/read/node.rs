//! Nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_core::model::Node;
use lb_svc_crds::names;

/// The most addresses of a node of either type that Services may be served at, and the
/// most pools that it is in.
const KEPT: usize = 16;
/// The most addresses of a node that no Service gets: a node that names all of a LAN
/// keeps the rest of it free.
const OCCUPIED_MAX: usize = 256;
/// The longest list of pools that is read.
const POOLS_MAX: usize = 1024;

/// A node. Its kubelet may write its status: nothing is kept beyond a bound.
pub fn node(object: &core::Node) -> Node {
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of_kind = |kind: &str| -> Vec<IpAddr> {
        let addresses = addresses.iter().filter(|address| address.type_ == kind);
        addresses.filter_map(|address| address.address.parse().ok()).take(KEPT).collect()
    };
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let k3s = object.labels().get(names::K3S_ENABLE_LABEL).map(|value| value == "true");
    Node {
        addresses: addresses
            .iter()
            .filter_map(|address| address.address.parse().ok())
            .take(OCCUPIED_MAX)
            .collect(),
        lost: taints.iter().any(|taint| taint.key == "node.kubernetes.io/out-of-service"),
        ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        excluded: object.labels().contains_key(names::NODE_EXCLUDED_LABEL)
            || object.metadata.deletion_timestamp.is_some(),
        external: of_kind("ExternalIP"),
        internal: of_kind("InternalIP"),
        pools: pools(object, k3s),
        k3s,
    }
}

/// The pools that a node is in.
fn pools(object: &core::Node, k3s: Option<bool>) -> BTreeSet<String> {
    let label = object.labels().get(names::NODE_POOL);
    let list = object.annotations().get(names::NODE_POOL).filter(|list| list.len() <= POOLS_MAX);
    let of_k3s = object.labels().get(names::K3S_POOL_LABEL).filter(|_| k3s == Some(true));
    let listed = list.into_iter().flat_map(|list| list.split(',').map(str::trim));
    let named = label.into_iter().chain(of_k3s).map(String::as_str).chain(listed);
    named.filter(|pool| names::is_dns_label(pool)).take(KEPT).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> Node {
        node(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn addresses_are_those_of_the_node_object_by_type() {
        let address = |kind: &str, text: &str| json!({ "type": kind, "address": text });
        let read = read(json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
            address("Hostname", "n1"), address("InternalIP", "10.0.0.1"), address("InternalIP", "fd00::1"),
            address("ExternalIP", "192.0.2.1"), address("ExternalIP", "n1.example"),
            address("ExternalDNS", "192.0.2.9"),
        ] } }));
        let text = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&read.internal), ["10.0.0.1", "fd00::1"]);
        assert_eq!(text(&read.external), ["192.0.2.1"]);
        assert_eq!(read.addresses.len(), 3, "whatever has one, no Service gets it");
    }

    #[test]
    fn w2_node_that_names_a_whole_lan_occupies_little_of_it() {
        let address = |n: u32| json!({ "type": "InternalIP", "address": std::net::Ipv4Addr::from(n) });
        let lan: Value = (0xac12_0000..0xac13_0000).map(address).collect();
        let read = read(json!({ "metadata": {}, "status": { "addresses": lan } }));
        assert_eq!((read.addresses.len(), read.internal.len()), (OCCUPIED_MAX, KEPT));
    }

    #[test]
    fn node_is_ready_only_where_its_condition_says_so() {
        let of = |status: Value| {
            let condition = json!({ "type": "Ready", "status": status, "reason": "", "message": "" });
            read(json!({ "metadata": {}, "status": { "conditions": [condition] } })).ready
        };
        assert!(of(json!("True")));
        assert!(!of(json!("False")) && !of(json!("Unknown")));
        assert!(!read(json!({ "metadata": {} })).ready);
        let labels = json!({ names::NODE_EXCLUDED_LABEL: "" });
        assert!(read(json!({ "metadata": { "labels": labels } })).excluded);
        assert!(read(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } })).excluded);
        assert!(
            !read(json!({ "metadata": {}, "spec": { "unschedulable": true } })).excluded,
            "that is of pods"
        );
    }

    #[test]
    fn pools_are_those_of_label_and_annotation_and_of_k3s_where_it_serves() {
        let of = |labels: Value, annotation: &str| {
            let annotations = json!({ names::NODE_POOL: annotation });
            let node = read(json!({ "metadata": { "labels": labels, "annotations": annotations } }));
            (node.pools.into_iter().collect::<Vec<_>>().join(" "), node.k3s)
        };
        let own = json!({ names::NODE_POOL: "edge", names::K3S_POOL_LABEL: "old" });
        assert_eq!(of(own, "web, dmz,,Odd_One"), ("dmz edge web".to_owned(), None));
        let k3s = |on: &str| json!({ names::K3S_ENABLE_LABEL: on, names::K3S_POOL_LABEL: "old" });
        assert_eq!(of(k3s("true"), ""), ("old".to_owned(), Some(true)));
        assert_eq!(of(k3s("false"), ""), (String::new(), Some(false)));
        let many = (0..10_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(of(json!({}), &many).0, "", "it is read as a whole or not at all");
    }
}
