//! Conditions.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use lb_svc_core::model::Condition;

/// Our conditions among `all`: those whose type begins with `prefix`.
pub(super) fn conditions(
    all: &[meta::Condition],
    prefix: &str,
) -> (Vec<Condition>, BTreeMap<String, jiff::Timestamp>) {
    let ours = || all.iter().filter(|condition| condition.type_.starts_with(prefix));
    let conditions = ours().map(|condition| Condition {
        kind: condition.type_.clone(),
        status: condition.status == "True",
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    });
    let since = ours().map(|condition| (condition.type_.clone(), condition.last_transition_time.0));
    (conditions.collect(), since.collect())
}
