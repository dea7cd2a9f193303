//! Gateways of the release before: their Deployments as commit 790b528 rendered them, of
//! the fixture's inputs, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::gateway::manifests::{DeploymentTemplate, deployment, trusts_keys};
use lb_svc_core::gateway::pod_settings::{Configuration, Settings};
use lb_svc_core::gateway::rollout::{MAX_CONCURRENT_ROLLOUTS, Rollout};
use lb_svc_core::model::{Attachment, Pod, Setting};
use lb_svc_core::observed::{Observed, SealState};
use lb_svc_core::service::conditions::GATEWAY_READY;
use lb_svc_core::service::plan::{Plan, plan};
use lb_svc_core::testing::deployment::{gateway, id, with};
use lb_svc_core::testing::gateway::{
    carried_out, claim, claimed, config_of, configured, deployment_of, gateway_pod, members, reason,
    replicated, reported_mut, settle, status,
};
use lb_svc_crds::Requested;
use lb_svc_crds::seal::{PrivateKey, PublicKey};
use serde_json::{Value, json};

/// The Deployment of a gateway of one pod, and of two.
const GOLDEN: [&str; 2] =
    [include_str!("golden/deployment-790b528-one.json"), include_str!("golden/deployment-790b528-two.json")];

/// What differs in today's Deployment, by JSON pointer, and why.
const CHANGED: [(&str, &str); 11] = [
    ("/metadata/annotations/lb-svc.kubeovn.io~1template", "the digest of all of this"),
    // Regressions B06, B07: the pods met selectors of users. A selector cannot be changed, so
    // each Deployment is made anew once, and with it all that follows.
    ("/spec/selector/matchLabels/app", "no label that a user's selector may meet"),
    ("/spec/selector/matchLabels/namespace", "the same"),
    ("/spec/selector/matchLabels/service", "the same"),
    ("/spec/template/metadata/labels/app", "the same"),
    ("/spec/template/metadata/labels/namespace", "the same"),
    ("/spec/template/metadata/labels/service", "the same"),
    ("/spec/template/metadata/labels/istio.io~1dataplane-mode", "B14: ambient meshes heed a label"),
    ("/spec/template/spec/containers/0/livenessProbe", "R19: a process that hangs is restarted"),
    ("/spec/template/spec/nodeSelector", "B25: the image is one for Linux"),
    ("/spec/template/spec/affinity/nodeAffinity", "B26: not on nodes that load balancers leave out"),
];

/// The same where there are several pods.
const CHANGED_OF_SEVERAL: [(&str, &str); 2] = [
    (
        "/spec/template/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/labelSelector",
        "their selector has changed",
    ),
    ("/spec/template/spec/terminationGracePeriodSeconds", "a pod that ends leads its connections on"),
];

/// The same where configurations are signed, as every controller of today does it.
const CHANGED_BY_SIGNING: [(&str, &str); 2] = [
    ("/spec/template/spec/containers/0/env", "R10: the keys, and the gateway's id"),
    ("/spec/template/spec/volumes/1/downwardAPI/items/1", "R10: the configuration that was confirmed"),
];

fn golden(replicas: usize) -> Value {
    serde_json::from_str(GOLDEN[replicas - 1]).unwrap()
}

fn key() -> PublicKey {
    PrivateKey::from_seed(&[1; 32]).unwrap().public()
}

/// Every leaf of a document, by JSON pointer.
fn leaves(value: &Value, pointer: &str, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                leaves(value, &format!("{pointer}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (n, value) in items.iter().enumerate() {
                leaves(value, &format!("{pointer}/{n}"), found);
            }
        }
        leaf => drop(found.insert(pointer.to_owned(), leaf.clone())),
    }
}

/// Where two documents differ.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    let [mut old, mut new] = [BTreeMap::new(), BTreeMap::new()];
    leaves(before, "", &mut old);
    leaves(after, "", &mut new);
    let all = old.keys().chain(new.keys().filter(|pointer| !old.contains_key(*pointer)));
    all.filter(|pointer| old.get(*pointer) != new.get(*pointer)).cloned().collect()
}

