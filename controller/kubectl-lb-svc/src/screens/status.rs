//! `status`: whether all is well, on one screen.

use jiff::SignedDuration;
use lb_svc_core::service::conditions::LIMITED;

use super::subnets;
use crate::finding::{Depth, findings, worst};
use crate::screen::{Cell, Screen, Table};
use crate::view::{CONTROLLER_LABEL, View};

/// The most lines about what is wrong: it is to be one screen.
const TROUBLE_MAX: usize = 15;
/// After this time without a renewal no controller leads. It is four times as long as
/// the Lease lasts, as the clocks of the cluster and of this machine may differ.
const LEASE_OVER: SignedDuration = SignedDuration::from_secs(60);

/// Everything, of Services of a namespace or of all.
pub fn status(view: &View<'_>, namespace: Option<&str>) -> Screen {
    let mut screen = Screen { unseen: view.cluster.unseen.clone(), ..Screen::new("status") };
    controller(view, &mut screen);
    let subnets = summary_of_subnets(view, &mut screen);

    let (mut total, mut served, mut limited) = (0u64, 0u64, 0u64);
    let (mut gateways, mut ready, mut asked) = (0u64, 0u64, 0u64);
    for gateway in view.gateways(namespace) {
        if gateway.observed.service.is_none() {
            continue;
        }
        let wrong = findings(&gateway, view.cluster, Depth::Objects);
        if let Some(first) = worst(&wrong) {
            screen.trouble.push(format!("Service {}: {}: {}", gateway.service, first.reason, first.message));
        }
        total += 1;
        served += u64::from(gateway.is_served());
        limited += u64::from(gateway.is_served() && gateway.condition(LIMITED).is_some());
        gateways += u64::from(gateway.replicas().is_some());
        asked += gateway.replicas().unwrap_or_default();
        ready += gateway.pods().iter().filter(|pod| pod.ready).count() as u64;
    }
    let mut services = Table::new("services", &["total", "served", "limited", "notServed"]);
    let not_served = total - served;
    services.rows.push(vec![
        total.into(),
        served.into(),
        limited.into(),
        Cell::from(not_served).bad_if(not_served > 0),
    ]);
    let mut pods = Table::new("gateways", &["total", "podsAsked", "podsReady"]);
    let cluster = view.cluster;
    let seen = |is_seen: bool, number: u64| if is_seen { Cell::from(number) } else { Cell::none() };
    let are_counted = cluster.deployments.is_whole() && cluster.pods.is_whole();
    pods.rows.push(vec![
        seen(cluster.deployments.is_whole(), gateways),
        seen(cluster.deployments.is_whole(), asked),
        seen(cluster.pods.is_whole(), ready).bad_if(are_counted && ready < asked),
    ]);
    screen.tables.extend([services, pods, subnets]);

    let more = screen.trouble.len().saturating_sub(TROUBLE_MAX);
    if more > 0 {
        screen.trouble.truncate(TROUBLE_MAX);
        screen
            .trouble
            .push(format!("and {more} more: kubectl lb-svc services --problems -A; kubectl lb-svc subnets"));
    }
    screen
}

fn controller(view: &View<'_>, screen: &mut Screen) {
    let controller = &view.controller;
    let mut table = Table::new("controller", &["ready", "enabled", "leader", "renewed"]);
    let Some(deployment) = controller.deployment else {
        if view.cluster.controllers.is_whole() {
            let (label, value) = CONTROLLER_LABEL;
            screen
                .trouble
                .push(format!("there is no controller: no Deployment has the label {label}={value}"));
        }
        screen.tables.push(table);
        return;
    };
    let asked = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    if ready < asked {
        screen.trouble.push(format!("{ready} of {asked} pods of the controller are ready"));
    }
    let enabled = controller.args.as_ref().map(|args| args.enable_lb_svc);
    match enabled {
        Some(true) => {}
        Some(false) => {
            screen
                .trouble
                .push("the controller runs without --enable-lb-svc=true: it writes nothing".to_owned());
        }
        None => screen
            .unseen
            .push("whether the controller is enabled: its command line is not understood".to_owned()),
    }
    let lease = controller.lease.and_then(|lease| lease.spec.as_ref());
    let leader = lease.and_then(|lease| lease.holder_identity.clone()).filter(|holder| !holder.is_empty());
    let renewed = lease.and_then(|lease| Some(lease.renew_time.as_ref()?.0));
    let is_over = renewed.is_none_or(|renewed| view.cluster.now.duration_since(renewed) > LEASE_OVER);
    let is_leaderless = view.cluster.leases.is_whole() && (leader.is_none() || is_over);
    if is_leaderless && enabled == Some(true) {
        screen
            .trouble
            .push("no controller leads: its Lease is not held, or was not renewed for a minute".to_owned());
    }
    table.rows.push(vec![
        Cell::from(format!("{ready}/{asked}")).bad_if(ready < asked),
        Cell::some(enabled.map(|enabled| if enabled { "True" } else { "False" }))
            .bad_if(enabled == Some(false)),
        Cell::some(leader).bad_if(is_leaderless),
        Cell::since(renewed, view.cluster.now).bad_if(is_leaderless),
    ]);
    screen.tables.push(table);
}

fn summary_of_subnets(view: &View<'_>, screen: &mut Screen) -> Table {
    let (mut total, mut ready, mut used, mut available) = (0u64, 0u64, 0u64, 0u64);
    for name in view.index.known_subnets() {
        let Some(subnet) = view.index.subnet(&name) else { continue };
        total += 1;
        used = used.saturating_add(subnet.status.using);
        available = available.saturating_add(subnet.status.available);
        match subnets::ready(subnet) {
            Ok(()) => ready += 1,
            Err((reason, message)) => screen.trouble.push(format!("Subnet {name}: {reason}: {message}")),
        }
    }
    let mut table = Table::new("subnets", &["total", "ready", "used", "available"]);
    table.rows.push(vec![
        total.into(),
        Cell::from(ready).bad_if(ready < total),
        used.into(),
        available.into(),
    ]);
    table
}
