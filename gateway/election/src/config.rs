//! The parameters of a member.

use std::num::NonZeroU8;
use std::time::Duration;

use crate::frame::{Instance, Key, Uid};

/// What a member is configured with.
#[derive(Clone)]
pub struct MemberConfig {
    /// The gateway's UID, which all its members share.
    pub uid: Uid,
    /// The key that only the gateway's pods have.
    pub key: Key,
    /// Random bytes, drawn for this process.
    pub instance: Instance,
    /// The pod's name, for people.
    pub name: String,
    /// Advertisement interval, 1 ms to 21 s, in whole milliseconds.
    pub interval: Duration,
    /// Priority, 1 to 255: how well the pod can serve.
    pub priority: NonZeroU8,
}
