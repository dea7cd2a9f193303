//! Measurements on a real cluster, each beside what it is to be held against:
//! `make bench`. Progress goes to stderr, one table to stdout.
//!
//! The two sides of a measurement take turns, so that a machine that is busy
//! with something else for a while is so for both; what counts are medians and
//! their ratio. A goal that is missed is a line in the table; a measurement
//! that cannot be made is an error.

mod allocator;
mod failover;
mod fifty;
mod fleet;
mod gateways;
mod load;
mod metallb;
mod nodes;
mod port;
mod quiet;
mod size;
mod stage;
mod start;
mod table;
mod traffic;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use clap::Parser;
use lb_svc_e2e::with_controller;
use stage::Stage;
use table::{Goal, Row, Table, median};

/// Measures, and prints one table.
#[derive(Debug, Parser)]
pub struct Options {
    /// Runs of each side.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Runs of each event of failover.
    #[arg(long, default_value_t = 20)]
    failovers: usize,
    /// Minutes for which nothing happens to gateways of several pods, and for
    /// which every core is busy.
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Only these: start, port, gone, rules, endpoints, proxy, throughput,
    /// connections, closing, failover, fifty, heartbeat, quiet, busy, size,
    /// allocator, fleet, idle, scale, nodes.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Shorter runs, for development: not what the goals are about.
    #[arg(long)]
    quick: bool,
    /// The gateway's 1000 ports, measured elsewhere: OURS_MS,BASELINE_MS.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    rules: Vec<f64>,
    /// The gateway's 5000 endpoints, measured elsewhere: ALL_MS,ONE_MS,SPREAD_MS.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    endpoints: Vec<f64>,
    /// The gateway's proxy and its masquerade, measured elsewhere: MiB/s of both, then
    /// connections a second.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    proxy: Vec<f64>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Where nothing else of the example's Subnet is; another for each number.
fn address(number: usize) -> IpAddr {
    let number = u16::try_from(number).unwrap_or_default();
    let [high, low] = (0x9001 + number).to_be_bytes();
    Ipv4Addr::new(172, 18, high, low).into()
}

/// The runs of two sides, told as they come.
struct Interleaved {
    unit: &'static str,
    ours: Vec<f64>,
    baseline: Vec<f64>,
}

impl Interleaved {
    fn new(sides: &str, unit: &'static str) -> Self {
        eprintln!("  {sides}");
        Self { unit, ours: Vec::new(), baseline: Vec::new() }
    }

    fn push(&mut self, ours: f64, baseline: f64) {
        self.ours.push(ours);
        self.baseline.push(baseline);
        eprintln!("  {:2}  {ours:.0} | {baseline:.0} {}", self.ours.len(), self.unit);
    }

    fn row(&self, name: &str, goal: Goal) -> Row {
        eprintln!("  medians {:.0} | {:.0}", median(&self.ours), median(&self.baseline));
        Row::new(name, self.unit, &self.ours, &self.baseline, goal)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let stage = Stage::open().await?;
    let mut rows = Vec::new();
    let measured = tokio::select! {
        measured = measure(&stage, &options, &mut rows) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if measured.is_err() {
        // What was interrupted has put nothing back.
        with_controller(&stage.lab).await;
    }
    let closed = stage.close().await;
    // What could be measured is shown, whatever could not.
    print(&Table(rows))?;
    measured.and(closed)
}

async fn measure(stage: &Stage, options: &Options, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    if options.wants("start") {
        eprintln!("start: a new Service");
        rows.extend(start::measure(stage, options.runs).await.context("start")?);
    }
    if options.wants("port") || options.wants("gone") {
        rows.extend(port::measure(stage, options).await?);
    }
    if let [ours, baseline] = options.rules[..] {
        let name = "1000 ports in the gateway, over one iptables-restore of them";
        rows.push(Row::new(name, "ms", &[ours], &[baseline], Goal::RatioAtMost(2.0)));
    }
    if let [all, one, spread] = options.endpoints[..] {
        rows.push(Row::alone("5000 endpoints programmed by nftables", "ms", all, Goal::AtMost(200.0)));
        rows.push(Row::alone("one of 5000 endpoints gone", "ms", one, Goal::AtMost(20.0)));
        rows.push(Row::alone("1000 ports with five endpoints each", "ms", spread, Goal::None));
    }
    if let [fast, fast_beside, many, many_beside] = options.proxy[..] {
        let (throughput, connections) = (
            "throughput by the PROXY protocol, over the masquerade",
            "new connections by the PROXY protocol",
        );
        rows.push(Row::new(throughput, "MiB/s", &[fast], &[fast_beside], Goal::RatioAtLeast(0.45)));
        rows.push(Row::new(connections, "/s", &[many], &[many_beside], Goal::AtLeast(3000.0)));
    }
    if ["throughput", "connections", "closing"].iter().any(|name| options.wants(name)) {
        eprintln!("throughput, connections, closing: ways to one pod");
        rows.extend(traffic::measure(stage, options).await.context("traffic")?);
    }
    if options.wants("failover") {
        eprintln!("failover: what happens to the active one of two pods");
        rows.extend(failover::measure(stage, options).await.context("failover")?);
    }
    if options.wants("fifty") {
        eprintln!("fifty: many gateways of two pods, and one of their two nodes dies");
        let (many, runs) = if options.quick { (10, 1) } else { (50, options.failovers) };
        rows.extend(fifty::measure(many, runs).await.context("fifty")?);
    }
    if ["heartbeat", "quiet", "busy"].iter().any(|name| options.wants(name)) {
        rows.extend(quiet::measure(options).await.context("heartbeat, quiet, busy")?);
    }
    if options.wants("size") {
        eprintln!("size: what it takes up");
        rows.extend(size::measure(stage).await.context("size")?);
    }
    if options.wants("allocator") {
        eprintln!("allocator: by itself");
        rows.extend(allocator::measure().context("allocator")?);
    }
    if ["fleet", "idle", "scale"].iter().any(|name| options.wants(name)) {
        eprintln!("fleet, idle, scale: many Services, no gateways");
        rows.extend(fleet::measure(stage, options).await.context("fleet")?);
    }
    if options.wants("nodes") {
        eprintln!("nodes: many Services at node addresses");
        rows.extend(nodes::measure(stage, options).await.context("nodes")?);
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
fn print(table: &Table) -> anyhow::Result<()> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    println!("{table}\n{cores} cores, Linux {}", kernel.trim());
    Ok(())
}
