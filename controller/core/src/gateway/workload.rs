//! The objects that run a gateway: Deployment, Secret and PodDisruptionBudget.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::reason::Reason;
use serde_json::Value;

use super::manifests::{self, DeploymentTemplate, TemplateHash};
use super::migration::{self, Step};
use super::pod_settings::{Configuration, Settings};
use super::rollout::{Rollout, Rollouts};
use crate::action::Action;
use crate::model::{
    Attachment, DeploymentState, GatewayId, GatewayLocation, OwnedObject, Pod, Problem, Service,
};
use crate::observed::ObservedGateway;

/// The first and the longest pause before pods that were refused are asked for
/// again; it doubles while nothing changes. Kubernetes itself asks ever more
/// seldom, at last every 17 minutes, whatever was done meanwhile; a Deployment
/// that changes makes it look at once.
const ASK_AGAIN: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(30), SignedDuration::from_secs(600));
/// How long a pod may take to start before what it lacks is a fault.
pub const START_GRACE: SignedDuration = SignedDuration::from_secs(10);
/// How often a key is written anew for pods that seem to wait for it.
const KEY_AGAIN: Duration = Duration::from_secs(10);

/// What a workload is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The identity of the gateway.
    pub id: &'a GatewayId,
    /// The Service, whose settings its pods have.
    pub service: &'a Service,
    /// The name of its attachment.
    pub provider: &'a Provider,
    /// The attachment, if it exists.
    pub attachment: Option<&'a Attachment>,
    /// The controller's configuration.
    pub configuration: &'a Configuration,
    /// The gateway's objects as they are.
    pub gateway: &'a ObservedGateway,
    /// Its living pods.
    pub pods: &'a [&'a Pod],
    /// How long ago the Secret with the key was written.
    pub key_written: Option<Duration>,
    /// For how long nothing that concerns the gateway has changed.
    pub quiet: Duration,
    /// The roll-outs of other gateways.
    pub rollouts: &'a Rollouts,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done for a workload.
#[derive(Debug, Default)]
pub struct Workload {
    /// The writes.
    pub actions: Vec<Action>,
    /// The gateway's part in the roll-outs.
    pub rollout: Rollout,
    /// Why it stays as it is, though something else is asked for.
    pub warning: Option<Problem>,
    /// After which time refused pods are asked for again, if there are any.
    pub again: Option<Duration>,
}

/// Decides what is to be done for a workload.
///
/// # Errors
/// Why there can be none.
pub fn plan(inputs: &Inputs<'_>) -> Result<Workload, Problem> {
    let Inputs { id, service, provider, configuration, gateway, pods, rollouts, now, .. } = *inputs;
    // A gateway that runs needs the attachment no more and stays as it is; a
    // new one would hang half made.
    let attachment = attachment(provider, inputs.attachment)?;
    let own = match Settings::of_service(&service.settings, &configuration.services) {
        Ok(own) => own,
        Err(problem) if gateway.deployment.is_some() => {
            return Ok(Workload { warning: Some(problem), ..Workload::default() });
        }
        Err(problem) => return Err(problem),
    };
    let template = DeploymentTemplate {
        provider,
        attachment,
        all: &configuration.gateway,
        own: &own,
        trusted: gateway.trusted_keys(),
    };
    let location = &gateway.location;
    let mut wanted = manifests::deployment(id, location, &template);
    let several = own.or(&configuration.gateway).replicas() > 1;
    let mut workload = Workload::default();
    let hash = TemplateHash::of(&wanted);
    if !migrate(inputs, &hash.all, several, &mut workload) {
        return Ok(workload);
    }
    if let Some(DeploymentState { live, as_answered, .. }) =
        gateway.deployment.as_ref().map(|object| &object.content)
    {
        if manifests::is_as_wanted(live, &wanted, *as_answered) {
            if several && waits_for_key(inputs) {
                workload.actions.extend(key(gateway));
            }
            workload.again = ask_again_in(inputs);
            if workload.again == Some(Duration::ZERO) {
                workload.again = ASK_AGAIN.0.try_into().ok();
                wanted["metadata"]["annotations"][names::ASKED_ANNOTATION] = now.to_string().into();
                workload.actions.push(Action::WriteDeployment(wanted));
            }
            workload.actions.extend(budget(id, location, gateway.budget.as_ref(), several));
            return Ok(workload);
        }
        let known = TemplateHash::of(live);
        let of_its_own = known.own != hash.own && known != TemplateHash::default();
        // One that serves nobody, or was changed by others, is mended at once.
        if known.all != hash.all && !of_its_own && pods.iter().any(|pod| pod.ready) {
            workload.rollout = rollouts.reserve(&hash.all);
            if workload.rollout == Rollout::Pending {
                return Ok(workload);
            }
        }
    }
    if several {
        // The ConfigMap owns the key, which has to be there before the pods.
        let Some(key) = key(gateway) else { return Ok(workload) };
        workload.actions.push(key);
    }
    workload.actions.push(Action::WriteDeployment(wanted));
    workload.actions.extend(budget(id, location, gateway.budget.as_ref(), several));
    Ok(workload)
}

