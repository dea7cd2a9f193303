//! Runs for gateways: ask their pods, observe, plan, act.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lb_svc_core::action::{Action, Plan};
use lb_svc_core::ipam::AllocationError;
use lb_svc_core::model::{Pod, ServiceRef, StatusReport};
use lb_svc_core::service::plan::{Observed, START_GRACE, plan};

use super::backoff::{HOLDS, SETTLED, SETTLED_ALIVE, UNSETTLED, about, pause};
use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::index::{Index, Key};

/// How often it is asked why a pod gets nothing to run with.
const START_FAILURE_INTERVAL: Duration = Duration::from_secs(20);

/// The most pods of one gateway that are asked: twice as many as it may have,
/// for those of an earlier template.
const QUERIED_PODS: usize = 16;

impl Reconciler {
    pub(super) async fn gateway(&self, key: &Key, service: &ServiceRef) -> Result<Option<Duration>, Error> {
        let answers = self.query_pods(service).await;
        self.query_start_failures(key, service).await;
        let mut allocation_error = None;
        let (observed, plan) = loop {
            let (observed, plan) = self.plan(key, service, &answers, allocation_error.take());
            let Some(Action::Claim(request)) = plan.actions.last() else {
                break (observed, plan);
            };
            // What else is planned beside a claim is taking away: it comes
            // first, for it may be what frees the address.
            for action in &plan.actions[..plan.actions.len() - 1] {
                self.act(key, service, &observed, action).await?;
            }
            allocation_error = self.claim(service, request, &observed.namespace).await?;
        };
        let mut done = Ok(());
        for action in &plan.actions {
            done = self.act(key, service, &observed, action).await;
            if let Err(error) = &done {
                self.explain(key, service, &observed, error).await;
                break;
            }
        }
        let mut index = lock(&self.index);
        // From here on the Deployment itself shows that it is being rolled; one
        // that moves, or is made anew, has none for a while.
        let is_deleted =
            |action: &Action| matches!(action, Action::DeleteDeployment(..) | Action::OrphanDeployment(..));
        let has_gap = observed.is_misplaced()
            || observed.deployment.as_ref().is_some_and(|known| known.deleting)
            || plan.actions.iter().any(is_deleted);
        let reserved = plan.in_rollout && has_gap;
        self.queue.extend(index.set_rolling(service, reserved, plan.rollout_pending, Instant::now()));
        let verdicts = plan.convergence.as_ref().map(|direct| direct.verdicts.clone()).unwrap_or_default();
        self.queue.extend(index.set_verdicts(service, verdicts));
        done?;
        index.set_waiting(service, plan.address_pending);
        drop(index);
        if let Some(direct) = &plan.convergence {
            lock(&self.memory).entry(key.clone()).or_default().convergence_state =
                Some(direct.convergence_state.clone());
        }
        Ok(self.next(key, &observed, &plan))
    }

    /// Says on the Service that the API server refuses what it needs.
    async fn explain(&self, key: &Key, service: &ServiceRef, observed: &Observed, error: &Error) {
        if !error.is_refusal() {
            return;
        }
        let told = lock(&self.memory).get(key).and_then(|memory| memory.election.clone());
        let observed =
            Observed { write_refused: Some(error.to_string()), election: told, ..observed.clone() };
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
        let direct = plan.convergence.as_ref();
        if plan.converged {
            let alive =
                observed.pods.iter().any(|pod| pod.member) || direct.is_some_and(|direct| direct.checks);
            return Some(if alive { about(SETTLED_ALIVE) } else { SETTLED });
        }
        let mut memory = lock(&self.memory);
        let memory = memory.entry(key.clone()).or_default();
        let wrote = plan
            .actions
            .iter()
            .any(|action| matches!(action, Action::WriteConfig(_) | Action::AnnotatePod { .. }));
        memory.unsettled_runs = if wrote { 0 } else { memory.unsettled_runs + 1 };
        let (first, last) = UNSETTLED;
        let last = if direct.is_some_and(|direct| direct.holds) { last.min(HOLDS) } else { last };
        Some(pause((first, last), memory.unsettled_runs))
    }

