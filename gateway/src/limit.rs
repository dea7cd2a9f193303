//! What the gateway does less well than it should, though it carries out its
//! configuration: one word for programs, and one sentence for people that says what is
//! missing and what to do. A limit keeps a pod neither from being ready nor from being
//! active; what does is a [fault](crate::fault).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// IPv6 is not kept off the LAN interface.
    #[error(
        "IPv6 is not kept off the pod's LAN interface, where its routers may give it addresses (it needs nf_tables for IPv6 in the node's kernel, or a kernel without IPv6): {0}"
    )]
    Ipv6NotBlocked(String),
    /// Nothing answers behind ClusterIPs or endpoints.
    #[error(
        "no answer for a minute on any TCP port of {}: there are no backends, or a NetworkPolicy keeps the gateway's pod from them",
        some(.0)
    )]
    BackendsUnreachable(Vec<String>),
    /// Connections are refused, for there are too many.
    #[error(
        "there are {0} proxied connections, as many as the pod's memory is enough for, and further ones are refused: raise the limit of memory in lb-svc.kubeovn.io/resources, 40 KiB for each connection"
    )]
    ProxyFull(usize),
    /// The LAN's router does not answer.
    #[error(
        "{router}, the router of {network}, has not answered ARP for a minute: whoever is outside of {network} gets no answer from the address, be it most of the LAN; set the Subnet's spec.cidrBlock to the LAN's whole prefix, and spec.gateway to its router"
    )]
    RouterSilent {
        /// The router.
        router: Ipv4Addr,
        /// The Subnet's CIDR.
        network: Ipv4Net,
    },
    /// Another host answers for an address that is in use.
    #[error(
        "{address} is answered for by {} as well, so some clients reach that host instead: where kube-proxy runs in IPVS mode, set its strictARP or the Service's annotation lb-svc.kubeovn.io/pass-through; else take the address from that host, or give the Service another",
        some(.hosts)
    )]
    AddressAnsweredTwice {
        /// The address.
        address: Ipv4Addr,
        /// The hosts' hardware addresses.
        hosts: Vec<String>,
    },
}

impl Limit {
    /// The reason, a CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Ipv6NotBlocked(_) => "Ipv6NotBlocked",
            Self::BackendsUnreachable(_) => "BackendsUnreachable",
            Self::ProxyFull(_) => "ProxyFull",
            Self::RouterSilent { .. } => "RouterSilent",
            Self::AddressAnsweredTwice { .. } => "AddressAnsweredTwice",
        }
    }
}

/// The first of these, and how many there are besides.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
