//! What keeps a Service waiting and passes by itself: it is no Event until it
//! has lasted, and then says what to look at.

use std::time::Duration;

use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;

use crate::model::{GatewayId, OwnedObject, Pod, Problem, StatusReport};
use crate::observed::Observed;

/// The reasons that pass by themselves.
const PASSING: [Reason; 4] =
    [Reason::GatewayStarting, Reason::Replacing, Reason::AddressBeingFreed, Reason::NodeAddressesPending];
/// How long a Service waits for what passes by itself before that is a fault.
pub const PASSES_WITHIN: Duration = Duration::from_secs(60);

/// Whether what has this reason passes by itself.
pub fn passes(reason: &str) -> bool {
    PASSING.iter().any(|passing| reason == passing.as_str())
}

/// Whether the Service has waited so long that nothing passes by itself.
pub fn lasts(observed: &Observed) -> bool {
    observed.remembered.passing.is_some_and(|age| age >= PASSES_WITHIN)
}

/// The problem, with what to do where it should have passed by now.
pub fn with_remedy(problem: Problem, observed: &Observed) -> Problem {
    if !passes(&problem.reason) || !lasts(observed) {
        return problem;
    }
    let remedy = if problem.reason == Reason::GatewayStarting.as_str() {
        starting(observed)
    } else {
        ending(observed)
    };
    let message =
        format!("{}; this has lasted for more than {} s: {remedy}", problem.message, PASSES_WITHIN.as_secs());
    Problem { message, ..problem }
}

/// What to look at where a gateway does not start.
fn starting(observed: &Observed) -> String {
    let namespace = &observed.gateway.location.namespace;
    let Some(id) = observed.gateway_id() else { return String::new() };
    let pods = observed.gateway.living_pods(&id);
    let Some(pod) = pods.iter().find(|pod| !pod.ready).or(pods.first()) else {
        let name = observed.gateway.location.name();
        return format!(
            "Kubernetes has made no pod of the Deployment; see kubectl -n {namespace} describe deployment {name}, and whether kube-controller-manager runs"
        );
    };
    let name = &pod.name;
    let describe = format!("kubectl -n {namespace} describe pod {name}");
    let Some(node) = &pod.node else {
        return format!("pod {name} has no node; see {describe}, and whether kube-scheduler runs");
    };
    if pod.address.is_none() {
        return format!(
            "pod {name} has not started on node {node}; see {describe}, and whether the kubelet of {node} runs"
        );
    }
    let log = format!("kubectl -n {namespace} logs {name}");
    match (&pod.report, pod.ready) {
        (StatusReport::Reported(_), _) => {
            format!("pod {name} on node {node} has not carried out its configuration; see {log}")
        }
        (_, true) => format!("pod {name} on node {node} is ready, and does not serve the address; see {log}"),
        (_, false) => format!(
            "pod {name} on node {node} is not ready and does not answer the controller; see {describe}, {log}, whether the kubelet of {node} runs, and NetworkPolicies for port {}",
            names::GATEWAY_PORT
        ),
    }
}

