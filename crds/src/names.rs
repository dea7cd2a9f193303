//! Every name that users, controller and gateways share.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::gateway::Port;

/// Prefix of this product's own annotations, labels and finalizers.
pub const DOMAIN: &str = "lb-svc.kubeovn.io";

/// Whether the name of an annotation or label is of the product's domain.
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix(DOMAIN).is_some_and(|rest| rest.starts_with('/'))
}

/// The `spec.loadBalancerClass` that is ours, beside none at all.
pub const LOAD_BALANCER_CLASS: &str = "lb-svc.kubeovn.io/gateway";

/// The `spec.loadBalancerClass` of Services that are served at the nodes' own
/// addresses, without a gateway.
pub const NODE_CLASS: &str = "lb-svc.kubeovn.io/node";
/// On a Service, `node`: the same, where it has no `spec.loadBalancerClass`.
pub const MODE_ANNOTATION: &str = "lb-svc.kubeovn.io/mode";
/// The one value of [`MODE_ANNOTATION`].
pub const MODE_NODE: &str = "node";
/// On a node: the pools that it is in, as a label (one) or as an annotation (a
/// comma list; a label's value takes no comma). On a Service, an annotation: the
/// pool whose nodes serve it.
pub const NODE_POOL: &str = "lb-svc.kubeovn.io/node-pool";
/// The pool of all nodes, which a Service has that names none.
pub const NODE_POOL_ALL: &str = "all";
/// On a Service: the nodes' addresses that serve it, as an address or a network.
pub const NODE_ADDRESS_ANNOTATION: &str = "lb-svc.kubeovn.io/node-address";
/// On a node, as K3s has it, `"true"`: with this on any node, only those that have
/// it serve.
pub const K3S_ENABLE_LABEL: &str = "svccontroller.k3s.cattle.io/enablelb";
/// On a node that has [`K3S_ENABLE_LABEL`]: its pool. On a Service, a label: the
/// pool whose nodes serve it.
pub const K3S_POOL_LABEL: &str = "svccontroller.k3s.cattle.io/lbpool";
/// On a node: no load balancer may lead to it (Kubernetes).
pub const NODE_EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// On a Service: the attachment (`<nad>.<namespace>`) its address lives on.
/// Its presence is the opt-in.
pub const PROVIDER_ANNOTATION: &str = "ovn.kubernetes.io/attachmentprovider";

/// On a Service, `"true"`: its address is kept when it is deleted, for the next
/// Service of that namespace and name.
pub const KEEP_ADDRESS_ANNOTATION: &str = "lb-svc.kubeovn.io/keep-address";

/// On a Subnet: a Service that names no Subnet gets an address of the one with the lowest
/// number that has a free one; 0, or no number, comes last.
pub const PRIORITY_ANNOTATION: &str = "lb-svc.kubeovn.io/priority";
/// On a Subnet, `"false"`: only a Service that names it, or an address in it, gets one.
pub const AUTO_ASSIGN_ANNOTATION: &str = "lb-svc.kubeovn.io/auto-assign";
/// On a Service: its address, as `spec.loadBalancerIP` names it; before that.
pub const ADDRESSES_ANNOTATION: &str = "lb-svc.kubeovn.io/addresses";
/// What MetalLB and kube-vip call [`ADDRESSES_ANNOTATION`].
pub const OTHER_ADDRESSES_ANNOTATIONS: [&str; 3] =
    ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs", "kube-vip.io/loadbalancerIPs"];
/// On a Service, `"false"`: its address is not filled into its
/// `spec.loadBalancerIP`; its status alone has it.
pub const FILL_ADDRESS_ANNOTATION: &str = "lb-svc.kubeovn.io/fill-address";

/// On a Service: what programs its gateway's NAT, `iptables` or `nftables`.
pub const NAT_BACKEND_ANNOTATION: &str = "lb-svc.kubeovn.io/nat-backend";

/// On a Service, `v2`: its gateway takes connections to the TCP ports itself, and sends
/// the backend a header of the PROXY protocol that names the client.
pub const PROXY_PROTOCOL_ANNOTATION: &str = "lb-svc.kubeovn.io/proxy-protocol";

