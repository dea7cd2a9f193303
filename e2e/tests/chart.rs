//! The Helm chart on a cluster, and what it brings for Prometheus. These run
//! alone: the product itself is taken away and put back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use lb_svc_crds::gateway::Role;
use lb_svc_crds::names::{GATEWAY_PORT, SIGNING_SECRET};
use lb_svc_e2e::objects::{SUBNET, backends, web};
use lb_svc_e2e::{
    Lab, QUICK, SLOW, Scene, client, expect, is_ready, repository, scene, serves, subnet, until,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

const SYSTEM: &str = "lb-svc-system";
const CONTROLLER: &str = "lb-svc-controller";
const RELEASE: &str = "lb-svc";
const CLAIMS: &str = "ips.kubeovn.io";
const RULES: &str = "charts/lb-svc/files/rules.yaml";

/// What a program prints.
async fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(SLOW * 3, output).await.context("it hangs")??;
    if !output.status.success() {
        bail!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `helm ARGS`, of the namespace of the controller.
async fn helm(args: &[&str]) -> anyhow::Result<String> {
    let kubeconfig = Lab::cluster(&["kubeconfig"]).await?;
    let global = ["--kubeconfig", kubeconfig.trim(), "--namespace", SYSTEM];
    run(Command::new("helm").args(global).args(args).current_dir(repository()))
        .await
        .with_context(|| format!("helm {}", args.join(" ")))
}

/// Installs the product as the manifests have it.
async fn install_manifests() -> anyhow::Result<()> {
    let script = repository().join("manifests/crds/apply.sh");
    let kubectl = repository().join("e2e/cluster/cluster.sh");
    run(Command::new(script).env("KUBECTL", format!("{} kubectl", kubectl.display()))).await?;
    Lab::kubectl(&["apply", "-k", repository().join("manifests").to_str().unwrap()]).await?;
    let rolled = ["rollout", "status", "deployment", CONTROLLER, "-n", SYSTEM, "--timeout=60s"];
    Lab::kubectl(&rolled).await?;
    Ok(())
}

/// Runs `test` where the manifests are installed; in any case they are
/// afterwards.
async fn between_manifests(test: impl Future<Output = ()>) {
    install_manifests().await.unwrap();
    let outcome = AssertUnwindSafe(Box::pin(test)).catch_unwind().await;
    if outcome.is_err() {
        // It may have ended while the definition was another's.
        let label = "app.kubernetes.io/managed-by=lb-svc";
        Lab::kubectl(&["label", "--overwrite", "crd", CLAIMS, label]).await.ok();
    }
    let uninstalled = helm(&["uninstall", RELEASE, "--ignore-not-found", "--wait"]).await;
    let installed = install_manifests().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    uninstalled.unwrap();
    installed.unwrap();
}

/// The controllers' pods that are not on their way out.
async fn controller_pods(scene: &Scene) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(scene.client(), SYSTEM);
    let mut pods = pods.list(&ListParams::default().labels("app=lb-svc-controller")).await.unwrap().items;
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    pods
}

/// Their uids.
async fn controllers(scene: &Scene) -> BTreeSet<String> {
    controller_pods(scene).await.iter().filter_map(ResourceExt::uid).collect()
}

/// What the controller is configured with.
async fn configuration(scene: &Scene) -> String {
    let deployments: Api<Deployment> = Api::namespaced(scene.client(), SYSTEM);
    let pod = deployments.get(CONTROLLER).await.unwrap().spec.unwrap().template.spec.unwrap();
    let name = pod.volumes.unwrap().into_iter().find_map(|volume| Some(volume.config_map?.name)).unwrap();
    let configs: Api<ConfigMap> = Api::namespaced(scene.client(), SYSTEM);
    configs.get(&name).await.unwrap().data.unwrap()["config.yaml"].clone()
}

/// Requests to an address, one after the other.
struct Requests {
    stop: oneshot::Sender<()>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Requests {
    fn begin(ip: IpAddr) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut answered, mut lost) = (0, Vec::new());
            // Each takes a source port for a minute.
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                tick.tick().await;
                match client::get(ip, 80).await {
                    Ok(_) => answered += 1,
                    Err(error) => lost.push(format!("after {answered}: {error}")),
                }
            }
            (answered, lost)
        });
        Self { stop, task }
    }

    async fn end_without_loss(self) {
        self.stop.send(()).unwrap();
        let (answered, lost) = self.task.await.unwrap();
        assert!(lost.is_empty(), "{} requests were lost: {lost:?}", lost.len());
        assert!(answered > 100, "{answered} requests are too few to show anything");
    }
}

