//! Which pod of a gateway owns its addresses: an election among the pods
//! themselves, on the LAN they serve, without the API server.
//!
//! One **member** is active, the others are standby. States and timers are
//! VRRPv3's (RFC 9568); the frames are our own ([`frame`]): they carry no LAN
//! address, are authenticated by a key that only the gateway's pods have, and
//! count only if they are fresh. Everything here is pure: time and frames come
//! in, frames and changes of role go out ([`machine`]).
//!
//! # What members say
//!
//! Every member sends a frame each advertisement interval *A*, whatever it is:
//! so each knows who is there, how sound, and by the echoes in them who hears
//! it. Nothing that was not fresh makes a member send.
//!
//! | frame | means | the kernel, as it leaves |
//! |---|---|---|
//! | Hello | I am standby | |
//! | Take | I have become active | gives the lease |
//! | Advertisement | I am active | renews the lease; without one, drops the frame |
//! | Prolong | I am active, and late at times | the same, with a longer lease |
//! | Resign | I am not, and do not count on me until I say Hello | ends the lease |
//!
//! A **take-over** is a Take and an Advertisement, with a **term** one higher
//! than any heard of. Of two that are active the one with the higher (term,
//! priority, instance) stays, the other resigns as soon as it hears of it. A
//! Resign may name a **successor**, which takes over at once; the others wait
//! as if it had advertised. That is how a member leaves, and how it gives the
//! addresses to a standby of higher **priority** (how sound it is, 1 to 255;
//! among equals nobody moves). With nobody sounder, the active one keeps them.
//!
//! # Timers
//!
//! | | | at *A* = 50 ms |
//! |---|---|---|
//! | every member speaks | *A* | 50 ms |
//! | the kernel's lease *L* ([`lease`]) | 3 *A* from the last Take or Advertisement | 150 ms |
//! | and the longer one | 9 *A* from the last Prolong | 450 ms |
//! | a frame is fresh if it answers one of ours no older than | *L* | 150 ms |
//! | a member is present | *L* from its last fresh frame | 150 ms |
//! | Skew_Time | (256 - priority)/256 *A* | 0.2 to 50 ms |
//! | Active_Down_Interval | 3 *A* + *A*/4 + Skew_Time | 163 to 212 ms |
//! | and for each better standby that is present | *A*/2, after listening 3/2 *A* | 25, 75 ms |
//! | a successor takes over | at once | |
//! | when nobody was named | Skew_Time and the turns of better ones | |
//! | who listens takes over after | 9 *A* + 3/4 *A* + Skew_Time | 488 to 538 ms |
//! | what was said is forgotten | after 16 *A* of silence | 800 ms |
//!
//! A standby counts from the last Advertisement with the interval that the
//! active one asks for. It **listens** when it starts, when it becomes standby,
//! when it has slept for more than *L*, when another successor was named, and
//! when a better standby is new. An Advertisement of one less sound than itself
//! it respects as well, but only for that long: by then an active one that hears
//! anything has handed over.
//!
//! # Late
//!
//! On a node with more to do than processors the processes wait for them, and an
//! active one that waits for *L* has lost its lease. Should it be much to move
//! the addresses, that takes processors too, and so they would go to and fro. So
//! a member that comes late by *A* or more asks for patience, for 200 *A*:
//! the interval in its frames, by which the others count, is the **stretched**
//! one then, 3 *A*. (In VRRPv3 it is the active one's interval that counts, too.)
//! Only when every member that is present has echoed that it was asked is the
//! lease longer: the active one's next Advertisement is a Prolong. From then on it
//! also speaks by that interval, as a standby does that was late: a third of the
//! work, on a node that has too much. The other way round it is the lease that
//! goes first: an Advertisement has the short one back as it leaves. Who may not
//! have heard all that was said waits for the longest lease there is: that is what
//! listening is for.
//!
//! Who counts by the stretched interval takes over after 488 to 638 ms.
//!
//! # Fresh
//!
//! A frame counts if its tag is right, its sequence is higher than the last
//! heard of its sender, and it **answers**: it echoes a sequence that this
//! process sent no more than *L* ago, by the longer interval of the two. Sequences
//! never come again, and an instance is drawn for each process, so no nonces are
//! needed beside them.
//! - What was recorded answers old sequences or other instances. A frame counts
//!   once, and no later than *L* after what it answers. It can be held back that
//!   long, as by a slow network, if no later one of its sender has arrived.
//! - One who cannot hear us does not answer: so a deaf one is not respected, and
//!   is replaced within *L* and an Active_Down_Interval. A deaf standby, which
//!   takes over because it hears nobody, is for the same reason not yielded to:
//!   what it heard last is older than *L* by then.
//! - What does not answer, a newcomer's first frame or a recorded one, only has
//!   its sender echoed from then on, nothing else; at most 16 instances are, and
//!   those that answer go first.
//!
//! # What the IO side has to do
//!
//! 1. Give every received payload to `receive`, until there is none, and only
//!    then call `tick`; at the latest at `deadline`.
//! 2. Carry out what comes back in order, before the next input. If a frame
//!    cannot be sent, drop the rest of the list and call `refused`.
//! 3. `Became(Active)`: add the addresses and announce them, if `holds` with the
//!    time of that very moment. `Became(Standby | Left)`: remove them; the lease
//!    is gone already. A split that we stay in: announce again.
//! 4. When the LAN's link goes, call `refused`; until it is back, neither `tick`
//!    nor `receive`; when it is, `isolated`, so that the member listens first.
//! 5. When nothing of the LAN is in reach, call `isolated`, and again at least
//!    once in each *A* until something is.
//! 6. The kernel's lease has a timeout of [`lease`]`(A)`, and after a Prolong of
//!    `lease(stretched(A))`. Its set is empty when the process starts.
//!
//! # Why there are not two
//!
//! **Only the kernel's lease lets a member answer**, and it ends by itself *L*
//! (or 9 *A*, when all that are present know) after the last Advertisement left.
//! A standby counts the Active_Down_Interval from when it heard that, which was
//! not earlier, and is at least *A*/4 longer.
//! That margin covers two clocks that are each wrong by 2 % and a delay of
//! *A*/8 in the network, or with good clocks a tick of the kernel's. A process
//! that sleeps cannot renew a lease that has run out: an Advertisement does not
//! bring one back, and only a take-over sends Take. Handing over ends the lease
//! before anyone is told.
//!
//! **A standby that slept knows nothing.** It decides in `tick` alone, after
//! reading all that has come, and after more than *L* it listens anew.
//! **Two standbys do not take over at once**: they have their turns by priority
//! and instance, half an interval of those that they waited for apart, and the
//! first is heard before the second's. **Nobody is active for long beside
//! another**: they hear each other, and of any two exactly one has the higher
//! claim.
//!
//! For how long two may hold a lease at once, with *D* the network's delay, and
//! *A* the interval that the members ask to be counted by:
//!
//! - (a) No frame is lost: never. What may happen for 2*D*: that two standbys
//!   take over at once which do not know each other yet, or of which one becomes
//!   sounder or is held up by a turn just then.
//! - (b) *k* frames in a row are lost, with those that asked for patience heard.
//!   From a living active one nobody takes over while *k* ≤ 1 both ways, or 2 one
//!   way. One that died may have renewed its lease *k* times unheard: *kA* -
//!   *A*/4 at most, and as much longer as it came late. Of two living ones that
//!   hear one in *k* + 1 frames, *k* ≤ 1, one has resigned after 2(*k*+1)*A* +
//!   2*D*.
//! - (c) The LAN is split, or one does not hear: for as long as that lasts, each
//!   in its own part. From then on 2*A* + 2*D*: one interval until both have
//!   heard the other, one until they have been answered. One whose part is just
//!   itself has let go before, if its router used to answer: `isolated`.
//! - (d) A process sleeps between deciding to take over and sending Take: it has
//!   a lease when it wakes, until its next input; but adds no address, for
//!   `holds` says no. A host is suspended: the kernel's timeouts stand still
//!   meanwhile, and what was left of the lease is valid until the process runs,
//!   at most *L*.
//!
//! Once frames arrive again, all run and priorities stay, after 16 *A* exactly
//! one is active and stays so.

pub mod frame;
pub mod machine;
mod peers;

pub use frame::{ETHERTYPE, Instance, Key, Kind, group};
pub use machine::{Counters, Election, Member, Output, Reason, Role};

use std::num::NonZeroU8;
use std::time::Duration;

/// A time: since any epoch, by a clock that never goes back and counts the time
/// that the host is suspended (CLOCK_BOOTTIME).
pub type Time = Duration;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// How long the kernel lets a member be active after it last said so.
pub const fn lease(interval: Duration) -> Duration {
    interval.saturating_mul(3)
}

/// The interval that a member asks to be counted by while it comes late.
pub const fn stretched(interval: Duration) -> Duration {
    interval.saturating_mul(3)
}

/// Active_Down_Interval (RFC 9568, 6.1) without the skew: how long an active
/// member must be silent before another takes over. The quarter over the lease
/// is for clocks of different rates, a tick of the kernel's, and the delay of
/// the last advertisement.
pub fn silence(interval: Duration) -> Duration {
    lease(interval) + interval / 4
}

/// Skew_Time (RFC 9568, 6.1): the sounder, the sooner.
fn skew(interval: Duration, priority: NonZeroU8) -> Duration {
    interval * (256 - u32::from(priority.get())) / 256
}