/// On a Service, `"true"` or `"onlyLocal"`: clients inside the cluster go to its
/// gateway too, instead of being served by their node (`ipMode: Proxy`).
pub const PASS_THROUGH_ANNOTATION: &str = "lb-svc.kubeovn.io/pass-through";
/// The same, as CCE has it.
pub const CCE_PASS_THROUGH_ANNOTATION: &str = "kubernetes.io/elb.pass-through";

/// On a Service, `"true"`: its gateway leads connections straight to its
/// endpoints, past the ClusterIP; `"false"`: never, whatever else it asks.
pub const DIRECT_ACCESS_ANNOTATION: &str = "lb-svc.kubeovn.io/direct-access";
/// The same, as TKE has it.
pub const TKE_DIRECT_ACCESS_ANNOTATION: &str = "service.cloud.tencent.com/direct-access";

/// On a Service served directly, `tcp` or `http`: its gateway asks the
/// endpoints whether they are well.
pub const HEALTH_CHECK_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check";
/// On a Service: what is asked for by HTTP.
pub const HEALTH_CHECK_PATH_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-path";
/// On a Service: the one TCP port whose check counts for an endpoint on all
/// ports, by number or name.
pub const HEALTH_CHECK_PORT_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-port";
/// On a Service: the time between two questions, such as `5s`.
pub const HEALTH_CHECK_INTERVAL_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-interval";
/// On a Service: for how long an answer is waited for, such as `500ms`.
pub const HEALTH_CHECK_TIMEOUT_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-timeout";
/// On a Service: so many good answers in a row make an endpoint well.
pub const HEALTH_CHECK_RISE_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-rise";
/// On a Service: so many failures in a row make it unwell.
pub const HEALTH_CHECK_FALL_ANNOTATION: &str = "lb-svc.kubeovn.io/health-check-fall";

/// The type of the condition by which a pod that lists it among its
/// `readinessGates` waits for the gateways to take it up.
pub const READINESS_GATE: &str = "lb-svc.kubeovn.io/ready";

/// On a Service, a setting of its gateway's pod: the container's
/// [resources](https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/).
pub const RESOURCES_ANNOTATION: &str = "lb-svc.kubeovn.io/resources";
/// On a Service, a setting of its gateway's pod: `nodeSelector`.
pub const NODE_SELECTOR_ANNOTATION: &str = "lb-svc.kubeovn.io/node-selector";
/// On a Service, a setting of its gateway's pod: `tolerations`.
pub const TOLERATIONS_ANNOTATION: &str = "lb-svc.kubeovn.io/tolerations";
/// On a Service, a setting of its gateway's pod: `affinity`.
pub const AFFINITY_ANNOTATION: &str = "lb-svc.kubeovn.io/affinity";
/// On a Service, a setting of its gateway's pod: `priorityClassName`.
pub const PRIORITY_CLASS_ANNOTATION: &str = "lb-svc.kubeovn.io/priority-class-name";
/// On a Service, a setting of its gateway's pod: the container's `image`.
pub const IMAGE_ANNOTATION: &str = "lb-svc.kubeovn.io/image";
/// On a Service, a setting of its gateway's pod: `imagePullSecrets`.
pub const IMAGE_PULL_SECRETS_ANNOTATION: &str = "lb-svc.kubeovn.io/image-pull-secrets";
/// On a Service: how many pods its gateway has, 1 to 8.
pub const REPLICAS_ANNOTATION: &str = "lb-svc.kubeovn.io/replicas";
/// On a Service: for how many seconds at most a pod of its gateway that ends goes on
/// leading the connections that it has.
pub const DRAIN_SECONDS_ANNOTATION: &str = "lb-svc.kubeovn.io/drain-seconds";

/// On a gateway's Deployment: what its pod template was made from, in short.
/// Two digests, with a dot between them: of what is the same for all gateways,
/// and of what is this one's own.
pub const TEMPLATE_ANNOTATION: &str = "lb-svc.kubeovn.io/template";
/// On a gateway's Deployment whose pods were refused: when they were last asked
/// for again, in RFC 3339.
pub const ASKED_ANNOTATION: &str = "lb-svc.kubeovn.io/asked-again";

/// On gateway pods: digest of the NetworkAttachmentDefinition that their
/// interface was made from.
pub const ATTACHMENT_ANNOTATION: &str = "lb-svc.kubeovn.io/attachment";

