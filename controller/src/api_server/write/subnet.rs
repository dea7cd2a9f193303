//! Subnets: the finalizer and the status.

use kube::api::{Api, Patch, PatchParams};
use lb_svc_core::model::{self, SubnetStatus};
use lb_svc_crds::{Subnet, names};
use serde_json::json;

use super::conditions::Known;
use crate::api_server::client::{ApiServer, Error, apply, timed_opt};

impl ApiServer {
    /// Sets or removes the controller's finalizer on a Subnet.
    ///
    /// # Errors
    /// The Subnet is unchanged then.
    pub async fn hold_subnet(&self, name: &str, subnet: &model::Subnet, held: bool) -> Result<(), Error> {
        let finalizers = if held { json!([names::SUBNET_FINALIZER]) } else { json!([]) };
        let object = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": name, "uid": subnet.uid, "finalizers": finalizers },
        });
        let params = PatchParams::apply("lb-svc-controller-finalizer").force();
        let subnets: Api<Subnet> = Api::all(self.client.clone());
        timed_opt(subnets.patch_metadata(name, &params, &Patch::Apply(object))).await.map(drop)
    }

    /// Writes a Subnet's status.
    ///
    /// # Errors
    /// The status is unchanged then.
    pub async fn set_subnet_status(
        &self,
        name: &str,
        subnet: &model::Subnet,
        status: &SubnetStatus,
    ) -> Result<(), Error> {
        let known = Known { conditions: &subnet.status.conditions, since: &subnet.since };
        let object = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": name, "uid": subnet.uid },
            "status": {
                "v4usingIPs": status.using,
                "v4availableIPs": status.available,
                "v4usingIPrange": status.using_range,
                "v4availableIPrange": status.available_range,
                "conditions": known.stamp(&status.conditions, subnet.generation),
            },
        });
        let subnets: Api<Subnet> = Api::all(self.client.clone());
        timed_opt(subnets.patch_status(name, &apply(), &Patch::Apply(object))).await.map(drop)
    }
}
