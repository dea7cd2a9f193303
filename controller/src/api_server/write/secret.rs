//! Secrets: the keys of elections.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{GatewayId, GatewayLocation};
use serde_json::json;

use super::typed;
use crate::api_server::client::{ApiServer, Error, post, timed};
use crate::election_key::Master;
use crate::signing::Seed;

impl ApiServer {
    /// Makes the Secret with a gateway's key, unless it is there; it goes with
    /// the ConfigMap with this uid. It may not be read, so one that is there is
    /// taken for ours.
    ///
    /// # Errors
    /// There may be none then.
    pub async fn write_key(
        &self,
        id: &GatewayId,
        gateway: &GatewayLocation,
        config: &str,
        master: &Master,
    ) -> Result<(), Error> {
        let secrets: Api<Secret> = self.namespaced(&gateway.namespace);
        let key = json!(ByteString(master.key(id.as_str()).to_vec()));
        let secret = typed(manifests::key(id, gateway, config, &key))?;
        match timed(secrets.create(&post(), &secret)).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes the Secret in `namespace` with the seed of the key that signs
    /// configurations.
    ///
    /// # Errors
    /// There may be none then; a conflict says that there is one already.
    pub(in crate::api_server) async fn write_signing_key(
        &self,
        namespace: &str,
        seed: &Seed,
    ) -> Result<(), Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let seed = json!(ByteString(seed.bytes().to_vec()));
        timed(secrets.create(&post(), &typed(manifests::signing(namespace, &seed))?)).await.map(drop)
    }

    /// Makes the Secret in `namespace` with the key that all keys are derived
    /// from.
    ///
    /// # Errors
    /// There may be none then; a conflict says that there is one already.
    pub(in crate::api_server) async fn write_master(
        &self,
        namespace: &str,
        master: &Master,
    ) -> Result<(), Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let master = json!(ByteString(master.bytes().to_vec()));
        timed(secrets.create(&post(), &typed(manifests::master(namespace, &master))?)).await.map(drop)
    }
}
