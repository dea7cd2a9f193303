//! A Subnet's spec, validated.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use lb_svc_crds::names::{Provider, ProviderError};
use lb_svc_crds::range::{IpRange, RangeError};
use lb_svc_crds::{Protocol, SubnetSpec};

/// A Subnet's spec, validated, with its defaults filled in.
///
/// IPv4 only so far: an IPv6 network is [`InvalidSubnet::Ipv6`], and of a dual one
/// the IPv4 half is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The attachment it is for.
    pub provider: Provider,
    /// Network address and prefix length; host bits cleared.
    pub cidr: Ipv4Net,
    /// The LAN's router.
    pub gateway: std::net::Ipv4Addr,
    /// The addresses that are allocated only to a Service that names one.
    pub excludes: Vec<IpRange>,
    /// The namespaces whose Services may have addresses; all if empty.
    pub namespaces: Vec<String>,
}

/// Why a Subnet's spec is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    /// `spec.provider`.
    #[error("spec.provider: {0}")]
    Provider(#[from] ProviderError),
    /// `spec.cidrBlock` is no CIDR, or not one or two of different families.
    #[error("spec.cidrBlock: {0:?} is not a CIDR such as 172.18.0.0/16")]
    Cidr(String),
    /// The CIDR is no place for hosts.
    #[error("spec.cidrBlock: {0} overlaps {1}, which no host can have an address in")]
    Reserved(IpNet, IpNet),
    /// A /32: no room for a router and a Service.
    #[error("spec.cidrBlock: {0} holds a single address")]
    Single(IpNet),
    /// No IPv4 half.
    #[error("spec.cidrBlock: {0} is IPv6, which gateways cannot serve yet: give an IPv4 CIDR")]
    Ipv6(IpNet),
    /// `spec.gateway` is no address.
    #[error("spec.gateway: {0:?} is not an address")]
    Gateway(String),
    /// `spec.gateway` cannot be a router of this network.
    #[error("spec.gateway: {0} is {1} of {2}")]
    GatewayPlace(IpAddr, &'static str, IpNet),
    /// `spec.excludeIps`.
    #[error("spec.excludeIps: {0}")]
    Exclude(#[from] RangeError),
    /// An older Subnet on the same L2 segment has some of these addresses.
    #[error("spec.cidrBlock: {0} overlaps Subnet {1} on the same network: give each its own addresses")]
    Overlaps(IpNet, String),
    /// `spec.protocol` says another family than the CIDR.
    #[error("spec.protocol: {0} does not fit cidrBlock {1:?}")]
    Protocol(&'static str, String),
}

/// Where no host lives (RFC 6890), in the families' order.
const RESERVED: [&str; 5] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"];

impl Network {
    /// Validates `spec`, computing what it leaves out.
    ///
    /// # Errors
    /// The first thing that is wrong with it, for people.
    pub fn parse(spec: &SubnetSpec) -> Result<Self, InvalidSubnet> {
        let provider: Provider = spec.provider.parse()?;
        let cidr = v4_half(spec)?;
        for reserved in RESERVED {
            let reserved: IpNet = reserved.parse().map_err(|_| InvalidSubnet::Cidr(reserved.to_owned()))?;
            if reserved.contains(&IpAddr::V4(cidr.network())) || IpNet::V4(cidr).contains(&reserved.network())
            {
                return Err(InvalidSubnet::Reserved(cidr.into(), reserved));
            }
        }
        if cidr.prefix_len() == 32 {
            return Err(InvalidSubnet::Single(cidr.into()));
        }
        let gateway = gateway(spec, cidr)?;
        let excludes = spec.exclude_ips.iter().map(|item| item.parse()).collect::<Result<_, _>>()?;
        Ok(Self { provider, cidr, gateway, excludes, namespaces: spec.namespaces.clone() })
    }

    /// Whether Services of `namespace` may have addresses from here.
    pub fn admits(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|n| n == namespace)
    }

    /// Whether `address` is one that a Service can have here.
    pub fn holds(&self, address: IpAddr) -> bool {
        let (first, last) = self.hosts();
        (IpAddr::V4(first)..=IpAddr::V4(last)).contains(&address) && address != IpAddr::V4(self.gateway)
    }

    /// The first and the last address a host can have. A /31 has no network
    /// and no broadcast address (RFC 3021).
    pub fn hosts(&self) -> (std::net::Ipv4Addr, std::net::Ipv4Addr) {
        let (first, last) = (u32::from(self.cidr.network()), u32::from(self.cidr.broadcast()));
        if self.cidr.prefix_len() == 31 {
            (first.into(), last.into())
        } else {
            ((first + 1).into(), (last - 1).into())
        }
    }
}

fn v4_half(spec: &SubnetSpec) -> Result<Ipv4Net, InvalidSubnet> {
    let bad = || InvalidSubnet::Cidr(spec.cidr_block.clone());
    let nets = spec
        .cidr_block
        .split(',')
        .map(|cidr| cidr.trim().parse::<IpNet>().map(|net| net.trunc()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad())?;
    let (v4, protocol) = match nets[..] {
        [IpNet::V4(v4)] => (v4, Protocol::IPv4),
        [IpNet::V4(v4), IpNet::V6(_)] | [IpNet::V6(_), IpNet::V4(v4)] => (v4, Protocol::Dual),
        [net @ IpNet::V6(_)] => return Err(InvalidSubnet::Ipv6(net)),
        _ => return Err(bad()),
    };
    match spec.protocol {
        Some(asked) if asked != protocol => {
            let asked = match asked {
                Protocol::IPv4 => "IPv4",
                Protocol::IPv6 => "IPv6",
                Protocol::Dual => "Dual",
            };
            Err(InvalidSubnet::Protocol(asked, spec.cidr_block.clone()))
        }
        _ => Ok(v4),
    }
}

fn gateway(spec: &SubnetSpec, cidr: Ipv4Net) -> Result<std::net::Ipv4Addr, InvalidSubnet> {
    let text = spec.gateway.as_deref().unwrap_or_default();
    let mut given = None;
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse().map_err(|_| InvalidSubnet::Gateway(text.to_owned()))? {
            IpAddr::V4(v4) => given = Some(v4),
            IpAddr::V6(_) => {}
        }
    }
    let Some(gateway) = given else {
        let first = u32::from(cidr.network());
        return Ok(if cidr.prefix_len() == 31 { first.into() } else { (first + 1).into() });
    };
    let place = |what| Err(InvalidSubnet::GatewayPlace(gateway.into(), what, cidr.into()));
    if !cidr.contains(&gateway) {
        return place("outside");
    }
    if cidr.prefix_len() < 31 && gateway == cidr.network() {
        return place("the network address");
    }
    if cidr.prefix_len() < 31 && gateway == cidr.broadcast() {
        return place("the broadcast address");
    }
    Ok(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::subnet_spec as spec;

    #[test]
    fn network_defaults_are_computed() {
        let network = Network::parse(&spec("192.168.0.9/24", "", &[])).unwrap();
        assert_eq!(network.cidr.to_string(), "192.168.0.0/24");
        assert_eq!(network.gateway.to_string(), "192.168.0.1");
        assert_eq!(network.hosts(), ("192.168.0.1".parse().unwrap(), "192.168.0.254".parse().unwrap()));

        let p2p = Network::parse(&spec("10.16.0.112/31", "", &[])).unwrap();
        assert_eq!(p2p.gateway.to_string(), "10.16.0.112");
        assert_eq!(p2p.hosts().1.to_string(), "10.16.0.113");
    }

    #[test]
    fn invalid_network_says_why() {
        let error =
            |cidr, gateway, excludes: &[&str]| Network::parse(&spec(cidr, gateway, excludes)).unwrap_err();
        for cidr in ["", "0.0.0.0", "10.16.0/16", "1.1.1.1/33", "1.1.256.1/24", "10.0.0.0/24,10.0.1.0/24"] {
            assert_eq!(error(cidr, "", &[]), InvalidSubnet::Cidr(cidr.into()));
        }
        for cidr in ["127.0.0.1/8", "224.0.0.0/16", "169.254.0.0/16", "0.0.0.0/0"] {
            assert!(matches!(error(cidr, "", &[]), InvalidSubnet::Reserved(..)), "{cidr}");
        }
        assert!(matches!(error("10.16.0.0/32", "", &[]), InvalidSubnet::Single(_)));
        assert!(matches!(error("fd00::/64", "", &[]), InvalidSubnet::Ipv6(_)));
        assert!(matches!(
            error("10.16.0.0/16", "10.17.0.1", &[]),
            InvalidSubnet::GatewayPlace(_, "outside", _)
        ));
        assert!(matches!(
            error("10.16.0.0/16", "10.16.255.255", &[]),
            InvalidSubnet::GatewayPlace(_, "the broadcast address", _)
        ));
        assert!(matches!(
            error("10.16.0.0/16", "10.16.0.0", &[]),
            InvalidSubnet::GatewayPlace(_, "the network address", _)
        ));
        assert!(matches!(error("10.16.0.0/16", "gw", &[]), InvalidSubnet::Gateway(_)));
        assert!(matches!(error("10.16.0.0/16", "", &["10.0.0.0/24"]), InvalidSubnet::Exclude(_)));
        let protocol = SubnetSpec { protocol: Some(Protocol::Dual), ..spec("10.16.0.0/16", "", &[]) };
        assert!(matches!(Network::parse(&protocol), Err(InvalidSubnet::Protocol("Dual", _))));
    }

    #[test]
    fn dual_network_uses_its_ipv4_half() {
        let network = Network::parse(&spec("fd00::/64,10.16.0.0/16", "fd00::1,10.16.0.9", &[])).unwrap();
        assert_eq!(network.cidr.to_string(), "10.16.0.0/16");
        assert_eq!(network.gateway.to_string(), "10.16.0.9");
    }
}
