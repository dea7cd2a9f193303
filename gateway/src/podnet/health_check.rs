//! Health checks of endpoints, by connecting or by an HTTP request. An endpoint that
//! is not healthy gets no new connections while another is. If none is healthy, all
//! of them do: then the check is more likely to be wrong than every endpoint.
//!
//! Every TCP port's endpoints are checked for that port; or, where the check names a
//! port, that one's are, for all ports. Where the endpoints of a port expect the PROXY
//! protocol, the check begins with its header, that of a connection of our own; not where
//! it names a port, which is taken to expect none.

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
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Outgoing, SILENT_AFTER, connect};
use crate::config::{Endpoints, Forward, Forwards, Frontend, Target};
use crate::proxy::header::LOCAL;

/// Most checks that run at a time.
const CONCURRENCY: usize = 256;
/// Most checks to start in a window: 500 a second. If more are wanted, each waits for
/// its turn, which makes the intervals longer.
const PER_WINDOW: usize = 50;
/// The window.
const WINDOW: Duration = Duration::from_millis(100);

/// A check of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Check {
    /// The endpoint.
    endpoint: SocketAddrV4,
    /// How to check it.
    settings: Arc<HealthCheck>,
    /// Whether it expects the header of the PROXY protocol.
    header: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Whether the endpoint is healthy; `None` before the first result.
    healthy: Option<bool>,
    /// The number of consecutive results to the contrary.
    contrary: u32,
    /// When to check next; `None` while a check is running.
    next: Option<Instant>,
    /// Since when no check has had any answer.
    unanswered_since: Option<Instant>,
    /// That is so for a minute.
    silent: bool,
}

/// What came of a check.
#[derive(Debug)]
enum Outcome {
    Healthy,
    /// The endpoint answers, and not as a healthy one does.
    Unhealthy(io::Error),
    /// Nothing answers.
    Unanswered(io::Error),
}

/// How many checks were started lately.
#[derive(Debug, Default)]
struct Pace {
    /// When the present window began.
    since: Option<Instant>,
    started: usize,
}

impl Pace {
    /// How many more may be started now.
    fn left(&mut self, now: Instant) -> usize {
        if self.ends().is_none_or(|end| end <= now) {
            *self = Self { since: Some(now), started: 0 };
        }
        PER_WINDOW - self.started
    }

    /// When the present window ends.
    fn ends(&self) -> Option<Instant> {
        self.since.map(|since| since + WINDOW)
    }
}

/// The health of all endpoints. Pure: time and results are inputs.
#[derive(Debug, Default)]
struct Health {
    states: BTreeMap<Check, State>,
    pace: Pace,
}

impl Health {
    /// Sets the endpoints to check. The first check of a new one is due at once.
    fn set(&mut self, now: Instant, forwards: &Forwards) {
        let mut wanted = BTreeSet::new();
        for (frontend, forward) in forwards {
            let Some(endpoints) = forward.target.endpoints() else { continue };
            let Some(probe) = Probe::of(frontend, endpoints, forwards) else { continue };
            wanted.extend(endpoints.live.iter().flat_map(|endpoint| probe.checks(endpoint)));
        }
        self.states.retain(|check, _| wanted.contains(check));
        for check in wanted {
            self.states.entry(check).or_insert(State { next: Some(now), ..State::default() });
        }
    }

    /// Returns up to `limit` checks that are due, and marks them as running until
    /// their result is recorded. Those that have been due for longest come first.
    fn take(&mut self, now: Instant, limit: usize) -> Vec<Check> {
        let limit = limit.min(self.pace.left(now));
        let due = self.states.iter_mut().filter_map(|(check, state)| Some((state.next?, check, state)));
        let mut due: Vec<_> = due.filter(|(next, ..)| *next <= now).collect();
        due.sort_by_key(|(next, ..)| *next);
        due.truncate(limit);
        self.pace.started += due.len();
        let take = |(_, check, state): (Instant, &Check, &mut State)| {
            state.next = None;
            check.clone()
        };
        due.into_iter().map(take).collect()
    }

