//! NAT by iptables of the nf_tables variant.
//!
//! The rules stand in chains of our own, which every apply writes anew and
//! whole: one `iptables-restore --noflush`, one transaction a table. The chains
//! that iptables brings hold one jump each, first of all. What the kernel holds
//! afterwards is read back and remembered word by word, so that drift shows
//! without knowing how some version of iptables would write a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Desired, Outcome};
use crate::config::{Endpoints, Served, Target, cluster_ips};
use crate::fault::Fault;
use crate::tool::{self, RunError};

/// Beginning of the names of all our chains.
const OURS: &str = "LB-SVC-";

/// The back end.
#[derive(Default)]
pub struct Iptables {
    tools: Option<Tools>,
    /// What was last applied, and how the kernel was seen to hold it.
    known: Option<(Rules, Option<Rules>)>,
}

impl Iptables {
    /// See [`super::Backends::ensure`]; without anything desired, nothing of
    /// ours is there.
    pub async fn ensure(&mut self, desired: Option<&Desired>, suspect: bool) -> Result<Outcome, Fault> {
        let wanted = desired.map(render).unwrap_or_default();
        let known = self.known.take();
        if !suspect && known.as_ref().is_some_and(|(applied, _)| *applied == wanted) {
            self.known = known;
            return Ok(Outcome::Kept);
        }
        let tools = match &self.tools {
            Some(tools) => tools,
            None => match Tools::find().await {
                Ok(tools) => self.tools.insert(tools),
                // Who has no iptables has made nothing with it.
                Err(_) if desired.is_none() => return Ok(Outcome::Kept),
                Err(fault) => return Err(fault),
            },
        };
        let held = match known {
            Some((_, Some(seen))) if !suspect => seen,
            known => {
                let held = tools.save().await?;
                let as_left = known.is_some_and(|(applied, seen)| {
                    applied == wanted && seen.map_or_else(|| held.carry_out(&wanted), |seen| seen == held)
                });
                if as_left || held == wanted {
                    self.known = Some((wanted, Some(held)));
                    return Ok(Outcome::Kept);
                }
                held
            }
        };
        // It took all of it, or it says so. How the kernel holds it is read
        // when the kernel tells of the change, which is at once; nobody who
        // waits to be served waits for that.
        tools.restore(&script(&wanted, &held)).await?;
        self.known = Some((wanted, None));
        Ok(Outcome::Applied)
    }
}

/// The rules of all tables that are ours: those of our chains, and those of
/// other chains that jump to ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    /// By table and chain, without the `-A <chain> `.
    chains: BTreeMap<(String, String), Vec<String>>,
    /// By table and chain, with the place in the chain.
    jumps: BTreeMap<(String, String), Vec<(usize, String)>>,
}

impl Rules {
    /// Whether what was read back has every rule that was written, whatever
    /// its spelling, and every jump in its place.
    fn carry_out(&self, wanted: &Self) -> bool {
        let shape = |rules: &Self| -> Vec<usize> { rules.chains.values().map(Vec::len).collect() };
        let places = |rules: &Self| -> Vec<Vec<usize>> {
            let places = |jumps: &Vec<(usize, String)>| jumps.iter().map(|(at, _)| *at).collect();
            rules.jumps.values().map(places).collect()
        };
        self.chains.keys().eq(wanted.chains.keys())
            && self.jumps.keys().eq(wanted.jumps.keys())
            && shape(self) == shape(wanted)
            && places(self) == places(wanted)
    }

    /// Those of one table.
    fn of(&self, table: &str) -> Self {
        let mut rules = self.clone();
        rules.chains.retain(|(of, _), _| of == table);
        rules.jumps.retain(|(of, _), _| of == table);
        rules
    }

    fn tables(&self) -> BTreeSet<&str> {
        let keys = self.chains.keys().chain(self.jumps.keys());
        keys.map(|(table, _)| table.as_str()).collect()
    }
}

