//! The network state that a configuration asks for, given the pod's interfaces
//! and its own routes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::model::{Address, Hop, Link, Neighbour, NetworkState, Route, Rule, Setting, UNICAST};
use super::policy::{
    ENDPOINTS, GATEWAY, MAIN, PRIORITY_ENDPOINTS, PRIORITY_LAN, PRIORITY_NEXT_POD, PRIORITY_OWN_ADDRESS,
    PRIORITY_PRIMARY, PRIORITY_PROXY, PROXY,
};
use crate::config::{Config, Targets, cluster_ips};
use crate::datapath::redirect;
use crate::datapath::strays::NEXT_POD;
use crate::l2::arp::Mac;

/// The network state to program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's `ifindex`.
    pub lan: u32,
    /// The LAN interface's name.
    pub lan_name: String,
    /// The LAN interface's addresses from its network's own IPAM, which are not
    /// removed.
    pub foreign_addresses: BTreeSet<Ipv4Addr>,
    /// Settings, by interface.
    pub settings: Vec<(u32, Setting, u32)>,
    /// The gateway's tables, in the order of adding: a router must be reachable first.
    pub routes: Vec<Route>,
    /// The policy routing rules.
    pub rules: Vec<Rule>,
    /// The LAN interface's addresses.
    pub addresses: Vec<Address>,
    /// The pod that [strays](crate::datapath::strays) are handed to.
    pub next_pod: Option<Neighbour>,
}

impl Desired {
    /// The same for one of several pods, with the hardware address of the one that strays
    /// are handed to, once there is one.
    pub fn of_several(mut self, next: Option<Mac>) -> Self {
        let to = Ipv4Net::from(NEXT_POD);
        self.routes.push(Route::unicast(GATEWAY, to, Hop::Direct { oif: self.lan }));
        self.rules.push(Rule {
            priority: PRIORITY_NEXT_POD,
            table: GATEWAY,
            source: None,
            destination: Some(to),
            iif: None,
            mark: None,
            plain: true,
        });
        self.next_pod = next.map(|mac| Neighbour { interface: self.lan, address: NEXT_POD, mac });
        self
    }
}

/// The LAN interface, and the addresses on it from its network's own IPAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The interface.
    pub link: Link,
    /// The addresses.
    pub foreign_addresses: BTreeSet<Ipv4Addr>,
}

/// Returns the desired state, and the ClusterIPs of `targets` that the pod has no
/// route to. The addresses in `absent` are not assigned to the interface.
pub fn desired(
    config: &Config,
    targets: &Targets,
    state: &NetworkState,
    Lan { link: lan, foreign_addresses }: &Lan,
    primary: &Link,
    absent: &BTreeSet<Ipv4Addr>,
) -> (Desired, Vec<Ipv4Addr>) {
    let mut unreachable = Vec::new();
    let mut routes = Vec::new();
    for network in unique(config.addresses.iter().map(|address| address.network)) {
        routes.push(Route::unicast(GATEWAY, network, Hop::Direct { oif: lan.index }));
    }
    for cluster_ip in unique(cluster_ips(targets).map(|(_, cluster_ip)| cluster_ip)) {
        match state.route_to(cluster_ip, lan.index).map(|route| route.hop) {
            Some(hop @ (Hop::Direct { .. } | Hop::Via { .. })) => {
                routes.push(Route::unicast(GATEWAY, Ipv4Net::from(cluster_ip), hop));
            }
            Some(Hop::Other) | None => unreachable.push(cluster_ip),
        }
    }
    // There can be one default route only: replies to clients behind routers
    // leave by the first Subnet's router, whichever address they are from.
    if let Some(gateway) = config.addresses.iter().find_map(|address| address.gateway) {
        let hop = Hop::Via { oif: lan.index, gateway, onlink: false };
        routes.push(Route::unicast(GATEWAY, Ipv4Net::default(), hop));
    }

    let rule = |priority, table, source, iif: Option<&Link>| Rule {
        priority,
        table,
        source,
        destination: None,
        iif: iif.map(|link| link.name.clone()),
        mark: None,
        plain: true,
    };
    let mut rules = Vec::new();
    if config.forwards.values().any(|forward| forward.proxied) {
        routes.push(Route::local(PROXY));
        rules.push(Rule { mark: Some(redirect::MARK), ..rule(PRIORITY_PROXY, PROXY, None, None) });
    }
    if targets.values().any(|target| target.endpoints().is_some()) {
        let table = if state.has_routes_to(lan.index) { ENDPOINTS } else { MAIN };
        rules.push(rule(PRIORITY_ENDPOINTS, table, None, Some(lan)));
        if table == ENDPOINTS {
            routes.extend(off_the_lan(state, lan.index));
        }
    }
    let from = |address| rule(PRIORITY_OWN_ADDRESS, GATEWAY, Some(Ipv4Net::from(address)), None);
    rules.extend(config.addresses.iter().map(|a| from(a.address)));
    rules.push(rule(PRIORITY_PRIMARY, GATEWAY, None, Some(primary)));
    rules.push(rule(PRIORITY_LAN, GATEWAY, None, Some(lan)));

    let present = config.addresses.iter().filter(|address| !absent.contains(&address.address));
    let addresses = present.map(|address| Address {
        interface: lan.index,
        address: address.address,
        prefix_len: address.network.prefix_len(),
        global: true,
        // The pod's own table stays as its CNI made it: by macvlan the pod could
        // not even reach its own node.
        no_prefix_route: true,
        plain: true,
    });
    let desired = Desired {
        lan: lan.index,
        lan_name: lan.name.clone(),
        foreign_addresses: foreign_addresses.clone(),
        settings: settings(lan.index, primary.index, state.rp_filter),
        routes,
        rules,
        addresses: addresses.collect(),
        next_pod: None,
    };
    (desired, unreachable)
}

