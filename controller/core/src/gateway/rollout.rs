//! Roll-outs: one gateway first, then few at a time, and none after one that a
//! change broke.

use std::collections::BTreeSet;

/// The number of gateways that are rolled out at once when all are to be.
pub const MAX_CONCURRENT_ROLLOUTS: usize = 4;

/// The roll-outs of the other gateways, and what came of them. Templates are
/// named by their hashes, see
/// [`TemplateHash::all`](super::manifests::TemplateHash::all).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollouts {
    /// The number of other gateways whose roll-out has begun.
    pub others: usize,
    /// The templates with which some gateway runs.
    pub proven: BTreeSet<String>,
    /// The templates with which a gateway that ran before, and was rolled out
    /// as one of many, does not run.
    pub failing: BTreeSet<String>,
    /// Whether this gateway is one of those.
    pub is_failing: bool,
}

impl Rollouts {
    /// The part of a gateway that is to be rolled out to the template with this
    /// hash. Nothing stops a change that breaks every gateway but the first of
    /// them: it goes on once that one runs, or another template is asked for.
    pub fn reserve(&self, template: &str) -> Rollout {
        let slots = if self.proven.contains(template) { MAX_CONCURRENT_ROLLOUTS } else { 1 };
        let may = !self.failing.contains(template) && self.others < slots;
        if may { Rollout::Reserved } else { Rollout::Pending }
    }
}

/// A gateway's part in the roll-outs of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rollout {
    /// It has none.
    #[default]
    None,
    /// It takes a slot: its Deployment is written, which shows the roll-out from
    /// then on.
    Reserved,
    /// It keeps a slot while it has no Deployment: it moves to another
    /// namespace, or its Deployment is made anew.
    Moving,
    /// It waits for a slot.
    Pending,
}

impl Rollout {
    /// The part once the plan is carried out, or has failed.
    pub fn after_run(self) -> Self {
        if self == Self::Reserved { Self::None } else { self }
    }

    /// This part, or `other` if it is none.
    pub fn or(self, other: Self) -> Self {
        if self == Self::None { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::manifests::TemplateHash;
    use crate::model::Attachment;
    use crate::observed::Observed;
    use crate::service::plan::plan;
    use crate::testing::gateway::{configured, deployment_of, is_converged, objects, served, two_pods};
    use lb_svc_crds::names;

    /// Another gateway runs with the template that this one is to get.
    fn prove(observed: &mut Observed) {
        let first = Observed { rollouts: Rollouts::default(), ..observed.clone() };
        let live = deployment_of(&plan(&first)).unwrap().content.live;
        observed.rollouts.proven = [TemplateHash::of(&live).all].into();
    }

    #[test]
    fn rollout_of_all_gateways_is_limited() {
        let mut observed = configured(served(), "gateway:2");
        prove(&mut observed);
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS - 1;
        let planned = plan(&observed);
        assert!(deployment_of(&planned).is_some() && planned.index.rollout == Rollout::Reserved);
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&observed);
        assert!(deployment_of(&planned).is_none() && planned.index.rollout == Rollout::Pending);
        assert!(is_converged(&planned), "it serves meanwhile");

        // What was made by a release that did not say from what, too.
        let mut earlier = served();
        earlier.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        let live = &mut earlier.gateway.deployment.as_mut().unwrap().content.live;
        live["metadata"]["annotations"].as_object_mut().unwrap().remove(names::TEMPLATE_ANNOTATION);
        assert!(plan(&earlier).index.rollout == Rollout::Pending);

        // Another attachment behind its name as well.
        let mut attached = served();
        attached.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        attached.attachment = Some(Attachment { digest: "other".into(), ..Attachment::default() });
        assert!(plan(&attached).index.rollout == Rollout::Pending);

        // Who serves nobody has nothing to wait for.
        observed.gateway.pods[0].ready = false;
        assert!(deployment_of(&plan(&observed)).is_some());
    }

    #[test]
    fn rollout_counts_gateways_not_pods() {
        let mut observed = configured(two_pods(), "gateway:2");
        prove(&mut observed);
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&observed);
        assert!(planned.index.rollout == Rollout::Pending && objects(&planned).is_empty());
        observed.rollouts.others -= 1;
        let planned = plan(&observed);
        assert!(planned.index.rollout == Rollout::Reserved);
        assert_eq!(objects(&planned), ["key of cm", "deployment of 2"]);
    }

    #[test]
    fn r7_change_that_breaks_a_gateway_stops_there() {
        let template = || "t".to_owned();
        let of = |others, proven: bool, failing: bool| {
            let set = |is_in: bool| is_in.then(template).into_iter().collect();
            Rollouts { others, proven: set(proven), failing: set(failing), is_failing: false }.reserve("t")
        };
        assert_eq!(of(0, false, false), Rollout::Reserved, "one gateway first");
        assert_eq!(of(1, false, false), Rollout::Pending);
        assert_eq!(of(1, true, false), Rollout::Reserved, "then few at a time");
        assert_eq!(of(MAX_CONCURRENT_ROLLOUTS, true, false), Rollout::Pending);
        assert_eq!(of(0, false, true), Rollout::Pending);
        assert_eq!(of(0, true, true), Rollout::Pending, "also where it broke some");
        let failing = [template()].into();
        let other = Rollouts { failing, ..Rollouts::default() };
        assert_eq!(other.reserve("mended"), Rollout::Reserved);
    }
}
