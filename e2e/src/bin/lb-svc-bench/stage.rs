//! Where the measurements take place: a namespace, which goes away after them.

use std::fmt::Debug;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Resource, ResourceExt};
use lb_svc_crds::IP;
use lb_svc_e2e::objects::{self, BACKEND, port, service};
use lb_svc_e2e::{Lab, SLOW, is_ready};
use serde_json::{Value, json};

use crate::start::SETTLE;

/// Always the same, so that what an interrupted run left is found.
pub const NAMESPACE: &str = "lb-svc-bench";

/// A namespace on the cluster.
pub struct Stage {
    /// The cluster.
    pub lab: Lab,
}

impl Stage {
    /// A new one.
    pub async fn open() -> anyhow::Result<Self> {
        let stage = Self { lab: Lab::connect().await? };
        stage.close().await?;
        let namespaces: Api<Namespace> = Api::all(stage.lab.client.clone());
        let object = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?;
        namespaces.create(&PostParams::default(), &object).await.context("creating the namespace")?;
        Ok(stage)
    }

    /// Takes it away, with all that is in it.
    pub async fn close(&self) -> anyhow::Result<()> {
        crate::metallb::remove().await?;
        let namespaces: Api<Namespace> = Api::all(self.lab.client.clone());
        if namespaces.get_opt(NAMESPACE).await?.is_some() {
            namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        }
        within("the namespace to be gone", SLOW, async || {
            Ok(namespaces.get_opt(NAMESPACE).await?.is_none().then_some(()))
        })
        .await?;
        self.freed().await
    }

    /// The objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.lab.client.clone(), NAMESPACE)
    }

    /// Creates an object.
    pub async fn create<K>(&self, object: Value) -> anyhow::Result<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object)?;
        let created = self.api::<K>().create(&PostParams::default(), &object).await;
        created.with_context(|| format!("creating {} {}", K::kind(&()), object.name_any()))
    }

    /// Merges `patch` into an object.
    pub async fn patch<K>(&self, name: &str, patch: &Value) -> anyhow::Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + serde::de::DeserializeOwned
            + Clone
            + Debug,
    {
        let patched = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("patching {} {name}", K::kind(&())))?;
        Ok(())
    }

    /// Deletes an object.
    pub async fn delete<K>(&self, name: &str) -> anyhow::Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + serde::de::DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The pods labelled `app=APP`, also those on their way out.
    pub async fn pods(&self, app: &str) -> anyhow::Result<Vec<Pod>> {
        let labelled = ListParams::default().labels(&format!("app={app}"));
        Ok(self.api::<Pod>().list(&labelled).await?.items)
    }

    /// Leads a Service `name` without a selector, which may come later, to the
    /// one pod of this label. With a selector it makes kube-proxy work twice,
    /// for the Service and for its endpoints, and the second time comes a
    /// second after the first: that would be all there is to see.
    pub async fn lead(&self, name: &str, targets: &[u16]) -> anyhow::Result<()> {
        let pod = self.ready(name).await?;
        self.create::<EndpointSlice>(slice(name, &[&pod], targets)?).await?;
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    /// Waits for the first pod labelled `app=APP`, and for all of them to be
    /// ready.
    pub async fn ready(&self, app: &str) -> anyhow::Result<Pod> {
        within(&format!("the pods of {app} to be ready"), SLOW, async || {
            let pods = self.pods(app).await?;
            Ok(if pods.iter().all(is_ready) { pods.into_iter().next() } else { None })
        })
        .await
    }

    /// Waits until there is no pod labelled `app=APP`.
    pub async fn gone(&self, app: &str) -> anyhow::Result<()> {
        within(&format!("the pods of {app} to be gone"), SLOW, async || {
            Ok(self.pods(app).await?.is_empty().then_some(()))
        })
        .await
    }

    /// Waits until none of the stage's Services holds an address.
    pub async fn freed(&self) -> anyhow::Result<()> {
        let claims: Api<IP> = Api::all(self.lab.client.clone());
        within("the addresses to be given back", SLOW, async || {
            let list = claims.list(&ListParams::default()).await?;
            Ok(list.items.iter().all(|claim| claim.spec.namespace != NAMESPACE).then_some(()))
        })
        .await
    }

    /// Creates a pod; the time until it is seen to be Ready.
    pub async fn start(&self, pod: Value) -> anyhow::Result<Duration> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let ready = |pod: Option<&Pod>| pod.is_some_and(is_ready);
        // It watches before there is anything to see.
        let pods = self.api::<Pod>();
        let seen = tokio::spawn(async move { await_condition(pods, &name, ready).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let start = Instant::now();
        self.create::<Pod>(pod).await?;
        tokio::time::timeout(SLOW, seen).await.context("a pod does not become ready")???;
        Ok(start.elapsed())
    }
}

/// A pod of the workload's, by itself.
pub fn backend(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "backend",
                "image": BACKEND,
                "imagePullPolicy": "IfNotPresent",
            }],
        },
    })
}

/// The EndpointSlice that leads a Service to these pods, each port to the same.
pub fn slice(service: &str, pods: &[&Pod], numbers: &[u16]) -> anyhow::Result<Value> {
    let ports: Vec<_> = numbers.iter().map(|number| (format!("tcp-{number}"), *number)).collect();
    objects::slice(service, service, pods, &ports)
}

/// A LoadBalancer Service at `ip`, led by [`Stage::lead`].
pub fn led(name: &str, ip: IpAddr, numbers: &[u16]) -> Value {
    let ports = numbers.iter().map(|&number| port("TCP", number, number)).collect();
    let mut service = service(name, &ports);
    service["spec"]["loadBalancerIP"] = json!(ip);
    service["spec"]["selector"] = Value::Null;
    service
}

/// The directory in /proc of a pod's process of this name.
pub fn process(pod: &Pod, name: &str) -> anyhow::Result<PathBuf> {
    let processes = Lab::processes(&pod.uid().unwrap_or_default()).into_iter();
    processes
        .map(|pid| PathBuf::from(format!("/proc/{pid}")))
        .find(|process| {
            std::fs::read_to_string(process.join("comm"))
                .is_ok_and(|comm| name.starts_with(comm.trim()) && !comm.trim().is_empty())
        })
        .with_context(|| format!("pod {} has no process {name}", pod.name_any()))
}

/// Tries `check` until it gives something, at most for `limit`.
pub async fn within<T>(
    what: &str,
    limit: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(value) = check().await.with_context(|| format!("waiting for {what}"))? {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("waited {limit:?} in vain for {what}")
}
