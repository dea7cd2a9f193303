//! What the kernel is to look like: the configuration, given the pod's
//! interfaces and its own routes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::{Config, Forwards, Target, cluster_ips};
use crate::fault::Fault;
use crate::filter;
use crate::kernel::{Address, Hop, Kernel, Link, MAIN, Route, Rule, Setting, TABLE};
use crate::nat;
use crate::ranges::Ranges;

/// Where frontends lead to endpoints: what comes from the LAN and is not the
/// pod's own goes to one of them, whose next hops only the pod's own table has.
pub const PRIORITY_DIRECT: u32 = 32762;
/// Before the rules by interface: what the pod itself answers from one of the
/// addresses.
const PRIORITY_FROM: u32 = 32763;
/// What comes from the cluster.
const PRIORITY_PRIMARY: u32 = 32764;
/// What comes from the LAN.
const PRIORITY_LAN: u32 = 32765;

/// Everything the gateway sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface.
    pub lan: u32,
    /// The LAN interface's addresses from its own IPAM; not ours to remove.
    pub foreign_addresses: BTreeSet<Ipv4Addr>,
    /// Settings by interface.
    pub settings: Vec<(u32, Setting, u32)>,
    /// Table 100, in the order of adding: a router must be reachable first.
    pub routes: Vec<Route>,
    /// The rules that look it up.
    pub rules: Vec<Rule>,
    /// The LAN interface's addresses.
    pub addresses: Vec<Address>,
    /// What passes.
    pub filter: filter::Desired,
    /// The NAT.
    pub nat: nat::Desired,
    /// Who may connect.
    pub ranges: Ranges,
}

/// The desired state, with the configuration's `forwards` as they are now, and
/// what of it has to be left out. The interface does not get the addresses that
/// are `withheld`.
pub fn desired(
    config: &Config,
    mut forwards: Forwards,
    kernel: &Kernel,
    lan: &Link,
    primary: &Link,
    foreign_addresses: BTreeSet<Ipv4Addr>,
    withheld: &BTreeSet<Ipv4Addr>,
) -> (Desired, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut routes = Vec::new();
    for network in in_order(config.addresses.iter().map(|address| address.network)) {
        routes.push(Route::unicast(TABLE, network, Hop::Direct { oif: lan.index }));
    }
    for target in in_order(cluster_ips(&config.forwards).map(|(_, target)| target)) {
        match kernel.route_to(target).map(|route| route.hop) {
            Some(hop @ (Hop::Direct { .. } | Hop::Via { .. })) => {
                routes.push(Route::unicast(TABLE, Ipv4Net::from(target), hop));
            }
            Some(Hop::Other) | None => {
                forwards.retain(|_, to| *to != Target::ClusterIp(target));
                faults.push(Fault::ClusterIpUnreachable(target));
            }
        }
    }
    // One default route only: replies to clients behind routers leave by the
    // first Subnet's router, whichever address they came to.
    if let Some(gateway) = config.addresses.iter().find_map(|address| address.gateway) {
        let hop = Hop::Via { oif: lan.index, gateway, onlink: false };
        routes.push(Route::unicast(TABLE, Ipv4Net::default(), hop));
    }

    let rule = |priority, table, source, iif: Option<&Link>| Rule {
        priority,
        table,
        source,
        iif: iif.map(|link| link.name.clone()),
        plain: true,
    };
    let mut rules = Vec::new();
    if forwards.values().any(|target| target.endpoints().is_some()) {
        rules.push(rule(PRIORITY_DIRECT, MAIN, None, Some(lan)));
    }
    let from = |address| rule(PRIORITY_FROM, TABLE, Some(Ipv4Net::from(address)), None);
    rules.extend(config.addresses.iter().map(|a| from(a.address)));
    rules.push(rule(PRIORITY_PRIMARY, TABLE, None, Some(primary)));
    rules.push(rule(PRIORITY_LAN, TABLE, None, Some(lan)));

    let free = config.addresses.iter().filter(|address| !withheld.contains(&address.address));
    let addresses = free.map(|address| Address {
        interface: lan.index,
        address: address.address,
        prefix_len: address.network.prefix_len(),
        global: true,
        // The pod's own table stays as its CNI made it: by macvlan it could
        // not even reach its own node.
        no_prefix_route: true,
        plain: true,
    });
    let desired = Desired {
        lan: lan.index,
        foreign_addresses,
        settings: settings(lan.index, primary.index, kernel.rp_filter),
        routes,
        rules,
        addresses: addresses.collect(),
        nat: nat::Desired { backend: config.nat, lan: lan.name.clone(), forwards },
        filter: filter::Desired {
            lan: lan.name.clone(),
            addresses: config.addresses.iter().map(|a| a.address).collect(),
        },
        ranges: config.ranges.clone(),
    };
    (desired, faults)
}

