//! NAT by nftables: one table, in which maps lead each frontend to its target.
//!
//! ```text
//!   arriving: address, port ── targets ──▶ ClusterIP
//!             address, port ── spread ───▶ spread-N            a random one of N slots
//!                                            slot ── slots ──▶ endpoint
//!                                          sticky-N-T          the affinity in `clients`, or
//!                                            slot ── picks ──▶ in `fresh`; else a slot by the
//!                                            pick ── holders ▶ client's address
//!   confirming: once established ─ kept ──▶ keep-T             into `clients`
//! ```
//!
//! | Object | Holds |
//! |---|---|
//! | chain `arriving`, `leaving` | nat-prerouting, nat-postrouting |
//! | chain `confirming` | filter-prerouting, where a frontend has affinity |
//! | map `targets` | ClusterIPs by frontend |
//! | map `spread` | the dispatch chain by frontend |
//! | map `slots` | endpoints by slot, without affinity |
//! | map `picks`, `holders` | endpoint IDs by slot, endpoints by ID, with affinity |
//! | map `fresh` | the endpoint ID of each client, from its first packet on, for a minute |
//! | map `clients` | the same for the affinity's time, from when a connection is established |
//! | map `kept` | the chain that does that by frontend |
//!
//! Both maps of clients are written by the kernel. Whoever sends first packets from
//! forged addresses fills `fresh` for a minute at most, and not `clients`. Which
//! connections have not confirmed their client's affinity yet is in their conntrack
//! mark: the endpoint's ID.
//!
//! However many frontends and endpoints there are, a connection costs a few map
//! lookups, and a change of them is a change of elements, which the kernel applies
//! atomically. An endpoint's ID is the same whatever else comes and goes, and the map
//! `clients` is never written from here, so affinity survives every change and every
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::SocketAddrV4;
use std::sync::Arc;

use futures::future::{FutureExt, LocalBoxFuture, TryFutureExt};
use lb_svc_crds::gateway as wire;

use super::{Desired, NatBackend};
use crate::config::{Endpoints, Frontend, Target, Targets};
use crate::datapath::Trust;
use crate::datapath::nft::table::{Before, Table};
use crate::fault::Fault;

const TABLE: &str = "ip lb-svc";
/// Most clients with affinity, in either map; further ones have none until others time
/// out. Each takes about 100 bytes of kernel memory.
const CLIENTS: u32 = 131_072;
/// For how long a client is remembered whose connection is not established, in seconds.
const FRESH: u32 = 60;
/// Seed of the hash of a client's address: the same in all pods, so that each
/// leads the client to the same endpoint.
const SEED: &str = "0x1b5c";
const KEY: &str = "ip daddr . meta l4proto . th dport";

/// The back end.
pub struct Nftables {
    table: Table<Arc<Rules>>,
    slots: Slots,
    /// The last desired state, and the rules made of it: with thousands of
    /// endpoints, rendering takes too long to repeat it in every run.
    last: Option<(Desired, Arc<Rules>)>,
}

impl Default for Nftables {
    fn default() -> Self {
        Self { table: Table::new(TABLE), slots: Slots::default(), last: None }
    }
}

impl Nftables {
    async fn program(&mut self, desired: Option<&Desired>, trust: Trust) -> Result<bool, Fault> {
        let wanted = desired.map_or_else(Arc::default, |desired| self.rules(desired));
        let new = Arc::clone(&wanted);
        let make = |before: Before<'_, Arc<Rules>>| match (desired, before) {
            (None, Before::AsFound(contents)) if contents.is_empty() => String::new(),
            (None, Before::AsApplied(before)) if **before == Rules::default() => String::new(),
            (None, _) => format!("delete table {TABLE}\n"),
            (Some(_), Before::AsApplied(before)) if before.base == new.base => changes(before, &new),
            (Some(_), Before::AsApplied(before)) => replace(&new, before.chains.keys()),
            (Some(_), Before::AsFound(contents)) => replace(&new, &contents.names.chains),
        };
        match self.table.apply(wanted, trust, make).await {
            Err(error) if desired.is_none() && error.means_no_nftables() => Ok(false),
            applied => applied.map_err(|error| Fault::NatFailed(error.to_string())),
        }
    }

    fn rules(&mut self, desired: &Desired) -> Arc<Rules> {
        if let Some((_, rules)) = self.last.as_ref().filter(|(last, _)| last == desired) {
            return Arc::clone(rules);
        }
        self.slots.set(&desired.targets);
        let rules = Arc::new(rules(desired, &self.slots));
        self.last = Some((desired.clone(), Arc::clone(&rules)));
        rules
    }
}

