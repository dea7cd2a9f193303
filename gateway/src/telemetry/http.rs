//! `/readyz`, `/livez`, `/status` and `/metrics`, on the pod's own address only.
//!
//! On hyper itself: it has what axum's server lacks, timeouts for slow clients and a
//! limit on their number.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lb_svc_crds::gateway::GatewayStatus;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info, warn};

use super::collectors::Collector;

/// Most connections at a time: more than the kubelet, the controller and a monitoring
/// system open.
const CONNECTIONS: usize = 64;
/// Timeout of a request with its response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Delay between attempts to listen.
const RETRY: Duration = Duration::from_millis(500);

const METRICS: &str = "/metrics";

/// What the server serves. Written by the agent, read by the server.
pub struct Published {
    state: Mutex<State>,
    registry: Registry,
    collectors: Vec<Box<dyn Collector>>,
}

#[derive(Default)]
struct State {
    status: GatewayStatus,
    ready: bool,
}

impl Published {
    /// An empty status, not ready. The collectors run before metrics of the registry
    /// are served.
    pub fn new(registry: Registry, collectors: Vec<Box<dyn Collector>>) -> Self {
        Self { state: Mutex::default(), registry, collectors }
    }

    /// Sets the status and readiness to serve from now on.
    pub fn set(&self, status: GatewayStatus, ready: bool) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { status, ready };
    }

    async fn collect(&self) {
        for collector in &self.collectors {
            if let Err(error) = collector.collect().await {
                debug!(%error, "metrics not collected");
            }
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        if method != Method::GET && method != Method::HEAD {
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, text, "GET only\n".to_owned());
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match path {
            "/livez" => reply(StatusCode::OK, text, "ok\n".to_owned()),
            "/readyz" if state.ready => reply(StatusCode::OK, text, "ok\n".to_owned()),
            "/readyz" => {
                let faults = state.status.faults.iter();
                let mut why: String = faults.map(|(reason, text)| format!("{reason}: {text}\n")).collect();
                if why.is_empty() {
                    why.push_str("starting\n");
                }
                reply(StatusCode::SERVICE_UNAVAILABLE, text, why)
            }
            "/status" => match serde_json::to_string(&state.status) {
                Ok(json) => reply(StatusCode::OK, "application/json", json),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, text, error.to_string()),
            },
            METRICS => {
                let mut body = String::new();
                match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
                    Ok(()) => reply(
                        StatusCode::OK,
                        "application/openmetrics-text; version=1.0.0; charset=utf-8",
                        body,
                    ),
                    Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, text, error.to_string()),
                }
            }
            _ => reply(
                StatusCode::NOT_FOUND,
                text,
                "there are /readyz, /status, /metrics and /livez\n".to_owned(),
            ),
        }
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Serves on the pod's address, once it is known, and on another if it changes.
pub async fn serve(published: Arc<Published>, mut pod_ip: watch::Receiver<Option<Ipv4Addr>>, port: u16) {
    loop {
        let address = *pod_ip.borrow_and_update();
        let moved = pod_ip.changed();
        let Some(address) = address else {
            if moved.await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            gone = moved => if gone.is_err() { return },
            () = serve_on(SocketAddr::from((address, port)), &published) => {}
        }
    }
}

async fn serve_on(address: SocketAddr, published: &Arc<Published>) {
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let published = Arc::clone(published);
                tokio::spawn(async move {
                    connection(stream, &published).await;
                    drop(slot);
                });
            }
            // Out of file descriptors, or the client is gone: transient.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn connection(stream: TcpStream, published: &Published) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let path = request.uri().path();
        if path == METRICS {
            published.collect().await;
        }
        Ok::<_, Infallible>(published.answer(request.method(), path))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT)
        .max_buf_size(8 * 1024)
        // One request per connection: idle clients hold no slot.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Errors of the connection are the client's affair.
    let _ = tokio::time::timeout(TIMEOUT, serving).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_answer_and_readyz_follows_readiness() {
        let published = Published::new(Registry::default(), Vec::new());
        let get = |path| published.answer(&Method::GET, path).status();
        assert_eq!(get("/readyz"), StatusCode::SERVICE_UNAVAILABLE);
        published.set(GatewayStatus::default(), true);
        assert_eq!(get("/readyz"), StatusCode::OK);
        assert_eq!(get("/status"), StatusCode::OK);
        assert_eq!(get("/metrics"), StatusCode::OK);
        assert_eq!(get("/livez"), StatusCode::OK);
        assert_eq!(get("/"), StatusCode::NOT_FOUND);
        let post = published.answer(&Method::POST, "/status").status();
        assert_eq!(post, StatusCode::METHOD_NOT_ALLOWED);
    }
}
