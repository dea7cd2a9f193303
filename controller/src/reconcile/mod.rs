//! Observe, plan, act: once for a key, whenever the queue says so.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use lb_svc_core::action::{Action, Plan};
use lb_svc_core::backend::convergence::Course;
use lb_svc_core::backend::readiness_gate::{Decision, UNHEALTHY, Wait};
use lb_svc_core::gateway::election::Seen;
use lb_svc_core::gateway::pod_settings::Configuration;
use lb_svc_core::ipam::{ClaimId, Refusal, Wish};
use lb_svc_core::model::{Answer, ObjectName, Owner, Part, Place, Pod, ServiceRef};
use lb_svc_core::service::plan::{Observed, STARTS_WITHIN, plan};
use lb_svc_core::subnet;
use lb_svc_crds::IP;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::api_server::client::{ApiServer, Error};
use crate::api_server::watch::{Watched, learn};
use crate::api_server::write::{Claimed, Written};
use crate::election_key::Master;
use crate::gateway_client::Asker;
use crate::index::{Key, State};
use crate::telemetry::metrics::Metrics;
use queue::Queue;

pub mod queue;

/// How often a settled gateway is asked how it fares.
const SETTLED: Duration = Duration::from_secs(60);
/// The same for one of which more changes than Kubernetes shows: who of several
/// pods answers, which endpoints are healthy.
const SETTLED_ALIVE: Duration = Duration::from_secs(10);
/// How often one is asked at least that holds pods up at our readiness gate.
const HOLDS: Duration = Duration::from_secs(1);
/// How soon one that is not settled is looked at again, and at most.
const UNSETTLED: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(5));
/// How soon a failed write is tried again, and at most.
const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// How often it is asked why a pod gets nothing to run with.
const HANGS_STILL: Duration = Duration::from_secs(20);
/// How many addresses are tried in one run when others are quicker.
const CLAIM_TRIES: usize = 32;

/// What this process remembers of a key between two runs. All of it may be
/// lost: it only paces.
#[derive(Debug, Default)]
struct Memory {
    /// Runs since the last write, while not settled.
    looks: u32,
    /// Failures in a row.
    failures: u32,
    /// When a Warning was last told.
    warned: Option<Instant>,
    /// The last nudge of each pod, by uid.
    nudges: HashMap<String, Instant>,
    /// When it was last asked why a pod hangs, and what was answered, by uid.
    causes: HashMap<String, (Instant, Option<(String, String)>)>,
    /// When the key was last made.
    keyed: Option<Instant>,
    /// The election among its pods, where it has several.
    election: Option<Seen>,
    /// How it fares, where it leads straight to endpoints.
    course: Option<Course>,
    /// Its wait for our readiness gate.
    wait: Option<Wait>,
}

/// Everything a run needs.
pub struct Reconciler {
    state: Arc<Mutex<State>>,
    configuration: Arc<Configuration>,
    api_server: ApiServer,
    asker: Asker,
    metrics: Arc<Metrics>,
    queue: Queue,
    memory: Mutex<HashMap<Key, Memory>>,
    /// The controller's own namespace.
    namespace: String,
    /// What gateways' keys are derived from, once one is needed.
    master: OnceCell<Master>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `n`th pause of a series that doubles from the first to the last.
fn pause((first, last): (Duration, Duration), n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(last)
}

/// `pause`, more or less, so that not all look at once.
fn about(pause: Duration) -> Duration {
    // Each of them is seeded anew.
    let random = RandomState::new().build_hasher().finish();
    let percent = u32::try_from(random % 50).unwrap_or_default();
    pause * (75 + percent) / 100
}

impl Reconciler {
    /// A reconciler over `state`, which lets others have their turn by `queue`;
    /// `namespace` is the controller's own.
    pub fn new(
        state: Arc<Mutex<State>>,
        configuration: Configuration,
        api_server: ApiServer,
        asker: Asker,
        metrics: Arc<Metrics>,
        queue: Queue,
        namespace: String,
    ) -> Self {
        let (memory, master) = (Mutex::default(), OnceCell::new());
        let configuration = Arc::new(configuration);
        Self { state, configuration, api_server, asker, metrics, queue, memory, namespace, master }
    }

