//! Many gateways of two pods on the same two nodes, of which one dies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{DeleteParams, ListParams};
use lb_svc_e2e::objects::{backends, elsewhere, on_the_first_node, port, service};
use lb_svc_e2e::outage::Watch;
use lb_svc_e2e::{Lab, SLOW, Scene, client, scene};
use serde_json::json;

use crate::gateways::pair;
use crate::stage::within;
use crate::start::millis;
use crate::table::{Goal, Row, median, worst};

/// Between two probes of a kind to one address: all together are a thousand a
/// second, and take the processors from what they are about.
const EVERY: Duration = Duration::from_millis(100);
/// How long all is probed before a node dies, and after the last answers again.
const QUIET: Duration = Duration::from_millis(500);
/// Questions to gateways under way at once: many would make them late, and move
/// what is waited for to rest.
const AT_ONCE: usize = 2;
/// For how long nothing has moved before a node dies: what the beginning of a
/// hundred pods did to a few processors is over.
const CALM: Duration = Duration::from_secs(5);
/// Between two looks at all of them.
const LOOK: Duration = Duration::from_secs(3);
/// Twice as many pods as Services, on a few processors.
const LIMIT: Duration = Duration::from_secs(300);

/// The rows: the median of the runs, and the worst.
pub async fn measure(many: usize, runs: usize) -> anyhow::Result<Vec<Row>> {
    let rows = Arc::new(Mutex::new(Ok(Vec::new())));
    let found = Arc::clone(&rows);
    scene("bench-fifty", async |scene| {
        let measured = on(&scene, many, runs).await;
        *found.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    })
    .await;
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut *rows, Ok(Vec::new()))
}

async fn on(scene: &Arc<Scene>, many: usize, runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut workload = backends("web", 1, &["tcp/80", "udp/53"]);
    on_the_first_node(&mut workload);
    scene.create::<Deployment>(workload).await;
    let names: Vec<String> = (0..many).map(|number| format!("web-{number:02}")).collect();
    for name in &names {
        let mut object = service(name, &json!([port("TCP", 80, 80), port("UDP", 53, 53)]));
        object["spec"]["selector"] = json!({ "app": "web" });
        elsewhere(&mut object, 2);
        scene.create::<Service>(object).await;
    }
    let mut ips = Vec::new();
    for name in &names {
        let address = async || Ok(scene.ingress(name).await.first().copied());
        ips.push(within(&format!("an address of {name}"), LIMIT, address).await?);
    }
    let mut outages = Vec::new();
    let mut hit = Vec::new();
    for run in 1..=runs {
        let nodes = settled(scene, &names).await?;
        answered(&ips).await?;
        let (node, active) = nodes.iter().max_by_key(|(_, active)| **active).unwrap_or((&2, &0));
        let watches: Vec<Watch> = ips.iter().map(|ip| Watch::every(EVERY, *ip, 80, 53)).collect();
        tokio::time::sleep(QUIET).await;
        Lab::cluster(&["node-stop", &node.to_string()]).await?;
        answered(&ips).await?;
        tokio::time::sleep(QUIET).await;
        let mut longest = Duration::ZERO;
        for watch in watches {
            longest = longest.max(watch.end().await.longest);
        }
        eprintln!("  {run:2}  {active} of {many} were active there: {:.0} ms", millis(longest));
        outages.push(millis(longest));
        hit.push(*active as f64);
        Lab::cluster(&["node-start", &node.to_string()]).await?;
    }
    // All at once would be slow, and not be waited for by the scene.
    settled(scene, &names).await?;
    for name in &names {
        scene.api::<Service>().delete(name, &DeleteParams::default()).await?;
    }
    let freed = async || Ok(scene.claims().await.is_empty().then_some(()));
    within("the addresses to be given back", LIMIT, freed).await?;
    let name = format!("{many} Services on two nodes, that of {:.0} dies: until all answer", median(&hit));
    let row = |what: &str, of, goal| Row::of(of, &format!("{name}, {what}"), "ms", &outages, None, goal);
    Ok(vec![row("median", median, Goal::None), row("worst", worst, Goal::AtMost(1500.0))])
}

/// How many of the Services have their active pod on each node, once each has an
/// active pod and a standby, and nothing has moved for a while.
async fn settled(scene: &Arc<Scene>, names: &[String]) -> anyhow::Result<BTreeMap<u32, usize>> {
    let start = Instant::now();
    loop {
        let moving = moved(scene).await?.is_some_and(|ago| ago < CALM);
        let nodes: Vec<Option<u32>> = futures::stream::iter(if moving { &[] } else { names })
            .map(|name| calm(scene, name))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut counted = BTreeMap::new();
        for node in nodes.iter().flatten() {
            *counted.entry(*node).or_insert(0) += 1;
        }
        let count: usize = counted.values().sum();
        if count == names.len() {
            return Ok(counted);
        }
        ensure!(start.elapsed() < LIMIT, "only {count} of {} gateways have come to rest", names.len());
        tokio::time::sleep(LOOK).await;
    }
}

/// How long ago an address moved, by the Events that tell of it.
async fn moved(scene: &Scene) -> anyhow::Result<Option<Duration>> {
    let of_moves = ListParams::default().fields("reason=ActiveChanged");
    let events = scene.api::<Event>().list(&of_moves).await?;
    let at = events.items.iter().filter_map(|event| Some(event.event_time.as_ref()?.0.as_millisecond()));
    Ok(at.max().map(|at| now().saturating_sub(Duration::from_millis(at.unsigned_abs()))))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The node of a Service's active pod, if that has a standby and neither has
/// moved lately.
async fn calm(scene: &Scene, name: &str) -> Option<u32> {
    let [(active, leads), (_, follows)] = pair(scene, name).await.ok().flatten()?;
    let since = Duration::from_millis(leads.since_ms.max(follows.since_ms));
    (now().saturating_sub(since) >= CALM).then_some(())?;
    Lab::number(&active.spec?.node_name?).parse().ok()
}

/// Waits until every address is answered.
async fn answered(ips: &[IpAddr]) -> anyhow::Result<()> {
    let each = ips.iter().map(|ip| async move {
        within(&format!("{ip} to answer"), SLOW, async || Ok(client::get(*ip, 80).await.ok())).await
    });
    try_join_all(each).await.map(drop)
}
