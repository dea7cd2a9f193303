//! Deployments whose pods have labels that a user's selector may meet, as
//! releases before 0.2 made them: each is made anew once.
//!
//! A Deployment's selector cannot be changed, and two Deployments cannot have
//! one name. One pod is deleted with its Deployment, before the next one comes:
//! two that take no part in an election would both answer. Where there are
//! several, nothing is lost:
//!
//! ```text
//!  Deployment of 2 ──Shrink──▶ of 1 ──Orphan──▶ its last pod alone
//!                                                │ the new Deployment's pods join it
//!                                                ▼
//!                     the new Deployment of 2 ◀──EndLegacyPods── one of them is ready
//! ```

use serde_json::{Value, json};

use crate::model::Pod;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing: there is no such Deployment, nor a pod of one.
    Done,
    /// Wait until the pods beyond the first have ended, or a new one is ready.
    Wait,
    /// Write the Deployment so, with one pod: the others make room on their
    /// nodes.
    Shrink(Value),
    /// Delete the Deployment and leave its pod.
    Orphan,
    /// Delete the Deployment with its pods.
    Delete,
    /// Delete the ReplicaSets that the pods of the earlier Deployment are of.
    EndLegacyPods,
}

/// Whether a Deployment's pods have such labels.
pub fn is_legacy(live: &Value) -> bool {
    !live["spec"]["selector"]["matchLabels"]["service"].is_null()
}

/// The next step for a gateway's Deployment as it is `live`, if it is there,
/// and the gateway's `pods` that have not ended; `several`: it is to have more
/// pods than one.
pub fn step(live: Option<&Value>, pods: &[&Pod], several: bool) -> Step {
    let legacy: Vec<&&Pod> = pods.iter().filter(|pod| pod.legacy).collect();
    let living = legacy.iter().filter(|pod| !pod.deleting).count();
    match live {
        Some(live) if is_legacy(live) => {
            let is_served = legacy.iter().any(|pod| pod.ready);
            // One that takes no part in the election would not give way.
            let gives_way = legacy.iter().all(|pod| pod.member);
            if !several || !is_served || !gives_way {
                Step::Delete
            } else if live["spec"]["replicas"].as_u64() != Some(1) {
                let mut live = live.clone();
                live["spec"]["replicas"] = json!(1);
                Step::Shrink(live)
            } else if living > 1 {
                Step::Wait
            } else {
                Step::Orphan
            }
        }
        _ if living == 0 => Step::Done,
        // Before the new Deployment is there, nothing can take over.
        None => Step::Done,
        Some(_) if pods.iter().any(|pod| !pod.legacy && !pod.deleting && pod.ready) => Step::EndLegacyPods,
        Some(_) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: u64, legacy: bool) -> Value {
        let labels = if legacy { json!({ "service": "web" }) } else { json!({}) };
        json!({ "spec": { "replicas": replicas, "selector": { "matchLabels": labels } } })
    }

    fn pod(legacy: bool, ready: bool) -> Pod {
        Pod { legacy, ready, member: true, ..Pod::default() }
    }

    #[test]
    fn b06_several_pods_are_replaced_without_a_gap() {
        let (old, new) = (pod(true, true), pod(false, false));
        let shrunk = deployment(1, true);
        let step = |live: Option<&Value>, pods: &[&Pod]| step(live, pods, true);
        assert_eq!(step(Some(&deployment(2, true)), &[&old, &old]), Step::Shrink(shrunk.clone()));
        assert_eq!(step(Some(&shrunk), &[&old, &old]), Step::Wait, "Kubernetes is still at it");
        let leaving = Pod { deleting: true, ..old.clone() };
        assert_eq!(step(Some(&shrunk), &[&old, &leaving]), Step::Orphan);
        assert_eq!(step(None, &[&old]), Step::Done, "the new Deployment is made");
        assert_eq!(step(Some(&deployment(2, false)), &[&old, &new]), Step::Wait);
        let ready = pod(false, true);
        assert_eq!(step(Some(&deployment(2, false)), &[&old, &ready, &new]), Step::EndLegacyPods);
        assert_eq!(step(Some(&deployment(2, false)), &[&leaving, &ready, &ready]), Step::Done);
    }

    #[test]
    fn b06_pods_without_an_election_never_meet() {
        let alone = Pod { member: false, ..pod(true, true) };
        assert_eq!(step(Some(&deployment(1, true)), &[&alone], false), Step::Delete);
        assert_eq!(step(Some(&deployment(1, true)), &[&alone], true), Step::Delete);
        let unready = pod(true, false);
        assert_eq!(step(Some(&deployment(2, true)), &[&unready, &unready], true), Step::Delete);
        assert_eq!(step(Some(&deployment(1, false)), &[&pod(false, true)], false), Step::Done);
    }
}
