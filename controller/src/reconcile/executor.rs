//! Carries the actions of a plan out.

use std::time::Instant;

use lb_svc_core::action::Action;
use lb_svc_core::ipam::ClaimId;
use lb_svc_core::model::{GatewayRef, ObjectKind, ServiceId, ServiceRef};
use lb_svc_core::service::plan::Observed;
use serde_json::{Value, json};

use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::api_server::read;
use crate::api_server::watch::{Watched, learn};
use crate::api_server::write::Written;
use crate::index::Key;

impl Reconciler {
    pub(super) async fn act(
        &self,
        key: &Key,
        service: &ServiceRef,
        observed: &Observed,
        action: &Action,
    ) -> Result<(), Error> {
        let gateway = &observed.gateway_ref(service);
        let Some(owner) = observed.service.as_ref().map(|service| &service.id) else {
            return self.take_away(gateway, action).await;
        };
        match action {
            Action::FillAddress(address) => {
                self.set_address(observed, owner, Some(&address.to_string())).await
            }
            Action::ClearAddress => self.set_address(observed, owner, None).await,
            Action::WriteConfig(content) => {
                let written =
                    self.api_server.write_config(owner, gateway, content, observed.config.as_ref()).await?;
                self.note(ObjectKind::Config, service, written)
            }
            Action::WriteKey(config) => {
                let master = self.master.get_or_try_init(|| self.api_server.master(&self.namespace)).await?;
                self.api_server.write_key(owner, gateway, config, master).await?;
                lock(&self.memory).entry(key.clone()).or_default().key_written = Some(Instant::now());
                Ok(())
            }
            Action::WriteBudget(wanted) => {
                let written = self.api_server.write_budget(gateway, wanted, observed.budget.as_ref()).await?;
                self.note(ObjectKind::Budget, service, written)
            }
            Action::WriteDeployment(wanted) => {
                let written =
                    self.api_server.write_deployment(gateway, wanted, observed.deployment.as_ref()).await?;
                let answered = match &written {
                    Written::Ours(deployment) => Some(read::live(deployment)),
                    Written::Already | Written::Foreign => None,
                };
                self.note(ObjectKind::Deployment, service, written)?;
                if let Some(answered) = answered {
                    lock(&self.index).set_answered(gateway, &answered);
                }
                Ok(())
            }
            Action::OrphanDeployment(uid, version) => {
                self.api_server.orphan_deployment(gateway, uid, version).await
            }
            Action::DeleteLegacyReplicaSets => {
                self.api_server.delete_legacy_replica_sets(owner, gateway).await
            }
            Action::AnnotatePod { pod, uid, annotations, nudge } => {
                match self.api_server.annotate(&gateway.namespace, pod, uid, annotations).await? {
                    Some(written) => self.learn(Some(written)),
                    // Gone, whatever the watch has shown so far.
                    None => drop(lock(&self.index).set_pod(gateway.clone(), pod, None)),
                }
                if let Some(attempt) = nudge {
                    let mut memory = lock(&self.memory);
                    let memory = memory.entry(key.clone()).or_default();
                    memory.nudges.insert(uid.clone(), Instant::now());
                    self.metrics.nudge(*attempt);
                }
                Ok(())
            }
            Action::RecordMac { claim, mac, probed } => {
                let spec = json!({ "macAddress": mac, "probed": probed, "conflict": "" });
                self.change_claim(claim, spec).await
            }
            Action::MarkConflict(claim, mac) => self.change_claim(claim, json!({ "conflict": mac })).await,
            Action::SetRetain(claim, keep) => self.change_claim(claim, json!({ "keep": keep })).await,
            Action::Adopt(claim) => self.change_claim(claim, json!({ "serviceUid": owner.uid })).await,
            Action::SetGatewayNamespace(claim) => {
                self.learn(self.api_server.settle_claim(claim, gateway).await?);
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
            other => self.take_away(gateway, other).await,
        }
    }

    /// The actions that need no Service.
    async fn take_away(&self, gateway: &GatewayRef, action: &Action) -> Result<(), Error> {
        match action {
            Action::DeleteConfig(uid, version) => self.api_server.delete_config(gateway, uid, version).await,
            Action::DeleteDeployment(uid, version) => {
                self.api_server.delete_deployment(gateway, uid, version).await
            }
            Action::DeleteBudget(uid, version) => self.api_server.delete_budget(gateway, uid, version).await,
            Action::Release(claim) => {
                self.api_server.release(claim).await?;
                tracing::info!(service = %gateway.service, claim = claim.name, "address given back");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn set_address(
        &self,
        observed: &Observed,
        owner: &ServiceId,
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
    pub(super) fn note<K: Watched>(
        &self,
        part: ObjectKind,
        service: &ServiceRef,
        written: Written<K>,
    ) -> Result<(), Error> {
        match written {
            Written::Ours(object) => learn(&mut lock(&self.index), *object),
            Written::Already => {}
            Written::Foreign => {
                lock(&self.index).set_foreign(part, service, Instant::now());
                if part != ObjectKind::Budget {
                    return Err(Error::Taken);
                }
            }
        }
        Ok(())
    }

    pub(super) fn learn<K: Watched>(&self, written: Option<K>) {
        if let Some(object) = written {
            learn(&mut lock(&self.index), object);
        }
    }
}
