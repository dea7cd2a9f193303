//! The LB address, beside the pod itself by routing and a NodePort.
//!
//! All of these enter the cluster at the pod's node. A second LB address is that
//! of a gateway on another node, from which the cluster's network has one hop
//! more to go, as from any node that is not the pod's.
//!
//! Each path ends at a port of its own, and no run finds connections of the
//! one before it in a conntrack table: paths that end at one port disturb each
//! other through TIME_WAIT and TCP timestamps. The client closes first, and
//! takes its source ports again after a second, so that it has enough of them.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{Api, ListParams};
use lb_svc_e2e::objects::{BACKEND, port, service};
use lb_svc_e2e::{Lab, client};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::stage::{Stage, process};
use crate::start::first_answer;
use crate::table::{Goal, Row, median};
use crate::{Options, address};

/// Connections at a time.
const CLIENTS: usize = 32;
/// How long one transfer is to take.
const TRANSFER: f64 = 2.5;
/// What the first transfer takes to find out.
const PROBE: u64 = 256 << 20;
/// What the client's namespace is set to meanwhile.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/tcp_tw_reuse", "1"), ("net/ipv4/ip_local_port_range", "1024 65535")];

/// The ways to one pod.
struct Paths {
    /// Ours, by routing, by NodePort, ours from another node: in this order.
    targets: [(&'static str, SocketAddr); 4],
    /// Where all of them end.
    pod: IpAddr,
    /// The numbers of the nodes.
    nodes: Vec<String>,
    /// The gateways' namespaces.
    gateways: [PathBuf; 2],
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

    stage
        .start(json!({
            "metadata": { "name": "busy", "labels": { "app": "busy" } },
            "spec": {
                "nodeName": node_name,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "backend",
                    "image": BACKEND,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["tcp/8001", "tcp/8002", "tcp/8003", "tcp/8004"],
                }],
            },
        }))
        .await?;
    let pod = stage.ready("busy").await?;
    let pod_ip: IpAddr =
        pod.status.and_then(|status| status.pod_ip).context("a pod without address")?.parse()?;
    let gateway_on = async |name: &str, number: usize, ports: serde_json::Value, node: &str| {
        let mut object = service(name, &ports);
        object["spec"]["selector"] = json!({ "app": "busy" });
        object["spec"]["loadBalancerIP"] = json!(address(number));
        let selector = json!({ "kubernetes.io/hostname": node }).to_string();
        object["metadata"]["annotations"]["lb-svc.kubeovn.io/node-selector"] = json!(selector);
        stage.create::<Service>(object).await
    };
    let created =
        gateway_on("busy", 0, json!([port("TCP", 80, 8001), port("TCP", 83, 8003)]), &node_name).await?;
    let other = names.first().filter(|name| **name != node_name).context("no other node")?;
    gateway_on("away", 1, json!([port("TCP", 80, 8004)]), other).await?;
    let ports = created.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let node_port = ports.iter().find(|port| port.port == 83).and_then(|port| port.node_port);
    let node_port = u16::try_from(node_port.context("no NodePort")?)?;

    let route = Route::add(pod_ip, node_ip).await?;
    let settings = Settings::change()?;
    let targets = [
        ("lb address", SocketAddr::new(address(0), 80)),
        ("pod", SocketAddr::new(pod_ip, 8002)),
        ("NodePort", SocketAddr::new(node_ip, node_port)),
        ("away", SocketAddr::new(address(1), 80)),
    ];
    for (_, target) in targets {
        first_answer(target, Instant::now()).await?;
    }
    eprintln!("  the pod, the NodePort and a gateway are on node {node_name}, the one away on {other}");
    let namespace = async |app: &str| {
        let gateway = stage.ready(app).await?;
        anyhow::Ok(process(&gateway, "lb-svc-gateway")?.join("ns/net"))
    };
    let gateways = [namespace("lb-svc-busy").await?, namespace("lb-svc-away").await?];
    let paths = Paths {
        targets,
        pod: pod_ip,
        nodes: names.iter().map(|name| name.trim_start_matches('n').to_owned()).collect(),
        gateways,
    };

    let mut rows = Vec::new();
    if options.wants("throughput") {
        rows.extend(throughput(&paths, options.runs).await?);
    }
    if options.wants("connections") {
        rows.extend(connections(&paths, options).await?);
    }
    drop((settings, route));
    stage.delete::<Service>("busy").await?;
    stage.delete::<Service>("away").await?;
    stage.delete::<Pod>("busy").await?;
    stage.freed().await?;
    Ok(rows)
}