/// Has the definition of claims be another's, and back.
async fn claims_belong_to(owner: &str, description: &str) -> anyhow::Result<()> {
    let patch = json!([
        { "op": "add", "path": "/metadata/labels/app.kubernetes.io~1managed-by", "value": owner },
        { "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/description", "value": description },
    ]);
    Lab::kubectl(&["patch", "crd", CLAIMS, "--type=json", "--patch", &patch.to_string()]).await.map(drop)
}

async fn crd_field(path: &str) -> String {
    Lab::kubectl(&["get", "crd", CLAIMS, "--output", &format!("jsonpath={{{path}}}")]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_takes_over_upgrades_uninstalls_and_installs_anew() {
    scene("chart", async |scene| {
        between_manifests(scene.shown(async {
            let ip = scene.served("web", 2).await;
            let gateway = scene.gateway("web").await;
            let at_first = controllers(&scene).await;
            let of_subnet = subnet(&scene.lab, SUBNET).await.uid();
            let same_gateway = async || assert_eq!(scene.gateway("web").await.uid(), gateway.uid());
            let requests = Requests::begin(ip);

            // Not without being told that it is to.
            let refused = helm(&["install", RELEASE, "charts/lb-svc"]).await.unwrap_err();
            assert!(format!("{refused:#}").contains("cannot be imported"), "{refused:#}");
            helm(&["install", RELEASE, "charts/lb-svc", "--take-ownership", "--wait"]).await.unwrap();
            assert_eq!(controllers(&scene).await, at_first, "what is the same was replaced");
            same_gateway().await;

            // A definition that is another's stays as it is.
            let description = crd_field(".spec.versions[0].schema.openAPIV3Schema.description").await;
            claims_belong_to("kube-ovn", "another's").await.unwrap();
            let generation = crd_field(".metadata.generation").await;
            let upgraded = helm(&["upgrade", RELEASE, "charts/lb-svc"]).await;
            let afterwards = crd_field(".metadata.generation").await;
            claims_belong_to("Helm", &description).await.unwrap();
            let refused = format!("{:#}", upgraded.unwrap_err());
            assert!(refused.contains(CLAIMS) && refused.contains("not made by lb-svc"), "{refused}");
            assert_eq!(afterwards, generation);

            // An upgrade replaces the controllers, and a definition follows.
            claims_belong_to("lb-svc", &format!("{description} Once.")).await.unwrap();
            helm(&[
                "upgrade",
                RELEASE,
                "charts/lb-svc",
                "--wait",
                "--set",
                "config.keptAddressesPerNamespace=4,monitoring.dashboard=true",
            ])
            .await
            .unwrap();
            assert_eq!(configuration(&scene).await, "keptAddressesPerNamespace: 4\n");
            until("all controllers are new", SLOW, async || {
                let now = controllers(&scene).await;
                expect(now.is_disjoint(&at_first), now)
            })
            .await;
            let followed = crd_field(".spec.versions[0].schema.openAPIV3Schema.description").await;
            assert_eq!(followed, description);
            let dashboards: Api<ConfigMap> = Api::namespaced(scene.client(), SYSTEM);
            assert!(dashboards.get_opt("lb-svc-dashboard").await.unwrap().is_some());
            same_gateway().await;

            // What holds addresses stays, and gateways serve on.
            helm(&["uninstall", RELEASE, "--wait"]).await.unwrap();
            until("no controller is left", SLOW, async || {
                let now = controllers(&scene).await;
                expect(now.is_empty(), now)
            })
            .await;
            let secrets: Api<Secret> = Api::namespaced(scene.client(), SYSTEM);
            assert!(secrets.get_opt(SIGNING_SECRET).await.unwrap().is_some());
            assert_eq!(subnet(&scene.lab, SUBNET).await.uid(), of_subnet);
            assert_eq!(scene.ingress("web").await, [ip]);
            assert_eq!(scene.claims().await.len(), 1);
            same_gateway().await;
            client::get(ip, 80).await.unwrap();

            helm(&["install", RELEASE, "charts/lb-svc", "--wait"]).await.unwrap();
            scene.served("later", 1).await;
            same_gateway().await;
            requests.end_without_loss().await;
        }))
        .await;
        // It is the manifests' again.
        scene.served("last", 1).await;
    })
    .await;
}

/// A Prometheus of a test's own, with the alerts of the chart.
struct Prometheus {
    process: Child,
    url: String,
    directory: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        // Its keys are not to stay.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Prometheus {
    /// Starts one that scrapes the controllers and these gateways, by way of the
    /// API server: the host of the tests is no part of the pod network.
    async fn start(controllers: &[Pod], gateways: &[Pod]) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = std::env::temp_dir().join(format!("lb-svc-prometheus-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let api = by_api(&directory).await?;
        // The labels are those that the chart's monitors give. Debian's
        // Prometheus cannot look for pods itself.
        let job = |pod: &Pod, port: u16| {
            let (name, namespace) = (pod.name_any(), pod.namespace());
            let namespace = namespace.as_deref().unwrap_or_default();
            json!({
                "job_name": name,
                "scheme": "https",
                "tls_config": api.tls,
                "metrics_path": format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics"),
                "static_configs": [{
                    "targets": [api.address],
                    "labels": {
                        "instance": name,
                        "namespace": namespace,
                        "pod": name,
                        "node": pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()),
                    },
                }],
            })
        };
        let mut jobs: Vec<Value> = controllers.iter().map(|pod| job(pod, 8080)).collect();
        jobs.extend(gateways.iter().map(|pod| job(pod, GATEWAY_PORT)));
        jobs.push(json!({
            "job_name": "itself",
            "static_configs": [{ "targets": [format!("127.0.0.1:{port}")] }],
        }));
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [repository().join(RULES).canonicalize()?],
            "scrape_configs": jobs,
        });
        let file = directory.join("prometheus.yaml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string())?;
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { process, url: format!("http://127.0.0.1:{port}"), directory })
    }

    /// The series that an expression gives now.
    async fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let args = ["query", "instant", "--format=json", &self.url, expression];
        let answer = run(Command::new("promtool").args(args)).await?;
        serde_json::from_str(&answer).with_context(|| answer.clone())
    }

    /// The value of an expression that gives one series.
    async fn value(&self, expression: &str) -> anyhow::Result<String> {
        let series = self.query(expression).await?;
        let value = series.first().and_then(|series| series["value"][1].as_str());
        Ok(value.with_context(|| format!("{expression} gives nothing"))?.to_owned())
    }
}

