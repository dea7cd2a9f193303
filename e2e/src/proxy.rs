use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The controller's own rights are enough for what comes by here.
const USER: HeaderValue = HeaderValue::from_static("system:serviceaccount:lb-svc-system:lb-svc-controller");

/// How a write is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It never gets to the API server.
    Before,
    /// It gets there, and its answer does not get back.
    After,
}

/// A write that went by. Those to the leader's Lease are not kept.
#[derive(Clone, Debug)]
pub struct Write {
    /// POST, PUT, PATCH or DELETE.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `Content-Type`, if there is one.
    pub kind: Option<HeaderValue>,
    /// The body.
    pub body: Vec<u8>,
}

impl Write {
    /// Whether it tells something and does nothing: an Event.
    pub fn is_event(&self) -> bool {
        self.target.contains("/events?")
    }
}

/// A way to the API server for one controller, which counts its writes and can
/// cut one off.
pub struct Proxy {
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    client: Client,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    writes: Vec<Write>,
    cut: Option<Order>,
}

/// Which write is to be cut off, how, and who is told when it is there.
struct Order {
    number: usize,
    cut: Cut,
    there: oneshot::Sender<oneshot::Sender<()>>,
}

impl Proxy {
    /// A proxy to the cluster of `client`, which has all rights.
    ///
    /// # Errors
    /// When there is no port or no file to be had.
    pub async fn start(client: Client) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let kubeconfig = std::env::temp_dir().join(format!("lb-svc-e2e-{}-{port}", std::process::id()));
        std::fs::write(
            &kubeconfig,
            format!(
                r#"
apiVersion: v1
kind: Config
current-context: proxy
contexts: [{{name: proxy, context: {{cluster: proxy, user: proxy}}}}]
clusters: [{{name: proxy, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: proxy, user: {{}}}}]
"#
            ),
        )?;
        let shared = Arc::new(Shared { client, seen: Mutex::default() });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { kubeconfig, shared, server })
    }

    /// The kubeconfig of who is to come by here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// What went by since [`forget`](Self::forget).
    pub fn writes(&self) -> Vec<Write> {
        self.shared.seen().writes.clone()
    }

    /// Counts from the beginning again, and cuts nothing off.
    pub fn forget(&self) {
        *self.shared.seen() = Seen::default();
    }

    /// Cuts off the write with this number, the first being 1 and Events not
    /// counted. The receiver gets a sender when it is there; the write goes no further, in either
    /// direction, until something is sent by that.
    pub fn cut_off(&self, number: usize, cut: Cut) -> oneshot::Receiver<oneshot::Sender<()>> {
        let (there, told) = oneshot::channel();
        self.shared.seen().cut = Some(Order { number, cut, there });
        told
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| forward(Arc::clone(&shared), request));
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// An error ends the connection without an answer.
async fn forward(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let order = shared.note(&parts, &body);
    parts.headers.remove(HOST);
    parts.headers.insert("impersonate-user", USER);
    let send = shared.client.send(Request::from_parts(parts, Body::from(body)));
    match order {
        None => Ok(send.await?),
        Some(order) => {
            if order.cut == Cut::After {
                send.await?.into_body().collect_bytes().await?;
            }
            let (go_on, gone_on) = oneshot::channel();
            let _ = order.there.send(go_on);
            let _ = gone_on.await;
            Err("cut off".into())
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a write; the order to cut it off, if there is one.
    fn note(&self, parts: &Parts, body: &[u8]) -> Option<Order> {
        if parts.method == Method::GET || parts.uri.path().contains("/leases") {
            return None;
        }
        let write = Write {
            method: parts.method.clone(),
            target: parts.uri.to_string(),
            kind: parts.headers.get(http::header::CONTENT_TYPE).cloned(),
            body: body.to_vec(),
        };
        let counts = !write.is_event();
        let mut seen = self.seen();
        seen.writes.push(write);
        let number = seen.writes.iter().filter(|write| !write.is_event()).count();
        seen.cut.take_if(|order| counts && order.number == number)
    }
}
