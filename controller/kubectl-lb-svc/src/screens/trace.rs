//! `trace`: the way of one Service from its claim to its last announcement, what is
//! wrong first.

use k8s_openapi::api::core::v1 as core;
use lb_svc_controller::api_server::read;
use lb_svc_core::model::Pod;
use lb_svc_core::node_mode::request::{Mode, mode};
use lb_svc_core::service::conditions::LIMITED;
use lb_svc_crds::Requested;
use lb_svc_crds::names;

use super::gateways::{activity, last_change, time};
use crate::finding::{Depth, Finding, Step, findings, seal, why_unready};
use crate::screen::{Cell, Screen, Table, age};
use crate::view::{Gateway, View, left_alone};

/// The digits of a digest that are shown.
const DIGITS: usize = 12;

/// The way of `service`.
pub fn trace(view: &View<'_>, service: &core::Service) -> Screen {
    let gateway = &view.gateway(&read::service_ref(service), Some(service));
    let mut wrong = findings(gateway, view.cluster, Depth::Contents);
    if let Some(why) = left_alone(service) {
        wrong.push(Finding { step: Step::Service, reason: "LeftAlone".to_owned(), message: why });
    }
    let mut screen = Screen { unseen: view.cluster.unseen.clone(), ..Screen::new("trace") };
    screen.trouble = wrong
        .iter()
        .map(|Finding { step, reason, message }| format!("{}: {reason}: {message}", step.name()))
        .collect();
    let mut table = Table::new("steps", &["step", "state", "what"]);
    for step in Step::ALL {
        let is_wrong = wrong.iter().any(|finding| finding.step == step);
        let seen = what(step, view, gateway);
        let state = match (is_wrong, seen.is_empty() || !is_reached(step, gateway)) {
            (true, _) => "Wrong",
            (false, true) => "Unknown",
            (false, false) => "Ok",
        };
        let lines = if seen.is_empty() { vec!["none is seen".to_owned()] } else { seen };
        for (line, text) in lines.into_iter().enumerate() {
            let name = if line == 0 { Cell::from(step.name()) } else { Cell::from(step.name()).continued() };
            let state = Cell::from(state).bad_if(is_wrong);
            table.rows.push(vec![name, if line == 0 { state } else { state.continued() }, text.into()]);
        }
    }
    screen.tables.push(table);
    let pod = gateway.active().or(gateway.pods().first().copied()).map(|pod| pod.name.as_str());
    let of = pod.map(|pod| format!(" of pod {pod}")).unwrap_or_default();
    screen.unseen.extend([
        format!("the kernel's rules, routes and NAT themselves: /status{of} says what is programmed"),
        format!(
            "when gratuitous ARP was sent last: the metric lb_svc_gateway_announcements_total{of} counts it"
        ),
        "whether the LAN answers: arping ADDRESS from a host there".to_owned(),
    ]);
    screen
}

/// Whether what is seen of a step can be right: the way ends before it while an earlier
/// step is wrong.
fn is_reached(step: Step, gateway: &Gateway) -> bool {
    match step {
        Step::Kernel | Step::Announcement | Step::Endpoints => gateway.is_served(),
        Step::Service | Step::Claim | Step::Configuration | Step::Pods => true,
    }
}

/// What is seen of a step.
fn what(step: Step, view: &View<'_>, gateway: &Gateway) -> Vec<String> {
    match step {
        Step::Service => service(gateway),
        Step::Claim => claim(gateway),
        Step::Configuration => configuration(view, gateway),
        Step::Pods => gateway.pods().iter().map(|pod| self::pod(pod, gateway)).collect(),
        Step::Kernel => kernel(view, gateway),
        Step::Announcement => announcement(view, gateway),
        Step::Endpoints => endpoints(view, gateway),
    }
}

fn service(gateway: &Gateway) -> Vec<String> {
    let Some(service) = &gateway.observed.service else { return Vec::new() };
    let ports: Vec<String> =
        service.ports.iter().take(8).map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    let more = if service.ports.len() > ports.len() { ", …" } else { "" };
    let asked = match service.load_balancer_ip.as_str() {
        "" => String::new(),
        address => format!(", spec.loadBalancerIP {address}"),
    };
    let provider = match service.annotations.get(names::PROVIDER_ANNOTATION) {
        Some(provider) => provider.as_str(),
        None if mode(service) == Mode::Nodes => "addresses of nodes",
        None => "no attachment",
    };
    let mut lines =
        vec![format!("{} on {provider}, ports {}{more}{asked}", gateway.service, ports.join(", "))];
    if let Some(limited) = gateway.condition(LIMITED) {
        lines.push(format!("not all that it asks: {}: {}", limited.reason, limited.message));
    }
    lines
}

