//! The LB address, by the ClusterIP and straight to the pod, beside the pod
//! itself by routing and a NodePort.
//!
//! All of these enter the cluster at the pod's node, and so does an address that
//! is led to a ClusterIP as the gateway would do it, but by rules typed into a
//! pod: what forwarding costs on this machine, whoever set it up. Beside these,
//! the pod is reached by routing through one pod more, which stands where a
//! gateway would and changes nothing in what it forwards: less than that, no
//! gateway costs. One LB address more is that of a gateway on another node, from
//! which the cluster's network has one hop more to go, as from any node that is
//! not the pod's.
//!
//! Each path ends at a port of its own, and no run finds connections of the
//! one before it in a conntrack table: paths that end at one port disturb each
//! other through TIME_WAIT and TCP timestamps. The client closes first, and
//! takes its source ports again after a second, so that it has enough of them;
//! but for rows that say otherwise.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{Api, ListParams};
use lb_svc_e2e::Lab;
use lb_svc_e2e::objects::{port, service};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::load::{Closes, Load, Rate, connect, transfer};
use crate::stage::{Stage, backend, process};
use crate::start::first_answer;
use crate::table::{Goal, Row, median};
use crate::{Options, address};

/// How many ways there are. A prime number: see [`throughput`].
const WAYS: usize = 7;
/// How many seconds a transfer is to take. Short ones in turn make a run, for how
/// fast the machine copies changes from one second to the next.
const TRANSFER: f64 = 0.3;
/// What the first transfer takes to find out.
const PROBE: u64 = 256 << 20;
/// Runs of what takes half a minute, at most.
const LONG_RUNS: usize = 5;
/// Runs in which the server closes first, at most: each path has a port for each,
/// for the pod remembers connections for a minute.
const CLOSING_RUNS: usize = 3;
/// The first of these ports.
const CLOSING: u16 = 8100;
/// The paths with such ports: the LB address with one client and with many, the
/// same straight to the pod, and the pod itself.
const CLOSING_PATHS: u16 = 5;
/// What the client's namespace is set to meanwhile.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/tcp_tw_reuse", "1"), ("net/ipv4/ip_local_port_range", "1024 65535")];
/// A network whose addresses the client has as well.
const CLIENTS: Network = Network([172, 18, 200]);
/// The same for when it goes through the pod that only routes.
const ROUTED: Network = Network([172, 18, 201]);
/// The client's routing table for these.
const ROUTED_TABLE: u8 = 201;
/// How many addresses of a network are used: a port that is bound to one of them
/// is not taken again for a minute.
const ADDRESSES: u8 = 100;

/// A network of 24 bits.
#[derive(Clone, Copy)]
struct Network([u8; 3]);

impl Network {
    fn addresses(self) -> Vec<IpAddr> {
        let Self([a, b, c]) = self;
        (1..=ADDRESSES).map(|last| Ipv4Addr::new(a, b, c, last).into()).collect()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c]) = self;
        write!(f, "{a}.{b}.{c}.0/24")
    }
}

/// A way to the pod.
struct Way {
    name: &'static str,
    target: SocketAddr,
    /// The client's addresses, in turn; none is the host's own.
    from: Vec<IpAddr>,
}

impl Way {
    const fn new(name: &'static str, target: SocketAddr) -> Self {
        Self { name, target, from: Vec::new() }
    }
}

/// The ways to one pod.
struct Paths {
    /// Ours by the ClusterIP, ours straight to the pod, the pod itself by
    /// routing, a NodePort, ours from another node, by hand, through a pod that
    /// only routes: in this order.
    ways: [Way; WAYS],
    /// Where all of them end.
    pod: IpAddr,
    /// The names of the nodes.
    nodes: Vec<String>,
    /// The namespaces of the gateways, and of the pod with the typed rules.
    gateways: Vec<PathBuf>,
}