impl NatBackend for Nftables {
    fn name(&self) -> wire::NatBackend {
        wire::NatBackend::Nftables
    }

    fn ensure<'a>(
        &'a mut self,
        desired: Option<&'a Desired>,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        self.program(desired, trust).boxed_local()
    }

    fn read_back(&mut self) -> LocalBoxFuture<'_, Result<(), Fault>> {
        self.table.read_back().map_err(|error| Fault::NatFailed(error.to_string())).boxed_local()
    }
}

/// The endpoints of each frontend without affinity, in the order of their slots. The
/// last endpoint takes the slot of a removed one, and a new endpoint the next slot: any
/// change concerns a few elements only.
#[derive(Debug, Default)]
struct Slots(BTreeMap<Frontend, Vec<SocketAddrV4>>);

impl Slots {
    fn set(&mut self, targets: &Targets) {
        let endpoints = targets.iter().filter_map(|(frontend, target)| Some((frontend, target.endpoints()?)));
        let random = endpoints.filter(|(_, endpoints)| endpoints.affinity.is_none());
        let random: BTreeMap<&Frontend, &Endpoints> = random.collect();
        self.0.retain(|frontend, _| random.contains_key(frontend));
        for (frontend, endpoints) in random {
            let slots = self.0.entry(*frontend).or_default();
            let mut at = 0;
            while let Some(endpoint) = slots.get(at) {
                if endpoints.live.contains(endpoint) {
                    at += 1;
                } else {
                    slots.swap_remove(at);
                }
            }
            let known: BTreeSet<SocketAddrV4> = slots.iter().copied().collect();
            slots.extend(endpoints.live.difference(&known));
        }
    }
}

/// The table's rules and elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    /// The maps, the base chains, and their rules, as a script.
    base: String,
    /// The other chains, by name.
    chains: BTreeMap<String, Vec<String>>,
    /// The maps' elements.
    elements: BTreeMap<Key, Value>,
}

/// The key of an element: its map, the frontend, and, in maps with several elements
/// per frontend, the slot or endpoint ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    map: &'static str,
    frontend: Frontend,
    number: Option<u32>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend { address, transport, port } = self.frontend;
        write!(f, "{address} . {} . {port}", transport.name())?;
        self.number.map_or(Ok(()), |number| write!(f, " . {number}"))
    }
}

/// The value of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    To(SocketAddrV4),
    Pick(u32),
    Chain(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(endpoint) => write!(f, "{} . {}", endpoint.ip(), endpoint.port()),
            Self::Pick(pick) => write!(f, "{pick}"),
            Self::Chain(chain) => write!(f, "goto {chain}"),
        }
    }
}

