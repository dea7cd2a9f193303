//! Whether a gateway carries out what is configured for a Service, as its pods report.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::rendered::{PartDigests, Rendered};
use crate::backend::convergence::{Convergence, Observation};
use crate::backend::readiness_gate::Verdict;
use crate::ipam::Claim;
use crate::model::{Pod, PodId, Service, StatusReport};
use crate::observed::{ObservedEndpoints, Remembered};
use crate::service::allocation::conflict;

/// What a gateway does of a Service's part of its configuration.
#[derive(Debug, Default)]
pub struct Acknowledgement {
    /// Whether a ready pod carries out all of that.
    pub whole: bool,
    /// The convergence of a gateway with endpoint targets.
    pub convergence: Option<Convergence>,
}

/// Finds what the gateway, of which `pods` are the living pods, does of the Service's part
/// of `config`: a change of another's is nothing to wait for. A configuration that is not `written` yet is carried out by none.
pub fn acknowledge(
    config: &Rendered,
    written: bool,
    pods: &[&Pod],
    endpoints: &ObservedEndpoints,
    remembered: &Remembered,
    now: Timestamp,
) -> Acknowledgement {
    let ready: Vec<&Pod> = pods.iter().copied().filter(|pod| pod.ready).collect();
    let whole = written && ready.iter().any(|pod| carries_out(pod, &config.part));
    let convergence = config.targets.as_ref().map(|targets| {
        let observation = Observation {
            targets,
            part: &config.part,
            pods: &ready,
            acknowledged: whole,
            slices: &endpoints.slices,
            gated_pods: &endpoints.gated_pods,
            now,
        };
        observation.convergence(remembered.convergence.as_ref())
    });
    Acknowledgement { whole, convergence }
}

/// Whether the pod carries out the part. One that may not be queried is believed its
/// readiness.
fn carries_out(pod: &Pod, part: &PartDigests) -> bool {
    match &pod.report {
        StatusReport::Reported(status) => part.acknowledged_by(status),
        StatusReport::NoResponse => true,
        StatusReport::NotQueried | StatusReport::Missed => false,
    }
}

/// Whether the claim's address is in service, as far as that is known. Of
/// several pods the ready ones need not be those that answer for it, so before
/// it is reported for the first time one has to have it.
pub fn is_in_service(service: &Service, claim: &Claim, pods: &[&Pod]) -> bool {
    let has = |pod: &&Pod| match pod.reported() {
        Some(status) => !pod.member || status.addresses.contains(&claim.address),
        None => {
            let is_believed = pod.ready && pod.report != StatusReport::Missed;
            is_believed && conflict(pods, claim.address).is_none()
        }
    };
    service.has_ingress(claim.address) || pods.iter().any(has)
}

impl Acknowledgement {
    /// Whether the endpoint targets are carried out, but for their last
    /// changes.
    pub fn keeps_up(&self) -> bool {
        self.convergence.as_ref().is_some_and(|convergence| convergence.keeps_up)
    }

    /// What the gateway makes of the pods that wait for their readiness gate.
    pub fn verdicts(&self) -> BTreeMap<PodId, Verdict> {
        self.convergence.as_ref().map(|convergence| convergence.verdicts.clone()).unwrap_or_default()
    }

    /// Whether more is to be seen of the gateway's endpoints soon.
    pub fn is_changing(&self) -> bool {
        self.convergence
            .as_ref()
            .is_some_and(|convergence| convergence.may_become_unhealthy || convergence.holds_gates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::observed::Observed;
    use crate::service::conditions::{GATEWAY_READY, ips};
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        FOREIGN_MAC, carried_out, claim, claimed, config_of, config_written, direct_access, gateway_pod,
        is_converged, members, observed_again, reason, replicated, reported_mut, settle, status, steps,
        target_addresses, tcp_slice, two_pods,
    };
    use crate::testing::port;
    use jiff::SignedDuration;
    use lb_svc_crds::gateway::{DIRECT_VERSION, GatewayConfig, Target, TargetPort, Transport};
    use lb_svc_crds::{Requested, names};

    #[test]
    fn endpoint_change_keeps_gateway_ready() {
        let mut observed = direct_access();
        let planned = plan(&observed);
        assert_eq!((&steps(&planned)[..], is_converged(&planned)), (&[][..], true));
        let text = &observed.gateway.config.as_ref().unwrap().content;
        let config: GatewayConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.version, config.frontends[0].ports.len()), (DIRECT_VERSION, 1));
        let condition = observed.service.as_ref().unwrap().conditions.iter();
        let message = &condition.clone().find(|condition| condition.kind == GATEWAY_READY).unwrap().message;
        assert!(message.ends_with("connections go straight to its endpoints, as asked for"), "{message}");

