//! What the writers of a gateway's objects have in common.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, Patch};
use lb_svc_core::model::{GatewayLocation, OwnedObject};
use serde_json::{Value, json};

use super::typed;
use crate::api_server::client::{ApiServer, Error, apply, post, timed};
use crate::api_server::read;

/// The result of writing an object.
#[derive(Clone, Debug)]
pub enum Written<K> {
    /// It is written; the object as the API server has it.
    Ours(Box<K>),
    /// It exists already: another attempt was first.
    Already,
    /// An object of others has the name.
    Foreign,
}

/// The kinds of object that a gateway is made of.
pub(super) trait Piece:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + serde::Serialize
    + serde::de::DeserializeOwned
{
}

impl Piece for ConfigMap {}
impl Piece for Deployment {}
impl Piece for PodDisruptionBudget {}

impl ApiServer {
    /// Creates an object of a gateway, or applies what is `wanted` to the one seen,
    /// if it is still as it was seen: a controller that was paused, or leads no
    /// longer, must not undo what another has written since.
    pub(super) async fn make_or_apply<K: Piece, T>(
        &self,
        gateway: &GatewayLocation,
        mut wanted: Value,
        known: Option<&OwnedObject<T>>,
    ) -> Result<Written<K>, Error> {
        let Some(known) = known else { return self.make(gateway, wanted).await };
        wanted["metadata"]["uid"] = json!(known.uid);
        wanted["metadata"]["resourceVersion"] = json!(known.resource_version);
        let api: Api<K> = self.namespaced(&gateway.namespace);
        let object = timed(api.patch(&gateway.name(), &apply(), &Patch::Apply(&wanted))).await?;
        Ok(Written::Ours(Box::new(object)))
    }

    /// Creates an object of a gateway by a plain POST, which cannot overwrite one of
    /// others.
    pub(super) async fn make<K: Piece>(
        &self,
        gateway: &GatewayLocation,
        wanted: Value,
    ) -> Result<Written<K>, Error> {
        let api: Api<K> = self.namespaced(&gateway.namespace);
        match timed(api.create(&post(), &typed(wanted)?)).await {
            Ok(object) => Ok(Written::Ours(Box::new(object))),
            Err(error) if error.is_conflict() => {
                let taken = timed(api.get_opt(&gateway.name())).await?;
                let ours = taken.is_none_or(|object| read::gateway_of(&object).as_ref() == Some(gateway));
                Ok(if ours { Written::Already } else { Written::Foreign })
            }
            Err(error) => Err(error),
        }
    }
}