    /// Brings `key` nearer to what is wanted; returns after which time to look
    /// again.
    pub async fn run(&self, key: Key) -> Option<Duration> {
        let outcome = match &key {
            Key::Gateway(service) => self.gateway(&key, service).await,
            Key::Subnet(name) => self.subnet(name).await,
            Key::Backend(name) => self.backend(&key, name).await,
        };
        let mut memory = lock(&self.memory);
        match outcome {
            Ok(again) => {
                self.metrics.run(None);
                if again.is_none() {
                    memory.remove(&key);
                } else if let Some(memory) = memory.get_mut(&key) {
                    memory.failures = 0;
                }
                again
            }
            Err(error) => {
                self.metrics.run(Some(error.category()));
                let memory = memory.entry(key.clone()).or_default();
                let wait = pause(FAILED, memory.failures);
                memory.failures += 1;
                // A conflict means that the cache is behind; what it lacks is
                // on its way.
                if error.is_conflict() {
                    tracing::debug!(?key, "{error}; tried again in {wait:?}");
                } else {
                    tracing::warn!(?key, "{error}; tried again in {wait:?}");
                }
                Some(wait)
            }
        }
    }

    async fn gateway(&self, key: &Key, service: &ServiceRef) -> Result<Option<Duration>, Error> {
        let answers = self.ask(service).await;
        self.ask_about(key, service).await;
        let mut refusal = None;
        let (observed, plan) = loop {
            let (observed, plan) = self.plan(key, service, &answers, refusal.take());
            let Some(Action::Claim(wish)) = plan.actions.last() else {
                break (observed, plan);
            };
            // What else is planned beside a claim is taking away: it comes
            // first, for it may be what frees the address.
            for action in &plan.actions[..plan.actions.len() - 1] {
                self.act(key, service, &observed, action).await?;
            }
            refusal = self.claim(service, wish, &observed.namespace).await?;
        };
        let mut done = Ok(());
        for action in &plan.actions {
            done = self.act(key, service, &observed, action).await;
            if let Err(error) = &done {
                self.explain(key, service, &observed, error).await;
                break;
            }
        }
        let mut state = lock(&self.state);
        // From here on the Deployment itself shows that it is being rolled; one
        // that moves has none for a while.
        let moves = plan.rolls && observed.is_away();
        self.queue.extend(state.set_rolling(service, moves, plan.queued, Instant::now()));
        let verdicts = plan.direct.as_ref().map(|direct| direct.verdicts.clone()).unwrap_or_default();
        self.queue.extend(state.set_verdicts(service, verdicts));
        done?;
        state.set_waiting(service, plan.waiting);
        drop(state);
        if let Some(direct) = &plan.direct {
            lock(&self.memory).entry(key.clone()).or_default().course = Some(direct.course.clone());
        }
        Ok(self.next(key, &observed, &plan))
    }

    /// Lets a pod pass our readiness gate when its time has come.
    async fn backend(&self, key: &Key, name: &ObjectName) -> Result<Option<Duration>, Error> {
        let seen = {
            let state = lock(&self.state);
            state.waiting_backend(name).map(|(backend, said)| (backend.clone(), said))
        };
        let Some((backend, said)) = seen else { return Ok(None) };
        let decision = {
            let now = Instant::now();
            let mut memory = lock(&self.memory);
            let wait = &mut memory.entry(key.clone()).or_default().wait;
            wait.get_or_insert_with(|| Wait::new(now)).decide(&said, now)
        };
        let (namespace, pod) = name;
        match decision {
            Decision::Pass { reason, message } => {
                self.learn(self.api_server.set_gate(name, &backend.uid, true, reason, &message).await?);
                tracing::info!(namespace, pod, reason, "passes its readiness gate: {message}");
                self.metrics.pass(reason);
                Ok(None)
            }
            Decision::Wait(again, said) => {
                if let Some(message) = said.filter(|_| !backend.told) {
                    self.learn(
                        self.api_server.set_gate(name, &backend.uid, false, UNHEALTHY, &message).await?,
                    );
                    tracing::warn!(namespace, pod, "waits at its readiness gate: {message}");
                }
                Ok(Some(again))
            }
        }
    }

    /// Says on the Service that the API server refuses what it needs.
    async fn explain(&self, key: &Key, service: &ServiceRef, observed: &Observed, error: &Error) {
        if !error.is_refusal() {
            return;
        }
        let told = lock(&self.memory).get(key).and_then(|memory| memory.election.clone());
        let observed = Observed { refused: Some(error.to_string()), election: told, ..observed.clone() };
        for action in plan(service, &observed).actions {
            if matches!(action, Action::SetStatus { .. } | Action::Event { .. } | Action::Remember(_))
                && let Err(error) = self.act(key, service, &observed, &action).await
            {
                tracing::warn!(%service, "nor can it be told: {error}");
            }
        }
    }