/// Has a Deployment of an earlier release made anew, as one of many, with the
/// template of this hash. Returns whether the Deployment can be written.
fn migrate(inputs: &Inputs<'_>, template: &str, several: bool, workload: &mut Workload) -> bool {
    let location = &inputs.gateway.location;
    let pods = inputs.gateway.pods.iter().filter(|pod| pod.is_of(inputs.id) && pod.could_answer());
    let pods: Vec<&Pod> = pods.collect();
    let known = inputs.gateway.deployment.as_ref();
    let step = migration::step(known.map(|known| &known.content.live), &pods, several);
    let is_begun = matches!(step, Step::Wait | Step::EndLegacyPods);
    if matches!(step, Step::Done) {
        return true;
    }
    let turn = inputs.rollouts.reserve(template);
    workload.rollout = if pods.iter().any(|pod| pod.ready) { turn } else { Rollout::Reserved };
    if workload.rollout == Rollout::Pending && !is_begun {
        return false;
    }
    let ids = known.map(|known| (known.uid.clone(), known.resource_version.clone()));
    let action = match (step, ids) {
        (Step::Shrink(mut live), Some(_)) => {
            live["apiVersion"] = "apps/v1".into();
            live["kind"] = "Deployment".into();
            live["metadata"]["name"] = location.name().into();
            live["metadata"]["namespace"] = location.namespace.clone().into();
            Some(Action::WriteDeployment(live))
        }
        (Step::Orphan, Some((uid, version))) => Some(Action::OrphanDeployment(uid, version)),
        (Step::Delete, Some((uid, version))) => Some(Action::DeleteDeployment(uid, version)),
        (Step::EndLegacyPods, _) => Some(Action::DeleteLegacyReplicaSets),
        _ => None,
    };
    if matches!(action, Some(Action::OrphanDeployment(..) | Action::DeleteDeployment(..))) {
        workload.rollout = Rollout::Moving;
    }
    workload.actions.extend(action);
    // The new Deployment goes on while the earlier pods end.
    is_begun && !known.is_some_and(|known| migration::is_legacy(&known.content.live))
}

/// Whether a pod has not been ready for longer than starting takes.
pub fn is_late(pod: &Pod, now: Timestamp) -> bool {
    pod.unready_since.is_some_and(|since| now.duration_since(since) >= START_GRACE)
}

/// The attachment, if interfaces can be made from it.
fn attachment<'a>(provider: &Provider, known: Option<&'a Attachment>) -> Result<&'a Attachment, Problem> {
    let Provider { name, namespace } = provider;
    match known {
        Some(Attachment { fault: Some(fault), .. }) => Err(Problem::new(
            Reason::AttachmentInvalid,
            format!("NetworkAttachmentDefinition {name} in namespace {namespace}: {fault}"),
        )),
        Some(attachment) => Ok(attachment),
        None => Err(Problem::new(
            Reason::AttachmentNotFound,
            format!(
                "there is no NetworkAttachmentDefinition {name} in namespace {namespace}: create it, or correct the annotation {}",
                names::PROVIDER_ANNOTATION
            ),
        )),
    }
}

/// After which time pods that were refused are to be asked for again.
fn ask_again_in(inputs: &Inputs<'_>) -> Option<Duration> {
    let Inputs { gateway, quiet, now, .. } = inputs;
    let Some(OwnedObject { content, deleting: false, .. }) = &gateway.deployment else { return None };
    content.failure.as_ref()?;
    let asked = content.live["metadata"]["annotations"][names::ASKED_ANNOTATION].as_str();
    let Some(asked) = asked.and_then(|at| at.parse::<Timestamp>().ok()) else { return Some(Duration::ZERO) };
    let since = now.duration_since(asked).abs();
    let quiet = SignedDuration::try_from(*quiet).unwrap_or(SignedDuration::MAX);
    let (first, last) = ASK_AGAIN;
    // As long again as it had been quiet then.
    let rest = (quiet - since).clamp(first, last) - since;
    Some(rest.try_into().unwrap_or_default())
}

