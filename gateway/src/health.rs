//! Whether endpoints are well, found out by asking them: by connecting, or by
//! an HTTP request. One that is not gets no new connections while there are
//! others; where none is, all of them do, for it is then more likely that the
//! question is wrong than that each of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use lb_svc_crds::gateway::{HealthCheck, Transport};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::{Forwards, Served, Target};

/// An endpoint, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The endpoint.
    pub endpoint: SocketAddrV4,
    /// How.
    pub check: Arc<HealthCheck>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Whether it is well, once it has answered or failed to.
    well: Option<bool>,
    /// How many answers in a row say otherwise.
    against: u32,
    /// When it is asked next; `None` while it is.
    next: Option<Instant>,
}

/// What is known of the endpoints. Pure: time and answers come in from outside.
#[derive(Debug, Default)]
pub struct Health(BTreeMap<Question, State>);

impl Health {
    /// These are the endpoints to know about. New ones are asked at once.
    pub fn set(&mut self, now: Instant, forwards: &Forwards) {
        let mut wanted = BTreeSet::new();
        for (served, target) in forwards {
            let (Some(check), Some(endpoints)) = (check(served, target), target.endpoints()) else {
                continue;
            };
            let question =
                |endpoint: &SocketAddrV4| Question { endpoint: *endpoint, check: Arc::clone(check) };
            wanted.extend(endpoints.live.iter().map(question));
        }
        self.0.retain(|question, _| wanted.contains(question));
        for question in wanted {
            self.0.entry(question).or_insert(State { next: Some(now), ..State::default() });
        }
    }

    /// Whom to ask now, at most so many; until the answer is [`Self::found`]
    /// they are not asked again.
    pub fn take(&mut self, now: Instant, most: usize) -> Vec<Question> {
        let due = self.0.iter_mut().filter(|(_, state)| state.next.is_some_and(|next| next <= now));
        let take = |(question, state): (&Question, &mut State)| {
            state.next = None;
            question.clone()
        };
        due.take(most).map(take).collect()
    }

    /// When there is somebody to ask.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|state| state.next).min()
    }

    /// Whether it was found well. Returns whether that makes it another than
    /// it was taken to be.
    pub fn found(&mut self, now: Instant, question: &Question, well: bool) -> bool {
        let Some(state) = self.0.get_mut(question) else { return false };
        let HealthCheck { interval_ms, rise, fall, .. } = *question.check;
        state.next = Some(now + Duration::from_millis(interval_ms.into()));
        state.against = if state.well == Some(well) { 0 } else { state.against + 1 };
        // The first answer of all is believed.
        let enough = if state.well.is_none() {
            1
        } else if well {
            rise
        } else {
            fall
        };
        let turns = state.against >= enough;
        if turns {
            (state.well, state.against) = (Some(well), 0);
        }
        turns
    }

    /// Those that are not known to be well.
    pub fn unhealthy(&self) -> BTreeSet<SocketAddr> {
        let unhealthy = self.0.iter().filter(|(_, state)| state.well != Some(true));
        unhealthy.map(|(question, _)| question.endpoint.into()).collect()
    }

    /// Where everything leads while those that are not well get nothing new.
    pub fn apply(&self, mut forwards: Forwards) -> Forwards {
        for (served, target) in &mut forwards {
            let Some(check) = check(served, target).cloned() else { continue };
            let Target::Endpoints(endpoints) = target else { continue };
            let is_well = |endpoint: &&SocketAddrV4| {
                let question = Question { endpoint: **endpoint, check: Arc::clone(&check) };
                self.0.get(&question).is_some_and(|state| state.well == Some(true))
            };
            let (well, unwell): (BTreeSet<SocketAddrV4>, _) = endpoints.live.iter().partition(is_well);
            if !well.is_empty() && !unwell.is_empty() {
                let endpoints = Arc::make_mut(endpoints);
                endpoints.live = well;
                endpoints.draining.extend::<BTreeSet<SocketAddrV4>>(unwell);
            }
        }
        forwards
    }
}

/// How the endpoints of a port are asked, if they are: none of UDP is.
fn check<'a>(served: &Served, target: &'a Target) -> Option<&'a Arc<HealthCheck>> {
    target.endpoints().filter(|_| served.transport == Transport::Tcp)?.check.as_ref()
}

