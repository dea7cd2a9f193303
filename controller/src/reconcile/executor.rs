//! Carries plans out: the one place where an [`Action`] becomes a write, and
//! where what comes of it gets into the index and the memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use futures::future::join_all;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::id_of;
use lb_svc_core::ipam::AllocationError;
use lb_svc_core::model::{
    GatewayId, GatewayLocation, GatewayRef, ObjectKind, Problem, Service, ServiceRef, StatusReport,
};
use lb_svc_core::node_mode::claim::PortRequest;
use lb_svc_core::observed::{Observed, PushAnswer};
use lb_svc_core::service::conditions::{FailedWrite, REMIND};
use lb_svc_core::service::plan::Plan;
use lb_svc_crds::{IP, names};

use super::memory::Memory;
use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::api_server::read;
use crate::api_server::watch::{Watched, learn};
use crate::api_server::write::{Claimed, Written};
use crate::index::Key;

/// The gateway and the Service that a plan is for, as they were seen.
pub(super) struct Target<'a> {
    pub key: &'a Key,
    pub gateway: &'a GatewayRef,
    pub service: &'a ServiceRef,
    pub observed: &'a Observed,
}

/// What comes of a plan that is carried out.
pub(super) enum Outcome {
    /// All of it is written.
    Done,
    /// All of it is written, and the claim for which all is to be planned anew
    /// is made, or cannot be.
    Claimed(Option<AllocationError>),
    /// The configuration was handed to pods, which have reported so, by uid; the rest
    /// is to be planned anew.
    Pushed(HashMap<String, StatusReport>),
}

/// The addresses in a Service's status that are the controller's to take out: those
/// that it claims, and where it has ports of nodes, the nodes'.
fn own_addresses(service: &Service, observed: &Observed) -> Vec<IpAddr> {
    let claims = observed.addresses.claims.iter().filter(|claim| claim.owner == service.id);
    let mut own: Vec<IpAddr> = claims.map(|claim| claim.address).collect();
    if observed.nodes.claims.iter().any(|claim| claim.owner == service.id) {
        own.extend(service.ingress.iter().filter_map(|entry| entry.ip.parse::<IpAddr>().ok()));
    }
    own
}

impl Reconciler {
    /// Carries a plan out. If the API server refuses a write, or one has failed
    /// for long, that is reported on the Service.
    pub(super) async fn carry_out(&self, target: &Target<'_>, plan: &Plan) -> Result<Outcome, Error> {
        for (place, action) in plan.steps().enumerate() {
            match self.execute(target, action).await {
                Ok(Outcome::Done) => {}
                Ok(outcome) => return Ok(outcome),
                Err(error) => {
                    self.report_failure(target, plan, place, action, &error).await;
                    return Err(error);
                }
            }
        }
        Ok(Outcome::Done)
    }

    async fn report_failure(
        &self,
        target: &Target<'_>,
        plan: &Plan,
        place: usize,
        action: &Action,
        error: &Error,
    ) {
        let refused = error.is_refusal();
        if !self.remember(target.key, |memory| memory.fail(refused, Instant::now())) {
            return;
        }
        let failed = FailedWrite { what: action.what(), refused, why: error.to_string() };
        match action {
            // The status was written before: the next one says it.
            Action::FillAddress(_) => {
                self.remember(target.key, |memory| memory.fill_failure = Some(failed));
            }
            // It cannot say so itself.
            Action::SetStatus { .. } => {
                let last = lock(&self.memory).get(target.key).and_then(|memory| memory.warned);
                if last.is_none_or(|at| at.elapsed() >= REMIND) {
                    let Problem { reason, message } = failed.problem(&[]);
                    self.report(target, &[Action::Event { warning: true, reason, message }]).await;
                }
            }
            _ => self.report(target, &plan.after_failure(place, &failed)).await,
        }
    }

    async fn report(&self, target: &Target<'_>, actions: &[Action]) {
        for action in actions {
            if let Err(error) = self.execute(target, action).await {
                tracing::warn!(service = %target.service, %error, "failure not reported");
            }
        }
    }

