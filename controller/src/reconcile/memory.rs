//! What is remembered from one run to the next.

use std::collections::HashMap;
use std::time::Instant;

use lb_svc_core::backend::convergence::ConvergenceState;
use lb_svc_core::backend::readiness_gate::Wait;
use lb_svc_core::gateway::election::ElectionView;

/// What this process remembers of a key between two runs. All of it may be
/// lost: it only paces.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Runs since the last write, while not settled.
    pub unsettled_runs: u32,
    /// Failures in a row.
    pub failures: u32,
    /// When a Warning was last told.
    pub warned: Option<Instant>,
    /// The last nudge of each pod, by uid.
    pub nudges: HashMap<String, Instant>,
    /// When it was last asked why a pod hangs, and what was answered, by uid.
    pub start_failures: HashMap<String, (Instant, Option<(String, String)>)>,
    /// When the key was last made.
    pub key_written: Option<Instant>,
    /// The election among its pods, where it has several.
    pub election: Option<ElectionView>,
    /// How it fares, where it leads straight to endpoints.
    pub convergence_state: Option<ConvergenceState>,
    /// Its wait for our readiness gate.
    pub wait: Option<Wait>,
}
