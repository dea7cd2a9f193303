//! Many Services at the nodes' own addresses, by a controller beside the cluster:
//! until all statuses have them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{Config, Event, watcher};
use lb_svc_crds::names;
use lb_svc_e2e::fleet;
use lb_svc_e2e::objects::port;
use lb_svc_e2e::{Controller, Lab, Proxy, without_controller};
use serde_json::{Value, json};

use crate::fleet::Pattern;
use crate::stage::{NAMESPACE, Stage};
use crate::start::millis;
use crate::table::{Goal, Row};
use crate::{Interleaved, Options};

/// How long anything with so many objects may take.
const LONG: Duration = Duration::from_secs(300);
/// The Service whose writes are the pattern, and its port; the others' come before.
const PATTERN: (&str, u16) = ("nodes-pattern", 28_999);
/// The port of the first.
const FIRST: u16 = 20_000;

/// The rows.
pub async fn measure(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    without_controller(&stage.lab, async || {
        let configuration = std::env::temp_dir().join(format!("lb-svc-bench-{}.yaml", std::process::id()));
        let allowed = format!("nodeMode: {{namespaces: [{NAMESPACE}], ports: '{FIRST}-{}'}}", PATTERN.1);
        std::fs::write(&configuration, allowed)?;
        let rows = beside_a_client(stage, options, &configuration).await;
        std::fs::remove_file(&configuration)?;
        rows
    })
    .await
}

async fn beside_a_client(stage: &Stage, options: &Options, configuration: &Path) -> anyhow::Result<Vec<Row>> {
    let (many, runs) = if options.quick { (100, 1) } else { (1000, options.runs.min(3)) };
    let client = &stage.lab.client;
    let pattern = record(stage, configuration).await?;
    fleet::clear(client, NAMESPACE).await?;
    let kubeconfig: PathBuf = Lab::cluster(&["kubeconfig"]).await?.trim().into();
    let mut times = Interleaved::new("controller | plain client", "ms");
    let mut pods = 0;
    for _ in 0..runs {
        fleet::create(client, NAMESPACE, many, numbered).await?;
        let start = Instant::now();
        let controller = Controller::start_with(&kubeconfig, Some(configuration))?;
        published(stage, many).await?;
        let ours = start.elapsed();
        pods += made(stage).await?;
        controller.stop().await?;
        fleet::clear(client, NAMESPACE).await?;

        let services = fleet::create(client, NAMESPACE, many, numbered).await?;
        let start = Instant::now();
        let writes = futures::stream::iter(services.into_iter().map(Ok));
        let writing = writes.try_for_each_concurrent(fleet::AT_ONCE, async |service: Service| {
            let number = number_of(&service.name_any()).to_string();
            pattern.write(stage, &service, &number).await
        });
        let (done, written) = tokio::join!(published(stage, many), writing);
        written?;
        done?;
        times.push(millis(ours), millis(start.elapsed()));
        fleet::clear(client, NAMESPACE).await?;
    }
    let name = format!(
        "{many} Services at node addresses: controller started → all published, over a plain client's same writes"
    );
    let pods = Row::alone("Pods and Deployments made for them", "", f64::from(pods), Goal::AtMost(0.0));
    Ok(vec![times.row(&name, Goal::RatioAtMost(1.3)), pods])
}

/// The port of the Service of this name.
fn number_of(name: &str) -> u16 {
    let number = name.rsplit('-').next().and_then(|digits| digits.parse::<u16>().ok());
    number.map_or(PATTERN.1, |number| FIRST + number)
}

/// A Service at node addresses, on a port of its own.
fn numbered(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": names::NODE_CLASS,
            "allocateLoadBalancerNodePorts": false, "selector": { "app": name },
            "ports": [port("TCP", number_of(name), 80)],
        },
    })
}

async fn record(stage: &Stage, configuration: &Path) -> anyhow::Result<Pattern> {
    let proxy = Proxy::start(stage.lab.client.clone()).await?;
    let controller = Controller::start_with(proxy.kubeconfig(), Some(configuration))?;
    let service = stage.create::<Service>(numbered(PATTERN.0)).await?;
    let writes = Pattern::writes_for(&proxy, PATTERN.0).await?;
    controller.stop().await?;
    let uid = service.uid().context("the pattern has no uid")?;
    Ok(Pattern { name: PATTERN.0, uid, address: PATTERN.1.to_string(), writes })
}

/// Waits until every Service has its addresses.
async fn published(stage: &Stage, many: usize) -> anyhow::Result<()> {
    let services: Api<Service> = stage.api();
    let mut events = watcher(services, Config::default()).boxed();
    let mut done = HashSet::new();
    let all = async {
        while done.len() < many {
            let (Event::Apply(service) | Event::InitApply(service)) =
                events.next().await.context("the watch ended")??
            else {
                continue;
            };
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = status.and_then(|status| status.ingress.as_ref());
            if ingress.is_some_and(|ingress| !ingress.is_empty()) {
                done.insert(service.name_any());
            }
        }
        Ok(())
    };
    tokio::time::timeout(LONG, all).await.context("not all are published")?
}

/// How many pods and Deployments there are.
async fn made(stage: &Stage) -> anyhow::Result<u32> {
    let all = ListParams::default();
    let pods = stage.api::<Pod>().list_metadata(&all).await?.items.len();
    let deployments = stage.api::<Deployment>().list_metadata(&all).await?.items.len();
    Ok(u32::try_from(pods + deployments)?)
}
