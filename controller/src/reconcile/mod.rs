//! Observe, plan, act: once for a key, whenever the queue says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api_server::client::ApiServer;
use crate::election_key::Master;
use crate::gateway_client::GatewayClient;
use crate::index::{Index, Key};
use crate::panics::contain_future;
use crate::signing::SigningKeys;
use crate::telemetry::metrics::Metrics;
use lb_svc_core::gateway::pod_settings::Configuration;
use memory::Memory;
use queue::{Cause, Queue};
use start_failures::LookUps;

mod backend;
mod backoff;
mod claim;
mod executor;
mod gateway;
mod master_key;
mod memory;
#[cfg(test)]
mod node_mode_tests;
pub mod queue;
mod reports;
mod start_failures;
mod subnet;

/// Everything a run needs.
pub struct Reconciler {
    index: Arc<Mutex<Index>>,
    configuration: Arc<Configuration>,
    api_server: ApiServer,
    gateway_client: GatewayClient,
    metrics: Arc<Metrics>,
    queue: Queue,
    memory: Arc<Mutex<HashMap<Key, Memory>>>,
    look_ups: LookUps,
    keys: Keys,
}

/// The controller's keys.
pub struct Keys {
    /// The controller's own namespace.
    namespace: String,
    /// What keys of elections are derived from, once one is needed.
    master: Mutex<Option<Master>>,
    /// What configurations are signed with.
    signing: SigningKeys,
}

