//! Roll-outs: how many there are, and whose turn is next.

use std::time::Instant;

use lb_svc_core::gateway::manifests::PROGRESS_DEADLINE;
use lb_svc_core::gateway::rollout::{MAX_CONCURRENT_ROLLOUTS, Rollout};
use lb_svc_core::model::ServiceRef;

use super::{Index, Key};

impl Index {
    /// Sets the part of the gateway of `service` in the roll-outs. Returns the
    /// gateways whose turn it is now.
    pub fn set_rollout(&mut self, service: &ServiceRef, rollout: Rollout, now: Instant) -> Vec<Key> {
        match rollout {
            Rollout::Reserved | Rollout::Moving => {
                self.reserved.entry(service.clone()).or_insert(now);
            }
            Rollout::None | Rollout::Pending => {
                self.reserved.remove(service);
            }
        }
        match rollout {
            Rollout::Pending => self.queued.insert(service.clone()),
            Rollout::None | Rollout::Reserved | Rollout::Moving => self.queued.remove(service),
        };
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
