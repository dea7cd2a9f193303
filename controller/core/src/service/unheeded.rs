//! What users of other load balancers set on a Service, and what becomes of it
//! here: the rest of what this table names is not done, and is said so.
//!
//! The table in docs/user/services.md has a line for each entry.

use lb_svc_crds::reason::Reason;

use crate::model::{Problem, Service};

/// An annotation, label or field of a Service that has no effect here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unheeded {
    /// The annotation's or label's name, a prefix of such names that ends in `/`
    /// or `-`, or the field's path.
    pub name: &'static str,
    /// What to do instead.
    pub advice: &'static str,
    /// Whether it limits the clients that may connect: the Service is not served
    /// until it says so in a way that is heeded.
    pub limits_clients: bool,
}

const fn says(name: &'static str, advice: &'static str) -> Unheeded {
    Unheeded { name, advice, limits_clients: false }
}

const fn limits(name: &'static str, advice: &'static str) -> Unheeded {
    Unheeded { name, advice, limits_clients: true }
}

const ADDRESS: &str = "set spec.loadBalancerIP";
const POOL: &str = "name a Subnet by the annotation <nad>.<namespace>.kubernetes.io/logical_switch";
const SHARED: &str = "each Service has an address of its own: put the ports into one Service";
const RANGES: &str = "set spec.loadBalancerSourceRanges";
const CLOUD: &str = "it is for another load balancer: remove it";

/// Annotations and labels. The first entry that a name matches counts.
pub const TABLE: &[Unheeded] = &[
    // Addresses, pools and sharing.
    says("metallb.io/loadBalancerIPs", ADDRESS),
    says("metallb.universe.tf/loadBalancerIPs", ADDRESS),
    says("metallb.io/address-pool", POOL),
    says("metallb.universe.tf/address-pool", POOL),
    says("metallb.io/allow-shared-ip", SHARED),
    says("metallb.universe.tf/allow-shared-ip", SHARED),
    says("kube-vip.io/loadbalancerIPs", ADDRESS),
    says("kube-vip.io/egress", "there is no egress through the address: remove it"),
    says("kube-vip.io/", CLOUD),
    says("io.cilium/lb-ipam-ips", ADDRESS),
    says("lbipam.cilium.io/ips", ADDRESS),
    says("io.cilium/lb-ipam-sharing-key", SHARED),
    says("lbipam.cilium.io/sharing-key", SHARED),
    says("lbipam.cilium.io/sharing-cross-namespace", SHARED),
    says("purelb.io/addresses", ADDRESS),
    says("purelb.io/service-group", POOL),
    says("purelb.io/allow-shared-ip", SHARED),
    says("loxilb.io/staticIP", ADDRESS),
    says("loxilb.io/poolSelect", POOL),
    says("loxilb.io/", CLOUD),
    says("ovn.kubernetes.io/vpc-nat-gw", "the gateway is a pod of this Service's own: remove it"),
    says("ovn.kubernetes.io/eip", ADDRESS),
    says("ovn.kubernetes.io/vpc", "gateways reach the Service by its ClusterIP: remove it"),
    says("ovn.kubernetes.io/service_external_ip_from_subnet", POOL),
    says(
        "ovn.kubernetes.io/service_health_check",
        "with direct access set the annotation lb-svc.kubeovn.io/health-check",
    ),
    // Who may connect.
    limits("service.beta.kubernetes.io/azure-allowed-ip-ranges", RANGES),
    limits("service.beta.kubernetes.io/azure-allowed-service-tags", RANGES),
    limits("service.beta.kubernetes.io/azure-deny-all-except-load-balancer-source-ranges", RANGES),
    limits("service.beta.kubernetes.io/aws-load-balancer-source-ranges", RANGES),
    limits("service.beta.kubernetes.io/aws-load-balancer-security-groups", RANGES),
    limits("service.beta.kubernetes.io/aws-load-balancer-extra-security-groups", RANGES),
    limits("service.beta.kubernetes.io/do-loadbalancer-allow-rules", RANGES),
    limits("service.beta.kubernetes.io/do-loadbalancer-deny-rules", RANGES),
    limits("service.beta.kubernetes.io/linode-loadbalancer-firewall-acl", RANGES),
    limits("service.beta.kubernetes.io/linode-loadbalancer-firewall-id", RANGES),
    limits("service.beta.kubernetes.io/vultr-loadbalancer-firewall-rules", RANGES),
    limits("service.beta.kubernetes.io/alibaba-cloud-loadbalancer-acl-id", RANGES),
    limits("service.beta.kubernetes.io/alibaba-cloud-loadbalancer-acl-status", RANGES),
    limits("service.beta.kubernetes.io/alibaba-cloud-loadbalancer-acl-type", RANGES),
    limits("kubernetes.io/elb.acl-id", RANGES),
    limits("kubernetes.io/elb.acl-status", RANGES),
    limits("kubernetes.io/elb.acl-type", RANGES),
    limits("kubernetes.civo.com/firewall-id", RANGES),
    // Clouds: health checks, protocols, timeouts, certificates.
    says("service.beta.kubernetes.io/", CLOUD),
    says("service.cloud.tencent.com/", CLOUD),
    says("service.kubernetes.io/qcloud-", CLOUD),
    says("service.kubernetes.io/ibm-load-balancer-", CLOUD),
    says("load-balancer.hetzner.cloud/", CLOUD),
    says("loadbalancer.openstack.org/", CLOUD),
    says("oci.oraclecloud.com/", CLOUD),
    says("oci-network-load-balancer.oraclecloud.com/", CLOUD),
    says("networking.gke.io/", CLOUD),
    says("cloud.google.com/", CLOUD),
    says("kubernetes.io/elb.", CLOUD),
    says("kubernetes.civo.com/", CLOUD),
    says("svccontroller.k3s.cattle.io/", CLOUD),
    // Kubernetes itself.
    says(
        "service.kubernetes.io/service-proxy-name",
        "kube-proxy leaves the ClusterIP to another: set the annotation lb-svc.kubeovn.io/direct-access to \"true\"",
    ),
    says(
        "service.kubernetes.io/topology-mode",
        "it holds for the gateway's own zone only: endpoints elsewhere may get nothing",
    ),
    says(
        "service.kubernetes.io/topology-aware-hints",
        "it holds for the gateway's own zone only: endpoints elsewhere may get nothing",
    ),
];