async fn throughput(paths: &Paths, runs: usize) -> anyhow::Result<[Row; 3]> {
    let [_, (_, direct), ..] = paths.targets;
    let rate = PROBE as f64 / transfer(direct, PROBE).await?.as_secs_f64();
    let bytes = (rate * TRANSFER) as u64;
    let sides = interleave(paths, runs, "MiB/s", async |target| {
        Ok(bytes as f64 / f64::from(1 << 20) / transfer(target, bytes).await?.as_secs_f64())
    })
    .await?;
    Ok(rows("throughput", "MiB/s", 0.85, &sides))
}

async fn connections(paths: &Paths, options: &Options) -> anyhow::Result<[Row; 3]> {
    let time = Duration::from_secs(if options.quick { 5 } else { 15 });
    let sides = interleave(paths, options.runs, "/s", async |target| connect(target, time).await).await?;
    Ok(rows("new connections", "/s", 0.65, &sides))
}

/// Ours and, for comparison, the others: all over the pod itself.
fn rows(what: &str, unit: &'static str, goal: f64, sides: &[Vec<f64>; 4]) -> [Row; 3] {
    let [ours, pod, node_port, away] = sides;
    [
        Row::new(
            &format!("LB address: {what}, over the pod itself by routing"),
            unit,
            ours,
            pod,
            Goal::RatioAtLeast(goal),
        ),
        Row::new(&format!("its gateway on another node: {what}"), unit, away, pod, Goal::None),
        Row::new(&format!("a NodePort beside it: {what}"), unit, node_port, pod, Goal::None),
    ]
}

/// Measures the paths in turn.
async fn interleave(
    paths: &Paths,
    runs: usize,
    unit: &str,
    mut measure: impl AsyncFnMut(SocketAddr) -> anyhow::Result<f64>,
) -> anyhow::Result<[Vec<f64>; 4]> {
    let mut sides = [const { Vec::new() }; 4];
    for run in 1..=runs {
        let mut told = Vec::new();
        for ((name, target), side) in paths.targets.iter().zip(&mut sides) {
            paths.forget().await?;
            let value = measure(*target).await.with_context(|| format!("{name} at {target}"))?;
            side.push(value);
            told.push(format!("{name} {value:.0}"));
        }
        eprintln!("  {run:2}  {} {unit}", told.join("  "));
    }
    let medians = sides.each_ref().map(|side| format!("{:.0}", median(side)));
    eprintln!("  medians {} {unit}", medians.join(" "));
    Ok(sides)
}

/// How long a transfer takes, from the first byte to the last.
async fn transfer(target: SocketAddr, bytes: u64) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(format!("GET /bytes/{bytes} HTTP/1.1\r\n\r\n").as_bytes()).await?;
    let mut buffer = vec![0; 1 << 18];
    let mut left = bytes;
    let mut start = None;
    while left > 0 {
        let length = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await??;
        ensure!(length > 0, "the transfer broke off with {left} bytes left");
        // What comes first has the head, and is not counted.
        start.get_or_insert_with(Instant::now);
        left = left.saturating_sub(length as u64);
    }
    Ok(start.map_or(Duration::ZERO, |start| start.elapsed()))
}

/// Connections a second: connect, request, answer, close; for `time`.
async fn connect(target: SocketAddr, time: Duration) -> anyhow::Result<f64> {
    let end = tokio::time::Instant::now() + time;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let (mut done, mut failed) = (0_u32, 0_u32);
            let mut buffer = [0; 1024];
            while let Ok(outcome) = timeout_at(end, exchange(target, &mut buffer)).await {
                if outcome.is_ok() {
                    done += 1;
                } else {
                    failed += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            (done, failed)
        });
    }
    let (mut done, mut failed) = (0, 0);
    while let Some(client) = clients.join_next().await {
        let client = client?;
        done += client.0;
        failed += client.1;
    }
    if failed > 0 {
        eprintln!("      {failed} connections to {target} failed");
    }
    ensure!(done > 0, "not one connection");
    Ok(f64::from(done) / time.as_secs_f64())
}

async fn exchange(target: SocketAddr, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut length = 0;
    loop {
        match stream.read(buffer.get_mut(length..).unwrap_or_default()).await? {
            0 => bail!("a broken answer"),
            more => length += more,
        }
        if buffer.get(..length).and_then(client::body).is_some() {
            return Ok(());
        }
    }
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
            Lab::cluster(&["node", node, "conntrack", "-D", "--reply-src", &pod]).await.ok();
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

/// The client's way to a pod, for as long as this lives.
struct Route(String);

impl Route {
    async fn add(pod: IpAddr, node: IpAddr) -> anyhow::Result<Self> {
        let (pod, node) = (pod.to_string(), node.to_string());
        run("ip", &["route", "replace", &pod, "via", &node]).await?;
        Ok(Self(pod))
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let removed = std::process::Command::new("ip").args(["route", "del", &self.0]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the client keeps a route to {}", self.0);
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
