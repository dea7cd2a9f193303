//! PodDisruptionBudgets of gateways.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::Api;
use lb_svc_core::model::{GatewayLocation, OwnedObject};
use serde_json::Value;

use super::owned_object::Written;
use crate::api_server::client::{ApiServer, Error, exactly, timed_opt};

impl ApiServer {
    /// Creates a gateway's PodDisruptionBudget, or applies what is `wanted` to the
    /// one seen.
    ///
    /// # Errors
    /// It was not written.
    pub async fn write_budget(
        &self,
        gateway: &GatewayLocation,
        wanted: &Value,
        known: Option<&OwnedObject<Value>>,
    ) -> Result<Written<PodDisruptionBudget>, Error> {
        self.make_or_apply(gateway, wanted.clone(), known).await
    }

    /// Deletes a gateway's PodDisruptionBudget, exactly the one seen.
    ///
    /// # Errors
    /// It was not deleted. That it is gone is a success.
    pub async fn delete_budget(
        &self,
        gateway: &GatewayLocation,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        let api: Api<PodDisruptionBudget> = self.namespaced(&gateway.namespace);
        timed_opt(api.delete(&gateway.name(), &exactly(uid, resource_version))).await.map(drop)
    }
}
