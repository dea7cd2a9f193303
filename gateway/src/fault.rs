//! Causes that keep a gateway from carrying out its configuration: one word for
//! programs, and one sentence for people that says what is missing and what to do.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use lb_svc_crds::seal::Unsealed;

use crate::config::Invalid;

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The mounted file cannot be read.
    #[error("the configuration {} cannot be read ({why}): mount the gateway's ConfigMap there", .path.display())]
    ConfigMissing {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        why: String,
    },
    /// The mounted file is invalid.
    #[error("the configuration cannot be carried out, {0}; what was programmed before goes on serving")]
    ConfigInvalid(#[from] Invalid),
    /// The mounted file is not signed by the controller for this gateway.
    #[error(
        "the configuration is not the controller's for this gateway, {0}; what was programmed before goes on serving: look for whoever edits the gateway's ConfigMap"
    )]
    ConfigUnsigned(#[from] Unsealed),
    /// The mounted file is signed, but an earlier one.
    #[error(
        "the configuration is of generation {mounted}, and one of generation {in_force} is in force and goes on serving: look for whoever puts back older copies of the gateway's ConfigMap"
    )]
    ConfigOutdated {
        /// The mounted generation.
        mounted: u64,
        /// The one in force.
        in_force: u64,
    },
    /// Multus's report cannot be parsed.
    #[error(
        "Multus's network-status does not parse ({0}): look at the pod's annotation k8s.v1.cni.cncf.io/network-status"
    )]
    NetworkStatusInvalid(String),
    /// Multus has not reported the LAN interface.
    #[error(
        "Multus has not reported an interface for {attachment} (reported: {}): check that Multus runs on this node, that the NetworkAttachmentDefinition exists, and the pod's Events",
        or_nothing(.reported)
    )]
    AttachmentPending {
        /// The attachment.
        attachment: String,
        /// The networks that it reported.
        reported: Vec<String>,
    },
    /// The reported interface does not exist.
    #[error(
        "Multus reported interface {0}, and the pod has none of that name: delete the pod so that it is attached anew"
    )]
    InterfaceMissing(String),
    /// The pod has no default route.
    #[error(
        "the pod's main routing table has no default route, so its primary interface cannot be told: check the cluster's CNI"
    )]
    NoDefaultRoute,
    /// The pod has no route to a ClusterIP.
    #[error("the pod has no IPv4 route to ClusterIP {0}: check the cluster's CNI")]
    ClusterIpUnreachable(Ipv4Addr),
    /// The ClusterIP works for sockets only, not for forwarded packets.
    #[error(
        "ClusterIP {0} answers connections that the pod itself makes, and none that it forwards: the cluster's network serves ClusterIPs at the pods' sockets only; have it serve them to packets as well (Cilium: socketLB.hostNamespaceOnly=true)"
    )]
    ClusterIpSocketsOnly(Ipv4Addr),
    /// A Linux capability is not effective.
    #[error(
        "capability {0} is missing: add it to securityContext.capabilities.add of the gateway's container"
    )]
    CapabilityMissing(&'static str),
    /// There is no iptables, or only the legacy variant.
    #[error(
        "no iptables of the nf_tables variant was found ({0}): use an image that has iptables-nft-restore"
    )]
    IptablesVariant(String),
    /// The kernel lacks a module that a rule needs.
    #[error(
        "the node's kernel lacks a netfilter module, load it on the node (modprobe nft_compat xt_conntrack xt_nat xt_MASQUERADE xt_statistic); iptables says: {0}"
    )]
    KernelModuleMissing(String),
    /// The NAT could not be programmed or read.
    #[error("the NAT rules could not be programmed: {0}")]
    NatFailed(String),
    /// The packet filter could not be programmed or read.
    #[error(
        "what may pass cannot be filtered, and nothing is changed without that (it needs nft, and nf_tables with nft_ct and nft_reject_ipv4 in the node's kernel): {0}"
    )]
    FilterFailed(String),
    /// The source ranges could not be programmed or read.
    #[error("spec.loadBalancerSourceRanges cannot be programmed, and nothing is changed without them: {0}")]
    RangesFailed(String),
    /// The proxy, or the way to it, could not be set up.
    #[error(
        "connections to ports with the PROXY protocol cannot be taken, and nothing is changed without that (it needs nft, and nft_tproxy in the node's kernel): {0}"
    )]
    ProxyFailed(String),
    /// The lease could not be programmed or read.
    #[error(
        "the lease on the addresses cannot be programmed, and without it a gateway of several pods does not serve (it needs Linux 5.16 with CONFIG_NETFILTER_EGRESS, and nft): {0}"
    )]
    LeaseFailed(String),
    /// The election's key is invalid.
    #[error(
        "the election's key {} cannot be used ({why}), and without it the pod does not serve: it comes from the gateway's Secret", .path.display()
    )]
    KeyInvalid {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The pod cannot take part in the election.
    #[error("the pod cannot take part in its gateway's election, and does not serve: {0}")]
    ElectionFailed(String),
    /// The kernel does not answer in time.
    #[error(
        "the kernel has not answered for {0:?}: something on the node keeps its network configuration locked (look for processes that hang in the kernel)"
    )]
    KernelSilent(Duration),
    /// The kernel refused a change.
    #[error("the kernel refused: {0}")]
    NetlinkFailed(String),
    /// Another host on the LAN owns one of the addresses.
    #[error(
        "{address} is in use by the host with the hardware address {} and is not served: take it from that host, or choose another and exclude it in the Subnet (spec.excludeIps)",
        crate::l2::arp::format_mac(*.mac)
    )]
    AddressConflict {
        /// The address.
        address: Ipv4Addr,
        /// The host.
        mac: crate::l2::arp::Mac,
    },
    /// No probes can be sent for an address.
    #[error(
        "the LAN cannot be asked whether {address} is in use, so it is not served: interface {interface}: {why}"
    )]
    ProbeFailed {
        /// The address.
        address: Ipv4Addr,
        /// The interface's name.
        interface: String,
        /// The system's error.
        why: String,
    },
    /// Something else in the pod keeps changing the same state.
    #[error("the kernel's state does not stay as programmed, something else in the pod changes it: {0}")]
    NotConverged(String),
}