/// What to look at where an earlier gateway does not end.
fn ending(observed: &Observed) -> String {
    fn is_left<T>(object: Option<&OwnedObject<T>>, current: Option<&GatewayId>) -> bool {
        object.is_some_and(|object| object.deleting || object.gateway_id.as_ref() != current)
    }
    let gateway = &observed.gateway;
    let Some(id) = observed.gateway_id() else { return String::new() };
    let current = Some(&id).filter(|_| !gateway.is_misplaced());
    let name = gateway.location.name();
    let objects = [
        ("ConfigMap", is_left(gateway.config.as_ref(), current)),
        ("Deployment", is_left(gateway.deployment.as_ref(), current)),
        ("PodDisruptionBudget", is_left(gateway.budget.as_ref(), current)),
    ];
    let mut left: Vec<String> =
        objects.iter().filter(|(_, is_left)| *is_left).map(|(kind, _)| format!("{kind} {name}")).collect();
    let is_earlier = |pod: &&Pod| pod.deleting || pod.gateway_id.as_ref() != current;
    left.extend(gateway.pods.iter().filter(is_earlier).filter(|pod| pod.could_answer()).map(|pod| {
        let node = pod.node.as_ref().map_or(String::new(), |node| format!(" on node {node}"));
        format!("pod {}{node}", pod.name)
    }));
    let left = match left.is_empty() {
        true => format!(
            "look for it with kubectl get pods -A -l {}={} -o wide",
            names::MANAGED_BY_LABEL,
            names::MANAGED_BY
        ),
        false => format!("in namespace {} there is still {}", gateway.location.namespace, left.join(", ")),
    };
    format!(
        "{left}; an object that does not end has a finalizer or a node that is off: remove the finalizer, delete that Node, or taint it node.kubernetes.io/out-of-service"
    )
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::Requested;

    use super::*;
    use crate::action::Action;
    use crate::ipam::AllocationError;
    use crate::service::conditions::{ADDRESS_ALLOCATED, GATEWAY_READY};
    use crate::service::plan::{Requeue, plan};
    use crate::testing::gateway::{
        MAC_A, carried_out, claim, claimed, config_of, deployment_of, events, gateway_pod, is_converged,
        message, observed_again, owned, settle, with_pods, withholds,
    };

    /// What the condition says at once, and when it has lasted.
    fn told(observed: Observed, kind: &str) -> (String, String) {
        let mut observed = settle(observed);
        let at_once = message(&observed, kind).to_owned();
        assert!(plan(&observed).waits && !is_converged(&plan(&observed)), "it is come back to: {at_once}");
        observed.remembered.passing = Some(PASSES_WITHIN);
        let planned = plan(&observed);
        assert!(!events(&planned).is_empty(), "{at_once}");
        let observed = settle(observed);
        assert_eq!(events(&plan(&observed)), [], "once");
        (at_once, message(&observed, kind).to_owned())
    }

    fn starting(pods: Vec<Pod>) -> Observed {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        let planned = plan(&observed);
        observed.gateway.config = Some(owned("cm", config_of(&planned).unwrap().clone()));
        observed.gateway.deployment = deployment_of(&planned);
        with_pods(observed, pods)
    }

    #[test]
    fn r22_gateway_that_does_not_start_is_reported_after_a_minute() {
        let pod = || Pod { ready: false, report: StatusReport::NotQueried, ..gateway_pod("gw", "", &[]) };
        let node = Some("n2".to_owned());
        let silent = StatusReport::NoResponse;
        let cases = [
            (Vec::new(), "kube-controller-manager"),
            (vec![Pod { address: None, ..pod() }], "kube-scheduler"),
            (vec![Pod { address: None, node: node.clone(), ..pod() }], "kubelet of n2"),
            (vec![Pod { node: node.clone(), report: silent, ..pod() }], "NetworkPolicies"),
            (vec![Pod { node, ..gateway_pod("gw", "", &[]) }], "logs gw"),
        ];
        for (pods, remedy) in cases {
            let (at_once, later) = told(starting(pods), GATEWAY_READY);
            assert_eq!(at_once, "the gateway is being started or updated");
            assert!(later.starts_with(&at_once) && later.contains(remedy), "{later}");
        }
    }

    #[test]
    fn r22_earlier_gateway_that_does_not_end_is_reported_after_a_minute() {
        let mut replaced = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        replaced.gateway.config = Some(owned("cm", String::new()));
        let config = replaced.gateway.config.as_mut().unwrap();
        (config.gateway_id, config.deleting) = (Some("uid-0".into()), true);
        let node = Some("n2".to_owned());
        replaced.gateway.pods =
            vec![Pod { gateway_id: Some("uid-0".into()), node, ..gateway_pod("old", "", &[]) }];
        let (_, later) = told(replaced.clone(), GATEWAY_READY);
        for word in ["ConfigMap lb-svc-", "pod old on node n2", "out-of-service"] {
            assert!(later.contains(word), "{later}");
        }
        let mut freed = replaced;
        freed.addresses.claims.clear();
        freed.addresses.allocation_error = Some(AllocationError::BeingFreed("172.18.0.11".parse().unwrap()));
        let (_, later) = told(freed, ADDRESS_ALLOCATED);
        assert!(later.contains("pod old on node n2"), "{later}");

        let own = withholds(claimed(&[claim("172.18.0.11", Requested::Static)]), "172.18.0.11", MAC_A);
        let (at_once, later) = told(own, GATEWAY_READY);
        assert!(at_once.contains("an earlier gateway") && later.contains("kubectl get pods -A"), "{later}");
    }

    #[test]
    fn r22_wait_ends_with_its_cause() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.remembered.passing = Some(PASSES_WITHIN);
        let planned = plan(&observed_again(observed));
        assert!(!planned.waits && planned.next == Requeue::Converged { poll: false });
        assert!(!planned.steps().any(|action| matches!(action, Action::SetStatus { .. })));
    }
}
