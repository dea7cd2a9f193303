//! Runs for gateways: query their pods, observe, plan, carry out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::workload::is_late;
use lb_svc_core::ipam::AllocationError;
use lb_svc_core::model::{GatewayRef, Pod, StatusReport};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::plan::Plan;
use lb_svc_core::service::plan::plan;

use super::executor::{Outcome, Target};
use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::index::{Index, Key};

/// The most pods of one gateway that are queried: twice as many as it may have,
/// for those of an earlier template.
const QUERIED_PODS: usize = 16;

impl Reconciler {
    pub(super) async fn gateway(&self, key: &Key, gateway: &GatewayRef) -> Result<Option<Duration>, Error> {
        // It and its Service are planned in one run.
        let GatewayRef::Dedicated(service) = gateway;
        let mut reports = self.query_pods(key, gateway).await;
        self.look_up_start_failures(key, gateway);
        let mut allocation_error = None;
        let (plan, done) = loop {
            let (observed, plan) = self.plan(key, gateway, &reports, allocation_error.take());
            let claims = matches!(plan.actions.last(), Some(Action::Claim(_) | Action::ClaimPorts(_)));
            match self.carry_out(&Target { key, gateway, service, observed: &observed }, &plan).await {
                Ok(Outcome::Claimed(error)) => allocation_error = error,
                Ok(Outcome::Pushed(answers)) => reports.extend(answers),
                // Nothing that others see of the gateway is known yet.
                Err(error) if claims => return Err(error),
                done => break (plan, done.map(drop)),
            }
        };
        let mut index = lock(&self.index);
        self.queue.extend(index.set_rollout(gateway, plan.index.rollout.after_run(), Instant::now()));
        self.queue.extend(index.set_verdicts(service, plan.index.verdicts));
        done?;
        index.set_address_pending(service, plan.index.address_pending);
        drop(index);
        if plan.remember.is_some() {
            self.remember(key, |memory| memory.convergence = plan.remember);
        }
        Ok(self.remember(key, |memory| {
            memory.passing_since = plan.waits.then(|| memory.passing_since.unwrap_or_else(Instant::now));
            memory.next(plan.next)
        }))
    }

    /// Queries the status of the gateway's pods, all at once; by uid.
    async fn query_pods(&self, key: &Key, gateway: &GatewayRef) -> HashMap<String, StatusReport> {
        let (_, pods) = lock(&self.index).pods(gateway);
        let queried = pods
            .iter()
            .filter(|pod| pod.of_deployment && pod.could_answer())
            .filter_map(|pod| Some((&pod.uid, pod.address?)))
            .take(QUERIED_PODS);
        let known = |uid: &str| lock(&self.memory).get(key).is_some_and(|memory| memory.reports.knows(uid));
        // That a pod never responds is found once, so it is asked twice.
        let answers = join_all(queried.map(async |(uid, address)| {
            let answered = match self.gateway_client.query(address).await {
                None if !known(uid) => self.gateway_client.query(address).await,
                answered => answered,
            };
            (uid, answered)
        }))
        .await;
        if answers.is_empty() {
            return HashMap::new();
        }
        let now = Instant::now();
        self.remember(key, |memory| {
            memory.reports.retain(|uid| pods.iter().any(|pod| pod.uid == uid));
            let reports = answers.into_iter();
            reports.map(|(uid, answered)| (uid.clone(), memory.reports.take(uid, answered, now))).collect()
        })
    }

    /// Has it looked up why pods are stuck in ContainerCreating.
    fn look_up_start_failures(&self, key: &Key, gateway: &GatewayRef) {
        let now = jiff::Timestamp::now();
        let is_stuck = |pod: &Pod| {
            let starts = pod.node.is_some() && pod.address.is_none() && pod.waiting.is_none();
            is_late(pod, now) && starts && !pod.deleting && pod.of_deployment && pod.could_answer()
        };
        let (namespace, mut pods) = lock(&self.index).pods(gateway);
        pods.retain(is_stuck);
        pods.truncate(QUERIED_PODS);
        self.look_ups.begin(key, &namespace, &pods);
    }

    /// Observes and plans, and takes the slot that the plan needs to roll the
    /// gateway out, before another can.
    fn plan(
        &self,
        key: &Key,
        gateway: &GatewayRef,
        reports: &HashMap<String, StatusReport>,
        allocation_error: Option<AllocationError>,
    ) -> (Observed, Plan) {
        let mut index = lock(&self.index);
        let observed = self.observe(&index, key, gateway, reports, allocation_error);
        let plan = plan(&observed);
        self.queue.extend(index.set_rollout(gateway, plan.index.rollout, Instant::now()));
        (observed, plan)
    }

    fn observe(
        &self,
        index: &Index,
        key: &Key,
        gateway: &GatewayRef,
        reports: &HashMap<String, StatusReport>,
        allocation_error: Option<AllocationError>,
    ) -> Observed {
        let now = Instant::now();
        let mut observed = index.observe(gateway, now);
        observed.configuration = Arc::clone(&self.configuration);
        observed.addresses.allocation_error = allocation_error;
        let pods = &mut observed.gateway.pods;
        for pod in &mut *pods {
            pod.report = reports.get(&pod.uid).cloned().unwrap_or_default();
            if let Some(status) = pod.reported() {
                // What a pod reports concerns the addresses of its own Service only.
                let claims = &observed.addresses.claims;
                let conflicts = status
                    .conflicts
                    .iter()
                    .filter(|(address, _)| claims.iter().any(|claim| claim.address == **address));
                let own = conflicts.map(|(_, mac)| mac).filter(|mac| index.is_mac_of(gateway, mac));
                observed.addresses.gateway_macs.extend(own.cloned());
            }
        }
        if let Some(memory) = lock(&self.memory).get_mut(key) {
            memory.see_pods(pods, now);
            for pod in pods {
                let failure = memory.start_failures.get(&pod.uid);
                if let Some(failure) = failure.and_then(|failure| failure.found.as_ref()) {
                    pod.waiting.get_or_insert_with(|| failure.clone());
                }
            }
            observed.remembered = memory.remembered(now);
        }
        observed
    }
}
