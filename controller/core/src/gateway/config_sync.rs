//! How gateway pods learn of their configuration, once the ConfigMap has it.
//!
//! ```text
//!  ConfigMap ──▶ push: the controller hands it over by HTTP ──▶ taken
//!                  │ fails, or the pod cannot be asked
//!                  ▼
//!                nudge: a changed annotation makes the kubelet refresh what is mounted
//! ```
//!
//! Both go by what the pod reports, so that a controller that died between two steps, or
//! another one, takes the next.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_svc_crds::feature::Feature;
use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names::{self, Provider};

use super::rendered::Digests;
use crate::action::Action;
use crate::ipam::{Claim, Network};
use crate::model::{Pod, StatusReport};
use crate::observed::{ObservedGateway, Push, PushAnswer, Remembered};

/// The first pause between two nudges; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two nudges.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// The most nudges of a pod that does not answer.
const NUDGES_UNANSWERED: u32 = 4;
/// How long a pod that has taken a configuration may take to report it.
const REPORTED_WITHIN: Duration = Duration::from_secs(1);

/// The next step by which a pod learns of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none, or it is waited for.
    None,
    /// To push it.
    Push,
    /// To nudge, for the so manieth time.
    Nudge(u32),
}

/// Decides the next step for a pod of `gateway`.
fn step(pod: &Pod, gateway: &ObservedGateway, digests: &Digests, remembered: &Remembered) -> Step {
    let (told, attempt) = named(pod);
    if let Some(status) = pod.reported().filter(|status| has_read(pod, status, digests)) {
        // It may wait for the controller to name what it has read: the first one, or after
        // its node has been started again.
        let is_done = !told.is_empty() && digests.acknowledged_by(status);
        return if is_done || digests.suits(pod, told) { Step::None } else { Step::Nudge(0) };
    }
    if is_reached(pod) && gateway.seal.is_some() {
        match remembered.pushes.get(&pod.uid) {
            Some(Push { answer: PushAnswer::Unknown, .. }) => {}
            Some(Push { digest, answer, age }) if digests.suits(pod, digest) => {
                if *answer == PushAnswer::Taken && *age < REPORTED_WITHIN {
                    return Step::None;
                }
            }
            Some(_) | None => return Step::Push,
        }
    }
    if !digests.suits(pod, told) {
        return Step::Nudge(0);
    }
    match is_due(pod, digests, attempt, remembered.nudges.get(&pod.uid).copied()) {
        true => Step::Nudge(attempt.wrapping_add(1)),
        false => Step::None,
    }
}

/// Whether the pod reports that it has read the configuration.
fn has_read(pod: &Pod, status: &GatewayStatus, digests: &Digests) -> bool {
    status.seen.as_deref().is_some_and(|seen| digests.suits(pod, seen))
}

/// Whether the pod is the gateway's, answers the controller, and may take what is pushed.
fn is_reached(pod: &Pod) -> bool {
    let takes = match &pod.report {
        // Of one that does not say it is found out.
        StatusReport::Reported(status) => status.can(Feature::Push) != Some(false),
        StatusReport::Missed => true,
        StatusReport::NotQueried | StatusReport::NoResponse => false,
    };
    takes && pod.of_deployment && pod.could_answer() && pod.address.is_some()
}

/// Pushes the configuration to those of `pods` that are to have it so.
pub fn push(
    pods: &[&Pod],
    gateway: &ObservedGateway,
    digests: &Digests,
    remembered: &Remembered,
) -> Option<Action> {
    let is_due = |pod: &&&Pod| step(pod, gateway, digests, remembered) == Step::Push;
    let pods = pods.iter().filter(is_due).filter_map(|pod| Some((pod.uid.clone(), pod.address?)));
    let pods: Vec<_> = pods.collect();
    (!pods.is_empty()).then(|| Action::PushConfig { digest: digests.wanted().to_owned(), pods })
}

/// Annotates each of `pods` that has an interface with its address, a claim's
/// in `network`, and nudges those that have not read their configuration yet.
pub fn annotate(
    pods: &[&Pod],
    provider: &Provider,
    claim: &Claim,
    network: Option<&Network>,
    gateway: &ObservedGateway,
    digests: &Digests,
    remembered: &Remembered,
) -> Vec<Action> {
    let patch = |pod: &&Pod| {
        let mut annotations = address(provider, claim, network, pod.mac.as_ref()?);
        let differs = |annotations: &BTreeMap<String, String>| {
            annotations.iter().any(|(key, value)| pod.annotations.get(key) != Some(value))
        };
        let nudge = match step(pod, gateway, digests, remembered) {
            Step::Nudge(attempt) => Some(attempt),
            Step::None | Step::Push => None,
        };
        if nudge.is_none() && !differs(&annotations) {
            return None;
        }
        let (told, attempt) = named(pod);
        let (digest, attempt) = match digests.suits(pod, told) {
            true => (told, nudge.unwrap_or(attempt)),
            false => (digests.wanted(), 0),
        };
        annotations.insert(names::CONFIG_ANNOTATION.to_owned(), format!("{digest}.{attempt}"));
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        Some(Action::AnnotatePod { pod: name, uid, annotations, nudge })
    };
    pods.iter().filter_map(patch).collect()
}