/// On ConfigMap, Deployment and gateway pods: the uid of the Service served.
pub const SERVICE_UID_LABEL: &str = "lb-svc.kubeovn.io/service-uid";

/// On ConfigMap, Deployment and gateway pods: the Service served,
/// `<namespace>/<name>`; labels cannot hold long names.
pub const SERVICE_ANNOTATION: &str = "lb-svc.kubeovn.io/service";

/// On gateway pods: digest of the ConfigMap and the attempt's number. Changing
/// it makes the kubelet refresh the pod's mounted ConfigMap at once.
pub const CONFIG_ANNOTATION: &str = "lb-svc.kubeovn.io/config";

/// On a claim: the namespace of the gateway that may answer for its address,
/// where that is not the Service's.
pub const GATEWAY_NAMESPACE_LABEL: &str = "lb-svc.kubeovn.io/gateway-namespace";

/// On a Subnet while claims exist, so that it outlives them.
pub const SUBNET_FINALIZER: &str = "lb-svc.kubeovn.io/claims";

/// On gateway pods, each behind `<nad>.<namespace>.kubernetes.io/`: what they
/// have on the attached network, as Kube-OVN says it.
pub const POD_ANNOTATIONS: [&str; 7] =
    ["allocated", "cidr", "gateway", "ip_address", "logical_switch", "mac_address", "pod_nic_type"];

/// Label on every object the controller makes, and what its watches select.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "lb-svc";

/// Multus: the attachments a pod asks for.
pub const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
/// Multus, on a NetworkAttachmentDefinition: the extended resource that a pod
/// needs one of for each interface.
pub const RESOURCE_NAME_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";
/// Multus: the interfaces a pod got.
pub const NETWORK_STATUS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/network-status";

/// Key of the gateway's configuration in its ConfigMap, and its file name.
pub const CONFIG_KEY: &str = "config.json";
/// Key of the seal beside it, see [`crate::seal`].
pub const SEAL_KEY: &str = "seal.json";
/// Variable of a gateway's container: the public keys, separated by commas, one of
/// which has to have signed its configuration.
pub const TRUSTED_KEYS_VARIABLE: &str = "LB_SVC_TRUSTED_KEYS";
/// Variable of a gateway's container: its id, for which its configuration has to
/// be signed.
pub const GATEWAY_ID_VARIABLE: &str = "LB_SVC_GATEWAY_ID";
/// Directory the ConfigMap is mounted at.
pub const CONFIG_DIR: &str = "/etc/lb-svc/config";
/// Directory of the Secret with the election's key, where there is an election.
pub const KEY_DIR: &str = "/etc/lb-svc/key";
/// Key of the election's key in that Secret, and its file name: 32 bytes.
pub const KEY_FILE: &str = "key";
/// The Secret, in the controller's own namespace, that every gateway's key is
/// derived from.
pub const MASTER_SECRET: &str = "lb-svc-gateway-keys";
/// Key in [`MASTER_SECRET`]: 32 bytes.
pub const MASTER_KEY: &str = "master";
/// The Secret, in the controller's own namespace, with the seeds of the keys that
/// configurations are signed with.
pub const SIGNING_SECRET: &str = "lb-svc-signing-keys";
/// Key in [`SIGNING_SECRET`]: the seed, 32 bytes, of the key that signs.
pub const SIGNING_KEY: &str = "current";
/// Key in [`SIGNING_SECRET`]: the seed of the key that is to sign next. Gateways
/// trust it already.
pub const NEXT_SIGNING_KEY: &str = "next";
/// Directory of the downward-API volume.
pub const POD_INFO_DIR: &str = "/etc/lb-svc/pod";
/// File in [`POD_INFO_DIR`] that holds [`NETWORK_STATUS_ANNOTATION`].
pub const NETWORK_STATUS_FILE: &str = "network-status";
/// In [`POD_INFO_DIR`]: the pod's [`CONFIG_ANNOTATION`].
pub const CONFIRMED_FILE: &str = "confirmed";

/// Where a gateway keeps what outlives its process: the shared memory of its pod's
/// containers, which is there without a volume. Pods with an `emptyDir` keep
/// `kubectl drain` and autoscalers from their nodes.
pub const STATE_DIR: &str = "/dev/shm";

