use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::{IP, Subnet, names};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::{Lab, QUICK, SLOW, client, expect, objects, until};

/// Where `manifests/gateway-namespace` has all gateways be.
pub const GATEWAYS: &str = "lb-svc-gateways";

/// A namespace of a test's own.
pub struct Scene {
    /// The namespace.
    pub namespace: String,
    /// The cluster.
    pub lab: Lab,
    /// What was there when the test failed has been shown: once, before
    /// anything was put right.
    shown: AtomicBool,
}

/// Held by each test of this process: together with others, or alone.
static STAGE: RwLock<()> = RwLock::const_new(());

/// Runs `test` in a namespace named after it, beside other tests of its suite. When
/// it fails, shows what was there; in any case takes it away and waits until its
/// addresses are free.
///
/// # Panics
/// As the test does.
pub async fn scene(name: &str, test: impl AsyncFnOnce(Arc<Scene>)) {
    let _shared = STAGE.read().await;
    play(name, test).await;
}

/// As [`scene`], while no other test of its suite runs: for tests that stop what
/// others need.
///
/// # Panics
/// As the test does.
pub async fn alone(name: &str, test: impl AsyncFnOnce(Arc<Scene>)) {
    let _exclusive = STAGE.write().await;
    play(name, test).await;
}

async fn play(name: &str, test: impl AsyncFnOnce(Arc<Scene>)) {
    let lab = Lab::connect().await.unwrap_or_else(|error| panic!("{error:#}"));
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_micros());
    let namespace = format!("e2e-{name}-{unique}");
    let object: Namespace = from(json!({ "metadata": { "name": namespace } }));
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    namespaces
        .create(&PostParams::default(), &object)
        .await
        .unwrap_or_else(|error| panic!("namespace: {error}"));

    let scene = Arc::new(Scene::within(namespace, lab));
    let outcome = scene.watch(test(Arc::clone(&scene))).await;
    namespaces.delete(&scene.namespace, &DeleteParams::default()).await.ok();
    let freed = scene.wait_freed().await;
    match outcome {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(()) => freed.unwrap_or_else(|claims| panic!("addresses are not given back: {claims:?}")),
    }
}

/// An object from JSON.
///
/// # Panics
/// If it is none of that kind.
pub(crate) fn from<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap_or_else(|error| panic!("a test's own object: {error}"))
}

impl Scene {
    /// A namespace that is there.
    pub fn within(namespace: String, lab: Lab) -> Self {
        Self { namespace, lab, shown: AtomicBool::new(false) }
    }

    /// The outcome of `test`; if it is a panic, what is in the namespace has
    /// been shown.
    async fn watch(&self, test: impl Future<Output = ()>) -> std::thread::Result<()> {
        let outcome = AssertUnwindSafe(Box::pin(test)).catch_unwind().await;
        if outcome.is_err() && !self.shown.swap(true, Ordering::Relaxed) {
            self.dump().await;
        }
        outcome
    }

    /// Runs `test`, and shows what is in the namespace when it fails.
    ///
    /// # Panics
    /// As the test does.
    pub async fn shown(&self, test: impl Future<Output = ()>) {
        if let Err(panic) = self.watch(test).await {
            std::panic::resume_unwind(panic);
        }
    }