    async fn execute(&self, target: &Target<'_>, action: &Action) -> Result<Outcome, Error> {
        let Target { key, gateway, service, observed: Observed { service: seen, gateway: objects, .. } } =
            target;
        let (api_server, location) = (&self.api_server, &objects.location);
        let seen = || seen.as_ref().ok_or(Error::ServiceGone);
        let owner = || seen().map(|seen| &seen.id);
        let id = || owner().map(id_of);
        match action {
            Action::Claim(request) => {
                return self.claim(request, &location.namespace).await.map(Outcome::Claimed);
            }
            Action::ClaimPorts(requests) => return self.claim_ports(requests).await,
            Action::SetPortNodes(claim, nodes) => {
                self.learn(api_server.set_port_nodes(claim, nodes).await?);
            }
            Action::Adopt(claim) => self.learn(api_server.adopt_claim(claim, owner()?).await?),
            Action::MarkConflict(claim, mac) => self.learn(api_server.mark_conflict(claim, mac).await?),
            Action::RecordMac { claim, mac, probed } => {
                self.learn(api_server.record_mac(claim, mac, *probed).await?);
            }
            Action::SetRetain(claim, keep) => self.learn(api_server.set_retain(claim, *keep).await?),
            Action::SetGatewayNamespace(claim) => {
                self.learn(api_server.set_gateway_namespace(claim, location).await?);
            }
            Action::Release(claim) => {
                api_server.release(claim).await?;
                tracing::info!(%service, claim = claim.name, "claim released");
            }

            Action::WriteConfig(content) => {
                let (id, known) = (&id()?, objects.config.as_ref());
                let seal = self.keys.signing.seal(id.as_str(), objects.next_generation(), content.as_bytes());
                self.remember(key, |memory| memory.reports.outdate());
                let written = api_server.write_config(id, location, content, Some(&seal), known).await?;
                self.remember(key, |memory| memory.config_written = Some(Instant::now()));
                self.learn_written(ObjectKind::Config, gateway, written)?;
            }
            Action::PushConfig { digest, pods } => {
                return Ok(Outcome::Pushed(self.push(key, location, &id()?, digest, pods).await));
            }
            Action::WriteKey(config) => {
                api_server.write_key(&id()?, location, config, &self.master().await?).await?;
                self.remember(key, |memory| memory.key_written = Some(Instant::now()));
            }
            Action::WriteDeployment(wanted) => {
                let written =
                    api_server.write_deployment(location, wanted, objects.deployment.as_ref()).await?;
                let answered = match &written {
                    Written::Ours(deployment) => Some(read::live(deployment)),
                    Written::Already | Written::Foreign => None,
                };
                self.learn_written(ObjectKind::Deployment, gateway, written)?;
                if let Some(answered) = answered {
                    lock(&self.index).set_answered(location, &answered);
                }
            }
            Action::WriteBudget(wanted) => {
                let written = api_server.write_budget(location, wanted, objects.budget.as_ref()).await?;
                self.learn_written(ObjectKind::Budget, gateway, written)?;
            }
            Action::DeleteConfig(uid, version) => api_server.delete_config(location, uid, version).await?,
            Action::DeleteDeployment(uid, version) => {
                api_server.delete_deployment(location, uid, version).await?;
            }
            Action::OrphanDeployment(uid, version) => {
                api_server.orphan_deployment(location, uid, version).await?;
            }
            Action::DeleteLegacyReplicaSets => {
                api_server.delete_legacy_replica_sets(&id()?, location).await?;
            }
            Action::DeleteOrphans(id) => {
                let sets = api_server.delete_orphans(location, id).await?;
                if !sets.is_empty() {
                    tracing::warn!(%service, ?sets, "ReplicaSets deleted that no Deployment owns");
                }
            }
            Action::DeleteBudget(uid, version) => api_server.delete_budget(location, uid, version).await?,
            Action::AnnotatePod { pod, uid, annotations, nudge } => {
                match api_server.annotate_pod(&location.namespace, pod, uid, annotations).await? {
                    Some(written) => self.learn(Some(written)),
                    // Gone, whatever the watch has shown so far.
                    None => drop(lock(&self.index).set_pod(location.clone(), pod, None)),
                }
                if let Some(attempt) = nudge {
                    self.remember(key, |memory| memory.nudges.insert(uid.clone(), Instant::now()));
                    self.metrics.nudge(*attempt);
                }
            }

            Action::DeletePod { pod, uid, why } => {
                tracing::warn!(%service, pod, why, "pod deleted");
                api_server.delete_pod(&location.namespace, pod, uid).await?;
            }

            Action::FillAddress(address) => {
                let seen = self.last_seen(service, seen()?);
                let written = api_server.set_address(&seen, Some(&address.to_string())).await?;
                self.remember(key, |memory| memory.fill(*address, Instant::now()));
                self.learn(written);
            }
            Action::ClearAddress => {
                let seen = self.last_seen(service, seen()?);
                self.learn(api_server.set_address(&seen, None).await?);
            }
            Action::SetStatus { ingress, conditions, exact } => {
                let seen = seen()?;
                let own = own_addresses(seen, target.observed);
                self.learn(api_server.set_status(seen, ingress, conditions, &own, *exact).await?);
                self.remember(key, |memory| memory.publish(seen, ingress, conditions, Instant::now()));
            }
            Action::Event { warning, reason, message } => {
                if *warning {
                    self.remember(key, |memory| memory.warned = Some(Instant::now()));
                    tracing::warn!(%service, reason, "{message}");
                } else {
                    tracing::info!(%service, reason, "{message}");
                }
                // The rest does not depend on it: the condition says the same.
                if let Err(error) = api_server.create_event(owner()?, *warning, reason, message).await {
                    tracing::warn!(%service, reason, %error, "event not created");
                }
            }
            Action::RememberElection(election) => {
                self.remember(key, |memory| memory.election.clone_from(election));
            }
        }
        Ok(Outcome::Done)
    }

