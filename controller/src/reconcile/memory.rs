//! What is remembered from one run to the next.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_svc_core::backend::convergence::ConvergenceState;
use lb_svc_core::backend::readiness_gate::Wait;
use lb_svc_core::gateway::election::ElectionView;
use lb_svc_core::gateway::repair;
use lb_svc_core::model::{Condition, Ingress, Pod, Service, StatusReport};
use lb_svc_core::observed::{Filled, Push, PushAnswer, Remembered};
use lb_svc_core::service::conditions::{FAILS_FOR, FailedWrite};
use lb_svc_core::service::passing::PASSES_WITHIN;
use lb_svc_core::service::plan::Requeue;
use lb_svc_core::service::publication::{COUNT_FOR, Published};

use super::backoff::{CONVERGED, CONVERGED_POLL, FAILED, HOLDS_GATES, UNCONVERGED, WOKEN, about, pause};
use super::reports::Reports;
use super::start_failures::StartFailure;

/// What this process remembers of a key between two runs. All of it may be
/// lost: it only paces, and keeps from reporting twice.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Runs since the last write that pods have to follow, without converging; no
    /// more than [`WOKEN`] of those before the last change.
    pub unconverged_runs: u32,
    /// When anything last changed that concerns it.
    pub changed: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
    /// Since when a write of it has failed in each run.
    pub failing_since: Option<Instant>,
    /// Since when the Service has waited for what passes by itself.
    pub passing_since: Option<Instant>,
    /// Why the address is not filled into the Service's spec.
    pub fill_failure: Option<FailedWrite>,
    /// When a Warning was last written.
    pub warned: Option<Instant>,
    /// When each pod was last nudged, by uid.
    pub nudges: HashMap<String, Instant>,
    /// The last push to each pod, by uid: of which digest, what came of it, and when.
    pub pushes: HashMap<String, (String, PushAnswer, Instant)>,
    /// What its pods have reported.
    pub reports: Reports,
    /// Since when each of its pods has reported that its interface is missing, by uid.
    pub unattached: HashMap<String, Instant>,
    /// Why its pods do not start, by uid.
    pub start_failures: HashMap<String, StartFailure>,
    /// When the ConfigMap was last written.
    pub config_written: Option<Instant>,
    /// When the Secret with the key was last written.
    pub key_written: Option<Instant>,
    /// The address that was last filled into the Service's spec, how often, and
    /// when.
    pub filled: Option<(IpAddr, u32, Instant)>,
    /// The Service's status as last written, and when it was first, or in place of another
    /// writer's.
    pub published: Option<(Published, Instant)>,
    /// The election among the gateway's pods, as last reported.
    pub election: Option<ElectionView>,
    /// The convergence of a gateway with endpoint targets.
    pub convergence: Option<ConvergenceState>,
    /// A pod's wait for its readiness gate.
    pub wait: Option<Wait>,
}

impl Memory {
    /// What of it a plan is made by.
    pub fn remembered(&self, now: Instant) -> Remembered {
        let ago = |at: &Instant| now.duration_since(*at);
        Remembered {
            election: self.election.clone(),
            convergence: self.convergence.clone(),
            quiet: self.changed.as_ref().map(ago).unwrap_or_default(),
            config_written: self.config_written.as_ref().map(ago),
            key_written: self.key_written.as_ref().map(ago),
            nudges: self.nudges.iter().map(|(uid, at)| (uid.clone(), ago(at))).collect(),
            pushes: self
                .pushes
                .iter()
                .map(|(uid, (digest, answer, at))| {
                    (uid.clone(), Push { digest: digest.clone(), answer: *answer, age: ago(at) })
                })
                .collect(),
            unattached: self.unattached.iter().map(|(uid, at)| (uid.clone(), ago(at))).collect(),
            filled: self.filled.map(|(address, times, at)| Filled { address, times, age: ago(&at) }),
            warned: self.warned.as_ref().map(ago),
            passing: self.passing_since.as_ref().map(ago),
            fill_failure: self.fill_failure.clone(),
            published: self
                .published
                .as_ref()
                .map(|(published, at)| Published { age: ago(at), ..published.clone() }),
        }
    }

    /// Something that concerns it has changed.
    pub fn wake(&mut self, now: Instant) {
        self.changed = Some(now);
        self.unconverged_runs = self.unconverged_runs.min(WOKEN);
    }

    /// A write failed. Returns whether that is to be said: the API server
    /// refused it, or it has failed for long.
    pub fn fail(&mut self, refused: bool, now: Instant) -> bool {
        let since = *self.failing_since.get_or_insert(now);
        refused || now.duration_since(since) >= FAILS_FOR
    }