/// TCP port of the gateway's `/readyz`, `/status`, `/metrics` and [`PUSH_PATH`], on its
/// pod IP only.
pub const GATEWAY_PORT: u16 = 9410;
/// Where a gateway takes its configuration by HTTP PUT, as it is in its ConfigMap: the
/// body is the content of [`CONFIG_KEY`]. The response is the gateway's status.
pub const PUSH_PATH: &str = "/config";
/// Header of that request: the content of [`SEAL_KEY`].
pub const SEAL_HEADER: &str = "lb-svc-seal";
/// The most bytes of the data of a ConfigMap (Kubernetes API).
pub const CONFIG_MAP_MAX: usize = 1024 * 1024;

/// The longest label value Kubernetes takes.
const LABEL_VALUE_MAX: usize = 63;
/// The longest object name Kubernetes takes (RFC 1123 subdomain).
const OBJECT_NAME_MAX: usize = 253;

/// A NetworkAttachmentDefinition, as `<nad>.<namespace>` names it.
///
/// A namespace holds no dot, a NAD's name may: the last dot divides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Provider {
    /// The NAD's name.
    pub name: String,
    /// The NAD's namespace.
    pub namespace: String,
}

/// Why a string names no attachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No dot, or nothing on one side of it.
    #[error("{0:?} is not <nad>.<namespace>, for example lb-svc-attachment.kube-system")]
    Shape(String),
    /// Empty, `ovn` or `….ovn`: such networks are Kube-OVN's own.
    #[error("{0:?} names a network of OVN, not an attachment")]
    Ovn(String),
}

impl Provider {
    /// Whether `text` as a Subnet's provider means that the Subnet is OVN's.
    pub fn is_ovn(text: &str) -> bool {
        text.is_empty() || text == "ovn" || text.ends_with(".ovn")
    }

    /// The annotation `<nad>.<namespace>.kubernetes.io/<key>`, which speaks of
    /// this attachment on Services and gateway pods.
    pub fn annotation(&self, key: &str) -> String {
        format!("{self}.kubernetes.io/{key}")
    }

