//! Deployments of gateways.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DeleteParams, PropagationPolicy};
use lb_svc_core::model::{DeploymentState, GatewayRef, OwnedObject};
use serde_json::{Value, json};

use super::owned_object::Written;
use super::typed;
use crate::api_server::client::{ApiServer, Error, exactly, post, timed_opt};

impl ApiServer {
    /// Makes a gateway's Deployment, or makes the one seen what is `wanted`.
    ///
    /// It is replaced, not applied: an apply takes away only what an earlier
    /// apply had set, and it was not made by one.
    ///
    /// # Errors
    /// It is unchanged then.
    pub async fn write_deployment(
        &self,
        gateway: &GatewayRef,
        wanted: &Value,
        known: Option<&OwnedObject<DeploymentState>>,
    ) -> Result<Written<Deployment>, Error> {
        let mut wanted = wanted.clone();
        let Some(known) = known else { return self.make(gateway, wanted).await };
        let metadata = &mut wanted["metadata"];
        metadata["uid"] = json!(known.uid);
        metadata["resourceVersion"] = json!(known.resource_version);
        // What others say of the object is theirs; its content is ours.
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
    /// It stands then, unless it was gone before.
    pub async fn delete_deployment(
        &self,
        gateway: &GatewayRef,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        let api: Api<Deployment> = self.namespaced(&gateway.namespace);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..exactly(uid, resource_version)
        };
        timed_opt(api.delete(&gateway.name(), &params)).await.map(drop)
    }
}
