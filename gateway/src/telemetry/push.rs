//! `PUT /config`: the controller hands the gateway its configuration, and learns whether
//! the kernel carries it out.
//!
//! ```text
//!  seal ──▶ a slot ──▶ body ──▶ checked, off the loop ──▶ the agent ──▶ the next runs
//!    │         │         │              │                     │              │
//!   403       503     413, 408         422                 409, 507       200, 202
//! ```
//!
//! What admits a configuration is the controller's signature for this gateway, as for the
//! mounted file. It comes first, in a header: whoever has none, or one that is no later
//! than what is in force, has no body read.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use lb_svc_crds::names;
use lb_svc_crds::seal::Unsealed;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::http::{Published, TEXT, reply};
use super::metrics::Outcome;
use crate::config::sealed::{Authority, Refused, Sealed};
use crate::off_loop::off_loop;

/// Most pushes at a time, each of which may take the memory of a ConfigMap a few times;
/// of one address there is one.
const SLOTS: usize = 4;
/// Timeout of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the kernel may take before the answer is that it has not carried the
/// configuration out yet. The controller waits a little longer.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

/// A configuration that was pushed, for the agent to take or to refuse.
pub struct Push {
    /// The configuration.
    pub sealed: Sealed,
    /// Where to say what came of it. Closed once nobody waits for that.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

/// Why a push is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no seal.
    #[error(
        "there is no header {}: it is the content of {} in the gateway's ConfigMap",
        names::SEAL_HEADER,
        names::SEAL_KEY
    )]
    NoSeal,
    /// It is not the controller's for this gateway, or cannot be carried out.
    #[error("the configuration is refused: {0}")]
    Refused(#[from] Refused),
    /// A later one is in force, or another of the same generation.
    #[error(
        "the configuration is of generation {pushed}, and another one of generation {in_force} is in force"
    )]
    Outdated {
        /// The generation that was pushed.
        pushed: u64,
        /// The one in force.
        in_force: u64,
    },
    /// Others are in work.
    #[error("there are as many pushes in work as there may be: {SLOTS}, and one of each address")]
    Busy,
    /// The body is longer than any configuration.
    #[error("the body is longer than the {} bytes of a ConfigMap", names::CONFIG_MAP_MAX)]
    TooLong,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {BODY_TIMEOUT:?}")]
    Slow,
    /// The body broke off.
    #[error("the body broke off")]
    BrokenOff,
    /// It cannot be kept beyond the process.
    #[error("the configuration cannot be kept, so it is not taken: {0}")]
    NotKept(String),
    /// The agent has not come to it.
    #[error("the agent has not taken the configuration within {ANSWER_WITHIN:?}: the kernel is slow")]
    NotTaken,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoSeal | Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::Refused(Refused::Unsealed(Unsealed::Part(_)) | Refused::Invalid(_)) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Refused(Refused::Unsealed(_)) => StatusCode::FORBIDDEN,
            Self::Outdated { .. } => StatusCode::CONFLICT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NotKept(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Busy | Self::NotTaken => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for it in the metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::NoSeal | Self::Refused(Refused::Unsealed(_)) => "unsigned",
            Self::Refused(Refused::Invalid(_)) => "invalid",
            Self::Outdated { .. } => "outdated",
            Self::Busy | Self::NotTaken => "busy",
            Self::TooLong | Self::Slow | Self::BrokenOff => "malformed",
            Self::NotKept(_) => "not_kept",
        }
    }
}

/// The pushes in work.
pub struct Pushes {
    authority: Authority,
    to_agent: mpsc::Sender<Push>,
    slots: Mutex<Vec<IpAddr>>,
    counted: Family<Outcome, Counter>,
}

/// A place among the pushes in work; it is free again once this is dropped.
struct Slot<'a>(&'a Pushes, IpAddr);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut taken = self.0.taken();
        if let Some(place) = taken.iter().position(|client| *client == self.1) {
            taken.swap_remove(place);
        }
    }
}