fn rules(desired: &Desired, slots: &Slots) -> Rules {
    let lan = &desired.lan;
    let mut base = format!(
        "add table {TABLE}
add map {TABLE} targets {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} spread {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map {TABLE} slots {{ type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }}
add map {TABLE} picks {{ type ipv4_addr . inet_proto . inet_service . mark : mark; }}
add map {TABLE} holders {{ type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }}
add map {TABLE} kept {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map {TABLE} fresh {{ type ipv4_addr . inet_proto . inet_service . ipv4_addr : mark; flags dynamic, timeout; size {CLIENTS}; }}
add map {TABLE} clients {{ type ipv4_addr . inet_proto . inet_service . ipv4_addr : mark; flags dynamic, timeout; size {CLIENTS}; }}
add chain {TABLE} arriving {{ type nat hook prerouting priority -100; policy accept; }}
add chain {TABLE} leaving {{ type nat hook postrouting priority 100; policy accept; }}
add chain {TABLE} confirming {{ type filter hook prerouting priority -105; policy accept; }}
flush table {TABLE}
flush map {TABLE} targets
flush map {TABLE} spread
flush map {TABLE} slots
flush map {TABLE} picks
flush map {TABLE} holders
flush map {TABLE} kept
"
    );
    let has_affinity = |target: &Target| target.endpoints().is_some_and(|it| it.affinity.is_some());
    if desired.targets.values().any(has_affinity) {
        // A SYN that is repeated belongs to a connection that is established as far as
        // conntrack's state goes.
        for (transport, established) in [("tcp", "ct status assured"), ("udp", "ct state established")] {
            let of = format!("ct mark != 0 ct direction original {established} meta l4proto {transport}");
            let _ = writeln!(base, "add rule {TABLE} confirming {of} {KEY} vmap @kept");
        }
    } else {
        let _ = writeln!(base, "delete chain {TABLE} confirming");
    }
    for rule in dnat(KEY, "targets") {
        let _ = writeln!(base, "add rule {TABLE} arriving {rule}");
    }
    let _ = writeln!(base, "add rule {TABLE} arriving {KEY} vmap @spread");
    let _ = writeln!(base, "add rule {TABLE} leaving oifname != \"{lan}\" ct status dnat masquerade");

    let mut rules = Rules { base, ..Rules::default() };
    for (frontend, target) in &desired.targets {
        let key = |map, number| Key { map, frontend: *frontend, number };
        let endpoints = match target {
            Target::ClusterIp(address) => {
                let to = SocketAddrV4::new(*address, frontend.port);
                rules.elements.insert(key("targets", None), Value::To(to));
                continue;
            }
            Target::Endpoints(endpoints) => endpoints,
        };
        let count = endpoints.live.len();
        let chain = match endpoints.affinity {
            // Without endpoints, refused like a port that is not served.
            _ if count == 0 => continue,
            None => {
                let slots = (0..).map(Some).zip(slots.0.get(frontend).into_iter().flatten());
                rules.elements.extend(slots.map(|(slot, to)| (key("slots", slot), Value::To(*to))));
                let chain = format!("spread-{count}");
                rules.chains.entry(chain.clone()).or_insert_with(|| spread(count));
                chain
            }
            Some(seconds) => {
                // Slots in the order of addresses: all pods of the gateway lead a new
                // client to the same endpoint.
                let picks = picks(&endpoints.live);
                let slots = (0..).map(Some).zip(picks.values());
                rules.elements.extend(slots.map(|(slot, pick)| (key("picks", slot), Value::Pick(*pick))));
                let holders = picks.iter().map(|(to, pick)| (key("holders", Some(*pick)), Value::To(*to)));
                rules.elements.extend(holders);
                let chain = format!("sticky-{count}-{seconds}");
                rules.chains.entry(chain.clone()).or_insert_with(|| sticky(count, seconds));
                let keep = format!("keep-{seconds}");
                rules.chains.entry(keep.clone()).or_insert_with(|| keeping(seconds));
                rules.elements.insert(key("kept", None), Value::Chain(keep));
                chain
            }
        };
        rules.elements.insert(key("spread", None), Value::Chain(chain));
    }
    rules
}

/// The rules that forward a connection by a map; without an element, evaluation
/// continues.
fn dnat(key: &str, map: &str) -> [String; 2] {
    ["tcp", "udp"].map(|transport| format!("meta l4proto {transport} dnat ip to {key} map @{map}"))
}

/// A connection whose slot was removed between two lookups is dropped, not refused: its
/// client retransmits.
const MISSED: &str = "drop";

fn spread(slots: usize) -> Vec<String> {
    let mut rules = vec![format!("meta mark set numgen random mod {slots}")];
    rules.extend(dnat(&format!("{KEY} . meta mark"), "slots"));
    rules.push(MISSED.to_owned());
    rules
}

// An update of an element leaves its value unchanged, so that the affinity to a removed
// endpoint has to be deleted first.
fn sticky(slots: usize, seconds: u32) -> Vec<String> {
    let client = format!("{KEY} . ip saddr");
    let to_holder = dnat(&format!("{KEY} . meta mark"), "holders");
    let remember = format!("update @fresh {{ {client} timeout {}s : meta mark }}", FRESH.min(seconds));
    let mut rules = vec![
        "meta mark set 0".to_owned(),
        format!("meta mark set {client} map @clients"),
        format!("meta mark == 0 meta mark set {client} map @fresh {remember}"),
        "ct mark set meta mark".to_owned(),
    ];
    rules.extend(to_holder.clone());
    rules.extend(
        ["clients", "fresh"].map(|map| format!("meta mark != 0 delete @{map} {{ {client} : meta mark }}")),
    );
    rules.extend([
        format!("meta mark set jhash ip saddr mod {slots} seed {SEED}"),
        format!("meta mark set {KEY} . meta mark map @picks"),
        "ct mark set meta mark".to_owned(),
        remember,
    ]);
    rules.extend(to_holder);
    rules.push(MISSED.to_owned());
    rules
}

/// Remembers the client of a connection that is established, once.
fn keeping(seconds: u32) -> Vec<String> {
    let remember = format!("update @clients {{ {KEY} . ip saddr timeout {seconds}s : ct mark }}");
    vec![remember, "ct mark set 0".to_owned()]
}

/// The ID of each endpoint: its address as a number, which is the same in every pod and
/// process. Further ports at one address get the next unused numbers.
fn picks(endpoints: &BTreeSet<SocketAddrV4>) -> BTreeMap<SocketAddrV4, u32> {
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut picks = BTreeMap::new();
    let own = |endpoint: &SocketAddrV4| u32::from(*endpoint.ip());
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        if taken.insert(own(endpoint)) { first.push(*endpoint) } else { others.push(*endpoint) }
    }
    picks.extend(first.iter().map(|endpoint| (*endpoint, own(endpoint))));
    for endpoint in others {
        let mut pick = own(&endpoint);
        while pick == 0 || !taken.insert(pick) {
            pick = pick.wrapping_add(1);
        }
        picks.insert(endpoint, pick);
    }
    picks
}

/// Elements per command: parsing a command is what takes nft its time.
const BATCH: usize = 256;

fn write_elements<'a>(text: &mut String, verb: &str, elements: impl Iterator<Item = (&'a Key, &'a Value)>) {
    let mut by_map: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (key, value) in elements {
        by_map.entry(key.map).or_default().push(format!("{key} : {value}"));
    }
    for (map, elements) in by_map {
        for batch in elements.chunks(BATCH) {
            let _ = writeln!(text, "{verb} element {TABLE} {map} {{ {} }}", batch.join(", "));
        }
    }
}

