//! Secrets: the keys of elections.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use lb_svc_core::gateway::manifests;
use lb_svc_core::model::{GatewayRef, ServiceId};
use lb_svc_crds::names;
use serde_json::json;

use super::typed;
use crate::api_server::client::{ApiServer, Error, post, timed};
use crate::election_key::Master;

impl ApiServer {
    /// Makes the Secret with a gateway's key, unless it is there; it goes with
    /// the ConfigMap with this uid. It may not be read, so one that is there is
    /// taken for ours.
    ///
    /// # Errors
    /// There may be none then.
    pub async fn write_key(
        &self,
        owner: &ServiceId,
        gateway: &GatewayRef,
        config: &str,
        master: &Master,
    ) -> Result<(), Error> {
        let secrets: Api<Secret> = self.namespaced(&gateway.namespace);
        let key = json!(ByteString(master.key(&owner.uid).to_vec()));
        let secret = typed(manifests::key(owner, gateway, config, &key))?;
        match timed(secrets.create(&post(), &secret)).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// What all keys are derived from, kept in a Secret in `namespace`; it is
    /// made if there is none.
    ///
    /// # Errors
    /// When it cannot be had, or is none.
    pub async fn master(&self, namespace: &str) -> Result<Master, Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let read = |secret: Secret| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(names::MASTER_KEY));
            let master = bytes.and_then(|bytes| Master::kept(&bytes.0));
            master.ok_or_else(|| Error::Master { namespace: namespace.to_owned() })
        };
        if let Some(secret) = timed(secrets.get_opt(names::MASTER_SECRET)).await? {
            return read(secret);
        }
        let master = Master::random()?;
        let secret = typed(manifests::master(namespace, &json!(ByteString(master.bytes().to_vec()))))?;
        match timed(secrets.create(&post(), &secret)).await {
            Ok(_) => Ok(master),
            // Another controller was first.
            Err(error) if error.is_conflict() => read(timed(secrets.get(names::MASTER_SECRET)).await?),
            Err(error) => Err(error),
        }
    }
}
