//! Pods with the readiness gate.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::PodId;

/// A pod that has our readiness gate, as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its uid.
    pub uid: String,
    /// The same in short.
    pub id: PodId,
    /// What Services select it by.
    pub labels: BTreeMap<String, String>,
    /// Whether it is ready but for our gate, and not on its way out.
    pub ready_except_gate: bool,
    /// When it passed our gate, if it has.
    pub gate_satisfied_at: Option<Timestamp>,
    /// Whether its condition says what keeps it from that.
    pub gate_reported: bool,
}