/// What Kube-OVN writes on a pod about an interface.
fn address(
    provider: &Provider,
    claim: &Claim,
    network: Option<&Network>,
    mac: &str,
) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let mut set = |key: &str, value: String| annotations.insert(provider.annotation(key), value);
    set("allocated", "true".to_owned());
    if let Some(network) = network {
        set("cidr", network.cidr.to_string());
        set("gateway", network.gateway.to_string());
    }
    set("ip_address", claim.address.to_string());
    set("logical_switch", claim.subnet.clone());
    set("mac_address", mac.to_owned());
    set("pod_nic_type", "veth-pair".to_owned());
    annotations
}

/// Whether a pod that was nudged for the configuration is to be nudged again:
/// the kubelet may have refreshed the mount from an older ConfigMap.
fn is_due(pod: &Pod, digests: &Digests, attempt: u32, age: Option<Duration>) -> bool {
    let pause = (FIRST_PAUSE * 2u32.pow(attempt.min(7))).min(LAST_PAUSE);
    let is_over = age.unwrap_or(LAST_PAUSE) >= pause;
    match &pod.report {
        StatusReport::Reported(status) => !has_read(pod, status, digests) && is_over,
        StatusReport::NoResponse => pod.ready && attempt < NUDGES_UNANSWERED && is_over,
        StatusReport::NotQueried | StatusReport::Missed => false,
    }
}