impl Pushes {
    /// No pushes; configurations are to be signed as `authority` says. Returns where the
    /// agent receives them, too.
    pub fn new(authority: Authority, counted: Family<Outcome, Counter>) -> (Arc<Self>, mpsc::Receiver<Push>) {
        let (to_agent, pushes) = mpsc::channel(SLOTS);
        (Arc::new(Self { authority, to_agent, slots: Mutex::default(), counted }), pushes)
    }

    fn taken(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, client: IpAddr) -> Result<Slot<'_>, Refusal> {
        let mut taken = self.taken();
        if taken.len() >= SLOTS || taken.contains(&client) {
            return Err(Refusal::Busy);
        }
        taken.push(client);
        Ok(Slot(self, client))
    }

    /// Answers a request for [`names::PUSH_PATH`].
    pub async fn answer<B>(
        &self,
        request: Request<B>,
        client: IpAddr,
        published: &Published,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.method() != Method::PUT {
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "PUT only\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("PUT"));
            return response;
        }
        let (answer, outcome) = match self.take(request, client, published).await {
            Ok(code) => (published.status(code), "admitted"),
            Err(refusal) => (reply(refusal.status(), TEXT, format!("{refusal}\n")), refusal.outcome()),
        };
        self.counted.get_or_create(&Outcome { outcome }).inc();
        answer
    }

    async fn take<B>(
        &self,
        request: Request<B>,
        client: IpAddr,
        published: &Published,
    ) -> Result<StatusCode, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let text = request.headers().get(names::SEAL_HEADER).ok_or(Refusal::NoSeal)?.as_bytes().to_vec();
        let seal = self.authority.open(&text).map_err(Refused::from)?;
        let (pushed, (in_force, seen)) = (seal.generation, published.taken());
        if let Some(in_force) = in_force.filter(|in_force| pushed < *in_force) {
            return Err(Refusal::Outdated { pushed, in_force });
        }
        let digest = seal.parts.get(names::CONFIG_KEY).cloned().unwrap_or_default();
        let mut until = Instant::now() + ANSWER_WITHIN;
        // Who sends again what was taken, the controller or not, need not be listened to.
        if in_force != Some(pushed) || seen.as_ref() != Some(&digest) {
            let _slot = self.slot(client)?;
            let config = body(request.into_body()).await?;
            until = Instant::now() + ANSWER_WITHIN;
            timeout_at(until, self.hand_over(text, config)).await.map_err(|_| Refusal::NotTaken)??;
        }
        let carried_out = timeout_at(until, published.carried_out(&digest, pushed)).await;
        Ok(if carried_out.is_ok() { StatusCode::OK } else { StatusCode::ACCEPTED })
    }

    /// Checks a configuration, and has the agent take it.
    async fn hand_over(&self, seal: Vec<u8>, config: Vec<u8>) -> Result<(), Refusal> {
        let authority = self.authority.clone();
        // Hashing and parsing as much as a ConfigMap holds takes long.
        let sealed = off_loop(async move || Ok(Sealed::new(&authority, seal, config))).await;
        let sealed = sealed.map_err(|_| Refusal::NotTaken)??;
        let (answer, answered) = oneshot::channel();
        self.to_agent.send(Push { sealed, answer }).await.map_err(|_| Refusal::NotTaken)?;
        answered.await.map_err(|_| Refusal::NotTaken)?
    }
}