    fn next(&self, key: &Key, observed: &Observed, plan: &Plan) -> Option<Duration> {
        if observed.service.is_none() && observed.claims.is_empty() && observed.pods.is_empty() {
            return None;
        }
        let direct = plan.direct.as_ref();
        if plan.settled {
            let alive =
                observed.pods.iter().any(|pod| pod.member) || direct.is_some_and(|direct| direct.checks);
            return Some(if alive { about(SETTLED_ALIVE) } else { SETTLED });
        }
        let mut memory = lock(&self.memory);
        let memory = memory.entry(key.clone()).or_default();
        let wrote = plan
            .actions
            .iter()
            .any(|action| matches!(action, Action::WriteConfig(_) | Action::Annotate { .. }));
        memory.looks = if wrote { 0 } else { memory.looks + 1 };
        let (first, last) = UNSETTLED;
        let last = if direct.is_some_and(|direct| direct.holds) { last.min(HOLDS) } else { last };
        Some(pause((first, last), memory.looks))
    }

    /// Asks the gateway's pods how they fare, all at once.
    async fn ask(&self, service: &ServiceRef) -> HashMap<String, Answer> {
        let (_, pods) = lock(&self.state).pods(service);
        let asked =
            pods.iter().filter(|pod| pod.could_answer()).filter_map(|pod| Some((&pod.uid, pod.address?)));
        join_all(asked.map(async |(uid, address)| (uid.clone(), self.asker.ask(address).await)))
            .await
            .into_iter()
            .collect()
    }

    /// Asks why pods that have a node get nothing to run with. What their nodes
    /// say of it is in Events only.
    async fn ask_about(&self, key: &Key, service: &ServiceRef) {
        let now = jiff::Timestamp::now();
        let hangs = |pod: &Pod| {
            let late = pod.unready_since.is_some_and(|since| now.duration_since(since) >= STARTS_WITHIN);
            let starts = pod.node.is_some() && pod.address.is_none() && pod.waiting.is_none();
            late && starts && !pod.deleting && pod.could_answer()
        };
        let (namespace, mut pods) = lock(&self.state).pods(service);
        pods.retain(hangs);
        {
            let mut memory = lock(&self.memory);
            if pods.is_empty() && !memory.contains_key(key) {
                return;
            }
            let causes = &mut memory.entry(key.clone()).or_default().causes;
            causes.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
            pods.retain(|pod| causes.get(&pod.uid).is_none_or(|(at, _)| at.elapsed() >= HANGS_STILL));
        }
        for pod in pods {
            let cause = self.api_server.why(&namespace, &pod.uid).await.unwrap_or_else(|error| {
                tracing::warn!(%service, pod = pod.name, "why it does not start cannot be asked: {error}");
                None
            });
            let mut memory = lock(&self.memory);
            memory.entry(key.clone()).or_default().causes.insert(pod.uid, (Instant::now(), cause));
        }
    }

    /// Observes and plans, and takes the room that the plan needs to roll the
    /// gateway, before another can.
    fn plan(
        &self,
        key: &Key,
        service: &ServiceRef,
        answers: &HashMap<String, Answer>,
        refusal: Option<Refusal>,
    ) -> (Observed, Plan) {
        let mut state = lock(&self.state);
        let observed = self.observe(&state, key, service, answers, refusal);
        let plan = plan(service, &observed);
        self.queue.extend(state.set_rolling(service, plan.rolls, plan.queued, Instant::now()));
        (observed, plan)
    }

