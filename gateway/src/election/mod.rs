//! TODO
mod frame;
mod machine;
mod peers;

pub use frame::{ETHERTYPE, Instance, Key, Kind, group};
pub use machine::{Counters, Election, Member, Output, Reason, Role};

use std::num::NonZeroU8;
use std::time::Duration;

/// A time: since any epoch, by a clock that never goes back and counts the time
/// that the host is suspended (CLOCK_BOOTTIME).
pub type Time = Duration;

/// How long the kernel lets a member be active after it last said so.
pub const fn lease(interval: Duration) -> Duration {
    interval.saturating_mul(3)
}

/// How long an active member must be silent before another may take over. The
/// quarter over the lease is for clocks of different rates, a tick of the
/// kernel's, and the delay of the last advertisement.
fn silence(interval: Duration) -> Duration {
    lease(interval) + interval / 4
}

/// Skew_Time (RFC 9568, 6.1): the sounder, the sooner.
fn skew(interval: Duration, priority: NonZeroU8) -> Duration {
    interval * (256 - u32::from(priority.get())) / 256
}