fn claim(gateway: &Gateway) -> Vec<String> {
    let Some(claim) = gateway.claim() else {
        let ports = gateway.observed.nodes.claims.iter();
        return ports.map(|claim| format!("{} nodes (IP {})", claim.nodes.len(), claim.id.name)).collect();
    };
    let requested = match claim.requested {
        Requested::Static => "named by the Service",
        Requested::Dynamic => "allocated",
    };
    let keep = if claim.keep { ", outlives the Service" } else { "" };
    let probed = if claim.probed { ", the LAN was probed" } else { "" };
    vec![format!(
        "{} from Subnet {}: {requested}{probed}{keep} (IP {})",
        claim.address, claim.subnet, claim.id.name
    )]
}

fn digits(digest: &str) -> &str {
    digest.get(..DIGITS).unwrap_or(digest)
}

fn configuration(view: &View<'_>, gateway: &Gateway) -> Vec<String> {
    let objects = &gateway.observed.gateway;
    let location = &objects.location;
    let mut lines = Vec::new();
    if let Some(config) = &objects.config {
        let signed = match seal(gateway, view.cluster) {
            Some(Ok(generation)) => format!(", generation {generation}, signed"),
            Some(Err(unsealed)) => format!(", {unsealed}"),
            None => String::new(),
        };
        let digest = names::digest(config.content.as_bytes());
        lines.push(format!("ConfigMap {location}, digest {}{signed}", digits(&digest)));
    }
    if let Some(replicas) = gateway.replicas() {
        let rolling = objects.deployment.as_ref().is_some_and(|deployment| deployment.content.rolling);
        let rolling = if rolling { ", being rolled out" } else { "" };
        lines.push(format!("Deployment {location}, {replicas} pod(s) asked for{rolling}"));
    }
    lines
}

fn pod(pod: &Pod, gateway: &Gateway) -> String {
    if !pod.ready {
        return why_unready(pod);
    }
    let role = match gateway.active() {
        Some(active) if active.uid == pod.uid => ", active",
        Some(_) if pod.member => ", standby",
        Some(_) | None => "",
    };
    let on = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let mac = pod.mac.as_ref().map(|mac| format!(", {mac}")).unwrap_or_default();
    format!("{}{on}: ready{role}{mac}", pod.name)
}

fn kernel(view: &View<'_>, gateway: &Gateway) -> Vec<String> {
    let Some(condition) = gateway.ready() else { return Vec::new() };
    let since = gateway.observed.service.as_ref().and_then(|service| service.since.get(&condition.kind));
    let since = since.map(|since| format!(", for {}", age(view.cluster.now.duration_since(*since))));
    vec![format!("{}: {}{}", condition.reason, condition.message, since.unwrap_or_default())]
}

fn announcement(view: &View<'_>, gateway: &Gateway) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(active) = gateway.active() {
        let activity = activity(gateway, active, view);
        let since =
            activity.since.map(|since| format!(", for {}", age(view.cluster.now.duration_since(since))));
        let why = activity.why.map(|why| format!(": {why}")).unwrap_or_default();
        let on = active.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        lines.push(format!("by {}{on}{}{why}", active.name, since.unwrap_or_default()));
    }
    if let Some(event) = last_change(gateway, view) {
        let ago = time(event).map(|time| format!("{} ago: ", age(view.cluster.now.duration_since(time))));
        let message = event.message.as_deref().unwrap_or_default();
        lines.push(format!("last Event: {}{message}", ago.unwrap_or_default()));
    }
    lines
}

fn endpoints(view: &View<'_>, gateway: &Gateway) -> Vec<String> {
    if !view.cluster.slices.is_whole() {
        return Vec::new();
    }
    let endpoints: Vec<_> =
        gateway.observed.endpoints.slices.iter().flat_map(|slice| &slice.endpoints).collect();
    let ready = endpoints.iter().filter(|endpoint| endpoint.ready).count();
    vec![format!("{ready} of {} ready", endpoints.len())]
}
