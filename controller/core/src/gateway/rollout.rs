//! Roll-outs: few gateways at a time.

/// The number of gateways that are rolled out at once when all are to be.
pub const MAX_CONCURRENT_ROLLOUTS: usize = 4;

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
    /// The part of a gateway that is to be rolled out, while `others` are.
    pub fn reserve(others: usize) -> Self {
        if others < MAX_CONCURRENT_ROLLOUTS { Self::Reserved } else { Self::Pending }
    }

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
    use crate::model::Attachment;
    use crate::service::plan::plan;
    use crate::testing::gateway::{configured, deployment_of, is_converged, objects, served, two_pods};
    use lb_svc_crds::names;

    #[test]
    fn rollout_of_all_gateways_is_limited() {
        let mut observed = configured(served(), "gateway:2");
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS - 1;
        let planned = plan(&observed);
        assert!(deployment_of(&planned).is_some() && planned.index.rollout == Rollout::Reserved);
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&observed);
        assert!(deployment_of(&planned).is_none() && planned.index.rollout == Rollout::Pending);
        assert!(is_converged(&planned), "it serves meanwhile");

        // What was made by a release that did not say from what, too.
        let mut earlier = served();
        earlier.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let live = &mut earlier.gateway.deployment.as_mut().unwrap().content.live;
        live["metadata"]["annotations"].as_object_mut().unwrap().remove(names::TEMPLATE_ANNOTATION);
        assert!(plan(&earlier).index.rollout == Rollout::Pending);

        // Another attachment behind its name as well.
        let mut attached = served();
        attached.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        attached.attachment = Some(Attachment { digest: "other".into(), ..Attachment::default() });
        assert!(plan(&attached).index.rollout == Rollout::Pending);

        // Who serves nobody has nothing to wait for.
        observed.gateway.pods[0].ready = false;
        assert!(deployment_of(&plan(&observed)).is_some());
    }

    #[test]
    fn rollout_counts_gateways_not_pods() {
        let mut observed = configured(two_pods(), "gateway:2");
        observed.other_rollouts = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&observed);
        assert!(planned.index.rollout == Rollout::Pending && objects(&planned).is_empty());
        observed.other_rollouts -= 1;
        let planned = plan(&observed);
        assert!(planned.index.rollout == Rollout::Reserved);
        assert_eq!(objects(&planned), ["key of cm", "deployment of 2"]);
    }
}