fn write_chain(text: &mut String, name: &str, rules: &[String]) {
    let _ = writeln!(text, "add chain {TABLE} {name}");
    for rule in rules {
        let _ = writeln!(text, "add rule {TABLE} {name} {rule}");
    }
}

/// The script that replaces the table, which has these `chains`.
fn replace<'a>(wanted: &Rules, chains: impl IntoIterator<Item = &'a String>) -> String {
    const HOOKED: [&str; 3] = ["arriving", "leaving", "confirming"];
    let mut text = wanted.base.clone();
    for (name, rules) in &wanted.chains {
        write_chain(&mut text, name, rules);
    }
    write_elements(&mut text, "add", wanted.elements.iter());
    for chain in chains {
        if !HOOKED.contains(&chain.as_str()) && !wanted.chains.contains_key(chain) {
            let _ = writeln!(text, "delete chain {TABLE} {chain}");
        }
    }
    text
}

/// The script that turns `before` into `wanted`, which has the same base.
fn changes(before: &Rules, wanted: &Rules) -> String {
    let mut text = String::new();
    for (name, rules) in &wanted.chains {
        if !before.chains.contains_key(name) {
            write_chain(&mut text, name, rules);
        }
    }
    write_elements(&mut text, "delete", differing(before, wanted));
    write_elements(&mut text, "add", differing(wanted, before));
    for name in before.chains.keys().filter(|name| !wanted.chains.contains_key(*name)) {
        let _ = writeln!(text, "flush chain {TABLE} {name}\ndelete chain {TABLE} {name}");
    }
    text
}

