//! Subnets that overlap.

use std::collections::HashMap;

use ipnet::Ipv4Net;
use lb_svc_crds::names::Provider;

use super::{InvalidSubnet, Network};

/// When a Subnet was created, and its name.
pub type Age = (Option<jiff::Timestamp>, String);

/// The Subnets, by name, that have addresses of another one on their L2 segment and
/// do not precede it. An attachment whose segment is not known is one of its own.
///
/// A Subnet precedes those that it overlaps if it has claims on the addresses that
/// both have, which `has_claims` says of a Subnet and a network: another that was
/// edited to reach there gives out none of them. Among others the older one stays.
pub fn find<'a>(
    subnets: impl Iterator<Item = (&'a Age, &'a Network)>,
    l2_segments: &HashMap<Provider, String>,
    has_claims: impl Fn(&str, Ipv4Net) -> bool,
) -> HashMap<String, InvalidSubnet> {
    let segment = |network: &Network| {
        let known = l2_segments.get(&network.provider).cloned();
        known.unwrap_or_else(|| network.provider.to_string())
    };
    let all: Vec<(String, &Age, &Network)> =
        subnets.map(|(age, network)| (segment(network), age, network)).collect();
    let meet = |(segment, _, one): &(String, &Age, &Network), other: &(String, &Age, &Network)| {
        *segment == other.0 && (one.cidr.contains(&other.2.cidr) || other.2.cidr.contains(&one.cidr))
    };
    let holds = |subnet: &(String, &Age, &Network)| {
        let mut others = all.iter().filter(|other| other.1 != subnet.1 && meet(subnet, other));
        others.any(|(_, _, other)| has_claims(&subnet.1.1, other.cidr))
    };
    let mut in_order: Vec<(bool, &(String, &Age, &Network))> =
        all.iter().map(|subnet| (!holds(subnet), subnet)).collect();
    in_order.sort_by_key(|(is_without, (_, age, _))| (*is_without, *age));
    let mut valid: Vec<&(String, &Age, &Network)> = Vec::new();
    let mut overlaps = HashMap::new();
    for (_, subnet) in in_order {
        match valid.iter().find(|other| meet(subnet, other)) {
            Some((_, (_, preceding), _)) => {
                let overlap = InvalidSubnet::Overlaps(subnet.2.cidr.into(), preceding.clone());
                overlaps.insert(subnet.1.1.clone(), overlap);
            }
            None => valid.push(subnet),
        }
    }
    overlaps
}