/// Whether `pointer` is at or below one of `places`.
fn is_at(pointer: &str, place: &str) -> bool {
    pointer.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[test]
fn deployment_of_790b528_is_made_the_same_but_for_what_was_changed_since() {
    for replicas in [1, 2] {
        let own = [(Setting::Replicas, json!(replicas))];
        let own = if replicas == 1 { &[][..] } else { &own[..] };
        let unsigned = with("web", &Attachment::default(), &[], own);
        let template = DeploymentTemplate {
            provider: &"lan.kube-system".parse().unwrap(),
            attachment: &Attachment::default(),
            all: &Configuration::new("gateway:1", false).gateway,
            own: &Settings::from_iter(own.iter().cloned()),
            trusted: &[key()],
        };
        let signed = deployment(&id(), &gateway("web"), &template);
        // The file of what is confirmed is mounted in any case.
        let [env, confirmed] = CHANGED_BY_SIGNING;
        for (today, more) in [(unsigned, vec![confirmed]), (signed, vec![env, confirmed])] {
            let more =
                more.into_iter().chain((replicas > 1).then_some(CHANGED_OF_SEVERAL).into_iter().flatten());
            let expected: Vec<&str> = CHANGED.into_iter().chain(more).map(|(place, _)| place).collect();
            let found = differences(&golden(replicas), &today);
            for pointer in &found {
                assert!(expected.iter().any(|place| is_at(pointer, place)), "{pointer} has changed");
            }
            for place in expected {
                assert!(found.iter().any(|pointer| is_at(pointer, place)), "{place} has not changed");
            }
        }
    }
}

/// A gateway as 790b528 left it: the Deployment of the golden file, pods with its labels,
/// a configuration that is not signed.
fn of_790b528(replicas: usize) -> Observed {
    let mut observed = configured(claimed(&[claim("172.18.0.11", Requested::Dynamic)]), "gateway:1");
    let name = &mut observed.service.as_mut().unwrap().id.service;
    name.name = "web".to_owned();
    observed.gateway.location.gateway = gateway_of(name);
    observed.addresses.claims[0].owner.service = name.clone();
    observed.addresses.claims[0].probed = true;
    if replicas > 1 {
        observed = replicated(observed, &replicas.to_string());
    }
    observed = carried_out(observed, "172.18.0.11");
    if replicas > 1 {
        members(&mut observed, "a", 1);
    }
    observed = settle(observed);
    for pod in &mut observed.gateway.pods {
        (pod.legacy, pod.of_deployment) = (true, true);
        let status = reported_mut(pod);
        (status.parts, status.generation) = (None, None);
        status.features.clear();
    }
    observed.gateway.deployment.as_mut().unwrap().content.live = golden(replicas);
    observed.gateway.budget = None;
    observed.gateway.seal = Some(SealState { generation: None, trusted: Arc::from([key()]) });
    observed
}

/// The writes of a plan to the gateway's workload and pods, but for what names their
/// configuration to them.
fn workload(plan: &Plan) -> Vec<&Action> {
    let is_of_workload = |action: &&Action| {
        matches!(
            action,
            Action::WriteDeployment(_)
                | Action::DeleteDeployment(..)
                | Action::OrphanDeployment(..)
                | Action::DeleteLegacyReplicaSets
                | Action::DeleteOrphans(_)
                | Action::DeletePod { .. }
                | Action::Release(_)
                | Action::DeleteConfig(..)
        )
    };
    plan.steps().filter(is_of_workload).collect()
}

#[test]
fn gateway_of_790b528_with_one_pod_is_made_anew_in_its_turn_and_serves_until_then() {
    let mut observed = of_790b528(1);
    // Its turn has not come: it is adopted as it is, and its configuration signed.
    observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
    let planned = plan(&observed);
    assert_eq!(workload(&planned), [] as [&Action; 0]);
    assert_eq!(planned.index.rollout, Rollout::Pending);
    let service = observed.service.as_ref().unwrap();
    let (ingress, conditions) = status(&planned).unwrap_or((&service.ingress, &service.conditions));
    assert_eq!((ingress[0].ip.as_str(), reason(conditions, GATEWAY_READY)), ("172.18.0.11", "GatewayReady"));
    let text = config_of(&planned).expect("to be signed");
    assert!(!text.contains("requires") && text.contains(r#""version":1"#), "what 790b528 reads: {text}");

    observed.rollouts.others = 0;
    let planned = plan(&observed);
    assert_eq!(workload(&planned), [&Action::DeleteDeployment("dep".into(), "3".into())]);
    assert_eq!(planned.index.rollout, Rollout::Moving, "as one of a few");

    // Once it is gone with its pod, the next one is made, and that is all.
    (observed.gateway.deployment, observed.gateway.pods) = (None, Vec::new());
    let planned = plan(&observed);
    let made = deployment_of(&planned).unwrap();
    assert!(trusts_keys(&made.content.live));
    assert_eq!(workload(&planned).len(), 1);
    observed.gateway.config.as_mut().unwrap().content = config_of(&planned).unwrap().clone();
    observed.gateway.seal.as_mut().unwrap().generation = Some(1);
    let content = observed.gateway.config.as_ref().unwrap().content.clone();
    observed.gateway.deployment = Some(made);
    observed.gateway.pods = vec![gateway_pod("new", &content, &["172.18.0.11"])];
    assert_eq!(workload(&plan(&settle(observed))), [] as [&Action; 0]);
}

#[test]
fn gateway_of_790b528_with_two_pods_shrinks_to_one_that_goes_on() {
    let mut observed = of_790b528(2);
    observed.rollouts.others = MAX_CONCURRENT_ROLLOUTS;
    let planned = plan(&observed);
    assert_eq!((workload(&planned), planned.index.rollout), (vec![], Rollout::Pending));

    observed.rollouts.others = 0;
    let planned = plan(&observed);
    let [Action::WriteDeployment(shrunk)] = workload(&planned)[..] else {
        panic!("{:?}", workload(&planned))
    };
    assert_eq!(differences(&golden(2), shrunk), ["/spec/replicas"], "its pods stay as they are");
    observed.gateway.deployment.as_mut().unwrap().content.live = shrunk.clone();
    observed.gateway.pods.retain(|pod| pod.name == "a");
    let planned = plan(&observed);
    assert_eq!(workload(&planned), [&Action::OrphanDeployment("dep".into(), "3".into())]);

    // The next Deployment's pods join the one that is left, which ends when one is ready.
    observed.gateway.deployment = None;
    let planned = plan(&observed);
    let made = deployment_of(&planned).unwrap();
    assert_eq!(made.content.live["spec"]["replicas"], 2);
    observed.gateway.deployment = Some(made);
    let joined = Pod { name: "b".into(), legacy: false, ..observed.gateway.pods[0].clone() };
    observed.gateway.pods.push(joined);
    assert_eq!(workload(&plan(&observed)), [&Action::DeleteLegacyReplicaSets]);
}
