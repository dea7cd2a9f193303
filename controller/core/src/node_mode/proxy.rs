//! What stands in for kube-proxy, as far as its pods show it.

use std::collections::BTreeMap;

use lb_svc_crds::reason::Reason;

use crate::model::Problem;

/// The name of kube-proxy itself.
const KUBE_PROXY: &str = "kube-proxy";
/// Whose pods are read: label, value, name. Some of these may leave Services to
/// kube-proxy, whose own pods are seen then, but for K3s and RKE2.
const KNOWN: [(&str, &str, &str); 6] = [
    ("k8s-app", "kube-proxy", KUBE_PROXY),
    ("k8s-app", "cilium", "Cilium"),
    ("k8s-app", "kube-router", "kube-router"),
    ("k8s-app", "calico-node", "Calico"),
    ("component", "antrea-agent", "Antrea"),
    ("app", "ovnkube-node", "OVN-Kubernetes"),
];
/// Where they run: anyone may label pods elsewhere.
const NAMESPACES: [&str; 3] = ["kube-system", "calico-system", "ovn-kubernetes"];

/// Which of them a pod is, by its namespace and labels.
pub fn of_pod(namespace: &str, labels: &BTreeMap<String, String>) -> Option<&'static str> {
    let has = |(label, value, _): &&(&str, &str, &str)| labels.get(*label).is_some_and(|it| it == value);
    let known = KNOWN.iter().find(has).filter(|_| NAMESPACES.contains(&namespace));
    known.map(|(_, _, name)| *name)
}

/// Which one of those seen stands in for kube-proxy, if that is not seen itself.
pub fn stands_in(seen: impl Iterator<Item = &'static str> + Clone) -> Option<&'static str> {
    if seen.clone().any(|name| name == KUBE_PROXY) { None } else { seen.min() }
}

/// That it is not known whether this serves nodes' addresses.
pub fn untried(name: &str) -> Problem {
    let message = format!(
        "no pod of kube-proxy is seen, and {name} may stand in for it: whether that serves the nodes' own addresses on the nodes is untried, look whether they answer"
    );
    Problem::new(Reason::ProxyUntried, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_for_kube_proxy_is_named_where_that_is_not_seen() {
        let labels = |value: &str| [("k8s-app".to_owned(), value.to_owned())].into();
        assert_eq!(of_pod("kube-system", &labels("cilium")), Some("Cilium"));
        assert_eq!(of_pod("tenant", &labels("cilium")), None, "anyone's label");
        assert_eq!(of_pod("kube-system", &labels("web")), None);
        assert_eq!(stands_in(["Cilium", "Antrea"].into_iter()), Some("Antrea"));
        assert_eq!(stands_in(["Calico", KUBE_PROXY].into_iter()), None);
        assert_eq!(stands_in([].into_iter()), None, "as with K3s");
    }
}
