//! ConfigMaps of gateways.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{GatewayId, GatewayLocation, OwnedObject};

use super::owned_object::Written;
use crate::api_server::client::{ApiServer, Error, exactly, timed, timed_opt};

impl ApiServer {
    /// Writes a gateway's ConfigMap, with the seal on its content; `known` is the one
    /// seen. One that others made immutable can be changed by nobody, and is made anew.
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
        let wanted = manifests::config(id, gateway, content, seal);
        let written = self.make_or_apply(gateway, wanted.clone(), known).await;
        match (&written, known) {
            (Err(error), Some(known)) if error.is_invalid() && self.is_immutable(gateway, known).await? => {
                self.delete_config(gateway, &known.uid, &known.resource_version).await?;
                self.make(gateway, wanted).await
            }
            _ => written,
        }
    }

    async fn is_immutable(
        &self,
        gateway: &GatewayLocation,
        known: &OwnedObject<String>,
    ) -> Result<bool, Error> {
        let api: Api<ConfigMap> = self.namespaced(&gateway.namespace);
        let found = timed(api.get_opt(&gateway.name())).await?;
        let is_known = |found: &ConfigMap| found.metadata.uid.as_ref() == Some(&known.uid);
        Ok(found.is_some_and(|found| is_known(&found) && found.immutable == Some(true)))
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