/// The rules that carry out `desired`, spelled as iptables-save spells them.
fn render(desired: &Desired) -> Rules {
    let lan = &desired.lan;
    let mut dnat = Vec::new();
    let mut spread = BTreeMap::new();
    for (served, target) in &desired.forwards {
        let (address, port) = (served.address, served.port);
        let protocol = served.transport.name();
        let to = format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port} -j");
        match target {
            Target::ClusterIp(target) => dnat.push(format!("{to} DNAT --to-destination {target}:{port}")),
            // Refused, as what is not served.
            Target::Endpoints(endpoints) if endpoints.live.is_empty() => {}
            Target::Endpoints(endpoints) => {
                let chain = spread_chain(served);
                dnat.push(format!("{to} {chain}"));
                spread.insert(chain, spread_rules(served, endpoints));
            }
        }
    }
    let targets: BTreeSet<Ipv4Addr> = cluster_ips(&desired.forwards).map(|(_, target)| target).collect();
    let mut snat: Vec<String> =
        targets.iter().map(|target| format!("-d {target}/32 -j MASQUERADE")).collect();
    if !spread.is_empty() {
        snat.push(format!("! -o {lan} -j MASQUERADE"));
    }

    let key = |chain: &str| ("nat".to_owned(), chain.to_owned());
    let jump = |rule: &str| vec![(0, rule.to_owned())];
    let chains = [(key("LB-SVC-DNAT"), dnat), (key("LB-SVC-SNAT"), snat)];
    let spread = spread.into_iter().map(|(chain, rules)| (key(&chain), rules));
    Rules {
        chains: chains.into_iter().chain(spread).collect(),
        jumps: [
            (key("PREROUTING"), jump("-j LB-SVC-DNAT")),
            (key("POSTROUTING"), jump("-m conntrack --ctstate DNAT -j LB-SVC-SNAT")),
        ]
        .into(),
    }
}

/// The chain that spreads the connections to a port; iptables takes names of up
/// to 28 characters.
fn spread_chain(served: &Served) -> String {
    let Served { address, transport, port } = served;
    format!("{OURS}{:08X}-{}-{port}", u32::from(*address), transport.name().to_uppercase())
}

/// The first of `n` endpoints gets one in `n` of the connections, the next one
/// of `n - 1` of those that are left, and so on.
fn spread_rules(served: &Served, endpoints: &Endpoints) -> Vec<String> {
    let protocol = served.transport.name();
    let rule = |(at, endpoint): (usize, &SocketAddrV4)| {
        let left = endpoints.live.len() - at;
        let chance = match left {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.11}", 1.0 / left as f64),
        };
        format!("-p {protocol} -m {protocol}{chance} -j DNAT --to-destination {endpoint}")
    };
    endpoints.live.iter().enumerate().map(rule).collect()
}

