//! Many Services at once. No node takes pods, so that only the controller
//! works; it runs beside the cluster.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::stream::{BoxStream, select_all};
use futures::{StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt;
use kube::api::Api;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Config, Event, watcher};
use lb_svc_crds::{IP, names};
use lb_svc_e2e::fleet::{self, Fleet};
use lb_svc_e2e::objects::web;
use lb_svc_e2e::{Controller, Lab, Proxy, Write, without_controller};
use serde_json::Value;

use crate::stage::{NAMESPACE, Stage, within};
use crate::start::millis;
use crate::table::{Goal, Row};
use crate::{Interleaved, Options, metallb};

/// How long anything with so many objects may take.
const LONG: Duration = Duration::from_secs(300);
/// The Service whose writes are the pattern.
const PATTERN: &str = "fleet-pattern";

/// The rows.
pub async fn measure(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    without_controller(&stage.lab, async || {
        let mut rows = Vec::new();
        if options.wants("fleet") {
            rows.extend(beside_a_client(stage, options).await?);
        }
        if options.wants("idle") {
            let many = if options.quick { 200 } else { 1000 };
            rows.extend(settled(stage, options, many, [2000.0, 64.0]).await?);
        }
        if options.wants("scale") {
            let many = if options.quick { 1000 } else { 10_000 };
            rows.extend(settled(stage, options, many, [10_000.0, 200.0]).await?);
        }
        Ok(rows)
    })
    .await
}

async fn kubeconfig() -> anyhow::Result<PathBuf> {
    Ok(Lab::cluster(&["kubeconfig"]).await?.trim().into())
}

async fn beside_a_client(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    let (many, runs) = if options.quick { (100, 1) } else { (500, options.runs.min(3)) };
    let pattern = Pattern::record(stage).await?;
    fleet::clear(&stage.lab.client, NAMESPACE).await?;
    let mut times = Interleaved::new("controller | plain client", "ms");
    let metallb = metallb::programs();
    if let Some(programs) = &metallb {
        metallb::install(programs).await?;
    }
    let mut theirs = Vec::new();
    for _ in 0..runs {
        fleet::create(&stage.lab.client, NAMESPACE, many, web).await?;
        let made = Made::watch(stage, many).await?;
        let start = Instant::now();
        let controller = Controller::start(&kubeconfig().await?)?;
        made.all().await?;
        let ours = start.elapsed();
        controller.stop().await?;
        fleet::clear(&stage.lab.client, NAMESPACE).await?;

        let services = fleet::create(&stage.lab.client, NAMESPACE, many, web).await?;
        let made = Made::watch(stage, many).await?;
        let start = Instant::now();
        let writing = pattern.write_for_all(stage, services);
        let (made, written) = tokio::join!(
            async {
                made.all().await?;
                anyhow::Ok(start.elapsed())
            },
            writing
        );
        written?;
        times.push(millis(ours), millis(made?));
        fleet::clear(&stage.lab.client, NAMESPACE).await?;

        if let Some(programs) = &metallb {
            fleet::create(&stage.lab.client, NAMESPACE, many, metallb::asking).await?;
            theirs.push(millis(metallb::fleet(stage, programs, many).await?));
            eprintln!("      MetalLB's controller: {:.0} ms", theirs[theirs.len() - 1]);
            fleet::clear(&stage.lab.client, NAMESPACE).await?;
        }
    }
    let name = format!(
        "{many} Services: controller started → a claim, ConfigMap and Deployment each, over a plain client's same writes"
    );
    let mut rows = vec![times.row(&name, Goal::RatioAtMost(1.5))];
    if metallb.is_some() {
        metallb::remove().await?;
        let name = format!("{many} Services: the same, over MetalLB's controller started → an IP each");
        rows.push(Row::new(&name, "ms", &times.ours, &theirs, Goal::None));
    }
    Ok(rows)
}

/// Sees claims, ConfigMaps and Deployments come.
struct Made {
    events: BoxStream<'static, anyhow::Result<Option<(usize, String)>>>,
    many: usize,
}

impl Made {
    /// Watches, and has seen that there is none yet.
    async fn watch(stage: &Stage, many: usize) -> anyhow::Result<Self> {
        let ours = || Config::default().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY));
        fn seen<K: ResourceExt>(
            kind: usize,
            event: watcher::Result<Event<K>>,
        ) -> anyhow::Result<Option<(usize, String)>> {
            Ok(match event? {
                Event::Apply(object) | Event::InitApply(object) => Some((kind, object.name_any())),
                Event::InitDone => None,
                Event::Init | Event::Delete(_) => Some((kind, String::new())),
            })
        }
        let claims: Api<PartialObjectMeta<IP>> = Api::all(stage.lab.client.clone());
        let configs: Api<PartialObjectMeta<ConfigMap>> = stage.api();
        let deployments: Api<PartialObjectMeta<Deployment>> = stage.api();
        let mut events = select_all([
            watcher(claims, Config::default()).map(|event| seen(0, event)).boxed(),
            watcher(configs, ours()).map(|event| seen(1, event)).boxed(),
            watcher(deployments, ours()).map(|event| seen(2, event)).boxed(),
        ])
        .boxed();
        let mut listed = 0;
        while listed < 3 {
            match events.next().await.context("the watches ended")?? {
                None => listed += 1,
                Some((_, name)) => ensure!(name.is_empty(), "{name} is there already"),
            }
        }
        Ok(Self { events, many })
    }

    /// Waits until there is one of each for every Service.
    async fn all(mut self) -> anyhow::Result<()> {
        let mut seen = [HashSet::new(), HashSet::new(), HashSet::new()];
        while seen.iter().any(|names| names.len() < self.many) {
            let next = tokio::time::timeout(LONG, self.events.next()).await.context("they do not come")?;
            if let Some((kind, name)) = next.context("the watches ended")?? {
                seen[kind].insert(name);
            }
        }
        Ok(())
    }
}

