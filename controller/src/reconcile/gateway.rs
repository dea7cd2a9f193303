//! Runs for gateways: ask their pods, observe, plan, act.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lb_svc_core::action::{Action, Plan};
use lb_svc_core::ipam::Refusal;
use lb_svc_core::model::{Answer, Pod, ServiceRef};
use lb_svc_core::service::plan::{Observed, STARTS_WITHIN, plan};

use super::backoff::{HOLDS, SETTLED, SETTLED_ALIVE, UNSETTLED, about, pause};
use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::index::{Key, State};

/// How often it is asked why a pod gets nothing to run with.
const HANGS_STILL: Duration = Duration::from_secs(20);

impl Reconciler {
    pub(super) async fn gateway(&self, key: &Key, service: &ServiceRef) -> Result<Option<Duration>, Error> {
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

    pub(super) fn next(&self, key: &Key, observed: &Observed, plan: &Plan) -> Option<Duration> {
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
}