/// Asks an endpoint whether it is well; why not, if it is not.
///
/// # Errors
/// It does not answer in time, or not well.
pub async fn ask(question: &Question) -> io::Result<()> {
    let timeout = Duration::from_millis(question.check.timeout_ms.into());
    tokio::time::timeout(timeout, answer(question)).await?
}

async fn answer(Question { endpoint, check }: &Question) -> io::Result<()> {
    let stream = TcpStream::connect(endpoint).await?;
    // So many connections are made that those that linger would add up.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let Some(path) = &check.path else { return Ok(()) };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(HOST, endpoint.to_string())
        .header(USER_AGENT, concat!("lb-svc-gateway/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    // What follows the head is not waited for.
    let head = async move { sender.send_request(request).await.map(|response| response.status()) };
    let (status, _) = tokio::join!(head, connection);
    let status = status.map_err(io::Error::other)?;
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(io::Error::other(format!("it answers {status}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoints;

    fn check() -> Arc<HealthCheck> {
        Arc::new(HealthCheck { path: None, interval_ms: 1000, timeout_ms: 500, rise: 2, fall: 3 })
    }

    fn pod(number: u8) -> SocketAddrV4 {
        SocketAddrV4::new([10, 16, 0, number].into(), 80)
    }

    fn question(number: u8) -> Question {
        Question { endpoint: pod(number), check: check() }
    }

    fn forwards(numbers: &[u8]) -> Forwards {
        let live = numbers.iter().copied().map(pod).collect();
        let endpoints = Endpoints { live, check: Some(check()), ..Endpoints::default() };
        let served = |transport| Served { address: [172, 18, 0, 18].into(), transport, port: 80 };
        let target = Target::Endpoints(Arc::new(endpoints));
        [(served(Transport::Tcp), target.clone()), (served(Transport::Udp), target)].into()
    }

    fn live(health: &Health, numbers: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let forwards = health.apply(forwards(numbers));
        let target = forwards.values().next().unwrap().endpoints().unwrap().clone();
        let last = |set: BTreeSet<SocketAddrV4>| set.into_iter().map(|at| at.ip().octets()[3]).collect();
        (last(target.live), last(target.draining))
    }

    #[test]
    fn who_is_not_well_gets_nothing_new_while_another_is() {
        let now = Instant::now();
        let mut health = Health::default();
        health.set(now, &forwards(&[1, 2]));
        assert_eq!(live(&health, &[1, 2]), (vec![1, 2], vec![]), "nothing is known");
        assert_eq!(health.take(now, 1), [question(1)]);
        assert_eq!(health.take(now, 9), [question(2)]);
        assert_eq!((health.take(now, 9), health.due()), (vec![], None), "they are being asked");
        assert!(health.found(now, &question(1), true), "the first answer counts");
        assert_eq!(live(&health, &[1, 2]), (vec![1], vec![2]));
        assert_eq!(health.unhealthy(), [pod(2).into()].into());
        let udp = health.apply(forwards(&[1, 2]));
        assert_eq!(udp.values().last().unwrap().endpoints().unwrap().live.len(), 2, "UDP is not asked");
        assert!(health.found(now, &question(2), true));
        assert_eq!(health.due(), Some(now + Duration::from_secs(1)));

        for last in [false, false, true] {
            assert_eq!(health.found(now, &question(1), false), last);
        }
        assert_eq!(live(&health, &[1, 2]), (vec![2], vec![1]));
        // Both: as good as none.
        for _ in 0..3 {
            health.found(now, &question(2), false);
        }
        assert_eq!(live(&health, &[1, 2]), (vec![1, 2], vec![]));
        assert_eq!(health.unhealthy().len(), 2);
        assert!(!health.found(now, &question(1), true));
        assert!(!health.found(now, &question(1), false), "the count begins anew");
        assert!(!health.found(now, &question(1), true));
        assert!(health.found(now, &question(1), true));
    }

    #[test]
    fn what_is_known_goes_with_the_endpoint() {
        let now = Instant::now();
        let mut health = Health::default();
        health.set(now, &forwards(&[1, 2]));
        health.found(now, &question(1), true);
        health.set(now, &forwards(&[1, 3]));
        assert!(!health.found(now, &question(2), true), "an answer that comes too late");
        assert_eq!(health.unhealthy(), [pod(3).into()].into());
    }
}