/// The routes of [`ENDPOINTS`]: those of the pod's own table but for the LAN's, with the
/// directly connected networks first.
fn off_the_lan(state: &NetworkState, lan: u32) -> Vec<Route> {
    let copy = |route: &Route| match route.hop {
        Hop::Direct { oif } | Hop::Via { oif, .. } if oif != lan && route.kind == UNICAST => {
            let copy = Route::unicast(ENDPOINTS, route.destination, route.hop);
            Some(Route { tos: route.tos, metric: route.metric, ..copy })
        }
        Hop::Direct { .. } | Hop::Via { .. } | Hop::Other => None,
    };
    let own = state.routes.iter().filter(|route| route.table == MAIN);
    let (direct, via): (Vec<Route>, Vec<Route>) =
        own.filter_map(copy).partition(|route| matches!(route.hop, Hop::Direct { .. }));
    // Of those with one key the kernel uses the first, and takes no other here.
    let mut keys = BTreeSet::new();
    direct.into_iter().chain(via).filter(|route| keys.insert(route.key())).collect()
}

fn settings(lan: u32, primary: u32, rp_filter_of_all: u32) -> Vec<(u32, Setting, u32)> {
    // Validating the reverse path costs each packet as much as the routing
    // lookup, and drops nothing here: the default route leads back to any client.
    // With `rp_filter` 0 the kernel skips it only if `accept_local` is set, too
    // (a reply to the pod's own address would stay in the pod). The kernel uses
    // the larger `rp_filter` of the interface and `all`; if `all` has one, ours is
    // loose, because only table 100 has the route back to clients behind routers.
    let (rp_filter, accept_local) = if rp_filter_of_all == 0 { (0, 1) } else { (2, 0) };
    let both = [lan, primary].into_iter().flat_map(|interface| {
        [
            (Setting::Forwarding, 1),
            (Setting::RpFilter, rp_filter),
            (Setting::AcceptLocal, accept_local),
            // In ARP, the addresses of each interface exist on it only. Where the pod
            // network is the LAN's layer 2, the primary interface would answer for the
            // gateway's addresses, whether the pod holds the lease or not.
            (Setting::ArpIgnore, 1),
            (Setting::ArpAnnounce, 2),
        ]
        .map(|(setting, value)| (interface, setting, value))
    });
    let of_lan = [
        (lan, Setting::AcceptRedirects, 0),
        (lan, Setting::SendRedirects, 0),
        // Without it, removing the first of several addresses removes all.
        (lan, Setting::PromoteSecondaries, 1),
    ];
    both.chain(of_lan).collect()
}

