//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// Whether the controller does what it is there for: it has seen the cluster,
/// or it is off.
pub type Ready = Arc<AtomicBool>;

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(listen: SocketAddr, ready: Ready, registry: Registry) -> std::io::Result<()> {
    let registry = Arc::new(registry);
    let metrics = async move || {
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => Ok((
                [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
                text,
            )),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
        }
    };
    let readyz = async move || {
        if ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the cluster has not been seen yet\n")
        }
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    axum::serve(TcpListener::bind(listen).await?, router).await
}