    fn observe(
        &self,
        state: &State,
        key: &Key,
        service: &ServiceRef,
        answers: &HashMap<String, Answer>,
        refusal: Option<Refusal>,
    ) -> Observed {
        let now = Instant::now();
        let mut observed = state.observe(service, now);
        observed.configuration = Arc::clone(&self.configuration);
        observed.refusal = refusal;
        for pod in &mut observed.pods {
            pod.answer = answers.get(&pod.uid).cloned().unwrap_or_default();
            if let Answer::Said(status) = &pod.answer {
                let ours = status.conflicts.values().filter(|mac| state.is_gateway_mac(mac));
                observed.own_macs.extend(ours.cloned());
            }
        }
        if let Some(memory) = lock(&self.memory).get_mut(key) {
            memory.nudges.retain(|uid, _| observed.pods.iter().any(|pod| pod.uid == *uid));
            for pod in &mut observed.pods {
                if let Some((_, Some(cause))) = memory.causes.get(&pod.uid) {
                    pod.waiting.get_or_insert_with(|| cause.clone());
                }
            }
            observed.warned = memory.warned.map(|at| now.duration_since(at));
            observed.keyed = memory.keyed.map(|at| now.duration_since(at));
            observed.election.clone_from(&memory.election);
            observed.course.clone_from(&memory.course);
            observed.nudges =
                memory.nudges.iter().map(|(uid, at)| (uid.clone(), now.duration_since(*at))).collect();
        }
        observed
    }

    /// Chooses an address and claims it; `Some` says why there is none.
    async fn claim(
        &self,
        service: &ServiceRef,
        wish: &Wish,
        gateway_namespace: &str,
    ) -> Result<Option<Refusal>, Error> {
        for _ in 0..CLAIM_TRIES {
            let candidate = match lock(&self.state).ledger.reserve(wish) {
                Ok(candidate) => candidate,
                Err(refusal) => return Ok(Some(refusal)),
            };
            // The Subnet must outlive the claim: held first, claimed then.
            let subnet = lock(&self.state).subnet(&candidate.subnet).cloned();
            let claimed = match subnet.filter(|subnet| !subnet.held) {
                Some(subnet) => match self.api_server.hold_subnet(&candidate.subnet, &subnet, true).await {
                    Ok(()) => self.api_server.claim(wish, &candidate, gateway_namespace).await,
                    Err(error) => Err(error),
                },
                None => self.api_server.claim(wish, &candidate, gateway_namespace).await,
            };
            match claimed {
                Ok(Claimed::Exists(claim)) => {
                    let ours = claim.owner == wish.owner;
                    let mut state = lock(&self.state);
                    if state.versions.see::<IP>(&claim.id.uid, &claim.id.resource_version) {
                        state.ledger.apply(*claim, false);
                    } else {
                        // The watch has shown what became of it.
                        state.ledger.unreserve(&candidate);
                    }
                    drop(state);
                    if ours {
                        tracing::info!(%service, address = %candidate.address, subnet = candidate.subnet, "address claimed");
                        return Ok(None);
                    }
                }
                Ok(Claimed::Vanished) => lock(&self.state).ledger.unreserve(&candidate),
                Err(error) => {
                    lock(&self.state).ledger.unreserve(&candidate);
                    return Err(error);
                }
            }
        }
        Err(Error::Contended)
    }

