//! Roll-outs: the slots, and which gateway is next.

use std::time::Instant;

use lb_svc_core::gateway::manifests::PROGRESS_DEADLINE;
use lb_svc_core::gateway::rollout::{MAX_CONCURRENT_ROLLOUTS, Rollout, Rollouts};
use lb_svc_core::model::GatewayRef;

use super::gateways::CompactDeployment;
use super::{Index, Key};

impl Index {
    /// Sets the part of a gateway in the roll-outs. Returns the
    /// gateways whose turn it is now.
    pub fn set_rollout(&mut self, gateway: &GatewayRef, rollout: Rollout, now: Instant) -> Vec<Key> {
        match rollout {
            Rollout::Reserved | Rollout::Moving => {
                self.reserved.entry(gateway.clone()).or_insert(now);
            }
            Rollout::None | Rollout::Pending => {
                self.reserved.remove(gateway);
            }
        }
        if rollout == Rollout::Pending {
            // It waits for what others make room for; nothing has changed here.
            self.queued.insert(gateway.clone());
            return Vec::new();
        }
        self.queued.remove(gateway);
        self.next_to_roll(now)
    }

    /// The roll-outs of gateways other than this one.
    pub(super) fn rollouts(&self, gateway: &GatewayRef, now: Instant) -> Rollouts {
        let failing = |gateway: &&GatewayRef| self.failing_template(gateway).is_some();
        Rollouts {
            others: self.under_way(now).filter(|other| *other != gateway).count(),
            proven: self.proven.keys().cloned().collect(),
            failing: self.rolled_out.iter().filter_map(|gateway| self.failing_template(gateway)).collect(),
            is_failing: self.rolled_out.get(gateway).as_ref().is_some_and(failing),
        }
    }

    /// The number of gateways whose roll-out failed, which halts that of others.
    pub fn failed_rollouts(&self) -> usize {
        self.rolled_out.iter().filter(|gateway| self.failing_template(gateway).is_some()).count()
    }

    /// The template with which the gateway does not run.
    fn failing_template(&self, gateway: &GatewayRef) -> Option<String> {
        let location = self.location(gateway, &self.claims_on(gateway));
        let deployment = &self.gateways.get(&location)?.deployment.as_ref()?.content;
        deployment.is_failing().then(|| deployment.template.clone())
    }

    /// A gateway's Deployment has become another. `before` and `now` are its
    /// states.
    pub(super) fn follow_rollout(
        &mut self,
        gateway: &GatewayRef,
        before: Option<&CompactDeployment>,
        now: Option<&CompactDeployment>,
    ) {
        let complete = |state: Option<&CompactDeployment>| {
            state
                .filter(|state| state.is_complete() && !state.template.is_empty())
                .map(|state| state.template.clone())
        };
        if let Some(template) = complete(before)
            && let Some(count) = self.proven.get_mut(&template)
        {
            *count -= 1;
            if *count == 0 {
                self.proven.remove(&template);
            }
        }
        if let Some(template) = complete(now) {
            *self.proven.entry(template).or_default() += 1;
            self.rolled_out.remove(gateway);
        } else if self.reserved.contains_key(gateway) {
            self.rolled_out.insert(gateway.clone());
        } else if now.is_none() {
            self.rolled_out.remove(gateway);
        }
        if before.is_some_and(|state| !state.is_failing())
            && now.is_some_and(CompactDeployment::is_failing)
            && self.rolled_out.contains(gateway)
        {
            tracing::warn!(%gateway, "roll-out halted: the gateway does not run with its new template");
        }
    }

    /// The gateways that are rolled out. One that takes longer than the progress
    /// deadline, such as one that leaves a lost node, keeps its slot no longer.
    pub(super) fn under_way(&self, now: Instant) -> impl Iterator<Item = &GatewayRef> {
        let reserved = self.reserved.iter().filter(move |(gateway, since)| {
            !self.rolling.contains(*gateway) && now.duration_since(**since) < PROGRESS_DEADLINE
        });
        self.rolling.iter().chain(reserved.map(|(gateway, _)| gateway))
    }

    /// As many of those that wait for a slot as there are slots. One that still has to
    /// wait is queued again by its next plan.
    pub(super) fn next_to_roll(&mut self, now: Instant) -> Vec<Key> {
        let room = MAX_CONCURRENT_ROLLOUTS.saturating_sub(self.under_way(now).count());
        std::iter::from_fn(|| self.queued.pop_first()).take(room).map(Key::Gateway).collect()
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_core::model::{DeploymentState, GatewayLocation, OwnedObject, ServiceRef};
    use lb_svc_core::testing;
    use serde_json::json;

    use super::*;

    fn gateway(name: &str) -> GatewayRef {
        GatewayRef::Dedicated(ServiceRef::new("default", name))
    }

    /// The Deployment of `name` is made from this template, and rolling,
    /// failing or complete.
    fn show(index: &mut Index, name: &str, template: &str, state: &str) {
        index.set_service(ServiceRef::new("default", name), Some(testing::service()));
        let content = DeploymentState {
            rolling: state == "rolling",
            given_up: state == "failing",
            live: json!({ "metadata": { "annotations": { lb_svc_crds::names::TEMPLATE_ANNOTATION: format!("{template}.own") } } }),
            ..DeploymentState::default()
        };
        let (uid, resource_version) = ("d".to_owned(), "1".to_owned());
        let child =
            OwnedObject { uid, resource_version, deleting: false, gateway_id: Some("u".into()), content };
        let location = GatewayLocation { gateway: gateway(name), namespace: "default".into() };
        index.set_deployment(location, Some(child));
    }

    #[test]
    fn r7_gateway_that_a_roll_out_broke_halts_it_until_it_runs() {
        let mut index = Index::default();
        let now = Instant::now();
        for name in ["a", "b", "c"] {
            show(&mut index, name, "old", "complete");
        }
        show(&mut index, "alone", "new", "failing");
        let part = |index: &Index, name: &str| index.rollouts(&gateway(name), now).reserve("new");
        assert_eq!(part(&index, "a"), Rollout::Reserved, "what never ran says nothing of the template");

        index.set_rollout(&gateway("a"), Rollout::Reserved, now);
        show(&mut index, "a", "new", "rolling");
        index.set_rollout(&gateway("a"), Rollout::None, now);
        assert_eq!(part(&index, "b"), Rollout::Pending, "one first");
        show(&mut index, "a", "new", "failing");
        assert_eq!(part(&index, "b"), Rollout::Pending);
        assert_eq!(index.failed_rollouts(), 1);
        assert!(index.rollouts(&gateway("a"), now).is_failing);
        assert_eq!(index.rollouts(&gateway("b"), now).reserve("newer"), Rollout::Reserved);
        // That others wait is no reason to look at them again.
        assert_eq!(index.set_rollout(&gateway("b"), Rollout::Pending, now), []);

        show(&mut index, "a", "new", "complete");
        assert_eq!(index.failed_rollouts(), 0);
        assert_eq!(part(&index, "b"), Rollout::Reserved);
        let rollouts = index.rollouts(&gateway("b"), now);
        assert!(rollouts.proven.contains("new") && rollouts.proven.contains("old"));
    }
}
