//! Runs for Services at node addresses, against an API server of the test's own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::model::{Node, Service, ServiceRef};
use lb_svc_core::testing::nodes as fixtures;
use lb_svc_crds::IP;
use serde_json::{Value, json};

use super::*;
use crate::api_server::read;
use crate::api_server::watch::Watched;

/// What the API server holds and has been asked.
#[derive(Default)]
struct Server {
    claims: BTreeMap<String, Value>,
    version: u64,
    asked: Vec<(String, Value)>,
    /// What the next requests are answered instead, if anything.
    failures: Vec<Option<u16>>,
    /// The Service as it is kept.
    service: Value,
}

impl Server {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.asked.push((format!("{method} {path}"), body.clone()));
        if let Some(code) = self.failures.pop().flatten() {
            return (code, json!({ "status": "Failure", "code": code, "message": "as the test has it" }));
        }
        self.version += 1;
        let missing = (404, json!({ "status": "Failure", "code": 404, "reason": "NotFound" }));
        let conflict = (409, json!({ "status": "Failure", "code": 409, "reason": "Conflict" }));
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        match (method, path) {
            ("POST", "/apis/kubeovn.io/v1/ips") => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if self.claims.contains_key(&name) {
                    return conflict;
                }
                let mut made = body.clone();
                made["metadata"]["uid"] = json!(format!("uid-{}", self.version));
                made["metadata"]["resourceVersion"] = json!(self.version.to_string());
                self.claims.insert(name, made.clone());
                (201, made)
            }
            ("GET", path) if path.contains("/ips/") => {
                self.claims.get(&name).map_or(missing, |claim| (200, claim.clone()))
            }
            ("PATCH", path) if path.contains("/ips/") => {
                let Some(claim) = self.claims.get_mut(&name) else { return missing };
                if claim["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return conflict;
                }
                claim["spec"]["nodePort"]["nodes"] = body["spec"]["nodePort"]["nodes"].clone();
                claim["metadata"]["resourceVersion"] = json!(self.version.to_string());
                (200, claim.clone())
            }
            ("DELETE", path) if path.contains("/ips/") => {
                let Some(claim) = self.claims.get(&name) else { return missing };
                if claim["metadata"]["resourceVersion"] != body["preconditions"]["resourceVersion"] {
                    return conflict;
                }
                self.claims.remove(&name);
                (200, json!({ "status": "Success" }))
            }
            ("PATCH", path) if path.ends_with("/status") => {
                let seen = &body["metadata"]["resourceVersion"];
                if !seen.is_null() && *seen != self.service["metadata"]["resourceVersion"] {
                    return conflict;
                }
                self.service["status"] = body["status"].clone();
                self.service["metadata"]["resourceVersion"] = json!(self.version.to_string());
                (200, self.service.clone())
            }
            ("POST", path) if path.ends_with("/events") => (201, body.clone()),
            other => panic!("{other:?}"),
        }
    }
}

struct Scene {
    server: Arc<Mutex<Server>>,
    reconciler: Reconciler,
    name: ServiceRef,
}

impl Scene {
    /// Three nodes, and a Service that asks for their addresses on port 80.
    fn new() -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let of_client = Arc::clone(&server);
        let answer = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&of_client);
            async move {
                let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let (code, body) = lock(&server).answer(&method, &path, &body);
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        let api_server = ApiServer::new(Client::new(answer, "default"), "controller-1".into());
        let mut index = Index::default();
        for (name, node) in fixtures::nodes(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]) {
            index.set_node(&name, Some(node));
        }
        index.publishers_listed(&[].into());
        let configuration =
            Configuration { node_mode: fixtures::permissions(), ..Configuration::new("gateway:1", false) };
        let reconciler = Reconciler::new(
            Arc::new(Mutex::new(index)),
            configuration,
            api_server,
            GatewayClient::default(),
            Arc::default(),
            queue::queue().0,
            Keys::new("lb-svc-system".into(), SigningKeys::of(&crate::signing::Seed::random().unwrap())),
        );
        let scene = Self { server, reconciler, name: fixtures::service().id.service };
        scene.edit(&json!([{ "port": 80, "protocol": "TCP" }]));
        scene.see();
        scene
    }

    /// The Service gets these ports, which the controller has still to see.
    fn edit(&self, ports: &Value) {
        let mut server = lock(&self.server);
        server.version += 1;
        let status = server.service["status"].clone();
        server.service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": self.name.namespace, "name": self.name.name, "uid": "uid-1",
                "resourceVersion": server.version.to_string(),
                "annotations": { "lb-svc.kubeovn.io/mode": "node" },
            },
            "spec": { "type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ports": ports },
            "status": status,
        });
    }

    /// The watch shows the Service.
    fn see(&self) {
        let object = serde_json::from_value(lock(&self.server).service.clone()).unwrap();
        let mut index = lock(&self.reconciler.index);
        index.set_service(self.name.clone(), read::service(&object));
    }

    /// The watch shows the claims.
    fn see_claims(&self) {
        let claims: Vec<IP> = lock(&self.server)
            .claims
            .values()
            .map(|claim| serde_json::from_value(claim.clone()).unwrap())
            .collect();
        let mut index = lock(&self.reconciler.index);
        let names =
            claims.iter().map(|claim| (String::new(), claim.metadata.name.clone().unwrap())).collect();
        for claim in claims {
            IP::set(&mut index, claim);
        }
        IP::listed(&mut index, &names);
    }

    fn node(&self, name: &str, change: impl FnOnce(&mut Node)) {
        let mut node = self.nodes()[name].clone();
        change(&mut node);
        lock(&self.reconciler.index).set_node(name, Some(node));
    }

    fn nodes(&self) -> BTreeMap<String, Node> {
        let gateway = lb_svc_core::gateway::assignment::gateway_of(&self.name);
        (*lock(&self.reconciler.index).observe(&gateway, Instant::now()).nodes.nodes).clone()
    }

    async fn run(&self) -> Option<Duration> {
        self.reconciler.run(Key::Gateway(gateway_of(&self.name)), Cause::Change).await
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut lock(&self.server).asked)
    }

    /// The addresses in the Service's status.
    fn shown(&self) -> Vec<String> {
        addresses(&lock(&self.server).service["status"])
    }
}

