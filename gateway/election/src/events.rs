//! What the state machine reports: outputs to carry out, roles and their
//! reasons, counters, and a snapshot for status pages.

use std::fmt;
use std::num::NonZeroU8;
use std::time::Duration;

use crate::frame::Instance;
use crate::{Mac, Time};

/// The role of a member (RFC 9568: the states of a virtual router).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Ready to take over (Backup).
    Standby,
    /// Owns the addresses (Active).
    Active,
    /// Has left for good.
    Left,
}

/// Why a role changed. Names are those of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Standby: the process has started.
    Started,
    /// Active: there was no other member.
    Alone,
    /// Active: the active member is not received from any more, or does not
    /// receive from us.
    FellSilent(String),
    /// Active: the active member resigned in our favour.
    HandedOver(String),
    /// Active: the active member resigned, and named no successor or another one
    /// that did not take over.
    Released(String),
    /// Active: the active member has a lower priority, and did not hand over.
    LowerPriority(String),
    /// Standby: there were two active members, and the other one stays.
    SteppedDown(String),
    /// Standby: handed over to a member of higher priority.
    HandedOverTo(String),
    /// Standby: the lease expired while the process slept, for this long.
    LeaseExpired(Duration),
    /// Standby: the kernel did not send an advertisement.
    SendFailed,
    /// Standby: nothing on the LAN is reachable.
    Isolated,
    /// Standby: the gateway does not do its other work.
    Stalled,
    /// Left: the driver called `leave`.
    Leaving,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => write!(f, "started"),
            Self::Alone => write!(f, "nobody else was there"),
            Self::FellSilent(name) => write!(f, "{name} fell silent"),
            Self::HandedOver(name) => write!(f, "{name} handed over"),
            Self::Released(name) => write!(f, "{name} let go"),
            Self::LowerPriority(name) => write!(f, "{name} is less sound"),
            Self::SteppedDown(name) => write!(f, "yielded to {name}"),
            Self::HandedOverTo(name) => write!(f, "handed over to {name}, which is sounder"),
            Self::LeaseExpired(slept) => write!(f, "lapsed: slept {} ms", slept.as_millis()),
            Self::SendFailed => write!(f, "lapsed: refused by the kernel"),
            Self::Isolated => write!(f, "isolated: neither another pod nor the router is heard"),
            Self::Stalled => write!(f, "stalled: the gateway's loop stands still"),
            Self::Leaving => write!(f, "leaving"),
        }
    }
}

/// What the driver has to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this payload to the group address.
    Send(Vec<u8>),
    /// The role changed.
    RoleChanged(Role, Reason),
    /// Two members were active at once.
    SplitBrain {
        /// The other member's name.
        with: String,
        /// This member stays active. Neighbours may have learnt the other's
        /// hardware address: announce the addresses again.
        stays: bool,
    },
}

/// Counts of what should not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Payloads that are not frames.
    pub malformed: u64,
    /// Frames of other gateways.
    pub foreign: u64,
    /// Frames of senders with another key.
    pub bad_tag: u64,
    /// Frames received before, or overtaken by later ones.
    pub replayed: u64,
    /// Valid frames that acknowledge nothing that was sent lately; a newcomer's
    /// first frames are such.
    pub unacknowledging: u64,
    /// Times that two members were active at once.
    pub splits: u64,
    /// Times that the member acted an interval or more after its deadline.
    pub overloaded: u64,
}

/// Another member, as last received from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSnapshot {
    /// Its process.
    pub instance: Instance,
    /// The hardware address that it sends from.
    pub mac: Mac,
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: NonZeroU8,
    /// Its role; `Left` also for a member that resigned and may return.
    pub role: Role,
    /// When the last fresh frame was received.
    pub at: Time,
    /// Whether that was lately enough.
    pub is_reachable: bool,
}

/// The election as one member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// This member's role.
    pub role: Role,
    /// Since when.
    pub since: Time,
    /// Why.
    pub reason: Reason,
    /// The highest term known.
    pub term: u64,
    /// The active member.
    pub active: Option<(Instance, String)>,
    /// The other members.
    pub peers: Vec<PeerSnapshot>,
}
