//! Client of gateway pods: queries their status over HTTP at the pod IP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lb_svc_core::model::StatusReport;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names::GATEWAY_PORT;

/// The timeout of a query. A healthy gateway responds within a millisecond; one
/// that does not is queried again later.
const TIMEOUT: Duration = Duration::from_millis(500);
/// No status is longer: it may name every endpoint.
const BODY_MAX: usize = 1024 * 1024;

/// An HTTP client for gateways.
#[derive(Clone, Debug)]
pub struct GatewayClient(Client<HttpConnector, Empty<Bytes>>);

impl Default for GatewayClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_nodelay(true);
        // Queries are rare: a connection kept open would only keep memory.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }
}

impl GatewayClient {
    /// Queries the gateway at this pod IP.
    pub async fn query(&self, pod: IpAddr) -> StatusReport {
        match tokio::time::timeout(TIMEOUT, self.get(pod)).await {
            Ok(Some(status)) => StatusReport::Reported(Box::new(status)),
            Ok(None) | Err(_) => StatusReport::NoResponse,
        }
    }

    async fn get(&self, pod: IpAddr) -> Option<GatewayStatus> {
        let uri = format!("http://{}/status", SocketAddr::new(pod, GATEWAY_PORT)).parse().ok()?;
        let response = self.0.get(uri).await.ok().filter(|response| response.status().is_success())?;
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await.ok()?.to_bytes();
        serde_json::from_slice(&body).ok()
    }
}
