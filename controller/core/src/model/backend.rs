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
    pub fit: bool,
    /// When it passed our gate, if it has.
    pub passed: Option<Timestamp>,
    /// Whether its condition says what keeps it from that.
    pub told: bool,
}
