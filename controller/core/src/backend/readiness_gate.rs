//! When a pod's readiness gate ([`lb_svc_crds::names::READINESS_GATE`]) is
//! satisfied: once every gateway that is to forward connections to the pod does.
//!
//! Each gateway's plan has the verdicts of that gateway; here those of all
//! gateways are put together.

use std::time::{Duration, Instant};

use lb_svc_crds::reason::Reason;

use crate::model::ServiceRef;

/// How long gateways without a verdict are waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a pod waits before what it waits for is written on it: a check takes
/// its time.
const SAID_AFTER: Duration = Duration::from_secs(10);
/// How often a pod that waits for verdicts is decided on when nothing changes.
const LOOK: Duration = Duration::from_secs(1);
/// The same of one that is unhealthy: another verdict is decided on at once, and
/// each decision looks through the slices of its namespace.
const LOOK_AT_UNHEALTHY: Duration = Duration::from_secs(10);

/// The verdict of a gateway's ready pods on a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of them forward connections to it.
    Programmed,
    /// One of them finds it unhealthy; the message for people.
    Unhealthy(String),
}

/// The verdicts on a backend of the gateways of all Services that have it; `None`
/// while a gateway has none.
pub type GatewayVerdicts = Vec<(ServiceRef, Option<Verdict>)>;

/// What is decided for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The gate is satisfied.
    Pass {
        /// Why.
        reason: Reason,
        /// The message for people.
        message: String,
    },
    /// The pod waits; when to decide again at the latest, and the message to write
    /// on it, if any.
    Wait(Duration, Option<String>),
}

/// A pod's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    since: Instant,
    /// Since when it waits only for gateways without a verdict, if it does.
    silence: Option<Instant>,
}

impl Wait {
    /// A wait that begins now.
    pub fn new(now: Instant) -> Self {
        Self { since: now, silence: Some(now) }
    }

    /// Decides by the verdicts.
    pub fn decide(&mut self, said: &GatewayVerdicts, now: Instant) -> Decision {
        let unhealthy = said.iter().find_map(|(_, verdict)| match verdict {
            Some(Verdict::Unhealthy(message)) => Some(message),
            _ => None,
        });
        if let Some(message) = unhealthy {
            // A gateway that falls silent now may have had the same verdict.
            self.silence = None;
            let left = SAID_AFTER.saturating_sub(now.duration_since(self.since));
            return match left.is_zero() {
                true => Decision::Wait(LOOK_AT_UNHEALTHY, Some(message.clone())),
                false => Decision::Wait(left, None),
            };
        }
        let silent = said.iter().filter(|(_, verdict)| verdict.is_none());
        let silent: Vec<String> = silent.map(|(service, _)| service.to_string()).collect();
        let waited = now.duration_since(*self.silence.get_or_insert(now));
        let pass = |reason, message| Decision::Pass { reason, message };
        if said.is_empty() {
            pass(Reason::NotSelected, "no Service that is served directly leads to this pod".to_owned())
        } else if silent.is_empty() {
            pass(Reason::Served, "its gateways lead connections to this pod".to_owned())
        } else if waited >= PATIENCE {
            let (services, seconds) = (silent.join(", "), PATIENCE.as_secs());
            let message =
                format!("the gateway of {services} did not say within {seconds} s that it takes it up");
            pass(Reason::Unanswered, message)
        } else {
            Decision::Wait(LOOK.min(PATIENCE - waited), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(verdicts: &[Option<Verdict>]) -> GatewayVerdicts {
        let one = |(n, verdict): (usize, &Option<Verdict>)| {
            (ServiceRef::new("default", &format!("s{n}")), verdict.clone())
        };
        verdicts.iter().enumerate().map(one).collect()
    }

    fn unhealthy() -> Option<Verdict> {
        Some(Verdict::Unhealthy("unhealthy".to_owned()))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn gate_is_satisfied_when_all_gateways_programmed_it() {
        let start = Instant::now();
        let decide = |verdicts: &[Option<Verdict>]| Wait::new(start).decide(&said(verdicts), start);
        let taken = || Some(Verdict::Programmed);
        let reason = |verdicts: &[Option<Verdict>]| match decide(verdicts) {
            Decision::Pass { reason, .. } => reason.as_str(),
            Decision::Wait(..) => panic!("it waits"),
        };
        assert_eq!(reason(&[]), "NotSelected");
        assert_eq!(reason(&[taken()]), "Served");
        assert_eq!(reason(&[taken(), taken()]), "Served");
        assert_eq!(decide(&[taken(), None]), Decision::Wait(SECOND, None));
        assert_eq!(decide(&[taken(), unhealthy()]), Decision::Wait(10 * SECOND, None));
    }

    #[test]
    fn r51_unhealthy_backend_is_looked_at_every_ten_seconds() {
        let start = Instant::now();
        let mut wait = Wait::new(start);
        let looks =
            std::iter::successors(Some(start), |now| match wait.decide(&said(&[unhealthy()]), *now) {
                Decision::Wait(pause, _) => Some(*now + pause),
                Decision::Pass { .. } => None,
            });
        assert_eq!(looks.take_while(|now| *now < start + 60 * SECOND).count(), 6);
    }

    #[test]
    fn gate_waits_five_seconds_for_silence_and_as_long_as_a_check_fails() {
        let start = Instant::now();
        let mut wait = Wait::new(start);
        let mut after = |seconds: f64, verdict: Option<Verdict>| {
            wait.decide(&said(&[verdict]), start + Duration::from_secs_f64(seconds))
        };
        assert_eq!(after(4.75, None), Decision::Wait(SECOND / 4, None));
        assert_eq!(after(4.75, unhealthy()), Decision::Wait(SECOND * 21 / 4, None));
        assert_eq!(after(9.8, None), Decision::Wait(SECOND, None), "it may just not answer");
        assert_eq!(after(14.7, None), Decision::Wait(SECOND / 10, None));
        assert_eq!(after(600.0, unhealthy()), Decision::Wait(SECOND * 10, Some("unhealthy".to_owned())));
        assert_eq!(after(600.0, None), Decision::Wait(SECOND, None));
        let Decision::Pass { reason, message } = after(605.0, None) else { panic!("it waits") };
        assert_eq!(reason.as_str(), "Unanswered");
        assert!(message.contains("default/s0"), "{message}");
    }
}
