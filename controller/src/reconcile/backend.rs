//! Runs for pods with the readiness gate.

use std::time::{Duration, Instant};

use lb_svc_core::backend::readiness_gate::{Decision, Wait};
use lb_svc_core::model::ObjectName;
use lb_svc_crds::reason::Reason;

use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::index::Key;

impl Reconciler {
    /// Satisfies a pod's readiness gate when its gateways are ready for it.
    pub(super) async fn backend(&self, key: &Key, name: &ObjectName) -> Result<Option<Duration>, Error> {
        let seen = {
            let index = lock(&self.index);
            index.waiting_backend(name).map(|(backend, said)| (backend.clone(), said))
        };
        let Some((backend, said)) = seen else { return Ok(None) };
        let decision = {
            let now = Instant::now();
            let mut memory = lock(&self.memory);
            let wait = &mut memory.entry(key.clone()).or_default().wait;
            wait.get_or_insert_with(|| Wait::new(now)).decide(&said, now)
        };
        let (namespace, pod) = name;
        match decision {
            Decision::Pass { reason, message } => {
                self.learn(self.api_server.set_gate(name, &backend.uid, true, reason, &message).await?);
                tracing::info!(namespace, pod, %reason, detail = message, "readiness gate satisfied");
                self.metrics.pass(reason);
                Ok(None)
            }
            Decision::Wait(again, said) => {
                if let Some(message) = said.filter(|_| !backend.gate_reported) {
                    self.learn(
                        self.api_server
                            .set_gate(name, &backend.uid, false, Reason::Unhealthy, &message)
                            .await?,
                    );
                    tracing::warn!(namespace, pod, detail = message, "readiness gate not satisfied");
                }
                Ok(Some(again))
            }
        }
    }
}
