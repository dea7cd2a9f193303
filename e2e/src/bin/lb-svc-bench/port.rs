//! From a port added to its first answer, and from an endpoint gone to its last,
//! beside what carries both: a changed ConfigMap that a patched annotation makes
//! the kubelet bring to a pod.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use lb_svc_e2e::objects::backends;
use lb_svc_e2e::{SLOW, client};
use serde_json::{Value, json};

use crate::stage::{Stage, backend, led, process, slice, within};
use crate::start::{SETTLE, first_answer, millis};
use crate::table::{Goal, Row};
use crate::{Interleaved, Options, address};

/// The kubelet may look at the pod before it knows the new ConfigMap: then
/// another nudge helps.
const NUDGE: Duration = Duration::from_millis(250);
/// The first port.
const FIRST: u16 = 8000;
/// The kubelet looks at what pods have mounted so often. What ended with one
/// such look begins the next run at the same time before another: so each run
/// begins a little later, and all times between two looks have their turn.
const LOOK: u64 = 100;

/// How often somebody connects, to see whether an endpoint is still led to.
const ASK: Duration = Duration::from_millis(3);
/// So many connections in a row that did not reach it are no chance.
const IN_A_ROW: usize = 40;

/// The rows.
pub async fn measure(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    let mirror = Mirror::start(stage).await?;
    let mut rows = Vec::new();
    if options.wants("port") {
        eprintln!("port: one port more");
        rows.push(one_more(stage, &mirror, options.runs).await.context("port")?);
    }
    if options.wants("gone") {
        eprintln!("gone: one endpoint less, of a Service that is served directly");
        rows.push(one_less(stage, &mirror, options.runs).await.context("gone")?);
    }
    stage.delete::<Pod>("mirror").await?;
    Ok(rows)
}

/// What comes before each side of a run.
async fn settle(run: usize) {
    tokio::time::sleep(SETTLE + Duration::from_millis(run as u64 * 37 % LOOK)).await;
}

async fn one_more(stage: &Stage, mirror: &Mirror, runs: usize) -> anyhow::Result<Row> {
    let numbers: Vec<u16> = (FIRST..).take(runs + 2).collect();
    let listen: Vec<String> = numbers.iter().map(|number| format!("tcp/{number}")).collect();
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    stage.create::<Deployment>(backends("many", 1, &listen)).await?;
    stage.lead("many", &numbers).await?;
    let ip = address(0);
    stage.create::<Service>(led("many", ip, &numbers[..1])).await?;
    first_answer(SocketAddr::new(ip, FIRST), Instant::now()).await?;

    let mut times = Interleaved::new("port added to answer | ConfigMap to file", "ms");
    for (run, &number) in numbers.iter().enumerate().skip(1) {
        settle(run).await;
        let more = led("many", ip, &numbers[..=run]);
        let start = Instant::now();
        stage.patch::<Service>("many", &json!({ "spec": { "ports": more["spec"]["ports"] } })).await?;
        let ours = first_answer(SocketAddr::new(ip, number), start).await?;
        settle(run).await;
        let bare = mirror.nudged(stage, &format!("port-{run}")).await?;
        // The first of each finds caches cold.
        if run > 1 {
            times.push(millis(ours), millis(bare));
        }
    }
    stage.delete::<Service>("many").await?;
    stage.delete::<EndpointSlice>("many").await?;
    stage.delete::<Deployment>("many").await?;
    stage.freed().await?;
    Ok(times.row("Port added → reachable, over a ConfigMap change nudged into a pod", Goal::RatioAtMost(2.0)))
}

