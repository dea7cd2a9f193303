//! Client of gateway pods over HTTP at the pod IP: queries their status, and hands them
//! their configuration.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lb_svc_core::observed::PushAnswer;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names::{self, GATEWAY_PORT};
use tokio::sync::Semaphore;

/// The least time of a turn of the controller's thread, in which timeouts are counted.
const TURN: Duration = Duration::from_millis(50);
/// The timeout of a query, in turns. A healthy gateway responds within a millisecond; one
/// that does not is queried again later.
const QUERY_TURNS: u32 = 10;
/// The timeout of a push, in turns. A gateway answers after 200 ms if the kernel has not
/// carried the configuration out by then.
const PUSH_TURNS: u32 = 6;
/// The most pushes at a time.
const PUSHES: usize = 64;
/// No status is longer: it may name every endpoint.
const BODY_MAX: usize = 1024 * 1024;

/// An HTTP client for gateways.
#[derive(Clone, Debug)]
pub struct GatewayClient {
    client: Client<HttpConnector, Full<Bytes>>,
    pushes: Arc<Semaphore>,
    port: u16,
}

impl Default for GatewayClient {
    fn default() -> Self {
        Self::at_port(GATEWAY_PORT)
    }
}

impl GatewayClient {
    /// A client for gateways that listen at this port.
    pub fn at_port(port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // Queries are rare: a connection kept open would only keep memory.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { client, pushes: Arc::new(Semaphore::new(PUSHES)), port }
    }

    /// Queries the gateway at this pod IP; `None` if it does not respond in time.
    pub async fn query(&self, pod: IpAddr) -> Option<GatewayStatus> {
        let query = async {
            let (code, body) = self.request(pod, Method::GET, "/status", None, Bytes::new()).await?;
            code.is_success().then(|| serde_json::from_slice(&body).ok()).flatten()
        };
        in_time(QUERY_TURNS, query).await.flatten()
    }

    /// Hands a configuration with its seal to the gateway at this pod IP. Returns how it
    /// answered, and its status, if it said that.
    pub async fn push(&self, pod: IpAddr, seal: &str, config: Bytes) -> (PushAnswer, Option<GatewayStatus>) {
        let Ok(_place) = self.pushes.acquire().await else { return (PushAnswer::Failed, None) };
        let push = async {
            let (code, body) = self.request(pod, Method::PUT, names::PUSH_PATH, Some(seal), config).await?;
            Some(match code {
                StatusCode::OK | StatusCode::ACCEPTED => {
                    (PushAnswer::Taken, serde_json::from_slice(&body).ok())
                }
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => (PushAnswer::Unknown, None),
                code => {
                    tracing::debug!(%pod, %code, "configuration not taken");
                    (PushAnswer::Failed, None)
                }
            })
        };
        in_time(PUSH_TURNS, push).await.flatten().unwrap_or((PushAnswer::Failed, None))
    }

    async fn request(
        &self,
        pod: IpAddr,
        method: Method,
        path: &str,
        seal: Option<&str>,
        body: Bytes,
    ) -> Option<(StatusCode, Bytes)> {
        let uri = format!("http://{}{path}", SocketAddr::new(pod, self.port));
        let request = Request::builder().method(method).uri(uri);
        let request = seal.into_iter().fold(request, |it, seal| it.header(names::SEAL_HEADER, seal));
        let response = self.client.request(request.body(Full::new(body)).ok()?).await.ok()?;
        let code = response.status();
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await.ok()?;
        Some((code, body.to_bytes()))
    }
}

/// What comes of `query` in so many turns. While the thread is busy with other work the
/// time stands still: a response that waits to be read is in time.
async fn in_time<T>(turns: u32, query: impl Future<Output = T>) -> Option<T> {
    let mut query = pin!(query);
    for _ in 0..turns {
        if let Ok(response) = tokio::time::timeout(TURN, &mut query).await {
            return Some(response);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;

    /// What a gateway that answers with `response`, or never, makes of a push, and what it
    /// was sent.
    async fn pushed(response: Option<&'static str>) -> ((PushAnswer, Option<GatewayStatus>), String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = GatewayClient::at_port(listener.local_addr().unwrap().port());
        let gateway = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = Vec::new();
            while !sent.ends_with(b"the text") {
                assert!(stream.read_buf(&mut sent).await.unwrap() > 0);
            }
            match response {
                Some(response) => stream.write_all(response.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
            drop(stream);
            String::from_utf8(sent).unwrap()
        };
        let push = client.push([127, 0, 0, 1].into(), "{\"a\":1}", Bytes::from_static(b"the text"));
        let mut push = pin!(push);
        tokio::select! {
            answer = &mut push => (answer, String::new()),
            sent = gateway => (push.await, sent),
        }
    }

    #[tokio::test]
    async fn push_is_understood_by_its_code() {
        let status = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"digest\":\"ab\"}";
        let (answer, sent) = pushed(Some(status)).await;
        let reported = GatewayStatus { digest: Some("ab".to_owned()), ..GatewayStatus::default() };
        assert_eq!(answer, (PushAnswer::Taken, Some(reported)));
        assert!(sent.starts_with("PUT /config HTTP/1.1\r\nlb-svc-seal: {\"a\":1}\r\n"), "{sent}");
        for (code, answer) in [
            ("202 Accepted", PushAnswer::Taken),
            ("404 Not Found", PushAnswer::Unknown),
            ("405 Method Not Allowed", PushAnswer::Unknown),
            ("409 Conflict", PushAnswer::Failed),
            ("503 Service Unavailable", PushAnswer::Failed),
        ] {
            let response = format!("HTTP/1.1 {code}\r\nContent-Length: 3\r\n\r\nwhy");
            assert_eq!(pushed(Some(response.leak())).await.0, (answer, None), "{code}");
        }
    }

    #[tokio::test]
    async fn push_is_given_up_soon() {
        let start = std::time::Instant::now();
        assert_eq!(pushed(None).await.0, (PushAnswer::Failed, None));
        let took = start.elapsed();
        assert!((300..600).contains(&took.as_millis()), "{took:?}");
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let nobody = GatewayClient::at_port(port).push([127, 0, 0, 1].into(), "", Bytes::new()).await;
        assert_eq!(nobody, (PushAnswer::Failed, None));
    }

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
        assert!(in_time(QUERY_TURNS, forwarded).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn gateway_that_does_not_respond_is_given_up() {
        assert_eq!(in_time(QUERY_TURNS, std::future::pending::<()>()).await, None);
    }
}
