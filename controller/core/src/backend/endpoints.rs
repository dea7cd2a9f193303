//! The endpoints of a Service's ports, by kube-proxy's rules for EndpointSlices.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use lb_svc_crds::gateway::{Subset, TargetPort, Transport};

use crate::model::{Endpoint, EndpointPort, EndpointSlice, PodId, ServicePort};
use crate::service::spec::transport;

/// Whether an endpoint gets new connections, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EndpointCondition {
    /// Not used.
    NotServing,
    /// Used only if no endpoint of the port is ready.
    ServingTerminating,
    /// Used.
    Ready,
}

impl Endpoint {
    /// The condition of the endpoint. A pod that `is_ready_except_gate` counts as
    /// ready: its slice calls it ready once the gate is satisfied.
    fn condition(&self, is_ready_except_gate: impl Fn(PodId) -> bool) -> EndpointCondition {
        match self {
            Self { ready: true, .. } => EndpointCondition::Ready,
            Self { serving: true, terminating: true, .. } => EndpointCondition::ServingTerminating,
            Self { terminating: false, pod: Some(pod), .. } if is_ready_except_gate(*pod) => {
                EndpointCondition::Ready
            }
            _ => EndpointCondition::NotServing,
        }
    }
}

/// Some of a Service's slices, by number.
type Members = Vec<usize>;
/// The addresses for new connections, and those that only keep theirs.
type Addresses = (Vec<IpAddr>, Vec<IpAddr>);

/// The endpoints of `ports`. A pod that `is_ready_except_gate` is ready, whatever
/// its slice says.
///
/// A port without any endpoint is in no subset; one whose endpoints serve it
/// by different numbers is in several.
pub fn subsets(
    ports: &[ServicePort],
    slices: &[Arc<EndpointSlice>],
    is_ready_except_gate: impl Fn(PodId) -> bool,
) -> Vec<Subset> {
    let mut numbers: HashMap<(&str, Transport), BTreeMap<u16, Members>> = HashMap::new();
    for (n, slice) in slices.iter().enumerate() {
        for EndpointPort { name, protocol, port } in &slice.ports {
            numbers.entry((name, *protocol)).or_default().entry(*port).or_default().push(n);
        }
    }
    // Most often all ports have the same endpoints: those are chosen once.
    let mut alike: BTreeMap<Vec<&Members>, Vec<Vec<TargetPort>>> = BTreeMap::new();
    for ServicePort { name, protocol, port } in ports {
        let Some(protocol) = transport(protocol) else { continue };
        let Some(targets) = numbers.get(&(name.as_str(), protocol)) else { continue };
        let ports = targets.keys().map(|target| TargetPort { protocol, port: *port, target_port: *target });
        alike.entry(targets.values().collect()).or_default().push(ports.collect());
    }
    let mut subsets: BTreeMap<Addresses, Vec<Vec<TargetPort>>> = BTreeMap::new();
    for (members, ports) in alike {
        for (n, addresses) in choose(slices, &members, &is_ready_except_gate).into_iter().enumerate() {
            if addresses == Addresses::default() {
                continue;
            }
            let groups = subsets.entry(addresses).or_default();
            for port in ports.iter().map(|ports| ports[n]) {
                // One number for a port in each subset.
                let taken = |known: &TargetPort| (known.protocol, known.port) == (port.protocol, port.port);
                match groups.iter_mut().find(|group| !group.iter().any(taken)) {
                    Some(group) => group.push(port),
                    None => groups.push(vec![port]),
                }
            }
        }
    }
    let whole = |((addresses, draining), groups): (Addresses, Vec<Vec<TargetPort>>)| {
        groups.into_iter().map(move |mut ports| {
            ports.sort_unstable();
            Subset { ports, addresses: addresses.clone(), draining: draining.clone() }
        })
    };
    let mut subsets: Vec<Subset> = subsets.into_iter().flat_map(whole).collect();
    subsets.sort_unstable();
    subsets
}