/// The digest and the attempt in the pod's annotation.
fn named(pod: &Pod) -> (&str, u32) {
    let value = pod.annotations.get(names::CONFIG_ANNOTATION);
    value.and_then(|value| names::config_annotation(value)).unwrap_or(("", 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Observed, SealState};
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        carried_out, claim, claimed, config_of, members, replicated, reported_mut, settle, steps,
    };
    use crate::testing::port;
    use lb_svc_crds::Requested;

    #[test]
    fn unread_config_is_nudged_again() {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.service.as_mut().unwrap().ports.push(port("UDP", 53));
        let content = config_of(&plan(&observed)).unwrap().clone();
        let digest = names::digest(content.as_bytes());
        observed.gateway.config.as_mut().unwrap().content = content;
        let told = |observed: &Observed| {
            steps(&plan(observed)).into_iter().find_map(|action| match action {
                Action::AnnotatePod { annotations, nudge, .. } => {
                    Some((annotations[names::CONFIG_ANNOTATION].clone(), nudge))
                }
                _ => None,
            })
        };
        assert_eq!(told(&observed), Some((format!("{digest}.0"), Some(0))));
        observed.gateway.pods[0].annotations.insert(names::CONFIG_ANNOTATION.into(), format!("{digest}.0"));
        let nudged = |age| [("uid-gw".to_owned(), age)].into();
        observed.remembered.nudges = nudged(Duration::from_millis(100));
        assert_eq!(told(&observed), None, "it gets a moment");
        observed.remembered.nudges = nudged(Duration::from_millis(300));
        assert_eq!(told(&observed), Some((format!("{digest}.1"), Some(1))));
    }

    #[test]
    fn standby_is_nudged_once_address_is_probed() {
        let mut observed = settle(replicated(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "2"));
        members(&mut observed, "a", 1);
        let nudged = |observed: &Observed| {
            let planned = plan(observed);
            let names = planned.steps().filter_map(|action| match action {
                Action::AnnotatePod { pod, nudge: Some(_), .. } => Some(pod.clone()),
                _ => None,
            });
            names.collect::<Vec<_>>()
        };
        assert_eq!(nudged(&observed), Vec::<String>::new());
        observed.addresses.claims[0].probed = true;
        assert_eq!(nudged(&observed), ["a", "b"]);
    }

    /// A gateway that can be reached, and whose ConfigMap has one port more than its pod;
    /// and the digest of that.
    fn behind() -> (Observed, String) {
        let mut observed = carried_out(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "172.18.0.11");
        observed.gateway.seal = Some(SealState { generation: Some(1), ..SealState::default() });
        observed.gateway.pods[0].of_deployment = true;
        observed.service.as_mut().unwrap().ports.push(port("UDP", 53));
        let content = config_of(&plan(&observed)).unwrap().clone();
        let digest = names::digest(content.as_bytes());
        observed.gateway.config.as_mut().unwrap().content = content;
        (observed, digest)
    }

    /// The pods that are pushed to, and the nudges.
    fn told(observed: &Observed) -> (Vec<String>, Vec<u32>) {
        let (mut pushed, mut nudged) = (Vec::new(), Vec::new());
        for action in steps(&plan(observed)) {
            match action {
                Action::PushConfig { pods, .. } => pushed.extend(pods.into_iter().map(|(uid, _)| uid)),
                Action::AnnotatePod { nudge, .. } => nudged.push(nudge.unwrap()),
                _ => {}
            }
        }
        (pushed, nudged)
    }

    fn answered(observed: &mut Observed, digest: &str, answer: PushAnswer, millis: u64) {
        let push = Push { digest: digest.to_owned(), answer, age: Duration::from_millis(millis) };
        observed.remembered.pushes = [("uid-gw".to_owned(), push)].into();
    }

    #[test]
    fn config_is_pushed_once_it_is_written_and_not_nudged() {
        let (mut observed, digest) = behind();
        let pushed = (vec!["uid-gw".to_owned()], vec![]);
        assert_eq!(told(&observed), pushed);
        observed.gateway.config.as_mut().unwrap().content.push(' ');
        let planned = steps(&plan(&observed));
        let place = planned.iter().position(|action| matches!(action, Action::WriteConfig(_))).unwrap();
        assert!(matches!(planned[place + 1], Action::PushConfig { .. }), "at once, and never before");
        observed.remembered.config_written = Some(Duration::ZERO);
        assert_eq!(told(&observed), (vec![], vec![]), "what is to be written later");

        // A controller that knows nothing of it does the same again.
        let (mut observed, _) = behind();
        answered(&mut observed, "an earlier one", PushAnswer::Failed, 0);
        assert_eq!(told(&observed), pushed);
        observed.gateway.pods[0].report = StatusReport::Missed;
        assert_eq!(told(&observed), pushed);

        answered(&mut observed, &digest, PushAnswer::Taken, 10);
        assert_eq!(told(&observed), (vec![], vec![]), "it says so in a moment");
        let (mut observed, _) = behind();
        reported_mut(&mut observed.gateway.pods[0]).features.clear();
        assert_eq!(told(&observed), pushed, "of one that names no features it is tried");
        let (mut observed, digest) = behind();
        let status = reported_mut(&mut observed.gateway.pods[0]);
        (status.seen, status.digest) = (Some(digest.clone()), Some(digest));
        assert_eq!(told(&observed), (vec![], vec![]), "the annotation names an earlier one");
        reported_mut(&mut observed.gateway.pods[0]).digest = None;
        assert_eq!(told(&observed), (vec![], vec![0]), "for which it may wait");
    }

    #[test]
    fn config_that_is_not_pushed_is_nudged() {
        let nudged = (vec![], vec![0]);
        let (mut observed, digest) = behind();
        answered(&mut observed, &digest, PushAnswer::Failed, 0);
        assert_eq!(told(&observed), nudged, "at once");
        answered(&mut observed, "an earlier one", PushAnswer::Unknown, 0);
        assert_eq!(told(&observed), nudged, "an earlier release is tried once");
        answered(&mut observed, &digest, PushAnswer::Taken, 1000);
        assert_eq!(told(&observed), nudged, "it has lost it");
        let annotations = &mut observed.gateway.pods[0].annotations;
        annotations.insert(names::CONFIG_ANNOTATION.into(), format!("{digest}.0"));
        assert_eq!(told(&observed), (vec![], vec![1]), "again and again");

        let (unreached, _) = behind();
        for change in [
            |observed: &mut Observed| observed.gateway.pods[0].report = StatusReport::NoResponse,
            |observed: &mut Observed| observed.gateway.pods[0].of_deployment = false,
            |observed: &mut Observed| observed.gateway.pods[0].address = None,
            |observed: &mut Observed| observed.gateway.seal = None,
            |observed: &mut Observed| {
                reported_mut(&mut observed.gateway.pods[0]).features = ["direct".to_owned()].into();
            },
        ] {
            let mut observed = unreached.clone();
            change(&mut observed);
            assert_eq!(told(&observed), nudged);
        }
    }

    #[test]
    fn first_config_of_a_pod_is_named_to_it() {
        let (mut observed, digest) = behind();
        let status = reported_mut(&mut observed.gateway.pods[0]);
        (status.seen, status.digest) = (Some(digest.clone()), Some(digest.clone()));
        observed.gateway.pods[0].annotations.remove(names::CONFIG_ANNOTATION);
        assert_eq!(told(&observed), (vec![], vec![0]));
        // What else is said of it names the current one, too.
        let (mut observed, _) = behind();
        observed.gateway.pods[0].mac = Some("02:00:00:00:00:01".into());
        let status = reported_mut(&mut observed.gateway.pods[0]);
        (status.seen, status.digest) = (Some(digest.clone()), Some(digest.clone()));
        let named = steps(&plan(&observed)).into_iter().find_map(|action| match action {
            Action::AnnotatePod { annotations, nudge, .. } => {
                Some((annotations[names::CONFIG_ANNOTATION].clone(), nudge))
            }
            _ => None,
        });
        assert_eq!(named, Some((format!("{digest}.0"), None)));
    }
}