    /// When the next check is due and may be started.
    fn due(&self) -> Option<Instant> {
        let next = self.states.values().filter_map(|state| state.next).min()?;
        let paused = (self.pace.started == PER_WINDOW).then(|| self.pace.ends()).flatten();
        Some(paused.map_or(next, |end| end.max(next)))
    }

    /// How many checks a second the settings ask for.
    fn wanted_per_second(&self) -> f64 {
        let rate = |check: &Check| 1000.0 / f64::from(check.settings.interval_ms);
        self.states.keys().map(rate).sum()
    }

    /// Records a result. Returns whether the endpoint's state changed.
    fn record(&mut self, now: Instant, check: &Check, healthy: bool) -> bool {
        let Some(state) = self.states.get_mut(check) else { return false };
        let HealthCheck { interval_ms, rise, fall, .. } = *check.settings;
        state.next = Some(now + Duration::from_millis(interval_ms.into()));
        state.contrary = if state.healthy == Some(healthy) { 0 } else { state.contrary + 1 };
        // The very first result counts at once.
        let threshold = match (state.healthy, healthy) {
            (None, _) => 1,
            (_, true) => rise,
            (_, false) => fall,
        };
        let changed = state.contrary >= threshold;
        if changed {
            (state.healthy, state.contrary) = (Some(healthy), 0);
        }
        changed
    }

    /// Records whether anything answered. Returns whether that is news.
    fn record_answer(&mut self, now: Instant, check: &Check, answered: bool) -> bool {
        let Some(state) = self.states.get_mut(check) else { return false };
        if answered {
            state.unanswered_since = None;
        } else {
            state.unanswered_since.get_or_insert(now);
        }
        let silent = state.unanswered_since.is_some_and(|since| since + SILENT_AFTER <= now);
        std::mem::replace(&mut state.silent, silent) != silent
    }

    /// The ports none of whose endpoints has answered for a minute.
    fn silent(&self, forwards: &Forwards) -> BTreeSet<u16> {
        let is_silent = |(frontend, forward): &(&Frontend, &Forward)| {
            let Some(endpoints) = forward.target.endpoints() else { return false };
            let Some(probe) = Probe::of(frontend, endpoints, forwards) else { return false };
            let mut checks = endpoints.live.iter().flat_map(|endpoint| probe.checks(endpoint)).peekable();
            let silent = |check| self.states.get(&check).is_some_and(|state| state.silent);
            checks.peek().is_some() && checks.all(silent)
        };
        forwards.iter().filter(is_silent).map(|(frontend, _)| frontend.port).collect()
    }

    /// The endpoints that are not known to be healthy.
    fn unhealthy(&self) -> BTreeSet<SocketAddr> {
        let unhealthy = self.states.iter().filter(|(_, state)| state.healthy != Some(true));
        unhealthy.map(|(check, _)| check.endpoint.into()).collect()
    }

    /// The forwarding table in which endpoints that are not healthy drain, if
    /// another one of their frontend is healthy.
    fn apply(&self, forwards: &Forwards) -> Forwards {
        let mut applied = forwards.clone();
        for (frontend, forward) in &mut applied {
            let Target::Endpoints(endpoints) = &mut forward.target else { continue };
            let Some(probe) = Probe::of(frontend, endpoints, forwards) else { continue };
            let passed = |check| self.states.get(&check).is_some_and(|state| state.healthy == Some(true));
            let is_healthy = |endpoint: &&SocketAddrV4| probe.checks(endpoint).all(passed);
            let (healthy, unhealthy): (BTreeSet<SocketAddrV4>, _) =
                endpoints.live.iter().partition(is_healthy);
            if !healthy.is_empty() && !unhealthy.is_empty() {
                let endpoints = Arc::make_mut(endpoints);
                endpoints.live = healthy;
                endpoints.draining.extend::<BTreeSet<SocketAddrV4>>(unhealthy);
            }
        }
        applied
    }
}

