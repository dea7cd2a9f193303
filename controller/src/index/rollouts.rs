//! Roll-outs: how many there are, and whose turn is next.

use std::time::Instant;

use lb_svc_core::gateway::manifests::PROGRESS_DEADLINE;
use lb_svc_core::gateway::rollout::MAX_CONCURRENT_ROLLOUTS;
use lb_svc_core::model::ServiceRef;

use super::{Index, Key};

impl Index {
    /// What a plan says of rolling the gateway of `service`: whether it is
    /// about to be, and whether it is to be once others are done. Returns whose
    /// turn it is now.
    pub fn set_rolling(
        &mut self,
        service: &ServiceRef,
        reserved: bool,
        queued: bool,
        now: Instant,
    ) -> Vec<Key> {
        if reserved {
            self.reserved.entry(service.clone()).or_insert(now);
        } else {
            self.reserved.remove(service);
        }
        if queued {
            self.queued.insert(service.clone());
        } else {
            self.queued.remove(service);
        }
        self.next_to_roll(now)
    }

    /// The gateways that are being rolled. What comes to nothing for so long
    /// that Kubernetes would give up a Deployment, such as one that leaves a
    /// node that is lost, holds up the others no longer.
    pub(super) fn under_way(&self, now: Instant) -> impl Iterator<Item = &ServiceRef> {
        let reserved = self.reserved.iter().filter(move |(service, since)| {
            !self.rolling.contains(*service) && now.duration_since(**since) < PROGRESS_DEADLINE
        });
        self.rolling.iter().chain(reserved.map(|(service, _)| service))
    }

    /// As many of those that wait to be rolled as there is room for. Whoever
    /// still has to wait says so again.
    pub(super) fn next_to_roll(&mut self, now: Instant) -> Vec<Key> {
        let room = MAX_CONCURRENT_ROLLOUTS.saturating_sub(self.under_way(now).count());
        std::iter::from_fn(|| self.queued.pop_first()).take(room).map(Key::Gateway).collect()
    }
}
