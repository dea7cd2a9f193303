//! Conditions, with the times of their last change.

use std::collections::BTreeMap;

use lb_svc_core::model::Condition;
use serde_json::{Value, json};

/// Conditions as they stand, with the times of their last change.
pub(super) struct Known<'a> {
    pub conditions: &'a [Condition],
    pub since: &'a BTreeMap<String, jiff::Timestamp>,
}

impl Known<'_> {
    /// `conditions` as the API takes them; one whose status stays keeps its
    /// time.
    pub fn stamp(&self, conditions: &[Condition], generation: Option<i64>) -> Value {
        let stamped = conditions.iter().map(|condition| {
            let same = |known: &&Condition| known.kind == condition.kind && known.status == condition.status;
            let since =
                self.conditions.iter().find(same).and_then(|known| self.since.get(&known.kind)).copied();
            let since = since.unwrap_or_else(|| {
                // The API keeps whole seconds.
                let now = jiff::Timestamp::now();
                jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
            });
            let mut object = json!({
                "type": condition.kind,
                "status": if condition.status { "True" } else { "False" },
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since,
            });
            if let Some(generation) = generation {
                object["observedGeneration"] = json!(generation);
            }
            object
        });
        stamped.collect()
    }
}
