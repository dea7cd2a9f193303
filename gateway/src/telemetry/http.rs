//! `/readyz`, `/livez`, `/status` and `/metrics`, and the way to [`super::push`], on the pod's own
//! addresses only.
//!
//! On hyper itself: it has what axum's server lacks, timeouts for slow clients and a
//! limit on their number.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::collectors::Collector;
use super::connections::Connections;
use super::push::Pushes;
use crate::off_loop::off_loop;

/// Timeout of the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of a request with its response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Delay between attempts to listen.
const RETRY: Duration = Duration::from_millis(500);

/// How long collected metrics are served: collecting them walks the connections of the
/// whole node.
const COLLECTED_FOR: Duration = Duration::from_secs(1);
/// A loop that has not come round for that long hangs: without any event it comes round
/// every 10 s.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// The content type of what is said to people.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the server serves. Written by the agent, read by the server.
pub struct Published {
    state: Mutex<State>,
    registry: Registry,
    collectors: Vec<Box<dyn Collector>>,
    /// When metrics were last collected. Locked while they are, or are written.
    collected: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Changes each time that the status is set.
    turns: watch::Sender<()>,
}

struct State {
    status: GatewayStatus,
    ready: bool,
    /// When the agent's loop last came round.
    turned: Instant,
}

impl Published {
    /// An empty status, not ready. The collectors run before metrics of the registry
    /// are served.
    pub fn new(registry: Registry, collectors: Vec<Box<dyn Collector>>) -> Self {
        let state = State { status: GatewayStatus::default(), ready: false, turned: Instant::now() };
        let (collected, turns) = (Arc::default(), watch::channel(()).0);
        Self { state: Mutex::new(state), registry, collectors, collected, turns }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the status and readiness to serve from now on. The agent's loop does so each
    /// time that it comes round.
    pub fn set(&self, status: GatewayStatus, ready: bool) {
        *self.state() = State { status, ready, turned: Instant::now() };
        self.turns.send_replace(());
    }

    /// The generation of the configuration in force, if it is a signed one, and the digest
    /// of the one that was last read.
    pub(super) fn taken(&self) -> (Option<u64>, Option<String>) {
        let GatewayStatus { generation, seen, .. } = &self.state().status;
        (*generation, seen.clone())
    }

    /// Waits until the configuration of this digest and generation is carried out.
    pub(super) async fn carried_out(&self, digest: &str, generation: u64) {
        let mut turns = self.turns.subscribe();
        let is_so = |status: &GatewayStatus| {
            status.digest.as_deref() == Some(digest) && status.generation == Some(generation)
        };
        // The sender is this object's own.
        while !is_so(&self.state().status) && turns.changed().await.is_ok() {}
    }

    /// The status, as a response.
    pub(super) fn status(&self, code: StatusCode) -> Response<Full<Bytes>> {
        match serde_json::to_string(&self.state().status) {
            Ok(json) => reply(code, "application/json", json),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        }
    }

    /// Collects metrics, unless that was done a moment ago, and writes them: for one
    /// scrape at a time, and off the agent's loop.
    async fn metrics(self: &Arc<Self>) -> io::Result<String> {
        let mut collected = Arc::clone(&self.collected).lock_owned().await;
        let published = Arc::clone(self);
        off_loop(async move || {
            if collected.is_none_or(|at| at.elapsed() >= COLLECTED_FOR) {
                for collector in &published.collectors {
                    if let Err(error) = collector.collect().await {
                        debug!(%error, "metrics not collected");
                    }
                }
                *collected = Some(Instant::now());
            }
            let mut text = String::new();
            encode(&mut text, &published.registry).map_err(io::Error::other)?;
            Ok(text)
        })
        .await
    }

    async fn answer(self: &Arc<Self>, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned());
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if path == "/metrics" {
            return match self.metrics().await {
                Ok(text) => reply(StatusCode::OK, OPEN_METRICS, text),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
            };
        }
        if path == "/status" {
            return self.status(StatusCode::OK);
        }
        let state = self.state();
        match path {
            "/livez" if state.turned.elapsed() > HANGS_AFTER => {
                reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the agent's loop hangs\n".to_owned())
            }
            "/livez" => reply(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" if state.ready => reply(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => {
                let faults = state.status.faults.iter();
                let mut why: String = faults.map(|(reason, text)| format!("{reason}: {text}\n")).collect();
                if why.is_empty() {
                    why.push_str("starting\n");
                }
                reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, why)
            }
            _ => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /readyz, /status, /metrics, /livez, and /config by PUT\n".to_owned(),
            ),
        }
    }
}

