//! What one tenant writes costs the others nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Resource, ResourceExt};
use lb_svc_crds::names;
use lb_svc_e2e::objects::{BACKEND, web};
use lb_svc_e2e::{SLOW, Scene, controllers, expect, fleet, is_ready, scene, until};
use serde_json::{Value, json};

const SYSTEM: &str = "lb-svc-system";
/// Of each kind.
const MANY: usize = 24;
/// The most bytes of all annotations of an object (Kubernetes API), less their names.
const ANNOTATIONS: usize = 250 << 10;
/// What fits into an object beside them: etcd takes 1.5 MiB.
const CONTENT: usize = 900 << 10;
/// The most endpoints of a slice (Kubernetes API).
const ENDPOINTS: usize = 1000;
const AT_ONCE: usize = 8;
/// What a controller may hold, in MiB: one that kept what it reads would hold 120.
const MIB: f64 = 90.0;

/// Metadata that has as much as the API server takes, and that of a gateway's object.
fn metadata(kind: &str, number: usize) -> Value {
    json!({
        "name": format!("large-{kind}-{number:02}"),
        "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY, names::SERVICE_UID_LABEL: "large" },
        "annotations": {
            names::SERVICE_ANNOTATION: format!("shop/large-service-{number:02}"),
            names::NETWORK_STATUS_ANNOTATION: "[".repeat(ANNOTATIONS / 2),
            names::CONFIG_ANNOTATION: "x".repeat(ANNOTATIONS / 2),
        },
    })
}

/// A pod that has much to say, and is never started.
fn pod() -> Value {
    json!({
        "schedulingGates": [{ "name": "e2e.example.com/never" }],
        "readinessGates": [{ "conditionType": names::READINESS_GATE }],
        "containers": [{
            "name": "web", "image": BACKEND, "env": [{ "name": "LARGE", "value": "x".repeat(CONTENT) }],
        }],
    })
}

/// A Service for the controller to judge, of which it makes no gateway: it names no
/// attachment. kube-proxy has nothing to do for it either.
fn service(number: usize) -> Value {
    let large = "é".repeat(ANNOTATIONS / 8);
    let ranges: Vec<String> = (0..200).map(|n| format!("10.{n}.0.0/16")).collect();
    let mut object = web(&format!("large-service-{number:02}"));
    object["metadata"]["annotations"] = json!({
        "lb-svc.kubeovn.io/affinity": format!("{{\"x\": \"{large}\"}}"),
        "lb-svc.kubeovn.io/tolerations": large,
        "lb-svc.kubeovn.io/unknown": large,
    });
    object["spec"]["loadBalancerClass"] = json!(names::LOAD_BALANCER_CLASS);
    object["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    object["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    object
}

/// A full slice of the first of those Services. kube-proxy leaves headless ones alone.
fn slice(number: usize) -> Value {
    let mut metadata = metadata("slice", number);
    metadata["labels"] = json!({
        "kubernetes.io/service-name": "large-service-00", "service.kubernetes.io/headless": "",
    });
    let endpoint = |n: usize| {
        let address = format!("10.{}.{}.{}", 200 + number, n / 250, n % 250 + 1);
        json!({ "addresses": [address], "hostname": "h".repeat(63), "nodeName": "n".repeat(200),
            "targetRef": { "kind": "Pod", "name": "p".repeat(200), "uid": format!("{number}-{n}") } })
    };
    let port =
        |n: usize| json!({ "name": format!("{}{n:03}", "p".repeat(60)), "port": n + 1, "protocol": "TCP" });
    json!({
        "metadata": metadata, "addressType": "IPv4",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Value>(),
        "ports": (0..100).map(port).collect::<Value>(),
    })
}

async fn write<K>(scene: &Scene, object: impl Fn(usize) -> Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api: Api<K> = scene.api();
    let made = (0..MANY).map(|number| {
        let (api, object) = (&api, serde_json::from_value::<K>(object(number)).unwrap());
        async move { api.create(&PostParams::default(), &object).await }
    });
    let made: Result<Vec<K>, kube::Error> =
        futures::stream::iter(made).buffer_unordered(AT_ONCE).try_collect().await;
    made.unwrap_or_else(|error| panic!("{}: {error}", K::kind(&())));
}

fn attachments(scene: &Scene) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
    let resource = ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions");
    Api::namespaced_with(scene.client(), &scene.namespace, &resource)
}

