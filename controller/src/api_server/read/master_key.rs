//! The Secret with the key that all keys of elections are derived from.

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use lb_svc_crds::names;

use crate::api_server::client::{ApiServer, Error, timed};
use crate::election_key::Master;

impl ApiServer {
    /// The key in the Secret in `namespace`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is no key.
    pub(in crate::api_server) async fn read_master(&self, namespace: &str) -> Result<Option<Master>, Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let Some(secret) = timed(secrets.get_opt(names::MASTER_SECRET)).await? else { return Ok(None) };
        let bytes = secret.data.as_ref().and_then(|data| data.get(names::MASTER_KEY));
        let master = bytes.and_then(|bytes| Master::kept(&bytes.0));
        master.map(Some).ok_or_else(|| Error::Master { namespace: namespace.to_owned() })
    }
}