/// The input of `iptables-restore --noflush` that turns `held` into `wanted`.
/// A table that is as it should be is left out: each costs the kernel a grace
/// period.
fn script(wanted: &Rules, held: &Rules) -> String {
    let mut text = String::new();
    let tables: BTreeSet<&str> = wanted.tables().union(&held.tables()).copied().collect();
    for table in tables {
        if wanted.of(table) == held.of(table) {
            continue;
        }
        let _ = writeln!(text, "*{table}");
        let of = |rules: &Rules| -> BTreeSet<String> {
            let own = rules.chains.keys().filter(|(of, _)| of == table);
            own.map(|(_, chain)| chain.clone()).collect()
        };
        let (wanted_chains, held_chains) = (of(wanted), of(held));
        // Naming a chain here makes it, or empties it.
        for chain in wanted_chains.union(&held_chains) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for ((_, chain), rules) in wanted.chains.iter().filter(|((of, _), _)| of == table) {
            for rule in rules {
                let _ = writeln!(text, "-A {chain} {rule}");
            }
        }
        let jumps = |rules: &Rules, chain: &str| {
            let key = (table.to_owned(), chain.to_owned());
            rules.jumps.get(&key).cloned().unwrap_or_default()
        };
        let places = wanted.jumps.keys().chain(held.jumps.keys());
        let places: BTreeSet<&String> = places.filter(|(of, _)| of == table).map(|(_, c)| c).collect();
        for chain in places {
            let (new, old) = (jumps(wanted, chain), jumps(held, chain));
            if new == old {
                continue;
            }
            for (_, rule) in old {
                let _ = writeln!(text, "-D {chain} {rule}");
            }
            for (_, rule) in new {
                let _ = writeln!(text, "-I {chain} 1 {rule}");
            }
        }
        for chain in held_chains.difference(&wanted_chains) {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What is ours of iptables-save's output.
fn parse(saved: &str) -> Rules {
    let mut rules = Rules::default();
    let mut table = "";
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
            places.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            let chain = chain.split(' ').next().unwrap_or_default();
            if chain.starts_with(OURS) {
                let key = (table.to_owned(), chain.to_owned());
                rules.chains.entry(key).or_default();
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
            let key = (table.to_owned(), chain.to_owned());
            let place = places.entry(chain).or_default();
            if chain.starts_with(OURS) {
                rules.chains.entry(key).or_default().push(rule.to_owned());
            } else if jumps_to_ours(rule) {
                rules.jumps.entry(key).or_default().push((*place, rule.to_owned()));
            }
            *place += 1;
        }
    }
    rules
}

fn jumps_to_ours(rule: &str) -> bool {
    // What stands in quotes is a comment or the like.
    let bare: String = rule.split('"').step_by(2).collect();
    let mut words = bare.split(' ');
    words.any(|word| word == "-j" || word == "-g") && words.next().is_some_and(|to| to.starts_with(OURS))
}

/// The programs, of the nf_tables variant.
struct Tools {
    save: &'static str,
    restore: &'static str,
}

impl Tools {
    /// By name where the name says the variant, else by what the program says
    /// of itself: rules of the legacy variant would not be seen by anyone who
    /// looks with the other.
    async fn find() -> Result<Self, Fault> {
        let by_name = Self { save: "iptables-nft-save", restore: "iptables-nft-restore" };
        if tool::run(by_name.restore, &["--version"], "").await.is_ok() {
            return Ok(by_name);
        }
        match tool::run("iptables-restore", &["--version"], "").await {
            Ok(version) if version.contains("nf_tables") => {
                Ok(Self { save: "iptables-save", restore: "iptables-restore" })
            }
            Ok(version) => Err(Fault::IptablesVariant(format!("iptables-restore is {}", version.trim()))),
            Err(error) => Err(Fault::IptablesVariant(error.to_string())),
        }
    }

    async fn save(&self) -> Result<Rules, Fault> {
        Ok(parse(&tool::run(self.save, &[], "").await?))
    }

    async fn restore(&self, script: &str) -> Result<(), Fault> {
        tool::run(self.restore, &["--noflush", "-w"], script).await?;
        Ok(())
    }
}

impl From<RunError> for Fault {
    fn from(error: RunError) -> Self {
        // What iptables says when an extension's kernel half is not there.
        const MODULE: [&str; 3] = ["missing kernel module", "No chain/target/match", "not supported"];
        let said = error.to_string();
        if matches!(error, RunError::Failed { .. }) && MODULE.iter().any(|sign| said.contains(sign)) {
            Self::KernelModuleMissing(said)
        } else {
            Self::NatFailed(said)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Forwards;
    use lb_svc_crds::gateway::{NatBackend, Transport};

    fn desired(ports: &[(Transport, u16)]) -> Desired {
        let address = "172.18.0.18".parse().unwrap();
        let forwards: Forwards = ports
            .iter()
            .map(|&(transport, port)| {
                let served = Served { address, transport, port };
                (served, Target::ClusterIp("10.109.201.193".parse().unwrap()))
            })
            .collect();
        let backend = NatBackend::Iptables;
        Desired { backend, lan: "net1".to_owned(), forwards }
    }

    const SCRIPT: &str = "\
*nat
:LB-SVC-DNAT - [0:0]
:LB-SVC-SNAT - [0:0]
-A LB-SVC-DNAT -d 172.18.0.18/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.109.201.193:80
-A LB-SVC-DNAT -d 172.18.0.18/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.109.201.193:8080
-A LB-SVC-DNAT -d 172.18.0.18/32 -p udp -m udp --dport 80 -j DNAT --to-destination 10.109.201.193:80
-A LB-SVC-SNAT -d 10.109.201.193/32 -j MASQUERADE
-I POSTROUTING 1 -m conntrack --ctstate DNAT -j LB-SVC-SNAT
-I PREROUTING 1 -j LB-SVC-DNAT
COMMIT
";

    #[test]
    fn everything_is_one_script() {
        use Transport::{Tcp, Udp};
        let wanted = render(&desired(&[(Tcp, 8080), (Tcp, 80), (Udp, 80)]));
        assert_eq!(script(&wanted, &Rules::default()), SCRIPT);
    }

    #[test]
    fn endpoints_have_a_chain_in_which_each_gets_its_share() {
        let mut desired = desired(&[(Transport::Tcp, 80), (Transport::Udp, 53)]);
        let at = |number: u8| SocketAddrV4::new([10, 16, 0, number].into(), 8080);
        let target = |numbers: &[u8]| {
            let live = numbers.iter().copied().map(at).collect();
            Target::Endpoints(Arc::new(Endpoints { live, ..Endpoints::default() }))
        };
        for (target, port) in desired.forwards.values_mut().zip([target(&[1, 2, 3]), target(&[])]) {
            *target = port;
        }
        let text = script(&render(&desired), &Rules::default());
        let expected = "\
-A LB-SVC-AC120012-TCP-80 -p tcp -m tcp -m statistic --mode random --probability 0.33333333333 -j DNAT --to-destination 10.16.0.1:8080
-A LB-SVC-AC120012-TCP-80 -p tcp -m tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.16.0.2:8080
-A LB-SVC-AC120012-TCP-80 -p tcp -m tcp -j DNAT --to-destination 10.16.0.3:8080
-A LB-SVC-DNAT -d 172.18.0.18/32 -p tcp -m tcp --dport 80 -j LB-SVC-AC120012-TCP-80
-A LB-SVC-SNAT ! -o net1 -j MASQUERADE
";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("--dport 53"), "nobody is there: {text}");
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written_again() {
        let held = render(&desired(&[(Transport::Tcp, 80)]));
        assert_eq!(script(&held, &held), "");
        let text = script(&render(&desired(&[(Transport::Tcp, 81)])), &held);
        assert!(text.starts_with("*nat\n") && !text.contains("-I "), "{text}");
        assert!(!text.contains("--dport 80 "), "{text}");
    }

    #[test]
    fn the_saved_text_is_read_for_what_is_ours() {
        let saved = "\
# Generated by iptables-nft-save v1.8.9 (nf_tables) on Sat Nov 21 04:32:55 2026
*nat
:PREROUTING ACCEPT [12:34]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK - [0:0]
:LB-SVC-DNAT - [0:0]
:LB-SVC-OLD - [0:0]
-A PREROUTING -m comment --comment \"not -j LB-SVC-DNAT\" -j KUBE-MARK
-A PREROUTING -j LB-SVC-DNAT
-A PREROUTING -i eth9 -j LB-SVC-DNAT
-A LB-SVC-DNAT -d 172.18.0.18/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.109.201.193:80
-A LB-SVC-OLD -j RETURN
COMMIT
";
        let held = parse(saved);
        let key = |chain: &str| ("nat".to_owned(), chain.to_owned());
        assert_eq!(held.chains.len(), 2);
        assert_eq!(held.chains[&key("LB-SVC-DNAT")].len(), 1);
        assert_eq!(
            held.jumps[&key("PREROUTING")],
            [(1, "-j LB-SVC-DNAT".to_owned()), (2, "-i eth9 -j LB-SVC-DNAT".to_owned())]
        );

        // The jump moves to the front, its double and the stale chain go, and
        // the others' rule stays.
        let text = script(&render(&desired(&[])), &held);
        for line in [
            "-D PREROUTING -j LB-SVC-DNAT\n-D PREROUTING -i eth9 -j LB-SVC-DNAT\n-I PREROUTING 1 -j LB-SVC-DNAT\n",
            ":LB-SVC-OLD - [0:0]\n",
            "-X LB-SVC-OLD\nCOMMIT",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("KUBE-MARK"), "{text}");
    }

    #[test]
    fn a_read_back_that_lost_something_is_noticed() {
        let wanted = render(&desired(&[(Transport::Tcp, 80)]));
        assert!(wanted.carry_out(&wanted));
        // Another spelling is no loss.
        let mut held = wanted.clone();
        for rules in held.chains.values_mut() {
            for rule in rules {
                rule.push_str(" -m other");
            }
        }
        assert!(held.carry_out(&wanted));
        for key in wanted.chains.keys() {
            let mut held = wanted.clone();
            held.chains.get_mut(key).unwrap().pop();
            assert!(!held.carry_out(&wanted), "{key:?}");
        }
        for key in wanted.jumps.keys() {
            let mut held = wanted.clone();
            held.jumps.get_mut(key).unwrap()[0].0 = 1;
            assert!(!held.carry_out(&wanted), "{key:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_and_a_missing_module_are_told_apart() {
        let none = tool::run("lb-svc-no-such-program", &[], "").await.unwrap_err();
        assert!(matches!(Fault::from(none), Fault::NatFailed(_)));
        let module = RunError::Failed {
            program: "iptables-restore",
            said: "Extension MASQUERADE revision 0 not supported, missing kernel module?".to_owned(),
        };
        assert!(matches!(Fault::from(module), Fault::KernelModuleMissing(_)));
    }
}
