//! Gateways' pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use serde_json::json;

use crate::api_server::client::{ApiServer, Error, merge, timed_opt};

impl ApiServer {
    /// Sets annotations on a gateway's pod, which also makes the kubelet
    /// refresh what is mounted into it.
    ///
    /// # Errors
    /// The pod is unchanged then.
    pub async fn annotate_pod(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Pod>, Error> {
        let pods: Api<Pod> = self.namespaced(namespace);
        let patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        timed_opt(pods.patch(pod, &merge(), &Patch::Merge(patch))).await
    }

    /// Deletes a gateway's pod, the one with this uid.
    ///
    /// # Errors
    /// It stands then, unless it was gone before.
    pub async fn delete_pod(&self, namespace: &str, pod: &str, uid: &str) -> Result<(), Error> {
        let pods: Api<Pod> = self.namespaced(namespace);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        timed_opt(pods.delete(pod, &params)).await.map(drop)
    }
}
