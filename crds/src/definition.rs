//! The CustomResourceDefinitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::names::{MANAGED_BY, MANAGED_BY_LABEL};
use crate::{IP, Subnet};

/// Both definitions: Subnet and IP.
///
/// They bear the label by which an upgrade tells them from another's of the
/// same name. Fields that they do not list are kept: the names are Kube-OVN's,
/// and so may be the objects, whether exported from it or, should the
/// definitions be forced upon its cluster, its own.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [Subnet::crd(), IP::crd()].map(|mut definition| {
        let labels = definition.metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
            let properties = schema.and_then(|schema| schema.properties.as_mut());
            for (name, part) in properties.into_iter().flatten() {
                if ["spec", "status"].contains(&name.as_str()) {
                    part.x_kubernetes_preserve_unknown_fields = Some(true);
                }
            }
        }
        definition
    })
}
