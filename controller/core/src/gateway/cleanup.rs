//! Objects and claims that are no longer needed.

use std::collections::BTreeSet;

use super::assignment;
use crate::action::Action;
use crate::ipam::Claim;
use crate::model::{GatewayId, OwnedObject, Pod};
use crate::observed::{Observed, ObservedGateway};

/// How many deletions of orphans a run makes: anyone may label pods as such.
const ORPHANS_AT_ONCE: usize = 8;

/// Deletes the objects of every gateway of the name but that of the identity `keep`;
/// not what the controller has not made.
pub fn delete_objects(gateway: &ObservedGateway, keep: Option<&GatewayId>) -> Vec<Action> {
    fn stale<'a, T>(
        object: Option<&'a OwnedObject<T>>,
        keep: Option<&GatewayId>,
    ) -> Option<(String, String)> {
        let stale = |object: &&'a OwnedObject<T>| {
            object.gateway_id.is_some() && object.gateway_id.as_ref() != keep && !object.deleting
        };
        object.filter(stale).map(|object| (object.uid.clone(), object.resource_version.clone()))
    }
    let budget = stale(gateway.budget.as_ref(), keep);
    let deployment = stale(gateway.deployment.as_ref(), keep);
    let config = stale(gateway.config.as_ref(), keep);
    let mut actions = Vec::new();
    actions.extend(budget.map(|(uid, version)| Action::DeleteBudget(uid, version)));
    actions.extend(deployment.map(|(uid, version)| Action::DeleteDeployment(uid, version)));
    actions.extend(config.map(|(uid, version)| Action::DeleteConfig(uid, version)));
    actions
}

/// Deletes what is left of pods without a Deployment, and would stay for ever:
/// their ReplicaSets, or the pods themselves; not where it cannot be seen whether
/// there is a Deployment.
pub fn delete_orphans(gateway: &ObservedGateway, keep: Option<&GatewayId>) -> Vec<Action> {
    if !gateway.is_visible {
        return Vec::new();
    }
    let deployed = gateway.deployment.as_ref().and_then(|deployment| deployment.gateway_id.as_ref());
    let is_orphan = |pod: &&Pod| {
        let id = pod.gateway_id.as_ref();
        id.is_some() && id != keep && id != deployed && !pod.deleting && pod.could_answer()
    };
    let orphans = || gateway.pods.iter().filter(is_orphan);
    let owners: BTreeSet<&GatewayId> =
        orphans().filter(|pod| pod.of_deployment).filter_map(|pod| pod.gateway_id.as_ref()).collect();
    let sets = owners.into_iter().map(|id| Action::DeleteOrphans(id.clone()));
    let why = "neither a Deployment nor a Service wants it";
    let pods = orphans().filter(|pod| pod.alone);
    let pods = pods.map(|pod| Action::DeletePod { pod: pod.name.clone(), uid: pod.uid.clone(), why });
    sets.chain(pods).take(ORPHANS_AT_ONCE).collect()
}

/// Whether something could still answer for the address of a claim: a
/// Deployment or ConfigMap to make a new pod from, or a pod.
pub fn is_held(gateway: &ObservedGateway, claim: &Claim) -> bool {
    fn is_for<T>(object: Option<&OwnedObject<T>>, id: &GatewayId) -> bool {
        object.is_some_and(|object| object.is_of(id))
    }
    let id = &assignment::id_of(&claim.owner);
    // A misplaced gateway is all that is looked at, until it is gone.
    gateway.is_misplaced()
        || is_for(gateway.deployment.as_ref(), id)
        || is_for(gateway.config.as_ref(), id)
        || gateway.pods.iter().any(|pod| pod.is_of(id) && pod.could_answer())
}