/// Reads a body as long as a configuration may be.
async fn body<B>(body: B) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.size_hint().lower() > names::CONFIG_MAP_MAX as u64 {
        return Err(Refusal::TooLong);
    }
    let body = Limited::new(body, names::CONFIG_MAP_MAX).collect();
    match timeout(BODY_TIMEOUT, body).await.map_err(|_| Refusal::Slow)? {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLong),
        Err(_) => Err(Refusal::BrokenOff),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use lb_svc_crds::gateway::GatewayStatus;
    use lb_svc_crds::seal::{PrivateKey, Seal};
    use prometheus_client::registry::Registry;

    use super::*;

    const CONFIG: &[u8] = br#"{"version": 1, "attachment": "a/b", "addresses": [], "frontends": []}"#;
    const CONTROLLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const GREEDY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    struct Scene {
        pushes: Arc<Pushes>,
        published: Arc<Published>,
        agent: mpsc::Receiver<Push>,
    }

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32]).unwrap()
    }

    fn seal(generation: u64, config: &[u8]) -> String {
        key(1).sign(&Seal::of_config("uid", generation, config))
    }

    fn request<B>(seal: &str, body: B) -> Request<B> {
        Request::put(names::PUSH_PATH).header(names::SEAL_HEADER, seal).body(body).unwrap()
    }

    fn pushed(generation: u64) -> Request<Full<Bytes>> {
        request(&seal(generation, CONFIG), Full::from(CONFIG))
    }

    /// A body of which nothing arrives.
    fn silent() -> impl Body<Data = Bytes, Error = Infallible> {
        StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>())
    }

    impl Scene {
        /// A gateway that has generation 5 in force.
        fn new() -> Self {
            let authority = Authority { gateway: "uid".into(), trusted: vec![key(1).public()] };
            let (pushes, agent) = Pushes::new(authority, Family::default());
            let published = Arc::new(Published::new(Registry::default(), Vec::new()));
            published.set(GatewayStatus { generation: Some(5), ..GatewayStatus::default() }, true);
            Self { pushes, published, agent }
        }

        /// Has the agent take whatever is pushed, and carry it out after a while.
        fn agent(mut self, after: Duration) -> (Arc<Pushes>, Arc<Published>) {
            let published = Arc::clone(&self.published);
            tokio::spawn(async move {
                while let Some(Push { sealed, answer }) = self.agent.recv().await {
                    answer.send(Ok(())).unwrap();
                    tokio::time::sleep(after).await;
                    let (digest, generation) = (Some(sealed.digest), Some(sealed.generation));
                    let seen = digest.clone();
                    let status = GatewayStatus { digest, seen, generation, ..GatewayStatus::default() };
                    published.set(status, true);
                }
            });
            (self.pushes, self.published)
        }

        async fn refused<B>(&self, request: Request<B>) -> (u16, String)
        where
            B: Body<Data = Bytes>,
            B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        {
            said(self.pushes.answer(request, GREEDY, &self.published).await).await
        }
    }

    async fn said(response: Response<Full<Bytes>>) -> (u16, String) {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn answer_comes_when_the_kernel_carries_it_out_or_says_that_it_does_not_yet() {
        for (after, expected) in [(100, 200), (1000, 202)] {
            let (pushes, published) = Scene::new().agent(Duration::from_millis(after));
            let start = Instant::now();
            let (code, status) = said(pushes.answer(pushed(6), CONTROLLER, &published).await).await;
            assert_eq!(code, expected, "{status}");
            assert_eq!(start.elapsed().as_millis(), u128::from(after.min(200)));
            let status: GatewayStatus = serde_json::from_str(&status).unwrap();
            assert_eq!(status.generation, Some(if code == 200 { 6 } else { 5 }));
            assert_eq!(status.digest.is_some(), code == 200);
        }
    }

    #[tokio::test]
    async fn push_is_refused_by_a_code_and_a_sentence() {
        let scene = Scene::new();
        let put = |seal: &str, config: &'static [u8]| request(seal, Full::from(config));
        let none = Request::put(names::PUSH_PATH).body(Full::from(CONFIG)).unwrap();
        let forged = key(2).sign(&Seal::of_config("uid", 9, CONFIG));
        let foreign = key(1).sign(&Seal::of_config("other", 9, CONFIG));
        let long: &'static [u8] = vec![b' '; names::CONFIG_MAP_MAX + 1].leak();
        for (request, code, words) in [
            (none, 400, names::SEAL_HEADER),
            (put("{", CONFIG), 403, "cannot be read"),
            (put(&forged, CONFIG), 403, "by no key that the gateway trusts"),
            (put(&foreign, CONFIG), 403, "signed for gateway other"),
            (put(&seal(4, CONFIG), CONFIG), 409, "of generation 4, and another one of generation 5"),
            (put(&seal(6, CONFIG), &CONFIG[1..]), 422, "is not what was signed"),
            (put(&seal(6, CONFIG), b""), 422, "is not what was signed"),
            (put(&seal(6, b"{}"), b"{}"), 422, "cannot be carried out"),
            (put(&seal(6, long), long), 413, "1048576 bytes"),
        ] {
            let (refused, text) = scene.refused(request).await;
            assert_eq!(refused, code, "{text}");
            assert!(text.contains(words), "{text}");
        }
        let get = Request::get(names::PUSH_PATH).body(Full::from(CONFIG)).unwrap();
        assert_eq!(scene.refused(get).await.0, 405);
        let counted = |outcome| scene.pushes.counted.get_or_create(&Outcome { outcome }).get();
        let outcomes = ["unsigned", "outdated", "invalid", "malformed", "admitted"].map(counted);
        assert_eq!(outcomes, [6, 1, 1, 1, 0]);
    }

    #[tokio::test]
    async fn what_the_agent_refuses_is_said() {
        let mut scene = Scene::new();
        for (refusal, code) in [
            (Refusal::Outdated { pushed: 5, in_force: 5 }, 409),
            (Refusal::NotKept("no space".to_owned()), 507),
        ] {
            let request = pushed(5);
            let (pushes, published) = (Arc::clone(&scene.pushes), Arc::clone(&scene.published));
            let answer = pushes.answer(request, CONTROLLER, &published);
            let agent = async {
                scene.agent.recv().await.unwrap().answer.send(Err(refusal.clone())).unwrap();
            };
            let (answer, ()) = tokio::join!(answer, agent);
            assert_eq!(said(answer).await, (code, format!("{refusal}\n")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_is_held_up_holds_no_client_up() {
        let scene = Scene::new();
        let start = Instant::now();
        assert_eq!(scene.refused(pushed(6)).await.0, 503);
        assert_eq!(start.elapsed(), ANSWER_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_greedy_clients_hold_no_other_up() {
        let (pushes, published) = Scene::new().agent(Duration::ZERO);
        let slow = tokio::spawn({
            let (pushes, published) = (Arc::clone(&pushes), Arc::clone(&published));
            let request = request(&seal(6, CONFIG), silent());
            async move { said(pushes.answer(request, GREEDY, &published).await).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let greedy = said(pushes.answer(pushed(6), GREEDY, &published).await).await;
        assert_eq!(greedy.0, 503, "one of each address: {}", greedy.1);
        let start = Instant::now();
        let controller = pushes.answer(pushed(6), CONTROLLER, &published).await;
        assert_eq!((controller.status(), start.elapsed()), (StatusCode::OK, Duration::ZERO));
        assert_eq!(slow.await.unwrap().0, 408);
        assert_eq!(start.elapsed().as_millis() / 100, 19, "after the time of a body");
        assert_eq!(said(pushes.answer(pushed(7), GREEDY, &published).await).await.0, 200, "its slot is free");

        // A few at a time, whoever they are.
        let mut slow: Vec<_> = (10..14)
            .map(|last| {
                Box::pin(pushes.answer(
                    request(&seal(8, CONFIG), silent()),
                    IpAddr::from([10, 0, 0, last]),
                    &published,
                ))
            })
            .collect();
        for answer in &mut slow {
            assert!(futures::poll!(answer).is_pending());
        }
        assert_eq!(said(pushes.answer(pushed(8), CONTROLLER, &published).await).await.0, 503);
        slow.pop();
        assert_eq!(
            said(pushes.answer(pushed(8), CONTROLLER, &published).await).await.0,
            200,
            "one went away"
        );
    }

    #[tokio::test]
    async fn body_without_a_later_seal_is_not_read() {
        let scene = Scene::new();
        let forged = key(2).sign(&Seal::of_config("uid", 9, CONFIG));
        for (seal, code) in [(forged, 403), (seal(4, CONFIG), 409)] {
            assert_eq!(scene.refused(request(&seal, silent())).await.0, code);
        }
        let taken = Some(names::digest(CONFIG));
        let (digest, seen, generation) = (taken.clone(), taken, Some(5));
        scene.published.set(GatewayStatus { digest, seen, generation, ..GatewayStatus::default() }, true);
        let again = request(&seal(5, CONFIG), silent());
        assert_eq!(scene.refused(again).await.0, 200, "it was taken");
        assert!(scene.pushes.taken().is_empty());
    }
}