fn settings(lan: u32, primary: u32, rp_filter_of_all: u32) -> Vec<(u32, Setting, u32)> {
    // A look at the way back to the sender costs each packet as much as that at
    // the way on, and refuses nobody here: there is a default route back to
    // anyone. The kernel leaves it out where the pod's own addresses may come
    // from outside as well (to which the answer would stay in the pod). It takes
    // the larger of an interface's `rp_filter` and `all`'s, though; then at least
    // loose, for clients behind routers arrive where no route leads back to them
    // but table 100's.
    let (rp_filter, accept_local) = if rp_filter_of_all == 0 { (0, 1) } else { (2, 0) };
    let both = [lan, primary].into_iter().flat_map(|interface| {
        [(Setting::Forwarding, 1), (Setting::RpFilter, rp_filter), (Setting::AcceptLocal, accept_local)]
            .map(|(setting, value)| (interface, setting, value))
    });
    let of_lan = [
        // Answer for the interface's own addresses only, and never speak for
        // the pod's address on the LAN.
        (lan, Setting::ArpIgnore, 1),
        (lan, Setting::ArpAnnounce, 2),
        (lan, Setting::AcceptRedirects, 0),
        (lan, Setting::SendRedirects, 0),
        // Else removing the first of several addresses removes them all.
        (lan, Setting::PromoteSecondaries, 1),
    ];
    both.chain(of_lan).collect()
}

/// Without repetitions, in the order of first appearance.
fn in_order<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

impl Desired {
    /// Whether all that was served `before` still is, by this pod or another of
    /// the gateway's, and leads where it did, or to more, for the same clients.
    pub fn keeps(&self, before: &Self) -> bool {
        let leads_there = |now: &Target, then: &Target| match (now, then) {
            // Where nobody was, clients may wait who were refused.
            (Target::Endpoints(now), Target::Endpoints(then)) => {
                now.live.is_superset(&then.live)
                    && now.draining.is_superset(&then.draining)
                    && (!then.live.is_empty() || now.live.is_empty())
            }
            _ => now == then,
        };
        let same = |(served, target)| {
            self.nat.forwards.get(served).is_some_and(|now| leads_there(now, target))
                && self.ranges.get(served) == before.ranges.get(served)
        };
        before.nat.forwards.iter().all(same)
    }