/// Writes the key, once the ConfigMap is there to own it.
fn key(gateway: &ObservedGateway) -> Option<Action> {
    gateway.config.as_ref().map(|config| Action::WriteKey(config.uid.clone()))
}

/// Whether a pod that has a node does not start: somebody may have deleted the
/// key.
fn waits_for_key(inputs: &Inputs<'_>) -> bool {
    let waits =
        |pod: &&Pod| pod.member && pod.address.is_none() && pod.node.is_some() && is_late(pod, inputs.now);
    inputs.key_written.is_none_or(|age| age >= KEY_AGAIN) && inputs.pods.iter().any(waits)
}

/// Writes or deletes the PodDisruptionBudget. One that is not the controller's
/// is left alone: nothing depends on it.
fn budget(
    id: &GatewayId,
    gateway: &GatewayLocation,
    known: Option<&OwnedObject<Value>>,
    several: bool,
) -> Option<Action> {
    if known.is_some_and(|budget| budget.gateway_id.is_none() || budget.deleting) {
        return None;
    }
    if !several {
        return known.map(|budget| Action::DeleteBudget(budget.uid.clone(), budget.resource_version.clone()));
    }
    let wanted = manifests::budget(id, gateway);
    let is_so = known.is_some_and(|budget| manifests::is_as_wanted(&budget.content, &wanted, false));
    (!is_so).then_some(Action::WriteBudget(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::rollout::MAX_CONCURRENT_ROLLOUTS;
    use crate::model::{Setting, StatusReport};
    use crate::observed::Observed;
    use crate::service::conditions::{GATEWAY_READY, LIMITED};
    use crate::service::plan::Plan;
    use crate::service::plan::{Requeue, plan};
    use crate::testing::gateway::{
        carried_out, claim, claimed, config_of, configured, deployment_of, is_converged, objects, owned,
        reason, refused, replicated, served, set, set_wrongly, status, steps, two_pods,
    };
    use lb_svc_crds::Requested;
    use std::sync::Arc;

    #[test]
    fn setting_is_set_and_unset_with_annotation() {
        let selector = |plan: &Plan| {
            deployment_of(plan)
                .map(|child| child.content.live["spec"]["template"]["spec"]["nodeSelector"].clone())
        };
        let mut observed = served();
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "disk": "ssd" }));
        // Its own change is not made to wait for others.
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        let planned = plan(&observed);
        assert_eq!(selector(&planned).unwrap()["disk"], "ssd");
        assert!(planned.index.rollout == Rollout::None);
        let planned = plan(&configured(observed.clone(), "gateway:2"));
        assert!(
            deployment_of(&planned).is_some() && planned.index.rollout != Rollout::Pending,
            "nor with what changes for all"
        );
        observed.gateway.deployment = deployment_of(&plan(&observed));
        assert_eq!(steps(&plan(&observed)), []);
        observed.service.as_mut().unwrap().settings.clear();
        assert_eq!(selector(&plan(&observed)).unwrap()["disk"], Value::Null);
    }

    #[test]
    fn setting_of_service_overrides_that_for_all() {
        let mut observed = served();
        let all = Settings::from_iter([
            (Setting::NodeSelector, serde_json::json!({ "zone": "a" })),
            (Setting::PriorityClassName, "high".into()),
            (Setting::Replicas, 2.into()),
        ]);
        let plain = Configuration::default();
        observed.configuration = Arc::new(Configuration { gateway: all.or(&plain.gateway), ..plain });
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "disk": "ssd" }));
        set(&mut observed, Setting::Replicas, 1.into());
        let planned = plan(&observed);
        let live = deployment_of(&planned).unwrap().content.live;
        let pod = &live["spec"]["template"]["spec"];
        let selector = serde_json::json!({ "disk": "ssd", "kubernetes.io/os": "linux" });
        assert_eq!(pod["nodeSelector"], selector, "as a whole");
        assert_eq!(pod["priorityClassName"], "high");
        assert_eq!(live["spec"]["replicas"], 1);
        let of_several = |action: &Action| matches!(action, Action::WriteKey(_) | Action::WriteBudget(_));
        assert!(!planned.steps().any(of_several));
    }

    #[test]
    fn invalid_setting_keeps_running_workload() {
        let limit_of = |planned: &Plan| {
            let (ingress, conditions) = status(planned).unwrap();
            assert_eq!((ingress.len(), reason(conditions, GATEWAY_READY)), (1, "GatewayReady"));
            assert!(planned.steps().any(|action| matches!(action, Action::Event { warning: true, .. })));
            conditions.iter().find(|condition| condition.kind == LIMITED).unwrap().clone()
        };
        let limit = |observed: &Observed| {
            let planned = plan(observed);
            assert_eq!(deployment_of(&planned), None);
            limit_of(&planned)
        };
        let mut observed = served();
        set_wrongly(&mut observed, Setting::Affinity);
        let said = limit(&observed);
        assert_eq!(said.reason, "InvalidSetting");
        assert!(said.message.contains(names::AFFINITY_ANNOTATION), "{}", said.message);
        // Nor is it rolled for what changes for all.
        assert_eq!(limit(&configured(observed, "gateway:2")), said);

        let mut observed = served();
        set(&mut observed, Setting::Image, "mine:1".into());
        assert_eq!(limit(&observed).reason, "SettingNotAllowed");

        // What only the API server finds.
        let mut observed = served();
        set(&mut observed, Setting::NodeSelector, serde_json::json!({ "a b": "c" }));
        observed.gateway.deployment = deployment_of(&plan(&observed));
        let planned = plan(&observed);
        assert_eq!(deployment_of(&planned), None);
        let said = limit_of(&refused(planned, "spec.template.spec.nodeSelector: Invalid value"));
        assert_eq!(said.reason, "WriteRefused");
        assert!(said.message.contains(names::NODE_SELECTOR_ANNOTATION), "{}", said.message);

        // There is no last good state: it is not guessed.
        let mut fresh = claimed(&[claim("172.18.0.11", Requested::Dynamic)]);
        set_wrongly(&mut fresh, Setting::Affinity);
        let planned = plan(&fresh);
        assert_eq!(deployment_of(&planned), None);
        assert_eq!(reason(status(&planned).unwrap().1, GATEWAY_READY), "InvalidSetting");
    }

    #[test]
    fn foreign_edit_is_reverted_at_once() {
        let mut observed = served();
        observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
        observed.gateway.deployment.as_mut().unwrap().content.live["spec"]["replicas"] = 0.into();
        let planned = plan(&observed);
        assert!(deployment_of(&planned).is_some() && planned.index.rollout != Rollout::Pending);
    }

    #[test]
    fn running_workload_outlives_attachment() {
        let mut observed = configured(served(), "gateway:2");
        observed.attachment = None;
        let planned = plan(&observed);
        assert_eq!(deployment_of(&planned), None, "a new pod would not come up");
        assert_eq!(status(&planned).unwrap().0.len(), 1);
    }

    #[test]
    fn key_is_written_before_deployment() {
        let mut observed = replicated(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2");
        let planned = plan(&observed);
        assert_eq!(objects(&planned), ["config"], "which is to own the key");
        assert!(!is_converged(&planned));
        observed.gateway.config = Some(owned("cm", config_of(&planned).unwrap().clone()));
        assert_eq!(objects(&plan(&observed)), ["key of cm", "deployment of 2", "budget"]);
        let done = two_pods();
        let planned = plan(&done);
        assert_eq!(steps(&planned), []);
        assert!(is_converged(&planned));
    }

    #[test]
    fn single_pod_has_no_key_and_no_budget() {
        assert_eq!(objects(&plan(&replicated(served(), "2"))), ["key of cm", "deployment of 2", "budget"]);
        assert_eq!(objects(&plan(&replicated(served(), "1"))), ["deployment of 1"]);
        let one = replicated(two_pods(), "1");
        assert_eq!(objects(&plan(&one)), ["deployment of 1", "no bud"]);
        let nobody = Observed { service: None, ..two_pods() };
        assert_eq!(objects(&plan(&nobody)), ["no bud", "no deployment", "no config"]);
    }

    #[test]
    fn invalid_replicas_keep_the_pods() {
        let observed = replicated(two_pods(), "9");
        let planned = plan(&observed);
        assert_eq!(objects(&planned), Vec::<String>::new());
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!((ingress.len(), reason(conditions, LIMITED)), (1, "InvalidSetting"));
    }

    #[test]
    fn budget_is_repaired_only_if_owned() {
        let mut observed = two_pods();
        observed.gateway.budget.as_mut().unwrap().content["spec"]["maxUnavailable"] = 0.into();
        assert_eq!(objects(&plan(&observed)), ["budget"]);
        observed.gateway.budget.as_mut().unwrap().gateway_id = None;
        let planned = plan(&observed);
        assert_eq!(steps(&planned), []);
        assert_eq!(objects(&plan(&replicated(observed, "1"))), ["deployment of 1"]);
    }

    #[test]
    fn lost_key_is_written_again() {
        let made = |change: fn(&mut Observed)| {
            let mut observed = two_pods();
            observed.now = Timestamp::from_second(100).unwrap();
            let since = Some(Timestamp::from_second(90).unwrap());
            observed.gateway.pods[1] = Pod {
                ready: false,
                unready_since: since,
                address: None,
                mac: None,
                report: StatusReport::NotQueried,
                ..observed.gateway.pods[1].clone()
            };
            change(&mut observed);
            objects(&plan(&observed))
        };
        assert_eq!(made(|_| {}), ["key of cm"]);
        let never: [fn(&mut Observed); 5] = [
            |o| o.now = Timestamp::from_second(99).unwrap(),
            |o| o.remembered.key_written = Some(Duration::from_secs(9)),
            |o| o.gateway.pods[1].node = None,
            |o| o.gateway.pods[1].address = Some("10.244.1.6".parse().unwrap()),
            |o| o.gateway.pods[1].deleting = true,
        ];
        for change in never {
            assert_eq!(made(change), Vec::<String>::new());
        }
        assert_eq!(made(|o| o.remembered.key_written = Some(KEY_AGAIN)), ["key of cm"]);
    }

    #[test]
    fn refused_pods_are_asked_for_periodically() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.now = Timestamp::from_second(1000).unwrap();
        observed.gateway.deployment.as_mut().unwrap().content.failure = Some("violates PodSecurity".into());
        let asked = |observed: &Observed| deployment_of(&plan(observed));
        let first = asked(&observed).unwrap();
        let at = first.content.live["metadata"]["annotations"][names::ASKED_ANNOTATION].clone();
        assert_eq!(at, "1970-01-01T00:16:40Z");
        observed.gateway.deployment.as_mut().unwrap().content.live = first.content.live;
        assert_eq!(asked(&observed), None);
        observed.now = Timestamp::from_second(1030).unwrap();
        assert!(asked(&observed).is_some());
        observed.gateway.deployment.as_mut().unwrap().content.failure = None;
        assert_eq!(asked(&observed), None);
    }

    #[test]
    fn r30_refused_pods_are_asked_for_ever_more_seldom_while_nothing_changes() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.gateway.deployment.as_mut().unwrap().content.failure = Some("violates PodSecurity".into());
        let (mut asks, mut changed) = (Vec::new(), 0);
        for second in (0..7200).step_by(10) {
            if second == 4000 {
                changed = second;
            }
            observed.now = Timestamp::from_second(second).unwrap();
            observed.remembered.quiet = Duration::from_secs(u64::try_from(second - changed).unwrap());
            if let Some(asked) = deployment_of(&plan(&observed)) {
                observed.gateway.deployment.as_mut().unwrap().content.live = asked.content.live;
                asks.push(second);
            }
        }
        assert_eq!(asks[..7], [0, 30, 60, 120, 240, 480, 960]);
        assert_eq!(asks[7..11], [1560, 2160, 2760, 3360], "ten minutes at most");
        assert!(asks[12] - asks[11] <= 60, "something has changed: {asks:?}");

        // A plan is made in time for that.
        observed.gateway.pods.clear();
        observed.remembered.quiet = Duration::ZERO;
        let in_time = |observed: &Observed| match plan(observed).next {
            Requeue::Unconverged { within, .. } => within,
            other => panic!("{other:?}"),
        };
        observed.now = Timestamp::from_second(asks[asks.len() - 1] + 10).unwrap();
        assert_eq!(in_time(&observed), Some(Duration::from_secs(20)));
        observed.now += ASK_AGAIN.0;
        assert_eq!(in_time(&observed), Some(Duration::from_secs(30)));
    }
}