/// The rows.
pub async fn measure(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    ensure!(Lab::is_local(), "the way to a pod by routing is made for the local cluster only");
    // Never on a machine's own network.
    let here = std::fs::metadata("/proc/self/ns/net")?.ino();
    ensure!(std::fs::metadata("/run/netns/lb-svc-client")?.ino() == here, "not run as the client");
    let nodes: Api<Node> = Api::all(stage.lab.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let names: Vec<String> = nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let node = nodes.last().context("no node")?;
    let node_name = names.last().cloned().unwrap_or_default();
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let node_ip = addresses.into_iter().find(|address| address.type_ == "InternalIP");
    let node_ip: IpAddr = node_ip.context("a node without address")?.address.parse()?;

    let closing = CLOSING..CLOSING + CLOSING_PATHS * CLOSING_RUNS as u16;
    let listens = (8001..=8007).chain(closing.clone()).map(|port| format!("tcp/{port}"));
    stage.start(backend_on(&node_name, "busy", &listens.collect::<Vec<_>>())).await?;
    let pod = stage.ready("busy").await?;
    let pod_ip: IpAddr =
        pod.status.and_then(|status| status.pod_ip).context("a pod without address")?.parse()?;
    let gateway_on = async |name: &str, number: usize, ports: &[Value], node: &str, straight: bool| {
        let closing = closing.clone().map(|number| port("TCP", number, number));
        let mut object = service(name, &ports.iter().cloned().chain(closing).collect());
        object["spec"]["selector"] = json!({ "app": "busy" });
        object["spec"]["loadBalancerIP"] = json!(address(number));
        let selector = json!({ "kubernetes.io/hostname": node }).to_string();
        let annotations = &mut object["metadata"]["annotations"];
        annotations["lb-svc.kubeovn.io/node-selector"] = json!(selector);
        if straight {
            annotations["lb-svc.kubeovn.io/direct-access"] = json!("true");
            annotations["lb-svc.kubeovn.io/nat-backend"] = json!("nftables");
        }
        stage.create::<Service>(object).await
    };
    let other = names.first().filter(|name| **name != node_name).context("no other node")?;
    let ports = [port("TCP", 80, 8001), port("TCP", 83, 8003)];
    let created = gateway_on("busy", 0, &ports, &node_name, false).await?;
    gateway_on("straight", 1, &[port("TCP", 80, 8005)], &node_name, true).await?;
    gateway_on("away", 2, &[port("TCP", 80, 8004)], other, false).await?;
    let typed = type_rules(stage, &node_name, address(3)).await?;
    let routed = route_through(stage, &node_name, address(4), pod_ip).await?;
    let ports = created.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let node_port = ports.iter().find(|port| port.port == 83).and_then(|port| port.node_port);
    let node_port = u16::try_from(node_port.context("no NodePort")?)?;

    let to_pod = Change::add("route", format!("{pod_ip} via {node_ip}")).await?;
    let clients = Change::add("route", format!("local {CLIENTS} dev lo")).await?;
    let settings = Settings::change()?;
    let ways = [
        Way::new("lb address", SocketAddr::new(address(0), 80)),
        Way::new("straight", SocketAddr::new(address(1), 80)),
        Way::new("pod", SocketAddr::new(pod_ip, 8002)),
        Way::new("NodePort", SocketAddr::new(node_ip, node_port)),
        Way::new("away", SocketAddr::new(address(2), 80)),
        Way::new("by hand", SocketAddr::new(address(3), 80)),
        Way { from: ROUTED.addresses(), ..Way::new("routed", SocketAddr::new(pod_ip, 8007)) },
    ];
    for way in &ways {
        first_answer(way.target, Instant::now()).await?;
        if let Some(from) = way.from.first() {
            transfer(way.target, Some(*from), 1)
                .await
                .with_context(|| format!("{} from {from}", way.name))?;
        }
    }
    eprintln!("  the pod, the NodePort and two gateways are on node {node_name}, the one away on {other}");
    let mut gateways = vec![typed];
    for name in SERVICES {
        let gateway = stage.ready(&format!("lb-svc-{name}")).await?;
        gateways.push(process(&gateway, "lb-svc-gateway")?.join("ns/net"));
    }
    let paths = Paths { ways, pod: pod_ip, nodes: names, gateways };

    let mut rows = Vec::new();
    if options.wants("throughput") {
        rows.extend(throughput(&paths, options.runs).await?);
    }
    if options.wants("connections") {
        rows.extend(connections(&paths, options).await?);
    }
    if options.wants("closing") {
        rows.extend(closed_by_the_server(&paths, options).await?);
    }
    drop((settings, to_pod, clients, routed));
    for name in SERVICES {
        stage.delete::<Service>(name).await?;
    }
    stage.delete::<Service>("by-hand").await?;
    stage.delete::<Pod>("by-hand").await?;
    stage.delete::<Pod>("routed").await?;
    stage.delete::<Pod>("busy").await?;
    stage.freed().await?;
    Ok(rows)
}

const SERVICES: [&str; 3] = ["busy", "straight", "away"];

async fn throughput(paths: &Paths, runs: usize) -> anyhow::Result<[Row; 6]> {
    let [_, _, pod, ..] = &paths.ways;
    let rate = PROBE as f64 / transfer(pod.target, None, PROBE).await?.as_secs_f64();
    let bytes = (rate * TRANSFER) as u64;
    let carried = ((WAYS - 1) as u64 * bytes) as f64 / f64::from(1 << 20);
    let mut sides = [const { Vec::new() }; WAYS];
    for run in 1..=runs {
        paths.forget().await?;
        let mut taken = [Duration::ZERO; WAYS];
        // What was before slows or speeds what comes: by these strides, each way
        // follows each of the others once.
        for turn in (1..WAYS).flat_map(|stride| (0..WAYS).map(move |turn| turn * stride % WAYS)) {
            let Way { name, target, from } = &paths.ways[turn];
            let time = transfer(*target, from.first().copied(), bytes).await;
            taken[turn] += time.with_context(|| format!("{name} at {target}"))?;
        }
        let values = taken.map(|taken| carried / taken.as_secs_f64());
        for (side, value) in sides.iter_mut().zip(values) {
            side.push(value);
        }
        tell(&run.to_string(), &paths.ways, &values, "MiB/s");
    }
    tell("medians", &paths.ways, &sides.each_ref().map(|side| median(side)), "MiB/s");
    Ok(rows("throughput", "MiB/s", [Goal::RatioAtLeast(0.85), Goal::RatioAtLeast(0.95)], &sides))
}

async fn connections(paths: &Paths, options: &Options) -> anyhow::Result<Vec<Row>> {
    let time = Duration::from_secs(if options.quick { 5 } else { 30 });
    let mut slow = Vec::new();
    let sides = interleave(paths, &paths.ways, options.runs.min(LONG_RUNS), "/s", async |way| {
        let from = way.from.clone();
        let load = Load { closes: Closes::Client, from, after: Duration::ZERO, time };
        let Rate { per_second, p99 } = connect(way.target, &load).await?;
        slow.push(p99);
        Ok(per_second)
    })
    .await?;
    let p99 = std::array::from_fn(|way| slow.iter().copied().skip(way).step_by(sides.len()).collect());
    let goals = [Goal::RatioAtLeast(0.65), Goal::RatioAtLeast(0.7)];
    let mut table = Vec::from(rows("new connections", "/s", goals, &sides));
    let goals = [Goal::None, Goal::RatioAtMost(1.5)];
    table.extend(rows("connect, request and close, 99th percentile", "ms", goals, &p99));
    Ok(table)
}

/// Ours and, for comparison, the others: all over the pod itself.
fn rows(what: &str, unit: &'static str, goals: [Goal; 2], sides: &[Vec<f64>; WAYS]) -> [Row; 6] {
    let [ours, straight, pod, node_port, away, by_hand, routed] = sides;
    let row = |name: &str, side: &[f64], goal| Row::paired(&format!("{name}: {what}"), unit, side, pod, goal);
    let [by_cluster_ip, by_endpoints] = goals;
    [
        row("LB address, over the pod itself by routing", ours, by_cluster_ip),
        row("straight to the pod", straight, by_endpoints),
        row("the same by rules typed by hand", by_hand, Goal::None),
        row("routed through one pod more, by no rule at all", routed, Goal::None),
        row("its gateway on another node", away, Goal::None),
        row("a NodePort beside it", node_port, Goal::None),
    ]
}

/// What is carried when the server closes first: not at first, while there are
/// source ports that were never used, but then.
async fn closed_by_the_server(paths: &Paths, options: &Options) -> anyhow::Result<Vec<Row>> {
    let time = Duration::from_secs(if options.quick { 3 } else { 15 });
    let many = CLIENTS.addresses();
    let mut port = CLOSING..;
    let ways = [
        ("LB address, one client", address(0), Vec::new()),
        ("LB address, many clients", address(0), many.clone()),
        ("straight to the pod, one client", address(1), Vec::new()),
        ("straight to the pod, many clients", address(1), many),
        ("pod", paths.pod, Vec::new()),
    ]
    .map(|(name, ip, from)| Way {
        name,
        target: SocketAddr::new(ip, port.next().unwrap_or(CLOSING)),
        from,
    });
    let mut made = 0;
    let sides = interleave(paths, &ways, options.runs.min(CLOSING_RUNS), "/s", async |way| {
        let run = made / CLOSING_PATHS;
        made += 1;
        let target = SocketAddr::new(way.target.ip(), way.target.port() + run * CLOSING_PATHS);
        let load = Load { closes: Closes::Server, from: way.from.clone(), after: time, time };
        Ok(connect(target, &load).await?.per_second)
    })
    .await?;
    let [.., pod] = &sides;
    let ours = ways.iter().zip(&sides).take(4);
    let row = |(way, side): (&Way, &Vec<f64>)| {
        let name = format!("the server closing first, {}: new connections", way.name);
        Row::paired(&name, "/s", side, pod, Goal::None)
    };
    Ok(ours.map(row).collect())
}

/// Shows what one run gave.
fn tell<const COUNT: usize>(run: &str, ways: &[Way; COUNT], values: &[f64; COUNT], unit: &str) {
    let told = ways.iter().zip(values).map(|(way, value)| format!("{} {value:.0}", way.name));
    eprintln!("  {run:>2}  {} {unit}", told.collect::<Vec<_>>().join("  "));
}

/// Measures the ways in turn.
async fn interleave<const COUNT: usize>(
    paths: &Paths,
    ways: &[Way; COUNT],
    runs: usize,
    unit: &str,
    mut measure: impl AsyncFnMut(&Way) -> anyhow::Result<f64>,
) -> anyhow::Result<[Vec<f64>; COUNT]> {
    let mut sides = [const { Vec::new() }; COUNT];
    for run in 1..=runs {
        let mut values = [0.0; COUNT];
        for ((way, value), side) in ways.iter().zip(&mut values).zip(&mut sides) {
            paths.forget().await?;
            let measured = measure(way).await;
            *value = measured.with_context(|| format!("{} at {}", way.name, way.target))?;
            side.push(*value);
        }
        tell(&run.to_string(), ways, &values, unit);
    }
    tell("medians", ways, &sides.each_ref().map(|side| median(side)), unit);
    Ok(sides)
}

/// Has a pod on this node lead port 80 of an address to a ClusterIP, by the
/// commands that one would type. Returns its network namespace.
async fn type_rules(stage: &Stage, node: &str, ip: IpAddr) -> anyhow::Result<PathBuf> {
    let inside = json!({
        "metadata": { "name": "by-hand" },
        "spec": { "selector": { "app": "busy" }, "ports": [port("TCP", 80, 8006)] },
    });
    let created = stage.create::<Service>(inside).await?;
    let cluster_ip = created.spec.and_then(|spec| spec.cluster_ip).context("no ClusterIP")?;
    let (netns, _) = attached(stage, node, "by-hand").await?;
    let script = format!(
        "set -e
        cd /proc/sys/net/ipv4
        echo 1 > ip_forward
        for interface in eth0 net1; do echo 2 > conf/$interface/rp_filter; done
        via=$(ip route show default | cut -d' ' -f3)
        ip address add {ip}/16 dev net1 noprefixroute
        ip link set net1 up
        ip route add 172.18.0.0/16 dev net1 table 100
        ip route add {cluster_ip} via $via dev eth0 table 100
        ip rule add iif net1 lookup 100
        ip rule add iif eth0 lookup 100
        iptables-nft -t nat -A PREROUTING -d {ip} -p tcp --dport 80 -j DNAT --to-destination {cluster_ip}:80
        iptables-nft -t nat -A POSTROUTING -d {cluster_ip} -j MASQUERADE"
    );
    run("nsenter", &[&format!("--net={}", netns.display()), "sh", "-c", &script]).await?;
    Ok(netns)
}

/// Has a pod on this node, which the LAN knows by `ip`, route between the client
/// and the pod, both ways. Returns what the client has for it.
async fn route_through(stage: &Stage, node: &str, ip: IpAddr, pod: IpAddr) -> anyhow::Result<[Change; 3]> {
    let (netns, own) = attached(stage, node, "routed").await?;
    let script = format!(
        "set -e
        echo 1 > /proc/sys/net/ipv4/ip_forward
        ip address add {ip}/16 dev net1
        ip link set net1 up"
    );
    run("nsenter", &[&format!("--net={}", netns.display()), "sh", "-c", &script]).await?;
    let to_own = Lab::cluster(&["node", &Lab::number(node), "ip", "-o", "route", "get", &own]).await?;
    let device =
        to_own.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("no way to a pod")?;
    // It goes with the pod.
    let back = format!("ip route replace {ROUTED} via {own} dev {device} onlink");
    let number = Lab::number(node);
    let back: Vec<&str> = ["node", &number].into_iter().chain(back.split(' ')).collect();
    Lab::cluster(&back).await?;
    Ok([
        Change::add("route", format!("local {ROUTED} dev lo")).await?,
        Change::add("route", format!("{pod} via {ip} table {ROUTED_TABLE}")).await?,
        Change::add("rule", format!("from {ROUTED} lookup {ROUTED_TABLE}")).await?,
    ])
}

/// Starts a pod on this node with the attachment's interface. Returns its network
/// namespace, and its own address.
async fn attached(stage: &Stage, node: &str, name: &str) -> anyhow::Result<(PathBuf, String)> {
    let mut pod = backend_on(node, name, &["tcp/80".to_owned()]);
    pod["metadata"]["annotations"] =
        json!({ "k8s.v1.cni.cncf.io/networks": "kube-system/lb-svc-attachment" });
    stage.start(pod).await?;
    let pod = stage.ready(name).await?;
    let netns = process(&pod, "lb-svc-backend")?.join("ns/net");
    Ok((netns, pod.status.and_then(|status| status.pod_ip).context("a pod without address")?))
}

/// A pod on this node that listens there.
fn backend_on(node: &str, name: &str, listens: &[String]) -> Value {
    let mut pod = backend(name);
    pod["spec"]["nodeName"] = node.into();
    pod["spec"]["containers"][0]["args"] = json!(listens);
    pod
}

impl Paths {
    /// Takes the pod's connections out of the conntrack tables on the way, in
    /// the cluster's own namespaces only. Not the nodes' other connections: a
    /// controller's watch would hang for minutes.
    async fn forget(&self) -> anyhow::Result<()> {
        // The last connections of the run before are still closing.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let pod = self.pod.to_string();
        for node in &self.nodes {
            // It fails where there is nothing to delete.
            Lab::cluster(&["node", &Lab::number(node), "conntrack", "-D", "--reply-src", &pod]).await.ok();
        }
        for gateway in &self.gateways {
            run("nsenter", &[&format!("--net={}", gateway.display()), "conntrack", "-F"]).await?;
        }
        Ok(())
    }
}

async fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().await?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A route or a rule of the client's, for as long as this lives.
struct Change {
    kind: &'static str,
    what: String,
}

impl Change {
    async fn add(kind: &'static str, what: String) -> anyhow::Result<Self> {
        let command = |verb| -> Vec<&str> { [kind, verb].into_iter().chain(what.split(' ')).collect() };
        // One that was ended has left it.
        run("ip", &command("del")).await.ok();
        run("ip", &command("add")).await?;
        Ok(Self { kind, what })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("ip");
        let removed = command.args([self.kind, "del"]).args(self.what.split(' ')).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the client keeps the {} {}", self.kind, self.what);
        }
    }
}

/// The client's settings as they were before, for as long as this lives.
struct Settings(Vec<(PathBuf, String)>);

impl Settings {
    fn change() -> anyhow::Result<Self> {
        let mut before = Self(Vec::new());
        for (key, value) in CLIENT_SETTINGS {
            let file = Path::new("/proc/sys").join(key);
            before.0.push((file.clone(), std::fs::read_to_string(&file)?));
            std::fs::write(&file, value)?;
        }
        Ok(before)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            if std::fs::write(file, value).is_err() {
                eprintln!("the client keeps another {}", file.display());
            }
        }
    }
}
