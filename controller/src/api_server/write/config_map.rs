//! ConfigMaps of gateways.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{GatewayId, GatewayLocation, OwnedObject};

use super::owned_object::Written;
use crate::api_server::client::{ApiServer, Error, exactly, timed_opt};

impl ApiServer {
    /// Writes a gateway's ConfigMap, with the seal on its content; `known` is the one
    /// seen.
    ///
    /// # Errors
    /// It was not written.
    pub async fn write_config(
        &self,
        id: &GatewayId,
        gateway: &GatewayLocation,
        content: &str,
        seal: Option<&str>,
        known: Option<&OwnedObject<String>>,
    ) -> Result<Written<ConfigMap>, Error> {
        self.make_or_apply(gateway, manifests::config(id, gateway, content, seal), known).await
    }

    /// Deletes a gateway's ConfigMap, exactly the one seen.
    ///
    /// # Errors
    /// It was not deleted. That it is gone is a success.
    pub async fn delete_config(
        &self,
        gateway: &GatewayLocation,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        let api: Api<ConfigMap> = self.namespaced(&gateway.namespace);
        timed_opt(api.delete(&gateway.name(), &exactly(uid, resource_version))).await.map(drop)
    }
}