/// From an EndpointSlice that names an endpoint no more to the last connection
/// that reached it.
async fn one_less(stage: &Stage, mirror: &Mirror, runs: usize) -> anyhow::Result<Row> {
    stage.create::<Deployment>(backends("two", 2, &[&format!("tcp/{FIRST}")])).await?;
    stage.ready("two").await?;
    let pods = stage.pods("two").await?;
    let [stays, goes] = &pods[..] else { bail!("{} pods instead of two", pods.len()) };
    let ip = address(0);
    let target = SocketAddr::new(ip, FIRST);
    let mut object = led("two", ip, &[FIRST]);
    let annotations = &mut object["metadata"]["annotations"];
    annotations["lb-svc.kubeovn.io/direct-access"] = json!("true");
    annotations["lb-svc.kubeovn.io/nat-backend"] = json!("nftables");
    let both = slice("two", &[stays, goes], &[FIRST])?;
    let one = slice("two", &[stays], &[FIRST])?;
    stage.create::<EndpointSlice>(both.clone()).await?;
    stage.create::<Service>(object).await?;
    first_answer(target, Instant::now()).await?;

    let mut times = Interleaved::new("endpoint gone to its last connection | ConfigMap to file", "ms");
    for run in 1..=runs + 1 {
        within("both endpoints to be led to", SLOW, async || {
            Ok(client::answerers(ip, FIRST, 20).await.ok().filter(|pods| pods.len() == 2))
        })
        .await?;
        settle(run).await;
        let start = Instant::now();
        stage.patch::<EndpointSlice>("two", &json!({ "endpoints": one["endpoints"] })).await?;
        let ours = last_answer(target, &goes.name_any(), start).await?;
        settle(run).await;
        let bare = mirror.nudged(stage, &format!("gone-{run}")).await?;
        stage.patch::<EndpointSlice>("two", &json!({ "endpoints": both["endpoints"] })).await?;
        if run > 1 {
            times.push(millis(ours), millis(bare));
        }
    }
    stage.delete::<Service>("two").await?;
    stage.delete::<EndpointSlice>("two").await?;
    stage.delete::<Deployment>("two").await?;
    stage.freed().await?;
    let name = "Endpoint gone → no new connection reaches it, over the same";
    Ok(times.row(name, Goal::RatioAtMost(2.0)))
}

/// The time from `start` to the beginning of the last connection that this pod
/// answered.
async fn last_answer(target: SocketAddr, pod: &str, start: Instant) -> anyhow::Result<Duration> {
    let (mut last, mut others) = (Duration::ZERO, 0);
    while others < IN_A_ROW {
        ensure!(start.elapsed() < SLOW, "{pod} is still led to");
        let began = start.elapsed();
        let answer = client::get_within(target, "/", client::ATTEMPT).await?;
        if answer.starts_with(pod) {
            (last, others) = (began, 0);
        } else {
            others += 1;
        }
        tokio::time::sleep(ASK).await;
    }
    Ok(last)
}

/// A pod that has a ConfigMap mounted and does nothing with it.
struct Mirror {
    /// The ConfigMap's one file, as the pod sees it.
    file: PathBuf,
}

impl Mirror {
    async fn start(stage: &Stage) -> anyhow::Result<Self> {
        stage.create::<ConfigMap>(json!({ "metadata": { "name": "mirror" }, "data": { "run": "" } })).await?;
        stage.start(mirror()).await?;
        let pod = stage.ready("mirror").await?;
        Ok(Self { file: process(&pod, "lb-svc-backend")?.join("root/etc/mirror/run") })
    }

    /// Changes the ConfigMap, and nudges until the file in the pod says so.
    async fn nudged(&self, stage: &Stage, content: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        stage.patch::<ConfigMap>("mirror", &json!({ "data": { "run": content } })).await?;
        for attempt in 0.. {
            let nudge = format!("{content}.{attempt}");
            let patch = json!({ "metadata": { "annotations": { "lb-svc-bench/nudge": nudge } } });
            stage.patch::<Pod>("mirror", &patch).await?;
            let next = Instant::now() + NUDGE;
            while Instant::now() < next {
                if std::fs::read_to_string(&self.file).is_ok_and(|now| now == content) {
                    return Ok(start.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            ensure!(start.elapsed() < SLOW, "the ConfigMap does not arrive in the pod");
        }
        unreachable!("a nudge without end")
    }
}

fn mirror() -> Value {
    let mut pod = backend("mirror");
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "mirror", "mountPath": "/etc/mirror" }]);
    pod["spec"]["volumes"] = json!([{ "name": "mirror", "configMap": { "name": "mirror" } }]);
    pod
}