/// How the endpoints of a frontend are checked.
struct Probe<'a> {
    settings: Arc<HealthCheck>,
    /// The endpoints of the port that is checked for all ports, if one is.
    of_port: Option<&'a BTreeSet<SocketAddrV4>>,
    header: bool,
}

impl<'a> Probe<'a> {
    /// How these endpoints of a frontend are checked, if at all: UDP is not, unless a
    /// TCP port is checked for it.
    fn of(frontend: &Frontend, endpoints: &Endpoints, forwards: &'a Forwards) -> Option<Self> {
        let settings = Arc::clone(endpoints.check.as_ref()?);
        let of_port = match settings.port {
            Some(port) => {
                let checked = Frontend { transport: Transport::Tcp, port, ..*frontend };
                Some(&forwards.get(&checked)?.target.endpoints()?.live)
            }
            None if frontend.transport == Transport::Tcp => None,
            None => return None,
        };
        let is_proxied = forwards.get(frontend).is_some_and(|forward| forward.proxied);
        Some(Self { header: is_proxied && of_port.is_none(), settings, of_port })
    }

    /// The checks that an endpoint has to pass. None, if the port that is checked does
    /// not lead to it.
    fn checks(&self, endpoint: &SocketAddrV4) -> impl Iterator<Item = Check> {
        let ports =
            |first, last| SocketAddrV4::new(*endpoint.ip(), first)..=SocketAddrV4::new(*endpoint.ip(), last);
        let itself = self.of_port.is_none().then_some(*endpoint);
        let of_port = self.of_port.into_iter().flat_map(move |all| all.range(ports(0, u16::MAX)).copied());
        let check = |endpoint| Check { endpoint, settings: Arc::clone(&self.settings), header: self.header };
        itself.into_iter().chain(of_port).map(check)
    }
}

/// The health checks with their running tasks.
#[derive(Default)]
pub struct HealthChecks {
    health: Health,
    running: JoinSet<(Check, Outcome)>,
    /// More checks are wanted than are run, which was logged.
    stretched: bool,
    outgoing: Outgoing,
}

impl HealthChecks {
    /// Sets the forwarding table whose endpoints to check, and which way, and returns the
    /// one in which endpoints that are not healthy drain, if another one of their frontend
    /// is healthy.
    pub fn set(&mut self, now: Instant, forwards: &Forwards, outgoing: Outgoing) -> Forwards {
        self.outgoing = outgoing;
        self.health.set(now, forwards);
        let wanted = self.health.wanted_per_second();
        let most = PER_WINDOW as f64 / WINDOW.as_secs_f64();
        let stretched = wanted > most;
        if std::mem::replace(&mut self.stretched, stretched) != stretched && stretched {
            warn!(wanted, most, "health checks a second limited: their intervals are longer than set");
        }
        self.health.apply(forwards)
    }

    /// When [`Self::start`] is to be called next; `None` while it could not start
    /// any.
    pub fn due(&self) -> Option<Instant> {
        self.health.due().filter(|_| self.running.len() < CONCURRENCY)
    }

    /// Starts the checks that are due.
    pub fn start(&mut self, now: Instant) {
        for check in self.health.take(now, CONCURRENCY - self.running.len()) {
            let outgoing = self.outgoing.clone();
            self.running.spawn(async move {
                let outcome = run(&check, &outgoing).await;
                (check, outcome)
            });
        }
    }

