//! What users of other load balancers set on a Service, and what becomes of it
//! here: the rest of what this table names is not done, and is said so.
//!
//! The table in docs/user/services.md has a line for each entry.

use lb_svc_crds::names;
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

impl Unheeded {
    fn message(&self, name: &str) -> String {
        format!("{name} has no effect here: {}", self.advice)
    }

    /// Checks that a Service with `name`, which this entry is for, may be served.
    ///
    /// # Errors
    /// It limits the clients that may connect.
    pub fn check_limit(&self, name: &str) -> Result<(), Problem> {
        if !self.limits_clients {
            return Ok(());
        }
        let message = format!(
            "{}; the Service is not served without the limit of clients that it asks for",
            self.message(name)
        );
        Err(Problem::new(Reason::ClientLimitNotHeeded, message))
    }
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
const PROXY: &str = "for the PROXY protocol set the annotation lb-svc.kubeovn.io/proxy-protocol to \"v2\"";
const ATTACHMENT: &str = "name the attachment by the annotation ovn.kubernetes.io/attachmentprovider";
const EGRESS: &str = "there is no egress through the address: remove it";
const CLUSTER_IP: &str =
    "it holds for the ClusterIP, where its load balancer serves that, not for the address";
const BYPASSED: &str = "kube-proxy leaves the ClusterIP to another: set the annotation lb-svc.kubeovn.io/direct-access to \"true\"";
const TOPOLOGY: &str = "it holds for the gateway's own zone or node only, and endpoints elsewhere may get nothing; with direct access all are used";

/// Annotations, labels and fields. The first entry that a name matches counts.
pub const TABLE: &[Unheeded] = &[
    // Addresses, pools and sharing.
    says("metallb.io/address-pool", POOL),
    says("metallb.universe.tf/address-pool", POOL),
    says("metallb.io/allow-shared-ip", SHARED),
    says("metallb.universe.tf/allow-shared-ip", SHARED),
    says("metallb.io/", CLOUD),
    says("metallb.universe.tf/", CLOUD),
    says("kube-vip.io/requestedIP", ADDRESS),
    says("kube-vip.io/hwaddr", "Multus gives the gateway's interface its hardware address: remove it"),
    says("kube-vip.io/serviceInterface", ATTACHMENT),
    says("kube-vip.io/egress", EGRESS),
    says("kube-vip.io/egress-", EGRESS),
    says("kube-vip.io/", CLOUD),
    says("io.cilium/lb-ipam-ips", ADDRESS),
    says("lbipam.cilium.io/ips", ADDRESS),
    says("io.cilium/lb-ipam-sharing-key", SHARED),
    says("lbipam.cilium.io/sharing-key", SHARED),
    says("lbipam.cilium.io/sharing-cross-namespace", SHARED),
    // With "deny" the source ranges are those who may not connect.
    limits(
        "service.cilium.io/src-ranges-policy",
        "remove it, and list who may connect in spec.loadBalancerSourceRanges",
    ),
    limits(
        "io.cilium/src-ranges-policy",
        "remove it, and list who may connect in spec.loadBalancerSourceRanges",
    ),
    says("io.cilium/lb-ipam-", CLOUD),
    says("io.cilium/", CLUSTER_IP),
    says("service.cilium.io/", CLUSTER_IP),
    says("lbipam.cilium.io/", CLOUD),
    says("purelb.io/addresses", ADDRESS),
    says("purelb.io/service-group", POOL),
    says("purelb.io/allow-shared-ip", SHARED),
    says("purelb.io/", CLOUD),
    says("eip.openelb.kubesphere.io/", POOL),
    says("protocol.openelb.kubesphere.io/", CLOUD),
    says("openelb.kubesphere.io/", CLOUD),
    says("eip.porter.kubesphere.io/", POOL),
    says("protocol.porter.kubesphere.io/", CLOUD),
    says("lb.kubesphere.io/", CLOUD),
    says("projectcalico.org/loadBalancerIPs", ADDRESS),
    says("projectcalico.org/ipv4pools", POOL),
    says("service.antrea.io/external-ip-pool", POOL),
    says("service.antrea.io/allow-shared-load-balancer-ip", SHARED),
    says("ako.vmware.com/load-balancer-ip", ADDRESS),
    says("ako.vmware.com/enable-shared-vip", SHARED),
    says("ako.vmware.com/", CLOUD),
    says("cis.f5.com/ip", ADDRESS),
    says("cis.f5.com/", CLOUD),
    says("cloudprovider.harvesterhci.io/primary-service", SHARED),
    says("cloudprovider.harvesterhci.io/", CLOUD),
    says("metal.equinix.com/", CLOUD),
    says("loxilb.io/staticIP", ADDRESS),
    says("loxilb.io/poolSelect", POOL),
    says("loxilb.io/", CLOUD),
    says("ovn.kubernetes.io/vpc-nat-gw", "the gateway is a pod of this Service's own: remove it"),
    says("ovn.kubernetes.io/eip", ADDRESS),
    says("ovn.kubernetes.io/vip", ADDRESS),
    says(
        "ovn.kubernetes.io/switch_lb_vip",
        "kube-proxy serves the ClusterIP, and the gateway the address: remove it",
    ),
    says("ovn.kubernetes.io/ip_address", ADDRESS),
    says("ovn.kubernetes.io/logical_switch", POOL),
    says("ovn.kubernetes.io/bgp", "addresses are announced by ARP only: remove it"),
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
    limits("service.beta.kubernetes.io/aws-load-balancer-security-group-prefix-lists", RANGES),
    limits("service.beta.kubernetes.io/alicloud-loadbalancer-acl-id", RANGES),
    limits("service.beta.kubernetes.io/alicloud-loadbalancer-acl-status", RANGES),
    limits("service.beta.kubernetes.io/alicloud-loadbalancer-acl-type", RANGES),
    limits("service.beta.kubernetes.io/ovh-loadbalancer-allowed-sources", RANGES),
    limits("service.cloud.tencent.com/security-groups", RANGES),
    limits("service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-security-group", RANGES),
    limits("oci.oraclecloud.com/oci-network-security-groups", RANGES),
    limits("oci-network-load-balancer.oraclecloud.com/oci-network-security-groups", RANGES),
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
    says("service.beta.kubernetes.io/aws-load-balancer-private-ipv4-addresses", ADDRESS),
    says("service.beta.kubernetes.io/aws-load-balancer-eip-allocations", ADDRESS),
    says("service.beta.kubernetes.io/aws-load-balancer-subnets", POOL),
    says("service.beta.kubernetes.io/aws-load-balancer-proxy-protocol", PROXY),
    says("service.beta.kubernetes.io/aws-load-balancer-", CLOUD),
    says("service.beta.kubernetes.io/azure-load-balancer-ipv4", ADDRESS),
    says("service.beta.kubernetes.io/azure-pip-name", ADDRESS),
    says("service.beta.kubernetes.io/azure-load-balancer-internal-subnet", POOL),
    says("service.beta.kubernetes.io/azure-", CLOUD),
    says("service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol", PROXY),
    says("service.beta.kubernetes.io/do-loadbalancer-", CLOUD),
    says("service.beta.kubernetes.io/scw-loadbalancer-ip-ids", ADDRESS),
    says("service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2", PROXY),
    says("service.beta.kubernetes.io/scw-loadbalancer-", CLOUD),
    says("service.beta.kubernetes.io/openstack-internal-load-balancer", CLOUD),
    says("service.beta.kubernetes.io/linode-loadbalancer-default-proxy-protocol", PROXY),
    says("service.beta.kubernetes.io/vultr-loadbalancer-proxy-protocol", PROXY),
    says("service.beta.kubernetes.io/", CLOUD),
    says("service.cloud.tencent.com/", CLOUD),
    says("service.kubernetes.io/qcloud-", CLOUD),
    says("service.kubernetes.io/local-svc-only-bind-node-with-pod", CLOUD),
    says("service.kubernetes.io/ibm-load-balancer-", CLOUD),
    says("load-balancer.hetzner.cloud/uses-proxyprotocol", PROXY),
    says("load-balancer.hetzner.cloud/", CLOUD),
    says("loadbalancer.openstack.org/port-id", ADDRESS),
    says("loadbalancer.openstack.org/load-balancer-id", SHARED),
    says("loadbalancer.openstack.org/subnet-id", POOL),
    says("loadbalancer.openstack.org/proxy-protocol", PROXY),
    says("loadbalancer.openstack.org/", CLOUD),
    says("loadbalancer.ovhcloud.com/", CLOUD),
    says("oci.oraclecloud.com/", CLOUD),
    says("oci-network-load-balancer.oraclecloud.com/", CLOUD),
    says("networking.gke.io/load-balancer-ip-addresses", ADDRESS),
    says("networking.gke.io/", CLOUD),
    says("cloud.google.com/", CLOUD),
    says("kubernetes.io/elb.", CLOUD),
    says("kubernetes.civo.com/", CLOUD),
    says("yandex.cloud/", CLOUD),
    says(
        "svccontroller.k3s.cattle.io/lbpool",
        "its nodes are those of K3s's load balancer: name the gateway's by lb-svc.kubeovn.io/node-selector",
    ),
    says("svccontroller.k3s.cattle.io/", CLOUD),
    // Kubernetes itself, and what stands in for kube-proxy.
    says("service.kubernetes.io/service-proxy-name", BYPASSED),
    says("service.kubernetes.io/headless", BYPASSED),
    says("service.kubernetes.io/topology-mode", TOPOLOGY),
    says("service.kubernetes.io/topology-aware-hints", TOPOLOGY),
    says("spec.trafficDistribution", TOPOLOGY),
    says(
        "spec.externalIPs",
        "kube-proxy serves them at the nodes, past the gateway and its limits: remove them, or name one as spec.loadBalancerIP",
    ),
    says("service.alpha.kubernetes.io/", "Kubernetes heeds it no more: use the field that took its place"),
    says("kube-router.io/", CLUSTER_IP),
];

/// The entry that an annotation's or label's name matches, if any does.
pub fn find(name: &str) -> Option<&'static Unheeded> {
    if names::OTHER_ADDRESSES_ANNOTATIONS.contains(&name) {
        return None;
    }
    let is_prefix = |entry: &Unheeded| entry.name.ends_with(['/', '-', '.']);
    TABLE.iter().find(|entry| match is_prefix(entry) {
        true => name.starts_with(entry.name),
        false => name == entry.name,
    })
}