/// The endpoints of one port, which the slices of each of `members` serve by
/// another number: all that are ready, or else those that serve while they
/// terminate.
fn choose(
    slices: &[Arc<EndpointSlice>],
    members: &[&Members],
    is_ready_except_gate: &impl Fn(PodId) -> bool,
) -> Vec<Addresses> {
    let conditions = members.iter().map(|members| {
        let mut conditions: BTreeMap<Ipv4Addr, EndpointCondition> = BTreeMap::new();
        for endpoint in members.iter().flat_map(|n| &slices[*n].endpoints) {
            // It may be in two slices while it moves from one to the other.
            let condition = conditions.entry(endpoint.address).or_insert(EndpointCondition::NotServing);
            *condition = endpoint.condition(is_ready_except_gate).max(*condition);
        }
        conditions
    });
    let conditions: Vec<_> = conditions.collect();
    let best = conditions.iter().flat_map(BTreeMap::values).max().copied();
    let best = best.unwrap_or(EndpointCondition::NotServing).max(EndpointCondition::ServingTerminating);
    let part = |conditions: BTreeMap<Ipv4Addr, EndpointCondition>| {
        let (chosen, others): (Vec<_>, Vec<_>) =
            conditions.into_iter().partition(|(_, condition)| *condition == best);
        let addresses =
            |part: Vec<(Ipv4Addr, EndpointCondition)>| part.into_iter().map(|(ip, _)| ip.into()).collect();
        (addresses(chosen), addresses(others))
    };
    conditions.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{endpoint, port, slice};

    fn named(name: &str, protocol: &str, number: u16) -> ServicePort {
        ServicePort { name: name.to_owned(), ..port(protocol, number) }
    }

    /// Subsets as `80>8080/TCP 81>8081/TCP: 1 2 - 3`.
    fn shown(subsets: &[Subset]) -> Vec<String> {
        let last = |address: &IpAddr| address.to_string().rsplit('.').next().unwrap().to_owned();
        let text = |subset: &Subset| {
            let ports = subset.ports.iter().map(|TargetPort { protocol, port, target_port }| {
                format!("{port}>{target_port}/{}", protocol.name())
            });
            let addresses = |part: &[IpAddr]| part.iter().map(last).collect::<Vec<_>>().join(" ");
            let draining = match subset.draining.is_empty() {
                true => String::new(),
                false => format!(" - {}", addresses(&subset.draining)),
            };
            format!("{}: {}{draining}", ports.collect::<Vec<_>>().join(" "), addresses(&subset.addresses))
        };
        subsets.iter().map(text).collect()
    }

    fn of(ports: &[ServicePort], slices: &[EndpointSlice]) -> Vec<String> {
        let slices: Vec<Arc<EndpointSlice>> = slices.iter().cloned().map(Arc::new).collect();
        shown(&subsets(ports, &slices, |_| false))
    }

    use Transport::{Tcp, Udp};

    #[test]
    fn port_is_matched_by_name_and_protocol() {
        let web = slice(
            &[("web", Tcp, 8080), ("dns", Udp, 53), ("dns-tcp", Tcp, 53)],
            &[(2, "ready"), (1, "ready")],
        );
        let ports = [named("web", "TCP", 80), named("dns", "UDP", 53), named("none", "TCP", 9)];
        assert_eq!(of(&ports, std::slice::from_ref(&web)), ["80>8080/tcp 53>53/udp: 1 2"]);
        assert_eq!(of(&[named("dns", "TCP", 53)], std::slice::from_ref(&web)), [""; 0]);
        assert_eq!(of(&[named("web", "SCTP", 80)], &[web]), [""; 0]);
        let alone = slice(&[("", Tcp, 8080)], &[(1, "ready")]);
        assert_eq!(of(&[port("TCP", 80)], &[alone]), ["80>8080/tcp: 1"]);
    }

    #[test]
    fn terminating_endpoint_serves_only_if_none_is_ready() {
        let pods = |endpoints: &[(u8, &str)]| of(&[port("TCP", 80)], &[slice(&[("", Tcp, 8080)], endpoints)]);
        assert_eq!(
            pods(&[(1, "ready"), (2, "unready"), (3, "leaving"), (4, "gone")]),
            ["80>8080/tcp: 1 - 2 3 4"]
        );
        assert_eq!(pods(&[(2, "unready"), (3, "leaving"), (4, "gone")]), ["80>8080/tcp: 3 - 2 4"]);
        assert_eq!(pods(&[(2, "unready"), (4, "gone")]), ["80>8080/tcp:  - 2 4"]);
        assert_eq!(pods(&[]), [""; 0]);
    }

    #[test]
    fn port_with_several_numbers_is_in_several_subsets() {
        // A named targetPort, in the middle of a roll-out.
        let old = slice(&[("web", Tcp, 8080), ("more", Tcp, 9000)], &[(1, "ready"), (2, "leaving")]);
        let new = slice(&[("web", Tcp, 8081), ("more", Tcp, 9000)], &[(3, "ready")]);
        let ports = [named("web", "TCP", 80), named("more", "TCP", 90)];
        assert_eq!(
            of(&ports, &[old.clone(), new]),
            ["80>8080/tcp: 1 - 2", "80>8081/tcp: 3", "90>9000/tcp: 1 3 - 2"]
        );
        // Those who are ready are looked for among all of the port's.
        let leaving = slice(&[("web", Tcp, 8081)], &[(4, "leaving")]);
        assert_eq!(of(&ports[..1], &[old, leaving]), ["80>8080/tcp: 1 - 2", "80>8081/tcp:  - 4"]);
        // The same pods by two numbers.
        let twice = [slice(&[("web", Tcp, 1)], &[(1, "ready")]), slice(&[("web", Tcp, 2)], &[(1, "ready")])];
        assert_eq!(of(&ports[..1], &twice), ["80>1/tcp: 1", "80>2/tcp: 1"]);
    }

    #[test]
    fn endpoint_in_two_slices_is_one() {
        let ports = [("", Tcp, 80)];
        let slices = [slice(&ports, &[(1, "unready"), (2, "ready")]), slice(&ports, &[(1, "ready")])];
        assert_eq!(of(&[port("TCP", 80)], &slices), ["80>80/tcp: 1 2"]);
    }

    #[test]
    fn endpoint_ready_except_gate_is_ready() {
        let slices = [slice(&[("", Tcp, 80)], &[(1, "ready"), (2, "unready"), (3, "unready"), (4, "gone")])];
        let slices = slices.map(Arc::new);
        let fit = [2, 4].map(|last| PodId::of(&format!("uid-{last}")));
        let subsets = subsets(&[port("TCP", 80)], &slices, |pod| fit.contains(&pod));
        assert_eq!(shown(&subsets), ["80>80/tcp: 1 2 - 3 4"], "unless it is on its way out");
    }

    #[test]
    fn many_ports_with_many_endpoints_take_no_time() {
        let names: Vec<String> = (0..1000).map(|n| format!("p{n}")).collect();
        let numbers: Vec<_> = names.iter().zip(1..).map(|(name, n)| (name.as_str(), Tcp, n)).collect();
        let slices = (0..50).map(|k| {
            let mut slice = slice(&numbers, &[]);
            slice.endpoints = (0..100)
                .map(|n| Endpoint { address: Ipv4Addr::new(10, 1, k, n), ..endpoint(1, "ready") })
                .collect();
            Arc::new(slice)
        });
        let slices: Vec<_> = slices.collect();
        let ports: Vec<_> = names.iter().zip(1..).map(|(name, n)| named(name, "TCP", n)).collect();
        let start = std::time::Instant::now();
        let subsets = subsets(&ports, &slices, |_| false);
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!((subsets.len(), subsets[0].ports.len(), subsets[0].addresses.len()), (1, 1000, 5000));
    }

    fn slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
        let endpoint = (1_u8..12, prop::sample::select(vec!["ready", "unready", "leaving", "gone"]));
        let port =
            (prop::sample::select(vec!["a", "b", "c"]), prop::sample::select(vec![Tcp, Udp]), 1_u16..4);
        let one = (prop::collection::vec(port, 0..4), prop::collection::vec(endpoint, 0..8));
        prop::collection::vec(one.prop_map(|(ports, endpoints)| slice(&ports, &endpoints)), 0..5)
    }

    proptest! {
        /// Each endpoint of a port is in exactly one place, and new connections
        /// go to the best of them.
        #[test]
        fn endpoint_is_in_exactly_one_place(slices in slices(), shuffle: prop::sample::Index) {
            let ports = [named("a", "TCP", 1), named("b", "TCP", 2), named("c", "UDP", 1)];
            let mut slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
            let all = subsets(&ports, &slices, |_| false);
            for port in &ports {
                let protocol = transport(&port.protocol).unwrap();
                let mut said: BTreeMap<(u16, Ipv4Addr), EndpointCondition> = BTreeMap::new();
                for slice in &slices {
                    let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == protocol);
                    for (number, endpoint) in numbers.flat_map(|p| slice.endpoints.iter().map(|e| (p.port, e))) {
                        let known = said.entry((number, endpoint.address)).or_insert(EndpointCondition::NotServing);
                        *known = endpoint.condition(|_| false).max(*known);
                    }
                }
                let best = said.values().max().copied().filter(|best| *best > EndpointCondition::NotServing);
                let (mut chosen, mut draining) = (Vec::new(), Vec::new());
                for subset in &all {
                    let numbers = subset.ports.iter().filter(|p| (p.protocol, p.port) == (protocol, port.port));
                    let numbers: Vec<u16> = numbers.map(|p| p.target_port).collect();
                    prop_assert!(numbers.len() <= 1, "{subset:?}");
                    for number in numbers {
                        chosen.extend(subset.addresses.iter().map(|address| (number, *address)));
                        draining.extend(subset.draining.iter().map(|address| (number, *address)));
                    }
                }
                let expected = |take: &dyn Fn(EndpointCondition) -> bool| -> Vec<(u16, IpAddr)> {
                    let part = said.iter().filter(|(_, condition)| take(**condition));
                    part.map(|((number, ip), _)| (*number, IpAddr::from(*ip))).collect()
                };
                chosen.sort_unstable();
                draining.sort_unstable();
                prop_assert_eq!(chosen, expected(&|condition| Some(condition) == best));
                prop_assert_eq!(draining, expected(&|condition| Some(condition) != best));
            }
            // The order of what is seen is none of what is said.
            if !slices.is_empty() {
                let n = shuffle.index(slices.len());
                slices.rotate_left(n);
                prop_assert_eq!(subsets(&ports, &slices, |_| false), all);
            }
        }
    }
}