    /// `<namespace>/<nad>`, as Multus writes it.
    pub fn multus_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The name of the claim on `address`: one name per address on a network
    /// is what makes a claim exclusive.
    pub fn claim_name(&self, address: IpAddr) -> String {
        let address = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => {
                let groups: Vec<String> = v6.segments().iter().map(|g| format!("{g:x}")).collect();
                groups.join("-")
            }
        };
        shorten(&format!("{self}.{address}"), OBJECT_NAME_MAX)
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl std::str::FromStr for Provider {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        if Self::is_ovn(text) {
            return Err(ProviderError::Ovn(text.to_owned()));
        }
        let valid = |part: &str| {
            part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        match text.rsplit_once('.') {
            Some((name, namespace)) if valid(name) && valid(namespace) => {
                Ok(Self { name: name.to_owned(), namespace: namespace.to_owned() })
            }
            _ => Err(ProviderError::Shape(text.to_owned())),
        }
    }
}

/// The name of a Service's gateway beside it: its Deployment and its ConfigMap.
pub fn gateway_name(service: &str) -> String {
    format!("lb-svc-{service}")
}

/// The name of a Service's gateway in another namespace than the Service's.
///
/// It fits into a label value. The names in it may be cut, and a dash may be
/// part of either: the hash is what keeps two Services apart.
pub fn gateway_name_apart(namespace: &str, service: &str) -> String {
    const HASH: usize = 16;
    let full = format!("lb-svc-{namespace}-{service}");
    let head = &full[..full.floor_char_boundary(LABEL_VALUE_MAX - HASH - 1)];
    let hash = &digest(format!("{namespace}/{service}").as_bytes())[..HASH];
    format!("{}-{hash}", head.trim_end_matches('-'))
}

/// The name of the Secret with the election's key of `gateway`, made for the
/// Service with this uid. One of an earlier Service of the name has another.
pub fn key_name(gateway: &str, uid: &str) -> String {
    format!("{gateway}-{}", &digest(uid.as_bytes())[..10])
}

/// Whether `text` can be the name of a Namespace or a Service: an RFC 1123
/// label, 1 to 63 lower-case letters, digits and dashes, no dash at either end.
pub fn is_dns_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The name of the claim on a port of the nodes of `pool`, a DNS label: one name
/// per pool, protocol and port is what makes it exclusive. It is no name of a claim
/// on an address, which ends in one.
pub fn node_claim_name(pool: &str, port: &Port) -> String {
    format!("node.{pool}.{}-{}", port.protocol.name(), port.port)
}

/// `value` as a label value: cut and hashed where it is too long.
pub fn label_value(value: &str) -> String {
    shorten(value, LABEL_VALUE_MAX)
}

/// The digest and the attempt's number in a [`CONFIG_ANNOTATION`].
pub fn config_annotation(value: &str) -> Option<(&str, u32)> {
    let (digest, attempt) = value.rsplit_once('.')?;
    Some((digest, attempt.parse().unwrap_or(0)))
}

/// The lower-case hexadecimal SHA-256 of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `name` itself if it fits into `max` bytes, else its beginning and a hash of
/// the whole, so that two long names stay two.
fn shorten(name: &str, max: usize) -> String {
    const HASH: usize = 10;
    if name.len() <= max {
        return name.to_owned();
    }
    let head = name[..name.floor_char_boundary(max - HASH - 1)].trim_end_matches(['.', '-', '_']);
    format!("{head}-{}", &digest(name.as_bytes())[..HASH])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_is_split_at_the_last_dot() {
        let provider: Provider = "vlan.10.lan.kube-system".parse().unwrap();
        assert_eq!(provider.name, "vlan.10.lan");
        assert_eq!(provider.namespace, "kube-system");
        assert_eq!(provider.multus_name(), "kube-system/vlan.10.lan");
        assert_eq!(
            provider.annotation("logical_switch"),
            "vlan.10.lan.kube-system.kubernetes.io/logical_switch"
        );
    }

    #[test]
    fn provider_of_ovn_is_refused() {
        for text in ["", "ovn", "net1.default.ovn"] {
            assert!(matches!(text.parse::<Provider>(), Err(ProviderError::Ovn(_))), "{text}");
        }
        for text in ["lan", ".kube-system", "lan.", "Lan.kube-system", "a/b.c"] {
            assert!(matches!(text.parse::<Provider>(), Err(ProviderError::Shape(_))), "{text}");
        }
    }

    #[test]
    fn claim_name_is_network_and_address() {
        let provider: Provider = "lb-svc-attachment.kube-system".parse().unwrap();
        assert_eq!(
            provider.claim_name("172.18.0.18".parse().unwrap()),
            "lb-svc-attachment.kube-system.172.18.0.18"
        );
        assert_eq!(
            provider.claim_name("2001:db8::1".parse().unwrap()),
            "lb-svc-attachment.kube-system.2001-db8-0-0-0-0-0-1"
        );
    }

    #[test]
    fn gateway_names_in_other_namespace_are_unique() {
        let (long, longer) = ("n".repeat(63), "n".repeat(62) + "m");
        let names: std::collections::BTreeSet<String> =
            [("a", "b-c"), ("a-b", "c"), ("a", "b"), ("b", "a"), (&long, &long), (&long, &longer)]
                .map(|(namespace, service)| gateway_name_apart(namespace, service))
                .into();
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
        // Live gateways are found by it: it must not change.
        assert_eq!(gateway_name_apart("default", "web"), "lb-svc-default-web-82b3ade9d00cd164");
    }

    #[test]
    fn dns_label_accepts_what_kubernetes_names_services_by() {
        for name in ["a", "web-1", "0", &"n".repeat(63)] {
            assert!(is_dns_label(name), "{name}");
        }
        for text in ["", "-a", "a-", "A", "a.b", "a/b", "ä", "a\n", " ", &"n".repeat(64)] {
            assert!(!is_dns_label(text), "{text}");
        }
    }

    #[test]
    fn r1_names_are_cut_between_characters() {
        for width in 0..80 {
            let text = format!("{}{}", "x".repeat(width), "ä😀".repeat(60));
            assert!(label_value(&text).len() <= 63);
            assert!(gateway_name_apart(&text, &text).len() <= 63);
            assert!(key_name(&text, &text).len() > 10);
        }
    }

    #[test]
    fn long_label_values_are_cut_and_stay_unique() {
        let (a, b) = ("x".repeat(70) + "a", "x".repeat(70) + "b");
        assert_eq!(label_value(&a).len(), 63);
        assert_ne!(label_value(&a), label_value(&b));
        assert_eq!(label_value("short"), "short");
    }
}
