//! NAT by iptables of the nf_tables variant.
//!
//! The rules are in chains of our own, which every change rewrites as a whole: one
//! `iptables-restore --noflush`, one transaction per table. The built-in chains have
//! one jump each, as their first rule. The kernel's rules are read back and remembered
//! literally, so that drift is noticed without knowing how a version of iptables
//! spells a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use futures::future::{FutureExt, LocalBoxFuture};
use lb_svc_crds::gateway as wire;

use super::{Desired, NatBackend};
use crate::config::{Endpoints, Frontend, Target, cluster_ips};
use crate::datapath::Trust;
use crate::datapath::command::{self, RunError};
use crate::datapath::nft::dump;
use crate::fault::Fault;

/// Prefix of the names of our chains.
const OURS: &str = "LB-SVC-";

/// The back end.
#[derive(Default)]
pub struct Iptables {
    tools: Option<Tools>,
    /// The rules last applied, and as read back from the kernel.
    known: Option<(Rules, Option<Rules>)>,
}

impl Iptables {
    async fn program(&mut self, desired: Option<&Desired>, trust: Trust) -> Result<bool, Fault> {
        let wanted = desired.map(render).unwrap_or_default();
        let known = self.known.take();
        if trust == Trust::AsApplied && known.as_ref().is_some_and(|(applied, _)| *applied == wanted) {
            self.known = known;
            return Ok(false);
        }
        // The programs may be missing or fail: what needs nothing of them does not ask them.
        if desired.is_none() && !has_chains().await {
            return Ok(false);
        }
        let tools = match &self.tools {
            Some(tools) => tools,
            None => self.tools.insert(Tools::find().await?),
        };
        let before = match known {
            Some((_, Some(seen))) if trust == Trust::AsApplied => seen,
            known => {
                let now = tools.save().await?;
                let as_applied = known.is_some_and(|(applied, seen)| {
                    applied == wanted && seen.map_or_else(|| now.has_shape_of(&wanted), |seen| seen == now)
                });
                if as_applied || now == wanted {
                    self.known = Some((wanted, Some(now)));
                    return Ok(false);
                }
                now
            }
        };
        // iptables-restore applies all of it or fails. The kernel's spelling is
        // read when the kernel notifies of the change, which is at once; serving
        // does not wait for that.
        tools.restore(&script(&wanted, &before)).await?;
        self.known = Some((wanted, None));
        Ok(true)
    }
}

impl NatBackend for Iptables {
    fn name(&self) -> wire::NatBackend {
        wire::NatBackend::Iptables
    }

    fn ensure<'a>(
        &'a mut self,
        desired: Option<&'a Desired>,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        self.program(desired, trust).boxed_local()
    }
}

/// Our rules of all tables: those in our chains, and those in other chains that jump
/// to ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    /// By table and chain, without the `-A <chain> `.
    chains: BTreeMap<(String, String), Vec<String>>,
    /// By table and chain, with the position in the chain.
    jumps: BTreeMap<(String, String), Vec<(usize, String)>>,
}

impl Rules {
    /// Whether these rules, as read back, have as many rules per chain as were
    /// written, whatever their spelling, and every jump at its position.
    fn has_shape_of(&self, wanted: &Self) -> bool {
        let shape = |rules: &Self| -> Vec<usize> { rules.chains.values().map(Vec::len).collect() };
        let positions = |rules: &Self| -> Vec<Vec<usize>> {
            let of = |jumps: &Vec<(usize, String)>| jumps.iter().map(|(at, _)| *at).collect();
            rules.jumps.values().map(of).collect()
        };
        self.chains.keys().eq(wanted.chains.keys())
            && self.jumps.keys().eq(wanted.jumps.keys())
            && shape(self) == shape(wanted)
            && positions(self) == positions(wanted)
    }

    /// The rules of one table.
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

/// Whether the kernel has a chain of ours, or does not say; no rule that jumps to one
/// outlives it.
async fn has_chains() -> bool {
    for table in ["ip raw", "ip mangle", "ip nat", "ip filter", "ip security"] {
        match dump::read(table).await {
            Ok(contents) if !contents.names.chains.iter().any(|chain| chain.starts_with(OURS)) => {}
            _ => return true,
        }
    }
    false
}

/// Renders the desired rules, spelled as by iptables-save.
fn render(desired: &Desired) -> Rules {
    let lan = &desired.lan;
    let mut dnat = Vec::new();
    let mut dispatch = BTreeMap::new();
    for (frontend, target) in &desired.targets {
        let (address, port) = (frontend.address, frontend.port);
        let protocol = frontend.transport.name();
        let to = format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port} -j");
        match target {
            Target::ClusterIp(target) => dnat.push(format!("{to} DNAT --to-destination {target}:{port}")),
            // Without endpoints, refused like a port that is not served.
            Target::Endpoints(endpoints) if endpoints.live.is_empty() => {}
            Target::Endpoints(endpoints) => {
                let chain = dispatch_chain(frontend);
                dnat.push(format!("{to} {chain}"));
                dispatch.insert(chain, dispatch_rules(frontend, endpoints));
            }
        }
    }
    let targets: BTreeSet<Ipv4Addr> = cluster_ips(&desired.targets).map(|(_, target)| target).collect();
    let mut snat: Vec<String> =
        targets.iter().map(|target| format!("-d {target}/32 -j MASQUERADE")).collect();
    if !dispatch.is_empty() {
        snat.push(format!("! -o {lan} -j MASQUERADE"));
    }

