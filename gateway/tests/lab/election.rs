//! Several pods of one gateway.

use lb_svc_crds::gateway::Role;

use super::{Gateway, Lab, Site, config, wait};

/// What the pod is in the election.
pub fn role(gateway: &Gateway) -> Option<Role> {
    Some(gateway.status()?.election?.role)
}

/// Waits for the pod to have this role.
pub fn is(gateway: &Gateway, wanted: Role) {
    wait(&format!("{wanted:?}"), || (role(gateway)? == wanted).then_some(()));
}

/// Two pods with a key, of which the first one is active.
pub fn two(lab: &Lab) -> (Gateway<'_>, Site) {
    lab.key(7);
    let gateway = lab.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    is(&gateway, Role::Active);
    let other = lab.another(1);
    other.key(7);
    (gateway, other)
}

/// Starts the second pod, and waits until it is standby beside the first, and
/// each hears the other.
pub fn standby<'a>(first: &Gateway, site: &'a Site) -> Gateway<'a> {
    let gateway = site.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    is(&gateway, Role::Standby);
    wait("the active one to be heard", || gateway.status()?.election?.active);
    wait("the standby to be heard", || (first.status()?.election?.peers.len() == 1).then_some(()));
    assert_eq!(gateway.get("/readyz").unwrap().0, 200, "standby is ready");
    gateway
}
