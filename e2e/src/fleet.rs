//! Many settled Services, whose gateways are stand-ins, and a controller that
//! starts beside the cluster: what the controller costs by itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use lb_svc_crds::{IP, names};
use serde_json::{Value, json};

use crate::objects::web;
use crate::{Controller, Proxy, StandIns, Write, client};

/// Requests under way at once: more make no difference to the API server.
pub const AT_ONCE: usize = 64;
/// How long creation and settling may take for each Service, and at least.
const PER_SERVICE: Duration = Duration::from_millis(600);
const AT_LEAST: Duration = Duration::from_secs(120);
/// For how long nothing may be written before all is settled.
const QUIET: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The name of each Service by its number.
pub fn name(number: usize) -> String {
    format!("fleet-{number:05}")
}

/// A Service that takes no node port: there are about 2,700.
pub fn without_node_port(name: &str) -> Value {
    let mut object = web(name);
    object["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    object
}

/// Creates so many Services in the namespace, many at once.
///
/// # Errors
/// The first that the API server refused.
pub async fn create(
    client: &Client,
    namespace: &str,
    many: usize,
    object: fn(&str) -> Value,
) -> anyhow::Result<Vec<Service>> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let services = (0..many).map(|number| {
        let (api, object) = (&api, object(&name(number)));
        async move { anyhow::Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?) }
    });
    futures::stream::iter(services).buffer_unordered(AT_ONCE).try_collect().await
}

/// Takes away all Services of the namespace and what controllers made for them,
/// while none runs: a thousand at a time, which takes a controller minutes.
///
/// # Errors
/// What the API server refused, or that something does not go.
pub async fn clear(client: &Client, namespace: &str) -> anyhow::Result<()> {
    async fn of_all<K>(client: &Client, namespace: &str, only: &ListParams) -> anyhow::Result<usize>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(client.clone(), namespace);
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
        api.delete_collection(&at_once, only).await?;
        Ok(api.list_metadata(&only.clone().limit(1)).await?.items.len())
    }
    let all = ListParams::default();
    let ours = ListParams::default().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY));
    within("all of it to be gone", AT_LEAST, async || {
        // Owners first: who owns nothing any more makes nothing anew.
        let left = of_all::<Service>(client, namespace, &all).await?
            + of_all::<Deployment>(client, namespace, &ours).await?
            + of_all::<ReplicaSet>(client, namespace, &ours).await?
            + of_all::<Pod>(client, namespace, &ours).await?
            + of_all::<ConfigMap>(client, namespace, &ours).await?;
        (left == 0).then_some(()).context("some are left")
    })
    .await?;
    let claims: Api<IP> = Api::all(client.clone());
    let mut own = claims.list(&all).await?.items;
    own.retain(|claim| claim.spec.namespace == namespace);
    futures::stream::iter(own.into_iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, async |claim| {
            claims.delete(&claim.name_any(), &DeleteParams::default()).await?;
            anyhow::Ok(())
        })
        .await
}

/// So many Services that are served by stand-ins, with nothing left to do.
pub struct Fleet {
    gateways: StandIns,
    proxy: Proxy,
    many: usize,
}

/// A controller that started where nothing was to be done.
pub struct Started {
    /// It runs on.
    pub controller: Controller,
    /// From its start until it had looked at every Service.
    pub took: Duration,
}

impl Started {
    /// The controller's directory in /proc.
    pub fn process(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.controller.pid()))
    }
}

impl Fleet {
    /// Creates the Services, and waits until a controller, which is gone
    /// afterwards, has settled all. No node may take pods, see
    /// [`crate::without_controller`].
    ///
    /// # Errors
    /// What the API server refused, or that they do not settle.
    pub async fn settle(client: &Client, namespace: &str, many: usize) -> anyhow::Result<Self> {
        let gateways = StandIns::start(client, namespace).await?;
        let fleet = Self { gateways, proxy: Proxy::start(client.clone()).await?, many };
        let controller = Controller::start(fleet.proxy.kubeconfig())?;
        create(client, namespace, many, without_node_port).await?;
        eprintln!("  {many} Services: waiting until all is settled");
        fleet.settled().await?;
        controller.stop().await?;
        Ok(fleet)
    }

    /// Waits until all are served and nothing is written any more.
    async fn settled(&self) -> anyhow::Result<()> {
        let limit = AT_LEAST.max(PER_SERVICE * u32::try_from(self.many)?);
        let mut since = Instant::now();
        within("nothing to be written", limit, async || {
            let (writes, served) = (self.proxy.writes().len(), self.gateways.serving().len());
            if writes > 0 || served < self.many {
                self.proxy.forget();
                since = Instant::now();
            }
            (since.elapsed() > QUIET).then_some(()).with_context(|| format!("{served} are served"))
        })
        .await
    }

    /// Starts a controller, and waits until it has looked at every Service.
    ///
    /// # Errors
    /// When it does not start, or does not get there.
    pub async fn start(&self) -> anyhow::Result<Started> {
        self.proxy.forget();
        let start = Instant::now();
        let controller = Controller::start(self.proxy.kubeconfig())?;
        within("every Service to be looked at", AT_LEAST, async || {
            // Its metrics are not there at first.
            let looked = looked_at(&controller).await?;
            (looked > self.many).then_some(()).with_context(|| format!("at {looked} so far"))
        })
        .await?;
        Ok(Started { controller, took: start.elapsed() })
    }

    /// What controllers wrote since the last start, but to their Lease.
    pub fn writes(&self) -> Vec<Write> {
        self.proxy.writes()
    }
}

/// Tries `check` until it is `Ok`, at most for `limit`.
async fn within<T>(
    what: &str,
    limit: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Runs of the controller's loop that ended well: one for each Service, and
/// the Subnets'.
async fn looked_at(controller: &Controller) -> anyhow::Result<usize> {
    let at = SocketAddr::from(([127, 0, 0, 1], controller.port));
    let metrics = client::get_within(at, "/metrics", client::ATTEMPT).await?;
    let line = "lb_svc_controller_reconciles_total{outcome=\"ok\"} ";
    let value = metrics.lines().find_map(|text| text.strip_prefix(line)).unwrap_or("0");
    Ok(value.parse()?)
}

/// The memory that the process with this directory in /proc holds, in MiB
/// (proc(5), `VmRSS`).
///
/// # Errors
/// When there is no such process.
pub fn resident(process: &Path) -> anyhow::Result<f64> {
    memory(process, "VmRSS:")
}

/// The most memory that it has held, in MiB (`VmHWM`).
///
/// # Errors
/// When there is no such process.
pub fn peak(process: &Path) -> anyhow::Result<f64> {
    memory(process, "VmHWM:")
}

fn memory(process: &Path, field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("not in its status")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