    /// Waits for a check to end, and returns whether its endpoint's state changed;
    /// never resolves while none is running.
    pub async fn next(&mut self) -> bool {
        let Some(Ok((check, outcome))) = self.running.join_next().await else {
            return std::future::pending().await;
        };
        let now = Instant::now();
        let changed = self.health.record(now, &check, matches!(outcome, Outcome::Healthy));
        let answered = !matches!(outcome, Outcome::Unanswered(_));
        let silence_changed = self.health.record_answer(now, &check, answered);
        match outcome {
            _ if !changed => {}
            Outcome::Healthy => info!(endpoint = %check.endpoint, "endpoint healthy"),
            Outcome::Unhealthy(error) | Outcome::Unanswered(error) => {
                warn!(endpoint = %check.endpoint, %error, "endpoint unhealthy");
            }
        }
        changed || silence_changed
    }

    /// The ports none of whose endpoints has answered for a minute.
    pub fn silent(&self, forwards: &Forwards) -> BTreeSet<u16> {
        self.health.silent(forwards)
    }

    /// The endpoints that are not known to be healthy.
    pub fn unhealthy(&self) -> BTreeSet<SocketAddr> {
        self.health.unhealthy()
    }
}

/// Runs a check.
async fn run(check: &Check, outgoing: &Outgoing) -> Outcome {
    let timeout = Duration::from_millis(check.settings.timeout_ms.into());
    let deadline = tokio::time::Instant::now() + timeout;
    let connected = tokio::time::timeout_at(deadline, connect(outgoing, check.endpoint)).await;
    let stream = match connected.unwrap_or_else(|elapsed| Err(elapsed.into())) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Outcome::Unhealthy(error),
        Err(error) => return Outcome::Unanswered(error),
    };
    let answered = tokio::time::timeout_at(deadline, ask(check, stream)).await;
    match answered.unwrap_or_else(|elapsed| Err(elapsed.into())) {
        Ok(()) => Outcome::Healthy,
        Err(error) => Outcome::Unhealthy(error),
    }
}

