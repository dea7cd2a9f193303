//! Where a gateway is and is to be, and whether its objects may be written.

use lb_svc_crds::reason::Reason;

use super::rollout::{MAX_CONCURRENT_ROLLOUTS, Rollout};
use crate::model::{GatewayId, Pod, Problem};
use crate::observed::ObservedGateway;

/// What is decided of a gateway's namespace.
#[derive(Debug)]
pub struct Placement {
    /// Whether the gateway leaves the namespace where it is. Until its turn
    /// comes it is served there like any other.
    pub moves: bool,
    /// The part of that in the roll-outs.
    pub rollout: Rollout,
}

impl Placement {
    /// A gateway that stays where it is.
    pub const STAYS: Self = Self { moves: false, rollout: Rollout::None };
}

/// Decides whether a misplaced gateway of this identity, of which `pods` are the
/// living pods, moves now.
pub fn place(id: &GatewayId, gateway: &ObservedGateway, pods: &[&Pod], other_rollouts: usize) -> Placement {
    if !gateway.is_misplaced() || !gateway.is_visible {
        let made_anew = gateway.deployment.as_ref().is_some_and(|known| known.deleting && known.is_of(id));
        let rollout = if made_anew { Rollout::Moving } else { Rollout::None };
        return Placement { rollout, ..Placement::STAYS };
    }
    let has_left = gateway.deployment.as_ref().is_none_or(|deployment| deployment.deleting);
    let turn = other_rollouts < MAX_CONCURRENT_ROLLOUTS || !pods.iter().any(|pod| pod.ready);
    let moves = has_left || turn;
    Placement { moves, rollout: if moves { Rollout::Moving } else { Rollout::Pending } }
}

/// Whether ConfigMap and Deployment are the controller's to write for the gateway of
/// this identity.
///
/// # Errors
/// Why they are not.
pub fn writable(id: &GatewayId, gateway: &ObservedGateway, placement: &Placement) -> Result<(), Problem> {
    let ObservedGateway { location, desired_namespace, .. } = gateway;
    let namespace = &location.namespace;
    if placement.moves {
        let message = format!("the gateway moves from namespace {namespace} to {desired_namespace}");
        return Err(Problem::new(Reason::Replacing, message));
    }
    if gateway.is_misplaced() && !gateway.is_visible {
        let message = format!(
            "the gateway is in namespace {namespace}, where the controller may not look, and is to be in {desired_namespace}: give the controller its rights there back until it has moved"
        );
        return Err(Problem::new(Reason::GatewayElsewhere, message));
    }
    let objects = [
        ("ConfigMap", gateway.config.as_ref().map(|object| (&object.gateway_id, object.deleting))),
        ("Deployment", gateway.deployment.as_ref().map(|object| (&object.gateway_id, object.deleting))),
    ];
    for (kind, object) in objects {
        match object {
            None => {}
            Some((Some(owner), false)) if owner == id => {}
            Some((Some(_), _)) => {
                let message = "the gateway of an earlier Service of this name is being removed";
                return Err(Problem::new(Reason::Replacing, message));
            }
            Some((None, _)) => {
                let message = format!(
                    "{kind} {location} exists and was not made by lb-svc: rename or delete it, or rename the Service"
                );
                return Err(Problem::new(Reason::NameTaken, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::model::{DeploymentState, OwnedObject};
    use crate::service::conditions::GATEWAY_READY;
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        claim, claimed, config_of, deployment_of, misplaced, owned, reason, served, status, steps,
    };
    use crate::testing::port;
    use lb_svc_crds::Requested;

    #[test]
    fn moving_gateway_is_deleted_first() {
        let mut observed = misplaced(served());
        let planned = plan(&observed);
        assert_eq!(
            steps(&planned)[..2],
            [
                Action::DeleteDeployment("dep".into(), "3".into()),
                Action::DeleteConfig("cm".into(), "3".into()),
            ]
        );
        assert!(config_of(&planned).is_none() && deployment_of(&planned).is_none());
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "Replacing"));
        assert!(planned.index.rollout == Rollout::Moving, "as one of a few");

        // What is left of it is waited for, and takes its room.
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        observed.gateway.deployment.as_mut().unwrap().deleting = true;
        observed.gateway.config = None;
        let planned = plan(&observed);
        assert!(config_of(&planned).is_none() && planned.index.rollout == Rollout::Moving);

        // Nothing is: where the gateway will be is recorded before it is made.
        observed.gateway.location.namespace = "gateways".into();
        (observed.gateway.deployment, observed.gateway.pods) = (None, Vec::new());
        let planned = plan(&observed);
        let converged = planned.steps().position(|action| matches!(action, Action::SetGatewayNamespace(_)));
        let written = planned.steps().position(|action| matches!(action, Action::WriteConfig(_)));
        assert!(converged.unwrap() < written.unwrap());
        let live = deployment_of(&planned).unwrap().content.live;
        assert_eq!(live["metadata"]["namespace"], "gateways");
        assert!(live["metadata"]["ownerReferences"].is_null());
        observed.addresses.claims[0].gateway_namespace = "gateways".into();
        assert!(!plan(&observed).steps().any(|action| matches!(action, Action::SetGatewayNamespace(_))));
    }

    #[test]
    fn misplaced_gateway_is_served_until_its_slot() {
        let mut observed = misplaced(served());
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        observed.service.as_mut().unwrap().ports.push(port("TCP", 443));
        let planned = plan(&observed);
        assert!(config_of(&planned).unwrap().contains("443"));
        assert!(planned.index.rollout == Rollout::Pending);
        assert!(!planned.steps().any(|action| matches!(action, Action::DeleteDeployment(..))));
        // Nor does it move for a spec from which it could not be made again.
        observed.rollouts.others = 0;
        observed.service.as_mut().unwrap().source_ranges = vec!["nonsense".into()];
        let planned = plan(&observed);
        assert!(!planned.steps().any(|action| matches!(action, Action::DeleteDeployment(..))));
    }

    #[test]
    fn invisible_gateway_is_not_created_again() {
        let mut observed = misplaced(served());
        observed.gateway.is_visible = false;
        (observed.gateway.config, observed.gateway.deployment, observed.gateway.pods) =
            (None, None, Vec::new());
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayElsewhere"));
        assert!(config_of(&planned).is_none() && deployment_of(&planned).is_none());
        // Nor is its address given away.
        observed.service = None;
        assert_eq!(steps(&plan(&observed)), []);
        // Nothing of it was there after all.
        observed.gateway.location.namespace = "gateways".into();
        assert_eq!(steps(&plan(&observed)), [Action::Release(observed.addresses.claims[0].id.clone())]);
    }

    #[test]
    fn foreign_object_is_kept_and_reported() {
        let mut observed = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        observed.gateway.deployment =
            Some(OwnedObject { gateway_id: None, ..owned("theirs", DeploymentState::default()) });
        let planned = plan(&observed);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "NameTaken");
        assert!(!planned.steps().any(|action| matches!(
            action,
            Action::DeleteDeployment(..) | Action::WriteDeployment(_) | Action::WriteConfig(_)
        )));
        observed.service = None;
        let deletes = |action: &Action| matches!(action, Action::DeleteDeployment(..));
        assert!(!plan(&observed).steps().any(deletes));
    }
}