fn addresses(status: &Value) -> Vec<String> {
    let ingress = status["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect()
}

fn lines(asked: &[(String, Value)]) -> Vec<&str> {
    let writes = asked.iter().map(|(line, _)| line.as_str());
    writes.filter(|line| !line.ends_with("/events")).collect()
}

const CLAIM: &str = "POST /apis/kubeovn.io/v1/ips";
const STATUS: &str = "PATCH /api/v1/namespaces/default/services/test-service/status";

#[tokio::test]
async fn port_is_claimed_and_then_the_very_service_that_was_seen_is_published() {
    let scene = Scene::new();
    let version = lock(&scene.server).service["metadata"]["resourceVersion"].clone();
    scene.run().await;
    let asked = scene.asked();
    assert_eq!(lines(&asked), [CLAIM, STATUS], "no pod, no Deployment, no ConfigMap");
    let claim = &asked[0].1;
    assert_eq!(claim["metadata"]["name"], "node.all.tcp-80");
    assert_eq!(claim["spec"]["serviceUid"], "uid-1");
    let of = json!({ "pool": "all", "protocol": "TCP", "port": 80, "nodes": ["n1", "n2", "n3"] });
    assert_eq!(claim["spec"]["nodePort"], of);
    let (_, status) = asked.last().unwrap();
    assert_eq!(status["metadata"]["resourceVersion"], version);
    let ingress = |n| json!({ "ip": format!("10.0.0.{n}"), "ipMode": "VIP" });
    assert_eq!(status["status"]["loadBalancer"]["ingress"], json!([ingress(1), ingress(2), ingress(3)]));
    scene.run().await;
    assert_eq!(lines(&scene.asked()), [] as [&str; 0], "once");

    scene.node("n2", |node| node.ready = false);
    scene.run().await;
    assert_eq!(lines(&scene.asked()), [STATUS]);
    assert_eq!(scene.shown(), ["10.0.0.1", "10.0.0.3"]);
}

#[tokio::test]
async fn port_of_another_is_told_by_the_claim_that_the_api_server_has() {
    let scene = Scene::new();
    let other = fixtures::claim("web", "all", 80, &["n1"]);
    let request = lb_svc_core::node_mode::claim::PortRequest {
        owner: other.owner,
        pool: other.pool,
        port: other.port,
        nodes: other.nodes,
    };
    // The watch is behind.
    let claim = lb_svc_core::node_mode::claim::manifest(&request);
    lock(&scene.server).answer("POST", "/apis/kubeovn.io/v1/ips", &claim);
    scene.asked();
    scene.run().await;
    let asked = scene.asked();
    assert_eq!(lines(&asked), [CLAIM, "GET /apis/kubeovn.io/v1/ips/node.all.tcp-80", STATUS]);
    let (_, status) = asked.last().unwrap();
    assert!(addresses(&status["status"]).is_empty());
    let said = status["status"].to_string();
    assert!(said.contains("PortInUse") && said.contains("Service default/web"), "{said}");

    // Or an object that is no claim has the name.
    let scene = Scene::new();
    let odd = json!({ "metadata": { "name": "node.all.tcp-80" }, "spec": { "podName": "someone" } });
    lock(&scene.server).answer("POST", "/apis/kubeovn.io/v1/ips", &odd);
    scene.asked();
    scene.run().await;
    let said = scene.asked().last().unwrap().1.to_string();
    assert!(said.contains("PortInUse") && said.contains("which is no claim"), "{said}");
}

#[tokio::test]
async fn service_that_was_edited_meanwhile_is_judged_anew_before_it_is_published() {
    let scene = Scene::new();
    // Port 22 is added between the look and the write.
    scene.edit(&json!([{ "port": 80, "protocol": "TCP" }, { "port": 22, "protocol": "TCP" }]));
    let again = scene.run().await;
    assert_eq!((lines(&scene.asked()), again), (vec![CLAIM, STATUS], Some(backoff::FAILED.0)));
    assert!(scene.shown().is_empty());
    scene.see();
    scene.run().await;
    let asked = scene.asked();
    assert_eq!(lines(&asked), [STATUS, "DELETE /apis/kubeovn.io/v1/ips/node.all.tcp-80"]);
    assert!(asked.iter().any(|(_, body)| body.to_string().contains("PortReserved")));
    assert!(scene.shown().is_empty());
}

#[tokio::test]
async fn withdrawal_is_written_whatever_others_write() {
    let scene = Scene::new();
    scene.run().await;
    assert_eq!(scene.shown().len(), 3);
    lock(&scene.server).service["metadata"]["resourceVersion"] = json!("999");
    let mut service: Service = lock(&scene.reconciler.index).service(&scene.name).cloned().unwrap();
    service.annotations.clear();
    lock(&scene.reconciler.index).set_service(scene.name.clone(), Some(service));
    scene.asked();
    scene.run().await;
    assert_eq!(lines(&scene.asked()), [STATUS, "DELETE /apis/kubeovn.io/v1/ips/node.all.tcp-80"]);
    assert!(scene.shown().is_empty() && lock(&scene.server).claims.is_empty());
}

/// A generator of numbers that says the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Each address that is written is that of a node which was ready, as last seen, and
/// the claims of the Service's ports list that node.
fn check_written(scene: &Scene, nodes: &BTreeMap<String, Node>) {
    for (line, body) in scene.asked() {
        if line != STATUS {
            continue;
        }
        let server = lock(&scene.server);
        for text in addresses(&body["status"]) {
            let address: IpAddr = text.parse().unwrap();
            let has = |(_, node): &(&String, &Node)| node.ready && node.internal.contains(&address);
            let (name, _) = nodes.iter().find(has).unwrap_or_else(|| panic!("{address} is no ready node's"));
            let lists = |claim: &Value| {
                let nodes = claim["spec"]["nodePort"]["nodes"].as_array().unwrap();
                claim["spec"]["serviceUid"] == "uid-1" && nodes.iter().any(|node| node == name)
            };
            assert!(server.claims.values().any(lists), "{name} is not claimed");
        }
    }
}

#[tokio::test]
async fn no_wrong_address_is_written_whatever_fails() {
    for seed in 0..150 {
        let (scene, mut dice) = (Scene::new(), Dice(seed));
        for _ in 0..12 {
            let name = format!("n{}", 1 + dice.below(3));
            match dice.below(7) {
                0 => scene.node(&name, |node| node.ready = !node.ready),
                1 => {
                    let address = format!("10.0.{}.{}", dice.below(2), 1 + dice.below(9));
                    scene.node(&name, |node| node.internal = vec![address.parse().unwrap()]);
                }
                2 => scene.node(&name, |node| node.internal = vec!["127.0.0.1".parse().unwrap()]),
                3 => {
                    let port = [80, 443, 22][usize::try_from(dice.below(3)).unwrap()];
                    scene.edit(&json!([{ "port": port, "protocol": "TCP" }]));
                }
                4 => scene.see(),
                5 => scene.see_claims(),
                _ => lock(&scene.server).claims.clear(),
            }
            let codes = [None, None, Some(500), Some(409), Some(404), Some(403)];
            let failures = (0..dice.below(4)).map(|_| codes[usize::try_from(dice.below(6)).unwrap()]);
            lock(&scene.server).failures = failures.collect();
            // A claim that others deleted is made anew only once that is seen.
            scene.see_claims();
            let nodes = scene.nodes();
            scene.run().now_or_never();
            check_written(&scene, &nodes);
        }
        // Once nothing fails any more all is as it should be.
        lock(&scene.server).failures.clear();
        scene.edit(&json!([{ "port": 80, "protocol": "TCP" }]));
        for (n, name) in ["n1", "n2", "n3"].iter().enumerate() {
            let address = format!("10.0.0.{}", n + 1).parse().unwrap();
            scene.node(name, |node| (node.ready, node.internal) = (true, vec![address]));
        }
        for _ in 0..4 {
            scene.see();
            scene.see_claims();
            scene.run().await;
        }
        assert_eq!(scene.shown(), ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "seed {seed}");
    }
}
