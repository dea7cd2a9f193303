//! Services: `spec.loadBalancerIP` and the status.

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch};
use lb_svc_core::model::{self, Condition, Ingress};
use serde_json::json;

use super::conditions::Known;
use crate::api_server::client::{ApiServer, Error, apply, merge, timed_opt};
use crate::api_server::read;

impl ApiServer {
    /// Writes, or with `None` clears, `spec.loadBalancerIP`, if the Service is
    /// still as it was seen.
    ///
    /// # Errors
    /// The Service is unchanged then.
    pub async fn set_address(
        &self,
        service: &model::Service,
        address: Option<&str>,
    ) -> Result<Option<Service>, Error> {
        let owner = &service.id;
        let services: Api<Service> = self.namespaced(&owner.service.namespace);
        let patch = json!({
            "metadata": { "uid": owner.uid, "resourceVersion": service.resource_version },
            "spec": { "loadBalancerIP": address },
        });
        timed_opt(services.patch(&owner.service.name, &merge(), &Patch::Merge(patch))).await
    }

    /// Applies ingress and conditions; an empty status removes all that the
    /// controller owns of it.
    ///
    /// # Errors
    /// The status is unchanged then.
    pub async fn set_status(
        &self,
        service: &model::Service,
        ingress: &[Ingress],
        conditions: &[Condition],
    ) -> Result<Option<Service>, Error> {
        let owner = &service.id;
        let mut status = json!({});
        if !ingress.is_empty() {
            let ingress: Vec<_> = ingress.iter().map(read::ingress_entry).collect();
            status["loadBalancer"] = json!({ "ingress": ingress });
        }
        if !conditions.is_empty() {
            let known = Known { conditions: &service.conditions, since: &service.since };
            status["conditions"] = known.stamp(conditions, service.generation);
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": owner.service.name, "namespace": owner.service.namespace, "uid": owner.uid },
            "status": status,
        });
        let services: Api<Service> = self.namespaced(&owner.service.namespace);
        timed_opt(services.patch_status(&owner.service.name, &apply(), &Patch::Apply(object))).await
    }
}
