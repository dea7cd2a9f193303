//! Which pod of a gateway owns its addresses: an election among the pods
//! themselves, on the LAN they serve, without the API server.
//!
//! One **member** is active, the others are standby. States and timers are
//! VRRPv3's (RFC 9568). The frames are our own: they carry no LAN address, are
//! authenticated by a key that only the gateway's pods have, and count only if
//! they are fresh. The crate does no IO: time and frames are inputs, frames and
//! role changes are outputs.
//!
//! | File | Holds |
//! |---|---|
//! | [`machine`] | the state machine of one member |
//! | [`events`] | its outputs, counters and snapshot |
//! | [`config`] | its parameters |
//! | `hold` | what delays or speeds up a take-over |
//! | `peers` | the other members, and the freshness of their frames |
//! | [`frame`] | the wire format, signing and verification |
//!
//! ```text
//!                    take-over due
//!      ┌─────────┐ ─────────────────▶ ┌────────┐
//!  ──▶ │ Standby │                    │ Active │
//!      └─────────┘ ◀───────────────── └────────┘
//!           │       hand-over, split brain, lease expired,
//!           │       send failed, isolated        │
//!           └──────────────▶ Left ◀──────────────┘
//! ```
//!
//! # Frames
//!
//! Every member sends a frame each advertisement interval *A*, whatever its role.
//! So each knows the other members, their priorities, and, by the
//! acknowledgements in the frames, which of them receive from it. Only a fresh
//! frame can make a member send.
//!
//! | frame | sender | effect in the sender's kernel, as it leaves |
//! |---|---|---|
//! | Keepalive | is standby | |
//! | TakeOver | has become active | starts the lease |
//! | Advertisement | is active | renews the lease; without one, the frame is dropped |
//! | ExtendedAdvertisement | is active, and overloaded | the same, with an extended lease |
//! | Resign | is not active, and excluded from succession until its next Keepalive; of a member that has left, each interval until its driver ends | ends the lease |
//!
//! A **take-over** is a TakeOver and an Advertisement, with a **term** one higher
//! than any received. Of two active members the one with the higher (term,
//! priority, instance) stays, the other resigns upon the first frame it receives.
//! A member that has **left** may still lead connections: it is no successor, and the
//! others know that it is there for as long as it sends.
//! A Resign may name a **successor**, which takes over at once; the other standbys
//! wait as if it had advertised. That is how a member leaves, and how it hands
//! over to a standby of higher **priority** (how well it can serve, 1 to 255). The
//! active member keeps the addresses while no standby has a higher priority.
//!
//! # Timers
//!
//! | | | at *A* = 50 ms |
//! |---|---|---|
//! | interval of every member's frames | *A* | 50 ms |
//! | lease *L* in the kernel ([`lease_time`]) | 3 *A* from the last TakeOver or Advertisement | 150 ms |
//! | extended lease | 9 *A* from the last ExtendedAdvertisement | 450 ms |
//! | a frame is fresh if it acknowledges a frame of ours no older than | *L* | 150 ms |
//! | a member is reachable for | *L* from its last fresh frame | 150 ms |
//! | Skew_Time | (256 - priority)/256 *A* | 0.2 to 50 ms |
//! | Active_Down_Interval | 3 *A* + *A*/4 + Skew_Time | 163 to 212 ms |
//! | precedence delay, for each reachable standby that precedes us | *A*/2, after a hold 3/2 *A* | 25, 75 ms |
//! | a named successor takes over | at once | |
//! | without a named successor | after Skew_Time and the precedence delay | |
//! | a member in its hold takes over after | 9 *A* + 3/4 *A* + Skew_Time | 488 to 538 ms |
//! | a report is forgotten | after 16 *A* of silence | 800 ms |
//!
//! A standby counts from the last Advertisement, with the interval that the active
//! member requests. It begins a **hold** (VRRP's Initialize state), in which it
//! does not take over, when it starts, when it becomes standby, when it has slept
//! for more than *L*, when another successor was named, and when a standby that
//! precedes it is new. An Advertisement of lower priority than its own also resets
//! its timer, but only for one Active_Down_Interval: by then an active member that
//! receives anything has handed over.
//!
//! # Overload
//!
//! On an overloaded node processes wait for a processor, and an active member that
//! waits for *L* has lost its lease. A failover costs processor time as well, so
//! the addresses would move back and forth. Therefore a member that misses a
//! deadline by *A* or more requests **extended timers** for 200 *A*: its frames
//! then carry the **extended** interval, 3 *A*, by which its peers time it. (In
//! VRRPv3 the active router's interval counts, too.) Only when every reachable peer
//! has acknowledged such a frame is the lease extended: the active member's next
//! Advertisement is an ExtendedAdvertisement. From then on it also sends at that
//! interval, as an overloaded standby does: a third of the work. The other way
//! round the lease is shortened first: an Advertisement restores the short lease as
//! it leaves. A member that may not have received every frame waits for the longest
//! lease there is: that is what the hold is for.
//!
//! A standby on extended timers takes over after 488 to 638 ms.
//!
//! # Freshness
//!
//! A frame counts if its tag is right, its sequence number is higher than the last
//! received from its sender, and it **acknowledges** a sequence number that this
//! process sent no more than *L* ago, by the longer interval of the two. Sequence
//! numbers never repeat, and an instance is drawn for each process, so no further
//! nonces are needed.
//! - A recorded frame acknowledges old sequence numbers or other instances. A frame
//!   counts once, and no later than *L* after the frame that it acknowledges. It can
//!   be delayed that long, as by a slow network, if no later one of its sender has
//!   arrived.
//! - A member that does not receive from us does not acknowledge us. So an active
//!   member that receives nothing does not reset timers, and is replaced within *L*
//!   and an Active_Down_Interval. A standby that receives nothing, and takes over
//!   because of that, does not make the active member step down for the same reason:
//!   what it received last is older than *L* by then.
//! - A frame that does not acknowledge us, a newcomer's first or a recorded one, only
//!   has its sender acknowledged from then on, nothing else; at most 16 instances
//!   are, and fresh peers go first.
//!
//! # What the driver has to do
//!
//! 1. Pass every received payload to `receive`, until there is none, and only then
//!    call `tick`; at the latest at `deadline`.
//! 2. Carry out the outputs in order, before the next input. If a frame cannot be
//!    sent, drop the rest of the outputs and call `send_failed`.
//! 3. `RoleChanged(Active)`: add the addresses and announce them, if `holds_lease`
//!    at that very moment. `RoleChanged(Standby | Left)`: remove them; the lease has
//!    ended already. `SplitBrain` in which this member stays: announce them again.
//! 4. When the LAN's link goes down, call `send_failed`; until it is up, call neither
//!    `tick` nor `receive`; when it is, call `isolated`, so that the member starts
//!    with a hold. The same with `stalled` while the gateway around the member hangs.
//! 5. When nothing on the LAN is reachable, call `isolated`, and again at least once
//!    in each *A* until something is.
//! 6. Before the member is active or knows a peer, probe for the addresses, and call
//!    `address_in_use` for each answer of a host that is no member.
//! 7. The kernel's lease has a timeout of [`lease_time`]`(A)`, and after an
//!    ExtendedAdvertisement of `lease_time(extended(A))`. Its set is empty when the
//!    process starts.
//!
//! # Why two members do not hold the lease at once
//!
//! **Only the kernel's lease lets a pod answer for the addresses**, and it ends by
//! itself *L* (or 9 *A*, if all reachable peers know) after the last Advertisement
//! left. A standby counts the Active_Down_Interval from when it received that, which
//! was not earlier, and the interval is at least *A*/4 longer. That margin covers two
//! clocks that are each wrong by 2 % and a delay of *A*/8 in the network, or with good
//! clocks a tick of the kernel's. A process that sleeps cannot renew an expired lease:
//! an Advertisement does not restart one, and only a take-over sends TakeOver. A
//! hand-over ends the lease before any successor receives of it.
//!
//! **A standby that slept knows nothing.** It decides in `tick` alone, after
//! processing every received frame, and after more than *L* it starts a hold.
//! **Two standbys do not take over at once**: their precedence delays, by priority and
//! instance, are half an interval apart, and the first one's frames are received
//! before the second's delay ends. **No two members stay active for long**: they
//! receive from each other, and of any two exactly one has the higher (term, priority,
//! instance).
//!
//! For how long two may hold a lease at once, with *D* the network's delay, and *A* the
//! interval that the members request to be timed by:
//!
//! - (a) No frame is lost: never. What may happen for 2*D*: two standbys take over at
//!   once that do not know each other yet, or of which one's priority rises or which is
//!   held up by the precedence delay just then.
//! - (b) *k* frames in a row are lost, but not those that requested extended timers. No
//!   standby takes over from a living active member while *k* ≤ 1 both ways, or 2 one
//!   way. One that died may have renewed its lease *k* times without being received:
//!   *kA* - *A*/4 at most, and longer by as much as it was overdue. Of two living ones
//!   that receive one in *k* + 1 frames, *k* ≤ 1, one has resigned after
//!   2(*k*+1)*A* + 2*D*.
//! - (c) The LAN is partitioned, or one member does not receive: for as long as that
//!   lasts, each in its own part. From then on 2*A* + 2*D*: one interval until both have
//!   received from the other, one until they have been acknowledged. A member whose part
//!   is just itself has stepped down before, if its router used to answer: `isolated`.
//! - (d) A process sleeps between deciding to take over and sending TakeOver: it has a
//!   lease when it wakes, until its next input; but adds no address, as `holds_lease` is
//!   false. A host is suspended: the kernel's timeouts stand still meanwhile, and what
//!   was left of the lease is valid until the process runs, at most *L*.
//!
//! - (e) A host that is no member answers for the addresses when a member starts
//!   alone (`address_in_use`): the member waits for as long as that lasts if the host
//!   is a pod of the same gateway: the controller names it, or it sends frames of the
//!   gateway with another key, or without receiving from us. Of any other host nothing is
//!   known: after [`STRANGER_WAIT`] the member takes over, and both answer until the
//!   other is mended. Beside a peer it does not wait.
//!
//! Once frames arrive again, all members run and priorities stay, after 16 *A* exactly
//! one is active and stays so.

