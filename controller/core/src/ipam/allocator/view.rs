//! What others see of the allocator: nothing of it changes that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use lb_svc_crds::range::IpRange;

use super::Allocator;
use crate::ipam::pool::ranges;
use crate::ipam::{Claim, InvalidSubnet, Network};
use crate::model::ServiceRef;

/// The usage of a Subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Claims.
    pub using: u64,
    /// Addresses of which a claim is on its way.
    pub reserved: u64,
    /// The Services that hold them, or held and left them.
    pub holders: BTreeSet<ServiceRef>,
    /// Their addresses.
    pub using_ranges: Vec<IpRange>,
    /// What a Service that names no address could still get.
    pub available: u64,
    /// Those addresses.
    pub available_ranges: Vec<IpRange>,
    /// Why the Subnet's spec is invalid, if it is.
    pub invalid: Option<InvalidSubnet>,
}

impl Allocator {
    /// The claims of every Service that has or had this name, by name.
    pub fn claims_of(&self, service: &ServiceRef) -> Vec<Claim> {
        self.claims.of(service).cloned().collect()
    }

    /// Whether there are claims of a Service that has or had this name.
    pub fn has_claims(&self, service: &ServiceRef) -> bool {
        self.claims.of(service).next().is_some()
    }

    /// All claims.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.all()
    }

    /// The network of a Subnet, if its spec is valid.
    pub fn network(&self, subnet: &str) -> Option<&Network> {
        self.subnets.get(subnet)?.state().ok().map(|(network, _)| network)
    }

    /// The usage of a Subnet, or why its spec is invalid. `None` if there is no such
    /// Subnet.
    pub fn usage(&self, subnet: &str) -> Option<Usage> {
        let state = self.subnets.get(subnet)?.state();
        let claims: Vec<&Claim> = self.claims().filter(|claim| claim.subnet == subnet).collect();
        let v4 = |claim: &&Claim| match claim.address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        };
        let using: Vec<Ipv4Addr> = claims.iter().filter_map(v4).collect();
        Some(Usage {
            using: using.len() as u64,
            reserved: self.reserved.values().filter(|reserved| reserved.subnet == subnet).count() as u64,
            holders: claims.iter().map(|claim| claim.owner.service.clone()).collect(),
            using_ranges: ranges(using),
            available: state.map_or(0, |(_, pool)| pool.available()),
            available_ranges: state.map_or(Vec::new(), |(_, pool)| pool.free()),
            invalid: state.err().cloned(),
        })
    }
}
