//! How a gateway comes to run with a configuration, whichever Services that is for: the
//! ConfigMap and its push, the workload, and the annotations of its pods.

use std::time::Duration;

use lb_svc_crds::names::Provider;

use super::rendered::{Rendered, Write};
use super::workload::{self, Workload};
use super::{config_sync, repair};
use crate::action::Action;
use crate::ipam::Claim;
use crate::model::{Pod, Problem};
use crate::observed::Observed;

/// What a gateway is to run with.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The configuration.
    pub config: &'a Rendered,
    /// What the workload is made from; `None` where it stays as it is.
    pub workload: Option<workload::Inputs<'a>>,
    /// The claim, and the attachment, that the pods are annotated with.
    pub annotated: Option<(&'a Claim, &'a Provider)>,
    /// The living pods.
    pub pods: &'a [&'a Pod],
    /// What is seen of the gateway.
    pub observed: &'a Observed,
}

/// The steps to that.
#[derive(Debug)]
pub struct Applied {
    /// The writes.
    pub actions: Vec<Action>,
    /// What becomes of the workload, or why there can be none. Its writes are among the
    /// others.
    pub workload: Result<Workload, Problem>,
    /// After which time the ConfigMap is to be written, if it has to wait. Until then no
    /// pod is to look for it.
    pub later: Option<Duration>,
}

/// Plans the steps.
pub fn apply(inputs: &Inputs<'_>) -> Applied {
    let Inputs { config, annotated, pods, observed: Observed { gateway, remembered, addresses, .. }, .. } =
        *inputs;
    let mut actions = Vec::new();
    let mut later = None;
    match config.write(gateway, remembered.config_written) {
        Write::Later(after) => later = Some(after),
        Write::Now(write) => actions.push(write),
        Write::Not => {}
    }
    if later.is_none() {
        actions.extend(config_sync::push(pods, gateway, &config.digests, remembered));
    }
    let workload = inputs.workload.as_ref().map_or(Ok(Workload::default()), |inputs| {
        let mut workload = workload::plan(inputs)?;
        actions.append(&mut workload.actions);
        actions.extend(repair::replace(pods, &remembered.unattached));
        Ok(workload)
    });
    if let Some((claim, provider)) = annotated.filter(|_| later.is_none()) {
        let network = addresses.networks.get(&claim.subnet);
        let digests = &config.digests;
        actions.extend(config_sync::annotate(pods, provider, claim, network, gateway, digests, remembered));
    }
    Applied { actions, workload, later }
}