/// Where the API server is, and how it is asked.
struct ByApi {
    address: String,
    tls: Value,
}

/// Puts what the admin's kubeconfig holds where Prometheus can read it.
async fn by_api(directory: &Path) -> anyhow::Result<ByApi> {
    let view = Lab::kubectl(&["config", "view", "--raw", "--minify", "--output", "json"]).await?;
    let view: Value = serde_json::from_str(&view)?;
    let (cluster, user) = (&view["clusters"][0]["cluster"], &view["users"][0]["user"]);
    let mut tls = json!({});
    for (field, name) in [
        ("ca_file", &cluster["certificate-authority-data"]),
        ("cert_file", &user["client-certificate-data"]),
        ("key_file", &user["client-key-data"]),
    ] {
        let ByteString(content) = serde_json::from_value(name.clone())?;
        let file = directory.join(field);
        std::fs::write(&file, content)?;
        tls[field] = json!(file);
    }
    let server = cluster["server"].as_str().context("no server")?;
    let address = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
    Ok(ByApi { address, tls })
}

/// The queries of the dashboard's panels, as Grafana would ask them.
fn panels() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repository().join("charts/lb-svc/files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let title = format!("{} {}", panel["title"].as_str().unwrap(), target["refId"].as_str().unwrap());
            let query =
                target["expr"].as_str().unwrap().replace("$service", ".*").replace("$__rate_interval", "10s");
            queries.push((title, query));
        }
    }
    assert!(queries.len() > 15, "{queries:?}");
    queries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_panel_and_alert_is_answered_by_a_prometheus() {
    scene("monitoring", async |scene| {
        let mut object = web("web");
        object["metadata"]["annotations"]["lb-svc.kubeovn.io/replicas"] = json!("2");
        scene.create::<Deployment>(backends("web", 2, &["tcp/80"])).await;
        scene.create::<Service>(object).await;
        let ip = scene.address("web").await;
        serves(ip).await;
        let gateways = until("two gateways", SLOW, async || {
            let pods = scene.gateways("web").await;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            if ready == 2 { Ok(pods) } else { Err(ready) }
        })
        .await;
        let prometheus = Prometheus::start(&controller_pods(&scene).await, &gateways).await.unwrap();
        until("the gateways are scraped", SLOW, async || {
            let seen = prometheus.query("lb_svc_gateway_peers == 1").await?;
            anyhow::ensure!(seen.len() == 2, "{seen:?}");
            anyhow::Ok(())
        })
        .await;

        for (title, query) in panels() {
            until(&format!("panel {title}: {query}"), QUICK, async || {
                let series = prometheus.query(&query).await.map_err(|error| format!("{error:#}"))?;
                expect(!series.is_empty(), "no data")
            })
            .await;
        }
        // The first column of the table says which address is where.
        let active = until("a pod is active", SLOW, async || {
            for pod in scene.gateways("web").await {
                let election = scene.status(&pod).await?.election;
                if election.is_some_and(|election| election.role == Role::Active) {
                    return Ok(pod);
                }
            }
            bail!("none is")
        })
        .await;
        let (_, query) =
            panels().into_iter().find(|(title, _)| title.starts_with("Which address is where")).unwrap();
        let holder = json!({
            "service": format!("{}/web", scene.namespace),
            "address": ip.to_string(),
            "namespace": scene.namespace,
            "pod": active.name_any(),
            "node": active.spec.as_ref().and_then(|spec| spec.node_name.as_deref()),
        });
        until("the table has the address once, and where it is", QUICK, async || {
            let lines = prometheus.query(&query).await.map_err(|error| format!("{error:#}"))?;
            expect(lines.len() == 1 && lines[0]["metric"] == holder, lines)
        })
        .await;

        let rules = std::fs::read_to_string(repository().join(RULES)).unwrap();
        let alerts = rules.lines().filter(|line| line.trim().starts_with("- alert: ")).count();
        until("each alert is evaluated", QUICK, async || {
            let evaluated = prometheus.value("sum(prometheus_rule_group_rules)").await?;
            anyhow::ensure!(evaluated == alerts.to_string(), "{evaluated} of {alerts}");
            let times = prometheus.value("min(prometheus_rule_evaluations_total)").await?;
            anyhow::ensure!(times != "0", "not yet");
            anyhow::Ok(())
        })
        .await;
        let failed = prometheus.value("sum(prometheus_rule_evaluation_failures_total)").await.unwrap();
        assert_eq!(failed, "0", "evaluations failed");
        let firing = prometheus.query(r#"ALERTS{alertstate="firing"}"#).await.unwrap();
        assert!(firing.is_empty(), "{firing:?}");
    })
    .await;
}