    async fn act(
        &self,
        key: &Key,
        service: &ServiceRef,
        observed: &Observed,
        action: &Action,
    ) -> Result<(), Error> {
        let place = &observed.place(service);
        let Some(owner) = observed.service.as_ref().map(|service| &service.owner) else {
            return self.take_away(place, action).await;
        };
        match action {
            Action::FillAddress(address) => {
                self.set_address(observed, owner, Some(&address.to_string())).await
            }
            Action::ClearAddress => self.set_address(observed, owner, None).await,
            Action::WriteConfig(content) => {
                let written =
                    self.api_server.write_config(owner, place, content, observed.config.as_ref()).await?;
                self.note(Part::Config, service, written)
            }
            Action::WriteKey(config) => {
                let master = self.master.get_or_try_init(|| self.api_server.master(&self.namespace)).await?;
                self.api_server.write_key(owner, place, config, master).await?;
                lock(&self.memory).entry(key.clone()).or_default().keyed = Some(Instant::now());
                Ok(())
            }
            Action::WriteBudget(wanted) => {
                let written = self.api_server.write_budget(place, wanted, observed.budget.as_ref()).await?;
                self.note(Part::Budget, service, written)
            }
            Action::WriteDeployment(wanted) => {
                let written =
                    self.api_server.write_deployment(place, wanted, observed.deployment.as_ref()).await?;
                self.note(Part::Deployment, service, written)
            }
            Action::Annotate { pod, uid, annotations, nudge } => {
                match self.api_server.annotate(&place.namespace, pod, uid, annotations).await? {
                    Some(written) => self.learn(Some(written)),
                    // Gone, whatever the watch has shown so far.
                    None => drop(lock(&self.state).set_pod(place.clone(), pod, None)),
                }
                if let Some(attempt) = nudge {
                    let mut memory = lock(&self.memory);
                    let memory = memory.entry(key.clone()).or_default();
                    memory.nudges.insert(uid.clone(), Instant::now());
                    self.metrics.nudge(*attempt);
                }
                Ok(())
            }
            Action::Record { claim, mac, probed } => {
                let spec = json!({ "macAddress": mac, "probed": probed, "conflict": "" });
                self.change_claim(claim, spec).await
            }
            Action::GiveUp(claim, mac) => self.change_claim(claim, json!({ "conflict": mac })).await,
            Action::Keep(claim, keep) => self.change_claim(claim, json!({ "keep": keep })).await,
            Action::TakeOver(claim) => self.change_claim(claim, json!({ "serviceUid": owner.uid })).await,
            Action::Settle(claim) => {
                self.learn(self.api_server.settle_claim(claim, place).await?);
                Ok(())
            }
            Action::SetStatus { ingress, conditions } => match &observed.service {
                Some(service) => {
                    self.learn(self.api_server.set_status(service, ingress, conditions).await?);
                    Ok(())
                }
                None => Ok(()),
            },
            Action::Remember(election) => {
                lock(&self.memory).entry(key.clone()).or_default().election.clone_from(election);
                Ok(())
            }
            Action::Event { warning, reason, message } => {
                if *warning {
                    lock(&self.memory).entry(key.clone()).or_default().warned = Some(Instant::now());
                    tracing::warn!(%service, reason, "{message}");
                } else {
                    tracing::info!(%service, reason, "{message}");
                }
                // An Event that is not told must not keep the rest from being
                // done: the condition holds the same.
                if let Err(error) = self.api_server.tell(owner, *warning, reason, message).await {
                    tracing::warn!(%service, "an Event could not be written: {error}");
                }
                Ok(())
            }
            other => self.take_away(place, other).await,
        }
    }

