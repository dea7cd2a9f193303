//! Pods with the readiness gate.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::PodId;

/// A pod with the readiness gate, as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its uid.
    pub uid: String,
    /// The uid's hash.
    pub id: PodId,
    /// Its labels, by which Services select it.
    pub labels: BTreeMap<String, String>,
    /// Whether it is ready except for the gate, and not terminating.
    pub ready_except_gate: bool,
    /// When its gate was satisfied, if it is.
    pub gate_satisfied_at: Option<Timestamp>,
    /// Whether its condition says what the gate waits for.
    pub gate_reported: bool,
}