/// `spec.trafficDistribution`.
pub const TRAFFIC_DISTRIBUTION: Unheeded = says(
    "spec.trafficDistribution",
    "it holds for the gateway's own zone or node only: endpoints elsewhere may get nothing; with direct access all endpoints are used",
);

/// The entry that an annotation's or label's name matches, if any does.
pub fn find(name: &str) -> Option<&'static Unheeded> {
    let is_prefix = |entry: &Unheeded| entry.name.ends_with(['/', '-', '.']);
    TABLE.iter().find(|entry| match is_prefix(entry) {
        true => name.starts_with(entry.name),
        false => name == entry.name,
    })
}

/// The names on `service` that have no effect here, as warnings.
///
/// # Errors
/// One of them limits the clients that may connect.
pub fn check(service: &Service, warnings: &mut Vec<Problem>) -> Result<(), Problem> {
    let message = |name: &str, entry: &Unheeded| format!("{name} has no effect here: {}", entry.advice);
    for (name, entry) in service.unheeded.iter().filter_map(|name| Some((name, find(name)?))) {
        if entry.limits_clients {
            let message = format!(
                "{}; the Service is not served without the limit of clients that it asks for",
                message(name, entry)
            );
            return Err(Problem::new(Reason::ClientLimitNotHeeded, message));
        }
        warnings.push(Problem::new(Reason::NotHeeded, message(name, entry)));
    }
    if service.traffic_distribution {
        let message = message(TRAFFIC_DISTRIBUTION.name, &TRAFFIC_DISTRIBUTION);
        warnings.push(Problem::new(Reason::NotHeeded, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::service;

    #[test]
    fn b20_each_entry_is_said_and_limits_of_clients_are_not_passed_over() {
        for entry in TABLE {
            let name = match entry.name.ends_with(['/', '-', '.']) {
                true => format!("{}anything", entry.name),
                false => entry.name.to_owned(),
            };
            assert_eq!(find(&name), Some(entry), "an entry before it hides {name}");
            let service = Service { unheeded: vec![name.clone()], ..service() };
            let mut warnings = Vec::new();
            match check(&service, &mut warnings) {
                Ok(()) => {
                    assert!(!entry.limits_clients);
                    assert_eq!(warnings.len(), 1);
                    assert!(warnings[0].message.contains(&name), "{}", warnings[0].message);
                }
                Err(problem) => {
                    assert!(entry.limits_clients);
                    assert_eq!(problem.reason, "ClientLimitNotHeeded");
                }
            }
        }
    }

    #[test]
    fn b20_what_is_ours_or_means_nothing_is_no_entry() {
        for name in [
            "ovn.kubernetes.io/attachmentprovider",
            "kubectl.kubernetes.io/last-applied-configuration",
            "lb-svc.kubeovn.io/direct-access",
            "app.kubernetes.io/name",
            "prometheus.io/scrape",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
    }
}
