//! What delays or speeds up a standby's take-over.

use std::time::Duration;

use crate::{Time, active_down_interval, extended};

/// A resignation or loss of the active member that was received.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// The name of the member that was active.
    pub name: String,
    /// It named us its successor.
    pub names_us: bool,
}

/// The time before which a standby does not take over, whatever it receives
/// (VRRP's Initialize state).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    /// The end of the hold.
    pub until: Time,
    /// The interval that it was computed with.
    pub interval: Duration,
}

impl Hold {
    /// Until an active member has been received from, or its lease has expired,
    /// even an extended one.
    pub fn from(now: Time, interval: Duration) -> Self {
        Self { until: now + active_down_interval(extended(interval)), interval: extended(interval) }
    }
}