/// The elements of `rules` that `others` lack, or have with another value.
fn differing<'a>(rules: &'a Rules, others: &'a Rules) -> impl Iterator<Item = (&'a Key, &'a Value)> {
    // Both are sorted: one pass is enough.
    let mut others = others.elements.iter().peekable();
    rules.elements.iter().filter(move |element| {
        while others.next_if(|other| other.0 < element.0).is_some() {}
        others.peek() != Some(element)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_svc_crds::gateway::Transport;

    fn frontend(port: u16) -> Frontend {
        Frontend { address: "172.18.0.18".parse().unwrap(), transport: Transport::Tcp, port }
    }

    fn pods(numbers: &[u8]) -> BTreeSet<SocketAddrV4> {
        numbers.iter().map(|number| SocketAddrV4::new([10, 16, 0, *number].into(), 8080)).collect()
    }

    fn direct(numbers: &[u8], affinity: Option<u32>) -> Target {
        let live = pods(numbers);
        Target::Endpoints(Arc::new(Endpoints { live, affinity, ..Endpoints::default() }))
    }

    fn desired(targets: &[(u16, Target)]) -> Desired {
        Desired {
            backend: wire::NatBackend::Nftables,
            lan: "net1".to_owned(),
            targets: targets.iter().map(|(port, target)| (frontend(*port), target.clone())).collect(),
        }
    }

    fn made(targets: &[(u16, Target)]) -> Rules {
        let desired = desired(targets);
        let mut slots = Slots::default();
        slots.set(&desired.targets);
        rules(&desired, &slots)
    }

    #[test]
    fn frontend_is_a_map_element() {
        let rules =
            made(&[(80, Target::ClusterIp("10.109.201.193".parse().unwrap())), (81, direct(&[1, 2], None))]);
        let text = replace(&rules, &[]);
        for line in [
            "add element ip lb-svc targets { 172.18.0.18 . tcp . 80 : 10.109.201.193 . 80 }\n",
            "add element ip lb-svc spread { 172.18.0.18 . tcp . 81 : goto spread-2 }\n",
            "add element ip lb-svc slots { 172.18.0.18 . tcp . 81 . 0 : 10.16.0.1 . 8080, 172.18.0.18 . tcp . 81 . 1 : 10.16.0.2 . 8080 }\n",
            "add rule ip lb-svc spread-2 meta mark set numgen random mod 2\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn frontend_without_endpoints_is_refused() {
        let rules = made(&[(81, direct(&[], None))]);
        assert!(rules.elements.is_empty() && rules.chains.is_empty());
    }

    #[test]
    fn removed_endpoints_slot_goes_to_the_last() {
        let mut slots = Slots::default();
        let mut set = |numbers: &[u8]| -> Vec<u8> {
            slots.set(&[(frontend(80), direct(numbers, None))].into());
            slots.0[&frontend(80)].iter().map(|endpoint| endpoint.ip().octets()[3]).collect()
        };
        assert_eq!(set(&[1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(set(&[1, 3, 4]), [1, 4, 3]);
        assert_eq!(set(&[1, 2, 3, 4, 5]), [1, 4, 3, 2, 5]);
        assert_eq!(set(&[5]), [5]);
        assert_eq!(set(&[]), [] as [u8; 0]);
    }

    #[test]
    fn new_client_gets_the_same_endpoint_in_all_pods() {
        let sticky = |numbers: &[u8], slots: &mut Slots| {
            let desired = desired(&[(80, direct(numbers, Some(60)))]);
            slots.set(&desired.targets);
            rules(&desired, slots)
        };
        // One has seen endpoints come and go, the other starts now.
        let mut slots = Slots::default();
        sticky(&[3, 4], &mut slots);
        sticky(&[1, 4], &mut slots);
        assert_eq!(sticky(&[1, 2, 3, 4], &mut slots), sticky(&[1, 2, 3, 4], &mut Slots::default()));
    }

    #[test]
    fn endpoint_change_is_a_few_elements() {
        let mut slots = Slots::default();
        let mut make = |numbers: &[u8]| {
            let desired = desired(&[(80, direct(numbers, None))]);
            slots.set(&desired.targets);
            rules(&desired, &slots)
        };
        let (three, two) = (make(&[1, 2, 3]), make(&[2, 3]));
        let text = changes(&three, &two);
        let expected = "\
add chain ip lb-svc spread-2
add rule ip lb-svc spread-2 meta mark set numgen random mod 2
add rule ip lb-svc spread-2 meta l4proto tcp dnat ip to ip daddr . meta l4proto . th dport . meta mark map @slots
add rule ip lb-svc spread-2 meta l4proto udp dnat ip to ip daddr . meta l4proto . th dport . meta mark map @slots
add rule ip lb-svc spread-2 drop
delete element ip lb-svc slots { 172.18.0.18 . tcp . 80 . 0 : 10.16.0.1 . 8080, 172.18.0.18 . tcp . 80 . 2 : 10.16.0.3 . 8080 }
delete element ip lb-svc spread { 172.18.0.18 . tcp . 80 : goto spread-3 }
add element ip lb-svc slots { 172.18.0.18 . tcp . 80 . 0 : 10.16.0.3 . 8080 }
add element ip lb-svc spread { 172.18.0.18 . tcp . 80 : goto spread-2 }
flush chain ip lb-svc spread-3
delete chain ip lb-svc spread-3
";
        assert_eq!(text, expected);
        assert_eq!(changes(&two, &two), "");
    }

    #[test]
    fn r43_client_is_remembered_for_long_only_once_established() {
        let rules = made(&[(80, direct(&[1, 2], Some(10_800)))]);
        let sticky = rules.chains["sticky-2-10800"].join("\n");
        assert!(!sticky.contains("update @clients") && sticky.contains("update @fresh"), "{sticky}");
        assert!(sticky.contains("timeout 60s") && !sticky.contains("timeout 10800s"), "{sticky}");
        assert!(rules.chains["keep-10800"][0].contains("timeout 10800s : ct mark"));
        assert!(rules.base.contains("confirming ct mark != 0 ct direction original ct status assured"));
        // Without affinity no packet has to pass it.
        assert!(made(&[(80, direct(&[1, 2], None))]).base.contains("delete chain ip lb-svc confirming\n"));
        let short = made(&[(80, direct(&[1, 2], Some(10)))]);
        assert!(short.chains["sticky-2-10"].concat().contains("timeout 10s"));
    }

    #[test]
    fn endpoint_id_is_stable() {
        let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        let picks = picks(&[at("10.0.0.2:80"), at("10.0.0.1:81"), at("10.0.0.1:80")].into());
        assert_eq!(picks[&at("10.0.0.1:80")], 0x0a00_0001);
        assert_eq!(picks[&at("10.0.0.2:80")], 0x0a00_0002, "an address's own number is not given to others");
        assert_eq!(picks[&at("10.0.0.1:81")], 0x0a00_0003);
        let rules = made(&[(80, direct(&[1, 2], Some(60)))]);
        let elements = |map| rules.elements.keys().filter(move |key| key.map == map).count();
        assert_eq!((elements("picks"), elements("holders"), elements("spread")), (2, 2, 1));
        assert!(rules.chains.contains_key("sticky-2-60") && rules.chains.contains_key("keep-60"));
    }
}