/// Asks an endpoint on a connection.
///
/// # Errors
/// If it answers that it is unhealthy.
async fn ask(Check { endpoint, settings, header }: &Check, stream: TcpStream) -> io::Result<()> {
    // Closed by a reset: otherwise connections in TIME_WAIT would add up.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    // Nothing was sent on it yet: the kernel takes a few bytes.
    if *header && stream.try_write(&LOCAL)? < LOCAL.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let Some(path) = &settings.path else { return Ok(()) };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(HOST, endpoint.to_string())
        .header(USER_AGENT, concat!("lb-svc-gateway/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    // Only the head of the response is waited for.
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
    fn settings() -> Arc<HealthCheck> {
        Arc::new(HealthCheck { path: None, port: None, interval_ms: 1000, timeout_ms: 500, rise: 2, fall: 3 })
    }

    fn pod(number: u8) -> SocketAddrV4 {
        SocketAddrV4::new([10, 16, 0, number].into(), 80)
    }

    fn check(number: u8) -> Check {
        Check { endpoint: pod(number), settings: settings(), header: false }
    }

    fn forwards(numbers: &[u8]) -> Forwards {
        let live = numbers.iter().copied().map(pod).collect();
        let endpoints = Endpoints { live, check: Some(settings()), ..Endpoints::default() };
        let frontend = |transport| Frontend { address: [172, 18, 0, 18].into(), transport, port: 80 };
        let target = Target::Endpoints(Arc::new(endpoints));
        let forward = Forward { service: "default/web".into(), target, clients: None, proxied: false };
        [(frontend(Transport::Tcp), forward.clone()), (frontend(Transport::Udp), forward)].into()
    }

    fn live(health: &Health, numbers: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let forwards = health.apply(&forwards(numbers));
        let target = forwards.values().next().unwrap().target.endpoints().unwrap().clone();
        let last = |set: BTreeSet<SocketAddrV4>| set.into_iter().map(|at| at.ip().octets()[3]).collect();
        (last(target.live), last(target.draining))
    }

    #[test]
    fn unhealthy_endpoint_drains_while_another_is_healthy() {
        let now = Instant::now();
        let mut health = Health::default();
        health.set(now, &forwards(&[1, 2]));
        assert_eq!(live(&health, &[1, 2]), (vec![1, 2], vec![]), "nothing is known");
        assert_eq!(health.take(now, 1), [check(1)]);
        assert_eq!(health.take(now, 9), [check(2)]);
        assert_eq!((health.take(now, 9), health.due()), (vec![], None), "they are running");
        assert!(health.record(now, &check(1), true), "the first result counts");
        assert_eq!(live(&health, &[1, 2]), (vec![1], vec![2]));
        assert_eq!(health.unhealthy(), [pod(2).into()].into());
        let udp = health.apply(&forwards(&[1, 2]));
        assert_eq!(
            udp.values().last().unwrap().target.endpoints().unwrap().live.len(),
            2,
            "UDP is not checked"
        );
        assert!(health.record(now, &check(2), true));
        assert_eq!(health.due(), Some(now + Duration::from_secs(1)));

        for last in [false, false, true] {
            assert_eq!(health.record(now, &check(1), false), last);
        }
        assert_eq!(live(&health, &[1, 2]), (vec![2], vec![1]));
        // If both are unhealthy, both get connections.
        for _ in 0..3 {
            health.record(now, &check(2), false);
        }
        assert_eq!(live(&health, &[1, 2]), (vec![1, 2], vec![]));
        assert_eq!(health.unhealthy().len(), 2);
        assert!(!health.record(now, &check(1), true));
        assert!(!health.record(now, &check(1), false), "the count restarts");
        assert!(!health.record(now, &check(1), true));
        assert!(health.record(now, &check(1), true));
    }

    #[test]
    fn r31_checks_are_limited_to_500_a_second_and_none_is_left_out() {
        let start = Instant::now();
        let mut health = Health::default();
        // At an interval of a second that would be 1,400 a second.
        let pods = (0..200).map(|last| SocketAddrV4::new([10, 16, 0, last].into(), 80));
        let live = pods.chain((0..1200).map(|port| SocketAddrV4::new([10, 16, 1, 1].into(), port + 1)));
        let endpoints = Endpoints { live: live.collect(), check: Some(settings()), ..Endpoints::default() };
        let frontend = Frontend { address: [172, 18, 0, 18].into(), transport: Transport::Tcp, port: 80 };
        let target = Target::Endpoints(Arc::new(endpoints));
        let forward = Forward { service: "default/web".into(), target, clients: None, proxied: false };
        health.set(start, &[(frontend, forward)].into());
        assert!(health.wanted_per_second() > 1399.0);
        let mut counts = BTreeMap::new();
        let (mut now, mut most_in_a_second) = (start, 0);
        let mut taken = Vec::new();
        while now < start + Duration::from_secs(9) {
            for check in health.take(now, CONCURRENCY) {
                health.record(now, &check, true);
                *counts.entry(check.endpoint).or_insert(0) += 1;
                taken.push(now);
            }
            taken.retain(|at| *at + Duration::from_secs(1) > now);
            most_in_a_second = most_in_a_second.max(taken.len());
            let due = health.due().unwrap();
            assert!(due > now, "it would spin");
            now = due;
        }
        assert!(most_in_a_second <= 500, "{most_in_a_second}");
        assert_eq!(counts.len(), 1400);
        assert!(counts.values().all(|count| (3..=4).contains(count)), "{:?}", counts.values().min());
    }

    #[test]
    fn b15_named_port_is_checked_for_all_ports() {
        let now = Instant::now();
        let settings = Arc::new(HealthCheck { port: Some(80), ..(*settings()).clone() });
        let frontend = |transport, port| Frontend { address: [172, 18, 0, 18].into(), transport, port };
        let at = |number, port| SocketAddrV4::new([10, 16, 0, number].into(), port);
        let forward = |numbers: &[u8], port| {
            let live = numbers.iter().map(|number| at(*number, port)).collect();
            let endpoints = Endpoints { live, check: Some(Arc::clone(&settings)), ..Endpoints::default() };
            let target = Target::Endpoints(Arc::new(endpoints));
            Forward { service: "default/web".into(), target, clients: None, proxied: false }
        };
        let ports = [(Transport::Tcp, 80, 8080), (Transport::Tcp, 443, 8443), (Transport::Udp, 443, 8443)];
        let mut forwards: Forwards =
            ports.map(|(transport, port, to)| (frontend(transport, port), forward(&[1, 2], to))).into();
        // The other ports lead to one more, which the port does not.
        forwards.insert(frontend(Transport::Tcp, 8000), forward(&[1, 2, 3], 8000));
        let mut health = Health::default();
        health.set(now, &forwards);
        let checks = health.take(now, 9);
        let asked: Vec<_> = checks.iter().map(|check| check.endpoint).collect();
        assert_eq!(asked, [at(1, 8080), at(2, 8080)]);

        health.record(now, &checks[0], true);
        health.record(now, &checks[1], false);
        assert_eq!(health.unhealthy(), [at(2, 8080).into()].into());
        let live = |transport, port| -> Vec<u8> {
            let applied = health.apply(&forwards);
            let endpoints = applied[&frontend(transport, port)].target.endpoints().unwrap().clone();
            endpoints.live.iter().map(|at| at.ip().octets()[3]).collect()
        };
        for (transport, port, _) in ports {
            assert_eq!(live(transport, port), [1], "{transport:?} {port}");
        }
        assert_eq!(live(Transport::Tcp, 8000), [1, 3]);
    }

    #[test]
    fn proxied_port_is_checked_with_a_header_unless_the_check_names_a_port() {
        let now = Instant::now();
        for (port, proxied, expected) in
            [(None, true, true), (None, false, false), (Some(80), true, false), (Some(80), false, false)]
        {
            let settings = Arc::new(HealthCheck { port, ..(*settings()).clone() });
            let mut forwards = forwards(&[1]);
            for forward in forwards.values_mut() {
                let live = [pod(1)].into();
                let check = Some(Arc::clone(&settings));
                forward.target =
                    Target::Endpoints(Arc::new(Endpoints { live, check, ..Endpoints::default() }));
            }
            let tcp = Frontend { address: [172, 18, 0, 18].into(), transport: Transport::Tcp, port: 80 };
            forwards.get_mut(&tcp).unwrap().proxied = proxied;
            let mut health = Health::default();
            health.set(now, &forwards);
            let headers: Vec<bool> = health.take(now, 9).iter().map(|check| check.header).collect();
            assert_eq!(headers, [expected], "{port:?} {proxied}");
        }
    }

    #[test]
    fn r27_port_is_silent_when_none_of_its_endpoints_answers_for_a_minute() {
        let start = Instant::now();
        let minute = start + Duration::from_secs(60);
        let mut health = Health::default();
        let forwards = forwards(&[1, 2]);
        health.set(start, &forwards);
        for number in [1, 2] {
            assert!(!health.record_answer(start, &check(number), false));
        }
        assert!(health.record_answer(minute, &check(1), false));
        assert!(health.silent(&forwards).is_empty(), "of the other nothing is known");
        assert!(health.record_answer(minute, &check(2), false));
        assert_eq!(health.silent(&forwards), [80].into());
        // Any answer, be it a refusal.
        assert!(health.record_answer(minute, &check(2), true));
        assert!(health.silent(&forwards).is_empty());
    }

    #[test]
    fn state_is_dropped_with_the_endpoint() {
        let now = Instant::now();
        let mut health = Health::default();
        health.set(now, &forwards(&[1, 2]));
        health.record(now, &check(1), true);
        health.set(now, &forwards(&[1, 3]));
        assert!(!health.record(now, &check(2), true), "a result that comes too late");
        assert_eq!(health.unhealthy(), [pod(3).into()].into());
    }
}