    /// Hands what the ConfigMap has to pods, all at once, if that has this digest. Returns
    /// what they report.
    async fn push(
        &self,
        key: &Key,
        location: &GatewayLocation,
        id: &GatewayId,
        digest: &str,
        pods: &[(String, IpAddr)],
    ) -> HashMap<String, StatusReport> {
        let written = lock(&self.index).sealed_config(location, id);
        let sealed = written.filter(|(content, _)| names::digest(content.as_bytes()) == digest);
        // A signature is the same each time: this is the seal that the ConfigMap has.
        let sealed = sealed.map(|(content, generation)| {
            (self.keys.signing.seal(id.as_str(), generation, content.as_bytes()), Bytes::from(content))
        });
        let answers = join_all(pods.iter().map(async |(uid, address)| match &sealed {
            Some((seal, content)) => (uid, self.gateway_client.push(*address, seal, content.clone()).await),
            None => (uid, (PushAnswer::Failed, None)),
        }))
        .await;
        let now = Instant::now();
        self.remember(key, |memory| {
            let reports = answers.into_iter().map(|(uid, (answer, status))| {
                self.metrics.push(answer);
                memory.pushes.insert(uid.clone(), (digest.to_owned(), answer, now));
                (uid.clone(), status.map(|status| memory.reports.take(uid, Some(status), now)))
            });
            reports.filter_map(|(uid, report)| Some((uid, report?))).collect()
        })
    }

    /// Claims ports of nodes, up to the first that another has.
    async fn claim_ports(&self, requests: &[PortRequest]) -> Result<Outcome, Error> {
        for request in requests {
            let claimed = self.api_server.claim_port(request).await?;
            let service = &request.owner.service;
            let mut index = lock(&self.index);
            match claimed {
                Claimed::Exists(claim) => {
                    let is_own = claim.owner == request.owner;
                    if index.versions.see::<IP>(&claim.id.uid, &claim.id.resource_version) {
                        self.queue.extend(index.set_port_claim(*claim, false));
                    }
                    if !is_own {
                        break;
                    }
                    tracing::info!(%service, claim = request.name(), "port claimed");
                }
                Claimed::NoClaim(object) => {
                    if index.versions.see::<IP>(&object.uid, &object.resource_version) {
                        index.set_no_claim(&object.name, &object.uid);
                    }
                    break;
                }
                // Another's was just deleted: the next run tries again.
                Claimed::Vanished => return Ok(Outcome::Done),
            }
        }
        Ok(Outcome::Claimed(None))
    }

    /// The Service in the version that our own writes have made of what was
    /// seen, as long as its address is the same: what others write meanwhile is
    /// not written over.
    fn last_seen(&self, name: &ServiceRef, seen: &Service) -> Service {
        let index = lock(&self.index);
        let is_same = |now: &&Service| now.id == seen.id && now.load_balancer_ip == seen.load_balancer_ip;
        index.service(name).filter(is_same).unwrap_or(seen).clone()
    }

    /// Takes into the index what the API server answered to a write.
    pub(super) fn learn<K: Watched>(&self, written: Option<K>) {
        if let Some(object) = written {
            learn(&mut lock(&self.index), object);
        }
    }

    /// Takes into the index what came of writing a gateway's object.
    ///
    /// # Errors
    /// The name is taken by an object of others: no pod may run on that, so
    /// nothing more is written. A gateway does without a budget.
    pub(super) fn learn_written<K: Watched>(
        &self,
        kind: ObjectKind,
        gateway: &GatewayRef,
        written: Written<K>,
    ) -> Result<(), Error> {
        match written {
            Written::Ours(object) => learn(&mut lock(&self.index), *object),
            Written::Already => {}
            Written::Foreign => {
                lock(&self.index).set_foreign(kind, gateway, Instant::now());
                if kind != ObjectKind::Budget {
                    return Err(Error::Taken);
                }
            }
        }
        Ok(())
    }

    /// Changes what is remembered of a key.
    pub(super) fn remember<T>(&self, key: &Key, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(lock(&self.memory).entry(key.clone()).or_default())
    }
}
