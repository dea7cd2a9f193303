//! Client of gateway pods: queries their status over HTTP at the pod IP.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names::GATEWAY_PORT;

/// The timeout of a query, in turns of the controller's thread and the least
/// time of each. A healthy gateway responds within a millisecond; one that does
/// not is queried again later.
const TIMEOUT: (u32, Duration) = (10, Duration::from_millis(50));
/// No status is longer: it may name every endpoint.
const BODY_MAX: usize = 1024 * 1024;

/// An HTTP client for gateways.
#[derive(Clone, Debug)]
pub struct GatewayClient(Client<HttpConnector, Empty<Bytes>>);

impl Default for GatewayClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // Queries are rare: a connection kept open would only keep memory.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }
}

impl GatewayClient {
    /// Queries the gateway at this pod IP; `None` if it does not respond in time.
    pub async fn query(&self, pod: IpAddr) -> Option<GatewayStatus> {
        in_time(self.get(pod)).await.flatten()
    }

    async fn get(&self, pod: IpAddr) -> Option<GatewayStatus> {
        let uri = format!("http://{}/status", SocketAddr::new(pod, GATEWAY_PORT)).parse().ok()?;
        let response = self.0.get(uri).await.ok().filter(|response| response.status().is_success())?;
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await.ok()?.to_bytes();
        serde_json::from_slice(&body).ok()
    }
}

/// What comes of `query` in time. While the thread is busy with other work the
/// time stands still: a response that waits to be read is in time.
async fn in_time<T>(query: impl Future<Output = T>) -> Option<T> {
    let (turns, turn) = TIMEOUT;
    let mut query = pin!(query);
    for _ in 0..turns {
        if let Ok(response) = tokio::time::timeout(turn, &mut query).await {
            return Some(response);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn r33_response_in_time_counts_while_the_thread_is_busy() {
        let (respond, response) = oneshot::channel();
        let (forward, forwarded) = oneshot::channel();
        // As of a connection's task, which reads for the query.
        tokio::spawn(async move { forward.send(response.await) });
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            respond.send(())
        });
        tokio::spawn(async { std::thread::sleep(Duration::from_millis(700)) });
        assert!(in_time(forwarded).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn gateway_that_does_not_respond_is_given_up() {
        assert_eq!(in_time(std::future::pending::<()>()).await, None);
    }
}