    /// A run failed. Returns the pause until the next one, which is made when
    /// the failure has lasted for long, at the latest.
    pub fn pause_after_failure(&mut self, now: Instant) -> Duration {
        let wait = pause(FAILED, self.failures);
        self.failures += 1;
        let lasted = self.failing_since.map(|since| now.duration_since(since));
        let rest = lasted.and_then(|lasted| FAILS_FOR.checked_sub(lasted)).filter(|rest| !rest.is_zero());
        rest.map_or(wait, |rest| wait.min(rest))
    }

    /// A run was carried out.
    pub fn succeed(&mut self) {
        (self.failures, self.failing_since) = (0, None);
    }

    /// An address was filled into the Service's spec.
    pub fn fill(&mut self, address: IpAddr, now: Instant) {
        let times = self.filled.filter(|(before, ..)| *before == address).map_or(0, |(_, times, _)| times);
        self.filled = Some((address, times.saturating_add(1), now));
        self.fill_failure = None;
    }

    /// Its pods are these, and have reported.
    pub fn see_pods(&mut self, pods: &[Pod], now: Instant) {
        let is_there = |uid: &String| pods.iter().any(|pod| pod.uid == *uid);
        self.nudges.retain(|uid, _| is_there(uid));
        self.pushes.retain(|uid, _| is_there(uid));
        self.unattached.retain(|uid, _| is_there(uid));
        // Of one that did not answer this once nothing has changed.
        for pod in pods.iter().filter(|pod| pod.report != StatusReport::Missed) {
            match repair::patience(pod) {
                Some(_) => drop(self.unattached.entry(pod.uid.clone()).or_insert(now)),
                None => drop(self.unattached.remove(&pod.uid)),
            }
        }
    }

    /// The status of the Service that was seen so was written.
    pub fn publish(&mut self, seen: &Service, ingress: &[Ingress], conditions: &[Condition], now: Instant) {
        let same = self.published.take().filter(|(before, _)| before.ingress == ingress);
        let (times, at) = match same {
            Some((before, at)) if !before.is_replaced(&seen.ingress, &seen.conditions) => (before.times, at),
            Some((before, at)) if now.duration_since(at) < COUNT_FOR => (before.times.saturating_add(1), now),
            Some(_) | None => (0, now),
        };
        let kinds = conditions.iter().map(|condition| condition.kind.clone()).collect();
        let published = Published { ingress: ingress.to_vec(), kinds, times, age: Duration::ZERO };
        self.published = Some((published, at));
    }

