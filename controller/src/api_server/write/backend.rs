//! The condition of the readiness gate on pods.

use std::collections::BTreeMap;

use kube::api::{Api, Patch};
use lb_svc_core::model::{Condition, ObjectName};
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;
use serde_json::json;

use super::conditions::Known;
use crate::api_server::client::{ApiServer, Error, merge, timed_opt};
use crate::api_server::read::WatchedPod;

impl ApiServer {
    /// Sets the condition of the readiness gate on a pod.
    ///
    /// # Errors
    /// The pod is unchanged then, unless it is gone.
    pub async fn set_gate(
        &self,
        (namespace, pod): &ObjectName,
        uid: &str,
        status: bool,
        reason: Reason,
        message: &str,
    ) -> Result<Option<WatchedPod>, Error> {
        let condition = Condition {
            kind: names::READINESS_GATE.to_owned(),
            status,
            reason: reason.to_string(),
            message: message.to_owned(),
        };
        let known = Known { conditions: &[], since: &BTreeMap::new() };
        let conditions = known.stamp(&[condition], None);
        // A strategic merge: conditions are merged by type.
        let patch = json!({ "metadata": { "uid": uid }, "status": { "conditions": conditions } });
        let pods: Api<WatchedPod> = self.namespaced(namespace);
        timed_opt(pods.patch_status(pod, &merge(), &Patch::Strategic(patch))).await
    }
}
