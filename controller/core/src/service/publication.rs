//! A Service's status as it was last written, and when it is written again in place of
//! another writer's.
//!
//! Two controllers that each put back what is theirs write as fast as both can. So that is
//! done at once, and then ever more seldom.

use std::time::Duration;

use lb_svc_crds::reason::Reason;

use crate::model::{Condition, Ingress, Problem};

/// The pause before a status is written for the second time in place of another writer's;
/// it doubles with each.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// So many times are no coincidence.
const REPORTED: u32 = 3;
/// For how long the writes in place of another writer's count.
pub const COUNT_FOR: Duration = Duration::from_secs(10 * 60);

/// A Service's status, as this process last wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The ingress.
    pub ingress: Vec<Ingress>,
    /// The kinds of the conditions.
    pub kinds: Vec<String>,
    /// How often the same ingress was written again in place of another writer's.
    pub times: u32,
    /// How long ago that was last.
    pub age: Duration,
}

impl Published {
    /// Whether the status with this ingress and these conditions is another writer's.
    pub fn is_replaced(&self, ingress: &[Ingress], conditions: &[Condition]) -> bool {
        let has = |kind: &String| conditions.iter().any(|condition| condition.kind == *kind);
        self.ingress != ingress || !self.kinds.iter().all(has)
    }

    /// After which time it is to be written in place of another writer's; `None` if at
    /// once.
    pub fn again_in(&self) -> Option<Duration> {
        let doublings = self.times.checked_sub(1)?.min(16);
        PAUSE.saturating_mul(1 << doublings).min(PAUSE_MAX).checked_sub(self.age)
    }

    /// That another writer replaces it again and again.
    pub fn overwritten(&self) -> Option<Problem> {
        let message = "another controller writes status.loadBalancer as well, which is written back more and more seldom, at last once a minute: end that controller, or make the Service anew with a spec.loadBalancerClass of lb-svc, which others leave alone";
        let is_fought_over = self.times >= REPORTED && self.age < COUNT_FOR;
        is_fought_over.then(|| Problem::new(Reason::StatusOverwritten, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;
    use crate::service::conditions::LIMITED;
    use crate::service::plan::{Requeue, plan};
    use crate::testing::gateway::{carried_out, claim, claimed, reason, status, steps};
    use lb_svc_crds::Requested;

    #[test]
    fn w3_status_that_another_writer_replaces_is_written_ever_more_seldom() {
        let served = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let service = served.service.clone().unwrap();
        let kinds: Vec<String> = service.conditions.iter().map(|condition| condition.kind.clone()).collect();
        let other = vec![Ingress { ip: "192.0.2.1".into(), ..Ingress::default() }];
        let planned = |replaced: &dyn Fn(&mut Service), times: u32, age: Duration| {
            let mut observed = served.clone();
            replaced(observed.service.as_mut().unwrap());
            let (ingress, kinds) = (service.ingress.clone(), kinds.clone());
            observed.remembered.published = Some(Published { ingress, kinds, times, age });
            plan(&observed)
        };
        let by_other = |service: &mut Service| service.ingress = other.clone();
        let wiped = |service: &mut Service| (service.ingress, service.conditions) = Default::default();
        let without_conditions = |service: &mut Service| service.conditions.clear();
        for replaced in [&by_other as &dyn Fn(&mut Service), &wiped, &without_conditions] {
            let is_written = |times, age| status(&planned(replaced, times, age)).is_some();
            assert!(is_written(0, Duration::ZERO), "once, at once");
            assert!(!is_written(1, Duration::from_millis(499)) && is_written(1, Duration::from_secs(1)));
            assert!(!is_written(20, Duration::from_secs(59)) && is_written(20, Duration::from_secs(61)));
            let waits = planned(replaced, 20, Duration::from_secs(50));
            assert_eq!(steps(&waits), [], "no Events either");
            let Requeue::Unconverged { within, .. } = waits.next else { panic!("it is come back to") };
            assert_eq!(within, Some(Duration::from_secs(10)));
        }
        // What says another thing does not wait.
        let changed = |service: &mut Service| {
            service.ingress = other.clone();
            service.local_policy = true;
        };
        assert_eq!(status(&planned(&changed, 20, Duration::ZERO)).unwrap().0.len(), 1);

        // It is said for a while.
        let fought = planned(&by_other, REPORTED, Duration::from_secs(60));
        assert_eq!(reason(status(&fought).unwrap().1, LIMITED), "StatusOverwritten");
        assert_eq!(steps(&planned(&|_| {}, REPORTED, COUNT_FOR)), []);
    }
}
