//! The annotations by which gateway pods learn of their configuration: a
//! changed one makes the kubelet refresh what is mounted, which is a *nudge*.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use lb_svc_crds::names::{self, Provider};

use super::config::Digests;
use crate::action::Action;
use crate::ipam::{Claim, Network};
use crate::model::{Pod, StatusReport};

/// The first pause between two nudges; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two nudges.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// The most nudges of a pod that does not answer.
const NUDGES_UNANSWERED: u32 = 4;

/// Annotates each of `pods` that has an interface with its address, a claim's
/// in `network`, and nudges those that have not read their configuration yet.
pub fn annotate(
    pods: &[&Pod],
    provider: &Provider,
    claim: &Claim,
    network: Option<&Network>,
    digests: &Digests,
    nudges: &HashMap<String, Duration>,
) -> Vec<Action> {
    let patch = |pod: &&Pod| {
        let mut annotations = address(provider, claim, network, pod.mac.as_ref()?);
        let (digest, attempt) = nudged(pod);
        let (digest, nudge) = if digests.suits(pod, digest) {
            let is_due = is_due(pod, digests, attempt, nudges.get(&pod.uid).copied());
            (digest, is_due.then_some(attempt.wrapping_add(1)))
        } else {
            (digests.wanted(), Some(0))
        };
        let value = format!("{digest}.{}", nudge.unwrap_or(attempt));
        annotations.insert(names::CONFIG_ANNOTATION.to_owned(), value);
        let differs = annotations.iter().any(|(key, value)| pod.annotations.get(key) != Some(value));
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        differs.then_some(Action::AnnotatePod { pod: name, uid, annotations, nudge })
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
        StatusReport::Reported(status) => {
            !status.seen.as_deref().is_some_and(|seen| digests.suits(pod, seen)) && is_over
        }
        StatusReport::NoResponse => pod.ready && attempt < NUDGES_UNANSWERED && is_over,
        StatusReport::NotQueried | StatusReport::Missed => false,
    }
}

/// The digest and the attempt in the pod's annotation.
fn nudged(pod: &Pod) -> (&str, u32) {
    let value = pod.annotations.get(names::CONFIG_ANNOTATION);
    value.and_then(|value| names::config_annotation(value)).unwrap_or(("", 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;
    use crate::service::plan::plan;
    use crate::testing::gateway::{
        carried_out, claim, claimed, config_of, members, replicated, settle, steps,
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
}