/// Fills the scene's namespace with the largest objects of every kind that the
/// controller reads and that a tenant may write.
async fn fill(scene: &Scene) {
    write::<Service>(scene, service).await;
    write::<EndpointSlice>(scene, slice).await;
    write::<ConfigMap>(
        scene,
        |n| json!({ "metadata": metadata("config", n), "data": { names::CONFIG_KEY: "{".repeat(CONTENT) } }),
    )
    .await;
    write::<Pod>(scene, |n| json!({ "metadata": metadata("pod", n), "spec": pod() })).await;
    write::<Deployment>(scene, |n| {
        let labels = json!({ "app": "large" });
        json!({ "metadata": metadata("deployment", n), "spec": { "replicas": 0,
            "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod() } } })
    })
    .await;
    write::<PodDisruptionBudget>(scene, |n| {
        json!({ "metadata": metadata("budget", n), "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "large" } } } })
    })
    .await;
    let api = attachments(scene);
    for number in 0..MANY {
        let object = json!({ "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": metadata("attachment", number), "spec": { "config": "[".repeat(CONTENT) } });
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
}

/// Deletes them before the namespace goes, whose controller reads all of each kind at once.
async fn clear(scene: &Scene) {
    let (now, all) =
        (DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() }, ListParams::default());
    scene.api::<Service>().delete_collection(&now, &all).await.unwrap();
    scene.api::<EndpointSlice>().delete_collection(&now, &all).await.unwrap();
    scene.api::<ConfigMap>().delete_collection(&now, &all).await.unwrap();
    scene.api::<Deployment>().delete_collection(&now, &all).await.unwrap();
    scene.api::<Pod>().delete_collection(&now, &all).await.unwrap();
    scene.api::<PodDisruptionBudget>().delete_collection(&now, &all).await.unwrap();
    attachments(scene).delete_collection(&now, &all).await.unwrap();
}

/// The most memory that each controller has held so far, in MiB, by its pod and how
/// often its container was restarted.
async fn peaks(scene: &Scene) -> BTreeMap<(String, i32), f64> {
    let peak = |pod: &Pod| {
        let statuses =
            pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let restarts = statuses.iter().map(|status| status.restart_count).sum();
        let processes = pod.uid().map(|uid| lb_svc_e2e::Lab::processes(&uid)).unwrap_or_default();
        let of = |pid: u32| fleet::peak(Path::new(&format!("/proc/{pid}"))).ok();
        ((pod.name_any(), restarts), processes.into_iter().filter_map(of).fold(0.0, f64::max))
    };
    controllers(&scene.lab).await.iter().map(peak).collect()
}

/// How long it takes until a Service that is made now is served.
async fn time_to_serve(scene: &Scene, name: &str) -> Duration {
    let start = Instant::now();
    scene.create::<Service>(web(name)).await;
    lb_svc_e2e::serves(scene.address(name).await).await;
    start.elapsed()
}

/// The limit of the controller's container, in MiB.
async fn limit(scene: &Scene) -> f64 {
    let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
    let spec = deployments.get("lb-svc-controller").await.unwrap().spec.unwrap();
    let container = spec.template.spec.unwrap().containers.remove(0);
    let memory = container.resources.unwrap().limits.unwrap().remove("memory").unwrap().0;
    memory.strip_suffix("Mi").unwrap().parse().unwrap()
}

/// Both while it is written and when controllers start with all of it there.
#[tokio::test]
async fn r3_largest_objects_of_a_tenant_fill_no_memory_and_hold_nobody_up() {
    scene("neighbour", async |neighbour| {
        neighbour.create::<Deployment>(lb_svc_e2e::objects::backends("before", 1, &["tcp/80"])).await;
        for name in ["during", "after"] {
            neighbour.create::<Deployment>(lb_svc_e2e::objects::backends(name, 1, &["tcp/80"])).await;
        }
        let before = time_to_serve(&neighbour, "before").await;
        let limit = limit(&neighbour).await;
        scene("tenant", async |tenant| {
            let start = Instant::now();
            fill(&tenant).await;
            eprintln!("filled in {:?}", start.elapsed());
            let during = time_to_serve(&neighbour, "during").await;
            let written = peaks(&neighbour).await;

            let pods: Api<Pod> = Api::namespaced(neighbour.client(), SYSTEM);
            let old: Vec<String> =
                controllers(&neighbour.lab).await.iter().map(ResourceExt::name_any).collect();
            for pod in &old {
                pods.delete(pod, &DeleteParams::default()).await.unwrap();
            }
            until("new controllers", SLOW, async || {
                let now = controllers(&neighbour.lab).await;
                let new = now.iter().filter(|pod| is_ready(pod) && !old.contains(&pod.name_any())).count();
                expect(new == old.len(), new)
            })
            .await;
            let after = time_to_serve(&neighbour, "after").await;
            let listed = peaks(&neighbour).await;
            clear(&tenant).await;

            eprintln!("served in {before:?}, {during:?}, {after:?}; MiB {written:?}, {listed:?} of {limit}");
            for (pod, peak) in written.iter().chain(&listed) {
                assert_eq!(pod.1, 0, "{pod:?} was restarted");
                assert!(*peak > 0.0 && *peak < MIB.min(limit), "{pod:?}: {peak} MiB of {limit}");
            }
            let usual = before * 3 + Duration::from_secs(5);
            assert!(during < usual && after < usual, "{before:?}, {during:?}, {after:?}");
        })
        .await;
    })
    .await;
}