    /// What is served, as far as it can be.
    pub fn forwards(&self) -> &Forwards {
        &self.nat.forwards
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{self, Endpoints};

    pub(crate) fn kernel() -> Kernel {
        let link = |index, name: &str| Link { index, name: name.to_owned(), ..Link::default() };
        let gateway = "10.16.0.1".parse().unwrap();
        let via = Hop::Via { oif: 2, gateway, onlink: false };
        Kernel {
            links: vec![link(2, "eth0"), link(3, "net1")],
            routes: vec![
                Route::unicast(MAIN, Ipv4Net::default(), via),
                Route::unicast(MAIN, "10.16.0.0/16".parse().unwrap(), Hop::Direct { oif: 2 }),
            ],
            ..Kernel::default()
        }
    }

    pub(crate) fn config() -> Config {
        config::parse(
            br#"{"version": 1, "attachment": "kube-system/lb-svc-attachment",
            "addresses": [
              {"address": "172.18.0.18", "cidr": "172.18.0.0/16", "gateway": "172.18.0.1", "subnet": "a"},
              {"address": "172.18.0.19", "cidr": "172.18.0.0/16", "gateway": "172.18.0.1", "subnet": "a"},
              {"address": "192.0.2.9", "cidr": "192.0.2.0/24", "gateway": "192.0.2.1", "subnet": "b"}
            ],
            "frontends": [{"service": "default/one", "addresses": ["172.18.0.18"],
              "target": {"kind": "clusterIp", "addresses": ["10.109.201.193"]},
              "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 8080}]},
             {"service": "default/two", "addresses": ["192.0.2.9"],
              "target": {"kind": "clusterIp", "addresses": ["10.16.3.3"]},
              "ports": [{"protocol": "UDP", "port": 53}]}]}"#,
        )
        .unwrap()
    }

    pub(crate) fn made(kernel: &Kernel) -> (Desired, Vec<Fault>) {
        let config = config();
        let forwards = config.forwards.clone();
        desired(
            &config,
            forwards,
            kernel,
            &kernel.links[1],
            &kernel.links[0],
            BTreeSet::new(),
            &BTreeSet::new(),
        )
    }

    #[test]
    fn the_way_back_is_looked_at_only_where_the_kernel_is_to_anyway() {
        let set = |rp_filter| {
            let kernel = Kernel { rp_filter, ..kernel() };
            let settings = made(&kernel).0.settings;
            let of = |setting| {
                let of = settings.iter().filter(move |(_, which, _)| *which == setting);
                of.map(|(interface, _, value)| (*interface, *value)).collect::<Vec<_>>()
            };
            (of(Setting::RpFilter), of(Setting::AcceptLocal))
        };
        assert_eq!(set(0), (vec![(3, 0), (2, 0)], vec![(3, 1), (2, 1)]));
        for strict_or_loose in [1, 2] {
            assert_eq!(set(strict_or_loose), (vec![(3, 2), (2, 2)], vec![(3, 0), (2, 0)]));
        }
    }

    #[test]
    fn a_withheld_address_is_all_that_is_left_out() {
        let kernel = kernel();
        let (whole, _) = made(&kernel);
        let withheld = [Ipv4Addr::new(172, 18, 0, 18)].into();
        let (config, links) = (config(), &kernel.links);
        let forwards = config.forwards.clone();
        let (mut desired, faults) =
            desired(&config, forwards, &kernel, &links[1], &links[0], BTreeSet::new(), &withheld);
        assert_eq!(faults, []);
        desired.addresses.insert(0, whole.addresses[0].clone());
        assert_eq!(desired, whole);
    }

    #[test]
    fn table_100_holds_the_lans_the_cluster_ips_and_one_default() {
        let (desired, faults) = made(&kernel());
        assert_eq!(faults, []);
        let lines: Vec<(String, Hop)> =
            desired.routes.iter().map(|route| (route.destination.to_string(), route.hop)).collect();
        let via = |oif, gateway: &str| Hop::Via { oif, gateway: gateway.parse().unwrap(), onlink: false };
        assert_eq!(
            lines,
            [
                ("172.18.0.0/16".to_owned(), Hop::Direct { oif: 3 }),
                ("192.0.2.0/24".to_owned(), Hop::Direct { oif: 3 }),
                ("10.109.201.193/32".to_owned(), via(2, "10.16.0.1")),
                // On the pod's own network: no router in between.
                ("10.16.3.3/32".to_owned(), Hop::Direct { oif: 2 }),
                ("0.0.0.0/0".to_owned(), via(3, "172.18.0.1")),
            ]
        );
    }

    #[test]
    fn the_rules_are_the_documented_ones() {
        let (desired, _) = made(&kernel());
        let lines: Vec<String> = desired
            .rules
            .iter()
            .map(|rule| {
                let from = rule.source.map_or("all".to_owned(), |net| net.addr().to_string());
                let iif = rule.iif.as_ref().map_or(String::new(), |name| format!(" iif {name}"));
                format!("{}: from {from}{iif} lookup {}", rule.priority, rule.table)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "32763: from 172.18.0.18 lookup 100",
                "32763: from 172.18.0.19 lookup 100",
                "32763: from 192.0.2.9 lookup 100",
                "32764: from all iif eth0 lookup 100",
                "32765: from all iif net1 lookup 100",
            ]
        );
    }

    #[test]
    fn what_only_grows_keeps_what_it_had() {
        let (less, more) = {
            let (desired, _) = made(&kernel());
            let mut less = desired.clone();
            let first = *less.nat.forwards.keys().next().unwrap();
            less.nat.forwards.remove(&first);
            (less, desired)
        };
        assert!(more.keeps(&less) && more.keeps(&more));
        assert!(!less.keeps(&more));
        let mut elsewhere = more.clone();
        *elsewhere.nat.forwards.values_mut().next().unwrap() = Target::ClusterIp("10.0.0.9".parse().unwrap());
        assert!(!elsewhere.keeps(&more));
        let direct = |live: &[&str], draining: &[&str]| {
            let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let endpoints = Endpoints { live: at(live), draining: at(draining), ..Endpoints::default() };
            let mut direct = more.clone();
            *direct.nat.forwards.values_mut().next().unwrap() = Target::Endpoints(Arc::new(endpoints));
            direct
        };
        let (one, two) = (direct(&["10.0.0.1:80"], &[]), direct(&["10.0.0.1:80", "10.0.0.2:80"], &[]));
        assert!(two.keeps(&one) && !one.keeps(&two) && !one.keeps(&more));
        assert!(!direct(&["10.0.0.1:80"], &["10.0.0.2:80"]).keeps(&two), "UDP does not drain");
        assert!(!one.keeps(&direct(&["10.0.0.1:80"], &["10.0.0.2:80"])), "it is gone");
        assert!(!one.keeps(&direct(&[], &[])), "who was refused may be waiting");
        let mut limited = more.clone();
        limited.ranges.insert(*limited.nat.forwards.keys().next().unwrap(), Default::default());
        assert!(!limited.keeps(&more));
        let mut standby = more.clone();
        standby.addresses.clear();
        assert!(standby.keeps(&more), "another pod serves on");
    }

    #[test]
    fn endpoints_are_reached_as_the_pod_itself_reaches_them() {
        let kernel = kernel();
        let (whole, _) = made(&kernel);
        let config = config();
        let mut forwards = config.forwards.clone();
        *forwards.values_mut().next().unwrap() = Target::Endpoints(Arc::default());
        let links = &kernel.links;
        let none = BTreeSet::new();
        let (desired, _) = desired(&config, forwards, &kernel, &links[1], &links[0], BTreeSet::new(), &none);
        assert_eq!(desired.rules[1..], whole.rules);
        let rule = &desired.rules[0];
        assert_eq!((rule.priority, rule.table, rule.iif.as_deref()), (32762, MAIN, Some("net1")));
        assert_eq!(desired.routes, whole.routes, "table 100 is as it was");
    }

    #[test]
    fn an_unreachable_cluster_ip_takes_only_itself_down() {
        let mut kernel = kernel();
        kernel.routes.remove(0);
        let (desired, faults) = made(&kernel);
        assert_eq!(faults, [Fault::ClusterIpUnreachable("10.109.201.193".parse().unwrap())]);
        assert_eq!(desired.forwards().len(), 1);
    }
}