/// Releases the claims of every Service but the one with the uid `current` for
/// whose address nothing can answer any more. A claim that is to be retained
/// outlives its Service, but not the Service's request for a gateway, nor the
/// namespace.
pub fn release_orphaned(observed: &Observed, current: Option<&str>) -> Vec<Action> {
    let addresses = &observed.addresses;
    let existing = observed.service.as_ref().map(|service| &service.id.uid);
    let is_orphaned = |claim: &&Claim| {
        let retained = claim.keep
            && !addresses.is_namespace_gone
            && claim.conflict.is_empty()
            && Some(&claim.owner.uid) != existing;
        Some(claim.owner.uid.as_str()) != current && !retained && !is_held(&observed.gateway, claim)
    };
    let orphaned = addresses.claims.iter().filter(is_orphaned);
    orphaned.map(|claim| Action::Release(claim.id.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::AllocationError;
    use crate::service::conditions::{ADDRESS_ALLOCATED, ips};
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        carried_out, claim, claimed, config_of, config_written, direct_access, of_earlier, reason, status,
        steps, target_addresses, tcp_slice,
    };
    use lb_svc_crds::Requested;
    use lb_svc_crds::names::Provider;

    #[test]
    fn withdrawn_service_leaves_nothing() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().load_balancer = false;
        let planned = plan(&observed);
        assert_eq!(
            steps(&planned),
            [
                Action::SetStatus { ingress: vec![], conditions: vec![], exact: false },
                Action::ClearAddress,
                Action::DeleteDeployment("dep".into(), "3".into()),
                Action::DeleteConfig("cm".into(), "3".into()),
            ]
        );
        // The claim outlives Deployment and ConfigMap as long as a pod is there.
        observed.service = None;
        (observed.gateway.deployment, observed.gateway.config) = (None, None);
        observed.gateway.pods[0].deleting = true;
        assert_eq!(steps(&plan(&observed)), []);
        let lost = Pod { node_lost: true, ..observed.gateway.pods[0].clone() };
        observed.gateway.pods.clear();
        let release = [Action::Release(observed.addresses.claims[0].id.clone())];
        assert_eq!(steps(&plan(&observed)), release);
        observed.gateway.pods = vec![lost];
        assert_eq!(steps(&plan(&observed)), release, "its node is gone for good");
    }

    #[test]
    fn r41_pods_that_are_left_without_a_deployment_are_deleted_and_free_the_address() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let claim = observed.addresses.claims[0].id.clone();
        (observed.gateway.deployment, observed.gateway.config) = (None, None);
        observed.gateway.pods[0].of_deployment = true;
        let orphans = Action::DeleteOrphans("uid-1".into());
        assert!(!plan(&observed).steps().any(|action| *action == orphans), "its Deployment takes them up");
        observed.service = None;
        assert_eq!(steps(&plan(&observed)), [orphans]);
        let pod = &mut observed.gateway.pods[0];
        (pod.of_deployment, pod.alone) = (false, true);
        let deleted = steps(&plan(&observed));
        assert!(
            matches!(&deleted[..], [Action::DeletePod { pod, uid, .. }] if pod == "gw" && uid == "uid-gw"),
            "{deleted:?}"
        );
        // What another controls is its business, and so is a pod of nobody's.
        observed.gateway.pods[0].alone = false;
        assert_eq!(steps(&plan(&observed)), []);
        observed.gateway.pods[0] = Pod { gateway_id: None, alone: true, ..observed.gateway.pods[0].clone() };
        assert_eq!(steps(&plan(&observed)), [Action::Release(claim.clone())]);
        observed.gateway.pods[0] = Pod {
            gateway_id: Some("uid-1".into()),
            alone: true,
            deleting: true,
            ..observed.gateway.pods[0].clone()
        };
        assert_eq!(steps(&plan(&observed)), []);
        observed.gateway.pods.clear();
        assert_eq!(steps(&plan(&observed)), [Action::Release(claim)]);
    }

    #[test]
    fn withdrawn_service_keeps_static_address() {
        let mut observed = claimed(&[claim("172.18.0.18", Requested::Static)]);
        let service = observed.service.as_mut().unwrap();
        service.load_balancer_ip = "172.18.0.18".into();
        service.annotations.clear();
        assert!(!plan(&observed).actions.contains(&Action::ClearAddress));
    }

    #[test]
    fn recreated_service_waits_for_previous_gateway() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.addresses.claims = vec![of_earlier(claim("172.18.0.11", Requested::Dynamic))];
        for gateway_id in [
            &mut observed.gateway.config.as_mut().unwrap().gateway_id,
            &mut observed.gateway.deployment.as_mut().unwrap().gateway_id,
        ] {
            *gateway_id = Some("uid-0".into());
        }
        observed.gateway.pods[0].gateway_id = Some("uid-0".into());
        observed.service.as_mut().unwrap().ingress.clear();
        let planned = plan(&observed);
        assert!(planned.actions.contains(&Action::DeleteDeployment("dep".into(), "3".into())));
        assert!(planned.actions.contains(&Action::DeleteConfig("cm".into(), "3".into())));
        assert!(matches!(planned.actions.last(), Some(Action::Claim(_))), "an address of its own meanwhile");
        observed.addresses.claims.push(claim("172.18.0.12", Requested::Dynamic));
        assert_eq!(config_of(&plan(&observed)), None, "not into what is being deleted");
    }

    #[test]
    fn lost_claim_deletes_gateway_at_once() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.addresses.claims.clear();
        let Some(Action::Claim(address_request)) = plan(&observed).actions.pop() else { panic!("no claim") };
        assert_eq!(address_request.address, Some("172.18.0.11".parse().unwrap()), "it is asked for again");
        observed.addresses.allocation_error =
            Some(AllocationError::Taken("172.18.0.11".parse().unwrap(), Some("other".into())));
        let planned = plan(&observed);
        assert!(planned.actions.contains(&Action::DeleteDeployment("dep".into(), "3".into())));
        assert!(planned.actions.contains(&Action::DeleteConfig("cm".into(), "3".into())));
        assert!(status(&planned).unwrap().0.is_empty());
    }

    #[test]
    fn r32_endpoints_are_kept_up_without_a_claim() {
        let mut observed = direct_access();
        observed.addresses.claims.clear();
        observed.addresses.allocation_error = Some(AllocationError::Deleting("lan".to_owned()));
        observed.endpoints.slices = vec![tcp_slice(&[(9, "ready")])];
        let written = config_written(&plan(&observed));
        assert_eq!(written.addresses.len(), 1);
        assert!(
            target_addresses(&written).iter().all(|target| target.starts_with("10.0.0.9")),
            "{written:?}"
        );
    }

    #[test]
    fn r32_claim_that_vanishes_with_its_subnet_takes_nothing_out_of_service() {
        let served = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        let name = || "lan".to_owned();
        let provider: Provider = "lan.kube-system".parse().unwrap();
        for error in [
            AllocationError::NoSubnet(provider.clone()),
            AllocationError::UnknownSubnet(name(), name()),
            AllocationError::OtherProvider(name(), provider),
            AllocationError::Deleting(name()),
            AllocationError::NotAdmitted(name(), name()),
            AllocationError::Outside("172.18.0.11".parse().unwrap(), name()),
        ] {
            let mut observed = served.clone();
            observed.addresses.claims.clear();
            observed.addresses.allocation_error = Some(error.clone());
            let planned = plan(&observed);
            let deletes = |action: &Action| {
                matches!(
                    action,
                    Action::DeleteDeployment(..) | Action::DeleteConfig(..) | Action::WriteConfig(_)
                )
            };
            assert!(!planned.steps().any(deletes), "{error}");
            let (ingress, conditions) = status(&planned).unwrap();
            assert_eq!(ips(ingress), ["172.18.0.11"], "{error}");
            assert_eq!(reason(conditions, ADDRESS_ALLOCATED), error.reason().to_string());
            assert!(planned.index.address_pending, "a change of the Subnets wakes it");

            // Another claims the address: it gives way, whatever is said of its own.
            let mut given_away = observed.clone();
            given_away.addresses.is_given_away = true;
            for address in ["", "172.18.0"] {
                given_away.service.as_mut().unwrap().load_balancer_ip = address.to_owned();
                let planned = plan(&given_away);
                assert!(planned.actions.contains(&Action::DeleteDeployment("dep".into(), "3".into())));
                assert!(planned.actions.contains(&Action::DeleteConfig("cm".into(), "3".into())));
                assert!(status(&planned).unwrap().0.is_empty(), "{error}");
            }

            // What another load balancer wrote is not taken for its own.
            observed.gateway.config = None;
            let planned = plan(&observed);
            assert!(status(&planned).unwrap().0.is_empty(), "{error}");
        }
    }
}
