//! When a pod passes our readiness gate ([`lb_svc_crds::names::READINESS_GATE`]):
//! once every gateway that is to lead connections to it does.
//!
//! Each gateway's run says what its pods make of the backend, see
//! [`crate::service::plan`]; here that is put together for all Services that lead to it.

use std::time::{Duration, Instant};

use lb_svc_crds::reason::Reason;

use crate::model::ServiceRef;

/// So long those gateways are waited for that say nothing.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// What holds a pod up for so long is said on it: a check needs its time.
const SAID_AFTER: Duration = Duration::from_secs(10);
/// How often a pod that waits is looked at when nothing changes.
const LOOK: Duration = Duration::from_secs(1);

/// What the ready pods of one gateway make of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of them lead connections there.
    Programmed,
    /// One of them finds it unhealthy; this sentence says so.
    Unhealthy(String),
}

/// What the gateways of all Services that lead to a backend make of it; `None`:
/// one has not said so yet.
pub type GatewayVerdicts = Vec<(ServiceRef, Option<Verdict>)>;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It passes.
    Pass {
        /// Why.
        reason: Reason,
        /// One sentence.
        message: String,
    },
    /// It waits, and is looked at again after this time at the latest; with
    /// what is to be said of that.
    Wait(Duration, Option<String>),
}

/// A pod's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    since: Instant,
    /// Since when for nothing but gateways that say nothing.
    silence: Instant,
}

impl Wait {
    /// It begins.
    pub fn new(now: Instant) -> Self {
        Self { since: now, silence: now }
    }

    /// Decides by what is said.
    pub fn decide(&mut self, said: &GatewayVerdicts, now: Instant) -> Decision {
        let unhealthy = said.iter().find_map(|(_, verdict)| match verdict {
            Some(Verdict::Unhealthy(message)) => Some(message),
            _ => None,
        });
        if let Some(message) = unhealthy {
            // One that falls silent now may have said the same.
            self.silence = now;
            let is_long = now.duration_since(self.since) >= SAID_AFTER;
            return Decision::Wait(LOOK, is_long.then(|| message.clone()));
        }
        let silent = said.iter().filter(|(_, verdict)| verdict.is_none());
        let silent: Vec<String> = silent.map(|(service, _)| service.to_string()).collect();
        let waited = now.duration_since(self.silence);
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
        assert_eq!(decide(&[taken(), unhealthy()]), Decision::Wait(SECOND, None));
    }

    #[test]
    fn gate_waits_five_seconds_for_silence_and_as_long_as_a_check_fails() {
        let start = Instant::now();
        let mut wait = Wait::new(start);
        let mut after = |seconds: f64, verdict: Option<Verdict>| {
            wait.decide(&said(&[verdict]), start + Duration::from_secs_f64(seconds))
        };
        assert_eq!(after(4.75, None), Decision::Wait(SECOND / 4, None));
        assert_eq!(after(4.9, unhealthy()), Decision::Wait(SECOND, None));
        assert_eq!(after(9.8, None), Decision::Wait(SECOND / 10, None), "it may just not answer");
        assert_eq!(after(600.0, unhealthy()), Decision::Wait(SECOND, Some("unhealthy".to_owned())));
        let Decision::Pass { reason, message } = after(605.0, None) else { panic!("it waits") };
        assert_eq!(reason.as_str(), "Unanswered");
        assert!(message.contains("default/s0"), "{message}");
    }
}
