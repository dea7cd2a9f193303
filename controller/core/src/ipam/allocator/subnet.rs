//! A Subnet, and what can be had of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lb_svc_crds::SubnetSpec;
use lb_svc_crds::names::Provider;

use crate::ipam::overlap::Age;
use crate::ipam::{InvalidSubnet, Network, Pool};

/// A Subnet as last seen.
#[derive(Debug)]
pub struct Subnet {
    /// Its spec.
    pub spec: SubnetSpec,
    /// Its age.
    pub age: Age,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The network with its free addresses, or why the spec is invalid.
    pub parsed: Result<(Network, Pool), InvalidSubnet>,
    /// The older Subnet that it overlaps.
    pub overlaps: Option<InvalidSubnet>,
}

impl Subnet {
    /// Its network, whether or not it overlaps another.
    pub fn network(&self) -> Option<&Network> {
        self.parsed.as_ref().ok().map(|(network, _)| network)
    }

    /// Changes its pool, if it is one of these attachments, or whichever it is of.
    pub fn change(
        &mut self,
        of: Option<&BTreeSet<Provider>>,
        address: Ipv4Addr,
        change: fn(&mut Pool, Ipv4Addr),
    ) {
        if let Ok((network, pool)) = &mut self.parsed
            && of.is_none_or(|providers| providers.contains(&network.provider))
        {
            change(pool, address);
        }
    }

    /// Its network and pool, or why it hands nothing out.
    pub fn state(&self) -> Result<&(Network, Pool), &InvalidSubnet> {
        match &self.overlaps {
            Some(overlaps) => Err(overlaps),
            None => self.parsed.as_ref(),
        }
    }
}
