//! `services`: which Services there are, and whether they are served.

use lb_svc_core::service::conditions::LIMITED;

use crate::finding::{Depth, Finding, findings, worst};
use crate::screen::{Cell, Screen, Table};
use crate::view::{Gateway, View};

/// How a Service fares, in one word or two.
pub(super) fn state(gateway: &Gateway, wrong: &[Finding]) -> Cell {
    match (gateway.is_served(), wrong.is_empty() && gateway.condition(LIMITED).is_none()) {
        (true, true) => "Served".into(),
        (true, false) => Cell::from("Limited").bad_if(!wrong.is_empty()),
        (false, _) => Cell::from("NotServed").bad_if(true),
    }
}

/// What is wrong first with a Service, or what it lacks by its own asking: reason and
/// message.
fn first<'a>(gateway: &'a Gateway, wrong: &'a [Finding]) -> Option<(&'a str, &'a str)> {
    let limited = || gateway.condition(LIMITED).map(|limit| (limit.reason.as_str(), limit.message.as_str()));
    worst(wrong).map(|finding| (finding.reason.as_str(), finding.message.as_str())).or_else(limited)
}

/// The Services of a namespace, or of all; with `problems` only those with something
/// wrong.
pub fn services(view: &View<'_>, namespace: Option<&str>, problems: bool) -> Screen {
    let mut table = Table::new(
        "services",
        match problems {
            false => &["namespace", "name", "address", "subnet", "state", "since", "reason"],
            true => &["namespace", "name", "address", "state", "reason", "message"],
        },
    );
    let mut screen =
        Screen { judges: problems, unseen: view.cluster.unseen.clone(), ..Screen::new("services") };
    for gateway in view.gateways(namespace) {
        let Some(service) = &gateway.observed.service else { continue };
        let wrong = findings(&gateway, view.cluster, Depth::Objects);
        if problems && wrong.is_empty() {
            continue;
        }
        let (reason, message) = first(&gateway, &wrong).unzip();
        let is_bad = !wrong.is_empty();
        let mut row: Vec<Cell> = vec![
            gateway.service.namespace.as_str().into(),
            gateway.service.name.as_str().into(),
            Cell::some(gateway.address()),
        ];
        if problems {
            row.extend([state(&gateway, &wrong), Cell::some(reason).bad_if(true), Cell::some(message)]);
            screen.trouble.push(format!("{}: {}", gateway.service, reason.unwrap_or_default()));
        } else {
            row.extend([
                Cell::some(gateway.claim().map(|claim| claim.subnet.clone())),
                state(&gateway, &wrong),
                Cell::since(
                    gateway.ready().and_then(|ready| service.since.get(&ready.kind)).copied(),
                    view.cluster.now,
                ),
                Cell::some(reason).bad_if(is_bad),
            ]);
        }
        table.rows.push(row);
    }
    screen.tables.push(table);
    screen
}
