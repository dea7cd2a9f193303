//! Runs for Subnets.

use std::time::Duration;

use lb_svc_core::subnet;

use super::{Reconciler, lock};
use crate::api_server::client::Error;

impl Reconciler {
    pub(super) async fn subnet(&self, name: &str) -> Result<Option<Duration>, Error> {
        let seen = {
            let index = lock(&self.index);
            index.subnet(name).cloned().zip(index.allocator.usage(name))
        };
        let Some((subnet, usage)) = seen else {
            return Ok(None);
        };
        let plan = subnet::plan::plan(&subnet, &usage);
        if let Some(status) = &plan.status {
            self.api_server.set_subnet_status(name, &subnet, status).await?;
        }
        if let Some(hold) = plan.hold {
            self.api_server.hold_subnet(name, &subnet, hold).await?;
        }
        Ok(None)
    }
}
