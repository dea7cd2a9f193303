//! `/readyz`, `/status` and `/metrics`, on the pod's own address only.
//!
//! On hyper itself: it has what this needs and axum's server lacks, an end to
//! slow clients and a limit on how many there may be.

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
use tracing::{info, warn};

use crate::traffic::Meter;

/// More than the kubelet, the controller and a monitoring system ever open.
const CONNECTIONS: usize = 64;
/// A whole request and its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to listen.
const RETRY: Duration = Duration::from_millis(500);

const METRICS: &str = "/metrics";

/// What the server says. Written by the loop, read by the server.
pub struct Published {
    state: Mutex<State>,
    registry: Registry,
    /// What it reads is in the registry.
    pub meter: Meter,
}

#[derive(Default)]
struct State {
    status: GatewayStatus,
    ready: bool,
}

impl Published {
    /// Nothing known yet.
    pub fn new(registry: Registry, meter: Meter) -> Self {
        Self { state: Mutex::default(), registry, meter }
    }

    /// Says this from now on.
    pub fn set(&self, status: GatewayStatus, ready: bool) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { status, ready };
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
                let mut why: String = faults.map(|(reason, said)| format!("{reason}: {said}\n")).collect();
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

/// Serves on the pod's address, as soon as it is known and wherever it moves.
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
                    warn!("cannot listen on {address}, and will try on: {error}");
                    warned = true;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!("/readyz, /status and /metrics are on {address}");
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
            // Out of file descriptors, or a client gone again: either passes.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn connection(stream: TcpStream, published: &Published) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let path = request.uri().path();
        if path == METRICS {
            published.meter.read().await;
        }
        Ok::<_, Infallible>(published.answer(request.method(), path))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT)
        .max_buf_size(8 * 1024)
        // One request a connection: no slot is held by who asks nothing.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // How a client goes is its own affair.
    let _ = tokio::time::timeout(TIMEOUT, serving).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aside::Wanted;
    use crate::metrics::Metrics;

    #[test]
    fn readiness_names_its_reasons() {
        let published = Published::new(
            Registry::default(),
            Meter::new(Metrics::default(), watch::channel(Wanted::default()).1),
        );
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