    /// The cluster, as if in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.lab.client.clone(), &self.namespace)
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.lab.client.clone()
    }

    /// Creates an object.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let made = self.api::<K>().create(&PostParams::default(), &from(object)).await;
        made.unwrap_or_else(|error| panic!("{}: {error}", K::kind(&())))
    }

    /// A Service of `replicas` backends that is served on port 80, and its
    /// address.
    ///
    /// # Panics
    /// If it does not come to that.
    pub async fn served(&self, name: &str, replicas: u32) -> IpAddr {
        self.create::<Deployment>(objects::backends(name, replicas, &["tcp/80"])).await;
        self.create::<Service>(objects::web(name)).await;
        let ip = self.address(name).await;
        serves(ip).await;
        ip
    }

    /// An attachment `name` of this namespace, and a Subnet named like the
    /// namespace on it.
    ///
    /// # Panics
    /// If they cannot be made.
    pub async fn attach(&self, name: &str, subnet: &str) {
        let ns = &self.namespace;
        let manifest = format!(
            r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {{name: {name}, namespace: {ns}}}
spec:
  config: '{{"cniVersion": "0.3.0", "type": "macvlan", "master": "eth0", "mode": "bridge"}}'
---
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {{name: {ns}}}
spec: {{provider: {name}.{ns}, {subnet}}}
"#
        );
        Lab::apply(&manifest).await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Waits for a ready gateway pod of the Service other than `old`.
    ///
    /// # Panics
    /// If none comes.
    pub async fn replaced(&self, service: &str, old: &Pod) -> Pod {
        until(&format!("another gateway pod of {service}"), SLOW, async || {
            let now = self.gateway(service).await;
            if now.uid() == old.uid() { Err(now.name_any()) } else { Ok(now) }
        })
        .await
    }

    /// Merges `patch` into a Service.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn patch_service(&self, name: &str, patch: Value) {
        let patched = self.api::<Service>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unwrap_or_else(|error| panic!("patching Service {name}: {error}"));
    }

    /// The pods of a workload, those on their way out as well.
    ///
    /// # Panics
    /// If the API server does not tell.
    pub async fn pods(&self, workload: &str) -> Vec<Pod> {
        let of_it = ListParams::default().labels(&format!("app={workload}"));
        let pods = self.api::<Pod>().list(&of_it).await;
        pods.unwrap_or_else(|error| panic!("listing the pods of {workload}: {error}")).items
    }

    /// Has a Service served by this NAT back end, and waits until it is.
    ///
    /// # Panics
    /// If it is not.
    pub async fn use_back_end(&self, name: &str, back_end: &str) {
        let annotations = json!({ "lb-svc.kubeovn.io/nat-backend": back_end });
        self.patch_service(name, json!({ "metadata": { "annotations": annotations } })).await;
        until(&format!("{back_end} to be in use"), QUICK, async || {
            let tables = self.in_gateway(name, &["nft", "list", "tables"]).await;
            expect(tables.contains("table ip lb-svc\n") == (back_end == "nftables"), tables)
        })
        .await;
    }

    /// A Service.
    ///
    /// # Panics
    /// If there is none.
    pub async fn service(&self, name: &str) -> Service {
        self.api::<Service>().get(name).await.unwrap_or_else(|error| panic!("Service {name}: {error}"))
    }

    /// `status.loadBalancer.ingress[].ip` of a Service.
    pub async fn ingress(&self, name: &str) -> Vec<IpAddr> {
        let status = self.service(name).await.status.unwrap_or_default();
        let ingress = status.load_balancer.and_then(|lb| lb.ingress).unwrap_or_default();
        ingress.into_iter().filter_map(|ingress| ingress.ip?.parse().ok()).collect()
    }

    /// Waits for a Service's address.
    ///
    /// # Panics
    /// If it does not come.
    pub async fn address(&self, name: &str) -> IpAddr {
        until(&format!("an address of Service {name}"), SLOW, async || {
            self.ingress(name).await.first().copied().ok_or("no ingress")
        })
        .await
    }

    /// Waits until the Service's ClusterIP answers on every node: each one's
    /// kube-proxy learns of it in its own time.
    ///
    /// # Panics
    /// If it does not come to that.
    pub async fn answers_inside(&self, name: &str, port: u16) {
        let ip = self.service(name).await.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        let nodes = Lab::kubectl(&["get", "nodes", "-o", "name"]).await;
        let nodes = nodes.unwrap_or_else(|error| panic!("{error:#}")).lines().count();
        let url = format!("http://{ip}:{port}/");
        for node in 1..=nodes {
            until(&format!("{url} to answer on node {node}"), SLOW, async || {
                Lab::cluster(&["node", &node.to_string(), "curl", "-sS", "--max-time", "1", &url]).await
            })
            .await;
        }
    }

    /// A Service's gateway pods that are not on their way out.
    ///
    /// # Panics
    /// If the API server does not say.
    pub async fn gateways(&self, service: &str) -> Vec<Pod> {
        let mut pods = gateway_pods(&self.api(), &self.namespace, service).await;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods
    }

    /// What a gateway pod says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, pod: &Pod) -> anyhow::Result<GatewayStatus> {
        Ok(serde_json::from_str(&self.page(pod, "status").await?)?)
    }

    /// What a gateway pod counts: the value of the metric that begins so, 0
    /// where there is none.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metric(&self, pod: &Pod, begins: &str) -> anyhow::Result<u64> {
        let text = self.page(pod, "metrics").await?;
        let line = text.lines().find(|line| line.starts_with(begins));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default())
    }

    /// A page of a gateway pod's server.
    async fn page(&self, pod: &Pod, page: &str) -> anyhow::Result<String> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:{}/proxy/{page}",
            self.namespace,
            pod.name_any(),
            names::GATEWAY_PORT
        );
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(tokio::time::timeout(client::ATTEMPT, self.lab.client.request_text(request)).await??)
    }

    /// The one ready gateway pod of a Service.
    ///
    /// # Panics
    /// If there is none in time.
    pub async fn gateway(&self, service: &str) -> Pod {
        until(&format!("a ready gateway of {service}"), SLOW, async || {
            let pods = self.gateways(service).await;
            let ready = pods.iter().find(|pod| is_ready(pod)).cloned();
            ready.ok_or_else(|| pods.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>())
        })
        .await
    }

    /// A command in a Service's gateway, with what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub async fn in_gateway(&self, service: &str, command: &[&str]) -> String {
        self.in_pod(&self.gateway(service).await, command).await
    }

    /// A command in a pod's only container, with what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub async fn in_pod(&self, pod: &Pod, command: &[&str]) -> String {
        let pod = pod.name_any();
        let done = Lab::exec(&self.namespace, &pod, command).await;
        done.unwrap_or_else(|error| panic!("{command:?} in {pod}: {error}"))
    }

    /// The claims of this namespace's Services.
    ///
    /// # Panics
    /// If the API server does not say.
    pub async fn claims(&self) -> Vec<IP> {
        let claims: Api<IP> = Api::all(self.client());
        let list =
            claims.list(&ListParams::default()).await.unwrap_or_else(|error| panic!("listing IPs: {error}"));
        list.items.into_iter().filter(|claim| claim.spec.namespace == self.namespace).collect()
    }

    /// Waits until nothing is left of a Service's gateway.
    ///
    /// # Panics
    /// If something stays.
    pub async fn gone(&self, service: &str) {
        let name = format!("lb-svc-{service}");
        until(&format!("{name} to be gone"), SLOW, async || {
            let mut left = Vec::new();
            if self
                .api::<Deployment>()
                .get_opt(&name)
                .await
                .map_err(|error| vec![error.to_string()])?
                .is_some()
            {
                left.push("Deployment".to_owned());
            }
            if self
                .api::<ConfigMap>()
                .get_opt(&name)
                .await
                .map_err(|error| vec![error.to_string()])?
                .is_some()
            {
                left.push("ConfigMap".to_owned());
            }
            let claims = self.claims().await;
            left.extend(
                claims
                    .iter()
                    .filter(|claim| claim.spec.service_name == service)
                    .map(kube::ResourceExt::name_any),
            );
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }

    /// The reasons of the Events on a Service.
    ///
    /// # Panics
    /// If the API server does not say.
    pub async fn events(&self, service: &str) -> Vec<(String, String)> {
        let on_it = ListParams::default()
            .fields(&format!("involvedObject.kind=Service,involvedObject.name={service}"));
        let events =
            self.api::<Event>().list(&on_it).await.unwrap_or_else(|error| panic!("listing Events: {error}"));
        let told = events.items.into_iter();
        told.map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default())).collect()
    }

    async fn wait_freed(&self) -> Result<(), Vec<String>> {
        let start = std::time::Instant::now();
        loop {
            let names: Vec<String> = self.claims().await.iter().map(ResourceExt::name_any).collect();
            if names.is_empty() {
                return Ok(());
            }
            if start.elapsed() > SLOW {
                return Err(names);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Shows what is there: for the reader of a failed test.
    async fn dump(&self) {
        let ns = self.namespace.as_str();
        let shows: [&[&str]; 8] = [
            &["get", "services,deployments,configmaps,pods,endpointslices", "-n", ns, "-o", "wide"],
            &["get", "deployments,configmaps,pods", "-n", GATEWAYS, "-o", "wide"],
            &["get", "events", "-n", GATEWAYS, "--sort-by=.lastTimestamp"],
            &["get", "ips,subnets"],
            &["get", "events", "-n", ns, "--sort-by=.lastTimestamp"],
            &["get", "services", "-n", ns, "-o", "yaml"],
            &["logs", "-n", ns, "-l", "app.kubernetes.io/managed-by=lb-svc", "--prefix", "--tail=40"],
            &["logs", "-n", "lb-svc-system", "-l", "app=lb-svc-controller", "--tail=60"],
        ];
        for args in shows {
            let shown = Lab::kubectl(args).await.unwrap_or_else(|error| error.to_string());
            eprintln!("--- kubectl {}\n{shown}", args.join(" "));
        }
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=lb-svc");
        let pods = self.api::<Pod>().list(&ours).await.map_or_else(|_| Vec::new(), |pods| pods.items);
        for pod in pods {
            for command in [
                &["ip", "addr"][..],
                &["ip", "rule"],
                &["ip", "route", "show", "table", "100"],
                &["iptables-save"],
            ] {
                let shown =
                    Lab::exec(ns, &pod.name_any(), command).await.unwrap_or_else(|error| error.to_string());
                eprintln!("--- {} {command:?}\n{shown}", pod.name_any());
            }
        }
    }
}

/// Waits until port 80 at the address is answered.
///
/// # Panics
/// If it is not.
pub async fn serves(ip: IpAddr) {
    until(&format!("{ip} to serve"), SLOW, async || client::get(ip, 80).await).await;
}

/// Whether a pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    is_true(pod, "Ready")
}

/// Whether a pod's condition of this type is true.
pub fn is_true(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// The Subnet of this name, which is there.
///
/// # Panics
/// If it is not.
pub async fn subnet(lab: &Lab, name: &str) -> Subnet {
    let subnets: Api<Subnet> = Api::all(lab.client.clone());
    subnets.get(name).await.unwrap_or_else(|error| panic!("Subnet {name}: {error}"))
}

/// Waits until a Subnet's counters are so.
///
/// # Panics
/// If they do not become so.
pub async fn until_using(lab: &Lab, name: &str, using: u64) {
    until(&format!("{using} addresses of {name} in use"), SLOW, async || {
        let status = subnet(lab, name).await.status.unwrap_or_default();
        expect(status.v4_using_ips == using, status.v4_using_ip_range)
    })
    .await;
}

/// The pods in the namespace of `pods` that are of the gateway of this Service,
/// also those on their way out.
///
/// # Panics
/// If the API server does not say.
pub async fn gateway_pods(pods: &Api<Pod>, namespace: &str, service: &str) -> Vec<Pod> {
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=lb-svc");
    let pods = pods.list(&ours).await.unwrap_or_else(|error| panic!("listing pods: {error}"));
    let name = format!("{namespace}/{service}");
    let is_its = |pod: &Pod| pod.annotations().get(names::SERVICE_ANNOTATION) == Some(&name);
    pods.items.into_iter().filter(is_its).collect()
}