impl Keys {
    /// The keys in `namespace`, the controller's own.
    pub fn new(namespace: String, signing: SigningKeys) -> Self {
        Self { namespace, master: Mutex::default(), signing }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reconciler {
    /// A reconciler over `index`, which lets others have their turn by `queue`.
    pub fn new(
        index: Arc<Mutex<Index>>,
        configuration: Configuration,
        api_server: ApiServer,
        gateway_client: GatewayClient,
        metrics: Arc<Metrics>,
        queue: Queue,
        keys: Keys,
    ) -> Self {
        let (memory, configuration) = (Arc::default(), Arc::new(configuration));
        let look_ups = LookUps::new(api_server.clone(), queue.clone(), Arc::clone(&memory));
        Self { index, configuration, api_server, gateway_client, metrics, queue, memory, look_ups, keys }
    }

    /// Brings `key` nearer to what is wanted; returns after which time to look
    /// again.
    pub async fn run(&self, key: Key, cause: Cause) -> Option<Duration> {
        if cause == Cause::Change && matches!(key, Key::Gateway(_)) {
            self.remember(&key, |memory| memory.wake(Instant::now()));
        }
        let work = async {
            match &key {
                Key::Gateway(gateway) => self.gateway(&key, gateway).await,
                Key::Subnet(name) => self.subnet(name).await,
                Key::Backend(name) => self.backend(&key, name).await,
            }
        };
        // A mistake about one key must not end the work on all others.
        let outcome = contain_future(work).await.unwrap_or_else(|panic| Err(panic.into()));
        let mut memory = lock(&self.memory);
        match outcome {
            Ok(again) => {
                self.metrics.run(None);
                if again.is_none() {
                    memory.remove(&key);
                } else if let Some(memory) = memory.get_mut(&key) {
                    memory.succeed();
                }
                again
            }
            Err(error) => {
                self.metrics.run(Some(error.category()));
                let memory = memory.entry(key.clone()).or_default();
                let wait = memory.pause_after_failure(Instant::now());
                // A conflict means that the cache is behind; what it lacks is
                // on its way.
                if error.is_conflict() {
                    tracing::debug!(%key, %error, retry_in = ?wait, "reconcile failed");
                } else {
                    tracing::warn!(%key, %error, retry_in = ?wait, "reconcile failed");
                }
                Some(wait)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::FuturesUnordered;
    use futures::{FutureExt, StreamExt};
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use kube::Client;
    use kube::client::Body;
    use lb_svc_core::action::Action;
    use lb_svc_core::backend::readiness_gate::Verdict;
    use lb_svc_core::backend::readiness_gate::Wait;
    use lb_svc_core::gateway::assignment::gateway_of;
    use lb_svc_core::model::{Attachment, Backend, GatewayLocation, OwnedObject, Pod, PodId};
    use lb_svc_core::model::{ObjectKind, ServiceRef};
    use lb_svc_core::service::plan::plan;
    use lb_svc_crds::gateway::GatewayStatus;
    use lb_svc_crds::{SubnetSpec, names};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tower_test::mock;

    use super::backoff::FAILED;
    use super::*;
    use crate::api_server::read;
    use crate::api_server::write::Written;
    use crate::index::FOREIGN_FOR;

    type Handle = mock::Handle<Request<Body>, Response<Body>>;

    /// A pod that waits for its readiness gate, selected by a Service that is
    /// served directly.
    struct Scene {
        reconciler: Reconciler,
        handle: Handle,
        service: ServiceRef,
        key: Key,
    }

    impl Scene {
        fn new() -> Self {
            let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
            let api_server = ApiServer::new(Client::new(service, "default"), "controller-1".into());
            let mut index = Index::default();
            let mut web = lb_svc_core::testing::service();
            web.annotations.insert(names::DIRECT_ACCESS_ANNOTATION.into(), "true".into());
            web.selector = [("app".into(), "web".into())].into();
            let (service, pod) = (web.id.service.clone(), ("default".to_owned(), "web-0".to_owned()));
            let backend = Backend {
                uid: "p-1".into(),
                id: PodId::of("p-1"),
                labels: web.selector.clone(),
                ready_except_gate: true,
                gate_satisfied_at: None,
                gate_reported: false,
            };
            index.set_service(service.clone(), Some(web));
            index.set_backend(pod.clone(), Some(backend));
            let reconciler = Reconciler::new(
                Arc::new(Mutex::new(index)),
                Configuration::new("gateway:1", false),
                api_server,
                GatewayClient::default(),
                Arc::default(),
                queue::queue().0,
                Keys::new("lb-svc-system".into(), SigningKeys::of(&crate::signing::Seed::random().unwrap())),
            );
            Self { reconciler, handle, service, key: Key::Backend(pod) }
        }

        fn say(&self, verdict: Verdict) {
            lock(&self.reconciler.index).set_verdicts(&self.service, [(PodId::of("p-1"), verdict)].into());
        }

        /// A run in which nothing is written.
        async fn run(&self) -> Option<Duration> {
            self.reconciler.run(self.key.clone(), Cause::Change).await
        }

        /// A run that writes the pod's condition: that, and when to look again.
        async fn write(&mut self) -> (Value, Option<Duration>) {
            let handle = &mut self.handle;
            let answer = async {
                let (request, send) = handle.next_request().await.expect("a write");
                let line = format!("{} {}", request.method(), request.uri().path());
                assert_eq!(line, "PATCH /api/v1/namespaces/default/pods/web-0/status");
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let mut pod: Value = serde_json::from_slice(&bytes).unwrap();
                let condition = pod["status"]["conditions"][0].clone();
                let ready = json!({ "type": "ContainersReady", "status": "True" });
                pod["status"]["conditions"].as_array_mut().unwrap().push(ready);
                pod["metadata"] = json!({
                    "namespace": "default", "name": "web-0", "uid": "p-1", "resourceVersion": "2",
                    "labels": { "app": "web" },
                });
                pod["spec"] = json!({ "readinessGates": [{ "conditionType": names::READINESS_GATE }] });
                send.send_response(Response::new(Body::from(pod.to_string().into_bytes())));
                condition
            };
            let (again, condition) =
                tokio::join!(self.reconciler.run(self.key.clone(), Cause::Change), answer);
            (condition, again)
        }
    }

    #[tokio::test]
    async fn pod_gate_is_satisfied_once_gateways_programmed_it() {
        let mut scene = Scene::new();
        assert_eq!(scene.run().await, Some(Duration::from_secs(1)));
        scene.say(Verdict::Programmed);
        let (condition, again) = scene.write().await;
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Served")));
        assert_eq!(again, None);
        // What was written is known, before the watch shows it.
        assert_eq!(scene.run().await, None);
        assert_eq!(lock(&scene.reconciler.index).waiting_backends(), 0);
    }

    #[tokio::test]
    async fn pod_gate_obstacle_is_written_once() {
        let mut scene = Scene::new();
        scene.say(Verdict::Unhealthy("it fails".to_owned()));
        let while_it_may_pass = scene.run().await.unwrap();
        assert!(while_it_may_pass > Duration::from_secs(9), "{while_it_may_pass:?}");
        let long_ago = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        lock(&scene.reconciler.memory).get_mut(&scene.key).unwrap().wait = Some(Wait::new(long_ago));
        let (condition, again) = scene.write().await;
        assert_eq!((&condition["status"], &condition["message"]), (&json!("False"), &json!("it fails")));
        assert_eq!(again, Some(Duration::from_secs(10)));
        assert_eq!(scene.run().await, Some(Duration::from_secs(10)));
        scene.say(Verdict::Programmed);
        assert_eq!(scene.write().await.0["status"], "True");
    }

    #[tokio::test]
    async fn r13_no_run_waits_for_why_pods_hang() {
        let Scene { mut reconciler, mut handle, service, .. } = Scene::new();
        let (queue, mut requests) = queue::queue();
        reconciler.look_ups =
            LookUps::new(reconciler.api_server.clone(), queue, Arc::clone(&reconciler.memory));
        let key = Key::Gateway(gateway_of(&service));
        let hangs = |n: usize| Pod {
            uid: format!("uid-{n}"),
            of_deployment: true,
            node: Some("n1".into()),
            unready_since: Some(jiff::Timestamp::UNIX_EPOCH),
            ..Pod::default()
        };
        let pods: Vec<Pod> = (0..6).map(hangs).collect();
        let asked = async |handle: &mut Handle| {
            let (request, send) = handle.next_request().await.unwrap();
            assert_eq!(request.uri().path(), "/api/v1/namespaces/default/events");
            send
        };
        for _ in 0..3 {
            reconciler.look_ups.begin(&key, "default", &pods);
        }
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(asked(&mut handle).await);
        }
        tokio::task::yield_now().await;
        assert!(handle.next_request().now_or_never().is_none(), "a few at a time");

        let answer = |items: Value| {
            let list = json!({ "metadata": {}, "items": items });
            Response::new(Body::from(list.to_string().into_bytes()))
        };
        let event = json!({ "metadata": {}, "involvedObject": {}, "reason": "FailedMount", "message": "x".repeat(1 << 20) });
        open.remove(0).send_response(answer(json!([event])));
        open.push(asked(&mut handle).await);
        open.remove(0).send_response(answer(json!([])));
        open.push(asked(&mut handle).await);
        assert_eq!(requests.try_recv().unwrap().key, key);
        assert!(requests.try_recv().is_err(), "where there is news");
        reconciler.look_ups.begin(&key, "default", &pods);
        open.into_iter().for_each(|open| open.send_response(answer(json!([]))));
        tokio::time::sleep(Duration::from_millis(50)).await;
        reconciler.look_ups.begin(&key, "default", &pods);
        assert!(handle.next_request().now_or_never().is_none(), "not again within a minute");
        let memory = lock(&reconciler.memory);
        let found: Vec<_> = memory[&key].start_failures.values().filter_map(|it| it.found.clone()).collect();
        let [(reason, message)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((reason.as_str(), message.len() < 2048), ("FailedMount", true));
    }

    /// There is all that the Service's gateway needs, and maybe its claim.
    fn request_address(reconciler: &Reconciler, service: &ServiceRef, claimed: bool) {
        let mut index = lock(&reconciler.index);
        let spec = SubnetSpec {
            provider: "lan.kube-system".into(),
            cidr_block: "172.18.0.0/16".into(),
            ..SubnetSpec::default()
        };
        index.set_subnet("lan", Some(read::subnet(&lb_svc_crds::Subnet::new("lan", spec))));
        index.set_attachment(("kube-system".into(), "lan".into()), Some(Attachment::default()));
        let mut web = index.observe(&gateway_of(service), Instant::now()).service.unwrap();
        web.load_balancer_ip = "172.18.0.11".into();
        let claim = json!({
            "metadata": { "name": "lan.kube-system.172.18.0.11", "uid": "c-1", "resourceVersion": "5" },
            "spec": {
                "subnet": "lan", "provider": "lan.kube-system", "ipAddress": "172.18.0.11",
                "namespace": service.namespace, "serviceName": service.name,
                "serviceUid": web.id.uid, "requested": "static",
                "macAddress": "02:00:00:00:00:01", "probed": true,
            },
        });
        if claimed {
            index.set_claim(read::claim(&serde_json::from_value(claim).unwrap()).unwrap());
        }
        index.set_service(service.clone(), Some(web));
    }

    /// Answers all requests, by method and path, and records these and their bodies.
    async fn answer_all(
        handle: &mut Handle,
        asked: &mut Vec<(String, String)>,
        by: impl Fn(&str) -> (u16, Value),
    ) {
        while let Some((request, send)) = handle.next_request().await {
            let line = format!("{} {}", request.method(), request.uri().path());
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let (code, body) = by(&line);
            asked.push((line, String::from_utf8(bytes.to_vec()).unwrap()));
            let body = Body::from(body.to_string().into_bytes());
            send.send_response(Response::builder().status(code).body(body).unwrap());
        }
    }

    #[tokio::test]
    async fn r22_write_that_fails_for_long_is_reported_on_the_service() {
        for (claimed, first, what) in [
            (true, "POST /api/v1/namespaces/default/configmaps", "the gateway's ConfigMap"),
            (false, "PATCH /apis/kubeovn.io/v1/subnets/lan", "the claim on an address"),
        ] {
            let Scene { reconciler, mut handle, service, .. } = Scene::new();
            request_address(&reconciler, &service, claimed);
            let key = Key::Gateway(gateway_of(&service));
            let mut asked = Vec::new();
            let failure = json!({ "status": "Failure", "code": 500, "message": "failed calling webhook" });
            let answers = answer_all(&mut handle, &mut asked, |_| (500, failure.clone()));
            let runs = async {
                reconciler.run(key.clone(), Cause::Change).await;
                let long_ago = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
                reconciler.remember(&key, |memory| memory.failing_since = Some(long_ago));
                reconciler.run(key.clone(), Cause::Change).await
            };
            let again = tokio::select! {
                again = runs => again,
                () = answers => None,
            };
            assert!(again.is_some());
            let lines: Vec<&str> = asked.iter().map(|(line, _)| line.as_str()).collect();
            let status = "PATCH /api/v1/namespaces/default/services/test-service/status";
            assert_eq!((&lines[..2], lines.last()), (&[first; 2][..], Some(&status)));
            let events =
                asked.iter().filter(|(line, said)| line.ends_with("/events") && said.contains("WriteFailed"));
            assert_eq!(events.count(), 1);
            let (_, said) = asked.last().unwrap();
            for word in ["WriteFailed", what, "failed calling webhook"] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    }

    #[tokio::test]
    async fn r39_finalizer_that_is_being_taken_back_is_not_relied_upon() {
        let Scene { reconciler, mut handle, .. } = Scene::new();
        let spec = SubnetSpec {
            provider: "lan.kube-system".into(),
            cidr_block: "172.18.0.0/16".into(),
            ..SubnetSpec::default()
        };
        let mut subnet = read::subnet(&lb_svc_crds::Subnet::new("lan", spec));
        subnet.held = true;
        lock(&reconciler.index).set_subnet("lan", Some(subnet));
        let held = || lock(&reconciler.index).subnet("lan").unwrap().held;
        // The finalizer first, then the status.
        for (codes, held_after) in [(&[500_u16][..], true), (&[200, 500], false), (&[200, 200], false)] {
            lock(&reconciler.index).set_held("lan", true);
            let answers = async {
                for &code in codes {
                    let (request, send) = handle.next_request().await.unwrap();
                    assert!(request.uri().path().starts_with("/apis/kubeovn.io/v1/subnets/lan"));
                    assert!(!held(), "before it is written");
                    let body = json!({
                        "apiVersion": "kubeovn.io/v1", "kind": "Subnet", "metadata": { "name": "lan" },
                        "spec": { "provider": "lan.kube-system", "cidrBlock": "172.18.0.0/16" }, "code": code,
                    });
                    let body = Body::from(body.to_string().into_bytes());
                    send.send_response(Response::builder().status(code).body(body).unwrap());
                }
            };
            tokio::join!(reconciler.run(Key::Subnet("lan".into()), Cause::Change), answers);
            assert_eq!(held(), held_after);
        }
    }

    #[tokio::test]
    async fn r40_address_that_an_object_other_than_a_claim_has_is_refused_at_once() {
        let Scene { reconciler, mut handle, service, .. } = Scene::new();
        request_address(&reconciler, &service, false);
        let key = Key::Gateway(gateway_of(&service));
        let mut asked = Vec::new();
        let answers = answer_all(&mut handle, &mut asked, |line| match line.split_once(' ').unwrap() {
            ("POST", path) if path.ends_with("/ips") => (409, json!({ "code": 409 })),
            ("GET", _) => {
                let name = "lan.kube-system.172.18.0.11";
                let meta = json!({ "name": name, "uid": "odd", "resourceVersion": "5" });
                (200, json!({ "metadata": meta, "spec": { "podName": "someone" } }))
            }
            _ => (200, json!({ "metadata": { "name": "x" } })),
        });
        tokio::select! {
            _ = reconciler.run(key, Cause::Change) => {}
            () = answers => {}
        }
        let posts = asked.iter().filter(|(line, _)| line == "POST /apis/kubeovn.io/v1/ips").count();
        assert_eq!(posts, 1, "{asked:?}");
        let status = asked.iter().find(|(line, _)| line.ends_with("/services/test-service/status"));
        let (_, status) = status.expect("a condition");
        assert!(status.contains("AddressInUse") && status.contains("is no claim"), "{status}");
    }

    /// How a stand-in of a gateway answers a push.
    #[derive(Clone, Copy, PartialEq)]
    enum Gateway {
        CarriesOut,
        /// Of an earlier release.
        KnowsNone,
        Refuses,
        NeverAnswers,
    }

    /// Serves `status`, and answers pushes, which set it, so.
    async fn gateway(listener: TcpListener, how: Gateway, status: Arc<Mutex<GatewayStatus>>) {
        let serve = async |mut stream: TcpStream| {
            let mut request = Vec::new();
            let (head, length) = loop {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                let Some(head) = request.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
                let text = std::str::from_utf8(&request[..head]).unwrap();
                let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
                break (head + 4, length.map_or(0, |length| length.parse().unwrap()));
            };
            while request.len() < head + length {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            let code = match (request.starts_with(b"PUT /config "), how) {
                (true, Gateway::CarriesOut) => {
                    let digest = Some(names::digest(&request[head..]));
                    let mut status = lock(&status);
                    (status.seen, status.digest) = (digest.clone(), digest);
                    200
                }
                (true, Gateway::KnowsNone) => 405,
                (true, Gateway::Refuses) => 403,
                (true, Gateway::NeverAnswers) => return std::future::pending().await,
                (false, _) => 200,
            };
            let body = serde_json::to_string(&*lock(&status)).unwrap();
            let answer = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => open.push(serve(accepted.unwrap().0)),
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    }

    /// A gateway that serves, and a Service that gets another port.
    async fn push_a_port(how: Gateway) -> (Vec<(String, String)>, Option<Duration>) {
        let Scene { mut reconciler, mut handle, service, .. } = Scene::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        reconciler.gateway_client = GatewayClient::at_port(listener.local_addr().unwrap().port());
        request_address(&reconciler, &service, true);
        let location =
            GatewayLocation { gateway: gateway_of(&service), namespace: service.namespace.clone() };
        let status = Arc::new(Mutex::new(GatewayStatus {
            addresses: vec!["172.18.0.11".parse().unwrap()],
            ..GatewayStatus::default()
        }));
        {
            let mut index = lock(&reconciler.index);
            index.trust(&reconciler.keys.signing.trusted());
            // Carried out, as far as it can be without an API server.
            let mut web = index.observe(&location.gateway, Instant::now()).service.unwrap();
            web.annotations.remove(names::DIRECT_ACCESS_ANNOTATION);
            index.set_service(service.clone(), Some(web.clone()));
            let first = plan(&index.observe(&location.gateway, Instant::now()));
            let Some(Action::WriteConfig(content)) =
                first.steps().find(|action| matches!(action, Action::WriteConfig(_)))
            else {
                panic!("no ConfigMap: {first:?}")
            };
            let digest = names::digest(content.as_bytes());
            let mut status = lock(&status);
            (status.seen, status.digest) = (Some(digest.clone()), Some(digest.clone()));
            let config = OwnedObject {
                uid: "cm".to_owned(),
                resource_version: "5".to_owned(),
                deleting: false,
                gateway_id: Some(web.id.uid.as_str().into()),
                content: content.clone(),
            };
            let seal = reconciler.keys.signing.seal(&web.id.uid, 1, content.as_bytes());
            index.set_config(location.clone(), Some(config), Some(&seal));
            let provider = "lan.kube-system".parse::<names::Provider>().unwrap();
            let said = [
                ("allocated", "true"),
                ("cidr", "172.18.0.0/16"),
                ("gateway", "172.18.0.1"),
                ("ip_address", "172.18.0.11"),
                ("logical_switch", "lan"),
                ("mac_address", "02:00:00:00:00:01"),
                ("pod_nic_type", "veth-pair"),
            ];
            let said = said.map(|(key, value)| (provider.annotation(key), value.to_owned()));
            let pod = Pod {
                name: "gw".into(),
                uid: "g-1".into(),
                gateway_id: Some(web.id.uid.as_str().into()),
                of_deployment: true,
                ready: true,
                address: Some([127, 0, 0, 1].into()),
                mac: Some("02:00:00:00:00:01".into()),
                annotations: said
                    .into_iter()
                    .chain([(names::CONFIG_ANNOTATION.to_owned(), format!("{digest}.0"))])
                    .collect(),
                ..Pod::default()
            };
            index.set_pod(location.clone(), "gw", Some(pod));
            web.ports.push(lb_svc_core::testing::port("TCP", 81));
            index.set_service(service.clone(), Some(web));
        }
        let (mut asked, mut version) = (Vec::new(), 10);
        let api_server = async {
            while let Some((request, send)) = handle.next_request().await {
                let line = format!("{} {}", request.method(), request.uri().path());
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                asked.push((line, String::from_utf8(bytes.to_vec()).unwrap()));
                let mut object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                version += 1;
                object["metadata"]["resourceVersion"] = version.to_string().into();
                if object["metadata"]["uid"].is_null() {
                    object["metadata"]["uid"] = "new".into();
                }
                send.send_response(Response::new(Body::from(object.to_string().into_bytes())));
            }
        };
        let again = tokio::select! {
            again = reconciler.run(Key::Gateway(gateway_of(&service)), Cause::Change) => again,
            () = api_server => None,
            () = gateway(listener, how, status) => None,
        };
        (asked, again)
    }

    #[tokio::test]
    async fn pushed_config_is_written_before_and_nudged_only_if_the_push_fails() {
        let config = "PATCH /api/v1/namespaces/default/configmaps/lb-svc-test-service";
        let pod = "PATCH /api/v1/namespaces/default/pods/gw";
        for how in [Gateway::CarriesOut, Gateway::KnowsNone, Gateway::Refuses, Gateway::NeverAnswers] {
            let start = Instant::now();
            let (asked, _) = push_a_port(how).await;
            assert!(start.elapsed() < Duration::from_secs(1));
            let lines: Vec<&str> = asked.iter().map(|(line, _)| line.as_str()).collect();
            assert_eq!(lines.iter().filter(|line| **line == config).count(), 1, "{lines:?}");
            let nudge = asked.iter().find(|(line, _)| line == pod);
            assert_eq!(nudge.is_none(), how == Gateway::CarriesOut, "{lines:?}");
            let written = lines.iter().position(|line| *line == config).unwrap();
            let nudged = lines.iter().position(|line| *line == pod);
            assert!(nudged.is_none_or(|nudged| written < nudged));
            if let Some((_, nudge)) = nudge {
                let written: Value = serde_json::from_str(&asked[written].1).unwrap();
                let text = written["data"][names::CONFIG_KEY].as_str().unwrap();
                assert!(nudge.contains(&format!("{}.0", names::digest(text.as_bytes()))), "{nudge}");
            }
            // What the pod said of it needs no further query.
            let status = asked.iter().find(|(line, _)| line.ends_with("/test-service/status"));
            let (_, status) = status.unwrap_or_else(|| panic!("{lines:?}"));
            let is_ready = status.contains("\"reason\":\"GatewayReady\"");
            assert_eq!(is_ready, how == Gateway::CarriesOut, "{status}");
        }
    }

    #[tokio::test]
    async fn foreign_config_map_stops_the_deployment() {
        let Scene { reconciler, mut handle, service, .. } = Scene::new();
        request_address(&reconciler, &service, true);
        let mut asked = Vec::new();
        let answers = answer_all(&mut handle, &mut asked, |line| match line.split_once(' ').unwrap() {
            ("GET", path) if path.contains("/configmaps") => {
                (200, json!({ "metadata": { "name": "lb-svc-web" } }))
            }
            ("POST", path) if path.contains("/configmaps") => {
                (409, json!({ "status": "Failure", "code": 409 }))
            }
            _ => (404, json!({ "status": "Failure", "code": 404 })),
        });
        let again = tokio::select! {
            again = reconciler.run(Key::Gateway(gateway_of(&service)), Cause::Change) => again,
            () = answers => None,
        };
        let configs = "/api/v1/namespaces/default/configmaps";
        let asked: Vec<String> = asked.into_iter().map(|(line, _)| line).collect();
        assert_eq!(asked, [format!("POST {configs}"), format!("GET {configs}/lb-svc-test-service")]);
        assert_eq!(again, Some(FAILED.0), "to say so");
        let planned = |at| {
            let planned = plan(&lock(&reconciler.index).observe(&gateway_of(&service), at));
            let tries = planned.steps().any(|action| matches!(action, Action::WriteConfig(_)));
            let says = |action: &Action| match action {
                Action::SetStatus { conditions, .. } => format!("{conditions:?}").contains("NameTaken"),
                _ => false,
            };
            (planned.steps().any(says), tries)
        };
        let now = Instant::now();
        assert_eq!(planned(now), (true, false));
        assert_eq!(planned(now + FOREIGN_FOR), (false, true), "it may be free now");
        // A gateway does without a budget.
        let budget = Written::<PodDisruptionBudget>::Foreign;
        reconciler.learn_written(ObjectKind::Budget, &gateway_of(&service), budget).unwrap();
    }
}
