//! Services: `spec.loadBalancerIP` and the status.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, Patch};
use lb_svc_core::model::{self, Condition, Ingress};
use lb_svc_crds::names;
use serde_json::{Value, json};

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
    /// controller owns of it. What stays because others own it too is removed after
    /// that: conditions of the controller's, and ingress of which each address is
    /// among `own`. With `exact` the Service has to be as it was seen.
    ///
    /// # Errors
    /// The status is unchanged then.
    pub async fn set_status(
        &self,
        service: &model::Service,
        ingress: &[Ingress],
        conditions: &[Condition],
        own: &[IpAddr],
        exact: bool,
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
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": owner.service.name, "namespace": owner.service.namespace, "uid": owner.uid },
            "status": status,
        });
        if exact {
            object["metadata"]["resourceVersion"] = json!(service.resource_version);
        }
        let services: Api<Service> = self.namespaced(&owner.service.namespace);
        let name = &owner.service.name;
        let applied = timed_opt(services.patch_status(name, &apply(), &Patch::Apply(object))).await?;
        match applied.as_ref().and_then(|applied| leftover(applied, ingress, conditions, own)) {
            Some(patch) => timed_opt(services.patch_status(name, &merge(), &Patch::Strategic(patch))).await,
            None => Ok(applied),
        }
    }
}

/// The patch that removes what an apply has left of ours, if it has.
fn leftover(
    applied: &Service,
    ingress: &[Ingress],
    conditions: &[Condition],
    own: &[IpAddr],
) -> Option<Value> {
    let status = applied.status.as_ref()?;
    let is_ours = |kind: &&String| {
        kind.starts_with(names::DOMAIN) && !conditions.iter().any(|wanted| wanted.kind == **kind)
    };
    let kinds = status.conditions.iter().flatten().map(|condition| &condition.type_).filter(is_ours);
    let conditions: Vec<Value> = kinds.map(|kind| json!({ "$patch": "delete", "type": kind })).collect();
    let shown = status.load_balancer.iter().flat_map(|shown| shown.ingress.iter().flatten());
    let mut addresses = shown.map(|entry| entry.ip.as_ref()?.parse::<IpAddr>().ok()).peekable();
    let is_published = ingress.is_empty()
        && addresses.peek().is_some()
        && addresses.all(|address| address.is_some_and(|address| own.contains(&address)));
    let mut status = json!({});
    if !conditions.is_empty() {
        status["conditions"] = conditions.into();
    }
    if is_published {
        status["loadBalancer"] = json!({ "ingress": null });
    }
    let metadata = json!({ "uid": applied.uid(), "resourceVersion": applied.resource_version() });
    (status != json!({})).then(|| json!({ "metadata": metadata, "status": status }))
}