/// The values without repetitions, in the order of first appearance.
fn unique<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut unique = Vec::new();
    for value in values {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    unique
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{self, Target};

    /// A pod with a primary interface, eth0, and a LAN interface, net1.
    pub(crate) fn state() -> NetworkState {
        let link = |index, name: &str| Link { index, name: name.to_owned(), ..Link::default() };
        let gateway = "10.16.0.1".parse().unwrap();
        let via = Hop::Via { oif: 2, gateway, onlink: false };
        NetworkState {
            links: vec![link(2, "eth0"), link(3, "net1")],
            routes: vec![
                Route::unicast(MAIN, Ipv4Net::default(), via),
                Route::unicast(MAIN, "10.16.0.0/16".parse().unwrap(), Hop::Direct { oif: 2 }),
            ],
            ..NetworkState::default()
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

    fn made_of(state: &NetworkState, targets: &Targets, absent: &[Ipv4Addr]) -> (Desired, Vec<Ipv4Addr>) {
        let lan = Lan { link: state.links[1].clone(), foreign_addresses: BTreeSet::new() };
        desired(&config(), targets, state, &lan, &state.links[0], &absent.iter().copied().collect())
    }

    /// The desired state of [`config`] for a pod in this state.
    pub(crate) fn made(state: &NetworkState) -> (Desired, Vec<Ipv4Addr>) {
        made_of(state, &config::targets(&config().forwards), &[])
    }

    #[test]
    fn settings_disable_the_reverse_path_filter_unless_all_has_one() {
        let set = |rp_filter| {
            let state = NetworkState { rp_filter, ..state() };
            let settings = made(&state).0.settings;
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
    fn absent_address_is_all_that_is_left_out() {
        let state = state();
        let (whole, _) = made(&state);
        let absent = [Ipv4Addr::new(172, 18, 0, 18)];
        let (mut desired, unreachable) = made_of(&state, &config::targets(&config().forwards), &absent);
        assert_eq!(unreachable, [] as [Ipv4Addr; 0]);
        desired.addresses.insert(0, whole.addresses[0].clone());
        assert_eq!(desired, whole);
    }

    #[test]
    fn gateway_table_holds_the_lans_the_cluster_ips_and_one_default() {
        let (desired, unreachable) = made(&state());
        assert_eq!(unreachable, [] as [Ipv4Addr; 0]);
        let lines: Vec<(String, Hop)> =
            desired.routes.iter().map(|route| (route.destination.to_string(), route.hop)).collect();
        let via = |oif, gateway: &str| Hop::Via { oif, gateway: gateway.parse().unwrap(), onlink: false };
        assert_eq!(
            lines,
            [
                ("172.18.0.0/16".to_owned(), Hop::Direct { oif: 3 }),
                ("192.0.2.0/24".to_owned(), Hop::Direct { oif: 3 }),
                ("10.109.201.193/32".to_owned(), via(2, "10.16.0.1")),
                // On the pod's own network: directly connected.
                ("10.16.3.3/32".to_owned(), Hop::Direct { oif: 2 }),
                ("0.0.0.0/0".to_owned(), via(3, "172.18.0.1")),
            ]
        );
    }

    #[test]
    fn rules_are_the_documented_ones() {
        let (desired, _) = made(&state());
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
    fn endpoint_targets_add_the_rule_to_the_pods_own_table() {
        let state = state();
        let (whole, _) = made(&state);
        let mut targets = config::targets(&config().forwards);
        *targets.values_mut().next().unwrap() = Target::Endpoints(Arc::default());
        let (desired, _) = made_of(&state, &targets, &[]);
        assert_eq!(desired.rules[1..], whole.rules);
        let rule = &desired.rules[0];
        assert_eq!((rule.priority, rule.table, rule.iif.as_deref()), (32762, MAIN, Some("net1")));
        assert_eq!(desired.routes, whole.routes, "table 100 is as it was");
    }

    #[test]
    fn proxied_port_adds_the_rule_that_delivers_to_the_pod() {
        let (state, mut config) = (state(), config());
        let (whole, _) = made(&state);
        config.forwards.values_mut().next().unwrap().proxied = true;
        let lan = Lan { link: state.links[1].clone(), foreign_addresses: BTreeSet::new() };
        let targets = config::targets(&config.forwards);
        let (desired, _) = super::desired(&config, &targets, &state, &lan, &state.links[0], &BTreeSet::new());
        assert_eq!(desired.rules[1..], whole.rules);
        let rule = &desired.rules[0];
        assert_eq!((rule.priority, rule.table, rule.mark), (32761, PROXY, Some(redirect::MARK)));
        let (own, others): (Vec<Route>, Vec<Route>) =
            desired.routes.into_iter().partition(|route| route.table == PROXY);
        assert_eq!((own, others), (vec![Route::local(PROXY)], whole.routes));
    }

    #[test]
    fn b12_endpoints_are_not_led_to_by_routes_of_the_lan() {
        let mut state = state();
        let net1 = |destination: &str, hop| Route {
            protocol: 2,
            plain: false,
            ..Route::unicast(MAIN, destination.parse().unwrap(), hop)
        };
        let gateway = "172.18.0.1".parse().unwrap();
        state.routes.insert(0, net1("172.18.0.0/16", Hop::Direct { oif: 3 }));
        state.routes.insert(0, net1("0.0.0.0/0", Hop::Via { oif: 3, gateway, onlink: false }));
        let (of_cluster_ips, _) = made(&state);
        assert!(of_cluster_ips.routes.iter().all(|route| route.table == GATEWAY));
        let mut targets = config::targets(&config().forwards);
        *targets.values_mut().next().unwrap() = Target::Endpoints(Arc::default());
        let (desired, _) = made_of(&state, &targets, &[]);
        let rule = &desired.rules[0];
        assert_eq!((rule.priority, rule.table, rule.iif.as_deref()), (32762, ENDPOINTS, Some("net1")));
        let own = desired.routes.iter().filter(|route| route.table == ENDPOINTS);
        let own: Vec<(String, Hop)> = own.map(|route| (route.destination.to_string(), route.hop)).collect();
        let via = Hop::Via { oif: 2, gateway: "10.16.0.1".parse().unwrap(), onlink: false };
        let expected = [("10.16.0.0/16".to_owned(), Hop::Direct { oif: 2 }), ("0.0.0.0/0".to_owned(), via)];
        assert_eq!(own, expected);
    }

    #[test]
    fn cluster_ip_without_a_route_is_unreachable_and_nothing_else() {
        let mut state = state();
        state.routes.remove(0);
        let (desired, unreachable) = made(&state);
        assert_eq!(unreachable, [Ipv4Addr::new(10, 109, 201, 193)]);
        let routed = |ip: &str| desired.routes.iter().any(|r| r.destination.to_string() == ip);
        assert!(routed("10.16.3.3/32") && !routed("10.109.201.193/32"));
    }
}