        observed.endpoints.slices = vec![tcp_slice(&[(1, "ready"), (2, "leaving"), (3, "ready")])];
        let planned = plan(&observed);
        let config = config_written(&planned);
        assert_eq!(target_addresses(&config), ["10.0.0.1", "10.0.0.3"]);
        let Target::Endpoints { subsets, affinity_seconds, check } = &config.frontends[0].target else {
            panic!("not direct")
        };
        let target = TargetPort { protocol: Transport::Tcp, port: 80, target_port: 8080 };
        assert_eq!((&subsets[0].ports, affinity_seconds, check), (&vec![target], &None, &None));
        assert_eq!(subsets[0].draining.len(), 1);
        let digest = names::digest(config_of(&planned).unwrap().as_bytes());
        let nudged = planned.steps().any(|action| match action {
            Action::AnnotatePod { annotations, nudge: Some(0), .. } => {
                annotations[names::CONFIG_ANNOTATION] == format!("{digest}.0")
            }
            _ => false,
        });
        assert!(nudged, "{:?}", steps(&planned));
        assert_eq!(status(&planned), None, "nothing to be said of it");
        assert!(!is_converged(&planned));

        // A gateway that does not follow at all is one that does not serve.
        observed.gateway.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
        observed = observed_again(observed);
        assert_eq!(status(&plan(&observed)), None);
        observed.now += SignedDuration::from_secs(10);
        let planned = plan(&observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "GatewayStarting");

        // Another port is more than an endpoint.
        let mut observed = direct_access();
        observed.service.as_mut().unwrap().ports.push(port("TCP", 443));
        assert_eq!(reason(status(&plan(&observed)).unwrap().1, GATEWAY_READY), "GatewayStarting");
    }

    #[test]
    fn gated_pod_is_targeted_and_judged() {
        let mut observed = direct_access();
        let waiting = PodId::of("uid-3");
        observed.endpoints.slices = vec![tcp_slice(&[(1, "ready"), (2, "ready"), (3, "unready")])];
        assert_eq!(target_addresses(&config_written(&plan(&observed))), ["10.0.0.1", "10.0.0.2"]);
        observed.endpoints.gated_pods = [(waiting, false)].into();
        let planned = plan(&observed);
        let config = config_written(&planned);
        assert_eq!(target_addresses(&config), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert!(planned.index.verdicts.is_empty(), "it is on its way");

        let content = config_of(&plan(&observed)).unwrap().clone();
        observed.gateway.config.as_mut().unwrap().content = content.clone();
        observed.gateway.pods = vec![gateway_pod("gw", &content, &["172.18.0.11"])];
        let observed = settle(observed);
        let planned = plan(&observed);
        assert_eq!(planned.index.verdicts, [(waiting, Verdict::Programmed)].into());
        assert!(!is_converged(&planned), "it is about to pass");
        let mut passed = observed;
        passed.endpoints.gated_pods = [(waiting, true)].into();
        let planned = plan(&passed);
        assert!(is_converged(&planned) && steps(&planned).is_empty() && planned.index.verdicts.is_empty());
    }

    #[test]
    fn address_is_in_service_once_a_pod_has_it() {
        let mut observed = settle(replicated(claimed(&[claim("172.18.0.11", Requested::Static)]), "2"));
        observed.service.as_mut().unwrap().load_balancer_ip = "172.18.0.11".into();
        members(&mut observed, "a", 1);
        let ingress = |observed: &Observed| {
            let planned = plan(observed);
            let (ingress, conditions) = status(&planned).unwrap();
            (ingress.len(), reason(conditions, GATEWAY_READY).to_owned())
        };
        assert_eq!(ingress(&observed), (1, "GatewayReady".into()));

        // The active one withholds it; the standby is ready all the same.
        let mut withheld = observed.clone();
        withheld.gateway.pods[0].ready = false;
        let status = reported_mut(&mut withheld.gateway.pods[0]);
        (status.digest, status.parts, status.addresses) = (None, Some(BTreeMap::new()), Vec::new());
        status.conflicts.insert("172.18.0.11".parse().unwrap(), FOREIGN_MAC.to_owned());
        assert_eq!(ingress(&withheld), (0, "AddressConflict".into()));
        withheld.gateway.pods[1].report = StatusReport::NoResponse;
        assert_eq!(ingress(&withheld), (0, "AddressConflict".into()));

        // Pods that may not be asked are believed their readiness.
        observed.gateway.pods.iter_mut().for_each(|pod| pod.report = StatusReport::NoResponse);
        assert_eq!(ingress(&observed), (1, "GatewayReady".into()));
    }

    #[test]
    fn r33_pod_that_missed_a_query_is_not_believed_its_readiness() {
        for (missed, expected) in [(StatusReport::NoResponse, 1), (StatusReport::Missed, 0)] {
            let mut observed =
                carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
            observed.service.as_mut().unwrap().ingress.clear();
            observed.gateway.pods[0].report = missed;
            let planned = plan(&observed);
            assert_eq!(status(&planned).map_or(0, |(ingress, _)| ingress.len()), expected);
        }
    }

    #[test]
    fn one_ready_pod_is_enough() {
        for ready in ["a", "b"] {
            let mut observed = two_pods();
            for pod in observed.gateway.pods.iter_mut().filter(|pod| pod.name != ready) {
                (pod.ready, pod.report) = (false, StatusReport::NoResponse);
            }
            let settled = settle(observed);
            let service = settled.service.as_ref().unwrap();
            assert_eq!(ips(&service.ingress), ["172.18.0.11"]);
            assert_eq!(reason(&service.conditions, GATEWAY_READY), "GatewayReady", "{ready}");
            assert!(is_converged(&plan(&settled)));
        }
    }
}