/// Whom a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that the pod serves.
    Pod,
    /// What is served on this address.
    Address(Ipv4Addr),
    /// What leads to this ClusterIP.
    ClusterIp(Ipv4Addr),
}

impl Fault {
    /// Whom it concerns.
    pub fn scope(&self) -> Scope {
        match self {
            Self::AddressConflict { address, .. } | Self::ProbeFailed { address, .. } => {
                Scope::Address(*address)
            }
            Self::ClusterIpUnreachable(address) | Self::ClusterIpSocketsOnly(address) => {
                Scope::ClusterIp(*address)
            }
            Self::ConfigMissing { .. }
            | Self::ConfigInvalid(_)
            | Self::ConfigUnsigned(_)
            | Self::ConfigOutdated { .. }
            | Self::NetworkStatusInvalid(_)
            | Self::AttachmentPending { .. }
            | Self::InterfaceMissing(_)
            | Self::NoDefaultRoute
            | Self::CapabilityMissing(_)
            | Self::IptablesVariant(_)
            | Self::KernelModuleMissing(_)
            | Self::NatFailed(_)
            | Self::FilterFailed(_)
            | Self::ProxyFailed(_)
            | Self::RangesFailed(_)
            | Self::LeaseFailed(_)
            | Self::KeyInvalid { .. }
            | Self::ElectionFailed(_)
            | Self::KernelSilent(_)
            | Self::NetlinkFailed(_)
            | Self::NotConverged(_) => Scope::Pod,
        }
    }

    /// The reason, a CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ConfigMissing { .. } => "ConfigMissing",
            Self::ConfigInvalid(_) => "ConfigInvalid",
            Self::ConfigUnsigned(_) => "ConfigUnsigned",
            Self::ConfigOutdated { .. } => "ConfigOutdated",
            Self::NetworkStatusInvalid(_) => "NetworkStatusInvalid",
            Self::AttachmentPending { .. } => "AttachmentPending",
            Self::InterfaceMissing(_) => "InterfaceMissing",
            Self::NoDefaultRoute => "NoDefaultRoute",
            Self::ClusterIpUnreachable(_) => "ClusterIpUnreachable",
            Self::ClusterIpSocketsOnly(_) => "ClusterIpSocketsOnly",
            Self::CapabilityMissing(_) => "CapabilityMissing",
            Self::IptablesVariant(_) => "IptablesVariant",
            Self::KernelModuleMissing(_) => "KernelModuleMissing",
            Self::NatFailed(_) => "NatFailed",
            Self::FilterFailed(_) => "FilterFailed",
            Self::RangesFailed(_) => "RangesFailed",
            Self::ProxyFailed(_) => "ProxyFailed",
            Self::LeaseFailed(_) => "LeaseFailed",
            Self::KeyInvalid { .. } => "KeyInvalid",
            Self::ElectionFailed(_) => "ElectionFailed",
            Self::KernelSilent(_) => "KernelSilent",
            Self::NetlinkFailed(_) => "NetlinkFailed",
            Self::NotConverged(_) => "NotConverged",
            Self::AddressConflict { .. } => "AddressConflict",
            Self::ProbeFailed { .. } => "ProbeFailed",
        }
    }

    /// Whether a retry may help. The end of a conflict is found by the next probes, that
    /// of a missing forwarding path by the next check.
    pub fn is_retried(&self) -> bool {
        !matches!(self, Self::AddressConflict { .. } | Self::ClusterIpSocketsOnly(_))
    }

    /// Whether clients are not served while it lasts. An invalid configuration leaves
    /// the previous one in force, and without CAP_NET_RAW everything but the
    /// announcements works.
    pub fn stops_serving(&self) -> bool {
        !matches!(
            self,
            Self::ConfigMissing { .. }
                | Self::ConfigInvalid(_)
                | Self::ConfigUnsigned(_)
                | Self::ConfigOutdated { .. }
                | Self::NetworkStatusInvalid(_)
                | Self::CapabilityMissing(crate::capabilities::NET_RAW)
        )
    }
}

fn or_nothing(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