/// Those of `names` that have no effect here, at most `most`: first the ones that
/// limit the clients that may connect, which the others must not crowd out.
pub fn select<'a>(names: impl Iterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let found = names.filter_map(|name| Some((name, find(name)?)));
    let (limits, rest): (Vec<_>, Vec<_>) = found.partition(|(_, entry)| entry.limits_clients);
    limits.into_iter().chain(rest).map(|(name, _)| name).take(most).collect()
}

/// The names on `service` that have no effect here, as warnings.
///
/// # Errors
/// One of them limits the clients that may connect.
pub fn check(service: &Service, warnings: &mut Vec<Problem>) -> Result<(), Problem> {
    for (name, entry) in service.unheeded.iter().filter_map(|name| Some((name, find(name)?))) {
        entry.check_limit(name)?;
        warnings.push(Problem::new(Reason::NotHeeded, entry.message(name)));
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
    fn b20_limit_is_found_among_many_other_names() {
        let others: Vec<String> = (0..100).map(|n| format!("service.beta.kubernetes.io/a{n:03}")).collect();
        let limit = "service.beta.kubernetes.io/ovh-loadbalancer-allowed-sources";
        let names = others.iter().map(String::as_str).chain([limit, "app.kubernetes.io/name"]);
        let selected = select(names, 3);
        assert_eq!(selected, [limit, &others[0], &others[1]]);
    }

    #[test]
    fn b20_what_is_ours_or_means_nothing_is_no_entry() {
        for name in [
            "ovn.kubernetes.io/attachmentprovider",
            "kubectl.kubernetes.io/last-applied-configuration",
            "lb-svc.kubeovn.io/direct-access",
            "metallb.io/loadBalancerIPs",
            "app.kubernetes.io/name",
            "prometheus.io/scrape",
            "external-dns.alpha.kubernetes.io/hostname",
            "kubernetes.io/elb",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
    }
}
