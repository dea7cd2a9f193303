//! Services come, change and go at random, with one controller and with two
//! that both believe they lead; afterwards everything must add up, in the API
//! server and in the kernels.
//!
//! `SOAK_SECONDS` (45) sets how long, `SOAK_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use lb_svc_crds::names::{MASTER_SECRET, SIGNING_SECRET};
use lb_svc_e2e::objects::{PROVIDER, SUBNET, backends, port, service};
use lb_svc_e2e::{Lab, Scene, client, expect, scene, until, until_using};
use serde_json::{Value, json};

/// How many Services there are at most.
const SERVICES: u64 = 8;
/// How long it may take until all is well after the last change.
const SETTLE: Duration = Duration::from_secs(120);

/// Pseudo-random numbers (xorshift), so that a run can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn one_controller() {
    scene("soak", async |scene| soak(&scene).await).await;
}

#[tokio::test]
async fn two_controllers_that_both_lead() {
    scene("soak-two", async |scene: Arc<Scene>| {
        second_controller(&scene).await;
        soak(&scene).await;
    })
    .await;
}

/// Another controller, which holds a Lease of its own in the test's namespace, and has the
/// keys of the first.
async fn second_controller(scene: &Scene) {
    let ns = &scene.namespace;
    let keys: Api<Secret> = Api::namespaced(scene.client(), "lb-svc-system");
    for name in [SIGNING_SECRET, MASTER_SECRET] {
        let data = keys.get_opt(name).await.unwrap().and_then(|secret| secret.data);
        let Some(data) = data else { continue };
        let metadata = json!({ "name": name });
        scene.create::<Secret>(json!({ "metadata": metadata, "data": data })).await;
    }
    Lab::apply(&format!(
        r#"
apiVersion: v1
kind: ServiceAccount
metadata: {{name: second, namespace: {ns}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: second-controller}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lb-svc-controller}}
subjects: [{{kind: ServiceAccount, name: second, namespace: {ns}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: second-gateways}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lb-svc-gateways}}
subjects: [{{kind: ServiceAccount, name: second, namespace: {ns}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: second, namespace: {ns}}}
rules:
- {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, patch]}}
- {{apiGroups: [""], resources: [secrets], verbs: [get, create]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: second, namespace: {ns}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: second}}
subjects: [{{kind: ServiceAccount, name: second, namespace: {ns}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: second-controller, namespace: {ns}}}
spec:
  selector: {{matchLabels: {{app: second-controller}}}}
  template:
    metadata: {{labels: {{app: second-controller}}}}
    spec:
      serviceAccountName: second
      containers:
      - name: controller
        image: localhost/lb-svc-controller:dev
        args: [--enable-lb-svc=true, --name=second, --namespace={ns}]
        readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
"#
    ))
    .await
    .unwrap();
    Lab::kubectl(&["rollout", "status", "-n", ns, "deployment/second-controller", "--timeout=60s"])
        .await
        .unwrap();
    until("the second controller leads", SETTLE, async || {
        let log = Lab::kubectl(&["logs", "-n", ns, "deployment/second-controller"]).await;
        let log = log.map_err(|error| error.to_string())?;
        expect(log.contains("leading"), log)
    })
    .await;
}

async fn soak(scene: &Scene) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = setting("SOAK_SEED", now | 1);
    eprintln!("SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    scene.create::<Deployment>(backends("web", 2, &["tcp/80", "tcp/81"])).await;
    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < Duration::from_secs(setting("SOAK_SECONDS", 45)) {
        change(scene, &mut dice).await;
        changes += 1;
        let pause = dice.roll(300);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    eprintln!("{changes} changes; now all must add up");
    until("everything adds up", SETTLE, async || adds_up(scene).await).await;
}

fn web(dice: &mut Dice) -> Value {
    let mut object = service("unnamed", &json!([port("TCP", 80, 80)]));
    object["spec"]["selector"] = json!({ "app": "web" });
    if dice.roll(3) == 0 {
        // Few enough that Services meet.
        object["spec"]["loadBalancerIP"] = format!("172.18.90.{}", dice.roll(4) + 1).into();
    }
    object
}

/// One change. It may fail: the object may not be there, or be there already.
async fn change(scene: &Scene, dice: &mut Dice) {
    let name = format!("s{}", dice.roll(SERVICES));
    let services = scene.api::<Service>();
    let patch = async |value: Value| {
        services.patch(&name, &PatchParams::default(), &Patch::Merge(value)).await.ok();
    };
    let create = async |mut object: Value| {
        object["metadata"]["name"] = name.clone().into();
        services.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.ok();
    };
    match dice.roll(12) {
        0..4 => create(web(dice)).await,
        4 => drop(services.delete(&name, &DeleteParams::default()).await),
        5 => {
            let orphan =
                DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..Default::default() };
            services.delete(&name, &orphan).await.ok();
            create(web(dice)).await;
        }
        6 => patch(json!({ "spec": { "ports": [port("TCP", 80, 80), port("TCP", 81, 81)] } })).await,
        7 => patch(json!({ "spec": { "loadBalancerIP": format!("172.18.90.{}", dice.roll(4) + 1) } })).await,
        8 => patch(json!({ "spec": { "loadBalancerIP": null } })).await,
        9 => {
            let kind = if dice.roll(2) == 0 { "ClusterIP" } else { "LoadBalancer" };
            patch(json!({ "spec": { "type": kind } })).await;
        }
        10 => {
            let provider = if dice.roll(2) == 0 { Value::Null } else { PROVIDER.into() };
            patch(json!({ "metadata": { "annotations": { "ovn.kubernetes.io/attachmentprovider": provider } } })).await;
        }
        _ => {
            let part = format!("lb-svc-{name}");
            match dice.roll(3) {
                0 => drop(scene.api::<Deployment>().delete(&part, &DeleteParams::default()).await),
                1 => drop(scene.api::<ConfigMap>().delete(&part, &DeleteParams::default()).await),
                _ => {
                    for pod in scene.gateways(&name).await {
                        scene.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.ok();
                    }
                }
            }
        }
    }
}

