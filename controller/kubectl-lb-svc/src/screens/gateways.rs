//! `gateways`: which pod is active, since when, and why.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use lb_svc_core::model::Pod;

use crate::screen::{Cell, Screen, Table};
use crate::view::{Gateway, View};

/// Since when a pod is active, and why, as far as objects tell.
pub(super) struct Activity {
    pub since: Option<Timestamp>,
    pub why: Option<String>,
}

/// When an Event happened.
pub(super) fn time(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    last.or(event.event_time.as_ref().map(|time| time.0))
}

/// The last Event by which the controller said that another pod of the gateway became
/// active.
pub(super) fn last_change<'a>(gateway: &Gateway, view: &View<'a>) -> Option<&'a Event> {
    let uid = &gateway.observed.service.as_ref()?.id.uid;
    let is_about = |event: &&Event| {
        event.involved_object.uid.as_ref() == Some(uid) && event.reason.as_deref() == Some("ActiveChanged")
    };
    view.cluster.events.iter().filter(is_about).max_by_key(|event| time(event))
}

/// What is known of the activity of `active`. A pod that takes no part in an election
/// is active since it is ready; of others an Event tells, as long as there is one.
pub(super) fn activity(gateway: &Gateway, active: &Pod, view: &View<'_>) -> Activity {
    if !active.member {
        return Activity { since: ready_since(active, gateway, view), why: Some("the only pod".to_owned()) };
    }
    let event = last_change(gateway, view).filter(|event| {
        // `<pod>[ on <node>] answers for <addresses> now[: <why>]`
        event.message.as_deref().is_some_and(|message| message.split(' ').next() == Some(&active.name))
    });
    let why = event.and_then(|event| Some(event.message.as_ref()?.split_once(" now: ")?.1.to_owned()));
    Activity { since: event.and_then(time), why }
}

fn ready_since(pod: &Pod, gateway: &Gateway, view: &View<'_>) -> Option<Timestamp> {
    let object = view.cluster.pods.get(&gateway.observed.gateway.location.namespace, &pod.name)?;
    let conditions = object.status.as_ref()?.conditions.as_deref()?;
    let ready =
        conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

/// The gateways of Services of a namespace, or of all.
pub fn gateways(view: &View<'_>, namespace: Option<&str>) -> Screen {
    let mut table = Table::new(
        "gateways",
        &["namespace", "service", "address", "ready", "active", "node", "since", "why"],
    );
    let mut unseen = view.cluster.unseen.clone();
    let mut untold = 0;
    for gateway in view.gateways(namespace) {
        let pods = gateway.pods();
        if gateway.observed.gateway.deployment.is_none() && pods.is_empty() {
            continue;
        }
        let active = gateway.active();
        let activity = active.map(|active| activity(&gateway, active, view));
        untold += usize::from(activity.as_ref().is_some_and(|activity| activity.since.is_none()));
        let ready = pods.iter().filter(|pod| pod.ready).count();
        let asked = gateway.replicas().map_or_else(|| "?".to_owned(), |asked| asked.to_string());
        let is_short = gateway.replicas().is_some_and(|asked| (ready as u64) < asked);
        table.rows.push(vec![
            gateway.service.namespace.as_str().into(),
            gateway.service.name.as_str().into(),
            Cell::some(gateway.address()),
            Cell::from(format!("{ready}/{asked}")).bad_if(is_short),
            Cell::some(active.map(|pod| pod.name.as_str())).bad_if(active.is_none()),
            Cell::some(active.and_then(|pod| pod.node.as_deref())),
            Cell::since(activity.as_ref().and_then(|activity| activity.since), view.cluster.now),
            Cell::some(activity.and_then(|activity| activity.why)),
        ]);
    }
    if untold > 0 {
        unseen.push(format!(
            "since when and why the pod is active, of {untold} gateway(s): no Event ActiveChanged is left of it; /status of the pod has both"
        ));
    }
    Screen { judges: false, tables: vec![table], unseen, ..Screen::new("gateways") }
}
