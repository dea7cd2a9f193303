//! `subnets`: where addresses are from, and what is left.

use lb_svc_core::model::Subnet;

use crate::screen::{Cell, Screen, Table};
use crate::view::View;

/// Whether a Subnet hands out addresses, or why not: reason and message.
pub(super) fn ready(subnet: &Subnet) -> Result<(), (String, String)> {
    let condition = subnet.status.conditions.iter().find(|condition| condition.kind == "Ready");
    match condition {
        Some(condition) if condition.status => Ok(()),
        Some(condition) => Err((condition.reason.clone(), condition.message.clone())),
        None => Err(("NotAnswered".to_owned(), "the controller has written no condition".to_owned())),
    }
}

/// All Subnets that are not OVN's.
pub fn subnets(view: &View<'_>) -> Screen {
    let mut table = Table::new(
        "subnets",
        &["name", "provider", "cidr", "used", "available", "ready", "reason", "message"],
    );
    for name in view.index.known_subnets() {
        let Some(subnet) = view.index.subnet(&name) else { continue };
        let ready = ready(subnet);
        let (reason, message) = ready.as_ref().err().cloned().unzip();
        let is_bad = ready.is_err();
        table.rows.push(vec![
            name.into(),
            subnet.spec.provider.as_str().into(),
            subnet.spec.cidr_block.as_str().into(),
            subnet.status.using.into(),
            Cell::from(subnet.status.available).bad_if(!is_bad && subnet.status.available == 0),
            Cell::from(if is_bad { "False" } else { "True" }).bad_if(is_bad),
            Cell::some(reason).bad_if(is_bad),
            Cell::some(message),
        ]);
    }
    Screen {
        judges: false,
        tables: vec![table],
        unseen: view.cluster.unseen.clone(),
        ..Screen::new("subnets")
    }
}