    /// The actions that need no Service.
    async fn take_away(&self, place: &Place, action: &Action) -> Result<(), Error> {
        match action {
            Action::DeleteConfig(uid, version) => self.api_server.delete_config(place, uid, version).await,
            Action::DeleteDeployment(uid, version) => {
                self.api_server.delete_deployment(place, uid, version).await
            }
            Action::DeleteBudget(uid, version) => self.api_server.delete_budget(place, uid, version).await,
            Action::Release(claim) => {
                self.api_server.release(claim).await?;
                tracing::info!(service = %place.service, claim = claim.name, "address given back");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn set_address(
        &self,
        observed: &Observed,
        owner: &Owner,
        address: Option<&str>,
    ) -> Result<(), Error> {
        let version = observed.service.as_ref().map_or("", |service| &service.resource_version);
        self.learn(self.api_server.set_address(owner, version, address).await?);
        Ok(())
    }

    async fn change_claim(&self, claim: &ClaimId, spec: Value) -> Result<(), Error> {
        self.learn(self.api_server.change_claim(claim, spec).await?);
        Ok(())
    }

    /// Takes in what came of writing a part. No pod may run on what is not ours,
    /// so nothing more is made beside that; a gateway does without a budget.
    fn note<K: Watched>(&self, part: Part, service: &ServiceRef, written: Written<K>) -> Result<(), Error> {
        match written {
            Written::Ours(object) => learn(&mut lock(&self.state), *object),
            Written::Already => {}
            Written::Foreign => {
                lock(&self.state).set_foreign(part, service, Instant::now());
                if part != Part::Budget {
                    return Err(Error::Taken);
                }
            }
        }
        Ok(())
    }

    fn learn<K: Watched>(&self, written: Option<K>) {
        if let Some(object) = written {
            learn(&mut lock(&self.state), object);
        }
    }

    async fn subnet(&self, name: &str) -> Result<Option<Duration>, Error> {
        let seen = {
            let state = lock(&self.state);
            state.subnet(name).cloned().zip(state.ledger.usage(name))
        };
        let Some((subnet, usage)) = seen else {
            return Ok(None);
        };
        let plan = subnet::plan::plan(&subnet, &usage);
        if let Some(status) = &plan.status {
            self.api_server.set_subnet_status(name, &subnet, status).await?;
        }
        if let Some(hold) = plan.hold {
            self.api_server.hold_subnet(name, &subnet, hold).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use kube::Client;
    use kube::client::Body;
    use lb_svc_core::backend::convergence::Sight;
    use lb_svc_core::backend::readiness_gate::Verdict;
    use lb_svc_core::model::{Attachment, Backend, PodId};
    use lb_svc_crds::{SubnetSpec, names};
    use tower_test::mock;

    use super::*;
    use crate::api_server::read;
    use crate::index::FOREIGN_FOR;

    type Handle = mock::Handle<Request<Body>, Response<Body>>;

    /// A pod that waits for its readiness gate, selected by a Service that is
    /// served directly.
    struct Scene {
        reconciler: Reconciler,
        handle: Handle,
        service: ServiceRef,
        key: Key,
    }

    impl Scene {
        fn new() -> Self {
            let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
            let api_server = ApiServer::new(Client::new(service, "default"), "controller-1".into());
            let mut state = State::default();
            let mut web = lb_svc_core::testing::service();
            web.annotations.insert(names::DIRECT_ACCESS_ANNOTATION.into(), "true".into());
            web.selector = [("app".into(), "web".into())].into();
            let (service, pod) = (web.owner.service.clone(), ("default".to_owned(), "web-0".to_owned()));
            let backend = Backend {
                uid: "p-1".into(),
                id: PodId::of("p-1"),
                labels: web.selector.clone(),
                fit: true,
                passed: None,
                told: false,
            };
            state.set_service(service.clone(), Some(web));
            state.set_backend(pod.clone(), Some(backend));
            let reconciler = Reconciler::new(
                Arc::new(Mutex::new(state)),
                Configuration::new("gateway:1"),
                api_server,
                Asker::default(),
                Arc::default(),
                queue::queue().0,
                "lb-svc-system".into(),
            );
            Self { reconciler, handle, service, key: Key::Backend(pod) }
        }

        fn say(&self, verdict: Verdict) {
            lock(&self.reconciler.state).set_verdicts(&self.service, [(PodId::of("p-1"), verdict)].into());
        }

        /// A run in which nothing is written.
        async fn run(&self) -> Option<Duration> {
            self.reconciler.run(self.key.clone()).await
        }

        /// A run that writes the pod's condition: that, and when to look again.
        async fn write(&mut self) -> (Value, Option<Duration>) {
            let handle = &mut self.handle;
            let answer = async {
                let (request, send) = handle.next_request().await.expect("a write");
                let line = format!("{} {}", request.method(), request.uri().path());
                assert_eq!(line, "PATCH /api/v1/namespaces/default/pods/web-0/status");
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let mut pod: Value = serde_json::from_slice(&bytes).unwrap();
                let condition = pod["status"]["conditions"][0].clone();
                let ready = json!({ "type": "ContainersReady", "status": "True" });
                pod["status"]["conditions"].as_array_mut().unwrap().push(ready);
                pod["metadata"] = json!({
                    "namespace": "default", "name": "web-0", "uid": "p-1", "resourceVersion": "2",
                    "labels": { "app": "web" },
                });
                pod["spec"] = json!({ "readinessGates": [{ "conditionType": names::READINESS_GATE }] });
                send.send_response(Response::new(Body::from(pod.to_string().into_bytes())));
                condition
            };
            let (again, condition) = tokio::join!(self.reconciler.run(self.key.clone()), answer);
            (condition, again)
        }
    }

    #[tokio::test]
    async fn a_pod_passes_its_gate_once_its_gateways_have_taken_it_up() {
        let mut scene = Scene::new();
        assert_eq!(scene.run().await, Some(Duration::from_secs(1)));
        scene.say(Verdict::Taken);
        let (condition, again) = scene.write().await;
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Served")));
        assert_eq!(again, None);
        // What was written is known, before the watch shows it.
        assert_eq!(scene.run().await, None);
        assert_eq!(lock(&scene.reconciler.state).waiting_backends(), 0);
    }

    #[tokio::test]
    async fn what_holds_a_pod_up_is_said_on_it_once() {
        let mut scene = Scene::new();
        scene.say(Verdict::Unhealthy("it fails".to_owned()));
        assert_eq!(scene.run().await, Some(Duration::from_secs(1)), "it gets a while");
        let long_ago = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        lock(&scene.reconciler.memory).get_mut(&scene.key).unwrap().wait = Some(Wait::new(long_ago));
        let (condition, again) = scene.write().await;
        assert_eq!((&condition["status"], &condition["message"]), (&json!("False"), &json!("it fails")));
        assert_eq!(again, Some(Duration::from_secs(1)));
        assert_eq!(scene.run().await, Some(Duration::from_secs(1)));
        scene.say(Verdict::Taken);
        assert_eq!(scene.write().await.0["status"], "True");
    }

    #[tokio::test]
    async fn no_pod_is_made_for_a_config_map_that_is_not_ours() {
        let Scene { reconciler, mut handle, service, .. } = Scene::new();
        {
            let mut state = lock(&reconciler.state);
            let spec = SubnetSpec {
                provider: "lan.kube-system".into(),
                cidr_block: "172.18.0.0/16".into(),
                ..SubnetSpec::default()
            };
            state.set_subnet("lan", Some(read::subnet(&lb_svc_crds::Subnet::new("lan", spec))));
            state.set_attachment(("kube-system".into(), "lan".into()), Some(Attachment::default()));
            let mut web = state.observe(&service, Instant::now()).service.unwrap();
            web.load_balancer_ip = "172.18.0.11".into();
            let claim = json!({
                "metadata": { "name": "lan.kube-system.172.18.0.11", "uid": "c-1", "resourceVersion": "5" },
                "spec": {
                    "subnet": "lan", "provider": "lan.kube-system", "ipAddress": "172.18.0.11",
                    "namespace": service.namespace, "serviceName": service.name,
                    "serviceUid": web.owner.uid, "requested": "static",
                },
            });
            state.set_claim(read::claim(&serde_json::from_value(claim).unwrap()).unwrap());
            state.set_service(service.clone(), Some(web));
        }
        let mut asked = Vec::new();
        let answers = async {
            while let Some((request, send)) = handle.next_request().await {
                let line = format!("{} {}", request.method(), request.uri().path());
                let (code, body) = match (request.method().as_str(), line.contains("/configmaps")) {
                    ("GET", true) => (200, json!({ "metadata": { "name": "lb-svc-web" } })),
                    ("POST", true) => (409, json!({ "status": "Failure", "code": 409 })),
                    _ => (404, json!({ "status": "Failure", "code": 404 })),
                };
                let body = Body::from(body.to_string().into_bytes());
                asked.push(line);
                send.send_response(Response::builder().status(code).body(body).unwrap());
            }
        };
        let again = tokio::select! {
            again = reconciler.run(Key::Gateway(service.clone())) => again,
            () = answers => None,
        };
        let configs = "/api/v1/namespaces/default/configmaps";
        assert_eq!(asked, [format!("POST {configs}"), format!("GET {configs}/lb-svc-test-service")]);
        assert_eq!(again, Some(FAILED.0), "to say so");
        let planned = |at| {
            let actions = plan(&service, &lock(&reconciler.state).observe(&service, at)).actions;
            let tries = actions.iter().any(|action| matches!(action, Action::WriteConfig(_)));
            let says = |action: &Action| match action {
                Action::SetStatus { conditions, .. } => format!("{conditions:?}").contains("NameTaken"),
                _ => false,
            };
            (actions.iter().any(says), tries)
        };
        let now = Instant::now();
        assert_eq!(planned(now), (true, false));
        assert_eq!(planned(now + FOREIGN_FOR), (false, true), "it may be free now");
        // A gateway does without a budget.
        let budget = Written::<PodDisruptionBudget>::Foreign;
        reconciler.note(Part::Budget, &service, budget).unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_others_wait_for_is_asked_more_often() {
        let scene = Scene::new();
        let key = Key::Gateway(scene.service.clone());
        let observed = lock(&scene.reconciler.state).observe(&scene.service, Instant::now());
        let next = |settled: bool, sight: Sight| {
            let plan = Plan { settled, direct: Some(sight), ..Plan::default() };
            let pauses = (0..20).filter_map(|_| scene.reconciler.next(&key, &observed, &plan));
            pauses.last().unwrap()
        };
        assert_eq!(next(false, Sight::default()), UNSETTLED.1);
        assert_eq!(next(false, Sight { holds: true, ..Sight::default() }), HOLDS);
        assert_eq!(next(true, Sight::default()), SETTLED);
        assert!(next(true, Sight { checks: true, ..Sight::default() }) < SETTLED / 2);
    }

    #[test]
    fn not_all_look_at_once() {
        let pauses: Vec<Duration> = (0..100).map(|_| about(Duration::from_secs(100))).collect();
        assert!(pauses.iter().all(|pause| (75..125).contains(&pause.as_secs())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
