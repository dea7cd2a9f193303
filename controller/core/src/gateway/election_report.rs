//! The Events by which changes of a gateway's election are reported.

use lb_svc_crds::reason::Reason;

use super::election::{ElectionEvent, ElectionView};
use crate::action::Action;
use crate::ipam::Claim;
use crate::model::Pod;

/// The report of an election.
#[derive(Debug)]
pub struct ElectionReport {
    /// What is seen of it; `None` if no pod takes part in one.
    pub view: Option<ElectionView>,
    /// Events of its changes, and that they are reported.
    pub actions: Vec<Action>,
}

/// Reports the changes of the election among `pods` since `before`; the
/// addresses at stake are those of the claims `serving`.
pub fn report(before: Option<&ElectionView>, pods: &[&Pod], serving: &[&Claim]) -> ElectionReport {
    let has_election = pods.iter().any(|pod| pod.member);
    let (view, changes) = has_election.then(|| ElectionView::observe(before, pods)).unzip();
    let addresses = serving.iter().map(|claim| claim.address.to_string()).collect::<Vec<_>>().join(", ");
    let event = |change: ElectionEvent| {
        let (warning, reason, message) = match change {
            ElectionEvent::ActiveChanged(pod, node, why) => {
                let on = node.map(|node| format!(" on {node}")).unwrap_or_default();
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                (false, Reason::ActiveChanged, format!("{pod}{on} answers for {addresses} now{why}"))
            }
            ElectionEvent::SplitBrain(pods) => {
                let pods = pods.join(" and ");
                let message = format!(
                    "two pods answered for {addresses} at once until one gave way, says {pods}: the LAN was in parts, or loses frames"
                );
                (true, Reason::SplitBrain, message)
            }
        };
        Action::Event { warning, reason: reason.to_string(), message }
    };
    let mut actions: Vec<Action> = changes.unwrap_or_default().into_iter().map(event).collect();
    if view.as_ref() != before {
        actions.push(Action::RememberElection(view.clone()));
    }
    ElectionReport { view, actions }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::StatusReport;
    use crate::service::conditions::GATEWAY_READY;
    use crate::service::plan::plan;
    use crate::testing::gateway::{events, members, message, reported_mut, settle, steps, two_pods};

    #[test]
    fn change_of_active_pod_is_reported_once() {
        let mut observed = two_pods();
        assert_eq!(
            message(&observed, GATEWAY_READY),
            "172.18.0.11 is served by a on node-a; standby b on node-b"
        );
        members(&mut observed, "b", 2);
        let planned = plan(&observed);
        let told = [("ActiveChanged", "b on node-b answers for 172.18.0.11 now: why 2")];
        assert_eq!(events(&planned), told, "and nothing else");
        let observed = settle(observed);
        assert_eq!(
            message(&observed, GATEWAY_READY),
            "172.18.0.11 is served by b on node-b; standby a on node-a"
        );
        assert_eq!(events(&plan(&observed)), []);

        // A process that has just started only learns.
        let mut fresh = observed.clone();
        fresh.remembered.election = None;
        let planned = plan(&fresh);
        assert!(matches!(steps(&planned)[..], [Action::RememberElection(Some(_))]), "{:?}", steps(&planned));

        // Nobody can be asked for a moment: nothing changes for that.
        fresh = observed;
        fresh.gateway.pods.iter_mut().for_each(|pod| pod.report = StatusReport::NoResponse);
        fresh.remembered.nudges = [("uid-a".into(), Duration::ZERO), ("uid-b".into(), Duration::ZERO)].into();
        assert_eq!(steps(&plan(&fresh)), []);
        // The other pod leaves.
        fresh.gateway.pods.remove(0);
        assert_eq!(
            message(&settle(fresh.clone()), GATEWAY_READY),
            "172.18.0.11 is served by b on node-b; no standby"
        );
        // Back to one: what was seen of their election is no matter any more.
        fresh.gateway.pods[0].member = false;
        let planned = plan(&fresh);
        assert!(planned.actions.contains(&Action::RememberElection(None)), "{:?}", steps(&planned));
        assert_eq!(message(&settle(fresh), GATEWAY_READY), "172.18.0.11 is served");
    }

    #[test]
    fn split_brain_is_a_warning() {
        let mut observed = two_pods();
        reported_mut(&mut observed.gateway.pods[0]).election.as_mut().unwrap().splits = 1;
        let planned = plan(&observed);
        let [(reason, message)] = events(&planned)[..] else { panic!("{:?}", steps(&planned)) };
        assert!(
            reason == "SplitBrain" && message.contains("172.18.0.11") && message.contains("says a:"),
            "{message}"
        );
        assert_eq!(steps(&plan(&settle(observed))), []);
    }
}
