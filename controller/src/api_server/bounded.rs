//! The API server's answers, read within bounds: what they hold is written by
//! whoever may write objects.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::try_unfold;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, Layer, Service};

/// The most bytes of an answer, and of an event of a watch. It has to be more
/// than any one object takes: etcd holds 1.5 MiB of one, of which each byte may
/// be six as JSON (`\u003c`).
const ANSWER_MAX: usize = 10 * 1024 * 1024;
/// An answer with more bytes is a large one.
const LARGE: usize = 64 * 1024;
/// How many large answers are read at once.
const LARGE_AT_ONCE: usize = 4;

/// An answer is longer than `ANSWER_MAX`, and was not read.
#[derive(Debug, thiserror::Error)]
#[error("the answer to {0} is longer than {max} MiB, and is not read", max = ANSWER_MAX >> 20)]
pub struct TooLarge(String);

impl TooLarge {
    /// Whether that is why the API server could not be read.
    pub fn is(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Service(error) if error.is::<Self>())
    }
}

/// A client by whose answers no more than `LARGE_AT_ONCE * ANSWER_MAX` bytes are
/// held, beside small ones.
///
/// # Errors
/// The configuration is of no use.
pub fn client(config: Config) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&Bounds).build())
}

/// The layer that bounds answers.
#[derive(Clone, Copy, Debug)]
pub struct Bounds;

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) }
    }
}

/// A client whose answers are bounded.
#[derive(Clone, Debug)]
pub struct Bounded<S> {
    inner: S,
    large: Arc<Semaphore>,
}

impl<S, B> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: BodyExt<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (asked, large) = (Asked::of(&request), Arc::clone(&self.large));
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| bounded(body, asked, large))) })
    }
}

/// What was asked.
struct Asked {
    line: String,
    /// The answer is an event on each line, without end.
    is_watch: bool,
}

impl Asked {
    fn of(request: &Request<Body>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self {
            line: format!("{} {}", request.method(), request.uri().path()),
            is_watch: query.split('&').any(|part| part == "watch=true"),
        }
    }
}

/// An answer on its way.
struct Answer<B> {
    body: B,
    asked: Asked,
    /// The bytes so far; of a watch those of the event that is on its way.
    length: usize,
    large: Arc<Semaphore>,
    /// The turn to read a large one.
    turn: Option<OwnedSemaphorePermit>,
}

impl<B> Answer<B> {
    fn count(&mut self, data: &[u8]) -> Result<(), BoxError> {
        let ends = |byte: &u8| self.asked.is_watch && *byte == b'\n';
        let first = data.iter().position(ends).unwrap_or(data.len());
        if self.length + first > ANSWER_MAX {
            return Err(TooLarge(self.asked.line.clone()).into());
        }
        match data.iter().rposition(ends) {
            Some(last) => (self.length, self.turn) = (data.len() - last - 1, None),
            None => self.length += data.len(),
        }
        Ok(())
    }
}

fn bounded<B>(body: B, asked: Asked, large: Arc<Semaphore>) -> UnsyncBoxBody<Bytes, BoxError>
where
    B: BodyExt<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let answer = Answer { body, asked, length: 0, large, turn: None };
    let frames = try_unfold(answer, |mut answer| async move {
        if answer.length > LARGE && answer.turn.is_none() {
            answer.turn = Some(Arc::clone(&answer.large).acquire_owned().await?);
        }
        let Some(frame) = answer.body.frame().await else { return Ok(None) };
        let frame = frame.map_err(Into::into)?;
        answer.count(frame.data_ref().map_or(&[], |data| data))?;
        Ok(Some((frame, answer)))
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt, stream};

    use super::*;

    fn asked(line: &str) -> Asked {
        let (method, uri) = line.split_once(' ').unwrap();
        Asked::of(&Request::builder().method(method).uri(uri).body(Body::empty()).unwrap())
    }

    /// Bytes that come one after another.
    fn body(chunks: Vec<Vec<u8>>) -> impl BodyExt<Data = Bytes, Error = BoxError> + Send + Unpin + 'static {
        let chunks = chunks.into_iter().map(|chunk| Body::from(chunk).map_err(BoxError::from));
        let frames = stream::iter(chunks).then(|mut chunk| async move { chunk.frame().await.unwrap() });
        StreamBody::new(Box::pin(frames))
    }

    async fn read(line: &str, chunks: Vec<Vec<u8>>) -> Result<usize, String> {
        let answer = bounded(body(chunks), asked(line), Arc::new(Semaphore::new(1)));
        answer.collect().await.map(|read| read.to_bytes().len()).map_err(|error| error.to_string())
    }

    const MIB: usize = 1024 * 1024;

    #[tokio::test]
    async fn r3_answer_over_the_bound_is_not_read() {
        let list = "GET /api/v1/pods?limit=100";
        let chunks = |n: usize| vec![vec![b'x'; MIB]; n];
        assert_eq!(read(list, chunks(10)).await, Ok(10 * MIB));
        let error = read(list, chunks(11)).await.unwrap_err();
        assert_eq!(error, "the answer to GET /api/v1/pods is longer than 10 MiB, and is not read");
        assert!(read(list, vec![vec![b'\n'; 11 * MIB]]).await.is_err(), "lines are nothing to a list");
    }

    #[tokio::test]
    async fn r3_watch_goes_on_and_each_event_is_bounded() {
        let watch = "GET /api/v1/pods?&watch=true";
        let event = |length: usize| [vec![b'x'; length], vec![b'\n']].concat();
        let many: Vec<Vec<u8>> = (0..40).map(|_| event(MIB)).collect();
        assert_eq!(read(watch, many).await, Ok(40 * (MIB + 1)));
        assert!(read(watch, vec![event(6 * MIB), vec![b'x'; 6 * MIB], event(3 * MIB)]).await.is_ok());
        assert!(read(watch, vec![event(1), vec![b'x'; 6 * MIB], event(5 * MIB)]).await.is_err());
    }

    #[tokio::test]
    async fn r3_few_large_answers_are_read_at_once() {
        let large = Arc::new(Semaphore::new(1));
        let answer = |line: &str, chunks| bounded(body(chunks), asked(line), Arc::clone(&large));
        let chunks = || vec![vec![b'x'; LARGE + 1], b"\n".to_vec(), b"x".to_vec()];
        let (mut first, mut second) = (answer("GET /a", chunks()), answer("GET /b?watch=true", chunks()));
        for _ in 0..2 {
            assert!(first.frame().await.unwrap().is_ok());
        }
        assert!(second.frame().await.unwrap().is_ok(), "it is not large yet");
        assert!(second.frame().now_or_never().is_none(), "one at a time");
        assert_eq!(answer("GET /c", vec![b"small".to_vec()]).collect().await.unwrap().to_bytes().len(), 5);
        drop(first);
        assert!(second.frame().await.unwrap().is_ok());
        let mut third = answer("GET /d", chunks());
        assert_eq!(third.frame().await.is_some(), third.frame().now_or_never().is_some(), "an event ended");
    }
}