    /// Asks the gateway's pods how they fare, all at once.
    async fn query_pods(&self, service: &ServiceRef) -> HashMap<String, StatusReport> {
        let (_, pods) = lock(&self.index).pods(service);
        let asked = pods
            .iter()
            .filter(|pod| pod.of_deployment && pod.could_answer())
            .filter_map(|pod| Some((&pod.uid, pod.address?)))
            .take(QUERIED_PODS);
        join_all(asked.map(async |(uid, address)| (uid.clone(), self.gateway_client.query(address).await)))
            .await
            .into_iter()
            .collect()
    }

    /// Asks why pods that have a node get nothing to run with. What their nodes
    /// say of it is in Events only.
    async fn query_start_failures(&self, key: &Key, service: &ServiceRef) {
        let now = jiff::Timestamp::now();
        let hangs = |pod: &Pod| {
            let late = pod.unready_since.is_some_and(|since| now.duration_since(since) >= START_GRACE);
            let starts = pod.node.is_some() && pod.address.is_none() && pod.waiting.is_none();
            late && starts && !pod.deleting && pod.could_answer()
        };
        let (namespace, mut pods) = lock(&self.index).pods(service);
        pods.retain(hangs);
        {
            let mut memory = lock(&self.memory);
            if pods.is_empty() && !memory.contains_key(key) {
                return;
            }
            let start_failures = &mut memory.entry(key.clone()).or_default().start_failures;
            start_failures.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
            pods.retain(|pod| {
                start_failures.get(&pod.uid).is_none_or(|(at, _)| at.elapsed() >= START_FAILURE_INTERVAL)
            });
        }
        for pod in pods {
            let cause = self.api_server.start_failure(&namespace, &pod.uid).await.unwrap_or_else(|error| {
                tracing::warn!(%service, pod = pod.name, "why it does not start cannot be asked: {error}");
                None
            });
            let mut memory = lock(&self.memory);
            memory.entry(key.clone()).or_default().start_failures.insert(pod.uid, (Instant::now(), cause));
        }
    }

    /// Observes and plans, and takes the room that the plan needs to roll the
    /// gateway, before another can.
    fn plan(
        &self,
        key: &Key,
        service: &ServiceRef,
        answers: &HashMap<String, StatusReport>,
        allocation_error: Option<AllocationError>,
    ) -> (Observed, Plan) {
        let mut index = lock(&self.index);
        let observed = self.observe(&index, key, service, answers, allocation_error);
        let plan = plan(service, &observed);
        self.queue.extend(index.set_rolling(service, plan.in_rollout, plan.rollout_pending, Instant::now()));
        (observed, plan)
    }

    fn observe(
        &self,
        index: &Index,
        key: &Key,
        service: &ServiceRef,
        answers: &HashMap<String, StatusReport>,
        allocation_error: Option<AllocationError>,
    ) -> Observed {
        let now = Instant::now();
        let mut observed = index.observe(service, now);
        observed.configuration = Arc::clone(&self.configuration);
        observed.allocation_error = allocation_error;
        for pod in &mut observed.pods {
            pod.report = answers.get(&pod.uid).cloned().unwrap_or_default();
            if let StatusReport::Reported(status) = &pod.report {
                // What a pod says concerns the addresses of its own Service only.
                let claims = &observed.claims;
                let conflicts = status
                    .conflicts
                    .iter()
                    .filter(|(address, _)| claims.iter().any(|claim| claim.address == **address));
                let ours = conflicts.map(|(_, mac)| mac).filter(|mac| index.is_gateway_mac(mac));
                observed.own_macs.extend(ours.cloned());
            }
        }
        if let Some(memory) = lock(&self.memory).get_mut(key) {
            memory.nudges.retain(|uid, _| observed.pods.iter().any(|pod| pod.uid == *uid));
            for pod in &mut observed.pods {
                if let Some((_, Some(cause))) = memory.start_failures.get(&pod.uid) {
                    pod.waiting.get_or_insert_with(|| cause.clone());
                }
            }
            observed.warned = memory.warned.map(|at| now.duration_since(at));
            observed.key_written = memory.key_written.map(|at| now.duration_since(at));
            observed.election.clone_from(&memory.election);
            observed.convergence_state.clone_from(&memory.convergence_state);
            observed.nudges =
                memory.nudges.iter().map(|(uid, at)| (uid.clone(), now.duration_since(*at))).collect();
        }
        observed
    }
}
