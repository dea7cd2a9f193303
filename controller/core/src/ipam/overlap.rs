//! Subnets that overlap.

use std::collections::HashMap;

use lb_svc_crds::names::Provider;

use super::{InvalidSubnet, Network};

/// When a Subnet was created, and its name: of two that overlap the older one
/// stays.
pub type Age = (Option<jiff::Timestamp>, String);

/// The Subnets, by name, that have addresses of an older one on their L2
/// segment. An attachment whose segment is not known is one of its own.
pub fn find<'a>(
    subnets: impl Iterator<Item = (&'a Age, &'a Network)>,
    l2_segments: &HashMap<Provider, String>,
) -> HashMap<String, InvalidSubnet> {
    let mut by_age: Vec<(&Age, &Network)> = subnets.collect();
    by_age.sort_by_key(|(age, _)| *age);
    let mut valid: Vec<(String, &Age, &Network)> = Vec::new();
    let mut overlaps = HashMap::new();
    for (age, network) in by_age {
        let segment = l2_segments.get(&network.provider).cloned();
        let segment = segment.unwrap_or_else(|| network.provider.to_string());
        let meets = |(other_segment, _, other): &&(String, &Age, &Network)| {
            *other_segment == segment
                && (other.cidr.contains(&network.cidr) || network.cidr.contains(&other.cidr))
        };
        match valid.iter().find(meets) {
            Some((_, (_, older), _)) => {
                overlaps.insert(age.1.clone(), InvalidSubnet::Overlaps(network.cidr.into(), older.clone()));
            }
            None => valid.push((segment, age, network)),
        }
    }
    overlaps
}