    let key = |chain: &str| ("nat".to_owned(), chain.to_owned());
    let jump = |rule: &str| vec![(0, rule.to_owned())];
    let chains = [(key("LB-SVC-DNAT"), dnat), (key("LB-SVC-SNAT"), snat)];
    let dispatch = dispatch.into_iter().map(|(chain, rules)| (key(&chain), rules));
    Rules {
        chains: chains.into_iter().chain(dispatch).collect(),
        jumps: [
            (key("PREROUTING"), jump("-j LB-SVC-DNAT")),
            (key("POSTROUTING"), jump("-m conntrack --ctstate DNAT -j LB-SVC-SNAT")),
        ]
        .into(),
    }
}

/// The name of the chain that distributes a frontend's connections over its
/// endpoints. iptables allows 28 characters.
fn dispatch_chain(frontend: &Frontend) -> String {
    let Frontend { address, transport, port } = frontend;
    format!("{OURS}{:08X}-{}-{port}", u32::from(*address), transport.name().to_uppercase())
}

/// The rules of that chain: the first of `n` endpoints gets one in `n` of the
/// connections, the next one in `n - 1` of those that are left, and so on.
fn dispatch_rules(frontend: &Frontend, endpoints: &Endpoints) -> Vec<String> {
    let protocol = frontend.transport.name();
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

/// The input of `iptables-restore --noflush` that turns `before` into `wanted`. A
/// table without differences is left out: each costs the kernel a grace period.
fn script(wanted: &Rules, before: &Rules) -> String {
    let mut text = String::new();
    let tables: BTreeSet<&str> = wanted.tables().union(&before.tables()).copied().collect();
    for table in tables {
        if wanted.of(table) == before.of(table) {
            continue;
        }
        let _ = writeln!(text, "*{table}");
        let of = |rules: &Rules| -> BTreeSet<String> {
            let own = rules.chains.keys().filter(|(of, _)| of == table);
            own.map(|(_, chain)| chain.clone()).collect()
        };
        let (wanted_chains, chains_before) = (of(wanted), of(before));
        // Declaring a chain creates or empties it.
        for chain in wanted_chains.union(&chains_before) {
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
        let jumping = wanted.jumps.keys().chain(before.jumps.keys());
        let jumping: BTreeSet<&String> = jumping.filter(|(of, _)| of == table).map(|(_, c)| c).collect();
        for chain in jumping {
            let (new, old) = (jumps(wanted, chain), jumps(before, chain));
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
        for chain in chains_before.difference(&wanted_chains) {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Parses our rules out of iptables-save's output.
fn parse(saved: &str) -> Rules {
    let mut rules = Rules::default();
    let mut table = "";
    let mut positions: BTreeMap<&str, usize> = BTreeMap::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
            positions.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            let chain = chain.split(' ').next().unwrap_or_default();
            if chain.starts_with(OURS) {
                let key = (table.to_owned(), chain.to_owned());
                rules.chains.entry(key).or_default();
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
            let key = (table.to_owned(), chain.to_owned());
            let position = positions.entry(chain).or_default();
            if chain.starts_with(OURS) {
                rules.chains.entry(key).or_default().push(rule.to_owned());
            } else if jumps_to_ours(rule) {
                rules.jumps.entry(key).or_default().push((*position, rule.to_owned()));
            }
            *position += 1;
        }
    }
    rules
}

fn jumps_to_ours(rule: &str) -> bool {
    // Quoted text is a comment or the like.
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
    /// Finds the programs of the nf_tables variant: by name, or by the version that
    /// a program reports. Rules of the legacy variant are invisible to programs of
    /// the other.
    async fn find() -> Result<Self, Fault> {
        let by_name = Self { save: "iptables-nft-save", restore: "iptables-nft-restore" };
        match command::run(by_name.restore, &["--version"], "").await {
            Ok(_) => return Ok(by_name),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(fault(&error)),
        }
        match command::run("iptables-restore", &["--version"], "").await {
            Ok(version) if version.contains("nf_tables") => {
                Ok(Self { save: "iptables-save", restore: "iptables-restore" })
            }
            Ok(version) => Err(Fault::IptablesVariant(format!("iptables-restore is {}", version.trim()))),
            Err(error) if error.is_missing() => Err(Fault::IptablesVariant(error.to_string())),
            Err(error) => Err(fault(&error)),
        }
    }

    async fn save(&self) -> Result<Rules, Fault> {
        command::run(self.save, &[], "").await.map(|saved| parse(&saved)).map_err(|error| fault(&error))
    }

    async fn restore(&self, script: &str) -> Result<(), Fault> {
        command::run(self.restore, &["--noflush", "-w"], script)
            .await
            .map(drop)
            .map_err(|error| fault(&error))
    }
}

/// The fault of a failed iptables program.
fn fault(error: &RunError) -> Fault {
    // iptables' messages if the kernel half of an extension is missing.
    const MODULE: [&str; 3] = ["missing kernel module", "No chain/target/match", "not supported"];
    let text = error.to_string();
    if matches!(error, RunError::Failed { .. }) && MODULE.iter().any(|sign| text.contains(sign)) {
        Fault::KernelModuleMissing(text)
    } else {
        Fault::NatFailed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Targets;
    use lb_svc_crds::gateway::Transport;

    fn desired(ports: &[(Transport, u16)]) -> Desired {
        let address = "172.18.0.18".parse().unwrap();
        let targets: Targets = ports
            .iter()
            .map(|&(transport, port)| {
                let frontend = Frontend { address, transport, port };
                (frontend, Target::ClusterIp("10.109.201.193".parse().unwrap()))
            })
            .collect();
        let backend = wire::NatBackend::Iptables;
        Desired { backend, lan: "net1".to_owned(), targets }
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
    fn rules_are_one_script() {
        use Transport::{Tcp, Udp};
        let wanted = render(&desired(&[(Tcp, 8080), (Tcp, 80), (Udp, 80)]));
        assert_eq!(script(&wanted, &Rules::default()), SCRIPT);
    }

    #[test]
    fn endpoints_have_a_dispatch_chain_with_equal_shares() {
        let mut desired = desired(&[(Transport::Tcp, 80), (Transport::Udp, 53)]);
        let at = |number: u8| SocketAddrV4::new([10, 16, 0, number].into(), 8080);
        let target = |numbers: &[u8]| {
            let live = numbers.iter().copied().map(at).collect();
            Target::Endpoints(Arc::new(Endpoints { live, ..Endpoints::default() }))
        };
        for (target, port) in desired.targets.values_mut().zip([target(&[1, 2, 3]), target(&[])]) {
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
        assert!(!text.contains("--dport 53"), "no endpoints: {text}");
    }

    #[test]
    fn unchanged_table_is_not_written() {
        let held = render(&desired(&[(Transport::Tcp, 80)]));
        assert_eq!(script(&held, &held), "");
        let text = script(&render(&desired(&[(Transport::Tcp, 81)])), &held);
        assert!(text.starts_with("*nat\n") && !text.contains("-I "), "{text}");
        assert!(!text.contains("--dport 80 "), "{text}");
    }

    #[test]
    fn saved_rules_are_filtered_for_ours() {
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
    fn lost_rule_in_read_back_is_noticed() {
        let wanted = render(&desired(&[(Transport::Tcp, 80)]));
        assert!(wanted.has_shape_of(&wanted));
        // Another spelling is no loss.
        let mut held = wanted.clone();
        for rules in held.chains.values_mut() {
            for rule in rules {
                rule.push_str(" -m other");
            }
        }
        assert!(held.has_shape_of(&wanted));
        for key in wanted.chains.keys() {
            let mut held = wanted.clone();
            held.chains.get_mut(key).unwrap().pop();
            assert!(!held.has_shape_of(&wanted), "{key:?}");
        }
        for key in wanted.jumps.keys() {
            let mut held = wanted.clone();
            held.jumps.get_mut(key).unwrap()[0].0 = 1;
            assert!(!held.has_shape_of(&wanted), "{key:?}");
        }
    }

    #[tokio::test]
    async fn missing_program_and_missing_module_are_different_faults() {
        let none = command::run("lb-svc-no-such-program", &[], "").await.unwrap_err();
        assert!(matches!(fault(&none), Fault::NatFailed(_)));
        let module = RunError::Failed {
            program: "iptables-restore",
            output: "Extension MASQUERADE revision 0 not supported, missing kernel module?".to_owned(),
        };
        assert!(matches!(fault(&module), Fault::KernelModuleMissing(_)));
    }
}
