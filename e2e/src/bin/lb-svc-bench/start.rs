//! From a Service to its first answer, beside a bare pod on the same network.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_svc_e2e::objects::backends;
use lb_svc_e2e::{SLOW, client};
use serde_json::{Value, json};

use crate::stage::{Stage, led};
use crate::table::{Goal, Row};
use crate::{Interleaved, address};

/// Between attempts to be answered.
const EVERY: Duration = Duration::from_millis(10);
/// One attempt's time: a SYN that was lost is not waited for.
const ATTEMPT: Duration = Duration::from_millis(100);
/// kube-proxy puts off what comes within a second of its last work: a run is
/// not to pay for the one before it.
pub const SETTLE: Duration = Duration::from_millis(1200);

/// The rows: over a pod as a plain manifest gives it, and over one without even
/// its ServiceAccount's token. The kubelet looks every 0.3 s whether a pod's
/// volumes are there, and a pod without any is spared that.
pub async fn measure(stage: &Stage, runs: usize) -> anyhow::Result<[Row; 2]> {
    stage.create::<Deployment>(backends("web", 1, &["tcp/80"])).await?;
    stage.lead("web", &[80]).await?;
    let mut times = Interleaved::new("service to answer | pod to Ready", "ms");
    let mut bare_times = Interleaved::new("the same | pod without any volume to Ready", "ms");
    // The first of each finds caches cold.
    for run in 0..=runs {
        let ours = first_service(stage, run).await?;
        let plain = bare_pod(stage, true).await?;
        let without_volumes = bare_pod(stage, false).await?;
        if run > 0 {
            times.push(millis(ours), millis(plain));
            bare_times.push(millis(ours), millis(without_volumes));
        }
    }
    stage.delete::<EndpointSlice>("web").await?;
    stage.delete::<Deployment>("web").await?;
    Ok([
        times.row("Service created → first answer, over a bare macvlan pod → Ready", Goal::RatioAtMost(1.3)),
        bare_times.row("the same, over such a pod without any volume", Goal::None),
    ])
}

/// An address never used before in this run: no host knows it.
async fn first_service(stage: &Stage, run: usize) -> anyhow::Result<Duration> {
    let ip = address(run);
    let start = Instant::now();
    stage.create::<Service>(led("web", ip, &[80])).await?;
    let took = first_answer(SocketAddr::new(ip, 80), start).await?;
    stage.delete::<Service>("web").await?;
    stage.gone("lb-svc-web").await?;
    stage.freed().await?;
    tokio::time::sleep(SETTLE).await;
    Ok(took)
}

/// The gateway's image and attachment in a pod of nothing else. Its program
/// finds no configuration and waits.
async fn bare_pod(stage: &Stage, token: bool) -> anyhow::Result<Duration> {
    let took = stage.start(bare(token)).await?;
    stage.delete::<Pod>("bare").await?;
    stage.gone("bare").await?;
    tokio::time::sleep(SETTLE).await;
    Ok(took)
}

fn bare(token: bool) -> Value {
    json!({
        "metadata": {
            "name": "bare",
            "labels": { "app": "bare" },
            "annotations": { "k8s.v1.cni.cncf.io/networks": "kube-system/lb-svc-attachment" },
        },
        "spec": {
            "automountServiceAccountToken": token,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "gateway",
                "image": "localhost/lb-svc-gateway:dev",
                "imagePullPolicy": "IfNotPresent",
            }],
        },
    })
}

/// The time from `start` to the first good answer, asking all the time.
pub async fn first_answer(at: SocketAddr, start: Instant) -> anyhow::Result<Duration> {
    let mut tick = tokio::time::interval(EVERY);
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = tick.tick() => asked.push(client::get_within(at, "/", ATTEMPT)),
            Some(answer) = asked.next() => if answer.is_ok() {
                return Ok(start.elapsed());
            }
        }
        anyhow::ensure!(start.elapsed() < SLOW, "no answer from {at} within {SLOW:?}");
    }
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