/// What the controller writes for a Service that is new, word for word.
pub struct Pattern {
    /// The Service's name.
    pub name: &'static str,
    /// Its uid.
    pub uid: String,
    /// What else is of this Service alone: its address, or its port.
    pub address: String,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

impl Pattern {
    async fn record(stage: &Stage) -> anyhow::Result<Self> {
        let proxy = Proxy::start(stage.lab.client.clone()).await?;
        let controller = Controller::start(proxy.kubeconfig())?;
        let service = stage.create::<Service>(web(PATTERN)).await?;
        let writes = Self::writes_for(&proxy, PATTERN).await?;
        controller.stop().await?;
        let address = stage.api::<Service>().get(PATTERN).await?.spec.and_then(|spec| spec.load_balancer_ip);
        let address = address.context("the pattern has no address")?;
        let uid = service.uid().context("the pattern has no uid")?;
        Ok(Self { name: PATTERN, uid, address, writes })
    }

    /// What is written for the Service of this name, up to its status: that ends a
    /// run.
    pub async fn writes_for(proxy: &Proxy, name: &str) -> anyhow::Result<Vec<Write>> {
        let last = |write: &Write| write.target.contains(&format!("/services/{name}/status?"));
        let writes = within("the controller to write", LONG, async || {
            let writes = proxy.writes();
            let end = writes.iter().position(last);
            Ok(end.map(|end| writes[..=end].to_vec()))
        })
        .await?;
        let about_it = |write: &Write| {
            let text = format!("{} {}", write.target, String::from_utf8_lossy(&write.body));
            text.contains(name)
        };
        let writes: Vec<Write> = writes.into_iter().filter(about_it).collect();
        let targets: Vec<&str> =
            writes.iter().map(|write| write.target.split('?').next().unwrap_or_default()).collect();
        eprintln!("  writes for a Service: {targets:#?}");
        Ok(writes)
    }

    /// The same for another Service, sent one after the other.
    pub async fn write(&self, stage: &Stage, service: &Service, address: &str) -> anyhow::Result<()> {
        let (name, uid) = (service.name_any(), service.uid().unwrap_or_default());
        let its = |text: &str| {
            text.replace(&self.address, address).replace(self.name, &name).replace(&self.uid, &uid)
        };
        for write in &self.writes {
            let mut body: Value = serde_json::from_slice(&write.body)?;
            if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            let mut request = Request::builder().method(write.method.clone()).uri(its(&write.target));
            if let Some(kind) = &write.kind {
                request = request.header(http::header::CONTENT_TYPE, kind);
            }
            let request = request.body(Body::from(its(&body.to_string()).into_bytes()))?;
            let answer = stage.lab.client.send(request).await?;
            let (status, body) = (answer.status(), answer.into_body().collect_bytes().await?);
            ensure!(status.is_success(), "{}: {status}: {}", write.target, String::from_utf8_lossy(&body));
        }
        Ok(())
    }

    async fn write_for_all(&self, stage: &Stage, services: Vec<Service>) -> anyhow::Result<()> {
        let first = u32::from(Ipv4Addr::new(172, 18, 32, 0));
        let numbered = services.into_iter().zip(first..).map(Ok);
        futures::stream::iter(numbered)
            .try_for_each_concurrent(fleet::AT_ONCE, async |(service, address)| {
                self.write(stage, &service, &Ipv4Addr::from(address).to_string()).await
            })
            .await
    }
}

/// A controller that starts where nothing is to be done.
async fn settled(stage: &Stage, options: &Options, many: usize, goals: [f64; 2]) -> anyhow::Result<Vec<Row>> {
    let idle = if options.quick { 10 } else { 30 };
    let services = Fleet::settle(&stage.lab.client, NAMESPACE, many).await?;
    let started = services.start().await?;
    let before = cpu(&started.process())?;
    tokio::time::sleep(Duration::from_secs(idle)).await;
    let used = cpu(&started.process())? - before;
    let resident = fleet::resident(&started.process())?;
    let writes = services.writes();
    for write in &writes {
        eprintln!("  {} {}", write.method, write.target);
    }
    started.controller.stop().await?;
    fleet::clear(&stage.lab.client, NAMESPACE).await?;
    let what = |what: &str| format!("Controller started, {many} settled Services: {what}");
    let [most_ms, most_mib] = goals;
    Ok(vec![
        Row::alone(&what("each looked at"), "ms", millis(started.took), Goal::AtMost(most_ms)),
        Row::alone(&what("writes but to its Lease"), "", writes.len() as f64, Goal::AtMost(0.0)),
        Row::alone(&what("resident"), "MiB", resident, Goal::AtMost(most_mib)),
        Row::alone(&what("CPU, idle"), "%", used.as_secs_f64() / idle as f64 * 100.0, Goal::None),
    ])
}

/// The processor time a process has used (proc(5): fields 14 and 15 of stat,
/// in hundredths of a second).
fn cpu(process: &Path) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(process.join("stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
