//! `drain`: what draining a node would move, and what keeps it from being drained.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use lb_svc_core::model::Pod;

use crate::screen::{Cell, Screen, Table};
use crate::view::{Gateway, View};

/// For how long nobody answers while the active pod hands over to a standby.
const HANDED_OVER: &str = "a few milliseconds";
/// For how long nobody answers until a new pod runs in place of a deleted one.
const REPLACED: &str = "a second or two, once a node takes the new pod";

/// The gateways with pods on a node.
pub fn drain(view: &View<'_>, namespace: Option<&str>, node: &str) -> Screen {
    let mut screen = Screen { unseen: view.cluster.unseen.clone(), ..Screen::new("drain") };
    let mut table =
        Table::new("pods", &["namespace", "service", "pod", "role", "movesTo", "unanswered", "blockedBy"]);
    let others =
        view.cluster.nodes.iter().filter(|other| other.name_any() != node && takes_pods(other)).count();
    for gateway in view.gateways(namespace) {
        let pods = gateway.pods();
        for pod in pods.iter().filter(|pod| pod.node.as_deref() == Some(node)) {
            let Move { role, to, unanswered } = moves(pod, &pods, &gateway, node);
            let blocked = blocked_by(pod, &gateway, view);
            if let Some(why) = &blocked {
                screen.trouble.push(format!("{}: {} is not evicted: {why}", gateway.service, pod.name));
            }
            if to == To::NewPod {
                screen.trouble.push(format!("{}: unanswered for {REPLACED}", gateway.service));
            }
            table.rows.push(vec![
                gateway.service.namespace.as_str().into(),
                gateway.service.name.as_str().into(),
                pod.name.as_str().into(),
                role.into(),
                match to {
                    To::Nowhere => Cell::none(),
                    To::Standby(standbys) => standbys.into(),
                    To::NewPod => Cell::from("a new pod").bad_if(true),
                },
                Cell::some(unanswered),
                Cell::some(blocked).bad_if(true),
            ]);
        }
    }
    if !table.rows.is_empty() && others == 0 && view.cluster.nodes.is_whole() {
        screen
            .trouble
            .push("no other node is ready and schedulable: pods that have to move wait for one".to_owned());
    }
    screen.unseen.push(
        "whether another node takes a new pod: resources, selectors and taints are the scheduler's"
            .to_owned(),
    );
    screen.tables.push(table);
    screen
}

/// Where an address goes.
#[derive(PartialEq)]
enum To {
    /// It is not this pod's, and stays.
    Nowhere,
    /// To one of these.
    Standby(String),
    /// To the pod that replaces this one.
    NewPod,
}

struct Move {
    role: &'static str,
    to: To,
    unanswered: Option<&'static str>,
}

/// What the eviction of `pod` moves.
fn moves(pod: &Pod, pods: &[&Pod], gateway: &Gateway, node: &str) -> Move {
    let is_standby = |other: &&&Pod| {
        other.uid != pod.uid
            && other.member
            && pod.member
            && other.ready
            && other.node.as_deref() != Some(node)
    };
    let standbys: Vec<String> = pods
        .iter()
        .filter(is_standby)
        .map(|pod| {
            let on = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
            format!("{}{on}", pod.name)
        })
        .collect();
    let active = gateway.active();
    let (role, is_active) = match active {
        Some(active) if active.uid == pod.uid => (if pods.len() == 1 { "only" } else { "active" }, true),
        Some(_) => ("standby", false),
        // Whoever it is may be this one.
        None => ("unknown", true),
    };
    match (is_active, standbys.is_empty()) {
        (false, _) => Move { role, to: To::Nowhere, unanswered: None },
        (true, false) => Move { role, to: To::Standby(standbys.join(" or ")), unanswered: Some(HANDED_OVER) },
        (true, true) => Move { role, to: To::NewPod, unanswered: Some(REPLACED) },
    }
}

/// What keeps Kubernetes from evicting the pod.
fn blocked_by(pod: &Pod, gateway: &Gateway, view: &View<'_>) -> Option<String> {
    let namespace = &gateway.observed.gateway.location.namespace;
    let object = view.cluster.pods.get(namespace, &pod.name)?;
    let selects = |budget: &&PodDisruptionBudget| {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
        budget.namespace().as_ref() == Some(namespace)
            && selector.is_some_and(|selector| selector.matches(object.labels()))
    };
    let budgets: Vec<&PodDisruptionBudget> = view.cluster.budgets.iter().filter(selects).collect();
    if budgets.len() > 1 {
        let names: Vec<String> = budgets.iter().map(|budget| budget.name_any()).collect();
        return Some(format!("several budgets select it: {}", names.join(", ")));
    }
    let budget = budgets.first()?;
    let allowed = budget.status.as_ref().map_or(0, |status| status.disruptions_allowed);
    // A pod that is not ready is evicted all the same.
    (allowed < 1 && pod.ready).then(|| format!("budget {} allows no disruption now", budget.name_any()))
}

/// Whether a node is ready and takes new pods.
fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready =
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && node.spec.as_ref().is_none_or(|spec| spec.unschedulable != Some(true))
}