/// Whether what is there is what should be there, exactly.
async fn adds_up(scene: &Scene) -> Result<(), String> {
    let all = ListParams::default();
    let text = |error: kube::Error| error.to_string();
    let services = scene.api::<Service>().list(&all).await.map_err(text)?.items;
    let wanted = |service: &&Service| {
        let load_balancer =
            service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        load_balancer && service.annotations().contains_key("ovn.kubernetes.io/attachmentprovider")
    };
    let claims = scene.claims().await;
    let by_uid: BTreeMap<String, Vec<IpAddr>> = claims.iter().fold(BTreeMap::new(), |mut map, claim| {
        map.entry(claim.spec.service_uid.clone())
            .or_insert_with(Vec::new)
            .push(claim.spec.ip_address.parse().unwrap());
        map
    });
    let mut held = BTreeSet::new();
    for service in services.iter().filter(wanted) {
        let (name, uid) = (service.name_any(), service.uid().unwrap());
        let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.clone());
        let ingress = scene.ingress(&name).await;
        match by_uid.get(&uid).map(Vec::as_slice) {
            Some([address]) => {
                // A Service may hold its last good address while the one it asks for is another's.
                let taken = claims.iter().any(|claim| {
                    Some(&claim.spec.ip_address) == asked.as_ref() && claim.spec.service_uid != uid
                });
                expect(
                    asked == Some(address.to_string()) || taken,
                    format!("{name} asks for {asked:?}, has {address}"),
                )?;
                expect(ingress == [*address], format!("{name}: ingress {ingress:?}, claim {address}"))?;
                client::get(*address, 80).await.map_err(|error| format!("{name} at {address}: {error}"))?;
                held.insert(*address);
            }
            None => {
                // It waits for what another has.
                let taken = claims.iter().any(|claim| Some(&claim.spec.ip_address) == asked.as_ref());
                expect(
                    taken && ingress.is_empty(),
                    format!("{name} has nothing: asks for {asked:?}, says {ingress:?}"),
                )?;
            }
            Some(several) => return Err(format!("{name} has {several:?}")),
        }
    }
    let served: BTreeSet<String> = services
        .iter()
        .filter(wanted)
        .filter(|s| by_uid.contains_key(&s.uid().unwrap()))
        .map(ResourceExt::name_any)
        .collect();
    expect(claims.len() == held.len(), format!("claims {by_uid:?}, held {held:?}"))?;
    for service in services.iter().filter(|service| !wanted(service)) {
        let ingress = scene.ingress(&service.name_any()).await;
        expect(ingress.is_empty(), format!("{} is not ours and says {ingress:?}", service.name_any()))?;
    }

    // What was made for them, and nothing else.
    let ours = all.clone().labels("app.kubernetes.io/managed-by=lb-svc");
    let deployments = scene.api::<Deployment>().list(&ours).await.map_err(text)?.items;
    let configs = scene.api::<ConfigMap>().list(&ours).await.map_err(text)?.items;
    let pods = scene.api::<Pod>().list(&ours).await.map_err(text)?.items;
    let parts: BTreeSet<String> = served.iter().map(|name| format!("lb-svc-{name}")).collect();
    let names: BTreeSet<String> = deployments.iter().map(ResourceExt::name_any).collect();
    expect(names == parts, format!("Deployments {names:?} for {parts:?}"))?;
    let names: BTreeSet<String> = configs.iter().map(ResourceExt::name_any).collect();
    expect(names == parts, format!("ConfigMaps {names:?} for {parts:?}"))?;
    expect(pods.len() == parts.len(), pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>())?;

    // The kernels: every address on one pod.
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for pod in &pods {
        let name = pod.name_any();
        let command = ["ip", "-j", "-4", "addr", "show", "dev", "net1"];
        let shown = Lab::exec(&scene.namespace, &name, &command).await.map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_str(&shown).map_err(|error| error.to_string())?;
        for address in shown[0]["addr_info"].as_array().into_iter().flatten() {
            let address: IpAddr =
                address["local"].as_str().unwrap_or_default().parse().map_err(|_| "address")?;
            if let Some(other) = owners.insert(address, name.clone()) {
                return Err(format!("{address} is on {name} and on {other}"));
            }
        }
    }
    let programmed: BTreeSet<IpAddr> = owners.into_keys().collect();
    expect(programmed == held, format!("programmed {programmed:?}, held {held:?}"))?;
    // Nobody else uses the Subnet while this runs.
    let using = u64::try_from(held.len()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), until_using(&scene.lab, SUBNET, using))
        .await
        .map_err(|_| "the Subnet's counters do not follow".to_owned())
}
