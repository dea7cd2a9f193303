//! Runs for Subnets.

use std::time::Duration;

use lb_svc_core::subnet::plan::{SubnetPlan, plan};

use super::{Reconciler, lock};
use crate::api_server::client::Error;

impl Reconciler {
    pub(super) async fn subnet(&self, name: &str) -> Result<Option<Duration>, Error> {
        let seen = {
            let mut index = lock(&self.index);
            let seen = index.subnet(name).cloned().zip(index.allocator.usage(name));
            let planned = seen.map(|(subnet, usage)| (plan(&subnet, &usage), subnet));
            // From here on a claim has to take the finalizer again.
            if planned.as_ref().is_some_and(|(plan, _)| plan.hold == Some(false)) {
                index.set_held(name, false);
            }
            planned
        };
        let Some((SubnetPlan { status, hold }, subnet)) = seen else {
            return Ok(None);
        };
        // First, or the watch shows the status with the finalizer that is about to go.
        if let Some(hold) = hold {
            let written = self.api_server.hold_subnet(name, &subnet, hold).await;
            if written.is_err() && !hold {
                lock(&self.index).set_held(name, true);
            }
            written?;
        }
        if let Some(status) = &status {
            self.api_server.set_subnet_status(name, &subnet, status).await?;
        }
        Ok(None)
    }
}