pub mod config;
pub mod events;
pub mod frame;
mod hold;
pub mod machine;
mod peers;

pub use config::MemberConfig;
pub use events::{Counters, Output, Reason, Role};
pub use frame::{ETHERTYPE, Instance, Key, Kind, group};
pub use machine::Election;

use std::num::NonZeroU8;
use std::time::Duration;

/// A time since any epoch, by a clock that never goes back and counts the time
/// that the host is suspended (CLOCK_BOOTTIME).
pub type Time = Duration;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// For how long a member waits at most for a host outside the gateway to leave
/// the addresses to it: an address that was in service is not given up to whatever
/// answers for it.
pub const STRANGER_WAIT: Duration = Duration::from_secs(10);

/// How long the kernel's lease lasts after its last renewal.
pub const fn lease_time(interval: Duration) -> Duration {
    interval.saturating_mul(3)
}

/// The interval that an overloaded member requests to be timed by.
pub const fn extended(interval: Duration) -> Duration {
    interval.saturating_mul(3)
}

/// Active_Down_Interval (RFC 9568, 6.1) without Skew_Time: how long an active
/// member must be silent before another takes over. The quarter over the lease
/// is for clocks of different rates, a tick of the kernel's, and the delay of
/// the last advertisement.
pub fn active_down_interval(interval: Duration) -> Duration {
    lease_time(interval) + interval / 4
}

/// Skew_Time (RFC 9568, 6.1): shorter with higher priority.
fn skew_time(interval: Duration, priority: NonZeroU8) -> Duration {
    interval * (256 - u32::from(priority.get())) / 256
}
