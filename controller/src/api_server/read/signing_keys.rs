//! The Secret with the keys that configurations are signed with.

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use lb_svc_crds::names;

use crate::api_server::client::{ApiServer, Error, timed};
use crate::signing::SigningKeys;

impl ApiServer {
    /// The keys in the Secret in `namespace`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or holds no keys.
    pub(in crate::api_server) async fn read_signing_keys(
        &self,
        namespace: &str,
    ) -> Result<Option<SigningKeys>, Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let Some(secret) = timed(secrets.get_opt(names::SIGNING_SECRET)).await? else { return Ok(None) };
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        let keys = SigningKeys::kept(&data);
        keys.map(Some).ok_or_else(|| Error::SigningKeys { namespace: namespace.to_owned() })
    }
}