pub(super) fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Serves on these addresses, for as long as each is among them.
pub async fn serve(
    published: Arc<Published>,
    pushes: Arc<Pushes>,
    mut addresses: watch::Receiver<BTreeSet<IpAddr>>,
    port: u16,
) {
    let server = Server { published, pushes, connections: Arc::default() };
    let mut servers = JoinSet::new();
    let mut serving = BTreeMap::new();
    loop {
        let wanted = addresses.borrow_and_update().clone();
        serving.retain(|address, server: &mut tokio::task::AbortHandle| {
            let stays = wanted.contains(address);
            if !stays {
                server.abort();
            }
            stays
        });
        for address in wanted {
            serving.entry(address).or_insert_with(|| {
                let at = SocketAddr::from((address, port));
                servers.spawn(serve_on(at, server.clone()))
            });
        }
        if addresses.changed().await.is_err() {
            return;
        }
    }
}

/// What each connection is served from.
#[derive(Clone)]
struct Server {
    published: Arc<Published>,
    pushes: Arc<Pushes>,
    connections: Arc<Connections>,
}

async fn serve_on(address: SocketAddr, server: Server) {
    let mut warned = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !warned {
                    warn!(%address, %error, "HTTP server cannot listen: retrying");
                    warned = true;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(%address, "HTTP server listening");
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Some(id) = server.connections.admit(client.ip()) else { continue };
                let connection = connection(stream, id, client.ip(), server.clone());
                server.connections.started(id, tokio::spawn(connection).abort_handle());
            }
            // Out of file descriptors, or the client is gone: transient.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn connection(stream: TcpStream, id: u64, client: IpAddr, server: Server) {
    let Server { published, pushes, connections } = &server;
    let service = service_fn(|request: Request<Incoming>| {
        connections.requested(id);
        async move {
            Ok::<_, Infallible>(match request.uri().path() {
                names::PUSH_PATH => pushes.answer(request, client, published).await,
                path => published.answer(request.method(), path).await,
            })
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(8 * 1024)
        // One request per connection: idle clients hold no slot.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Errors of the connection are the client's affair.
    let _ = tokio::time::timeout(TIMEOUT, serving).await;
    connections.close(id);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::{BoxFuture, FutureExt};

    use super::*;

    fn published(collectors: Vec<Box<dyn Collector>>) -> Arc<Published> {
        Arc::new(Published::new(Registry::default(), collectors))
    }

    #[tokio::test]
    async fn r19_livez_fails_when_the_loop_hangs() {
        let published = published(Vec::new());
        let livez = async || published.answer(&Method::GET, "/livez").await.status();
        assert_eq!(livez().await, StatusCode::OK);
        published.state().turned = Instant::now().checked_sub(HANGS_AFTER + Duration::from_secs(1)).unwrap();
        assert_eq!(livez().await, StatusCode::SERVICE_UNAVAILABLE);
        published.set(GatewayStatus::default(), false);
        assert_eq!(livez().await, StatusCode::OK);
    }

    /// Blocks its thread while it collects, and counts.
    #[derive(Clone, Default)]
    struct Walk(Arc<[AtomicUsize; 2]>);

    impl Collector for Walk {
        fn collect(&self) -> BoxFuture<'_, io::Result<()>> {
            async {
                let [running, done] = &*self.0;
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                std::thread::sleep(Duration::from_millis(100));
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn r09_scrapes_are_collected_one_at_a_time_and_hold_nobody_up() {
        let walk = Walk::default();
        let published = published(vec![Box::new(walk.clone())]);
        let start = Instant::now();
        let mut scrapes = JoinSet::new();
        for _ in 0..64 {
            let published = Arc::clone(&published);
            scrapes.spawn(async move { published.answer(&Method::GET, "/metrics").await.status() });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(start.elapsed() < Duration::from_millis(90), "{:?}", start.elapsed());
        while let Some(status) = scrapes.join_next().await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
        assert_eq!(walk.0[1].load(Ordering::SeqCst), 1, "kept for a second");
    }

    #[tokio::test]
    async fn paths_answer_and_readyz_follows_readiness() {
        let published = published(Vec::new());
        let get = async |path| published.answer(&Method::GET, path).await.status();
        assert_eq!(get("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        published.set(GatewayStatus::default(), true);
        assert_eq!(get("/readyz").await, StatusCode::OK);
        assert_eq!(get("/status").await, StatusCode::OK);
        assert_eq!(get("/metrics").await, StatusCode::OK);
        assert_eq!(get("/livez").await, StatusCode::OK);
        assert_eq!(get("/").await, StatusCode::NOT_FOUND);
        let post = published.answer(&Method::POST, "/status").await.status();
        assert_eq!(post, StatusCode::METHOD_NOT_ALLOWED);
    }
}
