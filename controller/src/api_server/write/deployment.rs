//! Deployments of gateways.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{DeploymentState, GatewayId, GatewayLocation, OwnedObject};
use lb_svc_crds::names;
use serde_json::{Value, json};

use super::owned_object::Written;
use super::typed;
use crate::api_server::client::{ApiServer, Error, exactly, post, timed, timed_opt};
use crate::api_server::read;

/// The most ReplicaSets of a gateway that are looked at: a Deployment keeps the
/// last few.
const SETS_MAX: u32 = 50;

impl ApiServer {
    /// Creates a gateway's Deployment, or replaces the one seen by what is `wanted`.
    ///
    /// It is replaced, not applied: an apply takes away only what an earlier
    /// apply had set, and it was not made by one.
    ///
    /// # Errors
    /// It was not written.
    pub async fn write_deployment(
        &self,
        gateway: &GatewayLocation,
        wanted: &Value,
        known: Option<&OwnedObject<DeploymentState>>,
    ) -> Result<Written<Deployment>, Error> {
        let mut wanted = wanted.clone();
        let Some(known) = known else { return self.make(gateway, wanted).await };
        let metadata = &mut wanted["metadata"];
        metadata["uid"] = json!(known.uid);
        metadata["resourceVersion"] = json!(known.resource_version);
        // Labels, annotations and finalizers of others stay; the spec is ours.
        let live = &known.content.live["metadata"];
        metadata["finalizers"] = live["finalizers"].clone();
        for field in ["labels", "annotations"] {
            for (key, theirs) in live[field].as_object().into_iter().flatten() {
                if metadata[field][key].is_null() {
                    metadata[field][key] = theirs.clone();
                }
            }
        }
        let api: Api<Deployment> = self.namespaced(&gateway.namespace);
        let object = timed_opt(api.replace(&gateway.name(), &post(), &typed(wanted)?)).await?;
        // If it is gone, the watch will say so.
        Ok(object.map_or(Written::Already, |object| Written::Ours(Box::new(object))))
    }

    /// Deletes a gateway's Deployment, exactly the one seen. It stays visible
    /// until its pods are gone, so that no pod can appear after it.
    ///
    /// # Errors
    /// It was not deleted. That it is gone is a success.
    pub async fn delete_deployment(
        &self,
        gateway: &GatewayLocation,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        self.remove_deployment(gateway, uid, resource_version, PropagationPolicy::Foreground).await
    }

    /// Deletes a gateway's Deployment, exactly the one seen, and leaves its
    /// pods.
    ///
    /// # Errors
    /// It stands then, unless it was gone before.
    pub async fn orphan_deployment(
        &self,
        gateway: &GatewayLocation,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        self.remove_deployment(gateway, uid, resource_version, PropagationPolicy::Orphan).await
    }

    async fn remove_deployment(
        &self,
        gateway: &GatewayLocation,
        uid: &str,
        resource_version: &str,
        policy: PropagationPolicy,
    ) -> Result<(), Error> {
        let api: Api<Deployment> = self.namespaced(&gateway.namespace);
        let params = DeleteParams { propagation_policy: Some(policy), ..exactly(uid, resource_version) };
        timed_opt(api.delete(&gateway.name(), &params)).await.map(drop)
    }

    /// Deletes the ReplicaSets of a gateway whose pods have the labels of
    /// earlier releases, with their pods.
    ///
    /// # Errors
    /// Some may stand then.
    pub async fn delete_legacy_replica_sets(
        &self,
        id: &GatewayId,
        gateway: &GatewayLocation,
    ) -> Result<(), Error> {
        let api: Api<ReplicaSet> = self.namespaced(&gateway.namespace);
        let labels = manifests::legacy_selector(id, &gateway.gateway);
        let selector =
            labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let params = DeleteParams::background();
        timed(api.delete_collection(&params, &ListParams::default().labels(&selector))).await.map(drop)
    }

    /// Deletes the ReplicaSets of the gateway of this identity that no Deployment
    /// owns, with their pods: each exactly as it was seen, so that one
    /// which a Deployment takes up meanwhile stays. Returns their names.
    ///
    /// # Errors
    /// Some may stand then.
    pub async fn delete_orphans(
        &self,
        gateway: &GatewayLocation,
        id: &GatewayId,
    ) -> Result<Vec<String>, Error> {
        let api: Api<ReplicaSet> = self.namespaced(&gateway.namespace);
        let (managed_by, ours) = (names::MANAGED_BY_LABEL, names::MANAGED_BY);
        let selector = format!("{managed_by}={ours},{}={id}", names::SERVICE_UID_LABEL);
        let listed = timed(api.list(&ListParams::default().labels(&selector).limit(SETS_MAX))).await?;
        let mut deleted = Vec::new();
        for set in listed.items {
            let name = set.name_any();
            if !read::is_alone(&set) || !read::is_set_of(gateway, &name) {
                continue;
            }
            let exactly =
                exactly(&set.uid().unwrap_or_default(), &set.resource_version().unwrap_or_default());
            let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..exactly };
            timed_opt(api.delete(&name, &params)).await?;
            deleted.push(name);
        }
        Ok(deleted)
    }
}
