//! From a port added to its first answer, beside what carries it: a changed
//! ConfigMap that a patched annotation makes the kubelet bring to a pod.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_svc_e2e::SLOW;
use lb_svc_e2e::objects::{BACKEND, backends};
use serde_json::{Value, json};

use crate::stage::{Stage, led, process};
use crate::start::{SETTLE, first_answer, millis};
use crate::table::{Goal, Row};
use crate::{Interleaved, address};

/// The kubelet may look at the pod before it knows the new ConfigMap: then
/// another nudge helps.
const NUDGE: Duration = Duration::from_millis(250);
/// The first port.
const FIRST: u16 = 8000;
/// The kubelet looks at what pods have mounted so often. What ended with one
/// such look begins the next run at the same time before another: so each run
/// begins a little later, and all times between two looks have their turn.
const LOOK: u64 = 100;

/// The row.
pub async fn measure(stage: &Stage, runs: usize) -> anyhow::Result<Row> {
    let numbers: Vec<u16> = (FIRST..).take(runs + 2).collect();
    let listen: Vec<String> = numbers.iter().map(|number| format!("tcp/{number}")).collect();
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    stage.create::<Deployment>(backends("many", 1, &listen)).await?;
    stage.lead("many", &numbers).await?;
    let ip = address(0);
    stage.create::<Service>(led("many", ip, &numbers[..1])).await?;
    first_answer(SocketAddr::new(ip, FIRST), Instant::now()).await?;

    stage.create::<ConfigMap>(json!({ "metadata": { "name": "mirror" }, "data": { "run": "" } })).await?;
    stage.start(mirror()).await?;
    let pod = stage.ready("mirror").await?;
    let file = process(&pod, "lb-svc-backend")?.join("root/etc/mirror/run");

    let mut times = Interleaved::new("port added to answer | ConfigMap to file", "ms");
    for (run, &number) in numbers.iter().enumerate().skip(1) {
        let settle = SETTLE + Duration::from_millis(run as u64 * 37 % LOOK);
        tokio::time::sleep(settle).await;
        let more = led("many", ip, &numbers[..=run]);
        let start = Instant::now();
        stage.patch::<Service>("many", &json!({ "spec": { "ports": more["spec"]["ports"] } })).await?;
        let ours = first_answer(SocketAddr::new(ip, number), start).await?;
        tokio::time::sleep(settle).await;
        let bare = nudged(stage, &file, &run.to_string()).await?;
        // The first of each finds caches cold.
        if run > 1 {
            times.push(millis(ours), millis(bare));
        }
    }
    stage.delete::<Pod>("mirror").await?;
    stage.delete::<Service>("many").await?;
    stage.delete::<EndpointSlice>("many").await?;
    stage.delete::<Deployment>("many").await?;
    stage.freed().await?;
    Ok(times.row("Port added → reachable, over a ConfigMap change nudged into a pod", Goal::RatioAtMost(2.0)))
}

/// A pod that has a ConfigMap mounted and does nothing with it.
fn mirror() -> Value {
    json!({
        "metadata": { "name": "mirror", "labels": { "app": "mirror" } },
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "backend",
                "image": BACKEND,
                "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{ "name": "mirror", "mountPath": "/etc/mirror" }],
            }],
            "volumes": [{ "name": "mirror", "configMap": { "name": "mirror" } }],
        },
    })
}

/// Changes the ConfigMap, and nudges until the file in the pod says so.
async fn nudged(stage: &Stage, file: &Path, content: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    stage.patch::<ConfigMap>("mirror", &json!({ "data": { "run": content } })).await?;
    for attempt in 0.. {
        let nudge = format!("{content}.{attempt}");
        let patch = json!({ "metadata": { "annotations": { "lb-svc-bench/nudge": nudge } } });
        stage.patch::<Pod>("mirror", &patch).await?;
        let next = Instant::now() + NUDGE;
        while Instant::now() < next {
            if std::fs::read_to_string(file).is_ok_and(|now| now == content) {
                return Ok(start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        anyhow::ensure!(start.elapsed() < SLOW, "the ConfigMap does not arrive in the pod");
    }
    unreachable!("a nudge without end")
}
