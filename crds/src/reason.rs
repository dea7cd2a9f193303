//! Every reason of a condition, an Event or a gateway's fault that lb-svc
//! itself gives, in one place. docs/user/troubleshooting.md says of each what it
//! means and what to do. Reasons of Kubernetes, such as `ImagePullBackOff`, are
//! passed on as they are and are not among them.

/// Defines [`Reason`] so that a reason's name is its text.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One word for the cause of a condition, an Event or a fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The reason as conditions, Events and metrics have it: one word in
            /// CamelCase.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    // Of addresses.
    /// The Service holds an address.
    AddressAllocated,
    /// Another host answers for the address that is in use.
    AddressAnsweredTwice,
    /// An earlier Service of the name, or its gateway, still has the address.
    AddressBeingFreed,
    /// A foreign host has the address.
    AddressConflict,
    /// Another Service has the address.
    AddressInUse,
    /// The address is none that a Service can have.
    AddressNotAssignable,
    /// Another writer takes the address out of `spec.loadBalancerIP`.
    AddressNotFilled,
    /// The address is no longer among those of its Subnet.
    AddressNotInSubnet,
    /// The address does not outlive its Service: the namespace keeps enough.
    AddressNotKept,
    /// The namespace has as many addresses as it may.
    NamespaceFull,
    /// The Subnet is not open to the Service's namespace.
    NamespaceNotAllowed,
    /// The Subnet is being deleted.
    SubnetDeleting,
    /// No address of the Subnet is free.
    SubnetFull,
    /// The Subnet's spec is not valid.
    SubnetInvalid,
    /// There is no such Subnet.
    SubnetNotFound,

    // Of what a Service asks.
    /// `spec.sessionAffinity` has no effect.
    AffinityNotKept,
    /// Backends do not see the client's address.
    ClientAddressHidden,
    /// A limit of clients in another load balancer's terms has no effect here.
    ClientLimitNotHeeded,
    /// A health check, or a setting of it, has no effect.
    HealthCheckIgnored,
    /// `spec.loadBalancerIP` is not an address.
    InvalidAddress,
    /// An annotation has a value that it cannot have.
    InvalidAnnotation,
    /// The provider annotation names no attachment.
    InvalidProvider,
    /// An annotation sets something of the gateway's pods to what it cannot be.
    InvalidSetting,
    /// `spec.loadBalancerSourceRanges` holds what is not a network.
    InvalidSourceRange,
    /// The gateway is kept to the backends of its own node.
    LocalBackendsOnly,
    /// The NAT back end that is asked for cannot do the rest that is asked for.
    NatBackendIgnored,
    /// An annotation, label or field that other load balancers heed has no effect.
    NotHeeded,
    /// A Service of the product's class names no attachment.
    ProviderMissing,
    /// The Service has more ports or source ranges than a gateway takes.
    ServiceTooLarge,
    /// Services may not set this of their gateway's pods.
    SettingNotAllowed,
    /// An annotation of the product's domain has no meaning.
    UnknownAnnotation,
    /// The Service, or a half of it, is of an address family that gateways do
    /// not serve.
    UnsupportedFamily,
    /// A port is of a protocol that gateways do not serve.
    UnsupportedProtocol,

    // Of a Service that is served at the nodes' own addresses.
    /// No node has an address for the Service.
    NoNodeAddress,
    /// kube-proxy serves the Service at the addresses of nodes.
    NodeAddressesPublished,
    /// The Service waits for what the controller has still to read or write.
    NodeAddressesPending,
    /// The Service asks for a gateway and for node addresses.
    NodeModeContradicted,
    /// The configuration does not let the Service use node addresses.
    NodeModeNotAllowed,
    /// kube-proxy does not serve the Service.
    NotServedByKubeProxy,
    /// The Service holds its ports on nodes.
    PortsClaimed,
    /// Another Service or a pod has the port on the nodes.
    PortInUse,
    /// The nodes need the port themselves.
    PortReserved,
    /// Another than kube-proxy may serve Services in the cluster.
    ProxyUntried,
    /// More nodes fit than a Service takes.
    TooManyNodes,

    // Of a gateway, as the controller sees it.
    /// Another pod became active.
    ActiveChanged,
    /// No endpoint of some port passes its health check.
    AllUnhealthy,
    /// No interface can be made from the attachment.
    AttachmentInvalid,
    /// There is no such attachment.
    AttachmentNotFound,
    /// Interfaces of the attachment do not have hardware addresses of their own.
    AttachmentShared,
    /// The gateway's configuration does not fit into a ConfigMap.
    ConfigTooLarge,
    /// A pod of a gateway with several has a CPU limit.
    CpuLimited,
    /// The gateway is where the controller may not look.
    GatewayElsewhere,
    /// The gateway serves.
    GatewayReady,
    /// The gateway is being started or updated.
    GatewayStarting,
    /// An object of others has the name of one of the gateway's.
    NameTaken,
    /// No pod of the gateway can be made.
    PodRefused,
    /// The gateway before this one is being removed.
    Replacing,
    /// Two pods answered for an address at once.
    SplitBrain,
    /// Fewer pods are ready than are asked for.
    StandbyMissing,
    /// Another writer replaces the Service's status.
    StatusOverwritten,
    /// Writing what the Service or its gateway needs fails again and again.
    WriteFailed,
    /// The API server refuses to write what the gateway needs.
    WriteRefused,

    // Of a gateway's pod, as it reports itself.
    /// Multus has not reported the pod's interface yet.
    AttachmentPending,
    /// Nothing answers the pod on any TCP port that it leads to.
    BackendsUnreachable,
    /// The pod lacks a capability.
    CapabilityMissing,
    /// The ClusterIP works for the pod's own sockets, but not for what it
    /// forwards.
    ClusterIpSocketsOnly,
    /// The pod cannot reach the ClusterIP.
    ClusterIpUnreachable,
    /// The mounted configuration is not valid.
    ConfigInvalid,
    /// The mounted configuration is older than the one in force.
    ConfigOutdated,
    /// The mounted configuration is not signed by the controller for this gateway.
    ConfigUnsigned,
    /// No configuration is mounted.
    ConfigMissing,
    /// The pod cannot take part in the election.
    ElectionFailed,
    /// The filter's table cannot be written or read.
    FilterFailed,
    /// The interface that Multus reported is not there.
    InterfaceMissing,
    /// IPv6 is not kept off the pod's LAN interface.
    Ipv6NotBlocked,
    /// There is no iptables, or only the legacy one.
    IptablesVariant,
    /// The kernel lacks what a rule needs.
    KernelModuleMissing,
    /// The kernel does not answer.
    KernelSilent,
    /// The election's key is not valid.
    KeyInvalid,
    /// The lease's table cannot be written or read.
    LeaseFailed,
    /// The NAT rules cannot be written or read.
    NatFailed,
    /// The kernel refuses a change of links, addresses, routes or rules.
    NetlinkFailed,
    /// Multus's report of the pod's interfaces is not valid.
    NetworkStatusInvalid,
    /// The pod network has no default route.
    NoDefaultRoute,
    /// Something else changes the same state all the time.
    NotConverged,
    /// The LAN cannot be probed for an address.
    ProbeFailed,
    /// Connections with the PROXY protocol cannot be taken.
    ProxyFailed,
    /// There are as many connections with the PROXY protocol as the pod can take.
    ProxyFull,
    /// The table of source ranges cannot be written or read.
    RangesFailed,
    /// The LAN's router does not answer.
    RouterSilent,

    // Of a Subnet.
    /// The Subnet waits for its claims to be released.
    Deleting,
    /// The Subnet's spec is not valid.
    Invalid,
    /// The Subnet hands out addresses.
    Ready,
    /// The Subnet's spec is valid.
    Valid,

    // Of a pod's readiness gate.
    /// No Service that is served directly leads to the pod.
    NotSelected,
    /// The pod's gateways lead connections to it.
    Served,
    /// A gateway did not report in time that it leads connections to the pod.
    Unanswered,
    /// A gateway's health check of the pod fails.
    Unhealthy,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<Reason> for String {
    fn eq(&self, reason: &Reason) -> bool {
        self == reason.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_one_camel_case_word_and_occurs_once() {
        let mut words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        for word in &words {
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric()), "{word}");
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
        assert_eq!(Reason::AddressConflict.to_string(), "AddressConflict");
    }
}
