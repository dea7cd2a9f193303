//! What the pods of a gateway have reported, from one query to the next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lb_svc_core::model::StatusReport;
use lb_svc_crds::gateway::GatewayStatus;

/// For how long the last status counts of a pod that responds no more.
const KEPT: Duration = Duration::from_secs(30);

/// The reports of a gateway's pods, by uid.
#[derive(Debug, Default)]
pub(super) struct Reports(HashMap<String, Option<Response>>);

/// The last response of a pod.
#[derive(Debug)]
struct Response {
    at: Instant,
    /// The status; `None` once it says nothing of the configuration as it is.
    status: Option<Box<GatewayStatus>>,
}

impl Reports {
    /// Whether the pod has been queried before.
    pub fn knows(&self, uid: &str) -> bool {
        self.0.contains_key(uid)
    }

    /// The report of a pod that has been queried and `answered` so.
    pub fn take(&mut self, uid: &str, answered: Option<GatewayStatus>, now: Instant) -> StatusReport {
        let last = self.0.entry(uid.to_owned()).or_default();
        if let Some(status) = answered.map(Box::new) {
            *last = Some(Response { at: now, status: Some(status.clone()) });
            return StatusReport::Reported(status);
        }
        match last.as_ref().filter(|last| now.duration_since(last.at) < KEPT) {
            None => StatusReport::NoResponse,
            Some(Response { status: None, .. }) => StatusReport::Missed,
            Some(Response { status: Some(status), .. }) => StatusReport::Reported(status.clone()),
        }
    }

    /// The configuration is another from now on: whether a pod has let go of an
    /// address, say, is not to be read from what it reported before.
    pub fn outdate(&mut self) {
        self.0.values_mut().flatten().for_each(|response| response.status = None);
    }

    /// Keeps those of pods that there are.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| is_there(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(digest: &str) -> GatewayStatus {
        GatewayStatus { digest: Some(digest.to_owned()), ..GatewayStatus::default() }
    }

    #[test]
    fn r33_pod_that_misses_a_query_is_taken_by_its_last_status_for_a_while() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let reported = |digest| StatusReport::Reported(Box::new(status(digest)));
        assert_eq!(
            reports.take("a", None, start),
            StatusReport::NoResponse,
            "never, as with a NetworkPolicy"
        );
        assert_eq!(reports.take("a", Some(status("one")), at(1)), reported("one"));
        assert_eq!(reports.take("a", None, at(30)), reported("one"));
        assert_eq!(
            reports.take("a", None, at(31)),
            StatusReport::NoResponse,
            "a NetworkPolicy that came later"
        );
        assert_eq!(reports.take("a", Some(status("two")), at(32)), reported("two"));
        reports.outdate();
        assert_eq!(reports.take("a", None, at(33)), StatusReport::Missed, "nor is it believed");
        assert_eq!(reports.take("b", None, at(33)), StatusReport::NoResponse);
        assert!(reports.knows("b"));
        reports.retain(|uid| uid == "a");
        assert!(!reports.knows("b"));
    }
}
