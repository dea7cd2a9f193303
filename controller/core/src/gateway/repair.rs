//! Pods that cannot mend themselves: their attached interface is missing, and
//! CNI never comes again for a pod that lives.
//!
//! An interface goes with the node's interface that it is made on; a pod that
//! starts before Multus does never gets one. Both are for good, and end with
//! the pod: its Deployment makes another.

use jiff::{SignedDuration, Timestamp};
use lb_svc_crds::reason::Reason;

use crate::action::Action;
use crate::model::Pod;

/// The faults of which a gateway reports one while its interface is missing.
const MISSING: [Reason; 2] = [Reason::InterfaceMissing, Reason::AttachmentPending];
/// For how long a pod has not been ready before it is replaced. Multus reports
/// a pod's interfaces within a second of its start.
const GRACE: SignedDuration = SignedDuration::from_secs(30);
/// How old a pod is before it is replaced: where no interface can be made, its
/// successor fares no better, and is not to be replaced at once.
const AGE: SignedDuration = SignedDuration::from_secs(60);

/// Deletes a pod of a gateway whose interface is missing for good, one at a
/// time. `pods`: the gateway's living ones.
pub fn replace(pods: &[&Pod], now: Timestamp) -> Option<Action> {
    let since = |at: Option<Timestamp>, time| at.is_some_and(|at| now.duration_since(at) >= time);
    let is_broken = |pod: &&&Pod| {
        let faults = pod.reported().map(|status| &status.faults);
        let is_missing =
            faults.is_some_and(|faults| MISSING.iter().any(|fault| faults.contains_key(fault.as_str())));
        pod.of_deployment
            && !pod.ready
            && is_missing
            && since(pod.unready_since, GRACE)
            && since(pod.created, AGE)
    };
    let pod = pods.iter().find(is_broken)?;
    let why = "its attached interface is missing, another is made";
    Some(Action::DeletePod { pod: pod.name.clone(), uid: pod.uid.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StatusReport;
    use lb_svc_crds::gateway::GatewayStatus;

    fn pod(fault: &str, unready_for: i64, age: i64) -> Pod {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        let ago = |seconds| Some(now - SignedDuration::from_secs(seconds));
        let faults = [(fault.to_owned(), "why".to_owned())].into();
        let status = GatewayStatus { faults, ..GatewayStatus::default() };
        Pod {
            name: "gw".into(),
            uid: "u".into(),
            of_deployment: true,
            unready_since: ago(unready_for),
            created: ago(age),
            report: StatusReport::Reported(Box::new(status)),
            ..Pod::default()
        }
    }

    #[test]
    fn b03_b04_pod_without_its_interface_is_replaced_after_a_grace() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        let delete = Some(Action::DeletePod {
            pod: "gw".into(),
            uid: "u".into(),
            why: "its attached interface is missing, another is made",
        });
        assert_eq!(replace(&[&pod("InterfaceMissing", 30, 600)], now), delete);
        assert_eq!(replace(&[&pod("AttachmentPending", 60, 60)], now), delete);
        for spared in [
            pod("InterfaceMissing", 29, 600),
            pod("InterfaceMissing", 59, 59),
            pod("NatFailed", 600, 600),
            Pod { ready: true, ..pod("InterfaceMissing", 600, 600) },
            Pod { of_deployment: false, ..pod("InterfaceMissing", 600, 600) },
            Pod { report: StatusReport::NoResponse, ..pod("InterfaceMissing", 600, 600) },
        ] {
            assert_eq!(replace(&[&spared], now), None, "{spared:?}");
        }
    }
}