    /// After which time a gateway is to be planned for again, if at all.
    pub fn next(&mut self, requeue: Requeue) -> Option<Duration> {
        match requeue {
            Requeue::Never => None,
            Requeue::Converged { poll } => {
                self.unconverged_runs = 0;
                Some(if poll { about(CONVERGED_POLL) } else { CONVERGED })
            }
            Requeue::Unconverged { restart, holds_gates, reports, within } => {
                self.unconverged_runs = if restart { 0 } else { self.unconverged_runs + 1 };
                let (first, last) = UNCONVERGED;
                let last = match (holds_gates, reports) {
                    (true, _) => HOLDS_GATES,
                    (false, true) => CONVERGED_POLL,
                    (false, false) => last,
                };
                let wait = pause((first, last), self.unconverged_runs);
                let wait = if wait < CONVERGED_POLL { wait } else { about(wait).min(last) };
                // That it has lasted is to be said in time.
                let waited = self.passing_since.map(|since| since.elapsed());
                let rest = waited.and_then(|waited| PASSES_WITHIN.checked_sub(waited));
                let rest = rest.filter(|rest| !rest.is_zero());
                Some(rest.into_iter().chain(within).fold(wait, Duration::min))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::gateway::GatewayStatus;

    use super::*;

    #[test]
    fn r22_failure_that_lasts_is_to_be_said_within_half_a_minute() {
        let (start, mut memory) = (Instant::now(), Memory::default());
        let mut now = start;
        assert!(memory.fail(true, now), "what is refused is said at once");
        while !memory.fail(false, now) {
            now += memory.pause_after_failure(now);
            assert!(now - start <= FAILS_FOR, "{:?}", now - start);
        }
        assert_eq!(now - start, FAILS_FOR);
        assert!(memory.pause_after_failure(now) > Duration::from_secs(10));
        memory.succeed();
        assert!(!memory.fail(false, now));
    }

    #[test]
    fn w3_writes_in_place_of_another_writers_are_counted() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        let mut own = lb_svc_core::testing::service();
        own.ingress = vec![Ingress { ip: "172.18.0.11".into(), ..Ingress::default() }];
        let other = lb_svc_core::testing::service();
        let times = |memory: &Memory| memory.remembered(now).published.unwrap().times;
        let kind = |kind: &str| Condition {
            kind: kind.to_owned(),
            status: true,
            reason: String::new(),
            message: String::new(),
        };
        let (ready, limited) = (kind("lb-svc.kubeovn.io/GatewayReady"), kind("lb-svc.kubeovn.io/Limited"));
        memory.publish(&other, &own.ingress, std::slice::from_ref(&ready), now);
        assert_eq!(times(&memory), 0);
        memory.publish(&other, &own.ingress, std::slice::from_ref(&ready), now);
        assert_eq!(times(&memory), 1);
        own.conditions = vec![ready.clone()];
        memory.publish(&own, &own.ingress, &[ready.clone(), limited], now);
        assert_eq!(times(&memory), 1, "only the conditions have changed");
        memory.publish(&own, &own.ingress, std::slice::from_ref(&ready), now);
        assert_eq!(times(&memory), 2, "one of them was taken away");
        now += COUNT_FOR;
        memory.publish(&other, &own.ingress, std::slice::from_ref(&ready), now);
        assert_eq!(memory.remembered(now).published.unwrap().times, 0, "long ago");
        memory.publish(&own, &other.ingress, &[ready], now);
        assert_eq!(memory.remembered(now).published.unwrap().times, 0, "another ingress");
    }

    #[test]
    fn w5_interface_is_missing_for_as_long_as_its_pod_has_said_so() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let reports = |faults: &[&str]| {
            let faults = faults.iter().map(|fault| ((*fault).to_owned(), String::new())).collect();
            StatusReport::Reported(Box::new(GatewayStatus { faults, ..GatewayStatus::default() }))
        };
        let mut see = |report: StatusReport, seconds: u64| {
            let pod = Pod { uid: "u".into(), of_deployment: true, report, ..Pod::default() };
            let now = start + Duration::from_secs(seconds);
            memory.see_pods(&[pod], now);
            memory.remembered(now).unattached.get("u").map(Duration::as_secs)
        };
        assert_eq!(see(reports(&["AttachmentPending"]), 0), Some(0));
        assert_eq!(see(StatusReport::Missed, 10), Some(10));
        assert_eq!(see(reports(&["InterfaceMissing"]), 20), Some(20));
        assert_eq!(see(reports(&[]), 30), None);
        assert_eq!(see(reports(&["InterfaceMissing"]), 40), Some(0), "anew");
        memory.see_pods(&[], start);
        assert!(memory.unattached.is_empty());
    }

    #[test]
    fn gateway_that_others_wait_for_is_planned_more_often() {
        let next = |requeue: Requeue| {
            let mut memory = Memory::default();
            let pauses = (0..20).filter_map(|_| memory.next(requeue));
            pauses.last().unwrap()
        };
        let unconverged = |holds_gates, reports| Requeue::Unconverged {
            restart: false,
            holds_gates,
            reports,
            within: None,
        };
        assert!(next(unconverged(false, false)) > CONVERGED_POLL * 10);
        assert!(next(unconverged(false, true)) <= CONVERGED_POLL);
        assert_eq!(next(unconverged(true, true)), HOLDS_GATES);
        assert_eq!(next(Requeue::Converged { poll: false }), CONVERGED);
        assert!(next(Requeue::Converged { poll: true }) < CONVERGED / 2);
    }

    #[test]
    fn r30_gateway_of_which_nothing_changes_is_planned_ever_more_seldom() {
        let unconverged =
            Requeue::Unconverged { restart: false, holds_gates: false, reports: false, within: None };
        let (mut memory, longest) = (Memory::default(), UNCONVERGED.1);
        let total: Duration = (0..30).filter_map(|_| memory.next(unconverged)).sum();
        assert!(total > longest * 10, "{total:?}");
        for _ in 0..3 {
            let wait = memory.next(unconverged).unwrap();
            assert!(wait > longest / 2 && wait <= longest, "{wait:?}");
        }
        memory.wake(Instant::now());
        assert!(memory.next(unconverged).unwrap() < CONVERGED_POLL, "something has changed");
        let paced = Requeue::Unconverged {
            restart: false,
            holds_gates: false,
            reports: false,
            within: Some(Duration::from_millis(30)),
        };
        assert_eq!(memory.next(paced), Some(Duration::from_millis(30)));
        // What is said after a minute is said after a minute.
        memory.unconverged_runs = 30;
        memory.passing_since = Instant::now().checked_sub(PASSES_WITHIN - Duration::from_secs(7));
        assert!(memory.next(unconverged).unwrap() <= Duration::from_secs(7));
    }
}
