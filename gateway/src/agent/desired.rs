//! The whole desired state: network state and data path.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::config::{self, Config, Forwards, Frontend, Target, Targets};
use crate::datapath::{self, filter, nat, redirect, source_ranges};
use crate::route;
use crate::route::desired::Lan;
use crate::route::model::{Link, NetworkState};

/// Everything that a run programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Settings, routes, rules and addresses.
    pub route: route::desired::Desired,
    /// Filter, source ranges, NAT, and the way to the proxy.
    pub datapath: datapath::Desired,
}

impl Desired {
    /// Returns the desired state, and the ClusterIPs that the pod has no route to,
    /// which are left out of it. `forwards` is the configuration's forwarding table
    /// with the health of endpoints applied; addresses in `absent` are not assigned. The
    /// proxy has a `listener` where anything is proxied.
    pub fn new(
        config: &Config,
        forwards: &Forwards,
        state: &NetworkState,
        lan: &Lan,
        primary: &Link,
        absent: &BTreeSet<Ipv4Addr>,
        listener: Option<SocketAddrV4>,
    ) -> (Self, Vec<Ipv4Addr>) {
        let mut targets = config::targets(forwards);
        let (route, unreachable) = route::desired::desired(config, &targets, state, lan, primary, absent);
        targets.retain(|_, target| !matches!(target, Target::ClusterIp(ip) if unreachable.contains(ip)));
        let name = &lan.link.name;
        let addresses = config.addresses.iter().map(|a| a.address).collect();
        let is_proxied = |frontend: &Frontend| forwards.get(frontend).is_some_and(|forward| forward.proxied);
        let (proxied, targets): (Targets, Targets) =
            targets.into_iter().partition(|(frontend, _)| is_proxied(frontend));
        let ports = proxied.keys().map(|frontend| SocketAddrV4::new(frontend.address, frontend.port));
        let datapath = datapath::Desired {
            filter: filter::Desired { lan: name.clone(), addresses, proxied: ports.collect() },
            source_ranges: source_ranges::limits(forwards),
            nat: nat::Desired { backend: config.nat, lan: name.clone(), targets },
            proxy: listener.filter(|_| !proxied.is_empty()).map(|listener| redirect::Desired {
                lan: name.clone(),
                listener,
                targets: proxied,
            }),
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
        Desired::new(&config, &config.forwards, state, &lan, &state.links[0], &BTreeSet::new(), None)
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
        let (desired, _) =
            Desired::new(&config, &config.forwards, &state, &lan, &state.links[0], &absent, None);
        let (whole, _) = made(&state);
        assert_eq!(desired.datapath, whole.datapath);
        assert_ne!(desired.route, whole.route);
    }

    #[test]
    fn proxied_port_is_the_proxys_and_not_the_nats() {
        let (state, mut config) = (state(), config());
        let (whole, _) = made(&state);
        let (frontend, forward) = config.forwards.iter_mut().next().unwrap();
        forward.proxied = true;
        let frontend = *frontend;
        let lan = Lan { link: state.links[1].clone(), foreign_addresses: BTreeSet::new() };
        let listener = "127.0.0.1:4711".parse().unwrap();
        let (primary, absent) = (&state.links[0], BTreeSet::new());
        let (desired, _) =
            Desired::new(&config, &config.forwards, &state, &lan, primary, &absent, Some(listener));
        let datapath = &desired.datapath;
        assert!(!datapath.nat.targets.contains_key(&frontend));
        assert_eq!(datapath.proxy.as_ref().unwrap().targets.keys().collect::<Vec<_>>(), [&frontend]);
        assert_eq!(datapath.filter.proxied, [SocketAddrV4::new(frontend.address, frontend.port)].into());
        assert_eq!(datapath.targets().count(), whole.datapath.targets().count());
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
