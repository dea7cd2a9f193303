//! The whole desired state: network state and data path.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::config::{self, Config, Forwards, Target};
use crate::datapath::{self, filter, nat, source_ranges};
use crate::route;
use crate::route::desired::Lan;
use crate::route::model::{Link, NetworkState};

/// Everything that a run programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Settings, routes, rules and addresses.
    pub route: route::desired::Desired,
    /// Filter, source ranges and NAT.
    pub datapath: datapath::Desired,
}

impl Desired {
    /// Returns the desired state, and the ClusterIPs that the pod has no route to,
    /// which are left out of it. `forwards` is the configuration's forwarding table
    /// with the health of endpoints applied; addresses in `absent` are not assigned.
    pub fn new(
        config: &Config,
        forwards: &Forwards,
        state: &NetworkState,
        lan: &Lan,
        primary: &Link,
        absent: &BTreeSet<Ipv4Addr>,
    ) -> (Self, Vec<Ipv4Addr>) {
        let mut targets = config::targets(forwards);
        let (route, unreachable) = route::desired::desired(config, &targets, state, lan, primary, absent);
        targets.retain(|_, target| !matches!(target, Target::ClusterIp(ip) if unreachable.contains(ip)));
        let name = &lan.link.name;
        let addresses = config.addresses.iter().map(|a| a.address).collect();
        let datapath = datapath::Desired {
            filter: filter::Desired { lan: name.clone(), addresses },
            source_ranges: source_ranges::limits(forwards),
            nat: nat::Desired { backend: config.nat, lan: name.clone(), targets },
        };
        (Self { route, datapath }, unreachable)
    }

    /// The desired addresses that the interface has in this state.
    pub fn assigned(&self, state: &NetworkState) -> Vec<Ipv4Addr> {
        let assigned = self.route.addresses.iter().filter(|address| state.addresses.contains(address));
        assigned.map(|address| address.address).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::route::desired::tests::{config, state};

    /// The desired state of the fixture's configuration for a pod in this state.
    pub(crate) fn made(state: &NetworkState) -> (Desired, Vec<Ipv4Addr>) {
        let lan = Lan { link: state.links[1].clone(), foreign_addresses: BTreeSet::new() };
        let config = config();
        Desired::new(&config, &config.forwards, state, &lan, &state.links[0], &BTreeSet::new())
    }

    #[test]
    fn unreachable_cluster_ip_is_left_out_of_the_nat() {
        let mut state = state();
        assert_eq!(made(&state).0.datapath.nat.targets.len(), 3);
        state.routes.remove(0);
        let (desired, unreachable) = made(&state);
        assert_eq!(unreachable, [Ipv4Addr::new(10, 109, 201, 193)]);
        assert_eq!(desired.datapath.nat.targets.len(), 1);
    }

    #[test]
    fn absent_address_leaves_the_datapath() {
        let (state, config) = (state(), config());
        let lan = Lan { link: state.links[1].clone(), foreign_addresses: BTreeSet::new() };
        let absent = [Ipv4Addr::new(172, 18, 0, 18)].into();
        let (desired, _) = Desired::new(&config, &config.forwards, &state, &lan, &state.links[0], &absent);
        let (whole, _) = made(&state);
        assert_eq!(desired.datapath, whole.datapath);
        assert_ne!(desired.route, whole.route);
    }

    #[test]
    fn keeps_is_independent_of_addresses() {
        let (whole, _) = made(&state());
        let mut standby = whole.clone();
        standby.route.addresses.clear();
        assert!(standby.datapath.keeps(&whole.datapath), "another pod goes on serving");
    }

    #[test]
    fn assigned_addresses_are_those_of_the_kernel() {
        let mut state = state();
        let (desired, _) = made(&state);
        assert_eq!(desired.assigned(&state), [] as [Ipv4Addr; 0]);
        state.addresses.push(desired.route.addresses[1].clone());
        assert_eq!(desired.assigned(&state), [Ipv4Addr::new(172, 18, 0, 19)]);
    }
}
