//! Subnets that overlap.

use std::collections::HashMap;

use ipnet::Ipv4Net;
use lb_svc_crds::names::Provider;

use super::{InvalidSubnet, Network};

/// When a Subnet was created, and its name.
pub type Age = (Option<jiff::Timestamp>, String);

/// The Subnets, by name, that have addresses of another one and do not precede it,
/// where attachments `share` an L2 segment.
///
/// A Subnet precedes those that it overlaps if it has claims on the addresses that
/// both have, which `has_claims` says of a Subnet and a network: another that was
/// edited to reach there gives out none of them. Among others the older one stays.
pub fn find<'a>(
    subnets: impl Iterator<Item = (&'a Age, &'a Network)>,
    share: impl Fn(&Provider, &Provider) -> bool,
    has_claims: impl Fn(&str, Ipv4Net) -> bool,
) -> HashMap<String, InvalidSubnet> {
    let all: Vec<(&Age, &Network)> = subnets.collect();
    let meet = |one: &Network, other: &Network| {
        share(&one.provider, &other.provider)
            && (one.cidr.contains(&other.cidr) || other.cidr.contains(&one.cidr))
    };
    let holds = |(age, network): &(&Age, &Network)| {
        let mut others = all.iter().filter(|(other, _)| other != age);
        others.any(|(_, other)| meet(network, other) && has_claims(&age.1, other.cidr))
    };
    let mut in_order = all.clone();
    in_order.sort_by_cached_key(|subnet| (!holds(subnet), subnet.0));
    let mut valid: Vec<(&Age, &Network)> = Vec::new();
    let mut overlaps = HashMap::new();
    for (age, network) in in_order {
        match valid.iter().find(|(_, other)| meet(network, other)) {
            Some((preceding, _)) => {
                let overlap = InvalidSubnet::Overlaps(network.cidr.into(), preceding.1.clone());
                overlaps.insert(age.1.clone(), overlap);
            }
            None => valid.push((age, network)),
        }
    }
    overlaps
}
