//! Pods that cannot mend themselves: their attached interface is missing, and
//! CNI never comes again for a pod that lives.
//!
//! An interface goes with the node's interface that it is made on; a pod that
//! starts before Multus does never gets one. Both are for good, and end with
//! the pod: its Deployment makes another.

use std::collections::HashMap;
use std::time::Duration;

use lb_svc_crds::reason::Reason;

use crate::action::Action;
use crate::model::Pod;

/// The faults of which a gateway reports one while its interface is missing, and for how
/// long before its pod is replaced. Multus reports a pod's interfaces within a second of
/// its start; where none can be made, the successor fares no better, and is not to be
/// replaced at once.
const MISSING: [(Reason, Duration); 2] = [
    (Reason::InterfaceMissing, Duration::from_secs(30)),
    (Reason::AttachmentPending, Duration::from_secs(60)),
];

/// After which time without its interface a pod of a gateway is replaced; `None` if it
/// does not report that it is missing.
pub fn patience(pod: &Pod) -> Option<Duration> {
    let faults = &pod.reported()?.faults;
    let missing = MISSING.iter().find(|(fault, _)| faults.contains_key(fault.as_str()));
    missing.filter(|_| pod.of_deployment && !pod.ready).map(|(_, patience)| *patience)
}

/// Deletes a pod of a gateway whose interface is missing for good, one at a
/// time. `pods`: the gateway's living ones. `unattached`: for how long each has reported
/// that, by uid. That is this process's own finding: the times in a pod are of other
/// clocks, by which each new pod may be old.
pub fn replace(pods: &[&Pod], unattached: &HashMap<String, Duration>) -> Option<Action> {
    let is_broken = |pod: &&&Pod| {
        let missing_for = unattached.get(&pod.uid);
        patience(pod).is_some_and(|patience| missing_for.is_some_and(|age| *age >= patience))
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

    fn pod(fault: &str) -> Pod {
        let faults = [(fault.to_owned(), "why".to_owned())].into();
        let status = GatewayStatus { faults, ..GatewayStatus::default() };
        Pod {
            name: "gw".into(),
            uid: "u".into(),
            of_deployment: true,
            report: StatusReport::Reported(Box::new(status)),
            ..Pod::default()
        }
    }

    #[test]
    fn b03_b04_pod_without_its_interface_is_replaced_after_a_grace() {
        let replaced = |pod: Pod, seconds: u64| {
            replace(&[&pod], &[("u".to_owned(), Duration::from_secs(seconds))].into())
        };
        let delete = Some(Action::DeletePod {
            pod: "gw".into(),
            uid: "u".into(),
            why: "its attached interface is missing, another is made",
        });
        assert_eq!(replaced(pod("InterfaceMissing"), 30), delete);
        assert_eq!(replaced(pod("AttachmentPending"), 60), delete);
        for (spared, seconds) in [
            (pod("InterfaceMissing"), 29),
            (pod("AttachmentPending"), 59),
            (pod("NatFailed"), 600),
            (Pod { ready: true, ..pod("InterfaceMissing") }, 600),
            (Pod { of_deployment: false, ..pod("InterfaceMissing") }, 600),
            (Pod { report: StatusReport::NoResponse, ..pod("InterfaceMissing") }, 600),
        ] {
            assert_eq!(replaced(spared.clone(), seconds), None, "{spared:?}");
        }
    }

    #[test]
    fn w5_new_pod_is_not_old_by_a_clock_that_is_fast() {
        let long_ago = Some(jiff::Timestamp::UNIX_EPOCH);
        let new = Pod { created: long_ago, unready_since: long_ago, ..pod("AttachmentPending") };
        assert_eq!(replace(&[&new], &HashMap::new()), None);
        assert_eq!(replace(&[&new], &[("u".to_owned(), Duration::from_secs(1))].into()), None);
    }
}
